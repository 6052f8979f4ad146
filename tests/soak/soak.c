/*
 * The soak: for half an hour one session computes batches and runs while its workers are killed now and then, and short
 * sessions come and go beside it. Every row is checked; memory, descriptors and shared memory must stay flat.
 *
 *     soak [MINUTES]      30 by default
 *
 * Prints one line of figures a minute, each the median of that minute's quiet moments (no batch in flight, all workers
 * there), and in the end the third and the last tenth beside each other. Exit code 1 when something has grown.
 */
#include "api/sim_kit.h"

#include "base/clock.h"

#include <dirent.h>
#include <malloc.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEXT                                                                                                           \
    "input x float32 N 64\noutput y float32 N 16\noutput z int32 N\nfixed_us 1500\nrow_us 20\njitter_us 500\ndepth "   \
    "2\n"
#define DEVICES      4
#define KILL_MS      2000
#define MOST         4096 /* samples */
#define MORE_KB      1024 /* growth that is none: pages of the allocator */
#define MORE_HEAP_KB 64   /* last words of workers and the like */
#define FIRST_TENTH  3    /* the one that is compared with the last: what grows once has grown by then */
#define READY_NS     30000000000

enum { ANON_KB, HEAP_KB, SHARED_KB, MEMFD_KB, DESCRIPTORS, MAPPINGS, THREADS, CHILDREN, FIGURES };
static const char *const names[FIGURES] = {"anonymous KiB", "heap in use KiB", "shared KiB resident",
                                           "memfds KiB",    "descriptors",     "mappings of memfds",
                                           "threads",       "workers"};

typedef struct sample {
    long figures[FIGURES];
} sample;

typedef struct soak {
    kit *k;
    atomic_int alive; /* workers of the long session */
    atomic_bool over;
    unsigned long batches, rows, runs, sessions;
    atomic_ulong kills;
    sample samples[MOST];
    size_t count;
} soak;

static void count_workers(void *context, const char *json)
{
    soak *s = context;
    s->alive += strstr(json, "\"event\":\"started\"") ? 1 : strstr(json, "\"event\":\"died\"") ? -1 : 0;
}

static void quiet(void *context, dpi_log_level level, const char *line)
{
    (void)context;
    (void)level;
    (void)line;
}

/* ---- figures ---------------------------------------------------------------------------------------------------- */

static long status_kb(const char *key)
{
    char line[256];
    long kb = -1;
    FILE *f = fopen("/proc/self/status", "re");
    while (f && kb < 0 && fgets(line, sizeof line, f))
        if (strncmp(line, key, strlen(key)) == 0)
            kb = strtol(line + strlen(key), NULL, 10);
    if (f)
        fclose(f);
    return kb;
}

/* What our memfds hold, whether mapped or not. */
static long memfds_kb(void)
{
    long bytes = 0;
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[300], target[256] = "";
        struct stat info;
        snprintf(path, sizeof path, "/proc/self/fd/%s", e->d_name);
        if (readlink(path, target, sizeof target - 1) > 0 && strstr(target, "memfd:") && stat(path, &info) == 0)
            bytes += (long)info.st_blocks * 512;
    }
    if (d)
        closedir(d);
    return bytes / 1024;
}

/* A moment when every worker is there: those that have just been killed come back. */
static void take_sample(soak *s)
{
    int64_t until = clock_now_ns() + READY_NS;
    while (s->alive != DEVICES && clock_now_ns() < until)
        clock_sleep_until_ns(clock_now_ns() + 2000000);
    kit_traces traces = kit_look();
    if (s->count == MOST || s->alive != DEVICES || traces.children != DEVICES)
        return; /* one has just been killed again */
    s->samples[s->count++] = (sample){{status_kb("RssAnon:"), (long)mallinfo2().uordblks / 1024, status_kb("RssShmem:"),
                                       memfds_kb(), traces.fds, traces.mappings, traces.threads, traces.children}};
}

