/* The end of a batch: which slices are terminal, what became of them, and what is learnt from it. */
#include "base/clock.h"
#include "runtime/batch.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the end of a batch ----------------------------------------------------------------------------------------- */

static void learn(dpi_session *s, batch *b, int64_t now_ns)
{
    int64_t last_ns = 0;
    for (size_t w = 0; w < s->count; w++) {
        session_worker *k = &s->workers[w];
        uint64_t end = atomic_load_explicit(&k->page->sample_count, memory_order_acquire);
        if (end - k->samples_seen > PAGE_SAMPLES)
            k->samples_seen = end - PAGE_SAMPLES;
        for (; k->samples_seen != end; k->samples_seen++) {
            uint64_t sample = atomic_load_explicit(&k->page->samples[k->samples_seen % PAGE_SAMPLES].rows_and_ns,
                                                   memory_order_relaxed);
            planner_slice(s->planner, w, sample >> 40, (double)(sample & ((1ull << 40) - 1)));
        }
        plan_cost cost = planner_cost(s->planner, w);
        atomic_store_explicit(&s->control->workers[w].fixed_ns, (uint64_t)cost.fixed_ns, memory_order_relaxed);
        atomic_store_explicit(&s->control->workers[w].row_ns, (uint64_t)cost.row_ns, memory_order_relaxed);
        int64_t finished = atomic_load_explicit(&k->page->finished_ns, memory_order_relaxed);
        last_ns = finished > last_ns && finished <= now_ns ? finished : last_ns;
        if (b->predicted_ns && w < b->planned_workers)
            k->busy_ns = k->busy_ns > b->predicted_ns[w] ? k->busy_ns - b->predicted_ns[w] : 0;
    }
    if (b->choice >= 0 && !b->failed && !b->cancelled)
        planner_measured(s->planner, b->choice, b->rows, (double)(now_ns - b->began_ns));
    s->wake_ns += last_ns > b->began_ns ? (uint64_t)(now_ns - last_ns) : 0;
}

static void free_array(dpi_session *s, arena *in, batch_array *a)
{
    block_unuse(s, a);
    if (a->block != ARENA_NONE)
        arena_free(in, a->block);
    a->block = ARENA_NONE;
}

/* T21 settle. Every slice is terminal: the slot is free for the next batch, the inputs' memory too. Under the lock. */
void batch_settle(dpi_session *s, batch *b)
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
        block_unuse(s, &b->outputs[o]);
    s->batches_done += !b->failed;
    s->batches_failed += b->failed;
    s->rows_done += b->failed ? 0 : b->rows;
    pthread_cond_broadcast(&s->changed);
}

void batch_unlink(dpi_session *s, batch *b)
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
    batch_free_bad_rows(b->bad_rows, b->bad_row_count);
    free(b);
}

bool batch_add_bad_row(batch_bad_row **list, size_t *count, uint64_t row, const char *reason)
{
    char *copy = strdup(reason);
    batch_bad_row *more = copy ? realloc(*list, (*count + 1) * sizeof *more) : NULL;
    if (!more) {
        free(copy);
        return false;
    }
    *list = more;
    more[(*count)++] = (batch_bad_row){.row = row, .reason = copy};
    return true;
}

void batch_free_bad_rows(batch_bad_row *list, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(list[i].reason);
    free(list);
}

static void note_failure(dpi_session *s, batch *b, claim c)
{
    if (b->failed || b->cancelled)
        return;
    b->failed = true;
    if (c.worker == CLAIM_JUDGED && b->verdict.status) {
        b->error = b->verdict;
        return;
    }
    const page_failure *p = c.worker < s->count ? &s->workers[c.worker].page->failures[b->slot] : NULL;
    uint32_t status = 0;
    char message[sizeof p->message] = "";
    if (p && atomic_load_explicit(&p->sequence, memory_order_acquire) == b->sequence) { /* the worker's note_failure */
        status = p->status;
        memcpy(message, p->message, sizeof message);
        message[sizeof message - 1] = 0;
    }
    if (status < DPI_E_ARGUMENT || status > DPI_E_INTERNAL)
        status = DPI_E_ENGINE;
    error_set(&b->error, (dpi_status)status, "worker %u (%s): %s", c.worker,
              c.worker < s->count ? s->devices.items[c.worker].name : "?", message[0] ? message : "a slice failed");
}

