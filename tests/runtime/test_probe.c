/* What the probe finds out: over sim's models, and over a small engine of this file that misbehaves in other ways. */
#include "runtime/probe.h"

#include "backend/sim.h"
#include "base/clock.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct subject {
    const backend *backend;
    backend_engine *engine;
    signature *sig;
    backend_array broadcast[PORT_MAX];
} subject;

static subject open_sim(const char *text)
{
    subject s = {.backend = &backend_sim, .sig = malloc(sizeof(signature))};
    backend_library *library = NULL;
    backend_model model = {.data = text, .bytes = strlen(text), .format = "sim"};
    backend_device device = {.kind = "sim", .name = "sim:0", .threads = 1};
    backend_open_options options = {.model = &model, .device = &device, .max_rows = 8, .import_fd = -1};
    dpi_error error = {0};
    assert_int_equal(backend_sim.load(&(backend_load_options){0}, NULL, &library, NULL), DPI_OK);
    if (backend_sim.open(library, &options, &s.engine, &error))
        fail_msg("%s", error.message);
    assert_int_equal(backend_sim.describe(s.engine, s.sig, NULL), DPI_OK);
    backend_sim.unload(library);
    return s;
}

static void end(subject *s)
{
    if (s->backend == &backend_sim)
        backend_sim.close(s->engine);
    free(s->sig);
}

static dpi_status run_probe(const subject *s, size_t max_rows, size_t fixed_rows, bool trust, probe_result *result,
                            dpi_error *error)
{
    probe_request request = {.backend = s->backend,
                             .engine = s->engine,
                             .sig = s->sig,
                             .broadcast = s->broadcast,
                             .max_rows = max_rows,
                             .fixed_rows = fixed_rows,
                             .trust_rows = trust};
    return probe_run(&request, result, error);
}

static dpi_status probe_sim(const char *text, size_t max_rows, probe_result *result, dpi_error *error)
{
    subject s = open_sim(text);
    size_t fixed = s.sig->inputs[0].shape[0] > 0 ? (size_t)s.sig->inputs[0].shape[0] : 0;
    dpi_status status = run_probe(&s, max_rows, fixed, false, result, error);
    end(&s);
    return status;
}

#define SIMPLE "input x float32 N 4\noutput y float32 N 3\noutput z int32 N\n"

/* ---- sim's models ----------------------------------------------------------------------------------------------- */

static void a_good_model_passes(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 3, 8, 64, 1000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        probe_result r;
        dpi_error error = {0};
        if (probe_sim(SIMPLE, sizes[i], &r, &error))
            fail_msg("max_rows %zu: %s", sizes[i], error.message);
        assert_false(r.skipped);
        assert_false(r.size_changes_bits);
        assert_true(r.rows_independent);
        assert_int_equal(r.sample_count, 4);
        assert_true(r.fixed_ns >= 0 && r.row_ns >= 0 && r.fixed_ns + r.row_ns > 0);
        probe_free(&r);
    }
}

static void the_sample_is_row_0_of_all_outputs(void **state)
{
    (void)state;
    probe_result r, again;
    assert_int_equal(probe_sim(SIMPLE, 8, &r, NULL), DPI_OK);
    assert_int_equal(probe_sim(SIMPLE, 8, &again, NULL), DPI_OK);
    assert_int_equal(r.sample_count, 4);
    for (size_t i = 0; i < 4; i++)
        assert_true(r.sample[i] == again.sample[i]);
    for (size_t i = 0; i < 3; i++)
        assert_true(r.sample[i] * 16 == floor(r.sample[i] * 16) && r.sample[i] >= -8 && r.sample[i] < 8);
    assert_true(r.sample[3] >= 0 && r.sample[3] < 100);
    assert_true(probe_difference(&r, &again) == 0);
    probe_free(&r);
    probe_free(&again);
}

static void the_hash_is_the_models_and_no_ones_speed(void **state)
{
    (void)state;
    probe_result a, b, c;
    assert_int_equal(probe_sim(SIMPLE, 16, &a, NULL), DPI_OK);
    assert_int_equal(probe_sim(SIMPLE "fixed_us 3000\njitter_us 2000\n", 16, &b, NULL), DPI_OK);
    assert_int_equal(probe_sim(SIMPLE "touch none\n", 16, &c, NULL), DPI_OK);
    assert_memory_equal(&a.hash, &b.hash, sizeof a.hash);
    assert_memory_not_equal(&a.hash, &c.hash, sizeof a.hash);
    assert_true(probe_difference(&a, &c) > 0);
    probe_free(&a);
    probe_free(&b);
    probe_free(&c);
}

