/* Devices come and go while batches and runs are under way: every row comes out right, once and in order. */
#include "elastic_kit.h"
#include "folder_kit.h"

#include "base/clock.h"

#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- while batches are in flight -------------------------------------------------------------------------------- */

/* A slice at a time, several in flight, a fixed split. */
static void in_all_ways(void (*test)(const char *text, size_t fixed_split))
{
    test(SIMPLE "fixed_us 3000\n", 0);
    test(SIMPLE "fixed_us 3000\ndepth 3\n", 0);
    test(SIMPLE "fixed_us 3000\n", 12);
}

/* A session on `devices` with batches in flight. */
static kit *open_busy(const char *text, const char *devices, size_t fixed_split, size_t rows, kit_story *story,
                      elastic_queue *q)
{
    dpi_options o = elastic_options(story);
    o.total_batch_size = fixed_split;
    kit *k = kit_open(text, devices, &o);
    elastic_submit(k, q, rows);
    return k;
}

static void added_in_flight(const char *text, size_t fixed_split)
{
    kit_traces before = kit_look();
    kit_story story = KIT_STORY;
    elastic_queue q;
    kit *k = open_busy(text, "sim:0", fixed_split, 40, &story, &q);
    elastic_add(k, "sim:7,sim:2");
    assert_true(kit_story_says(&story, "\"event\":\"added\",\"worker\":1,\"device\":\"sim:7\""));
    assert_true(kit_story_says(&story, "\"event\":\"added\",\"worker\":2,\"device\":\"sim:2\""));
    elastic_check(k, &q);
    dpi_description d = elastic_describe(k);
    assert_int_equal(d.worker_count, 3);
    assert_true(d.bit_identical);
    assert_string_equal(d.workers[2].device, "sim:2");
    assert_string_equal(d.workers[2].fingerprint, d.workers[0].fingerprint);
    assert_true(d.workers[2].pid > 0);
    elastic_use(k, 1, 40);
    elastic_use(k, 2, 40);
    assert_int_equal(elastic_stats(k, NULL, 0).failed_batches, 0);
    kit_close(k);
    kit_check_clean(before);
}

static void devices_are_added_while_batches_are_in_flight(void **state)
{
    (void)state;
    in_all_ways(added_in_flight);
}

/* What is in flight, planned for one device alone, is taken over by one that joins. */
static void a_new_device_helps_with_what_is_in_flight(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    kit *k = kit_open(SIMPLE "fixed_us 50000\n", "sim:0", &o);
    dpi_error error = {0};
    dpi_ticket ticket;
    kit_batch *b = kit_batch_new(k, 120, 1, 3); /* 60 slices, 3 s for one */
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    elastic_add(k, "sim:7");
    kit_assert_ok(dpi_wait(k->s, ticket, 60000, NULL, 0, &error), error);
    kit_batch_check(b, NULL);
    assert_true(elastic_slices(k, 1) > 0);
    kit_batch_free(b);
    kit_close(k);
}

static void removed_in_flight(const char *text, size_t fixed_split)
{
    kit_traces before = kit_look();
    kit_story story = KIT_STORY;
    elastic_queue q;
    kit *k = open_busy(text, "sim:0,sim:7,sim:2", fixed_split, 60, &story, &q);
    elastic_remove(k, "sim:7");
    assert_true(kit_story_says(&story, "\"event\":\"removed\",\"worker\":1,\"device\":\"sim:7\""));
    uint64_t slices = elastic_slices(k, 1);
    elastic_check(k, &q);
    for (uint64_t i = 0; i < 4; i++)
        kit_forward(k, 60, 50 + i);
    assert_int_equal(elastic_slices(k, 1), slices);
    assert_int_equal(elastic_describe(k).workers[1].pid, 0);
    dpi_stats_data stats = elastic_stats(k, NULL, 0);
    assert_int_equal(stats.deaths, 0);
    assert_int_equal(stats.replayed_slices, 0);
    assert_int_equal(stats.failed_batches, 0);
    assert_int_equal(elastic_count(&story, "\"started\""), 3);
    assert_false(kit_story_says(&story, "\"died\""));
    elastic_add(k, "sim:7"); /* and back */
    assert_int_equal(elastic_describe(k).worker_count, 3);
    assert_int_equal(elastic_describe(k).workers[1].generation, 2);
    elastic_use(k, 1, 60);
    kit_close(k);
    kit_check_clean(before);
}

