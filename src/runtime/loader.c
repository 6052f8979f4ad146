#include "runtime/loader.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define HELPER_NICE 10

struct loader {
    pthread_mutex_t lock;
    pthread_cond_t work, done; /* there are rows to load; a row has been loaded */
    flight ring[LOADER_AHEAD];
    unsigned head, count;
    bool paused, quit, helps;
    size_t at_work; /* threads that load a row */
    int64_t progress_ns;
    row_scratch mine;
    pthread_t *threads;
    size_t thread_count;
};

/* ---- one row ---------------------------------------------------------------------------------------------------- */

/* Not the row's fault: DPI_OK with *why filled (DPI_E_DATA in it) where it is. */
static dpi_status load_row(const flight *f, size_t row, row_scratch *own, dpi_error *why, dpi_error *error)
{
    error_clear(why);
    for (size_t i = 0; i < f->job->source_count; i++) {
        const source *s = f->job->sources[i];
        size_t row_bytes = 0;
        if (!s || !source_is_dear(s))
            continue;
        const port *p = source_port(s);
        shape_row_bytes(p->dtype, p->shape, p->rank, &row_bytes);
        unsigned char *to = (unsigned char *)f->inputs[i].data + row * row_bytes;
        dpi_error one;
        dpi_status status = why->status ? DPI_E_DATA : source_row_load(s, f->source_row + row, to, own, &one);
        if (status && status != DPI_E_DATA)
            return error_set(error, status, "%s", one.message);
        if (status)
            memset(to, 0, row_bytes);
        if (status && !why->status)
            *why = one;
    }
    return DPI_OK;
}

/* Keeps them by row. */
static bool note_bad(flight *f, size_t row, const char *reason)
{
    char *copy = strdup(reason);
    flight_bad *more = copy ? realloc(f->bad, (f->bad_count + 1) * sizeof *more) : NULL;
    if (!more) {
        free(copy);
        return false;
    }
    f->bad = more;
    size_t at = f->bad_count++;
    for (; at > 0 && more[at - 1].row > row; at--)
        more[at] = more[at - 1];
    more[at] = (flight_bad){.row = row, .reason = copy};
    return true;
}

static void finish_row(flight *f, size_t row, dpi_status status, const dpi_error *why, const dpi_error *error)
{
    if (!status && why->status && !note_bad(f, row, why->message))
        error_set(&f->load_error, DPI_E_SYSTEM, "out of memory");
    if (status)
        f->load_error = *error;
    if (f->load_error.status)
        f->rows_taken = f->rows; /* the rest is not worth it */
}

dpi_status loader_load_all(flight *f, void (*progress)(worker *w, const flight *f), worker *w, dpi_error *error)
{
    row_scratch own = {0};
    dpi_error why;
    dpi_status status = DPI_OK;
    for (size_t row = 0; row < f->rows && !status; row++) {
        status = load_row(f, row, &own, &why, error);
        if (!status && why.status && !note_bad(f, row, why.message))
            status = error_set(error, DPI_E_SYSTEM, "out of memory");
        if (progress)
            progress(w, f);
    }
    row_scratch_free(&own);
    return status;
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

/* The next row of the oldest flight that has some left. Under the lock. */
static bool take_row(loader *l, flight **f, size_t *row)
{
    for (unsigned i = 0; i < l->count && !l->paused; i++) {
        *f = &l->ring[(l->head + i) % LOADER_AHEAD];
        if ((*f)->rows_taken < (*f)->rows) {
            *row = (*f)->rows_taken++;
            return true;
        }
    }
    return false;
}

/* Takes a row and loads it, without the lock meanwhile; false when there was none. */
static bool do_row(loader *l, row_scratch *own)
{
    flight *f;
    size_t row;
    if (!take_row(l, &f, &row))
        return false;
    f->loading++;
    l->at_work++;
    pthread_mutex_unlock(&l->lock);
    dpi_error why, error;
    dpi_status status = load_row(f, row, own, &why, &error);
    pthread_mutex_lock(&l->lock);
    finish_row(f, row, status, &why, &error);
    f->loading--;
    l->at_work--;
    l->progress_ns = clock_now_ns();
    pthread_cond_signal(&l->done);
    return true;
}

static void *load(void *argument)
{
    loader *l = argument;
    row_scratch own = {0};
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), HELPER_NICE);
    pthread_mutex_lock(&l->lock);
    while (!l->quit)
        if (!do_row(l, &own))
            pthread_cond_wait(&l->work, &l->lock);
    pthread_mutex_unlock(&l->lock);
    row_scratch_free(&own);
    return NULL;
}

