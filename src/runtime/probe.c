#include "runtime/probe.h"

#include "base/clock.h"
#include "runtime/best_rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PROBE_SEED  0x6470696e666572ull
#define SAMPLE_MAX  4096
#define SLOW_ROW_NS 20e6 /* from here on a row is dear: few and small calls */

/* A probe at work: one set of row shapes, buffers for up to `capacity` rows. */
typedef struct probe {
    const probe_request *request;
    backend_array inputs[PORT_MAX], outputs[PORT_MAX];
    size_t in_row_bytes[PORT_MAX], out_row_bytes[PORT_MAX];
    void *in[PORT_MAX], *out[PORT_MAX];
    size_t capacity;
} probe;

static void probe_end(probe *p)
{
    for (size_t i = 0; i < PORT_MAX; i++) {
        free(p->in[i]);
        free(p->out[i]);
    }
}

static bool is_broadcast(const probe *p, size_t i) { return p->request->broadcast[i].data != NULL; }

/* Shapes for calls of `rows` rows, free axes as `extent`. */
static dpi_status shape_call(probe *p, size_t rows, int64_t extent, dpi_error *error)
{
    const signature *sig = p->request->sig;
    for (size_t i = 0; i < sig->input_count; i++) {
        if (is_broadcast(p, i)) {
            p->inputs[i] = p->request->broadcast[i];
            continue;
        }
        p->inputs[i].rank = sig->inputs[i].rank;
        for (int k = 0; k < sig->inputs[i].rank; k++)
            p->inputs[i].shape[k] = sig->inputs[i].shape[k] < 0 ? extent : sig->inputs[i].shape[k];
        p->inputs[i].shape[0] = (int64_t)rows;
        if (!shape_row_bytes(sig->inputs[i].dtype, p->inputs[i].shape, p->inputs[i].rank, &p->in_row_bytes[i]))
            return error_set(error, DPI_E_MODEL, "the rows of the input %s have no size", sig->inputs[i].name);
    }
    dpi_status status = p->request->backend->infer_shapes(p->request->engine, p->inputs, p->outputs, error);
    for (size_t o = 0; !status && o < sig->output_count; o++) {
        const backend_array *a = &p->outputs[o];
        if (a->rank < 1 || a->shape[0] != (int64_t)rows) {
            char text[SHAPE_TEXT_SIZE];
            return error_set(error, DPI_E_MODEL,
                             "the model cannot be split by rows: for %zu rows its output %s has the shape %s; choose "
                             "other outputs with --output",
                             rows, sig->outputs[o].name, shape_text(a->shape, a->rank, text));
        }
        if (!shape_row_bytes(sig->outputs[o].dtype, a->shape, a->rank, &p->out_row_bytes[o]))
            return error_set(error, DPI_E_MODEL, "the output %s has no complete shape", sig->outputs[o].name);
    }
    return status;
}

static dpi_status reserve(probe *p, size_t rows, dpi_error *error)
{
    const signature *sig = p->request->sig;
    p->capacity = rows;
    for (size_t i = 0; i < sig->input_count; i++)
        if (!is_broadcast(p, i) && !(p->in[i] = aligned_alloc(64, (p->in_row_bytes[i] * rows + 64) / 64 * 64)))
            return error_set(error, DPI_E_SYSTEM, "out of memory for the probe of %zu rows; lower --batch", rows);
    for (size_t o = 0; o < sig->output_count; o++)
        if (!(p->out[o] = aligned_alloc(64, (p->out_row_bytes[o] * rows + 64) / 64 * 64)))
            return error_set(error, DPI_E_SYSTEM, "out of memory for the probe of %zu rows; lower --batch", rows);
    return DPI_OK;
}

/* Runs the rows first, first + 1, ... but `last` in the last place (SAME: the natural one). A row's content depends on
 * its number alone. */
