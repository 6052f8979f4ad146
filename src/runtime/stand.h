/*
 * A stand: an engine with memory of its own around it, driven in a bare loop to see what it gives. No arenas, no
 * claims, no splitting: what --batch auto measures with, and what bench compares with.
 */
#ifndef DPI_RUNTIME_STAND_H
#define DPI_RUNTIME_STAND_H

#include "backend/backend.h"

typedef struct stand {
    const backend *backend;
    backend_engine *engine;
    const signature *sig;
    const backend_array *broadcast;
    backend_array inputs[PORT_MAX], outputs[PORT_MAX];
    void *memory[2 * PORT_MAX];
    size_t memory_count;
    int depth;
} stand;

/* When a measurement is long enough: after `ns`, or after a call of more than `slow_ns`, and after `least` calls. */
typedef struct stand_limits {
    int64_t ns, slow_ns;
    size_t least;
} stand_limits;

typedef struct stand_rate {
    double rows_per_s;
    int64_t slowest_ns; /* the longest wait for one call */
} stand_rate;

/* Random rows for calls of up to `rows` rows. Inputs may have no free axis beside the rows. `sig` and `broadcast` (per
 * input; data != NULL for one that is the same for every row) are borrowed. stand_close ends it, also after a failure.
 */
dpi_status stand_open(stand *s, const backend *b, backend_engine *engine, const signature *sig,
                      const backend_array *broadcast, size_t rows, dpi_error *error);
void stand_close(stand *s);

/* Calls of `rows` rows, as many in flight as the engine wants; the first ones do not count. The engine is idle
 * afterwards, also after a failure. */
dpi_status stand_measure(stand *s, size_t rows, const stand_limits *limits, stand_rate *rate, dpi_error *error);
/* The same with the rows on the device already, where the engine has memory of its own (backend.compute_alone); else
 * stand_measure. */
dpi_status stand_measure_alone(stand *s, size_t rows, const stand_limits *limits, stand_rate *rate, dpi_error *error);

#endif
