/* What the chaos test has found: workers that are stopped while idle, failures that were told of the wrong batch,
 * devices that were blamed without a trial. */
#include "sim_kit.h"

#include "base/clock.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 3\noutput z int32 N\n"

static dpi_status run_to_nothing(kit *k, const char *source, dpi_error *error)
{
    const char *in[] = {source}, *out[] = {"y=none", "z=none"};
    dpi_run_options o = DPI_INIT(dpi_run_options);
    o.inputs = in;
    o.input_count = 1;
    o.outputs = out;
    o.output_count = 2;
    return dpi_run(k->s, &o, NULL, error);
}

/* A worker that does not answer while it has nothing to compute is replaced like one that hangs in a slice. */
static void a_worker_that_does_not_answer_is_replaced(void **state)
{
    (void)state;
    kit *k = kit_open(SIMPLE "fixed_us 500\n", "sim:0,sim:7",
                      &(dpi_options){.struct_size = sizeof(dpi_options), .compile_timeout_ms = 400});
    dpi_error error = {0};
    kit_forward(k, 20, 1);
    assert_int_equal(kill(kit_pid(k, 1), SIGSTOP), 0);
    kit_assert_ok(run_to_nothing(k, "random:5:float32:100", &error), error);
    assert_int_equal(kit_stats(k).deaths, 1);
    kit_close(k);
}

static void *run_it(void *argument)
{
    dpi_error error = {0};
    kit_assert_ok(run_to_nothing(argument, "random:5:float32:100", &error), error);
    return NULL;
}

/* While the run waits for a stopped worker's answer, another dies that owes one and starts again: nobody waits for an
 * answer of a generation that was not asked. */
static void an_answer_is_not_awaited_of_the_successor(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_options o = kit_impatient();
    o.event = kit_tell;
    o.event_context = &story;
    kit *k = kit_open(SIMPLE "fixed_us 500\n", "sim:0,sim:7,sim:2", &o);
    kit_forward(k, 20, 1);
    pid_t second = kit_pid(k, 1);
    assert_int_equal(kill(kit_pid(k, 0), SIGSTOP), 0);
    assert_int_equal(kill(second, SIGSTOP), 0);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_it, k), 0);
    clock_sleep_until_ns(clock_now_ns() + 300000000); /* both have been asked by then */
    assert_int_equal(kill(second, SIGKILL), 0);
    pthread_join(thread, NULL);
    assert_int_equal(kit_stats(k).deaths, 2);
    kit_close(k);
}

typedef struct stream {
    kit *k;
    atomic_bool over;
} stream;

static void *keep_busy(void *argument)
{
    stream *s = argument;
    for (uint64_t i = 0; !s->over; i++)
        kit_forward(s->k, 2, i);
    return NULL;
}

/* A stopped worker holds up its batch for its limit and no longer, however busy the others are meanwhile. */
static void a_stopped_worker_is_replaced(void **state)
{
    (void)state;
    const size_t shares[] = {2, 2};
    dpi_options o = kit_impatient();
    o.batch_size_list = shares;
    o.batch_size_count = 2;
    kit *k = kit_open(SIMPLE "fixed_us 3000\n", "sim:0,sim:7", &o);
    kit_forward(k, 4, 1);
    stream s = {.k = k};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, keep_busy, &s), 0);
    assert_int_equal(kill(kit_pid(k, 1), SIGSTOP), 0);
    kit_forward(k, 4, 2); /* within twenty seconds */
    s.over = true;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(kit_stats(k).deaths, 1);
    kit_close(k);
}

/* Nor does a suspect wait for ever for a worker that does not begin its trial. */
static void a_trial_that_nobody_begins_is_given_to_another(void **state)
{
    (void)state;
    const dpi_key_value options[] = {{"0.die_at_slice", "2"}, {"0.fault_generations", "1"}};
    const size_t shares[] = {2, 0};
    dpi_options o = kit_impatient();
    o.backend_options = options;
    o.backend_option_count = 2;
    o.batch_size_list = shares;
    o.batch_size_count = 2;
    kit *k = kit_open(SIMPLE "fixed_us 500\n", "sim:0,sim:7", &o);
    kit_forward(k, 2, 1);
    assert_int_equal(kill(kit_pid(k, 1), SIGSTOP), 0);
    kit_forward(k, 2, 2);
    assert_int_equal(kit_stats(k).deaths, 2);
    kit_close(k);
}

