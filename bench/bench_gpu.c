/*
 * One GPU: the engine alone against the engine behind dpinfer, in turn, in one run.
 *
 * usage: bench_gpu --model M.onnx --cache FOLDER [--batch 256] [--precision fp16] [--rows FILE.npy] [--seconds 2]
 *                  [--turns 5] [--tail SECONDS] [--workers 1,2,3] [--option KEY=VALUE]...
 *
 * alone      enqueueV3 in a loop, rows already on the device: what the engine gives (same plan, from the cache)
 * copy       the host-to-device copy of one batch from pinned memory, alone
 * split      dpi_submit with 4 batches in flight, rows in dpi_alloc memory
 * blocking   dpi_forward, one call after another
 * plain      as split, rows in ordinary memory (copied by the caller); memcpy: the host's own rate for the same bytes
 * shard      dpi_run from FILE.npy to a .npy; "no file": its results dropped
 * Prints one line per figure: name, median, least, most, and the median of the ratio to `alone` of the same turn.
 */
#include "backend/cuda.h"
#include "backend/library.h"
#include "backend/tensorrt_shim.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/tensor.h"
#include "runtime/cache.h"

#include <dlfcn.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FLIGHT    4 /* batches in flight */
#define TURNS_MAX 64
#define KINDS_MAX 16

typedef struct settings {
    const char *model, *cache, *rows, *precision;
    size_t batch;
    double seconds, tail;
    int turns;
    int workers[4];
    size_t worker_kinds;
    dpi_key_value options[16];
    size_t option_count;
} settings;

