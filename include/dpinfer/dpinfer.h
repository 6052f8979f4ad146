/*
 * dpinfer: data-parallel neural-network inference on every device of one machine.
 *
 * The model of this interface
 * ---------------------------
 * A *session* is one trained model opened on a list of devices. Each device is owned by one *worker*, a process of
 * its own (isolation=thread puts it into the caller's process). A *batch* is the rows of one call; a row is one
 * sample, index 0 of the first axis. dpi_forward and dpi_submit split a batch that the caller holds in memory;
 * dpi_run shards a data set that the workers read and write by themselves. Results come back in order, exactly once.
 *
 * Conventions
 * -----------
 * - Functions return a dpi_status; DPI_OK is 0. Every one takes a `dpi_error *` (may be NULL) that receives the
 *   status and one sentence: what happened, to which file or device, and what to do next.
 * - Structures that the caller fills begin with `struct_size = sizeof(the structure)`; every other field may be zero,
 *   which always means the default. DPI_INIT(type) does both.
 * - Strings are UTF-8 and copied unless a comment says otherwise. Shapes are in elements, sizes in bytes, times in
 *   the unit of the name.
 * - A session may be used from several threads at once. dpi_close must be the last call on it.
 * - After fork(), a child may only call dpi_close on an inherited session, which unmaps and nothing else; every
 *   other call returns DPI_E_FORKED.
 * - dpinfer starts one thread per session in the caller's process (the supervisor); isolation=thread and strict, traces
 *   and runs from .npz start more. It installs no signal handler.
 */
#ifndef DPINFER_DPINFER_H
#define DPINFER_DPINFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define DPI_API __attribute__((visibility("default")))
#else
#define DPI_API
#endif

/* ---- status and errors ------------------------------------------------------------------------------------------ */

/* One row per status: name, number, who is at fault ('u' the user's mistake: exit code 2, 'r' run time: exit code 1,
 * 'b' the data: exit code 3, '-' nobody), meaning. Grouped by what broke. */
#define DPI_STATUS_LIST(X)                                                                                             \
    X(DPI_OK, 0, '-', "done")                                                                                          \
    X(DPI_BUSY, 1, '-', "the queue is full")                                                                           \
    X(DPI_TIMEOUT, 2, '-', "the deadline passed; the batch goes on")                                                   \
    X(DPI_CANCELLED, 3, '-', "cancelled by the caller")                                                                \
    X(DPI_BAD_ROWS, 4, 'b', "done, but for rows that cannot be computed")                                              \
    X(DPI_E_ARGUMENT, 16, 'u', "an argument or option is wrong")                                                       \
    X(DPI_E_MODEL, 17, 'u', "the model cannot be used")                                                                \
    X(DPI_E_BACKEND, 18, 'u', "the backend or its library cannot be used")                                             \
    X(DPI_E_DEVICE, 19, 'u', "the device does not exist or lacks what was asked")                                      \
    X(DPI_E_DATA, 20, 'u', "a source, sink, dtype or shape is wrong")                                                  \
    X(DPI_E_ENGINE, 32, 'r', "the engine failed while running")                                                        \
    X(DPI_E_WORKER, 33, 'r', "a worker died, hung or broke the protocol")                                              \
    X(DPI_E_IO, 34, 'r', "reading or writing failed")                                                                  \
    X(DPI_E_SYSTEM, 35, 'r', "the operating system refused, or memory ran out")                                        \
    X(DPI_E_CLOSED, 36, 'r', "the session has failed or is closing")                                                   \
    X(DPI_E_FORKED, 37, 'u', "the session belongs to the process before fork()")                                       \
    X(DPI_E_INTERNAL, 38, 'r', "an invariant of dpinfer itself does not hold")

/* What a call came to. dpi_status_exit_code says which numbers are whose fault. */
typedef enum dpi_status {
#define X(name, number, blame, text) name = number,
    DPI_STATUS_LIST(X)
#undef X
} dpi_status;

/* Filled by every call that is given one. Memory of the caller; one for each thread. */
typedef struct dpi_error {
    dpi_status status;
    char message[1020]; /* always terminated; empty when status is DPI_OK */
} dpi_error;

/* Name of a status ("DPI_E_MODEL"), or "?" for a number that is none. Never NULL; static storage. */
DPI_API const char *dpi_status_name(dpi_status status);
/* Exit code for a program that ends with this status: 0, 1, 2 or 3. */
DPI_API int dpi_status_exit_code(dpi_status status);

