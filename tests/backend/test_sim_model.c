/* The text of a sim model: what it means, and that nothing in it can do harm. */
#include "backend/sim.h"
#include "base/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static dpi_status parse(const char *text, sim_model *model, dpi_error *error)
{
    /* A copy of exactly this size, so that the address sanitizer sees a read behind its end. */
    size_t bytes = strlen(text);
    char *copy = malloc(bytes ? bytes : 1);
    memcpy(copy, text, bytes);
    dpi_status status = sim_model_parse(copy, bytes, "m.sim", model, error);
    free(copy);
    return status;
}

static void a_model_means_what_it_says(void **state)
{
    (void)state;
    sim_model *m = malloc(sizeof *m);
    dpi_error error = {0};
    const char *text = "# a comment\n"
                       "input image float32 N 3 224 ?   # pixels\r\n"
                       "\n"
                       "input scale float16 broadcast 4\n"
                       "output logits bfloat16 N 10\n"
                       "output text int64 N image.3 2\n"
                       "touch ends\n"
                       "fixed_us 12.5\n"
                       "row_us 3\n"
                       "busy 1\n"
                       "depth 3\n"
                       "copy_in_mb_s 55000\n"
                       "copy_out_mb_s 0.5\n"
                       "fault_in_enqueue 1\n"
                       "die_at_slice 7\n"
                       "signal 11";
    assert_int_equal(parse(text, m, &error), DPI_OK);
    assert_int_equal(m->sig.input_count, 2);
    assert_int_equal(m->sig.output_count, 2);
    assert_string_equal(m->sig.inputs[0].name, "image");
    assert_int_equal(m->sig.inputs[0].dtype, DPI_F32);
    assert_int_equal(m->sig.inputs[0].rank, 4);
    const int64_t image[] = {-1, 3, 224, -1};
    assert_memory_equal(m->sig.inputs[0].shape, image, sizeof image);
    assert_false(m->broadcast[0]);
    assert_true(m->broadcast[1]);
    assert_int_equal(m->sig.inputs[1].rank, 1);
    assert_int_equal(m->sig.inputs[1].shape[0], 4);
    assert_int_equal(m->sig.outputs[1].shape[1], -1);
    assert_int_equal(m->axes[1][1].input, 0);
    assert_int_equal(m->axes[1][1].axis, 3);
    assert_int_equal(m->axes[1][2].input, -1);
    assert_int_equal(m->touch, SIM_TOUCH_ENDS);
    assert_true(m->fixed_us == 12.5 && m->row_us == 3 && m->busy);
    assert_true(m->copy_in_mb_s == 55000 && m->copy_out_mb_s == 0.5 && m->fault_in_enqueue);
    assert_int_equal(m->depth, 3);
    assert_int_equal(m->die_at_slice, 7);
    assert_int_equal(m->signal, 11);
    free(m);
}

static void a_fixed_batch_is_a_number_in_place_of_n(void **state)
{
    (void)state;
    sim_model *m = malloc(sizeof *m);
    assert_int_equal(parse("input x int8 4 2\noutput y int8 4 2\n", m, NULL), DPI_OK);
    assert_int_equal(m->sig.inputs[0].shape[0], 4);
    assert_int_equal(m->sig.outputs[0].shape[0], 4);
    assert_int_equal(m->depth, 1);
    free(m);
}

static void every_dtype_has_its_name(void **state)
{
    (void)state;
    sim_model *m = malloc(sizeof *m);
#define X(dtype_number, number, bytes, name)                                                                           \
    assert_int_equal(parse("input x " name " N\noutput y " name " N\n", m, NULL), DPI_OK);                             \
    assert_int_equal(m->sig.inputs[0].dtype, dtype_number);
    DPI_DTYPE_LIST(X)
#undef X
    free(m);
}

