/* Starting workers, the first time and again after a death. */
#include "base/clock.h"
#include "runtime/courier.h"
#include "runtime/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

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
    in->trace = k->trace;
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
    int null_fd = s->model_fd >= 0 && !s->strict ? -1 : open("/dev/null", O_RDONLY | O_CLOEXEC);
    const int fds[] = {socket,
                       arena_fd(s->control_arena),
                       arena_fd(s->inputs),
                       s->strict ? k->private_fd : arena_fd(s->outputs),
                       k->page_fd,
                       s->strict ? null_fd : s->event_fd, /* it is the courier who tells event loops */
                       s->model_fd >= 0 ? s->model_fd : null_fd};
    char parent[24], index[24], generation[24];
    snprintf(parent, sizeof parent, "%d", (int)getpid());
    snprintf(index, sizeof index, "%zu", w);
    snprintf(generation, sizeof generation, "%u", k->generation);
    char *argv[] = {(char *)(uintptr_t) "dpinfer-worker", parent, index, generation, NULL};
    child process;
    dpi_status status =
        child_spawn(s->worker_path, argv, log_fds[1], fds, (int)(sizeof fds / sizeof fds[0]), &process, error);
    pthread_mutex_lock(&s->lock);
    k->process = process;
    pthread_mutex_unlock(&s->lock);
    close(log_fds[1]);
    if (null_fd >= 0)
        close(null_fd);
    return status;
}

/* One page for all generations of a worker: those before are dead, its counters go on, and why a slice has failed is
 * still to be read by whoever waits for that batch. */
static dpi_status make_page(const dpi_session *s, session_worker *k, dpi_error *error)
{
    if (k->page) {
        atomic_store(&k->page->stage, 0);
        atomic_store(&k->page->sleeping, 0);
        atomic_store(&k->page->busy_since_ns, 0);
        atomic_store(&k->page->trial, 0);
        atomic_store(&k->page->inbox.job, 0);
        __atomic_store_n(&k->page->sigbus_source, 0, __ATOMIC_RELAXED);
        return DPI_OK;
    }
    k->page_fd = memfd_create("dpinfer-page", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    k->page_bytes = s->tracer ? PAGE_BYTES + sizeof(trace_ring) : PAGE_BYTES;
    if (k->page_fd < 0 || ftruncate(k->page_fd, (off_t)k->page_bytes) != 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot make a worker's page");
    void *page = mmap(NULL, k->page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, k->page_fd, 0);
    fcntl(k->page_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    if (page == MAP_FAILED)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map a worker's page");
    k->page = page;
    if (s->tracer)
        atomic_store_explicit(&k->trace, (trace_ring *)(void *)((unsigned char *)page + PAGE_BYTES),
                              memory_order_release);
    return DPI_OK;
}

void supervisor_set_up(session_worker *k)
{
    k->socket = k->log_pipe = k->page_fd = k->private_fd = k->process.pidfd = -1;
    k->process.pid = -1;
    k->ended = true;
}

/* Tells whoever looks (watch.h). */
static void show_start(dpi_session *s, size_t w)
{
    board *b = &s->control->board;
    board_worker *to = &b->workers[w];
    struct stat info;
    if (!atomic_load_explicit(&to->page_inode, memory_order_relaxed)) {
        snprintf(to->device, sizeof to->device, "%.63s", s->devices.items[w].name);
        if (fstat(s->workers[w].page_fd, &info) == 0) /* pairs with look_at_board */
            atomic_store_explicit(&to->page_inode, info.st_ino, memory_order_release);
    }
    atomic_fetch_add_explicit(&to->starts, 1, memory_order_relaxed);
    atomic_store_explicit(&to->in_use, 1, memory_order_relaxed);
    if (atomic_load_explicit(&b->worker_count, memory_order_relaxed) <= w)
        atomic_store_explicit(&b->worker_count, (uint32_t)w + 1, memory_order_release);
}

dpi_status supervisor_start_worker(dpi_session *s, size_t w, dpi_error *error)
{
    session_worker *k = &s->workers[w];
    int pair[2];
    dpi_status status = make_page(s, k, error);
    if (!status)
        status = channel_pair(pair, error);
    if (status)
        return status;
    show_start(s, w);
    pthread_mutex_lock(&s->lock);
    k->socket = pair[0];
    k->generation++;
    k->process.pid = 0; /* nobody may take the one before for this generation */
    k->owes_ns = 0;
    pthread_mutex_unlock(&s->lock);
    atomic_store(&s->control->workers[w].mail, 0);
    s->setups[w].generation = k->generation;
    k->state = WORKER_STARTING;
    k->ended = false;
    k->log_count = k->log_part_length = 0;
    k->mute_ns = k->quiet_ns = 0;
    k->cpu_seen_ns = k->cpu_moved_ns = 0;
    k->spawned_ns = k->heartbeat_ns = clock_now_ns();
    json_t *message = setup_to_json(&s->setups[w]);
    if (s->strict)
        status = courier_start(s, w, error);
    if (!status && !message)
        status = error_set(error, DPI_E_ARGUMENT, "an option or a path is not valid UTF-8");
    else if (!status)
        status = channel_send(pair[0], message, NULL, 0, clock_now_ns() + 1000000000, error);
    json_decref(message);
    if (!status)
        status = s->in_caller ? start_thread(s, w, pair[1], error) : start_process(s, w, pair[1], error);
    if (!s->in_caller || !k->in_process)
        close(pair[1]);
    return status;
}

void supervisor_admit(dpi_session *s, size_t w)
{
    worker_control *c = &s->control->workers[w];
    atomic_store_explicit(&c->admitted, s->workers[w].generation, memory_order_release); /* pairs with worker_loop */
    session_ring_claimer(s, w);
}

void supervisor_dismiss(dpi_session *s, size_t w)
{
    worker_control *c = &s->control->workers[w];
    atomic_store_explicit(&c->dismissed, s->workers[w].generation, memory_order_release); /* pairs with worker_loop */
    session_ring_worker(s, w);
}

void supervisor_start_all(dpi_session *s)
{
    dpi_error error;
    for (size_t w = 0; w < s->count; w++)
        if (supervisor_start_worker(s, w, &error)) {
            s->workers[w].ended = s->workers[w].process.pidfd < 0; /* it may have been started already */
            supervisor_fail(s, &error);
            return;
        }
}

/* T20 restart */
void supervisor_restart_due(dpi_session *s)
{
    int64_t now = clock_now_ns();
    dpi_error error;
    for (size_t w = 0; w < s->count && !atomic_load(&s->failed); w++) {
        session_worker *k = &s->workers[w];
        if (k->state != WORKER_WAITING || k->restart_ns > now)
            continue;
        if (session_files_unchanged(s, &error)) {
            supervisor_retire(s, w, error.message);
        } else if (supervisor_start_worker(s, w, &error)) {
            k->ended = true;
            supervisor_bury(s, w, true);
            supervisor_plan_restart(s, w, false, error.message);
        }
    }
}
