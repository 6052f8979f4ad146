/* FILE.npy, and standard input in that format. */
#include "data/source_kind.h"

#include <string.h>

static dpi_status npy_open(source *s, int fd, dpi_error *error)
{
    uint64_t bytes = 0;
    bool from_stdin = strcmp(s->spec, "-") == 0;
    const char *name = from_stdin ? "standard input" : s->spec;
    if (from_stdin && fd < 0)
        return error_set(error, DPI_E_DATA, "- (standard input) can only be read by a run");
    dpi_status status = flat_open(s, name, fd, &bytes, error);
    if (!status)
        status = flat_take_npy(s, name, 0, bytes, error);
    return status ? status : flat_map(s, bytes, error);
}

const source_kind source_npy = {.open = npy_open, .close = flat_close, .read = flat_read};
