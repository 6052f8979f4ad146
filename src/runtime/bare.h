/*
 * The engines of a session alone, which bench compares with: the worker program once per device, pinned and set up as
 * its worker, runs the same engine in a bare loop on memory of its own; no arenas, no splitting. On devices with memory
 * of their own the rows are there already.
 */
#ifndef DPI_RUNTIME_BARE_H
#define DPI_RUNTIME_BARE_H

#include "base/error.h"

#include <sys/types.h>

#define BARE_ARGUMENT "bare" /* what the worker program is started with */

typedef struct bare_engines bare_engines;

/* Starts one process per worker of the session, for calls of `rows` rows, and waits until all engines are loaded and
 * warm. They die with the calling thread. On success *out is the caller's, to be ended by bare_stop. */
dpi_status bare_start(const dpi_session *s, size_t rows, bare_engines **out, dpi_error *error);
/* Lets `count` of them, from number `first` on, run for `seconds` at once; *rows_per_s is their sum. */
dpi_status bare_run(bare_engines *e, size_t first, size_t count, double seconds, double *rows_per_s, dpi_error *error);
void bare_stop(bare_engines *e); /* NULL is fine */

/* The other side, in the worker program; `parent` is the caller's process. The exit code. */
int bare_main(pid_t parent);

#endif
