#include "runtime/recovery.h"

#include "base/clock.h"
#include "base/text.h"
#include "ipc/trial.h"
#include "runtime/batch.h"
#include "runtime/courier.h"
#include "runtime/events.h"

#include <stdlib.h>
#include <string.h>

#define ROW_TRIALS  3   /* so often a single row has to fail, on several devices where there are */
#define FILL_TRIALS 100 /* leaving a row out runs no engine: what fails it is bad luck */
#define UNBEGUN     100 /* a worker says itself whether it had begun: not for ever */

/* Rows still to be tried. */
typedef struct row_range {
    uint64_t first, rows; /* within the batch */
    unsigned failures;
    size_t failed_on; /* the last worker that failed at it, SESSION_NOBODY */
    bool fill;        /* judged already: to be left out */
    unsigned unbegun; /* trials whose worker was gone before it began */
} row_range;

/* One death, and how many of its suspects are open. */
typedef struct blame {
    size_t worker;
    unsigned open;
    bool rows;      /* a row was to blame, or may have been: its batch is over and it was not tried */
    bool elsewhere; /* a suspect succeeded on another device */
} blame;

typedef struct suspect {
    struct suspect *next;
    int slot;
    uint32_t sequence, slice;
    blame *of;
    row_range *ranges; /* a stack */
    size_t range_count, range_capacity;
    char reason[640]; /* how it last killed or failed */
} suspect;

struct recovery {
    suspect *first, *last; /* the first is the one on trial */
    size_t probation;      /* the worker that does trials now, SESSION_NOBODY */
    uint64_t number;       /* of the last trial */
    bool running;
    size_t on;       /* running: which worker */
    row_range range; /* and what */
};

static recovery *get(dpi_session *s)
{
    if (!s->recovery && (s->recovery = calloc(1, sizeof *s->recovery)))
        s->recovery->probation = SESSION_NOBODY;
    return s->recovery;
}

/* The batch that a suspect belongs to while it is in flight, else NULL. Under the lock. */
static batch *batch_of(const dpi_session *s, const suspect *x)
{
    batch *b = s->slots[x->slot];
    return b && b->sequence == x->sequence ? b : NULL;
}

/* ---- words ------------------------------------------------------------------------------------------------------ */

static bool all_terminal(const dpi_session *s, const batch *b)
{
    const claims *c = batch_claims(s, b->slot);
    for (uint32_t i = 0; i < b->slice_count; i++)
        if (!claim_is_terminal(claim_load(&c->word[i])))
            return false;
    return true;
}

static void ring_waiters(dpi_session *s, const batch *b)
{
    claims *c = batch_claims(s, b->slot);
    atomic_fetch_add(&c->bell, 1);
    futex_wake(&c->bell);
    if (all_terminal(s, b))
        batch_announce_end(s);
}

static void ring_workers(dpi_session *s)
{
    for (size_t w = 0; w < s->count; w++)
        session_ring_claimer(s, w);
}

/* A word that only we move, or whose worker is dead. Under the lock. */
static bool move_word(dpi_session *s, const batch *b, uint32_t slice, claim now, uint32_t state, uint32_t by)
{
    claims *c = batch_claims(s, b->slot);
    claim to = {.sequence = now.sequence, .generation = now.generation, .worker = by, .state = state};
    uint32_t left;
    if (!claim_move(&c->word[slice], now, to))
        return false;
    if (claim_is_terminal(to))
        hint_step(&c->left, b->sequence, &left);
    return true;
}

/* T13 orphans */
static void orphans_moved(dpi_session *s, const batch *b)
{
    batch_desc *d = &s->control->batches[b->slot];
    atomic_fetch_or(&d->flags, BATCH_UNSURE);
    atomic_fetch_add(&d->orphans, 1);
}

/* The batch fails for this reason. Under the lock. */
static void judge(batch *b, dpi_status status, const char *text)
{
    if (!b->verdict.status)
        error_set(&b->verdict, status, "%s", text);
}

/* ---- suspects --------------------------------------------------------------------------------------------------- */

