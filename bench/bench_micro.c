/*
 * What the runtime itself costs. Each figure is the median of many calls; pairs that are compared run in turn.
 * usage: bench_micro MLP.onnx     prints one line per figure: name, value, unit, what it is compared with
 */
#include "backend/backend.h"
#include "base/clock.h"
#include "base/file.h"
#include "bench_kit.h"
#include "ipc/trace_ring.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CALLS 2000
#define TURNS 15

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, by_value);
    return values[count / 2];
}

static void show(const char *name, double value, const char *unit, const char *note)
{
    printf("%-44s %12.3f %-6s %s\n", name, value, unit, note);
    fflush(stdout);
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu >= 0)
        CPU_SET((size_t)cpu, &set);
    for (int i = 0; cpu < 0 && i < CPU_SETSIZE; i++)
        CPU_SET((size_t)i, &set);
    sched_setaffinity(0, sizeof set, &set);
}

/* ---- the MLP: 64 rows of 64 floats ------------------------------------------------------------------------------ */

#define ROWS 64

typedef struct direct {
    const backend *b;
    backend_library *library;
    backend_engine *engine;
    int cpus[2];
} direct;

static dpi_status direct_open(direct *d, const char *model, size_t threads, dpi_error *error)
{
    static const logger quiet = {.level = DPI_LOG_ERROR};
    d->b = backend_find("onnxruntime");
    d->cpus[0] = 0;
    d->cpus[1] = 1;
    backend_device device = {.kind = "cpu", .name = "cpu", .cpus = d->cpus, .cpu_count = threads, .threads = threads};
    backend_model m = {.path = model, .format = "onnx"};
    backend_open_options open = {.model = &m, .device = &device, .max_rows = ROWS, .import_fd = -1, .log = &quiet};
    dpi_status status = d->b->load(&(backend_load_options){0}, &quiet, &d->library, error);
    return status ? status : d->b->open(d->library, &open, &d->engine, error);
}

static double direct_us(direct *d, float *x, float *y)
{
    dpi_error error;
    backend_array in = {.data = x, .rank = 2, .shape = {ROWS, 64}}, out = {.data = y, .rank = 2, .shape = {ROWS, 10}};
    backend_call call = {.rows = ROWS, .inputs = &in, .outputs = &out};
    backend_timing timing = {0};
    int64_t began = clock_now_ns();
    if (d->b->run(d->engine, &call, &timing, &error))
        exit(failed(&error));
    return (double)(clock_now_ns() - began) * 1e-3;
}

static double forward_us(dpi_session *s, float *x, float *y)
{
    dpi_error error;
    dpi_tensor in = {.dtype = DPI_F32, .rank = 2, .shape = {ROWS, 64}, .data = x};
    dpi_tensor out = {.dtype = DPI_F32, .rank = 2, .shape = {ROWS, 10}, .data = y};
    int64_t began = clock_now_ns();
    if (dpi_forward(s, &in, 1, &out, 1, 10000, &error))
        exit(failed(&error));
    return (double)(clock_now_ns() - began) * 1e-3;
}

static void compare_mlp(const char *name, const char *model, const dpi_options *options, size_t direct_threads,
                        int caller_cpu)
{
    static float x[ROWS * 64], y[ROWS * 10];
    static double ours[CALLS], theirs[CALLS];
    dpi_error error;
    dpi_session *s;
    direct d = {0};
    char note[160];
    if (dpi_open(options, &s, &error)) {
        printf("%-44s failed: %s\n", name, error.message);
        return;
    }
    pin(caller_cpu);
    if (direct_open(&d, model, direct_threads, &error))
        exit(failed(&error));
    for (int i = 0; i < 200; i++) {
        forward_us(s, x, y);
        direct_us(&d, x, y);
    }
    /* In turn, in runs of 100: alternating every call would measure cold caches. */
    for (int i = 0; i < CALLS; i += 100) {
        for (int k = 0; k < 100; k++)
            ours[i + k] = forward_us(s, x, y);
        for (int k = 0; k < 100; k++)
            theirs[i + k] = direct_us(&d, x, y);
    }
    double a = median(ours, CALLS), b = median(theirs, CALLS);
    snprintf(note, sizeof note, "direct call %.2f us: +%.2f us, %.2fx", b, a - b, a / b);
    show(name, a, "us", note);
    d.b->close(d.engine);
    dpi_close(s);
    pin(-1);
}

