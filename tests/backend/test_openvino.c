/* What OpenVINO alone has to show: IR, ports, memory, stored engines, the shipped model, the library. The suite that
 * every backend passes is in conformance.c; precision is in test_openvino_precision.c. */
#include "backend/openvino_kit.h"
#include "base/file.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static const backend *const ov = &backend_openvino;

/* ---- IR ---------------------------------------------------------------------------------------------------------- */

static void check_small(backend_engine *engine)
{
    const float x[3][4] = {{1, 0, 0, 0}, {0, 1, 0, 1}, {1, 1, 1, 1}}, want[3][2] = {{1, 2}, {10, 12}, {16, 20}};
    float y[3][2];
    run_floats(engine, x[0], 3, 4, y[0], 2);
    assert_memory_equal(y, want, sizeof want);
}

static void ir_takes_the_weights_beside_it(void **state)
{
    char *path = write_small("small");
    backend_engine *engine = open_well(*state, &(opening){.path = path});
    signature sig;
    assert_int_equal(ov->describe(engine, &sig, NULL), DPI_OK);
    assert_int_equal(sig.input_count, 1);
    assert_int_equal(sig.output_count, 1);
    assert_string_equal(sig.inputs[0].name, "x");
    assert_string_equal(sig.outputs[0].name, "y");
    assert_int_equal(sig.inputs[0].shape[0], -1);
    assert_int_equal(sig.inputs[0].shape[1], 4);
    check_small(engine);
    ov->close(engine);
    free(path);
}

static void ir_with_missing_or_short_weights_is_refused(void **state)
{
    char *path = write_small("weightless"), *bin = test_path("weightless.bin");
    for (off_t bytes = 0; bytes < 32; bytes += 13) {
        assert_int_equal(truncate(bin, bytes), 0);
        open_badly(*state, &(opening){.path = path}, DPI_E_MODEL, path, NULL);
    }
    assert_int_equal(unlink(bin), 0);
    open_badly(*state, &(opening){.path = path}, DPI_E_MODEL, path, NULL);
    free(bin);
    free(path);
}

static void ir_that_is_cut_short_is_refused(void **state)
{
    char *path = write_small("cut");
    void *text;
    size_t bytes;
    assert_int_equal(file_read(path, 1 << 20, &text, &bytes, NULL), DPI_OK);
    for (size_t cut = 0; cut < bytes; cut += bytes / 24) {
        assert_int_equal(truncate(path, 0), 0);
        test_write(path, text, cut);
        open_badly(*state, &(opening){.path = path}, DPI_E_MODEL, path, NULL);
        open_badly(*state, &(opening){.data = text, .bytes = cut}, DPI_E_MODEL, "memory", NULL);
    }
    free(text);
    free(path);
}

static void ir_from_memory_works_without_weights_and_is_refused_with_them(void **state)
{
    ir m = {0};
    int x = ir_input(&m, "f32", "FP32", "?,4", "-1,4", "x");
    ir_output(&m, ir_layer(&m, "Multiply", "", (const int[]){x, x, -1}, "FP32", "-1,4", "y"));
    char *text = ir_text(&m), *path = ir_write(&m, "square");
    backend_engine *engine = open_well(*state, &(opening){.data = text, .bytes = strlen(text)});
    const float in[4] = {1, -2, 3, 0.5f}, want[4] = {1, 4, 9, 0.25f};
    float y[4];
    run_floats(engine, in, 1, 4, y, 4);
    assert_memory_equal(y, want, sizeof want);
    ov->close(engine);
    free(text);
    free(path);
    size_t bytes;
    void *data;
    path = write_small("small");
    assert_int_equal(file_read(path, 1 << 20, &data, &bytes, NULL), DPI_OK);
    open_badly(*state, &(opening){.data = data, .bytes = bytes}, DPI_E_MODEL, "memory", NULL);
    free(data);
    free(path);
}