static bool push(suspect *x, row_range range)
{
    if (x->range_count == x->range_capacity) {
        size_t capacity = x->range_capacity ? x->range_capacity * 2 : 8;
        row_range *ranges = realloc(x->ranges, capacity * sizeof *ranges);
        if (!ranges)
            return false;
        x->ranges = ranges;
        x->range_capacity = capacity;
    }
    x->ranges[x->range_count++] = range;
    return true;
}

static suspect *find_suspect(const recovery *r, int slot, uint32_t sequence, uint32_t slice)
{
    suspect *x = r->first;
    while (x && !(x->slot == slot && x->sequence == sequence && x->slice == slice))
        x = x->next;
    return x;
}

/* Under the lock. */
static bool add_suspect(dpi_session *s, const batch *b, uint32_t slice, blame *of, const char *reason)
{
    recovery *r = s->recovery;
    suspect *x = calloc(1, sizeof *x);
    row_range all = {.failed_on = SESSION_NOBODY};
    all.first = batch_slice_rows(s, b, slice, &all.rows);
    if (!x || !push(x, all)) {
        free(x);
        return false;
    }
    x->slot = b->slot;
    x->sequence = b->sequence;
    x->slice = slice;
    x->of = of;
    of->open++;
    snprintf(x->reason, sizeof x->reason, "%s", reason);
    if (r->last)
        r->last->next = x;
    else
        r->first = x;
    r->last = x;
    return true;
}

/* The first suspect is done with. */
static void drop_first(dpi_session *s)
{
    recovery *r = s->recovery;
    suspect *x = r->first;
    blame *of = x->of;
    r->first = x->next;
    if (!r->first) {
        r->last = NULL;
        r->probation = SESSION_NOBODY;
    }
    if (--of->open == 0) {
        if (!of->rows && of->elsewhere)
            s->workers[of->worker].strikes++;
        free(of);
    }
    free(x->ranges);
    free(x);
}

/* T8 judge. Moves the first suspect's word to its end and drops it. Under the lock. */
static void finish_first(dpi_session *s, uint32_t state, uint32_t by)
{
    const suspect *x = s->recovery->first;
    const batch *b = batch_of(s, x);
    if (b) {
        claim now = claim_load(&batch_claims(s, b->slot)->word[x->slice]);
        if (now.sequence == x->sequence && now.state == CLAIM_SUSPECT)
            move_word(s, b, x->slice, now, state, by);
        if (state == CLAIM_FREE)
            orphans_moved(s, b);
        ring_waiters(s, b);
    }
    drop_first(s);
}

/* ---- a death ---------------------------------------------------------------------------------------------------- */

/* Under the lock. */
static void take_word(dpi_session *s, batch *b, uint32_t slice, claim now, const death *d, blame *of, bool *freed)
{
    uint32_t w = now.worker;
    if (now.state == CLAIM_SUSPECT) { /* it had no time to tell of it */
        if (!add_suspect(s, b, slice, of, d->reason))
            *freed |= move_word(s, b, slice, now, CLAIM_FREE, 0);
    } else if (now.state == CLAIM_CLAIMED || !d->counts) { /* T5 free */
        *freed |= move_word(s, b, slice, now, CLAIM_FREE, 0);
    } else if (d->status != DPI_E_WORKER) {
        judge(b, d->status, d->reason);
        move_word(s, b, slice, now, CLAIM_BAD, CLAIM_JUDGED);
    } else if (move_word(s, b, slice, now, CLAIM_SUSPECT, w) &&
               /* T6 suspect */ !add_suspect(s, b, slice, of, d->reason)) {
        now.state = CLAIM_SUSPECT;
        *freed |= move_word(s, b, slice, now, CLAIM_FREE, 0); /* out of memory: without a trial, then */
    }
}

