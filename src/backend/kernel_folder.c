#include "backend/kernel_folder.h"

#include "base/file.h"
#include "base/text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define PREFIX   "dpinfer-kernels-"
#define SUFFIX   ".cubin"
#define ATTEMPTS 100 /* each ends in a folder of ours, or by one that was swept as it was made */

static const char *base_folder(void)
{
    const char *base = getenv("TMPDIR");
    return base && *base ? base : "/tmp";
}

static bool is_kernel(const char *name)
{
    size_t length = strlen(name);
    return length > strlen(SUFFIX) && !strchr(name, '/') && strcmp(name + length - strlen(SUFFIX), SUFFIX) == 0;
}

/* The folder of an open descriptor loses its kernels, and then its name. */
static void empty_and_remove(int fd, const char *path)
{
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* fdopendir takes its descriptor over */
    DIR *d = again >= 0 ? fdopendir(again) : NULL;
    for (const struct dirent *e; d && (e = readdir(d));)
        if (is_kernel(e->d_name))
            unlinkat(fd, e->d_name, 0);
    if (d)
        closedir(d);
    else if (again >= 0)
        close(again);
    rmdir(path);
}

/* One of this user's whose lock nobody holds: its process is gone, and so are the kernels' readers. */
static void sweep_one(const char *path)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fstat(fd, &info) == 0 && info.st_uid == geteuid() && flock(fd, LOCK_EX | LOCK_NB) == 0)
        empty_and_remove(fd, path);
    close(fd);
}

static void sweep(const char *base)
{
    DIR *d = opendir(base);
    for (const struct dirent *e; d && (e = readdir(d));) {
        char *path = strncmp(e->d_name, PREFIX, strlen(PREFIX)) == 0 ? text_format("%s/%s", base, e->d_name) : NULL;
        if (path)
            sweep_one(path);
        free(path);
    }
    if (d)
        closedir(d);
}

/* Takes the lock of a folder just made, where the file system has locks. False: somebody swept it, since it had none.
 */
static bool hold(kernel_folder *k)
{
    struct stat named;
    k->fd = open(k->path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (k->fd < 0)
        return false;
    while (flock(k->fd, LOCK_EX) != 0 && errno == EINTR) {
    }
    return stat(k->path, &named) == 0;
}

static void forget(kernel_folder *k)
{
    if (k->fd >= 0)
        close(k->fd);
    free(k->path);
    *k = KERNEL_FOLDER_NONE;
}

dpi_status kernel_folder_make(kernel_folder *k, dpi_error *error)
{
    const char *base = base_folder();
    *k = KERNEL_FOLDER_NONE;
    sweep(base);
    for (int i = 0; i < ATTEMPTS; i++) {
        k->path = text_format("%s/" PREFIX "XXXXXX", base);
        if (!k->path || !mkdtemp(k->path)) {
            forget(k);
            break;
        }
        if (hold(k))
            return DPI_OK;
        forget(k);
    }
    return error_set_errno(error, DPI_E_IO, errno, "cannot make a folder for the model's kernels in %s (TMPDIR)", base);
}

dpi_status kernel_folder_add(const kernel_folder *k, const char *name, const void *data, size_t bytes, dpi_error *error)
{
    if (!is_kernel(name))
        return error_set(error, DPI_E_INTERNAL, "%s is no name of a kernel", name);
    int fd = openat(k->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set_errno(error, DPI_E_IO, errno, "cannot write %s/%s", k->path, name);
    dpi_status status = file_write_at(fd, data, bytes, 0, k->path, error);
    close(fd);
    return status;
}

void kernel_folder_remove(kernel_folder *k)
{
    if (k->path)
        empty_and_remove(k->fd, k->path);
    forget(k);
}
