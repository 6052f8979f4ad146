/* Two programs on the same cores are slower than one after the other: an advisory lock per core tells. */
#ifndef DPI_RUNTIME_CORE_LOCK_H
#define DPI_RUNTIME_CORE_LOCK_H

#include "base/log.h"
#include "runtime/device.h"

typedef struct core_locks {
    int *fds;
    size_t count;
} core_locks;

/* Locks the cores of all pinned devices, for as long as this process keeps them; warns about those that another session
 * of this user holds. Never fails: where the lock files cannot be made nothing is said. */
void core_locks_take(core_locks *locks, const device_list *devices, const logger *log);
void core_locks_release(core_locks *locks);

#endif
