/*
 * What a worker process gives up on its way to readiness, in this order (docs/architecture.md, What a worker may do).
 * Nothing happens in thread isolation. Beside the limits all of it is left out with no_sandbox, on GPUs and with other
 * execution providers than the CPU. What a kernel lacks is said at level info, and the worker goes on.
 */
#ifndef DPI_RUNTIME_WORKER_SANDBOX_H
#define DPI_RUNTIME_WORKER_SANDBOX_H

#include "runtime/worker.h"

/* Before any library is loaded: core dumps and memory. */
dpi_status worker_sandbox_limits(const worker *w, dpi_error *error);
/* The library is loaded, and the model has not been looked at: files. `cache_folder` NULL: no cache. */
void worker_sandbox_files(const worker *w, const char *cache_folder);
/* The engine is open and probed: system calls. */
void worker_sandbox_calls(const worker *w);
/* The worker could not be made ready: adds which of the above may be why. */
void worker_sandbox_explain(const worker *w, dpi_error *error);

#endif
