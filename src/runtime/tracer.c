#include "runtime/tracer.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/own_thread.h"
#include "base/text.h"
#include "ipc/trace_ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOOK_NS 10000000

enum track { TRACK_WORKER = 1, TRACK_COPY_IN, TRACK_COMPUTE, TRACK_COPY_OUT, TRACKS };
static const char *const track_names[TRACKS] = {"", "worker", "copy in", "compute", "copy out"};

typedef struct traced {
    uint64_t next, lost;
    int64_t end_ns[TRACKS]; /* of the last slice of each track: they do not overlap */
    bool named;
} traced;

struct tracer {
    dpi_session *s;
    char *path, *part;
    FILE *file;
    int64_t began_ns;
    uint64_t bytes, left_out;
    bool any; /* an event has been written */
    bool failed;
    pthread_mutex_t lock; /* of all above: the supervisor tells of events */
    pthread_cond_t quit_changed;
    bool quit, runs;
    pthread_t thread;
    traced workers[LAYOUT_WORKERS];
};

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static void put(tracer *t, const char *text)
{
    size_t length = strlen(text);
    if (t->failed || (t->bytes + length > TRACE_FILE_MOST && ++t->left_out))
        return;
    t->failed = fprintf(t->file, "%s%s", t->any ? ",\n" : "", text) < 0;
    t->bytes += length + 2;
    t->any = true;
}

static void put_json(tracer *t, json_t *json)
{
    char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
    if (text)
        put(t, text);
    free(text);
    json_decref(json);
}

/* Microseconds with three digits behind the point, whatever the locale writes. */
static void time_text(int64_t ns, char text[32])
{
    snprintf(text, 32, "%lld.%03d", (long long)(ns / 1000), (int)(ns % 1000));
}

static void put_span(tracer *t, size_t w, enum track track, const char *name, int64_t from_ns, int64_t to_ns,
                     const trace_slice *s)
{
    char text[400], ts[32], duration[32];
    traced *k = &t->workers[w];
    from_ns = from_ns > k->end_ns[track] ? from_ns : k->end_ns[track];
    if (to_ns <= from_ns)
        return;
    k->end_ns[track] = to_ns;
    time_text(from_ns - t->began_ns, ts);
    time_text(to_ns - from_ns, duration);
    snprintf(text, sizeof text,
             "{\"ph\":\"X\",\"name\":\"%s\",\"pid\":%zu,\"tid\":%d,\"ts\":%s,\"dur\":%s,\"args\":{\"batch\":%u,"
             "\"slice\":%u,\"rows\":%u%s}}",
             name, w + 1, (int)track, ts, duration, s->sequence, s->slice, s->rows,
             s->flags & TRACE_FAILED ? ",\"failed\":true" : "");
    put(t, text);
}

static void put_claim(tracer *t, size_t w, const trace_slice *s)
{
    char text[300], ts[32];
    time_text(s->started_ns - t->began_ns, ts);
    snprintf(text, sizeof text,
             "{\"ph\":\"i\",\"s\":\"t\",\"name\":\"%s\",\"pid\":%zu,\"tid\":%d,\"ts\":%s,\"args\":{\"batch\":%u,"
             "\"slice\":%u,\"rows\":%u,\"generation\":%u}}",
             s->flags & TRACE_STOLEN ? "steal" : "claim", w + 1, (int)TRACK_WORKER, ts, s->sequence, s->slice, s->rows,
             s->generation);
    put(t, text);
}

static void put_name(tracer *t, const char *what, size_t pid, int tid, const char *name)
{
    put_json(t, json_pack("{s:s, s:s, s:I, s:i, s:{s:s}}", "ph", "M", "name", what, "pid", (json_int_t)pid, "tid", tid,
                          "args", "name", name));
}