/* "0.1.0"; static storage. */
DPI_API const char *dpi_version(void);

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* name, number (fixed for ever: it crosses processes and files), bytes per element, short name */
#define DPI_DTYPE_LIST(X)                                                                                              \
    X(DPI_BOOL, 1, 1, "bool")                                                                                          \
    X(DPI_I8, 2, 1, "int8")                                                                                            \
    X(DPI_U8, 3, 1, "uint8")                                                                                           \
    X(DPI_I16, 4, 2, "int16")                                                                                          \
    X(DPI_U16, 5, 2, "uint16")                                                                                         \
    X(DPI_I32, 6, 4, "int32")                                                                                          \
    X(DPI_U32, 7, 4, "uint32")                                                                                         \
    X(DPI_I64, 8, 8, "int64")                                                                                          \
    X(DPI_U64, 9, 8, "uint64")                                                                                         \
    X(DPI_F16, 10, 2, "float16")                                                                                       \
    X(DPI_BF16, 11, 2, "bfloat16")                                                                                     \
    X(DPI_F32, 12, 4, "float32")                                                                                       \
    X(DPI_F64, 13, 8, "float64")

/* The type of an element: its number, its size in bytes, its name. */
typedef enum dpi_dtype {
    DPI_DTYPE_NONE = 0,
#define X(name, number, bytes, text) name = number,
    DPI_DTYPE_LIST(X)
#undef X
} dpi_dtype;

/* Bytes of one element, 0 for a number that is no dtype. */
DPI_API size_t dpi_dtype_size(dpi_dtype dtype);
/* "float32" and so on, "?" for a number that is no dtype. Static storage. */
DPI_API const char *dpi_dtype_name(dpi_dtype dtype);

/* Most axes of a tensor, the row axis among them. */
#define DPI_MAX_RANK 8

/* A dense, C-ordered array. Axis 0 is the row axis, except for a broadcast input. */
typedef struct dpi_tensor {
    const char *name; /* of the model's input or output; NULL: by position */
    dpi_dtype dtype;
    int rank;
    int64_t shape[DPI_MAX_RANK]; /* in a description, -1 stands for an axis that the data decides */
    void *data;                  /* borrowed; see each function */
} dpi_tensor;

/* ---- session ---------------------------------------------------------------------------------------------------- */

/* A model opened on its devices; made by dpi_open, ended by dpi_close. */
typedef struct dpi_session dpi_session;

/* What the engine computes in. Inputs and outputs keep the model's dtypes. */
typedef enum dpi_precision {
    DPI_PRECISION_MODEL = 0, /* the model's own; never silently lower */
    DPI_PRECISION_FP32,
    DPI_PRECISION_TF32,
    DPI_PRECISION_FP16,
    DPI_PRECISION_BF16,
} dpi_precision;

/* Where workers run. */
typedef enum dpi_isolation {
    DPI_ISOLATION_PROCESS = 0, /* one process per worker */
    DPI_ISOLATION_THREAD,      /* workers are threads of the caller (one device: the caller's own thread). Lost: a
                                  crash of the engine is a crash of the caller, a hang cannot be ended. Not every
                                  backend allows more than one device this way. */
    DPI_ISOLATION_STRICT,      /* as DPI_ISOLATION_PROCESS, and a worker gone mad can spoil no rows but those of slices
                                  that it was given: results are copied once more, by a thread of the caller's for each
                                  worker, and dpi_run writes all files itself. Outputs stand in memory twice, at worst
                                  once more for each worker. */
} dpi_isolation;

/* How callers and workers wait for each other. */
typedef enum dpi_wait_mode {
    DPI_WAIT_AUTO = 0, /* spin only where every waiter has a core of its own, else yield briefly and block */
    DPI_WAIT_BLOCK,    /* futex at once */
    DPI_WAIT_YIELD,    /* spin with sched_yield, never block while a batch is in flight */
    DPI_WAIT_SPIN,     /* spin without yielding; for callers and workers that each have a core of their own */
} dpi_wait_mode;

/* Lines up to this level are told; the higher ones are left out. */
typedef enum dpi_log_level { DPI_LOG_ERROR = 1, DPI_LOG_WARNING, DPI_LOG_INFO, DPI_LOG_DEBUG } dpi_log_level;

/* Receives one line, without newline. Called from any thread that runs dpinfer code; must not call dpinfer. */
typedef void (*dpi_log_fn)(void *context, dpi_log_level level, const char *line);

/* One option by name. Both are strings. */
typedef struct dpi_key_value {
    const char *key;
    const char *value;
} dpi_key_value;

/* A row that kills or fails every worker that computes it: found by halving the slice that held it. */
typedef enum dpi_on_bad_row {
    DPI_BAD_ROW_FAIL = 0, /* its batch or run fails, with an error that names the row */
    DPI_BAD_ROW_SKIP,     /* its outputs are NaN (0 where the dtype has none), the other rows are computed; the call
                             returns DPI_BAD_ROWS. A row that the engine refuses with an error is treated alike. */
} dpi_on_bad_row;

/* A row that was left out, as a dpi_bad_row_fn is told of it. */
typedef struct dpi_bad_row {
    uint64_t row;       /* of the batch; of the source in dpi_run */
    const char *reason; /* valid during the call */
} dpi_bad_row;

/* Told of each bad row that was left out, by the thread in dpi_wait, dpi_forward or dpi_run before that returns; a
 * dpi_run that goes on with an earlier one begins with the rows that were left out then. */
