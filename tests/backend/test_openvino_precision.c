/* OpenVINO computes in the precision that was asked for, the model's own unless another was, whatever its defaults on
 * this CPU are; its properties, threads and stored engines change nothing of that. */
#include "backend/openvino_kit.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define DEEP 512 /* inputs of the model that shows precision, wide enough for every fast path */
#define WIDE 256

static const backend *const ov = &backend_openvino;

/* ---- precision --------------------------------------------------------------------------------------------------- */

static float *random_floats(size_t count, uint64_t seed)
{
    float *values = malloc(count * sizeof *values);
    assert_non_null(values);
    tensor_fill_random(DPI_F32, values, count, 0, 1, seed, false);
    return values;
}

typedef enum weights { WEIGHTS_F32, WEIGHTS_U8 } weights;

/* y [N,WIDE] = x [N,DEEP] * transpose(w); w as it is, or as bytes with a scale for each of its rows. */
static char *write_deep(weights kind, const float *w, const unsigned char *bytes, const float *scale)
{
    unsigned char zero[WIDE];
    char shape[32], column[32], deep[32];
    snprintf(shape, sizeof shape, "%d, %d", WIDE, DEEP);
    snprintf(column, sizeof column, "%d, 1", WIDE);
    snprintf(deep, sizeof deep, "?,%d", DEEP);
    ir m = {0};
    int c, x = ir_input(&m, "f32", "FP32", deep, "-1,512", "x");
    if (kind == WEIGHTS_F32)
        c = ir_weight(&m, "f32", "FP32", shape, w, sizeof *w * WIDE * DEEP);
    else {
        memset(zero, 128, sizeof zero);
        int z = ir_weight(&m, "u8", "U8", column, zero, sizeof zero);
        z = ir_layer(&m, "Convert", "destination_type=\"f32\"", (const int[]){z, -1}, "FP32", column, NULL);
        int s = ir_weight(&m, "f32", "FP32", column, scale, sizeof *scale * WIDE);
        c = ir_weight(&m, "u8", "U8", shape, bytes, WIDE * DEEP);
        c = ir_layer(&m, "Convert", "destination_type=\"f32\"", (const int[]){c, -1}, "FP32", shape, NULL);
        c = ir_layer(&m, "Subtract", "", (const int[]){c, z, -1}, "FP32", shape, NULL);
        c = ir_layer(&m, "Multiply", "", (const int[]){c, s, -1}, "FP32", shape, NULL);
    }
    ir_output(&m, ir_layer(&m, "MatMul", "transpose_a=\"false\" transpose_b=\"true\"", (const int[]){x, c, -1}, "FP32",
                           "-1,256", "y"));
    return ir_write(&m, kind == WEIGHTS_F32 ? "deep" : "compressed");
}

/* The largest difference to x * transpose(w), computed in doubles, relative to the largest value. */
static double relative_error(const float *y, const float *x, const float *w, size_t rows)
{
    double worst = 0, largest = 0;
    for (size_t r = 0; r < rows; r++)
        for (size_t o = 0; o < WIDE; o++) {
            double sum = 0;
            for (size_t i = 0; i < DEEP; i++)
                sum += (double)x[r * DEEP + i] * (double)w[o * DEEP + i];
            worst = fmax(worst, fabs(sum - (double)y[r * WIDE + o]));
            largest = fmax(largest, fabs(sum));
        }
    return worst / largest;
}

static bool has_precision(const conformance *suite, const char *name)
{
    backend_device_info device;
    size_t count;
    assert_int_equal(ov->list_devices(suite->library, &device, 1, &count, NULL), DPI_OK);
    return backend_lists(device.precisions, name);
}

static void float32_is_computed_in_float32(void **state)
{
    float *x = random_floats(33 * DEEP, 1), *w = random_floats(WIDE * DEEP, 2), y[33 * WIDE];
    char *path = write_deep(WEIGHTS_F32, w, NULL, NULL);
    bool bf16 = has_precision(*state, "bf16");
    backend_engine *engine = open_well(*state, &(opening){.path = path}), *lower = NULL;
    if (bf16) /* stands beside the other, which stays what it is */
        lower = open_well(*state, &(opening){.path = path, .precision = DPI_PRECISION_BF16});
    for (size_t rows = 1; rows <= 33; rows = rows * 2 + 1) {
        run_floats(engine, x, (int64_t)rows, DEEP, y, WIDE);
        double off = relative_error(y, x, w, rows);
        if (off > 1e-5)
            fail_msg("%zu rows are off by %g", rows, off);
        if (!bf16)
            continue;
        run_floats(lower, x, (int64_t)rows, DEEP, y, WIDE);
        off = relative_error(y, x, w, rows);
        if (off < 1e-4 || off > 2e-2)
            fail_msg("in bf16 %zu rows are off by %g", rows, off);
    }
    ov->close(engine);
    if (lower)
        ov->close(lower);
    else
        print_message("this CPU has no bf16\n");
    free(path);
    free(w);
    free(x);
}

