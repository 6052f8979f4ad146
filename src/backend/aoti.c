/*
 * Packages of PyTorch's AOTInductor (.pt2), on CPUs and GPUs: for models that ONNX cannot express, and for GPUs without
 * TensorRT. The package holds a library of machine code, which calls PyTorch's C functions (aoti_api.h); aoti_package.c
 * reads it, this file runs it, aoti_cuda.c moves rows to a GPU and back. The model checks neither the number of its
 * inputs nor their shapes: both are checked here, against what dpinfer.compile noted in the package or the option
 * `inputs`.
 */
#include "backend/aoti_engine.h"

#include "base/clock.h"
#include "base/text.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the library ------------------------------------------------------------------------------------------------ */

static dpi_status take_functions(backend_library *library, void *handle, dpi_error *error)
{
    void *address;
#define X(name, symbol, result, parameters)                                                                            \
    if (!(address = library_symbol(handle, symbol, library->common.path, error)))                                      \
        return DPI_E_BACKEND;                                                                                          \
    memcpy(&library->api.name, &address, sizeof address);
    AOTI_TENSOR_FUNCTIONS(X)
#undef X
    static const struct {
        dpi_dtype dtype;
        const char *name;
    } dtypes[] = {
#define X(number, text) {number, text},
        AOTI_DTYPES(X)
#undef X
    };
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++) {
        char symbol[64];
        int32_t (*number)(void);
        snprintf(symbol, sizeof symbol, "aoti_torch_dtype_%s", dtypes[i].name);
        if (!(address = library_symbol(handle, symbol, library->common.path, error)))
            return DPI_E_BACKEND;
        memcpy(&number, &address, sizeof number);
        library->types[dtypes[i].dtype] = number();
    }
    /* at::set_num_threads(int) has no name in C; without it OMP_NUM_THREADS or all cores count. */
    address = dlsym(handle, "_ZN2at15set_num_threadsEi");
    memcpy(&library->set_threads, &address, sizeof address);
    return DPI_OK;
}

/* Compiled models name libtorch.so, which is empty itself, as what they need: it stands beside. */
static void load_umbrella(const backend_library *library)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", library->common.path);
    char *slash = strrchr(path, '/');
    if (!slash)
        return;
    snprintf(slash + 1, sizeof path - (size_t)(slash + 1 - path), "libtorch.so");
    if (!dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE))
        log_warning(library->common.log, "%s does not load, and models need it: %s", path, dlerror());
}

static dpi_status start_library(backend_library *library, void *handle, dpi_error *error)
{
    dpi_status status = take_functions(library, handle, error);
    if (status)
        return status;
    uint64_t version = library->api.abi_version(); /* major, minor, patch: a byte each, from the top */
    snprintf(library->common.version, sizeof library->common.version, "%u.%u.%u", (unsigned)(version >> 56),
             (unsigned)(version >> 48) & 255, (unsigned)(version >> 40) & 255);
    load_umbrella(library);
    return DPI_OK;
}

static void aoti_unload(backend_library *library) { free(library); }

static dpi_status aoti_load(const backend_load_options *options, const logger *log, backend_library **out,
                            dpi_error *error)
{
    library_query query = {.what = "PyTorch",
                           .environment = "DPINFER_TORCH_LIBRARY",
                           .given = options->library,
                           .package_glob = "torch/lib/libtorch_cpu.so",
                           .file_glob = "libtorch_cpu.so",
                           .soname = "libtorch_cpu.so",
                           .install_hint = "pip install torch"};
    return library_open(&query, log, sizeof **out, start_library, aoti_unload, out, error);
}

