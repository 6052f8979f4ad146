/*
 * Stops a program at a chosen system call on chosen files: preloaded into dpinfer by tests/cli/test_stops.py.
 *
 * Looks at calls on files whose path begins with DPI_STOP_FILES, and on the folder DPI_STOP_FOLDER itself. Counts them
 * by name of the call and of the file, and writes each to DPI_STOP_LOG as "CALL FILE NUMBER". DPI_STOP_AT, of the same
 * form, names one, and DPI_STOP_HOW says what happens there:
 *
 * - ERRNO: the call fails with this number and does nothing, once;
 * - ERRNO+: so does every later call that is looked at, except close: a disk that has gone;
 * - short: one byte is read or written;
 * - before, after: the process is killed there.
 *
 * DPI_STOP_IN names the program in which calls are counted, dpinfer or dpinfer-worker: the first process of that name,
 * which makes DPI_STOP_LOG, and none that replaces it.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT      __attribute__((visibility("default")))
#define PATH_SIZE   512
#define KINDS       256
#define LOG_FD      500 /* out of the way of the program's own */
#define GOES_ON     0
#define FAILS       1
#define TRANSFERS_1 2

static struct counted {
    char what[128]; /* "CALL FILE" */
    unsigned count;
} counted[KINDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool broken;     /* ERRNO+ has begun */
static int log_fd = -1; /* opened at once, for a worker's sandbox will not let it later */

static const char *setting(const char *name)
{
    const char *value = getenv(name);
    return value ? value : "";
}

static bool is_watched(const char *path)
{
    const char *files = setting("DPI_STOP_FILES"), *folder = setting("DPI_STOP_FOLDER");
    return *files && (strncmp(path, files, strlen(files)) == 0 || strcmp(path, folder) == 0);
}

__attribute__((constructor)) static void begin(void)
{
    if (strcmp(program_invocation_short_name, setting("DPI_STOP_IN")) != 0)
        return;
    long fd = syscall(SYS_openat, AT_FDCWD, setting("DPI_STOP_LOG"), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    log_fd = fd < 0 ? -1 : (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, LOG_FD);
    if (fd >= 0)
        syscall(SYS_close, fd);
}

/* Notes one call, as "CALL FILE NUMBER" in `line`. */
static void count(const char *call, const char *path, char *line, size_t size)
{
    const char *slash = strrchr(path, '/');
    char what[sizeof counted[0].what];
    bool folder = strcmp(path, setting("DPI_STOP_FOLDER")) == 0;
    snprintf(what, sizeof what, "%s %.80s", call, folder || !slash ? "." : slash + 1);
    unsigned number = 0;
    for (size_t i = 0; i < KINDS && !number; i++) {
        if (!counted[i].count)
            snprintf(counted[i].what, sizeof counted[i].what, "%s", what);
        if (strcmp(counted[i].what, what) == 0)
            number = ++counted[i].count;
    }
    snprintf(line, size, "%s %u", what, number);
}

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

static void write_log(const char *line)
{
    char text[160];
    int length = snprintf(text, sizeof text, "%s\n", line);
    if (syscall(SYS_write, log_fd, text, (size_t)length) < 0)
        die();
}

/* Called before a call: what is to become of it. *after: the process dies once it is done. */
static int meet(const char *call, const char *path, bool *after)
{
    *after = false;
    if (log_fd < 0 || !is_watched(path))
        return GOES_ON;
    int saved = errno, verdict = GOES_ON;
    const char *how = setting("DPI_STOP_HOW");
    char line[160];
    pthread_mutex_lock(&lock);
    count(call, path, line, sizeof line);
    write_log(line);
    bool here = strcmp(line, setting("DPI_STOP_AT")) == 0;
    if (here || (broken && strcmp(call, "close") != 0)) {
        if (strcmp(how, "before") == 0)
            die();
        *after = strcmp(how, "after") == 0;
        verdict = *after ? GOES_ON : strcmp(how, "short") == 0 ? TRANSFERS_1 : FAILS;
        broken |= strchr(how, '+') != NULL;
        saved = verdict == FAILS ? atoi(how) : saved;
    }
    pthread_mutex_unlock(&lock);
    errno = saved;
    return verdict;
}

static int meet_fd(const char *call, int fd, bool *after)
{
    char link[40], path[PATH_SIZE];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, sizeof path - 1);
    errno = saved;
    *after = false;
    if (length <= 0)
        return GOES_ON;
    path[length] = 0;
    return meet(call, path, after);
}

static int meet_path(const char *call, const char *name, bool *after)
{
    char path[PATH_SIZE];
    const char *folder = setting("DPI_STOP_FOLDER");
    if (strcmp(name, ".") == 0)
        snprintf(path, sizeof path, "%s", folder);
    else
        snprintf(path, sizeof path, "%s%s%s", *name == '/' ? "" : folder, *name == '/' ? "" : "/", name);
    return meet(call, path, after);
}

static long done(long result, bool after)
{
    if (after)
        die();
    return result;
}

/* ---- the calls --------------------------------------------------------------------------------------------------- */

#define ON_FD(call, fd, number, ...)                                                                                   \
    bool after;                                                                                                        \
    if (meet_fd(call, fd, &after) == FAILS)                                                                            \
        return -1;                                                                                                     \
    return (int)done(syscall(number, __VA_ARGS__), after)

#define ON_PATH(call, path, number, ...)                                                                               \
    bool after;                                                                                                        \
    if (meet_path(call, path, &after) == FAILS)                                                                        \
        return -1;                                                                                                     \
    return (int)done(syscall(number, __VA_ARGS__), after)

static int open_it(int folder, const char *path, int flags, mode_t mode)
{
    ON_PATH("open", path, SYS_openat, folder, path, flags, mode);
}

#define WITH_MODE(last)                                                                                                \
    va_list arguments;                                                                                                 \
    va_start(arguments, last);                                                                                         \
    mode_t mode = (last) & (O_CREAT | __O_TMPFILE) ? va_arg(arguments, mode_t) : 0;                                    \
    va_end(arguments)

EXPORT int open64(const char *path, int flags, ...)
{
    WITH_MODE(flags);
    return open_it(AT_FDCWD, path, flags, mode);
}

EXPORT int __open64_2(const char *path, int flags) { return open_it(AT_FDCWD, path, flags, 0); }

EXPORT int ftruncate64(int fd, off64_t bytes) { ON_FD("ftruncate", fd, SYS_ftruncate, fd, bytes); }
EXPORT int fsync(int fd) { ON_FD("fsync", fd, SYS_fsync, fd); }
EXPORT int fdatasync(int fd) { ON_FD("fdatasync", fd, SYS_fdatasync, fd); }
EXPORT int flock(int fd, int operation) { ON_FD("flock", fd, SYS_flock, fd, operation); }
EXPORT int unlink(const char *path) { ON_PATH("unlink", path, SYS_unlinkat, AT_FDCWD, path, 0); }

EXPORT int close(int fd)
{
    bool after;
    if (meet_fd("close", fd, &after) == FAILS) { /* it is closed all the same */
        int number = errno;
        syscall(SYS_close, fd);
        errno = number;
        return -1;
    }
    return (int)done(syscall(SYS_close, fd), after);
}

EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
    ON_FD("fallocate", fd, SYS_fallocate, fd, mode, offset, bytes);
}

