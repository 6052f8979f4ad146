/*
 * The adaptive plan. Candidates for each class of batch sizes (powers of two):
 *     0..count-1       one device alone
 *     count            the cut by learnt costs
 *     count + 1        even shares
 *     count + 2        the cut, with hope for those that it leaves out: their costs may have been learnt at a bad
 * moment count + 3 + j    the cut over the subset_sizes[j] workers that the cut gives most: where workers slow each
 * other down, or waking one is dear, fewer may be faster Each is measured as whole batches (only those that ran alone
 * in the session). The best by its recent measurements is used; others are tried again when enough time has been spent
 * since, so that trying costs at most about EXPLORE_SHARE of all time: a loser five times as slow comes back five times
 * as rarely (an idea from the epsilon-greedy bandits, with the regret of a trial as its price; Sutton and Barto,
 * Reinforcement Learning, ch. 2).
 *
 * Costs are learnt twice for each worker: from batches that it computed alone, and from those that it shared, because
 * workers that run at once slow each other down. tests/runtime/test_planner.c shows what comes of it.
 */
#include "runtime/plan.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CLASSES       33
#define EXPLORE_SHARE 0.02
#define FIRST_TRIALS  2    /* of each candidate that the costs do not rule out */
#define RULED_OUT     3.0  /* times the best: predicted so, a candidate is not tried at all */
#define HOPELESS      2.0  /* times the best: measured so, its next trial has to be saved up for */
#define SINGLES_TRIED 3    /* the best by prediction */
#define RECHECK       20.0 /* batches until a candidate that was ruled out is looked at again */
#define KEEP          0.7  /* weight of the old estimate */
#define HOPE          0.5  /* of the learnt cost, for workers that the cut leaves out */
#define UNKNOWN                                                                                                        \
    0.4 /* of the probe's cost, at first, for workers with fewer than KNOWN_AFTER slices: so they get some */
#define KNOWN_AFTER 2

static const size_t subset_sizes[] = {2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192};
#define SUBSETS (sizeof subset_sizes / sizeof subset_sizes[0])

typedef struct candidate {
    double ns;       /* recent time of a batch of `rows` rows */
    double scale_ns; /* what costs said then of such a batch: translates to other sizes of the class */
    size_t rows;
    unsigned trials;
    double debt_ns; /* what trying it (again) would cost, still to be saved up */
    bool absent;    /* it has nothing to deal out for the current question */
} candidate;

typedef struct learnt {
    plan_fit alone, shared;
    unsigned slices;
    bool enabled;
} learnt;

/* The batch to be planned, and what the costs say of it. */
typedef struct question {
    const double *busy_ns;
    size_t rows, step, max_rows;
    double cut_ns;   /* with hope for unknown workers */
    double scale_ns; /* without */
} question;

struct planner {
    size_t count;
    learnt *workers;
    plan_cost *costs;       /* for the cut of the current question */
    size_t *cut;            /* its shares */
    plan_cost *trial_costs; /* scratch */
    candidate *classes[CLASSES];
    bool alone;      /* the latest batch runs on one worker */
    int pending;     /* its choice, as long as nothing else has been started; else -1 */
    size_t max_rows; /* of the pending one */
};

/* Candidates are numbered, and were measured, by what the workers were. */
static void forget_batches(planner *p)
{
    for (int i = 0; i < CLASSES; i++) {
        free(p->classes[i]);
        p->classes[i] = NULL;
    }
    p->pending = -1;
}

static bool grow(void *array, size_t count, size_t bytes)
{
    void *old, *new;
    memcpy(&old, array, sizeof old);
    new = realloc(old, count * bytes);
    if (new)
        memcpy(array, &new, sizeof new);
    return new != NULL;
}

bool planner_add(planner *p, const plan_cost *first, size_t more)
{
    size_t count = p->count + more;
    if (!grow(&p->workers, count, sizeof *p->workers) || !grow(&p->costs, count, sizeof *p->costs) ||
        !grow(&p->cut, count, sizeof *p->cut) || !grow(&p->trial_costs, count, sizeof *p->trial_costs))
        return false;
    for (size_t w = p->count; w < count; w++) {
        p->workers[w] = (learnt){.enabled = true};
        plan_fit_start(&p->workers[w].alone, first[w - p->count]);
        plan_fit_start(&p->workers[w].shared, first[w - p->count]);
    }
    p->count = count;
    forget_batches(p);
    return true;
}

planner *planner_new(size_t count, const plan_cost *first)
{
    planner *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->pending = -1;
    if (!planner_add(p, first, count)) {
        planner_free(p);
        return NULL;
    }
    return p;
}

