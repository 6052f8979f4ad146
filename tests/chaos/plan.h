/*
 * What one session of the chaos test goes through, drawn from a seed: devices, batches or a run, and the faults of each
 * worker's starts. The same seed draws the same plan; what happens meanwhile (kills from outside, scheduling) is not
 * the same each time.
 */
#ifndef TESTS_CHAOS_PLAN_H
#define TESTS_CHAOS_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define PLAN_WORKERS 4
#define PLAN_CHANGES 8
#define PLAN_SEATS   24 /* workers of a session at most, added ones included */
#define PLAN_FAULTS  6
#define PLAN_JOBS    6
#define PLAN_KILLS   6
#define PLAN_POISON  3 /* rows of a batch at most */
#define PLAN_WIDTH   5 /* elements of a row of sim's input */
#define POISON       777

/* Kind, what the report calls it, how sim tells that it strikes (NULL: it cannot be told from there). */
#define FAULT_LIST(X)                                                                                                  \
    X(FAULT_DIE, "death at a slice", "dying at slice")                                                                 \
    X(FAULT_STEP, "death between two steps of a slice", "dying at step")                                               \
    X(FAULT_EXIT, "exit at a slice", "leaving at slice")                                                               \
    X(FAULT_HANG, "hang at a slice", "hanging at slice")                                                               \
    X(FAULT_SPOIL, "garbage in claim words and page", "spoiling memory at")                                            \
    X(FAULT_BABBLE, "garbage on the socket", "babbling at")                                                            \
    X(FAULT_SLOW, "slow slices", "slow at slice")                                                                      \
    X(FAULT_FAIL, "failure of the engine", "failing at slice")                                                         \
    X(FAULT_SIZE, "output of a wrong size", "a wrong size at")                                                         \
    X(FAULT_MEMORY, "out of memory", "out of memory at")                                                               \
    X(FAULT_DIE_COMPILE, "death while compiling", "dying while compiling")                                             \
    X(FAULT_DIE_PROBE, "death in the probe", "dying while probed")                                                     \
    X(FAULT_DIE_READY, "death before the first slice", "dying when ready")                                             \
    X(FAULT_HANG_COMPILE, "hang while compiling", "hanging while compiling")                                           \
    X(FAULT_HANG_PROBE, "hang in the probe", "hanging while probed")                                                   \
    X(FAULT_HANG_READY, "hang before the first slice", "hanging when ready")                                           \
    X(FAULT_FAIL_COMPILE, "failure while compiling", "failing while compiling")                                        \
    X(FAULT_DIE_SHUTDOWN, "death at shutdown", "dying while leaving")                                                  \
    X(FAULT_HANG_SHUTDOWN, "hang at shutdown", "hanging while leaving")                                                \
    X(FAULT_POISON, "slice with a row that kills, hangs or fails", "poisoned at slice")                                \
    X(FAULT_KILLED, "SIGKILL from outside", NULL)                                                                      \
    X(FAULT_SIGNALLED, "SIGSEGV or SIGTERM from outside", NULL)                                                        \
    X(FAULT_STOPPED, "SIGSTOP from outside", NULL)

typedef enum fault_kind {
#define X(kind, name, told) kind,
    FAULT_LIST(X)
#undef X
        FAULT_KINDS
} fault_kind;

extern const char *const fault_names[FAULT_KINDS], *const fault_told[FAULT_KINDS];

/* Of one start of one worker. */
typedef struct fault {
    fault_kind kind;
    unsigned worker, generation, slice, step;
    int signal;
} fault;

typedef struct outside {
    int signal;
    unsigned at_us; /* since the plan began, or since the session was open */
} outside;

/* Devices that come or go while the session is open, one change after the other. */
typedef enum change_when { WHEN_TIME, WHEN_TROUBLE, WHEN_DIED } change_when; /* at the next fault, at the next death */
typedef enum change_whom { WHOM_DRAWN, WHOM_TROUBLED, WHOM_ALL } change_whom;
typedef struct change {
    bool adds;
    change_when when;
    change_whom whom;
    unsigned first, count; /* drawn: device `first` and those behind it */
    unsigned at_us;        /* since the change before; what it waits for is waited for so long */
    int timeout_ms;        /* of the call */
} change;

enum memory { MEMORY_PLAIN, MEMORY_ALLOC, MEMORY_VIEWS, MEMORY_KINDS };

/* One batch. */
typedef struct job {
    size_t rows;
    enum memory memory;
    int forward_ms; /* > 0: dpi_forward with this limit, instead of dpi_submit and dpi_wait */
    int cancel_us;  /* >= 0: cancelled so long after its submission */
    size_t poison[PLAN_POISON], poison_count;
} job;

typedef enum poison_how { POISON_NONE, POISON_DIE, POISON_HANG, POISON_FAIL } poison_how;

typedef struct plan {
    uint64_t seed;
    const char *backend; /* NULL: sim */
    unsigned workers, depth, batch, share, fixed_us, row_us, jitter_us;
    bool shard, skip, in_enqueue;
    bool strict; /* isolation; FAULT_SPOIL is then all that a worker can do, at the first slice of its generation */
    poison_how poison;
    unsigned max_deaths; /* 0: the default */
    unsigned patience, slice_timeout_ms, compile_timeout_ms;
    fault faults[PLAN_FAULTS];
    size_t fault_count;
    outside kills[PLAN_KILLS];
    size_t kill_count;
    bool kills_while_opening;
    change changes[PLAN_CHANGES];
    size_t change_count;
    bool one_name;    /* all devices have the same */
    unsigned threads; /* that submit */
    job jobs[PLAN_JOBS];
    size_t job_count;
    /* shard mode: jobs[0] has the rows */
    bool csv, random_source;
    unsigned journal_ms; /* 0: no journal */
    int stop_us;         /* >= 0: the run is stopped after so long, and goes on with the next call */
} plan;

/* `patience` multiplies the limits of hangs, for builds and machines that are slow. `real` may be NULL; else the
 * backend that computes the plan. */
void plan_draw(plan *p, uint64_t seed, const char *real, unsigned patience);
void plan_print(const plan *p, FILE *to);

/* sim's model text. */
void plan_model(const plan *p, char *text, size_t size);
/* The name of device d: one that the session opens with, or one that may be added. */
void plan_device(const plan *p, unsigned d, char *text, size_t size);
/* What `faults` is for worker w ("" for none). */
void plan_worker_faults(const plan *p, unsigned w, char *text, size_t size);

/* Faults of the plan of these kinds, first <= kind <= last. */
unsigned plan_count(const plan *p, fault_kind first, fault_kind last);
/* How often at most a worker ends, or fails a slice, for another reason than a poison row. */
unsigned plan_bad_luck(const plan *p);
/* Whether so many devices may have been given up; whether shared memory may have been spoilt too often. */
bool plan_may_give_up(const plan *p, unsigned devices, unsigned more_deaths);
bool plan_may_be_spoilt(const plan *p);
/* Whether a device may not start that is to be added. */
bool plan_may_not_add(const plan *p);
/* Whether dpi_open may fail; whether it has to. */
bool plan_may_not_open(const plan *p);
bool plan_cannot_open(const plan *p);

uint64_t chance(uint64_t *state);                      /* the next number */
unsigned chance_below(uint64_t *state, unsigned most); /* 0..most-1 */

#endif
