/* Batches in flight: several threads, full queues, cancelling, timeouts, events, fork, two sessions, thread isolation.
 */
#include "sim_kit.h"

#include "base/clock.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 3\noutput z int32 N\n"
#define SLOW   SIMPLE "fixed_us 200000\n" /* 0.2 s a slice */

/* ---- in flight -------------------------------------------------------------------------------------------------- */

static void many_in_flight_from_one_thread(void **state)
{
    (void)state;
    enum { DEPTH = 8, TURNS = 40 };
    kit *k = kit_open(SIMPLE, "sim:0*3", NULL);
    kit_batch *b[DEPTH];
    dpi_ticket t[DEPTH];
    dpi_error error;
    for (int turn = 0; turn < TURNS; turn++) {
        bool views = turn % 2;
        for (int i = 0; i < DEPTH; i++) {
            b[i] = kit_batch_new(k, (size_t)(1 + (turn * 7 + i * 5) % 90), (uint64_t)(turn * DEPTH + i), 3);
            kit_assert_ok(kit_submit(k, b[i], views, 0, &t[i], &error), error);
        }
        for (int n = 0; n < DEPTH; n++) { /* waited for in another order than submitted */
            int i = (n * 3 + turn) % DEPTH;
            dpi_tensor out[2];
            kit_assert_ok(dpi_wait(k->s, t[i], 10000, out, 2, &error), error);
            kit_batch_check(b[i], views ? out : NULL);
            if (views)
                kit_assert_ok(dpi_release(k->s, t[i], &error), error);
            kit_batch_free(b[i]);
        }
    }
    kit_close(k);
}

typedef struct user {
    kit *k;
    unsigned number;
    int turns;
} user;

/* What one thread of several does: batches of its own, blocking and in flight, in plain and in shared memory. */
static void *use_session(void *argument)
{
    const user *u = argument;
    dpi_error error;
    for (int turn = 0; turn < u->turns; turn++) {
        size_t rows = 1 + (u->number * 31 + (unsigned)turn * 17) % 120;
        if (turn % 3 == 0) {
            kit_forward(u->k, rows, u->number * 1000 + (unsigned)turn);
            continue;
        }
        enum { DEPTH = 3 };
        kit_batch *b[DEPTH];
        dpi_ticket t[DEPTH];
        for (int i = 0; i < DEPTH; i++) {
            b[i] = kit_batch_new(u->k, rows + (size_t)i, u->number + (unsigned)(turn * 10 + i), 3);
            kit_assert_ok(kit_submit(u->k, b[i], turn % 3 == 1, 0, &t[i], &error), error);
        }
        for (int i = 0; i < DEPTH; i++) {
            dpi_tensor out[2];
            kit_assert_ok(dpi_wait(u->k->s, t[i], 20000, out, 2, &error), error);
            kit_batch_check(b[i], turn % 3 == 1 ? out : NULL);
            if (turn % 3 == 1)
                kit_assert_ok(dpi_release(u->k->s, t[i], &error), error);
            kit_batch_free(b[i]);
        }
    }
    return NULL;
}

