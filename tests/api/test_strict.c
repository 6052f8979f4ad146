/* Strict isolation: a worker that writes wherever it can spoils nothing but slices of its own, and it alone pays. */
#include "sim_kit.h"

#include "folder_kit.h"

#include "base/clock.h"
#include "data/npy.h"
#include "runtime/session.h"

#include <dirent.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 300\noutput z int32 N\n"

static void quiet(void *context, dpi_log_level level, const char *line)
{
    (void)context;
    (void)level;
    (void)line;
}

static const dpi_key_value rages[] = {{"1.rage_at_slice", "1"}, {"1.fault_generations", "1"}};

static dpi_options strictly(dpi_isolation isolation)
{
    dpi_options o = DPI_INIT(dpi_options);
    o.log = quiet;
    o.isolation = isolation;
    o.batch = 2;
    o.backend_options = rages;
    o.backend_option_count = 2;
    return o;
}

static dpi_stats_data stats_of(kit *k)
{
    dpi_error error;
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    return stats;
}

/* ---- batches ---------------------------------------------------------------------------------------------------- */

/* Whether what stands in the arena is what the same batch gives once more. */
static bool is_right(kit *k, kit_batch *b, const dpi_tensor *views)
{
    bool right = true;
    dpi_error error;
    kit_assert_ok(dpi_forward(k->s, b->in, b->in_count, b->out, b->out_count, 60000, &error), error);
    for (size_t o = 0; o < b->out_count; o++) {
        size_t bytes = 0;
        assert_true(shape_bytes(b->out[o].dtype, b->out[o].shape, b->out[o].rank, &bytes));
        right &= memcmp(views[o].data, b->out[o].data, bytes) == 0;
    }
    return right;
}

/* One batch whose results are looked at in the arena, and more of growing size. Returns how many deaths there were,
 * UINT64_MAX for wrong results in process isolation. */
static uint64_t batches_with_rage(const char *text, dpi_options *o)
{
    kit_traces before = kit_look();
    kit *k = kit_open(text, "sim:0,sim:7,sim:2", o);
    kit_batch *b = kit_batch_new(k, 60, 1, 3);
    dpi_error error = {0};
    dpi_ticket ticket;
    dpi_tensor views[2];
    kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
    kit_assert_ok(dpi_wait(k->s, ticket, 60000, views, 2, &error), error);
    uint64_t deaths = stats_of(k).deaths;
    if (o->isolation == DPI_ISOLATION_STRICT) {
        kit_batch_check(b, views);
        kit_assert_ok(dpi_release(k->s, ticket, &error), error);
        for (size_t rows = 30; rows < 4000; rows *= 5) /* the memory must grow for it */
            kit_forward(k, rows, rows);
        dpi_stats_data stats = stats_of(k);
        deaths = stats.deaths;
        assert_int_equal(stats.failed_batches, 0);
        assert_int_equal(stats.retired_devices, 0);
    } else if (!is_right(k, b, views))
        deaths = UINT64_MAX;
    kit_batch_free(b);
    kit_close(k);
    kit_check_clean(before);
    return deaths;
}

static void rage_costs_one_worker(void **state)
{
    (void)state;
    static const char *const texts[] = {SIMPLE "fixed_us 500\n", SIMPLE "fixed_us 500\ndepth 3\ntouch all\n"};
    for (int i = 0; i < 2; i++)
        for (size_t total = 0; total <= 6; total += 6) {
            kit_story story = KIT_STORY;
            dpi_options o = strictly(DPI_ISOLATION_STRICT);
            o.total_batch_size = total;
            o.batch = total ? 2 : 1000;
            o.event = kit_tell;
            o.event_context = &story;
            uint64_t deaths = batches_with_rage(texts[i], &o);
            if (total) { /* every worker has slices: it has raged */
                assert_int_equal(deaths, 1);
                assert_true(kit_story_says(&story, "had not been given"));
            }
            assert_false(kit_story_says(&story, "spoilt"));
        }
}