#define SAME UINT64_MAX
static dpi_status run_rows(probe *p, uint64_t first, uint64_t last, size_t rows, dpi_error *error)
{
    const probe_request *r = p->request;
    for (size_t i = 0; i < r->sig->input_count; i++) {
        if (is_broadcast(p, i))
            continue;
        dpi_dtype dtype = r->sig->inputs[i].dtype;
        for (size_t k = 0; k < rows; k++)
            tensor_fill_random(dtype, (char *)p->in[i] + k * p->in_row_bytes[i],
                               p->in_row_bytes[i] / dpi_dtype_size(dtype),
                               k + 1 == rows && last != SAME ? last : first + k, 1, PROBE_SEED + i, true);
        p->inputs[i].data = p->in[i];
        p->inputs[i].shape[0] = (int64_t)rows;
    }
    for (size_t o = 0; o < r->sig->output_count; o++) {
        p->outputs[o].data = p->out[o];
        p->outputs[o].shape[0] = (int64_t)rows;
    }
    backend_call call = {.rows = rows, .inputs = p->inputs, .outputs = p->outputs};
    backend_timing timing = {0};
    if (r->backend->run)
        return r->backend->run(r->engine, &call, &timing, error);
    dpi_status status = r->backend->enqueue(r->engine, 0, &call, error);
    return status ? status : r->backend->wait(r->engine, 0, &timing, error);
}

/* ---- comparing rows --------------------------------------------------------------------------------------------- */

/* All outputs of one row, one after another. */
static size_t row_total(const probe *p)
{
    size_t total = 0;
    for (size_t o = 0; o < p->request->sig->output_count; o++)
        total += p->out_row_bytes[o];
    return total;
}

static void copy_row(const probe *p, size_t row, char *to)
{
    for (size_t o = 0; o < p->request->sig->output_count; o++) {
        memcpy(to, (char *)p->out[o] + row * p->out_row_bytes[o], p->out_row_bytes[o]);
        to += p->out_row_bytes[o];
    }
}

static double tolerance_of(dpi_dtype dtype)
{
    return dtype == DPI_F16 || dtype == DPI_BF16 ? 2e-2 : dtype_is_float(dtype) ? 1e-3 : 0;
}

/* Whether two rows differ by more than rounding; *output is the first that does. */
static bool rows_differ(const probe *p, const char *a, const char *b, double extra, size_t *output)
{
    const signature *sig = p->request->sig;
    for (size_t o = 0; o < sig->output_count; o++) {
        dpi_dtype dtype = sig->outputs[o].dtype;
        size_t elements = p->out_row_bytes[o] / dpi_dtype_size(dtype);
        double scale = 0, worst = 0;
        for (size_t e = 0; e < elements; e++) {
            double x = dtype_get(dtype, a, e), y = dtype_get(dtype, b, e);
            if (x != x || y != y) {
                worst = (x != x) == (y != y) ? worst : INFINITY;
                continue;
            }
            scale = isfinite(x) && fabs(x) > scale ? fabs(x) : scale;
            double difference = x == y ? 0 : fabs(x - y);
            worst = difference > worst ? difference : worst;
        }
        double tolerance = tolerance_of(dtype) > extra || !dtype_is_float(dtype) ? tolerance_of(dtype) : extra;
        if (worst > tolerance * scale) {
            *output = o;
            return true;
        }
        a += p->out_row_bytes[o];
        b += p->out_row_bytes[o];
    }
    return false;
}

/* ---- the steps -------------------------------------------------------------------------------------------------- */

static dpi_status refuse_dependence(const probe *p, size_t output, dpi_error *error)
{
    return error_set(error, DPI_E_MODEL,
                     "the model cannot be split by rows: a row of its output %s changes with the other rows of the "
                     "batch (--trust-rows overrides this)",
                     p->request->sig->outputs[output].name);
}

/* The same row among other neighbours and at another place, at one slice size. */
static dpi_status test_neighbours(probe *p, size_t rows, const char *reference, char *other, bool *independent,
                                  dpi_error *error)
{
    dpi_status status = run_rows(p, 1000, 0, rows, error);
    if (status)
        return status;
    copy_row(p, rows - 1, other);
    size_t output;
    *independent = !rows_differ(p, reference, other, 0, &output);
    return *independent || p->request->trust_rows ? DPI_OK : refuse_dependence(p, output, error);
}

/* Row 0 at another slice size: other bits? */
static dpi_status test_size(probe *p, size_t rows, const char *reference, char *other, size_t bytes, bool *changes,
                            dpi_error *error)
{
    dpi_status status = run_rows(p, 0, SAME, rows, error);
    if (status)
        return status;
    copy_row(p, 0, other);
    *changes |= memcmp(reference, other, bytes) != 0;
    size_t output;
    /* Half precision inside may differ by more from size to size; another size must still not mean another answer. */
    if (rows_differ(p, reference, other, 5e-2, &output) && !p->request->trust_rows)
        return refuse_dependence(p, output, error);
    return DPI_OK;
}

