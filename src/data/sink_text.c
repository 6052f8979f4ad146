/* Top classes of each row as text: workers reduce their rows to records, the caller formats them. */
#include "base/file.h"
#include "data/sink_kind.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FLUSH_BYTES     (256 * 1024)
#define MAX_LABEL_BYTES (64 << 20)

/* Splits the file's text into lines in place; the last line needs no newline. */
static dpi_status read_labels(sink *s, const char *path, size_t classes, dpi_error *error)
{
    void *data;
    size_t bytes;
    dpi_status status = file_read(path, MAX_LABEL_BYTES, &data, &bytes, error);
    if (status)
        return status;
    s->label_text = data;
    s->labels = calloc(classes, sizeof *s->labels);
    if (!s->labels)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    size_t lines = 0;
    for (char *at = s->label_text, *end = at + bytes; at < end; lines++) {
        char *newline = memchr(at, '\n', (size_t)(end - at)), *stop = newline ? newline : end;
        *stop = 0;
        if (stop > at && stop[-1] == '\r')
            stop[-1] = 0;
        if (lines < classes)
            s->labels[lines] = at;
        at = newline ? newline + 1 : end;
    }
    if (lines != classes)
        return error_set(error, DPI_E_DATA, "%s has %zu lines and the model has %zu classes; give one line to each",
                         path, lines, classes);
    s->label_count = classes;
    return DPI_OK;
}

dpi_status sink_text_start(sink *s, dpi_error *error)
{
    size_t classes = 0;
    if (s->output.rank < 1 || !shape_elements(s->output.shape, 1, s->output.rank, &classes) || classes < 1 ||
        s->output.dtype == DPI_BOOL || classes > UINT32_MAX)
        return error_set(error, DPI_E_DATA, "%s: a text sink needs an output of scores for each row, and %s is none",
                         s->spec, s->output.name);
    if (s->top > classes)
        return error_set(error, DPI_E_DATA, "%s: the best %zu of %zu classes were asked for", s->spec, s->top, classes);
    if (s->labels_path) {
        dpi_status status = read_labels(s, s->labels_path, classes, error);
        if (status)
            return status;
    }
    char name[SOURCE_NAME_SIZE];
    if (s->names && (!source_rows(s->names) || !source_row_name(s->names, 0, name)))
        s->names = NULL;
    if (s->format->header)
        s->format->header(s);
    return DPI_OK;
}

dpi_status sink_text_resume(sink *s, uint64_t text_bytes, dpi_error *error)
{
    struct stat info;
    dpi_status status = sink_text_start(s, error);
    if (status)
        return status;
    if (fstat(s->fd, &info) != 0)
        return error_set_errno(error, DPI_E_IO, errno, "cannot read %s", s->part);
    if ((uint64_t)info.st_size < text_bytes || (text_bytes && text_bytes < s->buffer.length))
        return sink_another_part(s, error);
    if (!file_cut(s->fd, text_bytes))
        return error_set_errno(error, DPI_E_IO, errno, "cannot cut %s", s->part);
    if (text_bytes) /* else the header line is still in the buffer */
        s->buffer.length = 0;
    s->written = text_bytes;
    return DPI_OK;
}

/* By what classes are ordered: as doubles, since two float64 or int32 scores may be one float32. Records lie in memory
 * that all workers write, so a class read back from there is checked. */
static double score_of(dpi_dtype dtype, const void *row, size_t class_index, size_t classes)
{
    double v = class_index < classes ? dtype_get(dtype, row, class_index) : -INFINITY;
    return v != v ? -INFINITY : v;
}

static void top_of_row(dpi_dtype dtype, const void *row, size_t classes, size_t top, sink_top *best)
{
    size_t found = 0;
    double worst = 0;                      /* of those in `best` */
    for (size_t c = 0; c < classes; c++) { /* insertion: top is small */
        double v = score_of(dtype, row, c, classes);
        if (found == top && !(v > worst))
            continue;
        size_t at = found < top ? found++ : top - 1;
        for (; at > 0 && v > score_of(dtype, row, best[at - 1].class_index, classes); at--)
            best[at] = best[at - 1];
        best[at] = (sink_top){.class_index = (uint32_t)c, .value = (float)v};
        worst = score_of(dtype, row, best[found - 1].class_index, classes);
    }
}

void sink_top_records(const port *output, const void *rows_data, size_t rows, size_t top, sink_top *records)
{
    size_t classes = 0;
    shape_elements(output->shape, 1, output->rank, &classes);
    size_t row_bytes = classes * dpi_dtype_size(output->dtype);
    for (size_t r = 0; r < rows; r++)
        top_of_row(output->dtype, (const char *)rows_data + r * row_bytes, classes, top, records + r * top);
}

void sink_text_score(sink *s, float value)
{
    char number[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(number, sizeof number, "%.*g", digits, (double)value);
        if (strtof(number, NULL) == value)
            break;
    }
    text_add(&s->buffer, "%s", number);
}

dpi_status sink_text_flush(sink *s, dpi_error *error)
{
    if (s->buffer.failed)
        return error_set(error, DPI_E_SYSTEM, "out of memory while writing %s", s->spec);
    dpi_status status = sink_check_limit(s, s->written + s->buffer.length, error);
    if (!status)
        status = file_write_at(s->fd, s->buffer.data, s->buffer.length, s->written, s->part, error);
    if (status)
        return status;
    s->written += s->buffer.length;
    s->buffer.length = 0;
    return DPI_OK;
}

static dpi_status write_records(sink *s, uint64_t first_row, const sink_top *records, size_t rows, dpi_error *error)
{
    char name[SOURCE_NAME_SIZE];
    for (size_t r = 0; r < rows; r++) {
        const char *own = s->names ? source_row_name(s->names, first_row + r, name) : NULL;
        s->format->row(s, first_row + r, s->names ? own ? own : "" : NULL, records + r * s->top);
        if (s->buffer.length < FLUSH_BYTES && !s->buffer.failed)
            continue;
        dpi_status status = sink_text_flush(s, error);
        if (status)
            return status;
    }
    return DPI_OK;
}

dpi_status sink_write_records(sink *s, uint64_t first_row, const sink_top *records, size_t rows, dpi_error *error)
{
    /* Numbers have a point in the C locale alone; the program's may write others, of several bytes even. */
    locale_t plain = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    if (!plain)
        return error_set(error, DPI_E_SYSTEM, "out of memory while writing %s", s->spec);
    locale_t callers = uselocale(plain);
    dpi_status status = write_records(s, first_row, records, rows, error);
    uselocale(callers);
    freelocale(plain);
    return status;
}
