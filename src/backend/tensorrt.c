/*
 * TensorRT, for NVIDIA GPUs. tensorrt_shim.cc speaks C++ with the library (one shared object per TensorRT major),
 * tensorrt_library.c finds it, cuda_pipe.c moves the rows, and this file is the backend between them: it decides how a
 * network is built, and drives the engine.
 */
#include "backend/backend.h"
#include "backend/cuda_pipe.h"
#include "backend/onnx_opset.h"
#include "backend/tensorrt_library.h"
#include "backend/tensorrt_options.h"
#include "base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define IO_MAX            (2 * PORT_MAX)
#define PLAN_MAX_BYTES    ((size_t)64 << 30)
#define NEWEST_OPSET_OF_8 17

typedef struct launch { /* a slot's captured computation */
    CUgraphExec graph;
    int64_t shapes[PORT_MAX][DPI_MAX_RANK]; /* of the inputs it was captured for */
    bool warm;                              /* these shapes have run once, as a capture wants */
} launch;

struct backend_engine {
    backend_library *library;
    char device[192];
    trt_engine *trt;
    cuda_pipe *pipe;
    signature sig;
    size_t extra_count; /* outputs that nobody wants, of an engine file: computed, never copied */
    char extra[PORT_MAX][PORT_NAME_SIZE];
    int64_t shapes[PORT_MAX][DPI_MAX_RANK]; /* of the inputs, as the context has them now */
    int depth;
    bool graphs;
    launch launches[BACKEND_MAX_DEPTH];
    void *plan; /* the compiled engine, for export: until it has been exported; its hash stays */
    size_t plan_bytes;
    hash128 plan_hash;
};

/* ---- devices ---------------------------------------------------------------------------------------------------- */

static void describe_gpu(const trt_shim *shim, const cuda_api *cuda, const cuda_facts *f, backend_device_info *info)
{
    char driver[96], numa[32] = "";
    cuda_driver_text(cuda, driver, sizeof driver);
    if (f->numa >= 0)
        snprintf(numa, sizeof numa, ", NUMA node %d", f->numa);
    snprintf(info->description, sizeof info->description, "%.60s, compute %d.%d, driver %s%s%s%s", f->name, f->major,
             f->minor, driver, f->link[0] ? ", " : "", f->link, numa);
    bool ampere = f->major >= 8;
    snprintf(info->precisions, sizeof info->precisions, "fp32%s%s%s", ampere ? " tf32" : "",
             shim->typed_only ? "" : " fp16", shim->has_bf16 && !shim->typed_only && ampere ? " bf16" : "");
    info->memory_bytes = f->memory_bytes;
}

static dpi_status rt_list_devices(backend_library *library, backend_device_info *list, size_t capacity, size_t *count,
                                  dpi_error *error)
{
    const cuda_api *cuda;
    int gpus = 0;
    *count = 0;
    dpi_status status = cuda_load(&cuda, error);
    if (!status)
        status = cuda_check(cuda, cuda->cuDeviceGetCount(&gpus), "cuda", "counting the GPUs", error);
    for (int i = 0; !status && i < gpus; i++, ++*count) {
        cuda_facts facts;
        if ((size_t)i >= capacity)
            continue;
        status = cuda_read_facts(cuda, i, &facts, error);
        if (status)
            break;
        list[i] = (backend_device_info){0};
        snprintf(list[i].name, sizeof list[i].name, "cuda:%d", i);
        describe_gpu(library->shim, cuda, &facts, &list[i]);
    }
    return status;
}

static dpi_status rt_hash_device(backend_library *library, const backend_device *device, hash_state *state,
                                 dpi_error *error)
{
    cuda_facts facts;
    char driver[96];
    dpi_status status = cuda_choose(&library->gpu, device->name, !device->in_caller, error);
    if (!status)
        status = cuda_read_facts(library->gpu.api, library->gpu.index, &facts, error);
    if (status)
        return status;
    cuda_driver_text(library->gpu.api, driver, sizeof driver);
    hash_add_text(state, facts.name);
    hash_add_u64(state, (uint64_t)facts.major << 32 | (uint64_t)facts.minor);
    hash_add_u64(state, (uint64_t)facts.multiprocessors);
    hash_add_u64(state, facts.memory_bytes);
    hash_add_text(state, driver);
    return DPI_OK;
}

