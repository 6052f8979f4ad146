/* random:SHAPE:DTYPE:N[:SEED]: rows by a counter-based generator, the same in any worker and in any order. */
#include "base/text.h"
#include "data/source_kind.h"

#include <stdlib.h>
#include <string.h>

static dpi_status parse(source *s, char *fields, dpi_error *error)
{
    char *part[4] = {NULL};
    int parts = 0;
    for (char *at = fields; at && parts < 4; parts++) {
        part[parts] = at;
        at = strchr(at, ':');
        if (at)
            *at++ = 0;
        if (at && parts == 3)
            return error_set(error, DPI_E_DATA, "%s has too many parts", s->spec);
    }
    int64_t shape[DPI_MAX_RANK];
    int rank;
    if (parts < 3 || !shape_parse(part[0], strlen(part[0]), shape, &rank))
        return error_set(error, DPI_E_DATA,
                         "%s is not random:SHAPE:DTYPE:N[:SEED], as in random:3x224x224:float32:1000", s->spec);
    s->shape.dtype = dtype_by_name(part[1]);
    if (s->shape.dtype == DPI_DTYPE_NONE)
        return error_set(error, DPI_E_DATA, "%s: there is no dtype \"%s\"; say float32, uint8, int64 and so on",
                         s->spec, part[1]);
    if (!text_to_u64(part[2], 0, 1ull << 40, &s->rows) ||
        (parts == 4 && !text_to_u64(part[3], 0, UINT64_MAX, &s->seed)))
        return error_set(error, DPI_E_DATA, "%s: the number of rows (at most 2^40) or the seed is not a number",
                         s->spec);
    s->shape.rank = rank + 1;
    s->shape.shape[0] = (int64_t)s->rows;
    memcpy(s->shape.shape + 1, shape, (size_t)rank * sizeof shape[0]);
    return DPI_OK;
}

static dpi_status random_open(source *s, int fd, dpi_error *error)
{
    (void)fd;
    char *fields = strdup(s->spec + strlen("random:"));
    if (!fields)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    dpi_status status = parse(s, fields, error);
    free(fields);
    return status;
}

static void random_close(source *s) { (void)s; }

static dpi_status random_read(source *s, uint64_t first, size_t count, void *scratch, dpi_error *error)
{
    (void)error;
    tensor_fill_random(s->shape.dtype, scratch, s->row_bytes / dpi_dtype_size(s->shape.dtype), first, count, s->seed,
                       false);
    return DPI_OK;
}

const source_kind source_random = {.open = random_open, .close = random_close, .read = random_read};
