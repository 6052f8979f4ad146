#include "backend/conformance_trial.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#define GUARD_BYTES 256
#define GUARD       0xA5
#define SEED        77u

static void fill(dpi_dtype dtype, void *data, size_t row_elements, size_t rows, uint64_t seed,
                 const trial_options *options)
{
    tensor_fill_random(dtype, data, row_elements, options->first_row, rows, seed, false);
    if (!options->wide_values || dtype == DPI_BOOL)
        return;
    size_t bytes = row_elements * rows * dpi_dtype_size(dtype);
    for (size_t i = 0; i < bytes; i++)
        ((unsigned char *)data)[i] = (unsigned char)hash_mix64(seed, i);
    if (dtype_is_float(dtype)) /* no NaN: engines may choose its bits, and may flush what is subnormal to zero */
        for (size_t e = 0; e < row_elements * rows; e++) {
            double value = dtype_get(dtype, data, e), largest = dtype == DPI_F16 ? 60000 : 1e30;
            if (!(fabs(value) <= largest) || fabs(value) < (dtype == DPI_F16 ? 1e-4 : 1e-30))
                dtype_set(dtype, data, e, 1.0 + (double)(e % 128) / 128.0);
        }
}

/* Input `i`, in memory that cannot be written: workers see their inputs through a read-only mapping. */
static void make_input(trial *t, size_t i, const trial_options *options)
{
    const port *p = &t->sig.inputs[i];
    backend_array *a = &t->in[i];
    size_t bytes, elements, size = dpi_dtype_size(p->dtype);
    bool whole = t->model && strcmp(t->model, "scale") == 0 && i == 1;
    a->rank = p->rank;
    for (int k = 0; k < p->rank; k++)
        a->shape[k] = k == 0 && !whole ? (int64_t)t->rows : p->shape[k] < 0 ? options->extent : p->shape[k];
    assert_true(shape_bytes(p->dtype, a->shape, a->rank, &bytes));
    assert_true(shape_elements(a->shape, whole ? 0 : 1, a->rank, &elements));
    t->in_mapped[i] = bytes + 4096;
    t->in_memory[i] = mmap(NULL, t->in_mapped[i], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(t->in_memory[i] != MAP_FAILED);
    a->data = (char *)t->in_memory[i] + options->misaligned_elements * size;
    fill(p->dtype, a->data, elements, whole ? 1 : t->rows, SEED + i, options);
    assert_int_equal(mprotect(t->in_memory[i], t->in_mapped[i], PROT_READ), 0);
}

static void make_output(trial *t, size_t o, const trial_options *options)
{
    const port *p = &t->sig.outputs[o];
    backend_array *a = &t->out[o];
    size_t offset = GUARD_BYTES + options->misaligned_elements * dpi_dtype_size(p->dtype);
    assert_true(shape_bytes(p->dtype, a->shape, a->rank, &t->out_bytes[o]));
    size_t total = t->out_bytes[o] + offset + GUARD_BYTES;
    t->out_memory[o] = aligned_alloc(64, (total + 63) / 64 * 64);
    assert_non_null(t->out_memory[o]);
    memset(t->out_memory[o], GUARD, total);
    a->data = (char *)t->out_memory[o] + offset;
}

trial *trial_new(const conformance_kit *kit, backend_engine *engine, const char *model, size_t rows,
                 const trial_options *options)
{
    trial *t = calloc(1, sizeof *t);
    dpi_error error = {0};
    assert_non_null(t);
    t->kit = kit;
    t->engine = engine;
    t->model = model;
    t->rows = rows;
    if (kit->backend->describe(engine, &t->sig, &error))
        fail_msg("%s: %s", model, error.message);
    for (size_t i = 0; i < t->sig.input_count; i++)
        make_input(t, i, options);
    if (kit->backend->infer_shapes(engine, t->in, t->out, &error))
        fail_msg("%s, %zu rows: %s", model, rows, error.message);
    for (size_t o = 0; o < t->sig.output_count; o++) {
        assert_true(port_accepts_shape(&t->sig.outputs[o], t->out[o].shape, t->out[o].rank));
        make_output(t, o, options);
    }
    return t;
}

void trial_end(trial *t)
{
    for (size_t i = 0; i < t->sig.input_count; i++)
        munmap(t->in_memory[i], t->in_mapped[i]);
    for (size_t o = 0; o < t->sig.output_count; o++)
        free(t->out_memory[o]);
    free(t);
}

static void check_guards(const trial *t, size_t o)
{
    const unsigned char *data = t->out[o].data, *begin = t->out_memory[o];
    const unsigned char *behind = data + t->out_bytes[o];
    for (const unsigned char *at = begin; at < data; at++)
        if (*at != GUARD)
            fail_msg("%s: the engine wrote %td bytes before its output", t->model, data - at);
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (behind[i] != GUARD)
            fail_msg("%s: the engine wrote %zu bytes behind its output", t->model, i + 1);
}

void trial_run(trial *t)
{
    const backend *b = t->kit->backend;
    backend_call call = {.rows = t->rows, .inputs = t->in, .outputs = t->out};
    backend_timing timing = {0};
    dpi_error error = {0};
    dpi_status status;
    if (b->run)
        status = b->run(t->engine, &call, &timing, &error);
    else {
        status = b->enqueue(t->engine, 0, &call, &error);
        if (!status)
            status = b->wait(t->engine, 0, &timing, &error);
    }
    if (status)
        fail_msg("%s, %zu rows: %s", t->model, t->rows, error.message);
    for (size_t o = 0; o < t->sig.output_count; o++)
        check_guards(t, o);
}

void trial_check_reference(const trial *t)
{
    for (size_t o = 0; o < t->sig.output_count; o++) {
        size_t bytes = t->rows ? t->out_bytes[o] / t->rows : 0;
        char *want = malloc(bytes + 8);
        assert_non_null(want);
        for (size_t row = 0; row < t->rows; row++) {
            const char *got = (const char *)t->out[o].data + row * bytes;
            if (!t->kit->reference(t->model, &t->sig, t->in, row, o, want) || memcmp(got, want, bytes) == 0)
                continue;
            size_t at = 0, size = dpi_dtype_size(t->sig.outputs[o].dtype);
            while (memcmp(got + at * size, want + at * size, size) == 0)
                at++;
            fail_msg("%s, output %s, row %zu of %zu, element %zu: %.17g instead of %.17g", t->model,
                     t->sig.outputs[o].name, row, t->rows, at, dtype_get(t->sig.outputs[o].dtype, got, at),
                     dtype_get(t->sig.outputs[o].dtype, want, at));
        }
        free(want);
    }
}

static double largest_value(dpi_dtype dtype, const void *data, size_t elements)
{
    double largest = 0;
    for (size_t e = 0; e < elements; e++)
        largest = fmax(largest, fabs(dtype_get(dtype, data, e)));
    return largest;
}

void trial_compare_shifted(const trial *a, size_t from_a, const trial *b, size_t from_b, size_t count, double tolerance)
{
    assert_true(from_a + count <= a->rows && from_b + count <= b->rows);
    for (size_t o = 0; o < a->sig.output_count; o++) {
        dpi_dtype dtype = a->sig.outputs[o].dtype;
        size_t size = dpi_dtype_size(dtype), row = a->out_bytes[o] / a->rows / size, elements = count * row;
        const char *left = (const char *)a->out[o].data + from_a * row * size;
        const char *right = (const char *)b->out[o].data + from_b * row * size;
        if (memcmp(left, right, elements * size) == 0)
            continue;
        double largest = largest_value(dtype, left, elements);
        for (size_t e = 0; e < elements; e++) {
            double x = dtype_get(dtype, left, e), y = dtype_get(dtype, right, e);
            if (!(fabs(x - y) <= tolerance * largest) ||
                (tolerance <= 0 && memcmp(left + e * size, right + e * size, size) != 0))
                fail_msg("%s, output %s: element %zu of row %zu is %.9g in %zu rows and %.9g in %zu", a->model,
                         a->sig.outputs[o].name, e % row, e / row, x, a->rows, y, b->rows);
        }
    }
}

void trial_compare(const trial *a, const trial *b, size_t from, size_t count, double tolerance)
{
    trial_compare_shifted(a, from, b, from, count, tolerance);
}
