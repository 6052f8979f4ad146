/* Every kind of event comes with the fields that docs/reliability.md says it has, and dpi_stats counts the same. */
#include "folder_kit.h"
#include "sim_kit.h"

#include "base/clock.h"
#include "runtime/events.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 3\n"

static char folder[] = "/tmp/dpi-test-events-XXXXXX";

static dpi_options told_to(kit_story *story, dpi_key_value *options, size_t count)
{
    dpi_options o = DPI_INIT(dpi_options);
    o.batch = 2;
    o.slice_timeout_ms = 300;
    o.compile_timeout_ms = 20000;
    o.event = kit_tell;
    o.event_context = story;
    o.backend_options = options;
    o.backend_option_count = count;
    return o;
}

/* The n-th event (from 0) of this kind, NULL when there are fewer. Every line has to be JSON, and say when. */
static json_t *find_event(kit_story *story, const char *kind, size_t n)
{
    json_t *found = NULL;
    pthread_mutex_lock(&story->lock);
    for (char *line = story->text, *end; (end = strchr(line, '\n')); line = end + 1) {
        json_t *event = json_loadb(line, (size_t)(end - line), 0, NULL);
        assert_non_null(event);
        assert_true(json_is_real(json_object_get(event, "unix_s")));
        if (!found && strcmp(json_string_value(json_object_get(event, "event")), kind) == 0 && n-- == 0)
            found = json_incref(event);
        json_decref(event);
    }
    pthread_mutex_unlock(&story->lock);
    return found;
}

static json_t *expect(kit_story *story, const char *kind)
{
    json_t *event = find_event(story, kind, 0);
    if (!event)
        fail_msg("no event \"%s\"", kind);
    return event;
}

static json_int_t number(const json_t *event, const char *key)
{
    const json_t *value = json_object_get(event, key);
    if (!json_is_integer(value))
        fail_msg("the event has no number \"%s\"", key);
    return json_integer_value(value);
}

static const char *text(const json_t *event, const char *key)
{
    const char *value = json_string_value(json_object_get(event, key));
    if (!value)
        fail_msg("the event has no text \"%s\"", key);
    return value;
}

static void expect_worker(const json_t *event, json_int_t w, const char *name, json_int_t generation)
{
    assert_int_equal(number(event, "worker"), w);
    assert_string_equal(text(event, "device"), name);
    assert_int_equal(number(event, "generation"), generation);
    assert_true(number(event, "pid") > 0);
}

static void started_and_compiled(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_options o = told_to(&story, NULL, 0);
    kit *k = kit_open(SIMPLE "compile_ms 20\n", "sim:0", &o);
    json_t *compiled = expect(&story, "compiled"), *started = expect(&story, "started");
    expect_worker(compiled, 0, "sim:0", 1);
    expect_worker(started, 0, "sim:0", 1);
    assert_true(json_real_value(json_object_get(compiled, "seconds")) >= 0.02);
    assert_true(json_real_value(json_object_get(started, "seconds")) >= 0.02);
    assert_true(json_is_false(json_object_get(started, "from_cache")));
    json_decref(compiled);
    json_decref(started);
    assert_int_equal(kit_stats(k).worker_starts, 1);
    assert_int_equal(kit_stats(k).compiled_engines, 1);
    kit_close(k);
}

static void an_engine_from_the_cache_is_not_compiled(void **state)
{
    (void)state;
    char cache[256], command[300];
    snprintf(cache, sizeof cache, "%s/cache", folder);
    for (int round = 0; round < 2; round++) {
        kit_story story = KIT_STORY;
        dpi_options o = told_to(&story, NULL, 0);
        o.cache_dir = cache;
        kit *k = kit_open(SIMPLE, "sim:0", &o);
        json_t *compiled = find_event(&story, "compiled", 0), *started = expect(&story, "started");
        assert_int_equal(compiled != NULL, round == 0);
        assert_int_equal(json_is_true(json_object_get(started, "from_cache")), round == 1);
        assert_int_equal(kit_stats(k).compiled_engines, round == 0);
        json_decref(compiled);
        json_decref(started);
        kit_close(k);
    }
    snprintf(command, sizeof command, "rm -r '%s'", cache);
    assert_int_equal(system(command), 0);
}

