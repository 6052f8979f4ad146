/* Batches on the caller's side: into the arena, planned, published, waited for, handed back. */
#include "base/clock.h"
#include "runtime/session.h"

#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct batch_array {
    uint64_t offset, block; /* in its arena; block: to be freed by us, ARENA_NONE for the user's or nobody's */
    size_t row_bytes, user_block; /* user_block: index + 1 of the dpi_alloc block that holds it, 0 for none */
    int rank;
    int64_t shape[DPI_MAX_RANK];
    void *plain; /* the caller's memory that it is copied from or to, NULL where it is in the arena already */
    bool view;   /* the result stays in the arena for the caller to look at */
} batch_array;

struct batch {
    batch *next;
    dpi_ticket ticket;
    int slot; /* -1: not in flight any more */
    uint32_t sequence, slice_count, cursor; /* slices before `cursor` are terminal and copied out */
    uint64_t rows, copied_rows;
    bool shard, terminal, waited, abandoned, cancelled, failed, waiter;
    dpi_error error;
    size_t output_count;
    int choice; /* of the planner, -1 */
    int64_t began_ns;
    /* In one allocation with the batch, as long as the session needs them. */
    double *predicted_ns;           /* per worker, added to its busy_ns */
    batch_array *inputs, *outputs; /* per input and output of the signature */
};

/* ---- blocks of dpi_alloc ---------------------------------------------------------------------------------------- */

void *block_alloc(dpi_session *s, size_t bytes, dpi_direction direction, dpi_error *error)
{
    arena *from = direction == DPI_INPUT ? s->inputs : s->outputs;
    uint64_t offset = arena_alloc(from, bytes);
    if (offset == ARENA_NONE) {
        error_set(error, DPI_E_SYSTEM, "dpi_alloc: no room for %zu bytes (arena_max_bytes is %llu)", bytes,
                  (unsigned long long)arena_max(from));
        return NULL;
    }
    pthread_mutex_lock(&s->lock);
    size_t at = 0;
    while (at < s->block_count && s->blocks[at].arena)
        at++;
    if (at == s->block_capacity) {
        size_t capacity = s->block_capacity ? s->block_capacity * 2 : 64;
        user_block *blocks = realloc(s->blocks, capacity * sizeof *blocks);
        if (!blocks) {
            pthread_mutex_unlock(&s->lock);
            arena_free(from, offset);
            error_set(error, DPI_E_SYSTEM, "out of memory");
            return NULL;
        }
        s->blocks = blocks;
        s->block_capacity = capacity;
    }
    s->blocks[at] = (user_block){.offset = offset, .arena = from};
    s->block_count = at == s->block_count ? at + 1 : s->block_count;
    pthread_mutex_unlock(&s->lock);
    return arena_at(from, offset);
}

static user_block *find_block(dpi_session *s, arena *in, uint64_t offset)
{
    for (size_t i = 0; i < s->block_count; i++)
        if (s->blocks[i].arena == in && s->blocks[i].offset == offset && !s->blocks[i].freed)
            return &s->blocks[i];
    return NULL;
}

static void drop_block(user_block *b)
{
    arena_free(b->arena, b->offset);
    *b = (user_block){0};
}

dpi_status block_free(dpi_session *s, void *memory, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    user_block *found = NULL;
    for (int i = 0; i < 2 && !found; i++) {
        arena *in = i ? s->outputs : s->inputs;
        uint64_t offset = arena_find(in, memory, 0, NULL);
        found = offset == ARENA_NONE ? NULL : find_block(s, in, offset);
    }
    if (found && found->uses)
        found->freed = true;
    else if (found)
        drop_block(found);
    pthread_mutex_unlock(&s->lock);
    return found ? DPI_OK : error_set(error, DPI_E_ARGUMENT, "dpi_free: this is no buffer of dpi_alloc of this session");
}

/* Marks the dpi_alloc block that holds [address, +bytes) as used, if there is one. Under the lock. */
static bool use_block(dpi_session *s, arena *in, const void *address, uint64_t bytes, batch_array *a)
{
    uint64_t block, offset = arena_find(in, address, bytes, &block);
    user_block *found = offset == ARENA_NONE ? NULL : find_block(s, in, block);
    if (!found)
        return false;
    found->uses++;
    a->user_block = (size_t)(found - s->blocks) + 1;
    a->offset = offset;
    return true;
}

