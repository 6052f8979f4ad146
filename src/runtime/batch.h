/* What the files on batches share: batch_block.c (memory of dpi_alloc), batch_check.c (what the caller gave),
 * batch.c (planned and published), batch_end.c (scanned and settled), batch_wait.c (waited for). */
#ifndef DPI_RUNTIME_BATCH_H
#define DPI_RUNTIME_BATCH_H

#include "runtime/session.h"

typedef struct batch_array {
    uint64_t offset, block;       /* in its arena; block: to be freed by us, ARENA_NONE for the user's or nobody's */
    size_t row_bytes, user_block; /* user_block: index + 1 of the dpi_alloc block that holds it, 0 for none */
    size_t stored_bytes;          /* of a row in the arena: row_bytes, or those of a run's record */
    int rank;
    int64_t shape[DPI_MAX_RANK];
    void *plain; /* the caller's memory that it is copied from or to, NULL where it is in the arena already */
    bool view;   /* the result stays in the arena for the caller to look at */
} batch_array;

struct batch {
    batch *next;
    dpi_ticket ticket;
    int slot;                               /* -1: not in flight any more */
    uint32_t sequence, slice_count, cursor; /* slices before `cursor` are terminal and copied out */
    uint64_t rows, copied_rows;
    bool shard, terminal, waited, abandoned, cancelled, failed, waiter;
    bool publishing; /* its rows are still being copied in */
    dpi_error error;
    dpi_error verdict; /* the supervisor's, status 0: none. Under the lock, before any word is BAD of CLAIM_JUDGED */
    bool cancel_asked; /* under the lock */
    batch_bad_row *bad_rows; /* left out: under the lock */
    size_t bad_row_count;
    size_t output_count;
    int choice; /* of the planner, -1 */
    int64_t began_ns;
    size_t planned_workers; /* split: the session's when it was planned; those added since have no slices of it */
    double *predicted_ns;   /* per planned worker, added to its busy_ns; the session's, for the slot. NULL: none */
    batch_array *inputs, *outputs; /* per input and output of the signature, in one allocation with the batch */
};

static inline claims *batch_claims(const dpi_session *s, int slot)
{
    return (claims *)arena_at(s->outputs, (uint64_t)slot * sizeof(claims));
}

/* Marks the dpi_alloc block that holds [address, +bytes) as used by the batch; false when there is none. Under the
 * lock, as is everything below unless it says otherwise. */
bool block_use(dpi_session *s, arena *in, const void *address, uint64_t bytes, batch_array *a);
void block_unuse(dpi_session *s, batch_array *a);

/* Check the caller's tensors and note their shapes and places. Without the lock. */
dpi_status batch_gather_inputs(dpi_session *s, const dpi_batch *from, batch *b, dpi_error *error);
dpi_status batch_shape_outputs(dpi_session *s, batch *b, dpi_error *error);
dpi_status batch_gather_outputs(dpi_session *s, const dpi_batch *from, batch *b, dpi_error *error);

/* First row of slice `slice` of a batch in flight, within the batch; its row count in `rows` (may be NULL). */
uint64_t batch_slice_rows(const dpi_session *s, const batch *b, uint32_t slice, uint64_t *rows);

/* Looks at the claim words from the cursor on, copies finished rows to plain memory; true when every slice is
 * terminal. Under the lock, or by the one thread that waits for the batch. */
bool batch_scan(dpi_session *s, batch *b);
/* Whether every slice is terminal, and stays so: nobody of ours frees words but under the lock. A word that batch_scan
 * has passed may have been spoilt since and begun again; then the cursor goes back to it. Under the lock. */
bool batch_is_over(dpi_session *s, batch *b);
/* It is over, or the session has failed: the slot and the inputs' memory are free for others. */
void batch_settle(dpi_session *s, batch *b);
/* Drops slices that nobody has started, from `first` on. */
void batch_drop_unstarted(dpi_session *s, batch *b, uint32_t first);
/* Tells an event loop that a batch is terminal. */
void batch_announce_end(dpi_session *s);
/* One more in such a list. false: out of memory, nothing has changed. */
bool batch_add_bad_row(batch_bad_row **list, size_t *count, uint64_t row, const char *reason);
void batch_free_bad_rows(batch_bad_row *list, size_t count);
/* Frees the ticket and everything that is still its own. */
void batch_unlink(dpi_session *s, batch *b);

#endif
