/*
 * The engine cache: compiled engines by key, in a private folder, bounded in size.
 * Entries appear whole or not at all (O_TMPFILE and linkat, or a temporary name that is swept under flock).
 * Any number of processes may use one folder at once.
 */
#ifndef DPI_RUNTIME_CACHE_H
#define DPI_RUNTIME_CACHE_H

#include "base/error.h"
#include "base/hash.h"
#include "base/log.h"

typedef struct cache cache;

/* Opens (and makes, mode 0700) the folder: `folder`, or NULL for $DPINFER_CACHE, $XDG_CACHE_HOME/dpinfer,
 * $HOME/.cache/dpinfer. A folder that others may write to, or that is another user's, is refused: engines are code.
 * `max_bytes` 0: 10 GiB. On failure the caller warns and goes on without (*out NULL). */
dpi_status cache_open(const char *folder, uint64_t max_bytes, const logger *log, cache **out, dpi_error *error);
void cache_close(cache *c); /* NULL is fine */
const char *cache_folder(const cache *c);

/* The entry for `key`, open for reading, or -1. Marks it as used. A damaged entry (its checksum differs) is removed
 * and counts as absent. The descriptor's offset is at the engine's first byte; *bytes is its size. */
int cache_get(cache *c, hash128 key, uint64_t *bytes);

/* Publishing: begin returns a descriptor to write the engine to; commit checksums, syncs and links it under the key
 * (the first publisher wins; that is no error) with `label` (one line: model and device, for people); abort drops it.
 */
typedef struct cache_write cache_write;
dpi_status cache_begin(cache *c, hash128 key, cache_write **out, int *fd, dpi_error *error);
dpi_status cache_commit(cache_write *w, const char *label, dpi_error *error);
void cache_abort(cache_write *w);

/* Single-flight: holds the key's lock. Waits while another process builds it, calling `waiting` (may be NULL) with
 * that process's pid about once a second. Returns a descriptor to close when done, -1 on failure (go on without). */
int cache_lock(cache *c, hash128 key, void (*waiting)(void *context, int64_t pid), void *context);

typedef struct cache_entry {
    char key[HASH_HEX_SIZE];
    char label[256];
    uint64_t bytes;
    int64_t used_unix_s;
    int32_t used_ns; /* within that second */
} cache_entry;
/* malloc'd array, newest first. */
dpi_status cache_list(cache *c, cache_entry **entries, size_t *count, dpi_error *error);
/* Removes one entry, as one that the library does not take; nothing happens when there is none. */
void cache_remove(cache *c, hash128 key);
/* Removes all entries; *removed_bytes may be NULL. */
dpi_status cache_clear(cache *c, uint64_t *removed_bytes, dpi_error *error);

/* Content hash of a file, remembered in the cache folder by device, inode, size, mtime and ctime (c may be
 * NULL: computed).
 * For an ONNX file with external weights the caller adds those files too. */
dpi_status cache_hash_file(cache *c, const char *path, hash128 *hash, dpi_error *error);

#endif