static void devices_are_removed_while_batches_are_in_flight(void **state)
{
    (void)state;
    in_all_ways(removed_in_flight);
}

/* The slice under way is finished by the device that has begun it; what it had planned behind it is free at once. */
static void what_was_not_begun_is_free_at_once(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    const size_t shares[] = {2, 20};
    o.batch_size_list = shares;
    o.batch_size_count = 2;
    o.batch = 2;
    dpi_key_value list[1];
    elastic_set(&o, list, "1.fixed_us", "1000000");
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", &o);
    dpi_error error = {0};
    dpi_ticket ticket;
    kit_batch *b = kit_batch_new(k, 22, 1, 3); /* worker 1: ten slices of a second each */
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    elastic_refused(dpi_device_remove(k->s, "sim:7", -1, &error), DPI_TIMEOUT, &error, "sim:7 is not done");
    const uint64_t begun = kit_is_strict() ? 2 : 1, others = 11 - begun; /* strict: one was assigned to come next */
    double until = kit_now_s() + 20;
    while (elastic_slices(k, 0) < others && kit_now_s() < until)
        clock_sleep_until_ns(clock_now_ns() + 1000000);
    assert_true(elastic_slices(k, 0) >= others);
    assert_true(elastic_slices(k, 1) <= begun);
    elastic_remove(k, "sim:7"); /* waits for the one that is leaving */
    kit_assert_ok(dpi_wait(k->s, ticket, 60000, NULL, 0, &error), error);
    kit_batch_check(b, NULL);
    assert_true(elastic_slices(k, 0) + elastic_slices(k, 1) >= 11);
    kit_batch_free(b);
    kit_close(k);
}

/* ---- while a run is under way ----------------------------------------------------------------------------------- */

static char folder[] = "/tmp/dpi-test-elastic-XXXXXX";

typedef struct running {
    const kit *k;
    const char *output;
    dpi_status status;
    dpi_error error;
    _Atomic uint64_t rows;
    size_t most_workers;
} running;

static int note_progress(void *context, const dpi_progress *p)
{
    running *r = context;
    atomic_store(&r->rows, p->rows_done);
    r->most_workers = p->worker_count > r->most_workers ? p->worker_count : r->most_workers;
    return 0;
}

static void *run_it(void *argument)
{
    running *r = argument;
    dpi_run_options o = DPI_INIT(dpi_run_options);
    const char *inputs[] = {"random:5:float32:4001"}, *outputs[] = {r->output};
    o.inputs = inputs;
    o.input_count = 1;
    o.outputs = outputs;
    o.output_count = 1;
    o.progress = note_progress;
    o.progress_context = r;
    r->status = dpi_run(r->k->s, &o, NULL, &r->error);
    return NULL;
}

static char *read_all(const char *path, size_t *bytes)
{
    struct stat info;
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    assert_int_equal(fstat(fileno(f), &info), 0);
    char *data = malloc((size_t)info.st_size + 1);
    *bytes = fread(data, 1, (size_t)info.st_size, f);
    assert_int_equal(*bytes, info.st_size);
    fclose(f);
    return data;
}

static void wait_for_rows(const running *r, uint64_t rows)
{
    double until = kit_now_s() + 30;
    while (atomic_load(&r->rows) < rows && kit_now_s() < until)
        clock_sleep_until_ns(clock_now_ns() + 1000000);
    assert_true(atomic_load(&r->rows) >= rows);
}

