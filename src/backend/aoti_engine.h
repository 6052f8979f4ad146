/* The parts of an opened .pt2 package, shared by aoti.c and aoti_cuda.c. */
#ifndef DPI_BACKEND_AOTI_ENGINE_H
#define DPI_BACKEND_AOTI_ENGINE_H

#include "backend/aoti_api.h"
#include "backend/aoti_package.h"
#include "backend/cuda_pipe.h"
#include "backend/library.h"
#include "backend/shapes.h"

struct backend_library {
    library_common common;
    aoti_tensor_api api;
    int32_t types[DPI_F64 + 1];     /* PyTorch's number of each dtype */
    void (*set_threads)(int count); /* of the process; NULL: unknown to this release */
    cuda_choice gpu;
    bool has_cuda; /* PyTorch's CUDA part is loaded */
};

struct backend_engine {
    backend_library *library;
    char device[192];
    aoti_package package;
    aoti_model_api model;
    aoti_container *container;
    signature sig; /* the wanted outputs only */
    aoti_range ranges[PORT_MAX];
    size_t output_count, wanted[PORT_MAX]; /* outputs of the model, and which of them are sig.outputs[o] */
    shapes measured;
    cuda_pipe *pipe; /* NULL on the CPU */
    int depth;
};

/* Makes PyTorch's view of dense memory, on the engine's device. */
dpi_status aoti_tensor_of(const backend_engine *e, void *data, const port *p, const int64_t *shape, int rank,
                          aoti_tensor **tensor, dpi_error *error);
/* Checks shapes against the ranges that the model was compiled for: the model itself does not. DPI_E_DATA. */
dpi_status aoti_check_inputs(const backend_engine *e, const backend_array *inputs, dpi_error *error);
/* Runs the model on tensors, which are its own from then on; fills the outputs of the model, to be ended by
 * aoti_free_tensors. `stream` is NULL on the CPU. */
dpi_status aoti_compute(const backend_engine *e, aoti_tensor **inputs, aoti_tensor **outputs, void *stream,
                        dpi_error *error);
void aoti_free_tensors(const backend_engine *e, aoti_tensor **tensors, size_t count);
/* Rank, shape and dtype of a tensor. */
dpi_status aoti_read_shape(const backend_engine *e, aoti_tensor *tensor, int64_t *shape, int *rank, dpi_dtype *dtype,
                           dpi_error *error);
/* The tensor is what the call expects of output `o`; its memory, and whether that is dense in C order. */
dpi_status aoti_check_output(const backend_engine *e, size_t o, aoti_tensor *tensor, const backend_array *want,
                             void **data, bool *dense, dpi_error *error);

/* GPUs (aoti_cuda.c). Settles on the device, loads PyTorch's CUDA part, makes streams and buffers; then calls. */
dpi_status aoti_cuda_open(backend_engine *e, const backend_open_options *o, dpi_error *error);
dpi_status aoti_cuda_enqueue(backend_engine *e, int slot, const backend_call *call, dpi_error *error);
dpi_status aoti_cuda_wait(backend_engine *e, int slot, backend_timing *timing, dpi_error *error);
dpi_status aoti_cuda_compute_alone(backend_engine *e, const backend_call *call, size_t times, uint64_t *ns,
                                   dpi_error *error);
/* One run on host rows, the shapes of whose results are read. */
dpi_status aoti_cuda_try(backend_engine *e, const backend_array *inputs, backend_array *outputs, dpi_dtype *dtypes,
                         dpi_error *error);

#endif
