/* What the tests of the backend openvino share: opening and running engines, and the program around the tests. */
#ifndef DPI_TESTS_BACKEND_OPENVINO_KIT_H
#define DPI_TESTS_BACKEND_OPENVINO_KIT_H

#include "backend/conformance.h"
#include "backend/openvino_ir.h"

/* What differs from the defaults of opening a model. */
typedef struct opening {
    const char *path;
    const void *data;
    size_t bytes;
    const char *format; /* NULL: by the path; "xml" in memory */
    dpi_precision precision;
    size_t threads; /* 0: one */
    const char *output_names[2];
    const char *key, *value, *provider;
    int import_fd; /* 0: compile */
} opening;

/* NULL in *engine with a status and a message, or an engine; anything else fails the test. */
dpi_status try_open(const conformance *suite, const opening *o, backend_engine **engine, dpi_error *error);
backend_engine *open_well(const conformance *suite, const opening *o);
/* Opening must fail like this, and the message must be one sentence that holds both words (NULL: any). */
void open_badly(const conformance *suite, const opening *o, dpi_status want, const char *word, const char *other);

void run_well(backend_engine *engine, const backend_array *in, backend_array *out);
/* One float32 [rows,width] in, one float32 [rows,width] out. */
void run_floats(backend_engine *engine, const float *x, int64_t rows, int64_t in_width, float *y, int64_t out_width);

/* Writes NAME.xml: y [N,2] = x [N,4] * {{1,2},{3,4},{5,6},{7,8}}; its path, malloc'd. */
char *write_small(const char *name);
/* The engine, exported behind `head` other bytes; the descriptor stands at it. */
int export_to_memory(backend_engine *engine, size_t head);

/* Runs the tests, each with a `conformance` as its state, over the library that is found, and over the oldest one where
 * it is installed and no other is named. The program's exit code; 77 without any library. */
struct CMUnitTest;
int openvino_main(const struct CMUnitTest *tests, size_t count);

#endif
