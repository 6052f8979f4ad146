#include "backend/cuda_pipe.h"

#include "base/crew.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARRAYS_MAX (2 * PORT_MAX)
#define PIECE      (2u << 20) /* staged bytes per DMA: large enough for its full rate, small enough to begin early */
#define SMALLEST   256

typedef struct range { /* of registered host memory */
    char *begin, *end;
} range;

/* An output on its way through staging. */
typedef struct delivery {
    void *to;
    const void *from;
    size_t bytes;
} delivery;

typedef struct slot_state {
    CUdeviceptr buffers[ARRAYS_MAX];
    size_t buffer_bytes[ARRAYS_MAX];
    void *staging[ARRAYS_MAX];
    size_t staging_bytes[ARRAYS_MAX];
    delivery deliveries[ARRAYS_MAX];
    size_t delivery_count;
    bool copying; /* copy-in has begun */
    CUevent in_begin, in_end, run_begin, run_end, out_begin, out_end;
} slot_state;

struct cuda_pipe {
    const cuda_api *api;
    const logger *log;
    char device[192];
    CUdevice handle;
    CUcontext context;
    bool retained, spin, read_only_memory;
    CUstream in, run, out;
    int slot_count, copy_threads;
    crew *copiers; /* made when first needed */
    slot_state slots[BACKEND_MAX_DEPTH];
    range *ranges; /* sorted */
    size_t range_count, range_capacity;
};

