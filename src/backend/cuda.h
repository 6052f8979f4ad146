/*
 * CUDA's driver API, loaded at run time: no toolkit to build, and nothing changes on a machine without a GPU.
 * Names and numbers are those of NVIDIA's cuda.h, which is not needed; only what dpinfer calls is here.
 */
#ifndef DPI_BACKEND_CUDA_H
#define DPI_BACKEND_CUDA_H

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

typedef int CUresult; /* 0: success */
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphExec_st *CUgraphExec;
typedef struct CUuuid {
    unsigned char bytes[16];
} CUuuid;

enum {
    CUDA_SUCCESS_ = 0,
    CUDA_ERROR_OUT_OF_MEMORY_ = 2,
    CUDA_ERROR_NO_DEVICE_ = 100,
    CUDA_ERROR_NOT_READY_ = 600,
    CU_CTX_SCHED_SPIN_ = 1,
    CU_CTX_SCHED_BLOCKING_SYNC_ = 4,
    CU_STREAM_NON_BLOCKING_ = 1,
    CU_EVENT_BLOCKING_SYNC_ = 1,
    CU_MEMHOSTREGISTER_PORTABLE_ = 1,
    CU_MEMHOSTREGISTER_READ_ONLY_ = 8,
    CU_STREAM_CAPTURE_MODE_RELAXED_ = 2,
    CU_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR_ = 75,
    CU_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR_ = 76,
    CU_ATTRIBUTE_MULTIPROCESSOR_COUNT_ = 16,
    CU_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED_ = 113,
};