static void run_users(kit *k, unsigned count, int turns)
{
    pthread_t threads[8];
    user users[8];
    for (unsigned i = 0; i < count; i++) {
        users[i] = (user){.k = k, .number = i + 1, .turns = turns};
        assert_int_equal(pthread_create(&threads[i], NULL, use_session, &users[i]), 0);
    }
    for (unsigned i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

static void several_threads_on_one_session(void **state)
{
    (void)state;
    kit *k = kit_open(SIMPLE, "sim:0*3", NULL);
    run_users(k, 4, 40);
    kit_close(k);
    dpi_options o = DPI_INIT(dpi_options);
    o.queue_depth = 4; /* tight: everybody can still get all of theirs in, one after another */
    o.batch = 7;
    k = kit_open(SIMPLE, "sim:0*2", &o);
    run_users(k, 1, 20);
    kit_close(k);
}

static void every_way_of_waiting(void **state)
{
    (void)state;
    for (int mode = DPI_WAIT_BLOCK; mode <= DPI_WAIT_SPIN; mode++) {
        dpi_options o = DPI_INIT(dpi_options);
        o.wait_mode = (dpi_wait_mode)mode;
        kit *k = kit_open(SIMPLE, "sim:0*2", &o);
        for (size_t i = 0; i < 20; i++)
            kit_forward(k, 1 + i * 3, i);
        kit_close(k);
    }
}

/* ---- a full queue ----------------------------------------------------------------------------------------------- */

static void a_full_queue_is_busy_or_blocks(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.queue_depth = 1;
    kit *k = kit_open(SLOW, "sim:0", &o);
    kit_batch *a = kit_batch_new(k, 2, 1, 3), *b = kit_batch_new(k, 3, 2, 3);
    dpi_ticket first, second = 77;
    dpi_error error;
    kit_assert_ok(kit_submit(k, a, true, 0, &first, &error), error);
    double began = kit_now_s();
    assert_int_equal(kit_submit(k, b, true, -1, &second, &error), DPI_BUSY);
    assert_int_equal(error.status, DPI_BUSY);
    assert_int_equal(second, 0);
    assert_true(kit_now_s() - began < 0.1);
    began = kit_now_s();
    assert_int_equal(kit_submit(k, b, true, 30, &second, &error), DPI_BUSY);
    assert_true(kit_now_s() - began >= 0.029 && kit_now_s() - began < 0.19);
    kit_assert_ok(kit_submit(k, b, true, 0, &second, &error), error); /* blocks until the first is done */
    dpi_tensor out[2];
    kit_assert_ok(dpi_wait(k->s, second, 0, out, 2, &error), error);
    kit_batch_check(b, out);
    kit_assert_ok(dpi_wait(k->s, first, -1, out, 2, &error), error);
    kit_batch_check(a, out);
    kit_assert_ok(kit_submit(k, b, true, 0, &second, &error), error);
    assert_int_equal(dpi_forward(k->s, b->in, 1, b->out, 2, 20, &error), DPI_TIMEOUT); /* the queue is full */
    kit_batch_free(a);
    kit_batch_free(b);
    kit_close(k);
}

/* ---- ending early ----------------------------------------------------------------------------------------------- */

static void cancel_drops_what_has_not_started(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.batch = 1;
    kit *k = kit_open(SIMPLE "fixed_us 50000\n", "sim:0*2", &o);
    kit_batch *b = kit_batch_new(k, 200, 1, 3); /* 5 s */
    dpi_ticket ticket;
    dpi_error error;
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    double began = kit_now_s();
    kit_assert_ok(dpi_cancel(k->s, ticket, &error), error);
    assert_int_equal(dpi_wait(k->s, ticket, 5000, NULL, 0, &error), DPI_CANCELLED);
    assert_int_equal(error.status, DPI_CANCELLED);
    assert_true(kit_now_s() - began < 1);
    assert_int_equal(dpi_wait(k->s, ticket, 0, NULL, 0, &error), DPI_E_ARGUMENT);
    assert_int_equal(dpi_cancel(k->s, ticket, &error), DPI_E_ARGUMENT);
    kit_forward(k, 5, 3); /* the session goes on, in order */
    /* Cancelling what is done changes nothing. */
    kit_batch *small = kit_batch_new(k, 1, 9, 3);
    kit_assert_ok(kit_submit(k, small, true, 0, &ticket, &error), error);
    dpi_tensor out[2];
    while (dpi_wait(k->s, ticket, -1, out, 2, &error) == DPI_TIMEOUT)
        clock_sleep_until_ns(clock_now_ns() + 1000000);
    kit_batch_check(small, out);
    kit_assert_ok(dpi_cancel(k->s, ticket, &error), error);
    kit_assert_ok(dpi_release(k->s, ticket, &error), error);
    kit_batch_free(small);
    kit_batch_free(b);
    kit_close(k);
}

static void *cancel_soon(void *argument)
{
    const user *u = argument;
    dpi_error error;
    clock_sleep_until_ns(clock_now_ns() + 30000000);
    kit_assert_ok(dpi_cancel(u->k->s, u->number, &error), error);
    return NULL;
}

static void cancel_from_another_thread(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.batch = 1;
    kit *k = kit_open(SIMPLE "fixed_us 20000\n", "sim:0*2", &o);
    for (int i = 0; i < 3; i++) {
        kit_batch *b = kit_batch_new(k, 300, 1, 3);
        dpi_ticket ticket;
        dpi_error error;
        kit_assert_ok(kit_submit(k, b, i == 1, 0, &ticket, &error), error);
        user u = {.k = k, .number = (unsigned)ticket};
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, cancel_soon, &u), 0);
        double began = kit_now_s();
        assert_int_equal(dpi_wait(k->s, ticket, 0, NULL, 0, &error), DPI_CANCELLED);
        assert_true(kit_now_s() - began < 1);
        pthread_join(thread, NULL);
        kit_batch_free(b);
    }
    kit_forward(k, 9, 1);
    kit_close(k);
}

