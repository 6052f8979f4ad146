#include "runtime/core_lock.h"

#include "base/text.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* A folder of this user's alone that goes away with the machine's memory; an open descriptor, -1 when there is none. */
static int lock_folder(void)
{
    char path[64];
    struct stat info;
    snprintf(path, sizeof path, "/dev/shm/dpinfer-%u", (unsigned)geteuid());
    mkdir(path, 0700);
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (folder >= 0 && (fstat(folder, &info) != 0 || info.st_uid != geteuid() || (info.st_mode & 077))) {
        close(folder);
        return -1;
    }
    return folder;
}

static bool is_locked(const core_locks *locks, int cpu)
{
    for (size_t i = 0; i < locks->count; i++)
        if (locks->items[i].cpu == cpu)
            return true;
    return false;
}

/* Takes the lock or tells whether another process has it (a second session of this one is its own affair). */
static bool other_has(int fd)
{
    char owner[24] = "", mine[24];
    int length = snprintf(mine, sizeof mine, "%ld", (long)getpid());
    if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
        bool named = ftruncate(fd, 0) == 0 && pwrite(fd, mine, (size_t)length, 0) == length;
        (void)named; /* without a name, another session of ours would only warn for nothing */
        return false;
    }
    return pread(fd, owner, sizeof owner - 1, 0) <= 0 || strcmp(owner, mine) != 0;
}

/* True when another program has the core. */
static bool take_core(core_locks *locks, int folder, int cpu)
{
    char name[32];
    core_lock *items = realloc(locks->items, (locks->count + 1) * sizeof *items);
    if (!items)
        return false;
    locks->items = items;
    snprintf(name, sizeof name, "cpu%d", cpu);
    int fd = openat(folder, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return false;
    items[locks->count++] = (core_lock){.cpu = cpu, .fd = fd};
    return other_has(fd);
}

void core_locks_take(core_locks *locks, const device_list *devices, const bool *used, const logger *log)
{
    int folder = lock_folder();
    size_t shared = 0;
    for (size_t d = 0; folder >= 0 && d < devices->count; d++) {
        const device *one = &devices->items[d];
        for (size_t i = 0; one->pinned && (!used || used[d]) && i < one->cpu_count; i++)
            if (!is_locked(locks, one->cpus[i]))
                shared += take_core(locks, folder, one->cpus[i]);
    }
    if (folder >= 0)
        close(folder);
    if (shared)
        log_warning(log, "%zu of the cores are used by another dpinfer program; both will be slower", shared);
}

static bool is_needed(const device_list *devices, const bool *used, int cpu)
{
    for (size_t d = 0; d < devices->count; d++)
        for (size_t i = 0; used[d] && i < devices->items[d].cpu_count; i++)
            if (devices->items[d].cpus[i] == cpu)
                return true;
    return false;
}

void core_locks_drop(core_locks *locks, const device_list *devices, const bool *used)
{
    size_t kept = 0;
    for (size_t i = 0; i < locks->count; i++)
        if (is_needed(devices, used, locks->items[i].cpu))
            locks->items[kept++] = locks->items[i];
        else
            close(locks->items[i].fd);
    locks->count = kept;
}

void core_locks_release(core_locks *locks)
{
    for (size_t i = 0; i < locks->count; i++)
        close(locks->items[i].fd);
    free(locks->items);
    *locks = (core_locks){0};
}
