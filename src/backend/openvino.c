#include "backend/backend.h"
#include "backend/library.h"
#include "backend/openvino_api.h"
#include "backend/shapes.h"

#include "base/file.h"
#include "base/text.h"
#include "base/topology.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define OV_DTYPES 14 /* dpi_dtype numbers, 0 unused */

struct backend_library {
    library_common common;
    ov_api api;
    ov_opaque *core;
    int types[OV_DTYPES]; /* this release's element type for each dtype, -1: not there */
};

/* What of the caller's a request has been given for a port: giving it again would cost microseconds. */
typedef struct held {
    void *data; /* NULL: nothing yet */
    int rank;
    int64_t shape[DPI_MAX_RANK];
} held;

struct backend_engine {
    backend_library *library;
    ov_opaque *compiled, *request;
    held inputs[PORT_MAX], outputs[PORT_MAX]; /* by `request` */
    signature sig;
    size_t output_index[PORT_MAX]; /* of the model, for each output that is wanted */
    size_t model_outputs;
    shapes measured;
    void *blob; /* an imported engine's mapping: 2026 releases use its weights in place */
    size_t blob_bytes;
};

/* ---- the library ------------------------------------------------------------------------------------------------ */

/* Where the library's own words begin: behind its lines of "Exception from FILE:LINE:" and "Check 'C' failed at
 * FILE:LINE:". */
static const char *skip_places(const char *said)
{
    const char *line = said, *end;
    while ((end = strchr(line, '\n')) && end > line && end[-1] == ':' &&
           (strncmp(line, "Exception from ", 15) == 0 || strncmp(line, "Check '", 7) == 0))
        line = end + 1;
    return line[strspn(line, " \n")] ? line : said;
}

static dpi_status check(const backend_library *library, int result, dpi_status ours, const char *what, dpi_error *error)
{
    if (!result)
        return DPI_OK;
    /* The C interface's own refusals (-14 to -17) leave the message of an earlier failure in place. */
    const char *said = result > -14 ? library->api.get_last_err_msg() : NULL;
    const char *words = said && *said ? skip_places(said) : library->api.get_error_info(result);
    size_t length = strlen(words);
    while (length && strchr(" \n", words[length - 1]))
        length--;
    error_set(error, ours, "%s: OpenVINO says: %.*s", what, (int)(length < 800 ? length : 800), words);
    if (said)
        library->api.free(said);
    for (char *c = error ? error->message : NULL; c && *c; c++)
        if (*c == '\n')
            *c = ' ';
    return ours;
}

/* By dtype: how IR names an element type, as an attribute and as a port's precision. */
static const struct {
    const char *type, *precision;
} ir_types[OV_DTYPES] = {{NULL, NULL},    {"boolean", "BOOL"}, {"i8", "I8"},    {"u8", "U8"},   {"i16", "I16"},
                         {"u16", "U16"},  {"i32", "I32"},      {"u32", "U32"},  {"i64", "I64"}, {"u64", "U64"},
                         {"f16", "FP16"}, {"bf16", "BF16"},    {"f32", "FP32"}, {"f64", "FP64"}};

/* The number of an element type: that of the input of a model made of one Parameter and one Result. */
static int learn_type(const backend_library *library, const char *type, const char *precision)
{
    char *xml = text_format(
        "<?xml version=\"1.0\"?><net name=\"t\" version=\"11\"><layers>"
        "<layer id=\"0\" name=\"x\" type=\"Parameter\" version=\"opset1\"><data shape=\"1\" element_type=\"%s\"/>"
        "<output><port id=\"0\" precision=\"%s\"><dim>1</dim></port></output></layer>"
        "<layer id=\"1\" name=\"y\" type=\"Result\" version=\"opset1\"><input><port id=\"0\" "
        "precision=\"%s\"><dim>1</dim>"
        "</port></input></layer></layers><edges><edge from-layer=\"0\" from-port=\"0\" to-layer=\"1\" to-port=\"0\"/>"
        "</edges></net>",
        type, precision, precision);
    const ov_api *api = &library->api;
    ov_opaque *model = NULL, *input = NULL;
    int number = -1;
    if (xml && api->core_read_model_from_memory_buffer(library->core, xml, strlen(xml), NULL, &model) == 0 &&
        api->model_const_input_by_index(model, 0, &input) == 0 && api->port_get_element_type(input, &number) != 0)
        number = -1;
    if (input)
        api->output_const_port_free(input);
    if (model)
        api->model_free(model);
    free(xml);
    return number;
}

