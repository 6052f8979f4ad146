/* The .npy format, versions 1.0 to 3.0: numpy/lib/format.py is the specification. */
#ifndef DPI_DATA_NPY_H
#define DPI_DATA_NPY_H

#include "base/error.h"
#include "base/tensor.h"

#define NPY_MAX_HEADER 65536

typedef struct npy_header {
    dpi_dtype dtype;
    int rank;
    int64_t shape[DPI_MAX_RANK];
    uint64_t data_offset; /* bytes from the file's beginning */
    uint64_t data_bytes;
} npy_header;

/* Parses the first `bytes` bytes of a file (untrusted; never reads beyond). `name` is for messages. DPI_E_DATA as in
 * source.h. float16 is <f2; bfloat16 has no .npy dtype and is written and read as <u2 ("uint16"), see docs. */
dpi_status npy_parse(const void *data, size_t bytes, const char *name, npy_header *header, dpi_error *error);

/* Writes a version 1.0 header for dtype and shape into `buffer`, padded with blanks to a multiple of 64 bytes as numpy
 * does; returns its length, 0 when it does not fit. */
size_t npy_format(dpi_dtype dtype, const int64_t *shape, int rank, char *buffer, size_t size);

/* Reads a whole small .npy file into malloc'd memory (labels, broadcast inputs). */
dpi_status npy_load(const char *path, uint64_t max_bytes, npy_header *header, void **data, dpi_error *error);

#endif
