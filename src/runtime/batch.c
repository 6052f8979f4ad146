/* Batches on their way in: a slot, memory, a plan, the rows; then the claims that workers see. */
#include "runtime/batch.h"
#include "base/clock.h"
#include "runtime/recovery.h"

#include <assert.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- planning and publishing ------------------------------------------------------------------------------------ */

/* Rows per worker of a fixed split: whole rounds, then the rest. */
static void fixed_shares(const dpi_session *s, uint64_t rows, size_t *shares)
{
    uint64_t round = 0;
    for (size_t w = 0; w < s->count; w++)
        round += s->shares[w];
    assert(round > 0); /* session.c refuses a split of nothing */
    uint64_t rounds = rows / round, rest = rows % round;
    size_t last[LAYOUT_WORKERS];
    if (s->total_rows)
        session_spread(s, (size_t)rest, last);
    for (size_t w = 0; w < s->count; w++) {
        if (!s->total_rows)
            last[w] = rest < s->shares[w] ? (size_t)rest : s->shares[w];
        rest -= s->total_rows ? 0 : last[w];
        shares[w] = (size_t)rounds * s->shares[w] + last[w];
    }
}

/* So much is a worker behind that is not there: it gets nothing. */
#define ABSENT_NS 1e18

static void plan(dpi_session *s, batch *b, size_t *shares)
{
    double busy[LAYOUT_WORKERS];
    b->choice = -1;
    if (s->shares) {
        fixed_shares(s, b->rows, shares);
        return;
    }
    for (size_t w = 0; w < s->count; w++) {
        const session_worker *k = &s->workers[w];
        bool absent = k->device == DEVICE_IN_USE && !k->ready; /* for others the planner has nothing anyway */
        busy[w] = absent ? ABSENT_NS : s->in_flight && k->ready ? k->busy_ns : 0;
    }
    planner_next(s->planner, busy, b->rows, s->fixed_rows ? s->fixed_rows : 1, s->max_rows, shares, &b->choice);
    if (s->in_flight)
        b->choice = -1;
}

/* Fills the descriptor's cut from the shares; false when there would be too many slices. */
static bool fill_cut(const dpi_session *s, batch *b, batch_desc *d, const size_t *shares)
{
    uint64_t row = 0, slices = 0;
    double longest = 0;
    for (size_t w = 0; w < b->planned_workers; w++) {
        size_t most =
            s->shares && s->shares[w] && s->shares[w] < s->max_rows && !s->fixed_rows ? s->shares[w] : s->max_rows;
        uint64_t n = (shares[w] + most - 1) / most;
        atomic_store_explicit(&d->slice_rows[w], (uint32_t)most, memory_order_relaxed);
        d->share_row[w] = row;
        atomic_store_explicit(&d->first_slice[w], (uint32_t)slices, memory_order_relaxed);
        row += shares[w];
        slices += n;
        if (slices > LAYOUT_SLICES)
            return false;
        plan_cost cost = planner_cost(s->planner, w);
        b->predicted_ns[w] = (double)n * cost.fixed_ns + (double)shares[w] * cost.row_ns;
        longest = b->predicted_ns[w] > longest ? b->predicted_ns[w] : longest;
    }
    d->share_row[b->planned_workers] = row;
    atomic_store_explicit(&d->first_slice[b->planned_workers], (uint32_t)slices, memory_order_relaxed);
    atomic_store_explicit(&d->planned_workers, (uint32_t)b->planned_workers, memory_order_relaxed);
    atomic_store_explicit(&d->predicted_ns, (int64_t)longest, memory_order_relaxed);
    b->slice_count = (uint32_t)slices;
    return true;
}

