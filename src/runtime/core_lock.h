/* Two programs on the same cores are slower than one after the other: an advisory lock per core tells. */
#ifndef DPI_RUNTIME_CORE_LOCK_H
#define DPI_RUNTIME_CORE_LOCK_H

#include "base/log.h"
#include "runtime/device.h"

typedef struct core_lock {
    int cpu, fd;
} core_lock;

typedef struct core_locks {
    core_lock *items;
    size_t count;
} core_locks;

/* Locks the cores of all pinned devices i with used[i] (NULL: all) that are not locked yet, for as long as this process
 * keeps them; warns about those that another session of this user holds. Never fails: where the lock files cannot be
 * made nothing is said. */
void core_locks_take(core_locks *locks, const device_list *devices, const bool *used, const logger *log);
/* Gives up the cores that no device i with used[i] has. */
void core_locks_drop(core_locks *locks, const device_list *devices, const bool *used);
void core_locks_release(core_locks *locks);

#endif
