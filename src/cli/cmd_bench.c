/* bench: single, split and sharded in turn, beside the engine alone; a table, and JSON for a plot. */
#include "cli/cli.h"

#include "base/clock.h"
#include "base/tensor.h"
#include "base/topology.h"
#include "data/npy.h"
#include "runtime/bare.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "dpinfer bench MODEL [--devices LIST] [--batch 8,16,32] [--rows N] [--json FILE]\n"
    "\n"
    "Measures what the devices do with a model: one device, a batch split over all (several in flight, and one "
    "blocking\n"
    "call after another), a data set sharded over all; and the engine alone, without dpinfer, on all devices at once.\n"
    "\n"
    "    dpinfer bench resnet50.onnx --batch 8,16,32\n"
    "    dpinfer bench net.onnx --devices cpu:0,cpu:1 --mode split,shard --repeats 15 --json results.json\n"
    "\n"
    "    --batch LIST      rows per device, a sweep (default 32)\n"
    "    --rows N          rows of each measurement (default: about a second's worth,\n"
    "                      of which shard mode makes a file in TMPDIR, of at most an eighth of the memory)\n"
    "    --mode LIST       of single, split, split-blocking, shard (default all)\n"
    "    --repeats N       of everything, in turn; the median is shown (default 3)\n"
    "    --json[=FILE]     machine, command, model, backend, engine_alone and rows, as one JSON object\n"
    "\n"
    "Takes all flags of `dpinfer run` on where and how. Efficiency is rows/s over the engine alone on all devices,\n"
    "measured in the same turn. The lines under the table say where the devices' time went.\n";

#define IN_FLIGHT   4
#define MAX_REPEATS 1000

enum mode { SINGLE, SPLIT, SPLIT_BLOCKING, SHARD, MODES };
static const char *const mode_names[MODES] = {"single", "split", "split-blocking", "shard"};

/* One line of the table: a mode at a batch size, all its repeats. */
typedef struct result {
    enum mode mode;
    size_t batch, devices, repeats;
    double rates[MAX_REPEATS], ratios[MAX_REPEATS]; /* rows/s; over the engine alone of the same turn */
    double *latencies_ms;                           /* of all batches; empty for shard */
    size_t latency_count, latency_capacity;
    double loss_s[6], device_s;   /* summed over repeats and devices */
    double worker_loss_s[256][5]; /* of each device: all but the wake-ups, which are the caller's */
    double seconds[MAX_REPEATS];
} result;

static const char *const loss_names[6] = {"waiting", "load", "copy_in", "compute", "copy_out", "wake_up"};

typedef struct bench {
    const cli_options *o;
    size_t batch, devices;
    uint64_t rows; /* of each measurement */
    dpi_session *one, *all;
    dpi_description d;
    bare_engines *alone;
    double alone_rates[MAX_REPEATS];
    dpi_tensor inputs[PORT_MAX], outputs[IN_FLIGHT][PORT_MAX]; /* in the arena of `all`, for batch * devices rows */
    dpi_tensor one_inputs[PORT_MAX], one_outputs[PORT_MAX];
    char *sources[PORT_MAX]; /* NAME=FILE.npy */
    char folder[64];
} bench;

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double quantile(const double *values, size_t count, double q)
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

/* 95 % interval of the median by order statistics (binomial; exact for any distribution, wide for few repeats). */
static void median_interval(const double *values, size_t count, double *low, double *high)
{
    double half = 0.98 * sqrt((double)count); /* 1.96 * sqrt(n / 4) */
    double first = ((double)count - 1) / 2 - half, last = ((double)count - 1) / 2 + half;
    *low = quantile(values, count, first > 0 ? first / ((double)count - 1) : 0);
    *high = quantile(values, count, last < (double)count - 1 ? last / ((double)count - 1) : 1);
}

static void add_latency(result *r, double ms)
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

