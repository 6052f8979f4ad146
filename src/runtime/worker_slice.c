/* Claiming slices, finding their rows, and finishing them. */
#include "base/clock.h"
#include "ipc/arena.h"
#include "ipc/bell.h"
#include "runtime/loader.h"
#include "runtime/worker.h"
#include "runtime/worker_job.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- claiming --------------------------------------------------------------------------------------------------- */

static double slice_cost_ns(const worker *w, uint32_t who, uint64_t rows)
{
    const worker_control *c = &w->control->workers[who];
    return (double)atomic_load_explicit(&c->fixed_ns, memory_order_relaxed) +
           (double)rows * (double)atomic_load_explicit(&c->row_ns, memory_order_relaxed);
}

/* T2 start, T3 steal: from whichever state may be taken to RUNNING by us. The names T1 to T23 are those of
 * protocol.pml. */
static bool try_take(worker *w, _Atomic uint64_t *word, claim now)
{
    claim running = {.sequence = now.sequence, .generation = w->generation, .worker = w->index, .state = CLAIM_RUNNING};
    return claim_move(word, now, running);
}

static bool claim_shared(worker *w, const batch_desc *b, uint32_t sequence, claims *c, flight *f)
{
    uint32_t count = atomic_load_explicit(&b->slice_count, memory_order_relaxed), untried;
    while (hint_step(&c->next, sequence, &untried)) { /* T10 deal */
        if (untried > count || count > LAYOUT_SLICES)
            return false; /* the slot is being given to another batch */
        uint32_t i = count - untried;
        claim now = claim_load(&c->word[i]);
        if (now.sequence != sequence)
            return false;
        if ((now.state == CLAIM_FREE || now.state == CLAIM_CLAIMED) && try_take(w, &c->word[i], now)) {
            f->slice = i;
            return true;
        }
    }
    return false;
}

static bool is_unstarted(const _Atomic uint64_t *word, uint32_t sequence)
{
    claim now = claim_load(word);
    return now.sequence == sequence && (now.state == CLAIM_FREE || now.state == CLAIM_CLAIMED);
}

/* Slices planned for this worker, in order. `spare`: while there is another one. */
static bool claim_own(worker *w, const batch_desc *b, uint32_t slot, uint32_t sequence, claims *c, flight *f,
                      bool spare)
{
    slot_cursor *cursor = &w->cursors[slot];
    if (w->index >= atomic_load_explicit(&b->planned_workers, memory_order_relaxed))
        return false;
    uint32_t first = atomic_load_explicit(&b->first_slice[w->index], memory_order_relaxed);
    uint32_t end = atomic_load_explicit(&b->first_slice[w->index + 1], memory_order_relaxed);
    if (cursor->next < first)
        cursor->next = first;
    for (; cursor->next < end && cursor->next < LAYOUT_SLICES; cursor->next++) {
        claim now = claim_load(&c->word[cursor->next]);
        if (now.sequence != sequence)
            return false; /* not published yet (its rows are still being copied in), or another batch */
        if (spare && (cursor->next + 1 >= end || !is_unstarted(&c->word[cursor->next + 1], sequence)))
            return false;
        if ((now.state == CLAIM_FREE || now.state == CLAIM_CLAIMED) && try_take(w, &c->word[cursor->next], now)) {
            f->slice = cursor->next++;
            return true;
        }
    }
    return false;
}

/* T14 look. Slices that somebody died over and that anybody may have now. */
static bool claim_orphan(worker *w, const batch_desc *b, uint32_t slot, uint32_t sequence, claims *c, flight *f)
{
    slot_cursor *cursor = &w->cursors[slot];
    uint32_t orphans = atomic_load_explicit(&b->orphans, memory_order_acquire);
    uint32_t count = atomic_load_explicit(&b->slice_count, memory_order_relaxed);
    if (cursor->orphans != orphans) { /* also in the middle of a look: there may be new ones behind us */
        cursor->orphans = orphans;
        cursor->orphan_next = 0;
    }
    for (uint32_t i = cursor->orphan_next; i < count && i < LAYOUT_SLICES; i++) {
        claim now = claim_load(&c->word[i]);
        if (now.sequence == sequence && now.state == CLAIM_FREE && try_take(w, &c->word[i], now)) {
            cursor->orphan_next = i + 1;
            f->slice = i;
            return true;
        }
    }
    cursor->orphan_next = LAYOUT_SLICES;
    return false;
}

