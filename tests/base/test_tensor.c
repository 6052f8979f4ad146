/* Shapes with checked arithmetic, element conversion of every dtype, and the counter-based generator. */
#include "base/tensor.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void sizes_are_checked(void **state)
{
    (void)state;
    size_t n = 0;
    assert_true(shape_elements((int64_t[]){2, 3, 4}, 0, 3, &n) && n == 24);
    assert_true(shape_elements((int64_t[]){2, 3, 4}, 1, 3, &n) && n == 12);
    assert_true(shape_elements((int64_t[]){2}, 1, 1, &n) && n == 1);
    assert_true(shape_elements((int64_t[]){5, 0, 4}, 0, 3, &n) && n == 0);
    assert_false(shape_elements((int64_t[]){-1, 3}, 0, 2, &n));
    assert_true(shape_elements((int64_t[]){-1, 3}, 1, 2, &n));
    assert_false(shape_elements((int64_t[]){1ll << 40, 1ll << 40}, 0, 2, &n));
    assert_false(shape_elements((int64_t[]){INT64_MAX, 2}, 0, 2, &n));
    assert_false(shape_bytes(DPI_F64, (int64_t[]){1ll << 61}, 1, &n));
    assert_true(shape_bytes(DPI_F16, (int64_t[]){3, 5}, 2, &n) && n == 30);
    assert_true(shape_bytes(DPI_F16, NULL, 0, &n) && n == 2);
    assert_true(shape_row_bytes(DPI_F64, (int64_t[]){-1, 5}, 2, &n) && n == 40);
    assert_false(shape_row_bytes(DPI_F64, (int64_t[]){5, -1}, 2, &n));
    assert_false(shape_row_bytes(DPI_F64, NULL, 0, &n));
}

static void shapes_as_text(void **state)
{
    (void)state;
    char buffer[SHAPE_TEXT_SIZE];
    assert_string_equal(shape_text((int64_t[]){-1, 3, -1}, 3, buffer), "[N,3,?]");
    assert_string_equal(shape_text(NULL, 0, buffer), "[]");
    int64_t big[DPI_MAX_RANK];
    for (int i = 0; i < DPI_MAX_RANK; i++)
        big[i] = INT64_MAX;
    assert_true(strlen(shape_text(big, DPI_MAX_RANK, buffer)) < SHAPE_TEXT_SIZE);
    assert_true(strlen(shape_text(big, 1000, buffer)) < SHAPE_TEXT_SIZE);
    int64_t shape[DPI_MAX_RANK];
    int rank = 0;
    assert_true(shape_parse("3x224x224", 9, shape, &rank) && rank == 3 && shape[2] == 224);
    assert_true(shape_parse("", 0, shape, &rank) && rank == 0);
    assert_true(shape_parse("1x1x1x1x1x1x1", 13, shape, &rank) && rank == 7);
    static const char *const bad[] = {
        "x", "3x", "x3", "3xx3", "0", "-1", "3 x4", "1x1x1x1x1x1x1x1", "2147483649", "3X4", "99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (shape_parse(bad[i], strlen(bad[i]), shape, &rank))
            fail_msg("\"%s\" was taken", bad[i]);
}

/* All 65,536 halves and bfloats survive a round trip, and values in between go to the nearest, ties to even. */
static void every_half_and_bfloat(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 65536; bits++)
        for (int b = 0; b < 2; b++) {
            dpi_dtype dtype = b ? DPI_BF16 : DPI_F16;
            uint16_t in = (uint16_t)bits, out = 0;
            double value = dtype_get(dtype, &in, 0);
            dtype_set(dtype, &out, 0, value);
            if (value != value) {
                double again = dtype_get(dtype, &out, 0);
                assert_true(again != again);
            } else if (out != in)
                fail_msg("%s 0x%04x is %.9g and comes back as 0x%04x", b ? "bfloat" : "half", in, value, out);
        }
}

