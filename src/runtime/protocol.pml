/*
 * The protocol of claims, death and replay as a model for spin (tools/check_model.sh runs it; docs/reliability.md tells
 * what it has shown). It describes ipc/claim.h, ipc/bell.h, worker_loop.c, worker_slice.c, worker_trial.c, batch.c,
 * batch_wait.c, batch_end.c, recovery.c and the supervisor as they are; each step carries the name that stands at its
 * place in the C code:
 *
 *     T1 publish   nothing   -> CLAIMED, FREE   the caller (batch.c)
 *     T2 start     CLAIMED, FREE -> RUNNING     the worker that it was planned for, or the one that was dealt it
 *     T3 steal     CLAIMED, FREE -> RUNNING     another worker
 *     T4 finish    RUNNING   -> DONE, BAD       the worker
 *     T5 free      CLAIMED   -> FREE            recovery, when its worker is dead or not there
 *     T6 suspect   RUNNING   -> SUSPECT         recovery after a death, or the worker when its engine failed
 *     T7 drop      CLAIMED, FREE -> BAD         the caller cancels, or sees that the batch has failed
 *     T8 judge     SUSPECT   -> DONE, BAD       recovery, after trials
 *     T9 count     one off `left`; who takes it to 0 rings
 *     T10 deal     one off `next` (shard mode)
 *     T11 ring     a bell, then `sleeping`      T12 sleep   `sleeping`, then the bell, then the futex
 *     T13 orphans  `orphans` moves              T14 look    a worker looks through the batch for FREE words
 *     T15 ask      a trial is asked for         T16 try     the probation worker runs it    T17 answer
 *     T18 die      at any step                  T19 see     the pidfd is readable           T20 restart
 *     T21 settle   the slot and its memory are free    T22 anew   all are killed, all that is open is FREE again
 *     T23 leave    a worker whose device is removed finishes what it has begun
 *
 * One slot is used by NB batches one after another, so a late worker meets the batch that came after its own. Bells are
 * a bit: "rung since it was last read", which is all that a single waiter can see of the counter. No wait has a limit
 * here and no tick rings again, although the code has both: a lost wake-up is a state without an end, and spin finds it.
 * Each option of a process is one step with one access to what others may change, or several that commute with all that
 * others do.
 *
 * Sizes: W workers, S slices, NB batches, CRASHES, ROWS of a slice. Variants: SHARD; FIXED_SPLIT (no stealing); COPIES
 * (rows are copied in while workers run); CANCEL; EVENT (the caller waits on the event descriptor); RETIRE (1: a device
 * may be given up after a death, 2: it is, where there is another); POISON (row 0 of slice 0 kills: 1, or fails in the
 * engine: 2); SKIP (bad rows are left out); ENGINE_FAILS (one slice may fail); ANEW (T22 once, at any time); REMOVE (T23 once); TICK
 * (the supervisor looks for spoilt words once, and repairs `next` so often); APART (a word is read in one step and moved
 * in another); RINGS_IN_TWO. M_...: a wrong protocol each, which must be found.
 */
#ifndef W
#define W 2
#endif
#ifndef S
#define S 2
#endif
#ifndef NB
#define NB 2
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef ROWS
#define ROWS 1
#endif
#ifndef POISON
#define POISON 0
#endif
#ifndef RETIRE
#define RETIRE 0
#endif
#define ROW_TRIALS 3
#define ALL_ROWS ((1 << ROWS) - 1)
#define NOBODY W

/* claim_state */
#define NONE 0
#define FREE 1
#define CLAIMED 2
#define RUNNING 3
#define DONE 4
#define BAD 5
#define SUSPECT 6
#define DROPPED 100 /* in `w` of a BAD word */
#define JUDGED 101
#define TERMINAL(i) (word[i].st == DONE || word[i].st == BAD)
#define UNSTARTED(i) (word[i].st == FREE || word[i].st == CLAIMED)
#define TERMINAL_NOW(i) (word[i].s == b_seq && TERMINAL(i))

typedef claim { byte st; byte w; byte g; byte s };

