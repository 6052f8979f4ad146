/* Which slices of a chunk are done, before the whole chunk is. */
#include "runtime/batch.h"
#include "runtime/run.h"

void batch_where(dpi_session *s, dpi_ticket ticket, int *slot, uint32_t *sequence)
{
    *slot = -1;
    *sequence = 0;
    pthread_mutex_lock(&s->lock);
    for (const batch *b = s->batches; b; b = b->next)
        if (b->ticket == ticket && b->slot >= 0) {
            *slot = b->slot;
            *sequence = b->sequence;
        }
    pthread_mutex_unlock(&s->lock);
}

void batch_done_slices(const dpi_session *s, int slot, uint32_t sequence, uint32_t slices,
                       bool (*each)(void *context, uint32_t first, uint32_t end), void *context, bool *terminal)
{
    bool all = slot >= 0, go_on = true;
    const claims *c = slot >= 0 ? batch_claims(s, slot) : NULL;
    uint32_t first = 0;
    bool inside = false;
    for (uint32_t i = 0; c && i < slices && i < LAYOUT_SLICES && go_on; i++) {
        claim now = claim_load(&c->word[i]);
        bool ours = now.sequence == sequence, done = ours && now.state == CLAIM_DONE;
        all &= ours && claim_is_terminal(now);
        if (done && !inside)
            first = i;
        if (!done && inside)
            go_on = each(context, first, i);
        inside = done;
    }
    if (inside && go_on)
        each(context, first, slices < LAYOUT_SLICES ? slices : LAYOUT_SLICES);
    /* A slot becomes another batch's once all its words were terminal. */
    if (terminal)
        *terminal = all || (slot >= 0 && atomic_load(&s->control->batches[slot].sequence) != sequence);
}