static dpi_status time_rows(probe *p, size_t rows, int repeats, double *ns, dpi_error *error)
{
    *ns = INFINITY;
    for (int i = 0; i < repeats; i++) {
        int64_t began = clock_now_ns(), cost = 0;
        dpi_status status = run_rows(p, 0, SAME, rows, error);
        if (status)
            return status;
        /* Filling the rows is ours, not the engine's: measure it and take it off. */
        int64_t filled = clock_now_ns();
        for (size_t k = 0; k < p->request->sig->input_count; k++)
            if (!is_broadcast(p, k))
                for (size_t n = 0; n < rows; n++)
                    tensor_fill_random(p->request->sig->inputs[k].dtype, p->in[k],
                                       p->in_row_bytes[k] / dpi_dtype_size(p->request->sig->inputs[k].dtype), n, 1,
                                       PROBE_SEED + k, true);
        cost = (filled - began) - (clock_now_ns() - filled);
        *ns = cost > 0 && (double)cost < *ns ? (double)cost : *ns;
    }
    if (!isfinite(*ns))
        *ns = 1000;
    return DPI_OK;
}

static dpi_status fit_cost(probe *p, size_t large, probe_result *result, dpi_error *error)
{
    double one, many;
    dpi_status status = time_rows(p, p->request->fixed_rows ? p->request->fixed_rows : 1, 1, &one, error);
    int repeats = one < 1e6 ? 5 : one < SLOW_ROW_NS ? 2 : 1;
    if (!status && repeats > 1)
        status = time_rows(p, p->request->fixed_rows ? p->request->fixed_rows : 1, repeats, &one, error);
    if (status)
        return status;
    if (p->request->fixed_rows || large <= 1) {
        result->row_ns = one / (double)(p->request->fixed_rows ? p->request->fixed_rows : 1);
        return DPI_OK;
    }
    status = time_rows(p, large, repeats, &many, error);
    result->row_ns = many > one ? (many - one) / (double)(large - 1) : many / (double)large;
    result->fixed_ns = one > result->row_ns ? one - result->row_ns : 0;
    return status;
}

static void take_sample(const probe *p, const char *row, probe_result *result)
{
    const signature *sig = p->request->sig;
    result->sample = calloc(SAMPLE_MAX, sizeof *result->sample);
    for (size_t o = 0; result->sample && o < sig->output_count; o++) {
        size_t elements = p->out_row_bytes[o] / dpi_dtype_size(sig->outputs[o].dtype);
        for (size_t e = 0; e < elements && result->sample_count < SAMPLE_MAX; e++)
            result->sample[result->sample_count++] = dtype_get(sig->outputs[o].dtype, row, e);
        row += p->out_row_bytes[o];
    }
}

/* Row sizes to try: a few small ones, and the largest where that is cheap. */
static size_t largest_size(const probe_request *r, double first_ns)
{
    size_t most = r->max_rows < 64 ? r->max_rows : 64;
    size_t cheap = first_ns > SLOW_ROW_NS ? 3 : first_ns > 1e6 ? 8 : 64;
    return most < cheap ? most : cheap;
}

