#include "backend/backend.h"
#include "backend/library.h"
#include "backend/onnxruntime_api.h"
#include "backend/shapes.h"

#include "base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct backend_library {
    library_common common;
    ort_api api;
    ort_opaque *env, *memory, *allocator;
};

#define SYMBOL_SIZE 64

/* Run does not write the memory given for an output that is an input, or an earlier output, under the same name. */
typedef struct output_copy {
    size_t output, source; /* the latter among the inputs or the outputs */
    bool from_input;
} output_copy;

struct backend_engine {
    backend_library *library;
    ort_opaque *session;
    signature sig;
    const char *input_names[PORT_MAX], *output_names[PORT_MAX];
    const char *computed_names[PORT_MAX]; /* of the outputs that Run writes, which are sig.outputs[computed[i]] */
    size_t computed[PORT_MAX], computed_count, copy_count;
    output_copy copies[PORT_MAX];
    char input_symbols[PORT_MAX][DPI_MAX_RANK][SYMBOL_SIZE], output_symbols[PORT_MAX][DPI_MAX_RANK][SYMBOL_SIZE];
    shapes measured;
};

/* ---- the library ------------------------------------------------------------------------------------------------ */

#define SOURCE_FOLDER "/onnxruntime_src/" /* where the packages of the library were compiled */

/* Behind the place "/FOLDER/FILE.cc:LINE TYPE NAME(ARGUMENTS) const [with T = TYPE] " that begins at `c`. */
static const char *skip_place(const char *c)
{
    c += strcspn(c, " ");
    do { /* "(anonymous namespace)::" and "operator()" have more to come */
        int depth = 0;
        c += strcspn(c, "(");
        for (; *c; c++) {
            depth += (*c == '(') - (*c == ')');
            if (depth == 0)
                break;
        }
        c += *c != 0;
    } while (*c && *c != ' ');
    if (strncmp(c, " const", 6) == 0)
        c += 6;
    if (strncmp(c, " [with ", 7) == 0) {
        c += strcspn(c, "]");
        c += *c != 0;
    }
    return c;
}

/* The library's words as one line, without places in its source. Returns `out`. */
static const char *clean_words(const char *words, char *out, size_t size)
{
    size_t used = 0;
    while (*words && used + 1 < size) {
        if (strncmp(words, SOURCE_FOLDER, sizeof SOURCE_FOLDER - 1) == 0) {
            const char *behind = skip_place(words);
            words = *behind ? behind : words + sizeof SOURCE_FOLDER - 1; /* nothing but a place: better than nothing */
            continue;
        }
        char c = (unsigned char)*words < ' ' ? ' ' : *words;
        if (c != ' ' || (used && out[used - 1] != ' '))
            out[used++] = c;
        words++;
    }
    while (used && out[used - 1] == ' ')
        used--;
    out[used] = 0;
    return out;
}

/* `context` is a logger or NULL. */
static void forward_log(void *context, int severity, const char *category, const char *id, const char *location,
                        const char *message)
{
    (void)category;
    (void)id;
    char words[1200];
    dpi_log_level level = severity >= ORT_SEVERITY_ERROR ? DPI_LOG_WARNING : DPI_LOG_DEBUG;
    log_line(context, level, "ONNX Runtime: %s (%s)", clean_words(message, words, sizeof words),
             location ? location : "?");
}

/* Turns the library's status into ours and releases it; NULL is success. */
static dpi_status take_status(const backend_library *library, ort_opaque *status, dpi_status ours, const char *what,
                              dpi_error *error)
{
    if (!status)
        return DPI_OK;
    char words[801];
    error_set(error, ours, "%s: ONNX Runtime says: %s", what,
              clean_words(library->api.GetErrorMessage(status), words, sizeof words));
    library->api.ReleaseStatus(status);
    return ours;
}

static void fill_table(ort_api *api, const ort_function *table)
{
#define X(name, slot, result, arguments) api->name = (result(*) arguments)table[slot];
    ORT_FUNCTIONS(X)
#undef X
}

