/* Standard input as a source: rows must be addressable, so a pipe is read to its end into an unlinked file first. */
#ifndef DPI_DATA_SPOOL_H
#define DPI_DATA_SPOOL_H

#include "base/error.h"
#include "base/hash.h"

#include <stdbool.h>

#define SPOOL_MOST_BYTES (64ull << 30)

/* A descriptor of all that `in` holds, the caller's to close: of itself where it is a regular file that has not been
 * read yet (content is "" then), else of an unlinked file in TMPDIR (/tmp), of at most SPOOL_MOST_BYTES, and `content`
 * is the hash of its bytes. `stop` is asked about ten times a second: true ends it with DPI_CANCELLED. DPI_E_DATA: a
 * terminal, too long, cannot be read; DPI_E_IO: no room in TMPDIR. */
dpi_status spool_read(int in, bool (*stop)(void *context), void *context, int *fd, char content[HASH_HEX_SIZE],
                      dpi_error *error);

#endif