static void ports_without_names_get_some(void **state)
{
    ir m = {0};
    int x = ir_input(&m, "f32", "FP32", "?,4", "-1,4", NULL);
    ir_output(&m, ir_layer(&m, "ReLU", "", (const int[]){x, -1}, "FP32", "-1,4", NULL));
    char *path = ir_write(&m, "nameless");
    backend_engine *engine = open_well(*state, &(opening){.path = path});
    signature sig;
    assert_int_equal(ov->describe(engine, &sig, NULL), DPI_OK);
    assert_string_equal(sig.inputs[0].name, "input0");
    assert_string_equal(sig.outputs[0].name, "output0");
    ov->close(engine);
    engine = open_well(*state, &(opening){.path = path, .output_names = {"output0"}});
    ov->close(engine);
    free(path);
}

static void an_open_number_of_axes_is_refused(void **state)
{
    ir m = {0};
    int x = ir_input(&m, "f32", "FP32", "...", "-1", "loose");
    ir_output(&m, ir_layer(&m, "ReLU", "", (const int[]){x, -1}, "FP32", "-1", "y"));
    char *path = ir_write(&m, "loose");
    open_badly(*state, &(opening){.path = path}, DPI_E_MODEL, path, "dynamic rank");
    free(path);
}

/* ---- outputs ----------------------------------------------------------------------------------------------------- */

/* x [N,4] -> y = relu(x), where = the indices of what is not zero: its size depends on data */
static char *write_two_outputs(void)
{
    ir m = {0};
    int x = ir_input(&m, "f32", "FP32", "?,4", "-1,4", "x");
    int y = ir_layer(&m, "ReLU", "", (const int[]){x, -1}, "FP32", "-1,4", "y");
    int where = ir_layer(&m, "NonZero", "output_type=\"i64\"", (const int[]){x, -1}, "I64", "2,-1", "where");
    ir_output(&m, y);
    ir_output(&m, where);
    return ir_write(&m, "where");
}

static void an_output_that_is_not_wanted_may_be_of_any_size(void **state)
{
    char *path = write_two_outputs();
    backend_engine *engine = open_well(*state, &(opening){.path = path, .output_names = {"y"}});
    const float x[8] = {1, -1, 0, 2, -3, 0, 0, 5}, want[8] = {1, 0, 0, 2, 0, 0, 0, 5};
    float y[8];
    backend_array in = {.rank = 2, .shape = {2, 4}}, out[2] = {{0}};
    assert_int_equal(ov->infer_shapes(engine, &in, out, NULL), DPI_OK);
    run_floats(engine, x, 2, 4, y, 4);
    assert_memory_equal(y, want, sizeof want);
    ov->close(engine);
    engine = open_well(*state, &(opening){.path = path});
    dpi_error error = {0};
    assert_int_equal(ov->infer_shapes(engine, &in, out, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, "where"));
    ov->close(engine);
    free(path);
}

static void an_output_that_is_wanted_twice_comes_twice(void **state)
{
    char *path = write_small("small");
    backend_engine *engine = open_well(*state, &(opening){.path = path, .output_names = {"y", "y"}});
    float x[8] = {1, 0, 0, 0, 0, 1, 0, 1}, y[2][4] = {{0}}, want[4] = {1, 2, 10, 12};
    backend_array in = {.data = x, .rank = 2, .shape = {2, 4}};
    backend_array out[2] = {{.data = y[0], .rank = 2, .shape = {2, 2}}, {.data = y[1], .rank = 2, .shape = {2, 2}}};
    run_well(engine, &in, out);
    assert_memory_equal(y[0], want, sizeof want);
    assert_memory_equal(y[1], want, sizeof want);
    ov->close(engine);
    free(path);
}