static void a_slice_size_that_changes_bits_is_noticed(void **state)
{
    (void)state;
    probe_result r;
    assert_int_equal(probe_sim(SIMPLE "size_bits 1\n", 8, &r, NULL), DPI_OK);
    assert_true(r.size_changes_bits);
    assert_true(r.rows_independent);
    probe_free(&r);
    assert_int_equal(probe_sim("input x float32 4 2\noutput y float32 4 3\nsize_bits 1\n", 4, &r, NULL), DPI_OK);
    assert_false(r.size_changes_bits); /* there is but one size */
    probe_free(&r);
}

static void dependent_rows_are_refused_unless_trusted(void **state)
{
    (void)state;
    static const char *const models[] = {SIMPLE "rows_depend 1\n",
                                         "input x float32 4 2\noutput y float32 4 3\nrows_depend 1\n"};
    for (size_t i = 0; i < 2; i++) {
        probe_result r;
        dpi_error error = {0};
        assert_int_equal(probe_sim(models[i], 8, &r, &error), DPI_E_MODEL);
        assert_non_null(strstr(error.message, "y"));
        assert_non_null(strstr(error.message, "--trust-rows"));
        subject s = open_sim(models[i]);
        assert_int_equal(run_probe(&s, 8, i ? 4 : 0, true, &r, &error), DPI_OK);
        assert_false(r.rows_independent);
        probe_free(&r);
        end(&s);
    }
}

static void sizes_that_depend_on_data_are_refused(void **state)
{
    (void)state;
    probe_result r;
    dpi_error error = {0};
    assert_int_equal(probe_sim(SIMPLE "data_sized 1\n", 8, &r, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, "depends on data"));
    assert_int_equal(probe_sim("input x float32 N ?\noutput y float32 N x.1\ndata_sized 1\n", 8, &r, &error),
                     DPI_E_MODEL);
}

static void an_output_without_the_rows_is_refused(void **state)
{
    (void)state;
    probe_result r;
    dpi_error error = {0};
    assert_int_equal(probe_sim("input x float32 N 4\noutput mean float32 1 4\n", 8, &r, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, "mean"));
    assert_int_equal(probe_sim("input x float32 N 4\noutput mean float32 3 4\n", 8, &r, &error), DPI_E_MODEL);
    assert_int_equal(probe_sim("input x float32 N 4\noutput mean float32 8 4\n", 8, &r, &error), DPI_E_MODEL);
}

static void an_input_without_rows_must_be_broadcast(void **state)
{
    (void)state;
    const char *text = "input x float32 N 4\ninput s float32 broadcast\noutput y float32 N 3\n";
    subject s = open_sim(text);
    probe_result r;
    dpi_error error = {0};
    assert_int_equal(run_probe(&s, 8, 0, false, &r, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, " s "));
    assert_non_null(strstr(error.message, "--broadcast"));
    float scale = 2;
    s.broadcast[1] = (backend_array){.data = &scale, .rank = 0};
    assert_int_equal(run_probe(&s, 8, 0, false, &r, &error), DPI_OK);
    assert_true(r.rows_independent);
    assert_true(scale == 2);
    probe_free(&r);
    end(&s);
}

static void free_axes_take_the_first_extent_that_works(void **state)
{
    (void)state;
    probe_result r;
    dpi_error error = {0};
    assert_int_equal(probe_sim("input x float32 N ? 3\noutput y float32 N x.1\n", 8, &r, &error), DPI_OK);
    assert_false(r.skipped);
    assert_int_equal(r.sample_count, 8); /* the first extent */
    probe_free(&r);
}

static void a_fixed_batch_is_called_with_all_its_rows(void **state)
{
    (void)state;
    for (int rows = 1; rows <= 5; rows += 4) {
        probe_result r;
        dpi_error error = {0};
        const char *text =
            rows == 1 ? "input x float32 1 2\noutput y float32 1 3\n" : "input x float32 5 2\noutput y float32 5 3\n";
        if (probe_sim(text, (size_t)rows, &r, &error))
            fail_msg("%s", error.message);
        assert_true(r.rows_independent);
        assert_false(r.size_changes_bits);
        assert_int_equal(r.sample_count, 3);
        probe_free(&r);
    }
}