EXPORT int sync_file_range(int fd, off64_t offset, off64_t bytes, unsigned flags)
{
    ON_FD("sync_file_range", fd, SYS_sync_file_range, fd, offset, bytes, flags);
}

EXPORT int rename(const char *from, const char *to)
{
    ON_PATH("rename", from, SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

EXPORT int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags)
{
    ON_PATH("renameat2", from, SYS_renameat2, from_folder, from, to_folder, to, flags);
}

EXPORT int link(const char *from, const char *to)
{
    ON_PATH("link", from, SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0);
}

EXPORT ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset)
{
    bool after;
    int verdict = meet_fd("pwrite", fd, &after);
    if (verdict == FAILS)
        return -1;
    return done(syscall(SYS_pwrite64, fd, data, verdict == TRANSFERS_1 && bytes ? 1 : bytes, offset), after);
}

EXPORT ssize_t pread64(int fd, void *data, size_t bytes, off64_t offset)
{
    bool after;
    int verdict = meet_fd("pread", fd, &after);
    if (verdict == FAILS)
        return -1;
    return done(syscall(SYS_pread64, fd, data, verdict == TRANSFERS_1 && bytes ? 1 : bytes, offset), after);
}

EXPORT ssize_t __pread64_chk(int fd, void *data, size_t bytes, off64_t offset, size_t room)
{
    if (bytes > room)
        abort();
    return pread64(fd, data, bytes, offset);
}

EXPORT int fstat64(int fd, struct stat64 *info) { ON_FD("fstat", fd, SYS_newfstatat, fd, "", info, AT_EMPTY_PATH); }

EXPORT int stat64(const char *path, struct stat64 *info)
{
    ON_PATH("stat", path, SYS_newfstatat, AT_FDCWD, path, info, 0);
}

EXPORT int lstat64(const char *path, struct stat64 *info)
{
    ON_PATH("lstat", path, SYS_newfstatat, AT_FDCWD, path, info, AT_SYMLINK_NOFOLLOW);
}
