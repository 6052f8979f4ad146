/* FILE.npz[:MEMBER]: a member of an archive. A stored one is mapped where it stands in the file, a deflated one is
 * inflated by the caller into memory that all workers map. Workers see rows at an offset (raw@) either way. */
#include "base/text.h"
#include "data/source_kind.h"
#include "data/zip.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The archive's path (malloc'd) and, in the spec, the member's name or NULL. */
static char *path_of(const char *spec, const char **member)
{
    const char *at = strstr(spec, ".npz:");
    *member = at && at[5] ? at + 5 : NULL;
    return at ? strndup(spec, (size_t)(at - spec) + 4) : strdup(spec);
}

static bool is_named(const zip_member *m, const char *name)
{
    size_t length = strlen(name), own = strlen(m->name);
    return strcmp(m->name, name) == 0 ||
           (own == length + 4 && memcmp(m->name, name, length) == 0 && strcmp(m->name + length, ".npy") == 0);
}

static void list_members(const zip_directory *d, char *text, size_t size)
{
    size_t used = 0;
    text[0] = 0;
    for (size_t i = 0; i < d->count && used + 40 < size; i++) {
        size_t own = strlen(d->members[i].name), cut = own > 4 && strcmp(d->members[i].name + own - 4, ".npy") == 0;
        int wrote =
            snprintf(text + used, size - used, "%s%.*s", i ? ", " : "", (int)(own - 4 * cut), d->members[i].name);
        used += wrote > 0 ? (size_t)wrote : 0;
    }
}

/* The member called `wanted`, or the only one. */
static dpi_status choose(const zip_directory *d, const char *path, const char *wanted, const zip_member **chosen,
                         dpi_error *error)
{
    char list[400];
    size_t found = 0;
    *chosen = NULL;
    for (size_t i = 0; i < d->count; i++)
        if (!wanted || is_named(&d->members[i], wanted)) {
            *chosen = &d->members[i];
            found++;
        }
    if (found == 1)
        return DPI_OK;
    list_members(d, list, sizeof list);
    if (!d->count)
        return error_set(error, DPI_E_DATA, "%s holds nothing", path);
    return wanted
               ? error_set(error, DPI_E_DATA, "%s has %s member called \"%.100s\"; it has %s", path,
                           found ? "more than one" : "no", wanted, list)
               : error_set(error, DPI_E_DATA, "%s holds several arrays (%s); say which as %s:NAME", path, list, path);
}

/* What workers open: the rows, wherever they are now. */
static dpi_status note_place(source *s, const char *name, dpi_error *error)
{
    text_buffer shape = {0};
    for (int i = 1; i < s->shape.rank; i++)
        text_add(&shape, "%s%lld", i > 1 ? "x" : "", (long long)s->shape.shape[i]);
    if (!shape.failed)
        s->worker_spec =
            text_format("raw@%llu,%llu:%s:%s:%s", (unsigned long long)s->data_offset, (unsigned long long)s->rows,
                        shape.data ? shape.data : "", dpi_dtype_name(s->shape.dtype), name);
    text_free(&shape);
    return s->worker_spec ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
}

static dpi_status open_member(source *s, const char *path, const zip_member *m, uint64_t file_bytes, dpi_error *error)
{
    uint64_t offset = 0, bytes = file_bytes;
    dpi_status status = zip_find(s->fd, file_bytes, path, m, &offset, error);
    if (!status && !zip_is_stored(m)) {
        int memory;
        status = zip_inflate(s->fd, path, m, offset, &memory, error);
        if (status)
            return status;
        s->fd = memory; /* file_fd stays the archive */
        offset = 0;
        bytes = m->bytes;
    }
    s->promises = !status && zip_is_stored(m); /* inflating has compared it */
    s->promise = (source_promise){.offset = offset, .bytes = m->bytes, .crc = m->crc};
    char *name = text_format("%s:%s", path, m->name);
    if (!status && !name)
        status = error_set(error, DPI_E_SYSTEM, "out of memory");
    if (!status)
        status = flat_take_npy(s, name, offset, m->bytes, error);
    if (!status)
        status = note_place(s, name, error);
    free(name);
    return status ? status : flat_map(s, bytes, error);
}

static dpi_status npz_open(source *s, int fd, dpi_error *error)
{
    const char *wanted;
    const zip_member *member;
    zip_directory directory = {0};
    uint64_t bytes = 0;
    char *path = path_of(s->spec, &wanted);
    dpi_status status = path ? flat_open(s, path, fd, &bytes, error) : error_set(error, DPI_E_SYSTEM, "out of memory");
    if (!status)
        status = zip_read(s->fd, bytes, path, &directory, error);
    if (!status)
        status = choose(&directory, path, wanted, &member, error);
    if (!status)
        status = open_member(s, path, member, bytes, error);
    zip_free(&directory);
    free(path);
    return status;
}

const source_kind source_npz = {.open = npz_open, .close = flat_close, .read = flat_read};

dpi_status source_member_for(const char *spec, const char *port_name, char **out, dpi_error *error)
{
    size_t length = strlen(spec);
    source archive = {.fd = -1, .file_fd = -1};
    zip_directory directory = {0};
    uint64_t bytes = 0;
    *out = NULL;
    if (length < 5 || strcmp(spec + length - 4, ".npz") != 0 || strncmp(spec, "raw:", 4) == 0) {
        *out = strdup(spec);
        return *out ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    dpi_status status = flat_open(&archive, spec, -1, &bytes, error);
    if (!status)
        status = zip_read(archive.fd, bytes, spec, &directory, error);
    bool named = false;
    for (size_t i = 0; !status && i < directory.count; i++)
        named |= is_named(&directory.members[i], port_name);
    if (!status && (named || directory.count == 1)) {
        *out = named ? text_format("%s:%s", spec, port_name) : strdup(spec);
        status = *out ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    zip_free(&directory);
    flat_close(&archive);
    return status;
}
