#include "cli/bench.h"

#include "base/clock.h"
#include "base/tensor.h"
#include "base/topology.h"
#include "data/npy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

double bench_quantile(const double *values, size_t count, double q)
{
    if (!count)
        return 0;
    double *sorted = malloc(count * sizeof *sorted);
    if (!sorted)
        return 0;
    memcpy(sorted, values, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_value);
    double at = q * (double)(count - 1), value = sorted[(size_t)at];
    if ((size_t)at + 1 < count)
        value += (at - floor(at)) * (sorted[(size_t)at + 1] - value);
    free(sorted);
    return value;
}

static void add_latency(bench_result *r, double ms)
{
    if (r->latency_count == r->latency_capacity) {
        size_t capacity = r->latency_capacity ? 2 * r->latency_capacity : 256;
        double *more = realloc(r->latencies_ms, capacity * sizeof *more);
        if (!more)
            return;
        r->latencies_ms = more;
        r->latency_capacity = capacity;
    }
    r->latencies_ms[r->latency_count++] = ms;
}
/* ---- preparing -------------------------------------------------------------------------------------------------- */

static bench_place *all_of(bench *b) { return &b->places[b->place_count - 1]; }

static dpi_status fill(dpi_session *s, const dpi_tensor *port_of, size_t rows, bool output, dpi_tensor *t,
                       dpi_error *error)
{
    *t = *port_of;
    t->shape[0] = (int64_t)rows;
    for (int k = 1; k < t->rank; k++)
        if (t->shape[k] < 0)
            return error_set(error, DPI_E_MODEL,
                             "bench needs fixed axes, and %s has a free one; give data with dpinfer run", t->name);
    size_t bytes = 0, elements = 0;
    shape_bytes(t->dtype, t->shape, t->rank, &bytes);
    shape_elements(t->shape, 1, t->rank, &elements);
    t->data = dpi_alloc(s, bytes ? bytes : 1, output ? DPI_OUTPUT : DPI_INPUT, error);
    if (!t->data)
        return DPI_E_SYSTEM;
    if (!output)
        tensor_fill_random(t->dtype, t->data, elements, 0, rows, 1, true);
    return DPI_OK;
}

static dpi_status make_memory(bench *b, bench_place *p, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < b->d.input_count && !status; i++)
        status = fill(p->session, &b->d.inputs[i], b->batch * p->devices, false, &p->inputs[i], error);
    for (size_t o = 0; o < b->d.output_count && !status; o++)
        for (int k = 0; k < BENCH_IN_FLIGHT && !status; k++)
            status = fill(p->session, &b->d.outputs[o], b->batch * p->devices, true, &p->outputs[k][o], error);
    return status;
}

/* The data set of the shard mode: .npy files in the page cache. */
static dpi_status make_files(bench *b, dpi_error *error)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(b->folder, sizeof b->folder, "%.40s/dpinfer-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (!mkdtemp(b->folder))
        return error_set(error, DPI_E_IO, "cannot make a folder for the data set in %s", b->folder);
    for (size_t i = 0; i < b->d.input_count; i++) {
        dpi_tensor t = b->d.inputs[i];
        char header[1024], path[128];
        t.shape[0] = (int64_t)b->rows;
        size_t bytes = 0, elements = 0, length = npy_format(t.dtype, t.shape, t.rank, header, sizeof header);
        shape_row_bytes(t.dtype, t.shape, t.rank, &bytes);
        shape_elements(t.shape, 1, t.rank, &elements);
        snprintf(path, sizeof path, "%s/%zu.npy", b->folder, i);
        FILE *file = fopen(path, "we");
        void *row = malloc(bytes + 1);
        bool good = file && row && length && fwrite(header, 1, length, file) == length;
        for (uint64_t r = 0; good && r < b->rows; r++) {
            if (r < 64) /* a few different rows are enough */
                tensor_fill_random(t.dtype, row, elements, r, 1, 1, true);
            good = fwrite(row, 1, bytes, file) == bytes;
        }
        good &= file && fclose(file) == 0;
        free(row);
        b->sources[i] = text_format("%s=%s", t.name, path);
        if (!good || !b->sources[i])
            return error_set(error, DPI_E_IO, "cannot write %llu rows to %s; lower --rows or set TMPDIR",
                             (unsigned long long)b->rows, path);
    }
    return DPI_OK;
}

