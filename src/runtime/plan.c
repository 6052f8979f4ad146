#include "runtime/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- learning a worker's cost ----------------------------------------------------------------------------------- */

#define DECAY             0.95  /* per sample: the last ~20 count */
#define OUTLIER           4.0   /* times the prediction: counts no more than that */
#define SURPRISE          1.5   /* times the prediction, or a part of it */
#define BELIEVED_AFTER    3     /* surprises the same way in a row: the device has changed, forget what was before */
#define SHAPE_WEIGHT      0.025 /* in samples; see solve */
#define SHAPE_WEIGHT_MOST 1.5

/* Least squares over the samples and two weak ones of what the first cost's shape says, scaled to the samples: where
 * sizes hardly differ, noise must not decide how much of a slice's time is fixed. */
static void solve(plan_fit *f)
{
    double n = f->sum_n / f->weight, t = f->sum_t / f->weight;
    double guess = f->first.fixed_ns + f->first.row_ns * n, scale = guess > 0 ? t / guess : 0;
    plan_cost shape = {.fixed_ns = 0, .row_ns = t / n};
    if (scale > 0)
        shape = (plan_cost){.fixed_ns = f->first.fixed_ns * scale, .row_ns = f->first.row_ns * scale};
    /* The smaller part of the first cost is thought to be known within 30 %, a time within 5 %. */
    double part = t > 0 ? shape.row_ns * n / t : 0.5, smaller = part < 0.5 ? part : 1 - part;
    double trust = SHAPE_WEIGHT / (smaller * smaller + 1e-9);
    trust = trust < SHAPE_WEIGHT_MOST ? trust : SHAPE_WEIGHT_MOST;
    double w = f->weight, sum_n = f->sum_n, sum_t = f->sum_t, sum_nn = f->sum_nn, sum_nt = f->sum_nt;
    for (int i = 0; i < 2; i++) {
        double at = i ? 2 * n : n / 2, says = shape.fixed_ns + shape.row_ns * at;
        w += trust;
        sum_n += trust * at;
        sum_t += trust * says;
        sum_nn += trust * at * at;
        sum_nt += trust * at * says;
    }
    double row = (w * sum_nt - sum_n * sum_t) / (w * sum_nn - sum_n * sum_n);
    row = row < 0 ? 0 : row;
    double fixed = (sum_t - row * sum_n) / w;
    if (fixed < 0) { /* through the origin */
        fixed = 0;
        row = t / n;
    }
    f->cost = (plan_cost){.fixed_ns = fixed, .row_ns = row};
}

void plan_fit_start(plan_fit *f, plan_cost first) { *f = (plan_fit){.cost = first, .first = first}; }

void plan_fit_add(plan_fit *f, size_t rows, double ns)
{
    if (!rows || !(ns >= 0) || ns > 1e15)
        return;
    double n = (double)rows, says = f->cost.fixed_ns + f->cost.row_ns * n;
    if (ns > SURPRISE * says)
        f->surprises = f->surprises > 0 ? f->surprises + 1 : 1;
    else if (ns * SURPRISE < says)
        f->surprises = f->surprises < 0 ? f->surprises - 1 : -1;
    else
        f->surprises = 0;
    if (abs(f->surprises) >= BELIEVED_AFTER) {
        f->weight = f->sum_n = f->sum_t = f->sum_nn = f->sum_nt = 0;
        f->surprises = 0;
    } else if (says > 0 && ns > OUTLIER * says)
        ns = OUTLIER * says;
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
    double slices = rows <= max_rows ? 1 : (double)(rows / max_rows + (rows % max_rows != 0));
    return slices * c.fixed_ns + (double)rows * c.row_ns;
}

/* A worker's slices in turn, after what it is busy with already. */
typedef struct lane {
    plan_cost cost;
    double busy_ns;
    size_t max_rows;
} lane;

static double lane_end(const lane *l, size_t rows) { return l->busy_ns + cost_of(l->cost, rows, l->max_rows); }

/* How many rows are done by some moment, when exactly, and when one row more would be. */
typedef struct progress {
    size_t rows;
    double end_ns, next_ns; /* next_ns: INFINITY when all rows are done */
} progress;

static progress progress_at(const lane *l, size_t n, size_t rows)
{
    return (progress){
        .rows = n, .end_ns = n ? lane_end(l, n) : -INFINITY, .next_ns = n < rows ? lane_end(l, n + 1) : INFINITY};
}

/* For costs so far apart that a division loses its digits. */
static progress search_within(const lane *l, double ns, size_t rows)
{
    size_t low = 0, high = rows;
    while (low < high) {
        size_t n = low + (high - low + 1) / 2;
        if (lane_end(l, n) <= ns)
            low = n;
        else
            high = n - 1;
    }
    return progress_at(l, low, rows);
}

/* Most rows, at most `rows`, that are done within `ns`: reckoned by division, then put right by lane_end, since the cut
 * compares nothing but what that says. */