static void fill_arrays(const dpi_session *s, const batch *b, batch_desc *d)
{
    d->input_count = (uint32_t)s->sig.input_count;
    d->output_count = (uint32_t)s->sig.output_count;
    for (size_t i = 0; i < s->sig.input_count; i++) {
        const batch_array *a = &b->inputs[i];
        d->inputs[i] = (layout_array){
            .offset = a->offset, .row_bytes = a->row_bytes, .rank = (uint32_t)a->rank, .broadcast = s->is_broadcast[i]};
        memcpy(d->inputs[i].shape, a->shape, sizeof a->shape);
    }
    for (size_t o = 0; o < s->sig.output_count; o++) {
        const batch_array *a = &b->outputs[o];
        d->outputs[o] = (layout_array){
            .offset = a->offset, .row_bytes = a->row_bytes, .stored_bytes = a->stored_bytes, .rank = (uint32_t)a->rank};
        memcpy(d->outputs[o].shape, a->shape, sizeof a->shape);
    }
}

/* A free slot, taking back those of finished batches that nobody has waited for yet. -1 when there is none. */
static int take_slot(dpi_session *s)
{
    if (s->in_flight >= s->queue_depth)
        for (uint32_t i = 0; i < LAYOUT_SLOTS; i++) {
            batch *b = s->slots[i];
            if (b && !b->waiter && !b->outputs[0].plain && batch_is_over(s, b))
                batch_settle(s, b);
        }
    if (s->in_flight >= s->queue_depth)
        return -1;
    for (int i = 0; i < LAYOUT_SLOTS; i++)
        if (!s->slots[i])
            return i;
    return -1;
}

/* Waits for room in the queue. Under the lock, which is given up meanwhile. */
static dpi_status wait_for_slot(dpi_session *s, int64_t deadline_ns, int *slot, dpi_error *error)
{
    while ((*slot = take_slot(s)) < 0) {
        if (atomic_load(&s->failed))
            return error_set(error, s->failure.status, "%s", s->failure.message);
        int64_t now = clock_now_ns();
        if (now >= deadline_ns)
            return error_set(error, DPI_BUSY, "the queue is full: %u batches are in flight", s->in_flight);
        /* Workers ring batches, not this condition: look again soon. */
        int64_t until = now + 1000000 < deadline_ns ? now + 1000000 : deadline_ns;
        struct timespec when = {.tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000)};
        pthread_cond_timedwait(&s->changed, &s->lock, &when);
    }
    return DPI_OK;
}

static dpi_status place_array(dpi_session *s, arena *in, batch_array *a, uint64_t rows, const char *name, bool shard,
                              dpi_error *error)
{
    a->block = ARENA_NONE;
    a->stored_bytes = a->row_bytes;
    uint64_t bytes = a->row_bytes * rows;
    if (shard && !bytes)
        return DPI_OK;
    if (a->plain && block_use(s, in, a->plain, bytes, a)) {
        a->plain = NULL;
        return DPI_OK;
    }
    a->offset = a->block = arena_alloc(in, bytes);
    if (a->block == ARENA_NONE)
        return error_set(error, DPI_E_SYSTEM, "no room for %llu bytes of %s (arena_max_bytes is %llu)",
                         (unsigned long long)bytes, name, (unsigned long long)arena_max(in));
    return DPI_OK;
}

static dpi_status place(dpi_session *s, batch *b, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < s->sig.input_count && !status; i++)
        if (!s->is_broadcast[i] && !b->shard)
            status = place_array(s, s->inputs, &b->inputs[i], b->rows, s->sig.inputs[i].name, false, error);
    for (size_t o = 0; o < b->output_count && !status; o++) {
        void *user = b->outputs[o].plain;
        status = place_array(s, s->outputs, &b->outputs[o], b->rows, s->sig.outputs[o].name, b->shard, error);
        if (!status && user && !b->outputs[o].plain)
            b->outputs[o].view = false; /* written in place, the caller's to free */
    }
    return status;
}