static dpi_status make_memory(bench *b, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < b->d.input_count && !status; i++) {
        status = fill(b->all, &b->d.inputs[i], b->batch * b->devices, false, &b->inputs[i], error);
        if (!status)
            status = fill(b->one, &b->d.inputs[i], b->batch, false, &b->one_inputs[i], error);
    }
    for (size_t o = 0; o < b->d.output_count && !status; o++) {
        for (int k = 0; k < IN_FLIGHT && !status; k++)
            status = fill(b->all, &b->d.outputs[o], b->batch * b->devices, true, &b->outputs[k][o], error);
        if (!status)
            status = fill(b->one, &b->d.outputs[o], b->batch, true, &b->one_outputs[o], error);
    }
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

/* ---- measuring -------------------------------------------------------------------------------------------------- */

static dpi_status run_blocking(bench *b, dpi_session *s, const dpi_tensor *in, const dpi_tensor *out, size_t batch,
                               result *r, double *seconds, dpi_error *error)
{
    int64_t began = clock_now_ns();
    dpi_status status = DPI_OK;
    for (uint64_t row = 0; row < b->rows && !status; row += batch) {
        int64_t at = clock_now_ns();
        status = dpi_forward(s, in, b->d.input_count, out, b->d.output_count, 0, error);
        if (r)
            add_latency(r, (double)(clock_now_ns() - at) * 1e-6);
    }
    *seconds = (double)(clock_now_ns() - began) * 1e-9;
    return status;
}

static dpi_status run_pipelined(bench *b, result *r, double *seconds, dpi_error *error)
{
    size_t batch = b->batch * b->devices;
    uint64_t count = (b->rows + batch - 1) / batch, sent = 0, done = 0;
    dpi_ticket tickets[IN_FLIGHT];
    int64_t times[IN_FLIGHT], began = clock_now_ns();
    dpi_status status = DPI_OK;
    while (done < count && !status) {
        for (; sent < count && sent - done < IN_FLIGHT && !status; sent++) {
            dpi_batch one = DPI_INIT(dpi_batch);
            one.inputs = b->inputs;
            one.input_count = b->d.input_count;
            one.outputs = b->outputs[sent % IN_FLIGHT];
            one.output_count = b->d.output_count;
            times[sent % IN_FLIGHT] = clock_now_ns();
            status = dpi_submit(b->all, &one, &tickets[sent % IN_FLIGHT], error);
        }
        if (!status)
            status = dpi_wait(b->all, tickets[done % IN_FLIGHT], 0, NULL, 0, error);
        if (r)
            add_latency(r, (double)(clock_now_ns() - times[done % IN_FLIGHT]) * 1e-6);
        done++;
    }
    *seconds = (double)(clock_now_ns() - began) * 1e-9;
    return status;
}

static dpi_status run_sharded(bench *b, double *seconds, dpi_error *error)
{
    dpi_run_options run = DPI_INIT(dpi_run_options);
    dpi_run_result done = DPI_INIT(dpi_run_result);
    run.inputs = (const char *const *)(uintptr_t)b->sources;
    run.input_count = b->d.input_count;
    dpi_status status = dpi_run(b->all, &run, &done, error);
    *seconds = done.seconds;
    return status;
}

