/* Split mode over sim devices: every row of every batch is compared with the reference function. */
#include "sim_kit.h"

#include <stdio.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 3\n"

/* ---- sizes, devices, splits ------------------------------------------------------------------------------------- */

static void all_sizes_on_several_devices(void **state)
{
    (void)state;
    static const char *const devices[] = {"sim:0", "sim:0,sim:1", "sim:0*3", "sim:0*8"};
    static const size_t slices[] = {0, 3}, rows[] = {0, 1, 2, 3, 4, 7, 8, 9, 63, 64, 65, 200};
    for (size_t d = 0; d < 4; d++)
        for (size_t m = 0; m < 2; m++) {
            dpi_options o = DPI_INIT(dpi_options);
            o.batch = slices[m];
            kit *k = kit_open(SIMPLE, devices[d], &o);
            for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++)
                kit_forward(k, rows[r], r + 1);
            kit_close(k);
        }
}

static void sixty_four_devices(void **state)
{
    (void)state;
    kit *k = kit_open(SIMPLE, "sim:0*64", NULL);
    dpi_description d = DPI_INIT(dpi_description);
    dpi_error error;
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    assert_int_equal(d.worker_count, 64);
    assert_true(d.bit_identical);
    for (size_t rows = 1; rows <= 256; rows *= 2)
        kit_forward(k, rows, rows);
    kit_close(k);
    dpi_options o = DPI_INIT(dpi_options);
    o.total_batch_size = 32;
    k = kit_open(SIMPLE, "sim:0*16", &o);
    kit_forward(k, 1, 1);
    kit_forward(k, 63, 2);
    kit_forward(k, 1000, 3);
    kit_close(k);
}

/* Rows that each worker has computed so far. */
static void rows_by_worker(const kit *k, uint64_t *rows, size_t count)
{
    dpi_worker_stats workers[8] = {{0}};
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    dpi_error error;
    stats.workers = workers;
    stats.worker_count = 8;
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    assert_int_equal(stats.worker_count, count);
    for (size_t w = 0; w < count; w++)
        rows[w] = workers[w].rows;
}

static void forward_and_count(const kit *k, size_t rows, const uint64_t *want, size_t count)
{
    uint64_t before[8], after[8];
    rows_by_worker(k, before, count);
    kit_forward(k, rows, rows);
    rows_by_worker(k, after, count);
    for (size_t w = 0; w < count; w++)
        if (after[w] - before[w] != want[w])
            fail_msg("%zu rows: worker %zu got %llu and should have got %llu", rows, w,
                     (unsigned long long)(after[w] - before[w]), (unsigned long long)want[w]);
}

static void a_list_of_shares_is_kept_exactly(void **state)
{
    (void)state;
    const size_t shares[] = {5, 0, 2};
    dpi_options o = DPI_INIT(dpi_options);
    o.batch_size_list = shares;
    o.batch_size_count = 3;
    kit *k = kit_open(SIMPLE, "sim:0*3", &o);
    forward_and_count(k, 0, (uint64_t[]){0, 0, 0}, 3);
    forward_and_count(k, 1, (uint64_t[]){1, 0, 0}, 3);
    forward_and_count(k, 5, (uint64_t[]){5, 0, 0}, 3);
    forward_and_count(k, 6, (uint64_t[]){5, 0, 1}, 3);
    forward_and_count(k, 7, (uint64_t[]){5, 0, 2}, 3);
    forward_and_count(k, 8, (uint64_t[]){6, 0, 2}, 3);
    forward_and_count(k, 21, (uint64_t[]){15, 0, 6}, 3);
    forward_and_count(k, 20, (uint64_t[]){15, 0, 5}, 3);
    kit_close(k);
}

static void a_total_is_spread_evenly(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.total_batch_size = 10;
    kit *k = kit_open(SIMPLE, "sim:0*3", &o);
    forward_and_count(k, 10, (uint64_t[]){4, 3, 3}, 3);
    forward_and_count(k, 23, (uint64_t[]){9, 7, 7}, 3);
    forward_and_count(k, 1, (uint64_t[]){1, 0, 0}, 3);
    forward_and_count(k, 2, (uint64_t[]){1, 1, 0}, 3);
    kit_close(k);
    o.total_batch_size = 2; /* fewer than devices */
    k = kit_open(SIMPLE, "sim:0*3", &o);
    forward_and_count(k, 2, (uint64_t[]){1, 1, 0}, 3);
    forward_and_count(k, 5, (uint64_t[]){3, 2, 0}, 3);
    kit_close(k);
}

