/* The one thread of ours in the caller's process: starts workers, reads what they say, notices when they die or hang.
 */
#include "base/clock.h"
#include "data/sigbus.h"
#include "runtime/batch.h"

#include "dpi_build.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define TICK_MS  100
#define HARD_CAP 10 /* times the limit: a hang even while CPU time advances */
#define LEAVE_NS 1500000000
#define KILL_NS  5000000000

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

static void read_log(dpi_session *s, size_t w)
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

/* True when the worker is gone (processes), or never was. */
static bool reap(dpi_session *s, size_t w, int64_t deadline_ns)
{
    session_worker *k = &s->workers[w];
    int signal_number, code;
    if (s->in_caller || k->ended)
        return true;
    k->ended = child_ended(&k->process, deadline_ns, &signal_number, &code);
    return k->ended;
}

static void kill_all(dpi_session *s)
{
    for (size_t w = 0; w < s->count && !s->in_caller; w++)
        if (!s->workers[w].ended)
            child_kill(&s->workers[w].process);
    int64_t deadline = clock_now_ns() + KILL_NS;
    for (size_t w = 0; w < s->count; w++)
        if (!reap(s, w, deadline))
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

/* The session is over: nobody can write to its memory any more, and every call says why. */
static void fail(dpi_session *s, const dpi_error *error)
{
    if (atomic_load(&s->failed))
        return;
    kill_all(s);
    pthread_mutex_lock(&s->lock);
    s->failure = *error;
    s->state = SESSION_FAILED;
    atomic_store(&s->failed, 1);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    ring_everybody(s);
}

static void describe_work(const dpi_session *s, size_t w, char *out, size_t size)
{
    const worker_page *page = s->workers[w].page;
    if (atomic_load(&page->busy_since_ns))
        snprintf(out, size, " while computing slice %u (%u rows)", atomic_load(&page->busy_slice),
                 atomic_load(&page->busy_rows));
    else
        snprintf(out, size, "%s", s->workers[w].ready ? " while waiting for work" : " while starting");
}

static void fail_dead(dpi_session *s, size_t w, int signal_number, int code)
{
    session_worker *k = &s->workers[w];
    dpi_error error;
    char words[700], how[120], work[120];
    read_log(s, w);
    last_words(k, words, sizeof words);
    describe_work(s, w, work, sizeof work);
    if (signal_number > 0)
        snprintf(how, sizeof how, "was killed by signal %d (%s)", signal_number, strsignal(signal_number));
    else if (code >= 0)
        snprintf(how, sizeof how, "left with exit code %d", code);
    else
        snprintf(how, sizeof how, "ended (this program reaped it before dpinfer could see how)");
    if (code == SIGBUS_EXIT_CODE && k->page->sigbus_source)
        error_set(&error, DPI_E_IO, "source %u shrank while worker %zu (%s) read it: byte %llu is gone",
                  k->page->sigbus_source, w, s->devices.items[w].name, (unsigned long long)k->page->sigbus_offset);
    else
        error_set(&error, DPI_E_WORKER, "worker %zu (%s, pid %d) %s%s%s", w, s->devices.items[w].name,
                  (int)k->process.pid, how, work, words);
    fail(s, &error);
}

/* ---- starting --------------------------------------------------------------------------------------------------- */

static void *thread_main(void *argument)
{
    worker *w = argument;
    dpi_error error;
    if (worker_open(w, &error) == DPI_OK)
        worker_loop(w);
    return NULL;
}

static dpi_status start_thread(dpi_session *s, size_t w, int socket, dpi_error *error)
{
    session_worker *k = &s->workers[w];
    worker *in = calloc(1, sizeof *in);
    if (!in)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    in->index = (uint32_t)w;
    in->generation = k->generation;
    in->control = s->control;
    in->inputs = arena_at(s->inputs, 0);
    in->outputs = arena_at(s->outputs, 0);
    in->page = k->page;
    in->socket = socket;
    in->event_fd = s->event_fd;
    in->model_fd = s->model_fd;
    in->log = s->log;
    in->engine_lock = s->count == 1 ? &s->engine_lock : NULL;
    k->in_process = in;
    if (pthread_create(&k->thread, NULL, thread_main, in) != 0)
        return error_set(error, DPI_E_SYSTEM, "cannot start a thread for %s", s->devices.items[w].name);
    k->thread_runs = true;
    return DPI_OK;
}

static dpi_status start_process(dpi_session *s, size_t w, int socket, dpi_error *error)
{
    session_worker *k = &s->workers[w];
    int log_fds[2];
    if (pipe2(log_fds, O_CLOEXEC) != 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot make a pipe");
    k->log_pipe = log_fds[0];
    fcntl(k->log_pipe, F_SETFL, O_NONBLOCK);
    int null_fd = s->model_fd >= 0 ? -1 : open("/dev/null", O_RDONLY | O_CLOEXEC);
    const int fds[] = {socket,
                       arena_fd(s->control_arena),
                       arena_fd(s->inputs),
                       arena_fd(s->outputs),
                       k->page_fd,
                       s->event_fd,
                       s->model_fd >= 0 ? s->model_fd : null_fd};
    char parent[24], index[24], generation[24];
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    snprintf(index, sizeof index, "%zu", w);
    snprintf(generation, sizeof generation, "%u", k->generation);
    char *argv[] = {(char *)(uintptr_t) "dpinfer-worker", parent, index, generation, NULL};
    dpi_status status =
        child_spawn(s->worker_path, argv, log_fds[1], fds, (int)(sizeof fds / sizeof fds[0]), &k->process, error);
    close(log_fds[1]);
    if (null_fd >= 0)
        close(null_fd);
    return status;
}

static dpi_status make_page(session_worker *k, dpi_error *error)
{
    k->page_fd = memfd_create("dpinfer-page", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (k->page_fd < 0 || ftruncate(k->page_fd, PAGE_BYTES) != 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot make a worker's page");
    void *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, k->page_fd, 0);
    fcntl(k->page_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    if (page == MAP_FAILED)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map a worker's page");
    k->page = page;
    return DPI_OK;
}

static dpi_status start_worker(dpi_session *s, size_t w, dpi_error *error)
{
    session_worker *k = &s->workers[w];
    int pair[2];
    dpi_status status = make_page(k, error);
    if (!status)
        status = channel_pair(pair, error);
    if (status)
        return status;
    k->socket = pair[0];
    k->generation++;
    s->setups[w].generation = k->generation;
    k->spawned_ns = k->heartbeat_ns = clock_now_ns();
    json_t *message = setup_to_json(&s->setups[w]);
    if (!message)
        status = error_set(error, DPI_E_ARGUMENT, "an option or a path is not valid UTF-8");
    else
        status = channel_send(pair[0], message, NULL, 0, clock_now_ns() + 1000000000, error);
    json_decref(message);
    if (!status)
        status = s->in_caller ? start_thread(s, w, pair[1], error) : start_process(s, w, pair[1], error);
    if (!s->in_caller || !k->in_process)
        close(pair[1]);
    return status;
}

/* ---- messages --------------------------------------------------------------------------------------------------- */

static void take_message(dpi_session *s, size_t w)
{
    session_worker *k = &s->workers[w];
    json_t *message;
    dpi_error error;
    dpi_status status = channel_receive(k->socket, clock_now_ns(), &message, NULL, NULL, &error);
    if (status == DPI_TIMEOUT)
        return;
    if (status) { /* end of file: its death, if that is what it is, shows by its pidfd */
        close(k->socket);
        k->socket = -1;
        return;
    }
    pthread_mutex_lock(&s->lock);
    bool ready = k->ready;
    if (ready) {
        json_decref(k->reply);
        k->reply = message;
        pthread_cond_broadcast(&s->changed);
    } else
        status = report_from_json(message, &k->report, &error);
    k->ready |= !status;
    pthread_mutex_unlock(&s->lock);
    if (ready)
        return;
    json_decref(message);
    if (status) {
        fail(s, &error);
        return;
    }
    bool all = true;
    for (size_t i = 0; i < s->count; i++)
        all &= s->workers[i].ready;
    if (!all)
        return;
    pthread_mutex_lock(&s->lock);
    if (s->state == SESSION_OPENING)
        s->state = SESSION_OPEN;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
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
    dpi_error error;
    char words[700];
    read_log(s, w);
    last_words(k, words, sizeof words);
    error_set(&error, DPI_E_WORKER,
              "worker %zu (%s, pid %d) was not ready after %.1f s and was ended%s; raise "
              "--compile-timeout if the model takes longer",
              w, s->devices.items[w].name, (int)k->process.pid, (double)(now - k->spawned_ns) * 1e-9, words);
    fail(s, &error);
}

static int64_t slice_limit_ns(const dpi_session *s, size_t w)
{
    const worker_page *page = s->workers[w].page;
    if (atomic_load(&page->busy_first))
        return (int64_t)s->compile_timeout_ms * 1000000;
    if (s->slice_timeout_ms)
        return (int64_t)s->slice_timeout_ms * 1000000;
    const worker_control *c = &s->control->workers[w];
    double predicted =
        (double)atomic_load(&c->fixed_ns) + (double)atomic_load(&c->row_ns) * (double)atomic_load(&page->busy_rows);
    double limit = predicted * 20 > 10e9 ? predicted * 20 : 10e9;
    return limit < 1e18 ? (int64_t)limit : (int64_t)1e18;
}

static void check_slice(dpi_session *s, size_t w, int64_t now)
{
    session_worker *k = &s->workers[w];
    int64_t since = atomic_load(&k->page->busy_since_ns);
    if (since <= 0 || since > now)
        return;
    int64_t limit = slice_limit_ns(s, w), over = now - since;
    if (over < limit || !really_hangs(s, w, over, limit))
        return;
    dpi_error error;
    char words[700], work[120];
    read_log(s, w);
    last_words(k, words, sizeof words);
    describe_work(s, w, work, sizeof work);
    error_set(&error, DPI_E_WORKER, "worker %zu (%s, pid %d) hung%s: %.1f s, its limit is %.1f s; it was killed%s", w,
              s->devices.items[w].name, (int)k->process.pid, work, (double)over * 1e-9, (double)limit * 1e-9, words);
    fail(s, &error);
}

/* Work that nobody has started although somebody should have: ring again. A lost ring (a worker's lying hint, a
 * counter gone wrong) must cost time, never a hang. */
static void nudge(dpi_session *s)
{
    uint64_t active = atomic_load(&s->control->active);
    for (; active; active &= active - 1) {
        uint32_t slot = (uint32_t)__builtin_ctzll(active);
        batch_desc *b = &s->control->batches[slot];
        claims *c = (claims *)arena_at(s->outputs, slot * sizeof(claims));
        uint32_t sequence = atomic_load(&b->sequence), count = atomic_load(&b->slice_count);
        if (!sequence || !(atomic_load(&b->flags) & BATCH_SHARD) || (uint32_t)atomic_load(&c->next) != 0)
            continue;
        for (uint32_t i = 0; i < count && i < LAYOUT_SLICES; i++)
            if (claim_load(&c->word[i]).sequence == sequence && claim_load(&c->word[i]).state == CLAIM_FREE) {
                hint_start(&c->next, sequence, count - i);
                break;
            }
    }
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
    for (size_t w = 0; w < s->count; w++)
        if (!s->workers[w].ready || atomic_load(&s->workers[w].page->busy_since_ns)) {
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
    int64_t limit = s->slice_timeout_ms ? (int64_t)s->slice_timeout_ms * 1000000 : 10000000000;
    if (now - s->stalled_ns < limit)
        return;
    dpi_error error;
    error_set(&error, DPI_E_WORKER,
              "all workers are idle and %llu slices have not been computed for %.1f s: a worker does "
              "not wake, or has spoilt the memory that it shares",
              (unsigned long long)open, (double)(now - s->stalled_ns) * 1e-9);
    fail(s, &error);
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
    for (size_t w = 0; w < s->count && !s->in_caller && !atomic_load(&s->failed); w++) {
        if (!s->workers[w].ready)
            check_start(s, w, now);
        else
            check_slice(s, w, now);
    }
    if (!atomic_load(&s->control->active)) {
        s->stalled_ns = 0;
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
    read_log(s, w);
    if (k->socket >= 0)
        take_message(s, w);
    if (s->in_caller || k->ended || k->process.pidfd < 0)
        return;
    if (child_ended(&k->process, clock_now_ns(), &signal_number, &code)) {
        k->ended = true;
        if (k->socket >= 0)
            take_message(s, w); /* its last message explains more than its death */
        if (!atomic_load(&s->failed) && !atomic_load(&s->quit))
            fail_dead(s, w, signal_number, code);
    }
}

static void leave(dpi_session *s)
{
    atomic_store(&s->control->shutdown, 1);
    for (size_t w = 0; w < s->count; w++) {
        atomic_fetch_add(&s->control->workers[w].bell, 1);
        futex_wake(&s->control->workers[w].bell);
    }
    bool busy = atomic_load(&s->control->active) != 0;
    bool opening = s->state == SESSION_OPENING;
    int64_t deadline = clock_now_ns() + (busy || opening ? LEAVE_NS / 10 : LEAVE_NS);
    for (size_t w = 0; w < s->count && !s->in_caller; w++)
        reap(s, w, deadline);
    kill_all(s);
    for (size_t w = 0; w < s->count; w++) {
        session_worker *k = &s->workers[w];
        if (k->thread_runs)
            pthread_join(k->thread, NULL);
        if (k->in_process) {
            worker_close(k->in_process);
            close(k->in_process->socket);
            free(k->in_process);
        }
    }
}

static void start_all(dpi_session *s)
{
    dpi_error error;
    for (size_t w = 0; w < s->count; w++)
        if (start_worker(s, w, &error)) {
            s->workers[w].ended = s->workers[w].process.pidfd < 0;
            for (size_t later = w + 1; later < s->count; later++)
                s->workers[later].ended = true;
            fail(s, &error);
            return;
        }
}

static void *supervisor_main(void *argument)
{
    dpi_session *s = argument;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* the program's signals are for its own threads */
    prctl(PR_SET_NAME, "dpinfer");
    start_all(s);
    struct pollfd *fds = calloc(1 + 3 * s->count, sizeof *fds);
    int64_t last_ns = clock_now_ns();
    while (fds && !atomic_load(&s->quit)) {
        fds[0] = (struct pollfd){.fd = s->supervisor_wake, .events = POLLIN};
        for (size_t w = 0; w < s->count; w++) {
            session_worker *k = &s->workers[w];
            fds[1 + 3 * w] = (struct pollfd){.fd = k->socket, .events = POLLIN};
            fds[2 + 3 * w] = (struct pollfd){.fd = k->log_pipe, .events = POLLIN};
            fds[3 + 3 * w] = (struct pollfd){.fd = k->ended ? -1 : k->process.pidfd, .events = POLLIN};
        }
        poll(fds, (nfds_t)(1 + 3 * s->count), TICK_MS);
        for (size_t w = 0; w < s->count; w++)
            if (fds[1 + 3 * w].revents || fds[2 + 3 * w].revents || fds[3 + 3 * w].revents)
                look_at_worker(s, w);
        tick(s, &last_ns);
    }
    free(fds);
    leave(s);
    return NULL;
}

dpi_status supervisor_start(dpi_session *s, dpi_error *error)
{
    for (size_t w = 0; w < s->count; w++) {
        session_worker *k = &s->workers[w];
        k->socket = k->log_pipe = k->page_fd = k->process.pidfd = -1;
        k->process.pid = -1;
    }
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

void supervisor_stop(dpi_session *s)
{
    if (!s->supervisor_runs)
        return;
    uint64_t one = 1;
    atomic_store(&s->quit, 1);
    if (write(s->supervisor_wake, &one, sizeof one) < 0)
        log_debug(&s->log, "the supervisor is awake already");
    pthread_join(s->supervisor, NULL);
    s->supervisor_runs = false;
}
