/* The loader alone, over a source whose rows tell how they were loaded. Clean under the thread sanitizer. */
#include "base/clock.h"
#include "data/source_kind.h"
#include "runtime/loader.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ROWS  64
#define WIDTH 16

static _Atomic unsigned loads[1024];
static _Atomic int at_once, most_at_once;

/* Row 5 of every 16 is bad; row 1000 is the process's trouble. */
static dpi_status fake_load(const source *s, uint64_t row, void *to, row_scratch *own, dpi_error *error)
{
    (void)s;
    (void)own;
    int now = atomic_fetch_add(&at_once, 1) + 1;
    if (now > atomic_load(&most_at_once))
        atomic_store(&most_at_once, now);
    atomic_fetch_add(&loads[row], 1);
    memset(to, 0xff, WIDTH);
    atomic_fetch_sub(&at_once, 1);
    if (row == 1000)
        return error_set(error, DPI_E_SYSTEM, "no memory");
    if (row % 16 == 5)
        return error_set(error, DPI_E_DATA, "row %d is bad", (int)row);
    memset(to, (int)(row % 251), WIDTH);
    return DPI_OK;
}

static const source_kind fake_kind = {.load = fake_load};

static source fake_source = {.kind = &fake_kind,
                             .shape = {.dtype = DPI_U8, .rank = 2, .shape = {1024, WIDTH}},
                             .rows = 1024,
                             .row_bytes = WIDTH};
static const worker_job fake_job = {.dear = true, .sources = {&fake_source}, .source_count = 1};

static void forget_loads(void)
{
    for (size_t i = 0; i < 1024; i++)
        atomic_store(&loads[i], 0);
}

static void give_slice(loader *l, uint64_t first, size_t rows)
{
    flight *f = loader_room(l);
    assert_non_null(f);
    f->job = &fake_job;
    f->source_row = first;
    f->rows = f->call_rows = rows;
    assert_true(scratch_ensure(&f->in[0], rows * WIDTH));
    f->inputs[0].data = f->in[0].data;
    loader_begin(l, clock_now_ns());
}

static void check_slice(const flight *f, uint64_t first, size_t rows)
{
    size_t bad = 0;
    assert_int_equal(f->rows, rows);
    for (size_t r = 0; r < rows; r++) {
        const unsigned char *at = (const unsigned char *)f->inputs[0].data + r * WIDTH;
        bool is_bad = (first + r) % 16 == 5;
        assert_int_equal(atomic_load(&loads[first + r]), 1);
        assert_int_equal(at[0], is_bad ? 0 : (first + r) % 251);
        assert_int_equal(at[WIDTH - 1], at[0]);
        if (!is_bad)
            continue;
        assert_true(bad < f->bad_count);
        assert_int_equal(f->bad[bad].row, r);
        assert_non_null(strstr(f->bad[bad++].reason, "is bad"));
    }
    assert_int_equal(bad, f->bad_count);
}

static void take_and_check(loader *l, flight *into, uint64_t first, size_t rows)
{
    dpi_status status;
    dpi_error error;
    while (!loader_ready(l))
        loader_help(l, clock_now_ns() + 1000000);
    loader_take(l, into, &status, &error);
    assert_int_equal(status, DPI_OK);
    check_slice(into, first, rows);
    flight_forget_bad(into);
}

/* Every row once, slices in order, whoever loads them. */
static void run_through(size_t threads, bool helps)
{
    forget_loads();
    loader *l = loader_start(threads, helps);
    flight *seat = calloc(1, sizeof *seat);
    uint64_t claimed = 0, taken = 0;
    while (taken < 640) {
        while (claimed < 640 && loader_room(l)) {
            give_slice(l, claimed, ROWS);
            claimed += ROWS;
        }
        take_and_check(l, seat, taken, ROWS);
        taken += ROWS;
    }
    assert_int_equal(loader_count(l), 0);
    loader_stop(l);
    flight_free(seat);
    free(seat);
}

static void every_row_once(void **state)
{
    (void)state;
    run_through(0, true);
    run_through(1, true);
    run_through(1, false);
    run_through(3, true);
    run_through(4, false);
}

static void trouble_that_is_no_rows_fault(void **state)
{
    (void)state;
    forget_loads();
    loader *l = loader_start(2, true);
    flight *seat = calloc(1, sizeof *seat);
    dpi_status status = DPI_OK;
    dpi_error error;
    give_slice(l, 960, ROWS);
    give_slice(l, 0, 3);
    while (!loader_ready(l))
        loader_help(l, clock_now_ns() + 1000000);
    loader_take(l, seat, &status, &error);
    assert_int_equal(status, DPI_E_SYSTEM);
    assert_string_equal(error.message, "no memory");
    flight_forget_bad(seat);
    take_and_check(l, seat, 0, 3);
    loader_stop(l);
    flight_free(seat);
    free(seat);
}

static void nothing_is_loaded_in_a_pause(void **state)
{
    (void)state;
    forget_loads();
    loader *l = loader_start(3, false);
    flight *seat = calloc(1, sizeof *seat);
    loader_pause(l);
    give_slice(l, 0, ROWS);
    loader_help(l, clock_now_ns() + 5000000);
    for (size_t i = 0; i < ROWS; i++)
        assert_int_equal(atomic_load(&loads[i]), 0);
    assert_false(loader_ready(l));
    loader_resume(l);
    loader_pause(l);
    assert_int_equal(atomic_load(&at_once), 0);
    loader_resume(l);
    take_and_check(l, seat, 0, ROWS);
    loader_stop(l);
    flight_free(seat);
    free(seat);
}

static void stopped_and_forgotten_in_the_middle(void **state)
{
    (void)state;
    for (int turn = 0; turn < 20; turn++) {
        forget_loads();
        loader *l = loader_start(3, false);
        give_slice(l, 0, ROWS);
        give_slice(l, ROWS, ROWS);
        if (turn % 2) {
            dpi_status status;
            dpi_error error;
            flight *seat = calloc(1, sizeof *seat);
            loader_forget(l, &fake_job);
            assert_true(loader_ready(l));
            loader_take(l, seat, &status, &error);
            assert_int_equal(status, DPI_E_INTERNAL);
            flight_free(seat);
            free(seat);
        }
        loader_stop(l);
        assert_int_equal(atomic_load(&at_once), 0);
    }
    loader_stop(NULL);
}

static void a_slice_at_once(void **state)
{
    (void)state;
    forget_loads();
    dpi_error error;
    flight *f = calloc(1, sizeof *f);
    f->job = &fake_job;
    f->rows = ROWS;
    assert_true(scratch_ensure(&f->in[0], ROWS * WIDTH));
    f->inputs[0].data = f->in[0].data;
    assert_int_equal(loader_load_all(f, NULL, NULL, &error), DPI_OK);
    check_slice(f, 0, ROWS);
    flight_free(f);
    free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_once),
        cmocka_unit_test(trouble_that_is_no_rows_fault),
        cmocka_unit_test(nothing_is_loaded_in_a_pause),
        cmocka_unit_test(stopped_and_forgotten_in_the_middle),
        cmocka_unit_test(a_slice_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
