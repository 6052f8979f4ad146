/* Playing one plan: a process of its own opens the session, sees it through, and checks every row of every batch. What
 * goes against the plan ends the process with a message; what is justified by it is counted. */
#ifndef TESTS_CHAOS_PLAY_H
#define TESTS_CHAOS_PLAY_H

#include "plan.h"

#include "backend/sim.h"

#include <dpinfer/dpinfer.h>

#include <pthread.h>
#include <stdatomic.h>

#define REAL_ROWS   256 /* of the data that real backends compute; batches take theirs from it, in turn */
#define REAL_INPUT  64  /* bytes of a row: models/digits.onnx */
#define REAL_OUTPUT 40
#define PATH_SIZE   256

/* Shared with the process that had the plan played. */
typedef struct tally {
    _Atomic uint64_t faults[FAULT_KINDS];
    _Atomic uint64_t batches, rows, wrong, left_out; /* checked; that differ; bad rows as planned */
    _Atomic uint64_t failed, cancelled;              /* batches and runs, as the plan allows */
    _Atomic uint64_t unopened, ended;              /* sessions that did not open, or ended with every device given up */
    _Atomic uint64_t resumed;                      /* runs that were stopped and went on */
    _Atomic uint64_t unlucky_rows;                 /* good rows given up after three deaths */
    _Atomic uint64_t slow_hangs;                   /* that the plan does not have: the machine was slow */
    _Atomic int64_t slow_ns;                       /* of the last plans: note_slowness */
    _Atomic uint64_t absent;                       /* real plans without the library */
    _Atomic uint64_t added, removed;               /* devices */
    _Atomic uint64_t refused, too_late, not_added; /* changes: against the rules, past their limit, struck by a fault */
} tally;

/* Rows of a real model, with what an undisturbed session on one device made of them. */
typedef struct real_data {
    unsigned char input[REAL_ROWS][REAL_INPUT], output[REAL_ROWS][REAL_OUTPUT];
    bool there;
} real_data;

/* What a plan's rows are. */
typedef struct subject {
    sim_model model;       /* of sim */
    const real_data *real; /* NULL: sim */
    dpi_dtype in_dtype;
    int in_rank;
    int64_t in_row[2]; /* axes behind the rows */
    size_t in_bytes, output_count, out_bytes[2];
} subject;

#define SEAT_NAME 16
enum seat_state { SEAT_EMPTY, SEAT_TAKEN, SEAT_GIVEN_UP, SEAT_LEFT };
/* What events have told of the session's workers. */
typedef struct seats {
    pthread_mutex_t lock;
    enum seat_state state[PLAN_SEATS];
    char name[PLAN_SEATS][SEAT_NAME], troubled[SEAT_NAME]; /* troubled: the last one that a fault has struck */
    unsigned added, given_up, troubles, deaths;            /* how often */
    unsigned leaving; /* devices that were asked to leave and may still be there, at most */
    bool adding;
} seats;

typedef struct play {
    const plan *p;
    tally *r;
    subject what;
    dpi_session *s;
    char folder[PATH_SIZE]; /* of this process alone, for files */
    pthread_t killer, changer;
    seats seats;
    atomic_bool open, over;                /* for the killer */
    atomic_uint hangs, idle_hangs, killed; /* hangs that were told, signals that were sent */
    _Atomic int64_t slow_ns;               /* the longest that was noted */
    atomic_bool ended;                     /* the session has failed as a whole, as the plan allows */
} play;

/* Plays the plan in this process. `folder` is empty, and is emptied again. Returns when all is as it should be. */
void play_plan(const plan *p, tally *r, const real_data *real, const char *folder);
/* Fills `data`; `there` stays false where the backend's library is not. */
void real_data_make(real_data *data, const char *name);

/* ---- between the files of the test ------------------------------------------------------------------------------ */

/* Row `at` of a batch of `seed`, without poison. */
void subject_fill(const subject *s, void *rows, size_t count, uint64_t seed);
void subject_poison(const subject *s, void *rows, const size_t *poison, size_t count);
void subject_input(const subject *s, size_t rows, void *data, dpi_tensor *t);
void subject_output(const subject *s, size_t o, size_t rows, void *data, dpi_tensor *t);

/* Rows that the call has left out. */
typedef struct left_out {
    uint64_t rows[16];
    size_t count;
} left_out;
/* From here on this thread's calls tell theirs there. */
void left_out_into(left_out *bad);
void note_left_out(void *context, const dpi_bad_row *row);
bool left_out_has(const left_out *bad, uint64_t row);

/* Checks `count` rows against the sequential answer. Those of `bad` have NaN and 0. Counts, and fails when any differs.
 */
void check_rows(play *y, const void *in, const void *const *out, size_t count, const left_out *bad, const char *what);
/* One call's end. */
typedef struct verdict {
    dpi_status status;
    const dpi_error *error;
    bool cancelled; /* it was asked to end early */
    bool resumed;   /* a run that goes on: an earlier call may have left rows out already */
    const job *of;
    const left_out *bad;
    const char *what;
} verdict;
/* Whether a call may end so. Fails the plan when not. */
void judge(play *y, const verdict *v);
/* Whether it is the end of the session, as the plan allows. */
bool session_may_end(play *y, const dpi_error *error);

/* What has taken so long shows how slow the machine is: waking up, or four times that is the start of a worker. */
void note_slowness(play *y, int64_t ns);
/* The machine was too slow for the plan's limits: it shows by hangs that the plan does not have. */
unsigned slow_hangs(const play *y);

void play_batches(play *y);
void play_run(play *y);
/* When all is over the session still works, unless it has ended, and devices that are not there compute nothing. */
void play_once_more(play *y);
/* What its text is compared with; before anything is killed. */
void play_run_undisturbed(play *y);

/* The thread that sends the plan's signals. */
void killer_start(play *y);
void killer_stop(play *y);

/* The thread that makes the plan's changes; until all of them are made. */
void changer_start(play *y);
void changer_stop(play *y);
void seats_open(play *y);
void seats_hear_event(play *y, const char *json);
/* A line of the log that tells of a fault. */
void seats_hear_trouble(play *y, const char *line);
/* The session may have ended for want of devices. */
bool seats_all_given_up(play *y, unsigned more_deaths);
/* How many slices each device has computed that was removed; UINT64_MAX for the others. */
void seats_look_at_slices(play *y, uint64_t *slices);

/* Options of the plan's session; `faulty` false: of an undisturbed one on one device. Memory of them is static. */
dpi_options play_options(play *y, bool faulty);

/* Ends the process, which fails. */
#define plan_fail(...) plan_fail_at(__FILE__, __LINE__, __VA_ARGS__)
_Noreturn void plan_fail_at(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
