/* A .npy file, memory-mapped: larger than memory is fine, rows are read in place. */
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

static dpi_status read_header(source *s, size_t file_bytes, npy_header *h, dpi_error *error)
{
    size_t bytes = file_bytes < NPY_MAX_HEADER + 16 ? file_bytes : NPY_MAX_HEADER + 16;
    char *start = malloc(bytes + 1);
    if (!start)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    dpi_status status = file_read_at(s->fd, start, bytes, 0, s->spec, error);
    if (!status)
        status = npy_parse(start, bytes, s->spec, h, error);
    free(start);
    if (status)
        return status;
    if (file_bytes - h->data_offset < h->data_bytes)
        return error_set(error, DPI_E_DATA, "%s is cut short: it holds %llu of %llu bytes of data", s->spec,
                         (unsigned long long)(file_bytes - h->data_offset), (unsigned long long)h->data_bytes);
    if (h->rank < 1)
        return error_set(error, DPI_E_DATA, "%s holds a single value, not rows", s->spec);
    return DPI_OK;
}

static dpi_status npy_open(source *s, int fd, dpi_error *error)
{
    s->fd = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : open(s->spec, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (s->fd < 0)
        return error_set_errno(error, DPI_E_DATA, errno, "cannot open %s", s->spec);
    struct stat info;
    if (fstat(s->fd, &info) != 0)
        return error_set_errno(error, DPI_E_DATA, errno, "cannot read %s", s->spec);
    if (!S_ISREG(info.st_mode))
        return error_set(error, DPI_E_DATA, "%s is not a regular file", s->spec);
    npy_header h;
    dpi_status status = read_header(s, (size_t)info.st_size, &h, error);
    if (status)
        return status;
    s->shape.dtype = h.dtype;
    s->shape.rank = h.rank;
    memcpy(s->shape.shape, h.shape, sizeof h.shape);
    s->rows = (uint64_t)h.shape[0];
    s->data_offset = h.data_offset;
    s->aligned = h.data_offset % dpi_dtype_size(h.dtype) == 0;
    void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, s->fd, 0);
    if (map == MAP_FAILED)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map %s", s->spec);
    s->map = map;
    s->map_bytes = (size_t)info.st_size;
    return DPI_OK;
}

static void npy_close(source *s)
{
    if (s->map)
        munmap(s->map, s->map_bytes);
    if (s->fd >= 0)
        close(s->fd);
}

static dpi_status npy_read(source *s, uint64_t first, size_t count, void *scratch, dpi_error *error)
{
    return file_read_at(s->fd, scratch, count * s->row_bytes, s->data_offset + first * s->row_bytes, s->spec, error);
}

const source_kind source_npy = {.open = npy_open, .close = npy_close, .read = npy_read};
