/* Producers: other processes that write rows into a session's inputs. */
#include "sim_kit.h"

#include <dpinfer/dpinfer.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODEL   "input x float32 N 4\ninput k int64 N\noutput y float32 N 3\n"
#define ENDLESS UINT64_MAX

/* What a producer does with the ranges that it reserves. */
typedef enum habit { HONEST, DIES_AT_SECOND, FAILS_AT_SECOND, ENDS_AFTER_TWO } habit;

static kit *open_session(bool producers)
{
    dpi_options o = DPI_INIT(dpi_options);
    o.producers = producers;
    return kit_open(MODEL, "sim:0*2", &o);
}

static dpi_status open_feed(const kit *k, uint64_t rows, size_t producers, dpi_feed **feed, dpi_error *error)
{
    const dpi_tensor inputs[] = {{.dtype = DPI_F32, .rank = 2, .shape = {0, 4}}, {.dtype = DPI_I64, .rank = 1}};
    dpi_feed_options o = DPI_INIT(dpi_feed_options);
    o.inputs = inputs;
    o.input_count = 2;
    o.rows = rows;
    o.range_rows = 8;
    o.slots = 4;
    o.producers = producers;
    return dpi_feed_open(k->s, &o, feed, error);
}

static void write_rows(const dpi_range *r, const dpi_tensor *in)
{
    for (uint64_t row = 0; row < r->rows; row++) {
        ((int64_t *)in[1].data)[row] = (int64_t)(r->first_row + row);
        for (size_t e = 0; e < 4; e++)
            ((float *)in[0].data)[row * 4 + e] = (float)(r->first_row + row) + (float)e / 4;
    }
}

/* The child: exit code 0 when it was told to end, 1 for anything else. */
static void produce(int socket, habit h)
{
    dpi_producer *p;
    dpi_error error;
    dpi_range r;
    dpi_tensor in[2];
    if (dpi_producer_open(socket, &p, &error) || dpi_producer_inputs(p) != 2)
        _exit(1);
    dpi_status status;
    for (int turn = 1; (status = dpi_producer_reserve(p, 0, &r, in, &error)) == DPI_OK; turn++) {
        if (h == DIES_AT_SECOND && turn == 2)
            raise(SIGKILL);
        if (h == FAILS_AT_SECOND && turn == 2) {
            dpi_producer_fail(p, &r, "row 13 is broken", NULL);
            continue;
        }
        write_rows(&r, in);
        bool last = h == ENDS_AFTER_TWO && turn == 2;
        if (last)
            r.rows = 3;
        if (dpi_producer_fill(p, &r, last, &error) || dpi_producer_fill(p, &r, last, NULL) != DPI_E_ARGUMENT)
            _exit(1);
        if (last)
            break;
    }
    dpi_producer_close(p);
    _exit(status == DPI_OK || status == DPI_E_CLOSED ? 0 : 1);
}

static pid_t start(dpi_feed *feed, habit h)
{
    int socket;
    dpi_error error;
    kit_assert_ok(dpi_feed_connect(feed, &socket, &error), error);
    pid_t child = fork();
    if (child == 0)
        produce(socket, h);
    close(socket);
    return child;
}