/* ---- building --------------------------------------------------------------------------------------------------- */

static const char *model_name(const backend_model *model) { return model->path ? model->path : "the model in memory"; }

/* The parser of version 8 reads newer operators as if they were older: ReduceMean, whose axes are an input from 18 on,
 * over all axes. */
static dpi_status check_opset(const backend_library *library, const backend_open_options *o, dpi_error *error)
{
    int64_t opset = onnx_opset(o->model);
    if (atoi(library->common.version) > 8 || opset <= NEWEST_OPSET_OF_8)
        return DPI_OK;
    return error_set(
        error, DPI_E_MODEL,
        "TensorRT %s knows the operators of ONNX up to version %d, and %s uses %lld; export it with opset %d, "
        "or install TensorRT 10",
        library->common.version, NEWEST_OPSET_OF_8, model_name(o->model), (long long)opset, NEWEST_OPSET_OF_8);
}

/* Whether the graph's types are its precision (typed), or flags allow others. */
static dpi_status choose_typing(const backend_library *library, const backend_open_options *o, bool *typed,
                                dpi_error *error)
{
    const trt_shim *shim = library->shim;
    dpi_precision p = o->precision;
    *typed = shim->typed_only || (shim->has_typed && p == DPI_PRECISION_MODEL);
    if (p == DPI_PRECISION_BF16 && !shim->has_bf16)
        return error_set(error, DPI_E_DEVICE, "%s: TensorRT %s has no bf16; say --precision fp16 or fp32",
                         o->device->name, library->common.version);
    if (shim->typed_only && (p == DPI_PRECISION_FP16 || p == DPI_PRECISION_BF16))
        return error_set(error, DPI_E_DEVICE,
                         "%s: TensorRT %s takes the precision from the graph; convert the model to half precision and "
                         "leave --precision out",
                         o->device->name, library->common.version);
    return DPI_OK;
}

static dpi_status choose_flags(const backend_open_options *o, trt_facts facts, bool typed, unsigned *flags,
                               dpi_error *error)
{
    bool lower = facts.has_half || facts.has_bf16;
    if ((o->precision == DPI_PRECISION_FP32 || o->precision == DPI_PRECISION_TF32) && lower)
        return error_set(error, DPI_E_DEVICE,
                         "%s: the graph of %s computes in half precision; leave --precision out, or export it as fp32",
                         o->device->name, model_name(o->model));
    *flags = o->precision == DPI_PRECISION_TF32   ? TRT_TF32
             : o->precision == DPI_PRECISION_FP16 ? TRT_FP16
             : o->precision == DPI_PRECISION_BF16 ? TRT_BF16
                                                  : 0;
    if (!typed && facts.has_quantized)
        *flags |= TRT_INT8;
    if (!typed && o->precision == DPI_PRECISION_MODEL && facts.has_half)
        *flags |= TRT_FP16 | TRT_OBEY;
    return DPI_OK;
}

/* The ranges of all inputs with free axes: rows from 1 to max_rows, other axes as shape.NAME says. */
static dpi_status make_profiles(const backend_open_options *o, const trt_port *ports, size_t count,
                                const tensorrt_options *given, trt_profile *profiles, size_t *profile_count,
                                dpi_error *error)
{
    *profile_count = 0;
    for (size_t i = 0; i < count; i++) {
        bool free_axis = false;
        for (int k = 0; k < ports[i].rank; k++)
            free_axis |= ports[i].shape[k] < 0;
        if (!ports[i].is_input || !free_axis)
            continue;
        trt_profile *p = &profiles[(*profile_count)++];
        *p = (trt_profile){.name = ports[i].name, .rank = ports[i].rank};
        dpi_status status = tensorrt_profile(given, &ports[i], o->max_rows, p, error);
        if (status)
            return status;
    }
    return DPI_OK;
}

static dpi_status keep_plan(backend_engine *e, const void *data, size_t bytes, dpi_error *error)
{
    e->plan = malloc(bytes);
    if (!e->plan)
        return error_set(error, DPI_E_SYSTEM, "out of memory for an engine of %zu bytes", bytes);
    memcpy(e->plan, data, bytes);
    e->plan_bytes = bytes;
    return DPI_OK;
}

