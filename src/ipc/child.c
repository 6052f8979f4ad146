#include "ipc/child.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef P_PIDFD
#define P_PIDFD 3
#endif

extern char **environ;

#define CHILD_MAX_FDS 16

/* Descriptors of ours may have the very numbers that the child's are to get, so each is first moved out of the way. */
static int add_descriptors(posix_spawn_file_actions_t *actions, int log, const int *fds, int count)
{
    int base = log >= 3 + count ? log + 1 : 3 + count;
    for (int i = 0; i < count; i++)
        base = fds[i] >= base ? fds[i] + 1 : base;
    int bad = posix_spawn_file_actions_adddup2(actions, log, base + count);
    for (int i = 0; i < count && !bad; i++)
        bad = posix_spawn_file_actions_adddup2(actions, fds[i], base + i);
    if (!bad)
        bad = posix_spawn_file_actions_addopen(actions, 0, "/dev/null", O_RDONLY, 0);
    for (int target = 1; target <= 2 && !bad; target++)
        bad = posix_spawn_file_actions_adddup2(actions, base + count, target);
    for (int i = 0; i < count && !bad; i++)
        bad = posix_spawn_file_actions_adddup2(actions, base + i, 3 + i);
    if (!bad)
        bad = posix_spawn_file_actions_addclosefrom_np(actions, 3 + count);
    return bad;
}

static int set_attributes(posix_spawnattr_t *attributes)
{
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int bad = posix_spawnattr_setsigmask(attributes, &none);
    if (!bad)
        bad = posix_spawnattr_setsigdefault(attributes, &all);
    if (!bad)
        bad = posix_spawnattr_setpgroup(attributes, 0);
    if (!bad)
        bad = posix_spawnattr_setflags(attributes,
                                       POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETPGROUP);
    return bad;
}

dpi_status child_spawn(const char *program, char *const argv[], int log, const int *fds, int fd_count, child *out,
                       dpi_error *error)
{
    *out = (child){.pid = -1, .pidfd = -1};
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    if (fd_count > CHILD_MAX_FDS || posix_spawn_file_actions_init(&actions))
        return error_set(error, DPI_E_SYSTEM, "out of memory while starting %s", program);
    if (posix_spawnattr_init(&attributes)) {
        posix_spawn_file_actions_destroy(&actions);
        return error_set(error, DPI_E_SYSTEM, "out of memory while starting %s", program);
    }
    pid_t pid = -1;
    int bad = add_descriptors(&actions, log, fds, fd_count);
    if (!bad)
        bad = set_attributes(&attributes);
    if (!bad)
        bad = posix_spawn(&pid, program, &actions, &attributes, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (bad)
        return error_set_errno(error, DPI_E_SYSTEM, bad, "cannot start the worker program %s", program);
    int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0) {
        int number = errno;
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        return error_set_errno(error, DPI_E_SYSTEM, number, "cannot watch the worker process (pidfd_open; Linux 5.4)");
    }
    *out = (child){.pid = pid, .pidfd = pidfd};
    return DPI_OK;
}

bool child_ended(child *c, int64_t deadline_ns, int *exit_signal, int *exit_code)
{
    *exit_signal = *exit_code = -1;
    if (c->pidfd < 0)
        return true;
    for (;;) {
        int64_t left_ms = deadline_ns == CLOCK_NEVER ? 1000 : (deadline_ns - clock_now_ns() + 999999) / 1000000;
        struct pollfd p = {.fd = c->pidfd, .events = POLLIN};
        int ready = poll(&p, 1, left_ms < 0 ? 0 : left_ms > 1000 ? 1000 : (int)left_ms);
        if (ready > 0)
            break;
        if (deadline_ns != CLOCK_NEVER && clock_now_ns() >= deadline_ns)
            return false;
    }
    siginfo_t info = {0};
    if (waitid((idtype_t)P_PIDFD, (id_t)c->pidfd, &info, WEXITED) == 0) {
        if (info.si_code == CLD_EXITED)
            *exit_code = info.si_status;
        else
            *exit_signal = info.si_status;
    } /* else the host program reaped it: how it ended is unknown */
    close(c->pidfd);
    c->pidfd = -1;
    return true;
}

void child_kill(const child *c)
{
    if (c->pidfd >= 0)
        syscall(SYS_pidfd_send_signal, c->pidfd, SIGKILL, NULL, 0);
}

bool child_die_with(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    return getppid() == parent; /* it may have died before the line above */
}

bool child_is_worker(pid_t pid)
{
    char path[64], name[16] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", (int)pid);
    FILE *f = fopen(path, "re");
    bool read = f && fgets(name, sizeof name, f);
    if (f)
        fclose(f);
    return read && strncmp(name, "dpinfer-worker", 14) == 0;
}