/* One worker of three has a fault in its first generation; the batch is right all the same. */
static json_t *death_by(const char *key, const char *signal_number, kit_story *story)
{
    char own[64];
    snprintf(own, sizeof own, "1.%s", key);
    dpi_key_value options[] = {{own, "2"}, {"1.signal", signal_number}, {"1.fault_generations", "1"}};
    dpi_options o = told_to(story, options, 3);
    o.total_batch_size = 6;
    kit *k = kit_open(SIMPLE "fixed_us 500\n", "sim:0,sim:7,sim:2", &o);
    kit_forward(k, 60, 1);
    assert_int_equal(kit_stats(k).deaths, 1);
    assert_int_equal(kit_stats(k).replayed_slices, 1);
    json_t *died = expect(story, "died"), *replayed = expect(story, "replayed");
    expect_worker(died, 1, "sim:7", 1);
    kit_assert_contains(text(died, "reason"), "worker 1 (sim:7");
    assert_true(json_is_array(json_object_get(died, "log")));
    assert_in_range(number(replayed, "worker"), 0, 2);
    assert_in_range(number(replayed, "slice"), 0, 29);
    json_decref(replayed);
    kit_close(k);
    return died;
}

static void deaths_and_replays(void **state)
{
    (void)state;
    kit_story killed = KIT_STORY, left = KIT_STORY, hung = KIT_STORY;
    json_t *died = death_by("die_at_slice", "11", &killed);
    assert_int_equal(number(died, "signal"), 11);
    const json_t *log = json_object_get(died, "log");
    assert_true(json_array_size(log) > 0);
    kit_assert_contains(json_string_value(json_array_get(log, json_array_size(log) - 1)), "dying at slice");
    kit_assert_contains(text(died, "reason"), "signal 11");
    json_decref(died);
    died = death_by("exit_at_slice", "9", &left);
    assert_int_equal(number(died, "exit_code"), 7);
    assert_null(json_object_get(died, "signal"));
    json_decref(died);
    died = death_by("hang_at_slice", "9", &hung);
    assert_true(json_is_true(json_object_get(died, "hung")));
    kit_assert_contains(text(died, "reason"), "its limit is");
    json_decref(died);
}

static void retired(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_key_value options[] = {{"1.die_at_slice", "1"}};
    dpi_options o = told_to(&story, options, 1);
    o.total_batch_size = 6;
    o.max_deaths = 2;
    kit *k = kit_open(SIMPLE "fixed_us 2000\n", "sim:0,sim:7,sim:2", &o);
    double until = kit_now_s() + 20;
    for (uint64_t i = 0; !kit_stats(k).retired_devices && kit_now_s() < until; i++)
        kit_forward(k, 60, i);
    assert_int_equal(kit_stats(k).retired_devices, 1);
    kit_close(k); /* the event comes behind the count */
    json_t *event = expect(&story, "retired");
    assert_int_equal(number(event, "worker"), 1);
    assert_string_equal(text(event, "device"), "sim:7");
    kit_assert_contains(text(event, "reason"), "signal 9");
    json_decref(event);
}

static void bad_row(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    char model[200];
    snprintf(model, sizeof model, "%spoison %d\n", SIMPLE, KIT_POISON);
    dpi_options o = told_to(&story, NULL, 0);
    o.on_bad_row = DPI_BAD_ROW_SKIP;
    kit *k = kit_open(model, "sim:0,sim:7", &o);
    dpi_error error = {0};
    kit_batch *b = kit_batch_new(k, 40, 1, 3);
    kit_poison(b, 23);
    assert_int_equal(dpi_forward(k->s, b->in, 1, b->out, 1, 0, &error), DPI_BAD_ROWS);
    json_t *event = expect(&story, "bad_row");
    assert_int_equal(number(event, "row"), 23);
    kit_assert_contains(text(event, "reason"), "signal 9");
    json_decref(event);
    assert_int_equal(kit_stats(k).bad_rows, 1);
    kit_batch_free(b);
    kit_close(k);
}

