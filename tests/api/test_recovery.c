/* Workers die, hang, go mad or meet a row that kills them: every row comes out right all the same, once and in order.
 */
#include "sim_kit.h"

#include "base/clock.h"

#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 3\noutput z int32 N\n"

/* ---- one fault of one worker ------------------------------------------------------------------------------------ */

typedef struct plan {
    const char *key, *value, *signal, *step;
    bool deaths; /* it dies of it */
} plan;

static const plan plans[] = {
    {"die_at_slice", "1", "9", "0", true},    {"die_at_slice", "3", "11", "0", true},
    {"die_at_slice", "2", "6", "0", true},    {"exit_at_slice", "2", "9", "0", true},
    {"hang_at_slice", "2", "9", "0", true},   {"die_at_slice", "2", "9", "1", true},
    {"die_at_slice", "2", "9", "2", true},    {"die_at_slice", "2", "9", "3", true},
    {"die_at_slice", "2", "9", "4", true},    {"die_at_slice", "2", "9", "5", true},
    {"die_at_slice", "2", "9", "6", true},    {"die_at_slice", "2", "9", "7", true},
    {"spoil_at_slice", "2", "9", "0", false}, {"babble_at_slice", "2", "9", "0", false},
};

/* Batches of `rows` rows while worker 1 has its fault in its first generation; then once more when all is well. */
static void strike(const plan *p, const char *text, const char *devices, bool fixed_split, size_t rows)
{
    kit_traces before = kit_look();
    char key[64];
    snprintf(key, sizeof key, "1.%s", p->key);
    const dpi_key_value options[] = {
        {key, p->value}, {"1.signal", p->signal}, {"1.die_at_step", p->step}, {"1.fault_generations", "1"}};
    dpi_options o = kit_impatient();
    o.backend_options = options;
    o.backend_option_count = 4;
    o.batch = 2;
    o.total_batch_size = fixed_split ? 6 : 0;
    kit *k = kit_open(text, devices, &o);
    for (uint64_t i = 0; i < 4; i++)
        kit_forward(k, rows, i);
    dpi_stats_data stats = kit_stats(k);
    if (p->deaths && fixed_split && stats.deaths != 1)
        fail_msg("%s %s, step %s: %d deaths", p->key, p->value, p->step, (int)stats.deaths);
    assert_int_equal(stats.failed_batches, 0);
    assert_int_equal(stats.bad_rows, 0);
    assert_int_equal(stats.retired_devices, 0);
    kit_close(k);
    kit_check_clean(before);
}

static void every_fault_of_one_worker(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
        strike(&plans[i], SIMPLE "fixed_us 500\n", "sim:0,sim:7,sim:2", true, 60);
        strike(&plans[i], SIMPLE "fixed_us 500\n", "sim:0,sim:7,sim:2", false, 60);
        strike(&plans[i], SIMPLE "fixed_us 500\ndepth 3\ntouch all\n", "sim:0,sim:7,sim:2", true, 60);
    }
}

/* Alone: there is nobody else to go on meanwhile. */
static void every_fault_of_the_only_worker(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof plans / sizeof plans[0]; i++) {
        char text[400];
        snprintf(text, sizeof text, "%s%s %s\nsignal %s\ndie_at_step %s\nfault_generations 1\n", SIMPLE, plans[i].key,
                 plans[i].value, plans[i].signal, plans[i].step);
        dpi_options o = kit_impatient();
        o.batch = 4;
        kit *k = kit_open(text, "sim:0", &o);
        for (uint64_t n = 0; n < 3; n++)
            kit_forward(k, 30, n);
        assert_int_equal(kit_stats(k).failed_batches, 0);
        kit_close(k);
    }
}

/* ---- a device that keeps failing -------------------------------------------------------------------------------- */