static void mlp(const char *model)
{
    size_t even[2] = {32, 32};
    dpi_options o = DPI_INIT(dpi_options);
    o.model_path = model;
    o.backend = "onnxruntime";
    o.devices = "cpu:0,cpu:1";
    o.batch_size_list = even;
    o.batch_size_count = 2;
    o.wait_mode = DPI_WAIT_BLOCK;
    compare_mlp("mlp 64 rows, 2 workers forced, blocking", model, &o, 1, -1);
    o.wait_mode = DPI_WAIT_YIELD;
    compare_mlp("mlp 64 rows, 2 workers forced, yielding", model, &o, 1, -1);
    o.batch_size_list = NULL;
    o.batch_size_count = 0;
    o.wait_mode = DPI_WAIT_AUTO;
    compare_mlp("mlp 64 rows, 2 workers adaptive", model, &o, 1, -1);
    o.wait_mode = DPI_WAIT_SPIN;
    o.devices = "cpu:1";
    compare_mlp("mlp 64 rows, 1 worker, both spinning", model, &o, 1, 0);
    o.devices = "cpu:0-1";
    o.isolation = DPI_ISOLATION_THREAD;
    o.wait_mode = DPI_WAIT_AUTO;
    compare_mlp("mlp 64 rows, isolation=thread, 2 cores", model, &o, 2, -1);
}

/* ---- a null model: 2 x 32 x 3 x 224 x 224 floats ---------------------------------------------------------------- */

static void null_model(void)
{
    const char *text = "input x float32 N 3 224 224\noutput y float32 N 1\ntouch none\n";
    const size_t rows = 64, bytes = rows * 3 * 224 * 224 * 4;
    size_t even[2] = {32, 32};
    dpi_options o = sim_options(text, "sim:0,sim:1", 0);
    dpi_error error;
    dpi_session *s;
    o.batch_size_list = even;
    o.batch_size_count = 2;
    if (dpi_open(&o, &s, &error))
        exit(failed(&error));
    float *plain = malloc(bytes), *copy = malloc(bytes), *own = dpi_alloc(s, bytes, DPI_INPUT, &error), y[64];
    if (!plain || !copy || !own)
        exit(failed(&error));
    memset(plain, 1, bytes);
    memset(own, 1, bytes);
    memset(copy, 1, bytes);
    double times[3][60];
    for (int i = -5; i < 60; i++) {
        for (int kind = 0; kind < 3; kind++) {
            dpi_tensor in = {.dtype = DPI_F32, .rank = 4, .shape = {64, 3, 224, 224}, .data = kind ? own : plain};
            dpi_tensor out = {.dtype = DPI_F32, .rank = 2, .shape = {64, 1}, .data = y};
            int64_t began = clock_now_ns();
            if (kind == 2)
                memcpy(copy, plain, bytes);
            else if (dpi_forward(s, &in, 1, &out, 1, 10000, &error))
                exit(failed(&error));
            if (i >= 0)
                times[kind][i] = (double)(clock_now_ns() - began) * 1e-6;
        }
    }
    char note[80];
    snprintf(note, sizeof note, "one memcpy of it: %.2f ms", median(times[2], 60));
    show("null model, 38.5 MB, plain memory", median(times[0], 60), "ms", note);
    show("null model, 38.5 MB, dpi_alloc", median(times[1], 60), "ms", "");
    dpi_close(s);
    free(plain);
    free(copy);
}

/* ---- 64 simulated devices of 5 ms a slice ----------------------------------------------------------------------- */

