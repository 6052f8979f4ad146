/*
 * The caller's side: what a dpi_session is. Public functions (src/api) check arguments and call these.
 *
 * Threads: any number of callers, and the supervisor (supervisor.c), which spawns workers, reads their sockets and
 * logs, and watches them. `lock` guards everything that is not marked otherwise; it is never held while waiting for a
 * worker or copying rows.
 */
#ifndef DPI_RUNTIME_SESSION_H
#define DPI_RUNTIME_SESSION_H

#include "base/log.h"
#include "base/topology.h"
#include "ipc/arena.h"
#include "ipc/bell.h"
#include "ipc/channel.h"
#include "ipc/child.h"
#include "ipc/claim.h"
#include "ipc/layout.h"
#include "runtime/core_lock.h"
#include "runtime/device.h"
#include "runtime/plan.h"
#include "runtime/setup.h"
#include "runtime/worker.h"

#include <pthread.h>
#include <sys/stat.h>

#define SESSION_LOG_LINES 12
#define SESSION_LOG_WIDTH 240

/* No worker. */
#define SESSION_NOBODY SIZE_MAX

enum worker_state {
    WORKER_STARTING,
    WORKER_READY,
    WORKER_WAITING, /* to be started again */
    WORKER_LEAVING, /* finishes what it has begun, because its device is removed */
    WORKER_RETIRED, /* its device was given up or removed */
};

/* What a device is to the session. */
enum device_state { DEVICE_IN_USE, DEVICE_GIVEN_UP, DEVICE_LEAVING, DEVICE_REMOVED };

typedef struct session_worker {
    /* supervisor's alone */
    enum worker_state state;
    unsigned strikes;          /* deaths in a row that count against the device */
    uint64_t slices_at_ready;  /* page->slices when this generation became ready */
    int64_t restart_ns;        /* WORKER_WAITING: when */
    int64_t said_ns, heard_ns; /* what its page says since when it is busy, and since when it says so */
    int64_t idle_ns;           /* WORKER_LEAVING: when it was last seen at work, or told to leave */
    int64_t mute_ns;           /* since when its socket is closed, or spoilt; 0: it is not */
    char *last_death;          /* malloc'd */
    child process;
    struct courier *courier; /* strict isolation: of this generation; NULL: none (courier.h) */
    int log_pipe;
    char log_part[2048]; /* an unfinished line */
    size_t log_part_length;
    char log_lines[SESSION_LOG_LINES][SESSION_LOG_WIDTH]; /* ring of the last ones */
    size_t log_count;
    int64_t spawned_ns, cpu_seen_ns, cpu_moved_ns;
    uint64_t heartbeat_seen;
    int64_t heartbeat_ns;
    int64_t quiet_ns; /* since when it owes an answer and computes nothing; 0: it does not */
    bool ended;
    bool joining, accepted; /* dpi_device_add asks for it: not in use yet; its report is good */

    /* set up before the worker starts, then constant */
    int page_fd;
    worker_page *page; /* one after another all its generations write to it */
    size_t page_bytes;
    int private_fd; /* strict isolation: the memory that its rows stand in; -1: none. All generations write to it */
    trace_ring *_Atomic trace; /* behind it; NULL: there is no page yet, or no trace. Pairs with look() in tracer.c */
    pthread_t thread;          /* isolation=thread */
    bool thread_runs;
    worker *in_process;

    /* changed by the supervisor under the session's lock */
    int socket; /* -1 while there is no worker */
    uint32_t generation;
    enum device_state device; /* one that is not in use gets nothing */
    bool ready;
    worker_report report;
    uint64_t asked;  /* number of the question that is out */
    json_t *reply;   /* to it */
    int64_t owes_ns; /* how long it may take, 0 once it has come */
    uint64_t samples_seen;
    double busy_ns; /* predicted work in flight */
} session_worker;

/* A block of dpi_alloc. */
typedef struct user_block {
    uint64_t offset;
    arena *arena;
    unsigned uses; /* by batches in flight */
    bool freed;
} user_block;

typedef struct batch batch; /* batch.c */
/* A row that was left out, of the batch or, in a run, of the source. */
typedef struct batch_bad_row {
    uint64_t row;
    char *reason;
} batch_bad_row;

/* What a run told its workers, for those that start later. */
typedef struct session_job {
    json_t *message;
    int fds[CHANNEL_MAX_FDS];
    size_t fd_count;
} session_job;

/* What dpi_device_add or dpi_device_remove asks of the supervisor; one at a time. */
typedef struct session_change {
    bool taken;          /* by a thread in one of them */
    bool asked;          /* the supervisor has not begun yet */
    bool adds, given_up; /* given_up: the time to become ready is over */
    size_t workers[LAYOUT_WORKERS], count;
    bool done;
    dpi_error error; /* done: how it went */
} session_change;

typedef struct recovery recovery; /* recovery.c */
typedef struct tracer tracer;     /* tracer.c */

