/*
 * The adapter to one inference library: one table of functions per backend. The worker knows only this table.
 *
 * Life of a backend in a worker:   load -> list_devices* -> open -> describe -> infer_shapes* -> run* -> close
 * An engine of depth > 1 is driven by enqueue and wait instead of run.
 * Everything is called from one thread at a time per engine. Functions return DPI_OK or fill `error` with one
 * sentence that names the file or device; a library's own words are quoted in it. Nothing here aborts, prints or
 * keeps a pointer of the caller beyond the call, except where a comment says so.
 */
#ifndef DPI_BACKEND_BACKEND_H
#define DPI_BACKEND_BACKEND_H

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"
#include "base/tensor.h"

#define BACKEND_MAX_DEPTH 8

/* A loaded library and a compiled model; each backend defines its own. */
typedef struct backend_library backend_library;
typedef struct backend_engine backend_engine;

/* Where an engine runs, as the worker was told. */
typedef struct backend_device {
    char kind[16];   /* "cpu", "cuda", "sim" */
    char name[192];  /* as written: "cpu:0-3" */
    int index;       /* number behind the colon where it is one, else 0 */
    const int *cpus; /* CPUs of a cpu device; the process is pinned to them already when `pinned` */
    size_t cpu_count;
    size_t threads; /* compute threads to use, >= 1 */
    bool pinned;
    bool in_caller;      /* thread isolation: the process is the user's: change nothing process-wide, keep it loaded */
    size_t worker;       /* number of the worker in its session */
    uint32_t generation; /* and of its start, from 1 */
} backend_device;

typedef struct backend_model {
    const char *path; /* NULL for a model in memory */
    const void *data; /* the bytes when path is NULL; they outlive the engine */
    size_t bytes;
    const char *format; /* "onnx", "xml", "sim", ...: the lower-case file suffix */
} backend_model;

typedef struct backend_load_options {
    const char *library; /* path given by the user, or NULL: search (see library.h) */
} backend_load_options;

typedef struct backend_open_options {
    const backend_model *model;
    const backend_device *device;
    dpi_precision precision;         /* DPI_PRECISION_MODEL: what the graph says, never silently lower */
    const char *const *output_names; /* outputs wanted, in this order; NULL: all. An unknown name is DPI_E_MODEL. */
    size_t output_count;
    size_t max_rows;      /* most rows of one call (a hint for memory and profiles) */
    const char *provider; /* execution provider, NULL: the default */
    const dpi_key_value *provider_options;
    size_t provider_option_count;
    const dpi_key_value *options; /* --backend-option; an unknown key is DPI_E_ARGUMENT and names the known ones */
    size_t option_count;
    int import_fd; /* >= 0: a file of export_engine to load instead of compiling; -1: compile */
    const logger *log;
    /* May be called from time to time while a long compile goes on (tells the supervisor that we live). NULL: don't. */
    void (*alive)(void *context);
    void *alive_context;
} backend_open_options;

/* One call of an engine: `rows` rows, dense, C order. Pointers are aligned to the element size at least. */
typedef struct backend_array {
    void *data;
    int rank;
    int64_t shape[DPI_MAX_RANK]; /* complete: no -1; shape[0] is `rows`, except for a broadcast input */
} backend_array;

typedef struct backend_call {
    size_t rows;
    const backend_array *inputs; /* in the order of describe; read only */
    backend_array *outputs;      /* in the order of describe; shapes as from infer_shapes; written in place */
} backend_call;

/* Parts of a call that the backend itself can tell apart, nanoseconds; those it cannot stay as they are (0). */
typedef struct backend_timing {
    uint64_t copy_in_ns, copy_out_ns, compute_ns; /* compute_ns 0: what is left of the whole */
} backend_timing;

typedef struct backend_library_info {
    char path[512];   /* of the library in use, "" for none */
    char version[64]; /* "1.32.0" */
} backend_library_info;

typedef struct backend_device_info {
    char name[192]; /* "cpu:all", "cuda:0" */
    char description[256];
    char precisions[64]; /* "fp32 bf16" */
    uint64_t memory_bytes;
} backend_device_info;

/* Where a worker stands with a slice: see worker_loop.c and worker_slice.c. */
typedef enum backend_step {
    STEP_CLAIMED = 1, /* the word is RUNNING */
    STEP_LOADED,      /* its rows are at hand */
    STEP_COMPUTED,    /* the engine is through with it */
    STEP_DELIVERED,   /* the results are in their place */
    STEP_DONE,        /* the word is DONE */
    STEP_COUNTED,     /* and taken off the hint of those left */
    STEP_RUNG,        /* and the waiter rung */
    STEP_LEAVING,     /* no slice's: the session closes, and the worker is about to end */
} backend_step;

typedef enum backend_threading {
    BACKEND_ENGINES_INDEPENDENT, /* several engines may run at once in one process */
    BACKEND_ONE_CPU_DEVICE,      /* one CPU device per process (its thread pool is the process's) */
} backend_threading;