static uint64_t copy_slice(dpi_session *s, batch *b, const batch_desc *d, size_t w, uint32_t slice)
{
    uint64_t row = d->share_row[w] + (uint64_t)d->slice_rows[w] *
                                         (slice - atomic_load_explicit(&d->first_slice[w], memory_order_relaxed));
    uint64_t end = row + d->slice_rows[w] < d->share_row[w + 1] ? row + d->slice_rows[w] : d->share_row[w + 1],
             bytes = 0;
    for (size_t i = 0; i < s->sig.input_count; i++) {
        batch_array *a = &b->inputs[i];
        if (!a->plain)
            continue;
        memcpy((char *)arena_at(s->inputs, a->offset) + row * a->row_bytes, (char *)a->plain + row * a->row_bytes,
               (end - row) * a->row_bytes);
        bytes += (end - row) * a->row_bytes;
    }
    return bytes;
}

/* Copies slice by slice, in turns over the workers, and publishes each as soon as it is in. */
static void publish(dpi_session *s, batch *b)
{
    batch_desc *d = &s->control->batches[b->slot];
    claims *c = batch_claims(s, b->slot);
    bool copies = false;
    for (size_t i = 0; i < s->sig.input_count; i++)
        copies |= b->inputs[i].plain != NULL;
    int64_t began = copies ? clock_now_ns() : 0;
    uint64_t bytes = 0;
    for (uint32_t turn = 0, left = b->slice_count; left; turn++) {
        for (size_t w = 0; w < b->planned_workers; w++) {
            uint32_t slice = atomic_load_explicit(&d->first_slice[w], memory_order_relaxed) + turn;
            if (slice >= atomic_load_explicit(&d->first_slice[w + 1], memory_order_relaxed))
                continue;
            if (copies)
                bytes += copy_slice(s, b, d, w, slice);
            claim_publish(&c->word[slice], /* T1 publish */
                          (claim){.sequence = b->sequence, .worker = (uint32_t)w, .state = CLAIM_CLAIMED});
            left--;
            /* The first, so that it begins, and the last, for it may have gone to sleep in between. */
            bool is_last = slice + 1 == atomic_load_explicit(&d->first_slice[w + 1], memory_order_relaxed);
            if (copies || turn == 0 || is_last)
                session_ring_claimer(s, w);
        }
    }
    if (copies) {
        __atomic_fetch_add(&s->copied_in_bytes, bytes, __ATOMIC_RELAXED);
        __atomic_fetch_add(&s->copy_in_ns, (uint64_t)(clock_now_ns() - began), __ATOMIC_RELAXED);
    }
}

/* Gives the batch a slot and makes it visible to workers; the words come after. Under the lock. */
static void enter_slot(dpi_session *s, batch *b, int slot, uint32_t flags)
{
    batch_desc *d = &s->control->batches[slot];
    claims *c = batch_claims(s, slot);
    b->slot = slot;
    s->slots[slot] = b;
    s->in_flight++;
    d->rows = b->rows;
    d->fixed_rows = (uint32_t)s->fixed_rows;
    atomic_store_explicit(&d->published_ns, b->began_ns, memory_order_relaxed);
    fill_arrays(s, b, d);
    atomic_store_explicit(&d->flags, flags, memory_order_relaxed);
    atomic_store_explicit(&d->slice_count, b->slice_count, memory_order_relaxed);
    atomic_store_explicit(&d->orphans, 0, memory_order_relaxed);
    hint_start(&c->left, b->sequence, b->slice_count);
    hint_start(&c->next, b->sequence, flags & BATCH_SHARD ? b->slice_count : 0);
    atomic_store_explicit(&d->sequence, b->sequence, memory_order_release);
    atomic_fetch_or(&s->control->active, 1ull << slot);
}

static void add_ticket(dpi_session *s, batch *b, dpi_ticket *ticket)
{
    b->ticket = ++s->next_ticket;
    b->next = s->batches;
    s->batches = b;
    *ticket = b->ticket;
}

