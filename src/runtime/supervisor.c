/* The supervisor, a thread of ours in the caller's process: has workers started, reads what they say, notices when they
 * die or hang. What becomes of their work is recovery.c's. */
#include "runtime/supervisor.h"

#include "base/clock.h"
#include "base/own_thread.h"
#include "runtime/batch.h"
#include "runtime/courier.h"
#include "runtime/events.h"
#include "runtime/recovery.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define TICK_MS       100
#define HARD_CAP      10 /* times the limit: a hang even while CPU time advances */
#define LEAVE_NS      1500000000
#define OBEY_NS       5000000000 /* an idle worker that is told to leave may take this long */
#define LEAST_IDLE_NS 1000000000 /* to be scheduled at all takes its time, however short slices are */
#define MUTE_NS       300000000  /* a worker whose socket has closed may take this long to die */

/* ---- messages --------------------------------------------------------------------------------------------------- */

/* Every worker has become ready for the first time. */
static void opened(dpi_session *s)
{
    bool all = true;
    for (size_t i = 0; i < s->count; i++)
        all &= s->workers[i].ready;
    if (!all || s->state != SESSION_OPENING)
        return;
    pthread_mutex_lock(&s->lock);
    s->state = SESSION_OPEN;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* A worker that was started again must be what the one before it was. */
static dpi_status compare_reports(dpi_session *s, size_t w, const worker_report *now, dpi_error *error)
{
    const worker_report *was = &s->workers[w].report;
    if (strcmp(was->fingerprint, now->fingerprint) != 0 || !session_same_signature(&was->sig, &now->sig))
        return error_set(error, DPI_E_WORKER,
                         "%s has another engine than when it was started first: fingerprint %s instead of %s",
                         s->devices.items[w].name, now->fingerprint, was->fingerprint);
    return DPI_OK;
}

void supervisor_keep_report(dpi_session *s, size_t w, worker_report *report, bool first)
{
    worker_report *kept = &s->workers[w].report;
    s->starts++;
    s->compiled += !report->from_cache;
    if (first) {
        report_free(kept);
        *kept = *report;
        return;
    }
    kept->open_seconds = report->open_seconds;
    kept->engine_seconds = report->engine_seconds;
    kept->from_cache = report->from_cache;
    report_free(report);
}

static void take_report(dpi_session *s, size_t w, const json_t *message)
{
    session_worker *k = &s->workers[w];
    worker_report report = {0};
    dpi_error error;
    bool first = !k->report.fingerprint[0] || w >= s->count;
    dpi_status status = report_from_json(message, &report, &error);
    if (!status && !first)
        status = compare_reports(s, w, &report, &error);
    if (!status && k->joining) {
        supervisor_take_joining(s, w, &report);
        return;
    }
    if (status) {
        report_free(&report);
        if (k->joining)
            supervisor_refuse_joining(s, &error);
        else if (s->state == SESSION_OPENING)
            supervisor_fail(s, &error);
        else if (!s->in_caller)
            supervisor_end_worker(s, w,
                                  &(ending){.signal_number = -1, .exit_code = -1, .why = "could not start again"});
        return;
    }
    pthread_mutex_lock(&s->lock);
    supervisor_keep_report(s, w, &report, first);
    k->ready = true;
    k->state = WORKER_READY;
    k->slices_at_ready = atomic_load(&k->page->slices);
    supervisor_admit(s, w);
    session_tell_newcomer(s, w);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    event_started(s, w, &k->report);
    opened(s);
    recovery_step(s);
}

/* Takes the message over: who asked may drop it at once. */
static void take_answer(dpi_session *s, size_t w, json_t *message)
{
    session_worker *k = &s->workers[w];
    pthread_mutex_lock(&s->lock);
    bool wanted = (uint64_t)json_integer_value(json_object_get(message, "id")) == k->asked;
    json_decref(wanted ? k->reply : message);
    if (wanted) {
        k->reply = message;
        k->owes_ns = 0;
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
}

static void take_message(dpi_session *s, size_t w)
{
    session_worker *k = &s->workers[w];
    json_t *message;
    dpi_error error;
    dpi_status status = channel_receive(k->socket, clock_now_ns(), &message, NULL, NULL, &error);
    if (status == DPI_TIMEOUT)
        return;
    if (status) { /* end of file: its death, if that is what it is, shows by its pidfd */
        pthread_mutex_lock(&s->lock);
        close(k->socket);
        k->socket = -1;
        pthread_mutex_unlock(&s->lock);
        k->mute_ns = clock_now_ns();
        return;
    }
    bool starting = k->state == WORKER_STARTING && !k->accepted;
    if (!starting && json_object_get(message, "bad")) {
        recovery_bad_rows(s, w, message);
        json_decref(message);
        return;
    }
    if (!starting && !json_object_get(message, "trial") && !json_object_get(message, "suspect")) {
        take_answer(s, w, message);
        return;
    }
    if (!starting)
        recovery_message(s, w, message);
    else
        take_report(s, w, message);
    json_decref(message);
}

/* ---- hanging ---------------------------------------------------------------------------------------------------- */

/* A limit has passed. Is it a hang? Not while CPU time still advances, below a hard cap. */
static bool really_hangs(dpi_session *s, size_t w, int64_t over_ns, int64_t limit_ns)
{
    session_worker *k = &s->workers[w];
    int64_t now = clock_now_ns(), cpu = clock_process_cpu_ns(k->process.pid);
    if (cpu - k->cpu_seen_ns > 20000000) {
        k->cpu_seen_ns = cpu;
        k->cpu_moved_ns = now;
    }
    return over_ns > HARD_CAP * limit_ns || now - k->cpu_moved_ns > 500000000;
}

static void check_start(dpi_session *s, size_t w, int64_t now)
{
    session_worker *k = &s->workers[w];
    uint64_t heartbeat = atomic_load(&k->page->heartbeat);
    if (heartbeat != k->heartbeat_seen) {
        k->heartbeat_seen = heartbeat;
        k->heartbeat_ns = now;
    }
    int64_t limit = (int64_t)s->compile_timeout_ms * 1000000, over = now - k->heartbeat_ns;
    if (over < limit || !really_hangs(s, w, over, limit))
        return;
    ending e = {.signal_number = -1, .exit_code = -1, .hung = true};
    snprintf(e.why, sizeof e.why,
             "was not ready after %.1f s and was ended (raise --compile-timeout if the model takes longer)",
             (double)(now - k->spawned_ns) * 1e-9);
    supervisor_end_worker(s, w, &e);
}

static int64_t slice_limit_ns(const dpi_session *s, size_t w)
{
    const worker_page *page = s->workers[w].page;
    /* A worker that replaces one has shapes that were run before; a row that hangs must not cost this each time. */
    if (atomic_load(&page->busy_first) && s->workers[w].generation == 1)
        return (int64_t)s->compile_timeout_ms * 1000000;
    if (s->slice_timeout_ms)
        return (int64_t)s->slice_timeout_ms * 1000000;
    const worker_control *c = &s->control->workers[w];
    double predicted =
        (double)atomic_load(&c->fixed_ns) + (double)atomic_load(&c->row_ns) * (double)atomic_load(&page->busy_rows);
    double limit = predicted * 20 > 10e9 ? predicted * 20 : 10e9;
    return limit < 1e18 ? (int64_t)limit : (int64_t)1e18;
}

/* Since when a worker is busy, 0: it is not. Its page may name a time that cannot be: then since it does. */
static int64_t busy_since_ns(session_worker *k, int64_t now)
{
    int64_t said = atomic_load(&k->page->busy_since_ns);
    if (said != k->said_ns) {
        k->said_ns = said;
        k->heard_ns = now;
    }
    return said < 0 || said > now ? k->heard_ns : said;
}

static void check_slice(dpi_session *s, size_t w, int64_t now)
{
    int64_t since = busy_since_ns(&s->workers[w], now);
    if (!since)
        return;
    int64_t limit = slice_limit_ns(s, w), over = now - since;
    if (over < limit || !really_hangs(s, w, over, limit))
        return;
    ending e = {.signal_number = -1, .exit_code = -1, .hung = true};
    char work[100];
    supervisor_describe_work(s, w, work, sizeof work);
    snprintf(e.why, sizeof e.why, "hung%s: %.1f s, its limit is %.1f s; it was killed", work, (double)over * 1e-9,
             (double)limit * 1e-9);
    supervisor_end_worker(s, w, &e);
}

/* A worker that has been told to leave has nothing to do but what it had begun. */
static void check_leaving(dpi_session *s, size_t w, int64_t now)
{
    session_worker *k = &s->workers[w];
    bool leaves = atomic_load(&k->page->stage) == STAGE_LEAVING; /* with what its courier assigned too late, perhaps */
    if (!leaves && recovery_has_work(s, w))                      /* its page may say anything */
        k->idle_ns = now;
    else if (now - k->idle_ns > OBEY_NS)
        supervisor_end_worker(
            s, w, &(ending){.signal_number = -1, .exit_code = -1, .why = "did not leave when told to and was ended"});
}

static int64_t idle_limit_ns(const dpi_session *s)
{
    int64_t limit = s->slice_timeout_ms ? (int64_t)s->slice_timeout_ms * 1000000 : 10000000000;
    return limit > LEAST_IDLE_NS ? limit : LEAST_IDLE_NS;
}

/* A worker that says that it is idle and yet neither answers a question nor begins the slices that are its own: it has
 * been stopped, or does not wake. */
static void check_idle(dpi_session *s, size_t w, int64_t now)
{
    session_worker *k = &s->workers[w];
    if (atomic_load(&k->page->busy_since_ns) || courier_is_copying(s, w)) {
        k->quiet_ns = 0;
        return;
    }
    pthread_mutex_lock(&s->lock);
    int64_t limit = k->owes_ns;
    pthread_mutex_unlock(&s->lock);
    if (!limit && recovery_owes(s, w))
        limit = idle_limit_ns(s);
    if (!limit) {
        k->quiet_ns = 0;
        return;
    }
    k->quiet_ns = k->quiet_ns ? k->quiet_ns : now;
    int64_t over = now - k->quiet_ns;
    if (over < limit || !really_hangs(s, w, over, limit))
        return;
    ending e = {.signal_number = -1, .exit_code = -1, .hung = true};
    snprintf(e.why, sizeof e.why, "did nothing for %.1f s although there is work for it; it was killed",
             (double)over * 1e-9);
    supervisor_end_worker(s, w, &e);
}

/* The queue of shard mode stands at its end, or is not this batch's, beside a slice that nobody has begun. Under the
 * lock: the slot stays this batch's while its hint is written. */
static void refill_queue(const batch *b, claims *c)
{
    uint64_t next = atomic_load(&c->next);
    if ((uint32_t)next != 0 && next >> 32 == b->sequence)
        return;
    for (uint32_t i = 0; i < b->slice_count; i++) {
        claim now = claim_load(&c->word[i]);
        if (now.sequence == b->sequence && now.state == CLAIM_FREE) {
            hint_start(&c->next, b->sequence, b->slice_count - i);
            return;
        }
    }
}

/* Work that nobody has started although somebody should have: ring again. No ring is ever lost by the rules; by a
 * worker's lying hints one may be, which must cost time, never a hang. */
static void nudge(dpi_session *s)
{
    pthread_mutex_lock(&s->lock);
    for (int slot = 0; slot < LAYOUT_SLOTS; slot++)
        if (s->slots[slot] && s->slots[slot]->shard)
            refill_queue(s->slots[slot], batch_claims(s, slot));
    pthread_mutex_unlock(&s->lock);
    for (size_t w = 0; w < s->count; w++)
        if (atomic_load(&s->workers[w].page->sleeping)) {
            atomic_fetch_add(&s->control->workers[w].bell, 1);
            futex_wake(&s->control->workers[w].bell);
        }
}

/* How many slices of published batches are terminal, and how many are not. */
static void count_slices(dpi_session *s, uint64_t *done, uint64_t *open)
{
    *done = *open = 0;
    pthread_mutex_lock(&s->lock);
    for (int slot = 0; slot < LAYOUT_SLOTS; slot++) {
        const batch *b = s->slots[slot];
        if (!b || b->publishing)
            continue;
        const claims *c = batch_claims(s, slot);
        for (uint32_t i = 0; i < b->slice_count; i++) {
            claim now = claim_load(&c->word[i]);
            bool terminal = now.sequence == b->sequence && claim_is_terminal(now);
            *done += terminal;
            *open += !terminal;
        }
    }
    pthread_mutex_unlock(&s->lock);
}

/* Every worker says that it is idle, has been rung again and again, and yet slices stay unfinished: a worker does not
 * wake, or garbage stands where the claims were. Waiting for them would be for ever. */
static void check_stall(dpi_session *s, int64_t now)
{
    bool busy = recovery_pending(s);
    for (size_t w = 0; w < s->count; w++) {
        const session_worker *k = &s->workers[w];
        busy |= k->device == DEVICE_IN_USE && (!k->ready || atomic_load(&k->page->busy_since_ns));
        busy |= k->state == WORKER_LEAVING;
    }
    if (busy) {
        s->stalled_ns = 0;
        return;
    }
    uint64_t done, open;
    count_slices(s, &done, &open);
    if (!open || !s->stalled_ns || done != s->stalled_done) {
        s->stalled_ns = open ? now : 0;
        s->stalled_done = done;
        return;
    }
    int64_t limit = 2 * idle_limit_ns(s); /* check_idle comes first: it knows who it is */
    if (now - s->stalled_ns < limit)
        return;
    s->stalled_ns = 0;
    char what[160];
    snprintf(what, sizeof what, "all workers are idle and %llu slices have not been computed for %.1f s",
             (unsigned long long)open, (double)limit * 1e-9);
    supervisor_start_anew(s, what);
}

static void tick(dpi_session *s, int64_t *last_ns)
{
    int64_t now = clock_now_ns();
    bool late = now - *last_ns > 10 * TICK_MS * 1000000; /* we were not running: others may not have been either */
    *last_ns = now;
    if (late)
        s->stalled_ns = 0;
    if (atomic_load(&s->failed) || late)
        return;
    for (size_t w = 0; w < s->seats && !s->in_caller && !atomic_load(&s->failed); w++) {
        const session_worker *k = &s->workers[w];
        int64_t mute_limit_ns = k->state == WORKER_LEAVING ? LEAVE_NS : MUTE_NS;
        if (k->mute_ns && now - k->mute_ns > mute_limit_ns && !k->ended)
            supervisor_end_worker(
                s, w, &(ending){.signal_number = -1, .exit_code = -1, .why = "broke the protocol and was ended"});
        else if (k->state == WORKER_STARTING && !k->accepted)
            check_start(s, w, now);
        else if (k->state == WORKER_READY || k->state == WORKER_LEAVING)
            check_slice(s, w, now);
        if (k->state == WORKER_LEAVING)
            check_leaving(s, w, now);
        if (k->state == WORKER_READY || k->state == WORKER_LEAVING)
            check_idle(s, w, now);
    }
    if (atomic_load(&s->failed))
        return;
    recovery_step(s);
    if (!atomic_load(&s->control->active)) {
        s->stalled_ns = 0;
        return;
    }
    if (!s->in_caller && recovery_words_spoilt(s)) {
        supervisor_start_anew(s, "claim words hold what nobody may write there");
        return;
    }
    nudge(s);
    check_stall(s, now);
}

/* ---- the thread ------------------------------------------------------------------------------------------------- */

static void look_at_worker(dpi_session *s, size_t w)
{
    session_worker *k = &s->workers[w];
    int signal_number, code;
    supervisor_read_log(s, w);
    if (k->socket >= 0)
        take_message(s, w);
    if (s->in_caller || k->ended || k->process.pidfd < 0)
        return;
    if (child_ended(&k->process, clock_now_ns(), &signal_number, &code)) {
        k->ended = true; /* T19 see */
        if (k->socket >= 0)
            take_message(s, w); /* its last message explains more than its death */
        if (!atomic_load(&s->failed) && !atomic_load(&s->quit) && k->state != WORKER_WAITING)
            supervisor_worker_died(s, w, &(ending){.signal_number = signal_number, .exit_code = code});
    }
}

static void leave(dpi_session *s)
{
    atomic_store(&s->control->shutdown, 1);
    for (size_t w = 0; w < s->seats; w++) {
        atomic_fetch_add(&s->control->workers[w].bell, 1);
        futex_wake(&s->control->workers[w].bell);
    }
    bool busy = atomic_load(&s->control->active) != 0;
    bool opening = s->state == SESSION_OPENING;
    int64_t deadline = clock_now_ns() + (busy || opening ? LEAVE_NS / 10 : LEAVE_NS);
    for (size_t w = 0; w < s->seats && !s->in_caller; w++)
        supervisor_reap(s, w, deadline);
    supervisor_kill_all(s);
    for (size_t w = 0; w < s->seats; w++) {
        session_worker *k = &s->workers[w];
        courier_stop(s, w);
        if (k->thread_runs)
            pthread_join(k->thread, NULL);
        if (k->in_process) {
            worker_close(k->in_process);
            close(k->in_process->socket);
            free(k->in_process);
        }
    }
}

/* Strict isolation: what the courier of a worker has found. */
static void look_at_courier(dpi_session *s, size_t w)
{
    char reason[MAILBOX_REASON];
    if (courier_suspects(s, w, reason)) {
        recovery_suspects(s, w, reason);
        recovery_step(s);
    }
    if (courier_breach(s, w) && !s->workers[w].ended && !atomic_load(&s->failed))
        supervisor_end_worker(s, w,
                              &(ending){.signal_number = -1,
                                        .exit_code = -1,
                                        .why = "reported what it had not been given and was ended"});
}

/* How long the thread may sleep: a tick, or until a worker is to be started again. */
static int patience_ms(const dpi_session *s)
{
    int64_t now = clock_now_ns(), until = now + TICK_MS * 1000000;
    for (size_t w = 0; w < s->count; w++)
        if (s->workers[w].state == WORKER_WAITING && s->workers[w].restart_ns < until)
            until = s->workers[w].restart_ns;
    return until <= now ? 0 : (int)((until - now + 999999) / 1000000);
}

static void *supervisor_main(void *argument)
{
    dpi_session *s = argument;
    own_thread_begin("dpinfer");
    supervisor_start_all(s);
    struct pollfd *fds = calloc(1 + 3 * LAYOUT_WORKERS, sizeof *fds);
    int64_t last_ns = clock_now_ns();
    while (fds && !atomic_load(&s->quit)) {
        size_t seats = s->seats;
        fds[0] = (struct pollfd){.fd = s->supervisor_wake, .events = POLLIN};
        for (size_t w = 0; w < seats; w++) {
            session_worker *k = &s->workers[w];
            fds[1 + 3 * w] = (struct pollfd){.fd = k->socket, .events = POLLIN};
            fds[2 + 3 * w] = (struct pollfd){.fd = k->log_pipe, .events = POLLIN};
            fds[3 + 3 * w] = (struct pollfd){.fd = k->ended ? -1 : k->process.pidfd, .events = POLLIN};
        }
        poll(fds, (nfds_t)(1 + 3 * seats), patience_ms(s));
        uint64_t calls;
        if ((fds[0].revents & POLLIN) && read(s->supervisor_wake, &calls, sizeof calls) > 0)
            recovery_step(s);
        for (size_t w = 0; w < seats; w++)
            if (fds[1 + 3 * w].revents || fds[2 + 3 * w].revents || fds[3 + 3 * w].revents)
                look_at_worker(s, w);
        for (size_t w = 0; w < seats && s->strict; w++)
            look_at_courier(s, w);
        tick(s, &last_ns);
        supervisor_change(s);
        supervisor_restart_due(s);
    }
    free(fds);
    leave(s);
    return NULL;
}

dpi_status supervisor_start(dpi_session *s, dpi_error *error)
{
    s->seats = s->count;
    for (size_t w = 0; w < s->seats; w++)
        supervisor_set_up(&s->workers[w]);
    s->supervisor_wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->supervisor_wake < 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot make an event descriptor");
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    int bad = pthread_create(&s->supervisor, &attributes, supervisor_main, s);
    pthread_attr_destroy(&attributes);
    if (bad)
        return error_set_errno(error, DPI_E_SYSTEM, bad, "cannot start the supervisor thread");
    s->supervisor_runs = true;
    return DPI_OK;
}

void supervisor_wake(dpi_session *s)
{
    uint64_t one = 1;
    if (write(s->supervisor_wake, &one, sizeof one) < 0)
        log_debug(&s->log, "the supervisor is awake already");
}

void supervisor_stop(dpi_session *s)
{
    if (!s->supervisor_runs)
        return;
    atomic_store(&s->quit, 1);
    supervisor_wake(s);
    pthread_join(s->supervisor, NULL);
    s->supervisor_runs = false;
}
