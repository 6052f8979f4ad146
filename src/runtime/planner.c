/*
 * The adaptive plan. Candidates for each class of batch sizes (powers of two):
 *     0..count-1   one device alone
 *     count        the cut by learnt costs
 *     count + 1    even shares
 * Each is measured as whole batches (only those that ran alone in the session). The best by its recent measurements is
 * used; others are tried again when enough time has been spent since, so that trying costs at most about
 * EXPLORE_SHARE of all time: a loser five times as slow comes back five times as rarely (an idea from the
 * epsilon-greedy bandits, with the regret of a trial as its price; Sutton and Barto, Reinforcement Learning, ch. 2).
 */
#include "runtime/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CLASSES 33
#define EXPLORE_SHARE 0.02
#define FIRST_TRIALS 2 /* of each candidate that the costs do not rule out */
#define RULED_OUT 3.0  /* times the best prediction */
#define KEEP 0.7       /* weight of the old estimate */

typedef struct candidate {
    double ns_per_row; /* recent; 0: never measured */
    unsigned trials;
    double debt_ns;    /* what trying it again would cost, still to be saved up */
} candidate;

typedef struct size_class {
    candidate *candidates;
} size_class;

struct planner {
    size_t count;
    plan_fit *fits;
    plan_cost *costs; /* scratch of planner_next */
    bool *enabled;
    size_class classes[CLASSES];
};

planner *planner_new(size_t count, const plan_cost *first)
{
    planner *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->count = count;
    p->fits = calloc(count, sizeof *p->fits);
    p->enabled = calloc(count, sizeof *p->enabled);
    p->costs = calloc(count, sizeof *p->costs);
    if (!p->fits || !p->enabled || !p->costs) {
        planner_free(p);
        return NULL;
    }
    for (size_t w = 0; w < count; w++) {
        plan_fit_start(&p->fits[w], first[w]);
        p->enabled[w] = true;
    }
    return p;
}

void planner_free(planner *p)
{
    if (!p)
        return;
    for (int i = 0; i < CLASSES; i++)
        free(p->classes[i].candidates);
    free(p->fits);
    free(p->costs);
    free(p->enabled);
    free(p);
}

static candidate *candidates_for(planner *p, size_t rows)
{
    int class = rows ? 64 - __builtin_clzll(rows) : 0;
    size_class *c = &p->classes[class < CLASSES ? class : CLASSES - 1];
    if (!c->candidates)
        c->candidates = calloc(p->count + 2, sizeof *c->candidates);
    return c->candidates;
}

static plan_cost cost_now(const planner *p, size_t w)
{
    return p->enabled[w] ? p->fits[w].cost : (plan_cost){.fixed_ns = INFINITY, .row_ns = INFINITY};
}

static double alone_ns(plan_cost c, size_t rows, size_t max_rows)
{
    return (double)((rows + max_rows - 1) / max_rows) * c.fixed_ns + (double)rows * c.row_ns;
}

/* What the costs say of candidate i. */
static double predict(const planner *p, size_t i, size_t rows, size_t max_rows, const double *busy_ns, double cut_ns)
{
    if (i == p->count)
        return cut_ns;
    double worst = 0;
    for (size_t w = 0; w < p->count; w++) {
        size_t share = i < p->count ? (w == i ? rows : 0) : rows / p->count + (w < rows % p->count);
        double ns = share ? alone_ns(cost_now(p, w), share, max_rows) + (busy_ns ? busy_ns[w] : 0) : 0;
        worst = ns > worst ? ns : worst;
    }
    return worst;
}

/* The candidate to use: an untried one that is not ruled out, one whose debt is paid, or else the best. */
static size_t choose(planner *p, candidate *list, size_t rows, size_t max_rows, double cut_ns)
{
    size_t best = p->count, total = p->count + 2;
    double best_ns = INFINITY;
    for (size_t i = 0; i < total; i++)
        if (list[i].trials && list[i].ns_per_row < best_ns) {
            best_ns = list[i].ns_per_row;
            best = i;
        }
    /* The cut stands for the costs: first of all, it sets the scale by which others are ruled out. */
    if (list[p->count].trials < FIRST_TRIALS)
        return p->count;
    for (size_t i = 0; i < total; i++) {
        double predicted = predict(p, i, rows, max_rows, NULL, cut_ns);
        if (i == best || !isfinite(predicted))
            continue;
        if (!list[i].trials && predicted > RULED_OUT * cut_ns)
            continue;
        if (list[i].trials < FIRST_TRIALS && (!list[i].trials || list[i].ns_per_row < 1.5 * best_ns))
            return i;
        if (list[i].trials >= FIRST_TRIALS && list[i].debt_ns <= 0)
            return i;
    }
    if (best < p->count && !p->enabled[best])
        return p->count;
    return best;
}

void planner_next(planner *p, const double *busy_ns, size_t rows, size_t step, size_t max_rows, size_t *shares,
                  int *choice)
{
    plan_cost *costs = p->costs;
    bool idle = true;
    for (size_t w = 0; w < p->count; w++) {
        costs[w] = cost_now(p, w);
        idle &= !busy_ns || busy_ns[w] <= 0;
    }
    double cut_ns = plan_cut(costs, busy_ns, p->count, rows, step, max_rows, shares);
    candidate *list = idle && p->count > 1 && rows > 1 ? candidates_for(p, rows) : NULL;
    *choice = -1; /* other work is in flight: the cut, which knows of it; nothing is learnt about the batch as a whole */
    if (!list)
        return;
    size_t i = choose(p, list, rows, max_rows, cut_ns);
    *choice = (int)i;
    if (i == p->count)
        return;
    memset(shares, 0, p->count * sizeof *shares);
    if (i < p->count) {
        shares[i] = rows;
        return;
    }
    size_t steps = (rows + step - 1) / step, given = 0;
    for (size_t w = 0; w < p->count; w++) {
        size_t n = (steps / p->count + (w < steps % p->count)) * step;
        shares[w] = n < rows - given ? n : rows - given;
        given += shares[w];
    }
}

void planner_slice(planner *p, size_t w, size_t rows, double ns) { plan_fit_add(&p->fits[w], rows, ns); }

void planner_measured(planner *p, int choice, size_t rows, double ns)
{
    candidate *list = choice >= 0 && rows ? candidates_for(p, rows) : NULL;
    if (!list)
        return;
    candidate *c = &list[choice];
    double each = ns / (double)rows;
    /* A batch that was disturbed says little: count it as at most twice what was known. */
    if (c->trials && each > 2 * c->ns_per_row)
        each = 2 * c->ns_per_row;
    c->ns_per_row = c->trials ? KEEP * c->ns_per_row + (1 - KEEP) * each : each;
    c->trials++;
    double best = INFINITY;
    for (size_t i = 0; i < p->count + 2; i++)
        if (list[i].trials && list[i].ns_per_row < best)
            best = list[i].ns_per_row;
    double regret = (c->ns_per_row - best) * (double)rows;
    /* Close rivals are compared now and then for next to nothing; a floor keeps them from alternating. */
    c->debt_ns = regret > 0 ? regret / EXPLORE_SHARE + 20 * ns : 20 * ns;
    for (size_t i = 0; i < p->count + 2; i++)
        if (i != (size_t)choice)
            list[i].debt_ns -= ns;
}

plan_cost planner_cost(const planner *p, size_t w) { return p->fits[w].cost; }

void planner_enable(planner *p, size_t w, bool enabled) { p->enabled[w] = enabled; }