static void a_device_that_keeps_failing_is_given_up(void **state)
{
    (void)state;
    const dpi_key_value options[] = {{"1.die_at_slice", "1"}};
    dpi_options o = kit_impatient();
    o.backend_options = options;
    o.backend_option_count = 1;
    o.total_batch_size = 6;
    o.batch = 2;
    o.max_deaths = 3;
    kit *k = kit_open(SIMPLE "fixed_us 2000\n", "sim:0,sim:7,sim:2", &o);
    double until = kit_now_s() + 20;
    for (uint64_t i = 0; !kit_stats(k).retired_devices && kit_now_s() < until; i++)
        kit_forward(k, 60, i);
    dpi_stats_data stats = kit_stats(k);
    assert_int_equal(stats.retired_devices, 1);
    assert_in_range(stats.deaths, 3, 5);
    for (uint64_t i = 0; i < 5; i++)
        kit_forward(k, 60, 100 + i); /* the others have its share */
    assert_int_equal(kit_stats(k).deaths, stats.deaths);
    kit_close(k);
}

static void with_no_device_left_the_error_tells_all(void **state)
{
    (void)state;
    kit_traces before = kit_look();
    dpi_options o = kit_impatient();
    o.max_deaths = 2;
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", &o);
    dpi_error error = {0};
    dpi_status status = DPI_OK;
    double until = kit_now_s() + 20;
    kit_batch *b = kit_batch_new(k, 10, 1, 3);
    while (!status && kit_now_s() < until) {
        dpi_description d = DPI_INIT(dpi_description);
        kit_assert_ok(dpi_describe(k->s, &d, &error), error);
        for (size_t w = 0; w < d.worker_count; w++)
            if (d.workers[w].pid > 0)
                kill((pid_t)d.workers[w].pid, SIGSEGV);
        status = dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error);
    }
    assert_int_equal(status, DPI_E_WORKER);
    kit_assert_contains(error.message, "every device has failed");
    kit_assert_contains(error.message, "sim:0");
    kit_assert_contains(error.message, "sim:7");
    kit_assert_contains(error.message, "signal 11");
    assert_int_equal(dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error), DPI_E_WORKER);
    kit_batch_free(b);
    kit_close(k);
    kit_check_clean(before);
}

/* ---- rows that kill --------------------------------------------------------------------------------------------- */

typedef struct listed {
    uint64_t rows[64];
    size_t count;
} listed;

static void list_row(void *context, const dpi_bad_row *row)
{
    listed *l = context;
    assert_in_range(l->count, 0, 63);
    assert_true(row->reason[0] != 0);
    l->rows[l->count++] = row->row;
}

static void set_poison(kit_batch *b, const size_t *rows, size_t count)
{
    for (size_t i = 0; i < count; i++)
        kit_poison(b, rows[i]);
}

static bool is_listed(const size_t *rows, size_t count, size_t row)
{
    for (size_t i = 0; i < count; i++)
        if (rows[i] == row)
            return true;
    return false;
}

/* Every row but the bad ones has its value, those have NaN and 0. */
static void check_all_but(kit *k, const kit_batch *b, const size_t *rows, size_t count)
{
    (void)k;
    for (size_t row = 0; row < b->rows; row++) {
        const float *y = (const float *)b->out[0].data + row * 3;
        int32_t z = ((const int32_t *)b->out[1].data)[row];
        if (is_listed(rows, count, row)) {
            assert_true(isnan(y[0]) && isnan(y[1]) && isnan(y[2]) && z == 0);
            continue;
        }
        const void *in[] = {(const float *)b->in[0].data + row * 5};
        const size_t bytes[] = {20};
        float want[3];
        int32_t want_z;
        sim_expected_row(&b->k->model, in, bytes, 0, 3, want);
        sim_expected_row(&b->k->model, in, bytes, 1, 1, &want_z);
        assert_memory_equal(y, want, sizeof want);
        assert_int_equal(z, want_z);
    }
}

