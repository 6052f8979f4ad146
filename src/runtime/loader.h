/*
 * Slices whose rows are dear to load (images): claimed ahead of the engine and loaded by threads of the worker, into
 * the memory that the engine will read. The worker's own thread claims, takes what is loaded, in order, and lends a
 * hand while it has nothing better to do.
 *
 * A row that cannot be had is noted in its flight, the input of its place zeroed, and nothing else is disturbed.
 * Everything here is the worker's own thread's to call.
 */
#ifndef DPI_RUNTIME_LOADER_H
#define DPI_RUNTIME_LOADER_H

#include "runtime/worker_job.h"

#define LOADER_AHEAD 2 /* slices that are claimed beyond those in the engine */

/* Starts `threads` helpers, which yield to whatever else wants their processors. `helps`: the worker's own thread loads
 * rows too (engines of depth 1: it has nothing else to do then). NULL when out of memory. */
loader *loader_start(size_t threads, bool helps);
/* Drops what is in it and ends the threads. NULL is fine. */
void loader_stop(loader *l);

/* Room for another slice: a flight to be claimed and prepared, then loader_begin. NULL: none. */
flight *loader_room(loader *l);
void loader_begin(loader *l, int64_t now_ns);
/* Slices in it, and the oldest of them (NULL: none). */
unsigned loader_count(const loader *l);
flight *loader_oldest(loader *l);
/* Whether the oldest one is loaded. */
bool loader_ready(loader *l);
/* Swaps it with `into`, a flight that is free; *status is why it could not be loaded (not for its rows' sake). */
void loader_take(loader *l, flight *into, dpi_status *status, dpi_error *error);
/* Loads one row, or waits a little (at most until then) for others to do so. */
void loader_help(loader *l, int64_t until_ns);
/* When a row was last finished. */
int64_t loader_progress_ns(loader *l);
/* The run is over: slices of it that are still here (somebody has spoilt their words) are not loaded any more. */
void loader_forget(loader *l, const worker_job *job);
/* From here on nothing is loaded, until loader_resume; returns when that is so. */
void loader_pause(loader *l);
void loader_resume(loader *l);

/* The rows of a flight here and now, one after another; `progress` (may be NULL) is told after each. */
dpi_status loader_load_all(flight *f, void (*progress)(worker *w, const flight *f), worker *w, dpi_error *error);

#endif
