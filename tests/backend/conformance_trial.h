/* One engine call of the suite with everything around it: inputs in read-only memory, outputs between guards. */
#ifndef DPI_TESTS_BACKEND_CONFORMANCE_TRIAL_H
#define DPI_TESTS_BACKEND_CONFORMANCE_TRIAL_H

#include "backend/conformance.h"

typedef struct trial_options {
    int64_t extent;             /* of free axes */
    uint64_t first_row;         /* row r of the call is the random row first_row + r */
    size_t misaligned_elements; /* data starts so many elements behind a 64-byte boundary */
    bool wide_values;           /* any bits, instead of small numbers */
} trial_options;

typedef struct trial {
    const conformance_kit *kit;
    backend_engine *engine;
    const char *model;
    size_t rows;
    signature sig;
    backend_array in[PORT_MAX], out[PORT_MAX];
    void *in_memory[PORT_MAX], *out_memory[PORT_MAX];
    size_t in_mapped[PORT_MAX], out_bytes[PORT_MAX];
} trial;

/* Fails the test where something does not work. `model` is its name in the suite. */
trial *trial_new(const conformance_kit *kit, backend_engine *engine, const char *model, size_t rows,
                 const trial_options *options);
void trial_end(trial *t);
/* The usual one: small numbers, aligned, free axes of 5. */
trial *conformance_start(const conformance *suite, backend_engine *engine, const char *model, size_t rows);

/* Runs the call; fails the test when it fails or writes beside the outputs. */
void trial_run(trial *t);
/* Fails the test where an output differs from the kit's reference, if it has one. */
void trial_check_reference(const trial *t);
/* Fails the test where rows [from, from + count) of both differ by more than `tolerance`, relative to the largest value
 * of the output; 0: by a bit. */
void trial_compare(const trial *a, const trial *b, size_t from, size_t count, double tolerance);
void trial_compare_shifted(const trial *a, size_t from_a, const trial *b, size_t from_b, size_t count,
                           double tolerance);

#endif
