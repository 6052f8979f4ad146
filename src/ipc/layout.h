/*
 * The memory that the caller and its workers share. Fixed-width types, offsets instead of pointers, a version, and
 * static asserts on sizes: both sides may be different builds for as long as the handshake has not compared them.
 *
 *   control   one memfd. The caller writes; workers map it read-only.
 *   inputs    one memfd, an arena. The caller writes; workers map it read-only.
 *   outputs   one memfd, an arena behind the claims of all batch slots. Everybody writes.
 *   page      one memfd per worker, all its generations. That worker writes; the caller reads and believes nothing.
 *
 * Strict isolation: the caller alone has *outputs*, and each worker in its place a memfd of its own in which rows stand
 * where they would in it (*private*); couriers of the caller's bring rows and claim words to their place (mailbox.h).
 *
 * Whatever a worker can write may hold anything at all: the caller checks each word it reads and never crashes, loops
 * or waits for ever on one.
 */
#ifndef DPI_IPC_LAYOUT_H
#define DPI_IPC_LAYOUT_H

#include "base/tensor.h"
#include "ipc/mailbox.h"

#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define LAYOUT_VERSION 4u
#define LAYOUT_MAGIC   0x31495044u /* "DPI1" */

#define LAYOUT_WORKERS 256        /* workers of one session at most */
#define LAYOUT_SLOTS   64         /* batches in flight at most: one bit each in control.active */
#define LAYOUT_SLICES  (1u << 18) /* slices of one batch at most */

/* ---- claims (outputs memfd) ------------------------------------------------------------------------------------- */

/* Head of one batch slot's claims. Only hints and a bell: whether a batch is complete, a scan of `word` says. */
typedef struct claims {
    _Atomic uint32_t bell; /* workers ring: slices have finished; the waiter sleeps on it */
    uint32_t reserved;
    _Atomic uint64_t left; /* hint_step: slices not finished; whoever takes it to 0 rings */
    _Atomic uint64_t next; /* hint_step: slices that nobody has tried (shard mode) */
    uint64_t padding[5];
    _Atomic uint64_t word[LAYOUT_SLICES]; /* see claim.h */
} claims;

static_assert(offsetof(claims, word) == 64, "claims: head");
static_assert(sizeof(claims) == 64 + 8ull * LAYOUT_SLICES, "claims: size");

#define LAYOUT_CLAIMS_BYTES (LAYOUT_SLOTS * (uint64_t)sizeof(claims))

/* ---- control ---------------------------------------------------------------------------------------------------- */

enum {
    BATCH_SHARD = 1u << 0,     /* slices are dealt from one queue; rows come from and go to a job's files */
    BATCH_STEAL = 1u << 1,     /* idle workers may take slices planned for others */
    BATCH_RING_EACH = 1u << 2, /* ring at every slice, not only at the last: the waiter copies results as they come */
    BATCH_UNSURE = 1u << 3,    /* `left` may have lost a step with a worker that died: each one may be the last */
    BATCH_DEAR = 1u << 4,      /* BATCH_SHARD: rows are dear to load, and claimed ahead */
};

typedef struct layout_array {
    uint64_t offset;             /* in the inputs or outputs arena */
    uint64_t row_bytes;          /* a broadcast input: its whole size */
    uint64_t stored_bytes;       /* an output: of a row there; BATCH_SHARD: of its record, or 0: it goes to a file */
    int64_t shape[DPI_MAX_RANK]; /* shape[0] is set per slice, except for a broadcast input */
    uint32_t rank, broadcast;
} layout_array;

static_assert(sizeof(layout_array) == 96, "layout_array: size");

