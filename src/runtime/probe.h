/*
 * What a worker finds out about its engine before it reports ready: whether it works at all, whether its rows are
 * independent, whether the slice size changes the bits, and a hash that replicas compare (docs/architecture.md,
 * Sameness). Fixed pseudo-random rows: small normals for floats, zeros and ones for integers and bools.
 */
#ifndef DPI_RUNTIME_PROBE_H
#define DPI_RUNTIME_PROBE_H

#include "backend/backend.h"

typedef struct probe_request {
    const backend *backend;
    backend_engine *engine;
    const signature *sig;           /* as described by the engine */
    const backend_array *broadcast; /* per input of sig: data != NULL for a broadcast input, complete shape */
    size_t max_rows;                /* most rows of one slice */
    size_t fixed_rows;              /* > 0: every call has this many rows (the model's fixed batch) */
    bool trust_rows;                /* do not refuse dependent rows */
    bool find_rows;                 /* measure which slice size is best */
    const logger *log;
} probe_request;

typedef struct probe_result {
    bool skipped;            /* shapes with free axes for which no extent worked: nothing is known, nothing refused */
    hash128 hash;            /* over the outputs for the fixed rows at the fixed slice size */
    bool size_changes_bits;  /* the same row has other bits at another slice size: the session fixes the size */
    bool rows_independent;   /* true where it could not be tested (fixed batch of 1) */
    double fixed_ns, row_ns; /* first estimate of the cost of a slice: fixed + n * row; 0, 0 when skipped */
    double *sample;          /* the outputs of row 0, all outputs one after another, as doubles; malloc'd */
    size_t sample_count;     /* at most 4,096 */
    size_t best_rows;        /* with find_rows: see best_rows.h */
} probe_result;

/* Runs the probe through run or enqueue/wait. DPI_E_MODEL when the model cannot be split by rows: an input without a
 * row axis that is not broadcast, an output whose axis 0 is not the rows, output sizes that depend on data, rows that
 * depend on each other (unless trust_rows). NaN compares by bits; a dependence is only called that when the values
 * differ by more than rounding (relative to max |y| of that output: 1e-3 for fp32 and wider, 2e-2 for fp16 and bf16).
 * On success probe_free ends the result. */
dpi_status probe_run(const probe_request *request, probe_result *result, dpi_error *error);
void probe_free(probe_result *result);

/* Whether an input that is split has free axes beside the rows. */
bool probe_has_free_axes(const probe_request *request);

/* Largest |a-b| relative to max |a|, 0 for equal bits, infinity when one is NaN and the other is not. */
double probe_difference(const probe_result *a, const probe_result *b);

#endif