typedef void (*dpi_bad_row_fn)(void *context, const dpi_bad_row *row);

/* Receives what happens to workers, one JSON object a line without newline: {"event": "started" | "died" | "replayed" |
 * "retired" | "bad_row" | "resumed" | ..., "worker": 1, "device": "sim:1", ...}; docs/reliability.md lists them all.
 * Called from dpinfer's own thread, and by a dpi_run that goes on with an earlier one from that thread, never by two at
 * a time; must not call dpinfer. */
typedef void (*dpi_event_fn)(void *context, const char *json);

/* The smallest of 1, 2, 4, ... 256 rows within 2 % of the best rate that fits in the device's memory; the least of all
 * devices. Excludes a fixed split. dpi_describe tells what was chosen. */
#define DPI_BATCH_AUTO ((size_t)-1)

/* How a session is opened. Everything is copied by dpi_open, but for the functions log, bad_row and event, which are
 * called with their contexts until dpi_close returns. */
typedef struct dpi_options {
    size_t struct_size;

    /* The model: a path, or bytes in memory (borrowed until dpi_open returns). */
    const char *model_path;
    const void *model_data;
    size_t model_bytes;
    const char *model_format; /* of model_data: "onnx" (default), "sim" */

    const char *
        devices; /* "auto" (default), or a list: "cpu:0,cpu:1", "cpu:0-3,8-11", "cpu:all", "cpu:numa0", "cuda:0,cuda:1",
                    "cuda:GPU-...", "sim:0*64". auto: all GPUs where a backend can use them, else the cores */
    const char *backend; /* NULL: the first that opens this kind of file */
    const char *library; /* path of the backend's library; NULL: environment, beside the program, Python environment */
    dpi_precision precision;

    size_t batch;                  /* most rows of one slice, per device; 0: 64; DPI_BATCH_AUTO: measured at open */
    size_t total_batch_size;       /* fixed split: even shares of this many rows, the remainder spread; 0: adaptive */
    const size_t *batch_size_list; /* fixed split: one share per device (zero allowed for some); NULL: adaptive */
    size_t batch_size_count;

    const char *const *output_names; /* the outputs wanted, in this order; NULL: all of the model's */
    size_t output_count;
    const dpi_tensor *broadcast; /* inputs that are the same for every row: name, dtype, shape, data; copied */
    size_t broadcast_count;
    bool trust_rows;    /* skip the refusal of models whose rows depend on each other */
    bool deterministic; /* refuse a set of devices whose engines are not bit-identical */

    dpi_isolation isolation;
    dpi_wait_mode wait_mode;
    size_t queue_depth;       /* batches in flight at most; 0: 16, at most 64 */
    uint64_t arena_max_bytes; /* of inputs, and of outputs; 0: the machine's memory */

    const char *provider; /* onnxruntime: execution provider; NULL: CPU */
    const dpi_key_value *provider_options;
    size_t provider_option_count;
    const dpi_key_value *backend_options; /* passed to the backend; "2.key" applies to worker 2 alone */
    size_t backend_option_count;

    const char *worker_path;     /* the worker program; NULL: DPINFER_WORKER, beside the library, ../libexec/dpinfer */
    const char *cache_dir;       /* NULL: $DPINFER_CACHE, $XDG_CACHE_HOME/dpinfer or ~/.cache/dpinfer; "": no cache */
    uint64_t cache_max_bytes;    /* 0: 10 GiB */
    uint32_t compile_timeout_ms; /* 0: 600,000; also the limit of the first run of a new shape */
    uint32_t slice_timeout_ms;   /* 0: the larger of 10 s and 20 times the prediction */

    dpi_log_fn log; /* NULL: warnings and errors to standard error */
    void *log_context;
    dpi_log_level log_level; /* 0: warnings */

    /* Workers that die or hang are replaced, and what they were at is computed by others. */
    dpi_on_bad_row on_bad_row;
    uint64_t max_bad_rows; /* more of them in one batch or run are a failure; 0: 1,000 */
    dpi_bad_row_fn bad_row;
    void *bad_row_context;
    uint32_t max_deaths; /* of a device in a row, not explained by a bad row, until it is given up; 0: 5 */
    dpi_event_fn event;
    void *event_context;

    /* Worker processes have the least that they need: see "What a worker may do" in docs/architecture.md. */
    bool no_sandbox;              /* leave out Landlock and seccomp */
    bool core_dumps;              /* keep the caller's limit on core files, which hold rows and weights; else none */
    uint64_t worker_memory_bytes; /* each worker's own memory (heap, stacks; not arenas and mapped files); beyond it
                                     the engine fails or the worker dies; 0: no limit */

    /* dpi_feed_open may be called. Other processes of the caller's can then map the inputs writable. Workers have a
     * read-only descriptor, and one that is confined can open nothing for writing; where they are not (GPUs,
     * no_sandbox), no seal keeps one that has gone mad from opening it anew. */
    bool producers;
    const char *const *data_folders; /* that workers may read besides: where images and tars of a dpi_run stand, and
                                        where links among them lead to */
    size_t data_folder_count;
    /* A trace of what every worker does until dpi_close, slice by slice, for Perfetto or chrome://tracing; at most 1
     * GiB. It has this name when the session is closed, and is FILE.part until then. Not in it: batches that the
     * caller's own thread computes (isolation=thread with one device). NULL: none. */
    const char *trace_path;
} dpi_options;

