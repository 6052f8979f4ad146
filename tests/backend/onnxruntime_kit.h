/* What the tests of the backend onnxruntime share: opening and running engines, and the program around the tests. */
#ifndef DPI_TESTS_BACKEND_ONNXRUNTIME_KIT_H
#define DPI_TESTS_BACKEND_ONNXRUNTIME_KIT_H

#include "backend/conformance.h"
#include "backend/onnx_file.h"
#include "backend/openvino_ir.h" /* test_path, test_write */

/* What differs from the defaults of ort_opening a model. */
typedef struct ort_opening {
    const char *path;
    const void *data;
    size_t bytes;
    dpi_precision precision;
    const backend_device *device;
    const char *output_names[3];
    const char *key, *value, *provider;
    dpi_key_value provider_option;
} ort_opening;

/* NULL in *engine with a status and a message, or an engine; anything else fails the test. */
dpi_status ort_try_open(const conformance *suite, const ort_opening *o, backend_engine **engine, dpi_error *error);
backend_engine *ort_open_well(const conformance *suite, const ort_opening *o);
/* Opening must fail like this, and the message must be a sentence that holds both words (NULL: any). */
void ort_open_badly(const conformance *suite, const ort_opening *o, dpi_status want, const char *word,
                    const char *other);
/* Fails the test unless this is one line for people: no colours, none of the library's own source lines. */
void ort_check_sentence(const char *message);

dpi_status ort_try_run(backend_engine *engine, const backend_array *in, backend_array *out, dpi_error *error);
void ort_run_well(backend_engine *engine, const backend_array *in, backend_array *out);
/* One float32 [rows,width] in, one float32 [rows,width] out. */
void ort_run_floats(backend_engine *engine, const float *x, int64_t rows, int64_t in_width, float *y,
                    int64_t out_width);
/* The engine is that of onnx_small. */
void ort_check_small(backend_engine *engine);

dpi_status ort_try_load(const conformance *suite, const char *path, backend_library **library, dpi_error *error);

/* Runs the tests, each with a `conformance` as its state, over the library that is found, and over the oldest one where
 * it is installed and no other is named. The program's exit code; 77 without any library. */
struct CMUnitTest;
int ort_main(const struct CMUnitTest *tests, size_t count);

#endif
