/* raw:SHAPE:DTYPE:FILE: rows one after another and nothing else. The workers' own form of it, with the first row at an
 * offset, is raw@OFFSET,ROWS:SHAPE:DTYPE:NAME and comes with a descriptor. */
#include "base/text.h"
#include "data/source_kind.h"

#include <stdlib.h>
#include <string.h>

typedef struct raw_parts {
    const char *shape, *dtype, *path;
    uint64_t offset, rows; /* of raw@ */
    bool has_place;
} raw_parts;

/* Cuts `text` (changed) at its first colons; the path may hold more of them. */
static bool cut(char *text, raw_parts *parts)
{
    char *place = text + strlen("raw"), *shape = strchr(place, ':');
    char *dtype = shape ? strchr(shape + 1, ':') : NULL, *path = dtype ? strchr(dtype + 1, ':') : NULL;
    if (!path)
        return false;
    *shape++ = *dtype++ = *path++ = 0;
    *parts = (raw_parts){.shape = shape, .dtype = dtype, .path = path, .has_place = *place == '@'};
    char *comma = parts->has_place ? strchr(place, ',') : NULL;
    if (!parts->has_place)
        return *path != 0;
    if (!comma)
        return false;
    *comma++ = 0;
    return *path && text_to_u64(place + 1, 0, INT64_MAX, &parts->offset) &&
           text_to_u64(comma, 0, INT64_MAX, &parts->rows);
}

/* How many rows there are: as many as fit exactly, or as many as raw@ says. */
static dpi_status count_rows(source *s, const raw_parts *parts, uint64_t file_bytes, dpi_error *error)
{
    size_t row_bytes, bytes;
    if (!shape_row_bytes(s->shape.dtype, s->shape.shape, s->shape.rank, &row_bytes))
        return error_set(error, DPI_E_DATA, "%s has rows whose size overflows", s->spec);
    s->data_offset = parts->offset;
    s->rows = parts->has_place ? parts->rows : file_bytes / row_bytes;
    s->shape.shape[0] = (int64_t)s->rows;
    if (parts->has_place)
        return size_multiply(s->rows, row_bytes, &bytes) && parts->offset <= file_bytes &&
                       bytes <= file_bytes - parts->offset
                   ? DPI_OK
                   : error_set(error, DPI_E_DATA, "%s is cut short", parts->path);
    if (file_bytes % row_bytes)
        return error_set(error, DPI_E_DATA,
                         "%s has %llu bytes, and rows of %s %s have %zu each: %llu bytes are left over", parts->path,
                         (unsigned long long)file_bytes, dpi_dtype_name(s->shape.dtype), parts->shape, row_bytes,
                         (unsigned long long)(file_bytes % row_bytes));
    return DPI_OK;
}

static dpi_status open_parts(source *s, const raw_parts *parts, int fd, dpi_error *error)
{
    int rank;
    if (!shape_parse(parts->shape, strlen(parts->shape), s->shape.shape + 1, &rank))
        return error_set(error, DPI_E_DATA, "%s: \"%s\" is no shape of a row, as 3x224x224", s->spec, parts->shape);
    s->shape.rank = rank + 1;
    s->shape.dtype = dtype_by_name(parts->dtype);
    if (s->shape.dtype == DPI_DTYPE_NONE)
        return error_set(error, DPI_E_DATA, "%s: there is no dtype \"%s\"; say float32, uint8, int64 and so on",
                         s->spec, parts->dtype);
    if (fd < 0 && (parts->has_place || source_is_stdin(s->spec)))
        return error_set(error, DPI_E_DATA, "%s can only be read by a run", s->spec);
    uint64_t bytes = 0;
    dpi_status status = flat_open(s, parts->path, fd, &bytes, error);
    if (!status)
        status = count_rows(s, parts, bytes, error);
    return status ? status : flat_map(s, bytes, error);
}

static dpi_status raw_open(source *s, int fd, dpi_error *error)
{
    raw_parts parts;
    char *text = strdup(s->spec);
    if (!text)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    dpi_status status =
        cut(text, &parts) ? open_parts(s, &parts, fd, error)
                          : error_set(error, DPI_E_DATA,
                                      "%s is not raw:SHAPE:DTYPE:FILE, as in raw:3x224x224:uint8:pixels.bin", s->spec);
    free(text);
    return status;
}

const source_kind source_raw = {.open = raw_open, .close = flat_close, .read = flat_read};