#ifdef __cplusplus
#define DPI_INIT(type)                                                                                                 \
    ([]() {                                                                                                            \
        type dpi_new = type();                                                                                         \
        dpi_new.struct_size = sizeof(type);                                                                            \
        return dpi_new;                                                                                                \
    }())
#else
/* A structure of this type with its struct_size, everything else zero: dpi_options o = DPI_INIT(dpi_options); */
#define DPI_INIT(type) ((type){.struct_size = sizeof(type)})
#endif

/* Opens a model on its devices: starts all workers at once and returns when every one is ready.
 * On success *session is the caller's, to be ended by dpi_close; on failure it is NULL and nothing is left running.
 * Blocks for as long as the slowest device takes to load or compile. */
DPI_API dpi_status dpi_open(const dpi_options *options, dpi_session **session, dpi_error *error);

/* Ends the session: cancels what is in flight, ends the workers, frees everything, also buffers of dpi_alloc.
 * NULL is fine. Never fails; takes at most a few seconds. */
DPI_API void dpi_close(dpi_session *session);

/* ---- devices of an open session --------------------------------------------------------------------------------- */

/* Adds devices, or brings back those that were given up or removed, while batches and a dpi_run go on.
 * `devices`: a list as in dpi_options.devices without "auto". A name whose device was given up or removed is that
 * device again: its worker number, its statistics, deaths in a row forgotten. Any other name is a new device, also one
 * that the session has already (two workers then share it, as in "cpu:0*2"); it gets the next number.
 * Blocks until all of them are ready, and then they take part: in what is planned from now on, in what is in flight as
 * far as others are to give something up (stolen and orphaned slices), and in a dpi_run from its next slice on. All or
 * none: when one does not start, none is added and none is left running.
 * A new worker passes what workers pass at dpi_open: the same files of program and model, the probe, the same inputs
 * and outputs, the same bits from the same engine. Another engine than the others' makes the session mixed
 * (dpi_describe shows it); it is refused by `deterministic`, and while a dpi_run is under way, whose result must have
 * one origin. A device that comes back must have the engine that it had. Refused as well: a device that takes fewer
 * rows at once than the session's slices have, and one whose bits depend on the slice size in a session that has not
 * fixed it. A fixed split by total_batch_size is spread anew; one by batch_size_list only takes back its own devices.
 * timeout_ms: 0: as long as the compile timeout allows; > 0: then the workers are ended, DPI_TIMEOUT.
 * At most 256 names a session, removed ones included. Any thread; one change of a session at a time, others wait.
 * DPI_E_ARGUMENT: isolation=thread, "auto", a timeout below 0. DPI_E_DEVICE: no such device, too many, another engine.
 * Otherwise what dpi_open would say. After any error the session goes on as it was. */
DPI_API dpi_status dpi_device_add(dpi_session *session, const char *devices, int64_t timeout_ms, dpi_error *error);

/* Removes devices while batches and a dpi_run go on. `devices`: a list as above; of several workers of one name the
 * one with the highest number goes first. They get nothing any more, what was planned for them and not begun is free
 * for the others at once, the slices that they have begun are finished, then their workers end. One that dies or hangs
 * meanwhile is treated as always (its slices are replayed), but for the restart. A device that was given up is removed
 * at once, and so is one that is just being started again. Its number and statistics stay, its pid is 0.
 * A fixed split by total_batch_size is spread over those that stay; the shares of a batch_size_list stay what they are,
 * and the others compute those of a device that is not there.
 * Blocks until the workers are gone. timeout_ms: 0: for ever (a slice's limit bounds it); otherwise DPI_TIMEOUT, and
 * the removal goes on; the same call waits for it again (< 0: only begins it). Any thread, as dpi_device_add.
 * DPI_E_DEVICE: the session has no such device, or none would be left: then nothing is removed. DPI_E_ARGUMENT:
 * isolation=thread. */
DPI_API dpi_status dpi_device_remove(dpi_session *session, const char *devices, int64_t timeout_ms, dpi_error *error);

/* ---- one batch -------------------------------------------------------------------------------------------------- */

/* Names a submitted batch of its session; 0 is none. */
typedef uint64_t dpi_ticket;

/* What dpi_submit puts in flight. The structure and its arrays are the caller's again when that returns; what their
 * `data` leads to, see there. */
