/* The caller's side of producers: deals ranges, takes them in order, and deals those of a dead producer again. */
#include "runtime/feed.h"

#include "base/clock.h"
#include "ipc/feed_layout.h"

#include "dpi_build.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LOOK_NS       50000000 /* between two looks at the producers' sockets, while waiting */
#define SEND_NS       1000000000
#define PREPARE_BYTES 4194304 /* a millisecond or so: a range that is filled meanwhile waits for it */

struct dpi_feed {
    dpi_session *session;
    feed_control *control;
    int fd;
    uint64_t blocks[PORT_MAX]; /* of the inputs arena */
    size_t block_count;
    uint64_t next; /* range that is taken next */
    size_t producers;
    int *sockets;      /* -1: gone */
    bool *has_ended;   /* said that nothing more comes */
    size_t connected;  /* sockets given out */
    size_t preparing;  /* input whose ring is being given memory, see prepare_memory; input_count: all have it */
    uint64_t prepared; /* bytes of it that have theirs */
};

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static dpi_status check_options(const dpi_session *s, const dpi_feed_options *o, dpi_error *error)
{
    if (s->in_caller || !s->has_producers)
        return error_set(error, DPI_E_ARGUMENT,
                         "the session was opened without producers; set dpi_options.producers (process isolation)");
    if (!o->range_rows || o->range_rows > UINT32_MAX || o->slots < 2 || o->slots > FEED_SLOTS_MAX)
        return error_set(error, DPI_E_ARGUMENT, "a feed has ranges of at least one row and 2 to %d slots",
                         FEED_SLOTS_MAX);
    if (!o->producers || o->producers > FEED_PRODUCERS_MAX)
        return error_set(error, DPI_E_ARGUMENT, "a feed has 1 to %d producers", FEED_PRODUCERS_MAX);
    return o->input_count == s->batch_input_count
               ? DPI_OK
               : error_set(error, DPI_E_DATA, "the session takes %zu inputs for a batch, and the feed has %zu",
                           s->batch_input_count, o->input_count);
}

/* Input i of the feed against the session's, by position; shape[0] of `t` is not looked at. */
static dpi_status add_input(dpi_feed *f, const dpi_tensor *t, size_t i, dpi_error *error)
{
    dpi_session *s = f->session;
    feed_control *c = f->control;
    feed_input *in = &c->inputs[i];
    size_t at = 0, seen = 0;
    while (at < s->sig.input_count && (s->is_broadcast[at] || seen++ < i))
        at++;
    const port *p = &s->sig.inputs[at];
    int64_t shape[DPI_MAX_RANK] = {0};
    size_t bytes;
    for (int k = 0; k < t->rank && k < DPI_MAX_RANK; k++)
        shape[k] = k ? t->shape[k] : (int64_t)c->range_rows;
    port one = *p;
    one.shape[0] = -1; /* batches of any size are cut and padded */
    if (t->dtype != p->dtype || t->rank != p->rank || !port_accepts_shape(&one, shape, t->rank) ||
        !shape_bytes(t->dtype, shape, t->rank, &bytes)) {
        char want[SHAPE_TEXT_SIZE], got[SHAPE_TEXT_SIZE];
        return error_set(error, DPI_E_DATA, "the input %s expects %s %s, and the feed brings %s %s", p->name,
                         dpi_dtype_name(p->dtype), shape_text(one.shape, p->rank, want), dpi_dtype_name(t->dtype),
                         shape_text(shape, t->rank, got));
    }
    memcpy(in->name, p->name, sizeof in->name);
    in->dtype = (uint32_t)t->dtype;
    in->rank = (uint32_t)t->rank;
    memcpy(in->shape, shape, sizeof in->shape);
    in->slot_bytes = (bytes + ARENA_GRAIN - 1) / ARENA_GRAIN * ARENA_GRAIN;
    size_t all;
    void *memory = __builtin_mul_overflow(in->slot_bytes, (size_t)c->slot_count, &all)
                       ? NULL
                       : block_alloc(s, all, DPI_INPUT, error);
    if (!memory)
        return error ? error->status : DPI_E_SYSTEM;
    in->offset = arena_find(s->inputs, memory, 0, NULL);
    f->blocks[f->block_count++] = in->offset;
    return DPI_OK;
}