static void take_batch(dpi_session *s, batch *b, size_t w, const death *d, blame *of)
{
    claims *c = batch_claims(s, b->slot);
    bool freed = false;
    for (uint32_t i = 0; i < b->slice_count; i++) {
        claim now = claim_load(&c->word[i]);
        if (now.sequence != b->sequence || now.worker != w)
            continue;
        if (now.state == CLAIM_CLAIMED ||
            (now.state == CLAIM_RUNNING && now.generation == (s->workers[w].generation & 0x7ffffu)) ||
            (now.state == CLAIM_SUSPECT && !find_suspect(s->recovery, b->slot, b->sequence, i)))
            take_word(s, b, i, now, d, of, &freed);
    }
    atomic_fetch_or(&s->control->batches[b->slot].flags, BATCH_UNSURE);
    if (freed ||
        b->shard) /* shard mode: a slice that it was dealt and had not begun is FREE still, and dealt no more */
        orphans_moved(s, b);
    ring_waiters(s, b);
}

static void trial_failed(dpi_session *s, const char *reason, dpi_status status);

static void end_trial(dpi_session *s)
{
    s->recovery->running = false;
    atomic_store(&s->control->trial.number, 0);
}

bool recovery_death(dpi_session *s, size_t w, const death *d)
{
    recovery *r = get(s);
    blame *of = calloc(1, sizeof *of);
    if (!r || !of) {
        free(of);
        return false;
    }
    of->worker = w;
    /* It may have died of slices that it had in hand when it was asked for the trial: no word of that row, then. */
    bool tried = r->running && r->on == w, begun = atomic_load(&s->workers[w].page->trial) == r->number;
    pthread_mutex_lock(&s->lock);
    for (int slot = 0; slot < LAYOUT_SLOTS; slot++)
        if (s->slots[slot])
            take_batch(s, s->slots[slot], w, d, of);
    if (tried) {
        end_trial(s);
        if (d->counts && (begun || ++r->range.unbegun > UNBEGUN))
            trial_failed(s, d->reason, DPI_E_WORKER);
        else if (!push(r->first, r->range))
            finish_first(s, CLAIM_FREE, 0);
    }
    bool explained = (tried && begun) || of->open != 0;
    if (!of->open)
        free(of);
    pthread_mutex_unlock(&s->lock);
    ring_workers(s);
    return explained;
}

void recovery_free_claimed(dpi_session *s, size_t w)
{
    for (int slot = 0; slot < LAYOUT_SLOTS; slot++) {
        const batch *b = s->slots[slot];
        bool freed = false;
        for (uint32_t i = 0; b && i < b->slice_count; i++) {
            claim now = claim_load(&batch_claims(s, slot)->word[i]);
            if (now.sequence == b->sequence && now.state == CLAIM_CLAIMED && now.worker == w)
                freed |= move_word(s, b, i, now, CLAIM_FREE, 0); /* T5 free */
        }
        if (freed)
            orphans_moved(s, b);
    }
    ring_workers(s);
}

void recovery_free_planned(dpi_session *s, batch *b)
{
    if (b->slot < 0 || b->shard || s->in_caller)
        return;
    const batch_desc *d = &s->control->batches[b->slot];
    bool freed = false;
    for (size_t w = 0; w < b->planned_workers; w++) {
        if (s->workers[w].ready)
            continue;
        uint32_t i = atomic_load_explicit(&d->first_slice[w], memory_order_relaxed);
        uint32_t end = atomic_load_explicit(&d->first_slice[w + 1], memory_order_relaxed);
        for (; i < end && i < b->slice_count; i++) {
            claim now = claim_load(&batch_claims(s, b->slot)->word[i]);
            if (now.sequence == b->sequence && now.state == CLAIM_CLAIMED)
                freed |= move_word(s, b, i, now, CLAIM_FREE, 0); /* T5 free */
        }
    }
    if (!freed)
        return;
    orphans_moved(s, b);
    ring_workers(s);
}

/* ---- trials ----------------------------------------------------------------------------------------------------- */

static bool is_there(const dpi_session *s, size_t w) { return s->workers[w].device == DEVICE_IN_USE; }

/* Who is to try a range: the probation worker as long as there is one, else preferably another than the one that died,
 * an idle one before a busy one. SESSION_NOBODY: wait for somebody to become ready. */
