#include "backend/onnxruntime_kit.h"

#include "base/file.h"

#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define LIBRARY_VARIABLE "DPINFER_ONNXRUNTIME_LIBRARY"

static const backend *const ort = &backend_onnxruntime;

dpi_status ort_try_open(const conformance *suite, const ort_opening *o, backend_engine **engine, dpi_error *error)
{
    backend_model model = {.path = o->path, .data = o->data, .bytes = o->bytes, .format = "onnx"};
    backend_open_options options = conformance_options(suite, &model);
    const dpi_key_value option = {o->key, o->value};
    size_t outputs = 0;
    while (outputs < 3 && o->output_names[outputs])
        outputs++;
    options.device = o->device ? o->device : &suite->device;
    options.precision = o->precision;
    options.output_names = outputs ? o->output_names : NULL;
    options.output_count = outputs;
    options.options = o->key ? &option : NULL;
    options.option_count = o->key != NULL;
    options.provider = o->provider;
    options.provider_options = &o->provider_option;
    options.provider_option_count = o->provider_option.key != NULL;
    *engine = NULL;
    *error = (dpi_error){0};
    dpi_status status = ort->open(suite->library, &options, engine, error);
    if ((status == DPI_OK) != (*engine != NULL) || (status && (error->status != status || !error->message[0])))
        fail_msg("open returned %d, engine %p, error %d \"%s\"", status, (void *)*engine, error->status,
                 error->message);
    return status;
}

backend_engine *ort_open_well(const conformance *suite, const ort_opening *o)
{
    backend_engine *engine;
    dpi_error error;
    if (ort_try_open(suite, o, &engine, &error))
        fail_msg("%s: %s", o->path ? o->path : "in memory", error.message);
    return engine;
}

void ort_check_sentence(const char *message)
{
    if (!message[0] || strpbrk(message, "\n\033") || strstr(message, "onnxruntime_src"))
        fail_msg("this is no sentence for people: \"%s\"", message);
}

void ort_open_badly(const conformance *suite, const ort_opening *o, dpi_status want, const char *word,
                    const char *other)
{
    backend_engine *engine;
    dpi_error error;
    dpi_status status = ort_try_open(suite, o, &engine, &error);
    if (engine)
        ort->close(engine);
    if (status != want || (word && !strstr(error.message, word)) || (other && !strstr(error.message, other)))
        fail_msg("status %d instead of %d, \"%s\" without \"%s\" or \"%s\"", status, want, error.message,
                 word ? word : "", other ? other : "");
    ort_check_sentence(error.message);
}

dpi_status ort_try_run(backend_engine *engine, const backend_array *in, backend_array *out, dpi_error *error)
{
    backend_call call = {.rows = (size_t)in[0].shape[0], .inputs = in, .outputs = out};
    backend_timing timing = {0};
    *error = (dpi_error){0};
    return ort->run(engine, &call, &timing, error);
}

void ort_run_well(backend_engine *engine, const backend_array *in, backend_array *out)
{
    dpi_error error;
    if (ort_try_run(engine, in, out, &error))
        fail_msg("%s", error.message);
}

void ort_run_floats(backend_engine *engine, const float *x, int64_t rows, int64_t in_width, float *y, int64_t out_width)
{
    backend_array in = {.data = (void *)(uintptr_t)x, .rank = 2, .shape = {rows, in_width}};
    backend_array out = {.data = y, .rank = 2, .shape = {rows, out_width}};
    memset(y, 0xA5, (size_t)(rows * out_width) * sizeof *y);
    ort_run_well(engine, &in, &out);
}

void ort_check_small(backend_engine *engine)
{
    const float x[3][4] = {{1, 0, 0, 0}, {0, 1, 0, 1}, {1, 1, 1, 1}}, want[3][2] = {{1, 2}, {10, 12}, {16, 20}};
    float y[3][2];
    ort_run_floats(engine, x[0], 3, 4, y[0], 2);
    assert_memory_equal(y, want, sizeof want);
}

dpi_status ort_try_load(const conformance *suite, const char *path, backend_library **library, dpi_error *error)
{
    *error = (dpi_error){0};
    *library = NULL;
    return ort->load(&(backend_load_options){.library = path}, &suite->log, library, error);
}

/* ---- the program ------------------------------------------------------------------------------------------------- */

int ort_main(const struct CMUnitTest *tests, size_t count)
{
    return conformance_group(&conformance_kit_onnxruntime, LIBRARY_VARIABLE, "onnxruntime/capi/libonnxruntime.so.*",
                             DPI_LOG_ERROR, tests, count);
}
