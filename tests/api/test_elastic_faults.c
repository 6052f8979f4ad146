/* Devices come and go while workers die, hang or go mad: every row comes out right all the same. */
#include "elastic_kit.h"
#include "folder_kit.h"

#include "base/clock.h"

#include <signal.h>
#include <stdio.h>

/* ---- devices that fail meanwhile -------------------------------------------------------------------------------- */

static void a_device_that_hangs_is_removed_all_the_same(void **state)
{
    (void)state;
    kit_traces before = kit_look();
    kit_story story = KIT_STORY;
    dpi_options o = elastic_options(&story);
    dpi_key_value list[1];
    elastic_set(&o, list, "1.hang_at_slice", "2");
    o.slice_timeout_ms = 300;
    o.compile_timeout_ms = 20000;
    o.total_batch_size = 6;
    kit *k = kit_open(SIMPLE "fixed_us 2000\n", "sim:0,sim:7,sim:2", &o);
    elastic_queue q;
    elastic_submit(k, &q, 30);
    double until = kit_now_s() + 20;
    while (!(elastic_slices(k, 1) && elastic_is_busy(k, 1)) && kit_now_s() < until)
        clock_sleep_until_ns(clock_now_ns() + 1000000);
    elastic_remove(k, "sim:7");
    elastic_check(k, &q);
    assert_true(kit_story_says(&story, "\"hung\":true"));
    assert_true(kit_story_says(&story, "\"removed\",\"worker\":1"));
    assert_int_equal(elastic_count(&story, "\"started\",\"worker\":1"), 1);
    assert_int_equal(elastic_stats(k, NULL, 0).failed_batches, 0);
    assert_int_equal(elastic_stats(k, NULL, 0).retired_devices, 0);
    kit_close(k);
    kit_check_clean(before);
}

static void a_worker_that_does_not_leave_is_ended(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_options o = elastic_options(&story);
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", &o);
    kill((pid_t)elastic_describe(k).workers[1].pid, SIGSTOP);
    elastic_remove(k, "sim:7");
    assert_true(kit_story_says(&story, "did not leave when told to"));
    assert_true(kit_story_says(&story, "\"removed\",\"worker\":1"));
    kit_forward(k, 30, 1);
    kit_close(k);
}

static void one_that_dies_at_its_start_is_not_added(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_options o = elastic_options(&story);
    dpi_key_value list[3];
    elastic_set(&o, list, "2.die_compile", "1");
    elastic_set(&o, list, "2.signal", "11");
    elastic_set(&o, list, "2.fault_generations", "1");
    kit *k = kit_open(SIMPLE "fixed_us 500\n", "sim:0", &o);
    kit_traces before = kit_look();
    dpi_error error = {0};
    /* one of two: neither is there afterwards */
    elastic_refused(dpi_device_add(k->s, "sim:7,sim:2", 0, &error), DPI_E_WORKER, &error, "signal 11");
    kit_assert_contains(error.message, "sim:2");
    assert_int_equal(elastic_describe(k).worker_count, 1);
    kit_traces now = kit_look();
    assert_int_equal(now.children, before.children);
    assert_false(kit_story_says(&story, "\"added\""));
    kit_forward(k, 30, 1);
    elastic_add(k, "sim:9,sim:2"); /* another in the first one's place */
    assert_int_equal(elastic_describe(k).worker_count, 3);
    assert_string_equal(elastic_describe(k).workers[1].device, "sim:9");
    elastic_use(k, 1, 30);
    elastic_use(k, 2, 30);
    kit_close(k);
}

static void one_that_takes_too_long_is_not_added(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    dpi_key_value list[1];
    elastic_set(&o, list, "1.compile_ms", "60000");
    kit *k = kit_open(SIMPLE "fixed_us 500\n", "sim:0", &o);
    kit_traces before = kit_look();
    dpi_error error = {0};
    elastic_refused(dpi_device_add(k->s, "sim:7", 100, &error), DPI_TIMEOUT, &error, "sim:7 was not ready in time");
    assert_int_equal(kit_look().children, before.children);
    assert_int_equal(elastic_describe(k).worker_count, 1);
    kit_forward(k, 30, 1);
    kit_close(k);
}

static void wait_for_generation(const kit *k, size_t w, uint32_t generation)
{
    double until = kit_now_s() + 30;
    dpi_description d = elastic_describe(k);
    while ((d.workers[w].generation < generation || d.workers[w].pid <= 0) && kit_now_s() < until) {
        clock_sleep_until_ns(clock_now_ns() + 1000000);
        d = elastic_describe(k);
    }
    assert_int_equal(d.workers[w].generation, generation);
    assert_true(d.workers[w].pid > 0);
}