/* What a suspect's trouble was is not told of another batch that has failed. */
static void a_failure_is_told_of_its_own_batch(void **state)
{
    (void)state;
    dpi_options o = kit_impatient();
    o.on_bad_row = DPI_BAD_ROW_SKIP;
    o.batch = 4;
    o.total_batch_size = 4;
    char text[400];
    snprintf(text, sizeof text, "%spoison %d\npoison_how fail\nno_memory_at_slice 1\n", SIMPLE, KIT_POISON);
    kit *k = kit_open(text, "sim:0", &o);
    dpi_error error = {0};
    dpi_ticket ticket;
    kit_batch *fails = kit_batch_new(k, 4, 1, 3), *suspect = kit_batch_new(k, 4, 2, 3);
    kit_poison(suspect, 1);
    kit_assert_ok(kit_submit(k, fails, false, 0, &ticket, &error), error);
    assert_int_equal(dpi_forward(k->s, suspect->in, 1, suspect->out, 2, 0, &error), DPI_BAD_ROWS);
    assert_int_equal(dpi_wait(k->s, ticket, 0, NULL, 0, &error), DPI_E_SYSTEM);
    kit_assert_contains(error.message, "out of memory");
    kit_batch_free(fails);
    kit_batch_free(suspect);
    kit_close(k);
}

static void count_row(void *context, const dpi_bad_row *row)
{
    assert_int_equal(row->row, 1);
    ++*(int *)context;
}

/* All words of a batch are spoilt behind its bad row: what is computed again is not left out, told and counted again.
 */
static void a_bad_row_is_told_once(void **state)
{
    (void)state;
    if (kit_is_strict()) /* no worker can spoil a word */
        skip();
    char text[400];
    snprintf(text, sizeof text, "%sfixed_us 1000\npoison %d\npoison_how fail\nfaults 1:spoil_at_slice=30\n", SIMPLE,
             KIT_POISON);
    dpi_options o = kit_impatient();
    int told = 0;
    o.total_batch_size = 4;
    o.on_bad_row = DPI_BAD_ROW_SKIP;
    o.bad_row = count_row;
    o.bad_row_context = &told;
    kit *k = kit_open(text, "sim:0", &o);
    dpi_error error = {0};
    kit_batch *b = kit_batch_new(k, 160, 1, 3);
    kit_poison(b, 1);
    assert_int_equal(dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error), DPI_BAD_ROWS);
    assert_int_equal(told, 1);
    assert_int_equal(kit_stats(k).bad_rows, 1);
    assert_int_equal(kit_stats(k).deaths, 1); /* the words were spoilt */
    kit_batch_free(b);
    kit_close(k);
}

/* All workers die of slices of their own while they are asked, one after another, to try the row over which the first
 * one has left. None has begun that trial: nothing is known against the row. */
static void a_trial_that_was_not_begun_is_none(void **state)
{
    (void)state;
    const size_t shares[] = {1, 1, 1, 1};
    const dpi_key_value options[] = {{"die_at_slice", "1"},   {"die_at_step", "3"},     {"fault_generations", "1"},
                                     {"0.die_at_slice", "0"}, {"0.exit_at_slice", "1"}, {"2.slow_at_slice", "1"},
                                     {"2.slow_us", "100000"}, {"3.slow_at_slice", "1"}, {"3.slow_us", "200000"},
                                     {"compile_ms", "500"}};
    dpi_options o = kit_impatient();
    o.slice_timeout_ms = o.compile_timeout_ms = 0;
    o.backend_options = options;
    o.backend_option_count = sizeof options / sizeof options[0];
    o.batch_size_list = shares;
    o.batch_size_count = 4;
    kit *k = kit_open(SIMPLE "fixed_us 200000\n", "sim:0*4", &o);
    kit_forward(k, 4, 1);
    assert_int_equal(kit_stats(k).deaths, 4);
    assert_int_equal(kit_stats(k).bad_rows, 0);
    kit_close(k);
}

/* A worker died of a row of a batch that is cancelled before the row is tried. That the other slice in flight is good
 * does not make it the device's fault. */
static void a_device_is_not_to_blame_for_what_was_not_tried(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    const size_t shares[] = {4, 0};
    dpi_options o = kit_impatient();
    o.slice_timeout_ms = o.compile_timeout_ms = 0;
    o.on_bad_row = DPI_BAD_ROW_SKIP;
    o.max_deaths = 1;
    o.batch_size_list = shares;
    o.batch_size_count = 2;
    o.event = kit_tell;
    o.event_context = &story;
    char text[400];
    snprintf(text, sizeof text, "%spoison %d\nfixed_us 300000\ndepth 3\nfault_in_enqueue 1\n", SIMPLE, KIT_POISON);
    kit *k = kit_open(text, "sim:0,sim:7", &o);
    kit_batch *good = kit_batch_new(k, 4, 1, 3), *bad = kit_batch_new(k, 4, 2, 3);
    kit_poison(bad, 2);
    dpi_error error = {0};
    dpi_ticket first, second;
    kit_assert_ok(kit_submit(k, good, false, 0, &first, &error), error);
    kit_assert_ok(kit_submit(k, bad, false, 0, &second, &error), error);
    double until = kit_now_s() + 20;
    while (!kit_story_says(&story, "\"died\"") && kit_now_s() < until)
        clock_sleep_until_ns(clock_now_ns() + 1000000);
    kit_assert_ok(dpi_cancel(k->s, second, &error), error); /* while the good one is tried elsewhere */
    kit_assert_ok(dpi_wait(k->s, first, 0, NULL, 0, &error), error);
    kit_batch_check(good, NULL);
    assert_int_equal(dpi_wait(k->s, second, 0, NULL, 0, &error), DPI_CANCELLED);
    assert_int_equal(dpi_forward(k->s, bad->in, 1, bad->out, 2, 0, &error), DPI_BAD_ROWS);
    assert_int_equal(kit_stats(k).retired_devices, 0);
    kit_batch_free(good);
    kit_batch_free(bad);
    kit_close(k);
}

