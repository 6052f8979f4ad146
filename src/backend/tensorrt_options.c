#include "backend/tensorrt_options.h"

#include "base/file.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TIMING_MAX_BYTES ((size_t)1 << 30)

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static dpi_status bad(const char *key, const char *value, const char *takes, dpi_error *error)
{
    return error_set(error, DPI_E_ARGUMENT, "tensorrt's option %s takes %s, not \"%.80s\"", key, takes, value);
}

static dpi_status read_one(tensorrt_options *o, const char *key, const char *value, dpi_error *error)
{
    uint64_t number;
    if (strcmp(key, "workspace_mb") == 0) {
        if (!text_to_u64(value, 1, 1u << 24, &number))
            return bad(key, value, "a number of MiB", error);
        o->workspace_bytes = number << 20;
    } else if (strcmp(key, "level") == 0) {
        if (!text_to_u64(value, 0, 5, &number))
            return bad(key, value, "0 to 5", error);
        o->level = (int)number;
    } else if (strcmp(key, "depth") == 0) {
        if (!text_to_u64(value, 1, BACKEND_MAX_DEPTH, &number))
            return bad(key, value, "1 to 8", error);
        o->depth = (int)number;
    } else if (strcmp(key, "copy_threads") == 0) {
        if (!text_to_u64(value, 1, 64, &number))
            return bad(key, value, "1 to 64", error);
        o->copy_threads = (int)number;
    } else if (strcmp(key, "cuda_graphs") == 0) {
        if (!text_to_u64(value, 0, 1, &number))
            return bad(key, value, "0 or 1", error);
        o->graphs = number;
    } else if (strcmp(key, "wait") == 0) {
        o->spin = strcmp(value, "spin") == 0;
        if (!o->spin && strcmp(value, "block") != 0)
            return bad(key, value, "block or spin", error);
    } else if (strcmp(key, "timing_cache") == 0) {
        if (!*value)
            return bad(key, value, "a file", error);
        o->timing_cache = value;
    } else if (strncmp(key, "shape.", 6) != 0)
        return error_set(error, DPI_E_ARGUMENT, "the backend tensorrt has no option \"%s\"; it knows: %s", key,
                         TENSORRT_OPTIONS);
    return DPI_OK;
}

dpi_status tensorrt_options_read(const backend_open_options *from, tensorrt_options *o, dpi_error *error)
{
    *o = (tensorrt_options){.level = -1, .depth = 3, .copy_threads = 3, .from = from};
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < from->option_count && !status; i++)
        status = read_one(o, from->options[i].key, from->options[i].value, error);
    return status;
}

/* ---- profiles --------------------------------------------------------------------------------------------------- */

/* One of the shapes of a range: all axes, or all but the row axis. */
static bool read_shape(const char *text, size_t length, const trt_port *input, int64_t rows, int64_t *out)
{
    int64_t shape[DPI_MAX_RANK];
    int rank;
    char copy[128];
    if (length >= sizeof copy)
        return false;
    memcpy(copy, text, length);
    copy[length] = 0;
    rank = 0;
    for (char *at = copy, *end; rank < DPI_MAX_RANK; at = end + 1) {
        uint64_t number;
        end = at + strcspn(at, "x");
        bool more = *end == 'x';
        *end = 0;
        if (!text_to_u64(at, 1, INT32_MAX, &number))
            return false;
        shape[rank++] = (int64_t)number;
        if (!more)
            break;
    }
    int missing = input->rank - rank; /* 1: the row axis was left out */
    if (missing != 0 && missing != 1)
        return false;
    out[0] = rows;
    memcpy(out + missing, shape, (size_t)rank * sizeof *shape);
    for (int k = 0; k < input->rank; k++)
        if (input->shape[k] >= 0 && input->shape[k] != out[k])
            return false;
    return true;
}

static dpi_status missing_range(const trt_port *input, dpi_error *error)
{
    char text[SHAPE_TEXT_SIZE];
    return error_set(error, DPI_E_ARGUMENT,
                     "the input %s has free axes, %s: tell their range, as --shape %s=3x224x224 or least:usual:most",
                     input->name, shape_text(input->shape, input->rank, text), input->name);
}

dpi_status tensorrt_profile(const tensorrt_options *o, const trt_port *input, size_t max_rows, trt_profile *p,
                            dpi_error *error)
{
    char key[PORT_NAME_SIZE + 8];
    snprintf(key, sizeof key, "shape.%s", input->name);
    const char *range = backend_option(o->from, key);
    int64_t *shapes[] = {p->min, p->opt, p->max}, rows[] = {1, (int64_t)max_rows, (int64_t)max_rows};
    if (!range) {
        for (int k = 1; k < input->rank; k++)
            if (input->shape[k] < 0)
                return missing_range(input, error);
        for (int s = 0; s < 3; s++) {
            memcpy(shapes[s], input->shape, sizeof input->shape);
            shapes[s][0] = input->shape[0] < 0 ? rows[s] : input->shape[0];
        }
        return DPI_OK;
    }
    const char *at = range;
    bool good = true;
    for (int s = 0; s < 3 && good; s++) {
        size_t length = strcspn(at, ":");
        good = read_shape(at, length, input, input->shape[0] < 0 ? rows[s] : input->shape[0], shapes[s]);
        if (at == range && !at[length]) /* one shape: for all three */
            continue;
        good = good && (at[length] == ':') == (s < 2);
        at += length + (s < 2);
    }
    for (int k = 0; k < input->rank && good; k++)
        good = p->min[k] <= p->opt[k] && p->opt[k] <= p->max[k];
    char text[SHAPE_TEXT_SIZE];
    return good ? DPI_OK
                : error_set(error, DPI_E_ARGUMENT,
                            "--shape %s=%.80s does not fit the input's shape %s; say one shape or least:usual:most",
                            input->name, range, shape_text(input->shape, input->rank, text));
}

/* ---- the timing cache ------------------------------------------------------------------------------------------- */

dpi_status tensorrt_timing_read(const tensorrt_options *o, void **data, size_t *bytes, dpi_error *error)
{
    *data = NULL;
    *bytes = 0;
    if (!o->timing_cache || access(o->timing_cache, F_OK) != 0)
        return DPI_OK;
    return file_read(o->timing_cache, TIMING_MAX_BYTES, data, bytes, error);
}

dpi_status tensorrt_timing_write(const tensorrt_options *o, const void *data, size_t bytes, dpi_error *error)
{
    if (!o->timing_cache || !bytes)
        return DPI_OK;
    char *temporary = text_format("%s.%ld.part", o->timing_cache, (long)getpid());
    if (!temporary)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    int fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    dpi_status status = fd < 0 ? error_set_errno(error, DPI_E_IO, errno, "cannot write the timing cache %s", temporary)
                               : file_write_at(fd, data, bytes, 0, temporary, error);
    if (fd >= 0)
        close(fd);
    if (!status && rename(temporary, o->timing_cache) != 0)
        status = error_set_errno(error, DPI_E_IO, errno, "cannot write the timing cache %s", o->timing_cache);
    if (status && fd >= 0)
        unlink(temporary);
    free(temporary);
    return status;
}