/* The plug-in's own default would make the activations int8. */
static void compressed_weights_do_not_lower_the_rest(void **state)
{
    float *x = random_floats(33 * DEEP, 3), *w = malloc(sizeof *w * WIDE * DEEP), scale[WIDE], y[33 * WIDE];
    unsigned char *bytes = malloc(WIDE * DEEP);
    assert_true(w && bytes);
    for (size_t o = 0; o < WIDE; o++) {
        scale[o] = 0.001f * (float)(1 + hash_mix64(4, o) % 20);
        for (size_t i = o * DEEP; i < (o + 1) * DEEP; i++) {
            bytes[i] = (unsigned char)hash_mix64(5, i);
            w[i] = ((float)bytes[i] - 128) * scale[o];
        }
    }
    char *path = write_deep(WEIGHTS_U8, NULL, bytes, scale);
    backend_engine *engine = open_well(*state, &(opening){.path = path});
    for (size_t rows = 1; rows <= 33; rows = rows * 2 + 1) {
        run_floats(engine, x, (int64_t)rows, DEEP, y, WIDE);
        double off = relative_error(y, x, w, rows);
        if (off > 1e-5)
            fail_msg("%zu rows are off by %g", rows, off);
    }
    ov->close(engine);
    free(path);
    free(bytes);
    free(w);
    free(x);
}

/* The model's own precision, or more: the only loss is that of storing the result. */
static void float16_loses_no_more_than_its_result(void **state)
{
    enum { K = 256, N = 16, ROWS = 5 };
    static uint16_t w[N * K], x[ROWS * K], y[ROWS * N];
    char shape[32], deep[32], dims[32];
    snprintf(shape, sizeof shape, "%d, %d", N, K);
    snprintf(deep, sizeof deep, "?,%d", K);
    snprintf(dims, sizeof dims, "-1,%d", K);
    tensor_fill_random(DPI_F16, w, N * K, 0, 1, 6, false);
    tensor_fill_random(DPI_F16, x, K, 0, ROWS, 7, false);
    ir m = {0};
    int p = ir_input(&m, "f16", "FP16", deep, dims, "x"), c = ir_weight(&m, "f16", "FP16", shape, w, sizeof w);
    ir_output(&m, ir_layer(&m, "MatMul", "transpose_a=\"false\" transpose_b=\"true\"", (const int[]){p, c, -1}, "FP16",
                           "-1,16", "y"));
    char *path = ir_write(&m, "half");
    backend_engine *engine = open_well(*state, &(opening){.path = path});
    backend_array in = {.data = x, .rank = 2, .shape = {ROWS, K}}, out = {.data = y, .rank = 2, .shape = {ROWS, N}};
    run_well(engine, &in, &out);
    for (size_t r = 0; r < ROWS; r++)
        for (size_t o = 0; o < N; o++) {
            double sum = 0, got = dtype_get(DPI_F16, y, r * N + o);
            for (size_t i = 0; i < K; i++)
                sum += dtype_get(DPI_F16, x, r * K + i) * dtype_get(DPI_F16, w, o * K + i);
            if (fabs(got - sum) > fabs(sum) / 2000 + 1e-4)
                fail_msg("row %zu, element %zu: %g instead of %g", r, o, got, sum);
        }
    ov->close(engine);
    free(path);
}

static void float64_is_refused_unless_float32_was_asked_for(void **state)
{
    ir m = {0};
    int x = ir_input(&m, "f64", "FP64", "?,4", "-1,4", "wide");
    ir_output(&m, ir_layer(&m, "ReLU", "", (const int[]){x, -1}, "FP64", "-1,4", "y"));
    char *path = ir_write(&m, "wide");
    open_badly(*state, &(opening){.path = path}, DPI_E_DEVICE, "wide", "--precision fp32");
    backend_engine *engine = open_well(*state, &(opening){.path = path, .precision = DPI_PRECISION_FP32});
    double in[4] = {-1, 0, 0.5, 3}, y[4] = {7, 7, 7, 7}, want[4] = {0, 0, 0.5, 3};
    backend_array a = {.data = in, .rank = 2, .shape = {1, 4}}, b = {.data = y, .rank = 2, .shape = {1, 4}};
    run_well(engine, &a, &b);
    assert_memory_equal(y, want, sizeof want);
    ov->close(engine);
    free(path);
}