typedef struct dpi_batch {
    size_t struct_size;
    const dpi_tensor *inputs; /* all inputs that are not broadcast; equal shape[0]; shape[0] may be 0 */
    size_t input_count;
    /* Where results go. For each output of the session, in its order or by name: `data` is memory of the caller
     * large enough for its rows (dtype and shape are checked when rank > 0), or NULL for a view of the session's own
     * memory. NULL array: views of all. Memory from dpi_alloc(DPI_OUTPUT) is written in place by the workers; plain
     * memory is filled by the thread that waits. */
    const dpi_tensor *outputs;
    size_t output_count;
    int64_t queue_timeout_ms; /* how long to wait for room in a full queue: 0 for ever, < 0 not at all (DPI_BUSY) */
} dpi_batch;

/* Puts a batch in flight. Input memory that is not from dpi_alloc has been copied when this returns; memory from
 * dpi_alloc belongs to the session until the batch is terminal, as do output buffers. Any thread. */
DPI_API dpi_status dpi_submit(dpi_session *session, const dpi_batch *batch, dpi_ticket *ticket, dpi_error *error);

/* Waits for a batch until it is terminal or timeout_ms has passed (0: for ever; < 0: only look).
 * `outputs` (may be NULL) receives name, dtype, shape and data of every output. On DPI_TIMEOUT the batch goes on and
 * can be waited for again. Any other status ends the ticket, except that a ticket with views stays until dpi_release.
 * One thread at a time per ticket. */
DPI_API dpi_status dpi_wait(dpi_session *session, dpi_ticket ticket, int64_t timeout_ms, dpi_tensor *outputs,
                            size_t output_count, dpi_error *error);

/* Gives the views of a finished ticket back. After it their memory must not be read. */
DPI_API dpi_status dpi_release(dpi_session *session, dpi_ticket ticket, dpi_error *error);

/* Asks a batch in flight to end early: slices that have not started are dropped. The ticket still has to be waited
 * for; dpi_wait then returns DPI_CANCELLED, or DPI_OK where everything had been done already. */
DPI_API dpi_status dpi_cancel(dpi_session *session, dpi_ticket ticket, dpi_error *error);

/* dpi_submit and dpi_wait in one. `timeout_ms` covers both (0: for ever). After DPI_TIMEOUT the batch is abandoned:
 * it finishes by itself, its buffers from dpi_alloc stay the session's until then, plain output memory is not
 * touched any more. Outputs must be memory of the caller (no views). */
DPI_API dpi_status dpi_forward(dpi_session *session, const dpi_tensor *inputs, size_t input_count,
                               const dpi_tensor *outputs, size_t output_count, int64_t timeout_ms, dpi_error *error);

/* A descriptor that is readable while at least one batch has become terminal since it was last read (8 bytes, as an
 * eventfd). Owned by the session; for poll, epoll and event loops. -1 with an error where there is none. */
DPI_API int dpi_event_fd(dpi_session *session, dpi_error *error);

/* What memory of dpi_alloc is for: rows that workers read, or rows that they write. */
typedef enum dpi_direction { DPI_INPUT = 1, DPI_OUTPUT = 2 } dpi_direction;

/* Memory that every worker sees, so that batches in it are not copied. Aligned to 4,096 bytes, not cleared.
 * NULL with an error when the arena's limit is reached. Freed by dpi_free or dpi_close. Any thread. */
DPI_API void *dpi_alloc(dpi_session *session, size_t bytes, dpi_direction direction, dpi_error *error);
/* NULL is fine. A buffer that a batch in flight still uses is freed when that batch is terminal. */
DPI_API dpi_status dpi_free(dpi_session *session, void *memory, dpi_error *error);

/* ---- a data set ------------------------------------------------------------------------------------------------- */

/* How far a dpi_run is. The library's memory, valid during the call of dpi_progress_fn. */
typedef struct dpi_progress {
    size_t struct_size;
    uint64_t rows_done;
    uint64_t rows_total;
    double seconds;              /* since the run began */
    const uint64_t *worker_rows; /* rows finished by each worker; valid during the call */
    size_t worker_count;         /* grows when a device is added */
    uint64_t rows_resumed;       /* of rows_done: finished by an earlier run that this one goes on with */
} dpi_progress;

/* Called from the thread in dpi_run, about ten times a second and once at the end; while standard input is being read
 * or compressed tars are unpacked with all numbers 0. Non-zero: finish the slices in flight and return DPI_CANCELLED; it is not called while that lasts. */
typedef int (*dpi_progress_fn)(void *context, const dpi_progress *progress);

/* How images become rows (sources of images and tars). What is 0 or NULL follows the recipe, and size, channels, layout
 * and dtype follow the model's input wherever its shape tells: uint8 inputs get pixels as they are, float inputs
 * (pixel * scale - mean) / std. The pixels are those of torchvision's Resize (antialias) and CenterCrop of the decoded
 * image within 1/255 for nearly all values; what differs, docs/images.md says. */