/* Sleeping never ends early, so the estimate has a lower bound; the upper one is generous. */
static void the_cost_is_near_what_it_is(void **state)
{
    (void)state;
    probe_result r;
    assert_int_equal(probe_sim(SIMPLE "fixed_us 2000\nrow_us 500\n", 8, &r, NULL), DPI_OK);
    assert_true(r.fixed_ns + r.row_ns >= 2.4e6);
    assert_true(r.fixed_ns + 8 * r.row_ns < 60e6);
    probe_free(&r);
}

static void a_slow_model_is_called_a_few_times_only(void **state)
{
    (void)state;
    probe_result r;
    int64_t began_ns = clock_now_ns();
    assert_int_equal(probe_sim(SIMPLE "row_us 80000\n", 32, &r, NULL), DPI_OK);
    int64_t took_ns = clock_now_ns() - began_ns;
    assert_true(r.fixed_ns + r.row_ns >= 79e6);
    assert_true(took_ns < 2500000000); /* 32 rows alone would take 2.6 s */
    probe_free(&r);
}

static void sim_counts_its_slices_from_the_end_of_the_probe(void **state)
{
    (void)state;
    subject s = open_sim(SIMPLE "fail_at_slice 1\n");
    probe_result r;
    assert_int_equal(run_probe(&s, 8, 0, false, &r, NULL), DPI_OK);
    probe_free(&r);
    float x[4] = {0}, y[3];
    int32_t z[1];
    backend_array in = {.data = x, .rank = 2, .shape = {1, 4}};
    backend_array out[2] = {{.data = y, .rank = 2, .shape = {1, 3}}, {.data = z, .rank = 1, .shape = {1}}};
    backend_call call = {.rows = 1, .inputs = &in, .outputs = out};
    assert_int_equal(s.backend->run(s.engine, &call, &(backend_timing){0}, NULL), DPI_E_ENGINE);
    end(&s);
}

/* ---- an engine of our own --------------------------------------------------------------------------------------- */

typedef enum behaviour {
    COPY,         /* y = x */
    ALWAYS_NAN,   /* y = NaN */
    NAN_BESIDE,   /* y = x, but NaN in rows that have one before them */
    ROUNDED,      /* y = x, with a place-dependent error far below the tolerance */
    PER_ROWS,     /* y = x / rows */
    SQUARE,       /* the output's row shape is the number of rows */
    FAILS,        /* every call fails */
    FAILS_ABOVE_1 /* calls of several rows fail */
} behaviour;

struct backend_engine {
    behaviour does;
    int64_t only_extent; /* > 0: of axis 1 */
    size_t largest_call;
    bool enqueued, ready;
};

static dpi_status own_infer(backend_engine *e, const backend_array *in, backend_array *out, dpi_error *error)
{
    if (e->only_extent && in[0].shape[1] != e->only_extent)
        return error_set(error, DPI_E_ENGINE, "axis 1 does not suit the engine");
    out[0].rank = 2;
    out[0].shape[0] = in[0].shape[0];
    out[0].shape[1] = e->does == SQUARE ? in[0].shape[0] : in[0].shape[1];
    return DPI_OK;
}

static float result_of(const backend_engine *e, float x, size_t row, size_t rows)
{
    switch (e->does) {
    case ALWAYS_NAN: return NAN;
    case NAN_BESIDE: return row ? NAN : x;
    case ROUNDED: return x * (1 + (float)row * 1e-6f);
    case PER_ROWS: return x / (float)rows;
    default: return x;
    }
}

static dpi_status own_run(backend_engine *e, const backend_call *call, backend_timing *timing, dpi_error *error)
{
    (void)timing;
    if (e->does == FAILS || (e->does == FAILS_ABOVE_1 && call->rows > 1))
        return error_set(error, DPI_E_ENGINE, "the engine of this test fails");
    size_t width = (size_t)call->outputs[0].shape[1], in_width = (size_t)call->inputs[0].shape[1];
    assert_int_equal(call->inputs[0].shape[0], call->rows);
    assert_int_equal(call->outputs[0].shape[0], call->rows);
    assert_int_equal((uintptr_t)call->inputs[0].data % 4, 0);
    e->largest_call = call->rows > e->largest_call ? call->rows : e->largest_call;
    for (size_t row = 0; row < call->rows; row++)
        for (size_t k = 0; k < width; k++) {
            float x = ((const float *)call->inputs[0].data)[row * in_width + k % in_width];
            ((float *)call->outputs[0].data)[row * width + k] = result_of(e, x, row, call->rows);
        }
    return DPI_OK;
}