static dpi_status aoti_list_devices(backend_library *library, backend_device_info *list, size_t capacity, size_t *count,
                                    dpi_error *error)
{
    (void)library;
    (void)error;
    *count = 1;
    if (capacity) {
        list[0] = (backend_device_info){0};
        strcpy(list[0].name, "cpu:all");
        strcpy(list[0].precisions, "model");
        strcpy(list[0].description, "PyTorch; GPUs too, with packages that were compiled for them");
    }
    return DPI_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

dpi_status aoti_tensor_of(const backend_engine *e, void *data, const port *p, const int64_t *shape, int rank,
                          aoti_tensor **tensor, dpi_error *error)
{
    const aoti_tensor_api *api = &e->library->api;
    int64_t strides[DPI_MAX_RANK], stride = 1;
    for (int k = rank - 1; k >= 0; k--) {
        strides[k] = stride;
        stride *= shape[k] > 0 ? shape[k] : 1;
    }
    int32_t kind = e->pipe ? api->device_type_cuda() : api->device_type_cpu();
    *tensor = NULL;
    return api->create_tensor_from_blob(data, rank, shape, strides, 0, e->library->types[p->dtype], kind,
                                        e->pipe ? e->library->gpu.index : 0, tensor) == 0
               ? DPI_OK
               : error_set(error, DPI_E_ENGINE, "%s: PyTorch cannot take the input %s; its words are on standard error",
                           e->device, p->name);
}

dpi_status aoti_check_inputs(const backend_engine *e, const backend_array *inputs, dpi_error *error)
{
    for (size_t i = 0; i < e->sig.input_count; i++) {
        const port *p = &e->sig.inputs[i];
        const aoti_range *r = &e->ranges[i];
        char got[SHAPE_TEXT_SIZE], low[SHAPE_TEXT_SIZE], high[SHAPE_TEXT_SIZE];
        bool fits = inputs[i].rank == p->rank;
        for (int k = 0; k < p->rank && fits; k++)
            fits = inputs[i].shape[k] >= r->min[k] && inputs[i].shape[k] <= r->max[k];
        if (!fits)
            return error_set(error, DPI_E_DATA,
                             "%s: the input %s was compiled for shapes from %s to %s, and %s was given", e->device,
                             p->name, shape_text(r->min, p->rank, low), shape_text(r->max, p->rank, high),
                             shape_text(inputs[i].shape, inputs[i].rank, got));
    }
    return DPI_OK;
}

dpi_status aoti_compute(const backend_engine *e, aoti_tensor **inputs, aoti_tensor **outputs, void *stream,
                        dpi_error *error)
{
    return e->model.run(e->container, inputs, e->sig.input_count, outputs, e->output_count, stream, NULL) == 0
               ? DPI_OK
               : error_set(error, DPI_E_ENGINE, "%s: the model %s failed; PyTorch's words are on standard error",
                           e->device, e->package.name);
}

void aoti_free_tensors(const backend_engine *e, aoti_tensor **tensors, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (tensors[i])
            e->library->api.delete_tensor(tensors[i]);
}

dpi_status aoti_read_shape(const backend_engine *e, aoti_tensor *tensor, int64_t *shape, int *rank, dpi_dtype *dtype,
                           dpi_error *error)
{
    const aoti_tensor_api *api = &e->library->api;
    int64_t axes = 0, *sizes = NULL;
    int32_t type = -1;
    if (!tensor || api->get_dim(tensor, &axes) || api->get_dtype(tensor, &type) || api->get_sizes(tensor, &sizes))
        return error_set(error, DPI_E_ENGINE, "%s: a result of %s is no tensor", e->device, e->package.name);
    if (axes < 0 || axes > DPI_MAX_RANK)
        return error_set(error, DPI_E_MODEL, "a result of %s has %lld axes; at most %d", e->package.name,
                         (long long)axes, DPI_MAX_RANK);
    *rank = (int)axes;
    memcpy(shape, sizes, (size_t)axes * sizeof *shape);
    *dtype = DPI_DTYPE_NONE;
    for (int d = DPI_BOOL; d <= DPI_F64; d++)
        if (e->library->types[d] == type)
            *dtype = (dpi_dtype)d;
    return DPI_OK;
}

dpi_status aoti_check_output(const backend_engine *e, size_t o, aoti_tensor *tensor, const backend_array *want,
                             void **data, bool *dense, dpi_error *error)
{
    const aoti_tensor_api *api = &e->library->api;
    const port *p = &e->sig.outputs[o];
    int64_t shape[DPI_MAX_RANK] = {0}, *strides = NULL, stride = 1;
    int rank = 0;
    dpi_dtype dtype;
    int32_t kind = -1;
    dpi_status status = aoti_read_shape(e, tensor, shape, &rank, &dtype, error);
    if (status)
        return status;
    char got[SHAPE_TEXT_SIZE], wanted[SHAPE_TEXT_SIZE];
    if (dtype != p->dtype || rank != want->rank || memcmp(shape, want->shape, (size_t)rank * sizeof *shape) != 0)
        return error_set(error, DPI_E_ENGINE, "%s: the output %s came as %s %s and not %s %s", e->device, p->name,
                         dpi_dtype_name(dtype), shape_text(shape, rank, got), dpi_dtype_name(p->dtype),
                         shape_text(want->shape, want->rank, wanted));
    if (api->get_data_ptr(tensor, data) || api->get_strides(tensor, &strides) || api->get_device_type(tensor, &kind) ||
        kind != (e->pipe ? api->device_type_cuda() : api->device_type_cpu()))
        return error_set(error, DPI_E_ENGINE, "%s: the output %s is not on this device", e->device, p->name);
    *dense = true;
    for (int k = rank - 1; k >= 0; k--) {
        *dense &= shape[k] <= 1 || strides[k] == stride;
        stride *= shape[k] > 0 ? shape[k] : 1;
    }
    return DPI_OK;
}

/* Copies a strided tensor of the host, innermost axis first. */
static void copy_strided(char *to, const char *from, const int64_t *shape, const int64_t *strides, int rank,
                         size_t element)
{
    if (rank == 0) {
        memcpy(to, from, element);
        return;
    }
    size_t below = element;
    for (int k = 1; k < rank; k++)
        below *= (size_t)shape[k];
    for (int64_t i = 0; i < shape[0]; i++)
        copy_strided(to + (size_t)i * below, from + i * strides[0] * (int64_t)element, shape + 1, strides + 1, rank - 1,
                     element);
}

/* ---- running on the CPU ----------------------------------------------------------------------------------------- */

static dpi_status make_inputs(const backend_engine *e, const backend_array *inputs, aoti_tensor **tensors,
                              dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < e->sig.input_count && !status; i++)
        status =
            aoti_tensor_of(e, inputs[i].data, &e->sig.inputs[i], inputs[i].shape, inputs[i].rank, &tensors[i], error);
    if (status)
        aoti_free_tensors(e, tensors, e->sig.input_count);
    return status;
}

