/* Finding TensorRT's libraries and the shim for their major version; TensorRT's messages. */
#ifndef DPI_BACKEND_TENSORRT_LIBRARY_H
#define DPI_BACKEND_TENSORRT_LIBRARY_H

#include "backend/cuda.h"
#include "backend/library.h"
#include "backend/tensorrt_shim.h"

struct backend_library {
    library_common common;
    const trt_shim *shim;
    trt_library *trt;
    cuda_choice gpu;
    void (*alive)(void *context); /* while a compile goes on: each of TensorRT's messages is a sign of life */
    void *alive_context;
};

/* As in backend.h. unload leaves TensorRT's objects and its log: its destructors are not safe behind the driver's. */
dpi_status tensorrt_load(const backend_load_options *options, const logger *log, backend_library **library,
                         dpi_error *error);
void tensorrt_unload(backend_library *library);

/* "DEVICE: TensorRT VERSION WHAT MODEL: TensorRT's own words"; what is free where it speaks of memory. */
dpi_status tensorrt_refuse(backend_library *library, dpi_error *error, dpi_status status, const char *what,
                           const char *model, const char *device);

#endif
