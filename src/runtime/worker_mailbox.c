/* The worker's end of the mailbox of strict isolation: see ipc/mailbox.h. */
#include "ipc/bell.h"
#include "runtime/worker.h"

#include <stdio.h>

static void ring_courier(worker *w) { bell_ring(&w->page->inbox.bell, &w->outbox->sleeping); }

bool worker_is_assigned(const worker *w) { return mailbox_next(w->outbox, w->assigned + 1) != NULL; }

/* M2 take */
bool worker_take_assignment(worker *w, flight *f, bool dear)
{
    const mailbox_slice *next = mailbox_next(w->outbox, w->assigned + 1);
    if (!next || ((next->flags & BATCH_DEAR) != 0) != dear)
        return false;
    f->slot = next->slot;
    f->sequence = next->sequence;
    f->slice = next->slice;
    f->flags = next->flags;
    f->stolen = next->stolen != 0;
    f->assignment = ++w->assigned;
    atomic_store_explicit(&w->page->inbox.taken, w->assigned, memory_order_release); /* pairs with give_back */
    return true;
}

/* M3 report */
void worker_report_slice(worker *w, const flight *f, dpi_status status, const dpi_error *error)
{
    inbox *in = &w->page->inbox;
    worker_step(w, STEP_DELIVERED);
    if (status) {
        char *reason = in->reasons[f->assignment % MAILBOX_SEATS];
        snprintf(reason, MAILBOX_REASON, "%s", error->message);
    }
    mailbox_answer(in, f->assignment, (uint32_t)status);
    worker_step(w, STEP_DONE);
    worker_step(w, STEP_COUNTED); /* which is the courier's */
    ring_courier(w);
    worker_step(w, STEP_RUNG);
}

void worker_show_job(worker *w, uint32_t job)
{
    atomic_store_explicit(&w->page->inbox.job, job, memory_order_release); /* pairs with worker_claim */
    if (w->outbox)
        ring_courier(w);
}