static dpi_status deliver(const backend_engine *e, size_t o, aoti_tensor *tensor, const backend_array *to,
                          dpi_error *error)
{
    void *data = NULL;
    bool dense = true;
    size_t bytes = 0;
    dpi_status status = aoti_check_output(e, o, tensor, to, &data, &dense, error);
    if (status || !shape_bytes(e->sig.outputs[o].dtype, to->shape, to->rank, &bytes) || !bytes)
        return status;
    int64_t *strides = NULL;
    if (dense)
        memcpy(to->data, data, bytes);
    else if (e->library->api.get_strides(tensor, &strides) == 0)
        copy_strided(to->data, data, to->shape, strides, to->rank, dpi_dtype_size(e->sig.outputs[o].dtype));
    return DPI_OK;
}

static dpi_status aoti_run(backend_engine *e, const backend_call *call, backend_timing *timing, dpi_error *error)
{
    aoti_tensor *in[PORT_MAX] = {NULL}, *out[PORT_MAX] = {NULL};
    (void)timing;
    if (e->pipe) {
        dpi_status started = aoti_cuda_enqueue(e, 0, call, error);
        return started ? started : aoti_cuda_wait(e, 0, timing, error);
    }
    dpi_status status = aoti_check_inputs(e, call->inputs, error);
    if (!status)
        status = make_inputs(e, call->inputs, in, error);
    if (!status)
        status = aoti_compute(e, in, out, NULL, error);
    for (size_t o = 0; o < e->sig.output_count && !status; o++)
        status = deliver(e, o, out[e->wanted[o]], &call->outputs[o], error);
    aoti_free_tensors(e, out, e->output_count);
    return status;
}