static void spoilt(void **state)
{
    (void)state;
    if (kit_is_strict()) /* nobody can */
        skip();
    kit_story story = KIT_STORY;
    dpi_key_value options[] = {{"1.spoil_at_slice", "2"}, {"1.fault_generations", "1"}};
    dpi_options o = told_to(&story, options, 2);
    o.total_batch_size = 6;
    kit *k = kit_open(SIMPLE "fixed_us 20000\n", "sim:0,sim:7,sim:2", &o);
    kit_forward(k, 60, 1);
    json_t *event = expect(&story, "spoilt");
    kit_assert_contains(text(event, "reason"), "spoilt the memory");
    json_decref(event);
    kit_close(k);
}

static void added_and_removed(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_error error = {0};
    dpi_options o = told_to(&story, NULL, 0);
    kit *k = kit_open(SIMPLE, "sim:0", &o);
    kit_assert_ok(dpi_device_add(k->s, "sim:7", 0, &error), error);
    kit_assert_ok(dpi_device_remove(k->s, "sim:0", 0, &error), error);
    json_t *added = expect(&story, "added"), *removed = expect(&story, "removed");
    expect_worker(added, 1, "sim:7", 1);
    expect_worker(removed, 0, "sim:0", 1);
    json_decref(added);
    json_decref(removed);
    kit_close(k);
}

static int stop_after_some(void *context, const dpi_progress *p)
{
    (void)context;
    return p->rows_done > 100;
}

static void resumed(void **state)
{
    (void)state;
    char path[256];
    snprintf(path, sizeof path, "%s/y.npy", folder);
    kit_story story = KIT_STORY;
    dpi_error error = {0};
    dpi_options o = told_to(&story, NULL, 0);
    kit *k = kit_open(SIMPLE "fixed_us 2000\n", "sim:0,sim:7", &o);
    dpi_run_options run = DPI_INIT(dpi_run_options);
    const char *inputs[] = {"random:5:float32:1001"}, *outputs[] = {path};
    run.inputs = inputs;
    run.input_count = 1;
    run.outputs = outputs;
    run.output_count = 1;
    run.progress = stop_after_some;
    assert_int_equal(dpi_run(k->s, &run, NULL, &error), DPI_CANCELLED);
    assert_null(find_event(&story, "resumed", 0));
    run.progress = NULL;
    kit_assert_ok(dpi_run(k->s, &run, NULL, &error), error);
    json_t *event = expect(&story, "resumed");
    assert_in_range(number(event, "rows"), 100, 1000);
    assert_int_equal(number(event, "total"), 1001);
    assert_int_equal(kit_stats(k).resumed_rows, number(event, "rows"));
    json_decref(event);
    unlink(path);
    kit_close(k);
}

/* A library may say anything before it dies, and a message may have been cut within a letter. */
static void words_that_are_no_utf8(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_options o = told_to(&story, NULL, 0);
    kit *k = kit_open(SIMPLE, "sim:0", &o);
    event_bad_row(k->s, 5, "caf\xc3\xa9 \xff\xfe\"\n");
    event_retired(k->s, 0, "cut within a letter: \xc3");
    json_t *first = expect(&story, "bad_row"), *second = expect(&story, "retired");
    assert_string_equal(text(first, "reason"), "caf?? ??\"\n");
    assert_string_equal(text(second, "reason"), "cut within a letter: ?");
    json_decref(first);
    json_decref(second);
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
        cmocka_unit_test(started_and_compiled),
        cmocka_unit_test(an_engine_from_the_cache_is_not_compiled),
        cmocka_unit_test(deaths_and_replays),
        cmocka_unit_test(retired),
        cmocka_unit_test(bad_row),
        cmocka_unit_test(spoilt),
        cmocka_unit_test(added_and_removed),
        cmocka_unit_test(resumed),
        cmocka_unit_test(words_that_are_no_utf8),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