static dpi_status examine(probe *p, probe_result *result, dpi_error *error)
{
    const probe_request *r = p->request;
    size_t bytes = row_total(p), base = r->fixed_rows ? r->fixed_rows : r->max_rows < 3 ? r->max_rows : 3;
    char *reference = malloc(bytes + 1), *other = malloc(bytes + 1);
    if (!reference || !other) {
        free(reference);
        free(other);
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    dpi_status status = run_rows(p, 0, SAME, base, error); /* the first run: allocations, and does it work at all */
    int64_t began = clock_now_ns();
    if (!status)
        status = run_rows(p, 0, SAME, base, error);
    double row_ns = (double)(clock_now_ns() - began) / (double)base;
    hash_state *h = hash_new();
    for (size_t k = 0; !status && k < base; k++) {
        copy_row(p, k, other);
        hash_add(h, other, bytes);
    }
    result->hash = hash_end(h);
    if (!status) {
        copy_row(p, 0, reference);
        take_sample(p, reference, result);
        result->rows_independent = true;
        if (base > 1)
            status = test_neighbours(p, base, reference, other, &result->rows_independent, error);
    }
    size_t large = largest_size(r, row_ns);
    if (!status && !r->fixed_rows && base > 1)
        status = test_size(p, 1, reference, other, bytes, &result->size_changes_bits, error);
    if (!status && !r->fixed_rows && large > base)
        status = test_size(p, large, reference, other, bytes, &result->size_changes_bits, error);
    if (!status && row_ns > SLOW_ROW_NS)
        result->row_ns = row_ns; /* what has run already tells enough */
    else if (!status)
        status = fit_cost(p, large, result, error);
    free(reference);
    free(other);
    return status;
}

bool probe_has_free_axes(const probe_request *r)
{
    for (size_t i = 0; i < r->sig->input_count; i++)
        for (int k = 1; k < r->sig->inputs[i].rank; k++)
            if (r->sig->inputs[i].shape[k] < 0 && !r->broadcast[i].data)
                return true;
    return false;
}

static dpi_status probe_extent(const probe_request *r, int64_t extent, probe_result *result, dpi_error *error)
{
    probe p = {.request = r};
    *result = (probe_result){0};
    size_t rows = r->fixed_rows ? r->fixed_rows : r->max_rows < 64 ? r->max_rows : 64;
    /* Shapes for 2 rows tell more than for 1: axis 0 of 1 could be anything. */
    size_t of_two[PORT_MAX];
    bool compare = !r->fixed_rows && rows > 2;
    dpi_status status = compare ? shape_call(&p, 2, extent, error) : DPI_OK;
    memcpy(of_two, p.out_row_bytes, sizeof of_two);
    if (!status)
        status = shape_call(&p, rows, extent, error);
    for (size_t o = 0; !status && compare && o < r->sig->output_count; o++)
        if (p.out_row_bytes[o] != of_two[o])
            status =
                error_set(error, DPI_E_MODEL,
                          "the model cannot be split by rows: the row size of its output %s changes with the number "
                          "of rows; choose other outputs with --output",
                          r->sig->outputs[o].name);
    if (!status)
        status = reserve(&p, rows, error);
    if (!status)
        status = examine(&p, result, error);
    probe_end(&p);
    if (status)
        probe_free(result);
    return status;
}

static dpi_status probe_extents(const probe_request *r, probe_result *result, dpi_error *error)
{
    *result = (probe_result){0};
    for (size_t i = 0; i < r->sig->input_count; i++)
        if (r->sig->inputs[i].rank < 1 && !r->broadcast[i].data)
            return error_set(error, DPI_E_MODEL, "the input %s has no rows; give it with --broadcast",
                             r->sig->inputs[i].name);
    if (!probe_has_free_axes(r))
        return probe_extent(r, 1, result, error);
    static const int64_t extents[] = {8, 16, 32, 64, 224, 1};
    for (size_t i = 0; i < sizeof extents / sizeof extents[0]; i++) {
        dpi_status status = probe_extent(r, extents[i], result, error);
        /* A model that is refused is refused; one that merely does not like this extent may like the next. */
        if (!status || (status == DPI_E_MODEL && strstr(error->message, "cannot be split")) ||
            (status == DPI_E_MODEL && strstr(error->message, "depends on data")))
            return status;
    }
    log_info(r->log, "the probe was skipped: no extent that was tried suits the model's free axes (%s)",
             error->message);
    error_clear(error);
    *result = (probe_result){.skipped = true, .rows_independent = true};
    return DPI_OK;
}

dpi_status probe_run(const probe_request *r, probe_result *result, dpi_error *error)
{
    dpi_error own;
    dpi_status status = probe_extents(r, result, error ? error : &own);
    if (!status && r->find_rows) {
        status = best_rows(r, &result->best_rows, error);
        if (status)
            probe_free(result);
    }
    if (!status && r->backend->ready)
        r->backend->ready(r->engine);
    return status;
}

void probe_free(probe_result *result)
{
    free(result->sample); // NOLINT(clang-analyzer-unix.Malloc): it is set to NULL right below, clang 14 loses that
    result->sample = NULL;
}

double probe_difference(const probe_result *a, const probe_result *b)
{
    double scale = 0, worst = 0;
    size_t count = a->sample_count < b->sample_count ? a->sample_count : b->sample_count;
    for (size_t i = 0; i < count; i++) {
        double x = a->sample[i], y = b->sample[i];
        if ((x != x) != (y != y))
            return INFINITY;
        if (x != x || x == y)
            continue;
        scale = isfinite(x) && fabs(x) > scale ? fabs(x) : scale;
        worst = fabs(x - y) > worst ? fabs(x - y) : worst;
    }
    return worst == 0 ? 0 : scale > 0 ? worst / scale : INFINITY;
}
