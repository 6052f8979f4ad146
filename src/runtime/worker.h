/*
 * The worker: owns one device and one engine, claims slices, computes them, says so. The same code runs as the
 * program dpinfer-worker and, in thread isolation, as a thread of the caller.
 */
#ifndef DPI_RUNTIME_WORKER_H
#define DPI_RUNTIME_WORKER_H

#include "backend/backend.h"
#include "ipc/channel.h"
#include "ipc/claim.h"
#include "ipc/layout.h"
#include "ipc/trace_ring.h"
#include "runtime/setup.h"

#include <pthread.h>

typedef struct worker_job worker_job; /* sources and sinks of a run; worker_job.h */
typedef struct loader loader;         /* slices that are loaded ahead; loader.h */

/* Memory of a worker's own: for padded slices, rows read from files, and results on their way to one. */
typedef struct scratch {
    void *data;
    size_t bytes;
} scratch;

/* A row that cannot be had. */
typedef struct flight_bad {
    size_t row;   /* within the slice */
    char *reason; /* malloc'd */
} flight_bad;

/* One slice on its way through the engine. */
typedef struct flight {
    bool used;
    uint32_t slot, slice, sequence, flags;
    bool stolen;
    size_t rows, call_rows; /* of the slice; of the engine call (more when padded) */
    uint64_t first_row;     /* within the batch */
    uint64_t assignment;    /* strict isolation: its number */
    backend_call call;
    backend_array inputs[PORT_MAX], outputs[PORT_MAX];
    scratch in[PORT_MAX], out[PORT_MAX];
    int64_t waited_from_ns, started_ns, loaded_ns; /* the first: 0 where it did not wait before */
    bool new_shape;
    /* Of a run: */
    const worker_job *job;
    uint64_t source_row;
    flight_bad *bad; /* by row */
    size_t bad_count;
    /* loader.c: rows that somebody has begun, and those that are just being loaded */
    size_t rows_taken, loading;
    dpi_error load_error;
} flight;

#define WORKER_TURNS 4

/* Places to look for work, remembered per slot so that no word is tried twice for the same batch. */
typedef struct slot_cursor {
    uint32_t sequence, next;
    uint32_t orphans,
        orphan_next; /* up to where words have been looked through for orphans since which count of them */
} slot_cursor;

typedef struct worker {
    uint32_t index, generation;
    const control *control;
    unsigned char *inputs, *outputs; /* the arenas; outputs begins with the claims. Strict isolation: private memory */
    const outbox *outbox;            /* strict isolation: where assignments come from; NULL: claims slices itself */
    uint64_t assigned;               /* how many of those were taken */
    worker_page *page;
    trace_ring *trace;                              /* NULL: nobody wants to know */
    uint64_t inputs_registered, outputs_registered; /* how far the engine was told of the arenas' memory */
    int socket, event_fd, model_fd;
    logger log;

    worker_setup setup;
    const backend *backend;
    backend_library *library;
    backend_engine *engine;
    void *model_data; /* mapping of model_fd */
    size_t model_bytes;
    signature sig;
    backend_array broadcast[PORT_MAX]; /* per input; data != NULL for a broadcast input */
    size_t max_rows, fixed_rows;       /* fixed_rows: the model's own */
    int depth;

    flight flights[BACKEND_MAX_DEPTH];
    unsigned flight_head, flight_count; /* ring: oldest at head */
    loader *loader;                     /* NULL: no run has rows that are dear to load */
    int64_t turn_ns;                    /* since when the oldest flight is the oldest */
    int64_t turns[WORKER_TURNS];        /* the dearest parts of the last ones, of turn_rows rows */
    size_t turn_rows, turn_count;
    slot_cursor cursors[LAYOUT_SLOTS];
    uint32_t mail_seen;
    uint64_t trial_seen;
    uint32_t reports;    /* of bad rows */
    worker_job *jobs;    /* list */
    size_t largest_rows; /* of any call so far: a larger one is a new shape */
    int64_t last_idle_ns;
    pthread_mutex_t *engine_lock; /* thread isolation with one device: the caller's thread runs the engine too */
} worker;

/* Reads the setup message, loads the backend, opens the engine, probes it, and sends the report (or the failure).
 * DPI_OK: the worker is ready. */
dpi_status worker_open(worker *w, dpi_error *error);
/* Two steps of worker_open, for bench's bare loop: takes a setup message (pins the process, sets its limits); loads
 * library and engine, and finds the broadcast inputs in w->inputs. */
