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

/* Each core once, however many devices name it. */
static bool is_first(const device_list *devices, size_t which, size_t at)
{
    int cpu = devices->items[which].cpus[at];
    for (size_t d = 0; d <= which; d++)
        for (size_t i = 0; i < (d == which ? at : devices->items[d].cpu_count); i++)
            if (devices->items[d].cpus[i] == cpu)
                return false;
    return true;
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

void core_locks_take(core_locks *locks, const device_list *devices, const logger *log)
{
    *locks = (core_locks){0};
    int folder = lock_folder();
    size_t total = 0, shared = 0;
    for (size_t d = 0; d < devices->count; d++)
        total += devices->items[d].pinned ? devices->items[d].cpu_count : 0;
    locks->fds = folder >= 0 && total ? calloc(total, sizeof *locks->fds) : NULL;
    for (size_t d = 0; locks->fds && d < devices->count; d++)
        for (size_t i = 0; devices->items[d].pinned && i < devices->items[d].cpu_count; i++) {
            char name[32];
            if (!is_first(devices, d, i))
                continue;
            snprintf(name, sizeof name, "cpu%d", devices->items[d].cpus[i]);
            int fd = openat(folder, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
            if (fd < 0)
                continue;
            shared += other_has(fd);
            locks->fds[locks->count++] = fd;
        }
    if (folder >= 0)
        close(folder);
    if (shared)
        log_warning(log, "%zu of the cores are used by another dpinfer program; both will be slower", shared);
}

void core_locks_release(core_locks *locks)
{
    for (size_t i = 0; i < locks->count; i++)
        close(locks->fds[i]);
    free(locks->fds);
    *locks = (core_locks){0};
}