/* Each is the driver's function of that name (with the suffix of its present version where it has one). */
#define CUDA_FUNCTIONS(X)                                                                                              \
    X(cuInit, "cuInit", (unsigned))                                                                                    \
    X(cuDriverGetVersion, "cuDriverGetVersion", (int *))                                                               \
    X(cuGetErrorName, "cuGetErrorName", (CUresult, const char **))                                                     \
    X(cuGetErrorString, "cuGetErrorString", (CUresult, const char **))                                                 \
    X(cuDeviceGetCount, "cuDeviceGetCount", (int *))                                                                   \
    X(cuDeviceGet, "cuDeviceGet", (CUdevice *, int))                                                                   \
    X(cuDeviceGetName, "cuDeviceGetName", (char *, int, CUdevice))                                                     \
    X(cuDeviceGetUuid, "cuDeviceGetUuid_v2", (CUuuid *, CUdevice))                                                     \
    X(cuDeviceGetAttribute, "cuDeviceGetAttribute", (int *, int, CUdevice))                                            \
    X(cuDeviceTotalMem, "cuDeviceTotalMem_v2", (size_t *, CUdevice))                                                   \
    X(cuDeviceGetPCIBusId, "cuDeviceGetPCIBusId", (char *, int, CUdevice))                                             \
    X(cuDevicePrimaryCtxSetFlags, "cuDevicePrimaryCtxSetFlags_v2", (CUdevice, unsigned))                               \
    X(cuDevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (CUcontext *, CUdevice))                                   \
    X(cuDevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", (CUdevice))                                           \
    X(cuCtxSetCurrent, "cuCtxSetCurrent", (CUcontext))                                                                 \
    X(cuMemGetInfo, "cuMemGetInfo_v2", (size_t *, size_t *))                                                           \
    X(cuMemAlloc, "cuMemAlloc_v2", (CUdeviceptr *, size_t))                                                            \
    X(cuMemFree, "cuMemFree_v2", (CUdeviceptr))                                                                        \
    X(cuMemAllocHost, "cuMemAllocHost_v2", (void **, size_t))                                                          \
    X(cuMemFreeHost, "cuMemFreeHost", (void *))                                                                        \
    X(cuMemHostRegister, "cuMemHostRegister_v2", (void *, size_t, unsigned))                                           \
    X(cuMemHostUnregister, "cuMemHostUnregister", (void *))                                                            \
    X(cuMemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2", (CUdeviceptr, const void *, size_t, CUstream))                        \
    X(cuMemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2", (void *, CUdeviceptr, size_t, CUstream))                              \
    X(cuMemcpyDtoDAsync, "cuMemcpyDtoDAsync_v2", (CUdeviceptr, CUdeviceptr, size_t, CUstream))                         \
    X(cuStreamCreate, "cuStreamCreate", (CUstream *, unsigned))                                                        \
    X(cuStreamDestroy, "cuStreamDestroy_v2", (CUstream))                                                               \
    X(cuStreamSynchronize, "cuStreamSynchronize", (CUstream))                                                          \
    X(cuStreamWaitEvent, "cuStreamWaitEvent", (CUstream, CUevent, unsigned))                                           \
    X(cuEventCreate, "cuEventCreate", (CUevent *, unsigned))                                                           \
    X(cuEventDestroy, "cuEventDestroy_v2", (CUevent))                                                                  \
    X(cuEventRecord, "cuEventRecord", (CUevent, CUstream))                                                             \
    X(cuEventQuery, "cuEventQuery", (CUevent))                                                                         \
    X(cuEventSynchronize, "cuEventSynchronize", (CUevent))                                                             \
    X(cuEventElapsedTime, "cuEventElapsedTime", (float *, CUevent, CUevent))                                           \
    X(cuStreamBeginCapture, "cuStreamBeginCapture_v2", (CUstream, int))                                                \
    X(cuStreamEndCapture, "cuStreamEndCapture", (CUstream, CUgraph *))                                                 \
    X(cuGraphInstantiate, "cuGraphInstantiateWithFlags", (CUgraphExec *, CUgraph, unsigned long long))                 \
    X(cuGraphLaunch, "cuGraphLaunch", (CUgraphExec, CUstream))                                                         \
    X(cuGraphExecDestroy, "cuGraphExecDestroy", (CUgraphExec))                                                         \
    X(cuGraphDestroy, "cuGraphDestroy", (CUgraph))

typedef struct cuda_api {
#define X(name, symbol, parameters) CUresult(*name) parameters;
    CUDA_FUNCTIONS(X)
#undef X
} cuda_api;

/* The driver's functions, initialised, once per process; thread-safe. Never call it in a process that may still fork
 * children which use CUDA (the caller's): it calls cuInit. DPI_E_BACKEND: no driver; DPI_E_DEVICE: no GPU. */
dpi_status cuda_load(const cuda_api **api, dpi_error *error);

/* Whether there is a driver that could have a GPU: looks for its device files only, safe in any process. */
bool cuda_may_be_there(void);

/* DPI_OK, or DPI_E_DEVICE with what was tried, on which device, and the driver's own words. Out of memory says how much
 * is free. */
dpi_status cuda_check(const cuda_api *api, CUresult result, const char *device, const char *what, dpi_error *error);

/* What the driver tells of one GPU. */
typedef struct cuda_facts {
    char name[128];
    char uuid[48]; /* "GPU-..." */
    char bus[32];  /* "0000:3b:00.0" */
    int major, minor, multiprocessors;
    uint64_t memory_bytes;
    char link[64]; /* "PCIe 32.0 GT/s x16", "" when the kernel does not tell */
    int numa;      /* -1: unknown */
} cuda_facts;
dpi_status cuda_read_facts(const cuda_api *api, int index, cuda_facts *facts, dpi_error *error);
/* Bytes free on a GPU now; makes a context for a moment. 0: unknown. */
uint64_t cuda_free_memory(const cuda_api *api, int index);
/* "580.159.03, CUDA 13.0"; the parts that can be had. */
void cuda_driver_text(const cuda_api *api, char *text, size_t size);

/* The GPU that a library of this process has settled on. All zero: none yet. */
typedef struct cuda_choice {
    const cuda_api *api;
    int index; /* the driver's */
    char device[192];
} cuda_choice;

/* Settles on a device by its name ("cuda:1", "cuda:GPU-...", "cuda:MIG-..."); for the one that is chosen already it
 * does nothing. In a worker process (`only_it`) every other GPU is hidden first, by CUDA_VISIBLE_DEVICES, so that it
 * can touch no other; must then come before anything that initialises CUDA. Otherwise the environment stays as it is.
 * An entry that the user's CUDA_VISIBLE_DEVICES does not have is DPI_E_DEVICE. */
dpi_status cuda_choose(cuda_choice *choice, const char *device_name, bool only_it, dpi_error *error);
/* The text part of cuda_choose: which value of CUDA_VISIBLE_DEVICES leaves this device alone. `visible` is the user's
 * value or NULL. */
dpi_status cuda_visible_entry(const char *device_name, const char *visible, char *entry, size_t size, dpi_error *error);

#endif
