/* Errors: always terminated, never longer than their place, and harmless without one. */
#include "base/error.h"

#include <errno.h>
#include <setjmp.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void setting(void **state)
{
    (void)state;
    dpi_error e;
    memset(&e, 0x55, sizeof e);
    assert_int_equal(error_set(&e, DPI_E_DATA, "%s is %d", "x", 5), DPI_E_DATA);
    assert_int_equal(e.status, DPI_E_DATA);
    assert_string_equal(e.message, "x is 5");
    assert_int_equal(error_set_errno(&e, DPI_E_IO, ENOSPC, "cannot write %s", "file"), DPI_E_IO);
    assert_string_equal(e.message, "cannot write file: No space left on device");
    assert_int_equal(error_prefix(&e, "cpu:%d", 3), DPI_E_IO);
    assert_string_equal(e.message, "cpu:3: cannot write file: No space left on device");
    assert_int_equal(error_clear(&e), DPI_OK);
    assert_int_equal(e.status, DPI_OK);
    assert_string_equal(e.message, "");
    assert_int_equal(error_set(NULL, DPI_E_DATA, "%s", "x"), DPI_E_DATA);
    assert_int_equal(error_set_errno(NULL, DPI_E_DATA, EIO, "%s", "x"), DPI_E_DATA);
    assert_int_equal(error_clear(NULL), DPI_OK);
}

static void long_texts_are_cut(void **state)
{
    (void)state;
    struct {
        dpi_error e;
        char after[8];
    } s;
    char longer[3000];
    memset(&s, 0x55, sizeof s);
    memset(longer, 'y', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    error_set(&s.e, DPI_E_DATA, "%s", longer);
    assert_int_equal(strlen(s.e.message), sizeof s.e.message - 1);
    error_set_errno(&s.e, DPI_E_DATA, EIO, "%s", longer);
    assert_int_equal(strlen(s.e.message), sizeof s.e.message - 1);
    error_prefix(&s.e, "%s", longer);
    assert_int_equal(strlen(s.e.message), sizeof s.e.message - 1);
    error_prefix(&s.e, "short");
    assert_int_equal(strncmp(s.e.message, "short: yyy", 10), 0);
    assert_int_equal(s.after[0], 0x55);
}

/* An error may be rewritten with its own text. */
static void the_message_may_be_an_argument(void **state)
{
    (void)state;
    dpi_error e, from;
    error_set(&from, DPI_E_MODEL, "inner");
    error_set(&e, from.status, "outer: %s", from.message);
    assert_string_equal(e.message, "outer: inner");
}

static void statuses_have_names_and_exit_codes(void **state)
{
    (void)state;
#define X(name, number, blame, text)                                                                                   \
    assert_string_equal(dpi_status_name(name), #name);                                                                 \
    if (number >= 16)                                                                                                  \
        assert_int_equal(dpi_status_exit_code(name), blame == 'u' ? 2 : 1);
    DPI_STATUS_LIST(X)
#undef X
    assert_int_equal(dpi_status_exit_code(DPI_OK), 0);
    assert_string_equal(dpi_status_name((dpi_status)999), "?");
    assert_string_equal(dpi_status_name((dpi_status)-1), "?");
    assert_true(dpi_status_exit_code((dpi_status)999) != 0);
#define X(name, number, bytes, text)                                                                                   \
    assert_int_equal(dpi_dtype_size(name), bytes);                                                                     \
    assert_string_equal(dpi_dtype_name(name), text);
    DPI_DTYPE_LIST(X)
#undef X
    assert_int_equal(dpi_dtype_size((dpi_dtype)99), 0);
    assert_string_equal(dpi_dtype_name((dpi_dtype)99), "?");
    assert_int_equal(dpi_dtype_size(DPI_DTYPE_NONE), 0);
    assert_true(strlen(dpi_version()) >= 5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(setting),
        cmocka_unit_test(long_texts_are_cut),
        cmocka_unit_test(the_message_may_be_an_argument),
        cmocka_unit_test(statuses_have_names_and_exit_codes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