dpi_status worker_take_setup(worker *w, const json_t *message, dpi_error *error);
dpi_status worker_load_engine(worker *w, worker_report *report, hash128 *key, dpi_error *error);
/* Serves until control.shutdown, or until this worker is dismissed. */
void worker_loop(worker *w);
/* Frees what worker_open took; only in thread isolation (a worker process ends by _exit). */
void worker_close(worker *w);
/* Ends the process, without destructors: those of inference libraries crash. */
_Noreturn void worker_leave(const worker *w, int exit_code);

/* Messages of the caller: jobs and questions. Called by worker_loop when control.workers[].mail has moved. */
void worker_handle_mail(worker *w);

/* Shared memory of this worker by name; mapped read-only where it is not ours to write. */
static inline claims *worker_claims(const worker *w, uint32_t slot)
{
    return (claims *)(void *)(w->outputs + slot * sizeof(claims));
}

/* ---- slices (worker_slice.c) ---- */

/* Finds a slice that this worker may compute and moves its claim to RUNNING; false when there is none now. `dear`: one
 * whose rows are dear to load; else one whose rows are not. `spare`: it will have to wait, so only while there is
 * enough left for all. When some may become fit to be stolen later, *look_again_ns is when (CLOCK_NEVER otherwise). */
bool worker_claim(worker *w, flight *f, bool dear, bool spare, int64_t *look_again_ns);
/* Finds out which rows of its batch slice f->slice is. */
void worker_find_rows(const worker *w, flight *f);
/* Points the call's arrays at the flight's rows: in place where possible, else through scratch. */
dpi_status worker_prepare(worker *w, flight *f, dpi_error *error);
/* The same without the rows that are dear to load, and what is left to do when those are there. */
dpi_status worker_prepare_ahead(worker *w, flight *f, dpi_error *error);
void worker_pad_inputs(const worker *w, flight *f);
/* Of that the outputs alone. */
dpi_status worker_prepare_outputs(worker *w, flight *f, dpi_error *error);
/* Gives the outputs of row `row` of a flight the value of rows that cannot be computed. */
void worker_void_row(const worker *w, flight *f, size_t row);
/* After the engine: moves results that stand in scratch to where they belong. */
dpi_status worker_deliver(worker *w, flight *f, dpi_error *error);
/* Counters, then worker_end_slice, or a report to the courier. `error` is why it failed. */
void worker_finish(worker *w, flight *f, dpi_status status, const dpi_error *error);
/* Moves the word to DONE or BAD and rings; or to SUSPECT, where bad rows are to be found and left out: true, and the
 * supervisor is still to be told. `error` is why it failed. */
bool worker_end_slice(worker *w, const flight *f, dpi_status status, const dpi_error *error);
/* Wakes the supervisor for a slice that has been made SUSPECT, for this reason. */
void worker_tell_suspect(worker *w, const flight *f, const char *reason);
/* Adds a finished flight to the page's counters. */
void worker_count(worker *w, const flight *f, int64_t now_ns);

static inline void worker_step(worker *w, backend_step step)
{
    if (w->backend->step)
        w->backend->step(w->engine, step);
}

/* ---- strict isolation (worker_mailbox.c) ---- */

/* Whether an assignment has come that was not taken. */
bool worker_is_assigned(const worker *w);
/* Takes the assignment that comes next, if its rows are dear to load (or not), as `dear` says; false: there is none. */
bool worker_take_assignment(worker *w, flight *f, bool dear);
/* Tells the courier how it went. */
void worker_report_slice(worker *w, const flight *f, dpi_status status, const dpi_error *error);
/* Which run's files are open (0: none): until then nothing of it may be claimed for this worker. */
void worker_show_job(worker *w, uint32_t job);

/* ---- the loop (worker_loop.c) ---- */

/* What the supervisor sees of a running slice, and since when; NULL: the worker is idle. */
void worker_show_busy(worker *w, const flight *f, int64_t since_ns);
/* Shows what it does from now on: the oldest flight, or the slice that is loaded, or nothing. */
void worker_show_turn(worker *w);

/* ---- trials (worker_trial.c) ---- */

/* Whether the supervisor wants a trial of this worker. */
bool worker_trial_asked(worker *w);
/* Runs it and tells how it went; nothing else may be in flight. */
void worker_trial_run(worker *w);

/* ---- rows that cannot be had (worker_bad.c) ---- */

/* Behind worker_deliver, where f->bad_count: tells the caller, who has noted them when this returns. DPI_E_DATA: they
 * are not to be left out, or too many. */
dpi_status worker_report_bad(worker *w, const flight *f, dpi_error *error);
/* Frees what a flight knows of bad rows, and all that it has. */
void flight_forget_bad(flight *f);
void flight_free(flight *f);

/* scratch of at least `bytes`, 64-byte aligned; false when out of memory */
bool scratch_ensure(scratch *s, size_t bytes);

#endif