static void unuse_block(dpi_session *s, batch_array *a)
{
    if (!a->user_block)
        return;
    user_block *b = &s->blocks[a->user_block - 1];
    a->user_block = 0;
    if (--b->uses == 0 && b->freed)
        drop_block(b);
}

/* ---- what the caller gave --------------------------------------------------------------------------------------- */

static dpi_status match_input(dpi_session *s, const dpi_tensor *t, size_t position, bool seen[PORT_MAX], size_t *at,
                              dpi_error *error)
{
    size_t found = PORT_MAX;
    for (size_t i = 0, place = 0; i < s->sig.input_count && found == PORT_MAX; i++) {
        if (s->is_broadcast[i])
            continue;
        if (t->name ? strcmp(t->name, s->sig.inputs[i].name) == 0 : place == position)
            found = i;
        place++;
    }
    if (found == PORT_MAX)
        return t->name ? error_set(error, DPI_E_DATA, "the model has no input \"%s\" to be given by rows", t->name)
                       : error_set(error, DPI_E_DATA, "the model takes %zu inputs, and more were given",
                                   s->batch_input_count);
    if (seen[found])
        return error_set(error, DPI_E_DATA, "the input %s was given twice", s->sig.inputs[found].name);
    seen[found] = true;
    *at = found;
    return DPI_OK;
}

static dpi_status check_input(const dpi_session *s, const port *want, const dpi_tensor *t, dpi_error *error)
{
    char expected[SHAPE_TEXT_SIZE], got[SHAPE_TEXT_SIZE];
    int64_t shape[DPI_MAX_RANK];
    if (t->rank < 0 || t->rank > DPI_MAX_RANK)
        return error_set(error, DPI_E_DATA, "the input %s has rank %d; at most %d", want->name, t->rank, DPI_MAX_RANK);
    bool good = t->dtype == want->dtype && t->rank == want->rank;
    for (int k = 0; k < t->rank; k++) {
        good &= t->shape[k] >= 0;
        shape[k] = t->shape[k];
    }
    /* The model's fixed batch is padded to inside; the rows given are free. */
    for (int k = 1; good && k < t->rank; k++)
        good = want->shape[k] < 0 || want->shape[k] == shape[k];
    if (!good) {
        int64_t wanted[DPI_MAX_RANK];
        memcpy(wanted, want->shape, sizeof wanted);
        wanted[0] = s->fixed_rows || want->rank ? -1 : wanted[0];
        return error_set(error, DPI_E_DATA, "the input %s expects %s %s and got %s %s", want->name,
                         dpi_dtype_name(want->dtype), shape_text(wanted, want->rank, expected), dpi_dtype_name(t->dtype),
                         shape_text(shape, t->rank, got));
    }
    return DPI_OK;
}

static dpi_status gather_inputs(dpi_session *s, const dpi_batch *from, batch *b, dpi_error *error)
{
    bool seen[PORT_MAX] = {false};
    if (from->input_count != s->batch_input_count)
        return error_set(error, DPI_E_DATA, "the model takes %zu inputs and %zu were given", s->batch_input_count,
                         from->input_count);
    for (size_t i = 0; i < from->input_count; i++) {
        const dpi_tensor *t = &from->inputs[i];
        size_t at = 0;
        dpi_status status = match_input(s, t, i, seen, &at, error);
        if (!status)
            status = check_input(s, &s->sig.inputs[at], t, error);
        if (status)
            return status;
        if (i > 0 && (uint64_t)t->shape[0] != b->rows)
            return error_set(error, DPI_E_DATA, "the input %s has %lld rows and another has %llu",
                             s->sig.inputs[at].name, (long long)t->shape[0], (unsigned long long)b->rows);
        b->rows = (uint64_t)t->shape[0];
        batch_array *a = &b->inputs[at];
        a->rank = t->rank;
        memcpy(a->shape, t->shape, sizeof a->shape);
        a->plain = t->data;
        size_t total;
        if (!shape_row_bytes(t->dtype, t->shape, t->rank, &a->row_bytes) ||
            __builtin_mul_overflow(a->row_bytes, b->rows, &total))
            return error_set(error, DPI_E_DATA, "the input %s has a size that overflows", s->sig.inputs[at].name);
        if (!t->data && total)
            return error_set(error, DPI_E_ARGUMENT, "the input %s has no data", s->sig.inputs[at].name);
    }
    return DPI_OK;
}