static dpi_status build_network(backend_engine *e, const backend_open_options *o, const tensorrt_options *given,
                                trt_network *network, bool typed, dpi_error *error)
{
    backend_library *library = e->library;
    const trt_shim *shim = library->shim;
    trt_port *ports = calloc(IO_MAX, sizeof *ports);
    trt_profile *profiles = calloc(PORT_MAX, sizeof *profiles);
    trt_build build = {.profiles = profiles, .workspace_bytes = given->workspace_bytes, .level = given->level};
    trt_blob plan = {0}, timing = {0};
    void *timing_before = NULL;
    dpi_status status = ports && profiles ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    size_t count = status ? 0 : shim->network_ports(network, ports, IO_MAX);
    if (count > IO_MAX)
        status = error_set(error, DPI_E_MODEL, "%s has more than %d inputs and outputs", model_name(o->model), IO_MAX);
    if (!status && (!count || ports[count - 1].is_input))
        status =
            error_set(error, DPI_E_MODEL, "%s: the model has no outputs; is the file whole?", model_name(o->model));
    if (!status && o->output_count && !shim->network_keep(network, o->output_names, o->output_count))
        status = error_set(error, DPI_E_MODEL, "%s lacks one of the outputs that were asked for", model_name(o->model));
    if (!status)
        status = make_profiles(o, ports, count, given, profiles, &build.profile_count, error);
    if (!status)
        status = choose_flags(o, shim->network_facts(network), typed, &build.flags, error);
    if (!status)
        status = tensorrt_timing_read(given, &timing_before, &build.timing_bytes, error);
    build.timing = timing_before;
    if (!status && !shim->network_build(network, &build, &plan, &timing))
        status = tensorrt_refuse(library, error, DPI_E_ENGINE, "could not compile", model_name(o->model), e->device);
    if (!status)
        status = keep_plan(e, plan.data, plan.bytes, error);
    dpi_error problem;
    if (!status && tensorrt_timing_write(given, timing.data, timing.bytes, &problem))
        log_warning(library->common.log, "%s", problem.message);
    if (plan.owner)
        shim->blob_free(&plan);
    if (timing.owner)
        shim->blob_free(&timing);
    free(timing_before);
    free(profiles);
    free(ports);
    return status;
}

static dpi_status compile(backend_engine *e, const backend_open_options *o, const tensorrt_options *given,
                          dpi_error *error)
{
    backend_library *library = e->library;
    bool typed;
    dpi_status status = check_opset(library, o, error);
    if (!status)
        status = choose_typing(library, o, &typed, error);
    if (status)
        return status;
    library->alive = o->alive;
    library->alive_context = o->alive_context;
    trt_network *network =
        library->shim->network_parse(library->trt, o->model->path, o->model->data, o->model->bytes, typed);
    status = network ? build_network(e, o, given, network, typed, error)
                     : tensorrt_refuse(library, error, DPI_E_MODEL, "does not take", model_name(o->model), e->device);
    if (network)
        library->shim->network_free(network);
    library->alive = NULL;
    return status;
}

static dpi_status read_stored(backend_engine *e, int fd, dpi_error *error)
{
    struct stat info;
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (at < 0 || fstat(fd, &info) != 0 || info.st_size <= at)
        return error_set(error, DPI_E_MODEL, "the stored engine is empty");
    e->plan_bytes = (size_t)(info.st_size - at);
    e->plan = malloc(e->plan_bytes);
    if (!e->plan)
        return error_set(error, DPI_E_SYSTEM, "out of memory for an engine of %zu bytes", e->plan_bytes);
    return file_read_at(fd, e->plan, e->plan_bytes, (uint64_t)at, "the stored engine", error);
}

static bool is_plan(const backend_model *model) { return backend_lists("engine plan trt", model->format); }