typedef struct backend {
    const char *name;
    const char *formats;          /* file suffixes it opens, separated by blanks: "onnx xml" */
    const char *compiled_formats; /* those of them that are engines already: not cached. NULL: none */
    const char *run_options;  /* options that leave the compiled engine as it is: not in the cache's key. NULL: none */
    const char *device_kinds; /* "cpu" */
    backend_threading threading;
    bool single_flight;      /* compiling is dear: one worker builds, the others of its kind wait for the cache */
    bool deterministic_rows; /* false: rows may change with the slice size even in the model's precision */

    /* Finds and loads the library and checks its version. DPI_E_BACKEND says which file was looked for, where, and
     * what to install. `log` outlives the library. */
    dpi_status (*load)(const backend_load_options *options, const logger *log, backend_library **library,
                       dpi_error *error);
    /* Undoes load; may leave the library mapped. */
    void (*unload)(backend_library *library);
    void (*library_info)(const backend_library *library, backend_library_info *info);
    /* Fills at most `capacity` entries and sets *count to how many there are. */
    dpi_status (*list_devices)(backend_library *library, backend_device_info *list, size_t capacity, size_t *count,
                               dpi_error *error);

    /* Adds what decides a compiled engine beyond model, library version, CPU, threads, precision and options: the kind
     * of GPU, its driver. For the cache's key. DPI_E_DEVICE when there is no such device. NULL: nothing. */
    dpi_status (*hash_device)(backend_library *library, const backend_device *device, hash_state *state,
                              dpi_error *error);

    /* Compiles (or imports) the model for the device. */
    dpi_status (*open)(backend_library *library, const backend_open_options *options, backend_engine **engine,
                       dpi_error *error);
    void (*close)(backend_engine *engine);
    /* In the place of close, where the process ends at once: removes what would outlast it, such as files, and destroys
     * nothing. The engine is not used any more. NULL: nothing outlasts it. */
    void (*leave)(backend_engine *engine);
    /* The model's inputs and the wanted outputs. Everything of a dtype that dpinfer does not know (strings) or of a
     * kind that is no dense tensor is DPI_E_MODEL and names the port. */
    dpi_status (*describe)(const backend_engine *engine, signature *sig, dpi_error *error);
    /* Complete output shapes for complete input shapes (data pointers are not looked at). DPI_E_MODEL when they
     * depend on data. May run the engine; remembers what it found. */
    dpi_status (*infer_shapes)(backend_engine *engine, const backend_array *inputs, backend_array *outputs,
                               dpi_error *error);
    /* Adds what decides the engine's bits beyond model, library version, ISA, threads, precision and options, or
     * nothing. NULL: nothing. */
    void (*fingerprint)(const backend_engine *engine, hash_state *state);

    /* Told once, by probe_run, when the engine has passed its probe: what comes now is work. NULL: no use for it. */
    void (*ready)(backend_engine *engine);

    /* Told between the steps of a slice's life, so that sim can die there. NULL but for sim. */
    void (*step)(backend_engine *engine, backend_step step);

    /* Most rows of one call where the engine itself sets a limit, else 0. NULL: 0. */
    size_t (*max_rows)(const backend_engine *engine);
    /* Calls in flight that pay, 1 up to BACKEND_MAX_DEPTH. NULL: 1. */
    int (*depth)(const backend_engine *engine);
    /* depth 1: computes and returns when the outputs are written. NULL where every engine has more. */
    dpi_status (*run)(backend_engine *engine, const backend_call *call, backend_timing *timing, dpi_error *error);
    /* depth > 1: starts a call in `slot` (0..depth-1, free again after its wait) and waits for it; waits come in the
     * order of the enqueues. The call and all memory it names stay until then. A failure of either leaves the slot free
     * and none of the call's memory in use. NULL where no engine has more than depth 1. */
    dpi_status (*enqueue)(backend_engine *engine, int slot, const backend_call *call, dpi_error *error);
    dpi_status (*wait)(backend_engine *engine, int slot, backend_timing *timing, dpi_error *error);
    /* depth > 1, for measuring: brings the rows of `call` in, computes them `times` times over and waits; no results
     * come out. *ns is what the device itself took for the computations, which is what the engine gives when no rows
     * travel. Nothing else may be in flight. NULL: the engine works on the host's memory. */
    dpi_status (*compute_alone)(backend_engine *engine, const backend_call *call, size_t times, uint64_t *ns,
                                dpi_error *error);

    /* Memory that calls will read from or write to, told once when first seen; lets GPUs copy from it directly.
     * NULL: no use for it. A failure is not an error: copies are slower. */
    void (*memory_register)(backend_engine *engine, void *memory, size_t bytes, bool writable);
    void (*memory_unregister)(backend_engine *engine, void *memory);

    /* Writes the compiled engine to `fd` (at its current end). NULL: there is nothing to cache. */
    dpi_status (*export_engine)(backend_engine *engine, int fd, dpi_error *error);
} backend;

/* The backends of this build, in the documented default order; *count of them. Static storage. */
const backend *const *backend_list(size_t *count);
/* By name; NULL when there is none. */
const backend *backend_find(const char *name);
/* The first of backend_list that opens files of this format on devices of this kind (NULL: any kind); NULL: none. */
const backend *backend_for(const char *format, const char *device_kind);
/* Whether the blank-separated `list` holds `word`. */
bool backend_lists(const char *list, const char *word);
/* Lower-case suffix of a path ("onnx"), "" when there is none; at most 15 characters are kept. */
void backend_format_of(const char *path, char format[16]);
/* Value of the option `key`, NULL when it is not given. */
const char *backend_option(const backend_open_options *options, const char *key);
/* DPI_E_ARGUMENT when an option's key is not in the blank-separated list `known`, naming it and them. */
dpi_status backend_check_options(const backend_open_options *options, const char *backend_name, const char *known,
                                 dpi_error *error);

extern const backend backend_tensorrt, backend_openvino, backend_onnxruntime, backend_aoti, backend_sim;

#endif