static void ort_unload(backend_library *library)
{
    if (library->memory)
        library->api.ReleaseMemoryInfo(library->memory);
    if (library->env)
        library->api.ReleaseEnv(library->env);
    free(library);
}

static dpi_status start_library(backend_library *library, void *handle, dpi_error *error)
{
    typedef const ort_api_base *(*get_base_fn)(void);
    void *symbol = library_symbol(handle, "OrtGetApiBase", library->common.path, error);
    if (!symbol)
        return DPI_E_BACKEND;
    get_base_fn get_base;
    memcpy(&get_base, &symbol, sizeof get_base); /* a data pointer to a function: POSIX allows it, ISO C has no cast */
    const ort_api_base *base = get_base();
    snprintf(library->common.version, sizeof library->common.version, "%s", base->get_version());
    const ort_function *table = base->get_api(ORT_API_WANTED);
    if (!table)
        return error_set(error, DPI_E_BACKEND,
                         "%s is ONNX Runtime %s; dpinfer needs 1.%d or newer: pip install -U onnxruntime",
                         library->common.path, library->common.version, ORT_API_WANTED);
    fill_table(&library->api, table);
    const ort_api *api = &library->api;
    /* The library has one environment per process, with the log of whoever came first, who may leave before others:
     * hence no context here. Sessions have logs of their own (set_options). */
    dpi_status status = take_status(
        library, api->CreateEnvWithCustomLogger(forward_log, NULL, ORT_SEVERITY_WARNING, "dpinfer", &library->env),
        DPI_E_BACKEND, "cannot start", error);
    if (!status) /* OrtDeviceAllocator, OrtMemTypeDefault */
        status = take_status(library, api->CreateCpuMemoryInfo(0, 0, &library->memory), DPI_E_BACKEND, "cannot start",
                             error);
    if (!status)
        status = take_status(library, api->GetAllocatorWithDefaultOptions(&library->allocator), DPI_E_BACKEND,
                             "cannot start", error);
    return status;
}

static dpi_status ort_load(const backend_load_options *options, const logger *log, backend_library **out,
                           dpi_error *error)
{
    library_query query = {.what = "ONNX Runtime",
                           .environment = "DPINFER_ONNXRUNTIME_LIBRARY",
                           .given = options->library,
                           .package_glob = "onnxruntime/capi/libonnxruntime.so.*",
                           .file_glob = "libonnxruntime.so*",
                           .soname = "libonnxruntime.so.1",
                           .install_hint = "pip install onnxruntime"};
    return library_open(&query, log, sizeof **out, start_library, ort_unload, out, error);
}

static void list_providers(const backend_library *library, char *out, size_t size)
{
    char **names = NULL;
    int count = 0;
    size_t used = 0;
    out[0] = 0;
    ort_opaque *status = library->api.GetAvailableProviders(&names, &count);
    if (status) {
        library->api.ReleaseStatus(status);
        return;
    }
    for (int i = 0; i < count && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? " " : "", names[i]);
    status = library->api.ReleaseAvailableProviders(names, count);
    if (status)
        library->api.ReleaseStatus(status);
}