/* A worker that turns out slow loses slices to the others; the rows stay in place. */
static void stolen_slices_are_in_place(void **state)
{
    (void)state;
    const dpi_key_value slow[] = {{"1.jitter_us", "20000"}};
    dpi_options o = DPI_INIT(dpi_options);
    o.backend_options = slow;
    o.backend_option_count = 1;
    o.batch = 1;
    kit *k = kit_open("input x uint8 N 9\noutput y int32 N 2\nrow_us 200\n", "sim:0*3", &o);
    for (size_t i = 0; i < 10; i++)
        kit_forward(k, 40, i);
    kit_close(k);
}

/* ---- models ----------------------------------------------------------------------------------------------------- */

static void a_fixed_batch_is_padded_inside(void **state)
{
    (void)state;
    for (int devices = 1; devices <= 3; devices++) {
        kit *k = kit_open("input x float32 4 8\ninput w int64 4 1\noutput y float32 4 2\noutput z bool 4 5\n",
                          devices == 1   ? "sim:0"
                          : devices == 2 ? "sim:0*2"
                                         : "sim:0*3",
                          NULL);
        dpi_description d = DPI_INIT(dpi_description);
        dpi_error error;
        kit_assert_ok(dpi_describe(k->s, &d, &error), error);
        assert_int_equal(d.fixed_batch, 4);
        assert_int_equal(d.inputs[0].shape[0], -1);
        for (size_t rows = 0; rows <= 17; rows++)
            kit_forward(k, rows, rows);
        kit_close(k);
    }
}

static void a_fixed_batch_of_one(void **state)
{
    (void)state;
    kit *k = kit_open("input x float32 1 8\noutput y float32 1 2\n", "sim:0*2", NULL);
    for (size_t rows = 0; rows <= 5; rows++)
        kit_forward(k, rows, rows);
    kit_close(k);
}

static void every_dtype(void **state)
{
    (void)state;
#define X(name, number, bytes, text) text,
    static const char *const names[] = {DPI_DTYPE_LIST(X)};
#undef X
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char text[200];
        snprintf(text, sizeof text, "input x %s N 3 5\noutput y %s N 7\noutput scalar %s N\n", names[i], names[i],
                 names[i]);
        kit *k = kit_open(text, "sim:0*2", NULL);
        kit_forward(k, 11, i + 1);
        kit_forward(k, 1, i + 2);
        kit_close(k);
    }
}

static const char many_ports[] = "input a float32 N 4\ninput b uint8 N 3 2\ninput c int64 N\n"
                                 "output y float32 N 3\noutput z float16 N 2 2\noutput w uint16 N\n";

static void several_inputs_and_outputs(void **state)
{
    (void)state;
    kit *k = kit_open(many_ports, "sim:0*3", NULL);
    for (size_t rows = 0; rows < 30; rows += 7)
        kit_forward(k, rows, rows);
    /* By position as well as by name, in another order. */
    kit_batch *b = kit_batch_new(k, 13, 5, 3);
    dpi_error error;
    dpi_tensor in[3] = {b->in[2], b->in[0], b->in[1]}, out[3] = {b->out[1], b->out[2], b->out[0]};
    kit_assert_ok(dpi_forward(k->s, in, 3, out, 3, 0, &error), error);
    kit_batch_check(b, NULL);
    kit_batch_spoil(b);
    for (int i = 0; i < 3; i++)
        b->in[i].name = NULL;
    memcpy(out, b->out, sizeof out);
    for (int i = 0; i < 3; i++)
        out[i].name = NULL;
    kit_assert_ok(dpi_forward(k->s, b->in, 3, out, 3, 0, &error), error);
    kit_batch_check(b, NULL);
    kit_batch_free(b);
    kit_close(k);
}

static void chosen_outputs_in_their_order(void **state)
{
    (void)state;
    static const char *const wanted[] = {"w", "y"};
    dpi_options o = DPI_INIT(dpi_options);
    o.output_names = wanted;
    o.output_count = 2;
    dpi_error error = {0};
    /* The reference of sim numbers outputs as chosen. */
    kit *k = kit_open(many_ports, "sim:0*2", &o);
    kit_forward(k, 9, 1);
    kit_close(k);
    static const char *const unknown[] = {"y", "nothing"};
    o.output_names = unknown;
    assert_null(kit_try_open(many_ports, "sim:0*2", &o, &error));
    assert_int_equal(error.status, DPI_E_MODEL);
    kit_assert_contains(error.message, "nothing");
}

