#include "runtime/plan.h"

#include <math.h>
#include <string.h>

/* ---- learning a worker's cost ----------------------------------------------------------------------------------- */

#define DECAY 0.95          /* per sample: the last ~20 count */
#define OUTLIER 4.0         /* times the prediction */
#define BELIEVED_AFTER 3    /* outliers in a row are the new truth */

static void solve(plan_fit *f)
{
    double n = f->sum_n / f->weight, t = f->sum_t / f->weight;
    double variance = f->sum_nn / f->weight - n * n, covariance = f->sum_nt / f->weight - n * t;
    if (variance > 0.01 * n * n + 1e-9) {
        double row = covariance / variance;
        row = row < 0 ? 0 : row;
        double fixed = t - row * n;
        if (fixed < 0) { /* through the origin */
            fixed = 0;
            row = t / n;
        }
        f->cost = (plan_cost){.fixed_ns = fixed, .row_ns = row};
        return;
    }
    /* Always the same size: keep the shape that was known, scale it to what is seen. */
    double predicted = f->cost.fixed_ns + f->cost.row_ns * n;
    double scale = predicted > 0 ? t / predicted : 0;
    if (scale > 0)
        f->cost = (plan_cost){.fixed_ns = f->cost.fixed_ns * scale, .row_ns = f->cost.row_ns * scale};
    else
        f->cost = (plan_cost){.fixed_ns = 0, .row_ns = t / n};
}

void plan_fit_start(plan_fit *f, plan_cost first) { *f = (plan_fit){.cost = first}; }

void plan_fit_add(plan_fit *f, size_t rows, double ns)
{
    if (!rows || !(ns >= 0) || ns > 1e15)
        return;
    double n = (double)rows, limit = OUTLIER * (f->cost.fixed_ns + f->cost.row_ns * n);
    if (limit > 0 && ns > limit) {
        if (++f->outliers < BELIEVED_AFTER)
            ns = limit;
        else
            f->weight = f->sum_n = f->sum_t = f->sum_nn = f->sum_nt = 0;
    } else
        f->outliers = 0;
    f->weight = f->weight * DECAY + 1;
    f->sum_n = f->sum_n * DECAY + n;
    f->sum_t = f->sum_t * DECAY + ns;
    f->sum_nn = f->sum_nn * DECAY + n * n;
    f->sum_nt = f->sum_nt * DECAY + n * ns;
    solve(f);
}

/* ---- the cut ---------------------------------------------------------------------------------------------------- */

static double cost_of(plan_cost c, size_t rows, size_t max_rows)
{
    double slices = (double)((rows + max_rows - 1) / max_rows);
    return rows ? slices * c.fixed_ns + (double)rows * c.row_ns : 0;
}

/* Most rows, a multiple of step and at most `rows`, that the worker finishes within `ns`. */
static size_t rows_within(plan_cost c, double ns, size_t rows, size_t step, size_t max_rows)
{
    if (!isfinite(c.fixed_ns) || !isfinite(c.row_ns) || !(ns >= 0))
        return 0;
    size_t low = 0, high = (rows + step - 1) / step; /* in steps; the last may be short */
    while (low < high) {
        size_t middle = low + (high - low + 1) / 2;
        size_t n = middle * step < rows ? middle * step : rows;
        if (cost_of(c, n, max_rows) <= ns)
            low = middle;
        else
            high = middle - 1;
    }
    return low * step < rows ? low * step : rows;
}

static bool all_within(const plan_cost *costs, const double *busy_ns, size_t count, double ns, size_t rows,
                       size_t step, size_t max_rows)
{
    size_t got = 0;
    for (size_t w = 0; w < count && got < rows; w++)
        got += rows_within(costs[w], ns - (busy_ns ? busy_ns[w] : 0), rows - got, step, max_rows);
    return got >= rows;
}

double plan_cut(const plan_cost *costs, const double *busy_ns, size_t count, size_t rows, size_t step,
                size_t max_rows, size_t *shares)
{
    memset(shares, 0, count * sizeof *shares);
    if (!rows)
        return 0;
    /* Bisect the finishing time; 40 halvings of the worst single worker's leave nothing to gain. */
    double low = 0, high = INFINITY;
    size_t best = 0;
    for (size_t w = 0; w < count; w++) {
        double alone = cost_of(costs[w], rows, max_rows) + (busy_ns ? busy_ns[w] : 0);
        if (alone < high || (w == 0 && !isfinite(high))) {
            high = alone;
            best = w;
        }
    }
    if (!isfinite(high) || high <= 0) { /* nothing is known: all to the first, the planner explores */
        shares[best] = rows;
        return 0;
    }
    for (int i = 0; i < 40 && high - low > 1e-4 * high; i++) {
        double middle = (low + high) / 2;
        if (all_within(costs, busy_ns, count, middle, rows, step, max_rows))
            high = middle;
        else
            low = middle;
    }
    size_t left = rows;
    for (size_t w = 0; w < count && left; w++) {
        shares[w] = rows_within(costs[w], high - (busy_ns ? busy_ns[w] : 0), left, step, max_rows);
        left -= shares[w];
    }
    shares[best] += left;
    return high;
}

void plan_even(size_t total, size_t count, size_t *shares)
{
    for (size_t w = 0; w < count; w++)
        shares[w] = total / count + (w < total % count);
}
