/* The other side of a feed: a process that writes rows into the session's inputs. It needs nothing of the session but
 * the two descriptors that come over its socket. */
#include "runtime/feed.h"

#include "base/clock.h"
#include "ipc/feed_layout.h"

#include "dpi_build.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOOK_NS  100000000 /* between two looks at the socket, while waiting */
#define HELLO_NS 10000000000

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

struct dpi_producer {
    feed_control *control;
    unsigned char *inputs;
    uint64_t input_bytes;
    int socket;
    uint32_t number;
    uint64_t next;                  /* hint, and with rows unknown the next range of one's own */
    bool is_mapped[FEED_SLOTS_MAX]; /* the slot's pages are in this process's page tables */
};

static dpi_status check_control(const feed_control *c, dpi_error *error)
{
    bool sound = c->magic == FEED_MAGIC && c->slot_count >= 2 && c->slot_count <= FEED_SLOTS_MAX &&
                 c->input_count >= 1 && c->input_count <= PORT_MAX && c->range_rows && c->producers;
    for (uint32_t i = 0; i < c->input_count && sound; i++) {
        const feed_input *in = &c->inputs[i];
        uint64_t all;
        sound = in->rank >= 1 && in->rank <= DPI_MAX_RANK && in->slot_bytes &&
                !__builtin_mul_overflow(in->slot_bytes, (uint64_t)c->slot_count, &all) &&
                in->offset <= c->input_max_bytes && all <= c->input_max_bytes - in->offset;
    }
    if (!sound)
        return error_set(error, DPI_E_WORKER, "the socket's other side is no feed of dpinfer");
    return c->build_id == DPI_BUILD_ID
               ? DPI_OK
               : error_set(error, DPI_E_WORKER,
                           "this process has another build of dpinfer than the one that feeds; install "
                           "one release for both");
}