/* Whether taking `victim`'s last unstarted slice, `ahead` of them in all, makes the batch end sooner: we would be done
 * before the victim gets through them. A victim that is far behind the plan has lost its claim to the prediction. */
static bool worth_stealing(const worker *w, const batch_desc *b, uint32_t victim, uint32_t ahead,
                           int64_t *look_again_ns)
{
    uint64_t rows = atomic_load_explicit(&b->slice_rows[victim], memory_order_relaxed);
    double mine = slice_cost_ns(w, w->index, rows), theirs = slice_cost_ns(w, victim, rows) * ahead;
    if (mine * 1.1 < theirs)
        return true;
    int64_t late_ns = atomic_load_explicit(&b->published_ns, memory_order_relaxed) +
                      2 * atomic_load_explicit(&b->predicted_ns, memory_order_relaxed) + 1000000;
    if (clock_now_ns() > late_ns)
        return true;
    if (late_ns < *look_again_ns)
        *look_again_ns = late_ns;
    return false;
}

static bool claim_stolen(worker *w, const batch_desc *b, uint32_t sequence, claims *c, flight *f,
                         int64_t *look_again_ns)
{
    uint32_t planned = atomic_load_explicit(&b->planned_workers, memory_order_relaxed);
    for (uint32_t i = 1; i <= planned; i++) {
        uint32_t victim = (w->index + i) % planned;
        if (victim == w->index)
            continue;
        uint32_t first = atomic_load_explicit(&b->first_slice[victim], memory_order_relaxed);
        uint32_t end = atomic_load_explicit(&b->first_slice[victim + 1], memory_order_relaxed);
        if (first >= end || end > LAYOUT_SLICES)
            continue;
        uint32_t last = end - 1;
        claim now = claim_load(&c->word[last]);
        while (now.sequence == sequence && now.state != CLAIM_CLAIMED && now.state != CLAIM_FREE && last > first)
            now = claim_load(&c->word[--last]); /* the tail may have been stolen by others already */
        if (now.sequence != sequence || (now.state != CLAIM_CLAIMED && now.state != CLAIM_FREE))
            continue;
        uint32_t ahead = 1;
        for (uint32_t at = last; at > first && claim_load(&c->word[at - 1]).state == CLAIM_CLAIMED; at--)
            ahead++;
        if (worth_stealing(w, b, victim, ahead, look_again_ns) && try_take(w, &c->word[last], now)) {
            f->slice = last;
            f->stolen = true;
            return true;
        }
    }
    return false;
}

/* Active slots, oldest batch first; returns how many. */
static unsigned slots_in_order(const worker *w, uint32_t slots[LAYOUT_SLOTS], uint32_t sequences[LAYOUT_SLOTS])
{
    unsigned count = 0;
    for (uint64_t active = atomic_load_explicit(&w->control->active, memory_order_acquire); active;
         active &= active - 1) {
        uint32_t slot = (uint32_t)__builtin_ctzll(active);
        uint32_t sequence = atomic_load_explicit(&w->control->batches[slot].sequence, memory_order_acquire);
        if (!sequence)
            continue;
        unsigned at = count++;
        for (; at > 0 && (int32_t)(sequences[at - 1] - sequence) > 0; at--) {
            slots[at] = slots[at - 1];
            sequences[at] = sequences[at - 1];
        }
        slots[at] = slot;
        sequences[at] = sequence;
    }
    return count;
}

enum { PASS_PLANNED, PASS_ORPHANS, PASS_STEAL, PASSES };