/* The compiled engine's bytes: from the cache, from the user's file, or built. */
static dpi_status get_plan(backend_engine *e, const backend_open_options *o, const tensorrt_options *given,
                           dpi_error *error)
{
    if (o->import_fd >= 0)
        return read_stored(e, o->import_fd, error);
    if (!is_plan(o->model))
        return compile(e, o, given, error);
    if (o->precision != DPI_PRECISION_MODEL)
        return error_set(error, DPI_E_ARGUMENT, "%s is compiled already; its precision cannot be chosen",
                         model_name(o->model));
    if (!o->model->path)
        return keep_plan(e, o->model->data, o->model->bytes, error);
    dpi_status status = file_read(o->model->path, PLAN_MAX_BYTES, &e->plan, &e->plan_bytes, error);
    return status == DPI_E_DATA && error ? (error->status = DPI_E_MODEL) : status;
}

/* ---- the engine's ports ----------------------------------------------------------------------------------------- */

static dpi_status take_port(backend_engine *e, const trt_port *from, port *ports, size_t *count, dpi_error *error)
{
    const char *side = from->is_input ? "input" : "output";
    if (*count == PORT_MAX)
        return error_set(error, DPI_E_MODEL, "the model has more than %d %ss", PORT_MAX, side);
    if (from->dtype == DPI_DTYPE_NONE)
        return error_set(error, DPI_E_MODEL, "the %s %s has a dtype that dpinfer does not know", side, from->name);
    if (from->is_shape)
        return error_set(error, DPI_E_MODEL, "the %s %s holds shapes, not rows; such models are not taken on %s", side,
                         from->name, e->device);
    if (from->rank < 0)
        return error_set(error, DPI_E_MODEL, "the %s %s has no fixed number of axes", side, from->name);
    port *p = &ports[(*count)++];
    *p = (port){.dtype = from->dtype, .rank = from->rank};
    snprintf(p->name, sizeof p->name, "%s", from->name);
    memcpy(p->shape, from->shape, sizeof p->shape);
    return DPI_OK;
}

static dpi_status read_ports(backend_engine *e, const backend_open_options *o, dpi_error *error)
{
    trt_port *ports = calloc(IO_MAX, sizeof *ports);
    signature *all = calloc(1, sizeof *all);
    dpi_status status = ports && all ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    size_t count = status ? 0 : e->library->shim->engine_ports(e->trt, ports, IO_MAX);
    if (count > IO_MAX)
        status = error_set(error, DPI_E_MODEL, "the model has more than %d inputs and outputs", IO_MAX);
    for (size_t i = 0; i < count && !status; i++)
        status = ports[i].is_input ? take_port(e, &ports[i], e->sig.inputs, &e->sig.input_count, error)
                                   : take_port(e, &ports[i], all->outputs, &all->output_count, error);
    if (!status && !o->output_count) {
        memcpy(e->sig.outputs, all->outputs, sizeof all->outputs);
        e->sig.output_count = all->output_count;
    }
    for (size_t i = 0; i < o->output_count && !status; i++) {
        int at = port_find(all->outputs, all->output_count, o->output_names[i]);
        if (at < 0 || i >= PORT_MAX)
            status = error_set(error, DPI_E_MODEL, "the model has no output \"%s\"", o->output_names[i]);
        else
            e->sig.outputs[e->sig.output_count++] = all->outputs[at];
    }
    for (size_t i = 0; !status && i < all->output_count; i++)
        if (port_find(e->sig.outputs, e->sig.output_count, all->outputs[i].name) < 0)
            memcpy(e->extra[e->extra_count++], all->outputs[i].name, PORT_NAME_SIZE);
    free(all);
    free(ports);
    return status;
}

/* ---- shapes and buffers ----------------------------------------------------------------------------------------- */

