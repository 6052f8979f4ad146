#include "base/clock.h"
#include "ipc/bell.h"
#include "runtime/loader.h"
#include "runtime/worker.h"

#include <stdlib.h>

#define LOOK_NS 5000000 /* so often a worker that waits for rows looks for anything else */

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

/* Shows the oldest flight. Its turn begins now: those behind it wait in the engine's queue, and that is no hang. Where
 * the engine has none, a slice that is being loaded is what this worker does, as long as it gets on with it. */
void worker_show_turn(worker *w)
{
    w->turn_ns = clock_now_ns();
    if (!w->flight_count && loader_count(w->loader))
        worker_show_busy(w, loader_oldest(w->loader), loader_progress_ns(w->loader));
    else
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

/* A turn lasts as long as its dearest part at least, and just so long while slices overlap. What passed until it was
 * waited for says nothing: our own waiting on the bell is in it. */
static void note_turn(worker *w, const flight *f, backend_timing timing)
{
    if (f->call_rows != w->turn_rows)
        for (int i = 0; i < WORKER_TURNS; i++)
            w->turns[i] = 0;
    uint64_t longest = timing.copy_in_ns > timing.copy_out_ns ? timing.copy_in_ns : timing.copy_out_ns;
    longest = timing.compute_ns > longest ? timing.compute_ns : longest;
    w->turn_rows = f->call_rows;
    w->turns[w->turn_count++ % WORKER_TURNS] = (int64_t)longest;
}

/* What the engine computed for: what it says, or what is left of its time. */
static int64_t compute_of(const flight *f, backend_timing timing, int64_t computed_ns)
{
    int64_t copies = (int64_t)(timing.copy_in_ns + timing.copy_out_ns);
    return timing.compute_ns ? (int64_t)timing.compute_ns : computed_ns - f->loaded_ns - copies;
}

static void account(worker *w, const flight *f, backend_timing timing, int64_t computed_ns)
{
    add(&w->page->load_ns, f->loaded_ns - f->started_ns);
    add(&w->page->copy_in_ns, (int64_t)timing.copy_in_ns);
    add(&w->page->copy_out_ns, (int64_t)timing.copy_out_ns);
    add(&w->page->compute_ns, compute_of(f, timing, computed_ns));
}

static void trace(const worker *w, const flight *f, dpi_status status, backend_timing timing, int64_t computed_ns)
{
    int64_t compute_ns = compute_of(f, timing, computed_ns);
    trace_slice s = {.generation = w->generation,
                     .slot = f->slot,
                     .slice = f->slice,
                     .sequence = f->sequence,
                     .flags = (f->stolen ? TRACE_STOLEN : 0u) | (f->flags & BATCH_SHARD ? TRACE_SHARD : 0u) |
                              (status ? TRACE_FAILED : 0u),
                     .rows = (uint32_t)f->rows,
                     .waited_from_ns = f->waited_from_ns,
                     .started_ns = f->started_ns,
                     .loaded_ns = f->loaded_ns,
                     .computed_ns = computed_ns,
                     .finished_ns = clock_now_ns(),
                     .copy_in_ns = timing.copy_in_ns,
                     .compute_ns = compute_ns > 0 ? (uint64_t)compute_ns : 0,
                     .copy_out_ns = timing.copy_out_ns};
    trace_write(w->trace, &s);
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
    if (w->trace)
        trace(w, f, status, timing, computed_ns);
    f->used = false;
    flight_forget_bad(f);
    worker_finish(w, f, status, error);
}

/* A flight that never was in the ring. The supervisor must never see an idle worker with a RUNNING slice: shown as
 * busy until the word is terminal. */
static void land_at_once(worker *w, flight *f, dpi_status status, backend_timing timing, dpi_error *error)
{
    land(w, f, status, timing, error);
    if (!w->flight_count)
        worker_show_turn(w);
}

static unsigned free_seat(const worker *w) { return (w->flight_head + w->flight_count) % (unsigned)w->depth; }

/* Claims a slice, or takes one that was claimed for us; false when there was none. */
static bool claim_slice(worker *w, flight *f, bool ahead, int64_t *look_again_ns)
{
    bool spare = ahead && loader_count(w->loader);
    if (w->outbox ? !worker_take_assignment(w, f, ahead) : !worker_claim(w, f, ahead, spare, look_again_ns))
        return false;
    f->used = true;
    f->started_ns = clock_now_ns();
    f->waited_from_ns = w->last_idle_ns;
    if (w->last_idle_ns) {
        add(&w->page->wait_ns, f->started_ns - w->last_idle_ns);
        w->last_idle_ns = 0;
    }
    worker_step(w, STEP_CLAIMED);
    worker_find_rows(w, f);
    return true;
}

/* A flight whose inputs are there (or not: `status`) goes to the engine. */
static void launch(worker *w, flight *f, dpi_status status, dpi_error *error)
{
    unsigned index = free_seat(w);
    f->loaded_ns = clock_now_ns();
    worker_step(w, STEP_LOADED);
    if (!w->flight_count)
        worker_show_busy(w, f, w->turn_ns = f->started_ns);
    backend_timing timing = {0};
    if (status || w->depth == 1) {
        if (w->engine_lock)
            pthread_mutex_lock(w->engine_lock);
        if (!status)
            status = w->backend->run(w->engine, &f->call, &timing, error);
        if (w->engine_lock)
            pthread_mutex_unlock(w->engine_lock);
        land_at_once(w, f, status, timing, error);
        return;
    }
    status = w->backend->enqueue(w->engine, (int)index, &f->call, error);
    if (status)
        land_at_once(w, f, status, timing, error);
    else
        w->flight_count++;
}

/* Claims and starts one slice; false when there was none. */
static bool take_off(worker *w, int64_t *look_again_ns)
{
    flight *f = &w->flights[free_seat(w)];
    if (!claim_slice(w, f, false, look_again_ns))
        return false;
    dpi_error error;
    error_clear(&error);
    launch(w, f, worker_prepare(w, f, &error), &error);
    return true;
}

/* Claims a slice that is to be loaded; false when there was none, or no room. */
static bool load_ahead(worker *w, int64_t *look_again_ns)
{
    flight *f = w->loader ? loader_room(w->loader) : NULL;
    if (!f || !claim_slice(w, f, true, look_again_ns))
        return false;
    dpi_error error;
    error_clear(&error);
    dpi_status status = worker_prepare_ahead(w, f, &error);
    if (status) {
        land_at_once(w, f, status, (backend_timing){0}, &error);
        return true;
    }
    loader_begin(w->loader, f->started_ns);
    if (!w->flight_count)
        worker_show_turn(w);
    return true;
}

/* The oldest slice that is loaded goes to the engine. */
static void take_off_loaded(worker *w)
{
    flight *f = &w->flights[free_seat(w)];
    dpi_error error;
    error_clear(&error);
    dpi_status status;
    loader_take(w->loader, f, &status, &error);
    if (!status)
        worker_pad_inputs(w, f);
    /* It began when it was claimed, and cost the engine time from when that had nothing else. */
    int64_t free_ns = atomic_load_explicit(&w->page->finished_ns, memory_order_relaxed);
    f->started_ns = w->flight_count ? clock_now_ns() : f->started_ns > free_ns ? f->started_ns : free_ns;
    launch(w, f, status, &error);
}

static void land_oldest(worker *w)
{
    flight *f = &w->flights[w->flight_head];
    dpi_error error;
    error_clear(&error);
    backend_timing timing = {0};
    dpi_status status = w->backend->wait(w->engine, (int)w->flight_head, &timing, &error);
    note_turn(w, f, timing);
    land(w, f, status, timing, &error);
    w->flight_head = (w->flight_head + 1) % (unsigned)w->depth;
    w->flight_count--;
    worker_show_turn(w); /* after the word: see land_at_once */
}

/* With room for more in flight, a worker waits on its bell first, so that work which comes meanwhile starts at once:
 * true when there may be some. The last part of a turn it waits in the engine, which knows best when it is over. */
static bool hear_of_more(worker *w, uint32_t seen, int64_t look_again_ns)
{
    int64_t engine_from_ns = turn_not_before(w),
            until_ns = look_again_ns < engine_from_ns ? look_again_ns : engine_from_ns;
    int64_t now_ns = clock_now_ns();
    if (now_ns >= engine_from_ns)
        return false;
    if (loader_count(w->loader)) { /* what is loaded rings no bell */
        loader_help(w->loader, engine_from_ns < now_ns + LOOK_NS ? engine_from_ns : now_ns + LOOK_NS);
        return true;
    }
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
    for (;;) {
        uint32_t seen = atomic_load(&mine->bell); /* before all that it is rung for */
        if (atomic_load(&w->control->shutdown))
            break;
        if (atomic_load_explicit(&mine->mail, memory_order_acquire) != w->mail_seen) {
            worker_handle_mail(w);
            continue; /* another message may have come with the same ring */
        }
        if (worker_trial_asked(w)) {
            while (w->flight_count)
                land_oldest(w);
            loader_pause(w->loader); /* nothing else in flight */
            worker_trial_run(w);
            loader_resume(w->loader);
            continue;
        }
        bool leaving = atomic_load_explicit(dismissed, memory_order_acquire) == w->generation;
        bool assigned = w->outbox && worker_is_assigned(w);
        if (leaving && !assigned && !loader_count(w->loader))
            break;
        int64_t look_again_ns = CLOCK_NEVER;
        bool room = w->flight_count < (unsigned)w->depth;
        bool may_claim =
            w->outbox ? assigned : !leaving && atomic_load_explicit(admitted, memory_order_acquire) == w->generation;
        if (may_claim && load_ahead(w, &look_again_ns))
            continue;
        if (may_claim && room && take_off(w, &look_again_ns))
            continue;
        if (room && loader_ready(w->loader)) {
            take_off_loaded(w);
            continue;
        }
        if (w->flight_count) {
            if (!room || !hear_of_more(w, seen, look_again_ns))
                land_oldest(w);
            continue;
        }
        if (loader_count(w->loader)) {
            loader_help(w->loader, clock_now_ns() + LOOK_NS);
            worker_show_turn(w);
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
