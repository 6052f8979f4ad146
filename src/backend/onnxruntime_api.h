/*
 * The part of ONNX Runtime's C interface that dpinfer uses. The library hands out one table of function pointers that
 * only ever grows (onnxruntime_c_api.h: "functions are never removed or reordered"), so functions are called by their
 * slot, and no header is needed to build. Slots and types: https://onnxruntime.ai/docs/api/c/ (struct OrtApi).
 */
#ifndef DPI_BACKEND_ONNXRUNTIME_API_H
#define DPI_BACKEND_ONNXRUNTIME_API_H

#include <stddef.h>
#include <stdint.h>

#define ORT_API_WANTED 20 /* of library 1.20, the oldest that is supported */

typedef struct ort_opaque ort_opaque; /* every handle of the library */
typedef void (*ort_function)(void);

typedef struct ort_api_base {
    const ort_function *(*get_api)(uint32_t version); /* NULL above the library's own */
    const char *(*get_version)(void);
} ort_api_base;

typedef void (*ort_log_fn)(void *context, int severity, const char *category, const char *id, const char *location,
                           const char *message);

enum { ORT_SEVERITY_WARNING = 2, ORT_SEVERITY_ERROR = 3 };
enum { ORT_TYPE_TENSOR = 1 }; /* ONNX_TYPE_TENSOR of ONNXType */

