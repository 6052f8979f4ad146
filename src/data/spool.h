/*
 * Rows must be addressable: what comes as a stream (a pipe on standard input, compressed tars) is kept in an unlinked
 * file in TMPDIR (/tmp) while the run lasts, within a limit.
 */
#ifndef DPI_DATA_SPOOL_H
#define DPI_DATA_SPOOL_H

#include "base/error.h"
#include "base/hash.h"

#include <stdbool.h>

#define SPOOL_MOST_BYTES (64ull << 30) /* where the user does not say */

typedef struct spool_limits {
    uint64_t max_bytes; /* 0: SPOOL_MOST_BYTES */
    bool (*stop)(
        void *context); /* asked about ten times a second; true ends it with DPI_CANCELLED. NULL: nobody asks */
    void *context;
} spool_limits;

/* A file being written. One thread. */
typedef struct spool {
    const spool_limits *limits;
    int fd;
    uint64_t counted, written;
    int64_t asked_ns;
} spool;

/* DPI_E_IO: no file can be made in TMPDIR. On success spool_end or spool_drop follows; `limits` lives until then. */
dpi_status spool_begin(const spool_limits *limits, spool *s, dpi_error *error);
/* Takes note of the next `bytes` of `what`, kept or not. DPI_E_DATA: more than the limit; DPI_CANCELLED. */
dpi_status spool_count(spool *s, size_t bytes, const char *what, dpi_error *error);
/* Appends, at s->written. DPI_E_IO: no room, which says TMPDIR. */
dpi_status spool_write(spool *s, const void *data, size_t bytes, dpi_error *error);
/* A descriptor that only reads, the caller's to close. */
dpi_status spool_end(spool *s, int *fd, dpi_error *error);
void spool_drop(spool *s); /* also of one that is zero */

/* A descriptor of all that `in` (standard input) holds, the caller's to close: of itself where it is a regular file
 * that has not been read yet (content is "" then), else of a spool, and `content` is the hash of its bytes. DPI_E_DATA:
 * a terminal, too long, cannot be read; DPI_E_IO: no room in TMPDIR; DPI_CANCELLED. */
dpi_status spool_read(int in, const spool_limits *limits, int *fd, char content[HASH_HEX_SIZE], dpi_error *error);

#endif
