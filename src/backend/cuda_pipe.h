/*
 * How rows travel to one GPU and back: streams for copy-in, compute and copy-out, a few calls ("slots") in flight,
 * device buffers, and staging for host memory that the GPU cannot reach. It knows no inference library: a backend
 * starts its computation on the compute stream between cuda_pipe_compute and cuda_pipe_computed.
 *
 *     for each input:  cuda_pipe_in        host rows -> device buffer            copy-in stream
 *     cuda_pipe_compute                    compute waits for the copies in
 *       (the engine's own work)                                                  compute stream
 *     cuda_pipe_computed                   copies out wait for the computation
 *     for each output: cuda_pipe_out       device buffer -> host rows            copy-out stream
 *     cuda_pipe_end
 *     ... later, in order: cuda_pipe_wait  results are where they belong
 *
 * Memory told to cuda_pipe_register is copied from and to by DMA where it stands. Other memory goes through pinned
 * buffers of the pipe's own, allocated when first needed: inputs piece by piece on threads of the pipe's own, so that
 * the DMA of one piece runs beside the copies of the next; outputs when they are waited for. One thread at a time; any
 * thread, after cuda_pipe_enter.
 */
#ifndef DPI_BACKEND_CUDA_PIPE_H
#define DPI_BACKEND_CUDA_PIPE_H

#include "backend/backend.h"
#include "backend/cuda.h"

typedef struct cuda_pipe cuda_pipe;

typedef struct cuda_pipe_options {
    const cuda_api *api;
    const char *device; /* name for messages; copied */
    int index;          /* the driver's */
    int slots;          /* 1 to BACKEND_MAX_DEPTH */
    int copy_threads;   /* that fill staging memory, the caller's included */
    bool spin;          /* wait by spinning: microseconds sooner, and a core busy */
    bool set_waiting;   /* may set how the process's context waits; false where the process is the user's */
    const logger *log;
} cuda_pipe_options;

/* Retains the device's primary context (which CUDA's runtime, and so TensorRT, uses too) and makes it current. */
dpi_status cuda_pipe_open(const cuda_pipe_options *options, cuda_pipe **pipe, dpi_error *error);
/* Waits for what is in flight and frees everything; NULL is fine. */
void cuda_pipe_close(cuda_pipe *pipe);
/* Makes the context current on this thread. */
dpi_status cuda_pipe_enter(cuda_pipe *pipe, dpi_error *error);

/* As backend.memory_register. A failure leaves the memory to staging. */
void cuda_pipe_register(cuda_pipe *pipe, void *memory, size_t bytes, bool writable);
void cuda_pipe_unregister(cuda_pipe *pipe, void *memory);

/* Device buffer number `array` of a slot, at least `bytes` (and never 0). */
dpi_status cuda_pipe_buffer(cuda_pipe *pipe, int slot, size_t array, size_t bytes, CUdeviceptr *buffer,
                            dpi_error *error);

dpi_status cuda_pipe_in(cuda_pipe *pipe, int slot, size_t array, const void *host, size_t bytes, dpi_error *error);
dpi_status cuda_pipe_compute(cuda_pipe *pipe, int slot, CUstream *stream, dpi_error *error);
dpi_status cuda_pipe_computed(cuda_pipe *pipe, int slot, dpi_error *error);
dpi_status cuda_pipe_out(cuda_pipe *pipe, int slot, size_t array, void *host, size_t bytes, dpi_error *error);
dpi_status cuda_pipe_end(cuda_pipe *pipe, int slot, dpi_error *error);
/* Waits for the slot. The slot is free afterwards, also when it failed. */
dpi_status cuda_pipe_wait(cuda_pipe *pipe, int slot, backend_timing *timing, dpi_error *error);
/* A call failed on its way in: waits until nothing of the pipe touches its memory, and frees the slot. */
void cuda_pipe_abandon(cuda_pipe *pipe, int slot);

#endif