typedef enum session_state { SESSION_OPENING, SESSION_OPEN, SESSION_FAILED } session_state;

struct dpi_session {
    /* constant after open */
    logger log;
    const backend *backend;
    core_locks locks;
    device_list devices; /* as are the workers and their setups: there is room for LAYOUT_WORKERS, they never move */
    session_worker *workers;
    worker_setup *setups, common_setup; /* the latter: of no device, its options for all workers */
    char *worker_path;
    int model_fd, event_fd;
    arena *control_arena, *inputs, *outputs;
    control *control;
    signature sig; /* all inputs and the wanted outputs */
    bool is_broadcast[PORT_MAX];
    size_t batch_input_count; /* inputs that are not broadcast */
    size_t max_rows, fixed_rows;
    bool in_caller, strict, deterministic, has_producers; /* the first two: isolation */
    size_t total_rows; /* total_batch_size: a fixed split into even shares, also of a short round; 0: it is not */
    size_t queue_depth;
    bell_patience patience;
    uint32_t compile_timeout_ms, slice_timeout_ms, max_deaths;
    dpi_on_bad_row on_bad_row;
    uint64_t max_bad_rows;
    dpi_bad_row_fn bad_row;
    void *bad_row_context;
    dpi_event_fn event;
    void *event_context;
    pthread_mutex_t event_lock;                   /* one event at a time; taken last */
    tracer *tracer;                               /* NULL: there is no trace */
    struct stat program_identity, model_identity; /* of the files that a restart must find unchanged */
    dpi_isolation isolation;
    _Atomic uint32_t *fork_guard; /* 1; a page that a forked child finds wiped */
    pthread_mutex_t engine_lock;  /* thread isolation with one device */
    pthread_mutex_t ask_lock;     /* one question at a time; taken before `lock` */

    pthread_t supervisor;
    bool supervisor_runs;
    int supervisor_wake; /* eventfd */
    int64_t stalled_ns;  /* supervisor's: since when all workers are idle beside unfinished slices; 0: they are not */
    uint64_t stalled_done;
    unsigned breaches;  /* supervisor's: how often somebody has spoilt the shared words */
    recovery *recovery; /* supervisor's */
    _Atomic uint32_t quit;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* state, replies, free slots */
    session_state state;
    /* Workers. Grows under the lock, when all that belongs to the new one is set; read with acquire without it. */
    _Atomic size_t count;
    size_t seats; /* supervisor's: workers that have a page, those about to join included; at least `count` */
    session_change change;
    bool bit_identical;
    double tolerance;
    size_t *shares;          /* fixed split: rows per worker and round; NULL: adaptive */
    _Atomic uint32_t failed; /* state == SESSION_FAILED, all workers dead: readable without the lock */
    dpi_error failure;

    planner *planner;
    batch *batches; /* list of all tickets */
    batch *slots[LAYOUT_SLOTS];
    double (*predicted_ns)[LAYOUT_WORKERS]; /* of each slot's batch */
    uint32_t sequence;
    uint64_t next_ticket;
    unsigned in_flight;
    user_block *blocks;
    size_t block_count, block_capacity;
    struct shape_memo { /* output shapes for input shapes with free axes */
        int64_t inputs[PORT_MAX][DPI_MAX_RANK], outputs[PORT_MAX][DPI_MAX_RANK];
        bool used;
    } * memos;
    size_t memo_next;
    uint32_t next_job;
    bool running; /* a dpi_run */
    session_job job;
    batch_bad_row *run_bad; /* left out by it, and by the run that it goes on with: under the lock */
    size_t run_bad_rows;

    /* statistics */
    uint64_t batches_done, rows_done, batches_failed, copy_in_ns, copy_out_ns, copied_in_bytes, copied_out_bytes,
        wake_ns, starts, compiled, deaths, replayed, bad_rows, retired, resumed_rows;

    /* what dpi_describe hands out */
    dpi_tensor describe_inputs[PORT_MAX], describe_outputs[PORT_MAX];
    dpi_worker_info *describe_workers;
};

#define SESSION_MEMOS 16

/* Wakes worker w: there is mail, a trial or an end for it. */
static inline void session_ring_worker(const dpi_session *s, size_t w)
{
    bell_ring(&s->control->workers[w].bell, &s->workers[w].page->sleeping);
}

/* Wakes whoever claims slices for worker w: in strict isolation its courier. */
static inline void session_ring_claimer(const dpi_session *s, size_t w)
{
    if (s->strict)
        bell_ring(&s->workers[w].page->inbox.bell, &s->control->outboxes[w].sleeping);
    else
        session_ring_worker(s, w);
}

/* ---- session.c ---- */
dpi_status session_open(const dpi_options *options, dpi_session **out, dpi_error *error);
void session_close(dpi_session *s);
/* DPI_OK, or why no call may be made on this session: forked, failed. */
dpi_status session_usable(dpi_session *s, dpi_error *error);
/* The worker program: option, DPINFER_WORKER, beside the library or program, ../libexec/dpinfer. *path (NULL before) is
 * the caller's to free. */