static dpi_status ort_list_devices(backend_library *library, backend_device_info *list, size_t capacity, size_t *count,
                                   dpi_error *error)
{
    (void)error;
    *count = 1;
    if (!capacity)
        return DPI_OK;
    list[0] = (backend_device_info){0};
    strcpy(list[0].name, "cpu:all");
    strcpy(list[0].precisions, "model");
    strcpy(list[0].description, "providers: ");
    list_providers(library, list[0].description + 11, sizeof list[0].description - 11);
    return DPI_OK;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/* With several threads: where they run. Counted from 1; the calling thread is not among them (it is pinned already). */
static dpi_status set_affinity(const backend_library *library, ort_opaque *so, const backend_device *device,
                               dpi_error *error)
{
    if (!device->pinned || device->threads < 2 || device->cpu_count < device->threads)
        return DPI_OK;
    text_buffer cpus = {0};
    for (size_t i = 1; i < device->threads; i++)
        text_add(&cpus, "%s%d", i > 1 ? ";" : "", device->cpus[i] + 1);
    dpi_status status =
        cpus.failed
            ? error_set(error, DPI_E_SYSTEM, "out of memory")
            : take_status(library,
                          library->api.AddSessionConfigEntry(so, "session.intra_op_thread_affinities", cpus.data),
                          DPI_E_DEVICE, device->name, error);
    text_free(&cpus);
    return status;
}

/* A provider with functions of its own: the generic one refuses it. */
typedef struct named_provider {
    const char *name;
    ort_opaque *(*create)(ort_opaque **made);
    ort_opaque *(*update)(ort_opaque *made, const char *const *keys, const char *const *values, size_t count);
    ort_opaque *(*append)(ort_opaque *options, const ort_opaque *made);
    void (*release)(ort_opaque *made);
} named_provider;

static dpi_status append_named(const backend_library *library, ort_opaque *so, const named_provider *p,
                               const char *const *keys, const char *const *values, size_t count, dpi_error *error)
{
    ort_opaque *made = NULL;
    dpi_status status = take_status(library, p->create(&made), DPI_E_DEVICE, p->name, error);
    if (!status)
        status = take_status(library, p->update(made, keys, values, count), DPI_E_ARGUMENT, "its options", error);
    if (!status)
        status = take_status(library, p->append(so, made), DPI_E_DEVICE, p->name, error);
    if (made)
        p->release(made);
    return status;
}

static bool provider_is(const backend_open_options *options, const char *name)
{
    const char *given = options->provider ? options->provider : "CPU";
    size_t length = strlen(name);
    return strncasecmp(given, name, length) == 0 &&
           (!given[length] || strcasecmp(given + length, "ExecutionProvider") == 0);
}

static dpi_status append_provider(const backend_library *library, ort_opaque *so, const backend_open_options *options,
                                  dpi_error *error)
{
    if (provider_is(options, "CPU"))
        return DPI_OK;
    const ort_api *api = &library->api;
    const named_provider cuda = {"CUDA", api->CreateCUDAProviderOptions, api->UpdateCUDAProviderOptions,
                                 api->SessionOptionsAppendExecutionProvider_CUDA_V2, api->ReleaseCUDAProviderOptions};
    const named_provider tensorrt = {"TensorRT", api->CreateTensorRTProviderOptions, api->UpdateTensorRTProviderOptions,
                                     api->SessionOptionsAppendExecutionProvider_TensorRT_V2,
                                     api->ReleaseTensorRTProviderOptions};
    size_t count = 0, given = options->provider_option_count;
    const char **keys = calloc(given + 1, sizeof *keys), **values = calloc(given + 1, sizeof *values);
    dpi_status status = keys && values ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    if (!status && provider_is(options, "CUDA")) { /* its own default is to round float32; a later key wins */
        keys[count] = "use_tf32";
        values[count++] = options->precision == DPI_PRECISION_TF32 ? "1" : "0";
    }
    for (size_t i = 0; !status && i < given; i++) {
        keys[count] = options->provider_options[i].key;
        values[count++] = options->provider_options[i].value;
    }
    if (!status && provider_is(options, "CUDA"))
        status = append_named(library, so, &cuda, keys, values, count, error);
    else if (!status && provider_is(options, "TensorRT"))
        status = append_named(library, so, &tensorrt, keys, values, count, error);
    else if (!status)
        status =
            take_status(library, api->SessionOptionsAppendExecutionProvider(so, options->provider, keys, values, count),
                        DPI_E_DEVICE, options->provider, error);
    free(keys);
    free(values);
    if (status && error) {
        char all[256], said[600];
        list_providers(library, all, sizeof all);
        snprintf(said, sizeof said, "%.599s", error->message);
        error_set(error, status, "the provider %s cannot be used with %s (it has: %s): %s", options->provider,
                  library->common.path, all, said);
    }
    return status;
}

#define ORT_OPTIONS "graph_optimization allow_spinning mem_pattern arena"

/* *on stays as it is where the option is not given. */
static dpi_status take_switch(const backend_open_options *options, const char *key, bool *on, dpi_error *error)
{
    const char *value = backend_option(options, key);
    if (value && strcmp(value, "0") != 0 && strcmp(value, "1") != 0)
        return error_set(error, DPI_E_ARGUMENT, "onnxruntime's option %s is 0 or 1, not \"%s\"", key, value);
    if (value)
        *on = value[0] == '1';
    return DPI_OK;
}

static dpi_status set_options(const backend_library *library, ort_opaque *so, const backend_open_options *options,
                              dpi_error *error)
{
    const ort_api *api = &library->api;
    const backend_device *device = options->device;
    /* Spinning helps threads that own their cores and hurts all others. */
    bool spins = device->pinned && device->threads > 1, pattern = true, arena = true;
    uint64_t number = 99;
    const char *level = backend_option(options, "graph_optimization");
    dpi_status status = backend_check_options(options, "onnxruntime", ORT_OPTIONS, error);
    if (!status && level && (!text_to_u64(level, 0, 99, &number) || (number > 2 && number < 99)))
        status = error_set(error, DPI_E_ARGUMENT,
                           "onnxruntime's option graph_optimization is 0, 1, 2 or 99, not \"%s\"", level);
    if (!status)
        status = take_switch(options, "allow_spinning", &spins, error);
    if (!status)
        status = take_switch(options, "mem_pattern", &pattern, error);
    if (!status)
        status = take_switch(options, "arena", &arena, error);
    if (status)
        return status;
    ort_opaque *steps[] = {
        api->SetUserLoggingFunction(so, forward_log, (void *)(uintptr_t)library->common.log),
        api->SetIntraOpNumThreads(so, (int)device->threads),
        api->SetInterOpNumThreads(so, 1),
        api->SetSessionGraphOptimizationLevel(so, (int)number),
        api->AddSessionConfigEntry(so, "session.intra_op.allow_spinning", spins ? "1" : "0"),
        pattern ? NULL : api->DisableMemPattern(so),
        arena ? NULL : api->DisableCpuMemArena(so),
    };
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
        dpi_error later;
        dpi_status one = take_status(library, steps[i], DPI_E_ARGUMENT, device->name, status ? &later : error);
        status = status ? status : one;
    }
    if (!status)
        status = set_affinity(library, so, device, error);
    return status ? status : append_provider(library, so, options, error);
}

