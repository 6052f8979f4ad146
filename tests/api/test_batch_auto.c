/* --batch auto: the choice among measured rates, and what a session makes of it on simulated devices. */
#include "runtime/best_rows.h"
#include "sim_kit.h"

static void the_smallest_within_two_per_cent(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 4, 8};
    static const double rising[] = {10, 20, 39.3, 40}, flat[] = {40, 40, 40, 40}, falling[] = {10, 40, 30, 20},
                        edge[] = {10, 20, 39.1, 40};
    assert_int_equal(best_rows_choose(sizes, rising, 4), 4);
    assert_int_equal(best_rows_choose(sizes, edge, 4), 8);
    assert_int_equal(best_rows_choose(sizes, flat, 4), 1);
    assert_int_equal(best_rows_choose(sizes, falling, 4), 2);
    assert_int_equal(best_rows_choose(sizes, rising, 1), 1);
}

/* The batch of a session opened with batch auto; its results are right. */
static size_t chosen(const char *text, const char *devices, const dpi_options *from)
{
    dpi_options o = from ? *from : (dpi_options)DPI_INIT(dpi_options);
    o.batch = DPI_BATCH_AUTO;
    kit *k = kit_open(text, devices, &o);
    dpi_description d = DPI_INIT(dpi_description);
    dpi_error error;
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    size_t batch = d.batch;
    kit_forward(k, 1, 1);
    kit_forward(k, 3 * batch + 1, 2);
    kit_close(k);
    return batch;
}

#define PORTS "input x float32 N 5\noutput y float32 N 3\n"

static void fixed_costs_want_large_slices(void **state)
{
    (void)state;
    /* rows / (500 + 500 rows): 64 rows reach 98.8 % of 256 rows' rate, 32 rows 97.3 % */
    assert_in_range(chosen(PORTS "fixed_us 500\nrow_us 500\n", "sim:0", NULL), 32, 256);
    /* almost all of it is fixed: the largest */
    assert_int_equal(chosen(PORTS "fixed_us 20000\nrow_us 1\n", "sim:0", NULL), 256);
    /* none of it is: one row is as good as many */
    assert_in_range(chosen(PORTS "row_us 4000\n", "sim:0", NULL), 1, 4);
}

static void the_device_with_the_least_decides(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    static const dpi_key_value options[] = {{"1.most_rows", "100"}};
    o.backend_options = options;
    o.backend_option_count = 1;
    assert_int_equal(chosen(PORTS "fixed_us 20000\nrow_us 1\n", "sim:0*2", &o), 64);
}

static void it_works_with_slices_in_flight(void **state)
{
    (void)state;
    assert_int_equal(chosen(PORTS "fixed_us 20000\nrow_us 1\ndepth 3\nmost_rows 70\n", "sim:0", NULL), 64);
}

static void a_fixed_batch_stays(void **state)
{
    (void)state;
    assert_int_equal(chosen("input x float32 4 5\noutput y float32 4 3\n", "sim:0", NULL), 4);
}

static void a_fixed_split_excludes_it(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error;
    o.batch = DPI_BATCH_AUTO;
    o.total_batch_size = 8;
    assert_null(kit_try_open(PORTS, "sim:0", &o, &error));
    assert_int_equal(error.status, DPI_E_ARGUMENT);
    kit_assert_contains(error.message, "split");
}

static void not_one_row_fits(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error;
    o.batch = DPI_BATCH_AUTO;
    /* the probe's own calls are larger than one row and say it first */
    assert_null(kit_try_open(PORTS "most_rows 1\n", "sim:0", &o, &error));
    kit_assert_contains(error.message, "lower --batch");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_smallest_within_two_per_cent),
        cmocka_unit_test(fixed_costs_want_large_slices),
        cmocka_unit_test(the_device_with_the_least_decides),
        cmocka_unit_test(it_works_with_slices_in_flight),
        cmocka_unit_test(a_fixed_batch_stays),
        cmocka_unit_test(a_fixed_split_excludes_it),
        cmocka_unit_test(not_one_row_fits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