static dpi_status shape_outputs(dpi_session *s, batch *b, dpi_error *error)
{
    int64_t in[PORT_MAX][DPI_MAX_RANK], out[PORT_MAX][DPI_MAX_RANK];
    for (size_t i = 0; i < s->sig.input_count; i++)
        memcpy(in[i], b->inputs[i].shape, sizeof in[i]);
    dpi_status status = session_output_shapes(s, in, out, error);
    for (size_t o = 0; !status && o < s->sig.output_count; o++) {
        batch_array *a = &b->outputs[o];
        a->rank = s->sig.outputs[o].rank;
        memcpy(a->shape, out[o], sizeof a->shape);
        a->shape[0] = (int64_t)b->rows;
        size_t total;
        if (!shape_row_bytes(s->sig.outputs[o].dtype, a->shape, a->rank, &a->row_bytes) ||
            __builtin_mul_overflow(a->row_bytes, b->rows, &total))
            status = error_set(error, DPI_E_DATA, "the output %s has a size that overflows", s->sig.outputs[o].name);
    }
    return status;
}

static dpi_status gather_outputs(dpi_session *s, const dpi_batch *from, batch *b, dpi_error *error)
{
    b->output_count = s->sig.output_count;
    bool seen[PORT_MAX] = {false};
    for (size_t o = 0; o < b->output_count; o++)
        b->outputs[o].view = true;
    if (from->outputs && from->output_count > b->output_count)
        return error_set(error, DPI_E_DATA, "the session has %zu outputs and %zu were given", b->output_count,
                         from->output_count);
    for (size_t i = 0; from->outputs && i < from->output_count; i++) {
        const dpi_tensor *t = &from->outputs[i];
        int at = t->name ? port_find(s->sig.outputs, s->sig.output_count, t->name) : (int)i;
        if (at < 0)
            return error_set(error, DPI_E_DATA, "the session has no output \"%s\"", t->name);
        if (seen[at])
            return error_set(error, DPI_E_DATA, "the output %s was given twice", s->sig.outputs[at].name);
        seen[at] = true;
        batch_array *a = &b->outputs[at];
        const port *p = &s->sig.outputs[at];
        bool fits = t->rank == 0 || (t->rank == a->rank && t->dtype == p->dtype);
        for (int k = 0; fits && k < t->rank; k++)
            fits = t->shape[k] == a->shape[k];
        if (!fits) {
            char want[SHAPE_TEXT_SIZE], got[SHAPE_TEXT_SIZE];
            return error_set(error, DPI_E_DATA, "the output %s is %s %s and the memory given for it %s %s", p->name,
                             dpi_dtype_name(p->dtype), shape_text(a->shape, a->rank, want), dpi_dtype_name(t->dtype),
                             shape_text(t->shape, t->rank < 0 || t->rank > DPI_MAX_RANK ? 0 : t->rank, got));
        }
        a->plain = t->data;
        a->view = !t->data;
    }
    return DPI_OK;
}

/* ---- the end of a batch ----------------------------------------------------------------------------------------- */

static claims *claims_of(const dpi_session *s, int slot) { return (claims *)arena_at(s->outputs, (uint64_t)slot * sizeof(claims)); }

static void learn(dpi_session *s, batch *b, int64_t now_ns)
{
    int64_t last_ns = 0;
    for (size_t w = 0; w < s->count; w++) {
        session_worker *k = &s->workers[w];
        uint64_t end = atomic_load_explicit(&k->page->sample_count, memory_order_acquire);
        if (end - k->samples_seen > PAGE_SAMPLES)
            k->samples_seen = end - PAGE_SAMPLES;
        for (; k->samples_seen != end; k->samples_seen++) {
            uint64_t sample =
                atomic_load_explicit(&k->page->samples[k->samples_seen % PAGE_SAMPLES].rows_and_ns, memory_order_relaxed);
            planner_slice(s->planner, w, sample >> 40, (double)(sample & ((1ull << 40) - 1)));
        }
        plan_cost cost = planner_cost(s->planner, w);
        atomic_store_explicit(&s->control->workers[w].fixed_ns, (uint64_t)cost.fixed_ns, memory_order_relaxed);
        atomic_store_explicit(&s->control->workers[w].row_ns, (uint64_t)cost.row_ns, memory_order_relaxed);
        int64_t finished = atomic_load_explicit(&k->page->finished_ns, memory_order_relaxed);
        last_ns = finished > last_ns && finished <= now_ns ? finished : last_ns;
        if (b->predicted_ns)
            k->busy_ns = k->busy_ns > b->predicted_ns[w] ? k->busy_ns - b->predicted_ns[w] : 0;
    }
    if (b->choice >= 0 && !b->failed && !b->cancelled)
        planner_measured(s->planner, b->choice, b->rows, (double)(now_ns - b->began_ns));
    s->wake_ns += last_ns > b->began_ns ? (uint64_t)(now_ns - last_ns) : 0;
}

