/*
 * The engine alone: what bench compares with. One process per device, pinned like a worker, runs the same engine in a
 * bare loop on memory of its own, all at once; no runtime, no shared memory, no splitting.
 */
#ifndef DPI_CLI_ENGINE_ALONE_H
#define DPI_CLI_ENGINE_ALONE_H

#include "cli/cli.h"

typedef struct engine_alone engine_alone;

/* Starts one process per device of the session (described by d) and waits until all engines are loaded and warm. */
dpi_status engine_alone_start(const cli_options *o, const dpi_description *d, size_t batch, engine_alone **out,
                              dpi_error *error);
/* Lets all run for `seconds` at once; *rows_per_s is their sum. */
dpi_status engine_alone_run(engine_alone *e, double seconds, double *rows_per_s, dpi_error *error);
void engine_alone_stop(engine_alone *e); /* NULL is fine */

#endif