static dpi_status own_enqueue(backend_engine *e, int slot, const backend_call *call, dpi_error *error)
{
    assert_int_equal(slot, 0);
    assert_false(e->enqueued);
    e->enqueued = true;
    return own_run(e, call, NULL, error);
}

static dpi_status own_wait(backend_engine *e, int slot, backend_timing *timing, dpi_error *error)
{
    (void)timing;
    (void)error;
    assert_int_equal(slot, 0);
    assert_true(e->enqueued);
    e->enqueued = false;
    return DPI_OK;
}

static void own_ready(backend_engine *e)
{
    assert_false(e->ready); /* once */
    e->ready = true;
}

static const backend own = {.name = "own", .infer_shapes = own_infer, .run = own_run, .ready = own_ready};
static const backend own_queue = {.name = "own", .infer_shapes = own_infer, .enqueue = own_enqueue, .wait = own_wait};

static dpi_status probe_own(const backend *b, backend_engine *engine, int64_t extent, size_t max_rows,
                            probe_result *result, dpi_error *error)
{
    subject s = {.backend = b, .engine = engine, .sig = calloc(1, sizeof(signature))};
    s.sig->input_count = s.sig->output_count = 1;
    s.sig->inputs[0] = (port){.name = "x", .dtype = DPI_F32, .rank = 2, .shape = {-1, extent}};
    s.sig->outputs[0] = (port){.name = "y", .dtype = DPI_F32, .rank = 2, .shape = {-1, -1}};
    dpi_status status = run_probe(&s, max_rows, 0, false, result, error);
    end(&s);
    return status;
}

static void rounding_is_no_dependence(void **state)
{
    (void)state;
    backend_engine engine = {.does = ROUNDED};
    probe_result r;
    dpi_error error = {0};
    if (probe_own(&own, &engine, 5, 8, &r, &error))
        fail_msg("%s", error.message);
    assert_true(r.rows_independent);
    assert_true(engine.ready);
    assert_true(engine.largest_call <= 8);
    probe_free(&r);
}

static void nan_is_a_value_like_others(void **state)
{
    (void)state;
    backend_engine engine = {.does = ALWAYS_NAN};
    probe_result r, s;
    dpi_error error = {0};
    if (probe_own(&own, &engine, 5, 8, &r, &error))
        fail_msg("%s", error.message);
    assert_false(r.size_changes_bits);
    backend_engine copy = {.does = COPY};
    assert_int_equal(probe_own(&own, &copy, 5, 8, &s, &error), DPI_OK);
    assert_true(isinf(probe_difference(&r, &s)));
    assert_true(probe_difference(&r, &r) == 0);
    probe_free(&r);
    probe_free(&s);
    engine = (backend_engine){.does = NAN_BESIDE};
    assert_int_equal(probe_own(&own, &engine, 5, 8, &r, &error), DPI_E_MODEL);
    assert_false(engine.ready);
}

static void results_that_change_with_the_number_of_rows_are_refused(void **state)
{
    (void)state;
    backend_engine engine = {.does = PER_ROWS};
    probe_result r;
    dpi_error error = {0};
    assert_int_equal(probe_own(&own, &engine, 5, 8, &r, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, "y"));
}

static void a_row_shape_that_changes_with_the_number_of_rows_is_refused(void **state)
{
    (void)state;
    backend_engine engine = {.does = SQUARE};
    probe_result r;
    dpi_error error = {0};
    assert_int_equal(probe_own(&own, &engine, 5, 8, &r, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, "y"));
}

static void a_failing_engine_ends_the_probe_with_its_error(void **state)
{
    (void)state;
    static const behaviour behaviours[] = {FAILS, FAILS_ABOVE_1};
    for (size_t i = 0; i < 2; i++) {
        backend_engine engine = {.does = behaviours[i]};
        probe_result r;
        dpi_error error = {0};
        assert_int_not_equal(probe_own(&own, &engine, 5, 8, &r, &error), DPI_OK);
        assert_non_null(strstr(error.message, "the engine of this test fails"));
        assert_false(engine.ready);
        assert_int_not_equal(probe_own(&own, &engine, 5, 8, &r, NULL), DPI_OK);
    }
    backend_engine engine = {.does = FAILS_ABOVE_1};
    probe_result r;
    assert_int_equal(probe_own(&own, &engine, 5, 1, &r, NULL), DPI_OK);
    probe_free(&r);
}

