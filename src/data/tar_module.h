/*
 * What dpinfer needs of libarchive, as one table. tar_libarchive.c fills it and is built as a module of its own,
 * dpinfer-tar.so (data/module.h finds it).
 */
#ifndef DPI_DATA_TAR_MODULE_H
#define DPI_DATA_TAR_MODULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TAR_MODULE_VERSION 2u
#define TAR_MODULE_SYMBOL  "dpi_tar_module"

/* A regular file within a tar. */
typedef struct tar_member {
    const char *name;
    uint64_t offset, bytes; /* of its content; bytes may reach beyond the end of a tar that was cut short */
    bool contiguous;        /* false: stored with holes */
} tar_member;

typedef enum tar_end { TAR_WHOLE, TAR_DAMAGED, TAR_STOPPED } tar_end;

typedef struct tar_module {
    uint32_t version;
    const char *library; /* "libarchive 3.6.2" */
    /* Compressed ones, by gzip, zstd, xz, bzip2 or lz4 (what libarchive was built with), once: their content has no
     * place that could be returned to. Calls `each` as scan does, with an offset of 0, and then `piece` for its content
     * in order, a part at a time, until one of them says false (TAR_STOPPED). A member that was told and ends early is
     * the last, and TAR_DAMAGED. */
    tar_end (*unpack)(int fd, bool (*each)(void *context, const tar_member *member),
                      bool (*piece)(void *context, const void *data, size_t bytes), void *context, char *why,
                      size_t size);
    /* Goes through the headers of an uncompressed tar, from the beginning of `fd`, and calls `each` for every regular
     * file until it says false (TAR_STOPPED). TAR_DAMAGED: it ends in what is no header, or in the middle of one;
     * `why` says how, and what came before was told. Moves the descriptor's offset. */
    tar_end (*scan)(int fd, bool (*each)(void *context, const tar_member *member), void *context, char *why,
                    size_t size);
} tar_module;

#endif