static void a_timeout_and_then_waiting_again(void **state)
{
    (void)state;
    kit *k = kit_open(SLOW, "sim:0*2", NULL);
    kit_batch *b = kit_batch_new(k, 10, 1, 3);
    dpi_ticket ticket;
    dpi_error error;
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    assert_int_equal(dpi_wait(k->s, ticket, -1, NULL, 0, &error), DPI_TIMEOUT);
    assert_int_equal(error.status, DPI_TIMEOUT);
    assert_int_equal(dpi_wait(k->s, ticket, 20, NULL, 0, &error), DPI_TIMEOUT);
    dpi_tensor out[2];
    kit_assert_ok(dpi_wait(k->s, ticket, 5000, out, 2, &error), error);
    kit_batch_check(b, out);
    kit_batch_check(b, NULL);
    kit_batch_free(b);
    kit_close(k);
}

/* More abandoned batches than the queue is deep: each frees its place by itself, and none writes afterwards. */
static void abandoned_batches_finish_by_themselves(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.queue_depth = 2;
    kit *k = kit_open(SIMPLE "fixed_us 400000\n", "sim:0", &o);
    dpi_error error;
    void *block = dpi_alloc(k->s, 4096, DPI_OUTPUT, &error);
    assert_non_null(block);
    for (int i = 0; i < 5; i++) {
        kit_batch *b = kit_batch_new(k, 3, (uint64_t)i, 3);
        dpi_tensor out[2] = {b->out[0], b->out[1]};
        if (i == 4) {
            out[1].data = block;
            out[0].data = (char *)block + 1024;
        }
        dpi_status status = dpi_forward(k->s, b->in, 1, out, 2, 1, &error);
        assert_int_equal(status, DPI_TIMEOUT);
        for (size_t at = 0; i < 4 && at < 3 * 3 * 4; at++)
            assert_int_equal(((unsigned char *)b->out[0].data)[at], 0xa5);
        kit_batch_free(b); /* its memory is ours again */
        clock_sleep_until_ns(clock_now_ns() + 405000000);
    }
    kit_assert_ok(dpi_free(k->s, block, &error), error);
    kit_forward(k, 4, 1);
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    assert_int_equal(stats.failed_batches, 0);
    kit_close(k);
}

static void a_buffer_freed_in_flight_lives_until_the_end(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.arena_max_bytes = 64 << 10;
    kit *k = kit_open(SIMPLE "fixed_us 100000\n", "sim:0", &o);
    kit_batch *b = kit_batch_new(k, 4, 1, 3);
    dpi_error error;
    dpi_ticket ticket;
    void *plain = b->in[0].data, *block = dpi_alloc(k->s, 4096, DPI_INPUT, &error);
    assert_non_null(block);
    memcpy(block, plain, 4 * 5 * 4);
    b->in[0].data = block;
    kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
    b->in[0].data = plain;
    kit_assert_ok(dpi_free(k->s, block, &error), error);
    assert_int_equal(dpi_free(k->s, block, &error), DPI_E_ARGUMENT);
    void *other = dpi_alloc(k->s, 4096, DPI_INPUT, &error); /* must not be the same memory */
    assert_non_null(other);
    assert_ptr_not_equal(other, block);
    memset(other, 0xff, 4096);
    dpi_tensor out[2];
    kit_assert_ok(dpi_wait(k->s, ticket, 0, out, 2, &error), error);
    kit_batch_check(b, out);
    kit_assert_ok(dpi_release(k->s, ticket, &error), error);
    for (int i = 0; i < 100; i++) { /* nothing has leaked */
        void *again = dpi_alloc(k->s, 40 << 10, DPI_INPUT, &error);
        assert_non_null(again);
        kit_assert_ok(dpi_free(k->s, again, &error), error);
    }
    kit_batch_free(b);
    kit_close(k);
}