static void a_free_axis_that_nothing_suits_skips_the_probe(void **state)
{
    (void)state;
    probe_result r;
    dpi_error error = {0};
    backend_engine engine = {.only_extent = 32};
    if (probe_own(&own, &engine, -1, 8, &r, &error))
        fail_msg("%s", error.message);
    assert_false(r.skipped);
    assert_int_equal(r.sample_count, 32);
    probe_free(&r);
    engine = (backend_engine){.only_extent = 77};
    assert_int_equal(probe_own(&own, &engine, -1, 8, &r, &error), DPI_OK);
    assert_true(r.skipped);
    assert_true(r.rows_independent);
    assert_true(r.fixed_ns == 0 && r.row_ns == 0);
    assert_int_equal(r.sample_count, 0);
    probe_free(&r);
}

static void an_engine_with_a_queue_is_probed_through_it(void **state)
{
    (void)state;
    backend_engine engine = {.does = COPY};
    probe_result r, s;
    assert_int_equal(probe_own(&own_queue, &engine, 5, 8, &r, NULL), DPI_OK);
    assert_false(engine.enqueued);
    assert_int_equal(probe_own(&own, &engine, 5, 8, &s, NULL), DPI_OK);
    assert_memory_equal(&r.hash, &s.hash, sizeof r.hash);
    probe_free(&r);
    probe_free(&s);
}

static void the_sample_is_bounded(void **state)
{
    (void)state;
    backend_engine engine = {.does = COPY};
    probe_result r;
    assert_int_equal(probe_own(&own, &engine, 5000, 8, &r, NULL), DPI_OK);
    assert_int_equal(r.sample_count, 4096);
    probe_free(&r);
}

static void differences_are_relative_to_the_largest_value(void **state)
{
    (void)state;
    double a[] = {1, -4, NAN, INFINITY}, b[] = {1, -3, NAN, INFINITY}, zero[] = {0, 0, NAN, INFINITY};
    probe_result ra = {.sample = a, .sample_count = 4}, rb = {.sample = b, .sample_count = 4};
    probe_result rz = {.sample = zero, .sample_count = 4};
    ra.sample_count = rb.sample_count = rz.sample_count = 3;
    assert_true(probe_difference(&ra, &rb) == 0.25);
    assert_true(probe_difference(&ra, &ra) == 0);
    assert_true(isinf(probe_difference(&rz, &ra)));
    double nan_first[] = {NAN, -4, NAN, INFINITY};
    probe_result rn = {.sample = nan_first, .sample_count = 3};
    assert_true(isinf(probe_difference(&ra, &rn)));
    ra.sample_count = 4;
    assert_true(probe_difference(&ra, &ra) == 0);
    double finite[] = {1, -4, NAN, 7};
    probe_result rf = {.sample = finite, .sample_count = 4};
    assert_true(isinf(probe_difference(&ra, &rf)));
    assert_true(isinf(probe_difference(&rf, &ra)));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_good_model_passes),
        cmocka_unit_test(the_sample_is_row_0_of_all_outputs),
        cmocka_unit_test(the_hash_is_the_models_and_no_ones_speed),
        cmocka_unit_test(a_slice_size_that_changes_bits_is_noticed),
        cmocka_unit_test(dependent_rows_are_refused_unless_trusted),
        cmocka_unit_test(sizes_that_depend_on_data_are_refused),
        cmocka_unit_test(an_output_without_the_rows_is_refused),
        cmocka_unit_test(an_input_without_rows_must_be_broadcast),
        cmocka_unit_test(free_axes_take_the_first_extent_that_works),
        cmocka_unit_test(a_fixed_batch_is_called_with_all_its_rows),
        cmocka_unit_test(the_cost_is_near_what_it_is),
        cmocka_unit_test(a_slow_model_is_called_a_few_times_only),
        cmocka_unit_test(sim_counts_its_slices_from_the_end_of_the_probe),
        cmocka_unit_test(rounding_is_no_dependence),
        cmocka_unit_test(nan_is_a_value_like_others),
        cmocka_unit_test(results_that_change_with_the_number_of_rows_are_refused),
        cmocka_unit_test(a_row_shape_that_changes_with_the_number_of_rows_is_refused),
        cmocka_unit_test(a_failing_engine_ends_the_probe_with_its_error),
        cmocka_unit_test(a_free_axis_that_nothing_suits_skips_the_probe),
        cmocka_unit_test(an_engine_with_a_queue_is_probed_through_it),
        cmocka_unit_test(the_sample_is_bounded),
        cmocka_unit_test(differences_are_relative_to_the_largest_value),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