/* The engine remembers what memory it was given last: what stands in it, and its shape, may change all the same. */
static void memory_may_stay_the_same_or_change_between_calls(void **state)
{
    char *path = write_small("small");
    backend_engine *engine = open_well(*state, &(opening){.path = path});
    float x[2][3 * 4], y[2][3 * 2], wide[3 * 5] = {0};
    for (uint64_t i = 0; i < 64; i++) {
        uint64_t from = hash_mix64(9, i) % 2, to = hash_mix64(10, i) % 2, rows = 1 + hash_mix64(11, i) % 3;
        for (size_t e = 0; e < 3 * 4; e++)
            x[from][e] = (float)((i + e) % 7);
        backend_array in = {.data = x[from], .rank = 2, .shape = {(int64_t)rows, 4}}, out = {.rank = 2};
        if (i % 2) /* not what the next call is given */
            assert_int_equal(ov->infer_shapes(engine, &in, &out, NULL), DPI_OK);
        if (i % 16 == 5) { /* a call that fails */
            in = (backend_array){.data = wide, .rank = 2, .shape = {3, 5}};
            out = (backend_array){.data = y[to], .rank = 2, .shape = {3, 2}};
            backend_call call = {.rows = 3, .inputs = &in, .outputs = &out};
            assert_int_not_equal(ov->run(engine, &call, NULL, NULL), DPI_OK);
        }
        run_floats(engine, x[from], (int64_t)rows, 4, y[to], 2);
        for (size_t r = 0; r < rows; r++) {
            const float *a = x[from] + r * 4, *b = y[to] + r * 2;
            assert_true(b[0] == a[0] + 3 * a[1] + 5 * a[2] + 7 * a[3]);
            assert_true(b[1] == 2 * a[0] + 4 * a[1] + 6 * a[2] + 8 * a[3]);
        }
    }
    ov->close(engine);
    free(path);
}

/* ---- stored engines ---------------------------------------------------------------------------------------------- */

static void a_stored_engine_knows_its_ports(void **state)
{
    char *path = conformance_make(*state, "multi");
    opening o = {.path = path, .output_names = {"total", "sum"}};
    backend_engine *compiled = open_well(*state, &o);
    o.import_fd = export_to_memory(compiled, 0);
    backend_engine *stored = open_well(*state, &o);
    signature a, b;
    memset(&a, 0, sizeof a);
    memset(&b, 0, sizeof b);
    assert_int_equal(ov->describe(compiled, &a, NULL), DPI_OK);
    assert_int_equal(ov->describe(stored, &b, NULL), DPI_OK);
    assert_string_equal(b.outputs[0].name, "total");
    assert_memory_equal(&a, &b, sizeof a);
    ov->close(compiled);
    ov->close(stored);
    close(o.import_fd);
    free(path);
}

static void a_spoilt_stored_engine_is_refused(void **state)
{
    char *path = write_small("small");
    backend_engine *engine = open_well(*state, &(opening){.path = path});
    int fd = export_to_memory(engine, 0);
    off_t bytes = lseek(fd, 0, SEEK_END);
    ov->close(engine);
    const off_t cuts[] = {bytes / 2, 100, 8, 1, 0};
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        assert_int_equal(ftruncate(fd, cuts[i]), 0);
        lseek(fd, 0, SEEK_SET);
        open_badly(*state, &(opening){.path = path, .import_fd = fd}, DPI_E_MODEL, NULL, NULL);
    }
    char noise[4096];
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (char)hash_mix64(8, i);
    assert_int_equal(pwrite(fd, noise, sizeof noise, 0), (ssize_t)sizeof noise);
    open_badly(*state, &(opening){.path = path, .import_fd = fd}, DPI_E_MODEL, NULL, NULL);
    close(fd);
    check_small(engine = open_well(*state, &(opening){.path = path})); /* and the library works all the same */
    ov->close(engine);
    free(path);
}

/* ---- the shipped model, and the library -------------------------------------------------------------------------- */

/* The data of a .npy file, from its own header's length on. */
static unsigned char *read_npy(const char *name, size_t *bytes, void **file)
{
    char *path = text_format("%s/data/digits/%s.npy", conformance_source_folder(), name);
    assert_int_equal(file_read(path, 1 << 24, file, bytes, NULL), DPI_OK);
    free(path);
    unsigned char *data = *file;
    size_t head = 10 + data[8] + 256u * data[9];
    assert_true(*bytes > head);
    *bytes -= head;
    return data + head;
}

