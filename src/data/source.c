#include "base/text.h"
#include "data/image_list.h"
#include "data/source_kind.h"

#include <assert.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

bool source_is_stdin(const char *spec)
{
    return strcmp(spec, "-") == 0 || (strncmp(spec, "raw:", 4) == 0 && text_ends_with(spec, ":-"));
}

static const source_kind *kind_of(const char *spec, const source_options *options)
{
    if (strncmp(spec, "random:", 7) == 0)
        return &source_random;
    if (strncmp(spec, "raw:", 4) == 0 || strncmp(spec, "raw@", 4) == 0)
        return &source_raw;
    if (text_ends_with(spec, ".npz") || strstr(spec, ".npz:"))
        return &source_npz;
    if (text_ends_with(spec, ".npy") || strcmp(spec, "-") == 0)
        return &source_npy;
    return options && image_spec(spec) ? &source_images : NULL;
}

/* `kind` NULL: there is none for it. */
static dpi_status open_kind(const char *spec, const source_kind *kind, const source_options *options, int fd,
                            int spool_fd, source **out, dpi_error *error)
{
    *out = NULL;
    source *s = calloc(1, sizeof *s);
    if (!s || !(s->spec = strdup(spec))) {
        free(s);
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    s->fd = s->file_fd = s->index.fd = s->spool_fd = -1;
    s->kind = kind;
    s->options = options;
    if (spool_fd >= 0)
        s->spool_fd = fcntl(spool_fd, F_DUPFD_CLOEXEC, 3);
    dpi_status status = kind
                            ? kind->open(s, fd, error)
                            : error_set(error, DPI_E_DATA,
                                        "%s is no source that dpinfer reads: FILE.npy, FILE.npz, raw:SHAPE:DTYPE:FILE, "
                                        "- for standard input, a folder, pattern or list of images, FILE.tar, or "
                                        "random:SHAPE:DTYPE:N as in random:3x224x224:float32:1000",
                                        spec);
    s->options = NULL;
    if (!status && !shape_row_bytes(s->shape.dtype, s->shape.shape, s->shape.rank, &s->row_bytes))
        status = error_set(error, DPI_E_DATA, "%s has rows whose size overflows", spec);
    if (status) {
        source_close(s);
        return status;
    }
    *out = s;
    return DPI_OK;
}

dpi_status source_open(const char *spec, int fd, source **out, dpi_error *error)
{
    return open_kind(spec, kind_of(spec, NULL), NULL, fd, -1, out, error);
}

dpi_status source_open_for(const char *spec, const source_options *options, source **out, dpi_error *error)
{
    return open_kind(spec, kind_of(spec, options), options, -1, -1, out, error);
}

dpi_status source_open_index(const char *spec, int fd, int spool_fd, source **out, dpi_error *error)
{
    return open_kind(spec, &source_images, NULL, fd, spool_fd, out, error);
}

void source_close(source *s)
{
    if (!s)
        return;
    if (s->kind)
        s->kind->close(s);
    free(s->worker_spec);
    free(s->spec);
    free(s);
}

const port *source_port(const source *s) { return &s->shape; }
uint64_t source_rows(const source *s) { return s->rows; }
const char *source_spec(const source *s) { return s->spec; }
const char *source_worker_spec(const source *s) { return s->worker_spec ? s->worker_spec : s->spec; }
int source_fd(const source *s) { return s->fd; }
int source_file_fd(const source *s) { return s->file_fd; }
int source_spool_fd(const source *s) { return s->spool_fd; }

const char *source_row_name(const source *s, uint64_t row, char buffer[SOURCE_NAME_SIZE])
{
    assert(row < s->rows);
    return s->kind->row_name ? s->kind->row_name(s, row, buffer) : NULL;
}

bool source_is_dear(const source *s) { return s->kind->load != NULL; }
bool source_promises(const source *s, source_promise *promise)
{
    *promise = s->promise;
    return s->promises;
}
const char *source_fact(const source *s) { return s->fact; }
const char *source_warning(const source *s) { return s->warning; }

dpi_status source_row_load(const source *s, uint64_t row, void *to, row_scratch *scratch, dpi_error *error)
{
    assert(row < s->rows);
    return s->kind->load(s, row, to, scratch, error);
}

void row_scratch_free(row_scratch *scratch)
{
    free(scratch->file);
    free(scratch->pixels);
    *scratch = (row_scratch){0};
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
