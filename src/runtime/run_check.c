#include "runtime/run_check.h"

#include "base/crew.h"
#include "base/file.h"
#include "base/own_thread.h"
#include "base/tensor.h"
#include "base/topology.h"
#include "data/zip.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define PIECE        (4u << 20)
#define MOST_THREADS 4 /* one reads about 2 GB/s, which a fast GPU exceeds */
#define NICE         10

struct run_check {
    source *const *sources;
    size_t count, threads;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* guarded: rows, over, ended */
    uint64_t rows;
    bool over, ended;
    dpi_status status;
    dpi_error error;
    unsigned char *memory; /* threads * PIECE */
};

/* Pieces of one round, side by side. */
typedef struct round_work {
    run_check *c;
    const source *s;
    uint64_t offset, bytes;
    uint32_t crc[MOST_THREADS];
    dpi_status status[MOST_THREADS];
    dpi_error error[MOST_THREADS];
} round_work;

static void read_piece(void *context, size_t i)
{
    round_work *r = context;
    uint64_t from = i * (uint64_t)PIECE, left = r->bytes - from;
    size_t bytes = left < PIECE ? (size_t)left : PIECE;
    unsigned char *to = r->c->memory + i * (size_t)PIECE;
    r->status[i] = file_read_at(source_fd(r->s), to, bytes, r->offset + from, source_spec(r->s), &r->error[i]);
    r->crc[i] = r->status[i] ? 0 : zip_crc(0, to, bytes);
}

/* Waits until the workers are past `end` of the source's bytes, or are done. false: it is over. */
static bool wait_for(run_check *c, const source *s, uint64_t end)
{
    size_t row_bytes = 0;
    shape_row_bytes(source_port(s)->dtype, source_port(s)->shape, source_port(s)->rank, &row_bytes);
    pthread_mutex_lock(&c->lock);
    while (!c->over && row_bytes && c->rows < source_rows(s) && c->rows < end / row_bytes)
        pthread_cond_wait(&c->changed, &c->lock);
    bool goes_on = !c->over;
    pthread_mutex_unlock(&c->lock);
    return goes_on;
}

static dpi_status check_source(run_check *c, crew *helpers, const source *s, dpi_error *error)
{
    source_promise p;
    uint32_t crc = 0;
    if (!s || !source_promises(s, &p))
        return DPI_OK;
    for (uint64_t at = 0; at < p.bytes;) {
        uint64_t most = c->threads * (uint64_t)PIECE, left = p.bytes - at;
        round_work r = {.c = c, .s = s, .offset = p.offset + at, .bytes = left < most ? left : most};
        size_t pieces = (size_t)((r.bytes + PIECE - 1) / PIECE);
        if (!wait_for(c, s, at + r.bytes))
            return DPI_OK;
        crew_run(helpers, pieces, read_piece, &r);
        for (size_t i = 0; i < pieces; i++) {
            uint64_t bytes = i + 1 < pieces ? PIECE : r.bytes - i * (uint64_t)PIECE;
            if (r.status[i]) {
                *error = r.error[i];
                return r.status[i];
            }
            crc = zip_crc_combine(crc, r.crc[i], bytes);
        }
        at += r.bytes;
    }
    return crc == p.crc ? DPI_OK
                        : error_set(error, DPI_E_DATA, "%s is damaged: its bytes are not those that its checksum is of",
                                    source_spec(s));
}

static void *check_all(void *context)
{
    run_check *c = context;
    own_thread_begin("dpinfer-check");
    setpriority(PRIO_PROCESS, (id_t)gettid(), NICE); /* helpers inherit it; advice: a failure changes nothing */
    crew *helpers = c->threads > 1 ? crew_new(c->threads - 1) : NULL;
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < c->count && !status; i++)
        status = check_source(c, helpers, c->sources[i], &c->error);
    crew_free(helpers);
    pthread_mutex_lock(&c->lock);
    c->status = status;
    c->ended = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

static size_t choose_threads(void)
{
    topology machine;
    size_t threads = 1;
    if (topology_read(&machine, NULL) == DPI_OK) {
        threads = machine.usable_threads / 4;
        topology_free(&machine);
    }
    return threads < 1 ? 1 : threads < MOST_THREADS ? threads : MOST_THREADS;
}

dpi_status run_check_start(source *const *sources, size_t count, run_check **out, dpi_error *error)
{
    source_promise p;
    bool any = false;
    *out = NULL;
    for (size_t i = 0; i < count; i++)
        any |= sources[i] && source_promises(sources[i], &p);
    if (!any)
        return DPI_OK;
    run_check *c = calloc(1, sizeof *c);
    if (!c)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    c->sources = sources;
    c->count = count;
    c->threads = choose_threads();
    c->memory = malloc(c->threads * (size_t)PIECE);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, NULL);
    int number = c->memory ? pthread_create(&c->thread, NULL, check_all, c) : ENOMEM;
    if (!number) {
        *out = c;
        return DPI_OK;
    }
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c->memory);
    free(c);
    return error_set_errno(error, DPI_E_SYSTEM, number, "cannot start the thread that compares checksums");
}

static void tell(run_check *c, uint64_t rows, bool over)
{
    pthread_mutex_lock(&c->lock);
    c->rows = rows > c->rows ? rows : c->rows;
    c->over |= over;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
}

void run_check_follow(run_check *c, uint64_t rows)
{
    if (c)
        tell(c, rows, false);
}

dpi_status run_check_wait(run_check *c, bool (*stop)(void *context), void *context, dpi_error *error)
{
    if (!c)
        return DPI_OK;
    tell(c, UINT64_MAX, false);
    pthread_mutex_lock(&c->lock);
    bool stopped = false;
    while (!c->ended && !stopped) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 100000000;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        pthread_cond_timedwait(&c->changed, &c->lock, &until);
        pthread_mutex_unlock(&c->lock);
        stopped = stop && stop(context);
        pthread_mutex_lock(&c->lock);
    }
    dpi_status status = c->ended ? c->status : DPI_CANCELLED;
    pthread_mutex_unlock(&c->lock);
    if (status == DPI_CANCELLED)
        return error_set(error, DPI_CANCELLED, "the run was stopped while checksums were compared");
    if (status)
        *error = c->error;
    return status;
}

void run_check_end(run_check *c)
{
    if (!c)
        return;
    tell(c, 0, true);
    pthread_join(c->thread, NULL);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    free(c->memory);
    free(c);
}