static void dynamic_axes_come_with_the_data(void **state)
{
    (void)state;
    kit *k = kit_open("input x float32 N ? 4\ninput m int8 N ?\noutput y float32 N x.1 2\noutput z int8 N m.1\n",
                      "sim:0*3", NULL);
    for (int64_t extent = 1; extent < 40; extent += 2) /* more shapes than are remembered */
        for (size_t rows = 1; rows < 12; rows += 5) {
            kit_batch *b = kit_batch_new(k, rows, (uint64_t)extent, extent);
            dpi_error error;
            kit_assert_ok(dpi_forward(k->s, b->in, b->in_count, b->out, b->out_count, 0, &error), error);
            kit_batch_check(b, NULL);
            kit_batch_free(b);
        }
    kit_batch *b = kit_batch_new(k, 4, 1, 0); /* an axis of no elements */
    dpi_error error;
    kit_assert_ok(dpi_forward(k->s, b->in, b->in_count, b->out, b->out_count, 0, &error), error);
    kit_batch_check(b, NULL);
    kit_batch_free(b);
    kit_close(k);
}

static void broadcast_inputs_are_the_same_for_all_rows(void **state)
{
    (void)state;
    kit *k = kit_open("input x float32 N 4\ninput table float64 broadcast 3 2\ninput bias int32 broadcast ?\n"
                      "output y float32 N 2\n",
                      "sim:0*3", NULL);
    for (size_t rows = 0; rows < 50; rows += 11)
        kit_forward(k, rows, rows);
    kit_close(k);
    k = kit_open("input table float64 broadcast 3 2\ninput x float32 4 4\noutput y float32 4 2\n", "sim:0*2", NULL);
    for (size_t rows = 0; rows < 10; rows++)
        kit_forward(k, rows, rows);
    kit_close(k);
}

/* Where the slice size shows in the last bits, it is fixed: results do not depend on the split. */
static void results_do_not_depend_on_the_split(void **state)
{
    (void)state;
    static const char text[] = "input x float32 N 5\noutput y float32 N 3\nsize_bits 1\n";
    float reference[50][3];
    for (int devices = 1; devices <= 3; devices++) {
        dpi_options o = DPI_INIT(dpi_options);
        o.batch = 8;
        kit *k = kit_open(text, devices == 1 ? "sim:0" : devices == 2 ? "sim:0*2" : "sim:0*3", &o);
        dpi_description d = DPI_INIT(dpi_description);
        dpi_error error;
        kit_assert_ok(dpi_describe(k->s, &d, &error), error);
        assert_int_equal(d.fixed_batch, 8);
        kit_batch *b = kit_batch_new(k, 50, 3, 3);
        kit_assert_ok(dpi_forward(k->s, b->in, 1, b->out, 1, 0, &error), error);
        if (devices == 1)
            memcpy(reference, b->out[0].data, sizeof reference);
        assert_memory_equal(reference, b->out[0].data, sizeof reference);
        for (size_t rows = 1; rows < 50; rows += 9) { /* a part of the batch by itself: the same bits */
            b->in[0].shape[0] = b->out[0].shape[0] = (int64_t)rows;
            kit_assert_ok(dpi_forward(k->s, b->in, 1, b->out, 1, 0, &error), error);
            assert_memory_equal(reference, b->out[0].data, rows * sizeof reference[0]);
        }
        b->out[0].shape[0] = 50;
        kit_batch_free(b);
        kit_close(k);
    }
}

