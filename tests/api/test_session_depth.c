/* Engines that take several calls at once, as GPUs do: sim devices of depth 3 copy in, compute and copy out different
 * slices at the same time. Results, order, failures, hangs and learnt costs, in split and in shard mode. */
#include "sim_kit.h"

#include "base/clock.h"
#include "base/file.h"
#include "data/npy.h"
#include "data/source.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define PORTS "input x float32 N 5\noutput y float32 N 3\noutput z int32 N\n"
#define DEEP  PORTS "depth 3\n"
/* 3 ms in, 5 ms of computing and 2 ms out for a slice of one row */
#define STAGED                                                                                                         \
    "input x uint8 N 300\noutput y uint8 N 200\ndepth 3\ncopy_in_mb_s 0.1\nfixed_us 5000\ncopy_out_mb_s 0.1\n"

static dpi_options in_slices_of(size_t rows)
{
    dpi_options o = DPI_INIT(dpi_options);
    o.batch = rows;
    return o;
}

/* Waits for a batch with the outcome `want`; compares its rows when that is DPI_OK. */
static void finish(const kit *k, kit_batch *b, dpi_ticket ticket, dpi_status want, dpi_error *error)
{
    dpi_status status = dpi_wait(k->s, ticket, 20000, NULL, 0, error);
    if (status != want)
        fail_msg("%s instead of %s: %s", dpi_status_name(status), dpi_status_name(want), error->message);
    if (!status)
        kit_batch_check(b, NULL);
    kit_batch_free(b);
}

/* ---- results, split mode ---------------------------------------------------------------------------------------- */

static void all_sizes_on_several_devices(void **state)
{
    (void)state;
    static const char *const devices[] = {"sim:0", "sim:0*2", "sim:0*3"};
    static const char *const depths[] = {"depth 2\n", "depth 3\n", "depth 8\n"};
    static const size_t slices[] = {0, 1, 7}, rows[] = {0, 1, 2, 3, 4, 9, 64, 65, 200};
    for (size_t d = 0; d < 3; d++)
        for (size_t m = 0; m < 3; m++) {
            char text[256];
            dpi_options o = in_slices_of(slices[m]);
            snprintf(text, sizeof text, PORTS "jitter_us 300\n%s", depths[(d + m) % 3]);
            kit *k = kit_open(text, devices[d], &o);
            for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++)
                kit_forward(k, rows[r], r + 1);
            kit_close(k);
        }
}

/* More batches in flight than the engines take, submitted again as they come back, as a caller does. */
static void many_batches_in_flight(void **state)
{
    (void)state;
    enum { FLIGHT = 6, BATCHES = 120 };
    for (int devices = 1; devices <= 3; devices += 2) {
        dpi_options o = in_slices_of(8);
        kit *k = kit_open(DEEP "copy_in_mb_s 2\njitter_us 400\n", devices == 1 ? "sim:0" : "sim:0*3", &o);
        kit_batch *b[FLIGHT];
        dpi_ticket t[FLIGHT];
        dpi_error error;
        for (int i = 0; i < BATCHES + FLIGHT; i++) {
            int at = i % FLIGHT;
            if (i >= FLIGHT) {
                dpi_tensor out[2];
                bool views = (i - FLIGHT) % 2;
                kit_assert_ok(dpi_wait(k->s, t[at], 20000, out, 2, &error), error);
                kit_batch_check(b[at], views ? out : NULL);
                if (views)
                    kit_assert_ok(dpi_release(k->s, t[at], &error), error);
                kit_batch_free(b[at]);
            }
            if (i >= BATCHES)
                continue;
            b[at] = kit_batch_new(k, (size_t)(1 + i * 7 % 60), (uint64_t)i, 3);
            kit_assert_ok(kit_submit(k, b[at], i % 2, 0, &t[at], &error), error);
        }
        kit_close(k);
    }
}

static void fixed_batches_are_padded_inside(void **state)
{
    (void)state;
    kit *k = kit_open("input x float32 4 8\ninput w int64 4 1\noutput y float32 4 2\noutput z bool 4 5\ndepth 3\n",
                      "sim:0*2", NULL);
    for (size_t rows = 0; rows <= 33; rows++)
        kit_forward(k, rows, rows);
    kit_close(k);
}