static dpi_status set_shapes(backend_engine *e, const backend_array *inputs, dpi_error *error)
{
    for (size_t i = 0; i < e->sig.input_count; i++) {
        const port *p = &e->sig.inputs[i];
        size_t bytes = (size_t)p->rank * sizeof p->shape[0];
        if (memcmp(e->shapes[i], inputs[i].shape, bytes) == 0)
            continue;
        char got[SHAPE_TEXT_SIZE], low[SHAPE_TEXT_SIZE], high[SHAPE_TEXT_SIZE];
        int64_t min[DPI_MAX_RANK] = {0}, max[DPI_MAX_RANK] = {0};
        if (port_accepts_shape(p, inputs[i].shape, inputs[i].rank) &&
            e->library->shim->set_shape(e->trt, p->name, inputs[i].shape, p->rank)) {
            memcpy(e->shapes[i], inputs[i].shape, bytes);
            continue;
        }
        e->library->shim->last_errors(e->library->trt, got, sizeof got); /* ours says it better */
        e->library->shim->engine_profile(e->trt, p->name, min, max);
        return error_set(error, DPI_E_DATA, "the input %s takes shapes from %s to %s and got %s", p->name,
                         shape_text(min, p->rank, low), shape_text(max, p->rank, high),
                         shape_text(inputs[i].shape, inputs[i].rank, got));
    }
    return DPI_OK;
}

static dpi_status rt_infer_shapes(backend_engine *e, const backend_array *inputs, backend_array *outputs,
                                  dpi_error *error)
{
    dpi_status status = set_shapes(e, inputs, error);
    for (size_t o = 0; o < e->sig.output_count && !status; o++)
        if (!e->library->shim->get_shape(e->trt, e->sig.outputs[o].name, outputs[o].shape, &outputs[o].rank))
            status = error_set(error, DPI_E_MODEL, "the size of the output %s depends on data", e->sig.outputs[o].name);
    return status;
}

/* Device memory of one output for the present shapes. */
static dpi_status output_buffer(backend_engine *e, int slot, size_t array, const char *name, dpi_dtype dtype,
                                CUdeviceptr *buffer, dpi_error *error)
{
    int64_t shape[DPI_MAX_RANK];
    int rank;
    size_t bytes;
    if (!e->library->shim->get_shape(e->trt, name, shape, &rank) || !shape_bytes(dtype, shape, rank, &bytes))
        return error_set(error, DPI_E_MODEL, "the size of the output %s depends on data", name);
    return cuda_pipe_buffer(e->pipe, slot, array, bytes, buffer, error);
}

static size_t output_array(const backend_engine *e, size_t o) { return e->sig.input_count + o; }

