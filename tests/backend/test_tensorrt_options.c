/* The tensorrt backend's options and profiles, which need no GPU. */
#include "backend/tensorrt_options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static dpi_status read_one(const char *key, const char *value, tensorrt_options *options, dpi_error *error)
{
    static dpi_key_value pair;
    static backend_open_options from;
    pair = (dpi_key_value){key, value};
    from = (backend_open_options){.options = &pair, .option_count = 1};
    *error = (dpi_error){0};
    return tensorrt_options_read(&from, options, error);
}

static void options_are_read_and_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *key, *value;
        bool good;
    } cases[] = {
        {"workspace_mb", "1024", true},
        {"workspace_mb", "0", false},
        {"workspace_mb", "much", false},
        {"level", "5", true},
        {"level", "6", false},
        {"depth", "1", true},
        {"depth", "9", false},
        {"depth", "0", false},
        {"cuda_graphs", "1", true},
        {"cuda_graphs", "yes", false},
        {"wait", "spin", true},
        {"wait", "block", true},
        {"wait", "", false},
        {"timing_cache", "f", true},
        {"timing_cache", "", false},
        {"copy_threads", "8", true},
        {"copy_threads", "0", false},
        {"shape.x", "anything", true},
        {"fp16", "1", false},
        {"shape", "3x3", false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tensorrt_options o;
        dpi_error error;
        dpi_status status = read_one(cases[i].key, cases[i].value, &o, &error);
        assert_int_equal(status, cases[i].good ? DPI_OK : DPI_E_ARGUMENT);
        if (!cases[i].good)
            assert_non_null(strstr(error.message, cases[i].key));
    }
    tensorrt_options o;
    backend_open_options none = {0};
    assert_int_equal(tensorrt_options_read(&none, &o, NULL), DPI_OK);
    assert_int_equal(o.depth, 3);
    assert_int_equal(o.level, -1);
    assert_null(o.timing_cache);
}

static dpi_status profile(const trt_port *input, const char *range, trt_profile *p, dpi_error *error)
{
    tensorrt_options o;
    char key[TRT_NAME_SIZE + 8];
    snprintf(key, sizeof key, "shape.%s", input->name);
    *p = (trt_profile){.name = input->name, .rank = input->rank};
    if (range)
        return read_one(key, range, &o, error) ? DPI_E_INTERNAL : tensorrt_profile(&o, input, 16, p, error);
    backend_open_options none = {0};
    *error = (dpi_error){0};
    tensorrt_options_read(&none, &o, NULL);
    return tensorrt_profile(&o, input, 16, p, error);
}

static void rows_reach_from_one_to_the_batch(void **state)
{
    (void)state;
    trt_port input = {.name = "x", .rank = 3, .shape = {-1, 3, 8}};
    trt_profile p;
    dpi_error error;
    assert_int_equal(profile(&input, NULL, &p, &error), DPI_OK);
    assert_int_equal(p.min[0], 1);
    assert_int_equal(p.opt[0], 16);
    assert_int_equal(p.max[0], 16);
    assert_int_equal(p.max[2], 8);
    input.shape[2] = -1;
    assert_int_equal(profile(&input, NULL, &p, &error), DPI_E_ARGUMENT);
    assert_non_null(strstr(error.message, "--shape x="));
}

static void ranges_of_free_axes(void **state)
{
    (void)state;
    trt_port input = {.name = "x", .rank = 3, .shape = {-1, 3, -1}};
    static const struct {
        const char *range;
        int64_t min, opt, max; /* of the last axis; min 0: refused */
    } cases[] = {
        {"3x8", 8, 8, 8},
        {"3x4:3x8:3x16", 4, 8, 16},
        {"16x3x8", 8, 8, 8},
        {"4x8", 0, 0, 0},
        {"3x8:3x4:3x16", 0, 0, 0},
        {"3x4:3x8", 0, 0, 0},
        {"3x4:3x8:3x16:", 0, 0, 0},
        {"3x4:3x8:3x16:3x32", 0, 0, 0},
        {"", 0, 0, 0},
        {"3x", 0, 0, 0},
        {"3x0", 0, 0, 0},
        {"8", 0, 0, 0},
        {"1x2x3x4x5x6x7x8x9", 0, 0, 0},
        {"3x99999999999", 0, 0, 0},
        {"::", 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        trt_profile p;
        dpi_error error;
        dpi_status status = profile(&input, cases[i].range, &p, &error);
        if (status != (cases[i].min ? DPI_OK : DPI_E_ARGUMENT))
            fail_msg("%s: %d %s", cases[i].range, status, error.message);
        if (status)
            continue;
        assert_int_equal(p.min[2], cases[i].min);
        assert_int_equal(p.opt[2], cases[i].opt);
        assert_int_equal(p.max[2], cases[i].max);
        assert_int_equal(p.min[1], 3);
    }
}

static void the_timing_cache_is_whole_or_absent(void **state)
{
    (void)state;
    char folder[] = "/tmp/dpinfer-timing-XXXXXX", file[64];
    assert_non_null(mkdtemp(folder));
    snprintf(file, sizeof file, "%s/t", folder);
    tensorrt_options o = {.timing_cache = file};
    void *data;
    size_t bytes;
    dpi_error error;
    assert_int_equal(tensorrt_timing_read(&o, &data, &bytes, &error), DPI_OK);
    assert_null(data);
    assert_int_equal(tensorrt_timing_write(&o, "abc", 3, &error), DPI_OK);
    assert_int_equal(tensorrt_timing_write(&o, "abcd", 4, &error), DPI_OK);
    assert_int_equal(tensorrt_timing_read(&o, &data, &bytes, &error), DPI_OK);
    assert_int_equal(bytes, 4);
    assert_memory_equal(data, "abcd", 4);
    free(data);
    unlink(file);
    assert_int_equal(rmdir(folder), 0); /* nothing else was left */
    assert_int_equal(tensorrt_timing_write(&o, "abc", 3, &error), DPI_E_IO);
    assert_non_null(strstr(error.message, file));
    o.timing_cache = NULL;
    assert_int_equal(tensorrt_timing_write(&o, "abc", 3, &error), DPI_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_are_read_and_refused_by_name),
        cmocka_unit_test(rows_reach_from_one_to_the_batch),
        cmocka_unit_test(ranges_of_free_axes),
        cmocka_unit_test(the_timing_cache_is_whole_or_absent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