static void free_array(dpi_session *s, arena *in, batch_array *a)
{
    unuse_block(s, a);
    if (a->block != ARENA_NONE)
        arena_free(in, a->block);
    a->block = ARENA_NONE;
}

/* Every slice is terminal: the slot is free for the next batch, the inputs' memory too. Under the lock. */
static void settle(dpi_session *s, batch *b)
{
    if (b->slot < 0)
        return;
    learn(s, b, clock_now_ns());
    atomic_fetch_and(&s->control->active, ~(1ull << b->slot));
    atomic_store(&s->control->batches[b->slot].sequence, 0);
    s->slots[b->slot] = NULL;
    s->in_flight--;
    b->slot = -1;
    b->terminal = true;
    for (size_t i = 0; i < s->sig.input_count; i++)
        free_array(s, s->inputs, &b->inputs[i]);
    for (size_t o = 0; o < b->output_count; o++)
        unuse_block(s, &b->outputs[o]);
    s->batches_done += !b->failed;
    s->batches_failed += b->failed;
    s->rows_done += b->failed ? 0 : b->rows;
    pthread_cond_broadcast(&s->changed);
}

static void unlink_batch(dpi_session *s, batch *b)
{
    for (batch **at = &s->batches; *at; at = &(*at)->next)
        if (*at == b) {
            *at = b->next;
            break;
        }
    for (size_t i = 0; i < s->sig.input_count; i++)
        free_array(s, s->inputs, &b->inputs[i]);
    for (size_t o = 0; o < b->output_count; o++)
        free_array(s, s->outputs, &b->outputs[o]);
    free(b);
}

static void note_failure(dpi_session *s, batch *b, claim c)
{
    if (b->failed || b->cancelled)
        return;
    b->failed = true;
    const worker_page *page = c.worker < s->count ? s->workers[c.worker].page : NULL;
    uint32_t status = page ? atomic_load_explicit(&page->error_status, memory_order_acquire) : 0;
    char message[sizeof page->error_message] = "";
    if (page) {
        memcpy(message, page->error_message, sizeof message);
        message[sizeof message - 1] = 0;
    }
    if (status < DPI_E_ARGUMENT || status > DPI_E_INTERNAL)
        status = DPI_E_ENGINE;
    error_set(&b->error, (dpi_status)status, "worker %u (%s): %s", c.worker,
              c.worker < s->count ? s->devices.items[c.worker].name : "?", message[0] ? message : "a slice failed");
}

/* A batch has ended without a worker's doing: event loops hear of it all the same. */
static void announce_end(dpi_session *s)
{
    uint64_t one = 1;
    if (atomic_load(&s->control->event_wanted) && write(s->event_fd, &one, sizeof one) < 0)
        log_debug(&s->log, "the event descriptor is full");
}

/* Slices from `first` on that nobody has started are dropped. */
static void drop_unstarted(dpi_session *s, batch *b, uint32_t first)
{
    if (b->slot < 0)
        return;
    claims *c = claims_of(s, b->slot);
    for (uint32_t i = first; i < b->slice_count; i++) {
        claim now = claim_load(&c->word[i]), bad = now;
        bad.state = CLAIM_BAD;
        bad.worker = 0x3ff; /* nobody's fault */
        uint32_t left;
        if (now.sequence == b->sequence && (now.state == CLAIM_FREE || now.state == CLAIM_CLAIMED) &&
            claim_move(&c->word[i], now, bad) && hint_step(&c->left, b->sequence, &left) && left == 1)
            announce_end(s);
    }
}

