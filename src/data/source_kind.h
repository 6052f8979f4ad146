/* The inside of sources: one table of functions per kind. A new kind (images, tars) adds a file and a line in
 * source.c. */
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
    /* .npy */
    int fd;
    unsigned char *map; /* the whole file */
    size_t map_bytes;
    uint64_t data_offset;
    bool aligned;
    /* random: */
    uint64_t seed;
    /* images */
    const source_options *options; /* the caller's, while it opens */
    sample_index index;
    char *fact, *warning;
    const image_module *module; /* worker's: the decoder */
    void *table;                /* worker's: image_plan_table */
};

extern const source_kind source_npy, source_random, source_images;

#endif