static void a_device_that_was_given_up_is_brought_back(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_options o = elastic_options(&story);
    o.max_deaths = 2;
    kit *k = kit_open(SIMPLE "fixed_us 2000\n", "sim:0,sim:7,sim:2", &o);
    for (uint32_t generation = 1; generation <= 2; generation++) {
        wait_for_generation(k, 1, generation);
        kill((pid_t)elastic_describe(k).workers[1].pid, SIGKILL);
    }
    double until = kit_now_s() + 30;
    for (uint64_t i = 0; !elastic_stats(k, NULL, 0).retired_devices && kit_now_s() < until; i++)
        kit_forward(k, 60, i);
    assert_int_equal(elastic_stats(k, NULL, 0).retired_devices, 1);
    assert_true(kit_story_says(&story, "\"retired\",\"worker\":1"));
    assert_int_equal(elastic_describe(k).workers[1].pid, 0);
    elastic_add(k, "sim:7");
    assert_int_equal(elastic_stats(k, NULL, 0).retired_devices, 0);
    assert_int_equal(elastic_describe(k).worker_count, 3);
    elastic_use(k, 1, 60);
    wait_for_generation(k, 1, 3);
    kill((pid_t)elastic_describe(k).workers[1].pid,
         SIGKILL); /* what it had done before is forgiven: it may die once more */
    wait_for_generation(k, 1, 4);
    elastic_use(k, 1, 60);
    assert_int_equal(elastic_stats(k, NULL, 0).failed_batches, 0);
    kit_close(k);
}

/* It is not there, because it has just died: removing it ends its restarts. */
static void a_device_that_is_being_started_again_is_removed(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_options o = elastic_options(&story);
    dpi_key_value list[2];
    elastic_set(&o, list, "1.die_at_slice", "1");
    elastic_set(&o, list, "1.compile_ms", "150");
    o.max_deaths = 1000;
    kit *k = kit_open(SIMPLE "fixed_us 2000\n", "sim:0,sim:7,sim:2", &o);
    elastic_queue q;
    elastic_submit(k, &q, 60);
    double until = kit_now_s() + 20;
    while (!kit_story_says(&story, "\"died\"") && kit_now_s() < until)
        clock_sleep_until_ns(clock_now_ns() + 1000000);
    elastic_remove(k, "sim:7");
    size_t started = elastic_count(&story, "\"started\"");
    elastic_check(k, &q);
    for (uint64_t i = 0; i < 3; i++)
        kit_forward(k, 60, i);
    assert_int_equal(elastic_count(&story, "\"started\""), started);
    assert_int_equal(elastic_describe(k).workers[1].pid, 0);
    kit_close(k);
}

/* A device that is leaving has not failed, and is none that could go on. */
static void the_end_of_a_session_while_a_device_leaves(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    dpi_key_value list[1];
    elastic_set(&o, list, "1.hang_shutdown", "1");
    o.max_deaths = 1;
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", &o);
    dpi_error error = {0};
    elastic_refused(dpi_device_remove(k->s, "sim:7", -1, &error), DPI_TIMEOUT, &error, "sim:7 is not done");
    kill((pid_t)elastic_describe(k).workers[0].pid, SIGKILL);
    dpi_status status = dpi_device_remove(k->s, "sim:7", 0, &error); /* waits until the session ends */
    elastic_refused(status, DPI_E_WORKER, &error, "every device has failed: worker 0 (sim:0");
    kit_assert_contains(error.message, "(Killed) while waiting for work");
    if (strstr(error.message, "sim:7"))
        fail_msg("sim:7 was to leave and has not failed: %s", error.message);
    kit_close(k);
}

/* Removes sim:7 once some rows are there, and then stops the run. */
static int remove_and_stop(void *context, const dpi_progress *p)
{
    dpi_error error;
    if (p->rows_done < 10)
        return 0;
    elastic_refused(dpi_device_remove(context, "sim:7", -1, &error), DPI_TIMEOUT, &error, "sim:7 is not done");
    return 1;
}

