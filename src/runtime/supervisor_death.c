/* How workers end: their last words, what follows for the device, and the end of the session when none is left. */
#include "base/clock.h"
#include "data/sigbus.h"
#include "runtime/batch.h"
#include "runtime/courier.h"
#include "runtime/events.h"
#include "runtime/recovery.h"
#include "runtime/supervisor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define KILL_NS        5000000000
#define FIRST_DELAY_NS 100000000   /* before the second restart in a row, then doubled */
#define LAST_DELAY_NS  10000000000 /* at most */
#define PROVEN_SLICES  8           /* of one generation: the device works, its earlier deaths are forgiven */
#define OPENING_STARTS 2           /* tries of a worker that is killed while the session opens */
#define MOST_BREACHES  3           /* times that shared memory may be spoilt until the session is given up */

/* ---- logs ------------------------------------------------------------------------------------------------------- */

/* A worker's own messages arrive as our log lines do on standard error; everything else is a library's chatter. */
static void take_line(dpi_session *s, size_t w, const char *line)
{
    session_worker *k = &s->workers[w];
    const char *name = s->devices.items[w].name;
    snprintf(k->log_lines[k->log_count++ % SESSION_LOG_LINES], SESSION_LOG_WIDTH, "%.*s", SESSION_LOG_WIDTH - 1, line);
    if (strncmp(line, "dpinfer: warning: ", 18) == 0)
        log_warning(&s->log, "%s: %s", name, line + 18);
    else if (strncmp(line, "dpinfer: info: ", 15) == 0)
        log_info(&s->log, "%s: %s", name, line + 15);
    else
        log_info(&s->log, "%s says: %s", name, line);
}

void supervisor_read_log(dpi_session *s, size_t w)
{
    session_worker *k = &s->workers[w];
    char buffer[4096];
    ssize_t got;
    while (k->log_pipe >= 0 && (got = read(k->log_pipe, buffer, sizeof buffer)) != 0) {
        if (got < 0)
            return; /* nothing more for now */
        for (ssize_t i = 0; i < got; i++) {
            if (buffer[i] != '\n' && k->log_part_length + 1 < sizeof k->log_part) {
                k->log_part[k->log_part_length++] = buffer[i];
                continue;
            }
            k->log_part[k->log_part_length] = 0;
            k->log_part_length = 0;
            take_line(s, w, k->log_part);
        }
    }
    if (k->log_pipe >= 0) {
        close(k->log_pipe);
        k->log_pipe = -1;
    }
}

static void last_words(const session_worker *k, char *out, size_t size)
{
    size_t used = 0, count = k->log_count < SESSION_LOG_LINES ? k->log_count : SESSION_LOG_LINES;
    out[0] = 0;
    for (size_t i = k->log_count - count; i < k->log_count && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s",
                                 used ? " | " : "; its last lines: ", k->log_lines[i % SESSION_LOG_LINES]);
    if (!count)
        snprintf(out, size, "; it left no message");
}

/* ---- failing ---------------------------------------------------------------------------------------------------- */

bool supervisor_reap(dpi_session *s, size_t w, int64_t deadline_ns)
{
    session_worker *k = &s->workers[w];
    int signal_number, code;
    if (s->in_caller || k->ended)
        return true;
    k->ended = child_ended(&k->process, deadline_ns, &signal_number, &code);
    return k->ended;
}

void supervisor_kill_all(dpi_session *s)
{
    for (size_t w = 0; w < s->seats && !s->in_caller; w++)
        if (!s->workers[w].ended)
            child_kill(&s->workers[w].process);
    int64_t deadline = clock_now_ns() + KILL_NS;
    for (size_t w = 0; w < s->seats; w++)
        if (!supervisor_reap(s, w, deadline))
            log_error(&s->log, "worker %zu (%s) cannot be killed; its memory stays in quarantine", w,
                      s->devices.items[w].name);
}

static void ring_everybody(dpi_session *s)
{
    for (uint32_t slot = 0; slot < LAYOUT_SLOTS; slot++) {
        claims *c = (claims *)arena_at(s->outputs, slot * sizeof(claims));
        if (atomic_load(&s->control->batches[slot].sequence)) {
            atomic_fetch_add(&c->bell, 1);
            futex_wake(&c->bell);
        }
    }
    uint64_t one = 1;
    if (s->event_fd >= 0 && write(s->event_fd, &one, sizeof one) < 0)
        log_debug(&s->log, "the event descriptor is full");
}