/* Buffers for all slots at the largest shapes, so that nothing is allocated later. */
static dpi_status reserve(backend_engine *e, dpi_error *error)
{
    backend_array inputs[PORT_MAX] = {0};
    for (size_t i = 0; i < e->sig.input_count; i++) {
        const port *p = &e->sig.inputs[i];
        int64_t min[DPI_MAX_RANK];
        inputs[i] = (backend_array){.rank = p->rank};
        memcpy(inputs[i].shape, p->shape, sizeof p->shape);
        for (int k = 0; k < p->rank; k++)
            if (p->shape[k] < 0) {
                e->library->shim->engine_profile(e->trt, p->name, min, inputs[i].shape);
                break;
            }
    }
    dpi_status status = set_shapes(e, inputs, error);
    for (int slot = 0; slot < e->depth && !status; slot++) {
        CUdeviceptr buffer;
        for (size_t i = 0; i < e->sig.input_count && !status; i++) {
            size_t bytes;
            if (!shape_bytes(e->sig.inputs[i].dtype, inputs[i].shape, inputs[i].rank, &bytes))
                return error_set(error, DPI_E_MODEL, "the input %s has no largest shape", e->sig.inputs[i].name);
            status = cuda_pipe_buffer(e->pipe, slot, i, bytes, &buffer, error);
        }
        for (size_t o = 0; o < e->sig.output_count && !status; o++)
            status = output_buffer(e, slot, output_array(e, o), e->sig.outputs[o].name, e->sig.outputs[o].dtype,
                                   &buffer, error);
    }
    return status;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static void rt_close(backend_engine *e)
{
    if (!e)
        return;
    if (e->pipe)
        cuda_pipe_enter(e->pipe, NULL);
    for (int i = 0; i < BACKEND_MAX_DEPTH; i++)
        if (e->launches[i].graph)
            e->library->gpu.api->cuGraphExecDestroy(e->launches[i].graph);
    if (e->trt)
        e->library->shim->engine_free(e->trt);
    cuda_pipe_close(e->pipe);
    free(e->plan);
    free(e);
}

static dpi_status open_pipe(backend_engine *e, const backend_open_options *o, const tensorrt_options *given,
                            dpi_error *error)
{
    cuda_pipe_options options = {.api = e->library->gpu.api,
                                 .device = e->device,
                                 .index = e->library->gpu.index,
                                 .slots = e->depth,
                                 .copy_threads = given->copy_threads,
                                 .spin = given->spin,
                                 .set_waiting = !o->device->in_caller,
                                 .log = o->log};
    return cuda_pipe_open(&options, &e->pipe, error);
}

static dpi_status load_plan(backend_engine *e, const backend_open_options *o, dpi_error *error)
{
    const trt_shim *shim = e->library->shim;
    e->plan_hash = hash_of(e->plan, e->plan_bytes);
    e->trt = shim->engine_load(e->library->trt, e->plan, e->plan_bytes);
    if (!e->trt)
        return tensorrt_refuse(e->library, error, DPI_E_MODEL, "does not load the engine of", model_name(o->model),
                               e->device);
    char old[16];
    shim->last_errors(e->library->trt, old, sizeof old); /* tactics that were tried and failed while building */
    log_info(o->log, "%s: the engine takes %llu MiB of GPU memory beside its weights", e->device,
             (unsigned long long)(shim->engine_memory(e->trt) >> 20));
    return DPI_OK;
}

static dpi_status rt_open(backend_library *library, const backend_open_options *o, backend_engine **out,
                          dpi_error *error)
{
    tensorrt_options given;
    dpi_status status = tensorrt_options_read(o, &given, error);
    if (!status)
        status = cuda_choose(&library->gpu, o->device->name, !o->device->in_caller, error);
    if (status)
        return status;
    backend_engine *e = calloc(1, sizeof *e);
    if (!e)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    e->library = library;
    e->depth = given.depth;
    e->graphs = given.graphs;
    memcpy(e->device, o->device->name, sizeof e->device);
    status = open_pipe(e, o, &given, error);
    if (!status)
        status = get_plan(e, o, &given, error);
    if (!status)
        status = load_plan(e, o, error);
    if (!status)
        status = read_ports(e, o, error);
    if (!status)
        status = reserve(e, error);
    if (status) {
        rt_close(e);
        return status;
    }
    *out = e;
    return DPI_OK;
}

static dpi_status rt_describe(const backend_engine *e, signature *sig, dpi_error *error)
{
    (void)error;
    *sig = e->sig;
    return DPI_OK;
}

static void rt_fingerprint(const backend_engine *e, hash_state *state)
{
    /* Two builds of one model may choose other kernels: the plan is what decides the bits. */
    hash_add_u64(state, e->plan_hash.low);
    hash_add_u64(state, e->plan_hash.high);
}

static dpi_status rt_export(backend_engine *e, int fd, dpi_error *error)
{
    off_t at = lseek(fd, 0, SEEK_CUR);
    return file_write_at(fd, e->plan, e->plan_bytes, at < 0 ? 0 : (uint64_t)at, "the engine cache", error);
}

static void rt_ready(backend_engine *e)
{
    free(e->plan); /* in the cache, or not wanted there */
    e->plan = NULL;
}

/* An engine file has the range of rows that it was compiled for. */
static size_t rt_max_rows(const backend_engine *e)
{
    size_t most = 0;
    for (size_t i = 0; i < e->sig.input_count; i++) {
        int64_t min[DPI_MAX_RANK], max[DPI_MAX_RANK];
        const port *p = &e->sig.inputs[i];
        if (p->rank > 0 && p->shape[0] < 0 && e->library->shim->engine_profile(e->trt, p->name, min, max) &&
            (!most || (size_t)max[0] < most))
            most = (size_t)max[0];
    }
    return most;
}

static int rt_depth(const backend_engine *e) { return e->depth; }

/* ---- running ---------------------------------------------------------------------------------------------------- */

static dpi_status compute(backend_engine *e, CUstream stream, dpi_error *error)
{
    return e->library->shim->enqueue(e->trt, stream)
               ? DPI_OK
               : tensorrt_refuse(e->library, error, DPI_E_ENGINE, "could not compute", "a slice", e->device);
}

/* Captures the computation as a CUDA graph and starts it. */
static dpi_status capture(backend_engine *e, launch *l, CUstream stream, dpi_error *error)
{
    const cuda_api *cuda = e->library->gpu.api;
    CUgraph graph = NULL;
    CUresult result = cuda->cuStreamBeginCapture(stream, CU_STREAM_CAPTURE_MODE_RELAXED_);
    dpi_status status = cuda_check(cuda, result, e->device, "capturing a CUDA graph", error);
    if (status)
        return status;
    status = compute(e, stream, error);
    result = cuda->cuStreamEndCapture(stream, &graph);
    if (!status)
        status = cuda_check(cuda, result, e->device, "capturing a CUDA graph", error);
    if (!status)
        status =
            cuda_check(cuda, cuda->cuGraphInstantiate(&l->graph, graph, 0), e->device, "making a CUDA graph", error);
    if (graph)
        cuda->cuGraphDestroy(graph);
    return status ? status
                  : cuda_check(cuda, cuda->cuGraphLaunch(l->graph, stream), e->device, "starting a CUDA graph", error);
}

/* The computation, by a graph where they are wanted: shapes must run once before they can be captured. */
static dpi_status start_compute(backend_engine *e, launch *l, const backend_call *call, CUstream stream,
                                dpi_error *error)
{
    const cuda_api *cuda = e->library->gpu.api;
    if (!e->graphs)
        return compute(e, stream, error);
    bool same = true;
    for (size_t i = 0; i < e->sig.input_count; i++)
        same &= memcmp(l->shapes[i], call->inputs[i].shape, sizeof l->shapes[i]) == 0;
    if (same && l->graph)
        return cuda_check(cuda, cuda->cuGraphLaunch(l->graph, stream), e->device, "starting a CUDA graph", error);
    if (same && l->warm)
        return capture(e, l, stream, error);
    if (l->graph)
        cuda->cuGraphExecDestroy(l->graph);
    l->graph = NULL;
    for (size_t i = 0; i < e->sig.input_count; i++)
        memcpy(l->shapes[i], call->inputs[i].shape, sizeof l->shapes[i]);
    l->warm = true;
    return compute(e, stream, error);
}

static dpi_status set_address(backend_engine *e, const char *name, CUdeviceptr buffer, dpi_error *error)
{
    return e->library->shim->set_address(e->trt, name, (void *)(uintptr_t)buffer)
               ? DPI_OK
               : tensorrt_refuse(e->library, error, DPI_E_ENGINE, "does not take the memory of", name, e->device);
}

/* Shapes and addresses of a call. Buffers are at their largest already, unless a shape came that no profile knew. */
static dpi_status bind(backend_engine *e, int slot, const backend_call *call, dpi_error *error)
{
    CUdeviceptr buffer;
    dpi_status status = set_shapes(e, call->inputs, error);
    for (size_t i = 0; i < e->sig.input_count && !status; i++) {
        status = cuda_pipe_buffer(e->pipe, slot, i, 0, &buffer, error);
        if (!status)
            status = set_address(e, e->sig.inputs[i].name, buffer, error);
    }
    for (size_t o = 0; o < e->sig.output_count && !status; o++) {
        const port *p = &e->sig.outputs[o];
        status = output_buffer(e, slot, output_array(e, o), p->name, p->dtype, &buffer, error);
        if (!status)
            status = set_address(e, p->name, buffer, error);
    }
    for (size_t x = 0; x < e->extra_count && !status; x++) {
        size_t array = output_array(e, e->sig.output_count + x);
        status = output_buffer(e, slot, array, e->extra[x], DPI_F64, &buffer, error); /* the widest: never read */
        if (!status)
            status = set_address(e, e->extra[x], buffer, error);
    }
    return status;
}

static dpi_status rows_in(backend_engine *e, int slot, const backend_call *call, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < e->sig.input_count && !status; i++) {
        size_t bytes;
        if (!shape_bytes(e->sig.inputs[i].dtype, call->inputs[i].shape, call->inputs[i].rank, &bytes))
            return error_set(error, DPI_E_INTERNAL, "a call has no complete shape for %s", e->sig.inputs[i].name);
        status = cuda_pipe_in(e->pipe, slot, i, call->inputs[i].data, bytes, error);
    }
    return status;
}