static void models_that_cannot_be_split_are_refused(void **state)
{
    (void)state;
    dpi_error error = {0};
    assert_null(kit_try_open(SIMPLE "rows_depend 1\n", "sim:0*2", NULL, &error));
    assert_int_equal(error.status, DPI_E_MODEL);
    assert_null(kit_try_open(SIMPLE "data_sized 1\n", "sim:0*2", NULL, &error));
    assert_int_equal(error.status, DPI_E_MODEL);
    dpi_options o = DPI_INIT(dpi_options);
    o.trust_rows = true;
    kit_close(kit_open(SIMPLE "rows_depend 1\n", "sim:0*2", &o));
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

static void views_until_release(void **state)
{
    (void)state;
    kit *k = kit_open(many_ports, "sim:0*3", NULL);
    for (size_t rows = 0; rows < 40; rows += 13) {
        kit_batch *b = kit_batch_new(k, rows, rows, 3);
        dpi_ticket ticket;
        dpi_error error;
        dpi_tensor out[3];
        kit_assert_ok(kit_submit(k, b, true, 0, &ticket, &error), error);
        kit_assert_ok(dpi_wait(k->s, ticket, 10000, out, 3, &error), error);
        kit_batch_check(b, out);
        assert_int_equal(dpi_wait(k->s, ticket, 0, NULL, 0, &error), DPI_E_ARGUMENT);
        kit_forward(k, 29, 3); /* another batch does not write into the views */
        kit_batch_check(b, out);
        kit_assert_ok(dpi_release(k->s, ticket, &error), error);
        assert_int_equal(dpi_release(k->s, ticket, &error), DPI_E_ARGUMENT);
        kit_batch_free(b);
    }
    kit_close(k);
}

/* Moves a batch's tensors into memory of dpi_alloc, `skip` bytes behind its beginning. */
static void move_to_arena(const kit *k, dpi_tensor *t, dpi_direction direction, size_t skip, void **block)
{
    size_t bytes = 0;
    dpi_error error;
    assert_true(shape_bytes(t->dtype, t->shape, t->rank, &bytes));
    *block = dpi_alloc(k->s, bytes + skip + KIT_GUARD, direction, &error);
    if (!*block)
        fail_msg("%s", error.message);
    assert_int_equal((uintptr_t)*block % 4096, 0);
    memcpy((char *)*block + skip, t->data, bytes + (direction == DPI_OUTPUT ? KIT_GUARD : 0));
    t->data = (char *)*block + skip;
}

static size_t out_bytes(const kit_batch *b)
{
    size_t all = 0, bytes = 0;
    for (size_t o = 0; o < b->out_count; o++) {
        assert_true(shape_bytes(b->out[o].dtype, b->out[o].shape, b->out[o].rank, &bytes));
        all += bytes;
    }
    return all;
}

static void alloc_is_used_in_place(void **state)
{
    (void)state;
    kit *k = kit_open(many_ports, "sim:0*3", NULL);
    for (size_t skip = 0; skip <= 64; skip += 64)
        for (size_t rows = 1; rows < 100; rows += 31) {
            kit_batch *b = kit_batch_new(k, rows, rows, 3);
            void *plain[6], *blocks[6];
            for (int i = 0; i < 3; i++) {
                plain[i] = b->in[i].data;
                plain[3 + i] = b->out[i].data;
                move_to_arena(k, &b->in[i], DPI_INPUT, skip, &blocks[i]);
                move_to_arena(k, &b->out[i], DPI_OUTPUT, skip, &blocks[3 + i]);
            }
            dpi_stats_data before = DPI_INIT(dpi_stats_data), after = DPI_INIT(dpi_stats_data);
            dpi_error error;
            kit_assert_ok(dpi_stats(k->s, &before, &error), error);
            kit_assert_ok(dpi_forward(k->s, b->in, 3, b->out, 3, 0, &error), error);
            kit_assert_ok(dpi_stats(k->s, &after, &error), error);
            assert_int_equal(after.copied_in_bytes, before.copied_in_bytes);
            assert_int_equal(after.copied_out_bytes - before.copied_out_bytes, kit_is_strict() ? out_bytes(b) : 0);
            assert_int_equal(after.rows, before.rows + rows);
            kit_batch_check(b, NULL);
            for (int i = 0; i < 6; i++)
                kit_assert_ok(dpi_free(k->s, blocks[i], &error), error);
            assert_int_equal(dpi_free(k->s, blocks[0], &error), DPI_E_ARGUMENT);
            for (int i = 0; i < 3; i++) {
                b->in[i].data = plain[i];
                b->out[i].data = plain[3 + i];
            }
            kit_batch_free(b);
        }
    kit_close(k);
}

static void plain_memory_is_copied_and_counted(void **state)
{
    (void)state;
    kit *k = kit_open(SIMPLE, "sim:0*2", NULL);
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    dpi_error error;
    kit_forward(k, 10, 1);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    assert_int_equal(stats.copied_in_bytes, 10 * 5 * 4);
    assert_int_equal(stats.copied_out_bytes, (kit_is_strict() ? 2 : 1) * 10 * 3 * 4);
    assert_int_equal(stats.batches, 1);
    assert_int_equal(stats.rows, 10);
    kit_close(k);
}

/* Results of more than a megabyte are copied while later slices are still computed. */
static void large_batches(void **state)
{
    (void)state;
    kit *k = kit_open("input x float32 N 300\noutput y float32 N 4000\n", "sim:0*3", NULL);
    kit_forward(k, 500, 1);
    kit_forward(k, 77, 2);
    kit_close(k);
}

static void the_arena_has_a_limit(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.arena_max_bytes = 1 << 20;
    kit *k = kit_open("input x uint8 N 1024\noutput y float32 N\n", "sim:0*2", &o);
    dpi_error error = {0};
    kit_forward(k, 1000, 1);
    kit_batch *b = kit_batch_new(k, 2000, 1, 3);
    assert_int_equal(dpi_forward(k->s, b->in, 1, b->out, 1, 0, &error), DPI_E_SYSTEM);
    kit_assert_contains(error.message, "arena_max_bytes");
    assert_null(dpi_alloc(k->s, 2 << 20, DPI_INPUT, &error));
    assert_null(dpi_alloc(k->s, SIZE_MAX, DPI_OUTPUT, &error));
    kit_batch_free(b);
    for (int i = 0; i < 5; i++)
        kit_forward(k, 1000, 2); /* and works on */
    kit_close(k);
}

/* ---- the caller's mistakes -------------------------------------------------------------------------------------- */

static void wrong_batches_are_named(void **state)
{
    (void)state;
    kit *k = kit_open("input first float32 N 5\ninput second int32 N\noutput y float32 N 3\n", "sim:0*2", NULL);
    kit_batch *b = kit_batch_new(k, 4, 1, 3);
    dpi_error error;
    dpi_tensor in[3], out[2];
#define AGAIN() (memcpy(in, b->in, 2 * sizeof in[0]), memcpy(out, b->out, sizeof out[0]))
#define EXPECT(inputs, outputs, want, part)                                                                            \
    do {                                                                                                               \
        assert_int_equal(dpi_forward(k->s, in, inputs, out, outputs, 0, &error), want);                                \
        assert_int_equal(error.status, want);                                                                          \
        kit_assert_contains(error.message, part);                                                                      \
    } while (0)
    AGAIN();
    in[0].dtype = DPI_F64;
    EXPECT(2, 1, DPI_E_DATA, "first expects float32 [N,5] and got float64 [4,5]");
    AGAIN();
    in[0].shape[1] = 6;
    EXPECT(2, 1, DPI_E_DATA, "[4,6]");
    AGAIN();
    in[1].rank = 2;
    in[1].shape[1] = 1;
    EXPECT(2, 1, DPI_E_DATA, "second");
    AGAIN();
    in[1].shape[0] = 3;
    EXPECT(2, 1, DPI_E_DATA, "rows");
    AGAIN();
    in[0].shape[0] = in[1].shape[0] = -1;
    EXPECT(2, 1, DPI_E_DATA, "first");
    AGAIN();
    in[0].rank = 9;
    EXPECT(2, 1, DPI_E_DATA, "rank");
    AGAIN();
    in[0].rank = -3;
    EXPECT(2, 1, DPI_E_DATA, "rank");
    AGAIN();
    in[0].name = "third";
    EXPECT(2, 1, DPI_E_DATA, "third");
    AGAIN();
    in[0].name = "second";
    EXPECT(2, 1, DPI_E_DATA, "second");
    AGAIN();
    in[1].data = NULL;
    EXPECT(2, 1, DPI_E_ARGUMENT, "second");
    AGAIN();
    in[0].shape[0] = in[1].shape[0] = INT64_MAX;
    EXPECT(2, 1, DPI_E_DATA, "overflow");
    AGAIN();
    EXPECT(1, 1, DPI_E_DATA, "2 inputs");
    AGAIN();
    out[0].shape[1] = 4;
    EXPECT(2, 1, DPI_E_DATA, "y");
    AGAIN();
    out[0].dtype = DPI_I32;
    EXPECT(2, 1, DPI_E_DATA, "y");
    AGAIN();
    out[0].name = "z";
    EXPECT(2, 1, DPI_E_DATA, "z");
    AGAIN();
    out[0].data = NULL;
    EXPECT(2, 1, DPI_E_ARGUMENT, "memory");
    AGAIN();
    EXPECT(2, 0, DPI_E_ARGUMENT, "1 outputs");
    AGAIN();
    kit_assert_ok(dpi_forward(k->s, in, 2, out, 1, 0, &error), error);
    kit_batch_check(b, NULL);
    kit_batch_free(b);
    kit_close(k);
}

static void an_output_given_twice_is_refused(void **state)
{
    (void)state;
    kit *k = kit_open(many_ports, "sim:0*2", NULL);
    kit_batch *b = kit_batch_new(k, 4, 1, 3);
    dpi_error error = {0};
    dpi_tensor out[3] = {b->out[0], b->out[0], b->out[2]};
    assert_int_equal(dpi_forward(k->s, b->in, 3, out, 3, 0, &error), DPI_E_DATA);
    kit_assert_contains(error.message, "y");
    kit_batch_free(b);
    kit_close(k);
}

static void wrong_options_are_named(void **state)
{
    (void)state;
    const size_t shares[] = {1, 2}, none[] = {0, 0};
    const dpi_key_value unknown[] = {{"speed", "1"}}, bad[] = {{"row_us", "fast"}};
    const struct {
        dpi_options o;
        const char *devices, *part;
        dpi_status status;
    } cases[] = {
        {{.struct_size = 0}, "sim:0", "struct_size", DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options), .batch_size_list = shares, .batch_size_count = 2},
         "sim:0",
         "2",
         DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options), .batch_size_list = none, .batch_size_count = 2},
         "sim:0*2",
         "rows",
         DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options), .batch_size_list = shares, .batch_size_count = 2, .total_batch_size = 2},
         "sim:0*2",
         "exclude",
         DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options), .queue_depth = 65}, "sim:0", "queue_depth", DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options), .batch = 1u << 25}, "sim:0", "batch", DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options), .backend = "nothing"}, "sim:0", "nothing", DPI_E_BACKEND},
        {{.struct_size = sizeof(dpi_options), .precision = DPI_PRECISION_BF16}, "sim:0", "sim:0", DPI_E_DEVICE},
        {{.struct_size = sizeof(dpi_options), .precision = (dpi_precision)99}, "sim:0", "precision", DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options), .backend_options = unknown, .backend_option_count = 1},
         "sim:0",
         "speed",
         DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options), .backend_options = bad, .backend_option_count = 1},
         "sim:0",
         "fast",
         DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options), .worker_path = "/nonexistent/worker"},
         "sim:0",
         "/nonexistent/worker",
         DPI_E_ARGUMENT},
        {{.struct_size = sizeof(dpi_options)}, "sim:x", "sim:x", DPI_E_DEVICE},
        {{.struct_size = sizeof(dpi_options)}, "cpu:0", "cpu:0", DPI_E_DEVICE},
        {{.struct_size = sizeof(dpi_options)}, "", "device", DPI_E_DEVICE},
    };
    kit_traces before = kit_look();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        dpi_error error = {0};
        kit *k = kit_try_open(SIMPLE, cases[i].devices, &cases[i].o, &error);
        if (k || error.status != cases[i].status || !strstr(error.message, cases[i].part))
            fail_msg("case %zu: %s \"%s\" does not say %s \"%s\"", i, dpi_status_name(error.status), error.message,
                     dpi_status_name(cases[i].status), cases[i].part);
    }
    kit_check_clean(before);
}