static void devices_come_and_go_during_a_run(void **state)
{
    (void)state;
    char plain[256], changed[256];
    snprintf(plain, sizeof plain, "%s/plain.npy", folder);
    snprintf(changed, sizeof changed, "%s/changed.npy", folder);
    dpi_options o = elastic_options(NULL);
    kit *k = kit_open(SIMPLE "fixed_us 2000\n", "sim:0,sim:7", &o);
    running first = {.k = k, .output = plain}, second = {.k = k, .output = changed};
    run_it(&first);
    kit_assert_ok(first.status, first.error);
    pthread_t thread;
    uint64_t before = elastic_slices(k, 1);
    assert_int_equal(pthread_create(&thread, NULL, run_it, &second), 0);
    wait_for_rows(&second, 100);
    elastic_add(k, "sim:2,sim:3");
    wait_for_rows(&second, 1000);
    elastic_remove(k, "sim:0");
    elastic_remove(k, "sim:3");
    wait_for_rows(&second, 2000);
    elastic_add(k, "sim:0");
    pthread_join(thread, NULL);
    kit_assert_ok(second.status, second.error);
    assert_int_equal(atomic_load(&second.rows), 4001);
    assert_int_equal(second.most_workers, 4);
    for (size_t w = 1; w < 4; w++)
        assert_true(elastic_slices(k, w) > (w == 1 ? before : 0));
    size_t bytes, others;
    char *want = read_all(plain, &bytes), *got = read_all(changed, &others);
    assert_int_equal(bytes, others);
    assert_memory_equal(want, got, bytes);
    free(want);
    free(got);
    unlink(plain);
    unlink(changed);
    kit_close(k);
}

/* ---- again and again -------------------------------------------------------------------------------------------- */

static size_t heap_bytes(void) { return mallinfo2().uordblks; }

static void a_hundred_times_leaves_nothing(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    kit *k = kit_open(SIMPLE "fixed_us 100\n", "sim:0,sim:7", &o);
    kit_traces after_first = {0};
    size_t heap = 0;
    uint64_t arena = 0;
    for (uint64_t i = 0; i < 100; i++) {
        kit_forward(k, 30, i);
        elastic_remove(k, "sim:7");
        kit_forward(k, 30, i + 1);
        elastic_add(k, "sim:7");
        if (i == 9) {
            after_first = kit_look();
            heap = heap_bytes();
            arena = elastic_stats(k, NULL, 0).arena_input_bytes;
        }
    }
    kit_check_clean(after_first);
    assert_true(heap_bytes() < heap + 65536);
    assert_int_equal(elastic_stats(k, NULL, 0).arena_input_bytes, arena);
    dpi_description d = elastic_describe(k);
    assert_int_equal(d.worker_count, 2);
    assert_int_equal(d.workers[1].generation, 101);
    assert_int_equal(elastic_stats(k, NULL, 0).deaths, 0);
    kit_close(k);
}

typedef struct changer {
    const kit *k;
    const char *device;
    _Atomic bool *stop;
    _Atomic unsigned changes;
} changer;

static void *change_on(void *argument)
{
    changer *c = argument;
    dpi_error error = {0};
    dpi_status status = DPI_OK;
    while (!status && !atomic_load(c->stop)) {
        status = dpi_device_remove(c->k->s, c->device, 0, &error);
        if (!status)
            status = dpi_device_add(c->k->s, c->device, 0, &error);
        atomic_fetch_add(&c->changes, 1);
    }
    if (status)
        fprintf(stderr, "%s: %s\n", c->device, error.message);
    return status ? c : NULL;
}