static int ended(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        assert_int_equal(errno, EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* Takes one range, computes it where it stands, and checks every row. */
static void take(const kit *k, dpi_feed *feed, const dpi_range *r, const dpi_tensor *in)
{
    float y[8 * 3];
    dpi_tensor out = {.dtype = DPI_F32, .rank = 2, .shape = {(int64_t)r->rows, 3}, .data = y};
    dpi_error error;
    kit_assert_ok(dpi_forward(k->s, in, 2, &out, 1, 0, &error), error);
    for (uint64_t row = 0; row < r->rows; row++) {
        const void *rows[] = {(float *)in[0].data + row * 4, (int64_t *)in[1].data + row};
        const size_t bytes[] = {16, 8};
        float want[3];
        assert_true(((int64_t *)in[1].data)[row] == (int64_t)(r->first_row + row));
        sim_expected_row(&k->model, rows, bytes, 0, 3, want);
        assert_memory_equal(want, y + row * 3, sizeof want);
    }
    kit_assert_ok(dpi_feed_release(feed, r->index, &error), error);
    assert_int_equal(dpi_feed_release(feed, r->index, &error), DPI_E_ARGUMENT);
}

static uint64_t take_all(const kit *k, dpi_feed *feed)
{
    uint64_t rows = 0, next = 0;
    for (;;) {
        dpi_range r;
        dpi_tensor in[2];
        dpi_error error;
        kit_assert_ok(dpi_feed_next(feed, 60000, &r, in, &error), error);
        if (r.index == UINT64_MAX)
            return rows;
        assert_true(r.index >= next);
        next = r.index + 1;
        take(k, feed, &r, in);
        rows += r.rows;
    }
}

/* A session with a feed, and its producers. */
typedef struct feeding {
    kit *k;
    dpi_feed *feed;
    pid_t children[3];
    size_t count;
} feeding;

static void start_all(feeding *f, habit h, size_t count)
{
    for (size_t i = 0; i < count; i++)
        f->children[f->count++] = start(f->feed, h);
}

/* A feed for `producers`, all of which are started with this habit. */
static feeding begin(uint64_t rows, size_t producers, habit h)
{
    feeding f = {.k = open_session(true)};
    dpi_error error;
    kit_assert_ok(open_feed(f.k, rows, producers, &f.feed, &error), error);
    start_all(&f, h, producers);
    return f;
}

/* Closes the feed; all producers have to end as they were told to. */
static void finish(feeding *f)
{
    dpi_feed_close(f->feed);
    for (size_t i = 0; i < f->count; i++)
        assert_int_equal(ended(f->children[i]), 0);
    kit_close(f->k);
}

/* These have to have died; they are waited for no more. */
static void all_died(feeding *f)
{
    for (size_t i = 0; i < f->count; i++)
        assert_int_equal(ended(f->children[i]), -SIGKILL);
    f->count = 0;
}

static void rows_come_in_order_from_several_processes(void **state)
{
    (void)state;
    feeding f = begin(203, 3, HONEST);
    dpi_error error;
    dpi_stats_data before = DPI_INIT(dpi_stats_data), after = DPI_INIT(dpi_stats_data);
    int socket;
    assert_int_equal(dpi_feed_connect(f.feed, &socket, &error), DPI_E_ARGUMENT);
    dpi_stats(f.k->s, &before, NULL);
    assert_true(take_all(f.k, f.feed) == 203);
    dpi_stats(f.k->s, &after, NULL);
    assert_true(before.copied_in_bytes == after.copied_in_bytes); /* workers read what producers wrote */
    finish(&f);
}

static void ranges_of_the_dead_are_dealt_again(void **state)
{
    (void)state;
    feeding f = {.k = open_session(true)};
    dpi_error error;
    kit_assert_ok(open_feed(f.k, 200, 3, &f.feed, &error), error);
    start_all(&f, DIES_AT_SECOND, 2);
    all_died(&f); /* the ring has room for all that they take */
    start_all(&f, HONEST, 1);
    assert_true(take_all(f.k, f.feed) == 200);
    finish(&f);
}

static void all_dead_is_an_error_and_not_a_wait(void **state)
{
    (void)state;
    feeding f = begin(200, 1, DIES_AT_SECOND);
    dpi_error error;
    dpi_range r;
    dpi_tensor in[2];
    kit_assert_ok(dpi_feed_next(f.feed, 0, &r, in, &error), error); /* the first is whole */
    assert_int_equal(dpi_feed_next(f.feed, 0, &r, in, &error), DPI_E_WORKER);
    kit_assert_contains(error.message, "died");
    all_died(&f);
    finish(&f);
}

static void a_failure_comes_in_its_place_with_its_words(void **state)
{
    (void)state;
    feeding f = begin(200, 1, FAILS_AT_SECOND);
    dpi_error error;
    dpi_range r;
    dpi_tensor in[2];
    kit_assert_ok(dpi_feed_next(f.feed, 0, &r, in, &error), error);
    take(f.k, f.feed, &r, in);
    assert_int_equal(dpi_feed_next(f.feed, 0, &r, in, &error), DPI_E_DATA);
    assert_string_equal(error.message, "row 13 is broken");
    finish(&f);
}

static void an_unknown_number_of_rows_ends_with_the_producers(void **state)
{
    (void)state;
    feeding f = begin(ENDLESS, 3, ENDS_AFTER_TWO);
    assert_true(take_all(f.k, f.feed) == 3 * (8 + 3));
    finish(&f);
}

static void a_feed_that_closes_early_ends_its_producers(void **state)
{
    (void)state;
    feeding f = begin(1000, 2, HONEST);
    dpi_error error;
    dpi_range r;
    dpi_tensor in[2];
    kit_assert_ok(dpi_feed_next(f.feed, 0, &r, in, &error), error);
    dpi_feed_close(f.feed);
    assert_int_equal(ended(f.children[0]), 0);
    assert_int_equal(ended(f.children[1]), 0);
    kit_forward(f.k, 50, 3); /* the session goes on */
    kit_close(f.k);
}

static void wrong_feeds_are_refused(void **state)
{
    (void)state;
    kit *closed = open_session(false), *k = open_session(true);
    dpi_feed *feed;
    dpi_error error;
    dpi_producer *producer;
    int pair[2];
    assert_int_equal(open_feed(closed, 10, 1, &feed, &error), DPI_E_ARGUMENT);
    kit_assert_contains(error.message, "producers");
    assert_int_equal(open_feed(k, 10, 0, &feed, &error), DPI_E_ARGUMENT);
    const dpi_tensor wrong[] = {{.dtype = DPI_F32, .rank = 2, .shape = {0, 5}}, {.dtype = DPI_I64, .rank = 1}};
    dpi_feed_options o = {.struct_size = sizeof o,
                          .inputs = wrong,
                          .input_count = 2,
                          .rows = 9,
                          .range_rows = 4,
                          .slots = 4,
                          .producers = 1};
    assert_int_equal(dpi_feed_open(k->s, &o, &feed, &error), DPI_E_DATA);
    kit_assert_contains(error.message, "input x expects");
    o.input_count = 1;
    assert_int_equal(dpi_feed_open(k->s, &o, &feed, &error), DPI_E_DATA);
    assert_int_equal(pipe(pair), 0);
    assert_int_equal(dpi_producer_open(pair[0], &producer, &error), DPI_E_WORKER);
    assert_int_equal(dpi_producer_open(-1, &producer, &error), DPI_E_ARGUMENT);
    close(pair[0]);
    close(pair[1]);
    kit_close(closed);
    kit_close(k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_come_in_order_from_several_processes),
        cmocka_unit_test(ranges_of_the_dead_are_dealt_again),
        cmocka_unit_test(all_dead_is_an_error_and_not_a_wait),
        cmocka_unit_test(a_failure_comes_in_its_place_with_its_words),
        cmocka_unit_test(an_unknown_number_of_rows_ends_with_the_producers),
        cmocka_unit_test(a_feed_that_closes_early_ends_its_producers),
        cmocka_unit_test(wrong_feeds_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