static void the_shipped_model_reads_digits_from_file_and_memory(void **state)
{
    char *path = text_format("%s/models/digits.onnx", conformance_source_folder());
    void *model, *images, *labels;
    size_t model_bytes, bytes, label_bytes, right = 0;
    unsigned char *x = read_npy("images", &bytes, &images), *want = read_npy("labels", &label_bytes, &labels);
    size_t rows = bytes / 64, step = label_bytes / rows;
    assert_int_equal(file_read(path, 1 << 24, &model, &model_bytes, NULL), DPI_OK);
    const opening openings[] = {{.path = path}, {.data = model, .bytes = model_bytes, .format = "onnx"}};
    float *y[2];
    for (int i = 0; i < 2; i++) {
        backend_engine *engine = open_well(*state, &openings[i]);
        y[i] = malloc(rows * 10 * sizeof *y[i]);
        assert_non_null(y[i]);
        backend_array in = {.data = x, .rank = 3, .shape = {(int64_t)rows, 8, 8}};
        backend_array out = {.data = y[i], .rank = 2, .shape = {(int64_t)rows, 10}};
        run_well(engine, &in, &out);
        ov->close(engine);
    }
    assert_memory_equal(y[0], y[1], rows * 10 * sizeof *y[0]);
    for (size_t r = 0; r < rows; r++) {
        size_t best = 0;
        for (size_t c = 1; c < 10; c++)
            best = y[0][r * 10 + c] > y[0][r * 10 + best] ? c : best;
        right += best == want[r * step];
    }
    assert_int_equal(rows, 1797);
    assert_int_equal(right, 1794);
    free(y[0]);
    free(y[1]);
    free(model);
    free(images);
    free(labels);
    free(path);
}

static void another_library_is_refused_by_its_path(void **state)
{
    const conformance *suite = *state;
    char *text = test_path("libopenvino_c.so"), *math = file_of_address((const void *)(uintptr_t)cos);
    test_write(text, "no library", 10);
    const char *const wrong[] = {text, math};
    for (size_t i = 0; i < 2; i++) {
        backend_library *library = NULL;
        dpi_error error = {0};
        assert_int_equal(ov->load(&(backend_load_options){.library = wrong[i]}, &suite->log, &library, &error),
                         DPI_E_BACKEND);
        assert_null(library);
        assert_non_null(strstr(error.message, wrong[i]));
    }
    free(text);
    free(math);
}

/* Thread isolation: sessions come and go in one process, and two may be open at once. */
static void the_library_is_loaded_and_left_again_beside_itself(void **state)
{
    const conformance *suite = *state;
    backend_library_info info;
    char *path = write_small("small");
    backend_engine *kept = open_well(suite, &(opening){.path = path});
    ov->library_info(suite->library, &info);
    for (int i = 0; i < 3; i++) {
        conformance other = *suite;
        dpi_error error = {0};
        if (ov->load(&(backend_load_options){.library = info.path}, &suite->log, &other.library, &error))
            fail_msg("%s", error.message);
        backend_engine *engine = open_well(&other, &(opening){.path = path});
        check_small(engine);
        check_small(kept);
        ov->close(engine);
        ov->unload(other.library);
    }
    check_small(kept);
    ov->close(kept);
    free(path);
}

static void the_device_is_described(void **state)
{
    const conformance *suite = *state;
    backend_device_info device;
    size_t count;
    assert_int_equal(ov->list_devices(suite->library, &device, 1, &count, NULL), DPI_OK);
    assert_string_equal(device.name, "cpu:all");
    assert_true(backend_lists(device.precisions, "fp32"));
    assert_true(device.description[0] && device.memory_bytes > 1 << 20);
    print_message("%s: %s\n", device.description, device.precisions);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_device_is_described),
        cmocka_unit_test(ir_takes_the_weights_beside_it),
        cmocka_unit_test(ir_with_missing_or_short_weights_is_refused),
        cmocka_unit_test(ir_that_is_cut_short_is_refused),
        cmocka_unit_test(ir_from_memory_works_without_weights_and_is_refused_with_them),
        cmocka_unit_test(ports_without_names_get_some),
        cmocka_unit_test(an_open_number_of_axes_is_refused),
        cmocka_unit_test(an_output_that_is_not_wanted_may_be_of_any_size),
        cmocka_unit_test(an_output_that_is_wanted_twice_comes_twice),
        cmocka_unit_test(memory_may_stay_the_same_or_change_between_calls),
        cmocka_unit_test(a_stored_engine_knows_its_ports),
        cmocka_unit_test(a_spoilt_stored_engine_is_refused),
        cmocka_unit_test(the_shipped_model_reads_digits_from_file_and_memory),
        cmocka_unit_test(another_library_is_refused_by_its_path),
        cmocka_unit_test(the_library_is_loaded_and_left_again_beside_itself),
    };
    return openvino_main(tests, sizeof tests / sizeof tests[0]);
}
