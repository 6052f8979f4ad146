/*
 * "Adaptive never loses", by simulation: devices with drawn costs, noise, contention and wake-ups; after 20 batches of
 * warm-up the adaptive plan, its trials included, takes at most 1.1 times the best static split of an exhaustive grid.
 * These read no clock: they are the same on every machine. Of 48,000 more cases (seeds 1 to 4) five were over 1.1, the
 * worst at 1.133; the median is 1.005.
 */
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

#define MOST    4
#define WARM_UP 20
#define COUNTED 100
#define NOISE   0.05
#define ALLOWED 1.1

typedef struct draws {
    uint64_t seed, count;
} draws;

static double draw(draws *d) { return (double)(hash_mix64(d->seed, d->count++) >> 11) * 0x1p-53; }

static double draw_log(draws *d, double low, double high) { return low * pow(high / low, draw(d)); }

static double draw_normal(draws *d) { return sqrt(-2 * log(1 - draw(d))) * cos(2 * 3.14159265358979 * draw(d)); }

/* ---- simulated devices ------------------------------------------------------------------------------------------ */

typedef struct machine {
    size_t count, max_rows;
    plan_cost costs[MOST];
    double contention; /* every worker's slow-down when all run at once; in between, in proportion */
    double wake_ns;    /* of the batch, per worker that is used */
    draws noise;
    bool noisy;
} machine;

static double slice_ns(machine *m, size_t w, size_t rows, size_t used)
{
    double slow = m->count > 1 ? 1 + (m->contention - 1) * (double)(used - 1) / (double)(m->count - 1) : 1;
    double ns = (m->costs[w].fixed_ns + (double)rows * m->costs[w].row_ns) * slow;
    return m->noisy ? ns * exp(NOISE * draw_normal(&m->noise)) : ns;
}

/* Time of a batch with these shares; the planner (may be NULL) sees the slices. */
static double run_batch(machine *m, const size_t *shares, planner *p)
{
    size_t used = 0;
    for (size_t w = 0; w < m->count; w++)
        used += shares[w] > 0;
    double last = 0;
    for (size_t w = 0; w < m->count; w++) {
        double end = 0;
        for (size_t left = shares[w], n; left; left -= n) {
            n = left < m->max_rows ? left : m->max_rows;
            double ns = slice_ns(m, w, n, used);
            end += ns;
            if (p)
                planner_slice(p, w, n, ns);
        }
        last = fmax(last, end);
    }
    return last + (double)used * m->wake_ns;
}

/* What probes say: right within some tens of per cent, sometimes far off. */
static planner *start_planner(const machine *m, draws *d)
{
    plan_cost first[MOST];
    for (size_t w = 0; w < m->count; w++) {
        double off = draw(d) < 0.1 ? draw_log(d, 0.33, 3) : draw_log(d, 0.8, 1.25);
        first[w] = (plan_cost){.fixed_ns = m->costs[w].fixed_ns * off * draw_log(d, 0.8, 1.25),
                               .row_ns = m->costs[w].row_ns * off};
    }
    return planner_new(m->count, first);
}

static double adaptive_batch(machine *m, planner *p, size_t rows)
{
    size_t shares[MOST], sum = 0;
    double busy[MOST] = {0};
    int choice;
    planner_next(p, busy, rows, 1, m->max_rows, shares, &choice);
    for (size_t w = 0; w < m->count; w++)
        sum += shares[w];
    assert_int_equal(sum, rows);
    double ns = run_batch(m, shares, p);
    planner_measured(p, choice, rows, ns);
    return ns;
}

/* ---- the best static split -------------------------------------------------------------------------------------- */

/* All splits of `left` rows in multiples of `step` over the workers from w on; for two workers the grid is complete. */
static void search(machine *m, size_t w, size_t left, size_t step, size_t *shares, size_t *best, double *best_ns)
{
    if (w + 1 == m->count) {
        shares[w] = left;
        double ns = run_batch(m, shares, NULL);
        if (ns < *best_ns) {
            *best_ns = ns;
            memcpy(best, shares, m->count * sizeof *best);
        }
        return;
    }
    for (size_t n = 0;; n = n + step < left ? n + step : left) {
        shares[w] = n;
        search(m, w + 1, left - n, step, shares, best, best_ns);
        if (n == left)
            return;
    }
}