loader *loader_start(size_t threads, bool helps)
{
    loader *l = calloc(1, sizeof *l);
    if (!l || !(l->threads = calloc(threads + 1, sizeof *l->threads))) {
        free(l);
        return NULL;
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->work, NULL);
    pthread_cond_init(&l->done, &monotonic);
    pthread_condattr_destroy(&monotonic);
    while (l->thread_count < threads && pthread_create(&l->threads[l->thread_count], NULL, load, l) == 0)
        l->thread_count++;
    l->helps = helps || !l->thread_count;
    return l;
}

void loader_stop(loader *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->quit = l->paused = true;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->lock);
    for (size_t i = 0; i < l->thread_count; i++)
        pthread_join(l->threads[i], NULL);
    for (int i = 0; i < LOADER_AHEAD; i++)
        flight_free(&l->ring[i]);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->work);
    pthread_cond_destroy(&l->done);
    row_scratch_free(&l->mine);
    free(l->threads);
    free(l);
}

/* ---- the worker's thread ---------------------------------------------------------------------------------------- */

flight *loader_room(loader *l)
{
    return l->count < LOADER_AHEAD ? &l->ring[(l->head + l->count) % LOADER_AHEAD] : NULL;
}

void loader_begin(loader *l, int64_t now_ns)
{
    flight *f = loader_room(l);
    f->rows_taken = f->loading = 0;
    error_clear(&f->load_error);
    pthread_mutex_lock(&l->lock);
    l->count++;
    l->progress_ns = now_ns;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->lock);
}

/* `count` and `head` are changed by the worker's thread alone. */
unsigned loader_count(const loader *l) { return l ? l->count : 0; }
flight *loader_oldest(loader *l) { return loader_count(l) ? &l->ring[l->head] : NULL; }

/* Under the lock. */
static bool is_ready(const loader *l)
{
    const flight *f = &l->ring[l->head];
    return l->count && f->rows_taken == f->rows && !f->loading;
}

bool loader_ready(loader *l)
{
    if (!loader_count(l))
        return false;
    pthread_mutex_lock(&l->lock);
    bool ready = is_ready(l);
    pthread_mutex_unlock(&l->lock);
    return ready;
}

void loader_take(loader *l, flight *into, dpi_status *status, dpi_error *error)
{
    pthread_mutex_lock(&l->lock);
    flight *f = &l->ring[l->head], loaded = *f;
    *f = *into; /* its scratch is the next one's here */
    *into = loaded;
    into->call.inputs = into->inputs;
    into->call.outputs = into->outputs;
    f->bad = NULL;
    f->bad_count = 0;
    l->head = (l->head + 1) % LOADER_AHEAD;
    l->count--;
    pthread_mutex_unlock(&l->lock);
    *status = into->load_error.status;
    if (*status)
        *error = into->load_error;
}

void loader_help(loader *l, int64_t until_ns)
{
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000), .tv_nsec = (long)(until_ns % 1000000000)};
    pthread_mutex_lock(&l->lock);
    if (!is_ready(l) && !(l->helps && do_row(l, &l->mine)))
        pthread_cond_timedwait(&l->done, &l->lock, &until);
    pthread_mutex_unlock(&l->lock);
}

int64_t loader_progress_ns(loader *l)
{
    pthread_mutex_lock(&l->lock);
    int64_t when = l->progress_ns;
    pthread_mutex_unlock(&l->lock);
    return when;
}

void loader_pause(loader *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->paused = true;
    while (l->at_work)
        pthread_cond_wait(&l->done, &l->lock);
    pthread_mutex_unlock(&l->lock);
}

void loader_forget(loader *l, const worker_job *job)
{
    if (!l)
        return;
    loader_pause(l);
    for (int i = 0; i < LOADER_AHEAD; i++) {
        flight *f = &l->ring[i];
        if (f->job != job)
            continue;
        f->job = NULL;
        f->rows_taken = f->rows;
        error_set(&f->load_error, DPI_E_INTERNAL, "a slice of a run that is over was loaded");
    }
    loader_resume(l);
}

void loader_resume(loader *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&l->lock);
    l->paused = false;
    pthread_cond_broadcast(&l->work);
    pthread_mutex_unlock(&l->lock);
}
