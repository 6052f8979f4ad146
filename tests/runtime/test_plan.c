/* The cut against every possible split of small batches, its speed, and the learning of costs. */
#include "runtime/plan.h"

#include "base/clock.h"
#include "base/hash.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MOST_WORKERS 256

/* ---- drawing cases ---------------------------------------------------------------------------------------------- */

typedef struct draws {
    uint64_t seed, count;
} draws;

static double draw(draws *d) { return (double)(hash_mix64(d->seed, d->count++) >> 11) * 0x1p-53; }

static size_t draw_size(draws *d, size_t low, size_t high)
{
    return low + (size_t)(draw(d) * (double)(high - low + 1));
}

static double draw_log(draws *d, double low, double high) { return low * pow(high / low, draw(d)); }

typedef struct cut_case {
    plan_cost costs[MOST_WORKERS];
    double busy[MOST_WORKERS];
    bool has_busy;
    size_t count, rows, step, max_rows;
} cut_case;

static double finish_of(const cut_case *c, size_t w, size_t share)
{
    if (!share)
        return 0;
    size_t slices = (share + c->max_rows - 1) / c->max_rows;
    return (c->has_busy ? c->busy[w] : 0) +
           ((double)slices * c->costs[w].fixed_ns + (double)share * c->costs[w].row_ns);
}

static double finish_of_all(const cut_case *c, const size_t *shares)
{
    double last = 0;
    for (size_t w = 0; w < c->count; w++)
        last = fmax(last, finish_of(c, w, shares[w]));
    return last;
}

/* The least finishing time over all splits in whole steps, one of which may carry the tail. */
static double search(const cut_case *c, size_t w, size_t steps_left, bool tail_left, double so_far, double best)
{
    if (so_far >= best)
        return best;
    size_t tail = c->rows % c->step;
    if (w == c->count)
        return steps_left || tail_left ? best : so_far;
    if (!isfinite(c->costs[w].fixed_ns))
        return search(c, w + 1, steps_left, tail_left, so_far, best);
    for (size_t n = 0; n <= steps_left; n++)
        for (int with = 0; with <= (tail_left ? 1 : 0); with++) {
            double here = finish_of(c, w, n * c->step + (with ? tail : 0));
            best = search(c, w + 1, steps_left - n, tail_left && !with, fmax(so_far, here), best);
        }
    return best;
}

static double best_of_all_splits(const cut_case *c)
{
    return search(c, 0, c->rows / c->step, c->rows % c->step != 0, 0, INFINITY);
}

static cut_case draw_case(draws *d)
{
    cut_case c = {.count = draw_size(d, 1, 4), .rows = draw_size(d, 1, 24), .has_busy = draw(d) < 0.4};
    c.step = draw(d) < 0.5 ? 1 : draw_size(d, 1, 6);
    c.max_rows = draw(d) < 0.4 ? 1000000 : draw_size(d, 1, 9);
    bool whole_numbers = draw(d) < 0.3; /* ties */
    for (size_t w = 0; w < c.count; w++) {
        c.costs[w] = (plan_cost){.fixed_ns = draw_log(d, 1e3, 5e6), .row_ns = draw_log(d, 1e3, 1e6)};
        c.busy[w] = draw(d) < 0.5 ? 0 : draw_log(d, 1e3, 1e7);
        if (whole_numbers)
            c.costs[w] = (plan_cost){.fixed_ns = (double)draw_size(d, 0, 3), .row_ns = (double)draw_size(d, 1, 3)};
        if (draw(d) < 0.05)
            c.costs[w].row_ns = 0;
        if (w && draw(d) < 0.1)
            c.costs[w] = (plan_cost){.fixed_ns = INFINITY, .row_ns = INFINITY};
    }
    return c;
}

static void describe(const cut_case *c, const size_t *shares)
{
    print_error("rows %zu, step %zu, max_rows %zu\n", c->rows, c->step, c->max_rows);
    for (size_t w = 0; w < c->count; w++)
        print_error("  worker %zu: fixed %.17g row %.17g busy %.17g -> %zu rows\n", w, c->costs[w].fixed_ns,
                    c->costs[w].row_ns, c->has_busy ? c->busy[w] : 0, shares[w]);
}

static void check_shares(const cut_case *c, const size_t *shares)
{
    size_t sum = 0, odd = 0;
    for (size_t w = 0; w < c->count; w++) {
        sum += shares[w];
        odd += shares[w] % c->step != 0;
        if (!isfinite(c->costs[w].fixed_ns))
            assert_int_equal(shares[w], 0);
    }
    if (sum != c->rows || odd > 1)
        describe(c, shares);
    assert_int_equal(sum, c->rows);
    assert_in_range(odd, 0, 1);
}

