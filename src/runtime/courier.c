#include "runtime/courier.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/own_thread.h"
#include "runtime/loader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define WAIT_NS 100000000 /* by a worker's lies a ring may be lost, which costs this much, never a hang */

typedef struct seat {
    bool awaited;
    uint64_t number, seen; /* seen: the last report that stood there */
    mailbox_slice what;
} seat;

struct courier {
    dpi_session *s;
    size_t w;
    outbox *out;
    inbox *in;
    worker claimer; /* claims and finishes in the worker's name, on memory of the caller's */
    flight flight;  /* what it is at */
    seat seats[MAILBOX_SEATS];
    uint64_t number; /* of the last assignment */
    unsigned in_flight;
    pthread_t thread;
    _Atomic uint32_t quit, breach, copying;
    pthread_mutex_t lock; /* guards what follows */
    bool suspects;
    char reason[MAILBOX_REASON];
};

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* By pread: the caller need not map what a worker can write, and memory that was never written costs nothing. */
static dpi_status bring_bytes(const dpi_session *s, size_t w, uint64_t at, uint64_t bytes, dpi_error *error)
{
    dpi_error why;
    return file_read_at(s->workers[w].private_fd, arena_at(s->outputs, at), bytes, at, "a worker's memory", &why)
               ? error_set(error, DPI_E_SYSTEM, "cannot take over the rows of a slice: %s", why.message)
               : DPI_OK;
}

dpi_status courier_bring(dpi_session *s, size_t w, uint32_t slot, uint64_t first_row, uint64_t rows, dpi_error *error)
{
    const batch_desc *b = &s->control->batches[slot];
    int64_t began_ns = clock_now_ns();
    uint64_t copied = 0;
    dpi_status status = DPI_OK;
    for (uint32_t o = 0; o < b->output_count && !status; o++) {
        const layout_array *out = &b->outputs[o];
        status = bring_bytes(s, w, out->offset + first_row * out->stored_bytes, rows * out->stored_bytes, error);
        copied += rows * out->stored_bytes;
    }
    __atomic_fetch_add(&s->copied_out_bytes, copied, __ATOMIC_RELAXED);
    __atomic_fetch_add(&s->copy_out_ns, (uint64_t)(clock_now_ns() - began_ns), __ATOMIC_RELAXED);
    return status;
}

/* ---- reports ---------------------------------------------------------------------------------------------------- */

static void note_suspect(courier *c, const char *reason)
{
    pthread_mutex_lock(&c->lock);
    c->suspects = true;
    memcpy(c->reason, reason, sizeof c->reason);
    c->reason[sizeof c->reason - 1] = 0;
    pthread_mutex_unlock(&c->lock);
    supervisor_wake(c->s);
}

/* A slice of ours is computed, or has failed. Until its word is moved nobody else touches it or its rows. */
static void finish(courier *c, seat *k, dpi_status status)
{
    flight *f = &c->flight;
    dpi_error error;
    error_clear(&error);
    *k = (seat){.number = k->number, .seen = mailbox_report(k->number, (uint32_t)status), .what = k->what};
    c->in_flight--;
    f->slot = k->what.slot;
    f->sequence = k->what.sequence;
    f->slice = k->what.slice;
    f->flags = k->what.flags;
    worker_find_rows(&c->claimer, f);
    if (status) {
        char reason[MAILBOX_REASON];
        memcpy(reason, c->in->reasons[k->number % MAILBOX_SEATS], sizeof reason);
        error_set(&error, status, "%.*s", (int)sizeof reason - 1, reason);
    } else {
        atomic_store(&c->copying, 1);
        status = courier_bring(c->s, c->w, f->slot, f->first_row, f->rows, &error);
        atomic_store(&c->copying, 0);
    }
    if (worker_end_slice(&c->claimer, f, status, &error))
        note_suspect(c, error.message);
}

static bool is_outcome(uint32_t status) { return !status || (status >= DPI_E_ARGUMENT && status <= DPI_E_INTERNAL); }

