#include "runtime/best_rows.h"

#include "runtime/stand.h"

#define WITHIN    0.98
#define SLOW_NS   1000000000
#define SIZES_MAX 64

static const stand_limits limits = {.ns = 50000000, .slow_ns = SLOW_NS, .least = 3};

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
    stand_rate rate = {0};
    dpi_status status = stand_open(&s, r->backend, r->engine, r->sig, r->broadcast, r->max_rows, error);
    for (size_t size = 1; !status && size && count < SIZES_MAX && rate.slowest_ns < SLOW_NS;) {
        sizes[count] = size;
        status = stand_measure(&s, size, &limits, &rate, error);
        if (status)
            break;
        log_debug(r->log, "slices of %zu rows: %.0f rows/s", size, rate.rows_per_s);
        rates[count++] = rate.rows_per_s;
        size = size == r->max_rows ? 0 : size * 2 <= r->max_rows ? size * 2 : r->max_rows;
    }
    if (status && count) {
        log_info(r->log, "slices of %zu rows do not run (%s): smaller ones are taken", sizes[count],
                 error ? error->message : "no reason was asked for");
        status = error_clear(error);
    }
    if (!status)
        *rows = best_rows_choose(sizes, rates, count);
    stand_close(&s);
    return status;
}
