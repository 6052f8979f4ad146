/*
 * What becomes of a worker's slices when it dies, so that every row is computed exactly once all the same.
 *
 * The supervisor calls these, with a worker that is dead for sure (its pidfd is readable: nothing of it can write any
 * more). Its words go
 *     CLAIMED -> FREE        nobody had begun: anybody may take them (batch_desc.orphans moves)
 *     RUNNING -> SUSPECT     it may have died of them
 * A suspect is tried alone, on one probation worker at a time, while the others go on. When the trial succeeds the
 * slice is DONE; that the trial needed another device counts against the one that died. When it kills again its rows
 * are halved, down to the row that kills wherever it is tried: that one is the batch's verdict, or (DPI_BAD_ROW_SKIP)
 * it is left out, its outputs filled with NaN or 0. Only the supervisor moves SUSPECT words.
 */
#ifndef DPI_RUNTIME_RECOVERY_H
#define DPI_RUNTIME_RECOVERY_H

#include "runtime/session.h"

/* How a worker ended. */
typedef struct death {
    char reason[640];  /* "worker 1 (sim:1, pid 7) was killed by signal 9 ..." */
    dpi_status status; /* DPI_E_WORKER; DPI_E_IO where a source shrank: no row is at fault, the batch has failed */
    bool counts;       /* false: it did not die of itself (dpinfer ended it, for memory that somebody spoilt) */
} death;

/* Worker w is dead: frees its slices, or suspects them. The trial that it ran, if any, has failed. True when the death
 * is explained by a trial or by a suspect, so that the device is not to blame yet. */
bool recovery_death(dpi_session *s, size_t w, const death *d);
/* A trial's answer, or word of a suspect, from worker w. */
void recovery_message(dpi_session *s, size_t w, const json_t *message);
/* Words of worker w have been made SUSPECT because its engine refused the slice, for this reason. */
void recovery_suspects(dpi_session *s, size_t w, const char *reason);
/* Worker w tells of rows that it could not have (worker_bad.c): notes them, or the batch fails for them, and answers.
 */
void recovery_bad_rows(dpi_session *s, size_t w, const json_t *message);
/* Goes on: the next trial, suspects of batches that are over. Called when anything has changed, and every tick. */
void recovery_step(dpi_session *s);
/* Whether worker w has anything to finish: a slice that it has begun, or a trial. */
bool recovery_has_work(dpi_session *s, size_t w);
/* Whether suspects wait for their trial, or one is on. */
bool recovery_pending(const dpi_session *s);
/* Whether claim words of batches in flight hold what no worker could have written by the rules. */
bool recovery_words_spoilt(dpi_session *s);
/* Whether worker w has been asked for a trial, or has words of its own that are CLAIMED or RUNNING. */
bool recovery_owes(dpi_session *s, size_t w);
/* All workers are dead: every word that is not terminal is FREE again. */
void recovery_free_all(dpi_session *s);
/* Slices that are planned for worker w, which lives and finishes what it has begun, become anybody's. Under the
 * session's lock. */
void recovery_free_claimed(dpi_session *s, size_t w);
/* Slices of batch b that are planned for workers that are not there become anybody's. Under the session's lock. */
void recovery_free_planned(dpi_session *s, batch *b);
/* At the session's end. */
void recovery_close(dpi_session *s);

#endif