static void known_halves(void **state)
{
    (void)state;
    static const struct {
        double value;
        uint16_t half, bfloat;
    } known[] = {
        {0, 0x0000, 0x0000},           {-0.0, 0x8000, 0x8000},        {1, 0x3c00, 0x3f80},
        {-2, 0xc000, 0xc000},          {65504, 0x7bff, 0x4780},       {0x1p-24, 0x0001, 0x3380},
        {0x1p-14, 0x0400, 0x3880},     {1.0 / 3, 0x3555, 0x3eab},     {INFINITY, 0x7c00, 0x7f80},
        {-INFINITY, 0xfc00, 0xff80},   {0x1p-26, 0x0000, 0x3280},     {0x1.8p-25, 0x0001, 0x3340},
        {1 + 0x1p-11, 0x3c00, 0x3f80}, {1 + 0x3p-11, 0x3c02, 0x3f80}, {2049, 0x6800, 0x4500},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        uint16_t h = 0, b = 0;
        dtype_set(DPI_F16, &h, 0, known[i].value);
        dtype_set(DPI_BF16, &b, 0, known[i].value);
        if (h != known[i].half || b != known[i].bfloat)
            fail_msg("%.9g: half 0x%04x for 0x%04x, bfloat 0x%04x for 0x%04x", known[i].value, h, known[i].half, b,
                     known[i].bfloat);
    }
}

/* Between two neighbours every double goes to the nearer one. */
static void halves_are_rounded_to_nearest(void **state)
{
    (void)state;
    for (unsigned bits = 0; bits < 0x7bff; bits++) {
        uint16_t low_bits = (uint16_t)bits, high_bits = (uint16_t)(bits + 1), got = 0;
        double low = dtype_get(DPI_F16, &low_bits, 0), high = dtype_get(DPI_F16, &high_bits, 0);
        dtype_set(DPI_F16, &got, 0, low + (high - low) * 0.375);
        assert_int_equal(got, low_bits);
        dtype_set(DPI_F16, &got, 0, low + (high - low) * 0.625);
        assert_int_equal(got, high_bits);
        dtype_set(DPI_F16, &got, 0, (low + high) / 2);
        assert_int_equal(got, bits & 1 ? high_bits : low_bits);
    }
}

static void integers_saturate(void **state)
{
    (void)state;
#define CHECK(dtype, type, low, high)                                                                                  \
    do {                                                                                                               \
        type v;                                                                                                        \
        dtype_set(dtype, &v, 0, 1e30);                                                                                 \
        assert_true(v == (high));                                                                                      \
        dtype_set(dtype, &v, 0, -1e30);                                                                                \
        assert_true(v == (low));                                                                                       \
        dtype_set(dtype, &v, 0, INFINITY);                                                                             \
        assert_true(v == (high));                                                                                      \
        dtype_set(dtype, &v, 0, NAN);                                                                                  \
        assert_true(v == 0);                                                                                           \
        dtype_set(dtype, &v, 0, 2.5);                                                                                  \
        assert_true(v == 2);                                                                                           \
        dtype_set(dtype, &v, 0, 3.5);                                                                                  \
        assert_true(v == 4);                                                                                           \
        assert_true(dtype_get(dtype, &v, 0) == 4);                                                                     \
    } while (0)
    CHECK(DPI_I8, int8_t, INT8_MIN, INT8_MAX);
    CHECK(DPI_U8, uint8_t, 0, UINT8_MAX);
    CHECK(DPI_I16, int16_t, INT16_MIN, INT16_MAX);
    CHECK(DPI_U16, uint16_t, 0, UINT16_MAX);
    CHECK(DPI_I32, int32_t, INT32_MIN, INT32_MAX);
    CHECK(DPI_U32, uint32_t, 0, UINT32_MAX);
    CHECK(DPI_I64, int64_t, INT64_MIN, INT64_MAX);
    CHECK(DPI_U64, uint64_t, 0, UINT64_MAX);
    uint8_t b = 9;
    dtype_set(DPI_BOOL, &b, 0, 0.25);
    assert_int_equal(b, 1);
    b = 200;
    assert_true(dtype_get(DPI_BOOL, &b, 0) == 1);
}

/* Elements stand anywhere: no alignment is taken for granted. */
static void elements_may_be_unaligned(void **state)
{
    (void)state;
    unsigned char memory[64];
#define X(dtype, number, bytes, text)                                                                                  \
    for (size_t skip = 0; skip < 8; skip++) {                                                                          \
        dtype_set(dtype, memory + skip, 3, 1);                                                                         \
        assert_true(dtype_get(dtype, memory + skip, 3) == 1);                                                          \
    }
    DPI_DTYPE_LIST(X)
#undef X
}