/* Rows that a measurement really computes: whole batches. */
static uint64_t rows_of(const bench *b, enum mode mode)
{
    size_t batch = mode == SINGLE ? b->batch : b->batch * b->devices;
    return mode == SHARD ? b->rows : (b->rows + batch - 1) / batch * batch;
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
static void add_losses(result *r, double seconds, double before[256][5], double after[256][5])
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

static dpi_status measure(bench *b, result *r, size_t turn, dpi_error *error)
{
    dpi_session *s = r->mode == SINGLE ? b->one : b->all;
    double before[256][5], after[256][5], seconds = 0;
    double wake_s = take_losses(s, before);
    dpi_status status =
        r->mode == SINGLE  ? run_blocking(b, b->one, b->one_inputs, b->one_outputs, b->batch, r, &seconds, error)
        : r->mode == SPLIT ? run_pipelined(b, r, &seconds, error)
        : r->mode == SHARD
            ? run_sharded(b, &seconds, error)
            : run_blocking(b, b->all, b->inputs, b->outputs[0], b->batch * b->devices, r, &seconds, error);
    if (status)
        return status;
    r->loss_s[5] += take_losses(s, after) - wake_s;
    add_losses(r, seconds, before, after);
    r->device_s += seconds * (double)r->devices;
    r->seconds[turn] = seconds;
    r->rates[turn] = (double)rows_of(b, r->mode) / seconds;
    r->ratios[turn] = b->alone_rates[turn] > 0 ? r->rates[turn] / b->alone_rates[turn] : 0;
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

/* Warm-up; and how many rows a second's worth is, where --rows does not say. */
static dpi_status warm_up(bench *b, dpi_error *error)
{
    double seconds, total = 0, times[WARM_UPS];
    int count = 0;
    uint64_t asked = b->o->rows;
    b->rows = b->batch * b->devices;
    dpi_status status = run_blocking(b, b->one, b->one_inputs, b->one_outputs, b->batch, NULL, &seconds, error);
    for (; count < WARM_UPS && total < 20 && !status; count++) {
        status = run_blocking(b, b->all, b->inputs, b->outputs[0], b->batch * b->devices, NULL, &seconds, error);
        total += times[count] = seconds;
    }
    double target = b->o->seconds_given ? b->o->seconds : 1;
    double typical = count ? quantile(times, (size_t)count, 0.5) : seconds; /* some of them tried other plans */
    double per_batch = typical > 1e-6 ? typical : 1e-6;
    uint64_t batches = (uint64_t)(target / per_batch) + 1;
    b->rows = asked ? asked : batches * b->batch * b->devices;
    size_t row_bytes = 1, bytes;
    for (size_t i = 0; i < b->d.input_count; i++)
        if (shape_row_bytes(b->d.inputs[i].dtype, b->inputs[i].shape, b->d.inputs[i].rank, &bytes))
            row_bytes += bytes;
    uint64_t most = most_file_bytes();
    if (!asked && b->rows > most / row_bytes) /* the shard mode's file */
        b->rows = most / row_bytes + 1;
    return status;
}

static dpi_status open_both(bench *b, dpi_error *error)
{
    dpi_options open = b->o->open;
    open.batch = b->batch;
    dpi_status status = dpi_open(&open, &b->all, error);
    if (status)
        return status;
    b->d = DPI_INIT(dpi_description);
    status = dpi_describe(b->all, &b->d, error);
    b->devices = b->d.worker_count;
    b->batch = b->d.batch;
    open.devices = b->d.workers[0].device;
    open.batch_size_list = NULL;
    open.batch_size_count = 0;
    open.total_batch_size = 0;
    return status ? status : dpi_open(&open, &b->one, error);
}

static dpi_status run_batch_size(bench *b, result *results, size_t count, uint64_t repeats, dpi_error *error)
{
    dpi_status status = open_both(b, error);
    if (!status)
        status = make_memory(b, error);
    if (!status)
        status = warm_up(b, error);
    if (!status)
        status = make_files(b, error);
    if (!status)
        status = bare_start(b->all, b->batch, &b->alone, error);
    for (uint64_t turn = 0; turn < repeats && !status && !cli_signal(); turn++) {
        double seconds = b->o->seconds_given ? b->o->seconds : 1;
        status = bare_run(b->alone, seconds, &b->alone_rates[turn], error);
        for (size_t i = 0; i < count && !status && !cli_signal(); i++) {
            results[i].batch = b->batch;
            results[i].devices = results[i].mode == SINGLE ? 1 : b->devices;
            status = measure(b, &results[i], turn, error);
        }
    }
    if (!status && cli_signal())
        status = error_set(error, DPI_CANCELLED, "stopped");
    bare_stop(b->alone);
    b->alone = NULL;
    remove_files(b);
    return status;
}

static void close_both(bench *b)
{
    dpi_close(b->one);
    dpi_close(b->all);
    b->one = b->all = NULL;
}

/* ---- showing ---------------------------------------------------------------------------------------------------- */

static void print_line(const result *r, double base_rate)
{
    double rate = quantile(r->rates, r->repeats, 0.5);
    double spread = rate > 0 ? (quantile(r->rates, r->repeats, 1) - quantile(r->rates, r->repeats, 0)) / rate : 0;
    char speed_up[24] = "-"; /* without `single` there is nothing to compare with */
    if (base_rate > 0)
        snprintf(speed_up, sizeof speed_up, "%.2f", rate / base_rate);
    printf("%-15s %7zu %6zu %9.3f %11.1f %8s %10.3f", mode_names[r->mode], r->devices, r->batch,
           quantile(r->seconds, r->repeats, 0.5), rate, speed_up, quantile(r->ratios, r->repeats, 0.5));
    if (r->latency_count)
        printf(" %8.2f %8.2f %8.2f", quantile(r->latencies_ms, r->latency_count, 0.5),
               quantile(r->latencies_ms, r->latency_count, 0.9), quantile(r->latencies_ms, r->latency_count, 0.99));
    else
        printf(" %8s %8s %8s", "-", "-", "-");
    printf(" %5.1f%%\n", 100 * spread);
}

static void print_loss(const result *r)
{
    printf("%-15s %7zu %6zu  ", mode_names[r->mode], r->devices, r->batch);
    for (int i = 0; i < 6; i++)
        printf(" %s %.1f%%", loss_names[i], r->device_s > 0 ? 100 * r->loss_s[i] / r->device_s : 0);
    printf("\n");
}

static json_t *result_json(const result *r, double base_rate)
{
    double rate = quantile(r->rates, r->repeats, 0.5), low, high;
    median_interval(r->ratios, r->repeats, &low, &high);
    json_t *loss = json_object();
    for (int i = 0; i < 6; i++)
        json_object_set_new(loss, loss_names[i], json_real(r->device_s > 0 ? r->loss_s[i] / r->device_s : 0));
    json_t *workers = json_array();
    for (size_t w = 0; w < r->devices && w < 256; w++) {
        json_t *one = json_object();
        for (int i = 0; i < 5; i++)
            json_object_set_new(one, loss_names[i], json_real(r->worker_loss_s[w][i]));
        json_array_append_new(workers, one);
    }
    return json_pack(
        "{s:s, s:I, s:I, s:f, s:f, s:o, s:f, s:[ff], s:f, s:f, s:f, s:I, s:o, s:o}", "mode", mode_names[r->mode],
        "devices", (json_int_t)r->devices, "batch_per_device", (json_int_t)r->batch, "seconds",
        quantile(r->seconds, r->repeats, 0.5), "rows_per_s", rate, "speedup",
        base_rate > 0 ? json_real(rate / base_rate) : json_null(), "efficiency", quantile(r->ratios, r->repeats, 0.5),
        "efficiency_interval", low, high, "p50_ms", quantile(r->latencies_ms, r->latency_count, 0.5), "p90_ms",
        quantile(r->latencies_ms, r->latency_count, 0.9), "p99_ms", quantile(r->latencies_ms, r->latency_count, 0.99),
        "repeats", (json_int_t)r->repeats, "loss", loss, "device_seconds", workers);
}

/* The modes asked for, in order. */
static dpi_status choose_modes(const cli_options *o, enum mode modes[MODES], size_t *count, dpi_error *error)
{
    *count = 0;
    for (int m = 0; m < MODES; m++) {
        bool wanted = !o->modes;
        for (const char *at = o->modes; at && *at; at += strcspn(at, ","), at += *at == ',')
            wanted |=
                strcspn(at, ",") == strlen(mode_names[m]) && strncmp(at, mode_names[m], strlen(mode_names[m])) == 0;
        if (wanted)
            modes[(*count)++] = (enum mode)m;
    }
    return *count ? DPI_OK
                  : error_set(error, DPI_E_ARGUMENT,
                              "--mode takes a list of single, split, split-blocking and shard, not \"%s\"", o->modes);
}

typedef struct report {
    result *results;
    size_t count;
    double base_rate; /* single at the first batch size */
    json_t *alone;
} report;

static void note_alone(report *all, const bench *b, uint64_t repeats, bool text)
{
    double rate = quantile(b->alone_rates, repeats, 0.5);
    json_array_append_new(all->alone, json_pack("{s:I, s:I, s:f}", "batch_per_device", (json_int_t)b->batch, "devices",
                                                (json_int_t)b->devices, "rows_per_s", rate));
    if (text)
        printf("%-15s %7zu %6zu %9s %11.1f\n", "engine alone", b->devices, b->batch, "-", rate);
}

static dpi_status show_json(const cli_options *o, report *all, json_t *backend, dpi_error *error)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < all->count; i++)
        json_array_append_new(rows, result_json(&all->results[i], all->base_rate));
    json_t *json = json_pack("{s:o, s:O, s:s, s:o, s:O, s:o}", "machine", cli_machine_json(), "command", o->command,
                             "model", o->model, "backend", backend, "engine_alone", all->alone, "rows", rows);
    if (!o->json_path) {
        cli_print_json(json);
        return DPI_OK;
    }
    bool written = json_dump_file(json, o->json_path, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) == 0;
    json_decref(json);
    return written ? DPI_OK : error_set(error, DPI_E_IO, "cannot write %s", o->json_path);
}