/* Small batches, each of them one padded slice: each needs memory of its own for it while the others are in flight. */
static void padded_slices_in_flight_at_once(void **state)
{
    (void)state;
    enum { FLIGHT = 8 };
    kit *k = kit_open("input x float32 4 8\noutput y float32 4 2\ndepth 3\nfixed_us 2000\n", "sim:0", NULL);
    kit_batch *b[FLIGHT];
    dpi_ticket t[FLIGHT];
    dpi_error error;
    for (int turn = 0; turn < 4; turn++) {
        for (int i = 0; i < FLIGHT; i++) {
            b[i] = kit_batch_new(k, (size_t)(1 + (i + turn) % 3), (uint64_t)(turn * FLIGHT + i), 3);
            kit_assert_ok(kit_submit(k, b[i], false, 0, &t[i], &error), error);
        }
        for (int i = 0; i < FLIGHT; i++)
            finish(k, b[i], t[i], DPI_OK, &error);
    }
    kit_close(k);
}

/* Every slice has the size of the first one, so that a padded one among others gives the bits of depth 1. */
static void padded_slices_give_the_bits_of_depth_1(void **state)
{
    (void)state;
    float reference[50][3];
    for (int depth = 1; depth <= 3; depth++) {
        char text[200];
        dpi_options o = in_slices_of(8);
        snprintf(text, sizeof text, "input x float32 N 5\noutput y float32 N 3\nsize_bits 1\ndepth %d\n", depth);
        kit *k = kit_open(text, depth == 2 ? "sim:0*2" : "sim:0", &o);
        dpi_description d = DPI_INIT(dpi_description);
        dpi_error error;
        kit_assert_ok(dpi_describe(k->s, &d, &error), error);
        assert_int_equal(d.fixed_batch, 8);
        kit_batch *b = kit_batch_new(k, 50, 3, 3);
        kit_assert_ok(dpi_forward(k->s, b->in, 1, b->out, 1, 0, &error), error);
        if (depth == 1)
            memcpy(reference, b->out[0].data, sizeof reference);
        assert_memory_equal(reference, b->out[0].data, sizeof reference);
        for (int64_t rows = 1; rows < 50; rows += 9) {
            kit_batch_spoil(b);
            b->in[0].shape[0] = b->out[0].shape[0] = rows;
            kit_assert_ok(dpi_forward(k->s, b->in, 1, b->out, 1, 0, &error), error);
            assert_memory_equal(reference, b->out[0].data, (size_t)rows * sizeof reference[0]);
        }
        b->out[0].shape[0] = 50;
        kit_batch_free(b);
        kit_close(k);
    }
}

static void devices_of_different_depths(void **state)
{
    (void)state;
    const dpi_key_value depths[] = {{"0.depth", "1"}, {"1.depth", "3"}, {"2.depth", "8"}};
    dpi_options o = in_slices_of(3);
    o.backend_options = depths;
    o.backend_option_count = 3;
    kit *k = kit_open(PORTS "jitter_us 500\n", "sim:0*3", &o);
    for (size_t i = 0; i < 20; i++)
        kit_forward(k, 40 + i, i);
    kit_close(k);
}

static void broadcast_inputs_and_free_axes(void **state)
{
    (void)state;
    dpi_options o = in_slices_of(4);
    kit *k =
        kit_open("input x float32 N ?\ninput w int8 broadcast 3\noutput y float32 N x.1\ndepth 3\n", "sim:0*2", &o);
    for (size_t rows = 0; rows < 40; rows += 13)
        kit_forward(k, rows, rows);
    kit_close(k);
}

/* Slices in flight end by themselves, the others are dropped; what comes after is exact. */
static void cancelling_among_slices_in_flight(void **state)
{
    (void)state;
    dpi_options o = in_slices_of(1);
    kit *k = kit_open(DEEP "fixed_us 20000\n", "sim:0", &o);
    kit_batch *first = kit_batch_new(k, 20, 1, 3), *second = kit_batch_new(k, 4, 2, 3);
    dpi_ticket one, two;
    dpi_error error;
    kit_assert_ok(kit_submit(k, first, false, 0, &one, &error), error);
    kit_assert_ok(kit_submit(k, second, false, 0, &two, &error), error);
    clock_sleep_until_ns(clock_now_ns() + 50000000);
    kit_assert_ok(dpi_cancel(k->s, one, &error), error);
    finish(k, first, one, DPI_CANCELLED, &error);
    finish(k, second, two, DPI_OK, &error);
    kit_forward(k, 5, 3);
    kit_close(k);
}

