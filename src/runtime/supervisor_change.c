/* Devices that come and go while the session is open: the supervisor's part of dpi_device_add and dpi_device_remove. */
#include "base/clock.h"
#include "runtime/events.h"
#include "runtime/recovery.h"
#include "runtime/supervisor.h"

#include <string.h>

/* Whoever asked goes on. */
static void finish(dpi_session *s, const dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    if (error)
        s->change.error = *error;
    else
        error_clear(&s->change.error);
    s->change.done = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* ---- adding ----------------------------------------------------------------------------------------------------- */

static void begin_adding(dpi_session *s)
{
    const session_change *c = &s->change;
    dpi_error error;
    for (size_t i = 0; i < c->count; i++) {
        session_worker *k = &s->workers[c->workers[i]];
        if (c->workers[i] >= s->seats) {
            supervisor_set_up(k);
            s->seats = c->workers[i] + 1;
        }
        k->joining = true;
        if (supervisor_start_worker(s, c->workers[i], &error)) {
            supervisor_refuse_joining(s, &error);
            return;
        }
    }
}

void supervisor_refuse_joining(dpi_session *s, const dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    bool under_way = s->change.taken && s->change.adds && !s->change.asked && !s->change.done;
    pthread_mutex_unlock(&s->lock);
    if (!under_way)
        return;
    for (size_t w = 0; w < s->seats; w++) {
        session_worker *k = &s->workers[w];
        if (!k->joining)
            continue;
        k->joining = k->accepted = false;
        k->state = WORKER_RETIRED;
        if (!supervisor_kill(s, w, "could not be added"))
            return;
        supervisor_bury(s, w, false);
    }
    finish(s, error);
}

/* The session was made for slices that this engine may not take, or not with the same bits. */
static dpi_status check_slices(const dpi_session *s, size_t w, const worker_report *r, dpi_error *error)
{
    const char *name = s->devices.items[w].name;
    if (r->max_rows && r->max_rows < s->max_rows)
        return error_set(error, DPI_E_DEVICE,
                         "%s takes %zu rows at once and the session's slices have %zu; open it with a smaller batch",
                         name, r->max_rows, s->max_rows);
    if (r->size_changes_bits && !s->fixed_rows)
        return error_set(error, DPI_E_DEVICE,
                         "the results of %s depend on how many rows a slice has, which this session leaves free; open "
                         "it anew with this device",
                         name);
    return DPI_OK;
}

/* Of new devices; one that comes back has been compared with what it was. */
static dpi_status compare_new(dpi_session *s, bool *mixed, double *tolerance, plan_cost *costs, size_t *more,
                              dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < s->change.count && !status; i++) {
        size_t w = s->change.workers[i];
        const worker_report *r = &s->workers[w].report;
        bool other_engine;
        double difference;
        if (w < s->count)
            continue;
        status = session_compare(s, w, w, r, &other_engine, &difference, error);
        if (!status)
            status = check_slices(s, w, r, error);
        if (!status && other_engine && s->deterministic)
            status = error_set(error, DPI_E_DEVICE,
                               "%s runs another engine than the others, so its results may differ in their last bits; "
                               "choose an equal device or leave out --deterministic",
                               s->devices.items[w].name);
        if (status)
            break;
        *mixed |= other_engine;
        *tolerance = difference > *tolerance ? difference : *tolerance;
        costs[(*more)++] = (plan_cost){.fixed_ns = r->fixed_ns, .row_ns = r->row_ns};
    }
    return status;
}

/* Under the lock. */
static void enter(dpi_session *s, size_t w, bool is_new)
{
    session_worker *k = &s->workers[w];
    worker_control *c = &s->control->workers[w];
    if (is_new) {
        atomic_store(&c->fixed_ns, (uint64_t)k->report.fixed_ns);
        atomic_store(&c->row_ns, (uint64_t)k->report.row_ns);
        k->samples_seen = atomic_load(&k->page->sample_count);
    } else
        planner_enable(s->planner, w, true);
    s->retired -= k->device == DEVICE_GIVEN_UP;
    k->device = DEVICE_IN_USE;
    k->state = WORKER_READY;
    k->ready = true;
    k->joining = k->accepted = false;
    k->strikes = 0;
    k->slices_at_ready = atomic_load(&k->page->slices);
    supervisor_admit(s, w);
    session_tell_newcomer(s, w);
}

/* Under the lock: all of them or none. */
static dpi_status enter_all(dpi_session *s, bool mixed, const plan_cost *costs, size_t more, dpi_error *error)
{
    size_t before = s->count;
    if (mixed && s->running)
        return error_set(error, DPI_E_DEVICE,
                         "%s runs another engine than the devices of the run that is under way; add it when that has "
                         "ended",
                         s->devices.items[s->change.workers[0]].name);
    if (!planner_add(s->planner, costs, more))
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    atomic_store_explicit(&s->count, before + more, memory_order_release); /* pairs with readers without the lock */
    for (size_t i = 0; i < s->change.count; i++)
        enter(s, s->change.workers[i], s->change.workers[i] >= before);
    if (s->total_rows)
        session_spread(s, s->total_rows, s->shares);
    pthread_cond_broadcast(&s->changed);
    return DPI_OK;
}