static bool claim_in_pass(worker *w, int pass, uint32_t slot, uint32_t sequence, flight *f, bool spare,
                          int64_t *look_again_ns)
{
    const batch_desc *b = &w->control->batches[slot];
    claims *c = worker_claims(w, slot);
    if (w->cursors[slot].sequence != sequence)
        w->cursors[slot] = (slot_cursor){.sequence = sequence, .orphan_next = LAYOUT_SLICES};
    if (pass == PASS_ORPHANS)
        return claim_orphan(w, b, slot, sequence, c, f);
    if (pass == PASS_STEAL)
        return (f->flags & BATCH_STEAL) && claim_stolen(w, b, sequence, c, f, look_again_ns);
    return f->flags & BATCH_SHARD ? claim_shared(w, b, sequence, c, f) : claim_own(w, b, slot, sequence, c, f, spare);
}

/* Older batches go first, also where this one's last slice is not to be taken yet. */
static bool has_own(const worker *w, uint32_t slot, uint32_t sequence)
{
    const batch_desc *b = &w->control->batches[slot];
    uint32_t next = w->cursors[slot].next;
    return w->index < atomic_load_explicit(&b->planned_workers, memory_order_relaxed) &&
           next < atomic_load_explicit(&b->first_slice[w->index + 1], memory_order_relaxed) && next < LAYOUT_SLICES &&
           is_unstarted(&worker_claims(w, slot)->word[next], sequence);
}

/* Slices ahead of the engine are out of others' reach: none are taken where they would go short of work. */
static bool enough_for_all(const worker *w, const uint32_t *slots, const uint32_t *sequences, unsigned count)
{
    uint64_t untried = 0, workers = 0;
    for (unsigned i = 0; i < count; i++) {
        uint64_t hint = atomic_load_explicit(&worker_claims(w, slots[i])->next, memory_order_relaxed);
        if ((uint32_t)(hint >> 32) == sequences[i])
            untried += (uint32_t)hint;
    }
    for (uint32_t i = 0; i < LAYOUT_WORKERS; i++)
        workers += atomic_load_explicit(&w->control->workers[i].admitted, memory_order_relaxed) != 0;
    return untried > workers;
}

bool worker_claim(worker *w, flight *f, bool dear, bool spare, int64_t *look_again_ns)
{
    uint32_t slots[LAYOUT_SLOTS], sequences[LAYOUT_SLOTS];
    unsigned count = slots_in_order(w, slots, sequences);
    uint32_t job = atomic_load_explicit(&w->page->inbox.job, memory_order_acquire); /* pairs with worker_show_job */
    f->stolen = false;
    bool enough = !spare || enough_for_all(w, slots, sequences, count);
    for (int pass = 0; pass < (spare ? PASS_PLANNED + 1 : PASSES); pass++) {
        for (unsigned i = 0; i < count; i++) {
            const batch_desc *b = &w->control->batches[slots[i]];
            f->slot = slots[i];
            f->sequence = sequences[i];
            f->flags = atomic_load_explicit(&b->flags, memory_order_relaxed);
            if ((f->flags & BATCH_SHARD) && atomic_load_explicit(&b->job, memory_order_relaxed) != job)
                continue; /* a new worker, which is about to be told of the run */
            if (((f->flags & BATCH_DEAR) != 0) != dear || ((f->flags & BATCH_SHARD) && !enough))
                continue;
            if (claim_in_pass(w, pass, slots[i], sequences[i], f, spare, look_again_ns))
                return true;
            if (spare && !(f->flags & BATCH_SHARD) && has_own(w, slots[i], sequences[i]))
                return false;
        }
    }
    return false;
}

/* ---- the rows of a slice ---------------------------------------------------------------------------------------- */

bool scratch_ensure(scratch *s, size_t bytes)
{
    if (s->bytes >= bytes && s->data)
        return true;
    size_t rounded = (bytes + 4095) / 4096 * 4096 + 4096;
    void *data = aligned_alloc(4096, rounded);
    if (!data)
        return false;
    free(s->data);
    s->data = data;
    s->bytes = rounded;
    return true;
}

