/* The module dpinfer-tar.so: the headers of a tar by libarchive. */
#include "data/tar_module.h"

#include <archive.h>
#include <archive_entry.h>
#include <stdio.h>
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

__attribute__((visibility("default"))) const tar_module dpi_tar_module = {
    .version = TAR_MODULE_VERSION,
    .library = ARCHIVE_VERSION_ONLY_STRING,
    .scan = scan,
};
