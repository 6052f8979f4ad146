#include "backend/openvino_kit.h"

#include "base/file.h"

#include <fcntl.h>
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define LIBRARY_VARIABLE "DPINFER_OPENVINO_LIBRARY"

static const backend *const ov = &backend_openvino;

char *write_small(const char *name)
{
    static const float w[4][2] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}};
    ir m = {0};
    int x = ir_input(&m, "f32", "FP32", "?,4", "-1,4", "x"), c = ir_weight(&m, "f32", "FP32", "4, 2", w, sizeof w);
    ir_output(&m, ir_layer(&m, "MatMul", "transpose_a=\"false\" transpose_b=\"false\"", (const int[]){x, c, -1}, "FP32",
                           "-1,2", "y"));
    return ir_write(&m, name);
}

dpi_status try_open(const conformance *suite, const opening *o, backend_engine **engine, dpi_error *error)
{
    backend_model model = {.path = o->path, .data = o->data, .bytes = o->bytes, .format = o->format};
    backend_open_options options = conformance_options(suite, &model);
    backend_device device = suite->device;
    const dpi_key_value option = {o->key, o->value};
    if (!model.format)
        model.format = o->path && strstr(o->path, ".onnx") ? "onnx" : "xml";
    device.threads = o->threads ? o->threads : 1;
    options.device = &device;
    options.precision = o->precision;
    options.output_names = o->output_names[0] ? o->output_names : NULL;
    options.output_count = o->output_names[0] ? 1 + (o->output_names[1] != NULL) : 0;
    options.options = o->key ? &option : NULL;
    options.option_count = o->key != NULL;
    options.provider = o->provider;
    options.import_fd = o->import_fd ? o->import_fd : -1;
    *engine = NULL;
    *error = (dpi_error){0};
    dpi_status status = ov->open(suite->library, &options, engine, error);
    if ((status == DPI_OK) != (*engine != NULL) || (status && (error->status != status || !error->message[0])))
        fail_msg("open returned %d, engine %p, error %d \"%s\"", status, (void *)*engine, error->status,
                 error->message);
    return status;
}

backend_engine *open_well(const conformance *suite, const opening *o)
{
    backend_engine *engine;
    dpi_error error;
    if (try_open(suite, o, &engine, &error))
        fail_msg("%s: %s", o->path ? o->path : "in memory", error.message);
    return engine;
}

void open_badly(const conformance *suite, const opening *o, dpi_status want, const char *word, const char *other)
{
    backend_engine *engine;
    dpi_error error;
    dpi_status status = try_open(suite, o, &engine, &error);
    if (engine)
        ov->close(engine);
    if (status != want || (word && !strstr(error.message, word)) || (other && !strstr(error.message, other)))
        fail_msg("status %d instead of %d, \"%s\" without \"%s\" or \"%s\"", status, want, error.message,
                 word ? word : "", other ? other : "");
    if (strchr(error.message, '\n') || strstr(error.message, "Exception from") || strstr(error.message, "failed at"))
        fail_msg("the library's source lines stand in \"%s\"", error.message);
    if (!o->path && strstr(error.message, ".xml"))
        fail_msg("this is not about a file: \"%s\"", error.message);
}

void run_well(backend_engine *engine, const backend_array *in, backend_array *out)
{
    backend_call call = {.rows = (size_t)in[0].shape[0], .inputs = in, .outputs = out};
    backend_timing timing = {0};
    dpi_error error = {0};
    if (ov->run(engine, &call, &timing, &error))
        fail_msg("%s", error.message);
}

void run_floats(backend_engine *engine, const float *x, int64_t rows, int64_t in_width, float *y, int64_t out_width)
{
    backend_array in = {.data = (void *)(uintptr_t)x, .rank = 2, .shape = {rows, in_width}};
    backend_array out = {.data = y, .rank = 2, .shape = {rows, out_width}};
    memset(y, 0xA5, (size_t)(rows * out_width) * sizeof *y);
    run_well(engine, &in, &out);
}

int export_to_memory(backend_engine *engine, size_t head)
{
    static const char filler[4096] = "what stands before an engine in the cache";
    int fd = memfd_create("engine", MFD_CLOEXEC);
    dpi_error error = {0};
    assert_true(fd > 0);
    assert_int_equal(write(fd, filler, head), (ssize_t)head);
    if (ov->export_engine(engine, fd, &error))
        fail_msg("%s", error.message);
    assert_true(lseek(fd, 0, SEEK_END) > (off_t)head);
    assert_int_equal(lseek(fd, (off_t)head, SEEK_SET), (off_t)head);
    return fd;
}

/* ---- the program ------------------------------------------------------------------------------------------------- */

int openvino_main(const struct CMUnitTest *tests, size_t count)
{
    return conformance_group(&conformance_kit_openvino, LIBRARY_VARIABLE, "openvino/libs/libopenvino_c.so.*",
                             DPI_LOG_WARNING, tests, count);
}