static void remove_files(bench *b)
{
    for (size_t i = 0; i < PORT_MAX; i++) {
        if (b->sources[i] && strrchr(b->sources[i], '='))
            unlink(strrchr(b->sources[i], '=') + 1);
        free(b->sources[i]);
        b->sources[i] = NULL;
    }
    if (b->folder[0])
        rmdir(b->folder);
    b->folder[0] = 0;
}

/* A session on the first `devices` of those of all, each as it is there. */
static dpi_status open_place(bench *b, size_t devices, bench_place *p, dpi_error *error)
{
    dpi_options open = b->o->open;
    char *names = strdup(b->d.workers[0].device);
    for (size_t w = 1; w < devices && names; w++) {
        char *longer = text_format("%s;%s", names, b->d.workers[w].device);
        free(names);
        names = longer;
    }
    if (!names)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    open.batch = b->batch;
    open.devices = names;
    open.batch_size_list = NULL; /* shares of all devices */
    open.batch_size_count = 0;
    open.total_batch_size = 0;
    p->devices = devices;
    dpi_status status = dpi_open(&open, &p->session, error);
    free(names);
    return status;
}

static dpi_status open_places(bench *b, dpi_error *error)
{
    dpi_options open = b->o->open;
    bench_place all = {0};
    open.batch = b->batch;
    dpi_status status = dpi_open(&open, &all.session, error);
    if (status)
        return status;
    b->d = DPI_INIT(dpi_description);
    status = dpi_describe(all.session, &b->d, error);
    all.devices = b->d.worker_count;
    b->batch = b->d.batch;
    size_t next = 1;
    do {
        if (!status)
            status = open_place(b, next, &b->places[b->place_count], error);
        b->place_count++;
        next *= 2;
    } while (b->o->scaling && next < all.devices && b->place_count < BENCH_PLACES - 1 && !status);
    b->places[b->place_count++] = all;
    return status;
}

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static dpi_status run_blocking(bench *b, bench_place *p, uint64_t rows, bench_result *r, double *seconds,
                               dpi_error *error)
{
    int64_t began = clock_now_ns();
    dpi_status status = DPI_OK;
    for (uint64_t row = 0; row < rows && !status; row += b->batch * p->devices) {
        int64_t at = clock_now_ns();
        status = dpi_forward(p->session, p->inputs, b->d.input_count, p->outputs[0], b->d.output_count, 0, error);
        if (r)
            add_latency(r, (double)(clock_now_ns() - at) * 1e-6);
    }
    *seconds = (double)(clock_now_ns() - began) * 1e-9;
    return status;
}

static dpi_status run_pipelined(bench *b, bench_place *p, uint64_t rows, bench_result *r, double *seconds,
                                dpi_error *error)
{
    uint64_t batch = b->batch * p->devices, count = (rows + batch - 1) / batch, sent = 0, done = 0;
    dpi_ticket tickets[BENCH_IN_FLIGHT];
    int64_t times[BENCH_IN_FLIGHT], began = clock_now_ns();
    dpi_status status = DPI_OK;
    while (done < count && !status) {
        for (; sent < count && sent - done < BENCH_IN_FLIGHT && !status; sent++) {
            dpi_batch one = DPI_INIT(dpi_batch);
            one.inputs = p->inputs;
            one.input_count = b->d.input_count;
            one.outputs = p->outputs[sent % BENCH_IN_FLIGHT];
            one.output_count = b->d.output_count;
            times[sent % BENCH_IN_FLIGHT] = clock_now_ns();
            status = dpi_submit(p->session, &one, &tickets[sent % BENCH_IN_FLIGHT], error);
        }
        if (!status)
            status = dpi_wait(p->session, tickets[done % BENCH_IN_FLIGHT], 0, NULL, 0, error);
        add_latency(r, (double)(clock_now_ns() - times[done % BENCH_IN_FLIGHT]) * 1e-6);
        done++;
    }
    *seconds = (double)(clock_now_ns() - began) * 1e-9;
    return status;
}

