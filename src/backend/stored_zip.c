#include "backend/stored_zip.h"

#include "base/text.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Sizes and signatures of the ZIP format (APPNOTE.TXT, 4.3); all numbers are little-endian. */
enum {
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    CENTRAL_BYTES = 46,
    LOCAL_BYTES = 30,
    COMMENT_MAX = 65535
};
enum { ENTRIES_MAX = 1000000, NAME_MAX_BYTES = 4096 };
#define END_MARK     0x06054b50u
#define END64_MARK   0x06064b50u
#define LOCATOR_MARK 0x07064b50u
#define CENTRAL_MARK 0x02014b50u
#define LOCAL_MARK   0x04034b50u

typedef struct archive {
    const unsigned char *data;
    size_t bytes;
    const char *path;
} archive;

typedef struct directory {
    uint64_t offset, bytes, count;
} directory;

static uint64_t number(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

static bool inside(const archive *a, uint64_t offset, uint64_t bytes)
{
    return offset <= a->bytes && bytes <= a->bytes - offset;
}

static dpi_status damaged(const archive *a, const char *what, dpi_error *error)
{
    return error_set(error, DPI_E_MODEL, "%s is no whole .pt2 package (%s); compile the model again", a->path, what);
}

static bool find_end(const archive *a, size_t *at)
{
    for (size_t back = END_BYTES; back <= a->bytes && back <= END_BYTES + COMMENT_MAX; back++) {
        *at = a->bytes - back;
        if (number(a->data + *at, 4) == END_MARK && number(a->data + *at + 20, 2) <= back - END_BYTES)
            return true;
    }
    return false;
}

static dpi_status find_directory(const archive *a, directory *d, dpi_error *error)
{
    size_t end;
    if (!find_end(a, &end))
        return damaged(a, "it has no directory: cut short, or another kind of file", error);
    *d = (directory){.count = number(a->data + end + 10, 2),
                     .bytes = number(a->data + end + 12, 4),
                     .offset = number(a->data + end + 16, 4)};
    if (end >= LOCATOR_BYTES && number(a->data + end - LOCATOR_BYTES, 4) == LOCATOR_MARK) {
        uint64_t at = number(a->data + end - LOCATOR_BYTES + 8, 8);
        if (!inside(a, at, END64_BYTES) || number(a->data + at, 4) != END64_MARK)
            return damaged(a, "its directory is not where it should be", error);
        *d = (directory){.count = number(a->data + at + 32, 8),
                         .bytes = number(a->data + at + 40, 8),
                         .offset = number(a->data + at + 48, 8)};
    }
    if (!inside(a, d->offset, d->bytes) || d->count > ENTRIES_MAX || d->count > d->bytes / CENTRAL_BYTES)
        return damaged(a, "its directory lies outside of the file", error);
    return DPI_OK;
}

/* Sizes of 2^32 - 1 stand in a ZIP64 field instead: raw size, stored size, offset, each only where it is needed. */
static bool read_long_sizes(const unsigned char *extra, size_t bytes, uint64_t *raw, uint64_t *stored, uint64_t *offset)
{
    uint64_t *fields[] = {raw, stored, offset};
    bool needed = *raw == UINT32_MAX || *stored == UINT32_MAX || *offset == UINT32_MAX;
    for (size_t at = 0; needed && at + 4 <= bytes;) {
        size_t size = (size_t)number(extra + at + 2, 2), from = at + 4;
        if (size > bytes - from)
            return false;
        for (size_t f = 0, used = 0; number(extra + at, 2) == 1 && f < 3; f++)
            if (*fields[f] == UINT32_MAX) {
                if (used + 8 > size)
                    return false;
                *fields[f] = number(extra + from + used, 8);
                used += 8;
                needed = false;
            }
        at = from + size;
    }
    return !needed;
}

/* The entry that `c`, with `left` bytes of directory from there, describes; *used are the bytes of its description. */
static dpi_status read_entry(const archive *a, const unsigned char *c, size_t left, zip_entry *e, size_t *used,
                             dpi_error *error)
{
    if (left < CENTRAL_BYTES || number(c, 4) != CENTRAL_MARK)
        return damaged(a, "its directory is damaged", error);
    size_t name = (size_t)number(c + 28, 2), extra = (size_t)number(c + 30, 2), comment = (size_t)number(c + 32, 2);
    uint64_t stored = number(c + 20, 4), raw = number(c + 24, 4), offset = number(c + 42, 4);
    *used = CENTRAL_BYTES + name + extra + comment;
    if (*used > left || name == 0 || name > NAME_MAX_BYTES || memchr(c + CENTRAL_BYTES, 0, name) ||
        !read_long_sizes(c + CENTRAL_BYTES + name, extra, &raw, &stored, &offset))
        return damaged(a, "its directory is damaged", error);
    if (number(c + 8, 2) & 1 || number(c + 10, 2) != 0 || raw != stored)
        return damaged(a, "it has compressed or encrypted entries", error);
    if (!inside(a, offset, LOCAL_BYTES) || number(a->data + offset, 4) != LOCAL_MARK)
        return damaged(a, "an entry is not where the directory says", error);
    uint64_t begin = offset + LOCAL_BYTES + number(a->data + offset + 26, 2) + number(a->data + offset + 28, 2);
    if (!inside(a, begin, raw))
        return damaged(a, "an entry reaches beyond the end of the file", error);
    *e = (zip_entry){.name = strndup((const char *)c + CENTRAL_BYTES, name), .data = a->data + begin, .bytes = raw};
    return e->name ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
}

dpi_status stored_zip_read(const void *data, size_t bytes, const char *path, stored_zip *zip, dpi_error *error)
{
    const archive a = {data, bytes, path};
    directory d;
    *zip = (stored_zip){0};
    dpi_status status = find_directory(&a, &d, error);
    if (!status && !(zip->entries = calloc(d.count + 1, sizeof *zip->entries)))
        status = error_set(error, DPI_E_SYSTEM, "out of memory");
    for (size_t at = 0, used = 0; !status && zip->count < d.count; at += used) {
        status = read_entry(&a, a.data + d.offset + at, d.bytes - at, &zip->entries[zip->count], &used, error);
        zip->count += !status;
    }
    if (status)
        stored_zip_free(zip);
    return status;
}

void stored_zip_free(stored_zip *zip)
{
    for (size_t i = 0; i < zip->count; i++)
        free(zip->entries[i].name);
    free(zip->entries);
    *zip = (stored_zip){0};
}