static dpi_status check(const cuda_pipe *p, CUresult result, const char *what, dpi_error *error)
{
    return result == CUDA_SUCCESS_ ? DPI_OK : cuda_check(p->api, result, p->device, what, error);
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static CUresult make_events(cuda_pipe *p, slot_state *s)
{
    CUevent *timed[] = {&s->in_begin, &s->in_end, &s->run_begin, &s->run_end, &s->out_begin};
    CUresult result = CUDA_SUCCESS_;
    for (size_t i = 0; i < sizeof timed / sizeof timed[0] && !result; i++)
        result = p->api->cuEventCreate(timed[i], 0);
    return result ? result : p->api->cuEventCreate(&s->out_end, p->spin ? 0 : CU_EVENT_BLOCKING_SYNC_);
}

static CUresult make_context(cuda_pipe *p, const cuda_pipe_options *o)
{
    CUresult result = p->api->cuDeviceGet(&p->handle, o->index);
    /* Fails when the context is in use already, as in a process with two engines: then it waits as it does. */
    if (!result && o->set_waiting)
        p->api->cuDevicePrimaryCtxSetFlags(p->handle, o->spin ? CU_CTX_SCHED_SPIN_ : CU_CTX_SCHED_BLOCKING_SYNC_);
    if (!result)
        result = p->api->cuDevicePrimaryCtxRetain(&p->context, p->handle);
    p->retained = !result;
    return result ? result : p->api->cuCtxSetCurrent(p->context);
}

dpi_status cuda_pipe_open(const cuda_pipe_options *o, cuda_pipe **pipe, dpi_error *error)
{
    *pipe = NULL;
    cuda_pipe *p = calloc(1, sizeof *p);
    if (!p)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    p->api = o->api;
    p->log = o->log;
    p->spin = o->spin;
    p->slot_count = o->slots;
    p->copy_threads = o->copy_threads;
    snprintf(p->device, sizeof p->device, "%s", o->device);
    CUresult result = make_context(p, o);
    int supported = 0;
    if (!result && p->api->cuDeviceGetAttribute(&supported, CU_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED_,
                                                p->handle) == CUDA_SUCCESS_)
        p->read_only_memory = supported;
    CUstream *streams[] = {&p->in, &p->run, &p->out};
    for (size_t i = 0; i < 3 && !result; i++)
        result = p->api->cuStreamCreate(streams[i], CU_STREAM_NON_BLOCKING_);
    for (int i = 0; i < p->slot_count && !result; i++)
        result = make_events(p, &p->slots[i]);
    if (result) {
        dpi_status status = check(p, result, "preparing the GPU", error);
        cuda_pipe_close(p);
        return status;
    }
    *pipe = p;
    return DPI_OK;
}

static void free_slot(cuda_pipe *p, slot_state *s)
{
    for (size_t i = 0; i < ARRAYS_MAX; i++) {
        if (s->buffers[i])
            p->api->cuMemFree(s->buffers[i]);
        if (s->staging[i])
            p->api->cuMemFreeHost(s->staging[i]);
    }
    CUevent events[] = {s->in_begin, s->in_end, s->run_begin, s->run_end, s->out_begin, s->out_end};
    for (size_t i = 0; i < sizeof events / sizeof events[0]; i++)
        if (events[i])
            p->api->cuEventDestroy(events[i]);
}

void cuda_pipe_close(cuda_pipe *p)
{
    if (!p)
        return;
    if (p->retained && p->api->cuCtxSetCurrent(p->context) == CUDA_SUCCESS_) {
        CUstream streams[] = {p->in, p->run, p->out};
        for (size_t i = 0; i < 3; i++)
            if (streams[i])
                p->api->cuStreamSynchronize(streams[i]);
        for (int i = 0; i < p->slot_count; i++)
            free_slot(p, &p->slots[i]);
        for (size_t i = 0; i < 3; i++)
            if (streams[i])
                p->api->cuStreamDestroy(streams[i]);
        for (size_t i = 0; i < p->range_count; i++)
            p->api->cuMemHostUnregister(p->ranges[i].begin);
    }
    if (p->retained)
        p->api->cuDevicePrimaryCtxRelease(p->handle);
    crew_free(p->copiers);
    free(p->ranges);
    free(p);
}

dpi_status cuda_pipe_enter(cuda_pipe *p, dpi_error *error)
{
    return check(p, p->api->cuCtxSetCurrent(p->context), "taking up its context", error);
}

/* ---- host memory that the GPU reaches --------------------------------------------------------------------------- */

static size_t first_range_behind(const cuda_pipe *p, const char *address)
{
    size_t i = 0;
    while (i < p->range_count && p->ranges[i].end <= address)
        i++;
    return i;
}

void cuda_pipe_register(cuda_pipe *p, void *memory, size_t bytes, bool writable)
{
    if (p->range_count == p->range_capacity) {
        size_t capacity = p->range_capacity ? p->range_capacity * 2 : 32;
        range *ranges = realloc(p->ranges, capacity * sizeof *ranges);
        if (!ranges)
            return;
        p->ranges = ranges;
        p->range_capacity = capacity;
    }
    if (!writable && !p->read_only_memory) {
        log_debug(p->log, "%s cannot read memory that is read-only here: inputs are staged", p->device);
        return;
    }
    unsigned flags = CU_MEMHOSTREGISTER_PORTABLE_ | (writable ? 0u : CU_MEMHOSTREGISTER_READ_ONLY_);
    CUresult result = p->api->cuMemHostRegister(memory, bytes, flags);
    dpi_error problem;
    if (check(p, result, "registering memory", &problem)) {
        log_info(p->log, "%zu bytes are copied through staging: %s", bytes, problem.message);
        return;
    }
    char *begin = memory;
    size_t at = first_range_behind(p, begin);
    memmove(p->ranges + at + 1, p->ranges + at, (p->range_count - at) * sizeof *p->ranges);
    p->ranges[at] = (range){.begin = begin, .end = begin + bytes};
    p->range_count++;
}

void cuda_pipe_unregister(cuda_pipe *p, void *memory)
{
    for (size_t i = 0; i < p->range_count; i++) {
        if (p->ranges[i].begin != (char *)memory)
            continue;
        p->api->cuMemHostUnregister(memory);
        p->range_count--;
        memmove(p->ranges + i, p->ranges + i + 1, (p->range_count - i) * sizeof *p->ranges);
        return;
    }
}

/* Whether all of it is registered. */
static bool is_registered(const cuda_pipe *p, const char *at, size_t bytes)
{
    const char *end = at + bytes;
    for (size_t i = first_range_behind(p, at); at < end; i++) {
        if (i == p->range_count || p->ranges[i].begin > at)
            return false;
        at = p->ranges[i].end;
    }
    return true;
}

/* ---- buffers ---------------------------------------------------------------------------------------------------- */

dpi_status cuda_pipe_buffer(cuda_pipe *p, int slot, size_t array, size_t bytes, CUdeviceptr *buffer, dpi_error *error)
{
    slot_state *s = &p->slots[slot];
    bytes = bytes < SMALLEST ? SMALLEST : bytes;
    if (s->buffer_bytes[array] < bytes) {
        if (s->buffers[array])
            p->api->cuMemFree(s->buffers[array]);
        s->buffers[array] = 0;
        s->buffer_bytes[array] = 0;
        char what[64];
        snprintf(what, sizeof what, "allocating %zu MiB for a slice", bytes >> 20);
        dpi_status status = check(p, p->api->cuMemAlloc(&s->buffers[array], bytes), what, error);
        if (status)
            return status;
        s->buffer_bytes[array] = bytes;
    }
    *buffer = s->buffers[array];
    return DPI_OK;
}

static dpi_status staging(cuda_pipe *p, slot_state *s, size_t array, size_t bytes, char **memory, dpi_error *error)
{
    if (s->staging_bytes[array] < bytes) {
        if (s->staging[array])
            p->api->cuMemFreeHost(s->staging[array]);
        s->staging[array] = NULL;
        s->staging_bytes[array] = 0;
        dpi_status status = check(p, p->api->cuMemAllocHost(&s->staging[array], bytes),
                                  "allocating pinned memory to stage rows", error);
        if (status)
            return status;
        s->staging_bytes[array] = bytes;
    }
    *memory = s->staging[array];
    return DPI_OK;
}

/* ---- one call --------------------------------------------------------------------------------------------------- */

static dpi_status begin_copying(cuda_pipe *p, slot_state *s, dpi_error *error)
{
    if (s->copying)
        return DPI_OK;
    s->copying = true;
    return check(p, p->api->cuEventRecord(s->in_begin, p->in), "beginning a call", error);
}

/* A copy between the device and registered memory, cut where registrations meet: the driver wants each in one. */
static CUresult copy_registered(cuda_pipe *p, CUdeviceptr device, char *host, size_t bytes, bool in)
{
    CUresult result = CUDA_SUCCESS_;
    for (size_t i = first_range_behind(p, host); bytes && !result; i++) {
        size_t piece = (size_t)(p->ranges[i].end - host);
        piece = piece < bytes ? piece : bytes;
        result = in ? p->api->cuMemcpyHtoDAsync(device, host, piece, p->in)
                    : p->api->cuMemcpyDtoHAsync(host, device, piece, p->out);
        device += piece;
        host += piece;
        bytes -= piece;
    }
    return result;
}

typedef struct staged_copy {
    cuda_pipe *pipe;
    CUdeviceptr device;
    char *stage;
    const char *host;
    size_t bytes;
    _Atomic int result; /* the first failure */
} staged_copy;

static void copy_piece(void *context, size_t i)
{
    staged_copy *c = context;
    size_t at = i * PIECE, piece = c->bytes - at < PIECE ? c->bytes - at : PIECE;
    memcpy(c->stage + at, c->host + at, piece);
    CUresult result = c->pipe->api->cuCtxSetCurrent(c->pipe->context); /* a helper's first time */
    if (!result)
        result = c->pipe->api->cuMemcpyHtoDAsync(c->device + at, c->stage + at, piece, c->pipe->in);
    if (result)
        c->result = result;
}

static CUresult copy_staged(cuda_pipe *p, CUdeviceptr device, char *stage, const char *host, size_t bytes)
{
    staged_copy c = {.pipe = p, .device = device, .stage = stage, .host = host, .bytes = bytes};
    size_t pieces = (bytes + PIECE - 1) / PIECE;
    if (!p->copiers && pieces > 2 && p->copy_threads > 1)
        p->copiers = crew_new((size_t)p->copy_threads - 1);
    crew_run(p->copiers, pieces, copy_piece, &c);
    return c.result;
}

dpi_status cuda_pipe_in(cuda_pipe *p, int slot, size_t array, const void *host, size_t bytes, dpi_error *error)
{
    slot_state *s = &p->slots[slot];
    CUdeviceptr buffer;
    dpi_status status = cuda_pipe_buffer(p, slot, array, bytes, &buffer, error);
    if (!status)
        status = begin_copying(p, s, error);
    if (status || !bytes)
        return status;
    if (is_registered(p, host, bytes))
        return check(p, copy_registered(p, buffer, (char *)(uintptr_t)host, bytes, true), "copying rows in", error);
    char *stage;
    status = staging(p, s, array, bytes, &stage, error);
    return status ? status : check(p, copy_staged(p, buffer, stage, host, bytes), "copying rows in", error);
}

dpi_status cuda_pipe_compute(cuda_pipe *p, int slot, CUstream *stream, dpi_error *error)
{
    slot_state *s = &p->slots[slot];
    dpi_status status = begin_copying(p, s, error);
    if (status)
        return status;
    CUresult result = p->api->cuEventRecord(s->in_end, p->in);
    if (!result)
        result = p->api->cuStreamWaitEvent(p->run, s->in_end, 0);
    if (!result)
        result = p->api->cuEventRecord(s->run_begin, p->run);
    *stream = p->run;
    return check(p, result, "starting the computation", error);
}

dpi_status cuda_pipe_computed(cuda_pipe *p, int slot, dpi_error *error)
{
    slot_state *s = &p->slots[slot];
    CUresult result = p->api->cuEventRecord(s->run_end, p->run);
    if (!result)
        result = p->api->cuStreamWaitEvent(p->out, s->run_end, 0);
    if (!result)
        result = p->api->cuEventRecord(s->out_begin, p->out);
    return check(p, result, "starting the copy out", error);
}

dpi_status cuda_pipe_out(cuda_pipe *p, int slot, size_t array, void *host, size_t bytes, dpi_error *error)
{
    slot_state *s = &p->slots[slot];
    if (!bytes)
        return DPI_OK;
    if (is_registered(p, host, bytes))
        return check(p, copy_registered(p, s->buffers[array], host, bytes, false), "copying results out", error);
    char *stage;
    dpi_status status = staging(p, s, array, bytes, &stage, error);
    if (status)
        return status;
    s->deliveries[s->delivery_count++] = (delivery){.to = host, .from = stage, .bytes = bytes};
    return check(p, p->api->cuMemcpyDtoHAsync(stage, s->buffers[array], bytes, p->out), "copying results out", error);
}

dpi_status cuda_pipe_end(cuda_pipe *p, int slot, dpi_error *error)
{
    return check(p, p->api->cuEventRecord(p->slots[slot].out_end, p->out), "ending a call", error);
}

static uint64_t between(const cuda_pipe *p, CUevent begin, CUevent end)
{
    float ms = 0;
    return p->api->cuEventElapsedTime(&ms, begin, end) == CUDA_SUCCESS_ && ms > 0 ? (uint64_t)((double)ms * 1e6) : 0;
}

dpi_status cuda_pipe_wait(cuda_pipe *p, int slot, backend_timing *timing, dpi_error *error)
{
    slot_state *s = &p->slots[slot];
    CUresult result = CUDA_ERROR_NOT_READY_;
    while (p->spin && (result = p->api->cuEventQuery(s->out_end)) == CUDA_ERROR_NOT_READY_)
        ;
    if (!p->spin)
        result = p->api->cuEventSynchronize(s->out_end);
    for (size_t i = 0; i < s->delivery_count && !result; i++)
        memcpy(s->deliveries[i].to, s->deliveries[i].from, s->deliveries[i].bytes);
    s->delivery_count = 0;
    s->copying = false;
    if (result)
        return check(p, result, "computing a slice", error);
    timing->copy_in_ns = between(p, s->in_begin, s->in_end);
    timing->compute_ns = between(p, s->run_begin, s->run_end);
    timing->copy_out_ns = between(p, s->out_begin, s->out_end);
    return DPI_OK;
}

void cuda_pipe_abandon(cuda_pipe *p, int slot)
{
    CUstream streams[] = {p->in, p->run, p->out};
    for (size_t i = 0; i < 3; i++)
        p->api->cuStreamSynchronize(streams[i]);
    p->slots[slot].delivery_count = 0;
    p->slots[slot].copying = false;
}