/* Mean time of the best static split, in its noise. */
static double best_static(machine *m, size_t rows, size_t *best)
{
    size_t shares[MOST], step = m->count <= 2 ? 1 : m->count == 3 ? rows / 64 + 1 : rows / 24 + 1;
    double best_ns = INFINITY, sum = 0;
    m->noisy = false;
    search(m, 0, rows, step, shares, best, &best_ns);
    m->noisy = true;
    for (int i = 0; i < 400; i++)
        sum += run_batch(m, best, NULL);
    return sum / 400;
}

/* ---- cases ------------------------------------------------------------------------------------------------------ */

static machine draw_machine(draws *d, bool contention, bool wake_ups)
{
    machine m = {
        .count = 1 + (size_t)(draw(d) * 4), .max_rows = draw(d) < 0.5 ? 512 : 64, .contention = 1, .noisy = true};
    m.count = m.count > MOST ? MOST : m.count;
    bool equal = draw(d) < 0.3; /* as the devices of one machine mostly are */
    for (size_t w = 0; w < m.count; w++) {
        m.costs[w] = (plan_cost){.fixed_ns = draw_log(d, 1e4, 5e6), .row_ns = draw_log(d, 1e3, 1e6)};
        if (equal)
            m.costs[w] = m.costs[0];
    }
    if (contention)
        m.contention = 1 + 0.5 * draw(d);
    if (wake_ups)
        m.wake_ns = draw_log(d, 3e3, 1e5);
    m.noise.seed = d->seed ^ (d->count << 20);
    return m;
}

static void describe(const machine *m, size_t rows, const size_t *best)
{
    print_error("%zu rows, max_rows %zu, contention %.3f, wake %.1f us; best static:", rows, m->max_rows, m->contention,
                m->wake_ns / 1e3);
    for (size_t w = 0; w < m->count; w++)
        print_error(" %zu", best[w]);
    print_error("\n");
    for (size_t w = 0; w < m->count; w++)
        print_error("  worker %zu: fixed %.1f us, row %.2f us\n", w, m->costs[w].fixed_ns / 1e3,
                    m->costs[w].row_ns / 1e3);
}

