/* Thread isolation with one device of depth 1: no hand-over, no copy; the caller's thread runs the engine on the
 * caller's memory. */
#include "base/clock.h"
#include "runtime/session.h"

#include <string.h>

static dpi_status run_slice(dpi_session *s, worker *w, backend_call *call, size_t rows, dpi_error *error)
{
    backend_timing timing = {0};
    int64_t began_ns = clock_now_ns();
    dpi_status status = s->backend->run(w->engine, call, &timing, error);
    if (status)
        return status;
    atomic_fetch_add_explicit(&w->page->slices, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&w->page->rows, rows, memory_order_relaxed);
    atomic_fetch_add_explicit(&w->page->compute_ns, (uint64_t)(clock_now_ns() - began_ns), memory_order_relaxed);
    return DPI_OK;
}

/* Copies a short slice into the worker's scratch, its last row repeated. */
static dpi_status pad(dpi_session *s, flight *f, const size_t *in_bytes, const size_t *out_bytes, size_t rows,
                      dpi_error *error)
{
    for (size_t i = 0; i < s->sig.input_count; i++) {
        if (s->is_broadcast[i])
            continue;
        if (!scratch_ensure(&f->in[i], in_bytes[i] * s->fixed_rows))
            return error_set(error, DPI_E_SYSTEM, "out of memory for a padded slice");
        char *to = f->in[i].data;
        memcpy(to, f->inputs[i].data, in_bytes[i] * rows);
        for (size_t r = rows; r < s->fixed_rows; r++)
            memcpy(to + r * in_bytes[i], to + (rows - 1) * in_bytes[i], in_bytes[i]);
        f->inputs[i].data = to;
    }
    for (size_t o = 0; o < s->sig.output_count; o++)
        if (!scratch_ensure(&f->out[o], out_bytes[o] * s->fixed_rows))
            return error_set(error, DPI_E_SYSTEM, "out of memory for a padded slice");
        else
            f->outputs[o].data = f->out[o].data;
    return DPI_OK;
}

dpi_status inline_forward(dpi_session *s, const void *const *inputs, int64_t (*input_shapes)[DPI_MAX_RANK],
                          void *const *outputs, int64_t (*output_shapes)[DPI_MAX_RANK], size_t rows, dpi_error *error)
{
    worker *w = s->workers[0].in_process;
    size_t in_bytes[PORT_MAX] = {0}, out_bytes[PORT_MAX] = {0};
    for (size_t i = 0; i < s->sig.input_count; i++)
        shape_row_bytes(s->sig.inputs[i].dtype, input_shapes[i], s->sig.inputs[i].rank, &in_bytes[i]);
    for (size_t o = 0; o < s->sig.output_count; o++)
        shape_row_bytes(s->sig.outputs[o].dtype, output_shapes[o], s->sig.outputs[o].rank, &out_bytes[o]);
    dpi_status status = DPI_OK;
    pthread_mutex_lock(&s->engine_lock);
    flight *f = &w->flights[BACKEND_MAX_DEPTH - 1]; /* the worker's own thread uses it too, under the same lock */
    for (size_t row = 0; row < rows && !status;) {
        size_t n = rows - row < s->max_rows ? rows - row : s->max_rows,
               call_rows = s->fixed_rows > n ? s->fixed_rows : n;
        for (size_t i = 0; i < s->sig.input_count; i++) {
            if (s->is_broadcast[i]) {
                f->inputs[i] = w->broadcast[i];
                continue;
            }
            f->inputs[i].rank = s->sig.inputs[i].rank;
            memcpy(f->inputs[i].shape, input_shapes[i], sizeof f->inputs[i].shape);
            f->inputs[i].shape[0] = (int64_t)call_rows;
            f->inputs[i].data = (char *)(uintptr_t)inputs[i] + row * in_bytes[i];
        }
        for (size_t o = 0; o < s->sig.output_count; o++) {
            f->outputs[o].rank = s->sig.outputs[o].rank;
            memcpy(f->outputs[o].shape, output_shapes[o], sizeof f->outputs[o].shape);
            f->outputs[o].shape[0] = (int64_t)call_rows;
            f->outputs[o].data = (char *)outputs[o] + row * out_bytes[o];
        }
        if (call_rows != n)
            status = pad(s, f, in_bytes, out_bytes, n, error);
        backend_call call = {.rows = call_rows, .inputs = f->inputs, .outputs = f->outputs};
        if (!status)
            status = run_slice(s, w, &call, n, error);
        for (size_t o = 0; !status && call_rows != n && o < s->sig.output_count; o++)
            memcpy((char *)outputs[o] + row * out_bytes[o], f->out[o].data, n * out_bytes[o]);
        row += n;
    }
    pthread_mutex_unlock(&s->engine_lock);
    return status;
}