static void closing_with_batches_in_flight(void **state)
{
    (void)state;
    kit_traces before = kit_look();
    kit *k = kit_open(SIMPLE "hang_at_slice 1\n", "sim:0*2", NULL);
    dpi_ticket ticket;
    dpi_error error;
    kit_batch *b = kit_batch_new(k, 10, 1, 3);
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
    double began = kit_now_s();
    kit_close(k);
    assert_true(kit_now_s() - began < 2);
    kit_batch_free(b);
    kit_check_clean(before);
}

/* ---- events ----------------------------------------------------------------------------------------------------- */

static void expect_event(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t count = 0;
    if (poll(&p, 1, timeout_ms) != 1)
        fail_msg("no event came within %d ms", timeout_ms);
    assert_int_equal(read(fd, &count, sizeof count), sizeof count);
    assert_true(count >= 1);
}

static void the_event_descriptor_tells_of_every_end(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.batch = 2;
    kit *k = kit_open(SIMPLE "fixed_us 30000\n", "sim:0*2", &o);
    dpi_error error;
    int fd = dpi_event_fd(k->s, &error);
    assert_true(fd >= 0);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    dpi_ticket ticket;
    dpi_tensor out[2];
    for (int i = 0; i < 5; i++) {
        kit_batch *b = kit_batch_new(k, 7, (uint64_t)i, 3);
        kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
        assert_int_equal(poll(&p, 1, 0), 0);
        expect_event(fd, 5000);
        kit_assert_ok(dpi_wait(k->s, ticket, -1, out, 2, &error), error);
        kit_batch_check(b, out);
        kit_assert_ok(dpi_release(k->s, ticket, &error), error);
        kit_batch_free(b);
    }
    kit_batch *b = kit_batch_new(k, 200, 1, 3); /* a cancelled batch ends too */
    kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
    kit_assert_ok(dpi_cancel(k->s, ticket, &error), error);
    expect_event(fd, 2000);
    dpi_status status;
    while ((status = dpi_wait(k->s, ticket, -1, out, 2, &error)) == DPI_TIMEOUT)
        expect_event(fd, 2000); /* whatever rang early, the end rings as well */
    assert_int_equal(status, DPI_CANCELLED);
    kit_batch_free(b);
    b = kit_batch_new(k, 0, 1, 3); /* one without rows has ended at once */
    kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
    expect_event(fd, 1000);
    kit_assert_ok(dpi_wait(k->s, ticket, -1, out, 2, &error), error);
    kit_batch_free(b);
    kit_close(k);
}

static void a_failed_batch_is_an_event(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.batch = 1;
    o.total_batch_size = 2;
    kit *k = kit_open(SIMPLE "fixed_us 10000\nfail_at_slice 2\n", "sim:0*2", &o);
    dpi_error error;
    int fd = dpi_event_fd(k->s, &error);
    kit_batch *b = kit_batch_new(k, 20, 1, 3);
    dpi_ticket ticket;
    kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
    dpi_status status;
    double began = kit_now_s();
    while ((status = dpi_wait(k->s, ticket, -1, NULL, 0, &error)) == DPI_TIMEOUT && kit_now_s() - began < 5)
        expect_event(fd, 2000);
    assert_int_equal(status, DPI_E_ENGINE);
    kit_batch_free(b);
    kit_close(k);
}