/* Each of these is refused with the number of its line. */
static void a_wrong_line_is_named(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "input",
        "input x",
        "input x float32",
        "input x float31 N",
        "input x string N",
        "input x float32 M",
        "input x float32 -1 3",
        "input x float32 0 3",
        "input x float32 N -3",
        "input x float32 N 3.5",
        "input x float32 N N",
        "input x float32 ? 3",
        "input x float32 N 99999999999999999999",
        "input x float32 N 1099511627776 1099511627776",
        "input x float32 N 1 2 3 4 5 6 7 8",
        "input x float32 N 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
        "input x float32 broadcast 1 2 3 4 5 6 7 8 9",
        "input a float32 N",
        "output b float32 N",
        "output y float32 N a.0",
        "output y float32 N a.9",
        "output y float32 N a.1",
        "output y float32 N nobody.1",
        "output y float32 N .1",
        "output y float32 N ?",
        "output y float32 a.1",
        "output y float32 broadcast 3",
        "colour red",
        "touch",
        "touch some",
        "touch all ends",
        "fixed_us -1",
        "fixed_us nan",
        "fixed_us inf",
        "fixed_us 1e300",
        "fixed_us 0x10",
        "busy 2",
        "busy yes",
        "die_at_slice 1.5",
        "faults die_at_slice=1",
        "faults 0:die_at_slice=1",
        "faults 1:die_at_slice",
        "faults 1:die_at_slice=x",
        "faults 2:depth=3",
        "faults 1:faults=1:signal=9",
        "hang_probe 2",
        "slow_us -1",
        "signal 65",
        "depth 0",
        "depth 9",
        "depth -3",
        "depth three",
        "copy_in_mb_s -1",
        "copy_out_mb_s fast",
        "fault_in_enqueue 2",
        "\x01\x02\xff",
    };
    sim_model *m = malloc(sizeof *m);
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        char *text = text_format("input a float32 N\noutput b float32 N\n%s\ntouch all\n", lines[i]);
        dpi_error error = {0};
        dpi_status status = parse(text, m, &error);
        if (status != DPI_E_MODEL || !strstr(error.message, "m.sim") || !strstr(error.message, "line 3"))
            fail_msg("\"%s\": status %d, \"%s\"", lines[i], status, error.message);
        free(text);
    }
    free(m);
}

static void what_is_no_model_is_refused(void **state)
{
    (void)state;
    sim_model *m = malloc(sizeof *m);
    dpi_error error = {0};
    assert_int_equal(parse("", m, &error), DPI_E_MODEL);
    assert_int_equal(parse("\n\n#\n", m, &error), DPI_E_MODEL);
    assert_int_equal(parse("input x float32 N\n", m, &error), DPI_E_MODEL);
    assert_int_equal(parse("output x float32 N\n", m, &error), DPI_E_MODEL);
    static const char zero[] = "input x float32 N\noutput y float32 N\nbusy 1\0 1\n";
    assert_int_equal(sim_model_parse(zero, sizeof zero - 1, "z.sim", m, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, "z.sim"));
    char *longest = malloc(70000);
    memset(longest, 'x', 70000);
    assert_int_equal(sim_model_parse(longest, 70000, "l.sim", m, &error), DPI_E_MODEL);
    free(longest);
    free(m);
}

static void as_many_ports_as_fit_and_no_more(void **state)
{
    (void)state;
    sim_model *m = malloc(sizeof *m);
    for (int count = PORT_MAX; count <= PORT_MAX + 1; count++) {
        text_buffer t = {0};
        for (int i = 0; i < count; i++)
            text_add(&t, "input i%d float32 N\noutput o%d float32 N\n", i, i);
        assert_int_equal(parse(t.data, m, NULL), count == PORT_MAX ? DPI_OK : DPI_E_MODEL);
        text_free(&t);
    }
    char name[PORT_NAME_SIZE + 1];
    for (size_t length = PORT_NAME_SIZE - 1; length <= PORT_NAME_SIZE; length++) {
        memset(name, 'n', length);
        name[length] = 0;
        char *text = text_format("input %s float32 N\noutput y float32 N\n", name);
        assert_int_equal(parse(text, m, NULL), length < PORT_NAME_SIZE ? DPI_OK : DPI_E_MODEL);
        free(text);
    }
    free(m);
}

static void options_are_checked_like_lines(void **state)
{
    (void)state;
    sim_model *m = calloc(1, sizeof *m);
    assert_true(sim_model_set(m, "row_us", "7"));
    assert_true(m->row_us == 7);
    assert_true(sim_model_set(m, "touch", "none"));
    assert_int_equal(m->touch, SIM_TOUCH_NONE);
    assert_false(sim_model_set(m, "row_us", ""));
    assert_false(sim_model_set(m, "row_us", "7us"));
    assert_true(m->row_us == 7);
    assert_false(sim_model_set(m, "input", "x"));
    free(m);
}

static void every_known_option_is_one_that_can_be_set(void **state)
{
    (void)state;
    sim_model *m = calloc(1, sizeof *m);
    char *copy = strdup(SIM_OPTIONS), *rest = NULL;
    for (char *key = strtok_r(copy, " ", &rest); key; key = strtok_r(NULL, " ", &rest))
        if (!sim_model_set(m, key,
                           strcmp(key, "touch") == 0        ? "all"
                           : strcmp(key, "poison_how") == 0 ? "hang"
                           : strcmp(key, "faults") == 0     ? "2:signal=9"
                                                            : "1"))
            fail_msg("%s is listed but cannot be set", key);
    free(copy);
    free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_means_what_it_says),     cmocka_unit_test(a_fixed_batch_is_a_number_in_place_of_n),
        cmocka_unit_test(every_dtype_has_its_name),       cmocka_unit_test(a_wrong_line_is_named),
        cmocka_unit_test(what_is_no_model_is_refused),    cmocka_unit_test(as_many_ports_as_fit_and_no_more),
        cmocka_unit_test(options_are_checked_like_lines), cmocka_unit_test(every_known_option_is_one_that_can_be_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