static size_t choose_worker(dpi_session *s, const suspect *x, const row_range *range)
{
    recovery *r = s->recovery;
    size_t avoid = range->failed_on, p = r->probation, best = SESSION_NOBODY;
    int best_rank = 0;
    if (p != SESSION_NOBODY && p != avoid && is_there(s, p) && s->workers[p].state != WORKER_WAITING)
        return s->workers[p].state == WORKER_READY ? p : SESSION_NOBODY;
    bool others = false;
    for (size_t w = 0; w < s->count; w++)
        others |= w != avoid && is_there(s, w);
    for (size_t w = 0; w < s->count; w++) {
        if (s->workers[w].state != WORKER_READY || (w == avoid && others))
            continue;
        int rank = 1 + 2 * (w != x->of->worker) + (atomic_load(&s->workers[w].page->busy_since_ns) == 0);
        if (rank > best_rank) {
            best_rank = rank;
            best = w;
        }
    }
    return best;
}

/* T15 ask */
static void ask_trial(dpi_session *s, const suspect *x, size_t w, const row_range *range)
{
    recovery *r = s->recovery;
    trial_order order = {.worker = (uint32_t)w,
                         .slot = (uint32_t)x->slot,
                         .sequence = x->sequence,
                         .slice = x->slice,
                         .first_row = range->first,
                         .rows = range->rows,
                         .fill = range->fill};
    r->running = true;
    r->on = r->probation = w;
    r->range = *range;
    trial_ask(&s->control->trial, ++r->number, &order);
    session_ring_worker(s, w);
}

/* The row of the user's that row `row` of a batch is. */
static uint64_t users_row(const dpi_session *s, const batch *b, uint64_t row)
{
    return b->shard ? s->control->batches[b->slot].first_row + row : row;
}

static bool may_leave_out(const dpi_session *s, const batch *b)
{
    return s->on_bad_row == DPI_BAD_ROW_SKIP && (b->shard ? s->run_bad_rows : b->bad_row_count) < s->max_bad_rows;
}

/* Rows may be computed twice: when somebody has spoilt the words that said that they were done. */
static bool is_noted(const batch *b, uint64_t row)
{
    for (size_t i = 0; i < b->bad_row_count; i++)
        if (b->bad_rows[i].row == row)
            return true;
    return false;
}

static bool note_bad_row(dpi_session *s, batch *b, uint64_t row, const char *reason)
{
    if (is_noted(b, row))
        return true;
    if (!batch_add_bad_row(&b->bad_rows, &b->bad_row_count, row, reason) ||
        (b->shard && !batch_add_bad_row(&s->run_bad, &s->run_bad_rows, row, reason)))
        return false;
    s->bad_rows++;
    return true;
}

/* One row has failed wherever it was tried. Under the lock. */
static void judge_row(dpi_session *s, row_range range, dpi_status status)
{
    suspect *x = s->recovery->first;
    batch *b = batch_of(s, x);
    x->of->rows = true;
    uint64_t row = b ? users_row(s, b, range.first) : 0;
    bool noted = b && is_noted(b, row);
    if (b && !noted)
        event_bad_row(s, row, x->reason);
    range.fill = true;
    range.failures = 0;
    range.failed_on = SESSION_NOBODY;
    if (b && (noted || may_leave_out(s, b)) && push(x, range) && note_bad_row(s, b, row, x->reason))
        return;
    char text[sizeof((dpi_error *)0)->message];
    snprintf(text, sizeof text, "row %llu cannot be computed: %s%s", (unsigned long long)row, x->reason,
             s->on_bad_row == DPI_BAD_ROW_SKIP ? "; that is one bad row too many" : "");
    if (b)
        judge(b, status, text);
    finish_first(s, CLAIM_BAD, CLAIM_JUDGED);
}