void worker_find_rows(const worker *w, flight *f)
{
    const batch_desc *b = &w->control->batches[f->slot];
    if (f->flags & BATCH_SHARD) {
        uint64_t rows = b->slice_rows[0];
        f->first_row = rows * f->slice;
        f->rows = (size_t)(b->rows - f->first_row < rows ? b->rows - f->first_row : rows);
        return;
    }
    uint32_t low = 0,
             high = atomic_load_explicit(&b->planned_workers,
                                         memory_order_relaxed); /* the owner: the last w with first_slice[w] <= slice */
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (atomic_load_explicit(&b->first_slice[middle], memory_order_relaxed) <= f->slice)
            low = middle;
        else
            high = middle;
    }
    uint64_t rows = b->slice_rows[low];
    f->first_row =
        b->share_row[low] + rows * (f->slice - atomic_load_explicit(&b->first_slice[low], memory_order_relaxed));
    uint64_t left = b->share_row[low + 1] - f->first_row;
    f->rows = (size_t)(left < rows ? left : rows);
}

static void set_array(backend_array *a, const layout_array *from, size_t rows)
{
    a->rank = (int)from->rank;
    memcpy(a->shape, from->shape, sizeof a->shape);
    if (!from->broadcast && a->rank > 0)
        a->shape[0] = (int64_t)rows;
}

/* Repeats the last row up to call_rows: never reads or writes beyond the user's rows. */
static void pad_rows(void *data, size_t row_bytes, size_t rows, size_t call_rows)
{
    unsigned char *base = data;
    for (size_t row = rows; row < call_rows; row++)
        memcpy(base + row * row_bytes, base + (rows - 1) * row_bytes, row_bytes);
}

static dpi_status out_of_memory(dpi_error *error, size_t bytes)
{
    return error_set(error, DPI_E_SYSTEM, "the worker cannot allocate %zu bytes for a slice; lower --batch", bytes);
}

/* Tells the engine about the arena up to `end`, each byte once, so that a GPU copies from and to it directly. */
static void register_up_to(worker *w, unsigned char *base, uint64_t *done, uint64_t end, bool writable)
{
    end = (end + ARENA_GRAIN - 1) / ARENA_GRAIN * ARENA_GRAIN;
    if (!w->backend->memory_register || end <= *done)
        return;
    w->backend->memory_register(w->engine, base + *done, end - *done, writable);
    *done = end;
}

static dpi_status prepare_inputs(worker *w, const batch_desc *b, flight *f, dpi_error *error)
{
    for (uint32_t i = 0; i < b->input_count; i++) {
        const layout_array *in = &b->inputs[i];
        set_array(&f->inputs[i], in, f->call_rows);
        if (w->broadcast[i].data) {
            f->inputs[i] = w->broadcast[i];
            continue;
        }
        if (f->flags & BATCH_SHARD)
            continue; /* worker_job_load */
        register_up_to(w, w->inputs, &w->inputs_registered, in->offset + b->rows * in->row_bytes, false);
        unsigned char *rows = w->inputs + in->offset + f->first_row * in->row_bytes;
        f->inputs[i].data = rows;
        if (f->call_rows == f->rows)
            continue;
        if (!scratch_ensure(&f->in[i], in->row_bytes * f->call_rows))
            return out_of_memory(error, in->row_bytes * f->call_rows);
        memcpy(f->in[i].data, rows, in->row_bytes * f->rows);
        pad_rows(f->in[i].data, in->row_bytes, f->rows, f->call_rows);
        f->inputs[i].data = f->in[i].data;
    }
    return DPI_OK;
}