static batch *new_batch(dpi_session *s, dpi_error *error)
{
    size_t in = s->sig.input_count, out = s->sig.output_count;
    batch *b = calloc(1, sizeof *b + (in + out) * sizeof *b->inputs);
    if (!b) {
        error_set(error, DPI_E_SYSTEM, "out of memory");
        return NULL;
    }
    static_assert(alignof(batch_array) <= alignof(batch), "one allocation");
    b->inputs = (batch_array *)(void *)(b + 1);
    b->outputs = b->inputs + in;
    b->slot = -1;
    b->output_count = out;
    b->began_ns = clock_now_ns();
    for (size_t i = 0; i < in + out; i++)
        b->inputs[i].block = ARENA_NONE;
    return b;
}

static uint32_t next_sequence(dpi_session *s)
{
    if (++s->sequence == 0)
        s->sequence = 1; /* 0 is "no batch" */
    return s->sequence;
}

/* Under the lock: everything up to where workers see the batch. */
static dpi_status start(dpi_session *s, batch *b, int64_t deadline_ns, dpi_error *error)
{
    int slot;
    size_t shares[LAYOUT_WORKERS] = {0};
    dpi_status status = wait_for_slot(s, deadline_ns, &slot, error);
    if (!status)
        status = place(s, b, error);
    if (status)
        return status;
    b->planned_workers = s->count;
    b->predicted_ns = s->predicted_ns[slot];
    plan(s, b, shares);
    if (!fill_cut(s, b, &s->control->batches[slot], shares))
        return error_set(error, DPI_E_ARGUMENT,
                         "a batch of %llu rows would be more than %u slices; raise the batch "
                         "option or submit it in parts",
                         (unsigned long long)b->rows, LAYOUT_SLICES);
    for (size_t w = 0; w < b->planned_workers; w++)
        s->workers[w].busy_ns += b->predicted_ns[w];
    b->sequence = next_sequence(s);
    size_t plain_bytes = 0;
    for (size_t o = 0; o < b->output_count; o++)
        plain_bytes += b->outputs[o].plain ? b->outputs[o].row_bytes * b->rows : 0;
    /* Ring per slice only where copying results early pays for the wake-ups. */
    uint32_t flags = (s->shares ? 0 : BATCH_STEAL) | (plain_bytes > 1u << 20 ? BATCH_RING_EACH : 0);
    enter_slot(s, b, slot, flags);
    return DPI_OK;
}

static dpi_status run_inline(dpi_session *s, batch *b, dpi_error *error)
{
    const void *inputs[PORT_MAX] = {0};
    void *outputs[PORT_MAX] = {0};
    int64_t in[PORT_MAX][DPI_MAX_RANK], out[PORT_MAX][DPI_MAX_RANK];
    pthread_mutex_lock(&s->lock);
    dpi_status status = DPI_OK;
    for (size_t o = 0; o < b->output_count && !status; o++)
        if (!b->outputs[o].plain)
            status = place_array(s, s->outputs, &b->outputs[o], b->rows, s->sig.outputs[o].name, false, error);
    pthread_mutex_unlock(&s->lock);
    for (size_t i = 0; i < s->sig.input_count; i++) {
        inputs[i] = b->inputs[i].plain;
        memcpy(in[i], b->inputs[i].shape, sizeof in[i]);
    }
    for (size_t o = 0; o < b->output_count; o++) {
        outputs[o] = b->outputs[o].plain ? b->outputs[o].plain : arena_at(s->outputs, b->outputs[o].offset);
        memcpy(out[o], b->outputs[o].shape, sizeof out[o]);
    }
    if (status)
        return status;
    status = inline_forward(s, inputs, in, outputs, out, b->rows, error);
    if (!status)
        return DPI_OK;
    __atomic_fetch_add(&s->batches_failed, 1, __ATOMIC_RELAXED);
    if (error)
        error_prefix(error, "worker 0 (%s)", s->devices.items[0].name);
    return status;
}

