/*
 * Whether N GPUs keep their pace behind one caller, without the GPUs: sim devices that act like one (copy in, compute
 * and copy out overlap, several slices in flight) with the costs that were measured on a real one. Nobody reads an
 * input row (`touch none`), so that what is left is the runtime's own work.
 *
 * usage: bench_sim_gpu [--devices 8] [--batch 256] [--depth 3] [--flight 4] [--turns 5] [--seconds 2]
 *                      [--fixed-us 100] [--row-us 24.5] [--copy-in-mb-s 55000] [--copy-out-mb-s 55000] [--even]
 *
 * split      batches of devices * batch rows in dpi_alloc memory, `flight` of them in flight by dpi_submit, one thread
 *            (--even: fixed even shares instead of the adaptive plan)
 * shard      dpi_run from an empty .npy in shared memory (no disk, no pages) to no sink
 * One device and N take turns. Prints the median rate, least and most; the efficiency rate_N / (N * rate_1) turn by
 * turn; the CPU time of the caller and of the workers; and, by plain arithmetic, the host memory's share.
 */
#include "base/clock.h"
#include "base/tensor.h"
#include "data/npy.h"

#include <dpinfer/dpinfer.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ROW_ELEMENTS (224 * 224 * 3)
#define FLIGHT_MAX   16
#define TURNS_MAX    99
#define DEVICES_MAX  64

typedef struct settings {
    size_t devices, batch, depth, flight, turns;
    double seconds, fixed_us, row_us, copy_in_mb_s, copy_out_mb_s;
    bool even;
} settings;

static char rows_path[64];

static void remove_rows(void)
{
    if (rows_path[0])
        unlink(rows_path);
}

static _Noreturn void die(const char *what, const dpi_error *error)
{
    fprintf(stderr, "%s: %s\n", what, error ? error->message : "failed");
    exit(1);
}

/* ---- what the costs promise ------------------------------------------------------------------------------------- */

static double compute_us(const settings *s) { return s->fixed_us + s->row_us * (double)s->batch; }

static double copy_us(const settings *s, size_t row_bytes, double mb_s)
{
    return mb_s > 0 ? (double)(s->batch * row_bytes) / mb_s : 0;
}

/* Rows a second of one device whose stages overlap: the slowest one alone counts. */
static double ideal_rate(const settings *s)
{
    double in = copy_us(s, ROW_ELEMENTS, s->copy_in_mb_s), out = copy_us(s, 4000, s->copy_out_mb_s);
    double us = in > compute_us(s) ? in : compute_us(s);
    return (double)s->batch / (us > out ? us : out) * 1e6;
}

/* ---- a session -------------------------------------------------------------------------------------------------- */

typedef struct rig {
    dpi_session *session;
    size_t devices, rows; /* rows of a batch */
    dpi_tensor input[FLIGHT_MAX], output[FLIGHT_MAX];
    int64_t pids[DEVICES_MAX];
} rig;

static void rig_open(rig *r, const settings *s, size_t devices)
{
    char names[DEVICES_MAX * 8] = "", text[512];
    size_t shares[DEVICES_MAX];
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error;
    for (size_t i = 0, at = 0; i < devices; i++) {
        at += (size_t)snprintf(names + at, sizeof names - at, "%ssim:%zu", i ? "," : "", i);
        shares[i] = s->batch;
    }
    snprintf(text, sizeof text,
             "input image uint8 N 224 224 3\noutput logits float32 N 1000\ntouch none\ndepth %zu\nfixed_us %f\n"
             "row_us %f\ncopy_in_mb_s %f\ncopy_out_mb_s %f\n",
             s->depth, s->fixed_us, s->row_us, s->copy_in_mb_s, s->copy_out_mb_s);
    o.model_data = text;
    o.model_bytes = strlen(text);
    o.model_format = "sim";
    o.devices = names;
    o.batch = s->batch;
    o.batch_size_list = s->even ? shares : NULL;
    o.batch_size_count = s->even ? devices : 0;
    if (dpi_open(&o, &r->session, &error))
        die("open", &error);
    dpi_description d = DPI_INIT(dpi_description);
    dpi_describe(r->session, &d, &error);
    for (size_t w = 0; w < d.worker_count && w < DEVICES_MAX; w++)
        r->pids[w] = d.workers[w].pid;
    r->devices = devices;
    r->rows = devices * s->batch;
    int64_t rows = (int64_t)r->rows;
    for (size_t i = 0; i < s->flight; i++) {
        r->input[i] = (dpi_tensor){.dtype = DPI_U8, .rank = 4, .shape = {rows, 224, 224, 3}};
        r->output[i] = (dpi_tensor){.dtype = DPI_F32, .rank = 2, .shape = {rows, 1000}};
        r->input[i].data = dpi_alloc(r->session, r->rows * ROW_ELEMENTS, DPI_INPUT, &error);
        r->output[i].data = dpi_alloc(r->session, r->rows * 4000, DPI_OUTPUT, &error);
        if (!r->input[i].data || !r->output[i].data)
            die("memory", &error);
    }
}

/* ---- the two ways ----------------------------------------------------------------------------------------------- */

