/* The module dpinfer-tar.so: the headers of a tar by libarchive. */
#include "data/tar_module.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_BYTES 65536
#define TAR_BLOCK  512

/* A tar ends with a block of zeros at least: without it nobody knows what has been cut off. */
static bool has_end(int fd, int64_t content_end)
{
    struct stat info;
    int64_t blocks = (content_end + TAR_BLOCK - 1) / TAR_BLOCK;
    return fstat(fd, &info) == 0 && info.st_size / TAR_BLOCK > blocks;
}

static tar_end walk(struct archive *a, int fd, bool (*each)(void *context, const tar_member *member), void *context,
                    char *why, size_t size)
{
    struct archive_entry *entry;
    int result;
    int64_t content_end = 0;
    while ((result = archive_read_next_header(a, &entry)) == ARCHIVE_OK || result == ARCHIVE_WARN) {
        const char *name = archive_entry_pathname(entry);
        name = name ? name : archive_entry_pathname_utf8(entry); /* the locale has no such characters */
        /* Nothing is filtered: what was consumed up to here is where the content begins. */
        int64_t offset = archive_filter_bytes(a, 0), bytes = archive_entry_size(entry);
        content_end = offset > content_end ? offset : content_end;
        if (!name || archive_entry_filetype(entry) != AE_IFREG || archive_entry_hardlink(entry))
            continue;
        content_end = bytes > 0 && bytes < INT64_MAX / 2 - offset ? offset + bytes : content_end;
        if (offset < 0 || bytes < 0) {
            snprintf(why, size, "%s has a size below zero", name);
            return TAR_DAMAGED;
        }
        tar_member member = {.name = name,
                             .offset = (uint64_t)offset,
                             .bytes = (uint64_t)bytes,
                             .contiguous = archive_entry_sparse_count(entry) == 0};
        if (!each(context, &member))
            return TAR_STOPPED;
    }
    if (result == ARCHIVE_EOF && has_end(fd, content_end))
        return TAR_WHOLE;
    if (result == ARCHIVE_EOF) {
        snprintf(why, size, "it has no end");
        return TAR_DAMAGED;
    }
    const char *said = archive_error_string(a);
    snprintf(why, size, "%s", said ? said : "it is no tar");
    return TAR_DAMAGED;
}

static tar_end scan(int fd, bool (*each)(void *context, const tar_member *member), void *context, char *why,
                    size_t size)
{
    struct archive *a = archive_read_new();
    tar_end end = TAR_DAMAGED;
    if (a && archive_read_support_format_tar(a) == ARCHIVE_OK && lseek(fd, 0, SEEK_SET) == 0 &&
        archive_read_open_fd(a, fd, READ_BYTES) == ARCHIVE_OK)
        end = walk(a, fd, each, context, why, size);
    else
        snprintf(why, size, "%s", a && archive_error_string(a) ? archive_error_string(a) : "it cannot be read");
    archive_read_free(a);
    return end;
}

/* ---- compressed ------------------------------------------------------------------------------------------------- */

/* By its first bytes, and one filter alone: a filter that libarchive was built without would start a program instead
 * (ARCHIVE_WARN), and nobody has asked for that. */
static bool add_filter(struct archive *a, int fd)
{
    static const struct {
        const char *magic;
        size_t length;
        int (*add)(struct archive *);
    } known[] = {
        {"\x1f\x8b", 2, archive_read_support_filter_gzip},
#if ARCHIVE_VERSION_NUMBER >= 3003003
        {"\x28\xb5\x2f\xfd", 4, archive_read_support_filter_zstd},
#endif
        {"BZh", 3, archive_read_support_filter_bzip2},
        {"\x04\x22\x4d\x18", 4, archive_read_support_filter_lz4},
        {"\xfd"
         "7zXZ",
         5, archive_read_support_filter_xz}
    };
    char head[8] = "";
    ssize_t n = pread(fd, head, sizeof head, 0);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (n >= (ssize_t)known[i].length && memcmp(head, known[i].magic, known[i].length) == 0)
            return known[i].add(a) == ARCHIVE_OK;
    return false;
}

/* All of the content of the entry that was read last; `told`: the caller was told of it. */
static int read_content(struct archive *a, bool told, bool (*piece)(void *context, const void *data, size_t bytes),
                        void *context, bool *stopped)
{
    const void *data;
    size_t bytes;
    la_int64_t offset;
    int result;
    while ((result = archive_read_data_block(a, &data, &bytes, &offset)) == ARCHIVE_OK || result == ARCHIVE_WARN)
        if (!piece(context, told ? data : NULL, bytes)) {
            *stopped = true;
            break;
        }
    return result;
}

static tar_end walk_packed(struct archive *a, bool (*each)(void *context, const tar_member *member),
                           bool (*piece)(void *context, const void *data, size_t bytes), void *context, char *why,
                           size_t size)
{
    struct archive_entry *entry;
    int result;
    int64_t content_end = 0;
    while ((result = archive_read_next_header(a, &entry)) == ARCHIVE_OK || result == ARCHIVE_WARN) {
        const char *name = archive_entry_pathname(entry);
        name = name ? name : archive_entry_pathname_utf8(entry);
        int64_t bytes = archive_entry_size(entry);
        bool told = name && archive_entry_filetype(entry) == AE_IFREG && !archive_entry_hardlink(entry);
        tar_member member = {
            .name = name, .bytes = (uint64_t)bytes, .contiguous = archive_entry_sparse_count(entry) == 0};
        if (told && bytes < 0) {
            snprintf(why, size, "%s has a size below zero", name);
            return TAR_DAMAGED;
        }
        bool stopped = told && !each(context, &member);
        result = stopped ? ARCHIVE_EOF : read_content(a, told, piece, context, &stopped);
        if (stopped)
            return TAR_STOPPED;
        if (result != ARCHIVE_EOF)
            break;
        content_end = archive_filter_bytes(a, 0);
    }
    int64_t blocks = (content_end + TAR_BLOCK - 1) / TAR_BLOCK;
    if (result == ARCHIVE_EOF && archive_filter_bytes(a, 0) / TAR_BLOCK > blocks)
        return TAR_WHOLE;
    const char *said = result == ARCHIVE_EOF ? "it has no end" : archive_error_string(a);
    snprintf(why, size, "%s", said ? said : "it is no tar");
    return TAR_DAMAGED;
}

static tar_end unpack(int fd, bool (*each)(void *context, const tar_member *member),
                      bool (*piece)(void *context, const void *data, size_t bytes), void *context, char *why,
                      size_t size)
{
    struct archive *a = archive_read_new();
    tar_end end = TAR_DAMAGED;
    if (!a || !add_filter(a, fd))
        snprintf(why, size, "%s was built without what unpacks it", ARCHIVE_VERSION_ONLY_STRING);
    else if (archive_read_support_format_tar(a) != ARCHIVE_OK || lseek(fd, 0, SEEK_SET) != 0 ||
             archive_read_open_fd(a, fd, READ_BYTES) != ARCHIVE_OK)
        snprintf(why, size, "%s", archive_error_string(a) ? archive_error_string(a) : "it cannot be read");
    else if (archive_filter_count(a) > 2) /* the file itself is one */
        snprintf(why, size, "it is compressed more than once");
    else
        end = walk_packed(a, each, piece, context, why, size);
    archive_read_free(a);
    return end;
}

__attribute__((visibility("default"))) const tar_module dpi_tar_module = {
    .version = TAR_MODULE_VERSION,
    .library = ARCHIVE_VERSION_ONLY_STRING,
    .scan = scan,
    .unpack = unpack,
};