/* ---- results, shard mode ---------------------------------------------------------------------------------------- */

static char folder[] = "/tmp/dpi-test-depth-XXXXXX";

static const char *result_path(void)
{
    static char path[sizeof folder + 16];
    snprintf(path, sizeof path, "%s/y.npy", folder);
    return path;
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(result_path());
    return rmdir(folder);
}

/* Compares the first output with the reference, row by row. */
static void check_result(const kit *k, const char *spec)
{
    source *s;
    npy_header h;
    dpi_error error;
    void *got;
    const void *rows;
    bool in_place;
    size_t in_bytes = 0, out_bytes = 0, elements = 0;
    kit_assert_ok(source_open(spec, -1, &s, &error), error);
    kit_assert_ok(npy_load(result_path(), 1 << 28, &h, &got, &error), error);
    size_t count = (size_t)source_rows(s);
    assert_int_equal(h.shape[0], count);
    assert_true(shape_row_bytes(source_port(s)->dtype, source_port(s)->shape, source_port(s)->rank, &in_bytes));
    assert_true(shape_row_bytes(h.dtype, h.shape, h.rank, &out_bytes));
    assert_true(shape_elements(h.shape, 1, h.rank, &elements));
    void *data = malloc(in_bytes * count + 1), *want = malloc(out_bytes);
    kit_assert_ok(source_rows_at(s, 0, count, data, true, &rows, &in_place, &error), error);
    for (size_t r = 0; r < count; r++) {
        const void *row = (const char *)data + r * in_bytes;
        sim_expected_row(&k->model, &row, &in_bytes, 0, elements, want);
        if (memcmp(want, (char *)got + r * out_bytes, out_bytes) != 0)
            fail_msg("row %zu of %zu differs", r, count);
    }
    free(data);
    free(want);
    free(got);
    source_close(s);
}

static dpi_status run_to_npy(const kit *k, const char *spec, dpi_run_result *result, dpi_error *error)
{
    const char *out = result_path();
    dpi_run_options o = DPI_INIT(dpi_run_options);
    o.inputs = &spec;
    o.outputs = &out;
    o.input_count = o.output_count = 1;
    return dpi_run(k->s, &o, result, error);
}

static void data_sets_are_exact(void **state)
{
    (void)state;
    static const char *const texts[] = {"input x float32 N 5\noutput y float32 N 4\ndepth 3\njitter_us 200\n",
                                        "input x float32 6 5\noutput y float32 6 4\ndepth 3\n"};
    static const size_t counts[] = {1, 2, 7, 8, 64, 1001};
    for (int isolation = 0; isolation < 2; isolation++)
        for (int devices = 1; devices <= 3; devices += 2)
            for (size_t m = 0; m < 2; m++) {
                dpi_options o = in_slices_of(7);
                o.isolation = (dpi_isolation)isolation;
                kit *k = kit_open(texts[m], devices == 1 ? "sim:0" : "sim:0*3", &o);
                for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
                    char spec[64];
                    dpi_error error;
                    snprintf(spec, sizeof spec, "random:5:float32:%zu:7", counts[i]);
                    kit_assert_ok(run_to_npy(k, spec, NULL, &error), error);
                    check_result(k, spec);
                }
                kit_forward(k, 20, 1);
                kit_close(k);
            }
}

/* ---- overlap and what is learnt --------------------------------------------------------------------------------- */

#define SLICES 30

/* A loaded machine may stretch any one of them: the best of a few. */
static double best_batch_s(const kit *k)
{
    double best_s = 1e9;
    for (int i = 0; i < 5 && best_s > 0.2; i++) {
        double began_s = kit_now_s();
        kit_forward(k, SLICES, (uint64_t)i);
        best_s = kit_now_s() - began_s < best_s ? kit_now_s() - began_s : best_s;
    }
    return best_s;
}

static double best_run_s(const kit *k)
{
    double best_s = 1e9;
    for (int i = 0; i < 5 && best_s > 0.2; i++) {
        dpi_run_result result = DPI_INIT(dpi_run_result);
        dpi_error error;
        kit_assert_ok(run_to_npy(k, "random:300:uint8:30", &result, &error), error);
        check_result(k, "random:300:uint8:30");
        best_s = result.seconds < best_s ? result.seconds : best_s;
    }
    return best_s;
}