/* One run whose results' shapes and dtypes are read; `outputs` and `dtypes` are those of the whole model. */
static dpi_status try_model(backend_engine *e, const backend_array *inputs, backend_array *outputs, dpi_dtype *dtypes,
                            dpi_error *error)
{
    aoti_tensor *in[PORT_MAX] = {NULL}, *out[PORT_MAX] = {NULL};
    dpi_status status = aoti_check_inputs(e, inputs, error);
    if (e->pipe)
        return status ? status : aoti_cuda_try(e, inputs, outputs, dtypes, error);
    if (!status)
        status = make_inputs(e, inputs, in, error);
    if (!status)
        status = aoti_compute(e, in, out, NULL, error);
    for (size_t o = 0; o < e->output_count && !status; o++)
        status = aoti_read_shape(e, out[o], outputs[o].shape, &outputs[o].rank, &dtypes[o], error);
    aoti_free_tensors(e, out, e->output_count);
    return status;
}

static dpi_status try_wanted(void *engine, const backend_array *inputs, backend_array *outputs, dpi_error *error)
{
    backend_engine *e = engine;
    backend_array all[PORT_MAX] = {{0}};
    dpi_dtype dtypes[PORT_MAX];
    dpi_status status = try_model(e, inputs, all, dtypes, error);
    for (size_t o = 0; o < e->sig.output_count && !status; o++)
        outputs[o] = all[e->wanted[o]];
    return status;
}

/* More rows than the model was compiled for cannot be tried: what holds for its most holds for them. */
static dpi_status aoti_infer_shapes(backend_engine *e, const backend_array *inputs, backend_array *outputs,
                                    dpi_error *error)
{
    backend_array few[PORT_MAX];
    int64_t rows = -1;
    for (size_t i = 0; i < e->sig.input_count; i++) {
        few[i] = inputs[i];
        if (e->sig.inputs[i].shape[0] >= 0 || inputs[i].rank == 0)
            continue;
        rows = inputs[i].shape[0];
        if (rows > e->ranges[i].max[0])
            few[i].shape[0] = e->ranges[i].max[0];
    }
    dpi_status status = aoti_check_inputs(e, few, error);
    if (!status)
        status = shapes_measure(&e->measured, &e->sig, try_wanted, e, few, outputs, error);
    for (size_t o = 0; o < e->sig.output_count && !status && rows >= 0; o++)
        if (outputs[o].rank > 0 && e->sig.outputs[o].shape[0] < 0)
            outputs[o].shape[0] = rows;
    return status;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

/* The dynamic linker takes two libraries of one path for one, also when the first has been closed, and numbers of
 * descriptors come again: the path is written differently each time, by the bits of a counter ("/" or "/." between two
 * parts). */
static void library_path(int fd, char *path, size_t size)
{
    static _Atomic unsigned count;
    unsigned bits = atomic_fetch_add_explicit(&count, 1, memory_order_relaxed); /* a number of its own, no order */
    size_t used = (size_t)snprintf(path, size, "/proc/self");
    for (; bits; bits >>= 1)
        used += (size_t)snprintf(path + used, size - used, bits & 1 ? "/." : "/");
    snprintf(path + used, size - used, "/fd/%d", fd);
}

static dpi_status load_model(backend_engine *e, dpi_error *error)
{
    const char *package = e->package.name; /* `name` is the macro's */
    char path[128], device[32];
    library_path(e->package.library_fd, path, sizeof path);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL), *address;
    if (!handle)
        return error_set(error, DPI_E_MODEL,
                         "the model's library in %s does not load with PyTorch %s (%s); compile it with this release",
                         e->package.name, e->library->common.version, dlerror());
#define X(name, symbol, result, parameters)                                                                            \
    if (!(address = library_symbol(handle, symbol, package, error)))                                                   \
        return DPI_E_MODEL;                                                                                            \
    memcpy(&e->model.name, &address, sizeof address);
    AOTI_MODEL_FUNCTIONS(X)
#undef X
    snprintf(device, sizeof device, e->pipe ? "cuda:%d" : "cpu", e->library->gpu.index);
    if (e->model.create(&e->container, 1, device, e->package.kernels.path) != 0) {
        e->container = NULL;
        return error_set(error, DPI_E_MODEL, "%s: PyTorch %s cannot set up %s; its words are on standard error",
                         e->device, e->library->common.version, e->package.name);
    }
    return DPI_OK;
}