typedef struct batch_desc {
    /* 0 while the caller prepares the slot; then this batch's number. Written last, read first and again after. */
    _Atomic uint32_t sequence;
    /* A late worker may read these four while the slot is prepared anew: it then fails to move any claim word. */
    _Atomic uint32_t flags;
    _Atomic uint32_t waiting; /* how many threads sleep on claims.bell */
    _Atomic uint32_t slice_count;
    uint32_t fixed_rows;  /* > 0: every engine call has this many rows, short slices are padded */
    _Atomic uint32_t job; /* BATCH_SHARD: which job's sources and sinks. As the four above */
    uint32_t input_count, output_count;
    uint64_t rows;
    uint64_t first_row;  /* BATCH_SHARD: of the source */
    uint64_t result_row; /* BATCH_SHARD: of the sinks */
    /* What follows a late worker may read as well, when it thinks of stealing. */
    _Atomic int64_t published_ns;     /* when */
    _Atomic int64_t predicted_ns;     /* how long it should take; 0: unknown */
    _Atomic uint32_t planned_workers; /* split: for how many; those added to the session since have no slices of it */
    /* Rows of worker w's slices (its last may be shorter); shard mode: [0], the same for all. */
    _Atomic uint32_t slice_rows[LAYOUT_WORKERS];
    _Atomic uint32_t
        first_slice[LAYOUT_WORKERS + 1];    /* split: worker w has slices first_slice[w] up to first_slice[w + 1] */
    _Atomic uint32_t orphans;               /* moves when words have become FREE that workers may have passed already */
    uint64_t share_row[LAYOUT_WORKERS + 1]; /* split: and rows share_row[w] up to share_row[w + 1] */
    layout_array inputs[PORT_MAX], outputs[PORT_MAX];
} batch_desc;

static_assert(offsetof(batch_desc, rows) == 32, "batch_desc: rows");
static_assert(offsetof(batch_desc, share_row) % 8 == 0, "batch_desc: share_row");

typedef struct worker_control {
    alignas(64) _Atomic uint32_t bell; /* the caller rings this one worker */
    _Atomic uint32_t mail;             /* counts messages on the control socket */
    _Atomic uint64_t fixed_ns, row_ns; /* learnt cost of a slice, for whoever thinks of stealing */
    /* Generations: the one that may claim slices, since the caller has compared its engine; the one that is to finish
     * what it has begun and leave. */
    _Atomic uint32_t admitted, dismissed;
    /* The report of bad rows that the caller has noted last, and the last one that it has refused. */
    _Atomic uint32_t heard, refused;
    uint32_t reserved[4];
} worker_control;

static_assert(sizeof(worker_control) == 64, "worker_control: size");

/* Rows that one worker is to compute with nothing else in flight: read and written by ipc/trial.h. */
typedef struct trial {
    _Atomic uint64_t number;
    _Atomic uint32_t worker, slot, sequence, slice;
    _Atomic uint64_t first_row, rows; /* within the batch */
    _Atomic uint32_t fill;            /* not computed: the outputs get the value of rows that cannot be */
    uint32_t reserved;
} trial;

#define BOARD_NAME_SIZE  64
#define BOARD_MODEL_SIZE 256

/* What a session shows to whoever looks (runtime/watch.h). The caller writes it when something changes; nobody that
 * computes reads it. */
typedef struct board_worker {
    char device[BOARD_NAME_SIZE];
    _Atomic uint64_t page_inode; /* written last; 0: there is no worker yet */
    _Atomic uint32_t starts, in_use;
} board_worker;

typedef struct board {
    uint32_t pid; /* of the caller */
    _Atomic uint32_t worker_count;
    uint64_t outputs_inode;
    int64_t opened_ns;            /* CLOCK_MONOTONIC */
    _Atomic uint64_t run_rows;    /* of the dpi_run that is under way; 0: there is none */
    _Atomic uint64_t run_base;    /* what all workers' rows were when it began, less the rows that it resumes with */
    char model[BOARD_MODEL_SIZE]; /* the last part of its path */
    board_worker workers[LAYOUT_WORKERS];
} board;

static_assert(sizeof(board_worker) == 80, "board_worker: size");

typedef struct control {
    uint32_t magic, version;
    uint32_t wait_mode, strict; /* strict: isolation */
    uint64_t build_id;
    uint64_t input_max_bytes, output_max_bytes;
    _Atomic uint32_t shutdown;     /* leave */
    _Atomic uint32_t event_wanted; /* write to the event descriptor when a batch is complete */
    uint32_t spin_us;              /* how long a worker may spin before it sleeps */
    uint32_t on_bad_row;           /* dpi_on_bad_row */
    trial trial;
    alignas(64) _Atomic uint64_t active; /* bit s: slot s may hold work */
    worker_control workers[LAYOUT_WORKERS];
    batch_desc batches[LAYOUT_SLOTS];
    board board;
    outbox outboxes[LAYOUT_WORKERS]; /* strict isolation */
} control;