/* 30 slices of 3 + 5 + 2 ms: 300 ms one after another, 155 ms when only the computing counts. */
static void copies_and_computing_overlap(void **state)
{
    (void)state;
    const dpi_key_value one = {"depth", "1"};
    dpi_options o = in_slices_of(1);
    kit *k = kit_open(STAGED, "sim:0", &o);
    double split_s = best_batch_s(k), shard_s = best_run_s(k);
    if (split_s < 0.15 || split_s > 0.25 || shard_s < 0.15 || shard_s > 0.25)
        fail_msg("split %.3f s, shard %.3f s", split_s, shard_s);
    kit_close(k);
    o.backend_options = &one;
    o.backend_option_count = 1;
    k = kit_open(STAGED, "sim:0", &o);
    assert_true(best_batch_s(k) >= 0.3);
    kit_close(k);
}

/* Batches of one slice, two in flight: a worker that waits for the first one hears of the second. 450 ms when the
 * caller's two batches are all that limits, 800 ms when they take turns. */
static double two_in_flight_s(kit *k)
{
    enum { BATCHES = 16 };
    kit_batch *b[2];
    dpi_ticket t[2];
    dpi_error error;
    int64_t began_ns = clock_now_ns();
    for (int i = 0; i < BATCHES + 2; i++) {
        if (i >= 2)
            finish(k, b[i % 2], t[i % 2], DPI_OK, &error);
        if (i >= BATCHES)
            continue;
        b[i % 2] = kit_batch_new(k, 1, (uint64_t)i, 3);
        kit_assert_ok(kit_submit(k, b[i % 2], false, 0, &t[i % 2], &error), error);
    }
    return (double)(clock_now_ns() - began_ns) * 1e-9;
}

static void two_batches_in_flight_overlap(void **state)
{
    (void)state;
    dpi_options o = in_slices_of(1);
    kit *k = kit_open("input x uint8 N 300\noutput y uint8 N 200\ndepth 3\ncopy_in_mb_s 0.02\nfixed_us 25000\n"
                      "copy_out_mb_s 0.02\n",
                      "sim:0", &o);
    double best_s = 1e9;
    for (int i = 0; i < 8 && best_s > 0.65; i++) {
        double s = two_in_flight_s(k);
        best_s = s < best_s ? s : best_s;
    }
    if (best_s < 0.4 || best_s > 0.65)
        fail_msg("%.3f s", best_s);
    kit_close(k);
}

static dpi_worker_stats stats_of_worker_0(const kit *k)
{
    dpi_worker_stats worker = {0};
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    dpi_error error;
    stats.workers = &worker;
    stats.worker_count = 1;
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    return worker;
}

/* Three slices are in flight, so each is on its way for 15 ms and more; what it adds is the 5 ms of computing. */
static void time_in_the_queue_is_not_learnt(void **state)
{
    (void)state;
    dpi_options o = in_slices_of(1);
    kit *k = kit_open(STAGED, "sim:0", &o);
    dpi_worker_stats w = {0};
    for (int i = 0; i < 5; i++) {
        kit_forward(k, SLICES, (uint64_t)i);
        w = stats_of_worker_0(k);
        if (w.fixed_us + w.row_us < 8000)
            break;
    }
    double slice_us = w.fixed_us + w.row_us, n = (double)w.slices * 1e3;
    if (slice_us < 4000 || slice_us > 10000)
        fail_msg("a slice of 5 ms was learnt as %.0f us", slice_us);
    if ((double)w.copy_in_ns / n != 3000 || (double)w.copy_out_ns / n != 2000 || (double)w.compute_ns / n > 5001)
        fail_msg("us a slice: copy in %.1f, compute %.1f, copy out %.1f", (double)w.copy_in_ns / n,
                 (double)w.compute_ns / n, (double)w.copy_out_ns / n);
    kit_close(k);
}

/* ---- failures --------------------------------------------------------------------------------------------------- */