static dpi_status map_control(dpi_producer *p, int fd, dpi_error *error)
{
    struct stat info;
    if (fstat(fd, &info) != 0 || info.st_size < (off_t)sizeof *p->control)
        return error_set(error, DPI_E_WORKER, "the socket's other side is no feed of dpinfer");
    void *memory = mmap(NULL, sizeof *p->control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map the feed");
    p->control = memory;
    return check_control(p->control, error);
}

dpi_status producer_open(int socket, dpi_producer **out, dpi_error *error)
{
    json_t *hello = NULL;
    int fds[CHANNEL_MAX_FDS];
    size_t count = 0;
    dpi_producer *p = calloc(1, sizeof *p);
    if (!p)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    p->socket = socket;
    dpi_status status = channel_receive(socket, clock_now_ns() + HELLO_NS, &hello, fds, &count, error);
    json_int_t number = json_integer_value(json_object_get(hello, "producer"));
    if (!status && (count != 2 || number < 1 || number > FEED_PRODUCERS_MAX))
        status = error_set(error, DPI_E_WORKER, "the socket's other side is no feed of dpinfer");
    json_decref(hello);
    p->number = (uint32_t)number;
    if (!status)
        status = map_control(p, fds[0], error);
    if (!status) {
        p->next = p->control->rows == UINT64_MAX ? p->number - 1 : 0;
        p->input_bytes = p->control->input_max_bytes;
        p->inputs = arena_attach(fds[1], p->input_bytes, true, error);
        status = p->inputs ? DPI_OK : DPI_E_SYSTEM;
    }
    for (size_t i = 0; i < count; i++)
        close(fds[i]);
    if (status) {
        p->socket = -1; /* stays the caller's */
        producer_close(p);
        return status;
    }
    *out = p;
    return DPI_OK;
}

size_t producer_inputs(const dpi_producer *p) { return p->control->input_count; }

static bool caller_is_gone(const dpi_producer *p)
{
    struct pollfd one = {.fd = p->socket, .events = POLLIN};
    return poll(&one, 1, 0) > 0 && (one.revents & (POLLHUP | POLLERR));
}

/* Reserves the slot if it is free for a range that this producer may fill. */
static bool try_slot(dpi_producer *p, uint32_t k, uint64_t *range)
{
    feed_control *c = p->control;
    uint64_t word = atomic_load_explicit(&c->slots[k].word, memory_order_relaxed);
    *range = feed_range_of(word);
    if (feed_state_of(word) != FEED_FREE || feed_rows_of(c, *range) == 0 ||
        (c->rows == UINT64_MAX && *range != p->next))
        return false;
    /* Acquire: the caller has read what stood here (feed_release). */
    return atomic_compare_exchange_strong_explicit(&c->slots[k].word, &word,
                                                   feed_word(FEED_RESERVED, p->number, *range), memory_order_acquire,
                                                   memory_order_relaxed);
}

/* The lowest free range from the hint on, so that ranges are filled about in the order in which they are taken. */
static bool find_range(dpi_producer *p, uint64_t *range)
{
    uint32_t slots = p->control->slot_count;
    for (uint32_t turn = 0; turn < slots; turn++)
        if (try_slot(p, (uint32_t)((p->next + turn) % slots), range))
            return true;
    return false;
}

/* All pages of the range at once, when its slot comes round for the first time: a third of what a fault for each costs.
 * Advice: kernels before 5.14 do not know it, and where memory is short the rows' first bytes say so. */
static void map_range(dpi_producer *p, const dpi_range *range, const dpi_tensor *inputs)
{
    bool *is_mapped = &p->is_mapped[range->index % p->control->slot_count];
    for (uint32_t i = 0; i < p->control->input_count && !*is_mapped; i++)
        (void)madvise(inputs[i].data, p->control->inputs[i].slot_bytes, MADV_POPULATE_WRITE);
    *is_mapped = true;
}

dpi_status producer_reserve(dpi_producer *p, int64_t deadline_ns, dpi_range *range, dpi_tensor *inputs,
                            dpi_error *error)
{
    feed_control *c = p->control;
    uint64_t index;
    for (;;) {
        uint32_t seen = atomic_load(&c->free_bell);
        if (atomic_load(&c->closed) || caller_is_gone(p))
            return error_set(error, DPI_E_CLOSED, "the feed is closed");
        if (find_range(p, &index))
            break;
        int64_t now = clock_now_ns();
        if (now >= deadline_ns)
            return error_set(error, DPI_TIMEOUT, "there is no range to fill");
        int64_t until = deadline_ns - now < LOOK_NS ? deadline_ns : now + LOOK_NS;
        bell_wait(&c->free_bell, seen, &c->free_sleeping, (bell_patience){.mode = DPI_WAIT_BLOCK}, until);
    }
    *range = (dpi_range){.index = index, .first_row = index * c->range_rows, .rows = feed_rows_of(c, index)};
    for (uint32_t i = 0; i < c->input_count; i++) {
        const feed_input *in = &c->inputs[i];
        inputs[i] = (dpi_tensor){.name = in->name, .dtype = (dpi_dtype)in->dtype, .rank = (int)in->rank};
        memcpy(inputs[i].shape, in->shape, sizeof inputs[i].shape);
        inputs[i].shape[0] = (int64_t)range->rows;
        inputs[i].data = p->inputs + in->offset + index % c->slot_count * in->slot_bytes;
    }
    map_range(p, range, inputs);
    p->next = c->rows == UINT64_MAX ? index + c->producers : index + 1;
    return DPI_OK;
}

static dpi_status publish(dpi_producer *p, const dpi_range *range, enum feed_state state, dpi_error *error)
{
    feed_slot *slot = &p->control->slots[range->index % p->control->slot_count];
    uint64_t word = feed_word(FEED_RESERVED, p->number, range->index);
    if (atomic_load_explicit(&slot->word, memory_order_relaxed) != word)
        return error_set(error, DPI_E_ARGUMENT, "range %llu is not reserved by this producer",
                         (unsigned long long)range->index);
    slot->rows = (uint32_t)range->rows;
    /* Release: the rows and their number come before the word (feed_next's acquire). */
    atomic_compare_exchange_strong_explicit(&slot->word, &word, feed_word(state, p->number, range->index),
                                            memory_order_release, memory_order_relaxed);
    bell_ring(&p->control->filled_bell, &p->control->filled_sleeping);
    return DPI_OK;
}

dpi_status producer_fill(dpi_producer *p, const dpi_range *range, bool last, dpi_error *error)
{
    uint64_t most = feed_rows_of(p->control, range->index);
    bool known = p->control->rows != UINT64_MAX;
    if (range->rows > most || (known && range->rows != most) || (known && last))
        return error_set(error, DPI_E_ARGUMENT, "range %llu has %llu rows, and %llu were filled",
                         (unsigned long long)range->index, (unsigned long long)most, (unsigned long long)range->rows);
    return publish(p, range, last ? FEED_ENDED : FEED_FILLED, error);
}

dpi_status producer_fail(dpi_producer *p, const dpi_range *range, const char *message, dpi_error *error)
{
    feed_slot *slot = &p->control->slots[range->index % p->control->slot_count];
    if (atomic_load_explicit(&slot->word, memory_order_relaxed) == feed_word(FEED_RESERVED, p->number, range->index))
        snprintf(slot->message, sizeof slot->message, "%s", message);
    dpi_range none = {.index = range->index};
    return publish(p, &none, FEED_FAILED, error);
}

void producer_close(dpi_producer *p)
{
    if (!p)
        return;
    if (p->inputs)
        munmap(p->inputs, p->input_bytes);
    if (p->control)
        munmap(p->control, sizeof *p->control);
    if (p->socket >= 0)
        close(p->socket);
    free(p);
}