static void threads_change_devices_while_others_forward(void **state)
{
    (void)state;
    kit_traces before = kit_look();
    dpi_options o = elastic_options(NULL);
    kit *k = kit_open(SIMPLE "fixed_us 300\n", "sim:0,sim:7,sim:2", &o);
    _Atomic bool stop = false;
    changer changers[] = {{.k = k, .device = "sim:7", .stop = &stop}, {.k = k, .device = "sim:2", .stop = &stop}};
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, change_on, &changers[i]), 0);
    double until = kit_now_s() + 30;
    uint64_t batches = 0;
    for (; (batches < 300 || atomic_load(&changers[0].changes) < 10) && kit_now_s() < until; batches++)
        kit_forward(k, 1 + batches % 50, batches);
    atomic_store(&stop, true);
    for (size_t i = 0; i < 2; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
        assert_true(atomic_load(&changers[i].changes) > 0);
    }
    assert_int_equal(elastic_stats(k, NULL, 0).failed_batches, 0);
    assert_int_equal(elastic_stats(k, NULL, 0).deaths, 0);
    kit_close(k);
    kit_check_clean(before);
}

/* ---- what is refused -------------------------------------------------------------------------------------------- */

static void the_last_device_stays(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", &o);
    dpi_error error = {0};
    elastic_refused(dpi_device_remove(k->s, "sim:7,sim:0", 0, &error), DPI_E_DEVICE, &error, "no device left");
    elastic_remove(k, "sim:0");
    elastic_refused(dpi_device_remove(k->s, "sim:7", 0, &error), DPI_E_DEVICE, &error, "no device left");
    elastic_refused(dpi_device_remove(k->s, "sim:0", 0, &error), DPI_E_DEVICE, &error,
                    "sim:0 is no device of this session");
    kit_forward(k, 30, 1);
    kit_close(k);
}

static void bad_arguments(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    kit *k = kit_open(SIMPLE, "sim:0", &o);
    dpi_error error = {0};
    elastic_refused(dpi_device_add(k->s, "auto", 0, &error), DPI_E_ARGUMENT, &error, "auto");
    elastic_refused(dpi_device_add(k->s, "sim:7", -1, &error), DPI_E_ARGUMENT, &error, "timeout");
    elastic_refused(dpi_device_add(k->s, NULL, 0, &error), DPI_E_ARGUMENT, &error, "NULL");
    elastic_refused(dpi_device_add(k->s, "nonsense", 0, &error), DPI_E_DEVICE, &error, "nonsense");
    elastic_refused(dpi_device_add(k->s, "cpu:0", 0, &error), DPI_E_DEVICE, &error, "does not run on cpu:0");
    elastic_refused(dpi_device_add(k->s, "sim:1*256", 0, &error), DPI_E_DEVICE, &error, "at most 256");
    elastic_refused(dpi_device_remove(k->s, "sim:7", 0, &error), DPI_E_DEVICE, &error, "no device of this session");
    elastic_refused(dpi_device_remove(k->s, "", 0, &error), DPI_E_DEVICE, &error, "no device");
    kit_forward(k, 30, 1);
    assert_int_equal(elastic_describe(k).worker_count, 1);
    kit_close(k);
    o.isolation = DPI_ISOLATION_THREAD;
    k = kit_open(SIMPLE, "sim:0,sim:7", &o);
    elastic_refused(dpi_device_add(k->s, "sim:2", 0, &error), DPI_E_ARGUMENT, &error, "isolation=thread");
    elastic_refused(dpi_device_remove(k->s, "sim:7", 0, &error), DPI_E_ARGUMENT, &error, "isolation=thread");
    kit_close(k);
}