typedef struct dpi_preprocess {
    size_t struct_size;
    const char *recipe; /* "imagenet": the shorter side becomes crop * 256 / 224, bilinear, ImageNet's mean and std;
                           "clip": the shorter side becomes crop, bicubic, CLIP's mean and std; "none": neither resized
                           nor scaled, an image of another size than the model's is a bad row.
                           NULL: "imagenet" for a uint8 input, "none" where scale, mean or std are given */
    uint32_t resize[2]; /* {N, 0}: the shorter side becomes N; {H, W}: exactly these */
    uint32_t crop[2];   /* {H, W} of what is cut out of the centre; {N, 0}: N x N. For inputs whose size is free */
    const double *mean, *std;  /* three each, for the channels as they stand in the row */
    double scale;              /* of pixels 0 to 255 */
    const char *layout;        /* "nchw" or "nhwc" */
    const char *interpolation; /* "bilinear" or "bicubic" */
    const char *color;         /* "rgb" or "bgr" */
    const char *member;        /* of a tar's samples: the suffix of the image, "jpg"; NULL: the first image */
    uint64_t max_pixels;       /* more of them make an image a bad row; 0: 178,956,970 */
    uint64_t max_image_bytes;  /* so does a larger file; 0: 256 MiB */
} dpi_preprocess;

/* Consecutive rows of a run's result, for whoever takes them himself. All of it holds until the call returns. */
typedef struct dpi_rows {
    size_t struct_size;
    uint64_t first;            /* the first one's number in the sources */
    size_t count;              /* 1 or more */
    const dpi_tensor *outputs; /* those with the sink "rows", in the model's order: `count` rows each, C-ordered */
    size_t output_count;
    const char *const *names; /* `count` of them, any bytes; NULL: the sources have no names */
    const bool *bad;          /* `count` of them: could not be computed, their outputs are NaN or 0; NULL: none is */
} dpi_rows;
/* Called in dpi_run's thread. Returns 0 to go on; anything else ends the run with DPI_CANCELLED. */
typedef int (*dpi_rows_fn)(void *context, const dpi_rows *rows);

/* What a dpi_run reads, writes and tells. Everything is the caller's and stays as it is until dpi_run returns. */
typedef struct dpi_run_options {
    size_t struct_size;
    /* Sources, one per input: "[NAME=]FILE.npy", "[NAME=]FILE.npz[:MEMBER]", "[NAME=]raw:SHAPE:DTYPE:FILE" (rows one
     * after another, nothing else) or "[NAME=]random:SHAPE:DTYPE:N" (SHAPE as 3x224x224 without the row axis); "-" or
     * "raw:SHAPE:DTYPE:-" is standard input, of which a pipe is first copied to an unlinked file in TMPDIR, at most
     * spool_max_bytes. "FILE.npz" without NAME is the source of every input whose name a member has. Stored members are
     * read in place, and their checksum is compared where all of their rows are read: DPI_E_DATA, and no sink gets its
     * name, where it is another; deflated ones are inflated into memory first. Row i of every source belongs to row i
     * of the result. Images: a folder (the images in it and below, sorted by path, bytewise), a pattern "photos/a*.jpg"
     * (sorted), one image, a list "FILE.txt" of paths (one a line, in this order, relative to the list), each of them
     * with or without "images:" in front; or WebDataset tars, "FILE.tar", a pattern or "shards-{000..009}.tar" (one row
     * per sample, in the tars' order), also .tar.gz, .tgz, .tar.zst, .tar.xz, .tar.bz2 and .tar.lz4, whose images are
     * first unpacked to an unlinked file in TMPDIR; what they hold counts up to spool_max_bytes. Their folders must be
     * among dpi_options.data_folders. An image that cannot be had is a bad row (DPI_BAD_ROWS) with its name. */
    const char *const *inputs;
    size_t input_count;
    /* Sinks: "[NAME=]FILE.npy", "[NAME=]FILE.npz" (one archive with a member for each output that it is named for;
     * without NAME for every output that has no other sink), "[NAME=]FILE.csv" or "[NAME=]FILE.jsonl" (the top classes
     * of a row, with its name where the source has names), "[NAME=]rows" (take_rows gets them) or "none". */
    const char *const *outputs;
    size_t output_count;
    uint64_t row_begin, row_end; /* rows A:B of the sources; row_end 0: to the end */
    size_t top;                  /* classes per row in a text sink; 0: 1 */
    const char *labels_path;     /* class names, one a line, for text sinks; NULL: numbers */
    bool no_overwrite;           /* refuse when an output file exists */
    dpi_progress_fn progress;
    void *progress_context;
    bool restart;                     /* begin anew where an earlier run has left finished rows */
    bool no_journal;                  /* a run that is stopped leaves nothing */
    uint32_t journal_interval_ms;     /* how much work a kill may cost; 0: 1,000 */
    const dpi_preprocess *preprocess; /* for sources of images; NULL: all by the model */
    uint32_t loader_threads;          /* of each worker, that decode images; 0: as many as it has processors */
    uint64_t spool_max_bytes;         /* of what is kept in TMPDIR while it lasts: standard input that is a pipe, and
                                         what compressed tars hold; for each source, 0: 64 GiB */
    dpi_rows_fn take_rows;            /* gets the rows of the outputs with the sink "rows", as they come, in order, each
                                         once. Such a run has no sinks that are files, and begins anew each time */
    void *take_rows_context;
} dpi_run_options;