static void poisoned(const char *how, const char *devices, const char *more, const size_t *rows, size_t count)
{
    char text[400];
    snprintf(text, sizeof text, "%sfixed_us 300\npoison %d\npoison_how %s\n%s", SIMPLE, KIT_POISON, how, more);
    dpi_options o = kit_impatient();
    listed list = {.count = 0};
    o.slice_timeout_ms = 120;
    o.batch = 16;
    o.on_bad_row = DPI_BAD_ROW_SKIP;
    o.bad_row = list_row;
    o.bad_row_context = &list;
    kit *k = kit_open(text, devices, &o);
    dpi_error error = {0};
    kit_batch *b = kit_batch_new(k, 100, 1, 3);
    set_poison(b, rows, count);
    dpi_status status = dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error);
    if (status != DPI_BAD_ROWS)
        fail_msg("%s on %s: %s %s", how, devices, dpi_status_name(status), error.message);
    assert_int_equal(list.count, count);
    for (size_t i = 0; i < count; i++)
        assert_true(is_listed(rows, count, (size_t)list.rows[i]));
    check_all_but(k, b, rows, count);
    dpi_stats_data stats = kit_stats(k);
    assert_int_equal(stats.bad_rows, count);
    assert_int_equal(stats.retired_devices, 0);
    kit_forward(k, 100, 2); /* and the session goes on */
    kit_batch_free(b);
    kit_close(k);
}

static void bad_rows_are_found_and_left_out(void **state)
{
    (void)state;
    const size_t one[] = {37}, ends[] = {0, 99}, together[] = {20, 21, 60};
    poisoned("die", "sim:0", "", one, 1);
    poisoned("die", "sim:0,sim:7,sim:2", "", ends, 2);
    poisoned("die", "sim:0,sim:7", "depth 3\n", together, 3);
    poisoned("fail", "sim:0,sim:7", "", together, 3);
    poisoned("fail", "sim:0", "depth 3\n", one, 1);
    poisoned("hang", "sim:0,sim:7", "", one, 1);
}

/* The engine refuses a slice, and its worker dies before it has told the supervisor (the next one finds nothing wrong
 * with it): the slice is tried at once, and not only when all is taken for spoilt and started anew. */
static void a_suspect_that_nobody_tells_of_is_tried(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    char text[400];
    snprintf(text, sizeof text, "%spoison %d\npoison_how fail\ndie_at_slice 1\ndie_at_step 5\nfault_generations 1\n",
             SIMPLE, KIT_POISON);
    dpi_options o = kit_impatient();
    o.batch = 16;
    o.on_bad_row = DPI_BAD_ROW_SKIP;
    o.event = kit_tell;
    o.event_context = &story;
    kit *k = kit_open(text, "sim:0", &o);
    dpi_error error = {0};
    const size_t row = 3;
    kit_batch *b = kit_batch_new(k, 10, 1, 3);
    set_poison(b, &row, 1);
    kit_assert_ok(dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error), error);
    kit_batch_check(b, NULL);
    assert_true(kit_story_says(&story, "\"died\""));
    assert_true(kit_story_says(&story, "\"replayed\""));
    assert_false(kit_story_says(&story, "\"spoilt\""));
    kit_batch_free(b);
    kit_close(k);
}

static void a_bad_row_fails_its_batch_and_is_named(void **state)
{
    (void)state;
    char text[400];
    snprintf(text, sizeof text, "%spoison %d\nsignal 11\n", SIMPLE, KIT_POISON);
    dpi_options o = kit_impatient();
    o.batch = 16;
    kit *k = kit_open(text, "sim:0,sim:7", &o);
    dpi_error error = {0};
    kit_batch *b = kit_batch_new(k, 100, 1, 3);
    const size_t rows[] = {73};
    set_poison(b, rows, 1);
    assert_int_equal(dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error), DPI_E_WORKER);
    kit_assert_contains(error.message, "row 73 cannot be computed");
    kit_assert_contains(error.message, "signal 11");
    dpi_stats_data stats = kit_stats(k);
    assert_int_equal(stats.retired_devices, 0);
    assert_int_equal(stats.failed_batches, 1);
    kit_forward(k, 100, 2);
    kit_batch_free(b);
    kit_close(k);
}