static void add_all(dpi_session *s)
{
    plan_cost costs[LAYOUT_WORKERS];
    bool mixed = false;
    double tolerance = s->tolerance;
    size_t more = 0;
    dpi_error error;
    dpi_status status = compare_new(s, &mixed, &tolerance, costs, &more, &error);
    if (!status) {
        pthread_mutex_lock(&s->lock);
        status = enter_all(s, mixed, costs, more, &error);
        s->bit_identical &= status || !mixed;
        s->tolerance = status ? s->tolerance : tolerance;
        pthread_mutex_unlock(&s->lock);
    }
    if (status) {
        supervisor_refuse_joining(s, &error);
        return;
    }
    for (size_t i = 0; i < s->change.count; i++) {
        size_t w = s->change.workers[i];
        event_started(s, w, &s->workers[w].report);
        event_added(s, w);
    }
    finish(s, NULL);
    recovery_step(s);
}

void supervisor_take_joining(dpi_session *s, size_t w, worker_report *report)
{
    session_worker *k = &s->workers[w];
    pthread_mutex_lock(&s->lock);
    supervisor_keep_report(s, w, report, w >= s->count);
    pthread_mutex_unlock(&s->lock);
    k->accepted = true;
    for (size_t i = 0; i < s->change.count; i++)
        if (!s->workers[s->change.workers[i]].accepted)
            return;
    add_all(s);
}

/* ---- removing --------------------------------------------------------------------------------------------------- */

void supervisor_removed(dpi_session *s, size_t w)
{
    bool used[LAYOUT_WORKERS] = {false};
    log_info(&s->log, "%s is removed", s->devices.items[w].name);
    event_removed(s, w);
    pthread_mutex_lock(&s->lock);
    s->retired -= s->workers[w].device == DEVICE_GIVEN_UP;
    s->workers[w].device = DEVICE_REMOVED;
    atomic_store_explicit(&s->control->board.workers[w].in_use, 0, memory_order_relaxed);
    s->workers[w].state = WORKER_RETIRED;
    for (size_t i = 0; i < s->count; i++)
        used[i] = s->workers[i].device != DEVICE_REMOVED;
    core_locks_drop(&s->locks, &s->devices, used);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* T23 leave. Under the lock: nothing new for worker w; what it has begun it finishes. */
static void dismiss(dpi_session *s, size_t w)
{
    session_worker *k = &s->workers[w];
    k->device = DEVICE_LEAVING;
    k->ready = false;
    planner_enable(s->planner, w, false);
    recovery_free_claimed(s, w);
    if (k->state != WORKER_READY)
        return;
    k->state = WORKER_LEAVING;
    k->idle_ns = clock_now_ns();
    supervisor_dismiss(s, w);
}

static size_t would_be_left(const dpi_session *s)
{
    size_t left = supervisor_devices_left(s, SESSION_NOBODY);
    for (size_t i = 0; i < s->change.count; i++)
        left -= s->workers[s->change.workers[i]].device == DEVICE_IN_USE;
    return left;
}

static void begin_removing(dpi_session *s)
{
    const session_change *c = &s->change;
    if (!would_be_left(s)) {
        dpi_error error;
        error_set(&error, DPI_E_DEVICE, "without %s the session would have no device left; close it instead",
                  s->devices.items[c->workers[0]].name);
        finish(s, &error);
        return;
    }
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < c->count; i++)
        if (s->workers[c->workers[i]].device == DEVICE_IN_USE)
            dismiss(s, c->workers[i]);
    if (s->total_rows)
        session_spread(s, s->total_rows, s->shares);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < c->count; i++) {
        session_worker *k = &s->workers[c->workers[i]];
        if (k->state == WORKER_STARTING) { /* it has nothing to finish */
            if (!supervisor_kill(s, c->workers[i], "was to be removed"))
                return;
            supervisor_bury(s, c->workers[i], false);
        }
        if (k->state != WORKER_LEAVING && k->device != DEVICE_REMOVED)
            supervisor_removed(s, c->workers[i]);
    }
    finish(s, NULL);
    recovery_step(s);
}

/* ---- both ------------------------------------------------------------------------------------------------------- */

void supervisor_change(dpi_session *s)
{
    session_change *c = &s->change;
    pthread_mutex_lock(&s->lock);
    bool asked = c->asked, given_up = c->given_up && !c->done;
    c->asked = false;
    pthread_mutex_unlock(&s->lock);
    if (atomic_load(&s->failed))
        return;
    if (asked && c->adds)
        begin_adding(s);
    else if (asked)
        begin_removing(s);
    if (given_up && !atomic_load(&s->failed)) {
        dpi_error error;
        error_set(&error, DPI_TIMEOUT, "%s was not ready in time and is not added",
                  s->devices.items[c->workers[0]].name);
        supervisor_refuse_joining(s, &error);
    }
}