static _Noreturn void die(const char *what, const dpi_error *error)
{
    fprintf(stderr, "%s: %s\n", what, error ? error->message : "failed");
    exit(1);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double quantile(const double *values, size_t count, double q)
{
    double *sorted = malloc(count * sizeof *sorted);
    memcpy(sorted, values, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_value);
    double result = sorted[(size_t)(q * (double)(count - 1) + 0.5)];
    free(sorted);
    return result;
}

/* ---- the engine alone ------------------------------------------------------------------------------------------- */

typedef struct alone {
    const cuda_api *cuda;
    const trt_shim *shim;
    trt_engine *engine;
    CUstream stream;
    CUdeviceptr input;
    void *pinned;
    size_t input_bytes, batch;
} alone;

static void cu(const alone *a, CUresult result, const char *what)
{
    dpi_error error;
    if (cuda_check(a->cuda, result, "alone", what, &error))
        die(what, &error);
}

/* The newest engine of the cache folder: the session that was opened before has put it there. */
static void *read_plan(const char *folder, size_t *bytes)
{
    dpi_error error;
    cache *c;
    cache_entry *entries;
    size_t count;
    uint64_t size;
    logger quiet = {.level = DPI_LOG_ERROR};
    if (cache_open(folder, 0, &quiet, &c, &error) || cache_list(c, &entries, &count, &error))
        die("the cache", &error);
    if (!count)
        die("the cache is empty", NULL);
    hash128 key = {0};
    char high[17] = "";
    memcpy(high, entries[0].key, 16); /* as hash_to_hex writes it */
    key.high = strtoull(high, NULL, 16);
    key.low = strtoull(entries[0].key + 16, NULL, 16);
    int fd = cache_get(c, key, &size);
    void *plan = malloc(size);
    if (fd < 0 || !plan || file_read_at(fd, plan, size, (uint64_t)lseek(fd, 0, SEEK_CUR), "the plan", &error))
        die("the plan", &error);
    close(fd);
    free(entries);
    cache_close(c);
    *bytes = size;
    return plan;
}

static void load_shim(alone *a)
{
    char program[4096], *slash, version[8] = "";
    snprintf(program, sizeof program, "%s", file_of_program());
    const char *library = getenv("DPINFER_TENSORRT_LIBRARY"), *so = library ? strstr(library, ".so.") : NULL;
    if (!so)
        die("name libnvinfer.so.N in DPINFER_TENSORRT_LIBRARY", NULL);
    snprintf(version, sizeof version, "%d", atoi(so + 4));
    slash = strrchr(program, '/');
    snprintf(slash, sizeof program - (size_t)(slash - program), "/dpinfer-tensorrt%s.so", version);
    void *handle = dlopen(program, RTLD_NOW), *symbol = handle ? dlsym(handle, TRT_SHIM_SYMBOL) : NULL;
    trt_shim_fn entry;
    memcpy(&entry, &symbol, sizeof entry);
    void *nvinfer = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
    if (!symbol || !nvinfer)
        die(dlerror(), NULL);
    a->shim = entry();
    trt_entry_points points = {.create_builder = dlsym(nvinfer, "createInferBuilder_INTERNAL"),
                               .create_runtime = dlsym(nvinfer, "createInferRuntime_INTERNAL")};
    trt_library *trt = a->shim->library_new(&points, NULL, NULL);
    size_t bytes;
    void *plan = read_plan(getenv("BENCH_GPU_CACHE"), &bytes);
    a->engine = a->shim->engine_load(trt, plan, bytes);
    free(plan);
    if (!a->engine)
        die("the engine does not load", NULL);
}

static void alone_open(alone *a, const settings *s)
{
    dpi_error error;
    CUdevice device;
    CUcontext context;
    a->batch = s->batch;
    if (cuda_load(&a->cuda, &error))
        die("CUDA", &error);
    cu(a, a->cuda->cuDeviceGet(&device, 0), "device");
    cu(a, a->cuda->cuDevicePrimaryCtxRetain(&context, device), "context");
    cu(a, a->cuda->cuCtxSetCurrent(context), "context");
    cu(a, a->cuda->cuStreamCreate(&a->stream, CU_STREAM_NON_BLOCKING_), "stream");
    load_shim(a);
    trt_port ports[16];
    size_t count = a->shim->engine_ports(a->engine, ports, 16);
    for (size_t pass = 0; pass < 2; pass++) /* inputs first: outputs' shapes follow from theirs */
        for (size_t i = 0; i < count; i++) {
            size_t bytes;
            CUdeviceptr memory;
            if (ports[i].is_input != (pass == 0))
                continue;
            if (ports[i].is_input) {
                ports[i].shape[0] = (int64_t)s->batch;
                if (!a->shim->set_shape(a->engine, ports[i].name, ports[i].shape, ports[i].rank))
                    die("the engine does not take this batch", NULL);
            } else if (!a->shim->get_shape(a->engine, ports[i].name, ports[i].shape, &ports[i].rank))
                die("shapes", NULL);
            shape_bytes(ports[i].dtype, ports[i].shape, ports[i].rank, &bytes);
            cu(a, a->cuda->cuMemAlloc(&memory, bytes), "memory");
            a->shim->set_address(a->engine, ports[i].name, (void *)(uintptr_t)memory);
            if (!ports[i].is_input)
                continue;
            a->input = memory;
            a->input_bytes = bytes;
            cu(a, a->cuda->cuMemAllocHost(&a->pinned, bytes), "pinned memory");
            size_t elements = bytes / dpi_dtype_size(ports[i].dtype) / s->batch;
            tensor_fill_random(ports[i].dtype, a->pinned, elements, 0, s->batch, 7, false);
            cu(a, a->cuda->cuMemcpyHtoDAsync(memory, a->pinned, bytes, a->stream), "copy");
        }
    cu(a, a->cuda->cuStreamSynchronize(a->stream), "copy");
}

/* img/s */
static double alone_turn(alone *a, double seconds)
{
    int64_t began = clock_now_ns(), now = began;
    size_t calls = 0;
    while ((double)(now - began) < seconds * 1e9) {
        for (int i = 0; i < 16; i++, calls++)
            a->shim->enqueue(a->engine, a->stream);
        cu(a, a->cuda->cuStreamSynchronize(a->stream), "compute");
        now = clock_now_ns();
    }
    return (double)(calls * a->batch) / ((double)(now - began) * 1e-9);
}

/* img/s that the copies alone would allow */
static double copy_turn(alone *a, double seconds)
{
    int64_t began = clock_now_ns(), now = began;
    size_t calls = 0;
    while ((double)(now - began) < seconds * 1e9 / 4) {
        for (int i = 0; i < 16; i++, calls++)
            cu(a, a->cuda->cuMemcpyHtoDAsync(a->input, a->pinned, a->input_bytes, a->stream), "copy");
        cu(a, a->cuda->cuStreamSynchronize(a->stream), "copy");
        now = clock_now_ns();
    }
    return (double)(calls * a->batch) / ((double)(now - began) * 1e-9);
}

/* ---- dpinfer ---------------------------------------------------------------------------------------------------- */

typedef struct rig {
    dpi_session *session;
    dpi_tensor input[FLIGHT], output[FLIGHT], plain[FLIGHT];
    size_t batch, in_bytes;
} rig;

static void rig_open(rig *r, const settings *s, int workers)
{
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error;
    char devices[32];
    static const char *const names[] = {"model", "fp32", "tf32", "fp16", "bf16"};
    snprintf(devices, sizeof devices, "cuda:0*%d", workers);
    o.model_path = s->model;
    o.backend = "tensorrt";
    o.devices = devices;
    o.batch = s->batch;
    o.cache_dir = s->cache;
    o.backend_options = s->options;
    o.backend_option_count = s->option_count;
    for (int i = 0; i < 5; i++)
        if (strcmp(names[i], s->precision) == 0)
            o.precision = (dpi_precision)i;
    int64_t began = clock_now_ns();
    if (dpi_open(&o, &r->session, &error))
        die("open", &error);
    dpi_description d = DPI_INIT(dpi_description);
    dpi_describe(r->session, &d, &error);
    printf("open       %d worker(s): %.2f s in all, worker %.2f s, %s\n", workers,
           (double)(clock_now_ns() - began) * 1e-9, d.workers[0].open_seconds,
           d.workers[0].from_cache ? "from the cache" : "compiled");
    r->batch = s->batch * (size_t)workers;
    size_t out_bytes;
    for (int i = 0; i < FLIGHT; i++) {
        r->input[i] = d.inputs[0];
        r->output[i] = d.outputs[0];
        r->input[i].shape[0] = r->output[i].shape[0] = (int64_t)r->batch;
        shape_bytes(r->input[i].dtype, r->input[i].shape, r->input[i].rank, &r->in_bytes);
        shape_bytes(r->output[i].dtype, r->output[i].shape, r->output[i].rank, &out_bytes);
        r->input[i].data = dpi_alloc(r->session, r->in_bytes, DPI_INPUT, &error);
        r->output[i].data = dpi_alloc(r->session, out_bytes, DPI_OUTPUT, &error);
        r->plain[i] = r->input[i];
        r->plain[i].data = malloc(r->in_bytes);
        if (!r->input[i].data || !r->output[i].data || !r->plain[i].data)
            die("memory", &error);
        tensor_fill_random(r->input[i].dtype, r->input[i].data,
                           r->in_bytes / r->batch / dpi_dtype_size(r->input[i].dtype), 0, r->batch, 7, false);
        memcpy(r->plain[i].data, r->input[i].data, r->in_bytes);
    }
}

/* img/s with FLIGHT batches in flight */
static double split_turn(rig *r, const dpi_tensor *inputs, double seconds)
{
    dpi_ticket tickets[FLIGHT];
    dpi_error error;
    int64_t began = clock_now_ns(), now = began;
    size_t sent = 0, done = 0;
    for (bool more = true; more || done < sent;) {
        if (more && sent - done < FLIGHT) {
            dpi_batch b = DPI_INIT(dpi_batch);
            b.inputs = &inputs[sent % FLIGHT];
            b.outputs = &r->output[sent % FLIGHT];
            b.input_count = b.output_count = 1;
            if (dpi_submit(r->session, &b, &tickets[sent % FLIGHT], &error))
                die("submit", &error);
            sent++;
            continue;
        }
        if (dpi_wait(r->session, tickets[done % FLIGHT], 0, NULL, 0, &error))
            die("wait", &error);
        done++;
        now = clock_now_ns();
        more = (double)(now - began) < seconds * 1e9;
    }
    return (double)(done * r->batch) / ((double)(now - began) * 1e-9);
}

static double blocking_turn(rig *r, double seconds, double *latencies, size_t *count, size_t capacity)
{
    dpi_error error;
    int64_t began = clock_now_ns(), now = began, before;
    size_t calls = 0;
    for (; (double)(now - began) < seconds * 1e9; calls++) {
        before = now;
        if (dpi_forward(r->session, &r->input[calls % FLIGHT], 1, &r->output[calls % FLIGHT], 1, 0, &error))
            die("forward", &error);
        now = clock_now_ns();
        if (latencies && *count < capacity)
            latencies[(*count)++] = (double)(now - before) * 1e-6;
    }
    return (double)(calls * r->batch) / ((double)(now - began) * 1e-9);
}

static double shard_turn(rig *r, const settings *s, bool keep)
{
    dpi_run_options o = DPI_INIT(dpi_run_options);
    dpi_run_result result = DPI_INIT(dpi_run_result);
    dpi_error error;
    char out[4096];
    snprintf(out, sizeof out, "%s.results.npy", s->rows);
    const char *output = keep ? out : "none";
    o.inputs = &s->rows;
    o.outputs = &output;
    o.input_count = o.output_count = 1;
    if (dpi_run(r->session, &o, &result, &error))
        die("run", &error);
    unlink(out);
    return (double)result.rows / result.seconds;
}

/* The host's own rate for the copies that plain memory costs, as img/s. */
static double memcpy_turn(rig *r, double seconds)
{
    int64_t began = clock_now_ns(), now = began;
    size_t calls = 0;
    for (; (double)(now - began) < seconds * 1e9 / 4; calls++, now = clock_now_ns())
        memcpy(r->input[calls % FLIGHT].data, r->plain[calls % FLIGHT].data, r->in_bytes);
    return (double)(calls * r->batch) / ((double)(now - began) * 1e-9);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

typedef struct figure {
    char name[24];
    double values[TURNS_MAX], ratios[TURNS_MAX];
    size_t count;
} figure;

static figure figures[KINDS_MAX];
static size_t figure_count;

static void note(const char *name, double value, double reference)
{
    size_t i = 0;
    while (i < figure_count && strcmp(figures[i].name, name) != 0)
        i++;
    if (i == figure_count && figure_count < KINDS_MAX)
        snprintf(figures[figure_count++].name, sizeof figures[0].name, "%s", name);
    if (figures[i].count == TURNS_MAX)
        return;
    figures[i].values[figures[i].count] = value;
    figures[i].ratios[figures[i].count++] = value / reference;
}

static void show_stats(const rig *r, const char *name)
{
    dpi_worker_stats workers[8];
    dpi_stats_data d = DPI_INIT(dpi_stats_data);
    dpi_error error;
    d.workers = workers;
    d.worker_count = 8;
    if (dpi_stats(r->session, &d, &error))
        return;
    for (size_t w = 0; w < d.worker_count && w < 8; w++) {
        double n = (double)(workers[w].slices ? workers[w].slices : 1) * 1e6;
        printf("%-10s worker %zu, ms a slice: wait %.3f load %.3f copy in %.3f compute %.3f copy out %.3f\n", name, w,
               (double)workers[w].wait_ns / n, (double)workers[w].load_ns / n, (double)workers[w].copy_in_ns / n,
               (double)workers[w].compute_ns / n, (double)workers[w].copy_out_ns / n);
    }
}

static void measure(alone *a, rig *rigs, const settings *s)
{
    for (int t = -1; t < s->turns; t++) { /* the first turn warms up */
        double seconds = t < 0 ? 0.5 : s->seconds, reference = alone_turn(a, seconds);
        double values[16];
        const char *names[16];
        size_t count = 0;
#define ADD(name, value) (names[count] = (name), values[count++] = (value))
        ADD("alone", reference);
        ADD("copy", copy_turn(a, seconds));
        for (size_t k = 0; k < s->worker_kinds; k++) {
            static char labels[4][24];
            snprintf(labels[k], sizeof labels[k], k ? "split, %d workers" : "split", s->workers[k]);
            ADD(labels[k], split_turn(&rigs[k], rigs[k].input, seconds));
        }
        ADD("blocking", blocking_turn(&rigs[0], seconds, NULL, NULL, 0));
        ADD("plain", split_turn(&rigs[0], rigs[0].plain, seconds));
        ADD("memcpy", memcpy_turn(&rigs[0], seconds));
        if (s->rows) {
            ADD("shard", shard_turn(&rigs[0], s, true));
            ADD("shard, no file", shard_turn(&rigs[0], s, false));
        }
        double again = alone_turn(a, seconds);
        for (size_t i = 0; i < count && t >= 0; i++)
            note(names[i], values[i], (reference + again) / 2);
    }
    for (size_t i = 0; i < figure_count; i++) {
        const figure *f = &figures[i];
        printf("%-18s %9.0f img/s  (%.0f to %.0f)  %.3f of alone (%.3f to %.3f)\n", f->name,
               quantile(f->values, f->count, 0.5), quantile(f->values, f->count, 0), quantile(f->values, f->count, 1),
               quantile(f->ratios, f->count, 0.5), quantile(f->ratios, f->count, 0), quantile(f->ratios, f->count, 1));
    }
    double compute = 1 / quantile(figures[0].values, figures[0].count, 0.5);
    double copy = 1 / quantile(figures[1].values, figures[1].count, 0.5);
    printf("compute %.3f ms + copy in %.3f ms = %.3f ms a batch; \n", compute * (double)s->batch * 1e3,
           copy * (double)s->batch * 1e3, (compute + copy) * (double)s->batch * 1e3);
}

static void tail(rig *r, const settings *s)
{
    size_t capacity = 1 << 20, count = 0;
    double *latencies = malloc(capacity * sizeof *latencies);
    blocking_turn(r, s->tail, latencies, &count, capacity);
    double p50 = quantile(latencies, count, 0.5), p99 = quantile(latencies, count, 0.99);
    printf("tail       %zu blocking batches of %zu in %.0f s: p50 %.3f ms, p99 %.3f ms, ratio %.3f, most %.3f ms\n",
           count, r->batch, s->tail, p50, p99, p99 / p50, quantile(latencies, count, 1));
    free(latencies);
}

static void read_arguments(int argc, char **argv, settings *s)
{
    static const struct option long_options[] = {{"model", 1, NULL, 'm'},
                                                 {"cache", 1, NULL, 'c'},
                                                 {"batch", 1, NULL, 'b'},
                                                 {"precision", 1, NULL, 'p'},
                                                 {"rows", 1, NULL, 'r'},
                                                 {"seconds", 1, NULL, 's'},
                                                 {"turns", 1, NULL, 't'},
                                                 {"tail", 1, NULL, 'l'},
                                                 {"workers", 1, NULL, 'w'},
                                                 {"option", 1, NULL, 'o'},
                                                 {0}};
    for (int c; (c = getopt_long(argc, argv, "", long_options, NULL)) != -1;) {
        char *equals;
        switch (c) {
        case 'm': s->model = optarg; break;
        case 'c': s->cache = optarg; break;
        case 'b': s->batch = strtoul(optarg, NULL, 10); break;
        case 'p': s->precision = optarg; break;
        case 'r': s->rows = optarg; break;
        case 's': s->seconds = atof(optarg); break;
        case 't': s->turns = atoi(optarg) < TURNS_MAX ? atoi(optarg) : TURNS_MAX; break;
        case 'l': s->tail = atof(optarg); break;
        case 'w':
            s->worker_kinds = 0;
            for (char *at = strtok(optarg, ","); at && s->worker_kinds < 4; at = strtok(NULL, ","))
                s->workers[s->worker_kinds++] = atoi(at);
            break;
        case 'o':
            equals = strchr(optarg, '=');
            if (!equals || s->option_count == 16)
                exit(2);
            *equals = 0;
            s->options[s->option_count++] = (dpi_key_value){optarg, equals + 1};
            break;
        default: exit(2);
        }
    }
    if (!s->model || !s->cache || !s->batch || !s->worker_kinds) {
        fprintf(stderr, "usage: bench_gpu --model M.onnx --cache FOLDER [--batch 256] ...; see the file's head\n");
        exit(2);
    }
}

int main(int argc, char **argv)
{
    settings s = {.batch = 256, .precision = "fp16", .seconds = 2, .turns = 5, .workers = {1}, .worker_kinds = 1};
    rig rigs[4] = {0};
    alone a = {0};
    read_arguments(argc, argv, &s);
    setenv("BENCH_GPU_CACHE", s.cache, 1);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t k = 0; k < s.worker_kinds; k++)
        rig_open(&rigs[k], &s, s.workers[k]);
    alone_open(&a, &s);
    measure(&a, rigs, &s);
    for (size_t k = 0; k < s.worker_kinds; k++)
        show_stats(&rigs[k], "stats");
    if (s.tail > 0)
        tail(&rigs[0], &s);
    for (size_t k = 0; k < s.worker_kinds; k++)
        dpi_close(rigs[k].session);
    fflush(NULL);
    _exit(0);
}
