#include "runtime/best_rows.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

#define WITHIN      0.98
#define MEASURE_NS  50000000
#define MEASURE_MIN 3 /* calls */
#define SLOW_NS     1000000000
#define SIZES_MAX   64

/* Arrays for calls of up to max_rows rows, and one call. */
typedef struct stand {
    const probe_request *request;
    backend_array inputs[PORT_MAX], outputs[PORT_MAX];
    void *memory[2 * PORT_MAX];
    size_t memory_count;
    int depth;
} stand;

static bool is_row_input(const stand *s, size_t i) { return !s->request->broadcast[i].data; }

static dpi_status take_memory(stand *s, backend_array *a, dpi_dtype dtype, dpi_error *error)
{
    size_t bytes;
    if (!shape_bytes(dtype, a->shape, a->rank, &bytes) || !(a->data = aligned_alloc(64, (bytes + 64) / 64 * 64)))
        return error_set(error, DPI_E_SYSTEM, "out of memory to measure slices of %zu rows", s->request->max_rows);
    s->memory[s->memory_count++] = a->data;
    return DPI_OK;
}

static dpi_status set_up(stand *s, const probe_request *r, dpi_error *error)
{
    *s = (stand){.request = r, .depth = r->backend->depth ? r->backend->depth(r->engine) : 1};
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < r->sig->input_count && !status; i++) {
        const port *p = &r->sig->inputs[i];
        if (!is_row_input(s, i)) {
            s->inputs[i] = r->broadcast[i];
            continue;
        }
        s->inputs[i].rank = p->rank;
        memcpy(s->inputs[i].shape, p->shape, sizeof p->shape);
        s->inputs[i].shape[0] = (int64_t)r->max_rows;
        status = take_memory(s, &s->inputs[i], p->dtype, error);
        size_t row_bytes = 0;
        shape_row_bytes(p->dtype, s->inputs[i].shape, p->rank, &row_bytes);
        if (!status)
            tensor_fill_random(p->dtype, s->inputs[i].data, row_bytes / dpi_dtype_size(p->dtype), 0, r->max_rows, i,
                               true);
    }
    if (!status)
        status = r->backend->infer_shapes(r->engine, s->inputs, s->outputs, error);
    for (size_t o = 0; o < r->sig->output_count && !status; o++)
        status = take_memory(s, &s->outputs[o], r->sig->outputs[o].dtype, error);
    return status;
}

/* Rows a second of slices of `rows` rows; *slowest is the longest wait for one. */
static dpi_status measure(stand *s, size_t rows, double *rate, int64_t *slowest_ns, dpi_error *error)
{
    const backend *b = s->request->backend;
    backend_engine *engine = s->request->engine;
    for (size_t i = 0; i < s->request->sig->input_count; i++)
        if (is_row_input(s, i))
            s->inputs[i].shape[0] = (int64_t)rows;
    for (size_t o = 0; o < s->request->sig->output_count; o++)
        s->outputs[o].shape[0] = (int64_t)rows;
    backend_call call = {.rows = rows, .inputs = s->inputs, .outputs = s->outputs};
    backend_timing timing = {0};
    dpi_status status = DPI_OK;
    size_t sent = 0, done = 0, warm = (size_t)s->depth; /* until then the pipe fills, and the shape is new */
    int64_t began_ns = 0, now_ns = clock_now_ns();
    *slowest_ns = 0;
    bool enough = false;
    while (!status && (!enough || done < sent)) {
        while (!enough && !status && s->depth > 1 && sent - done < (size_t)s->depth) {
            status = b->enqueue(engine, (int)(sent % (size_t)s->depth), &call, error);
            sent += !status;
        }
        if (status)
            break;
        if (s->depth > 1)
            status = b->wait(engine, (int)(done % (size_t)s->depth), &timing, error);
        else {
            status = b->run(engine, &call, &timing, error);
            sent++;
        }
        int64_t before_ns = now_ns;
        now_ns = clock_now_ns();
        done++;
        *slowest_ns = now_ns - before_ns > *slowest_ns ? now_ns - before_ns : *slowest_ns;
        if (done == warm)
            began_ns = now_ns;
        else if (done > warm && !enough && done - warm >= MEASURE_MIN &&
                 (now_ns - began_ns > MEASURE_NS || *slowest_ns > SLOW_NS)) {
            enough = true;
            *rate = (double)(rows * (done - warm)) / ((double)(now_ns - began_ns + 1) * 1e-9);
        }
    }
    while (status && done < sent) /* the engine must be idle when we leave */
        b->wait(engine, (int)(done++ % (size_t)s->depth), &timing, NULL);
    return status;
}

size_t best_rows_choose(const size_t *sizes, const double *rates, size_t count)
{
    double best = 0;
    for (size_t i = 0; i < count; i++)
        best = rates[i] > best ? rates[i] : best;
    for (size_t i = 0; i < count; i++)
        if (rates[i] >= WITHIN * best)
            return sizes[i];
    return count ? sizes[count - 1] : 1;
}

dpi_status best_rows(const probe_request *r, size_t *rows, dpi_error *error)
{
    *rows = r->max_rows;
    if (r->fixed_rows || probe_has_free_axes(r))
        return DPI_OK;
    stand s;
    size_t sizes[SIZES_MAX], count = 0;
    double rates[SIZES_MAX];
    int64_t slowest_ns = 0;
    dpi_status status = set_up(&s, r, error);
    for (size_t size = 1; !status && size && count < SIZES_MAX && slowest_ns < SLOW_NS;) {
        sizes[count] = size;
        status = measure(&s, size, &rates[count], &slowest_ns, error);
        if (status)
            break;
        log_debug(r->log, "slices of %zu rows: %.0f rows/s", size, rates[count]);
        count++;
        size = size == r->max_rows ? 0 : size * 2 <= r->max_rows ? size * 2 : r->max_rows;
    }
    if (status && count) {
        log_info(r->log, "slices of %zu rows do not run (%s): smaller ones are taken", sizes[count],
                 error ? error->message : "no reason was asked for");
        status = error_clear(error);
    }
    if (!status)
        *rows = best_rows_choose(sizes, rates, count);
    for (size_t i = 0; i < s.memory_count; i++)
        free(s.memory[i]);
    return status;
}
