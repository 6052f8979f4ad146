/*
 * What happens to workers and runs, told to dpi_options.event as one JSON object a line. docs/reliability.md has the
 * table of events and their fields. The supervisor's thread tells, and the one
 * in dpi_run of what an earlier run has left; one at a time.
 */
#ifndef DPI_RUNTIME_EVENTS_H
#define DPI_RUNTIME_EVENTS_H

#include "runtime/session.h"

/* A worker is ready; in front of it, where its engine was not in the cache, that this was compiled. */
void event_started(dpi_session *s, size_t w, const worker_report *report);
/* `reason` names the worker and tells how; its last log lines go along. -1 each where they do not apply. */
void event_died(dpi_session *s, size_t w, int signal_number, int exit_code, bool hung, const char *reason);
/* Worker w computed a slice that another died over. */
void event_replayed(dpi_session *s, size_t w, uint32_t slice);
void event_bad_row(dpi_session *s, uint64_t row, const char *reason);
/* A device is given up. */
void event_retired(dpi_session *s, size_t w, const char *reason);
void event_added(dpi_session *s, size_t w);
void event_removed(dpi_session *s, size_t w);
/* Shared memory was spoilt: all workers are started anew. */
void event_spoilt(dpi_session *s, const char *reason);
/* A run goes on with what an earlier one has finished. */
void event_resumed(dpi_session *s, uint64_t rows, uint64_t total);

#endif