static dpi_status start_library(backend_library *library, void *handle, dpi_error *error)
{
#define X(name, result, arguments)                                                                                     \
    {                                                                                                                  \
        void *symbol = library_symbol(handle, "ov_" #name, library->common.path, error);                               \
        if (!symbol)                                                                                                   \
            return DPI_E_BACKEND;                                                                                      \
        memcpy(&library->api.name, &symbol, sizeof symbol);                                                            \
    }
    OV_FUNCTIONS(X)
#undef X
    ov_version version = {NULL, NULL};
    if (library->api.get_openvino_version(&version) == 0) {
        snprintf(library->common.version, sizeof library->common.version, "%.*s",
                 version.number ? (int)strcspn(version.number, "-") : 1, version.number ? version.number : "?");
        library->api.version_free(&version);
    }
    if (atoi(library->common.version) < 2025)
        return error_set(error, DPI_E_BACKEND,
                         "%s is OpenVINO %s; dpinfer needs 2025.0 or newer: pip install -U openvino",
                         library->common.path, library->common.version);
    dpi_status status =
        check(library, library->api.core_create(&library->core), DPI_E_BACKEND, library->common.path, error);
    for (int d = 1; !status && d < OV_DTYPES; d++)
        library->types[d] = learn_type(library, ir_types[d].type, ir_types[d].precision);
    if (!status && library->types[DPI_F32] < 0)
        status = error_set(error, DPI_E_BACKEND, "%s (OpenVINO %s) does not tell its element types",
                           library->common.path, library->common.version);
    return status;
}

static void ov_unload(backend_library *library)
{
    if (library->core)
        library->api.core_free(library->core);
    free(library);
}

static dpi_status ov_load(const backend_load_options *options, const logger *log, backend_library **out,
                          dpi_error *error)
{
    library_query query = {.what = "OpenVINO",
                           .environment = "DPINFER_OPENVINO_LIBRARY",
                           .given = options->library,
                           .package_glob = "openvino/libs/libopenvino_c.so.*",
                           .file_glob = "libopenvino_c.so*",
                           .soname = "libopenvino_c.so",
                           .install_hint = "pip install openvino"};
    return library_open(&query, log, sizeof **out, start_library, ov_unload, out, error);
}

static void get_property(const backend_library *library, const char *key, char *out, size_t size)
{
    char *value = NULL;
    out[0] = 0;
    if (library->api.core_get_property(library->core, "CPU", key, &value) == 0 && value) {
        snprintf(out, size, "%s", value);
        library->api.free(value);
    }
}

static dpi_status ov_list_devices(backend_library *library, backend_device_info *list, size_t capacity, size_t *count,
                                  dpi_error *error)
{
    (void)error;
    *count = 1;
    if (!capacity)
        return DPI_OK;
    char able[512];
    list[0] = (backend_device_info){0};
    strcpy(list[0].name, "cpu:all");
    get_property(library, "FULL_DEVICE_NAME", list[0].description, sizeof list[0].description);
    get_property(library, "OPTIMIZATION_CAPABILITIES", able, sizeof able);
    snprintf(list[0].precisions, sizeof list[0].precisions, "fp32%s%s", strstr(able, "BF16") ? " bf16" : "",
             strstr(able, "FP16") ? " fp16" : "");
    topology machine;
    if (topology_read(&machine, NULL) == DPI_OK) {
        list[0].memory_bytes = machine.memory_bytes;
        topology_free(&machine);
    }
    return DPI_OK;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static dpi_status set_property(const backend_library *library, const char *key, const char *value, dpi_error *error)
{
    char what[128];
    snprintf(what, sizeof what, "the property %.60s=%.40s", key, value);
    return check(library, library->api.core_set_property(library->core, "CPU", key, value), DPI_E_ARGUMENT, what,
                 error);
}

static dpi_status choose_precision(const backend_library *library, const backend_open_options *options,
                                   const char **hint, dpi_error *error)
{
    char able[512];
    get_property(library, "OPTIMIZATION_CAPABILITIES", able, sizeof able);
    /* Never the library's own default: on a CPU with bf16 that is bf16, whatever the model says. */
    *hint = "f32";
    if (options->precision == DPI_PRECISION_BF16 && strstr(able, "BF16"))
        *hint = "bf16";
    else if (options->precision == DPI_PRECISION_FP16 && strstr(able, "FP16"))
        *hint = "f16";
    else if (options->precision != DPI_PRECISION_MODEL && options->precision != DPI_PRECISION_FP32)
        return error_set(error, DPI_E_DEVICE, "%s: OpenVINO on this CPU has no %s (it has: %s)", options->device->name,
                         options->precision == DPI_PRECISION_BF16   ? "bf16"
                         : options->precision == DPI_PRECISION_FP16 ? "fp16"
                                                                    : "tf32",
                         able);
    return DPI_OK;
}

static bool is_property(const char *key)
{
    return *key && strspn(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == strlen(key);
}

static dpi_status set_properties(const backend_library *library, const backend_open_options *options, dpi_error *error)
{
    char threads[24];
    const char *precision = NULL;
    snprintf(threads, sizeof threads, "%zu", options->device->threads);
    dpi_status status = choose_precision(library, options, &precision, error);
    const char *const properties[][2] = {{"INFERENCE_PRECISION_HINT", precision},
                                         {"INFERENCE_NUM_THREADS", threads},
                                         {"NUM_STREAMS", "1"},
                                         {"ENABLE_CPU_PINNING", "NO"}, /* the process is pinned already */
                                         /* Else a model of compressed weights has its activations made int8. */
                                         {"EXECUTION_MODE_HINT", "ACCURACY"}};
    for (size_t i = 0; i < sizeof properties / sizeof properties[0] && !status; i++)
        status = set_property(library, properties[i][0], properties[i][1], error);
    for (size_t i = 0; i < options->option_count && !status; i++) {
        const dpi_key_value *o = &options->options[i];
        status = is_property(o->key) ? set_property(library, o->key, o->value, error)
                                     : error_set(error, DPI_E_ARGUMENT,
                                                 "the backend openvino has no option \"%s\"; it passes OpenVINO's own "
                                                 "properties on, which are in upper case",
                                                 o->key);
    }
    return status;
}

static dpi_dtype dtype_of(const backend_library *library, int type)
{
    for (int d = 1; d < OV_DTYPES; d++)
        if (library->types[d] == type)
            return (dpi_dtype)d;
    return DPI_DTYPE_NONE;
}

static dpi_status read_shape(const backend_library *library, const ov_opaque *from, port *p, dpi_error *error)
{
    ov_partial_shape shape;
    dpi_status status = check(library, library->api.port_get_partial_shape(from, &shape), DPI_E_MODEL, p->name, error);
    if (status)
        return status;
    if (shape.rank.min != shape.rank.max || shape.rank.max > DPI_MAX_RANK || shape.rank.max < 0)
        status = error_set(error, DPI_E_MODEL, "the model's %s has no fixed number of axes, or more than %d", p->name,
                           DPI_MAX_RANK);
    else {
        p->rank = (int)shape.rank.max;
        for (int k = 0; k < p->rank; k++)
            p->shape[k] = shape.dims[k].min == shape.dims[k].max ? shape.dims[k].max : -1;
    }
    library->api.partial_shape_free(&shape);
    return status;
}

static dpi_status read_port(const backend_engine *e, bool output, size_t index, port *p, dpi_error *error)
{
    const ov_api *api = &e->library->api;
    ov_opaque *from = NULL;
    char *name = NULL;
    int type = -1;
    int result = output ? api->compiled_model_output_by_index(e->compiled, index, &from)
                        : api->compiled_model_input_by_index(e->compiled, index, &from);
    dpi_status status = check(e->library, result, DPI_E_MODEL, "the model's ports", error);
    if (status)
        return status;
    if (api->port_get_any_name(from, &name) == 0 && name) {
        snprintf(p->name, sizeof p->name, "%s", name);
        api->free(name);
    } else /* IR may leave ports nameless */
        snprintf(p->name, sizeof p->name, "%s%zu", output ? "output" : "input", index);
    status = check(e->library, api->port_get_element_type(from, &type), DPI_E_MODEL, p->name, error);
    p->dtype = dtype_of(e->library, type);
    if (!status && p->dtype == DPI_DTYPE_NONE)
        status = error_set(error, DPI_E_MODEL, "the model's %s has an element type (%d) that dpinfer does not move",
                           p->name, type);
    if (!status)
        status = read_shape(e->library, from, p, error);
    api->output_const_port_free(from);
    return status;
}

static dpi_status read_inputs(backend_engine *e, dpi_error *error)
{
    size_t count = 0;
    dpi_status status = check(e->library, e->library->api.compiled_model_inputs_size(e->compiled, &count), DPI_E_MODEL,
                              "the model's ports", error);
    if (!status && count > PORT_MAX)
        return error_set(error, DPI_E_MODEL, "the model has %zu inputs; at most %d", count, PORT_MAX);
    for (size_t i = 0; !status && i < count; i++)
        status = read_port(e, false, i, &e->sig.inputs[i], error);
    e->sig.input_count = count;
    return status;
}

static dpi_status read_outputs(backend_engine *e, const backend_open_options *options, dpi_error *error)
{
    port all[PORT_MAX];
    dpi_status problems[PORT_MAX];
    dpi_error messages[PORT_MAX];
    dpi_status status = check(e->library, e->library->api.compiled_model_outputs_size(e->compiled, &e->model_outputs),
                              DPI_E_MODEL, "the model's ports", error);
    if (!status && e->model_outputs > PORT_MAX)
        return error_set(error, DPI_E_MODEL, "the model has %zu outputs; at most %d", e->model_outputs, PORT_MAX);
    for (size_t i = 0; !status && i < e->model_outputs; i++) { /* one that is not wanted may be of any kind */
        memset(&all[i], 0, sizeof all[i]);
        problems[i] = read_port(e, true, i, &all[i], &messages[i]);
    }
    size_t wanted = options->output_names ? options->output_count : e->model_outputs;
    for (size_t o = 0; !status && o < wanted; o++) {
        int at = options->output_names ? port_find(all, e->model_outputs, options->output_names[o]) : (int)o;
        if (at < 0)
            return error_set(error, DPI_E_MODEL, "the model has no output \"%s\"", options->output_names[o]);
        if (problems[at])
            return error_set(error, problems[at], "%s", messages[at].message);
        e->sig.outputs[o] = all[at];
        e->output_index[o] = (size_t)at;
        e->sig.output_count = o + 1;
    }
    return status;
}

static void ov_close(backend_engine *e)
{
    if (e->request)
        e->library->api.infer_request_free(e->request);
    if (e->compiled)
        e->library->api.compiled_model_free(e->compiled);
    if (e->blob)
        munmap(e->blob, e->blob_bytes);
    shapes_free(&e->measured);
    free(e);
}

static dpi_status import_engine(backend_engine *e, int fd, dpi_error *error)
{
    struct stat info;
    off_t begin = lseek(fd, 0, SEEK_CUR);
    if (begin < 0 || fstat(fd, &info) != 0 || info.st_size <= begin)
        return error_set(error, DPI_E_MODEL, "the stored engine is empty");
    char *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map the stored engine");
    int result = e->library->api.core_import_model(e->library->core, map + begin, (size_t)(info.st_size - begin), "CPU",
                                                   &e->compiled);
    e->blob = map;
    e->blob_bytes = (size_t)info.st_size;
    return check(e->library, result, DPI_E_MODEL, "the stored engine", error);
}

static dpi_status compile(backend_engine *e, const backend_model *model, dpi_error *error)
{
    const ov_api *api = &e->library->api;
    const char *name = model->path ? model->path : "the model in memory";
    ov_opaque *read = NULL;
    int result =
        model->path ? api->core_read_model(e->library->core, model->path, NULL, &read)
                    : api->core_read_model_from_memory_buffer(e->library->core, model->data, model->bytes, NULL, &read);
    dpi_status status = check(e->library, result, DPI_E_MODEL, name, error);
    if (!status)
        status = check(e->library, api->core_compile_model(e->library->core, read, "CPU", 0, &e->compiled), DPI_E_MODEL,
                       name, error);
    if (read)
        api->model_free(read);
    return status;
}

/* The CPU plug-in computes float64 in float32 without a word; that is lower than the model's own precision. */
static dpi_status refuse_float64(const backend_engine *e, const backend_open_options *options, dpi_error *error)
{
    for (size_t i = 0; options->precision == DPI_PRECISION_MODEL && i < e->sig.input_count + e->sig.output_count; i++) {
        const port *p = i < e->sig.input_count ? &e->sig.inputs[i] : &e->sig.outputs[i - e->sig.input_count];
        if (p->dtype == DPI_F64)
            return error_set(
                error, DPI_E_DEVICE,
                "%s: OpenVINO computes float64 (the model's %s) in float32; use the backend onnxruntime, or "
                "accept it with --precision fp32",
                options->device->name, p->name);
    }
    return DPI_OK;
}

static dpi_status ov_open(backend_library *library, const backend_open_options *options, backend_engine **out,
                          dpi_error *error)
{
    if (options->provider)
        return error_set(error, DPI_E_ARGUMENT, "--provider is for the backend onnxruntime, not openvino");
    backend_engine *e = calloc(1, sizeof *e);
    if (!e)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    e->library = library;
    dpi_status status = set_properties(library, options, error);
    if (!status)
        status =
            options->import_fd >= 0 ? import_engine(e, options->import_fd, error) : compile(e, options->model, error);
    if (!status)
        status = read_inputs(e, error);
    if (!status)
        status = read_outputs(e, options, error);
    if (!status)
        status = refuse_float64(e, options, error);
    if (!status)
        status = check(library, library->api.compiled_model_create_infer_request(e->compiled, &e->request),
                       DPI_E_ENGINE, options->device->name, error);
    if (status) {
        ov_close(e);
        return status;
    }
    *out = e;
    return DPI_OK;
}

static dpi_status ov_describe(const backend_engine *e, signature *sig, dpi_error *error)
{
    (void)error;
    *sig = e->sig;
    return DPI_OK;
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

static bool holds(const held *h, const backend_array *a)
{
    return h->data == a->data && h->data && h->rank == a->rank &&
           memcmp(h->shape, a->shape, (size_t)a->rank * sizeof a->shape[0]) == 0;
}

/* Gives the caller's memory to a port of the request; `index` is the model's. */
static dpi_status set_tensor(const backend_engine *e, bool output, size_t index, const port *p, const backend_array *a,
                             held *known, dpi_error *error)
{
    const ov_api *api = &e->library->api;
    if (known && holds(known, a))
        return DPI_OK;
    ov_opaque *tensor = NULL;
    ov_shape shape = {.rank = a->rank, .dims = (int64_t *)(uintptr_t)a->shape}; /* read only */
    int result = api->tensor_create_from_host_ptr(e->library->types[p->dtype], shape, a->data, &tensor);
    if (!result)
        result = output ? api->infer_request_set_output_tensor_by_index(e->request, index, tensor)
                        : api->infer_request_set_input_tensor_by_index(e->request, index, tensor);
    dpi_status status = check(e->library, result, DPI_E_ENGINE, p->name, error);
    if (tensor)
        api->tensor_free(tensor); /* the request keeps its own hold of it */
    if (known && !status) {
        *known = (held){.data = a->data, .rank = a->rank};
        memcpy(known->shape, a->shape, (size_t)a->rank * sizeof a->shape[0]);
    }
    return status;
}

static dpi_status set_inputs(const backend_engine *e, const backend_array *inputs, held *known, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < e->sig.input_count && !status; i++)
        status = set_tensor(e, false, i, &e->sig.inputs[i], &inputs[i], known ? &known[i] : NULL, error);
    return status;
}

/* The engine may have written an output of open shape elsewhere: then it is copied, if it has the expected size. */
static dpi_status collect(backend_engine *e, size_t o, const backend_array *a, dpi_error *error)
{
    const ov_api *api = &e->library->api;
    const port *p = &e->sig.outputs[o];
    ov_opaque *tensor = NULL;
    void *data = NULL;
    size_t bytes = 0, expected = 0;
    dpi_status status =
        check(e->library, api->infer_request_get_output_tensor_by_index(e->request, e->output_index[o], &tensor),
              DPI_E_ENGINE, p->name, error);
    if (status)
        return status;
    if (api->tensor_data(tensor, &data) != 0 || api->tensor_get_byte_size(tensor, &bytes) != 0 ||
        !shape_bytes(p->dtype, a->shape, a->rank, &expected) || bytes != expected)
        status = error_set(error, DPI_E_ENGINE, "the output %s came with %zu bytes instead of %zu", p->name, bytes,
                           expected);
    else if (data != a->data)
        memcpy(a->data, data, bytes);
    api->tensor_free(tensor);
    return status;
}

static bool sets_outputs(const backend_library *library)
{
    int year = 0, release = 0;
    return sscanf(library->common.version, "%d.%d", &year, &release) == 2 &&
           (year > 2025 || (year == 2025 && release >= 4));
}

static dpi_status ov_run(backend_engine *e, const backend_call *call, backend_timing *timing, dpi_error *error)
{
    (void)timing;
    const ov_api *api = &e->library->api;
    dpi_status status = set_inputs(e, call->inputs, e->inputs, error);
    /* Before 2025.4 an output that is an input passed through goes to stale memory when it is set (wrong values, a
     * crash): there the library keeps its own outputs, and collect copies them. */
    for (size_t o = 0; sets_outputs(e->library) && o < e->sig.output_count && !status; o++)
        status = set_tensor(e, true, e->output_index[o], &e->sig.outputs[o], &call->outputs[o], &e->outputs[o], error);
    if (!status)
        status = check(e->library, api->infer_request_infer(e->request), DPI_E_ENGINE, "the model failed", error);
    for (size_t o = 0; o < e->sig.output_count && !status; o++)
        status = collect(e, o, &call->outputs[o], error);
    if (status) { /* nobody knows what the request holds now */
        memset(e->inputs, 0, sizeof e->inputs);
        memset(e->outputs, 0, sizeof e->outputs);
    }
    return status;
}

/* One run whose outputs the library allocates: a request of its own, which has no memory of ours set. */
static dpi_status try_run(void *engine, const backend_array *inputs, backend_array *outputs, dpi_error *error)
{
    backend_engine *e = engine;
    const ov_api *api = &e->library->api;
    ov_opaque *ours = e->request;
    e->request = NULL;
    dpi_status status = check(e->library, api->compiled_model_create_infer_request(e->compiled, &e->request),
                              DPI_E_ENGINE, "cannot find the output shapes", error);
    if (!status)
        status = set_inputs(e, inputs, NULL, error);
    if (!status)
        status = check(e->library, api->infer_request_infer(e->request), DPI_E_MODEL,
                       "the model does not take these shapes", error);
    for (size_t o = 0; o < e->sig.output_count && !status; o++) {
        ov_opaque *tensor = NULL;
        ov_shape shape = {0};
        status =
            check(e->library, api->infer_request_get_output_tensor_by_index(e->request, e->output_index[o], &tensor),
                  DPI_E_MODEL, e->sig.outputs[o].name, error);
        if (!status)
            status =
                check(e->library, api->tensor_get_shape(tensor, &shape), DPI_E_MODEL, e->sig.outputs[o].name, error);
        if (!status) {
            outputs[o].rank = shape.rank <= DPI_MAX_RANK ? (int)shape.rank : -1;
            for (int k = 0; k < outputs[o].rank; k++)
                outputs[o].shape[k] = shape.dims[k];
            api->shape_free(&shape);
        }
        if (tensor)
            api->tensor_free(tensor);
    }
    if (e->request)
        api->infer_request_free(e->request);
    e->request = ours;
    return status;
}

static dpi_status ov_infer_shapes(backend_engine *e, const backend_array *inputs, backend_array *outputs,
                                  dpi_error *error)
{
    return shapes_measure(&e->measured, &e->sig, try_run, e, inputs, outputs, error);
}

/* The library writes to a path of its own choosing of suffix, so: into a nameless file, by way of /proc. */
static dpi_status ov_export(backend_engine *e, int fd, dpi_error *error)
{
    int blob = memfd_create("dpinfer-engine", MFD_CLOEXEC);
    char path[64];
    if (blob < 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "no memory to export the engine");
    snprintf(path, sizeof path, "/proc/self/fd/%d", blob);
    dpi_status status = check(e->library, e->library->api.compiled_model_export_model(e->compiled, path), DPI_E_ENGINE,
                              "the engine", error);
    struct stat info;
    off_t at = lseek(fd, 0, SEEK_CUR);
    void *map = MAP_FAILED;
    if (!status && (fstat(blob, &info) != 0 || info.st_size <= 0 || at < 0 ||
                    (map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, blob, 0)) == MAP_FAILED))
        status = error_set(error, DPI_E_ENGINE, "OpenVINO exported an empty engine");
    if (!status)
        status = file_write_at(fd, map, (size_t)info.st_size, (uint64_t)at, "the engine cache", error);
    if (map != MAP_FAILED)
        munmap(map, (size_t)info.st_size);
    close(blob);
    return status;
}

const backend backend_openvino = {
    .name = "openvino",
    .formats = "onnx xml",
    .device_kinds = "cpu",
    .threading = BACKEND_ONE_CPU_DEVICE,
    .deterministic_rows = true,
    .load = ov_load,
    .unload = ov_unload,
    .library_info = library_info,
    .list_devices = ov_list_devices,
    .open = ov_open,
    .close = ov_close,
    .describe = ov_describe,
    .infer_shapes = ov_infer_shapes,
    .run = ov_run,
    .export_engine = ov_export,
};