static dpi_dtype dtype_of(int type)
{
    switch (type) {
#define X(number, dtype)                                                                                               \
    case number: return dtype;
        ORT_TYPES(X)
#undef X
    }
    return DPI_DTYPE_NONE;
}

static int type_of(dpi_dtype dtype)
{
    switch (dtype) {
#define X(number, name)                                                                                                \
    case name: return number;
        ORT_TYPES(X)
#undef X
    case DPI_DTYPE_NONE: break;
    }
    return 0;
}

static dpi_status read_shape(const backend_library *library, const ort_opaque *tensor, port *p,
                             char symbols[DPI_MAX_RANK][SYMBOL_SIZE], dpi_error *error)
{
    const ort_api *api = &library->api;
    size_t rank = 0;
    int type = 0;
    const char *names[DPI_MAX_RANK] = {NULL};
    dpi_status status = take_status(library, api->GetTensorElementType(tensor, &type), DPI_E_MODEL, p->name, error);
    if (!status)
        status = take_status(library, api->GetDimensionsCount(tensor, &rank), DPI_E_MODEL, p->name, error);
    if (status)
        return status;
    p->dtype = dtype_of(type);
    if (p->dtype == DPI_DTYPE_NONE)
        return error_set(error, DPI_E_MODEL,
                         "the model's %s has an element type (%d) that dpinfer does not move, such "
                         "as strings",
                         p->name, type);
    if (rank > DPI_MAX_RANK)
        return error_set(error, DPI_E_MODEL, "the model's %s has %zu axes; at most %d", p->name, rank, DPI_MAX_RANK);
    p->rank = (int)rank;
    status = take_status(library, api->GetDimensions(tensor, p->shape, rank), DPI_E_MODEL, p->name, error);
    if (!status)
        status = take_status(library, api->GetSymbolicDimensions(tensor, names, rank), DPI_E_MODEL, p->name, error);
    for (size_t k = 0; !status && k < rank; k++) {
        if (p->shape[k] < 0)
            p->shape[k] = -1;
        snprintf(symbols[k], SYMBOL_SIZE, "%s", names[k] && strlen(names[k]) < SYMBOL_SIZE ? names[k] : "");
    }
    return status;
}

