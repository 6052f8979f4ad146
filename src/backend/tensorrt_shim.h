/*
 * TensorRT as C functions: what the backend (tensorrt.c) needs of it and nothing else. TensorRT has a C++ interface
 * only, whose ABI is one per major version, so tensorrt_shim.cc is built once per major into a shared object of its
 * own, and this table is all that crosses. Nothing here links to TensorRT: its three entry points come from the
 * library that was found at run time.
 *
 * One thread at a time per object. Functions that can fail return NULL or false; trt_shim.last_errors tells TensorRT's
 * own words. Nothing throws across this boundary.
 */
#ifndef DPI_BACKEND_TENSORRT_SHIM_H
#define DPI_BACKEND_TENSORRT_SHIM_H

#include <dpinfer/dpinfer.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TRT_SHIM_VERSION 1u
#define TRT_NAME_SIZE    256

typedef struct trt_library trt_library;
typedef struct trt_network trt_network; /* a parsed model, not yet built */
typedef struct trt_engine trt_engine;   /* an engine and one execution context */

typedef struct trt_entry_points {
    void *create_builder, *create_runtime, *create_parser; /* create_parser may be NULL: plans only */
} trt_entry_points;

/* severity as dpi_log_level; the text is TensorRT's, one line. Called from any of TensorRT's threads. */
typedef void (*trt_log_fn)(void *context, dpi_log_level severity, const char *text);

typedef struct trt_port {
    char name[TRT_NAME_SIZE];
    dpi_dtype dtype; /* DPI_DTYPE_NONE: one that dpinfer does not know */
    bool is_input;
    bool is_shape; /* read or written on the host: it decides shapes */
    int rank;      /* -1: unknown */
    int64_t shape[DPI_MAX_RANK];
} trt_port;

/* One input's range of shapes. */
typedef struct trt_profile {
    const char *name;
    int rank;
    int64_t min[DPI_MAX_RANK], opt[DPI_MAX_RANK], max[DPI_MAX_RANK];
} trt_profile;

typedef struct trt_facts {
    bool has_half, has_bf16, has_quantized; /* somewhere in the graph */
} trt_facts;

typedef enum trt_flag {
    TRT_FP16 = 1,
    TRT_BF16 = 2,
    TRT_INT8 = 4,
    TRT_TF32 = 8,
    TRT_OBEY = 16, /* each layer computes in the type that the graph gives it (weakly typed networks) */
} trt_flag;

typedef struct trt_build {
    unsigned flags; /* trt_flag */
    const trt_profile *profiles;
    size_t profile_count;
    uint64_t workspace_bytes; /* 0: TensorRT's default */
    int level;                /* 0 to 5; -1: TensorRT's default */
    const void *timing;       /* a timing cache to begin with, or NULL */
    size_t timing_bytes;
} trt_build;

typedef struct trt_blob {
    const void *data;
    size_t bytes;
    void *owner; /* for trt_shim.blob_free */
} trt_blob;

typedef struct trt_shim {
    unsigned version; /* TRT_SHIM_VERSION */
    int major;        /* of the headers it was built with */
    bool typed_only;  /* precision comes from the graph alone: no FP16, BF16, INT8, OBEY (TensorRT 11) */
    bool has_typed;   /* network_parse may be told `typed` */
    bool has_bf16;

    /* `log` is called until the process ends. NULL: out of memory. */
    trt_library *(*library_new)(const trt_entry_points *entry, trt_log_fn log, void *context);
    /* Errors since the last call, oldest first, joined by "; "; "" for none. Forgets them. */
    void (*last_errors)(trt_library *library, char *text, size_t size);

    /* Parses ONNX: a file (path) or bytes in memory (path NULL). typed: the graph's types are the precision. */
    trt_network *(*network_parse)(trt_library *library, const char *path, const void *data, size_t bytes, bool typed);
    void (*network_free)(trt_network *network);
    size_t (*network_ports)(const trt_network *network, trt_port *ports, size_t capacity); /* inputs, then outputs */
    trt_facts (*network_facts)(const trt_network *network);
    /* Leaves only these outputs to be computed; false when one is not the network's. */
    bool (*network_keep)(trt_network *network, const char *const *names, size_t count);
    /* Compiles: minutes. *plan and *timing (may be NULL) are ended by blob_free. */
    bool (*network_build)(trt_network *network, const trt_build *build, trt_blob *plan, trt_blob *timing);
    void (*blob_free)(trt_blob *blob);

    /* A plan on the current CUDA context's device. */
    trt_engine *(*engine_load)(trt_library *library, const void *plan, size_t bytes);
    void (*engine_free)(trt_engine *engine);
    size_t (*engine_ports)(const trt_engine *engine, trt_port *ports, size_t capacity);
    /* The range of an input's shapes (profile 0). */
    bool (*engine_profile)(const trt_engine *engine, const char *name, int64_t min[DPI_MAX_RANK],
                           int64_t max[DPI_MAX_RANK]);
    uint64_t (*engine_memory)(const trt_engine *engine); /* bytes of GPU memory for activations */
    bool (*set_shape)(trt_engine *engine, const char *input, const int64_t *shape, int rank);
    /* An output's shape for the inputs' present shapes; *rank -1 when it depends on data or inputs are missing. */
    bool (*get_shape)(const trt_engine *engine, const char *output, int64_t shape[DPI_MAX_RANK], int *rank);
    bool (*set_address)(trt_engine *engine, const char *name, void *device_memory);
    /* Starts the computation on a CUDA stream; shapes and addresses may be set anew right afterwards. */
    bool (*enqueue)(trt_engine *engine, void *stream);
} trt_shim;

/* The one symbol of the shared object. */
#define TRT_SHIM_SYMBOL "dpi_tensorrt_shim"
typedef const trt_shim *(*trt_shim_fn)(void);

#ifdef __cplusplus
}
#endif
#endif
