/* The GPU side of packages of AOTInductor: cuda_pipe.c moves the rows, PyTorch computes on the pipe's stream, and
 * results, which are PyTorch's own memory, are copied on that stream into the pipe's buffers, from where they are sent.
 */
#include "backend/aoti_engine.h"

#include "base/text.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static dpi_status load_cuda_part(backend_library *library, dpi_error *error)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", library->common.path);
    char *slash = strrchr(path, '/');
    snprintf(slash ? slash + 1 : path, sizeof path - (slash ? (size_t)(slash + 1 - path) : 0), "libtorch_cuda.so");
    library->has_cuda = library->has_cuda || dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    return library->has_cuda
               ? DPI_OK
               : error_set(error, DPI_E_BACKEND,
                           "PyTorch's part for GPUs does not load (%s); install a PyTorch for CUDA", dlerror());
}

static dpi_status check_capability(const backend_engine *e, dpi_error *error)
{
    cuda_facts facts;
    uint64_t wanted;
    dpi_status status = cuda_read_facts(e->library->gpu.api, e->library->gpu.index, &facts, error);
    if (!status && text_to_u64(e->package.capability, 10, 999, &wanted) &&
        (uint64_t)facts.major * 10 + (uint64_t)facts.minor != wanted)
        status = error_set(error, DPI_E_DEVICE,
                           "%s: %s was compiled for GPUs of compute capability %llu.%llu, and this one (%s) has %d.%d; "
                           "compile it here",
                           e->device, e->package.name, (unsigned long long)wanted / 10, (unsigned long long)wanted % 10,
                           facts.name, facts.major, facts.minor);
    return status;
}

dpi_status aoti_cuda_open(backend_engine *e, const backend_open_options *o, dpi_error *error)
{
    const char *depth = backend_option(o, "depth");
    uint64_t slots = 3;
    if (depth && !text_to_u64(depth, 1, BACKEND_MAX_DEPTH, &slots))
        return error_set(error, DPI_E_ARGUMENT, "aoti's option depth is 1 to %d, not \"%s\"", BACKEND_MAX_DEPTH, depth);
    dpi_status status = cuda_choose(&e->library->gpu, o->device->name, !o->device->in_caller, error);
    if (!status) /* behind that: it initialises CUDA */
        status = load_cuda_part(e->library, error);
    if (!status)
        status = check_capability(e, error);
    if (status)
        return status;
    e->depth = (int)slots;
    cuda_pipe_options options = {.api = e->library->gpu.api,
                                 .device = e->device,
                                 .index = e->library->gpu.index,
                                 .slots = e->depth,
                                 .copy_threads = 4,
                                 .set_waiting = !o->device->in_caller,
                                 .log = o->log};
    return cuda_pipe_open(&options, &e->pipe, error);
}

static dpi_status rows_in(backend_engine *e, int slot, const backend_array *inputs, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < e->sig.input_count && !status; i++) {
        const port *p = &e->sig.inputs[i];
        size_t bytes;
        if (!shape_bytes(p->dtype, inputs[i].shape, inputs[i].rank, &bytes))
            return error_set(error, DPI_E_INTERNAL, "a call has no complete shape for %s", p->name);
        status = cuda_pipe_in(e->pipe, slot, i, inputs[i].data, bytes, error);
    }
    return status;
}

/* Starts the computation on what stands in the slot's buffers. */
static dpi_status compute(backend_engine *e, int slot, const backend_array *inputs, aoti_tensor **outputs,
                          CUstream stream, dpi_error *error)
{
    aoti_tensor *in[PORT_MAX] = {NULL};
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < e->sig.input_count && !status; i++) {
        CUdeviceptr buffer;
        status = cuda_pipe_buffer(e->pipe, slot, i, 0, &buffer, error);
        if (!status)
            status = aoti_tensor_of(e, (void *)(uintptr_t)buffer, &e->sig.inputs[i], inputs[i].shape, inputs[i].rank,
                                    &in[i], error);
    }
    if (status) {
        aoti_free_tensors(e, in, e->sig.input_count);
        return status;
    }
    return aoti_compute(e, in, outputs, stream, error);
}

/* Sends the inputs and starts the computation; *stream is where it runs. */
static dpi_status start(backend_engine *e, int slot, const backend_array *inputs, aoti_tensor **outputs,
                        CUstream *stream, dpi_error *error)
{
    dpi_status status = rows_in(e, slot, inputs, error);
    if (!status)
        status = cuda_pipe_compute(e->pipe, slot, stream, error);
    return status ? status : compute(e, slot, inputs, outputs, *stream, error);
}

/* From PyTorch's memory into the pipe's buffer, on the computation's stream: that memory may be used again by what
 * comes later on this stream, so the tensor can go at once. */
