#include "ipc/arena.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

typedef struct extent {
    uint64_t offset, bytes;
} extent;

typedef struct extent_list { /* sorted by offset */
    extent *items;
    size_t count, capacity;
} extent_list;

struct arena {
    int fd, reader_fd; /* reader_fd: read-only, for workers; -1 where all write */
    unsigned char *base;
    uint64_t max_bytes, size; /* size: what ftruncate has given */
    pthread_mutex_t lock;
    extent_list used, unused; /* unused: holes below `top` */
    uint64_t top;             /* everything from here on is free */
};

static bool list_insert(extent_list *list, size_t at, extent e)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 32;
        extent *items = realloc(list->items, capacity * sizeof *items);
        if (!items)
            return false;
        list->items = items;
        list->capacity = capacity;
    }
    memmove(list->items + at + 1, list->items + at, (list->count - at) * sizeof e);
    list->items[at] = e;
    list->count++;
    return true;
}

static void list_remove(extent_list *list, size_t at)
{
    list->count--;
    memmove(list->items + at, list->items + at + 1, (list->count - at) * sizeof(extent));
}

/* Index of the first extent that begins behind `offset`. */
static size_t list_after(const extent_list *list, uint64_t offset)
{
    size_t low = 0, high = list->count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (list->items[middle].offset <= offset)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool arena_grow(arena *a, uint64_t bytes)
{
    if (bytes <= a->size)
        return true;
    /* In steps, so that many small blocks do not cost a system call each. Pages are committed when touched. */
    uint64_t step = 1u << 20, size = (bytes + step - 1) / step * step;
    if (size > a->max_bytes)
        size = a->max_bytes;
    struct stat is; /* whoever has a descriptor may have made it larger than we did; nobody can make it smaller */
    if (ftruncate(a->fd, (off_t)size) != 0 && !(fstat(a->fd, &is) == 0 && (uint64_t)is.st_size >= size))
        return false;
    a->size = size;
    return true;
}

static dpi_status arena_map(arena *a, const char *name, arena_access access, dpi_error *error)
{
    a->fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (a->fd < 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot create shared memory (memfd_create)");
    void *base = mmap(NULL, a->max_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, a->fd, 0);
    if (base == MAP_FAILED)
        return error_set_errno(error, DPI_E_SYSTEM, errno,
                               "cannot reserve %llu bytes of address space; lower arena_max_bytes or raise ulimit -v",
                               (unsigned long long)a->max_bytes);
    a->base = base;
    madvise(base, a->max_bytes, MADV_HUGEPAGE); /* advice: fewer page faults where shared memory may have huge pages */
    int seals = F_SEAL_SHRINK | F_SEAL_SEAL;    /* nobody can make our addresses fault, or keep us from growing it */
    if (access == ARENA_CALLER_WRITES)
        seals |= F_SEAL_FUTURE_WRITE; /* the mapping above stays writable, later ones cannot be */
    if (fcntl(a->fd, F_ADD_SEALS, seals) != 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot seal shared memory");
    if (access == ARENA_PRODUCERS_WRITE)
        (void)fchmod(a->fd, 0400); /* without a seal, what keeps others from opening it for writing (root excepted) */
    if (access == ARENA_ALL_WRITE)
        return DPI_OK;
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", a->fd);
    a->reader_fd = open(path, O_RDONLY | O_CLOEXEC);
    if (a->reader_fd < 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot open shared memory read-only (is /proc mounted?)");
    return DPI_OK;
}

dpi_status arena_create(const char *name, uint64_t max_bytes, uint64_t head_bytes, arena_access access, arena **out,
                        dpi_error *error)
{
    *out = NULL;
    arena *a = calloc(1, sizeof *a);
    if (!a)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    a->fd = a->reader_fd = -1;
    pthread_mutex_init(&a->lock, NULL);
    a->top = (head_bytes + ARENA_GRAIN - 1) / ARENA_GRAIN * ARENA_GRAIN;
    a->max_bytes = (max_bytes + ARENA_GRAIN - 1) / ARENA_GRAIN * ARENA_GRAIN;
    if (a->max_bytes < a->top)
        a->max_bytes = a->top;
    dpi_status status = arena_map(a, name, access, error);
    if (!status && !arena_grow(a, a->top ? a->top : ARENA_GRAIN))
        status = error_set_errno(error, DPI_E_SYSTEM, errno, "cannot size shared memory");
    if (status) {
        arena_destroy(a);
        return status;
    }
    *out = a;
    return DPI_OK;
}

void arena_abandon(arena *a)
{
    if (a && a->base) {
        munmap(a->base, a->max_bytes);
        a->base = NULL;
    }
}

void arena_destroy(arena *a)
{
    if (!a)
        return;
    arena_abandon(a);
    if (a->fd >= 0)
        close(a->fd);
    if (a->reader_fd >= 0)
        close(a->reader_fd);
    pthread_mutex_destroy(&a->lock);
    free(a->used.items);
    free(a->unused.items);
    free(a);
}

/* Takes `bytes` from the first hole that is large enough, else from the top; ARENA_NONE when neither has room. */
static uint64_t arena_take(arena *a, uint64_t bytes)
{
    for (size_t i = 0; i < a->unused.count; i++) {
        extent *hole = &a->unused.items[i];
        if (hole->bytes < bytes)
            continue;
        uint64_t offset = hole->offset;
        hole->offset += bytes;
        hole->bytes -= bytes;
        if (!hole->bytes)
            list_remove(&a->unused, i);
        return offset;
    }
    if (bytes > a->max_bytes - a->top || !arena_grow(a, a->top + bytes))
        return ARENA_NONE;
    uint64_t offset = a->top;
    a->top += bytes;
    return offset;
}

/* Puts an extent back among the holes, joined with its neighbours. */
static void arena_give(arena *a, extent e)
{
    size_t at = list_after(&a->unused, e.offset);
    if (at > 0 && a->unused.items[at - 1].offset + a->unused.items[at - 1].bytes == e.offset) {
        at--;
        e.offset = a->unused.items[at].offset;
        e.bytes += a->unused.items[at].bytes;
        list_remove(&a->unused, at);
    }
    if (at < a->unused.count && e.offset + e.bytes == a->unused.items[at].offset) {
        e.bytes += a->unused.items[at].bytes;
        list_remove(&a->unused, at);
    }
    if (e.offset + e.bytes == a->top)
        a->top = e.offset;
    else
        (void)list_insert(&a->unused, at, e); /* out of memory: the hole is lost, nothing else */
}

uint64_t arena_alloc(arena *a, uint64_t bytes)
{
    if (bytes > a->max_bytes)
        return ARENA_NONE;
    bytes = bytes ? (bytes + ARENA_GRAIN - 1) / ARENA_GRAIN * ARENA_GRAIN : ARENA_GRAIN;
    pthread_mutex_lock(&a->lock);
    uint64_t offset = arena_take(a, bytes);
    if (offset != ARENA_NONE &&
        !list_insert(&a->used, list_after(&a->used, offset), (extent){.offset = offset, .bytes = bytes})) {
        arena_give(a, (extent){.offset = offset, .bytes = bytes});
        offset = ARENA_NONE;
    }
    pthread_mutex_unlock(&a->lock);
    return offset;
}

bool arena_free(arena *a, uint64_t offset)
{
    pthread_mutex_lock(&a->lock);
    size_t after = list_after(&a->used, offset);
    bool found = after > 0 && a->used.items[after - 1].offset == offset;
    if (found) {
        extent e = a->used.items[after - 1];
        list_remove(&a->used, after - 1);
        arena_give(a, e);
    }
    pthread_mutex_unlock(&a->lock);
    return found;
}

void *arena_at(const arena *a, uint64_t offset) { return a->base + offset; }

uint64_t arena_find(arena *a, const void *address, uint64_t bytes, uint64_t *block)
{
    uintptr_t at = (uintptr_t)address, base = (uintptr_t)a->base;
    if (at < base || at - base >= a->max_bytes)
        return ARENA_NONE;
    uint64_t offset = at - base;
    pthread_mutex_lock(&a->lock);
    size_t after = list_after(&a->used, offset);
    uint64_t found = ARENA_NONE;
    if (after > 0) {
        extent e = a->used.items[after - 1];
        if (offset - e.offset < e.bytes && bytes <= e.bytes - (offset - e.offset)) {
            found = offset;
            if (block)
                *block = e.offset;
        }
    }
    pthread_mutex_unlock(&a->lock);
    return found;
}

int arena_writer_fd(const arena *a) { return a->fd; }

int arena_fd(const arena *a) { return a->reader_fd >= 0 ? a->reader_fd : a->fd; }

uint64_t arena_max(const arena *a) { return a->max_bytes; }

uint64_t arena_committed(arena *a)
{
    pthread_mutex_lock(&a->lock);
    uint64_t size = a->size;
    pthread_mutex_unlock(&a->lock);
    return size;
}

void *arena_attach(int fd, uint64_t max_bytes, bool writable, dpi_error *error)
{
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *base = mmap(NULL, max_bytes, protection, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (base == MAP_FAILED) {
        error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map %llu bytes of the session's memory",
                        (unsigned long long)max_bytes);
        return NULL;
    }
    return base;
}
