/*
 * The words by which the supervisor and a worker speak to each other, as litmus tests between threads: trials, who may
 * claim and who is to leave, reports of bad rows. Both sides run the code that they run in a session. What a word hands
 * over is plain memory, so that a thread sanitizer sees an order that is too weak; a ring that is lost is a wait that
 * does not end.
 */
#include "base/clock.h"
#include "ipc/arena.h"
#include "ipc/bell.h"
#include "ipc/channel.h"
#include "ipc/trial.h"
#include "runtime/batch.h"
#include "runtime/recovery.h"
#include "runtime/supervisor.h"
#include "runtime/worker.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define LOST_NS 20000000000 /* what takes this long does not happen */

/* ---- trials ---------------------------------------------------------------------------------------------------- */

enum { TRIALS = 20000 };

typedef struct asking {
    trial t;
    _Atomic uint32_t quit;
} asking;

/* All of trial n follows from n. */
static trial_order nth(uint64_t n)
{
    return (trial_order){.worker = (uint32_t)n,
                         .slot = (uint32_t)(n * 3),
                         .sequence = (uint32_t)(n * 5),
                         .slice = (uint32_t)(n * 7),
                         .first_row = n * 11,
                         .rows = n * 13,
                         .fill = n % 2};
}

static bool is_nth(const trial_order *o, uint64_t n)
{
    trial_order right = nth(n);
    return o->worker == right.worker && o->slot == right.slot && o->sequence == right.sequence &&
           o->slice == right.slice && o->first_row == right.first_row && o->rows == right.rows && o->fill == right.fill;
}

static void *ask_trials(void *argument)
{
    asking *a = argument;
    for (uint64_t n = 1; !atomic_load(&a->quit); n++) {
        trial_order order = nth(n);
        trial_ask(&a->t, n, &order);
        for (uint64_t pause = 0; pause < n % 101; pause++)
            atomic_load(&a->quit);
    }
    return NULL;
}

/* Each trial that is read is one that was asked for, whole, and none comes after a later one. */
static void a_trial_is_read_whole(void **state)
{
    (void)state;
    asking a = {.quit = 0};
    pthread_t thread;
    uint64_t last = 0;
    unsigned seen = 0;
    int64_t until_ns = clock_now_ns() + LOST_NS / 4; /* on a slow machine fewer */
    assert_int_equal(pthread_create(&thread, NULL, ask_trials, &a), 0);
    while (seen < TRIALS && (!seen || clock_now_ns() < until_ns)) {
        trial_order order;
        uint64_t n = trial_read(&a.t, &order);
        if (!n || n == last)
            continue;
        if (!is_nth(&order, n))
            fail_msg("trial %llu was read as another: worker %u, rows %llu", (unsigned long long)n, order.worker,
                     (unsigned long long)order.rows);
        assert_true(n > last);
        last = n;
        seen++;
    }
    atomic_store(&a.quit, 1);
    pthread_join(thread, NULL);
}

/* ---- a session's end and a worker's ----------------------------------------------------------------------------- */

enum { SLICES = 4 };

typedef struct two_sides {
    dpi_session s;
    session_worker seat;
    control *c;
    claims *words;
    worker_page *page;
    worker w;
    /* Plain memory, written before worker 0 is admitted and before it is dismissed, and what the worker saw. */
    uint32_t compared, told, saw_compared, saw_told;
} two_sides;

static dpi_status compute_nothing(backend_engine *engine, const backend_call *call, backend_timing *timing,
                                  dpi_error *error)
{
    two_sides *t = (two_sides *)(void *)engine;
    (void)call;
    (void)timing;
    (void)error;
    t->saw_compared = t->compared;
    return DPI_OK;
}

static const backend nothing = {.name = "nothing", .run = compute_nothing};