/* A worker that hangs while it leaves keeps what it was given, and nobody from the file that its run has left. */
static void a_run_goes_on_while_a_device_hangs_in_leaving(void **state)
{
    (void)state;
    char folder[] = "/tmp/dpi-test-leaving-XXXXXX", path[64];
    dpi_options o = elastic_options(NULL);
    dpi_key_value list[1];
    elastic_set(&o, list, "1.hang_shutdown", "1");
    kit *k = kit_open(SIMPLE "fixed_us 1000\n", "sim:0,sim:7", &o);
    assert_int_equal(folder_make(folder), 0);
    snprintf(path, sizeof path, "%s/y.npy", folder);
    const char *in[] = {"random:5:float32:3000"}, *out[] = {path};
    dpi_run_options run = DPI_INIT(dpi_run_options);
    dpi_error error = {0};
    run.inputs = in;
    run.outputs = out;
    run.input_count = run.output_count = 1;
    run.progress = remove_and_stop;
    run.progress_context = k->s;
    assert_int_equal(dpi_run(k->s, &run, NULL, &error), DPI_CANCELLED);
    assert_true(kit_pid(k, 1) > 0);
    run.progress = NULL;
    kit_assert_ok(dpi_run(k->s, &run, NULL, &error), error);
    assert_int_equal(folder_count(folder), 1);
    kit_close(k);
    assert_int_equal(folder_remove(folder), 0);
}

/* A row that kills is found while a device goes that may be the one that tries it. */
static void a_device_is_removed_while_a_bad_row_is_looked_for(void **state)
{
    (void)state;
    char text[300];
    snprintf(text, sizeof text, "%sfixed_us 500\npoison %d\n", SIMPLE, KIT_POISON);
    for (int delay_ms = 0; delay_ms < 60; delay_ms += 12) {
        dpi_options o = elastic_options(NULL);
        o.batch = 8;
        o.on_bad_row = DPI_BAD_ROW_SKIP;
        kit *k = kit_open(text, "sim:0,sim:7,sim:2", &o);
        dpi_error error = {0};
        dpi_ticket ticket;
        kit_batch *b = kit_batch_new(k, 60, 1, 3);
        kit_poison(b, 37);
        kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
        clock_sleep_until_ns(clock_now_ns() + delay_ms * 1000000);
        elastic_remove(k, "sim:7");
        dpi_status status = dpi_wait(k->s, ticket, 60000, NULL, 0, &error);
        if (status != DPI_BAD_ROWS)
            fail_msg("%s: %s", dpi_status_name(status), error.message);
        kit_assert_contains(error.message, "row 37");
        dpi_stats_data stats = elastic_stats(k, NULL, 0);
        assert_int_equal(stats.bad_rows, 1);
        assert_int_equal(stats.retired_devices, 0);
        kit_forward(k, 60, 2);
        kit_batch_free(b);
        kit_close(k);
    }
}

/* All workers are started anew while one joins and one leaves. */
static void shared_memory_is_spoilt_while_devices_change(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    dpi_key_value list[3];
    elastic_set(&o, list, "0.spoil_at_slice", "3");
    elastic_set(&o, list, "0.fault_generations", "1");
    elastic_set(&o, list, "2.compile_ms", "700");
    kit *k = kit_open(SIMPLE "fixed_us 100000\n", "sim:0,sim:7", &o);
    elastic_queue q;
    elastic_submit(k, &q, 8);
    dpi_error error = {0};
    dpi_device_remove(k->s, "sim:7", -1, &error);
    dpi_status status = dpi_device_add(k->s, "sim:2", 0, &error);
    if (status)
        elastic_refused(status, DPI_E_WORKER, &error, "spoilt");
    elastic_check(k, &q);
    dpi_error gone; /* it may have been gone before it could be killed */
    dpi_status removed = dpi_device_remove(k->s, "sim:7", 0, &gone);
    if (removed)
        elastic_refused(removed, DPI_E_DEVICE, &gone, "no device of this session");
    if (status)
        elastic_add(k, "sim:2");
    kit_forward(k, 8, 1);
    assert_int_equal(elastic_describe(k).worker_count, 3);
    kit_close(k);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    kit_let_workers_crash();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_device_that_hangs_is_removed_all_the_same),
        cmocka_unit_test(a_worker_that_does_not_leave_is_ended),
        cmocka_unit_test(one_that_dies_at_its_start_is_not_added),
        cmocka_unit_test(one_that_takes_too_long_is_not_added),
        cmocka_unit_test(a_device_that_was_given_up_is_brought_back),
        cmocka_unit_test(a_device_that_is_being_started_again_is_removed),
        cmocka_unit_test(the_end_of_a_session_while_a_device_leaves),
        cmocka_unit_test(a_run_goes_on_while_a_device_hangs_in_leaving),
        cmocka_unit_test(a_device_is_removed_while_a_bad_row_is_looked_for),
        cmocka_unit_test(shared_memory_is_spoilt_while_devices_change),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