static dpi_status read_inputs(backend_engine *e, const backend_open_options *o, dpi_error *error)
{
    const char *given = backend_option(o, "inputs"), *text = given ? given : e->package.inputs;
    size_t count = 0;
    if (!text)
        return error_set(
            error, DPI_E_MODEL,
            "%s does not say what its inputs are; write it by dpinfer.compile, or describe them: --backend-option "
            "\"inputs=x float32 1:256,3,224,224\"",
            e->package.name);
    dpi_status status = aoti_inputs_parse(text, given ? "the option inputs" : e->package.name, e->sig.inputs, e->ranges,
                                          &e->sig.input_count, error);
    if (status && given && error)
        return error->status = DPI_E_ARGUMENT;
    if (!status && (e->model.input_count(e->container, &count) != 0 || count != e->sig.input_count))
        status = error_set(error, DPI_E_MODEL, "%s takes %zu inputs, and %zu are described", e->package.name, count,
                           e->sig.input_count);
    for (size_t i = 0; i < e->sig.input_count && !status; i++)
        if (e->ranges[i].min[0] > 1 && e->ranges[i].min[0] != e->ranges[i].max[0])
            status = error_set(error, DPI_E_MODEL, "%s takes %lld rows or more; compile it for 1 and more",
                               e->package.name, (long long)e->ranges[i].min[0]);
    return status;
}

/* Runs the model at its least shapes (step 0) and with all that is free one larger (step 1). */
static dpi_status try_small(backend_engine *e, int step, backend_array *outputs, dpi_dtype *dtypes, dpi_error *error)
{
    backend_array in[PORT_MAX] = {{0}};
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < e->sig.input_count && !status; i++) {
        const port *p = &e->sig.inputs[i];
        size_t bytes = 0;
        in[i].rank = p->rank;
        for (int k = 0; k < p->rank; k++)
            in[i].shape[k] = e->ranges[i].min[k] + (step && e->ranges[i].max[k] > e->ranges[i].min[k]);
        in[i].data = shape_bytes(p->dtype, in[i].shape, p->rank, &bytes) ? calloc(1, bytes + 1) : NULL;
        if (!in[i].data)
            status = error_set(error, DPI_E_SYSTEM, "out of memory for a trial of %s", e->package.name);
    }
    if (!status)
        status = try_model(e, in, outputs, dtypes, error);
    for (size_t i = 0; i < e->sig.input_count; i++)
        free(in[i].data);
    return status;
}