/* name, slot, return type, arguments */
#define ORT_FUNCTIONS(X)                                                                                               \
    X(GetErrorMessage, 2, const char *, (const ort_opaque *status))                                                    \
    X(CreateEnvWithCustomLogger, 4, ort_opaque *,                                                                      \
      (ort_log_fn log, void *context, int severity, const char *id, ort_opaque **env))                                 \
    X(CreateSession, 7, ort_opaque *,                                                                                  \
      (const ort_opaque *env, const char *path, const ort_opaque *options, ort_opaque **session))                      \
    X(CreateSessionFromArray, 8, ort_opaque *,                                                                         \
      (const ort_opaque *env, const void *data, size_t bytes, const ort_opaque *options, ort_opaque **session))        \
    X(Run, 9, ort_opaque *,                                                                                            \
      (ort_opaque * session, const ort_opaque *run_options, const char *const *input_names,                            \
       const ort_opaque *const *inputs, size_t input_count, const char *const *output_names, size_t output_count,      \
       ort_opaque **outputs))                                                                                          \
    X(CreateSessionOptions, 10, ort_opaque *, (ort_opaque * *options))                                                 \
    X(DisableMemPattern, 17, ort_opaque *, (ort_opaque * options))                                                     \
    X(DisableCpuMemArena, 19, ort_opaque *, (ort_opaque * options))                                                    \
    X(SetSessionGraphOptimizationLevel, 23, ort_opaque *, (ort_opaque * options, int level))                           \
    X(SetIntraOpNumThreads, 24, ort_opaque *, (ort_opaque * options, int threads))                                     \
    X(SetInterOpNumThreads, 25, ort_opaque *, (ort_opaque * options, int threads))                                     \
    X(SessionGetInputCount, 30, ort_opaque *, (const ort_opaque *session, size_t *count))                              \
    X(SessionGetOutputCount, 31, ort_opaque *, (const ort_opaque *session, size_t *count))                             \
    X(SessionGetInputTypeInfo, 33, ort_opaque *, (const ort_opaque *session, size_t index, ort_opaque **info))         \
    X(SessionGetOutputTypeInfo, 34, ort_opaque *, (const ort_opaque *session, size_t index, ort_opaque **info))        \
    X(SessionGetInputName, 36, ort_opaque *,                                                                           \
      (const ort_opaque *session, size_t index, ort_opaque *allocator, char **name))                                   \
    X(SessionGetOutputName, 37, ort_opaque *,                                                                          \
      (const ort_opaque *session, size_t index, ort_opaque *allocator, char **name))                                   \
    X(CreateTensorWithDataAsOrtValue, 49, ort_opaque *,                                                                \
      (const ort_opaque *memory, void *data, size_t bytes, const int64_t *shape, size_t rank, int type,                \
       ort_opaque **value))                                                                                            \
    X(CastTypeInfoToTensorInfo, 55, ort_opaque *, (const ort_opaque *info, const ort_opaque **tensor))                 \
    X(GetOnnxTypeFromTypeInfo, 56, ort_opaque *, (const ort_opaque *info, int *type))                                  \
    X(GetTensorElementType, 60, ort_opaque *, (const ort_opaque *tensor, int *type))                                   \
    X(GetDimensionsCount, 61, ort_opaque *, (const ort_opaque *tensor, size_t *rank))                                  \
    X(GetDimensions, 62, ort_opaque *, (const ort_opaque *tensor, int64_t *shape, size_t rank))                        \
    X(GetSymbolicDimensions, 63, ort_opaque *, (const ort_opaque *tensor, const char **names, size_t rank))            \
    X(GetTensorTypeAndShape, 65, ort_opaque *, (const ort_opaque *value, ort_opaque **tensor))                         \
    X(CreateCpuMemoryInfo, 69, ort_opaque *, (int allocator_type, int memory_type, ort_opaque **memory))               \
    X(AllocatorFree, 76, ort_opaque *, (ort_opaque * allocator, void *memory))                                         \
    X(GetAllocatorWithDefaultOptions, 78, ort_opaque *, (ort_opaque * *allocator))                                     \
    X(ReleaseEnv, 92, void, (ort_opaque * env))                                                                        \
    X(ReleaseStatus, 93, void, (ort_opaque * status))                                                                  \
    X(ReleaseMemoryInfo, 94, void, (ort_opaque * memory))                                                              \
    X(ReleaseSession, 95, void, (ort_opaque * session))                                                                \
    X(ReleaseValue, 96, void, (ort_opaque * value))                                                                    \
    X(ReleaseTypeInfo, 98, void, (ort_opaque * info))                                                                  \
    X(ReleaseTensorTypeAndShapeInfo, 99, void, (ort_opaque * tensor))                                                  \
    X(ReleaseSessionOptions, 100, void, (ort_opaque * options))                                                        \
    X(GetAvailableProviders, 125, ort_opaque *, (char ***names, int *count))                                           \
    X(ReleaseAvailableProviders, 126, ort_opaque *, (char **names, int count))                                         \
    X(AddSessionConfigEntry, 130, ort_opaque *, (ort_opaque * options, const char *key, const char *value))            \
    X(SessionOptionsAppendExecutionProvider_TensorRT_V2, 170, ort_opaque *,                                            \
      (ort_opaque * options, const ort_opaque *tensorrt_options))                                                      \
    X(CreateTensorRTProviderOptions, 171, ort_opaque *, (ort_opaque * *tensorrt_options))                              \
    X(UpdateTensorRTProviderOptions, 172, ort_opaque *,                                                                \
      (ort_opaque * tensorrt_options, const char *const *keys, const char *const *values, size_t count))               \
    X(ReleaseTensorRTProviderOptions, 174, void, (ort_opaque * tensorrt_options))                                      \
    X(SessionOptionsAppendExecutionProvider_CUDA_V2, 204, ort_opaque *,                                                \
      (ort_opaque * options, const ort_opaque *cuda_options))                                                          \
    X(CreateCUDAProviderOptions, 205, ort_opaque *, (ort_opaque * *cuda_options))                                      \
    X(UpdateCUDAProviderOptions, 206, ort_opaque *,                                                                    \
      (ort_opaque * cuda_options, const char *const *keys, const char *const *values, size_t count))                   \
    X(ReleaseCUDAProviderOptions, 208, void, (ort_opaque * cuda_options))                                              \
    X(SessionOptionsAppendExecutionProvider, 216, ort_opaque *,                                                        \
      (ort_opaque * options, const char *provider, const char *const *keys, const char *const *values, size_t count))  \
    X(SetUserLoggingFunction, 266, ort_opaque *, (ort_opaque * options, ort_log_fn log, void *context))

typedef struct ort_api {
#define X(name, slot, result, arguments) result(*name) arguments;
    ORT_FUNCTIONS(X)
#undef X
} ort_api;

/* ONNXTensorElementDataType by number (fixed by the ONNX standard), and dpinfer's dtypes. */
#define ORT_TYPES(X)                                                                                                   \
    X(1, DPI_F32)                                                                                                      \
    X(2, DPI_U8)                                                                                                       \
    X(3, DPI_I8)                                                                                                       \
    X(4, DPI_U16)                                                                                                      \
    X(5, DPI_I16)                                                                                                      \
    X(6, DPI_I32)                                                                                                      \
    X(7, DPI_I64)                                                                                                      \
    X(9, DPI_BOOL)                                                                                                     \
    X(10, DPI_F16)                                                                                                     \
    X(11, DPI_F64)                                                                                                     \
    X(12, DPI_U32)                                                                                                     \
    X(13, DPI_U64)                                                                                                     \
    X(16, DPI_BF16)

#endif
