/* Trials: rows that the supervisor wants computed with nothing else in flight, because a worker died over them. */
#include "base/clock.h"
#include "ipc/trial.h"
#include "runtime/worker.h"
#include "runtime/worker_job.h"

bool worker_trial_asked(worker *w)
{
    uint64_t number = atomic_load_explicit(&w->control->trial.number, memory_order_relaxed);
    if (number == w->trial_seen || !number)
        return false;
    trial_order order;
    number = trial_read(&w->control->trial, &order);
    if (number && order.worker != w->index)
        w->trial_seen = number;
    return number && order.worker == w->index;
}

static void fill_outputs(const worker *w, flight *f)
{
    for (size_t row = 0; row < f->call_rows; row++)
        worker_void_row(w, f, row);
}

static dpi_status compute(worker *w, flight *f, backend_timing *timing, dpi_error *error)
{
    dpi_status status = worker_prepare(w, f, error);
    f->loaded_ns = clock_now_ns();
    if (status)
        return status;
    worker_show_busy(w, f, f->started_ns);
    if (w->depth == 1)
        return w->backend->run(w->engine, &f->call, timing, error);
    int slot = (int)w->flight_head;
    status = w->backend->enqueue(w->engine, slot, &f->call, error);
    return status ? status : w->backend->wait(w->engine, slot, timing, error);
}

static dpi_status leave_out(worker *w, flight *f, dpi_error *error)
{
    f->call_rows = f->rows;
    dpi_status status = worker_prepare_outputs(w, f, error);
    if (!status)
        fill_outputs(w, f);
    return status;
}

static void tell(worker *w, uint64_t number, dpi_status status, const dpi_error *error)
{
    json_t *message = json_pack("{s:I}", "trial", (json_int_t)number);
    if (message && status)
        json_object_set_new(message, "failed", json_string(error->message));
    dpi_error unheard;
    channel_send(w->socket, message, NULL, 0, clock_now_ns() + 5000000000, &unheard);
    json_decref(message);
}

void worker_trial_run(worker *w)
{
    flight *f = &w->flights[w->flight_head];
    trial_order order;
    uint64_t number = trial_read(&w->control->trial, &order);
    if (!number || order.worker != w->index)
        return;
    w->trial_seen = number;
    f->slot = order.slot % LAYOUT_SLOTS;
    f->sequence = order.sequence;
    f->slice = order.slice;
    f->first_row = order.first_row;
    f->rows = (size_t)order.rows;
    const batch_desc *b = &w->control->batches[f->slot];
    if (atomic_load_explicit(&b->sequence, memory_order_acquire) != f->sequence)
        return;
    dpi_error error;
    error_clear(&error);
    backend_timing timing = {0};
    f->flags = atomic_load_explicit(&b->flags, memory_order_relaxed);
    f->stolen = false;
    f->started_ns = clock_now_ns();
    worker_show_busy(w, f, f->started_ns);
    atomic_store(&w->page->trial, number); /* T16 try */
    worker_step(w, STEP_CLAIMED);
    dpi_status status = order.fill ? leave_out(w, f, &error) : compute(w, f, &timing, &error);
    if (!status && ((f->flags & BATCH_SHARD) || f->call_rows != f->rows))
        status = worker_deliver(w, f, &error);
    if (!status)
        worker_count(w, f, clock_now_ns());
    flight_forget_bad(f);
    worker_show_turn(w);
    worker_step(w, STEP_DELIVERED);
    tell(w, number, status, &error); /* T17 answer */
    atomic_store(&w->page->trial, 0);
}

void worker_tell_suspect(worker *w, const flight *f, const char *reason)
{
    json_t *message = json_pack("{s:I, s:s}", "suspect", (json_int_t)f->slice, "failed", reason);
    dpi_error unheard;
    channel_send(w->socket, message, NULL, 0, clock_now_ns() + 5000000000, &unheard);
    json_decref(message);
}