/* Copies finished rows to plain memory up to the first unfinished slice. */
static void copy_out(dpi_session *s, batch *b, uint64_t end_row)
{
    uint64_t rows = end_row - b->copied_rows, bytes = 0;
    if (b->failed || b->cancelled || b->abandoned || !rows)
        return;
    int64_t began = clock_now_ns();
    for (size_t o = 0; o < b->output_count; o++) {
        batch_array *a = &b->outputs[o];
        if (!a->plain)
            continue;
        memcpy((char *)a->plain + b->copied_rows * a->row_bytes,
               (char *)arena_at(s->outputs, a->offset) + b->copied_rows * a->row_bytes, rows * a->row_bytes);
        bytes += rows * a->row_bytes;
    }
    b->copied_rows = end_row;
    if (bytes) {
        __atomic_fetch_add(&s->copied_out_bytes, bytes, __ATOMIC_RELAXED);
        __atomic_fetch_add(&s->copy_out_ns, (uint64_t)(clock_now_ns() - began), __ATOMIC_RELAXED);
    }
}

/* First row behind slice `slice - 1` of a split batch. */
static uint64_t row_of_slice(const dpi_session *s, const batch *b, uint32_t slice)
{
    const batch_desc *d = &s->control->batches[b->slot];
    if (slice >= b->slice_count)
        return b->rows;
    size_t w = 0;
    while (w + 1 < s->count && atomic_load_explicit(&d->first_slice[w + 1], memory_order_relaxed) <= slice)
        w++;
    return d->share_row[w] + (uint64_t)d->slice_rows[w] * (slice - atomic_load_explicit(&d->first_slice[w], memory_order_relaxed));
}

/* Looks at the claim words from the cursor on; true when every slice is terminal. The waiter's, or under the lock. */
static bool scan(dpi_session *s, batch *b)
{
    claims *c = claims_of(s, b->slot);
    uint32_t before = b->cursor;
    for (; b->cursor < b->slice_count; b->cursor++) {
        claim now = claim_load(&c->word[b->cursor]);
        if (now.sequence != b->sequence || !claim_is_terminal(now))
            break;
        if (now.state != CLAIM_BAD)
            continue;
        if (now.worker == 0x3ff)
            b->cancelled = true;
        else
            note_failure(s, b, now);
    }
    if (b->failed)
        drop_unstarted(s, b, b->cursor);
    if (b->cursor != before && !b->shard)
        copy_out(s, b, row_of_slice(s, b, b->cursor));
    return b->cursor >= b->slice_count;
}

/* ---- planning and publishing ------------------------------------------------------------------------------------ */

/* Rows per worker of a fixed split: whole rounds, then the rest. */
static void fixed_shares(const dpi_session *s, uint64_t rows, size_t *shares)
{
    uint64_t round = 0;
    for (size_t w = 0; w < s->count; w++)
        round += s->shares[w];
    uint64_t rounds = rows / round, rest = rows % round;
    size_t last[LAYOUT_WORKERS];
    if (s->shares_even)
        plan_even((size_t)rest, s->count, last);
    for (size_t w = 0; w < s->count; w++) {
        if (!s->shares_even)
            last[w] = rest < s->shares[w] ? (size_t)rest : s->shares[w];
        rest -= s->shares_even ? 0 : last[w];
        shares[w] = (size_t)rounds * s->shares[w] + last[w];
    }
}

static void plan(dpi_session *s, batch *b, size_t *shares)
{
    double busy[LAYOUT_WORKERS];
    b->choice = -1;
    if (s->shares) {
        fixed_shares(s, b->rows, shares);
        return;
    }
    for (size_t w = 0; w < s->count; w++)
        busy[w] = s->in_flight ? s->workers[w].busy_ns : 0;
    planner_next(s->planner, busy, b->rows, s->fixed_rows ? s->fixed_rows : 1, s->max_rows, shares, &b->choice);
    if (s->in_flight)
        b->choice = -1;
}