/* The trial that ran has killed or failed its worker. Under the lock. */
static void trial_failed(dpi_session *s, const char *reason, dpi_status status)
{
    recovery *r = s->recovery;
    suspect *x = r->first;
    row_range range = r->range;
    snprintf(x->reason, sizeof x->reason, "%s", reason);
    range.failures++;
    bool pushed = true;
    if (range.fill && range.failures < FILL_TRIALS) {
        pushed = push(x, range);
    } else if (range.rows > 1) {
        range.failures = 0;
        row_range second = range;
        range.rows /= 2;
        second.first += range.rows;
        second.rows -= range.rows;
        pushed = push(x, second) && push(x, range);
    } else if (!range.fill && range.failures < ROW_TRIALS) {
        range.failed_on = r->on;
        pushed = push(x, range);
    } else {
        judge_row(s, range, status);
    }
    if (!pushed) { /* out of memory */
        batch *b = batch_of(s, x);
        if (b)
            judge(b, DPI_E_SYSTEM, "out of memory");
        finish_first(s, CLAIM_BAD, CLAIM_JUDGED);
    }
}

/* Under the lock. */
static void trial_succeeded(dpi_session *s)
{
    recovery *r = s->recovery;
    suspect *x = r->first;
    if (r->range.failed_on != SESSION_NOBODY && r->range.failed_on != r->on)
        s->workers[r->range.failed_on].strikes++; /* the row is good: the device is not */
    x->of->elsewhere |= r->on != x->of->worker;
    if (x->range_count)
        return;
    s->replayed++;
    event_replayed(s, r->on, x->slice);
    finish_first(s, CLAIM_DONE, (uint32_t)r->on);
}

void recovery_suspects(dpi_session *s, size_t w, const char *reason)
{
    if (!get(s))
        return;
    char text[640];
    snprintf(text, sizeof text, "%s: %s", s->devices.items[w].name, reason);
    bool freed = false;
    pthread_mutex_lock(&s->lock);
    for (int slot = 0; slot < LAYOUT_SLOTS; slot++) {
        const batch *b = s->slots[slot];
        for (uint32_t i = 0; b && i < b->slice_count; i++) {
            claim now = claim_load(&batch_claims(s, slot)->word[i]);
            if (now.sequence != b->sequence || now.state != CLAIM_SUSPECT || now.worker != w ||
                find_suspect(s->recovery, slot, b->sequence, i))
                continue;
            blame *of = calloc(1, sizeof *of);
            if (of)
                of->worker = w;
            if (!of || !add_suspect(s, b, i, of, text)) {
                free(of);
                freed = true;
                move_word(s, b, i, now, CLAIM_FREE, 0); /* out of memory: without a trial, then */
                orphans_moved(s, b);
            }
        }
    }
    pthread_mutex_unlock(&s->lock);
    if (freed)
        ring_workers(s);
}

/* The rows of a trial, to their place. Their batch stays in flight meanwhile: its word is SUSPECT, and only we move it.
 */
static bool bring_trial(dpi_session *s, size_t w, dpi_error *error)
{
    const suspect *x = s->recovery->first;
    const row_range *range = &s->recovery->range;
    pthread_mutex_lock(&s->lock);
    bool in_flight = batch_of(s, x) != NULL;
    pthread_mutex_unlock(&s->lock);
    return !in_flight || courier_bring(s, w, (uint32_t)x->slot, range->first, range->rows, error) == DPI_OK;
}

void recovery_message(dpi_session *s, size_t w, const json_t *message)
{
    recovery *r = get(s);
    const char *failed = json_string_value(json_object_get(message, "failed"));
    if (!r)
        return;
    if (json_object_get(message, "suspect")) {
        recovery_suspects(s, w, failed ? failed : "a slice failed");
    } else if (r->running && r->on == w &&
               (uint64_t)json_integer_value(json_object_get(message, "trial")) == r->number) {
        char reason[sizeof((death *)0)->reason];
        dpi_error error;
        if (!failed && s->strict && !bring_trial(s, w, &error))
            failed = error.message;
        snprintf(reason, sizeof reason, "%s: %.400s", s->devices.items[w].name, failed ? failed : "");
        pthread_mutex_lock(&s->lock);
        end_trial(s);
        if (failed)
            trial_failed(s, reason, DPI_E_ENGINE);
        else
            trial_succeeded(s);
        pthread_mutex_unlock(&s->lock);
    }
    recovery_step(s);
}