/* ---- shared memory ---- */
claim word[S];
byte left_s, left_n, next_s, next_n;                      /* claims.left, .next */
byte d_sequence, d_orphans, d_first[W + 1];               /* batch_desc */
bool d_unsure;                                            /* BATCH_UNSURE */
byte t_number, t_worker, t_slice, t_first, t_rows, t_seq; /* control.trial */
bool t_fill, shutdown;
bool admitted[W], dismissed[W];        /* worker_control: this generation may claim; is to leave */
bool rung[W], sleeping[W], blocked[W]; /* the workers' bells; blocked: in the futex */
bool w_rung, w_waiting, w_blocked;     /* the waiter's */
bool event;                            /* the event descriptor is readable */
byte p_trial[W];                       /* page: the trial that the worker has begun */

/* ---- a worker's private memory ---- */
typedef private {
    byte pc, seq, i, end, n_st, n_w, n_g, n_s;
    byte c_seq, c_next, c_orphans, c_look; /* slot_cursor */
    byte seen_trial, number, first, rows;
    bool last, good, fill
};
private l[W];
#define L l[me]
bool alive[W]; /* false: its pidfd is readable */
byte gen[W];
bool report[W], told[W]; /* its messages: ready; a suspect */
byte answer[W];          /* to the trial: 1 good, 2 failed */

/* ---- the caller's and the supervisor's private memory ---- */
bool lock, in_slot, publishing, verdict, cancel_asked, failed, ready[W];
byte b_seq;
byte state[W];               /* of the workers, as the supervisor sees them */
byte q_slice[S], q_count;    /* suspects, the first is on trial */
byte k_first[4], k_rows[4], k_fails[4], k_avoid[4], k_count; /* its ranges that are still to be tried, a stack */
bool k_fill[4], r_running, r_fill;
byte probation = NOBODY, r_on, r_number, r_first, r_rows, r_fails, r_avoid; /* the trial that runs */
#define STARTING 0
#define READY 1
#define WAITING 2
#define RETIRED 3
#define LEAVING 4

/* ---- what is checked, no part of the protocol ---- */
byte out_seq;                 /* whose the results' memory is; 0: nobody's */
byte written[S], left_out[S]; /* rows */
byte crashes, fails, anews, ticks, looks, removes;
bool engine_failed, finished;

/* A word never leaves a terminal state but for the next batch. */
inline put(n, to, by, generation)
{
    assert(!TERMINAL_NOW(n));
    word[n].st = to;
    word[n].w = (to == DONE -> 0 : by);         /* who has done it is nobody's matter any more, */
    word[n].g = (to == RUNNING -> generation : 0) /* and a generation matters while it runs */
}

inline publish_word(n, to, by)
{
    assert(word[n].st == NONE || TERMINAL(n));
    word[n].st = to; word[n].w = by; word[n].g = 0; word[n].s = b_seq
}

/* ---- T11 ------------------------------------------------------------------------------------------------------- */

/* One step, but with RINGS_IN_TWO, where worker, caller and supervisor ring first and look for sleepers after. */
inline ring_now(v) { rung[v] = true; blocked[v] = false }
inline ring_all()
{
    x = 0;
    do
    :: x < W -> ring_now(x); x++
    :: else -> x = 0; break
    od
}
inline ring_waiter_now() { w_rung = true; w_blocked = false }

/* recovery.c: ring_waiters */
inline ring_waiters()
{
    ring_waiter_now();
#ifdef EVENT
    x = 0;
    do
    :: x < S && TERMINAL_NOW(x) -> x++
    :: else -> break
    od;
    event = (event || x == S);
    x = 0
#endif
}

#ifdef M_HINT_WITHOUT_SEQUENCE
#define OF(hint_s, s_) true
#else
#define OF(hint_s, s_) (hint_s == s_)
#endif

#include "protocol_worker.pml"
#include "protocol_supervisor.pml"
#include "protocol_caller.pml"

init {
    byte v;
    d_step {
        do
        :: v < W -> alive[v] = true; ready[v] = true; admitted[v] = true; state[v] = READY; gen[v] = 1; v++
        :: else -> v = 0; break
        od
    };
    atomic {
        do
        :: v < W -> run worker(v); v++
        :: else -> break
        od;
        run fate();
        run supervisor();
        run caller();
#ifdef CANCEL
        run canceller()
#endif
    }
}