/* ---- the cut ---------------------------------------------------------------------------------------------------- */

static void the_cut_is_the_best_of_all_splits(void **state)
{
    (void)state;
    draws d = {.seed = 20260};
    for (int i = 0; i < 20000; i++) {
        cut_case c = draw_case(&d);
        size_t shares[4];
        double said = plan_cut(c.costs, c.has_busy ? c.busy : NULL, c.count, c.rows, c.step, c.max_rows, shares);
        check_shares(&c, shares);
        double got = finish_of_all(&c, shares), best = best_of_all_splits(&c);
        if (got > best * (1 + 1e-12) || said < got * (1 - 1e-12)) {
            describe(&c, shares);
            fail_msg("case %d: finishes at %.17g (said %.17g), the best split at %.17g", i, got, said, best);
        }
        if (c.step == 1 && said > got * (1 + 1e-12)) {
            describe(&c, shares);
            fail_msg("case %d: said %.17g, finishes at %.17g", i, said, got);
        }
    }
}

static void the_largest_cut_is_exact_and_quick(void **state)
{
    (void)state;
    static cut_case c;
    static size_t shares[MOST_WORKERS];
    draws d = {.seed = 7};
    double quickest_us = INFINITY;
    for (int i = 0; i < 200; i++) {
        c = (cut_case){.count = MOST_WORKERS, .rows = 10000000, .step = i % 2 ? 1 : 32};
        c.max_rows = i % 4 < 2 ? 10000000 : 4096;
        for (size_t w = 0; w < c.count; w++)
            c.costs[w] = (plan_cost){.fixed_ns = draw_log(&d, 1e4, 5e6), .row_ns = draw_log(&d, 1e3, 1e6)};
        int64_t start = clock_now_ns();
        double ns = plan_cut(c.costs, NULL, c.count, c.rows, c.step, c.max_rows, shares);
        quickest_us = fmin(quickest_us, (double)(clock_now_ns() - start) / 1e3);
        check_shares(&c, shares);
        assert_true(finish_of_all(&c, shares) <= ns * (1 + 1e-12));
        /* Nobody could take one step more within a little less: all who work end within one step of the last. */
        for (size_t w = 0; w < c.count && c.step == 1; w++)
            assert_true(finish_of(&c, w, shares[w] + 1) >= ns * (1 - 1e-12) || shares[w] + 1 > c.rows ||
                        w + 1 == c.count || shares[w + 1] == 0);
    }
    print_message("256 workers, 10^7 rows: %.1f us\n", quickest_us);
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(quickest_us < 500); /* measured 50 to 60; the rest is for machines that are slow or busy */
#endif
}

static void the_edges_of_the_cut(void **state)
{
    (void)state;
    size_t shares[3];
    plan_cost equal[3] = {{100, 10}, {100, 10}, {100, 10}};
    assert_true(plan_cut(equal, NULL, 3, 0, 1, 8, shares) == 0);
    assert_int_equal(shares[0] + shares[1] + shares[2], 0);
    plan_cost nothing[3] = {{0, 0}, {0, 0}, {0, 0}}; /* nothing known: still every row is dealt */
    plan_cut(nothing, NULL, 3, 7, 1, 8, shares);
    assert_int_equal(shares[0] + shares[1] + shares[2], 7);
    plan_cost dead[3] = {{INFINITY, INFINITY}, {NAN, 1}, {1, INFINITY}};
    plan_cut(dead, NULL, 3, 7, 1, 8, shares);
    assert_int_equal(shares[0] + shares[1] + shares[2], 7);
    plan_cost last[3] = {{INFINITY, INFINITY}, {NAN, 1}, {1, 1}};
    assert_true(plan_cut(last, NULL, 3, 7, 1, 8, shares) == 8);
    assert_int_equal(shares[2], 7);
    assert_true(plan_cut(equal, NULL, 3, 9, 1, SIZE_MAX, shares) == 130);
    assert_int_equal(shares[0], 3);
    double busy[3] = {0, 1e9, INFINITY}; /* those with work queued are left alone */
    assert_true(plan_cut(equal, busy, 3, 9, 1, 100, shares) == 190);
    assert_int_equal(shares[0], 9);
    /* A row cost too small to be seen beside the fixed one. */
    plan_cost tiny[3] = {{1e6, 1e-20}, {1e6, 1e-13}, {1e6, 1e-300}};
    plan_cut(tiny, NULL, 3, 1000000, 1, 1000000, shares);
    assert_int_equal(shares[0] + shares[1] + shares[2], 1000000);
}