static void name_worker(tracer *t, size_t w)
{
    char name[200];
    if (t->workers[w].named)
        return;
    t->workers[w].named = true;
    snprintf(name, sizeof name, "%zu: %.150s", w, t->s->devices.items[w].name);
    put_name(t, "process_name", w + 1, 0, name);
    put_json(t, json_pack("{s:s, s:s, s:I, s:i, s:{s:I}}", "ph", "M", "name", "process_sort_index", "pid",
                          (json_int_t)(w + 1), "tid", 0, "args", "sort_index", (json_int_t)w));
    for (int track = TRACK_WORKER; track < TRACKS; track++)
        put_name(t, "thread_name", w + 1, track, track_names[track]);
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static int64_t within(int64_t value, int64_t low, int64_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* A worker may have written anything: times are brought into order, between the session's beginning and now. */
static void tame(const tracer *t, trace_slice *s, int64_t now)
{
    s->started_ns = within(s->started_ns, t->began_ns, now);
    s->waited_from_ns = s->waited_from_ns ? within(s->waited_from_ns, t->began_ns, s->started_ns) : s->started_ns;
    s->loaded_ns = within(s->loaded_ns, s->started_ns, now);
    s->computed_ns = within(s->computed_ns, s->loaded_ns, now);
    s->finished_ns = within(s->finished_ns, s->computed_ns, now);
    uint64_t whole = (uint64_t)(s->computed_ns - s->loaded_ns);
    s->copy_out_ns = s->copy_out_ns < whole ? s->copy_out_ns : whole;
    s->compute_ns = s->compute_ns < whole - s->copy_out_ns ? s->compute_ns : whole - s->copy_out_ns;
    s->copy_in_ns =
        s->copy_in_ns < whole - s->copy_out_ns - s->compute_ns ? s->copy_in_ns : whole - s->copy_out_ns - s->compute_ns;
}

static void put_slice(tracer *t, size_t w, const trace_slice *s)
{
    int64_t out = s->computed_ns - (int64_t)s->copy_out_ns, compute = out - (int64_t)s->compute_ns;
    put_span(t, w, TRACK_WORKER, "wait", s->waited_from_ns, s->started_ns, s);
    put_claim(t, w, s);
    put_span(t, w, TRACK_WORKER, "load", s->started_ns, s->loaded_ns, s);
    put_span(t, w, TRACK_COPY_IN, "copy in", compute - (int64_t)s->copy_in_ns, compute, s);
    put_span(t, w, TRACK_COMPUTE, "compute", compute, out, s);
    put_span(t, w, TRACK_COPY_OUT, "copy out", out, s->computed_ns, s);
    put_span(t, w, TRACK_WORKER, "copy out", s->computed_ns, s->finished_ns, s);
}

/* Under the lock. No more of each ring than it has room for: a worker gone mad must not keep us here. */
static void look(tracer *t)
{
    size_t count = atomic_load_explicit(&t->s->count, memory_order_acquire);
    for (size_t w = 0; w < count; w++) {
        trace_slice s;
        const trace_ring *ring = atomic_load_explicit(&t->s->workers[w].trace, memory_order_acquire);
        traced *k = &t->workers[w];
        for (int i = 0; ring && i < TRACE_RECORDS && trace_read(ring, &k->next, &s, &k->lost); i++) {
            name_worker(t, w);
            tame(t, &s, clock_now_ns());
            put_slice(t, w, &s);
        }
    }
    t->failed |= fflush(t->file) != 0; /* what is buffered a forked child would write too */
}

static void *look_often(void *context)
{
    tracer *t = context;
    own_thread_begin("dpinfer-tracer");
    pthread_mutex_lock(&t->lock);
    while (!t->quit) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += LOOK_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&t->quit_changed, &t->lock, &until);
        look(t);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

void tracer_event(tracer *t, const json_t *event)
{
    const json_t *whose = json_object_get(event, "worker");
    size_t w = json_is_integer(whose) ? (size_t)json_integer_value(whose) : LAYOUT_WORKERS;
    char ts[32], scope[2] = {w < LAYOUT_WORKERS ? 'p' : 'g', 0};
    pthread_mutex_lock(&t->lock);
    if (w < LAYOUT_WORKERS)
        name_worker(t, w);
    time_text(clock_now_ns() - t->began_ns, ts);
    char *args = json_dumps(event, JSON_COMPACT);
    char *text = args
                     ? text_format("{\"ph\":\"i\",\"s\":\"%s\",\"name\":\"%s\",\"pid\":%zu,\"tid\":%d,\"ts\":%s,"
                                   "\"args\":%s}",
                                   scope, json_string_value(json_object_get(event, "event")),
                                   w < LAYOUT_WORKERS ? w + 1 : 0, w < LAYOUT_WORKERS ? (int)TRACK_WORKER : 0, ts, args)
                     : NULL;
    if (text)
        put(t, text);
    pthread_mutex_unlock(&t->lock);
    free(text);
    free(args);
}

/* ---- opening and closing ---------------------------------------------------------------------------------------- */

static void free_tracer(tracer *t)
{
    if (t->file)
        fclose(t->file);
    pthread_mutex_destroy(&t->lock);
    pthread_cond_destroy(&t->quit_changed);
    free(t->path);
    free(t->part);
    free(t);
}

static dpi_status open_file(tracer *t, dpi_error *error)
{
    struct stat info;
    if (stat(t->path, &info) == 0 && !S_ISREG(info.st_mode))
        return error_set(error, DPI_E_DATA, "%s exists and is not a regular file", t->path);
    int fd = file_open(t->part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    t->file = fd >= 0 ? fdopen(fd, "we") : NULL;
    if (t->file)
        return DPI_OK;
    int number = errno;
    if (fd >= 0)
        close(fd);
    return error_set_errno(error, DPI_E_DATA, number, "cannot write the trace to %s", t->part);
}

dpi_status tracer_open(dpi_session *s, const char *path, tracer **out, dpi_error *error)
{
    *out = NULL;
    tracer *t = calloc(1, sizeof *t);
    if (!t)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->quit_changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    t->s = s;
    t->began_ns = clock_now_ns();
    t->path = strdup(path);
    t->part = text_format("%s.part", path);
    dpi_status status = t->path && t->part ? open_file(t, error) : error_set(error, DPI_E_SYSTEM, "out of memory");
    if (status) {
        free_tracer(t);
        return status;
    }
    t->failed = fputs("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n", t->file) < 0;
    put_name(t, "process_name", 0, 0, "dpinfer");
    *out = t;
    return DPI_OK;
}

dpi_status tracer_start(tracer *t, dpi_error *error)
{
    t->runs = pthread_create(&t->thread, NULL, look_often, t) == 0;
    return t->runs ? DPI_OK : error_set(error, DPI_E_SYSTEM, "cannot start a thread for the trace");
}

/* Whether the whole file is there under its name. */
static bool finish(tracer *t)
{
    uint64_t lost = 0;
    for (size_t w = 0; w < LAYOUT_WORKERS; w++)
        lost += t->workers[w].lost;
    if (lost || t->left_out)
        log_warning(&t->s->log, "%s lacks %llu slices that came too fast and %llu events beyond its size", t->path,
                    (unsigned long long)lost, (unsigned long long)t->left_out);
    bool good =
        !t->failed &&
        fprintf(t->file, "\n],\"otherData\":{\"dpinfer\":\"%s\",\"lost_slices\":%llu,\"left_out_events\":%llu}}\n",
                dpi_version(), (unsigned long long)lost, (unsigned long long)t->left_out) > 0;
    good = fclose(t->file) == 0 && good;
    t->file = NULL;
    return good && rename(t->part, t->path) == 0;
}

void tracer_close(tracer *t)
{
    if (!t)
        return;
    pthread_mutex_lock(&t->lock);
    t->quit = true;
    pthread_cond_signal(&t->quit_changed);
    pthread_mutex_unlock(&t->lock);
    if (t->runs)
        pthread_join(t->thread, NULL);
    look(t);
    if (!finish(t)) {
        log_warning(&t->s->log, "the trace could not be written to %s: %s", t->path, strerror(errno));
        unlink(t->part);
    }
    free_tracer(t);
}