/* The second of three batches has the bad slice, while slices of its neighbours are in flight. */
static void a_bad_slice_costs_its_batch_alone(void **state)
{
    (void)state;
    for (int in_enqueue = 0; in_enqueue < 2; in_enqueue++) {
        const dpi_key_value options[] = {{"fail_at_slice", "6"}, {"fault_in_enqueue", in_enqueue ? "1" : "0"}};
        dpi_options o = in_slices_of(2);
        o.backend_options = options;
        o.backend_option_count = 2;
        kit *k = kit_open(DEEP "fixed_us 3000\n", "sim:0", &o);
        kit_batch *b[3];
        dpi_ticket t[3];
        dpi_error error;
        for (int i = 0; i < 3; i++) { /* slices 1 to 4, 5 to 8, and the rest */
            b[i] = kit_batch_new(k, 8, (uint64_t)i + 1, 3);
            kit_assert_ok(kit_submit(k, b[i], false, 0, &t[i], &error), error);
        }
        finish(k, b[0], t[0], DPI_OK, &error);
        finish(k, b[1], t[1], DPI_E_ENGINE, &error);
        kit_assert_contains(error.message, "worker 0");
        kit_assert_contains(error.message, "sim:0");
        kit_assert_contains(error.message, "slice 6");
        finish(k, b[2], t[2], DPI_OK, &error);
        kit_forward(k, 30, 5);
        dpi_stats_data stats = DPI_INIT(dpi_stats_data);
        kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
        assert_int_equal(stats.failed_batches, 1);
        assert_int_equal(stats.batches, 3);
        kit_close(k);
    }
}

static void a_bad_slice_ends_a_run_and_not_the_session(void **state)
{
    (void)state;
    dpi_options o = in_slices_of(2);
    kit *k = kit_open("input x float32 N 5\noutput y float32 N 4\ndepth 3\nfail_at_slice 20\n", "sim:0*2", &o);
    dpi_error error = {0};
    unlink(result_path());
    assert_int_equal(run_to_npy(k, "random:5:float32:200", NULL, &error), DPI_E_ENGINE);
    kit_assert_contains(error.message, "slice 20");
    assert_int_equal(access(result_path(), F_OK), -1);
    dpi_status status = run_to_npy(k, "random:5:float32:200", NULL, &error);
    if (status == DPI_E_ENGINE) /* the other worker's twentieth slice */
        kit_assert_ok(run_to_npy(k, "random:5:float32:200", NULL, &error), error);
    check_result(k, "random:5:float32:200");
    kit_close(k);
}

typedef struct fault {
    const char *key, *in_enqueue, *part;
    double within_s;
} fault;

/* Worker 1 dies once, in the midst of slices in flight: all of them are suspects, all batches come out right. */
static void strike(const fault *f)
{
    kit_traces before = kit_look();
    kit_story story = KIT_STORY;
    char key[64];
    snprintf(key, sizeof key, "1.%s", f->key);
    const dpi_key_value options[] = {{key, "5"}, {"fault_in_enqueue", f->in_enqueue}, {"fault_generations", "1"}};
    dpi_options o = in_slices_of(2);
    o.backend_options = options;
    o.backend_option_count = 3;
    o.total_batch_size = 6;
    o.slice_timeout_ms = 400;
    o.event = kit_tell;
    o.event_context = &story;
    kit *k = kit_open(DEEP "fixed_us 5000\n", "sim:0,sim:7,sim:2", &o);
    kit_batch *b[3];
    dpi_ticket t[3];
    dpi_error error = {0};
    for (int i = 0; i < 3; i++) {
        b[i] = kit_batch_new(k, 60, (uint64_t)i, 3);
        kit_assert_ok(kit_submit(k, b[i], false, 0, &t[i], &error), error);
    }
    double began_s = kit_now_s();
    for (int i = 0; i < 3; i++)
        finish(k, b[i], t[i], DPI_OK, &error);
    if (kit_now_s() - began_s > f->within_s)
        fail_msg("%s: it took %.2f s", f->key, kit_now_s() - began_s);
    assert_true(kit_story_says(&story, "worker 1 (sim:7"));
    assert_true(kit_story_says(&story, f->part));
    kit_close(k);
    kit_check_clean(before);
}

static void a_death_in_flight(void **state)
{
    (void)state;
    strike(&(fault){"die_at_slice", "0", "signal 9", 1.2});
    strike(&(fault){"die_at_slice", "1", "dying at slice 5", 1.2});
    strike(&(fault){"exit_at_slice", "0", "\"exit_code\":7", 1.2});
    strike(&(fault){"exit_at_slice", "1", "\"exit_code\":7", 1.2});
}

static void a_hang_in_flight(void **state)
{
    (void)state;
    strike(&(fault){"hang_at_slice", "0", "hung", 3});
    strike(&(fault){"hang_at_slice", "1", "hung", 3});
}

