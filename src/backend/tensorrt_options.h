/* The tensorrt backend's options (--backend-option KEY=VALUE) and what follows from them without a GPU. */
#ifndef DPI_BACKEND_TENSORRT_OPTIONS_H
#define DPI_BACKEND_TENSORRT_OPTIONS_H

#include "backend/backend.h"
#include "backend/tensorrt_shim.h"

/*
 *   workspace_mb N      scratch memory that a kernel may use while compiling and running; TensorRT's default: all
 *   level 0..5          how hard the compiler searches; TensorRT's default: 3
 *   timing_cache FILE   kernel timings are read from and added to this file: later compiles are faster
 *   cuda_graphs 0|1     starts a computation with one launch instead of one per kernel: for small models
 *   wait block|spin     how the worker waits for the GPU; spin keeps a core busy and is some microseconds sooner
 *   depth 1..8          slices in flight; 3 by default: one copied in, one computed, one copied out
 *   copy_threads 1..64  threads of a worker that stage rows which the GPU cannot reach (files); 3 by default
 *   shape.NAME RANGE    an input's free axes beside the rows: "3x224x224", or least:usual:most as
 *                       "3x64x64:3x224x224:3x512x512"; without the row axis, or with it for an input that has none
 */
#define TENSORRT_OPTIONS "workspace_mb level timing_cache cuda_graphs wait depth copy_threads shape.NAME"

typedef struct tensorrt_options {
    uint64_t workspace_bytes; /* 0: the library's default */
    int level;                /* -1: the library's default */
    const char *timing_cache; /* NULL: none; borrowed */
    bool graphs, spin;
    int depth, copy_threads;
    const backend_open_options *from; /* for shape.NAME; borrowed */
} tensorrt_options;

/* DPI_E_ARGUMENT names the option and what it takes. The result borrows from `from`. */
dpi_status tensorrt_options_read(const backend_open_options *from, tensorrt_options *options, dpi_error *error);

/* Fills the range of an input with free axes: rows from 1 to max_rows, other axes by shape.NAME. DPI_E_ARGUMENT when
 * that is missing or does not fit, saying what to give. */
dpi_status tensorrt_profile(const tensorrt_options *options, const trt_port *input, size_t max_rows,
                            trt_profile *profile, dpi_error *error);

/* The timing cache's content, malloc'd (NULL: none yet), and back again, under its final name only when whole. */
dpi_status tensorrt_timing_read(const tensorrt_options *options, void **data, size_t *bytes, dpi_error *error);
dpi_status tensorrt_timing_write(const tensorrt_options *options, const void *data, size_t bytes, dpi_error *error);

#endif