static dpi_status collect(backend_engine *e, int slot, size_t o, aoti_tensor *tensor, const backend_array *to,
                          CUstream stream, dpi_error *error)
{
    void *data = NULL;
    bool dense = true;
    size_t bytes = 0;
    CUdeviceptr buffer;
    dpi_status status = aoti_check_output(e, o, tensor, to, &data, &dense, error);
    if (!status && !dense)
        status = error_set(error, DPI_E_MODEL, "the output %s is not in C order; return it as .contiguous()",
                           e->sig.outputs[o].name);
    if (!status && !shape_bytes(e->sig.outputs[o].dtype, to->shape, to->rank, &bytes))
        status = error_set(error, DPI_E_INTERNAL, "a call has no complete shape for %s", e->sig.outputs[o].name);
    if (!status)
        status = cuda_pipe_buffer(e->pipe, slot, e->sig.input_count + o, bytes, &buffer, error);
    if (!status && bytes)
        status = cuda_check(e->library->gpu.api,
                            e->library->gpu.api->cuMemcpyDtoDAsync(buffer, (CUdeviceptr)(uintptr_t)data, bytes, stream),
                            e->device, "collecting results", error);
    return status;
}

static dpi_status send(backend_engine *e, int slot, const backend_call *call, dpi_error *error)
{
    aoti_tensor *out[PORT_MAX] = {NULL};
    CUstream stream = NULL;
    dpi_status status = start(e, slot, call->inputs, out, &stream, error);
    for (size_t o = 0; o < e->sig.output_count && !status; o++)
        status = collect(e, slot, o, out[e->wanted[o]], &call->outputs[o], stream, error);
    if (!status)
        status = cuda_pipe_computed(e->pipe, slot, error);
    for (size_t o = 0; o < e->sig.output_count && !status; o++) {
        const backend_array *a = &call->outputs[o];
        size_t bytes = 0;
        if (shape_bytes(e->sig.outputs[o].dtype, a->shape, a->rank, &bytes))
            status = cuda_pipe_out(e->pipe, slot, e->sig.input_count + o, a->data, bytes, error);
    }
    if (!status)
        status = cuda_pipe_end(e->pipe, slot, error);
    aoti_free_tensors(e, out, e->output_count);
    return status;
}

dpi_status aoti_cuda_enqueue(backend_engine *e, int slot, const backend_call *call, dpi_error *error)
{
    dpi_status status = aoti_check_inputs(e, call->inputs, error);
    if (!status)
        status = cuda_pipe_enter(e->pipe, error);
    if (status)
        return status;
    status = send(e, slot, call, error);
    if (status)
        cuda_pipe_abandon(e->pipe, slot);
    return status;
}

dpi_status aoti_cuda_wait(backend_engine *e, int slot, backend_timing *timing, dpi_error *error)
{
    return cuda_pipe_wait(e->pipe, slot, timing, error);
}

dpi_status aoti_cuda_compute_alone(backend_engine *e, const backend_call *call, size_t times, uint64_t *ns,
                                   dpi_error *error)
{
    CUstream stream = NULL;
    backend_timing timing = {0};
    *ns = 0;
    dpi_status status = aoti_check_inputs(e, call->inputs, error);
    if (!status)
        status = cuda_pipe_enter(e->pipe, error);
    if (status)
        return status;
    status = rows_in(e, 0, call->inputs, error);
    if (!status)
        status = cuda_pipe_compute(e->pipe, 0, &stream, error);
    for (size_t i = 0; i < times && !status; i++) {
        aoti_tensor *out[PORT_MAX] = {NULL};
        status = compute(e, 0, call->inputs, out, stream, error);
        aoti_free_tensors(e, out, e->output_count);
    }
    if (!status)
        status = cuda_pipe_computed(e->pipe, 0, error);
    if (!status)
        status = cuda_pipe_end(e->pipe, 0, error);
    if (status)
        cuda_pipe_abandon(e->pipe, 0);
    else
        status = cuda_pipe_wait(e->pipe, 0, &timing, error);
    *ns = timing.compute_ns;
    return status;
}

dpi_status aoti_cuda_try(backend_engine *e, const backend_array *inputs, backend_array *outputs, dpi_dtype *dtypes,
                         dpi_error *error)
{
    aoti_tensor *out[PORT_MAX] = {NULL};
    CUstream stream = NULL;
    dpi_status status = cuda_pipe_enter(e->pipe, error);
    if (status)
        return status;
    status = start(e, 0, inputs, out, &stream, error);
    for (size_t o = 0; o < e->output_count && !status; o++)
        status = aoti_read_shape(e, out[o], outputs[o].shape, &outputs[o].rank, &dtypes[o], error);
    cuda_pipe_abandon(e->pipe, 0);
    aoti_free_tensors(e, out, e->output_count);
    return status;
}