void supervisor_fail(dpi_session *s, const dpi_error *error)
{
    if (atomic_load(&s->failed))
        return;
    supervisor_kill_all(s);
    for (size_t w = 0; w < s->seats; w++)
        courier_stop(s, w);
    pthread_mutex_lock(&s->lock);
    s->failure = *error;
    s->state = SESSION_FAILED;
    atomic_store(&s->failed, 1);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    ring_everybody(s);
}

void supervisor_describe_work(const dpi_session *s, size_t w, char *out, size_t size)
{
    const worker_page *page = s->workers[w].page;
    if (atomic_load(&page->busy_since_ns))
        snprintf(out, size, " while computing slice %u (%u rows)", atomic_load(&page->busy_slice),
                 atomic_load(&page->busy_rows));
    else
        snprintf(out, size, " while %s",
                 s->workers[w].state == WORKER_STARTING  ? "starting"
                 : s->workers[w].state == WORKER_LEAVING ? "leaving"
                                                         : "waiting for work");
}

/* ---- deaths ----------------------------------------------------------------------------------------------------- */

/* The run's source of this number, which a worker wrote. */
static void name_source(dpi_session *s, uint32_t number, char *out, size_t size)
{
    pthread_mutex_lock(&s->lock);
    const json_t *sources = json_object_get(s->job.message, "sources");
    const char *spec = json_string_value(json_object_get(json_array_get(sources, number - 1), "spec"));
    snprintf(out, size, "%.*s", (int)size - 1, spec ? spec : "a source");
    pthread_mutex_unlock(&s->lock);
}

static void describe_death(dpi_session *s, size_t w, const ending *e, death *d)
{
    session_worker *k = &s->workers[w];
    char words[440], how[320], work[120];
    last_words(k, words, sizeof words);
    supervisor_describe_work(s, w, work, sizeof work);
    if (e->why[0])
        snprintf(how, sizeof how, "%s", e->why);
    else if (e->signal_number > 0)
        snprintf(how, sizeof how, "was killed by signal %d (%s)%s", e->signal_number, strsignal(e->signal_number),
                 work);
    else if (e->exit_code >= 0)
        snprintf(how, sizeof how, "left with exit code %d%s", e->exit_code, work);
    else
        snprintf(how, sizeof how, "ended (this program reaped it before dpinfer could see how)%s", work);
    d->status = DPI_E_WORKER;
    d->counts = true;
    if (e->exit_code == SIGBUS_EXIT_CODE && k->page->sigbus_source) {
        d->status = DPI_E_IO;
        char name[400];
        name_source(s, k->page->sigbus_source, name, sizeof name);
        snprintf(d->reason, sizeof d->reason, "%s shrank while worker %zu (%s) read it: byte %llu is gone", name, w,
                 s->devices.items[w].name, (unsigned long long)k->page->sigbus_offset);
    } else
        snprintf(d->reason, sizeof d->reason, "worker %zu (%s, pid %d) %s%s", w, s->devices.items[w].name,
                 (int)k->process.pid, how, words);
}

/* No device is left: the error tells of each. */
static void fail_without_devices(dpi_session *s)
{
    dpi_error error;
    char all[900] = "";
    size_t used = 0;
    for (size_t w = 0; w < s->count && used < sizeof all; w++)
        if (s->workers[w].device == DEVICE_GIVEN_UP)
            used += (size_t)snprintf(all + used, sizeof all - used, "%s%s", used ? "; " : "",
                                     s->workers[w].last_death ? s->workers[w].last_death : s->devices.items[w].name);
    error_set(&error, DPI_E_WORKER, "%s: %s", s->count > 1 ? "every device has failed" : "the device keeps failing",
              all);
    supervisor_fail(s, &error);
}

size_t supervisor_devices_left(const dpi_session *s, size_t except)
{
    size_t left = 0;
    for (size_t w = 0; w < s->count; w++)
        left += w != except && s->workers[w].device == DEVICE_IN_USE;
    return left;
}

void supervisor_retire(dpi_session *s, size_t w, const char *reason)
{
    pthread_mutex_lock(&s->lock);
    s->workers[w].state = WORKER_RETIRED;
    s->workers[w].device = DEVICE_GIVEN_UP;
    atomic_store_explicit(&s->control->board.workers[w].in_use, 0, memory_order_relaxed);
    s->retired++;
    if (s->planner) /* there is none while the session opens */
        planner_enable(s->planner, w, false);
    if (s->total_rows)
        session_spread(s, s->total_rows, s->shares);
    pthread_mutex_unlock(&s->lock);
    log_warning(&s->log, "%s is given up: %s", s->devices.items[w].name, reason);
    event_retired(s, w, reason);
    if (!supervisor_devices_left(s, SESSION_NOBODY))
        fail_without_devices(s);
}