static int by_value(const void *a, const void *b)
{
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

static long median(const soak *s, size_t begin, size_t end, int figure)
{
    long values[MOST];
    for (size_t i = begin; i < end; i++)
        values[i - begin] = s->samples[i].figures[figure];
    qsort(values, end - begin, sizeof values[0], by_value);
    return end > begin ? values[(end - begin) / 2] : -1;
}

/* ---- work ------------------------------------------------------------------------------------------------------- */

static void forward_some(soak *s, uint64_t seed)
{
    size_t rows = 1 + (size_t)(seed * 2654435761u % 200);
    kit_forward(s->k, rows, seed);
    kit_batch *b = kit_batch_new(s->k, rows, seed + 1, 3);
    dpi_error error = {0};
    dpi_tensor views[KIT_PORTS];
    dpi_ticket ticket;
    kit_assert_ok(kit_submit(s->k, b, true, 0, &ticket, &error), error);
    kit_assert_ok(dpi_wait(s->k->s, ticket, 0, views, b->out_count, &error), error);
    kit_batch_check(b, views);
    kit_assert_ok(dpi_release(s->k->s, ticket, &error), error);
    size_t bytes = rows * 64 * sizeof(float);
    void *shared = dpi_alloc(s->k->s, bytes, DPI_INPUT, &error), *own = b->in[0].data;
    assert_non_null(shared);
    memcpy(shared, own, bytes);
    b->in[0].data = shared;
    kit_assert_ok(dpi_forward(s->k->s, b->in, 1, b->out, b->out_count, 0, &error), error);
    kit_batch_check(b, NULL);
    b->in[0].data = own;
    kit_assert_ok(dpi_free(s->k->s, shared, &error), error);
    kit_batch_free(b);
    s->batches += 3;
    s->rows += 3 * rows;
}

static void run_some(soak *s, const char *folder, uint64_t seed)
{
    char source[80], sink[300];
    snprintf(source, sizeof source, "random:64:float32:800:%llu", (unsigned long long)seed);
    snprintf(sink, sizeof sink, "y=%s/y.npy", folder);
    const char *in[] = {source}, *out[] = {sink, "z=none"};
    dpi_run_options o = DPI_INIT(dpi_run_options);
    o.inputs = in;
    o.input_count = 1;
    o.outputs = out;
    o.output_count = 2;
    o.journal_interval_ms = 20;
    dpi_error error = {0};
    kit_assert_ok(dpi_run(s->k->s, &o, NULL, &error), error);
    unlink(sink + 2);
    s->runs++;
    s->rows += 800;
}

/* Without workers of its own left behind; the killer may hit these as well. */
static void short_session(soak *s, uint64_t seed)
{
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error = {0};
    o.log = quiet;
    kit *k = kit_try_open(TEXT, "sim:8*2", &o, &error);
    if (!k)
        return; /* killed twice while it opened */
    kit_forward(k, 50, seed);
    kit_close(k);
    s->sessions++;
}

static void *kill_now_and_then(void *argument)
{
    soak *s = argument;
    for (uint64_t i = 1; !s->over; i++) {
        pid_t pids[64];
        clock_sleep_until_ns(clock_now_ns() + KILL_MS * 1000000ll);
        size_t count = kit_children(pids, 64);
        if (count && kill(pids[i * 7 % count], SIGKILL) == 0)
            s->kills++;
    }
    return NULL;
}

/* ---- report ----------------------------------------------------------------------------------------------------- */

static void print_minute(const soak *s, size_t begin, double minutes)
{
    printf("%5.1f min %6zu samples", minutes, s->count - begin);
    for (int f = 0; f < FIGURES; f++)
        printf("  %s %ld", names[f], median(s, begin, s->count, f));
    printf("\n");
    fflush(stdout);
}

static int judge(const soak *s)
{
    size_t tenth = s->count / 10, begin = (FIRST_TENTH - 1) * tenth;
    int bad = tenth == 0;
    printf("%lu batches, %lu runs, %lu rows checked, %lu short sessions, %lu kills, %zu samples\n", s->batches, s->runs,
           s->rows, s->sessions, (unsigned long)s->kills, s->count);
    for (int f = 0; f < FIGURES && tenth; f++) {
        long then = median(s, begin, begin + tenth, f), now = median(s, s->count - tenth, s->count, f);
        long more = f == ANON_KB ? MORE_KB : f == HEAP_KB ? MORE_HEAP_KB : 0;
        bool grown = now > then + more;
        printf("  %-20s third tenth %8ld  last tenth %8ld%s\n", names[f], then, now, grown ? "  GROWN" : "");
        bad |= grown;
    }
    return bad;
}

int main(int argc, char **argv)
{
    double minutes = argc > 1 ? strtod(argv[1], NULL) : 30;
    char folder[] = "/tmp/dpi-soak-XXXXXX";
    static soak s;
    dpi_options o = DPI_INIT(dpi_options);
    o.log = quiet;
    o.event = count_workers;
    o.event_context = &s;
    o.batch = 16;
    if (!mkdtemp(folder) || minutes <= 0) {
        fprintf(stderr, "usage: soak [MINUTES]\n");
        return 2;
    }
    memset(s.samples, 1, sizeof s.samples); /* its pages are there from the start */
    kit_let_workers_crash();
    s.k = kit_open(TEXT, "sim:0*4", &o);
    pthread_t killer;
    assert_int_equal(pthread_create(&killer, NULL, kill_now_and_then, &s), 0);
    double began = kit_now_s(), shown = began;
    size_t first = 0;
    for (uint64_t i = 0; kit_now_s() < began + minutes * 60; i++) {
        for (uint64_t n = 0; n < 10; n++)
            forward_some(&s, i * 100 + n);
        run_some(&s, folder, i);
        if (i % 4 == 0)
            short_session(&s, i);
        take_sample(&s);
        clock_sleep_until_ns(clock_now_ns() + 200000000);
        if (kit_now_s() - shown > 60) {
            print_minute(&s, first, (kit_now_s() - began) / 60);
            shown = kit_now_s();
            first = s.count;
        }
    }
    s.over = true;
    pthread_join(killer, NULL);
    int bad = judge(&s);
    kit_close(s.k);
    rmdir(folder);
    return bad;
}