static progress rows_within(const lane *l, double ns, size_t rows)
{
    double left = ns - l->busy_ns, fixed = l->cost.fixed_ns, row = l->cost.row_ns, most = (double)l->max_rows;
    left = left > 0 ? left : 0;
    double full = fixed + most * row, slices = left / full; /* conversions for floor: faster where that is a call */
    slices = slices * most < (double)rows ? (double)(int64_t)slices : (double)(rows / l->max_rows);
    double rest = left - slices * full - fixed;
    double part = rest < 0 ? 0 : rest < most * row ? (double)(int64_t)(rest / row) : most;
    double guess = slices * most + part;
    progress p = progress_at(l, guess < (double)rows ? (size_t)guess : rows, rows);
    if (p.end_ns > ns)
        p = progress_at(l, p.rows - 1, rows);
    else if (p.next_ns <= ns)
        p = progress_at(l, p.rows + 1, rows);
    return p.end_ns <= ns && p.next_ns > ns ? p : search_within(l, ns, rows);
}

/* What a cut is made of; costs that are not usable have been marked. */
typedef struct cut {
    const plan_cost *costs;
    const double *busy_ns;
    size_t count, rows, step, max_rows;
} cut;

static bool usable(plan_cost c)
{
    return c.fixed_ns >= 0 && c.row_ns >= 0 && isfinite(c.fixed_ns) && isfinite(c.row_ns);
}

/* False for a worker that gets nothing. */
static bool lane_of(const cut *c, size_t w, lane *l)
{
    *l = (lane){.cost = c->costs[w], .busy_ns = c->busy_ns ? c->busy_ns[w] : 0, .max_rows = c->max_rows};
    return usable(l->cost) && isfinite(l->busy_ns);
}

/* What all workers can do within `ns`. */
typedef struct reach {
    double rows;    /* as one number; may be more than the batch has */
    double last_ns; /* when the last of them is done: no later than `ns` */
    double next_ns; /* the first moment after `ns` at which one more row could be done */
    bool enough;    /* the batch can be dealt out: whole steps and one tail */
} reach;

static reach reach_within(const cut *c, double ns)
{
    reach r = {.next_ns = INFINITY};
    size_t steps = 0, whole = c->rows / c->step, tail = c->rows % c->step;
    bool tail_fits = false;
    for (size_t w = 0; w < c->count; w++) {
        lane l;
        if (!lane_of(c, w, &l))
            continue;
        progress p = rows_within(&l, ns, c->rows);
        r.rows += (double)p.rows;
        r.last_ns = p.end_ns > r.last_ns ? p.end_ns : r.last_ns;
        r.next_ns = p.next_ns < r.next_ns ? p.next_ns : r.next_ns;
        steps += c->step == 1 ? p.rows : p.rows / c->step;
        tail_fits |= tail && p.rows % c->step >= tail;
    }
    r.enough = steps > whole || (steps == whole && (!tail || tail_fits));
    return r;
}

/* The least time within which the batch can be done. Each trial moves an end of the bracket to a moment at which some
 * worker finishes a row, so the search ends on the exact one. `high` is enough. */
static double least_time(const cut *c, double high)
{
    reach top = reach_within(c, high);
    double low = 0, low_rows = 0;
    high = top.last_ns < high && top.enough ? top.last_ns : high;
    for (int i = 0; i < 200 && low < high; i++) {
        /* The reach is nearly linear in time: interpolate, and halve now and then in case it is not. */
        double part = 0.5, span = top.rows - low_rows;
        if (i % 3 != 2 && span > 0)
            part = ((double)c->rows - low_rows) / span;
        part = part < 0.001 ? 0.001 : part > 0.999 ? 0.999 : part;
        double at = low + (high - low) * part;
        if (!(at > low && at < high))
            at = low;
        reach middle = reach_within(c, at);
        if (middle.enough) {
            top = middle;
            high = middle.last_ns < at ? middle.last_ns : at;
        } else {
            low = middle.next_ns;
            low_rows = middle.rows;
        }
    }
    return high;
}

/* Deals the rows out to those who finish them within `ns`, which is enough for all. */
static void deal(const cut *c, double ns, size_t best, size_t *shares)
{
    size_t left = c->rows / c->step * c->step, tail = c->rows - left, spare = best;
    bool found = !tail;
    for (size_t w = 0; w < c->count; w++) {
        lane l;
        if (!lane_of(c, w, &l))
            continue;
        size_t n = rows_within(&l, ns, c->rows).rows;
        size_t whole = n / c->step * c->step;
        shares[w] = whole < left ? whole : left;
        left -= shares[w];
        if (!found && n - shares[w] >= tail) {
            spare = w;
            found = true;
        }
    }
    shares[spare] += left + tail;
}

double plan_cut(const plan_cost *costs, const double *busy_ns, size_t count, size_t rows, size_t step, size_t max_rows,
                size_t *shares)
{
    cut c = {.costs = costs,
             .busy_ns = busy_ns,
             .count = count,
             .rows = rows,
             .step = step ? step : 1,
             .max_rows = max_rows ? max_rows : 1};
    memset(shares, 0, count * sizeof *shares);
    if (!rows || !count)
        return 0;
    double high = INFINITY;
    size_t best = 0;
    for (size_t w = 0; w < count; w++) {
        lane l;
        if (lane_of(&c, w, &l) && lane_end(&l, rows) < high) {
            high = lane_end(&l, rows);
            best = w;
        }
    }
    if (!isfinite(high) || high <= 0) { /* nothing is known: all to one, the planner explores */
        shares[best] = rows;
        return 0;
    }
    double ns = least_time(&c, high);
    deal(&c, ns, best, shares);
    return ns;
}

void plan_even(size_t total, size_t count, size_t *shares)
{
    for (size_t w = 0; w < count; w++)
        shares[w] = total / count + (w < total % count);
}