/* Why a slice failed is still known when its worker has died and has been replaced since. */
static void a_failure_outlives_its_worker(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_options o = kit_impatient();
    o.batch = 4;
    o.total_batch_size = 4;
    o.event = kit_tell;
    o.event_context = &story;
    kit *k = kit_open(SIMPLE "no_memory_at_slice 1\ndie_at_slice 2\nfault_generations 1\n", "sim:0", &o);
    kit_batch *b = kit_batch_new(k, 40, 1, 3);
    dpi_error error = {0};
    dpi_ticket ticket;
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    double until = kit_now_s() + 20;
    while (!kit_story_says(&story, "\"generation\":2") && kit_now_s() < until)
        clock_sleep_until_ns(clock_now_ns() + 5000000);
    assert_int_equal(dpi_wait(k->s, ticket, 0, NULL, 0, &error), DPI_E_SYSTEM);
    kit_assert_contains(error.message, "out of memory");
    kit_batch_free(b);
    kit_close(k);
}

/* Words of slices that were done and delivered are spoilt, and all start anew: what is computed once more is waited
 * for, or it would be written to memory that is another batch's by then. */
static void what_is_computed_again_is_waited_for(void **state)
{
    (void)state;
    const dpi_key_value list[] = {{"1.faults", "1:spoil_at_slice=20,2:slow_at_slice=1,2:slow_us=1500000"}};
    const size_t shares[] = {10, 50};
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error = {0};
    o.batch_size_list = shares;
    o.batch_size_count = 2;
    o.batch = 2;
    o.backend_options = list;
    o.backend_option_count = 1;
    /* So much that it is copied out as it comes. */
    kit *k = kit_open("input x float32 N 5\noutput y float32 N 20000\nfixed_us 10000\ndepth 2\n", "sim:0,sim:7", &o);
    /* Worker 1 begins its first slice once more, and worker 0 is through with all others long before it. */
    kit_batch *a = kit_batch_new(k, 60, 1, 3);
    dpi_tensor in = a->in[0]; /* stands elsewhere than the next batch's, whose outputs come where these are */
    in.data = dpi_alloc(k->s, 60 * 5 * sizeof(float), DPI_INPUT, &error);
    memcpy(in.data, a->in[0].data, 60 * 5 * sizeof(float));
    kit_assert_ok(dpi_forward(k->s, &in, 1, a->out, 1, 60000, &error), error);
    kit_batch_check(a, NULL);
    kit_batch_free(a);
    dpi_device_remove(k->s, "sim:7", -1, &error); /* so that worker 0 computes the next batch alone */
    dpi_tensor views[1];
    dpi_ticket ticket;
    kit_batch *b = kit_batch_new(k, 60, 2, 3);
    kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
    kit_assert_ok(dpi_wait(k->s, ticket, 60000, views, 1, &error), error);
    clock_sleep_until_ns(clock_now_ns() + 2000000000); /* whatever is still being computed is written by now */
    kit_batch_check(b, views);
    kit_assert_ok(dpi_release(k->s, ticket, &error), error);
    kit_batch_free(b);
    kit_close(k);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    kit_let_workers_crash();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_worker_that_does_not_answer_is_replaced),
        cmocka_unit_test(an_answer_is_not_awaited_of_the_successor),
        cmocka_unit_test(a_stopped_worker_is_replaced),
        cmocka_unit_test(a_trial_that_nobody_begins_is_given_to_another),
        cmocka_unit_test(a_failure_is_told_of_its_own_batch),
        cmocka_unit_test(a_device_is_not_to_blame_for_what_was_not_tried),
        cmocka_unit_test(a_trial_that_was_not_begun_is_none),
        cmocka_unit_test(a_bad_row_is_told_once),
        cmocka_unit_test(a_failure_outlives_its_worker),
        cmocka_unit_test(what_is_computed_again_is_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