static double process_cpu_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void many_devices(void)
{
    const char *text = "input x float32 N 16\noutput y float32 N 1\nfixed_us 5000\n";
    const char *source = "random:16:float32:102400";
    dpi_options o = sim_options(text, "sim:0*64", 8);
    dpi_error error;
    dpi_session *s;
    int64_t opened = clock_now_ns();
    if (dpi_open(&o, &s, &error))
        exit(failed(&error));
    show("64 sim devices, open", (double)(clock_now_ns() - opened) * 1e-6, "ms", "");
    dpi_run_options run = DPI_INIT(dpi_run_options);
    dpi_run_result result = DPI_INIT(dpi_run_result);
    run.inputs = &source;
    run.input_count = 1;
    double cpu = process_cpu_s(), ideal = 102400.0 / 8 / 64 * 0.005;
    char note[80];
    if (dpi_run(s, &run, &result, &error))
        exit(failed(&error));
    snprintf(note, sizeof note, "caller %.1f %% of a core", 100 * (process_cpu_s() - cpu) / result.seconds);
    show("64 sim devices, shard, efficiency", ideal / result.seconds, "", note);

    enum { BATCHES = 200, FLIGHT = 4 };
    static float x[512 * 16], y[FLIGHT][512];
    dpi_ticket tickets[FLIGHT];
    cpu = process_cpu_s();
    int64_t began = clock_now_ns();
    for (int i = 0; i < BATCHES + FLIGHT; i++) {
        if (i >= FLIGHT && dpi_wait(s, tickets[i % FLIGHT], 0, NULL, 0, &error))
            exit(failed(&error));
        if (i >= BATCHES)
            continue;
        dpi_tensor in = {.dtype = DPI_F32, .rank = 2, .shape = {512, 16}, .data = x};
        dpi_tensor out = {.dtype = DPI_F32, .rank = 2, .shape = {512, 1}, .data = y[i % FLIGHT]};
        dpi_batch batch = DPI_INIT(dpi_batch);
        batch.inputs = &in;
        batch.input_count = 1;
        batch.outputs = &out;
        batch.output_count = 1;
        if (dpi_submit(s, &batch, &tickets[i % FLIGHT], &error))
            exit(failed(&error));
    }
    double seconds = (double)(clock_now_ns() - began) * 1e-9;
    snprintf(note, sizeof note, "caller %.1f %% of a core", 100 * (process_cpu_s() - cpu) / seconds);
    show("64 sim devices, split, 4 in flight, efficiency", BATCHES * 0.005 / seconds, "", note);
    dpi_close(s);
}

/* ---- opening, and memory ---------------------------------------------------------------------------------------- */

static void opening(const char *model)
{
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error;
    dpi_session *s;
    o.model_path = model;
    o.backend = "onnxruntime";
    o.devices = "cpu:0,cpu:1";
    double ratios[15], times[15];
    for (int i = 0; i < 15; i++) {
        int64_t began = clock_now_ns();
        if (dpi_open(&o, &s, &error))
            exit(failed(&error));
        double seconds = (double)(clock_now_ns() - began) * 1e-9, slowest = 0;
        dpi_description d = DPI_INIT(dpi_description);
        dpi_describe(s, &d, &error);
        for (size_t w = 0; w < d.worker_count; w++)
            slowest = d.workers[w].open_seconds > slowest ? d.workers[w].open_seconds : slowest;
        ratios[i] = seconds / slowest;
        times[i] = seconds * 1e3;
        dpi_close(s);
    }
    char note[80];
    snprintf(note, sizeof note, "%.3fx the slowest worker's own time", median(ratios, 15));
    show("open 2 workers", median(times, 15), "ms", note);
}

/* ---- tracing ---------------------------------------------------------------------------------------------------- */

#define TRACED 200000

static void *drain(void *context)
{
    trace_slice s;
    uint64_t next = 0, lost = 0;
    while (next < (uint64_t)TRACED * TURNS) {
        if (!trace_read(context, &next, &s, &lost))
            clock_sleep_until_ns(clock_now_ns() + 10000000);
    }
    return NULL;
}

/* What a worker does more for each slice when it is traced: the time, and a record that another thread reads. */
static void tracing(void)
{
    trace_ring *ring = aligned_alloc(4096, (sizeof *ring + 4095) / 4096 * 4096);
    pthread_t reader;
    double ns[TURNS];
    if (!ring)
        return;
    memset(ring, 0, sizeof *ring);
    pthread_create(&reader, NULL, drain, ring);
    for (int turn = 0; turn < TURNS; turn++) {
        int64_t began = clock_now_ns();
        for (uint32_t i = 0; i < TRACED; i++) {
            trace_slice s = {.slice = i, .rows = 64, .started_ns = began, .finished_ns = clock_now_ns()};
            trace_write(ring, &s);
        }
        ns[turn] = (double)(clock_now_ns() - began) / TRACED;
    }
    pthread_join(reader, NULL);
    free(ring);
    show("recording a slice for --trace", median(ns, TURNS), "ns",
         "the clock included, read by another thread; at most 100");
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: bench_micro MLP.onnx\n");
        return 2;
    }
    mlp(argv[1]);
    null_model();
    many_devices();
    opening(argv[1]);
    tracing();
    fflush(NULL);
    _Exit(0); /* ONNX Runtime was loaded here: its destructors crash */
}
