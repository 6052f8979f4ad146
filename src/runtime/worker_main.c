/* dpinfer-worker: one device, one engine. Started by the library, never by hand. */
#include "base/clock.h"
#include "base/text.h"
#include "data/sigbus.h"
#include "ipc/arena.h"
#include "ipc/child.h"
#include "runtime/bare.h"
#include "runtime/gpus.h"
#include "runtime/worker.h"

#include "dpi_build.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* The caller's end of the socket closes when the caller dies, however it dies. */
static void *watch_caller(void *argument)
{
    const worker *w = argument;
    struct pollfd p = {.fd = w->socket, .events = POLLRDHUP};
    while (poll(&p, 1, -1) <= 0)
        ;
    _exit(0);
}

static dpi_status attach(worker *w, dpi_error *error)
{
    control *c = arena_attach(WORKER_FD_CONTROL, sizeof *c, false, error);
    if (!c)
        return DPI_E_SYSTEM;
    if (c->magic != LAYOUT_MAGIC || c->version != LAYOUT_VERSION || c->build_id != DPI_BUILD_ID)
        return error_set(error, DPI_E_WORKER,
                         "dpinfer-worker %s (build %llx) does not fit the library (build %llx); install both anew",
                         DPI_VERSION, (unsigned long long)DPI_BUILD_ID, (unsigned long long)c->build_id);
    w->control = c;
    w->outbox = c->strict ? &c->outboxes[w->index] : NULL;
    w->inputs = arena_attach(WORKER_FD_INPUTS, c->input_max_bytes, false, error);
    w->outputs = w->inputs ? arena_attach(WORKER_FD_OUTPUTS, c->output_max_bytes, true, error) : NULL;
    struct stat page;
    bool traced = fstat(WORKER_FD_PAGE, &page) == 0 && (uint64_t)page.st_size >= PAGE_BYTES + sizeof(trace_ring);
    w->page = w->outputs
                  ? arena_attach(WORKER_FD_PAGE, traced ? PAGE_BYTES + sizeof(trace_ring) : PAGE_BYTES, true, error)
                  : NULL;
    if (w->page && traced)
        w->trace = (trace_ring *)(void *)((unsigned char *)w->page + PAGE_BYTES);
    return w->page ? DPI_OK : DPI_E_SYSTEM;
}

int main(int argc, char **argv)
{
    uint64_t parent, index, generation;
    if (argc == 2 && strcmp(argv[1], GPUS_ARGUMENT) == 0)
        return gpus_main();
    if (argc == 3 && strcmp(argv[1], BARE_ARGUMENT) == 0 && text_to_u64(argv[2], 1, INT32_MAX, &parent))
        return bare_main((pid_t)parent);
    if (argc != 4 || !text_to_u64(argv[1], 1, INT32_MAX, &parent) ||
        !text_to_u64(argv[2], 0, LAYOUT_WORKERS - 1, &index) || !text_to_u64(argv[3], 1, UINT32_MAX, &generation)) {
        fprintf(stderr, "dpinfer-worker is started by dpinfer; run `dpinfer --help` instead\n");
        return 2;
    }
    if (!child_die_with((pid_t)parent))
        return 0;
    worker *w = calloc(1, sizeof *w);
    if (!w)
        return 1;
    w->index = (uint32_t)index;
    w->generation = (uint32_t)generation;
    w->socket = WORKER_FD_SOCKET;
    w->event_fd = WORKER_FD_EVENT;
    w->model_fd = WORKER_FD_MODEL;
    dpi_error error;
    error_clear(&error);
    if (attach(w, &error)) {
        json_t *reply = failure_to_json(&error);
        channel_send(w->socket, reply, NULL, 0, clock_now_ns() + 1000000000, &error);
        _exit(1);
    }
    sigbus_watch(&w->page->sigbus_source, &w->page->sigbus_offset);
    pthread_t watcher;
    if (pthread_create(&watcher, NULL, watch_caller, w) != 0)
        _exit(1);
    if (worker_open(w, &error)) {
        fprintf(stderr, "%s\n", error.message);
        worker_leave(w, 1);
    }
    worker_loop(w);
    worker_leave(w, 0);
}
