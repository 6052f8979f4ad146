/*
 * Strict isolation: couriers. A worker can write to its page and its private memory and to nothing else of the
 * session, so a thread of the caller's for each worker, its courier, does what workers do by themselves otherwise:
 *
 *   it claims slices in the worker's name, as many as its engine can have in hand, and assigns them (ipc/mailbox.h);
 *   it takes the worker's reports, copies the rows from the private memory to their place, and finishes the words.
 *
 * Claims, hints, bells and what happens after a death are those of any worker (worker_slice.c, recovery.h): the words
 * that a worker would move, its courier moves. A courier lives as long as one generation: it is started before the
 * worker's process, claims nothing before that is admitted, and is stopped once it is dead. What the worker had
 * reported by then is taken first, what it had not even taken is given back; the rest is recovery.c's.
 *
 * A report that is not the answer to an assignment in flight is a breach of the protocol: the courier takes nothing
 * more, and the supervisor ends that worker. So whatever a worker does, it decides the rows of slices that it was
 * given, and no others.
 *
 * All calls are the supervisor's.
 */
#ifndef DPI_RUNTIME_COURIER_H
#define DPI_RUNTIME_COURIER_H

#include "runtime/session.h"

typedef struct courier courier;

/* For the generation of worker w that is about to start; makes its private memory the first time. The page is there. */
dpi_status courier_start(dpi_session *s, size_t w, dpi_error *error);
/* The worker is dead, or the session over. Nothing where there is none. */
void courier_stop(dpi_session *s, size_t w);
/* Whether worker w has broken the protocol. */
bool courier_breach(const dpi_session *s, size_t w);
/* Whether rows of worker w are just being copied: for that long it may have words that are RUNNING and nothing to do.
 */
bool courier_is_copying(const dpi_session *s, size_t w);
/* Whether words of worker w have become SUSPECT since the last call; why the last one did. */
bool courier_suspects(dpi_session *s, size_t w, char reason[MAILBOX_REASON]);
/* Copies rows first_row up to first_row + rows of the batch in `slot`, which is in flight, from worker w's private
 * memory to their place. Any thread. DPI_E_SYSTEM: there is no memory for them. */
dpi_status courier_bring(dpi_session *s, size_t w, uint32_t slot, uint64_t first_row, uint64_t rows, dpi_error *error);

#endif