dpi_status worker_prepare_outputs(worker *w, flight *f, dpi_error *error)
{
    const batch_desc *b = &w->control->batches[f->slot];
    const worker_job *job = f->flags & BATCH_SHARD ? worker_job_find(w, b->job) : NULL;
    for (uint32_t i = 0; i < b->output_count; i++) {
        const layout_array *out = &b->outputs[i];
        bool in_arena = !(f->flags & BATCH_SHARD) || (job && job->sinks[i].in_arena);
        set_array(&f->outputs[i], out, f->call_rows);
        f->outputs[i].data = w->outputs + out->offset + f->first_row * out->row_bytes;
        if (in_arena && f->call_rows == f->rows) {
            register_up_to(w, w->outputs, &w->outputs_registered, out->offset + b->rows * out->row_bytes, true);
            continue;
        }
        if (!scratch_ensure(&f->out[i], out->row_bytes * f->call_rows))
            return out_of_memory(error, out->row_bytes * f->call_rows);
        f->outputs[i].data = f->out[i].data;
    }
    return DPI_OK;
}

void worker_pad_inputs(const worker *w, flight *f)
{
    const batch_desc *b = &w->control->batches[f->slot];
    for (uint32_t i = 0; f->call_rows > f->rows && i < b->input_count; i++)
        if (!w->broadcast[i].data)
            pad_rows(f->inputs[i].data, b->inputs[i].row_bytes, f->rows, f->call_rows);
}

/* A slice that is loaded for long is no hang. */
static void show_progress(worker *w, const flight *f) { worker_show_busy(w, f, clock_now_ns()); }

dpi_status worker_prepare(worker *w, flight *f, dpi_error *error)
{
    dpi_status status = worker_prepare_ahead(w, f, error);
    if (status || !(f->flags & BATCH_SHARD))
        return status;
    if (f->job->dear)
        status = loader_load_all(f, show_progress, w, error);
    worker_pad_inputs(w, f);
    return status;
}

dpi_status worker_prepare_ahead(worker *w, flight *f, dpi_error *error)
{
    const batch_desc *b = &w->control->batches[f->slot];
    f->call_rows = b->fixed_rows > f->rows ? b->fixed_rows : f->rows;
    f->new_shape = f->call_rows > w->largest_rows;
    w->largest_rows = f->new_shape ? f->call_rows : w->largest_rows;
    f->call = (backend_call){.rows = f->call_rows, .inputs = f->inputs, .outputs = f->outputs};
    dpi_status status = prepare_inputs(w, b, f, error);
    if (!status)
        status = worker_prepare_outputs(w, f, error);
    if (status || !(f->flags & BATCH_SHARD))
        return status;
    const worker_job *job = worker_job_find(w, b->job);
    if (!job)
        return error_set(error, DPI_E_INTERNAL, "worker %u was not told about run %u", w->index, b->job);
    f->job = job;
    f->source_row = b->first_row + f->first_row;
    return worker_job_load(w, job, f, f->source_row, error);
}

dpi_status worker_deliver(worker *w, flight *f, dpi_error *error)
{
    const batch_desc *b = &w->control->batches[f->slot];
    const worker_job *job = f->flags & BATCH_SHARD ? worker_job_find(w, b->job) : NULL;
    if ((f->flags & BATCH_SHARD) && !job) /* the run is over: somebody has spoilt this slice's word */
        return error_set(error, DPI_E_INTERNAL, "worker %u computed a slice of a run that is over", w->index);
    for (size_t i = 0; i < f->bad_count; i++)
        worker_void_row(w, f, f->bad[i].row);
    if (job) {
        dpi_status status = worker_job_store(w, job, f, b->result_row + f->first_row, b, error);
        return !status && f->bad_count ? worker_report_bad(w, f, error) : status;
    }
    for (uint32_t i = 0; f->call_rows != f->rows && i < b->output_count; i++) {
        const layout_array *out = &b->outputs[i];
        memcpy(w->outputs + out->offset + f->first_row * out->row_bytes, f->out[i].data, f->rows * out->row_bytes);
    }
    return DPI_OK;
}

/* ---- the end of a slice ----------------------------------------------------------------------------------------- */

static void add(_Atomic uint64_t *counter, uint64_t value)
{
    /* One writer: no need for a locked instruction. */
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + value, memory_order_relaxed);
}