/* What a dpi_run has done, whatever it came to; without rows where it was refused. */
typedef struct dpi_run_result {
    size_t struct_size;
    uint64_t rows;
    double seconds;
    uint64_t resumed_rows; /* of `rows`: finished by an earlier run */
} dpi_run_result;

/* Computes every row of the sources and writes the sinks, which appear under their names only when whole: until then
 * they are FILE.part. A run that is stopped (killed, cancelled, a device failed, the disk was full) leaves FILE.part
 * and FILE.part's record of finished rows, FILE.journal; the same call then goes on where it ended and gives the same
 * bytes. DPI_E_DATA when model, engine, sources, options or outputs have changed meanwhile. Blocks; one run at a time
 * per session. Batches of other threads take their turn behind the chunks that are in flight (3 x 4,096 slices at
 * most): open a session of their own for quick answers.
 */
DPI_API dpi_status dpi_run(dpi_session *session, const dpi_run_options *options, dpi_run_result *result,
                           dpi_error *error);

/* ---- producers --------------------------------------------------------------------------------------------------- */

/*
 * Other processes of the caller's, such as loaders of a data set, write rows straight into memory that workers read.
 * The caller deals *ranges* of consecutive rows over a ring of slots; a producer reserves one, writes its rows and
 * fills it; the caller takes them in order, submits them as batches (dpi_submit, without a copy) and releases them.
 * Ranges that a producer had reserved when it died are dealt again.
 *
 * Caller:     dpi_feed_open, dpi_feed_connect once per producer (its socket goes to a child), then in a loop
 * dpi_feed_next, dpi_submit, dpi_wait, dpi_feed_release; dpi_feed_close. One thread at a time per feed. Producer:
 * dpi_producer_open, then dpi_producer_reserve and _fill until DPI_E_CLOSED; dpi_producer_close. One thread at a time;
 * it needs this library, of the same build, and no session.
 */
typedef struct dpi_feed dpi_feed;
/* The producer's end of a feed; made by dpi_producer_open, ended by dpi_producer_close. */
typedef struct dpi_producer dpi_producer;

/* What the ranges of a feed look like. Read by dpi_feed_open and not kept. */
typedef struct dpi_feed_options {
    size_t struct_size;
    const dpi_tensor *inputs; /* those that a batch must bring, in the session's order: dtype, rank, shape; shape[0] and
                                 data are not looked at */
    size_t input_count;
    uint64_t rows; /* of the data set. UINT64_MAX: not known; range r is then producer r % producers' (in the order of
                      connecting), and a producer ends by filling its `last` range */
    size_t range_rows; /* rows of a range; the last one of a known number may have fewer */
    size_t slots;      /* ranges in memory at most, 2 to 256 */
    size_t producers;  /* 1 to 1,024 */
} dpi_feed_options;

/* Consecutive rows of the data set, which one producer fills. */
typedef struct dpi_range {
    uint64_t index;     /* 0, 1, 2 ...; UINT64_MAX at the end */
    uint64_t first_row; /* index * range_rows */
    uint64_t rows;
} dpi_range;

/* Needs dpi_options.producers. DPI_E_DATA: the inputs are not the session's. *feed is the caller's, to be ended before
 * the session is. */
DPI_API dpi_status dpi_feed_open(dpi_session *session, const dpi_feed_options *options, dpi_feed **feed,
                                 dpi_error *error);
/* *socket is the caller's: it goes to the producer's process (inherited, or sent over another socket), and the caller's
 * own copy must then be closed, for a producer's death is seen by the end of its last copy. Close-on-exec. */
DPI_API dpi_status dpi_feed_connect(dpi_feed *feed, int *socket, dpi_error *error);
/* Waits for the next range in order, until timeout_ms has passed (0: for ever; < 0: only look; DPI_TIMEOUT).
 * range->rows 0 with index UINT64_MAX is the end; a range of a producer that ends may have no rows, and an index.
 * `inputs`, one per input, receives dtype, shape and data, which may be read until the range is released. DPI_E_DATA: a
 * producer failed, in its own words. DPI_E_WORKER: all are dead, or, with rows unknown, the one whose turn it is. */
DPI_API dpi_status dpi_feed_next(dpi_feed *feed, int64_t timeout_ms, dpi_range *range, dpi_tensor *inputs,
                                 dpi_error *error);
/* The range's memory goes to the next producer: after dpi_wait for its batch. */
DPI_API dpi_status dpi_feed_release(dpi_feed *feed, uint64_t index, dpi_error *error);
/* Tells all producers to end; does not wait for them. Memory that they still write to stays with the session. NULL is
 * fine. */
DPI_API void dpi_feed_close(dpi_feed *feed);

