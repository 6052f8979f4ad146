/*
 * A session's trace: a file in the Trace Event Format (JSON object form), which Perfetto and chrome://tracing open. One
 * process for each worker, and in it one track for what its own thread does (wait, load, copy out) and one for each of
 * its engine's streams (copy in, compute, copy out); claims and what happens to workers are instants. An engine tells
 * how long its copies and its computation took, not when: they are drawn one behind the other up to when it was done.
 */
#ifndef DPI_RUNTIME_TRACER_H
#define DPI_RUNTIME_TRACER_H

#include "runtime/session.h"

#define TRACE_FILE_MOST (1ull << 30) /* bytes; what comes later is left out, and the file says so */

typedef struct tracer tracer;

/* Creates PATH.part. DPI_E_DATA when that cannot be. */
dpi_status tracer_open(dpi_session *s, const char *path, tracer **out, dpi_error *error);
/* Begins to read the workers' rings. */
dpi_status tracer_start(tracer *t, dpi_error *error);
/* Something that happened to a worker, or to the session; as in events.h. Any thread. */
void tracer_event(tracer *t, const json_t *event);
/* The workers are dead: reads the rest and gives the file its name; a warning where that fails. NULL is fine. */
void tracer_close(tracer *t);

#endif