void worker_count(worker *w, const flight *f, int64_t now_ns)
{
    worker_page *page = w->page;
    add(&page->slices, 1);
    add(&page->rows, f->rows);
    add(&page->stolen, f->stolen);
    _Atomic uint32_t *latency = &page->latencies[latency_bucket(now_ns - f->started_ns)];
    atomic_store_explicit(latency, atomic_load_explicit(latency, memory_order_relaxed) + 1, memory_order_relaxed);
    /* What the slice added: with several in flight the one before it may have ended after this one was begun. */
    int64_t before_ns = atomic_load_explicit(&page->finished_ns, memory_order_relaxed);
    int64_t began_ns = before_ns > f->started_ns ? before_ns : f->started_ns;
    uint64_t ns = (uint64_t)(now_ns - began_ns), limit = (1ull << 40) - 1;
    uint64_t at = atomic_load_explicit(&page->sample_count, memory_order_relaxed);
    atomic_store_explicit(&page->samples[at % PAGE_SAMPLES].rows_and_ns,
                          (uint64_t)(f->rows & 0xffffff) << 40 | (ns < limit ? ns : limit), memory_order_relaxed);
    atomic_store_explicit(&page->sample_count, at + 1, memory_order_release);
    atomic_store_explicit(&page->finished_ns, now_ns, memory_order_relaxed);
}

/* Before a word becomes BAD: the failed batch reads it there (batch_end.c, note_failure). What a suspect's trouble was
 * must not get there. */
static void note_failure(worker *w, const flight *f, const dpi_error *error)
{
    page_failure *p = &w->page->failures[f->slot];
    if (atomic_load_explicit(&p->sequence, memory_order_relaxed) == f->sequence)
        return; /* it may be read already */
    p->status = (uint32_t)error->status;
    snprintf(p->message, sizeof p->message, "%s", error->message);
    atomic_store_explicit(&p->sequence, f->sequence, memory_order_release);
}

void worker_finish(worker *w, flight *f, dpi_status status, const dpi_error *error)
{
    if (!status)
        worker_count(w, f, clock_now_ns());
    if (w->outbox)
        worker_report_slice(w, f, status, error);
    else if (worker_end_slice(w, f, status, error))
        worker_tell_suspect(w, f, error->message);
}

bool worker_end_slice(worker *w, const flight *f, dpi_status status, const dpi_error *error)
{
    const batch_desc *b = &w->control->batches[f->slot];
    claims *c = worker_claims(w, f->slot);
    claim mine = {.sequence = f->sequence, .generation = w->generation, .worker = w->index, .state = CLAIM_RUNNING};
    claim end = mine;
    bool suspect = status == DPI_E_ENGINE && w->control->on_bad_row == DPI_BAD_ROW_SKIP;
    end.state = suspect ? CLAIM_SUSPECT : status ? CLAIM_BAD : CLAIM_DONE;
    if (end.state == CLAIM_BAD)
        note_failure(w, f, error);
    /* The batch may be retired right behind this exchange and its slot reused: what follows touches only bells and
     * hints, and a ring too many does no harm. */
    worker_step(w, STEP_DELIVERED);
    claim_move(&c->word[f->slice], mine, end); /* T4 finish, or T6 suspect */
    worker_step(w, STEP_DONE);
    if (suspect) /* the supervisor's from here on: it looks when it is told */
        return true;
    uint32_t left;
    bool last = hint_step(&c->left, f->sequence, &left) && left == 1; /* T9 count */
    worker_step(w, STEP_COUNTED);
    /* Not before the word: who sets BATCH_UNSURE looks at the words after it (recovery.c, ring_waiters). */
    uint32_t flags = atomic_load(&b->flags);
    last |= (flags & BATCH_UNSURE) != 0;
    if (last || (flags & BATCH_RING_EACH) || status)
        bell_ring(&c->bell, &b->waiting); /* T11 ring */
    worker_step(w, STEP_RUNG);
    if (last && w->event_fd >= 0 && atomic_load_explicit(&w->control->event_wanted, memory_order_relaxed)) {
        uint64_t one = 1;
        ssize_t ignored = write(w->event_fd, &one, sizeof one); /* full: it is readable already */
        (void)ignored;
    }
    return false;
}