static two_sides *new_sides(void)
{
    two_sides *t = calloc(1, sizeof *t);
    dpi_error error;
    assert_non_null(t);
    t->c = aligned_alloc(64, sizeof *t->c);
    t->page = calloc(1, PAGE_BYTES);
    memset(t->c, 0, sizeof *t->c);
    assert_int_equal(arena_create("test", 1 << 30, LAYOUT_CLAIMS_BYTES, ARENA_ALL_WRITE, &t->s.outputs, &error),
                     DPI_OK);
    t->words = arena_at(t->s.outputs, 0);
    t->c->wait_mode = DPI_WAIT_BLOCK;
    t->seat.page = t->page;
    t->s.control = t->c;
    t->s.workers = &t->seat;
    t->s.count = 1;
    pthread_mutex_init(&t->s.lock, NULL);
    t->w = (worker){.control = t->c,
                    .page = t->page,
                    .outputs = arena_at(t->s.outputs, 0),
                    .backend = &nothing,
                    .engine = (backend_engine *)(void *)t,
                    .event_fd = -1,
                    .depth = 1};
    return t;
}

static void free_sides(two_sides *t)
{
    arena_destroy(t->s.outputs);
    pthread_mutex_destroy(&t->s.lock);
    free(t->page);
    free(t->c);
    free(t);
}

/* One row a slice, all of them worker 0's. */
static void publish(two_sides *t, uint32_t round)
{
    batch_desc *d = &t->c->batches[0];
    atomic_store(&d->sequence, 0);
    d->rows = SLICES;
    atomic_store(&d->slice_count, SLICES);
    atomic_store(&d->planned_workers, 1);
    atomic_store(&d->slice_rows[0], 1);
    atomic_store(&d->first_slice[1], SLICES);
    d->share_row[1] = SLICES;
    hint_start(&t->words->left, round, SLICES);
    for (uint32_t i = 0; i < SLICES; i++)
        claim_publish(&t->words->word[i], (claim){.sequence = round, .generation = round, .state = CLAIM_CLAIMED});
    atomic_store_explicit(&d->sequence, round, memory_order_release);
    atomic_store(&t->c->active, 1);
}

static bool all_are(const two_sides *t, uint32_t state)
{
    for (uint32_t i = 0; i < SLICES; i++)
        if (claim_load(&t->words->word[i]).state != state)
            return false;
    return true;
}

/* ---- admitted and dismissed ------------------------------------------------------------------------------------- */

enum { GENERATIONS = 3000 };

static void *live(void *argument)
{
    two_sides *t = argument;
    worker_loop(&t->w);
    t->saw_told = t->told;
    return NULL;
}

static void ring(two_sides *t) { bell_ring(&t->c->workers[0].bell, &t->page->sleeping); }

/* As long as a worker takes to wake up, or less: so it is at every place of its loop now and then. */
static void pause_in(two_sides *t, uint32_t round)
{
    uint32_t turns = round * 7919 % (round % 4 ? 30000 : 100);
    for (uint32_t i = 0; i < turns; i++)
        atomic_load(&t->c->shutdown);
}

/* A generation that has not been admitted claims nothing, whatever rings, and sleeps. */
static void claims_nothing(two_sides *t)
{
    int64_t until_ns = clock_now_ns() + LOST_NS;
    for (int i = 0; i < 2; i++) {
        ring(t);
        while (!atomic_load(&t->page->sleeping) && clock_now_ns() < until_ns)
            sched_yield();
        assert_int_equal(atomic_load(&t->page->sleeping), 1);
    }
    assert_true(all_are(t, CLAIM_CLAIMED));
}

static void is_gone(pthread_t thread, uint32_t round)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += LOST_NS / 1000000000;
    if (pthread_timedjoin_np(thread, NULL, &until) != 0)
        fail_msg("generation %u was dismissed and does not leave", round);
}