static void null_arguments(void **state)
{
    (void)state;
    dpi_session *s;
    dpi_error error;
    dpi_options o = DPI_INIT(dpi_options);
    dpi_ticket ticket;
    assert_int_equal(dpi_open(NULL, &s, NULL), DPI_E_ARGUMENT);
    assert_int_equal(dpi_open(&o, NULL, &error), DPI_E_ARGUMENT);
    assert_int_equal(dpi_open(&o, &s, NULL), DPI_E_ARGUMENT); /* no model */
    assert_null(s);
    dpi_close(NULL);
    kit *k = kit_open(SIMPLE, "sim:0", NULL);
    assert_int_equal(dpi_submit(NULL, NULL, &ticket, NULL), DPI_E_ARGUMENT);
    assert_int_equal(dpi_wait(k->s, 0, 0, NULL, 0, NULL), DPI_E_ARGUMENT);
    assert_int_equal(dpi_wait(k->s, 99, 0, NULL, 0, NULL), DPI_E_ARGUMENT);
    assert_int_equal(dpi_cancel(k->s, 99, NULL), DPI_E_ARGUMENT);
    assert_int_equal(dpi_release(k->s, 99, NULL), DPI_E_ARGUMENT);
    assert_int_equal(dpi_free(k->s, &error, NULL), DPI_E_ARGUMENT);
    assert_int_equal(dpi_free(k->s, NULL, NULL), DPI_OK);
    assert_null(dpi_alloc(k->s, 1, (dpi_direction)7, NULL));
    assert_null(dpi_alloc(NULL, 1, DPI_INPUT, NULL));
    assert_int_equal(dpi_event_fd(NULL, NULL), -1);
    assert_int_equal(dpi_run(k->s, NULL, NULL, NULL), DPI_E_ARGUMENT);
    assert_int_equal(dpi_describe(k->s, NULL, NULL), DPI_E_ARGUMENT);
    assert_int_equal(dpi_stats(k->s, NULL, NULL), DPI_E_ARGUMENT);
    kit_forward(k, 3, 1);
    kit_close(k);
}