/* The first worker dies between DONE and counting it, so nobody ever counts the last slice: the one who finishes it
 * tells of the end all the same. */
static void a_batch_that_a_worker_died_over_is_an_event(void **state)
{
    (void)state;
    const size_t shares[2] = {2, 30};
    dpi_options o = DPI_INIT(dpi_options);
    o.batch = 30;
    o.batch_size_list = shares;
    o.batch_size_count = 2;
    kit *k = kit_open(SIMPLE "row_us 20000\ndie_at_slice 2\ndie_at_step 5\nfault_generations 1\n", "sim:0*2", &o);
    dpi_error error;
    int fd = dpi_event_fd(k->s, &error);
    kit_batch *b = kit_batch_new(k, 34, 1, 3); /* two short slices for the first, a long one for the second */
    dpi_ticket ticket;
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    dpi_status status;
    do
        expect_event(fd, 30000);
    while ((status = dpi_wait(k->s, ticket, -1, NULL, 0, &error)) == DPI_TIMEOUT);
    kit_assert_ok(status, error);
    kit_batch_check(b, NULL);
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    assert_int_equal(stats.deaths, 1);
    kit_batch_free(b);
    kit_close(k);
}

/* ---- fork, several sessions ------------------------------------------------------------------------------------- */

#define CHILD_EXPECT(condition)                                                                                        \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "in the child: %s does not hold\n", #condition);                                           \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

static void use_in_child(kit *k, kit_batch *b, dpi_ticket ticket, void *block)
{
    dpi_error error = {0};
    dpi_ticket t;
    dpi_description d = DPI_INIT(dpi_description);
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    const char *source = "random:5:float32:3";
    dpi_run_options run = DPI_INIT(dpi_run_options);
    run.inputs = &source;
    run.input_count = 1;
    CHILD_EXPECT(dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error) == DPI_E_FORKED);
    CHILD_EXPECT(error.status == DPI_E_FORKED && error.message[0]);
    CHILD_EXPECT(kit_submit(k, b, true, 0, &t, &error) == DPI_E_FORKED);
    CHILD_EXPECT(dpi_wait(k->s, ticket, 0, NULL, 0, &error) == DPI_E_FORKED);
    CHILD_EXPECT(dpi_release(k->s, ticket, &error) == DPI_E_FORKED);
    CHILD_EXPECT(dpi_cancel(k->s, ticket, &error) == DPI_E_FORKED);
    CHILD_EXPECT(dpi_event_fd(k->s, &error) == -1 && error.status == DPI_E_FORKED);
    CHILD_EXPECT(!dpi_alloc(k->s, 1, DPI_INPUT, &error) && error.status == DPI_E_FORKED);
    CHILD_EXPECT(dpi_free(k->s, block, &error) == DPI_E_FORKED);
    CHILD_EXPECT(dpi_describe(k->s, &d, &error) == DPI_E_FORKED);
    CHILD_EXPECT(dpi_stats(k->s, &stats, &error) == DPI_E_FORKED);
    CHILD_EXPECT(dpi_run(k->s, &run, NULL, &error) == DPI_E_FORKED);
    dpi_close(k->s);
    CHILD_EXPECT(kit_count_mappings() == 0);
    _exit(0);
}

static void a_forked_child_is_refused(void **state)
{
    (void)state;
    kit *k = kit_open(SIMPLE "fixed_us 50000\n", "sim:0*2", NULL);
    kit_batch *b = kit_batch_new(k, 10, 1, 3);
    dpi_ticket ticket;
    dpi_error error;
    void *block = dpi_alloc(k->s, 100, DPI_INPUT, &error);
    kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        use_in_child(k, b, ticket, block);
    int how = -1;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_int_equal(how, 0);
    dpi_tensor out[2];
    kit_assert_ok(dpi_wait(k->s, ticket, 5000, out, 2, &error), error); /* the parent's goes on */
    kit_batch_check(b, out);
    kit_assert_ok(dpi_release(k->s, ticket, &error), error);
    kit_forward(k, 20, 3);
    kit_batch_free(b);
    kit_close(k);
}