void planner_free(planner *p)
{
    if (!p)
        return;
    forget_batches(p);
    free(p->workers);
    free(p->costs);
    free(p->cut);
    free(p->trial_costs);
    free(p);
}

static size_t candidate_count(const planner *p) { return p->count + 3 + SUBSETS; }

static candidate *candidates_for(planner *p, size_t rows)
{
    int class = rows ? 64 - __builtin_clzll(rows) : 0;
    candidate **list = &p->classes[class < CLASSES ? class : CLASSES - 1];
    if (!*list)
        *list = calloc(candidate_count(p), sizeof **list);
    return *list;
}

/* ---- costs ------------------------------------------------------------------------------------------------------ */

static plan_cost scaled(plan_cost c, double by)
{
    return (plan_cost){.fixed_ns = c.fixed_ns * by, .row_ns = c.row_ns * by};
}

/* What is known of a worker that runs alone or not; the other kind of knowledge is better than the probe's. */
static plan_cost cost_of(const planner *p, size_t w, bool alone)
{
    const learnt *l = &p->workers[w];
    if (!l->enabled)
        return (plan_cost){.fixed_ns = INFINITY, .row_ns = INFINITY};
    const plan_fit *fit = alone ? &l->alone : &l->shared, *other = alone ? &l->shared : &l->alone;
    return fit->weight > 0 || other->weight <= 0 ? fit->cost : other->cost;
}

static double run_ns(plan_cost c, size_t rows, size_t max_rows)
{
    return (double)(rows / max_rows + (rows % max_rows != 0)) * c.fixed_ns + (double)rows * c.row_ns;
}

/* ---- what a candidate deals out --------------------------------------------------------------------------------- */

static double single_shares(const planner *p, const question *q, size_t w, size_t *shares)
{
    memset(shares, 0, p->count * sizeof *shares);
    shares[w] = q->rows;
    return run_ns(cost_of(p, w, true), q->rows, q->max_rows);
}

static double even_shares(const planner *p, const question *q, size_t *shares)
{
    size_t enabled = 0, given = 0, k = 0, steps = (q->rows + q->step - 1) / q->step;
    for (size_t w = 0; w < p->count; w++)
        enabled += p->workers[w].enabled;
    memset(shares, 0, p->count * sizeof *shares);
    if (enabled < 2 || steps < 2)
        return INFINITY;
    double last_ns = 0;
    for (size_t w = 0; w < p->count; w++) {
        if (!p->workers[w].enabled)
            continue;
        assert(enabled > 0);
        size_t n = (steps / enabled + (k++ < steps % enabled)) * q->step;
        shares[w] = n < q->rows - given ? n : q->rows - given;
        given += shares[w];
        double ns = shares[w] ? run_ns(cost_of(p, w, false), shares[w], q->max_rows) : 0;
        last_ns = ns > last_ns ? ns : last_ns;
    }
    return last_ns;
}

static double trial_cut(planner *p, const question *q, size_t *shares)
{
    return plan_cut(p->trial_costs, q->busy_ns, p->count, q->rows, q->step, q->max_rows, shares);
}

static double hopeful_shares(planner *p, const question *q, size_t *shares)
{
    bool left_out = false, other = false;
    for (size_t w = 0; w < p->count; w++) {
        double by = p->cut[w] ? 1 : p->workers[w].slices < KNOWN_AFTER ? UNKNOWN : HOPE;
        p->trial_costs[w] = scaled(cost_of(p, w, false), by);
        left_out |= !p->cut[w] && p->workers[w].enabled;
    }
    if (!left_out)
        return INFINITY;
    double ns = trial_cut(p, q, shares);
    for (size_t w = 0; w < p->count; w++)
        other |= shares[w] && !p->cut[w];
    return other ? ns : INFINITY;
}

/* The least share among the `size` largest of the cut. 0: the cut uses no more workers than that. */
static size_t share_limit(const planner *p, size_t size, size_t *ties)
{
    size_t low = 1, high = SIZE_MAX; /* the largest limit that at least `size` shares reach, by bisection */
    for (size_t used = 0, w = 0; w < p->count; w++) {
        used += p->cut[w] > 0;
        if (w + 1 == p->count && used <= size)
            return 0;
    }
    while (low < high) {
        size_t middle = low + (high - low) / 2 + (high - low) % 2, reached = 0;
        for (size_t w = 0; w < p->count; w++)
            reached += p->cut[w] >= middle;
        if (reached >= size)
            low = middle;
        else
            high = middle - 1;
    }
    *ties = size;
    for (size_t w = 0; w < p->count; w++)
        *ties -= p->cut[w] > low;
    return low;
}

