#include "base/clock.h"
#include "ipc/bell.h"
#include "runtime/worker.h"

#include <stdlib.h>

static void add(_Atomic uint64_t *counter, int64_t value)
{
    if (value > 0)
        atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + (uint64_t)value,
                              memory_order_relaxed);
}

void worker_show_busy(worker *w, const flight *f, int64_t since_ns)
{
    worker_page *page = w->page;
    atomic_store_explicit(&page->busy_rows, f ? (uint32_t)f->call_rows : 0, memory_order_relaxed);
    atomic_store_explicit(&page->busy_first, f ? f->new_shape : 0, memory_order_relaxed);
    atomic_store_explicit(&page->busy_slot, f ? f->slot : 0, memory_order_relaxed);
    atomic_store_explicit(&page->busy_slice, f ? f->slice : 0, memory_order_relaxed);
    atomic_store_explicit(&page->busy_since_ns, f ? since_ns : 0, memory_order_release);
}

/* Shows the oldest flight. Its turn begins now: those behind it wait in the engine's queue, and that is no hang. */
static void show_turn(worker *w)
{
    w->turn_ns = clock_now_ns();
    worker_show_busy(w, w->flight_count ? &w->flights[w->flight_head] : NULL, w->turn_ns);
}

/* Until when the oldest flight is not worth waiting for in the engine: most of the shortest of the last turns of as
 * many rows. */
static int64_t turn_not_before(const worker *w)
{
    int64_t shortest = INT64_MAX;
    if (w->flights[w->flight_head].call_rows != w->turn_rows)
        return 0;
    for (int i = 0; i < WORKER_TURNS; i++)
        shortest = w->turns[i] < shortest ? w->turns[i] : shortest;
    return w->turn_ns + shortest / 8 * 7;
}

static void note_turn(worker *w, const flight *f)
{
    if (f->call_rows != w->turn_rows)
        for (int i = 0; i < WORKER_TURNS; i++)
            w->turns[i] = 0;
    w->turn_rows = f->call_rows;
    w->turns[w->turn_count++ % WORKER_TURNS] = clock_now_ns() - w->turn_ns;
}

static void account(worker *w, const flight *f, backend_timing timing, int64_t computed_ns)
{
    int64_t copies = (int64_t)(timing.copy_in_ns + timing.copy_out_ns);
    int64_t compute = timing.compute_ns ? (int64_t)timing.compute_ns : computed_ns - f->loaded_ns - copies;
    add(&w->page->load_ns, f->loaded_ns - f->started_ns);
    add(&w->page->copy_in_ns, (int64_t)timing.copy_in_ns);
    add(&w->page->copy_out_ns, (int64_t)timing.copy_out_ns);
    add(&w->page->compute_ns, compute);
}

/* The engine is through with a flight (or never got it: `status`). */
static void land(worker *w, flight *f, dpi_status status, backend_timing timing, dpi_error *error)
{
    int64_t computed_ns = clock_now_ns();
    worker_step(w, STEP_COMPUTED);
    if (!status) {
        account(w, f, timing, computed_ns);
        if ((f->flags & BATCH_SHARD) || f->call_rows != f->rows) {
            status = worker_deliver(w, f, error);
            add(&w->page->copy_out_ns, clock_now_ns() - computed_ns);
        }
    }
    f->used = false;
    worker_finish(w, f, status, error);
}

/* A flight that never was in the ring. The supervisor must never see an idle worker with a RUNNING slice: shown as
 * busy until the word is terminal. */
static void land_at_once(worker *w, flight *f, dpi_status status, backend_timing timing, dpi_error *error)
{
    land(w, f, status, timing, error);
    if (!w->flight_count)
        show_turn(w);
}

