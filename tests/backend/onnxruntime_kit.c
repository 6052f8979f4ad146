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

/* Runs this program once more over the oldest library, where it is installed and no other was named; its exit code. */
static int run_oldest(void)
{
    char *pattern = text_format("%s/.deps/oldest/onnxruntime/capi/libonnxruntime.so.*", conformance_source_folder());
    char *program = file_of_program();
    const char *const command[] = {program, NULL};
    glob_t found;
    int code = 0;
    if (pattern && program && !getenv(LIBRARY_VARIABLE) && glob(pattern, 0, NULL, &found) == 0) {
        setenv(LIBRARY_VARIABLE, found.gl_pathv[0], 1);
        code = conformance_spawn(command);
        unsetenv(LIBRARY_VARIABLE);
        globfree(&found);
    }
    free(program);
    free(pattern);
    return code;
}

static void load_library(conformance *suite)
{
    const char *named = getenv(LIBRARY_VARIABLE);
    char *python = strdup(conformance_python());
    char *slash = python ? strstr(python, "/bin/python") : NULL;
    dpi_error error = {0};
    if (slash && !getenv("VIRTUAL_ENV")) { /* a Python environment holds the library too */
        *slash = 0;
        setenv("VIRTUAL_ENV", python, 1);
    }
    free(python);
    if (named && access(named, R_OK) != 0) {
        fprintf(stderr, "%s is not there\n", named);
        exit(77);
    }
    if (ort->load(&(backend_load_options){0}, &suite->log, &suite->library, &error)) {
        fprintf(stderr, "%s\n", error.message);
        exit(strstr(error.message, "not found") ? 77 : 1); /* found, but bad: a failure */
    }
    backend_library_info info;
    ort->library_info(suite->library, &info);
    print_message("ONNX Runtime %s: %s\n", info.version, info.path);
}

int ort_main(const struct CMUnitTest *tests, size_t count)
{
    int cpu = 0, oldest = run_oldest();
    conformance suite = {.kit = &conformance_kit_onnxruntime, .log = {.level = DPI_LOG_ERROR}};
    suite.device = (backend_device){.kind = "cpu", .name = "cpu:0", .cpus = &cpu, .cpu_count = 1, .threads = 1};
    load_library(&suite);
    char *folder = conformance_folder();
    if (!folder || file_make_folders(folder, NULL))
        return 1;
    free(folder);
    struct CMUnitTest *all = malloc(count * sizeof *all);
    if (!all)
        return 1;
    memcpy(all, tests, count * sizeof *all);
    for (size_t i = 0; i < count; i++)
        all[i].initial_state = &suite;
    int failed = _cmocka_run_group_tests("onnxruntime", all, count, NULL, NULL);
    free(all);
    ort->unload(suite.library);
    /* Inference libraries run threads and destructors of their own at exit, which are not what is tested here. */
    fflush(NULL);
    _exit(failed || (oldest && oldest != 77) ? 1 : 0);
}