static void even_shares_spread_the_remainder(void **state)
{
    (void)state;
    size_t shares[5];
    plan_even(17, 5, shares);
    static const size_t want[5] = {4, 4, 3, 3, 3};
    assert_memory_equal(shares, want, sizeof want);
    plan_even(2, 5, shares);
    static const size_t few[5] = {1, 1, 0, 0, 0};
    assert_memory_equal(shares, few, sizeof few);
}

/* ---- learning --------------------------------------------------------------------------------------------------- */

static double error_at(const plan_fit *f, plan_cost truth, size_t rows)
{
    double want = truth.fixed_ns + truth.row_ns * (double)rows;
    return fabs(f->cost.fixed_ns + f->cost.row_ns * (double)rows - want) / want;
}

static void two_sizes_give_both_costs(void **state)
{
    (void)state;
    draws d = {.seed = 99};
    for (int i = 0; i < 200; i++) {
        plan_cost truth = {.fixed_ns = draw_log(&d, 1e4, 5e6), .row_ns = draw_log(&d, 1e3, 1e6)};
        plan_fit f;
        plan_fit_start(&f, (plan_cost){.fixed_ns = truth.fixed_ns * draw_log(&d, 0.5, 2),
                                       .row_ns = truth.row_ns * draw_log(&d, 0.5, 2)});
        double before = fmax(error_at(&f, truth, 8), error_at(&f, truth, 64));
        for (int k = 0; k < 30; k++) {
            size_t rows = k % 2 ? 8 : 64;
            plan_fit_add(&f, rows, truth.fixed_ns + truth.row_ns * (double)rows);
        }
        for (size_t rows = 8; rows <= 64; rows += 8)
            assert_true(error_at(&f, truth, rows) < 0.02 + 0.1 * before);
    }
}

static void one_size_scales_what_was_known(void **state)
{
    (void)state;
    plan_fit f;
    plan_fit_start(&f, (plan_cost){.fixed_ns = 1000, .row_ns = 100});
    for (int k = 0; k < 40; k++)
        plan_fit_add(&f, 10, 4000);
    assert_true(fabs(f.cost.fixed_ns - 2000) < 20 && fabs(f.cost.row_ns - 200) < 2);
}

static void one_outlier_counts_little_and_three_are_believed(void **state)
{
    (void)state;
    plan_fit f;
    plan_fit_start(&f, (plan_cost){.fixed_ns = 1000, .row_ns = 100});
    for (int k = 0; k < 40; k++)
        plan_fit_add(&f, 10, 2000);
    plan_fit_add(&f, 10, 1e9);
    assert_true(f.cost.fixed_ns + 10 * f.cost.row_ns < 2000 * 1.3);
    for (int k = 0; k < 40; k++)
        plan_fit_add(&f, 10, 2000);
    for (int k = 0; k < 3; k++)
        plan_fit_add(&f, 10, 200000);
    assert_true(fabs(f.cost.fixed_ns + 10 * f.cost.row_ns - 200000) < 2000);
    plan_fit_add(&f, 10, 1e9); /* after that, one is an outlier again */
    assert_true(f.cost.fixed_ns + 10 * f.cost.row_ns < 200000 * 4);
}

static void nonsense_is_not_learnt(void **state)
{
    (void)state;
    plan_fit f;
    plan_fit_start(&f, (plan_cost){.fixed_ns = 1000, .row_ns = 100});
    plan_fit_add(&f, 0, 5);
    plan_fit_add(&f, 10, -1);
    plan_fit_add(&f, 10, NAN);
    plan_fit_add(&f, 10, INFINITY);
    plan_fit_add(&f, 10, 1e16);
    assert_true(f.cost.fixed_ns == 1000 && f.cost.row_ns == 100);
    draws d = {.seed = 3};
    for (int i = 0; i < 10000; i++) {
        plan_fit_add(&f, draw_size(&d, 1, 1000), draw(&d) < 0.1 ? 0 : draw_log(&d, 1, 1e14));
        assert_true(f.cost.fixed_ns >= 0 && f.cost.row_ns >= 0 && isfinite(f.cost.fixed_ns) && isfinite(f.cost.row_ns));
    }
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_cut_is_the_best_of_all_splits),
        cmocka_unit_test(the_largest_cut_is_exact_and_quick),
        cmocka_unit_test(the_edges_of_the_cut),
        cmocka_unit_test(even_shares_spread_the_remainder),
        cmocka_unit_test(two_sizes_give_both_costs),
        cmocka_unit_test(one_size_scales_what_was_known),
        cmocka_unit_test(one_outlier_counts_little_and_three_are_believed),
        cmocka_unit_test(nonsense_is_not_learnt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