/* Reads input or output `index` into the port; the name stays in the port. */
static dpi_status read_port(backend_engine *e, bool output, size_t index, port *p,
                            char symbols[DPI_MAX_RANK][SYMBOL_SIZE], dpi_error *error)
{
    const backend_library *library = e->library;
    const ort_api *api = &library->api;
    char *name = NULL;
    dpi_status status = take_status(library,
                                    output ? api->SessionGetOutputName(e->session, index, library->allocator, &name)
                                           : api->SessionGetInputName(e->session, index, library->allocator, &name),
                                    DPI_E_MODEL, "the model's ports", error);
    if (status)
        return status;
    bool fits = strlen(name) < PORT_NAME_SIZE;
    snprintf(p->name, PORT_NAME_SIZE, "%s", fits ? name : "");
    ort_opaque *ignored = api->AllocatorFree(library->allocator, name);
    if (ignored)
        api->ReleaseStatus(ignored);
    if (!fits)
        return error_set(error, DPI_E_MODEL, "a port of the model has a name of over %d bytes", PORT_NAME_SIZE - 1);
    ort_opaque *info = NULL;
    const ort_opaque *tensor = NULL;
    int kind = 0;
    status = take_status(library,
                         output ? api->SessionGetOutputTypeInfo(e->session, index, &info)
                                : api->SessionGetInputTypeInfo(e->session, index, &info),
                         DPI_E_MODEL, p->name, error);
    if (!status)
        status = take_status(library, api->GetOnnxTypeFromTypeInfo(info, &kind), DPI_E_MODEL, p->name, error);
    if (!status && kind != ORT_TYPE_TENSOR)
        status =
            error_set(error, DPI_E_MODEL, "the model's %s is no dense tensor (a sequence, map or the like)", p->name);
    if (!status)
        status = take_status(library, api->CastTypeInfoToTensorInfo(info, &tensor), DPI_E_MODEL, p->name, error);
    if (!status)
        status = read_shape(library, tensor, p, symbols, error);
    if (info)
        api->ReleaseTypeInfo(info);
    return status;
}

static dpi_status read_inputs(backend_engine *e, dpi_error *error)
{
    size_t count = 0;
    dpi_status status = take_status(e->library, e->library->api.SessionGetInputCount(e->session, &count), DPI_E_MODEL,
                                    "the model's ports", error);
    if (!status && count > PORT_MAX)
        return error_set(error, DPI_E_MODEL, "the model has %zu inputs; at most %d", count, PORT_MAX);
    for (size_t i = 0; !status && i < count; i++) {
        status = read_port(e, false, i, &e->sig.inputs[i], e->input_symbols[i], error);
        e->input_names[i] = e->sig.inputs[i].name;
    }
    e->sig.input_count = count;
    return status;
}