/* M4 collect. Takes reports, the oldest assignment's first; true when there were some. */
static bool collect(courier *c)
{
    bool any = false;
    for (uint64_t n = c->number + 1; n <= c->number + MAILBOX_SEATS; n++) {
        seat *k = &c->seats[n % MAILBOX_SEATS];
        uint32_t status;
        mailbox_look look = mailbox_collect(c->in, k->number, k->seen, k->awaited, &status);
        if (look == MAILBOX_SILENT)
            continue;
        if (look == MAILBOX_BREACH || !is_outcome(status)) {
            atomic_store(&c->breach, 1);
            supervisor_wake(c->s);
            return any;
        }
        finish(c, k, (dpi_status)status);
        any = true;
    }
    return any;
}

/* ---- assignments ------------------------------------------------------------------------------------------------ */

/* Whether this generation may be given anything. Pairs with the supervisor's stores, as in worker_loop. */
static bool may_claim(courier *c)
{
    const control *shared = c->s->control;
    const worker_control *mine = &shared->workers[c->w];
    uint32_t generation = c->claimer.generation;
    if (atomic_load_explicit(&mine->admitted, memory_order_acquire) != generation ||
        atomic_load_explicit(&mine->dismissed, memory_order_acquire) == generation || atomic_load(&shared->shutdown))
        return false;
    c->claimer.depth = c->s->workers[c->w].report.depth; /* it was reported before it was admitted */
    return true;
}

/* Claims one for the worker: what its engine has room for, or will have by the time that the worker looks again. */
static bool claim_one(courier *c, int64_t *look_again_ns)
{
    unsigned depth = (unsigned)c->claimer.depth;
    bool spare = c->in_flight >= depth;
    return (c->in_flight < depth + LOADER_AHEAD && worker_claim(&c->claimer, &c->flight, true, spare, look_again_ns)) ||
           (c->in_flight <= depth && worker_claim(&c->claimer, &c->flight, false, spare, look_again_ns));
}

/* M1 assign. True when there was something. */
static bool assign(courier *c, int64_t *look_again_ns)
{
    bool any = false;
    for (;;) {
        seat *k = &c->seats[(c->number + 1) % MAILBOX_SEATS];
        if (k->awaited || !may_claim(c) || !claim_one(c, look_again_ns))
            return any;
        const flight *f = &c->flight;
        k->what = (mailbox_slice){
            .slot = f->slot, .sequence = f->sequence, .slice = f->slice, .flags = f->flags, .stolen = f->stolen};
        k->number = ++c->number;
        k->awaited = true;
        c->in_flight++;
        mailbox_assign(c->out, k->number, k->what);
        session_ring_worker(c->s, c->w);
        any = true;
    }
}

/* The worker is dead and had not taken these: they are not what it died of. From here on they are as they were planned,
 * and recovery frees them. */
static void give_back(courier *c)
{
    uint64_t taken = atomic_load_explicit(&c->in->taken, memory_order_acquire);
    for (size_t i = 0; i < MAILBOX_SEATS; i++) {
        const seat *k = &c->seats[i];
        claim running = {.sequence = k->what.sequence,
                         .generation = c->claimer.generation,
                         .worker = c->claimer.index,
                         .state = CLAIM_RUNNING},
              planned = running;
        planned.state = CLAIM_CLAIMED;
        if (k->awaited && k->number > taken)
            claim_move(&worker_claims(&c->claimer, k->what.slot)->word[k->what.slice], running, planned);
    }
}

/* ---- the thread ------------------------------------------------------------------------------------------------- */

static void *courier_main(void *argument)
{
    courier *c = argument;
    own_thread_begin("dpinfer-courier");
    for (;;) {
        uint32_t seen = atomic_load(&c->in->bell); /* before all that it is rung for */
        if (atomic_load(&c->quit) || atomic_load(&c->breach))
            break;
        int64_t look_again_ns = clock_now_ns() + WAIT_NS;
        bool any = collect(c);
        any |= !atomic_load(&c->breach) && assign(c, &look_again_ns);
        if (!any)
            bell_wait(&c->in->bell, seen, &c->out->sleeping, c->s->patience, look_again_ns); /* T12 sleep */
    }
    if (!atomic_load(&c->breach)) { /* M5 stop */
        collect(c);
        give_back(c);
    }
    return NULL;
}

