/* Rows that stand one after another in a file, memory-mapped: larger than memory is fine, rows are read in place. */
#include "base/file.h"
#include "data/npy.h"
#include "data/source_kind.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

dpi_status flat_open(source *s, const char *path, int fd, uint64_t *file_bytes, dpi_error *error)
{
    s->fd = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    s->file_fd = s->fd;
    struct stat info;
    if (s->fd < 0)
        return error_set_errno(error, DPI_E_DATA, errno, "cannot open %s", path);
    if (fstat(s->fd, &info) != 0)
        return error_set_errno(error, DPI_E_DATA, errno, "cannot read %s", path);
    if (!S_ISREG(info.st_mode))
        return error_set(error, DPI_E_DATA, "%s is not a regular file", path);
    *file_bytes = (uint64_t)info.st_size;
    return DPI_OK;
}

dpi_status flat_take_npy(source *s, const char *name, uint64_t offset, uint64_t bytes, dpi_error *error)
{
    npy_header h;
    size_t most = bytes < NPY_MAX_HEADER + 16 ? (size_t)bytes : NPY_MAX_HEADER + 16;
    char *start = malloc(most + 1);
    if (!start)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    dpi_status status = file_read_at(s->fd, start, most, offset, name, error);
    if (!status)
        status = npy_parse(start, most, name, &h, error);
    free(start);
    if (status)
        return status;
    if (bytes - h.data_offset < h.data_bytes)
        return error_set(error, DPI_E_DATA, "%s is cut short: it holds %llu of %llu bytes of data", name,
                         (unsigned long long)(bytes - h.data_offset), (unsigned long long)h.data_bytes);
    if (h.rank < 1)
        return error_set(error, DPI_E_DATA, "%s holds a single value, not rows", name);
    s->shape.dtype = h.dtype;
    s->shape.rank = h.rank;
    memcpy(s->shape.shape, h.shape, sizeof h.shape);
    s->rows = (uint64_t)h.shape[0];
    s->data_offset = offset + h.data_offset;
    return DPI_OK;
}

dpi_status flat_map(source *s, uint64_t bytes, dpi_error *error)
{
    s->aligned = s->data_offset % dpi_dtype_size(s->shape.dtype) == 0;
    if (!bytes) /* nothing can be mapped, and there is nothing to read */
        return DPI_OK;
    void *map = mmap(NULL, (size_t)bytes, PROT_READ, MAP_SHARED, s->fd, 0);
    if (map == MAP_FAILED)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map %s", s->spec);
    s->map = map;
    s->map_bytes = (size_t)bytes;
    return DPI_OK;
}

void flat_close(source *s)
{
    if (s->map)
        munmap(s->map, s->map_bytes);
    if (s->file_fd >= 0 && s->file_fd != s->fd)
        close(s->file_fd);
    if (s->fd >= 0)
        close(s->fd);
}

dpi_status flat_read(source *s, uint64_t first, size_t count, void *scratch, dpi_error *error)
{
    return file_read_at(s->fd, scratch, count * s->row_bytes, s->data_offset + first * s->row_bytes, s->spec, error);
}