/* A batch has ended without a worker's doing: event loops hear of it all the same. */
void batch_announce_end(dpi_session *s)
{
    uint64_t one = 1;
    if (atomic_load(&s->control->event_wanted) && write(s->event_fd, &one, sizeof one) < 0)
        log_debug(&s->log, "the event descriptor is full");
}

/* T7 drop. Slices from `first` on that nobody has started. */
void batch_drop_unstarted(dpi_session *s, batch *b, uint32_t first)
{
    if (b->slot < 0)
        return;
    claims *c = batch_claims(s, b->slot);
    bool any = false, last = false;
    for (uint32_t i = first; i < b->slice_count; i++) {
        claim now = claim_load(&c->word[i]), bad = now;
        bad.state = CLAIM_BAD;
        bad.worker = CLAIM_DROPPED;
        uint32_t left;
        if (now.sequence != b->sequence || (now.state != CLAIM_FREE && now.state != CLAIM_CLAIMED) ||
            !claim_move(&c->word[i], now, bad))
            continue;
        any = true;
        last |= hint_step(&c->left, b->sequence, &left) && left == 1;
    }
    if (last || (any && (atomic_load(&s->control->batches[b->slot].flags) & BATCH_UNSURE)))
        batch_announce_end(s);
}

/* Copies finished rows to plain memory up to the first unfinished slice. */
static void copy_out(dpi_session *s, batch *b, uint64_t end_row)
{
    uint64_t rows = end_row - b->copied_rows, bytes = 0;
    if (b->failed || b->cancelled || b->abandoned || end_row <= b->copied_rows)
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

uint64_t batch_slice_rows(const dpi_session *s, const batch *b, uint32_t slice, uint64_t *rows)
{
    const batch_desc *d = &s->control->batches[b->slot];
    size_t w = 0;
    while (!b->shard && w + 1 < b->planned_workers &&
           atomic_load_explicit(&d->first_slice[w + 1], memory_order_relaxed) <= slice)
        w++;
    uint64_t most = atomic_load_explicit(&d->slice_rows[w], memory_order_relaxed);
    uint64_t share = b->shard ? 0 : d->share_row[w], end = b->shard ? b->rows : d->share_row[w + 1];
    uint64_t first =
        share + most * (slice - (b->shard ? 0 : atomic_load_explicit(&d->first_slice[w], memory_order_relaxed)));
    if (rows)
        *rows = end - first < most ? end - first : most;
    return first;
}

static void scan_on(dpi_session *s, batch *b)
{
    const claims *c = batch_claims(s, b->slot);
    for (; b->cursor < b->slice_count; b->cursor++) {
        claim now = claim_load(&c->word[b->cursor]);
        if (now.sequence != b->sequence || !claim_is_terminal(now))
            break;
        if (now.state != CLAIM_BAD)
            continue;
        if (now.worker == CLAIM_DROPPED)
            b->cancelled = true;
        else
            note_failure(s, b, now);
    }
}

/* Looks at the claim words from the cursor on; true when every slice is terminal. The waiter's, or under the lock. */
bool batch_scan(dpi_session *s, batch *b)
{
    uint32_t before = b->cursor;
    scan_on(s, b);
    if (b->failed && b->cursor < b->slice_count) {
        batch_drop_unstarted(s, b, b->cursor);
        scan_on(s, b); /* nobody rings for what we have dropped ourselves */
    }
    if (b->cursor != before && !b->shard)
        copy_out(s, b, b->cursor < b->slice_count ? batch_slice_rows(s, b, b->cursor, NULL) : b->rows);
    return b->cursor >= b->slice_count;
}

bool batch_is_over(dpi_session *s, batch *b)
{
    if (!batch_scan(s, b))
        return false;
    const claims *c = batch_claims(s, b->slot);
    for (uint32_t i = 0; i < b->slice_count; i++) {
        claim now = claim_load(&c->word[i]);
        if (now.sequence == b->sequence && claim_is_terminal(now))
            continue;
        b->cursor = i; /* spoilt behind the cursor, and perhaps FREE again since: somebody may be computing it */
        return false;
    }
    return true;
}