/* Output o of the model, as two runs found it, into a port: an axis that moved is free. */
static dpi_status name_output(const backend_engine *e, size_t o, const backend_array found[2], dpi_dtype dtype, port *p,
                              dpi_error *error)
{
    const char *own = NULL, *noted = e->package.outputs;
    for (size_t i = 0; i < o && noted; i++)
        noted = strchr(noted, ';') ? strchr(noted, ';') + 1 : NULL;
    if (!noted && e->model.output_name(e->container, o, &own) != 0)
        own = "output";
    *p = (port){.dtype = dtype, .rank = found[0].rank};
    snprintf(p->name, sizeof p->name, "%.*s", noted ? (int)strcspn(noted, ";") : 255, noted ? noted : own);
    if (dtype == DPI_DTYPE_NONE)
        return error_set(error, DPI_E_MODEL, "the output %s has a dtype that dpinfer does not move", p->name);
    if (found[0].rank != found[1].rank)
        return error_set(error, DPI_E_MODEL, "the number of axes of the output %s depends on data", p->name);
    for (int k = 0; k < p->rank; k++)
        p->shape[k] = found[0].shape[k] == found[1].shape[k] ? found[0].shape[k] : -1;
    return DPI_OK;
}

static dpi_status read_outputs(backend_engine *e, const backend_open_options *o, dpi_error *error)
{
    backend_array found[2][PORT_MAX] = {{{0}}};
    dpi_dtype dtypes[PORT_MAX] = {DPI_DTYPE_NONE};
    if (e->model.output_count(e->container, &e->output_count) != 0 || e->output_count > PORT_MAX)
        return error_set(error, DPI_E_MODEL, "%s has too many outputs; at most %d", e->package.name, PORT_MAX);
    port *all = calloc(PORT_MAX, sizeof *all);
    dpi_status status = all ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    for (int step = 0; step < 2 && !status; step++)
        status = try_small(e, step, found[step], dtypes, error);
    for (size_t i = 0; i < e->output_count && !status; i++)
        status = name_output(e, i, (backend_array[]){found[0][i], found[1][i]}, dtypes[i], &all[i], error);
    size_t wanted = o->output_names ? o->output_count : e->output_count;
    for (size_t i = 0; i < wanted && !status; i++) {
        int at = o->output_names ? port_find(all, e->output_count, o->output_names[i]) : (int)i;
        if (at < 0 || i >= PORT_MAX) {
            status = error_set(error, DPI_E_MODEL, "the model has no output \"%s\"", o->output_names[i]);
            break;
        }
        e->sig.outputs[i] = all[at];
        e->wanted[i] = (size_t)at;
        e->sig.output_count = i + 1;
    }
    free(all);
    return status;
}

static void aoti_close(backend_engine *e)
{
    if (e->pipe)
        cuda_pipe_enter(e->pipe, NULL);
    if (e->container)
        e->model.destroy(e->container);
    cuda_pipe_close(e->pipe);
    shapes_free(&e->measured);
    aoti_package_close(&e->package);
    free(e);
}

static void aoti_leave(backend_engine *e) { kernel_folder_remove(&e->package.kernels); }

/* A package computes in the precision that it was compiled in; only that of its ports can be asked for. */
static dpi_status check_precision(const backend_engine *e, const backend_open_options *o, dpi_error *error)
{
    static const dpi_dtype dtypes[] = {
        [DPI_PRECISION_FP32] = DPI_F32, [DPI_PRECISION_FP16] = DPI_F16, [DPI_PRECISION_BF16] = DPI_BF16};
    if (o->precision == DPI_PRECISION_MODEL)
        return DPI_OK;
    dpi_dtype asked = o->precision == DPI_PRECISION_TF32 ? DPI_DTYPE_NONE : dtypes[o->precision];
    for (size_t i = 0; i < e->sig.input_count + e->sig.output_count; i++) {
        const port *p = i < e->sig.input_count ? &e->sig.inputs[i] : &e->sig.outputs[i - e->sig.input_count];
        if (!asked || (dtype_is_float(p->dtype) && p->dtype != asked))
            return error_set(
                error, DPI_E_DEVICE,
                "%s: %s is compiled already, in the precision that it has (%s is %s); leave --precision out, or "
                "compile it in another: dpinfer.compile(..., precision=...)",
                e->device, e->package.name, p->name, dpi_dtype_name(p->dtype));
    }
    return DPI_OK;
}