/* Fills the descriptor's cut from the shares; false when there would be too many slices. */
static bool fill_cut(const dpi_session *s, batch *b, batch_desc *d, const size_t *shares)
{
    uint64_t row = 0, slices = 0;
    double longest = 0;
    for (size_t w = 0; w < s->count; w++) {
        size_t most = s->shares && s->shares[w] && s->shares[w] < s->max_rows && !s->fixed_rows ? s->shares[w] : s->max_rows;
        uint64_t n = (shares[w] + most - 1) / most;
        d->slice_rows[w] = (uint32_t)most;
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
    d->share_row[s->count] = row;
    atomic_store_explicit(&d->first_slice[s->count], (uint32_t)slices, memory_order_relaxed);
    d->predicted_ns = (int64_t)longest;
    b->slice_count = (uint32_t)slices;
    return true;
}

static void fill_arrays(const dpi_session *s, const batch *b, batch_desc *d)
{
    d->input_count = (uint32_t)s->sig.input_count;
    d->output_count = (uint32_t)s->sig.output_count;
    for (size_t i = 0; i < s->sig.input_count; i++) {
        const batch_array *a = &b->inputs[i];
        d->inputs[i] = (layout_array){.offset = a->offset,
                                      .row_bytes = a->row_bytes,
                                      .rank = (uint32_t)a->rank,
                                      .broadcast = s->is_broadcast[i]};
        memcpy(d->inputs[i].shape, a->shape, sizeof a->shape);
    }
    for (size_t o = 0; o < s->sig.output_count; o++) {
        const batch_array *a = &b->outputs[o];
        d->outputs[o] = (layout_array){.offset = a->offset, .row_bytes = a->row_bytes, .rank = (uint32_t)a->rank};
        memcpy(d->outputs[o].shape, a->shape, sizeof a->shape);
    }
}

/* A free slot, taking back those of finished batches that nobody has waited for yet. -1 when there is none. */
static int take_slot(dpi_session *s)
{
    if (s->in_flight >= s->queue_depth)
        for (uint32_t i = 0; i < LAYOUT_SLOTS; i++) {
            batch *b = s->slots[i];
            if (b && !b->waiter && !b->outputs[0].plain && scan(s, b))
                settle(s, b);
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
    uint64_t bytes = a->row_bytes * rows;
    if (shard && !bytes)
        return DPI_OK;
    if (a->plain && use_block(s, in, a->plain, bytes, a)) {
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

static void ring_worker(dpi_session *s, size_t w)
{
    bell_ring(&s->control->workers[w].bell, &s->workers[w].page->sleeping);
}

static uint64_t copy_slice(dpi_session *s, batch *b, const batch_desc *d, size_t w, uint32_t slice)
{
    uint64_t row = d->share_row[w] + (uint64_t)d->slice_rows[w] * (slice - atomic_load_explicit(&d->first_slice[w], memory_order_relaxed));
    uint64_t end = row + d->slice_rows[w] < d->share_row[w + 1] ? row + d->slice_rows[w] : d->share_row[w + 1], bytes = 0;
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
    claims *c = claims_of(s, b->slot);
    bool copies = false;
    for (size_t i = 0; i < s->sig.input_count; i++)
        copies |= b->inputs[i].plain != NULL;
    int64_t began = copies ? clock_now_ns() : 0;
    uint64_t bytes = 0;
    for (uint32_t turn = 0, left = b->slice_count; left; turn++) {
        for (size_t w = 0; w < s->count; w++) {
            uint32_t slice = atomic_load_explicit(&d->first_slice[w], memory_order_relaxed) + turn;
            if (slice >= atomic_load_explicit(&d->first_slice[w + 1], memory_order_relaxed))
                continue;
            if (copies)
                bytes += copy_slice(s, b, d, w, slice);
            claim_publish(&c->word[slice], (claim){.sequence = b->sequence,
                                                   .generation = s->workers[w].generation,
                                                   .worker = (uint32_t)w,
                                                   .state = CLAIM_CLAIMED});
            left--;
            if (copies || turn == 0)
                ring_worker(s, w);
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
    claims *c = claims_of(s, slot);
    b->slot = slot;
    s->slots[slot] = b;
    s->in_flight++;
    d->rows = b->rows;
    d->fixed_rows = (uint32_t)s->fixed_rows;
    d->published_ns = b->began_ns;
    fill_arrays(s, b, d);
    atomic_store_explicit(&d->flags, flags, memory_order_relaxed);
    atomic_store_explicit(&d->slice_count, b->slice_count, memory_order_relaxed);
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
    batch *b = calloc(1, sizeof *b + s->count * sizeof *b->predicted_ns + (in + out) * sizeof *b->inputs);
    if (!b) {
        error_set(error, DPI_E_SYSTEM, "out of memory");
        return NULL;
    }
    static_assert(sizeof(batch) % alignof(double) == 0 && alignof(batch_array) <= alignof(double), "one allocation");
    b->predicted_ns = (double *)(void *)(b + 1);
    b->inputs = (batch_array *)(void *)(b->predicted_ns + s->count);
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
    size_t shares[LAYOUT_WORKERS];
    dpi_status status = wait_for_slot(s, deadline_ns, &slot, error);
    if (!status)
        status = place(s, b, error);
    if (status)
        return status;
    plan(s, b, shares);
    if (!fill_cut(s, b, &s->control->batches[slot], shares))
        return error_set(error, DPI_E_ARGUMENT, "a batch of %llu rows would be more than %u slices; raise the batch "
                                                "option or submit it in parts", (unsigned long long)b->rows, LAYOUT_SLICES);
    for (size_t w = 0; w < s->count; w++)
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
    dpi_status status = gather_inputs(s, from, b, error);
    if (!status)
        status = shape_outputs(s, b, error);
    if (!status)
        status = gather_outputs(s, from, b, error);
    bool here = s->in_caller && s->count == 1;
    if (!status && here)
        status = run_inline(s, b, error);
    pthread_mutex_lock(&s->lock);
    if (!status && !here && b->rows)
        status = start(s, b, deadline_ns, error);
    if (status) {
        unlink_batch(s, b);
        pthread_mutex_unlock(&s->lock);
        return status;
    }
    if (here || !b->rows) {
        b->terminal = true;
        s->batches_done++;
        s->rows_done += b->rows;
        announce_end(s);
    }
    add_ticket(s, b, ticket);
    b->waiter = true; /* until its rows are in, nobody else may take it down */
    pthread_mutex_unlock(&s->lock);
    if (b->slot >= 0)
        publish(s, b);
    pthread_mutex_lock(&s->lock);
    b->waiter = false;
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
        unlink_batch(s, b);
        pthread_mutex_unlock(&s->lock);
        return status;
    }
    for (size_t o = 0; o < b->output_count; o++) /* from here on the size of the engine's rows, not of the records */
        shape_row_bytes(s->sig.outputs[o].dtype, b->outputs[o].shape, b->outputs[o].rank, &b->outputs[o].row_bytes);
    b->slice_count = (uint32_t)((b->rows + s->max_rows - 1) / s->max_rows);
    b->sequence = next_sequence(s);
    batch_desc *d = &s->control->batches[slot];
    d->job = chunk->job;
    d->first_row = chunk->first_row;
    d->result_row = chunk->result_row;
    d->slice_rows[0] = (uint32_t)s->max_rows;
    d->predicted_ns = 0;
    claims *c = claims_of(s, slot);
    for (uint32_t i = 0; i < b->slice_count; i++)
        claim_publish(&c->word[i], (claim){.sequence = b->sequence, .state = CLAIM_FREE});
    enter_slot(s, b, slot, BATCH_SHARD);
    add_ticket(s, b, ticket);
    pthread_mutex_unlock(&s->lock);
    for (size_t w = 0; w < s->count; w++)
        ring_worker(s, w);
    return DPI_OK;
}

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

static batch *find_ticket(dpi_session *s, dpi_ticket ticket)
{
    for (batch *b = s->batches; b; b = b->next)
        if (b->ticket == ticket && !b->abandoned)
            return b;
    return NULL;
}

static void describe_outputs(const dpi_session *s, const batch *b, dpi_tensor *outputs, size_t count)
{
    for (size_t o = 0; o < count && o < b->output_count; o++) {
        const batch_array *a = &b->outputs[o];
        outputs[o] = (dpi_tensor){.name = s->sig.outputs[o].name, .dtype = s->sig.outputs[o].dtype, .rank = a->rank};
        memcpy(outputs[o].shape, a->shape, sizeof a->shape);
        outputs[o].data = a->plain ? a->plain : arena_at(s->outputs, a->offset);
    }
}

/* Sleeps and scans until the batch is terminal, the session has failed or the deadline has passed. */
static dpi_status wait_terminal(dpi_session *s, batch *b, int64_t deadline_ns, dpi_error *error)
{
    claims *c = claims_of(s, b->slot);
    batch_desc *d = &s->control->batches[b->slot];
    for (;;) {
        uint32_t seen = atomic_load(&c->bell);
        if (scan(s, b))
            return DPI_OK;
        if (atomic_load(&s->failed)) {
            b->failed = true;
            return error_set(&b->error, s->failure.status, "%s", s->failure.message);
        }
        int64_t now = clock_now_ns();
        if (now >= deadline_ns)
            return error_set(error, DPI_TIMEOUT, "the deadline passed; %u of %u slices are done", b->cursor,
                             b->slice_count);
        int64_t until = now + 100000000; /* a lost ring costs this much, never a hang */
        bell_wait(&c->bell, seen, &d->waiting, s->patience, until < deadline_ns ? until : deadline_ns);
    }
}

static bool has_views(const batch *b)
{
    for (size_t o = 0; o < b->output_count; o++)
        if (b->outputs[o].view && (b->outputs[o].block != ARENA_NONE || (!b->rows && !b->shard)))
            return true;
    return false;
}

/* A waiter gave up: the batch finishes by itself. Its rows will not be copied to plain memory any more. */
static void abandon_batch(batch *b)
{
    b->abandoned = true;
    for (size_t o = 0; o < b->output_count; o++)
        b->outputs[o].plain = NULL;
}

/* Frees abandoned batches that have become terminal. Under the lock. */
static void sweep(dpi_session *s)
{
    for (batch *b = s->batches, *next; b; b = next) {
        next = b->next;
        if (!b->abandoned)
            continue;
        if (b->slot >= 0 && scan(s, b))
            settle(s, b);
        if (b->slot < 0)
            unlink_batch(s, b);
    }
}

dpi_status batch_wait(dpi_session *s, dpi_ticket ticket, int64_t deadline_ns, bool abandon, dpi_tensor *outputs,
                      size_t output_count, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    batch *b = find_ticket(s, ticket);
    if (!b || b->waiter || b->waited) {
        pthread_mutex_unlock(&s->lock);
        return error_set(error, DPI_E_ARGUMENT, b && b->waiter ? "another thread waits for this ticket"
                                                               : "there is no such ticket, or it has been waited for");
    }
    b->waiter = true;
    pthread_mutex_unlock(&s->lock);
    dpi_status status = b->slot >= 0 ? wait_terminal(s, b, deadline_ns, error) : DPI_OK;
    pthread_mutex_lock(&s->lock);
    b->waiter = false;
    if (status == DPI_TIMEOUT) {
        if (abandon)
            abandon_batch(b);
        sweep(s);
        pthread_mutex_unlock(&s->lock);
        return status;
    }
    settle(s, b);
    b->waited = true;
    status = b->failed      ? error_set(error, b->error.status, "%s", b->error.message)
             : b->cancelled ? error_set(error, DPI_CANCELLED, "the batch was cancelled")
                            : DPI_OK;
    if (!status && outputs)
        describe_outputs(s, b, outputs, output_count);
    if (status || abandon || !has_views(b))
        unlink_batch(s, b);
    sweep(s);
    pthread_mutex_unlock(&s->lock);
    return status;
}

dpi_status batch_release(dpi_session *s, dpi_ticket ticket, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    batch *b = find_ticket(s, ticket);
    bool good = b && b->waited && !b->waiter;
    if (good)
        unlink_batch(s, b);
    pthread_mutex_unlock(&s->lock);
    return good ? DPI_OK : error_set(error, DPI_E_ARGUMENT, "dpi_release takes a ticket with views that was waited for");
}

dpi_status batch_cancel(dpi_session *s, dpi_ticket ticket, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    batch *b = find_ticket(s, ticket);
    if (b && b->slot >= 0) {
        drop_unstarted(s, b, 0); /* the cursor is the waiter's */
        claims *c = claims_of(s, b->slot);
        atomic_fetch_add(&c->bell, 1);
        futex_wake(&c->bell);
    }
    pthread_mutex_unlock(&s->lock);
    return b ? DPI_OK : error_set(error, DPI_E_ARGUMENT, "there is no such ticket");
}

const void *batch_records(dpi_session *s, dpi_ticket ticket, size_t output)
{
    pthread_mutex_lock(&s->lock);
    batch *b = find_ticket(s, ticket);
    const void *records =
        b && b->outputs[output].block != ARENA_NONE ? arena_at(s->outputs, b->outputs[output].offset) : NULL;
    pthread_mutex_unlock(&s->lock);
    return records;
}

void batch_free_all(dpi_session *s)
{
    while (s->batches) {
        batch *b = s->batches;
        if (b->slot >= 0)
            s->slots[b->slot] = NULL;
        unlink_batch(s, b);
    }
    free(s->blocks);
    s->blocks = NULL;
}