/* What the test above can fail at: where it can reach what others have, the same worker makes all start anew, or
 * results wrong. */
static void rage_costs_all_in_process_isolation(void **state)
{
    (void)state;
    dpi_options o = strictly(DPI_ISOLATION_PROCESS);
    o.total_batch_size = 6;
    assert_true(batches_with_rage(SIMPLE "fixed_us 500\n", &o) > 1);
}

/* ---- runs ------------------------------------------------------------------------------------------------------- */

static char folder[] = "/tmp/dpi-test-strict-XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    return folder_make(folder);
}

static int remove_folder(void **state)
{
    (void)state;
    return folder_remove(folder);
}

/* The whole of a file, which is removed. */
static char *take_file(const char *name, size_t *bytes)
{
    char path[300];
    struct stat info;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "re");
    if (!f || fstat(fileno(f), &info) != 0)
        fail_msg("there is no %s", path);
    *bytes = (size_t)info.st_size;
    char *all = malloc(*bytes + 1);
    assert_int_equal(fread(all, 1, *bytes, f), *bytes);
    fclose(f);
    unlink(path);
    return all;
}

typedef struct results {
    char *files[3];
    size_t bytes[3];
} results;

static const char *const names[] = {"y.npy", "z.csv", "all.npz"};

/* A worker has no descriptor of a file that the run writes. */
static int look_at_descriptors(void *context, const dpi_progress *progress)
{
    (void)progress;
    kit *k = context;
    dpi_error error;
    dpi_description d = DPI_INIT(dpi_description);
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    for (size_t w = 0; w < d.worker_count; w++) {
        char path[64], link[400];
        snprintf(path, sizeof path, "/proc/%d/fd", (int)d.workers[w].pid);
        DIR *fds = d.workers[w].pid ? opendir(path) : NULL;
        for (struct dirent *e; fds && (e = readdir(fds));) {
            ssize_t length = readlinkat(dirfd(fds), e->d_name, link, sizeof link - 1);
            link[length > 0 ? length : 0] = 0;
            if (strstr(link, ".part"))
                fail_msg("worker %zu has %s", w, link);
        }
        if (fds)
            closedir(fds);
    }
    return 0;
}

/* `model` must have two outputs. */
static results run_once(const char *model, const char *devices, dpi_options *o, bool archive)
{
    results r = {{NULL}, {0}};
    char paths[3][300];
    for (int i = 0; i < 3; i++)
        snprintf(paths[i], sizeof paths[i], "%s/%s", folder, names[i]);
    kit *k = kit_open(model, devices, o);
    const char *in[] = {"random:5:float32:20000"}, *out[] = {archive ? paths[2] : paths[0], paths[1]};
    dpi_run_options run = DPI_INIT(dpi_run_options);
    run.inputs = in;
    run.input_count = 1;
    run.outputs = out;
    run.output_count = archive ? 1 : 2;
    run.top = 2;
    run.progress = o->isolation == DPI_ISOLATION_STRICT ? look_at_descriptors : NULL;
    run.progress_context = k;
    dpi_error error = {0};
    kit_assert_ok(dpi_run(k->s, &run, NULL, &error), error);
    if (o->isolation == DPI_ISOLATION_STRICT && o->backend_option_count)
        assert_int_equal(stats_of(k).deaths, 1);
    kit_close(k);
    for (int i = archive ? 2 : 0; i < (archive ? 3 : 2); i++)
        r.files[i] = take_file(names[i], &r.bytes[i]);
    return r;
}

