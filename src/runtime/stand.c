#include "runtime/stand.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

#define ALONE_CALLS 16 /* one wait for so many: what a wait costs is not the engine's */

static bool is_row_input(const stand *s, size_t i) { return !s->broadcast[i].data; }

static dpi_status take_memory(stand *s, backend_array *a, dpi_dtype dtype, dpi_error *error)
{
    size_t bytes;
    if (!shape_bytes(dtype, a->shape, a->rank, &bytes) ||
        !(a->data = aligned_alloc(4096, (bytes + 4096) / 4096 * 4096)))
        return error_set(error, DPI_E_SYSTEM, "out of memory to measure slices of %lld rows", (long long)a->shape[0]);
    s->memory[s->memory_count++] = a->data;
    return DPI_OK;
}

dpi_status stand_open(stand *s, const backend *b, backend_engine *engine, const signature *sig,
                      const backend_array *broadcast, size_t rows, dpi_error *error)
{
    *s = (stand){.backend = b, .engine = engine, .sig = sig, .broadcast = broadcast};
    s->depth = b->depth ? b->depth(engine) : 1;
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < sig->input_count && !status; i++) {
        const port *p = &sig->inputs[i];
        if (!is_row_input(s, i)) {
            s->inputs[i] = broadcast[i];
            continue;
        }
        s->inputs[i].rank = p->rank;
        memcpy(s->inputs[i].shape, p->shape, sizeof p->shape);
        s->inputs[i].shape[0] = (int64_t)rows;
        status = take_memory(s, &s->inputs[i], p->dtype, error);
        size_t row_bytes = 0;
        shape_row_bytes(p->dtype, s->inputs[i].shape, p->rank, &row_bytes);
        if (!status)
            tensor_fill_random(p->dtype, s->inputs[i].data, row_bytes / dpi_dtype_size(p->dtype), 0, rows, i, true);
    }
    if (!status)
        status = b->infer_shapes(engine, s->inputs, s->outputs, error);
    for (size_t o = 0; o < sig->output_count && !status; o++)
        status = take_memory(s, &s->outputs[o], sig->outputs[o].dtype, error);
    return status;
}

void stand_close(stand *s)
{
    for (size_t i = 0; i < s->memory_count; i++)
        free(s->memory[i]);
    s->memory_count = 0;
}

static backend_call call_of(stand *s, size_t rows)
{
    for (size_t i = 0; i < s->sig->input_count; i++)
        if (is_row_input(s, i))
            s->inputs[i].shape[0] = (int64_t)rows;
    for (size_t o = 0; o < s->sig->output_count; o++)
        s->outputs[o].shape[0] = (int64_t)rows;
    return (backend_call){.rows = rows, .inputs = s->inputs, .outputs = s->outputs};
}

/* Finishes call number `done`, and starts it first where calls are not enqueued. */
static dpi_status finish_one(stand *s, const backend_call *call, size_t done, dpi_error *error)
{
    backend_timing timing = {0};
    return s->depth > 1 ? s->backend->wait(s->engine, (int)(done % (size_t)s->depth), &timing, error)
                        : s->backend->run(s->engine, call, &timing, error);
}

dpi_status stand_measure(stand *s, size_t rows, const stand_limits *limits, stand_rate *rate, dpi_error *error)
{
    backend_call call = call_of(s, rows);
    dpi_status status = DPI_OK;
    size_t sent = 0, done = 0, warm = (size_t)s->depth; /* until then the pipe fills, and the shape is new */
    int64_t began_ns = 0, now_ns = clock_now_ns();
    bool enough = false;
    *rate = (stand_rate){0};
    while (!status && (!enough || done < sent)) {
        while (!enough && !status && s->depth > 1 && sent - done < (size_t)s->depth) {
            status = s->backend->enqueue(s->engine, (int)(sent % (size_t)s->depth), &call, error);
            sent += !status;
        }
        if (status)
            break;
        sent += s->depth == 1;
        status = finish_one(s, &call, done, error);
        int64_t before_ns = now_ns;
        now_ns = clock_now_ns();
        done++;
        rate->slowest_ns = now_ns - before_ns > rate->slowest_ns ? now_ns - before_ns : rate->slowest_ns;
        if (done == warm)
            began_ns = now_ns;
        else if (done > warm && !enough && done - warm >= limits->least &&
                 (now_ns - began_ns > limits->ns || rate->slowest_ns > limits->slow_ns)) {
            enough = true;
            rate->rows_per_s = (double)(rows * (done - warm)) / ((double)(now_ns - began_ns + 1) * 1e-9);
        }
    }
    backend_timing timing = {0};
    while (status && s->depth > 1 && done < sent) /* the engine must be idle when we leave */
        s->backend->wait(s->engine, (int)(done++ % (size_t)s->depth), &timing, NULL);
    return status;
}

dpi_status stand_measure_alone(stand *s, size_t rows, const stand_limits *limits, stand_rate *rate, dpi_error *error)
{
    if (s->depth == 1 || !s->backend->compute_alone)
        return stand_measure(s, rows, limits, rate, error);
    backend_call call = call_of(s, rows);
    uint64_t computed_ns = 0, ns;
    *rate = (stand_rate){0};
    dpi_status status = s->backend->compute_alone(s->engine, &call, 1, &ns, error); /* the shape may be new */
    int64_t began_ns = clock_now_ns();
    for (size_t calls = ALONE_CALLS; !status; calls += ALONE_CALLS) {
        status = s->backend->compute_alone(s->engine, &call, ALONE_CALLS, &ns, error);
        computed_ns += ns;
        int64_t each_ns = (int64_t)(ns / ALONE_CALLS);
        rate->slowest_ns = each_ns > rate->slowest_ns ? each_ns : rate->slowest_ns;
        rate->rows_per_s = (double)(rows * calls) / ((double)(computed_ns + 1) * 1e-9);
        if (calls >= limits->least && (clock_now_ns() - began_ns > limits->ns || each_ns > limits->slow_ns))
            break;
    }
    return status;
}