typedef struct result {
    double rate;                         /* rows a second */
    double caller_us_a_batch;            /* CPU time of the thread that submits and waits */
    double process_share, workers_share; /* of one core: the caller's whole process; all workers together */
} result;

typedef struct meter {
    int64_t wall_ns, thread_ns, process_ns, workers_ns;
} meter;

static meter meter_read(const rig *r)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    meter m = {.wall_ns = clock_now_ns(),
               .thread_ns = clock_thread_cpu_ns(),
               .process_ns = (int64_t)t.tv_sec * 1000000000 + t.tv_nsec};
    for (size_t w = 0; w < r->devices; w++)
        m.workers_ns += clock_process_cpu_ns(r->pids[w]);
    return m;
}

static result meter_result(const rig *r, meter from, double rows)
{
    meter now = meter_read(r);
    double wall_ns = (double)(now.wall_ns - from.wall_ns);
    return (result){.rate = rows / wall_ns * 1e9,
                    .caller_us_a_batch = (double)(now.thread_ns - from.thread_ns) * 1e-3 / (rows / (double)r->rows),
                    .process_share = (double)(now.process_ns - from.process_ns) / wall_ns,
                    .workers_share = (double)(now.workers_ns - from.workers_ns) / wall_ns};
}

static result split_turn(rig *r, const settings *s, double seconds)
{
    dpi_ticket tickets[FLIGHT_MAX];
    dpi_error error;
    meter from = meter_read(r);
    size_t sent = 0, done = 0;
    for (bool more = true; more || done < sent;) {
        if (more && sent - done < s->flight) {
            dpi_batch b = DPI_INIT(dpi_batch);
            b.inputs = &r->input[sent % s->flight];
            b.outputs = &r->output[sent % s->flight];
            b.input_count = b.output_count = 1;
            if (dpi_submit(r->session, &b, &tickets[sent % s->flight], &error))
                die("submit", &error);
            sent++;
            continue;
        }
        if (dpi_wait(r->session, tickets[done % s->flight], 0, NULL, 0, &error))
            die("wait", &error);
        done++;
        more = (double)(clock_now_ns() - from.wall_ns) < seconds * 1e9;
    }
    return meter_result(r, from, (double)(done * r->rows));
}

static result shard_turn(rig *r, const settings *s, double seconds)
{
    const char *source = rows_path;
    dpi_run_options o = DPI_INIT(dpi_run_options);
    dpi_error error;
    size_t slices = (size_t)(ideal_rate(s) * seconds / (double)s->batch) + 1;
    o.inputs = &source;
    o.input_count = 1;
    o.row_end = slices * r->rows;
    meter from = meter_read(r);
    if (dpi_run(r->session, &o, NULL, &error))
        die("run", &error);
    return meter_result(r, from, (double)o.row_end);
}