/* Bit for bit what one worker without faults brings. */
static void files_of_a_run(void **state)
{
    (void)state;
    static const char *const models[] = {
        "input x float32 N 5\noutput y float32 N 3\noutput z float32 N 4\n",
        "input x float32 N 5\noutput y float32 N 3\noutput z float32 N 4\ndepth 3\ntouch all\nfixed_us 100\n",
    };
    for (int i = 0; i < 2; i++)
        for (int archive = 0; archive < 2; archive++) {
            dpi_options plain = DPI_INIT(dpi_options), o = strictly(DPI_ISOLATION_STRICT);
            plain.batch = o.batch = 16;
            results want = run_once(models[i], "sim:0", &plain, archive);
            results got = run_once(models[i], "sim:0,sim:7,sim:2", &o, archive);
            for (int f = 0; f < 3; f++) {
                assert_int_equal(got.bytes[f], want.bytes[f]);
                if (want.files[f] && memcmp(got.files[f], want.files[f], want.bytes[f]) != 0)
                    fail_msg("%s differs", names[f]);
                free(want.files[f]);
                free(got.files[f]);
            }
        }
}

/* Fails at worker 1's 40th slice. DPI_OK once there are fewer left. */
static dpi_status go_on(dpi_isolation isolation, const dpi_run_options *run, uint64_t *resumed_rows)
{
    static const dpi_key_value fails[] = {{"1.fail_at_slice", "40"}};
    const char *model = "input x float32 N 5\noutput y float32 N 3\noutput z float32 N 4\nfixed_us 1000\n";
    dpi_options o = strictly(isolation);
    dpi_error error = {0};
    dpi_run_result result = DPI_INIT(dpi_run_result);
    o.backend_options = fails;
    o.backend_option_count = 1;
    o.batch = 4;
    kit *k = kit_open(model, "sim:0,sim:7", &o);
    dpi_status status = dpi_run(k->s, run, &result, &error);
    kit_close(k);
    *resumed_rows = result.resumed_rows;
    if (status) {
        kit_assert_contains(error.message, "as planned");
        kit_assert_contains(error.message, "goes on");
    }
    return status;
}

/* One run that fails again and again, now in one isolation, now in the other, and goes on with what is there: with rows
 * missing in its middle after process isolation, where each worker writes its own. */
static void a_run_goes_on_in_another_isolation(void **state)
{
    (void)state;
    char paths[2][300];
    snprintf(paths[0], sizeof paths[0], "%s/y.npy", folder);
    snprintf(paths[1], sizeof paths[1], "%s/z.npy", folder);
    const char *in[] = {"random:5:float32:4000"}, *out[] = {paths[0], paths[1]};
    dpi_run_options run = DPI_INIT(dpi_run_options);
    run.inputs = in;
    run.input_count = 1;
    run.outputs = out;
    run.output_count = 2;
    int failed = 0;
    uint64_t resumed = 0, before = 0;
    while (go_on(failed % 2 ? DPI_ISOLATION_STRICT : DPI_ISOLATION_PROCESS, &run, &resumed)) {
        assert_true(failed == 0 || resumed > before);
        before = resumed;
        failed++;
    }
    assert_true(failed >= 2);
    assert_true(resumed > before);
    size_t bytes[2];
    char *got[2] = {take_file("y.npy", &bytes[0]), take_file("z.npy", &bytes[1])};
    dpi_options plain = DPI_INIT(dpi_options);
    dpi_error error;
    kit *k = kit_open("input x float32 N 5\noutput y float32 N 3\noutput z float32 N 4\n", "sim:0", &plain);
    kit_assert_ok(dpi_run(k->s, &run, NULL, &error), error);
    kit_close(k);
    for (int f = 0; f < 2; f++) {
        size_t want_bytes;
        char *want = take_file(f ? "z.npy" : "y.npy", &want_bytes);
        assert_int_equal(bytes[f], want_bytes);
        assert_memory_equal(got[f], want, want_bytes);
        free(got[f]);
        free(want);
    }
}

/* ---- what a worker has ------------------------------------------------------------------------------------------ */