static dpi_status make_control(dpi_feed *f, const dpi_feed_options *o, dpi_error *error)
{
    f->fd = memfd_create("dpinfer-feed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (f->fd < 0 || ftruncate(f->fd, sizeof *f->control) != 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot make memory for a feed");
    void *memory = mmap(NULL, sizeof *f->control, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
    if (memory == MAP_FAILED || fcntl(f->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) != 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map a feed");
    feed_control *c = f->control = memory;
    c->magic = FEED_MAGIC;
    c->build_id = DPI_BUILD_ID;
    c->rows = o->rows;
    c->range_rows = o->range_rows;
    c->input_max_bytes = arena_max(f->session->inputs);
    c->slot_count = (uint32_t)o->slots;
    c->input_count = (uint32_t)o->input_count;
    c->producers = (uint32_t)o->producers;
    for (uint32_t k = 0; k < c->slot_count; k++)
        atomic_store_explicit(&c->slots[k].word, feed_word(FEED_FREE, FEED_NOBODY, k), memory_order_relaxed);
    return DPI_OK;
}

dpi_status feed_open(dpi_session *s, const dpi_feed_options *o, dpi_feed **feed, dpi_error *error)
{
    dpi_status status = check_options(s, o, error);
    if (status)
        return status;
    dpi_feed *f = calloc(1, sizeof *f);
    int *sockets = calloc(o->producers, sizeof *sockets);
    bool *ended = calloc(o->producers, sizeof *ended);
    if (!f || !sockets || !ended) {
        free(f);
        free(sockets);
        free(ended);
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    *f = (dpi_feed){.session = s, .fd = -1, .producers = o->producers, .sockets = sockets, .has_ended = ended};
    for (size_t i = 0; i < f->producers; i++)
        sockets[i] = -1;
    status = make_control(f, o, error);
    for (size_t i = 0; i < o->input_count && !status; i++)
        status = add_input(f, &o->inputs[i], i, error);
    if (status) {
        feed_close(f);
        return status;
    }
    *feed = f;
    return DPI_OK;
}

dpi_status feed_connect(dpi_feed *f, int *socket, dpi_error *error)
{
    int ends[2], fds[2] = {f->fd, arena_writer_fd(f->session->inputs)};
    if (f->connected == f->producers)
        return error_set(error, DPI_E_ARGUMENT, "the feed was opened for %zu producers, and all are connected",
                         f->producers);
    dpi_status status = channel_pair(ends, error);
    if (status)
        return status;
    json_t *hello = json_pack("{s:i}", "producer", (int)f->connected + 1);
    status = hello ? channel_send(ends[0], hello, fds, 2, clock_now_ns() + SEND_NS, error)
                   : error_set(error, DPI_E_SYSTEM, "out of memory");
    json_decref(hello);
    if (status) {
        close(ends[0]);
        close(ends[1]);
        return status;
    }
    f->sockets[f->connected++] = ends[0];
    *socket = ends[1];
    return DPI_OK;
}

/* ---- taking ----------------------------------------------------------------------------------------------------- */

static feed_slot *slot_of(dpi_feed *f, uint64_t range) { return &f->control->slots[range % f->control->slot_count]; }

/* Ranges that a dead producer had reserved are free again. */
static void deal_again(dpi_feed *f, uint32_t producer)
{
    for (uint32_t k = 0; k < f->control->slot_count; k++) {
        uint64_t word = atomic_load_explicit(&f->control->slots[k].word, memory_order_relaxed);
        if (feed_state_of(word) == FEED_RESERVED && feed_producer_of(word) == producer)
            atomic_compare_exchange_strong_explicit(&f->control->slots[k].word, &word,
                                                    feed_word(FEED_FREE, FEED_NOBODY, feed_range_of(word)),
                                                    memory_order_release, memory_order_relaxed);
    }
    bell_ring(&f->control->free_bell, &f->control->free_sleeping);
}

/* Looks for producers whose socket has closed. True while there is one that lives, or one that was not connected yet.
 */
static bool look_at_producers(dpi_feed *f)
{
    bool any = f->connected < f->producers;
    for (size_t i = 0; i < f->connected; i++) {
        struct pollfd p = {.fd = f->sockets[i], .events = POLLIN};
        if (p.fd < 0)
            continue;
        if (poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR))) {
            close(f->sockets[i]);
            f->sockets[i] = -1;
            deal_again(f, (uint32_t)i + 1);
        } else
            any = true;
    }
    return any;
}

static size_t owner_of(const dpi_feed *f, uint64_t range) { return (size_t)(range % f->producers); }

/* Nothing more comes of ranges whose producer has ended: they go round unused. False: all have ended. */
static bool skip_ended(dpi_feed *f)
{
    size_t skipped = 0;
    while (skipped < f->producers && f->has_ended[owner_of(f, f->next)]) {
        atomic_store_explicit(&slot_of(f, f->next)->word,
                              feed_word(FEED_FREE, FEED_NOBODY, f->next + f->control->slot_count),
                              memory_order_release);
        f->next++;
        skipped++;
    }
    if (skipped)
        bell_ring(&f->control->free_bell, &f->control->free_sleeping);
    return skipped < f->producers;
}

static dpi_status give_range(dpi_feed *f, uint64_t word, dpi_range *range, dpi_tensor *inputs, dpi_error *error)
{
    feed_control *c = f->control;
    feed_slot *slot = slot_of(f, f->next);
    uint64_t most = feed_rows_of(c, f->next), rows = slot->rows;
    if (feed_producer_of(word) < 1 || feed_producer_of(word) > f->producers)
        return error_set(error, DPI_E_WORKER, "a producer has spoilt the feed");
    if (rows > most || (c->rows != UINT64_MAX && feed_state_of(word) == FEED_FILLED && rows != most))
        return error_set(error, DPI_E_WORKER, "producer %u says that it wrote %llu rows of a range of %llu",
                         feed_producer_of(word), (unsigned long long)rows, (unsigned long long)most);
    if (feed_state_of(word) == FEED_FAILED) {
        char message[FEED_MESSAGE_SIZE + 1] = {0};
        memcpy(message, slot->message, FEED_MESSAGE_SIZE);
        return error_set(error, DPI_E_DATA, "%s", message[0] ? message : "a producer failed and did not say why");
    }
    if (feed_state_of(word) == FEED_ENDED)
        f->has_ended[feed_producer_of(word) - 1] = true;
    atomic_store_explicit(&slot->word, feed_word(FEED_TAKEN, feed_producer_of(word), f->next), memory_order_relaxed);
    *range = (dpi_range){.index = f->next, .first_row = f->next * c->range_rows, .rows = rows};
    for (uint32_t i = 0; i < c->input_count; i++) {
        const feed_input *in = &c->inputs[i];
        inputs[i] = (dpi_tensor){.name = in->name, .dtype = (dpi_dtype)in->dtype, .rank = (int)in->rank};
        memcpy(inputs[i].shape, in->shape, sizeof inputs[i].shape);
        inputs[i].shape[0] = (int64_t)rows;
        inputs[i].data = arena_at(f->session->inputs, f->blocks[i] + f->next % c->slot_count * in->slot_bytes);
    }
    f->next++;
    return DPI_OK;
}

/* Gives the next few pages of the ring their memory, so that it is not done by the producer who comes to them first:
 * they need their time for rows, and whoever waits for them has nothing else to do. False: all that will be used have
 * it. */
static bool prepare_memory(dpi_feed *f)
{
    const feed_control *c = f->control;
    while (f->preparing < c->input_count) {
        const feed_input *in = &c->inputs[f->preparing];
        uint64_t ranges = c->rows == UINT64_MAX ? c->slot_count : (c->rows - 1) / c->range_rows + 1;
        uint64_t end = (ranges < c->slot_count ? ranges : c->slot_count) * in->slot_bytes, at = f->prepared;
        uint64_t bytes = end - at < PREPARE_BYTES ? end - at : PREPARE_BYTES;
        f->prepared += bytes;
        if (bytes &&
            fallocate(arena_writer_fd(f->session->inputs), 0, (off_t)(f->blocks[f->preparing] + at), (off_t)bytes) == 0)
            return true;
        f->preparing++; /* to its end; or memory is short, which the rows will find out */
        f->prepared = 0;
    }
    return false;
}

dpi_status feed_next(dpi_feed *f, int64_t deadline_ns, dpi_range *range, dpi_tensor *inputs, dpi_error *error)
{
    feed_control *c = f->control;
    *range = (dpi_range){.index = UINT64_MAX};
    for (;;) {
        if (c->rows == UINT64_MAX ? !skip_ended(f) : f->next * c->range_rows >= c->rows)
            return DPI_OK; /* the end: no rows */
        uint32_t seen = atomic_load(&c->filled_bell);
        uint64_t word =
            atomic_load_explicit(&slot_of(f, f->next)->word, memory_order_acquire); /* pairs with publish() */
        enum feed_state state = feed_state_of(word);
        if (feed_range_of(word) == f->next && (state == FEED_FILLED || state == FEED_ENDED || state == FEED_FAILED))
            return give_range(f, word, range, inputs, error);
        if (feed_range_of(word) == f->next && state == FEED_TAKEN)
            return error_set(error, DPI_E_INTERNAL, "a range of the feed is taken twice");
        bool any = look_at_producers(f);
        bool owner_gone =
            c->rows == UINT64_MAX && owner_of(f, f->next) < f->connected && f->sockets[owner_of(f, f->next)] < 0;
        word = atomic_load_explicit(&slot_of(f, f->next)->word, memory_order_acquire);
        if ((!any || owner_gone) && feed_state_of(word) <= FEED_RESERVED)
            return error_set(error, DPI_E_WORKER,
                             owner_gone ? "a loader died, and the rows that it had to come are lost"
                                        : "every loader has died or ended before its rows were there");
        int64_t now = clock_now_ns();
        if (now >= deadline_ns)
            return error_set(error, DPI_TIMEOUT, "no range was filled in time");
        if (prepare_memory(f))
            continue;
        int64_t until = deadline_ns - now < LOOK_NS ? deadline_ns : now + LOOK_NS;
        bell_wait(&c->filled_bell, seen, &c->filled_sleeping, (bell_patience){.mode = DPI_WAIT_BLOCK}, until);
    }
}

dpi_status feed_release(dpi_feed *f, uint64_t index, dpi_error *error)
{
    feed_slot *slot = slot_of(f, index);
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    if (feed_state_of(word) != FEED_TAKEN || feed_range_of(word) != index)
        return error_set(error, DPI_E_ARGUMENT, "range %llu is not taken", (unsigned long long)index);
    /* Release: what was read of the slot's rows comes before whoever writes them next (reserve's acquire). */
    atomic_store_explicit(&slot->word, feed_word(FEED_FREE, FEED_NOBODY, index + f->control->slot_count),
                          memory_order_release);
    bell_ring(&f->control->free_bell, &f->control->free_sleeping);
    return DPI_OK;
}

/* Whether nobody can write to the feed's memory any more. */
static bool all_gone(dpi_feed *f)
{
    look_at_producers(f);
    bool gone = true;
    for (size_t i = 0; i < f->connected; i++)
        gone &= f->sockets[i] < 0;
    return gone;
}

void feed_close(dpi_feed *f)
{
    if (!f)
        return;
    if (f->control) {
        atomic_store(&f->control->closed, 1);
        bell_ring(&f->control->free_bell, &f->control->free_sleeping);
        if (all_gone(f)) /* else the memory stays allocated until the session ends */
            for (size_t i = 0; i < f->block_count; i++)
                block_free(f->session, arena_at(f->session->inputs, f->blocks[i]), NULL);
        munmap(f->control, sizeof *f->control);
    }
    for (size_t i = 0; i < f->connected; i++)
        if (f->sockets[i] >= 0)
            close(f->sockets[i]);
    if (f->fd >= 0)
        close(f->fd);
    free(f->sockets);
    free(f->has_ended);
    free(f);
}