static void two_sessions_at_once(void **state)
{
    (void)state;
    kit *a = kit_open(SIMPLE, "sim:0*2", NULL);
    kit *b = kit_open("input x uint8 N 9\noutput y float64 N 2\noutput z int32 N\n", "sim:0*3", NULL);
    user users[2] = {{.k = a, .number = 1, .turns = 30}, {.k = b, .number = 2, .turns = 30}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, use_session, &users[i]), 0);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    kit_close(a);
    kit_forward(b, 12, 1);
    kit_close(b);
}

/* ---- isolation=thread ------------------------------------------------------------------------------------------- */

static void thread_isolation(void **state)
{
    (void)state;
    static const char *const devices[] = {"sim:0", "sim:0*3"};
    kit_traces before = kit_look();
    for (int d = 0; d < 2; d++) {
        dpi_options o = DPI_INIT(dpi_options);
        o.isolation = DPI_ISOLATION_THREAD;
        o.batch = 16;
        kit *k = kit_open(SIMPLE, devices[d], &o);
        assert_int_equal(kit_look().children, before.children);
        dpi_description facts = DPI_INIT(dpi_description);
        dpi_error error;
        kit_assert_ok(dpi_describe(k->s, &facts, &error), error);
        assert_int_equal(facts.workers[0].pid, 0);
        for (size_t rows = 0; rows < 60; rows += 5)
            kit_forward(k, rows, rows);
        run_users(k, 3, 20);
        kit_close(k);
        k = kit_open("input x float32 4 8\noutput y float32 4 2\n", devices[d], &o);
        for (size_t rows = 0; rows < 10; rows++)
            kit_forward(k, rows, rows);
        kit_close(k);
        k = kit_open("input x float32 N ?\ninput w int8 broadcast 3\noutput y float32 N x.1\n", devices[d], &o);
        for (size_t rows = 0; rows < 40; rows += 13)
            kit_forward(k, rows, rows);
        kit_close(k);
    }
    kit_check_clean(before);
}

static void thread_isolation_ends_fd_and_failures(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.isolation = DPI_ISOLATION_THREAD;
    kit *k = kit_open(SIMPLE "fail_at_slice 2\n", "sim:0", &o);
    dpi_error error;
    int fd = dpi_event_fd(k->s, &error);
    kit_batch *b = kit_batch_new(k, 5, 1, 3);
    dpi_ticket ticket;
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    expect_event(fd, 1000);
    kit_assert_ok(dpi_wait(k->s, ticket, 0, NULL, 0, &error), error);
    kit_batch_check(b, NULL);
    assert_int_equal(dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error), DPI_E_ENGINE);
    kit_assert_contains(error.message, "sim failed");
    kit_assert_contains(error.message, "sim:0");
    kit_forward(k, 5, 1);
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    assert_int_equal(stats.failed_batches, 1);
    assert_int_equal(stats.batches, 2);
    kit_batch_free(b);
    kit_close(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(many_in_flight_from_one_thread),
        cmocka_unit_test(several_threads_on_one_session),
        cmocka_unit_test(every_way_of_waiting),
        cmocka_unit_test(a_full_queue_is_busy_or_blocks),
        cmocka_unit_test(cancel_drops_what_has_not_started),
        cmocka_unit_test(cancel_from_another_thread),
        cmocka_unit_test(a_timeout_and_then_waiting_again),
        cmocka_unit_test(abandoned_batches_finish_by_themselves),
        cmocka_unit_test(a_buffer_freed_in_flight_lives_until_the_end),
        cmocka_unit_test(closing_with_batches_in_flight),
        cmocka_unit_test(the_event_descriptor_tells_of_every_end),
        cmocka_unit_test(a_failed_batch_is_an_event),
        cmocka_unit_test(a_batch_that_a_worker_died_over_is_an_event),
        cmocka_unit_test(a_forked_child_is_refused),
        cmocka_unit_test(two_sessions_at_once),
        cmocka_unit_test(thread_isolation),
        cmocka_unit_test(thread_isolation_ends_fd_and_failures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
