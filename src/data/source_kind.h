/* The inside of sources: one table of functions per kind. A new kind adds a file and a line in source.c. */
#ifndef DPI_DATA_SOURCE_KIND_H
#define DPI_DATA_SOURCE_KIND_H

#include "data/image_module.h"
#include "data/sample_index.h"
#include "data/source.h"

typedef struct source_kind {
    /* Fills s->shape, s->rows and what it needs; `fd` >= 0 is its own to keep. */
    dpi_status (*open)(source *s, int fd, dpi_error *error);
    void (*close)(source *s);
    dpi_status (*read)(source *s, uint64_t first, size_t count, void *scratch, dpi_error *error);
    const char *(*row_name)(const source *s, uint64_t row, char buffer[SOURCE_NAME_SIZE]); /* NULL: rows have none */
    /* Instead of `read`: source_row_load. */
    dpi_status (*load)(const source *s, uint64_t row, void *to, row_scratch *scratch, dpi_error *error);
} source_kind;

struct source {
    const source_kind *kind;
    char *spec;
    port shape;
    uint64_t rows;
    size_t row_bytes;
    /* rows one after another in a file: .npy, .npz, raw: */
    int fd, file_fd;    /* see source.h; one number where they are one file */
    unsigned char *map; /* the whole file behind fd */
    size_t map_bytes;
    uint64_t data_offset;
    bool aligned;
    char *worker_spec; /* NULL: spec */
    source_promise promise;
    bool promises;
    /* random: */
    uint64_t seed;
    /* images */
    const source_options *options; /* the caller's, while it opens */
    sample_index index;
    int spool_fd; /* images of compressed tars; -1: none */
    char *fact, *warning;
    const image_module *module; /* worker's: the decoder */
    void *table;                /* worker's: image_plan_table */
};

extern const source_kind source_npy, source_npz, source_raw, source_random, source_images;

/* ---- rows one after another in a file (source_flat.c) ---- */

/* A regular file, opened by name or by a descriptor that is dup'ed: into s->fd and s->file_fd. */
dpi_status flat_open(source *s, const char *path, int fd, uint64_t *file_bytes, dpi_error *error);
/* The .npy file that `bytes` bytes of s->fd from `offset` on are: its header gives shape, rows and data offset. `name`
 * is for messages. */
dpi_status flat_take_npy(source *s, const char *name, uint64_t offset, uint64_t bytes, dpi_error *error);
/* Maps all `bytes` of s->fd, when shape, rows and data offset are set. */
dpi_status flat_map(source *s, uint64_t bytes, dpi_error *error);
void flat_close(source *s);
dpi_status flat_read(source *s, uint64_t first, size_t count, void *scratch, dpi_error *error);

#endif
