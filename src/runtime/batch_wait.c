/* Waiting for tickets, releasing and cancelling them. */
#include "base/clock.h"
#include "runtime/batch.h"

#include <stdlib.h>
#include <string.h>

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

/* Sleeps and scans, without the lock, until the batch is terminal, the session has failed or the deadline has passed.
 */
static dpi_status wait_terminal(dpi_session *s, batch *b, int64_t deadline_ns, dpi_error *error)
{
    claims *c = batch_claims(s, b->slot);
    batch_desc *d = &s->control->batches[b->slot];
    for (;;) {
        uint32_t seen = atomic_load(&c->bell);
        if (batch_scan(s, b))
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
        bell_wait(&c->bell, seen, &d->waiting, s->patience, until < deadline_ns ? until : deadline_ns); /* T12 sleep */
    }
}

/* The same until it is really over. Under the lock, which others have meanwhile. */
static dpi_status wait_over(dpi_session *s, batch *b, int64_t deadline_ns, dpi_error *error)
{
    dpi_status status = DPI_OK;
    bool over = b->slot < 0;
    while (!over && !status) {
        pthread_mutex_unlock(&s->lock);
        status = wait_terminal(s, b, deadline_ns, error);
        pthread_mutex_lock(&s->lock);
        over = !status && batch_is_over(s, b);
    }
    return status;
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
        if (b->slot >= 0 && batch_is_over(s, b))
            batch_settle(s, b);
        if (b->slot < 0)
            batch_unlink(s, b);
    }
}

/* Hands the list of rows that were left out to the user; it ends here. Without the lock. */
static dpi_status tell_bad_rows(dpi_session *s, batch_bad_row *bad, size_t count, dpi_status status, dpi_error *error)
{
    for (size_t i = 0; i < count && s->bad_row; i++)
        s->bad_row(s->bad_row_context, &(dpi_bad_row){.row = bad[i].row, .reason = bad[i].reason});
    if (count && !status)
        status = error_set(error, DPI_BAD_ROWS, "%zu %s could not be computed and %s left out: row %llu: %s", count,
                           count > 1 ? "rows" : "row", count > 1 ? "were" : "was", (unsigned long long)bad[0].row,
                           bad[0].reason);
    batch_free_bad_rows(bad, count);
    return status;
}

dpi_status batch_wait(dpi_session *s, dpi_ticket ticket, int64_t deadline_ns, bool abandon, dpi_tensor *outputs,
                      size_t output_count, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    batch *b = find_ticket(s, ticket);
    if (!b || b->waiter || b->waited) {
        pthread_mutex_unlock(&s->lock);
        return error_set(error, DPI_E_ARGUMENT,
                         b && b->waiter ? "another thread waits for this ticket"
                                        : "there is no such ticket, or it has been waited for");
    }
    b->waiter = true;
    dpi_status status = wait_over(s, b, deadline_ns, error);
    b->waiter = false;
    if (status == DPI_TIMEOUT) {
        if (abandon)
            abandon_batch(b);
        sweep(s);
        pthread_mutex_unlock(&s->lock);
        return status;
    }
    batch_settle(s, b);
    b->waited = true;
    batch_bad_row *bad = b->bad_rows;
    size_t bad_count = b->bad_row_count;
    b->bad_rows = NULL;
    b->bad_row_count = 0;
    status = b->failed      ? error_set(error, b->error.status, "%s", b->error.message)
             : b->cancelled ? error_set(error, DPI_CANCELLED, "the batch was cancelled")
                            : DPI_OK;
    if (!status && outputs)
        describe_outputs(s, b, outputs, output_count);
    if ((status && !b->shard) || abandon || !has_views(b)) /* of a chunk that fails some rows are worth keeping */
        batch_unlink(s, b);
    sweep(s);
    pthread_mutex_unlock(&s->lock);
    return tell_bad_rows(s, bad, bad_count, status, error);
}

dpi_status batch_release(dpi_session *s, dpi_ticket ticket, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    batch *b = find_ticket(s, ticket);
    bool good = b && b->waited && !b->waiter;
    if (good)
        batch_unlink(s, b);
    pthread_mutex_unlock(&s->lock);
    return good ? DPI_OK
                : error_set(error, DPI_E_ARGUMENT, "dpi_release takes a ticket with views that was waited for");
}

dpi_status batch_cancel(dpi_session *s, dpi_ticket ticket, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    batch *b = find_ticket(s, ticket);
    if (b && b->slot >= 0) {
        b->cancel_asked = true;
        batch_drop_unstarted(s, b, 0); /* the cursor is the waiter's */
        claims *c = batch_claims(s, b->slot);
        atomic_fetch_add(&c->bell, 1);
        futex_wake(&c->bell);
        supervisor_wake(s);
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
        batch_unlink(s, b);
    }
    free(s->blocks);
    s->blocks = NULL;
}