/* All outputs, or those asked for in their order. Outputs that are not asked for may be of any kind. */
static dpi_status read_outputs(backend_engine *e, const backend_open_options *options, dpi_error *error)
{
    size_t count = 0, wanted = options->output_names ? options->output_count : SIZE_MAX;
    dpi_status status = take_status(e->library, e->library->api.SessionGetOutputCount(e->session, &count), DPI_E_MODEL,
                                    "the model's ports", error);
    if (!status && (wanted == SIZE_MAX ? count : wanted) > PORT_MAX)
        return error_set(error, DPI_E_MODEL, "the model has %zu outputs; at most %d can be used", count, PORT_MAX);
    for (size_t o = 0; !status && o < (wanted == SIZE_MAX ? count : wanted); o++) {
        bool found = wanted == SIZE_MAX;
        if (found)
            status = read_port(e, true, o, &e->sig.outputs[o], e->output_symbols[o], error);
        for (size_t i = 0; !status && !found && i < count; i++) {
            status = read_port(e, true, i, &e->sig.outputs[o], e->output_symbols[o], error);
            found = strcmp(e->sig.outputs[o].name, options->output_names[o]) == 0;
            if (!found)
                status = DPI_OK; /* whatever it is, it is not wanted */
        }
        if (!status && !found)
            status = error_set(error, DPI_E_MODEL, "the model has no output \"%s\"", options->output_names[o]);
        e->output_names[o] = e->sig.outputs[o].name;
        e->sig.output_count = o + 1;
    }
    return status;
}

/* Sorts the outputs into those that Run writes and those that are copied. */
static void sort_outputs(backend_engine *e)
{
    const signature *sig = &e->sig;
    for (size_t o = 0; o < sig->output_count; o++) {
        int input = port_find(sig->inputs, sig->input_count, sig->outputs[o].name);
        int earlier = port_find(sig->outputs, o, sig->outputs[o].name);
        if (input < 0 && earlier < 0) {
            e->computed_names[e->computed_count] = sig->outputs[o].name;
            e->computed[e->computed_count++] = o;
        } else if (input >= 0)
            e->copies[e->copy_count++] = (output_copy){.output = o, .source = (size_t)input, .from_input = true};
        else
            e->copies[e->copy_count++] = (output_copy){.output = o, .source = (size_t)earlier};
    }
}

/* Providers compute in the types of the graph, unless options of their own say otherwise; nothing else can be asked. */
static dpi_status check_precision(const backend_engine *e, const backend_open_options *options, dpi_error *error)
{
    if (options->precision == DPI_PRECISION_MODEL)
        return DPI_OK;
    bool cuda_tf32 = options->precision == DPI_PRECISION_TF32 && provider_is(options, "CUDA");
    dpi_dtype asked = options->precision == DPI_PRECISION_FP16   ? DPI_F16
                      : options->precision == DPI_PRECISION_BF16 ? DPI_BF16
                      : options->precision == DPI_PRECISION_FP32 ? DPI_F32
                      : cuda_tf32                                ? DPI_F32
                                                                 : DPI_DTYPE_NONE;
    for (size_t i = 0; i < e->sig.input_count + e->sig.output_count; i++) {
        const port *p = i < e->sig.input_count ? &e->sig.inputs[i] : &e->sig.outputs[i - e->sig.input_count];
        if (asked == DPI_DTYPE_NONE || (dtype_is_float(p->dtype) && p->dtype != asked && p->dtype != DPI_F64))
            return error_set(error, DPI_E_DEVICE,
                             "%s: ONNX Runtime's provider %s computes in the model's own precision (%s is %s); leave "
                             "--precision out, convert the model, or use the backend openvino",
                             options->device->name, options->provider ? options->provider : "CPU", p->name,
                             dpi_dtype_name(p->dtype));
    }
    return DPI_OK;
}

static void ort_close(backend_engine *e)
{
    if (e->session)
        e->library->api.ReleaseSession(e->session);
    shapes_free(&e->measured);
    free(e);
}

static dpi_status create_session(backend_engine *e, const backend_open_options *options, dpi_error *error)
{
    const backend_library *library = e->library;
    const backend_model *model = options->model;
    ort_opaque *so = NULL;
    dpi_status status =
        take_status(library, library->api.CreateSessionOptions(&so), DPI_E_BACKEND, "cannot start", error);
    if (!status)
        status = set_options(library, so, options, error);
    if (!status) {
        ort_opaque *said =
            model->path ? library->api.CreateSession(library->env, model->path, so, &e->session)
                        : library->api.CreateSessionFromArray(library->env, model->data, model->bytes, so, &e->session);
        status = take_status(library, said, DPI_E_MODEL, model->path ? model->path : "the model in memory", error);
    }
    if (so)
        library->api.ReleaseSessionOptions(so);
    return status;
}