static double subset_shares(planner *p, const question *q, size_t size, size_t *shares)
{
    size_t ties, limit = share_limit(p, size, &ties);
    if (!limit)
        return INFINITY;
    for (size_t w = 0; w < p->count; w++) {
        bool in = p->cut[w] > limit || (p->cut[w] == limit && ties && ties--);
        p->trial_costs[w] = in ? p->costs[w] : (plan_cost){.fixed_ns = INFINITY, .row_ns = INFINITY};
    }
    return trial_cut(p, q, shares);
}

/* Shares of candidate i and what the costs say of them; INFINITY for one that cannot be or is the cut itself. */
static double deal(planner *p, const question *q, size_t i, size_t *shares)
{
    if (i < p->count)
        return single_shares(p, q, i, shares);
    if (i == p->count + 1)
        return even_shares(p, q, shares);
    if (i == p->count + 2)
        return hopeful_shares(p, q, shares);
    if (i > p->count + 2)
        return subset_shares(p, q, subset_sizes[i - p->count - 3], shares);
    memcpy(shares, p->cut, p->count * sizeof *shares);
    return q->cut_ns;
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

/* What the costs say of the cut. */
static double cut_says(const planner *p, size_t max_rows)
{
    size_t used = 0;
    double last_ns = 0;
    for (size_t w = 0; w < p->count; w++)
        used += p->cut[w] > 0;
    for (size_t w = 0; w < p->count; w++) {
        double ns = p->cut[w] ? run_ns(cost_of(p, w, used == 1), p->cut[w], max_rows) : 0;
        last_ns = ns > last_ns ? ns : last_ns;
    }
    return last_ns;
}

static double single_says(const planner *p, size_t w, size_t rows, size_t max_rows)
{
    return run_ns(cost_of(p, w, true), rows, max_rows);
}

/* A candidate's time for a batch of `rows` rows. Other than a device alone or even shares, the cut moves with the
 * costs: what was measured is a multiple of what they promised. */
static double translate(const planner *p, size_t i, const candidate *c, size_t rows, double scale_ns)
{
    bool fixed = rows == c->rows && i != p->count && i < p->count + 2;
    return fixed || !(c->scale_ns > 0) || !(scale_ns > 0) ? c->ns : c->ns * scale_ns / c->scale_ns;
}

static double estimate(const planner *p, const question *q, size_t i, const candidate *c)
{
    if (!c->trials || c->absent || (i < p->count && !p->workers[i].enabled))
        return INFINITY;
    double scale_ns = i < p->count ? single_says(p, i, q->rows, q->max_rows) : q->scale_ns;
    return translate(p, i, c, q->rows, scale_ns);
}

/* The same with hope for a worker whose cost only the probe knows. */
static double single_may(const planner *p, size_t w, const question *q)
{
    return single_says(p, w, q->rows, q->max_rows) * (p->workers[w].slices < KNOWN_AFTER ? UNKNOWN : 1);
}

/* Whether worker i may be among the best to compute the batch alone. */
static bool is_good_single(const planner *p, const question *q, size_t i)
{
    double own = single_may(p, i, q);
    size_t better = 0;
    for (size_t w = 0; w < p->count && better < SINGLES_TRIED; w++) {
        double ns = single_may(p, w, q);
        better += ns < own || (ns == own && w < i);
    }
    return better < SINGLES_TRIED;
}

/* Whether candidate i is to be measured now. One that the costs rule out is looked at again after a while. */
static bool is_due(planner *p, const question *q, size_t i, candidate *c, double best_ns, size_t *shares)
{
    if (c->trials && c->trials < FIRST_TRIALS && estimate(p, q, i, c) < HOPELESS * best_ns)
        return isfinite(deal(p, q, i, shares));
    if (c->debt_ns > 0)
        return false;
    double limit = RULED_OUT * (best_ns > q->cut_ns ? best_ns : q->cut_ns);
    if (i == p->count + 2)
        limit = best_ns; /* hope has to promise something */
    double ns = i < p->count && !c->trials && !is_good_single(p, q, i) ? INFINITY : deal(p, q, i, shares);
    if (isfinite(ns) && ((c->trials && i != p->count + 2) || ns <= limit))
        return true;
    c->debt_ns = RECHECK * best_ns;
    return false;
}

static size_t best_of(const planner *p, const question *q, const candidate *list, double *best_ns)
{
    size_t best = p->count;
    *best_ns = INFINITY;
    for (size_t i = 0; i < candidate_count(p); i++) {
        double ns = estimate(p, q, i, &list[i]);
        if (ns < *best_ns) {
            *best_ns = ns;
            best = i;
        }
    }
    return best;
}

/* The candidate to use and its shares: one that is due, or else the best. */
static size_t choose(planner *p, const question *q, candidate *list, size_t *shares)
{
    double best_ns;
    for (size_t i = 0; i < candidate_count(p); i++)
        list[i].absent = false;
    size_t best = best_of(p, q, list, &best_ns);
    while (best != p->count && !isfinite(deal(p, q, best, shares))) {
        list[best].absent = true;
        best = best_of(p, q, list, &best_ns);
    }
    /* The cut stands for the costs: first of all, it sets the scale by which others are ruled out. */
    if (list[p->count].trials >= FIRST_TRIALS) {
        for (size_t i = 0; i < candidate_count(p); i++)
            if (i != best && is_due(p, q, i, &list[i], best_ns, shares))
                return i;
    } else
        best = p->count;
    deal(p, q, best, shares);
    return best;
}

void planner_next(planner *p, const double *busy_ns, size_t rows, size_t step, size_t max_rows, size_t *shares,
                  int *choice)
{
    question q = {.busy_ns = busy_ns, .rows = rows, .step = step ? step : 1, .max_rows = max_rows ? max_rows : 1};
    bool idle = true;
    for (size_t w = 0; w < p->count; w++)
        idle &= !busy_ns || busy_ns[w] <= 0;
    candidate *list = idle && p->count > 1 && rows ? candidates_for(p, rows) : NULL;
    bool hope = !list || list[p->count].trials < FIRST_TRIALS;
    for (size_t w = 0; w < p->count; w++)
        p->costs[w] = scaled(cost_of(p, w, false), hope && p->workers[w].slices < KNOWN_AFTER ? UNKNOWN : 1);
    q.cut_ns = plan_cut(p->costs, busy_ns, p->count, rows, q.step, q.max_rows, p->cut);
    q.scale_ns = cut_says(p, q.max_rows);
    if (list)
        *choice = (int)choose(p, &q, list, shares);
    else { /* other work is in flight: the cut, which knows of it; nothing is learnt about the batch as a whole */
        *choice = -1;
        deal(p, &q, p->count, shares);
    }
    size_t used = 0;
    for (size_t w = 0; w < p->count; w++)
        used += shares[w] > 0;
    p->alone = idle && used == 1;
    p->pending = *choice;
    p->max_rows = q.max_rows;
}

/* ---- learning --------------------------------------------------------------------------------------------------- */

void planner_slice(planner *p, size_t w, size_t rows, double ns)
{
    plan_fit_add(p->alone ? &p->workers[w].alone : &p->workers[w].shared, rows, ns);
    p->workers[w].slices += p->workers[w].slices < KNOWN_AFTER;
}

void planner_measured(planner *p, int choice, size_t rows, double ns)
{
    /* A batch that was joined by another one did not run alone. */
    candidate *list = choice >= 0 && choice == p->pending && rows && ns > 0 ? candidates_for(p, rows) : NULL;
    if (!list)
        return;
    candidate *c = &list[choice];
    /* Its slices have been learnt already. */
    double scale_ns =
        (size_t)choice < p->count ? single_says(p, (size_t)choice, rows, p->max_rows) : cut_says(p, p->max_rows);
    double known = c->trials ? translate(p, (size_t)choice, c, rows, scale_ns) : ns;
    /* A batch that was disturbed says little: count it as at most twice what was known. */
    double seen = ns < 2 * known ? ns : 2 * known;
    /* One that was much faster than thought is believed: nothing disturbs a batch into being fast. */
    double keep = seen < 0.8 * known ? 1 - KEEP : KEEP;
    *c = (candidate){
        .ns = keep * known + (1 - keep) * seen, .scale_ns = scale_ns, .rows = rows, .trials = c->trials + 1};
    double best = INFINITY;
    for (size_t i = 0; i < candidate_count(p); i++)
        if (list[i].trials && list[i].ns / (double)list[i].rows < best)
            best = list[i].ns / (double)list[i].rows;
    double regret = c->ns - best * (double)rows;
    /* Close rivals are compared now and then for next to nothing; a floor keeps them from alternating. */
    c->debt_ns = regret > 0 ? regret / EXPLORE_SHARE + 20 * ns : 20 * ns;
    for (size_t i = 0; i < candidate_count(p); i++)
        if (i != (size_t)choice)
            list[i].debt_ns -= ns;
}

plan_cost planner_cost(const planner *p, size_t w)
{
    const learnt *l = &p->workers[w];
    return l->shared.weight > 0 || l->alone.weight <= 0 ? l->shared.cost : l->alone.cost;
}

void planner_enable(planner *p, size_t w, bool enabled)
{
    p->workers[w].enabled = enabled;
    forget_batches(p);
}
