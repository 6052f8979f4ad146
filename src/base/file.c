#include "base/file.h"

#include "base/error.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

dpi_status file_read_at(int fd, void *data, size_t bytes, uint64_t offset, const char *name, dpi_error *error)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(fd, (char *)data + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_set_errno(error, DPI_E_IO, errno, "cannot read %s", name);
        if (got == 0)
            return error_set(error, DPI_E_IO, "%s ends at byte %llu, %zu bytes before what was needed", name,
                             (unsigned long long)(offset + done), bytes - done);
        done += (size_t)got;
    }
    return DPI_OK;
}

dpi_status file_write_at(int fd, const void *data, size_t bytes, uint64_t offset, const char *name, dpi_error *error)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t put = pwrite(fd, (const char *)data + done, bytes - done, (off_t)(offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return error_set_errno(error, DPI_E_IO, errno, "cannot write %zu bytes to %s", bytes - done, name);
        done += (size_t)put;
    }
    return DPI_OK;
}

int file_open(const char *path, int flags, mode_t mode)
{
    int fd;
    do
        fd = open(path, flags, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

dpi_status file_open_failure(int number)
{
    return number == EIO || number == ENOSPC || number == EDQUOT ? DPI_E_IO : DPI_E_DATA;
}

bool file_cut(int fd, uint64_t bytes)
{
    int bad;
    do
        bad = ftruncate(fd, (off_t)bytes);
    while (bad && errno == EINTR);
    return !bad;
}

bool file_sync(int fd, bool data_only)
{
    int bad;
    do
        bad = data_only ? fdatasync(fd) : fsync(fd);
    while (bad && errno == EINTR);
    return !bad;
}

static dpi_status read_open(int fd, const char *path, size_t limit, void **data, size_t *bytes, dpi_error *error)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return error_set_errno(error, DPI_E_DATA, errno, "cannot read %s", path);
    if (!S_ISREG(info.st_mode))
        return error_set(error, DPI_E_DATA, "%s is not a regular file", path);
    if ((uint64_t)info.st_size > limit)
        return error_set(error, DPI_E_DATA, "%s is too large: %lld bytes, at most %zu are read", path,
                         (long long)info.st_size, limit);
    size_t size = (size_t)info.st_size;
    char *memory = malloc(size + 1);
    if (!memory)
        return error_set(error, DPI_E_SYSTEM, "cannot allocate %zu bytes for %s", size, path);
    dpi_status status = file_read_at(fd, memory, size, 0, path, error);
    if (status) {
        free(memory);
        return status;
    }
    memory[size] = 0;
    *data = memory;
    *bytes = size;
    return DPI_OK;
}

dpi_status file_read(const char *path, size_t limit, void **data, size_t *bytes, dpi_error *error)
{
    *data = NULL;
    *bytes = 0;
    int fd = file_open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
    if (fd < 0)
        return error_set_errno(error, DPI_E_DATA, errno, "cannot open %s", path);
    dpi_status status = read_open(fd, path, limit, data, bytes, error);
    close(fd);
    return status;
}

dpi_status file_make_folders(const char *path, dpi_error *error)
{
    char *copy = strdup(path);
    if (!copy)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    for (char *at = copy + 1; *at; at++) {
        if (*at != '/')
            continue;
        *at = 0;
        mkdir(copy, 0700); /* what is there already is fine; the last call below judges */
        *at = '/';
    }
    dpi_status status = DPI_OK;
    if (mkdir(copy, 0700) != 0 && errno != EEXIST)
        status = error_set_errno(error, DPI_E_IO, errno, "cannot make the folder %s", path);
    free(copy);
    return status;
}

dpi_status file_sync_folder_of(const char *path, dpi_error *error)
{
    char *folder = strdup(path);
    if (!folder)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    char *slash = strrchr(folder, '/');
    if (slash == folder)
        slash[1] = 0;
    else if (slash)
        *slash = 0;
    int fd = file_open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
    dpi_status status = DPI_OK;
    /* Some file systems cannot sync a folder; that is not a failure of the write. */
    if (fd < 0 || (!file_sync(fd, false) && errno != EINVAL))
        status = error_set_errno(error, DPI_E_IO, errno, "cannot sync the folder of %s", path);
    if (fd >= 0)
        close(fd);
    free(folder);
    return status;
}

char *file_of_program(void)
{
    char path[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0)
        return NULL;
    path[length] = 0;
    return strdup(path);
}

char *file_of_address(const void *address)
{
    Dl_info info;
    if (!dladdr(address, &info) || !info.dli_fname)
        return NULL;
    /* The program's own name is what it was called by: without a slash it was looked for in PATH. */
    return strchr(info.dli_fname, '/') ? realpath(info.dli_fname, NULL) : file_of_program();
}