/* Structures of an older, shorter header and of a newer, longer one. */
static void structures_of_other_sizes(void **state)
{
    (void)state;
    kit *k = kit_open(SIMPLE, "sim:0*2", NULL);
    dpi_error error;
    struct {
        dpi_description d;
        unsigned char after[32];
    } d;
    memset(&d, 0x5a, sizeof d);
    d.d.struct_size = offsetof(dpi_description, worker_count);
    kit_assert_ok(dpi_describe(k->s, &d.d, &error), error);
    assert_int_equal(d.d.input_count, 1);
    assert_int_equal(((unsigned char *)&d.d.worker_count)[0], 0x5a);
    assert_int_equal(d.after[0], 0x5a);
    struct {
        dpi_stats_data d;
        uint64_t newer;
    } stats = {.d = {.struct_size = sizeof stats}, .newer = 1};
    assert_int_equal(dpi_stats(k->s, &stats.d, &error), DPI_E_ARGUMENT);
    stats.newer = 0;
    kit_assert_ok(dpi_stats(k->s, &stats.d, &error), error);
    kit_close(k);
}

static void nothing_is_left_behind(void **state)
{
    (void)state;
    kit_traces before = kit_look();
    for (int i = 0; i < 5; i++) {
        kit *k = kit_open(SIMPLE, "sim:0*3", NULL);
        kit_forward(k, 20, 1);
        kit_close(k);
    }
    kit_check_clean(before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_sizes_on_several_devices),
        cmocka_unit_test(sixty_four_devices),
        cmocka_unit_test(a_list_of_shares_is_kept_exactly),
        cmocka_unit_test(a_total_is_spread_evenly),
        cmocka_unit_test(stolen_slices_are_in_place),
        cmocka_unit_test(a_fixed_batch_is_padded_inside),
        cmocka_unit_test(a_fixed_batch_of_one),
        cmocka_unit_test(every_dtype),
        cmocka_unit_test(several_inputs_and_outputs),
        cmocka_unit_test(chosen_outputs_in_their_order),
        cmocka_unit_test(dynamic_axes_come_with_the_data),
        cmocka_unit_test(broadcast_inputs_are_the_same_for_all_rows),
        cmocka_unit_test(results_do_not_depend_on_the_split),
        cmocka_unit_test(models_that_cannot_be_split_are_refused),
        cmocka_unit_test(views_until_release),
        cmocka_unit_test(alloc_is_used_in_place),
        cmocka_unit_test(plain_memory_is_copied_and_counted),
        cmocka_unit_test(large_batches),
        cmocka_unit_test(the_arena_has_a_limit),
        cmocka_unit_test(wrong_batches_are_named),
        cmocka_unit_test(an_output_given_twice_is_refused),
        cmocka_unit_test(wrong_options_are_named),
        cmocka_unit_test(null_arguments),
        cmocka_unit_test(structures_of_other_sizes),
        cmocka_unit_test(nothing_is_left_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
