/*
 * Memory that the caller shares with its workers: a memfd, mapped once at its maximum so that addresses never move,
 * and grown by ftruncate. The caller allocates; the book-keeping is in its private memory, out of reach of workers.
 */
#ifndef DPI_IPC_ARENA_H
#define DPI_IPC_ARENA_H

#include "base/error.h"

#include <stdbool.h>

#define ARENA_GRAIN 4096 /* sizes and offsets are multiples of this */
#define ARENA_NONE  UINT64_MAX

typedef struct arena arena;

typedef enum arena_access {
    ARENA_CALLER_WRITES,   /* sealed against every other writer: workers can map it read-only, whatever they try */
    ARENA_PRODUCERS_WRITE, /* processes that are given arena_writer_fd can map it writable; workers get a read-only one
                            */
    ARENA_ALL_WRITE,
} arena_access;

/* Makes an arena of at most `max_bytes` (address space, nothing is committed yet). `name` shows in /proc/PID/maps.
 * The first `head_bytes` are not for allocation: a fixed layout stands there. */
dpi_status arena_create(const char *name, uint64_t max_bytes, uint64_t head_bytes, arena_access access, arena **out,
                        dpi_error *error);
/* Unmaps and closes; NULL is fine. */
void arena_destroy(arena *a);
/* After a fork: unmaps in the child, leaves everything else alone. */
void arena_abandon(arena *a);

/* A block of at least `bytes` (0 counts as 1), or ARENA_NONE when the limit is reached or the kernel refuses.
 * Thread-safe. */
uint64_t arena_alloc(arena *a, uint64_t bytes);
/* Frees the block that begins at `offset`; false when there is none. Thread-safe. */
bool arena_free(arena *a, uint64_t offset);

void *arena_at(const arena *a, uint64_t offset);
/* Offset of an address inside an allocated block, with at least `bytes` left in that block; ARENA_NONE otherwise.
 * *block (may be NULL) receives where the block begins. */
uint64_t arena_find(arena *a, const void *address, uint64_t bytes, uint64_t *block);

int arena_writer_fd(const arena *a); /* for producers; owned by the arena */
int arena_fd(const arena *a);        /* for a writer (ARENA_ALL_WRITE) or for reading; owned by the arena */
uint64_t arena_max(const arena *a);
uint64_t arena_committed(arena *a); /* bytes that the memfd has now */

/* The other side: maps a memfd at its maximum. NULL with an error on failure. */
void *arena_attach(int fd, uint64_t max_bytes, bool writable, dpi_error *error);

#endif