/* ---- properties -------------------------------------------------------------------------------------------------- */

static void properties_are_passed_on_and_bad_ones_named(void **state)
{
    float *x = random_floats(DEEP, 1), *w = random_floats(WIDE * DEEP, 2), y[WIDE];
    char *path = write_deep(WEIGHTS_F32, w, NULL, NULL);
    open_badly(*state, &(opening){.path = path, .key = "NO_SUCH_PROPERTY", .value = "1"}, DPI_E_ARGUMENT,
               "NO_SUCH_PROPERTY", NULL);
    open_badly(*state, &(opening){.path = path, .key = "INFERENCE_NUM_THREADS", .value = "many"}, DPI_E_ARGUMENT,
               "INFERENCE_NUM_THREADS", "many");
    open_badly(*state, &(opening){.path = path, .key = "lower_case", .value = "1"}, DPI_E_ARGUMENT, "lower_case", NULL);
    open_badly(*state, &(opening){.path = path, .provider = "CUDA"}, DPI_E_ARGUMENT, "provider", NULL);
    if (has_precision(*state, "bf16")) {
        backend_engine *engine =
            open_well(*state, &(opening){.path = path, .key = "INFERENCE_PRECISION_HINT", .value = "bf16"});
        run_floats(engine, x, 1, DEEP, y, WIDE);
        assert_true(relative_error(y, x, w, 1) > 1e-4);
        ov->close(engine);
    }
    backend_engine *engine = open_well(*state, &(opening){.path = path}); /* nothing of all that has stayed */
    run_floats(engine, x, 1, DEEP, y, WIDE);
    assert_true(relative_error(y, x, w, 1) < 1e-5);
    ov->close(engine);
    free(path);
    free(w);
    free(x);
}

static void threads_do_not_change_what_is_computed(void **state)
{
    float *x = random_floats(32 * DEEP, 1), *w = random_floats(WIDE * DEEP, 2), y[2][32 * WIDE];
    char *path = write_deep(WEIGHTS_F32, w, NULL, NULL);
    for (size_t threads = 1; threads <= 2; threads++) {
        backend_engine *engine = open_well(*state, &(opening){.path = path, .threads = threads});
        run_floats(engine, x, 32, DEEP, y[threads - 1], WIDE);
        ov->close(engine);
    }
    for (size_t e = 0; e < 32 * WIDE; e++)
        if (fabs((double)y[0][e] - (double)y[1][e]) > 1e-3)
            fail_msg("element %zu: %.9g with one thread, %.9g with two", e, (double)y[0][e], (double)y[1][e]);
    assert_true(relative_error(y[1], x, w, 32) < 1e-5);
    free(path);
    free(w);
    free(x);
}

/* ---- stored engines ---------------------------------------------------------------------------------------------- */

static void a_stored_engine_gives_the_same_bits_in_each_precision(void **state)
{
    float *x = random_floats(9 * DEEP, 1), *w = random_floats(WIDE * DEEP, 2), y[2][9 * WIDE];
    char *path = write_deep(WEIGHTS_F32, w, NULL, NULL);
    const dpi_precision precisions[] = {DPI_PRECISION_MODEL, DPI_PRECISION_FP32, DPI_PRECISION_BF16};
    for (size_t i = 0; i < 2u + has_precision(*state, "bf16"); i++) {
        opening o = {.path = path, .precision = precisions[i]};
        backend_engine *compiled = open_well(*state, &o);
        o.import_fd = export_to_memory(compiled, i * 4096 % 8192);
        backend_engine *stored = open_well(*state, &o);
        assert_int_equal(close(o.import_fd), 0); /* the engine needs it no more */
        run_floats(compiled, x, 9, DEEP, y[0], WIDE);
        ov->close(compiled);
        run_floats(stored, x, 9, DEEP, y[1], WIDE);
        ov->close(stored);
        assert_memory_equal(y[0], y[1], sizeof y[0]);
    }
    free(path);
    free(w);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(float32_is_computed_in_float32),
        cmocka_unit_test(compressed_weights_do_not_lower_the_rest),
        cmocka_unit_test(float16_loses_no_more_than_its_result),
        cmocka_unit_test(float64_is_refused_unless_float32_was_asked_for),
        cmocka_unit_test(properties_are_passed_on_and_bad_ones_named),
        cmocka_unit_test(threads_do_not_change_what_is_computed),
        cmocka_unit_test(a_stored_engine_gives_the_same_bits_in_each_precision),
    };
    return openvino_main(tests, sizeof tests / sizeof tests[0]);
}
