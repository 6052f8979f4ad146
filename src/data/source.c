#include "data/source_kind.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

dpi_status source_open(const char *spec, int fd, source **out, dpi_error *error)
{
    *out = NULL;
    source *s = calloc(1, sizeof *s);
    if (!s || !(s->spec = strdup(spec))) {
        free(s);
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    s->fd = -1;
    size_t length = strlen(spec);
    if (strncmp(spec, "random:", 7) == 0)
        s->kind = &source_random;
    else if (length > 4 && strcmp(spec + length - 4, ".npy") == 0)
        s->kind = &source_npy;
    dpi_status status = s->kind
                            ? s->kind->open(s, fd, error)
                            : error_set(error, DPI_E_DATA,
                                        "%s is no source that dpinfer reads: FILE.npy, or random:SHAPE:DTYPE:N as in "
                                        "random:3x224x224:float32:1000",
                                        spec);
    if (!status && !shape_row_bytes(s->shape.dtype, s->shape.shape, s->shape.rank, &s->row_bytes))
        status = error_set(error, DPI_E_DATA, "%s has rows whose size overflows", spec);
    if (status) {
        source_close(s);
        return status;
    }
    *out = s;
    return DPI_OK;
}

void source_close(source *s)
{
    if (!s)
        return;
    if (s->kind)
        s->kind->close(s);
    free(s->spec);
    free(s);
}

const port *source_port(const source *s) { return &s->shape; }
uint64_t source_rows(const source *s) { return s->rows; }
const char *source_spec(const source *s) { return s->spec; }
int source_fd(const source *s) { return s->fd; }

const char *source_row_name(const source *s, uint64_t row, char buffer[SOURCE_NAME_SIZE])
{
    assert(row < s->rows);
    return s->kind->row_name ? s->kind->row_name(s, row, buffer) : NULL;
}

bool source_is_mapped(const source *s) { return s->map && s->aligned; }

dpi_status source_rows_at(source *s, uint64_t first, size_t count, void *scratch, bool copy, const void **rows,
                          bool *in_place, dpi_error *error)
{
    assert(first <= s->rows && count <= s->rows - first);
    *in_place = source_is_mapped(s) && !copy;
    *rows = *in_place ? s->map + s->data_offset + first * s->row_bytes : scratch;
    return *in_place ? DPI_OK : s->kind->read(s, first, count, scratch, error);
}

void source_will_need(source *s, uint64_t first, uint64_t count)
{
    if (!s->map || first >= s->rows)
        return;
    if (count > s->rows - first)
        count = s->rows - first;
    uint64_t from = (s->data_offset + first * s->row_bytes) / 4096 * 4096;
    uint64_t to = s->data_offset + (first + count) * s->row_bytes;
    madvise(s->map + from, to - from, MADV_WILLNEED);
}

bool source_mapping(const source *s, const void **start, size_t *bytes)
{
    *start = s->map;
    *bytes = s->map_bytes;
    return s->map != NULL;
}
