/*
 * What the files of a run's sources promise of their bytes: the checksum of a stored member of an .npz, which nobody
 * needs for reading rows in place. A niced thread of the caller's reads the bytes behind the workers, while they are in
 * the page cache, and the run waits for it before results get their names.
 */
#ifndef DPI_RUNTIME_RUN_CHECK_H
#define DPI_RUNTIME_RUN_CHECK_H

#include "base/error.h"
#include "data/source.h"

typedef struct run_check run_check;

/* Begins, for those of `count` sources (NULL among them) that promise something; they live until run_check_end. *out is
 * NULL where none does. */
dpi_status run_check_start(source *const *sources, size_t count, run_check **out, dpi_error *error);
/* Rows before `rows` have been read by workers, more or less. NULL is fine, here and below. */
void run_check_follow(run_check *c, uint64_t rows);
/* Waits until all is read; `stop` (may be NULL) is asked ten times a second. DPI_E_DATA: a member is damaged; DPI_E_IO;
 * DPI_CANCELLED. */
dpi_status run_check_wait(run_check *c, bool (*stop)(void *context), void *context, dpi_error *error);
void run_check_end(run_check *c);

#endif