static dpi_status open_engine(backend_engine *e, const backend_open_options *o, dpi_error *error)
{
    bool gpu = strcmp(o->device->kind, "cuda") == 0;
    dpi_status status = aoti_package_open(o->model, o->device, &e->package, error);
    if (!status && gpu)
        status = aoti_cuda_open(e, o, error);
    if (!status && !gpu && e->library->set_threads && !o->device->in_caller)
        e->library->set_threads((int)o->device->threads);
    if (!status)
        status = aoti_package_unpack(&e->package, error);
    if (!status)
        status = load_model(e, error);
    if (!status)
        status = read_inputs(e, o, error);
    if (!status)
        status = read_outputs(e, o, error);
    return status ? status : check_precision(e, o, error);
}

static dpi_status aoti_open(backend_library *library, const backend_open_options *o, backend_engine **out,
                            dpi_error *error)
{
    dpi_status status = backend_check_options(o, "aoti", "inputs depth", error);
    if (status)
        return status;
    backend_engine *e = calloc(1, sizeof *e);
    if (!e)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    e->library = library;
    e->depth = 1;
    memcpy(e->device, o->device->name, sizeof e->device);
    status = open_engine(e, o, error);
    if (status) {
        aoti_close(e);
        return status;
    }
    *out = e;
    return DPI_OK;
}

static dpi_status aoti_describe(const backend_engine *e, signature *sig, dpi_error *error)
{
    (void)error;
    *sig = e->sig;
    return DPI_OK;
}

static size_t aoti_max_rows(const backend_engine *e)
{
    size_t most = 0;
    for (size_t i = 0; i < e->sig.input_count; i++)
        if (e->sig.inputs[i].shape[0] < 0 && (!most || (size_t)e->ranges[i].max[0] < most))
            most = (size_t)e->ranges[i].max[0];
    return most;
}

/* On the CPU rows do not travel: the engine alone is the engine. */
static dpi_status aoti_compute_alone(backend_engine *e, const backend_call *call, size_t times, uint64_t *ns,
                                     dpi_error *error)
{
    if (e->pipe)
        return aoti_cuda_compute_alone(e, call, times, ns, error);
    backend_timing timing = {0};
    int64_t began = clock_now_ns();
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < times && !status; i++)
        status = aoti_run(e, call, &timing, error);
    *ns = status ? 0 : (uint64_t)(clock_now_ns() - began);
    return status;
}

static int aoti_depth(const backend_engine *e) { return e->depth; }

static void aoti_register(backend_engine *e, void *memory, size_t bytes, bool writable)
{
    if (e->pipe && !cuda_pipe_enter(e->pipe, NULL))
        cuda_pipe_register(e->pipe, memory, bytes, writable);
}

static void aoti_unregister(backend_engine *e, void *memory)
{
    if (e->pipe)
        cuda_pipe_unregister(e->pipe, memory);
}

const backend backend_aoti = {
    .name = "aoti",
    .formats = "pt2",
    .compiled_formats = "pt2",
    .run_options = "depth",
    .device_kinds = "cpu cuda",
    .threading = BACKEND_ONE_CPU_DEVICE, /* PyTorch's threads are the process's */
    .load = aoti_load,
    .unload = aoti_unload,
    .library_info = library_info,
    .list_devices = aoti_list_devices,
    .open = aoti_open,
    .close = aoti_close,
    .leave = aoti_leave,
    .describe = aoti_describe,
    .infer_shapes = aoti_infer_shapes,
    .max_rows = aoti_max_rows,
    .depth = aoti_depth,
    .run = aoti_run,
    .enqueue = aoti_cuda_enqueue,
    .wait = aoti_cuda_wait,
    .compute_alone = aoti_compute_alone,
    .memory_register = aoti_register,
    .memory_unregister = aoti_unregister,
};
