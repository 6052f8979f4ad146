/* Numbers, sets and buffers from untrusted text. */
#include "base/text.h"

#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void whole_numbers(void **state)
{
    (void)state;
    uint64_t u = 7;
    int64_t i = 7;
    static const char *const bad[] = {"",
                                      " 1",
                                      "1 ",
                                      "+1",
                                      "-1",
                                      "1.0",
                                      "0x10",
                                      "1e3",
                                      "a",
                                      "1a",
                                      "--1",
                                      "１",
                                      "18446744073709551616",
                                      "99999999999999999999999"};
    for (size_t n = 0; n < sizeof bad / sizeof bad[0]; n++)
        if (text_to_u64(bad[n], 0, UINT64_MAX, &u))
            fail_msg("\"%s\" was taken as %llu", bad[n], (unsigned long long)u);
    assert_true(text_to_u64("18446744073709551615", 0, UINT64_MAX, &u));
    assert_int_equal(u, UINT64_MAX);
    assert_true(text_to_u64("007", 7, 7, &u));
    assert_false(text_to_u64("8", 0, 7, &u));
    assert_false(text_to_u64("2", 3, 7, &u));
    assert_true(text_to_i64("-9223372036854775808", INT64_MIN, INT64_MAX, &i));
    assert_int_equal(i, INT64_MIN);
    assert_true(text_to_i64("9223372036854775807", INT64_MIN, INT64_MAX, &i));
    assert_int_equal(i, INT64_MAX);
    assert_false(text_to_i64("9223372036854775808", INT64_MIN, INT64_MAX, &i));
    assert_false(text_to_i64("-9223372036854775809", INT64_MIN, INT64_MAX, &i));
    assert_false(text_to_i64("-", INT64_MIN, INT64_MAX, &i));
    assert_false(text_to_i64("-1", 0, 5, &i));
}

static void decimal_numbers(void **state)
{
    (void)state;
    double d = 7;
    static const char *const bad[] = {"",      " 1",    "1 ",  "nan",   "inf", "-inf",
                                      "1e999", "0x1p3", "1,5", "1.5.2", "e5",  "."};
    for (size_t n = 0; n < sizeof bad / sizeof bad[0]; n++)
        if (text_to_double(bad[n], &d))
            fail_msg("\"%s\" was taken as %g", bad[n], d);
    assert_true(text_to_double("-1.5e-3", &d) && d == -1.5e-3);
    static const char *const locales[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"};
    for (size_t n = 0; n < 3; n++)
        if (setlocale(LC_NUMERIC, locales[n]))
            break;
    assert_true(text_to_double("0.25", &d) && d == 0.25);
    setlocale(LC_NUMERIC, "C");
}

static void sets(void **state)
{
    (void)state;
    size_t count = 0;
    dpi_error error;
    int *numbers = text_to_set("8,0-3,2,1-1", 16, &count, &error);
    assert_non_null(numbers);
    assert_int_equal(count, 5);
    static const int want[] = {0, 1, 2, 3, 8};
    assert_memory_equal(numbers, want, sizeof want);
    char *text = text_from_set(numbers, count);
    assert_string_equal(text, "0-3,8");
    free(text);
    free(numbers);
    static const char *const bad[] = {"",    ",",  "1,",   ",1",          "1,,2",         "3-1",   "-1",
                                      "1-",  "a",  "1 2",  "16",          "0-16",         "1-2-3", "+1",
                                      "0x1", " 1", "1,-2", "99999999999", "0-99999999999"};
    for (size_t n = 0; n < sizeof bad / sizeof bad[0]; n++) {
        error = (dpi_error){0};
        numbers = text_to_set(bad[n], 16, &count, &error);
        if (numbers)
            fail_msg("\"%s\" was taken", bad[n]);
        assert_true(error.status != DPI_OK && error.message[0] != 0);
    }
}

static void sets_round_trip(void **state)
{
    (void)state;
    for (unsigned bits = 1; bits < 1u << 12; bits++) {
        int numbers[12];
        size_t count = 0, back_count = 0;
        for (int i = 0; i < 12; i++)
            if (bits >> i & 1)
                numbers[count++] = i;
        char *text = text_from_set(numbers, count);
        int *back = text_to_set(text, 12, &back_count, NULL);
        assert_non_null(back);
        assert_int_equal(back_count, count);
        assert_memory_equal(back, numbers, count * sizeof numbers[0]);
        free(back);
        free(text);
    }
}

static void buffers_grow(void **state)
{
    (void)state;
    text_buffer t = {0};
    for (int i = 0; i < 5000; i++)
        text_add(&t, "%d,", i);
    text_add_bytes(&t, "a\0b", 3);
    text_add(&t, "%s", "");
    assert_false(t.failed);
    assert_int_equal(t.length, 10 * 2 + 90 * 3 + 900 * 4 + 4000 * 5 + 3);
    assert_int_equal(strncmp(t.data, "0,1,2,", 6), 0);
    assert_memory_equal(t.data + t.length - 8, "4999,a\0b", 8);
    assert_int_equal(t.data[t.length], 0);
    text_free(&t);
    text_free(&t);
    char *text = text_format("%s-%d", "x", 5);
    assert_string_equal(text, "x-5");
    free(text);
}

static void checked_arithmetic(void **state)
{
    (void)state;
    size_t out = 0;
    assert_true(size_multiply(1u << 20, 1u << 20, &out) && out == 1ull << 40);
    assert_false(size_multiply(SIZE_MAX, 2, &out));
    assert_true(size_add(SIZE_MAX - 1, 1, &out) && out == SIZE_MAX);
    assert_false(size_add(SIZE_MAX, 1, &out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_numbers),   cmocka_unit_test(decimal_numbers), cmocka_unit_test(sets),
        cmocka_unit_test(sets_round_trip), cmocka_unit_test(buffers_grow),    cmocka_unit_test(checked_arithmetic),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