static void another_engine_makes_a_session_mixed_or_is_refused(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    dpi_key_value list[1];
    elastic_set(&o, list, "1.jitter_us", "1"); /* all options but those of one run are part of the fingerprint */
    kit *k = kit_open(SIMPLE "fixed_us 2000\n", "sim:0", &o);
    assert_true(elastic_describe(k).bit_identical);
    dpi_error error = {0};
    char path[256];
    snprintf(path, sizeof path, "%s/mixed.npy", folder);
    running r = {.k = k, .output = path};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_it, &r), 0);
    wait_for_rows(&r, 10);
    elastic_refused(dpi_device_add(k->s, "sim:7", 0, &error), DPI_E_DEVICE, &error, "run that is under way");
    pthread_join(thread, NULL);
    kit_assert_ok(r.status, r.error);
    unlink(path);
    elastic_add(k, "sim:7");
    assert_false(elastic_describe(k).bit_identical);
    kit_close(k);
    o.deterministic = true;
    k = kit_open(SIMPLE, "sim:0", &o);
    elastic_refused(dpi_device_add(k->s, "sim:7", 0, &error), DPI_E_DEVICE, &error, "another engine");
    assert_true(elastic_describe(k).bit_identical);
    kit_forward(k, 30, 1);
    kit_close(k);
}

static void engines_that_do_not_fit_the_slices_are_refused(void **state)
{
    (void)state;
    dpi_options o = elastic_options(NULL);
    dpi_key_value list[2];
    elastic_set(&o, list, "1.size_bits", "1");
    kit *k = kit_open(SIMPLE, "sim:0", &o);
    dpi_error error = {0};
    elastic_refused(dpi_device_add(k->s, "sim:7", 0, &error), DPI_E_DEVICE, &error, "how many rows a slice has");
    kit_forward(k, 30, 1);
    kit_close(k);
}

static void fixed_splits(void **state)
{
    (void)state;
    const size_t shares[] = {4, 8};
    dpi_options o = elastic_options(NULL);
    o.batch_size_list = shares;
    o.batch_size_count = 2;
    kit *k = kit_open(SIMPLE "fixed_us 500\n", "sim:0,sim:7", &o);
    dpi_error error = {0};
    elastic_refused(dpi_device_add(k->s, "sim:2", 0, &error), DPI_E_DEVICE, &error, "none for sim:2");
    elastic_remove(k, "sim:7");
    kit_forward(k, 36, 1);
    assert_int_equal(elastic_slices(k, 1), 0);
    elastic_add(k, "sim:7");
    uint64_t before = elastic_slices(k, 1);
    kit_forward(k, 36, 2);
    assert_int_equal(elastic_slices(k, 1), before + 12); /* three rounds of 8 rows, two a slice */
    kit_close(k);
    o.batch_size_list = NULL;
    o.batch_size_count = 0;
    o.total_batch_size = 12;
    o.batch = 12;
    k = kit_open(SIMPLE "fixed_us 500\n", "sim:0", &o);
    elastic_add(k, "sim:7,sim:2");
    kit_forward(k, 24, 3);
    for (size_t w = 0; w < 3; w++)
        assert_int_equal(elastic_slices(k, w), 2); /* two rounds of four rows each */
    elastic_remove(k, "sim:7");
    kit_forward(k, 12, 4);
    assert_int_equal(elastic_slices(k, 0), 3);
    assert_int_equal(elastic_slices(k, 1), 2);
    assert_int_equal(elastic_slices(k, 2), 3);
    kit_close(k);
}

static int make_folder(void **state)
{
    (void)state;
    return folder_make(folder);
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(int argc, char **argv)
{
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    kit_let_workers_crash();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(devices_are_added_while_batches_are_in_flight),
        cmocka_unit_test(a_new_device_helps_with_what_is_in_flight),
        cmocka_unit_test(devices_are_removed_while_batches_are_in_flight),
        cmocka_unit_test(what_was_not_begun_is_free_at_once),
        cmocka_unit_test(devices_come_and_go_during_a_run),
        cmocka_unit_test(a_hundred_times_leaves_nothing),
        cmocka_unit_test(threads_change_devices_while_others_forward),
        cmocka_unit_test(the_last_device_stays),
        cmocka_unit_test(bad_arguments),
        cmocka_unit_test(another_engine_makes_a_session_mixed_or_is_refused),
        cmocka_unit_test(engines_that_do_not_fit_the_slices_are_refused),
        cmocka_unit_test(fixed_splits),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