static void names(void **state)
{
    (void)state;
#define X(dtype, number, bytes, text)                                                                                  \
    assert_int_equal(dtype_by_name(text), dtype);                                                                      \
    assert_int_equal(dtype_is_float(dtype), strstr(text, "float") != NULL);
    DPI_DTYPE_LIST(X)
#undef X
    assert_int_equal(dtype_by_name("float"), DPI_DTYPE_NONE);
    assert_int_equal(dtype_by_name(""), DPI_DTYPE_NONE);
    port ports[2] = {{.name = "a"}, {.name = "b"}};
    assert_int_equal(port_find(ports, 2, "b"), 1);
    assert_int_equal(port_find(ports, 2, "c"), -1);
    port p = {.rank = 3, .shape = {-1, 4, -1}};
    assert_true(port_accepts_shape(&p, (int64_t[]){9, 4, 1}, 3));
    assert_false(port_accepts_shape(&p, (int64_t[]){9, 5, 1}, 3));
    assert_false(port_accepts_shape(&p, (int64_t[]){9, 4}, 2));
}

/* Row i is the same whoever makes it and in however many pieces; other rows, seeds and elements differ. */
static void random_rows_depend_on_their_number_alone(void **state)
{
    (void)state;
#define X(dtype, number, bytes, text) dtype,
    static const dpi_dtype all[] = {DPI_DTYPE_LIST(X)};
#undef X
    enum { ROWS = 40, ELEMENTS = 13 };
    for (size_t d = 0; d < sizeof all / sizeof all[0]; d++)
        for (int small = 0; small < 2; small++) {
            size_t row_bytes = ELEMENTS * dpi_dtype_size(all[d]);
            unsigned char *whole = malloc(ROWS * row_bytes), *part = malloc(ROWS * row_bytes + 1);
            tensor_fill_random(all[d], whole, ELEMENTS, 1000, ROWS, 5, small);
            for (size_t first = 0; first < ROWS; first += 7) {
                size_t n = ROWS - first < 7 ? ROWS - first : 7;
                part[n * row_bytes] = 0x77;
                tensor_fill_random(all[d], part, ELEMENTS, 1000 + first, n, 5, small);
                assert_memory_equal(part, whole + first * row_bytes, n * row_bytes);
                assert_int_equal(part[n * row_bytes], 0x77);
            }
            tensor_fill_random(all[d], part, ELEMENTS, 1000, ROWS, 6, small);
            assert_memory_not_equal(part, whole, ROWS * row_bytes);
            assert_memory_not_equal(whole, whole + row_bytes, row_bytes);
            for (size_t e = 0; e < ROWS * ELEMENTS && !dtype_is_float(all[d]) && (small || all[d] == DPI_BOOL); e++) {
                double v = dtype_get(all[d], whole, e);
                assert_true(v == 0 || v == 1);
            }
            free(whole);
            free(part);
        }
}

static void random_floats_are_normal(void **state)
{
    (void)state;
    enum { N = 200000 };
    float *v = malloc(N * sizeof *v);
    double sum = 0, squares = 0;
    tensor_fill_random(DPI_F32, v, 100, 0, N / 100, 1, false);
    for (int i = 0; i < N; i++) {
        sum += (double)v[i];
        squares += (double)v[i] * (double)v[i];
        assert_true(fabsf(v[i]) < 8);
    }
    assert_true(fabs(sum / N) < 0.02);
    assert_true(fabs(squares / N - 1) < 0.03);
    free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_are_checked),
        cmocka_unit_test(shapes_as_text),
        cmocka_unit_test(every_half_and_bfloat),
        cmocka_unit_test(known_halves),
        cmocka_unit_test(halves_are_rounded_to_nearest),
        cmocka_unit_test(integers_saturate),
        cmocka_unit_test(elements_may_be_unaligned),
        cmocka_unit_test(names),
        cmocka_unit_test(random_rows_depend_on_their_number_alone),
        cmocka_unit_test(random_floats_are_normal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