/* Memory of which the worker can neither move nor hide any: its rows stand where they do in the outputs arena. */
static dpi_status make_private(const dpi_session *s, session_worker *k, dpi_error *error)
{
    if (k->private_fd >= 0)
        return DPI_OK;
    uint64_t bytes = arena_max(s->outputs);
    k->private_fd = memfd_create("dpinfer-private", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (k->private_fd < 0 || ftruncate(k->private_fd, (off_t)bytes) != 0)
        return error_set_errno(
            error, DPI_E_SYSTEM, errno,
            "cannot reserve %llu bytes of a worker's memory; lower arena_max_bytes or raise ulimit -f",
            (unsigned long long)bytes);
    if (fcntl(k->private_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot seal shared memory");
    return DPI_OK;
}

/* Claims with the identity of the generation that is about to start. */
static void fill_claimer(courier *c)
{
    static const backend nobodys = {.name = "none"}; /* its steps are the worker's */
    dpi_session *s = c->s;
    c->claimer = (worker){.index = (uint32_t)c->w,
                          .generation = s->workers[c->w].generation,
                          .control = s->control,
                          .outputs = arena_at(s->outputs, 0),
                          .page = s->workers[c->w].page,
                          .event_fd = s->event_fd,
                          .backend = &nobodys};
    c->out = &s->control->outboxes[c->w];
    c->in = &s->workers[c->w].page->inbox;
    atomic_store(&c->in->taken, 0);
    for (uint64_t i = 0; i < MAILBOX_SEATS; i++) {
        c->seats[i].number = i;
        atomic_store(&c->out->seats[i].number, 0);
        atomic_store(&c->in->reports[i], 0);
    }
}

dpi_status courier_start(dpi_session *s, size_t w, dpi_error *error)
{
    session_worker *k = &s->workers[w];
    dpi_status status = make_private(s, k, error);
    courier *c = status ? NULL : calloc(1, sizeof *c);
    if (!c)
        return status ? status : error_set(error, DPI_E_SYSTEM, "out of memory");
    c->s = s;
    c->w = w;
    fill_claimer(c);
    pthread_mutex_init(&c->lock, NULL);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 * 1024);
    int bad = pthread_create(&c->thread, &attributes, courier_main, c);
    pthread_attr_destroy(&attributes);
    if (bad) {
        pthread_mutex_destroy(&c->lock);
        free(c);
        return error_set_errno(error, DPI_E_SYSTEM, bad, "cannot start a thread for %s", s->devices.items[w].name);
    }
    k->courier = c;
    return DPI_OK;
}

void courier_stop(dpi_session *s, size_t w)
{
    courier *c = s->workers[w].courier;
    if (!c)
        return;
    s->workers[w].courier = NULL;
    atomic_store(&c->quit, 1);
    session_ring_claimer(s, w);
    pthread_join(c->thread, NULL);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

bool courier_breach(const dpi_session *s, size_t w)
{
    const courier *c = s->workers[w].courier;
    return c && atomic_load(&c->breach);
}

bool courier_is_copying(const dpi_session *s, size_t w)
{
    const courier *c = s->workers[w].courier;
    return c && atomic_load(&c->copying);
}

bool courier_suspects(dpi_session *s, size_t w, char reason[MAILBOX_REASON])
{
    courier *c = s->workers[w].courier;
    if (!c)
        return false;
    pthread_mutex_lock(&c->lock);
    bool any = c->suspects;
    c->suspects = false;
    memcpy(reason, c->reason, sizeof c->reason);
    pthread_mutex_unlock(&c->lock);
    return any;
}
