/* Rows that the caller of dpi_run takes himself: in order, each once, the same as in a file, whatever dies. */
#include "api/sim_kit.h"
#include "data/npy.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#define MODEL "input x float32 N 5\noutput y float32 N 4\noutput z int64 N 2 3\n"

static char folder[] = "/tmp/dpi-test-rows-XXXXXX";

typedef struct taken {
    uint64_t next, calls, bad_rows, stop_at; /* stop_at: 0, or the row from which it says no */
    char *y, *z;                                              /* rows from number 0 on, where both are taken */
    bool named, wrong;
} taken;

static int take(void *context, const dpi_rows *rows)
{
    taken *t = context;
    t->wrong |= rows->first != t->next || !rows->count || rows->struct_size != sizeof *rows;
    if (rows->output_count == 2 && t->y) {
        t->wrong |= rows->outputs[0].shape[0] != (int64_t)rows->count || strcmp(rows->outputs[1].name, "z") != 0;
        memcpy(t->y + t->next * 16, rows->outputs[0].data, rows->count * 16);
        memcpy(t->z + t->next * 48, rows->outputs[1].data, rows->count * 48);
    }
    for (size_t i = 0; rows->bad && i < rows->count; i++) {
        t->bad_rows += rows->bad[i];
        t->wrong |= rows->bad[i] != (bool)isnan(((const float *)rows->outputs[0].data)[i * 4]);
    }
    t->named |= rows->names != NULL;
    t->calls++;
    t->next += rows->count;
    return t->stop_at && t->next > t->stop_at;
}

static dpi_run_options to(const char *const *inputs, const char *const *outputs, size_t output_count, taken *t)
{
    dpi_run_options o = DPI_INIT(dpi_run_options);
    o.inputs = inputs;
    o.input_count = 1;
    o.outputs = outputs;
    o.output_count = output_count;
    o.take_rows = take;
    o.take_rows_context = t;
    o.restart = true;
    return o;
}

static void check_file(const char *path, const char *rows, size_t bytes)
{
    npy_header h;
    void *data;
    dpi_error error;
    kit_assert_ok(npy_load(path, 1 << 28, &h, &data, &error), error);
    assert_memory_equal(data, rows, bytes);
    free(data);
    unlink(path);
}

/* Every device count, batch sizes that do and do not divide, both isolations, with one worker that dies on the way. */
static void the_same_as_in_files(void **state)
{
    (void)state;
    enum { ROWS = 5000 };
    char y_path[64], z_path[64];
    snprintf(y_path, sizeof y_path, "%s/y.npy", folder);
    snprintf(z_path, sizeof z_path, "%s/z.npy", folder);
    for (int turn = 0; turn < 4; turn++) {
        const dpi_key_value faults[] = {{"1.die_at_slice", "9"}, {"1.fault_generations", "1"}};
        dpi_options open = DPI_INIT(dpi_options);
        open.batch = turn % 2 ? 7 : 32;
        open.isolation = turn == 2 ? DPI_ISOLATION_THREAD : DPI_ISOLATION_PROCESS;
        open.backend_options = turn == 3 ? faults : NULL;
        open.backend_option_count = turn == 3 ? 2 : 0;
        kit *k = kit_open(MODEL "fixed_us 200\n", turn ? "sim:0*3" : "sim:0", &open);
        taken t = {.y = calloc(ROWS, 16), .z = calloc(ROWS, 48)};
        const char *in[] = {"random:5:float32:5000:3"}, *rows[] = {"rows", "z=rows"}, *files[] = {y_path, z_path};
        dpi_error error;
        dpi_run_options o = to(in, rows, 2, &t);
        dpi_run_result result = DPI_INIT(dpi_run_result);
        kit_assert_ok(dpi_run(k->s, &o, &result, &error), error);
        assert_false(t.wrong || t.named || t.bad_rows);
        assert_int_equal(t.next, ROWS);
        assert_int_equal(result.rows, ROWS);
        o = to(in, files, 2, &t);
        kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
        check_file(y_path, t.y, ROWS * 16);
        check_file(z_path, t.z, ROWS * 48);
        free(t.y);
        free(t.z);
        kit_close(k);
    }
}

static void a_part_of_it(void **state)
{
    (void)state;
    kit *k = kit_open(MODEL, "sim:0*2", NULL);
    const char *in[] = {"random:5:float32:5000:3"}, *rows[] = {"z=rows"};
    taken t = {.next = 1000};
    dpi_error error;
    dpi_run_options o = to(in, rows, 1, &t);
    o.row_begin = 1000;
    o.row_end = 1777;
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    assert_int_equal(t.next, 1777);
    o.row_end = 1000; /* no rows: nothing to take */
    t = (taken){0};
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    assert_int_equal(t.calls, 0);
    assert_false(t.wrong);
    kit_close(k);
}

static void rows_that_cannot_be_computed(void **state)
{
    (void)state;
    dpi_options open = DPI_INIT(dpi_options);
    open.on_bad_row = DPI_BAD_ROW_SKIP;
    open.batch = 4;
    kit *k = kit_open("input x float32 N 5\noutput y float32 N 4\npoison 77\npoison_how fail\n", "sim:0*2", &open);
    float x[40 * 5] = {0};
    x[3 * 5] = x[4 * 5] = x[39 * 5] = 77;
    char path[64], spec[96];
    snprintf(path, sizeof path, "%s/x.bin", folder);
    snprintf(spec, sizeof spec, "raw:5:float32:%s", path);
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_int_equal(fwrite(x, sizeof x, 1, file), 1);
    assert_int_equal(fclose(file), 0);
    const char *in[] = {spec}, *rows[] = {"rows"};
    taken t = {0};
    dpi_error error;
    dpi_run_options o = to(in, rows, 1, &t);
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_BAD_ROWS);
    assert_int_equal(t.bad_rows, 3);
    assert_int_equal(t.next, 40);
    assert_false(t.wrong);
    unlink(path);
    kit_close(k);
}

static void a_taker_that_stops(void **state)
{
    (void)state;
    dpi_options open = DPI_INIT(dpi_options);
    open.batch = 8;
    kit *k = kit_open(MODEL "fixed_us 100\n", "sim:0*2", &open);
    const char *in[] = {"random:5:float32:100000:3"}, *rows[] = {"rows"};
    taken t = {.stop_at = 2000};
    dpi_error error;
    dpi_run_options o = to(in, rows, 1, &t);
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_CANCELLED);
    kit_assert_contains(error.message, "takes the rows");
    assert_true(t.next > 2000 && t.next <= 2000 + 1024); /* nothing comes behind its no */
    t = (taken){0};
    o.row_end = 100;
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    assert_int_equal(t.next, 100);
    kit_close(k);
}

static void what_cannot_be(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "%s/z.npy", folder);
    kit *k = kit_open(MODEL, "sim:0", NULL);
    const char *in[] = {"random:5:float32:50:3"}, *mixed[] = {"rows", path};
    taken t = {0};
    dpi_error error;
    dpi_run_options o = to(in, mixed, 2, &t);
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_E_ARGUMENT);
    kit_assert_contains(error.message, "another run");
    o = to(in, mixed, 1, &t);
    o.take_rows = NULL;
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_E_ARGUMENT);
    kit_assert_contains(error.message, "take_rows");
    assert_int_equal(t.calls, 0);
    assert_int_equal(access(path, F_OK), -1);
    kit_close(k);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_same_as_in_files), cmocka_unit_test(a_part_of_it),
                                       cmocka_unit_test(rows_that_cannot_be_computed),
                                       cmocka_unit_test(a_taker_that_stops), cmocka_unit_test(what_cannot_be)};
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