dpi_status session_find_worker(const dpi_options *o, char **path, dpi_error *error);
/* Whether two engines see the same inputs and outputs in a model. */
bool session_same_signature(const signature *a, const signature *b);
/* Whether worker w may compute beside workers 0..others-1: same ports, same bits from the same engine. *other_engine:
 * it has one that none of them has; *difference is how far its results are from worker 0's then. */
dpi_status session_compare(const dpi_session *s, size_t w, size_t others, const worker_report *report,
                           bool *other_engine, double *difference, dpi_error *error);
/* Even shares of `rows` rows for the devices in use, 0 for others. Under the lock. */
void session_spread(const dpi_session *s, size_t rows, size_t *shares);
/* What worker w is told at its start, from what is common to all. */
dpi_status session_fill_setup(dpi_session *s, size_t w, dpi_error *error);
/* DPI_OK while the worker program and the model are the files that they were at the opening. */
dpi_status session_files_unchanged(const dpi_session *s, dpi_error *error);

/* ---- session_devices.c ---- */
dpi_status session_device_add(dpi_session *s, const char *devices, int64_t deadline_ns, dpi_error *error);
dpi_status session_device_remove(dpi_session *s, const char *devices, int64_t deadline_ns, dpi_error *error);

/* ---- session_ask.c ---- */
/* Tells all workers of a run at once, `fds` beside it, and waits until all have answered; the first failure is
 * returned. Workers that start later are told as well, until session_end_job. The caller holds no lock. */
dpi_status session_start_job(dpi_session *s, json_t *message, const int *fds, size_t fd_count, dpi_error *error);
void session_end_job(dpi_session *s, uint32_t job);
/* Tells worker w, which has just become ready, of the run that is under way. Under the lock. */
void session_tell_newcomer(dpi_session *s, size_t w);
/* Complete row shapes of all outputs for complete input shapes (axis 0 is ignored). Asks a worker where it must. */
dpi_status session_output_shapes(dpi_session *s, int64_t inputs[PORT_MAX][DPI_MAX_RANK],
                                 int64_t outputs[PORT_MAX][DPI_MAX_RANK], dpi_error *error);

/* ---- session_facts.c ---- */
void session_describe(dpi_session *s, dpi_description *d);
void session_stats(dpi_session *s, dpi_stats_data *stats);

/* ---- supervisor.c ---- */
dpi_status supervisor_start(dpi_session *s, dpi_error *error);
/* Ends all workers and the thread. */
void supervisor_stop(dpi_session *s);
/* Has it look at once for what can be done. Any thread. */
void supervisor_wake(dpi_session *s);

/* ---- batch.c ---- */
dpi_status batch_submit(dpi_session *s, const dpi_batch *b, int64_t deadline_ns, dpi_ticket *ticket, dpi_error *error);
dpi_status batch_wait(dpi_session *s, dpi_ticket ticket, int64_t deadline_ns, bool abandon, dpi_tensor *outputs,
                      size_t output_count, dpi_error *error);
dpi_status batch_release(dpi_session *s, dpi_ticket ticket, dpi_error *error);
dpi_status batch_cancel(dpi_session *s, dpi_ticket ticket, dpi_error *error);
void *block_alloc(dpi_session *s, size_t bytes, dpi_direction direction, dpi_error *error);
dpi_status block_free(dpi_session *s, void *memory, dpi_error *error);
/* Frees all tickets; the workers are dead. */
void batch_free_all(dpi_session *s);

/* A chunk of a run: `rows` rows from source row first_row on, to the sinks from result_row on, by job `job`.
 * record_bytes[o] > 0: of a row of output o in the outputs arena, else it goes to a file. `dear`: some source's rows
 * are. Waits for a free slot. */
typedef struct shard_chunk {
    uint32_t job;
    uint64_t rows, first_row, result_row;
    const int64_t (*input_shapes)[DPI_MAX_RANK], (*output_shapes)[DPI_MAX_RANK]; /* complete but for axis 0 */
    const size_t *record_bytes;
    bool dear;
} shard_chunk;
dpi_status batch_submit_chunk(dpi_session *s, const shard_chunk *chunk, dpi_ticket *ticket, dpi_error *error);
/* Records of output o of a finished chunk, also of one that has failed, until batch_release. */
const void *batch_records(dpi_session *s, dpi_ticket ticket, size_t output);

/* ---- inline.c ---- */
/* Thread isolation with one device of depth 1: the batch runs here and now on the caller's thread and memory. */
dpi_status inline_forward(dpi_session *s, const void *const *inputs, int64_t (*input_shapes)[DPI_MAX_RANK],
                          void *const *outputs, int64_t (*output_shapes)[DPI_MAX_RANK], size_t rows, dpi_error *error);

/* ---- run.c ---- */
dpi_status session_run(dpi_session *s, const dpi_run_options *options, dpi_run_result *result, dpi_error *error);

#endif