dpi_status batch_submit(dpi_session *s, const dpi_batch *from, int64_t deadline_ns, dpi_ticket *ticket,
                        dpi_error *error)
{
    *ticket = 0;
    batch *b = new_batch(s, error);
    if (!b)
        return DPI_E_SYSTEM;
    dpi_status status = batch_gather_inputs(s, from, b, error);
    if (!status)
        status = batch_shape_outputs(s, b, error);
    if (!status)
        status = batch_gather_outputs(s, from, b, error);
    bool here = s->in_caller && s->count == 1 && s->workers[0].report.depth == 1;
    if (!status && here)
        status = run_inline(s, b, error);
    pthread_mutex_lock(&s->lock);
    if (!status && !here && b->rows)
        status = start(s, b, deadline_ns, error);
    if (status) {
        batch_unlink(s, b);
        pthread_mutex_unlock(&s->lock);
        return status;
    }
    if (here || !b->rows) {
        b->terminal = true;
        s->batches_done++;
        s->rows_done += b->rows;
        batch_announce_end(s);
    }
    add_ticket(s, b, ticket);
    b->waiter = b->publishing = true; /* until its rows are in, nobody else may take it down */
    pthread_mutex_unlock(&s->lock);
    if (b->slot >= 0)
        publish(s, b);
    pthread_mutex_lock(&s->lock);
    b->waiter = b->publishing = false;
    recovery_free_planned(s, b); /* for workers that died before they were told */
    pthread_mutex_unlock(&s->lock);
    return DPI_OK;
}

dpi_status batch_submit_chunk(dpi_session *s, const shard_chunk *chunk, dpi_ticket *ticket, dpi_error *error)
{
    batch *b = new_batch(s, error);
    if (!b)
        return DPI_E_SYSTEM;
    b->shard = true;
    b->rows = chunk->rows;
    b->choice = -1;
    for (size_t i = 0; i < s->sig.input_count; i++) {
        b->inputs[i].rank = s->sig.inputs[i].rank;
        memcpy(b->inputs[i].shape, chunk->input_shapes[i], sizeof b->inputs[i].shape);
        shape_row_bytes(s->sig.inputs[i].dtype, b->inputs[i].shape, b->inputs[i].rank, &b->inputs[i].row_bytes);
    }
    for (size_t o = 0; o < b->output_count; o++) {
        b->outputs[o].rank = s->sig.outputs[o].rank;
        memcpy(b->outputs[o].shape, chunk->output_shapes[o], sizeof b->outputs[o].shape);
        b->outputs[o].row_bytes = chunk->record_bytes[o];
        b->outputs[o].view = true;
    }
    pthread_mutex_lock(&s->lock);
    int slot = -1;
    dpi_status status = wait_for_slot(s, CLOCK_NEVER, &slot, error);
    if (!status)
        status = place(s, b, error);
    if (status) {
        batch_unlink(s, b);
        pthread_mutex_unlock(&s->lock);
        return status;
    }
    for (size_t o = 0; o < b->output_count; o++) /* from here on the size of the engine's rows, not of the records */
        shape_row_bytes(s->sig.outputs[o].dtype, b->outputs[o].shape, b->outputs[o].rank, &b->outputs[o].row_bytes);
    b->slice_count = (uint32_t)((b->rows + s->max_rows - 1) / s->max_rows);
    b->sequence = next_sequence(s);
    batch_desc *d = &s->control->batches[slot];
    atomic_store_explicit(&d->job, chunk->job, memory_order_relaxed);
    d->first_row = chunk->first_row;
    d->result_row = chunk->result_row;
    atomic_store_explicit(&d->slice_rows[0], (uint32_t)s->max_rows, memory_order_relaxed);
    atomic_store_explicit(&d->predicted_ns, 0, memory_order_relaxed);
    claims *c = batch_claims(s, slot);
    for (uint32_t i = 0; i < b->slice_count; i++) /* T1 publish */
        claim_publish(&c->word[i], (claim){.sequence = b->sequence, .state = CLAIM_FREE});
    enter_slot(s, b, slot, BATCH_SHARD | (chunk->dear ? BATCH_DEAR : 0));
    add_ticket(s, b, ticket);
    pthread_mutex_unlock(&s->lock);
    for (size_t w = 0; w < s->count; w++)
        session_ring_claimer(s, w);
    return DPI_OK;
}