/* ---- rows that workers know to be bad --------------------------------------------------------------------------- */

/* The batch that the message is about, where worker w may speak of its slice; else NULL. Under the lock. */
static batch *batch_told_of(const dpi_session *s, size_t w, const json_t *message, uint64_t *first, uint64_t *rows)
{
    json_int_t slot = json_integer_value(json_object_get(message, "slot"));
    json_int_t slice = json_integer_value(json_object_get(message, "slice"));
    batch *b = slot >= 0 && slot < LAYOUT_SLOTS ? s->slots[slot] : NULL;
    if (!b || json_integer_value(json_object_get(message, "sequence")) != b->sequence || slice < 0 ||
        slice >= b->slice_count)
        return NULL;
    claim now = claim_load(&batch_claims(s, b->slot)->word[slice]);
    bool runs = now.state == CLAIM_RUNNING && now.worker == w;
    bool tries = now.state == CLAIM_SUSPECT && s->recovery && s->recovery->running && s->recovery->on == w;
    *first = batch_slice_rows(s, b, (uint32_t)slice, rows);
    return now.sequence == b->sequence && (runs || tries) ? b : NULL;
}

/* Notes one; false when it may not be left out, and the batch has its verdict. Under the lock. */
static bool take_bad_row(dpi_session *s, batch *b, uint64_t row, const char *reason)
{
    if (is_noted(b, row))
        return true;
    event_bad_row(s, row, reason);
    if (may_leave_out(s, b) && note_bad_row(s, b, row, reason))
        return true;
    char text[sizeof((dpi_error *)0)->message];
    snprintf(text, sizeof text, "row %llu cannot be had: %s%s", (unsigned long long)row, reason,
             s->on_bad_row == DPI_BAD_ROW_SKIP ? "; that is one bad row too many" : "");
    judge(b, DPI_E_DATA, text);
    return false;
}

void recovery_bad_rows(dpi_session *s, size_t w, const json_t *message)
{
    worker_control *c = &s->control->workers[w];
    uint32_t number = (uint32_t)json_integer_value(json_object_get(message, "bad"));
    const json_t *rows = json_object_get(message, "rows");
    uint64_t first, count = 0;
    pthread_mutex_lock(&s->lock);
    batch *b = batch_told_of(s, w, message, &first, &count);
    bool good = b && json_array_size(rows) <= count;
    for (size_t i = 0; good && i < json_array_size(rows); i++) {
        const json_t *one = json_array_get(rows, i);
        json_int_t row = json_integer_value(json_array_get(one, 0));
        const char *reason = json_string_value(json_array_get(one, 1));
        good = row >= 0 && (uint64_t)row >= first && (uint64_t)row - first < count && reason &&
               take_bad_row(s, b, users_row(s, b, (uint64_t)row), reason);
    }
    pthread_mutex_unlock(&s->lock);
    if (!good)
        atomic_store_explicit(&c->refused, number, memory_order_relaxed);
    atomic_store_explicit(&c->heard, number, memory_order_release); /* pairs with await_heard */
    session_ring_worker(s, w);
}

/* ---- going on --------------------------------------------------------------------------------------------------- */

void recovery_step(dpi_session *s)
{
    recovery *r = s->recovery;
    pthread_mutex_lock(&s->lock);
    while (r && r->first && !r->running) {
        suspect *x = r->first;
        const batch *b = batch_of(s, x);
        if (!b || !x->range_count || b->verdict.status || b->cancel_asked) {
            bool judged = b && b->verdict.status;
            x->of->rows = true;
            finish_first(s, CLAIM_BAD, judged ? CLAIM_JUDGED : CLAIM_DROPPED);
            continue;
        }
        row_range range = x->ranges[x->range_count - 1];
        size_t w = choose_worker(s, x, &range);
        if (w == SESSION_NOBODY)
            break;
        x->range_count--;
        ask_trial(s, x, w, &range);
    }
    pthread_mutex_unlock(&s->lock);
}