/* The adaptive plan's mean over the counted batches, as a multiple of the best static split's. */
static double ratio_of(machine *m, draws *d, size_t rows, size_t *best)
{
    planner *p = start_planner(m, d);
    assert_non_null(p);
    double sum = 0;
    for (int i = 0; i < WARM_UP + COUNTED; i++) {
        double ns = adaptive_batch(m, p, rows);
        sum += i >= WARM_UP ? ns : 0;
    }
    planner_free(p);
    return sum / COUNTED / best_static(m, rows, best);
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* DPI_PLANNER_SEED and DPI_PLANNER_CASES for longer hunts. */
static uint64_t setting(const char *name, uint64_t usual)
{
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : usual;
}

static void never_loses(bool contention, bool wake_ups)
{
    draws d = {.seed = setting("DPI_PLANNER_SEED", 4711)};
    size_t cases = setting("DPI_PLANNER_CASES", 300), lost = 0;
    double *ratios = calloc(cases, sizeof *ratios);
    for (size_t i = 0; i < cases; i++) {
        machine m = draw_machine(&d, contention, wake_ups);
        size_t rows = (size_t)draw_log(&d, 1, 513), best[MOST];
        ratios[i] = ratio_of(&m, &d, rows, best);
        if (ratios[i] > ALLOWED && ++lost <= 8) {
            print_error("case %zu: %.3f of the best static split\n", i, ratios[i]);
            describe(&m, rows, best);
        }
    }
    qsort(ratios, cases, sizeof *ratios, ascending);
    print_message("seed %llu, %zu cases: adaptive / best static: median %.3f, 95%% %.3f, worst %.3f, over %.1f: %zu\n",
                  (unsigned long long)d.seed, cases, ratios[cases / 2], ratios[cases * 95 / 100], ratios[cases - 1],
                  ALLOWED, lost);
    free(ratios);
    assert_int_equal(lost, 0);
}

static void never_loses_on_independent_devices(void **state)
{
    (void)state;
    never_loses(false, false);
}

static void never_loses_with_contention(void **state)
{
    (void)state;
    never_loses(true, false);
}

static void never_loses_with_wake_ups(void **state)
{
    (void)state;
    never_loses(false, true);
}

static void never_loses_with_both(void **state)
{
    (void)state;
    never_loses(true, true);
}

/* ---- what else a session does to it ----------------------------------------------------------------------------- */

static machine two_workers(plan_cost first, plan_cost second)
{
    return (machine){
        .count = 2, .max_rows = 512, .contention = 1, .costs = {first, second}, .noise = {.seed = 5}, .noisy = true};
}

/* Batches of all sizes in turn: each class learns for itself, costs are shared. */
static void mixed_sizes_do_not_lose(void **state)
{
    (void)state;
    draws d = {.seed = setting("DPI_PLANNER_SEED", 4711)};
    double worst = 0;
    for (int i = 0; i < 60; i++) {
        machine m = draw_machine(&d, i % 2, i % 4 > 1);
        planner *p = start_planner(&m, &d);
        size_t sizes[8], best[MOST];
        double statics[8], sum = 0, want = 0;
        for (int k = 0; k < 8; k++) {
            sizes[k] = (size_t)draw_log(&d, 1, 513);
            statics[k] = best_static(&m, sizes[k], best);
        }
        for (int k = 0; k < 1600; k++) {
            int which = (int)(draw(&d) * 8) % 8;
            double ns = adaptive_batch(&m, p, sizes[which]);
            sum += k >= 400 ? ns : 0;
            want += k >= 400 ? statics[which] : 0;
        }
        planner_free(p);
        worst = fmax(worst, sum / want);
    }
    print_message("batches of 8 sizes in turn: worst %.3f of the best static splits\n", worst);
    assert_true(worst < ALLOWED);
}

/* A device that becomes five times slower, and then itself again: the plan follows within some batches. */
static void a_change_of_speed_is_followed(void **state)
{
    (void)state;
    machine m = two_workers((plan_cost){50e3, 20e3}, (plan_cost){50e3, 20e3});
    draws d = {.seed = 1};
    planner *p = start_planner(&m, &d);
    size_t best[MOST];
    for (int turn = 0; turn < 4; turn++) {
        m.costs[1] = turn % 2 ? (plan_cost){250e3, 100e3} : m.costs[0];
        double want = best_static(&m, 200, best), sum = 0;
        for (int i = 0; i < 150; i++) {
            double ns = adaptive_batch(&m, p, 200);
            sum += i >= 50 ? ns : 0;
        }
        if (sum / 100 > ALLOWED * want)
            fail_msg("turn %d: %.3f of the best static split", turn, sum / 100 / want);
    }
    planner_free(p);
}

static void a_bad_loser_is_hardly_tried_again(void **state)
{
    (void)state;
    machine m = two_workers((plan_cost){10e3, 10e3}, (plan_cost){2e6, 100e3});
    planner *p = planner_new(2, m.costs);
    double busy[2] = {0};
    size_t shares[2], bad = 0;
    for (int i = 0; i < 2000; i++) {
        int choice;
        planner_next(p, busy, 64, 1, 512, shares, &choice);
        bad += i >= WARM_UP && shares[1] > 0;
        planner_measured(p, choice, 64, run_batch(&m, shares, p));
    }
    planner_free(p);
    assert_in_range(bad, 0, 8);
}

static void a_worker_that_is_gone_gets_nothing(void **state)
{
    (void)state;
    draws d = {.seed = 11};
    for (int i = 0; i < 50; i++) {
        machine m = draw_machine(&d, true, true);
        if (m.count < 2)
            continue;
        planner *p = start_planner(&m, &d);
        size_t gone = (size_t)(draw(&d) * (double)m.count) % m.count, shares[MOST];
        for (int k = 0; k < 40; k++)
            adaptive_batch(&m, p, 100);
        planner_enable(p, gone, false);
        for (int k = 0; k < 200; k++) {
            double busy[MOST] = {0};
            int choice;
            busy[0] = k % 3 == 2 ? 1e6 : 0;
            planner_next(p, busy, 100, 1, m.max_rows, shares, &choice);
            assert_int_equal(shares[gone], 0);
            assert_int_equal(choice < 0, k % 3 == 2);
            planner_measured(p, choice, 100, run_batch(&m, shares, p));
        }
        planner_enable(p, gone, true);
        planner_free(p);
    }
}

/* A second batch started before the first one's end: the first one's time says nothing. */
static void a_batch_that_was_joined_is_not_learnt(void **state)
{
    (void)state;
    machine m = two_workers((plan_cost){50e3, 20e3}, (plan_cost){50e3, 20e3});
    planner *p = planner_new(2, m.costs), *twin = planner_new(2, m.costs);
    double idle[2] = {0}, busy[2] = {1e6, 1e6};
    size_t shares[2], other[2];
    for (int i = 0; i < 100; i++) {
        int choice, second, same;
        planner_next(p, idle, 64, 1, 512, shares, &choice);
        planner_next(p, busy, 64, 1, 512, other, &second);
        assert_int_equal(second, -1);
        planner_measured(p, choice, 64, 1e3 * (1 + i % 7));
        planner_next(twin, idle, 64, 1, 512, other, &same);
        assert_int_equal(choice, same);
        assert_memory_equal(shares, other, sizeof shares);
    }
    planner_free(p);
    planner_free(twin);
}

/* Models of a fixed batch: shares are whole slices but for one. */
static void steps_are_kept(void **state)
{
    (void)state;
    draws d = {.seed = 21};
    for (int i = 0; i < 50; i++) {
        machine m = draw_machine(&d, true, false);
        planner *p = start_planner(&m, &d);
        size_t step = 1 + (size_t)(draw(&d) * 16), rows = 1 + (size_t)(draw(&d) * 200), shares[MOST];
        m.max_rows = step;
        for (int k = 0; k < 60; k++) {
            double busy[MOST] = {0};
            int choice;
            planner_next(p, busy, rows, step, step, shares, &choice);
            size_t sum = 0, odd = 0;
            for (size_t w = 0; w < m.count; w++) {
                sum += shares[w];
                odd += shares[w] % step != 0;
            }
            assert_int_equal(sum, rows);
            assert_in_range(odd, 0, 1);
            planner_measured(p, choice, rows, run_batch(&m, shares, p));
        }
        planner_free(p);
    }
}

static void many_equal_workers_are_planned_quickly(void **state)
{
    (void)state;
    enum { COUNT = 256, BATCHES = 300 };
    static plan_cost costs[COUNT];
    static double busy[COUNT];
    static size_t shares[COUNT];
    for (size_t w = 0; w < COUNT; w++)
        costs[w] = (plan_cost){.fixed_ns = 20e3, .row_ns = 1e3};
    planner *p = planner_new(COUNT, costs);
    int64_t best_ns = INT64_MAX;
    for (int i = 0; i < BATCHES; i++) {
        int choice;
        int64_t start = clock_now_ns();
        planner_next(p, busy, 10000, 1, 32, shares, &choice);
        int64_t took = clock_now_ns() - start;
        best_ns = took < best_ns ? took : best_ns;
        double last = 0;
        for (size_t w = 0; w < COUNT; w++) {
            double ns = shares[w] ? (double)((shares[w] + 31) / 32) * 20e3 + (double)shares[w] * 1e3 : 0;
            if (shares[w])
                planner_slice(p, w, shares[w] < 32 ? shares[w] : 32, shares[w] < 32 ? ns : 52e3);
            last = fmax(last, ns);
        }
        planner_measured(p, choice, 10000, last);
    }
    planner_free(p);
    print_message("256 workers: %.1f us per plan\n", (double)best_ns / 1e3);
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(best_ns < 1000000);
#endif
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(never_loses_on_independent_devices),
        cmocka_unit_test(never_loses_with_contention),
        cmocka_unit_test(never_loses_with_wake_ups),
        cmocka_unit_test(never_loses_with_both),
        cmocka_unit_test(mixed_sizes_do_not_lose),
        cmocka_unit_test(a_change_of_speed_is_followed),
        cmocka_unit_test(a_bad_loser_is_hardly_tried_again),
        cmocka_unit_test(a_worker_that_is_gone_gets_nothing),
        cmocka_unit_test(a_batch_that_was_joined_is_not_learnt),
        cmocka_unit_test(steps_are_kept),
        cmocka_unit_test(many_equal_workers_are_planned_quickly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
