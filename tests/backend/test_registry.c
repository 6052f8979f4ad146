/* The list of backends and the helpers that all of them share. */
#include "backend/backend.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void list_has_the_documented_order(void **state)
{
    (void)state;
    size_t count;
    const backend *const *list = backend_list(&count);
    const char *order[] = {"tensorrt", "openvino", "onnxruntime", "aoti", "sim"};
    size_t at = 0;
    for (size_t i = 0; i < count && at < 5; i++)
        at += strcmp(list[i]->name, order[at]) == 0;
    assert_int_equal(at, 5); /* others may stand between them */
}

static void every_backend_fills_the_slots_that_must_be_there(void **state)
{
    (void)state;
    size_t count;
    const backend *const *list = backend_list(&count);
    for (size_t i = 0; i < count; i++) {
        const backend *b = list[i];
        assert_true(b->name && b->formats && b->device_kinds);
        assert_true(b->load && b->unload && b->library_info && b->list_devices);
        assert_true(b->open && b->close && b->describe && b->infer_shapes);
        assert_true(b->run || (b->enqueue && b->depth));
        assert_true((b->enqueue != NULL) == (b->wait != NULL));
        assert_ptr_equal(backend_find(b->name), b);
    }
}

static void unknown_names_are_not_found(void **state)
{
    (void)state;
    assert_null(backend_find("nothing"));
    assert_null(backend_find(""));
    assert_null(backend_for("nothing", NULL));
    assert_null(backend_for("", NULL));
    assert_null(backend_for("sim", "cpu"));
}

static void formats_choose_the_first_that_opens_them(void **state)
{
    (void)state;
    assert_ptr_equal(backend_for("onnx", NULL), &backend_tensorrt);
    assert_ptr_equal(backend_for("onnx", "cpu"), &backend_openvino);
    assert_ptr_equal(backend_for("xml", "cpu"), &backend_openvino);
    assert_ptr_equal(backend_for("pt2", "cpu"), &backend_aoti);
    assert_ptr_equal(backend_for("pt2", "cuda"), &backend_aoti);
    assert_ptr_equal(backend_for("sim", "sim"), &backend_sim);
}

static void lists_match_whole_words(void **state)
{
    (void)state;
    assert_true(backend_lists("onnx xml", "onnx"));
    assert_true(backend_lists("onnx xml", "xml"));
    assert_true(backend_lists("  onnx  xml ", "xml"));
    assert_false(backend_lists("onnx xml", "onn"));
    assert_false(backend_lists("onnx xml", "nnx"));
    assert_false(backend_lists("onnx xml", "onnx xml"));
    assert_false(backend_lists("onnx xml", ""));
    assert_false(backend_lists("onnx xml", " "));
    assert_false(backend_lists("", "onnx"));
}

static void format_is_the_lower_case_suffix(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"model.onnx", "onnx"},
        {"/a/b.c/model.ONNX", "onnx"},
        {"/a.onnx/model", ""},
        {"model", ""},
        {"model.", ""},
        {"a.b.xml", "xml"},
        {"", ""},
        {"dir/.", ""},
        {"x.sim", "sim"},
        {"x.pt2", "pt2"},
        {"x.abcdefghijklmnopqrst", "abcdefghijklmno"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char format[16];
        memset(format, 'z', sizeof format);
        backend_format_of(cases[i][0], format);
        assert_string_equal(format, cases[i][1]);
    }
}

static void the_last_value_of_an_option_counts(void **state)
{
    (void)state;
    const dpi_key_value list[] = {{"row_us", "1"}, {"busy", "1"}, {"row_us", "2"}};
    backend_open_options options = {.options = list, .option_count = 3};
    assert_string_equal(backend_option(&options, "row_us"), "2");
    assert_string_equal(backend_option(&options, "busy"), "1");
    assert_null(backend_option(&options, "bus"));
}

static void an_unknown_option_is_named_with_the_known_ones(void **state)
{
    (void)state;
    const dpi_key_value list[] = {{"row_us", "1"}, {"colour", "red"}};
    backend_open_options options = {.options = list, .option_count = 2};
    dpi_error error = {0};
    assert_int_equal(backend_check_options(&options, "sim", "fixed_us row_us", &error), DPI_E_ARGUMENT);
    assert_int_equal(error.status, DPI_E_ARGUMENT);
    assert_non_null(strstr(error.message, "colour"));
    assert_non_null(strstr(error.message, "fixed_us row_us"));
    options.option_count = 1;
    assert_int_equal(backend_check_options(&options, "sim", "fixed_us row_us", &error), DPI_OK);
    options.option_count = 0;
    assert_int_equal(backend_check_options(&options, "sim", "", NULL), DPI_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_has_the_documented_order),
        cmocka_unit_test(every_backend_fills_the_slots_that_must_be_there),
        cmocka_unit_test(unknown_names_are_not_found),
        cmocka_unit_test(formats_choose_the_first_that_opens_them),
        cmocka_unit_test(lists_match_whole_words),
        cmocka_unit_test(format_is_the_lower_case_suffix),
        cmocka_unit_test(the_last_value_of_an_option_counts),
        cmocka_unit_test(an_unknown_option_is_named_with_the_known_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