/* Claims and starts one slice; false when there was none. */
static bool take_off(worker *w, int64_t *look_again_ns)
{
    unsigned index = (w->flight_head + w->flight_count) % (unsigned)w->depth;
    flight *f = &w->flights[index];
    if (!worker_claim(w, f, look_again_ns))
        return false;
    dpi_error error;
    error_clear(&error);
    f->used = true;
    f->started_ns = clock_now_ns();
    if (w->last_idle_ns) {
        add(&w->page->wait_ns, f->started_ns - w->last_idle_ns);
        w->last_idle_ns = 0;
    }
    worker_step(w, STEP_CLAIMED);
    worker_find_rows(w, f);
    dpi_status status = worker_prepare(w, f, &error);
    f->loaded_ns = clock_now_ns();
    worker_step(w, STEP_LOADED);
    if (!w->flight_count)
        worker_show_busy(w, f, w->turn_ns = f->started_ns);
    backend_timing timing = {0};
    if (status || w->depth == 1) {
        if (w->engine_lock)
            pthread_mutex_lock(w->engine_lock);
        if (!status)
            status = w->backend->run(w->engine, &f->call, &timing, &error);
        if (w->engine_lock)
            pthread_mutex_unlock(w->engine_lock);
        land_at_once(w, f, status, timing, &error);
        return true;
    }
    status = w->backend->enqueue(w->engine, (int)index, &f->call, &error);
    if (status)
        land_at_once(w, f, status, timing, &error);
    else
        w->flight_count++;
    return true;
}

static void land_oldest(worker *w)
{
    flight *f = &w->flights[w->flight_head];
    dpi_error error;
    error_clear(&error);
    backend_timing timing = {0};
    dpi_status status = w->backend->wait(w->engine, (int)w->flight_head, &timing, &error);
    note_turn(w, f);
    land(w, f, status, timing, &error);
    w->flight_head = (w->flight_head + 1) % (unsigned)w->depth;
    w->flight_count--;
    show_turn(w); /* after the word: see land_at_once */
}

/* With room for more in flight, a worker waits on its bell first, so that work which comes meanwhile starts at once:
 * true when there may be some. The last part of a turn it waits in the engine, which knows best when it is over. */
static bool hear_of_more(worker *w, uint32_t seen, int64_t look_again_ns)
{
    int64_t engine_from_ns = turn_not_before(w),
            until_ns = look_again_ns < engine_from_ns ? look_again_ns : engine_from_ns;
    if (clock_now_ns() >= engine_from_ns)
        return false;
    static const bell_patience patience = {.mode = DPI_WAIT_BLOCK};
    bool rung = bell_wait(&w->control->workers[w->index].bell, seen, &w->page->sleeping, patience, until_ns);
    return rung || clock_now_ns() < engine_from_ns;
}

void worker_loop(worker *w)
{
    const worker_control *mine = &w->control->workers[w->index];
    /* Pairs with the caller's stores: admitted when it has compared our report, dismissed when the device goes. */
    const _Atomic uint32_t *admitted = &mine->admitted, *dismissed = &mine->dismissed;
    bell_patience patience = {.mode = (dpi_wait_mode)w->control->wait_mode, .spin_us = w->control->spin_us};
    while (!atomic_load(&w->control->shutdown)) {
        uint32_t seen = atomic_load(&mine->bell);
        if (atomic_load_explicit(&mine->mail, memory_order_acquire) != w->mail_seen) {
            worker_handle_mail(w);
            continue; /* another message may have come with the same ring */
        }
        if (worker_trial_asked(w)) {
            while (w->flight_count)
                land_oldest(w);
            worker_trial_run(w);
            continue;
        }
        if (atomic_load_explicit(dismissed, memory_order_acquire) == w->generation)
            break;
        int64_t look_again_ns = CLOCK_NEVER;
        if (w->flight_count < (unsigned)w->depth &&
            atomic_load_explicit(admitted, memory_order_acquire) == w->generation && take_off(w, &look_again_ns))
            continue;
        if (w->flight_count) {
            if (w->flight_count == (unsigned)w->depth || !hear_of_more(w, seen, look_again_ns))
                land_oldest(w);
            continue;
        }
        if (!w->last_idle_ns)
            w->last_idle_ns = clock_now_ns();
        bell_wait(&mine->bell, seen, &w->page->sleeping, patience, look_again_ns); /* T12 sleep */
    }
    while (w->flight_count)
        land_oldest(w);
    atomic_store(&w->page->stage, STAGE_LEAVING);
    worker_step(w, STEP_LEAVING);
}