void supervisor_plan_restart(dpi_session *s, size_t w, bool explained, const char *reason)
{
    session_worker *k = &s->workers[w];
    if (atomic_load(&k->page->slices) - k->slices_at_ready >= PROVEN_SLICES && k->state == WORKER_READY)
        k->strikes = 0;
    k->strikes += !explained;
    if (k->strikes >= s->max_deaths) {
        supervisor_retire(s, w, reason);
        return;
    }
    int64_t delay = 0;
    for (unsigned i = 1; i < k->strikes && !explained && delay < LAST_DELAY_NS; i++)
        delay = delay ? 2 * delay : FIRST_DELAY_NS;
    k->restart_ns = clock_now_ns() + (delay < LAST_DELAY_NS ? delay : LAST_DELAY_NS);
    k->state = WORKER_WAITING;
}

void supervisor_bury(dpi_session *s, size_t w, bool died)
{
    session_worker *k = &s->workers[w];
    courier_stop(s, w); /* what it has reported comes first */
    supervisor_read_log(s, w);
    pthread_mutex_lock(&s->lock);
    k->ready = false;
    if (k->socket >= 0)
        close(k->socket);
    k->socket = -1;
    s->deaths += died;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    if (k->log_pipe >= 0)
        close(k->log_pipe);
    k->log_pipe = -1;
}

void supervisor_worker_died(dpi_session *s, size_t w, const ending *e)
{
    session_worker *k = &s->workers[w];
    death d;
    bool left = k->state == WORKER_LEAVING && e->exit_code == 0; /* as it was told to */
    supervisor_bury(s, w, !left);
    describe_death(s, w, e, &d);
    if (!left) {
        free(k->last_death);
        k->last_death = strdup(d.reason);
        event_died(s, w, e->signal_number, e->exit_code, e->hung, d.reason);
    }
    if (k->joining) {
        dpi_error error;
        error_set(&error, d.status, "%s", d.reason);
        supervisor_refuse_joining(s, &error);
        return;
    }
    if (k->state == WORKER_LEAVING) {
        d.counts = !left;
        if (!left)
            log_warning(&s->log, "%s", d.reason);
        recovery_death(s, w, &d);
        supervisor_removed(s, w);
        recovery_step(s);
        return;
    }
    if (s->state == SESSION_OPENING && (e->signal_number <= 0 || e->hung || k->generation >= OPENING_STARTS)) {
        dpi_error error;
        error_set(&error, d.status, "%s", d.reason);
        supervisor_fail(s, &error);
        return;
    }
    log_warning(&s->log, "%s", d.reason);
    bool explained = recovery_death(s, w, &d) || d.status != DPI_E_WORKER || s->state == SESSION_OPENING;
    supervisor_plan_restart(s, w, explained, d.reason);
    recovery_step(s);
}

bool supervisor_kill(dpi_session *s, size_t w, const char *why)
{
    child_kill(&s->workers[w].process);
    if (supervisor_reap(s, w, clock_now_ns() + KILL_NS))
        return true;
    dpi_error error;
    error_set(&error, DPI_E_WORKER, "worker %zu (%s, pid %d) %s, and cannot be killed; its memory stays in quarantine",
              w, s->devices.items[w].name, (int)s->workers[w].process.pid, why);
    supervisor_fail(s, &error);
    return false;
}

void supervisor_end_worker(dpi_session *s, size_t w, const ending *e)
{
    if (supervisor_kill(s, w, e->why))
        supervisor_worker_died(s, w, e);
}

void supervisor_start_anew(dpi_session *s, const char *what)
{
    dpi_error error;
    error_set(&error, DPI_E_WORKER, "%s: a worker does not wake, or has spoilt the memory that it shares", what);
    event_spoilt(s, error.message);
    if (++s->breaches > MOST_BREACHES) {
        supervisor_fail(s, &error);
        return;
    }
    log_warning(&s->log, "%s; all workers are started anew", error.message);
    supervisor_kill_all(s);
    for (size_t w = 0; w < s->seats; w++) {
        session_worker *k = &s->workers[w];
        if (k->joining || k->state == WORKER_WAITING || k->state == WORKER_RETIRED)
            continue;
        if (!k->ended) {
            supervisor_fail(s, &error);
            return;
        }
        supervisor_bury(s, w, true);
        recovery_death(s, w, &(death){.status = DPI_E_WORKER});
        if (k->state == WORKER_LEAVING) {
            supervisor_removed(s, w);
            continue;
        }
        k->state = WORKER_WAITING;
        k->restart_ns = 0;
    }
    recovery_free_all(s);
    supervisor_refuse_joining(s, &error);
}