static dpi_status run_sharded(bench *b, bench_place *p, uint64_t rows, double *seconds, dpi_error *error)
{
    dpi_run_options run = DPI_INIT(dpi_run_options);
    dpi_run_result done = DPI_INIT(dpi_run_result);
    run.inputs = (const char *const *)(uintptr_t)b->sources;
    run.input_count = b->d.input_count;
    run.row_end = rows;
    dpi_status status = dpi_run(p->session, &run, &done, error);
    *seconds = done.seconds;
    return status;
}

/* Rows that a measurement really computes: whole batches, on some of the devices as much time's worth as on all. */
static uint64_t rows_of(bench *b, const bench_result *r)
{
    uint64_t batch = b->batch * r->devices, all = all_of(b)->devices, rows = b->rows;
    if (r->mode != BENCH_SINGLE && r->devices < all)
        rows = b->rows * r->devices / all;
    if (r->mode == BENCH_SHARD)
        return rows ? rows : 1;
    return (rows + batch - 1) / batch * batch;
}

/* Seconds of each device since it was opened; returns those that the caller took to wake up. */
static double take_losses(dpi_session *s, double of[256][5])
{
    dpi_worker_stats workers[256];
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    stats.workers = workers;
    stats.worker_count = 256;
    memset(of, 0, 256 * sizeof of[0]);
    if (dpi_stats(s, &stats, NULL))
        return 0;
    for (size_t w = 0; w < stats.worker_count && w < 256; w++) {
        const dpi_worker_stats *k = &workers[w];
        const uint64_t ns[5] = {k->wait_ns, k->load_ns, k->copy_in_ns, k->compute_ns, k->copy_out_ns};
        for (int i = 0; i < 5; i++)
            of[w][i] = (double)ns[i] * 1e-9;
    }
    return (double)stats.wake_ns * 1e-9;
}

/* Adds what has passed between two looks. Waiting is what is left of the time: a worker only counts its own at its
 * next slice. */
static void add_losses(bench_result *r, double seconds, double before[256][5], double after[256][5])
{
    double known = 0;
    for (size_t w = 0; w < r->devices && w < 256; w++) {
        double own = 0;
        for (int i = 1; i < 5; i++) {
            double part = after[w][i] - before[w][i];
            r->worker_loss_s[w][i] += part;
            r->loss_s[i] += part;
            own += part;
        }
        r->worker_loss_s[w][0] += seconds > own ? seconds - own : 0;
        known += own;
    }
    double left = seconds * (double)r->devices - known;
    r->loss_s[0] += left > 0 ? left : 0;
}

static dpi_status measure(bench *b, bench_result *r, size_t turn, dpi_error *error)
{
    bench_place *p = &b->places[r->place];
    double before[256][5], after[256][5], seconds = 0;
    double wake_s = take_losses(p->session, before);
    uint64_t rows = rows_of(b, r);
    dpi_status status = r->mode == BENCH_SPLIT   ? run_pipelined(b, p, rows, r, &seconds, error)
                        : r->mode == BENCH_SHARD ? run_sharded(b, p, rows, &seconds, error)
                                                 : run_blocking(b, p, rows, r, &seconds, error);
    if (status)
        return status;
    r->loss_s[5] += take_losses(p->session, after) - wake_s;
    add_losses(r, seconds, before, after);
    r->device_s += seconds * (double)r->devices;
    r->seconds[turn] = seconds;
    r->rates[turn] = (double)rows / seconds;
    double at_once = all_of(b)->at_once[turn], ideal = p->ideal[turn];
    r->of_at_once[turn] = at_once > 0 ? r->rates[turn] / at_once : 0;
    r->of_ideal[turn] = ideal > 0 ? r->rates[turn] / ideal : 0;
    r->repeats = turn + 1;
    return DPI_OK;
}