static_assert(offsetof(control, active) == 128, "control: active");
static_assert(offsetof(control, workers) == 192, "control: workers");

/* ---- page ------------------------------------------------------------------------------------------------------- */

enum page_stage {
    STAGE_STARTING = 1,
    STAGE_LOADING,
    STAGE_WAITING_FOR_BUILD, /* of another process, for the same engine */
    STAGE_COMPILING,
    STAGE_PROBING,
    STAGE_READY,
    STAGE_LEAVING,
};

typedef struct page_sample {
    _Atomic uint64_t rows_and_ns; /* rows in the upper 24 bits, nanoseconds (saturated) in the lower 40 */
} page_sample;

/* Why a batch failed: of its slices that this worker ended BAD, the first. Set before the claim word. */
typedef struct page_failure {
    _Atomic uint32_t sequence; /* of the batch; written last (release), read first (acquire) */
    uint32_t status;
    char message[1020];
} page_failure;

#define PAGE_SAMPLES   64
#define PAGE_LATENCIES 256

/* Which of a page's counters a slice of this duration is in: eight to each doubling, from 1 us on. */
static inline unsigned latency_bucket(int64_t ns)
{
    uint64_t us8 = ns > 1000 ? (uint64_t)ns / 125 : 8; /* eighths of a microsecond */
    unsigned octave = 63u - (unsigned)__builtin_clzll(us8) - 3u;
    unsigned bucket = 8 * octave + (unsigned)(us8 >> octave & 7);
    return bucket < PAGE_LATENCIES ? bucket : PAGE_LATENCIES - 1;
}
/* The middle of a bucket, in nanoseconds. */
static inline double latency_of_bucket(unsigned bucket)
{
    return 125.0 * (double)(1ull << bucket / 8) * (8.5 + bucket % 8);
}

typedef struct worker_page {
    _Atomic uint32_t stage;
    _Atomic uint32_t sleeping;              /* hint for whoever rings: not 0 when a system call is needed */
    _Atomic uint64_t heartbeat;             /* counts; moves while a long compile goes on */
    _Atomic int64_t busy_since_ns;          /* 0 while no slice runs */
    _Atomic uint32_t busy_rows, busy_first; /* rows of the running slice; whether its shape runs for the first time */
    _Atomic uint32_t busy_slot, busy_slice;
    _Atomic uint64_t slices, rows, stolen;
    _Atomic uint64_t wait_ns, load_ns, copy_in_ns, compute_ns, copy_out_ns;
    _Atomic int64_t finished_ns; /* when its last slice ended */
    _Atomic uint64_t trial;      /* number of the one that is being run; 0: none */
    uint32_t sigbus_source;      /* 1 + number of the source that shrank, 0 for none */
    uint64_t sigbus_offset;
    _Atomic uint64_t sample_count;
    page_sample samples[PAGE_SAMPLES];          /* ring: sample i stands at i % PAGE_SAMPLES */
    _Atomic uint32_t latencies[PAGE_LATENCIES]; /* how many slices took so long, from claimed to delivered */
    page_failure failures[LAYOUT_SLOTS];        /* of the batch in each slot */
    inbox inbox;                                /* `job` in every isolation, the rest in strict */
} worker_page;

#define PAGE_BYTES ((sizeof(worker_page) + 4095) / 4096 * 4096)

/* ---- descriptors of a worker ------------------------------------------------------------------------------------ */

enum {
    WORKER_FD_SOCKET = 3,
    WORKER_FD_CONTROL,
    WORKER_FD_INPUTS,
    WORKER_FD_OUTPUTS,
    WORKER_FD_PAGE,
    WORKER_FD_EVENT,
    WORKER_FD_MODEL, /* a memfd with the model, or /dev/null */
    WORKER_FD_END
};

#endif