static dpi_status ort_open(backend_library *library, const backend_open_options *options, backend_engine **out,
                           dpi_error *error)
{
    backend_engine *e = calloc(1, sizeof *e);
    if (!e)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    e->library = library;
    dpi_status status = create_session(e, options, error);
    if (!status)
        status = read_inputs(e, error);
    if (!status)
        status = read_outputs(e, options, error);
    if (!status)
        status = check_precision(e, options, error);
    sort_outputs(e);
    if (status) {
        ort_close(e);
        return status;
    }
    *out = e;
    return DPI_OK;
}

static dpi_status ort_describe(const backend_engine *e, signature *sig, dpi_error *error)
{
    (void)error;
    *sig = e->sig;
    return DPI_OK;
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

static dpi_status make_value(const backend_engine *e, const port *p, const backend_array *a, ort_opaque **value,
                             dpi_error *error)
{
    size_t bytes;
    *value = NULL;
    if (!shape_bytes(p->dtype, a->shape, a->rank, &bytes))
        return error_set(error, DPI_E_INTERNAL, "a call has no complete shape for %s", p->name);
    return take_status(e->library,
                       e->library->api.CreateTensorWithDataAsOrtValue(e->library->memory, a->data, bytes, a->shape,
                                                                      (size_t)a->rank, type_of(p->dtype), value),
                       DPI_E_ENGINE, p->name, error);
}

static void release_values(const backend_engine *e, ort_opaque **values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (values[i])
            e->library->api.ReleaseValue(values[i]);
}

static dpi_status copy_outputs(const backend_engine *e, const backend_call *call, dpi_error *error)
{
    for (size_t i = 0; i < e->copy_count; i++) {
        const output_copy *copy = &e->copies[i];
        const backend_array *to = &call->outputs[copy->output];
        const backend_array *from = copy->from_input ? &call->inputs[copy->source] : &call->outputs[copy->source];
        const port *p = &e->sig.outputs[copy->output];
        char got[SHAPE_TEXT_SIZE], want[SHAPE_TEXT_SIZE];
        size_t bytes;
        if (from->rank != to->rank || memcmp(from->shape, to->shape, (size_t)to->rank * sizeof *to->shape) != 0)
            return error_set(error, DPI_E_ENGINE, "the output %s has the shape %s, not %s", p->name,
                             shape_text(from->shape, from->rank, got), shape_text(to->shape, to->rank, want));
        if (!shape_bytes(p->dtype, to->shape, to->rank, &bytes))
            return error_set(error, DPI_E_INTERNAL, "a call has no complete shape for %s", p->name);
        memcpy(to->data, from->data, bytes);
    }
    return DPI_OK;
}

static dpi_status ort_run(backend_engine *e, const backend_call *call, backend_timing *timing, dpi_error *error)
{
    (void)timing;
    ort_opaque *inputs[PORT_MAX], *outputs[PORT_MAX];
    size_t in = 0, out = 0;
    dpi_status status = DPI_OK;
    for (; in < e->sig.input_count && !status; in++)
        status = make_value(e, &e->sig.inputs[in], &call->inputs[in], &inputs[in], error);
    for (; out < e->computed_count && !status; out++)
        status =
            make_value(e, &e->sig.outputs[e->computed[out]], &call->outputs[e->computed[out]], &outputs[out], error);
    if (!status && out) /* an output of another shape than its memory is an error of the library's */
        status = take_status(e->library,
                             e->library->api.Run(e->session, NULL, e->input_names, (const ort_opaque *const *)inputs,
                                                 e->sig.input_count, e->computed_names, out, outputs),
                             DPI_E_ENGINE, "the model failed", error);
    release_values(e, inputs, in);
    release_values(e, outputs, out);
    return status ? status : copy_outputs(e, call, error);
}

/* ---- shapes ----------------------------------------------------------------------------------------------------- */

/* Output axes that are numbers or share a symbol with an input's axis; false when some are left open. No axes at all
 * may also mean that the model does not say how many there are. */
static bool resolve_symbols(const backend_engine *e, const backend_array *inputs, backend_array *outputs)
{
    bool all = true;
    for (size_t o = 0; o < e->sig.output_count; o++) {
        const port *p = &e->sig.outputs[o];
        outputs[o].rank = p->rank;
        all &= p->rank > 0;
        for (int k = 0; k < p->rank; k++) {
            const char *symbol = e->output_symbols[o][k];
            outputs[o].shape[k] = p->shape[k];
            for (size_t i = 0; p->shape[k] < 0 && *symbol && i < e->sig.input_count; i++)
                for (int j = 0; j < e->sig.inputs[i].rank; j++)
                    if (e->sig.inputs[i].shape[j] < 0 && strcmp(symbol, e->input_symbols[i][j]) == 0)
                        outputs[o].shape[k] = inputs[i].shape[j];
            all &= outputs[o].shape[k] >= 0;
        }
    }
    return all;
}

static dpi_status read_output_shapes(const backend_engine *e, ort_opaque *const *values, backend_array *outputs,
                                     dpi_error *error)
{
    const ort_api *api = &e->library->api;
    dpi_status status = DPI_OK;
    for (size_t o = 0; o < e->sig.output_count && !status; o++) {
        ort_opaque *tensor = NULL;
        size_t rank = 0;
        status = take_status(e->library, api->GetTensorTypeAndShape(values[o], &tensor), DPI_E_MODEL,
                             e->sig.outputs[o].name, error);
        if (!status)
            status = take_status(e->library, api->GetDimensionsCount(tensor, &rank), DPI_E_MODEL,
                                 e->sig.outputs[o].name, error);
        if (!status && rank != (size_t)e->sig.outputs[o].rank)
            status = error_set(error, DPI_E_MODEL,
                               "the model does not say how many axes its output %s has (%zu in a first run); give it a "
                               "shape in the model, or choose other outputs with --output",
                               e->sig.outputs[o].name, rank);
        outputs[o].rank = (int)rank;
        if (!status)
            status = take_status(e->library, api->GetDimensions(tensor, outputs[o].shape, rank), DPI_E_MODEL,
                                 e->sig.outputs[o].name, error);
        if (tensor)
            api->ReleaseTensorTypeAndShapeInfo(tensor);
    }
    return status;
}

/* One run; the engine allocates its outputs. */
static dpi_status try_run(void *engine, const backend_array *inputs, backend_array *outputs, dpi_error *error)
{
    const backend_engine *e = engine;
    ort_opaque *in[PORT_MAX] = {NULL}, *out[PORT_MAX] = {NULL};
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < e->sig.input_count && !status; i++)
        status = make_value(e, &e->sig.inputs[i], &inputs[i], &in[i], error);
    if (!status)
        status = take_status(e->library,
                             e->library->api.Run(e->session, NULL, e->input_names, (const ort_opaque *const *)in,
                                                 e->sig.input_count, e->output_names, e->sig.output_count, out),
                             DPI_E_MODEL, "the model does not take these shapes", error);
    if (!status)
        status = read_output_shapes(e, out, outputs, error);
    release_values(e, in, e->sig.input_count);
    release_values(e, out, e->sig.output_count);
    return status;
}

static dpi_status ort_infer_shapes(backend_engine *e, const backend_array *inputs, backend_array *outputs,
                                   dpi_error *error)
{
    if (resolve_symbols(e, inputs, outputs))
        return DPI_OK;
    return shapes_measure(&e->measured, &e->sig, try_run, e, inputs, outputs, error);
}

const backend backend_onnxruntime = {
    .name = "onnxruntime",
    .formats = "onnx ort",
    .device_kinds = "cpu",
    .threading = BACKEND_ENGINES_INDEPENDENT,
    .deterministic_rows = true,
    .load = ort_load,
    .unload = ort_unload,
    .library_info = library_info,
    .list_devices = ort_list_devices,
    .open = ort_open,
    .close = ort_close,
    .describe = ort_describe,
    .infer_shapes = ort_infer_shapes,
    .run = ort_run,
};
