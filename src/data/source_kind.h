/* The inside of sources: one table of functions per kind. A new kind (images, tars) adds a file and a line in
 * source.c. */
#ifndef DPI_DATA_SOURCE_KIND_H
#define DPI_DATA_SOURCE_KIND_H

#include "data/source.h"

typedef struct source_kind {
    /* Fills s->shape, s->rows and what it needs; `fd` >= 0 is its own to keep. */
    dpi_status (*open)(source *s, int fd, dpi_error *error);
    void (*close)(source *s);
    dpi_status (*read)(source *s, uint64_t first, size_t count, void *scratch, dpi_error *error);
    const char *(*row_name)(const source *s, uint64_t row, char buffer[SOURCE_NAME_SIZE]); /* NULL: rows have none */
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
};

extern const source_kind source_npy, source_random;

#endif