/* Each slice is on the device for 0.4 s and in flight for 1.2 s: its turn counts, not its time in the queue. */
static void a_slice_in_the_queue_does_not_hang(void **state)
{
    (void)state;
    dpi_options o = in_slices_of(1);
    o.slice_timeout_ms = 800;
    kit *k = kit_open(DEEP "row_us 400000\n", "sim:0", &o);
    kit_forward(k, 8, 1);
    kit_close(k);
}

/* ---- isolation=thread, and the end ------------------------------------------------------------------------------ */

/* One device, but not of depth 1: its worker's thread drives it, and a batch is on its way when dpi_submit returns. */
static void thread_isolation(void **state)
{
    (void)state;
    kit_traces before = kit_look();
    for (int devices = 1; devices <= 3; devices += 2) {
        dpi_options o = in_slices_of(1);
        o.isolation = DPI_ISOLATION_THREAD;
        kit *k = kit_open(DEEP "fixed_us 50000\n", devices == 1 ? "sim:0" : "sim:0*3", &o);
        kit_batch *b = kit_batch_new(k, 9, 1, 3);
        dpi_ticket ticket;
        dpi_error error;
        kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
        assert_int_equal(dpi_wait(k->s, ticket, -1, NULL, 0, &error), DPI_TIMEOUT);
        finish(k, b, ticket, DPI_OK, &error);
        kit_close(k);
        o.batch = 16;
        k = kit_open(DEEP "fail_at_slice 3\n", devices == 1 ? "sim:0" : "sim:0*3", &o);
        for (int i = 0, failures = 0; i < 20; i++) {
            b = kit_batch_new(k, (size_t)i * 5, (uint64_t)i, 3);
            dpi_status status = dpi_forward(k->s, b->in, 1, b->out, 2, 20000, &error);
            if (status && (status != DPI_E_ENGINE || ++failures > devices))
                fail_msg("%s: %s", dpi_status_name(status), error.message);
            if (!status)
                kit_batch_check(b, NULL);
            kit_batch_free(b);
        }
        kit_close(k);
    }
    kit_check_clean(before);
}

static void closing_with_batches_in_flight(void **state)
{
    (void)state;
    kit_traces before = kit_look();
    for (int isolation = 0; isolation < 2; isolation++) {
        dpi_options o = in_slices_of(1);
        o.isolation = (dpi_isolation)isolation;
        kit *k = kit_open(DEEP "fixed_us 100000\n", "sim:0", &o);
        kit_batch *b[4];
        dpi_ticket ticket;
        dpi_error error;
        for (int i = 0; i < 4; i++) {
            b[i] = kit_batch_new(k, 5, (uint64_t)i, 3);
            kit_assert_ok(kit_submit(k, b[i], i % 2, 0, &ticket, &error), error);
        }
        clock_sleep_until_ns(clock_now_ns() + 20000000);
        double began_s = kit_now_s();
        kit_close(k);
        assert_true(kit_now_s() - began_s < 1.5); /* the three in flight at most, not all twenty */
        for (int i = 0; i < 4; i++)
            kit_batch_free(b[i]);
    }
    kit_check_clean(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_sizes_on_several_devices),
        cmocka_unit_test(many_batches_in_flight),
        cmocka_unit_test(fixed_batches_are_padded_inside),
        cmocka_unit_test(padded_slices_in_flight_at_once),
        cmocka_unit_test(padded_slices_give_the_bits_of_depth_1),
        cmocka_unit_test(devices_of_different_depths),
        cmocka_unit_test(broadcast_inputs_and_free_axes),
        cmocka_unit_test(cancelling_among_slices_in_flight),
        cmocka_unit_test(data_sets_are_exact),
        cmocka_unit_test(copies_and_computing_overlap),
        cmocka_unit_test(two_batches_in_flight_overlap),
        cmocka_unit_test(time_in_the_queue_is_not_learnt),
        cmocka_unit_test(a_bad_slice_costs_its_batch_alone),
        cmocka_unit_test(a_bad_slice_ends_a_run_and_not_the_session),
        cmocka_unit_test(a_death_in_flight),
        cmocka_unit_test(a_hang_in_flight),
        cmocka_unit_test(a_slice_in_the_queue_does_not_hang),
        cmocka_unit_test(thread_isolation),
        cmocka_unit_test(closing_with_batches_in_flight),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