bool recovery_has_work(dpi_session *s, size_t w)
{
    bool has = s->recovery && s->recovery->running && s->recovery->on == w;
    pthread_mutex_lock(&s->lock);
    for (int slot = 0; slot < LAYOUT_SLOTS && !has; slot++) {
        const batch *b = s->slots[slot];
        for (uint32_t i = 0; b && i < b->slice_count && !has; i++) {
            claim now = claim_load(&batch_claims(s, slot)->word[i]);
            has = now.sequence == b->sequence && now.state == CLAIM_RUNNING && now.worker == w;
        }
    }
    pthread_mutex_unlock(&s->lock);
    return has;
}

bool recovery_pending(const dpi_session *s) { return s->recovery && s->recovery->first; }

/* ---- spoilt words ----------------------------------------------------------------------------------------------- */

static bool is_spoilt(const dpi_session *s, const batch *b, uint32_t slice)
{
    claim now = claim_load(&batch_claims(s, b->slot)->word[slice]);
    if (now.sequence != b->sequence)
        return true;
    switch (now.state) {
    case CLAIM_FREE: return false;
    case CLAIM_CLAIMED: return now.worker >= s->count;
    case CLAIM_RUNNING:
        return now.worker >= s->count ||
               (!s->workers[now.worker].ready && s->workers[now.worker].state != WORKER_LEAVING) ||
               now.generation != (s->workers[now.worker].generation & 0x7ffffu);
    case CLAIM_SUSPECT:
        return s->on_bad_row != DPI_BAD_ROW_SKIP && !find_suspect(s->recovery, b->slot, b->sequence, slice);
    case CLAIM_DONE:
    case CLAIM_BAD: return false;
    default: return true;
    }
}

bool recovery_words_spoilt(dpi_session *s)
{
    bool spoilt = false;
    if (!get(s))
        return false;
    pthread_mutex_lock(&s->lock);
    for (int slot = 0; slot < LAYOUT_SLOTS && !spoilt; slot++) {
        const batch *b = s->slots[slot];
        for (uint32_t i = 0; b && !b->publishing && i < b->slice_count && !spoilt; i++)
            spoilt = is_spoilt(s, b, i);
    }
    pthread_mutex_unlock(&s->lock);
    return spoilt;
}

bool recovery_owes(dpi_session *s, size_t w)
{
    pthread_mutex_lock(&s->lock);
    bool owes = s->recovery && s->recovery->running && s->recovery->on == w;
    for (int slot = 0; slot < LAYOUT_SLOTS && !owes; slot++) {
        const batch *b = s->slots[slot];
        for (uint32_t i = 0; b && !b->publishing && i < b->slice_count && !owes; i++) {
            claim now = claim_load(&batch_claims(s, slot)->word[i]);
            owes = now.sequence == b->sequence && now.worker == w &&
                   (now.state == CLAIM_CLAIMED || now.state == CLAIM_RUNNING);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return owes;
}

/* T22 anew */
void recovery_free_all(dpi_session *s)
{
    pthread_mutex_lock(&s->lock);
    while (s->recovery && s->recovery->first)
        drop_first(s);
    if (s->recovery && s->recovery->running)
        end_trial(s);
    for (int slot = 0; slot < LAYOUT_SLOTS; slot++) {
        const batch *b = s->slots[slot];
        if (!b || b->publishing)
            continue;
        claims *c = batch_claims(s, slot);
        for (uint32_t i = 0; i < b->slice_count; i++) {
            claim now = claim_load(&c->word[i]), unclaimed = {.sequence = b->sequence, .state = CLAIM_FREE};
            if (now.sequence != b->sequence || !claim_is_terminal(now))
                claim_move(&c->word[i], now, unclaimed); /* not a store: who waits may be dropping it meanwhile */
        }
        orphans_moved(s, b);
        ring_waiters(s, b);
    }
    pthread_mutex_unlock(&s->lock);
}

void recovery_close(dpi_session *s)
{
    while (s->recovery && s->recovery->first)
        drop_first(s);
    free(s->recovery);
    s->recovery = NULL;
}
