/* The module dpinfer-tar.so: the headers of a tar by libarchive. */
#include "data/tar_module.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdio.h>
#include <unistd.h>

#define BLOCK_BYTES 65536

static tar_end walk(struct archive *a, bool (*each)(void *context, const tar_member *member), void *context, char *why,
                    size_t size)
{
    struct archive_entry *entry;
    int result;
    while ((result = archive_read_next_header(a, &entry)) == ARCHIVE_OK || result == ARCHIVE_WARN) {
        const char *name = archive_entry_pathname(entry);
        name = name ? name : archive_entry_pathname_utf8(entry); /* the locale has no such characters */
        /* Nothing is filtered: what was consumed up to here is where the content begins. */
        int64_t offset = archive_filter_bytes(a, 0), bytes = archive_entry_size(entry);
        if (!name || archive_entry_filetype(entry) != AE_IFREG || archive_entry_hardlink(entry))
            continue;
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
    if (result == ARCHIVE_EOF)
        return TAR_WHOLE;
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
        archive_read_open_fd(a, fd, BLOCK_BYTES) == ARCHIVE_OK)
        end = walk(a, each, context, why, size);
    else
        snprintf(why, size, "%s", a && archive_error_string(a) ? archive_error_string(a) : "it cannot be read");
    archive_read_free(a);
    return end;
}

__attribute__((visibility("default"))) const tar_module dpi_tar_module = {
    .version = TAR_MODULE_VERSION,
    .library = ARCHIVE_VERSION_ONLY_STRING,
    .scan = scan,
};
