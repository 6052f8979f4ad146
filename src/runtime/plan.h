/*
 * Which worker gets how many rows of a batch. Pure arithmetic, no threads, no clocks: everything is passed in.
 *
 * A worker's cost of a slice of n rows is fixed + n * row (ns), learnt from the probe and then from every slice.
 * The cut minimises the time at which the last worker finishes. What a model of costs cannot know (workers that slow
 * each other down, wake-ups) is learnt from whole batches: the best single device and the cut compete, and the one
 * with the lower measured time wins; the loser is tried again, more and more rarely.
 */
#ifndef DPI_RUNTIME_PLAN_H
#define DPI_RUNTIME_PLAN_H

#include <dpinfer/dpinfer.h>

typedef struct plan_cost {
    double fixed_ns, row_ns;
} plan_cost;

/* Learns fixed and row cost from (rows, ns) samples: exponentially forgetting least squares, robust against outliers
 * (a sample of more than 4 times the prediction counts as 4 times; three in a row that are off by half, the same way,
 * are believed, and what was before is forgotten). Where sizes hardly differ the first cost's shape is kept. */
typedef struct plan_fit {
    double weight, sum_n, sum_t, sum_nn, sum_nt; /* of the samples, decayed */
    plan_cost cost, first;
    int surprises; /* in a row: > 0 too slow, < 0 too fast */
} plan_fit;
void plan_fit_start(plan_fit *fit, plan_cost first);
void plan_fit_add(plan_fit *fit, size_t rows, double ns);

/* The exact cut: shares[w] rows for each of `count` workers (0: none) so that max over used workers of
 * busy_ns[w] + fixed + share * row is least; busy_ns (may be NULL) is work that a worker has queued already.
 * Shares are multiples of `step` except for one, the batch's tail (step 1: free). A worker whose cost is not finite
 * gets nothing. Slices of at most `max_rows` rows: the fixed cost counts once per slice. Returns the predicted ns. */
double plan_cut(const plan_cost *costs, const double *busy_ns, size_t count, size_t rows, size_t step, size_t max_rows,
                size_t *shares);

/* Fixed splits: even shares of `total` rows per round, the remainder spread over the first; or the given list. */
void plan_even(size_t total, size_t count, size_t *shares);

typedef struct planner planner;                             /* adaptive: one per session; the caller serialises calls */
planner *planner_new(size_t count, const plan_cost *first); /* NULL when out of memory */
void planner_free(planner *p);
/* Shares for the next batch; *choice is to be handed back to planner_measured. `step` and `max_rows` as above. */
void planner_next(planner *p, const double *busy_ns, size_t rows, size_t step, size_t max_rows, size_t *shares,
                  int *choice);
/* A slice of worker w took ns for rows. */
void planner_slice(planner *p, size_t w, size_t rows, double ns);
/* A whole batch that ran alone (nothing else in flight) took ns from submit to finish under this choice. */
void planner_measured(planner *p, int choice, size_t rows, double ns);
plan_cost planner_cost(const planner *p, size_t w);
/* Worker w is gone (or back): it gets nothing until then. What was learnt of whole batches is forgotten, for they ran
 * on other workers; what slices cost is kept. */
void planner_enable(planner *p, size_t w, bool enabled);
/* `more` new workers, numbered behind the others; false when out of memory, with nothing changed. */
bool planner_add(planner *p, const plan_cost *first, size_t more);

#endif