static json_t *describe_backend(const dpi_description *d)
{
    json_t *devices = json_array();
    for (size_t w = 0; w < d->worker_count; w++)
        json_array_append_new(devices, json_string(d->workers[w].device));
    return json_pack("{s:s, s:s, s:o}", "name", d->workers[0].backend, "version", d->workers[0].version, "devices",
                     devices);
}

static dpi_status run_bench(const cli_options *o, dpi_error *error)
{
    enum mode modes[MODES];
    size_t mode_count, batches = o->batch_count ? o->batch_count : 1;
    dpi_status status = choose_modes(o, modes, &mode_count, error);
    uint64_t repeats = o->repeats ? o->repeats : 3;
    bool text = !o->json || o->json_path;
    report all = {.results = calloc(batches * MODES, sizeof *all.results), .alone = json_array()};
    json_t *backend = NULL;
    if (!all.results)
        status = error_set(error, DPI_E_SYSTEM, "out of memory");
    if (!status && text)
        printf("%-15s %7s %6s %9s %11s %8s %10s %8s %8s %8s %6s\n", "mode", "devices", "batch", "seconds", "rows/s",
               "speed-up", "efficiency", "p50 ms", "p90 ms", "p99 ms", "spread");
    for (size_t i = 0; i < batches && !status; i++) {
        bench *b = calloc(1, sizeof *b);
        if (!b) {
            status = error_set(error, DPI_E_SYSTEM, "out of memory");
            break;
        }
        b->o = o;
        b->batch = o->batch_count ? o->batches[i] : 32;
        result *first = &all.results[all.count];
        for (size_t m = 0; m < mode_count; m++)
            first[m].mode = modes[m];
        status = run_batch_size(b, first, mode_count, repeats, error);
        if (!status) {
            if (all.base_rate <= 0 && first[0].mode == SINGLE)
                all.base_rate = quantile(first[0].rates, first[0].repeats, 0.5);
            if (!backend)
                backend = describe_backend(&b->d);
            note_alone(&all, b, repeats, text);
            for (size_t m = 0; m < mode_count && text; m++)
                print_line(&first[m], all.base_rate);
            fflush(stdout);
            all.count += mode_count;
        }
        close_both(b);
        free(b);
    }
    if (!status && text) {
        printf("\nwhere the devices' time went\n");
        for (size_t i = 0; i < all.count; i++)
            print_loss(&all.results[i]);
    }
    if (!status && o->json)
        status = show_json(o, &all, backend ? json_incref(backend) : json_object(), error);
    json_decref(backend);
    json_decref(all.alone);
    for (size_t i = 0; all.results && i < batches * MODES; i++)
        free(all.results[i].latencies_ms);
    free(all.results);
    return status;
}

int cmd_bench(int argc, char **argv)
{
    cli_options o;
    dpi_error error;
    dpi_status status = cli_parse(argc, argv, CLI_MODEL | CLI_BENCH, help, &o, &error);
    if (!status) {
        cli_catch_signals();
        status = run_bench(&o, &error);
    }
    int code = status ? cli_fail(&error) : 0;
    cli_free(&o);
    return code;
}