/* Takes over `socket` on success. DPI_E_WORKER: the other side is no feed of this build. */
DPI_API dpi_status dpi_producer_open(int socket, dpi_producer **producer, dpi_error *error);
/* Number of inputs that each range has; 0 for NULL. */
DPI_API size_t dpi_producer_inputs(const dpi_producer *producer);
/* Reserves a range; timeout as in dpi_feed_next. `inputs` receives name, dtype, shape and memory to write to, valid
 * until the range is filled. DPI_E_CLOSED: the caller wants no more, or is gone. */
DPI_API dpi_status dpi_producer_reserve(dpi_producer *producer, int64_t timeout_ms, dpi_range *range,
                                        dpi_tensor *inputs, dpi_error *error);
/* The rows of the range are written: all of them, or where their number is not known range->rows, which may be lowered.
 * `last`: nothing more comes from this producer (only where the number is not known). */
DPI_API dpi_status dpi_producer_fill(dpi_producer *producer, const dpi_range *range, bool last, dpi_error *error);
/* The range cannot be filled: dpi_feed_next gives `message` (at most 495 bytes are kept) when it comes to it. */
DPI_API dpi_status dpi_producer_fail(dpi_producer *producer, const dpi_range *range, const char *message,
                                     dpi_error *error);
/* NULL is fine. What is reserved is dealt again. */
DPI_API void dpi_producer_close(dpi_producer *producer);

/* ---- facts ------------------------------------------------------------------------------------------------------ */

/* One worker, as dpi_describe tells. All strings are the session's. */
typedef struct dpi_worker_info {
    const char *device;      /* "cpu:0-3" */
    const char *backend;     /* "onnxruntime" */
    const char *library;     /* path of the library in use, "" for none */
    const char *version;     /* of the library */
    const char *fingerprint; /* of the engine, hex */
    int64_t pid;             /* 0 in thread isolation, and while there is no worker (removed, given up, died) */
    uint32_t generation;     /* starts counting at 1 */
    double open_seconds;     /* from spawn to ready */
    bool from_cache;
} dpi_worker_info;

/* What dpi_describe fills. */
typedef struct dpi_description {
    size_t struct_size;
    const dpi_tensor *inputs; /* the inputs that a batch must bring; shape[0] is -1 */
    size_t input_count;
    const dpi_tensor *outputs;
    size_t output_count;
    const dpi_worker_info *workers;
    size_t worker_count;
    size_t batch;       /* most rows of one slice */
    size_t fixed_batch; /* rows that every engine call has (short ones are padded inside), 0 where free */
    bool bit_identical; /* all engines have one fingerprint */
    double tolerance;   /* largest difference between the probes of the workers, relative to max |y| */
} dpi_description;

/* What the session is. Pointers stay valid until dpi_close; what they lead to is brought up to date by the next call:
 * workers[w] is worker w for ever, and dpi_device_add may append to them. Any thread; the array `workers` is the
 * session's, and any thread's next call writes to it. */
DPI_API dpi_status dpi_describe(dpi_session *session, dpi_description *description, dpi_error *error);

/* What one worker has done since dpi_open, all its generations together. */
typedef struct dpi_worker_stats {
    uint64_t slices, rows, stolen; /* finished; stolen: of those, planned for another worker */
    /* Where this worker's time went since dpi_open, nanoseconds. */
    uint64_t wait_ns, load_ns, copy_in_ns, compute_ns, copy_out_ns;
    double fixed_us, row_us; /* learnt cost of a slice of n rows: fixed + n * row */
} dpi_worker_stats;

/* What dpi_stats fills: sums since dpi_open, but for what is said to be now. */
typedef struct dpi_stats_data {
    size_t struct_size;
    uint64_t batches, rows, failed_batches;
    uint64_t copy_in_ns,
        copy_out_ns; /* by the caller's threads: for plain memory, and in strict isolation for all results */
    uint64_t copied_in_bytes, copied_out_bytes;
    uint64_t arena_input_bytes, arena_output_bytes; /* committed now */
    uint64_t wake_ns;                               /* from the last slice's end to the waiter's return, summed */
    dpi_worker_stats *workers;                      /* caller's array, may be NULL */
    size_t worker_count;                            /* its length in; workers of the session out */
    uint64_t deaths;                                /* of workers, hangs that were ended among them */
    uint64_t replayed_slices;                       /* that a worker died over and another computed */
    uint64_t bad_rows;                              /* left out */
    uint64_t retired_devices;                       /* given up, and neither added again nor removed since */
    uint64_t worker_starts;                         /* that came to be ready, the first ones among them */
    uint64_t compiled_engines;                      /* of those starts, with an engine that was not in the cache */
    uint64_t resumed_rows;                          /* of runs, finished by earlier ones */
    /* Of the time that slices took since dpi_open, from claimed to delivered, within 6 %; 0: there was none. */
    double slice_p50_ms, slice_p90_ms, slice_p99_ms;
} dpi_stats_data;

/* Any thread, any time; does not disturb what runs. */
DPI_API dpi_status dpi_stats(dpi_session *session, dpi_stats_data *stats, dpi_error *error);

#ifdef __cplusplus
}
#endif
#endif
