/* What happens to workers, told to dpi_options.event as one JSON object a line, and to the log. The supervisor's. */
#ifndef DPI_RUNTIME_EVENTS_H
#define DPI_RUNTIME_EVENTS_H

#include "runtime/session.h"

/* {"event": "started", "worker", "device", "pid", "generation", "seconds", "from_cache"}: it is ready. */
void event_started(dpi_session *s, size_t w);
/* {"event": "died", ..., "signal" or "exit_code" or "hung", "reason"}: reason has its last log lines. */
void event_died(dpi_session *s, size_t w, int signal_number, int exit_code, bool hung, const char *reason);
/* {"event": "replayed", "worker", "device", "slice"}: it computed a slice that another died over. */
void event_replayed(dpi_session *s, size_t w, uint32_t slice);
/* {"event": "resumed", "rows"} */
void event_resumed(dpi_session *s, uint64_t rows);
/* {"event": "bad_row", "row", "reason"} */
void event_bad_row(dpi_session *s, uint64_t row, const char *reason);
/* {"event": "retired", "worker", "device", "reason"}: it is not started again. */
void event_retired(dpi_session *s, size_t w, const char *reason);
/* {"event": "added" or "removed", "worker", "device", "pid", "generation"} */
void event_added(dpi_session *s, size_t w);
void event_removed(dpi_session *s, size_t w);
/* {"event": "spoilt", "reason"}: all workers are started anew. */
void event_spoilt(dpi_session *s, const char *reason);

#endif