static void one_generation(two_sides *t, uint32_t round)
{
    pthread_t thread;
    t->w.generation = t->seat.generation = round;
    publish(t, round);
    assert_int_equal(pthread_create(&thread, NULL, live, t), 0);
    if (round % 8 == 0)
        claims_nothing(t);
    ring(t); /* it is awake when it is admitted, so that the bell is not what tells */
    pause_in(t, round);
    t->compared = round;
    supervisor_admit(&t->s, 0);
    int64_t until_ns = clock_now_ns() + LOST_NS;
    while (round % 2 && !all_are(t, CLAIM_DONE)) {
        if (clock_now_ns() > until_ns)
            fail_msg("generation %u was admitted and claims nothing", round);
        sched_yield();
    }
    ring(t);
    pause_in(t, round + 1);
    t->told = round;
    supervisor_dismiss(&t->s, 0);
    is_gone(thread, round);
    assert_int_equal(t->saw_told, round);
    for (uint32_t i = 0; i < SLICES; i++) { /* what it has begun it has finished */
        claim now = claim_load(&t->words->word[i]);
        assert_true(now.state == CLAIM_DONE || now.state == CLAIM_CLAIMED);
        if (now.state == CLAIM_DONE)
            assert_int_equal(t->saw_compared, round);
    }
}

static void generations_come_and_go(void **state)
{
    (void)state;
    two_sides *t = new_sides();
    for (uint32_t round = 1; round <= GENERATIONS; round++)
        one_generation(t, round);
    free_sides(t);
}

/* ---- heard and refused ------------------------------------------------------------------------------------------ */

enum { REPORTS = 20000 };

typedef struct reporting {
    two_sides *t;
    int socket;
    uint32_t noted;  /* plain: written before the report is answered */
    uint32_t failed; /* how many were not answered as they should be */
} reporting;

/* Every third one speaks of a slice that is not the worker's. */
static bool is_good(uint32_t report) { return report % 3 != 0; }

static void *report_rows(void *argument)
{
    reporting *r = argument;
    dpi_error error;
    flight_bad bad = {.row = 0, .reason = "as planned"};
    for (uint32_t i = 1; i <= REPORTS; i++) {
        flight f = {.sequence = 1, .rows = 1, .bad = &bad, .bad_count = 1};
        f.slice = is_good(i) ? 0 : SLICES + 1;
        bool heard = worker_report_bad(&r->t->w, &f, &error) == DPI_OK;
        r->failed += heard != is_good(i) || r->noted != i;
    }
    return NULL;
}

/* Whoever has been heard knows whether the report was refused, and all that was noted before is there. */
static void a_report_that_is_heard_is_judged(void **state)
{
    (void)state;
    two_sides *t = new_sides();
    batch b = {.sequence = 1, .slice_count = SLICES, .rows = SLICES, .planned_workers = 1};
    reporting r = {.t = t};
    int pair[2];
    dpi_error error;
    pthread_t thread;
    assert_int_equal(channel_pair(pair, &error), DPI_OK);
    r.socket = pair[0];
    t->w.socket = pair[1];
    t->w.generation = t->seat.generation = 1;
    publish(t, 1);
    claim_publish(&t->words->word[0], (claim){.sequence = 1, .generation = 1, .state = CLAIM_RUNNING});
    t->s.slots[0] = &b;
    t->s.on_bad_row = DPI_BAD_ROW_SKIP;
    t->s.max_bad_rows = UINT64_MAX;
    assert_int_equal(pthread_create(&thread, NULL, report_rows, &r), 0);
    for (uint32_t i = 1; i <= REPORTS; i++) {
        json_t *message;
        if (channel_receive(r.socket, clock_now_ns() + LOST_NS, &message, NULL, NULL, &error))
            fail_msg("report %u does not come: %s", i, error.message);
        ring(t);
        pause_in(t, i);
        r.noted = i;
        recovery_bad_rows(&t->s, 0, message);
        json_decref(message);
    }
    is_gone(thread, 1);
    assert_int_equal(r.failed, 0);
    assert_int_equal(b.bad_row_count, 1);
    assert_int_equal(b.verdict.status, DPI_OK);
    batch_free_bad_rows(b.bad_rows, b.bad_row_count);
    close(pair[0]);
    close(pair[1]);
    free_sides(t);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_trial_is_read_whole),
        cmocka_unit_test(generations_come_and_go),
        cmocka_unit_test(a_report_that_is_heard_is_judged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