static dpi_status rows_out(backend_engine *e, int slot, const backend_call *call, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t o = 0; o < e->sig.output_count && !status; o++) {
        size_t bytes = 0;
        const backend_array *a = &call->outputs[o];
        if (!shape_bytes(e->sig.outputs[o].dtype, a->shape, a->rank, &bytes))
            return error_set(error, DPI_E_INTERNAL, "a call has no complete shape for %s", e->sig.outputs[o].name);
        status = cuda_pipe_out(e->pipe, slot, output_array(e, o), a->data, bytes, error);
    }
    return status;
}

/* Rows in, and `times` computations of them. */
static dpi_status send(backend_engine *e, int slot, const backend_call *call, size_t times, dpi_error *error)
{
    CUstream stream;
    dpi_status status = cuda_pipe_enter(e->pipe, error);
    if (!status)
        status = rows_in(e, slot, call, error);
    if (!status)
        status = bind(e, slot, call, error);
    if (!status)
        status = cuda_pipe_compute(e->pipe, slot, &stream, error);
    for (size_t i = 0; i < times && !status; i++)
        status = start_compute(e, &e->launches[slot], call, stream, error);
    return status ? status : cuda_pipe_computed(e->pipe, slot, error);
}

static dpi_status rt_enqueue(backend_engine *e, int slot, const backend_call *call, dpi_error *error)
{
    dpi_status status = send(e, slot, call, 1, error);
    if (!status)
        status = rows_out(e, slot, call, error);
    if (!status)
        status = cuda_pipe_end(e->pipe, slot, error);
    if (status)
        cuda_pipe_abandon(e->pipe, slot);
    return status;
}