/* 2 GiB, or more where that stays in the page cache with ease. */
static uint64_t most_file_bytes(void)
{
    topology t;
    uint64_t memory = 0;
    if (topology_read(&t, NULL) == DPI_OK) {
        memory = t.memory_bytes;
        topology_free(&t);
    }
    return memory / 8 > 1ull << 31 ? memory / 8 : 1ull << 31;
}

#define WARM_UPS 25 /* the adaptive plan has settled after 20 */

/* How long a typical batch takes. */
static dpi_status warm_up_place(bench *b, bench_place *p, double *typical_s, dpi_error *error)
{
    double total = 0, times[WARM_UPS];
    size_t count = 0, wanted = p->devices > 1 || p == all_of(b) || b->o->scaling ? WARM_UPS : 1;
    dpi_status status = DPI_OK;
    for (; count < wanted && total < 20 && !status; count++) {
        status = run_blocking(b, p, 1, NULL, &times[count], error);
        total += times[count];
    }
    *typical_s = bench_quantile(times, count, 0.5); /* some of them tried other plans */
    return status;
}

/* Warm-up; and how many rows a second's worth is, where --rows does not say. */
static dpi_status warm_up(bench *b, dpi_error *error)
{
    double typical = 0;
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < b->place_count && !status; i++)
        status = warm_up_place(b, &b->places[i], &typical, error);
    double target = b->o->seconds_given ? b->o->seconds : 1;
    double per_batch = typical > 1e-6 ? typical : 1e-6;
    uint64_t asked = b->o->rows, batches = (uint64_t)(target / per_batch) + 1;
    b->rows = asked ? asked : batches * b->batch * all_of(b)->devices;
    size_t row_bytes = 1, bytes;
    for (size_t i = 0; i < b->d.input_count; i++)
        if (shape_row_bytes(b->d.inputs[i].dtype, all_of(b)->inputs[i].shape, b->d.inputs[i].rank, &bytes))
            row_bytes += bytes;
    uint64_t most = most_file_bytes();
    if (!asked && b->rows > most / row_bytes) /* the shard mode's file */
        b->rows = most / row_bytes + 1;
    return status;
}

dpi_status bench_open(bench *b, dpi_error *error)
{
    dpi_status status = open_places(b, error);
    for (size_t i = 0; i < b->place_count && !status; i++)
        status = make_memory(b, &b->places[i], error);
    if (!status)
        status = warm_up(b, error);
    if (!status)
        status = make_files(b, error);
    return status ? status : bare_start(all_of(b)->session, b->batch, &b->alone, error);
}

void bench_close(bench *b)
{
    bare_stop(b->alone);
    b->alone = NULL;
    remove_files(b);
    for (size_t i = 0; i < b->place_count; i++)
        dpi_close(b->places[i].session);
    b->place_count = 0;
}

/* The ideal: each engine by itself, all of them together in about four times `seconds`. */
static dpi_status measure_ideal(bench *b, double seconds, size_t turn, dpi_error *error)
{
    double sums[257] = {0};
    size_t devices = all_of(b)->devices;
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < devices && !status && !cli_signal(); i++) {
        double rate = 0, share = devices > 4 ? 4 * seconds / (double)devices : seconds;
        status = bare_run(b->alone, i, 1, share, &rate, error);
        sums[i + 1] = sums[i] + rate;
    }
    for (size_t i = 0; i < b->place_count; i++)
        b->places[i].ideal[turn] = sums[b->places[i].devices];
    return status;
}

dpi_status bench_turn(bench *b, bench_result *results, size_t count, size_t turn, dpi_error *error)
{
    double seconds = b->o->seconds_given ? b->o->seconds : 1;
    size_t first = b->o->scaling ? 0 : b->place_count - 1;
    dpi_status status = b->o->scaling ? measure_ideal(b, seconds, turn, error) : DPI_OK;
    for (size_t i = first; i < b->place_count && !status && !cli_signal(); i++)
        status = bare_run(b->alone, 0, b->places[i].devices, seconds, &b->places[i].at_once[turn], error);
    for (size_t i = 0; i < count && !status && !cli_signal(); i++)
        status = measure(b, &results[i], turn, error);
    return !status && cli_signal() ? error_set(error, DPI_CANCELLED, "stopped") : status;
}