/* A .npy of `rows` rows that are all hole: it takes neither disk nor memory as long as nobody reads it. */
static void make_rows(uint64_t rows)
{
    char header[256];
    const int64_t shape[] = {(int64_t)rows, 224, 224, 3};
    size_t length = npy_format(DPI_U8, shape, 4, header, sizeof header);
    snprintf(rows_path, sizeof rows_path, "/dev/shm/bench-sim-gpu-%d.npy", (int)getpid());
    int fd = open(rows_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        die(rows_path, NULL);
    atexit(remove_rows);
    if (write(fd, header, length) != (ssize_t)length || ftruncate(fd, (off_t)(length + rows * ROW_ELEMENTS)) != 0)
        die(rows_path, NULL);
    close(fd);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

typedef struct series {
    const char *name;
    result (*turn)(rig *, const settings *, double);
    result one[TURNS_MAX], many[TURNS_MAX];
} series;

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Sorts in place: [0] is the least, [count - 1] the most. */
static double median(double *values, size_t count)
{
    qsort(values, count, sizeof *values, by_value);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static void show_rates(const char *name, const result *results, size_t turns, size_t devices, const settings *s)
{
    double rates[TURNS_MAX], caller[TURNS_MAX], process[TURNS_MAX], workers[TURNS_MAX];
    for (size_t t = 0; t < turns; t++) {
        rates[t] = results[t].rate / (double)devices;
        caller[t] = results[t].caller_us_a_batch;
        process[t] = results[t].process_share * 100;
        workers[t] = results[t].workers_share * 100;
    }
    double middle = median(rates, turns);
    printf("%s %2zu devices  %8.0f rows/s a device (%.0f to %.0f), %.4f of what the costs promise\n", name, devices,
           middle, rates[0], rates[turns - 1], middle / ideal_rate(s));
    printf(
        "                  caller %.0f us of CPU a batch of %zu rows, its process %.1f %% of a core, workers %.1f %% "
        "together\n",
        median(caller, turns), devices * s->batch, median(process, turns), median(workers, turns));
}

static void show_efficiency(const series *k, const settings *s)
{
    double ratios[TURNS_MAX];
    for (size_t t = 0; t < s->turns; t++)
        ratios[t] = k->many[t].rate / ((double)s->devices * k->one[t].rate);
    double middle = median(ratios, s->turns);
    printf("%s efficiency of %zu devices: %.4f (%.4f to %.4f), %zu turns\n", k->name, s->devices, middle, ratios[0],
           ratios[s->turns - 1], s->turns);
}

/* What the rows of `rate` rows a second cost the host's memory. */
static void show_memory(double rate, const settings *s)
{
    static const dpi_dtype dtypes[] = {DPI_U8, DPI_F16, DPI_F32};
    printf("\narithmetic, not measured: host memory at %.0f rows/s on %zu devices\n", rate, s->devices);
    printf("%-8s %12s %14s %14s %28s\n", "dtype", "bytes a row", "DMA reads", "a device", "plain memory adds");
    for (size_t i = 0; i < 3; i++) {
        double bytes = (double)(ROW_ELEMENTS * dpi_dtype_size(dtypes[i])), gb_s = rate * bytes * 1e-9;
        printf("%-8s %12.0f %9.1f GB/s %9.1f GB/s %6.1f GB/s read + %5.1f written\n", dpi_dtype_name(dtypes[i]), bytes,
               gb_s, gb_s / (double)s->devices, gb_s, gb_s);
    }
    printf(
        "(plain memory: the caller's copy into the arena, by one thread; stores that fetch the line first read as much "
        "again;\n results are %.1f GB/s written by DMA, and read and written once more where they go to plain "
        "memory)\n",
        rate * 4000 * 1e-9);
}

static void measure(rig *one, rig *many, const settings *s)
{
    static series kinds[] = {{.name = "split", .turn = split_turn}, {.name = "shard", .turn = shard_turn}};
    double rates[TURNS_MAX];
    for (size_t t = 0; t <= s->turns; t++) /* the first turn warms up */
        for (size_t k = 0; k < 2; k++) {
            double seconds = t ? s->seconds : s->seconds / 4;
            result a = kinds[k].turn(one, s, seconds), b = kinds[k].turn(many, s, seconds);
            kinds[k].one[t ? t - 1 : 0] = a;
            kinds[k].many[t ? t - 1 : 0] = b;
        }
    for (size_t k = 0; k < 2; k++) {
        show_rates(kinds[k].name, kinds[k].one, s->turns, 1, s);
        show_rates(kinds[k].name, kinds[k].many, s->turns, s->devices, s);
        show_efficiency(&kinds[k], s);
    }
    for (size_t t = 0; t < s->turns; t++)
        rates[t] = kinds[0].many[t].rate;
    show_memory(median(rates, s->turns), s);
}

static void read_arguments(int argc, char **argv, settings *s)
{
    static const char *const names[] = {"devices", "batch",    "depth",  "flight",       "turns",
                                        "seconds", "fixed-us", "row-us", "copy-in-mb-s", "copy-out-mb-s"};
    size_t *counts[] = {&s->devices, &s->batch, &s->depth, &s->flight, &s->turns};
    double *numbers[] = {&s->seconds, &s->fixed_us, &s->row_us, &s->copy_in_mb_s, &s->copy_out_mb_s};
    struct option options[12] = {{"even", 0, NULL, 'e'}};
    for (int i = 0; i < 10; i++)
        options[1 + i] = (struct option){names[i], 1, NULL, i};
    for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (c == 'e')
            s->even = true;
        else if (c < 5)
            *counts[c] = strtoul(optarg, NULL, 10);
        else if (c < 10)
            *numbers[c - 5] = strtod(optarg, NULL);
        else
            exit(2);
    }
    if (!s->devices || s->devices > DEVICES_MAX || !s->batch || !s->flight || s->flight > FLIGHT_MAX || !s->turns ||
        s->turns > TURNS_MAX || !(s->seconds > 0) || optind != argc) {
        fprintf(stderr, "bench_sim_gpu: 1 to %d devices, %d in flight, %d turns; see the file's head\n", DEVICES_MAX,
                FLIGHT_MAX, TURNS_MAX);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    static rig one, many;
    settings s = {.devices = 8,
                  .batch = 256,
                  .depth = 3,
                  .flight = 4,
                  .turns = 5,
                  .seconds = 2,
                  .fixed_us = 100,
                  .row_us = 24.5,
                  .copy_in_mb_s = 55000,
                  .copy_out_mb_s = 55000};
    read_arguments(argc, argv, &s);
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("a slice of %zu rows: copy in %.3f ms, compute %.3f ms, copy out %.3f ms; depth %zu, %zu batches in flight, "
           "%s shares, %ld cores\n",
           s.batch, copy_us(&s, ROW_ELEMENTS, s.copy_in_mb_s) * 1e-3, compute_us(&s) * 1e-3,
           copy_us(&s, 4000, s.copy_out_mb_s) * 1e-3, s.depth, s.flight, s.even ? "even" : "adaptive",
           sysconf(_SC_NPROCESSORS_ONLN));
    make_rows((uint64_t)(ideal_rate(&s) * s.seconds + 2 * (double)s.batch) * s.devices);
    rig_open(&one, &s, 1);
    rig_open(&many, &s, s.devices);
    measure(&one, &many, &s);
    dpi_close(one.session);
    dpi_close(many.session);
    return 0;
}