/* Of the session's memory a worker has mapped its page and its private memory writable, and nothing else. */
static void writable_mappings(void **state)
{
    (void)state;
    dpi_options o = strictly(DPI_ISOLATION_STRICT);
    o.backend_option_count = 0;
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", &o);
    kit_forward(k, 60, 1);
    dpi_error error;
    dpi_description d = DPI_INIT(dpi_description);
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    for (size_t w = 0; w < d.worker_count; w++) {
        char path[64], line[600];
        int writable = 0, others = 0;
        snprintf(path, sizeof path, "/proc/%d/maps", (int)d.workers[w].pid);
        FILE *f = fopen(path, "re");
        assert_non_null(f);
        while (fgets(line, sizeof line, f)) {
            const char *name = strstr(line, "/memfd:dpinfer-");
            if (!name)
                continue;
            bool writes = strstr(line, " rw-s ") != NULL;
            bool own = strstr(name, "-page") || strstr(name, "-private");
            if (writes && !own)
                fail_msg("worker %zu can write: %s", w, line);
            writable += writes;
            others += !writes;
        }
        fclose(f);
        assert_int_equal(writable, 2);
        assert_true(others >= 2); /* control and inputs */
    }
    kit_close(k);
}

/* ---- reports that lie ------------------------------------------------------------------------------------------- */

/* Written for worker 1, from inside. */
static void breach(void (*lie)(inbox *in))
{
    dpi_options o = strictly(DPI_ISOLATION_STRICT);
    kit_story story = KIT_STORY;
    o.backend_option_count = 0;
    o.total_batch_size = 6;
    o.event = kit_tell;
    o.event_context = &story;
    kit *k = kit_open(SIMPLE "fixed_us 500\n", "sim:0,sim:7,sim:2", &o);
    kit_forward(k, 60, 1);
    lie(&k->s->workers[1].page->inbox);
    session_ring_claimer(k->s, 1);
    double until = kit_now_s() + 20;
    while (!kit_story_says(&story, "had not been given") && kit_now_s() < until)
        kit_forward(k, 60, 2);
    assert_true(kit_story_says(&story, "worker 1 (sim:7"));
    assert_true(kit_story_says(&story, "had not been given"));
    for (uint64_t i = 0; i < 20; i++)
        kit_forward(k, 60, i);
    assert_int_equal(stats_of(k).deaths, 1);
    kit_close(k);
}

static void says_done_of_what_comes_later(inbox *in)
{
    uint64_t newest = 0;
    for (int i = 0; i < MAILBOX_SEATS; i++) {
        uint64_t one = atomic_load(&in->reports[i]) >> 8;
        newest = one > newest ? one : newest;
    }
    mailbox_answer(in, newest + 2, 0);
}

static void says_done_again(inbox *in)
{
    for (int i = 0; i < MAILBOX_SEATS; i++) {
        uint64_t one = atomic_load(&in->reports[i]);
        if (one)
            atomic_store(&in->reports[i], mailbox_report(one >> 8, DPI_E_ENGINE));
    }
}

static void empties_a_seat(inbox *in)
{
    for (int i = 0; i < MAILBOX_SEATS; i++)
        atomic_store(&in->reports[i], 0);
}

static void says_what_is_no_status(inbox *in)
{
    for (int i = 0; i < MAILBOX_SEATS; i++)
        atomic_store(&in->reports[i], (atomic_load(&in->reports[i]) & ~0xffull) + (MAILBOX_SEATS << 8) + DPI_BUSY);
}

static void lies_end_the_one_who_tells_them(void **state)
{
    (void)state;
    breach(says_done_of_what_comes_later);
    breach(says_done_again);
    breach(empties_a_seat);
    breach(says_what_is_no_status);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rage_costs_one_worker), cmocka_unit_test(rage_costs_all_in_process_isolation),
        cmocka_unit_test(files_of_a_run),        cmocka_unit_test(a_run_goes_on_in_another_isolation),
        cmocka_unit_test(writable_mappings),     cmocka_unit_test(lies_end_the_one_who_tells_them),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