static dpi_status rt_wait(backend_engine *e, int slot, backend_timing *timing, dpi_error *error)
{
    return cuda_pipe_wait(e->pipe, slot, timing, error);
}

static dpi_status rt_run(backend_engine *e, const backend_call *call, backend_timing *timing, dpi_error *error)
{
    dpi_status status = rt_enqueue(e, 0, call, error);
    return status ? status : rt_wait(e, 0, timing, error);
}

static dpi_status rt_compute_alone(backend_engine *e, const backend_call *call, size_t times, uint64_t *ns,
                                   dpi_error *error)
{
    backend_timing timing = {0};
    *ns = 0;
    dpi_status status = send(e, 0, call, times, error);
    if (!status)
        status = cuda_pipe_end(e->pipe, 0, error);
    if (status)
        cuda_pipe_abandon(e->pipe, 0);
    else
        status = rt_wait(e, 0, &timing, error);
    *ns = timing.compute_ns;
    return status;
}

static void rt_register(backend_engine *e, void *memory, size_t bytes, bool writable)
{
    if (!cuda_pipe_enter(e->pipe, NULL))
        cuda_pipe_register(e->pipe, memory, bytes, writable);
}

static void rt_unregister(backend_engine *e, void *memory) { cuda_pipe_unregister(e->pipe, memory); }

const backend backend_tensorrt = {
    .name = "tensorrt",
    .formats = "onnx engine plan trt",
    .compiled_formats = "engine plan trt",
    .run_options = "timing_cache cuda_graphs wait depth copy_threads",
    .device_kinds = "cuda",
    .threading = BACKEND_ENGINES_INDEPENDENT,
    .single_flight = true,
    .load = tensorrt_load,
    .unload = tensorrt_unload,
    .library_info = library_info,
    .list_devices = rt_list_devices,
    .hash_device = rt_hash_device,
    .open = rt_open,
    .close = rt_close,
    .describe = rt_describe,
    .infer_shapes = rt_infer_shapes,
    .fingerprint = rt_fingerprint,
    .ready = rt_ready,
    .max_rows = rt_max_rows,
    .depth = rt_depth,
    .run = rt_run,
    .enqueue = rt_enqueue,
    .wait = rt_wait,
    .compute_alone = rt_compute_alone,
    .memory_register = rt_register,
    .memory_unregister = rt_unregister,
    .export_engine = rt_export,
};
