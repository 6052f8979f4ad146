/*
 * What dpinfer calls of PyTorch: its C functions for tensors (in libtorch_cpu.so) and those of a compiled model.
 * PyTorch's own header for them is C++. They return 0 for success; what went wrong, the library prints on standard
 * error.
 */
#ifndef DPI_BACKEND_AOTI_API_H
#define DPI_BACKEND_AOTI_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct aoti_tensor aoti_tensor;       /* AtenTensorHandle */
typedef struct aoti_container aoti_container; /* AOTInductorModelContainerHandle */

/* dtype of dpinfer, PyTorch's name for it */
#define AOTI_DTYPES(X)                                                                                                 \
    X(DPI_BOOL, "bool")                                                                                                \
    X(DPI_I8, "int8")                                                                                                  \
    X(DPI_U8, "uint8")                                                                                                 \
    X(DPI_I16, "int16")                                                                                                \
    X(DPI_U16, "uint16")                                                                                               \
    X(DPI_I32, "int32")                                                                                                \
    X(DPI_U32, "uint32")                                                                                               \
    X(DPI_I64, "int64")                                                                                                \
    X(DPI_U64, "uint64")                                                                                               \
    X(DPI_F16, "float16")                                                                                              \
    X(DPI_BF16, "bfloat16")                                                                                            \
    X(DPI_F32, "float32")                                                                                              \
    X(DPI_F64, "float64")

/* name here, name there, result, parameters */
#define AOTI_TENSOR_FUNCTIONS(X)                                                                                       \
    X(abi_version, "aoti_torch_abi_version", uint64_t, (void))                                                         \
    X(device_type_cpu, "aoti_torch_device_type_cpu", int32_t, (void))                                                  \
    X(device_type_cuda, "aoti_torch_device_type_cuda", int32_t, (void))                                                \
    X(create_tensor_from_blob, "aoti_torch_create_tensor_from_blob", int,                                              \
      (void *data, int64_t rank, const int64_t *sizes, const int64_t *strides, int64_t offset, int32_t dtype,          \
       int32_t device_type, int32_t device_index, aoti_tensor **tensor))                                               \
    X(delete_tensor, "aoti_torch_delete_tensor_object", int, (aoti_tensor *))                                          \
    X(get_data_ptr, "aoti_torch_get_data_ptr", int, (aoti_tensor *, void **))                                          \
    X(get_dim, "aoti_torch_get_dim", int, (aoti_tensor *, int64_t *))                                                  \
    X(get_sizes, "aoti_torch_get_sizes", int, (aoti_tensor *, int64_t **))                                             \
    X(get_strides, "aoti_torch_get_strides", int, (aoti_tensor *, int64_t **))                                         \
    X(get_dtype, "aoti_torch_get_dtype", int, (aoti_tensor *, int32_t *))                                              \
    X(get_device_type, "aoti_torch_get_device_type", int, (aoti_tensor *, int32_t *))

/* Of the model's own library. Tensors given to run are its own from then on; those that it returns are the caller's. */
#define AOTI_MODEL_FUNCTIONS(X)                                                                                        \
    X(create, "AOTInductorModelContainerCreateWithDevice", int,                                                        \
      (aoti_container **, size_t models, const char *device, const char *kernel_folder))                               \
    X(destroy, "AOTInductorModelContainerDelete", int, (aoti_container *))                                             \
    X(run, "AOTInductorModelContainerRunSingleThreaded", int,                                                          \
      (aoti_container *, aoti_tensor * *inputs, size_t input_count, aoti_tensor * *outputs, size_t output_count,       \
       void *stream, void *proxy_executor))                                                                            \
    X(input_count, "AOTInductorModelContainerGetNumInputs", int, (aoti_container *, size_t *))                         \
    X(output_count, "AOTInductorModelContainerGetNumOutputs", int, (aoti_container *, size_t *))                       \
    X(output_name, "AOTInductorModelContainerGetOutputName", int, (aoti_container *, size_t, const char **))

typedef struct aoti_tensor_api {
#define X(name, symbol, result, parameters) result(*name) parameters;
    AOTI_TENSOR_FUNCTIONS(X)
#undef X
} aoti_tensor_api;

typedef struct aoti_model_api {
#define X(name, symbol, result, parameters) result(*name) parameters;
    AOTI_MODEL_FUNCTIONS(X)
#undef X
} aoti_model_api;

#endif