static void too_many_bad_rows_are_a_failure(void **state)
{
    (void)state;
    char text[400];
    snprintf(text, sizeof text, "%spoison %d\n", SIMPLE, KIT_POISON);
    dpi_options o = kit_impatient();
    o.batch = 8;
    o.on_bad_row = DPI_BAD_ROW_SKIP;
    o.max_bad_rows = 2;
    kit *k = kit_open(text, "sim:0,sim:7", &o);
    dpi_error error = {0};
    kit_batch *b = kit_batch_new(k, 40, 1, 3);
    const size_t rows[] = {3, 4, 30};
    set_poison(b, rows, 3);
    assert_int_equal(dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error), DPI_E_WORKER);
    kit_assert_contains(error.message, "one bad row too many");
    kit_forward(k, 40, 2);
    kit_batch_free(b);
    kit_close(k);
}

/* ---- a listener that takes its time ----------------------------------------------------------------------------- */

typedef struct slow_story {
    kit_story story;
    _Atomic bool slow;
} slow_story;

static void tell_slowly(void *context, const char *json)
{
    slow_story *s = context;
    kit_tell(&s->story, json);
    if (atomic_load(&s->slow) && strstr(json, "\"died\"") && strstr(json, "\"worker\":0"))
        clock_sleep_until_ns(clock_now_ns() + 700000000);
}

/* While the supervisor is in the listener, worker 1 starts again and says that it is ready. It must not take slices
 * before the supervisor has compared its engine; if it does, the supervisor finds words of somebody who is not there.
 */
static void a_worker_waits_until_its_engine_was_compared(void **state)
{
    (void)state;
    slow_story told = {.story = KIT_STORY, .slow = true};
    dpi_options o = kit_impatient();
    o.batch = 1;
    o.slice_timeout_ms = 5000;
    o.compile_timeout_ms = 20000;
    o.event = tell_slowly;
    o.event_context = &told;
    kit *k = kit_open(SIMPLE "fixed_us 300000\n", "sim:0,sim:7,sim:2", &o);
    dpi_error error = {0};
    dpi_ticket ticket;
    kit_batch *b = kit_batch_new(k, 18, 1, 3);
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    pid_t first = kit_pid(k, 1), second = first;
    kill(first, SIGKILL);
    for (double until = kit_now_s() + 20; (second <= 0 || second == first) && kit_now_s() < until;)
        second = kit_pid(k, 1);
    kill(kit_pid(k, 0), SIGKILL);
    kit_assert_ok(dpi_wait(k->s, ticket, 60000, NULL, 0, &error), error);
    kit_batch_check(b, NULL);
    assert_true(kit_story_says(&told.story, "\"died\",\"worker\":0"));
    assert_false(kit_story_says(&told.story, "spoilt"));
    kit_batch_free(b);
    kit_close(k);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    kit_let_workers_crash();
    signal(SIGPIPE, SIG_DFL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_fault_of_one_worker),
        cmocka_unit_test(every_fault_of_the_only_worker),
        cmocka_unit_test(a_device_that_keeps_failing_is_given_up),
        cmocka_unit_test(with_no_device_left_the_error_tells_all),
        cmocka_unit_test(bad_rows_are_found_and_left_out),
        cmocka_unit_test(a_suspect_that_nobody_tells_of_is_tried),
        cmocka_unit_test(a_bad_row_fails_its_batch_and_is_named),
        cmocka_unit_test(too_many_bad_rows_are_a_failure),
        cmocka_unit_test(a_worker_waits_until_its_engine_was_compared),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
