/* The simulated backend itself: what it computes, what it costs, how it fails. Other layers rely on each of these. */
#include "backend/sim.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"

#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const backend *const sim = &backend_sim;

/* Opens a model in memory; `options` is "key value key value", or NULL. */
static dpi_status open_with(const char *text, const char *options, int import_fd, backend_engine **engine,
                            dpi_error *error)
{
    backend_library *library = NULL;
    assert_int_equal(sim->load(&(backend_load_options){0}, NULL, &library, error), DPI_OK);
    dpi_key_value list[8];
    size_t count = 0;
    char *copy = strdup(options ? options : ""), *rest = NULL;
    for (char *word = strtok_r(copy, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        list[count].key = word;
        list[count++].value = strtok_r(NULL, " ", &rest);
    }
    backend_model model = {.data = text, .bytes = strlen(text), .format = "sim"};
    backend_device device = {.kind = "sim", .name = "sim:0", .threads = 1};
    backend_open_options open = {.model = &model,
                                 .device = &device,
                                 .max_rows = 8,
                                 .options = list,
                                 .option_count = count,
                                 .import_fd = import_fd};
    *engine = NULL;
    dpi_status status = sim->open(library, &open, engine, error);
    free(copy);
    sim->unload(library); /* a sim engine does not need it */
    return status;
}

static backend_engine *open_ok(const char *text, const char *options)
{
    backend_engine *engine;
    dpi_error error = {0};
    if (open_with(text, options, -1, &engine, &error))
        fail_msg("%s", error.message);
    sim->ready(engine);
    return engine;
}

#define SIMPLE "input x uint8 N 4\noutput y float32 N 3\n"

/* One slice of SIMPLE (or a model with the same ports). */
static dpi_status run_simple(backend_engine *engine, size_t rows, const uint8_t *x, float *y, dpi_error *error)
{
    backend_array in = {.data = (void *)(uintptr_t)x, .rank = 2, .shape = {(int64_t)rows, 4}};
    backend_array out = {.data = y, .rank = 2, .shape = {(int64_t)rows, 3}};
    backend_timing timing = {0};
    return sim->run(engine, &(backend_call){.rows = rows, .inputs = &in, .outputs = &out}, &timing, error);
}

/* ---- what it computes ------------------------------------------------------------------------------------------- */

static void every_dtype_gets_its_expected_rows(void **state)
{
    (void)state;
    for (dpi_dtype dtype = DPI_BOOL; dtype <= DPI_F64; dtype++) {
        const char *name = dpi_dtype_name(dtype);
        char *text = text_format("input x %s N 5\ninput s int32 broadcast 3\noutput y %s N 7\noutput z %s N\n", name,
                                 name, name);
        backend_engine *engine = open_ok(text, NULL);
        sim_model *m = malloc(sizeof *m);
        assert_int_equal(sim_model_parse(text, strlen(text), "m", m, NULL), DPI_OK);
        size_t size = dpi_dtype_size(dtype), rows = 4;
        unsigned char x[4 * 5 * 8], y[4 * 7 * 8], z[4 * 8], want[7 * 8], zeros[7 * 8] = {0};
        int32_t s[3] = {1, -2, 3};
        tensor_fill_random(dtype, x, 5, 0, rows, 9, false);
        backend_array in[2] = {{.data = x, .rank = 2, .shape = {4, 5}}, {.data = s, .rank = 1, .shape = {3}}};
        backend_array out[2] = {{.data = y, .rank = 2, .shape = {4, 7}}, {.data = z, .rank = 1, .shape = {4}}};
        backend_call call = {.rows = rows, .inputs = in, .outputs = out};
        assert_int_equal(sim->run(engine, &call, &(backend_timing){0}, NULL), DPI_OK);
        for (size_t row = 0; row < rows; row++) {
            const void *inputs[] = {x + row * 5 * size, s};
            const size_t bytes[] = {5 * size, sizeof s};
            sim_expected_row(m, inputs, bytes, 0, 7, want);
            assert_memory_equal(y + row * 7 * size, want, 7 * size);
            assert_memory_not_equal(want, zeros, 7 * size);
            sim_expected_row(m, inputs, bytes, 1, 1, want);
            assert_memory_equal(z + row * size, want, size);
        }
        sim->close(engine);
        free(m);
        free(text);
    }
}

/* The reference sees every byte of the row (all), the first and last (ends), or none. */
static void touch_decides_which_bytes_count(void **state)
{
    (void)state;
    static const struct {
        const char *touch;
        bool counts[4];
    } cases[] = {{"all", {1, 1, 1, 1}}, {"ends", {1, 0, 0, 1}}, {"none", {0, 0, 0, 0}}};
    for (size_t c = 0; c < 3; c++) {
        char *option = text_format("touch %s", cases[c].touch);
        backend_engine *engine = open_ok(SIMPLE, option);
        uint8_t x[4] = {1, 2, 3, 4};
        float first[3], now[3];
        assert_int_equal(run_simple(engine, 1, x, first, NULL), DPI_OK);
        for (size_t at = 0; at < 4; at++) {
            x[at] ^= 0x80;
            assert_int_equal(run_simple(engine, 1, x, now, NULL), DPI_OK);
            assert_int_equal(memcmp(first, now, sizeof now) != 0, cases[c].counts[at]);
            x[at] ^= 0x80;
        }
        sim->close(engine);
        free(option);
    }
}

static void rows_do_not_depend_on_place_or_neighbours_unless_asked(void **state)
{
    (void)state;
    for (int depend = 0; depend <= 1; depend++) {
        backend_engine *engine = open_ok(SIMPLE, depend ? "rows_depend 1" : NULL);
        const uint8_t a[8] = {1, 2, 3, 4, 5, 6, 7, 8}, b[8] = {9, 9, 9, 9, 1, 2, 3, 4};
        float ya[6], yb[6];
        assert_int_equal(run_simple(engine, 2, a, ya, NULL), DPI_OK);
        assert_int_equal(run_simple(engine, 2, b, yb, NULL), DPI_OK);
        assert_int_equal(memcmp(ya, yb + 3, 3 * sizeof *ya) != 0, depend);
        sim->close(engine);
    }
}

/* The short way for rows that nobody looks at gives what the reference says. */
static void rows_that_are_not_touched_are_all_the_same(void **state)
{
    (void)state;
    const uint8_t x[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    float one[3], three[9];
    for (int size_bits = 0; size_bits <= 1; size_bits++) {
        sim_model *m = malloc(sizeof *m);
        assert_int_equal(sim_model_parse(SIMPLE "touch none\n", strlen(SIMPLE "touch none\n"), "m", m, NULL), DPI_OK);
        const void *row = x;
        sim_expected_row(m, &row, (const size_t[]){4}, 0, 3, one);
        one[0] += size_bits ? 3 / 65536.0f : 0;
        backend_engine *engine = open_ok(SIMPLE, size_bits ? "touch none size_bits 1" : "touch none");
        assert_int_equal(run_simple(engine, 3, x, three, NULL), DPI_OK);
        for (int r = 0; r < 3; r++)
            assert_memory_equal(three + 3 * r, one, sizeof one);
        sim->close(engine);
        free(m);
    }
}

static void size_bits_changes_last_bits_alone(void **state)
{
    (void)state;
    backend_engine *engine = open_ok(SIMPLE, "size_bits 1");
    const uint8_t x[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    float one[3], two[6];
    assert_int_equal(run_simple(engine, 1, x, one, NULL), DPI_OK);
    assert_int_equal(run_simple(engine, 2, x, two, NULL), DPI_OK);
    assert_memory_not_equal(one, two, sizeof one);
    for (int e = 0; e < 3; e++)
        assert_true(one[e] - two[e] < 1e-3f && two[e] - one[e] < 1e-3f);
    sim->close(engine);
}

/* ---- shapes ----------------------------------------------------------------------------------------------------- */

static void shapes_follow_the_inputs(void **state)
{
    (void)state;
    backend_engine *engine =
        open_ok("input x uint8 N ? 2\ninput w uint8 broadcast 3\noutput y uint8 N x.1 5\noutput z uint8 4 5\n", NULL);
    backend_array in[2] = {{.rank = 3, .shape = {6, 17, 2}}, {.rank = 1, .shape = {3}}}, out[2] = {{0}};
    assert_int_equal(sim->infer_shapes(engine, in, out, NULL), DPI_OK);
    assert_int_equal(out[0].rank, 3);
    assert_int_equal(out[0].shape[0], 6);
    assert_int_equal(out[0].shape[1], 17);
    assert_int_equal(out[0].shape[2], 5);
    assert_int_equal(out[1].shape[0], 4); /* not the rows: what the caller must find out */
    dpi_error error = {0};
    in[0].shape[2] = 3;
    assert_int_equal(sim->infer_shapes(engine, in, out, &error), DPI_E_DATA);
    assert_non_null(strstr(error.message, "[N,?,2]"));
    assert_non_null(strstr(error.message, "[6,17,3]"));
    sim->close(engine);
    engine = open_ok(SIMPLE, "data_sized 1");
    backend_array x = {.rank = 2, .shape = {6, 4}};
    assert_int_equal(sim->infer_shapes(engine, &x, out, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, "y"));
    sim->close(engine);
}

/* ---- what it costs ---------------------------------------------------------------------------------------------- */

/* Only lower bounds: a busy machine may always take longer. */
static void a_slice_takes_at_least_its_cost(void **state)
{
    (void)state;
    static const struct {
        const char *options;
        int64_t least_us;
    } cases[] = {
        {"fixed_us 2000", 2000},        {"row_us 500", 2000},           {"fixed_us 1000 row_us 500", 3000},
        {"bandwidth_mb_s 0.008", 2000}, {"fixed_us 2000 busy 1", 2000},
    };
    const uint8_t x[16] = {0};
    float y[12];
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        backend_engine *engine = open_ok(SIMPLE, cases[c].options);
        int64_t began_ns = clock_now_ns();
        assert_int_equal(run_simple(engine, 4, x, y, NULL), DPI_OK);
        assert_true(clock_now_ns() - began_ns >= cases[c].least_us * 1000);
        sim->close(engine);
    }
}

static void a_busy_slice_burns_cpu_and_another_sleeps(void **state)
{
    (void)state;
    const uint8_t x[4] = {0};
    float y[3];
    for (int busy = 0; busy <= 1; busy++) {
        backend_engine *engine = open_ok(SIMPLE, busy ? "fixed_us 20000 busy 1" : "fixed_us 20000");
        int64_t began_ns = clock_thread_cpu_ns();
        assert_int_equal(run_simple(engine, 1, x, y, NULL), DPI_OK);
        int64_t used_ns = clock_thread_cpu_ns() - began_ns;
        if (busy)
            assert_true(used_ns > 1000000); /* even when other programs take most of the core */
        else
            assert_true(used_ns < 10000000);
        sim->close(engine);
    }
}

static void count_alive(void *context) { ++*(int *)context; }

static void compiling_takes_its_time_and_shows_that_it_lives(void **state)
{
    (void)state;
    backend_library *library = NULL;
    backend_engine *engine = NULL;
    int calls = 0;
    assert_int_equal(sim->load(&(backend_load_options){0}, NULL, &library, NULL), DPI_OK);
    const dpi_key_value option = {"compile_ms", "50"};
    backend_model model = {.data = SIMPLE, .bytes = strlen(SIMPLE), .format = "sim"};
    backend_device device = {.kind = "sim", .name = "sim:0", .threads = 1};
    backend_open_options open = {.model = &model,
                                 .device = &device,
                                 .options = &option,
                                 .option_count = 1,
                                 .import_fd = -1,
                                 .alive = count_alive,
                                 .alive_context = &calls};
    int64_t began_ns = clock_now_ns();
    assert_int_equal(sim->open(library, &open, &engine, NULL), DPI_OK);
    assert_true(clock_now_ns() - began_ns >= 50000000);
    assert_true(calls >= 1);
    int fd = memfd_create("engine", MFD_CLOEXEC);
    assert_int_equal(sim->export_engine(engine, fd, NULL), DPI_OK);
    sim->close(engine);
    lseek(fd, 0, SEEK_SET);
    const dpi_key_value slow = {"hang_compile", "1"}; /* nothing is compiled, so nothing hangs */
    open.options = &slow;
    open.import_fd = fd;
    assert_int_equal(sim->open(library, &open, &engine, NULL), DPI_OK);
    sim->close(engine);
    close(fd);
    sim->unload(library);
}

static void a_damaged_engine_is_refused(void **state)
{
    (void)state;
    static const char *const contents[] = {"", "x", "dpinfer sim engine", "something else altogether, and longer\n"};
    for (size_t i = 0; i < sizeof contents / sizeof contents[0]; i++) {
        int fd = memfd_create("engine", MFD_CLOEXEC);
        assert_int_equal(file_write_at(fd, contents[i], strlen(contents[i]), 0, "engine", NULL), DPI_OK);
        backend_engine *engine;
        dpi_error error = {0};
        assert_int_equal(open_with(SIMPLE, NULL, fd, &engine, &error), DPI_E_MODEL);
        assert_null(engine);
        close(fd);
    }
}

/* ---- how it is refused ------------------------------------------------------------------------------------------ */

static void wrong_options_are_refused_by_name(void **state)
{
    (void)state;
    backend_engine *engine;
    dpi_error error = {0};
    assert_int_equal(open_with(SIMPLE, "colour red", -1, &engine, &error), DPI_E_ARGUMENT);
    assert_non_null(strstr(error.message, "colour"));
    assert_int_equal(open_with(SIMPLE, "row_us fast", -1, &engine, &error), DPI_E_ARGUMENT);
    assert_non_null(strstr(error.message, "row_us"));
    assert_non_null(strstr(error.message, "fast"));
    assert_int_equal(open_with("nonsense\n", NULL, -1, &engine, &error), DPI_E_MODEL);
}

/* ---- how it fails ----------------------------------------------------------------------------------------------- */

/* Runs slices in a child until one ends it; returns its wait status, and how many slices it had finished. */
static int run_in_child(const char *options, int *finished)
{
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(pipes[0]);
        backend_engine *engine = open_ok(SIMPLE, options);
        const uint8_t x[4] = {0};
        float y[3];
        for (int i = 0; i < 5; i++)
            if (run_simple(engine, 1, x, y, NULL) || write(pipes[1], "", 1) != 1)
                break;
        _exit(99);
    }
    close(pipes[1]);
    char byte;
    *finished = 0;
    while (read(pipes[0], &byte, 1) == 1)
        ++*finished;
    close(pipes[0]);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

static void it_dies_and_exits_at_the_planned_slice(void **state)
{
    (void)state;
    int finished, status = run_in_child("die_at_slice 3", &finished);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGKILL);
    assert_int_equal(finished, 2);
    status = run_in_child("die_at_slice 1 signal 15", &finished);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(WTERMSIG(status), SIGTERM);
    assert_int_equal(finished, 0);
    status = run_in_child("exit_at_slice 4", &finished);
    assert_true(WIFEXITED(status));
    assert_int_not_equal(WEXITSTATUS(status), 99);
    assert_int_equal(finished, 3);
}

static void it_hangs_at_the_planned_slice(void **state)
{
    (void)state;
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(pipes[0]);
        backend_engine *engine = open_ok(SIMPLE, "hang_at_slice 2");
        const uint8_t x[4] = {0};
        float y[3];
        for (int i = 0; i < 2; i++)
            if (run_simple(engine, 1, x, y, NULL) || write(pipes[1], "", 1) != 1)
                break;
        _exit(99);
    }
    close(pipes[1]);
    char byte;
    assert_int_equal(read(pipes[0], &byte, 1), 1);
    struct pollfd more = {.fd = pipes[0], .events = POLLIN};
    assert_int_equal(poll(&more, 1, 200), 0); /* neither finished nor ended */
    int status;
    assert_int_equal(waitpid(child, &status, WNOHANG), 0);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    close(pipes[0]);
}

static void it_fails_once_at_the_planned_slice(void **state)
{
    (void)state;
    backend_engine *engine = open_ok(SIMPLE, "fail_at_slice 2");
    const uint8_t x[4] = {0};
    float y[3];
    dpi_error error = {0};
    assert_int_equal(run_simple(engine, 1, x, y, &error), DPI_OK);
    assert_int_equal(run_simple(engine, 1, x, y, &error), DPI_E_ENGINE);
    assert_int_equal(error.status, DPI_E_ENGINE);
    assert_int_equal(run_simple(engine, 1, x, y, &error), DPI_OK);
    sim->close(engine);
}

/* Each of these fails its slice with its own status, and the next slice is good. */
static void it_fails_in_several_ways(void **state)
{
    (void)state;
    const struct {
        const char *options, *says;
        dpi_status status;
    } ways[] = {{"no_memory_at_slice 2", "out of memory", DPI_E_SYSTEM},
                {"wrong_size_at_slice 2", "has the shape", DPI_E_ENGINE}};
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        backend_engine *engine = open_ok(SIMPLE, ways[i].options);
        const uint8_t x[4] = {0};
        float y[3];
        dpi_error error = {0};
        assert_int_equal(run_simple(engine, 1, x, y, &error), DPI_OK);
        assert_int_equal(run_simple(engine, 1, x, y, &error), ways[i].status);
        assert_non_null(strstr(error.message, ways[i].says));
        assert_int_equal(run_simple(engine, 1, x, y, &error), DPI_OK);
        sim->close(engine);
    }
}

static void it_is_slow_from_the_planned_slice_on(void **state)
{
    (void)state;
    backend_engine *engine = open_ok(SIMPLE, "slow_at_slice 2 slow_us 30000");
    const uint8_t x[4] = {0};
    float y[3];
    for (int i = 1; i <= 3; i++) {
        int64_t began = clock_now_ns();
        assert_int_equal(run_simple(engine, 1, x, y, NULL), DPI_OK);
        if (i > 1)
            assert_true(clock_now_ns() - began >= 30000000);
    }
    sim->close(engine);
}

static void it_cannot_be_compiled_by_plan(void **state)
{
    (void)state;
    backend_engine *engine;
    dpi_error error = {0};
    assert_int_equal(open_with(SIMPLE, "fail_compile 1", -1, &engine, &error), DPI_E_MODEL);
    assert_null(engine);
}

/* The engine of a test is of no generation at all: what is planned for the first is not for it. */
static void a_generation_has_faults_of_its_own(void **state)
{
    (void)state;
    sim_model m;
    const char *text = SIMPLE "faults 1:die_at_slice=3,1:signal=11,3:hang_compile=1\n";
    for (uint32_t generation = 1; generation <= 3; generation++) {
        assert_int_equal(sim_model_parse(text, strlen(text), "test", &m, NULL), DPI_OK);
        assert_true(sim_plan_generation(&m, generation));
        assert_int_equal(m.die_at_slice, generation == 1 ? 3 : 0);
        assert_int_equal(m.signal, generation == 1 ? 11 : 0);
        assert_int_equal(m.hang_compile, generation == 3);
    }
    backend_engine *engine = open_ok(SIMPLE, "faults 1:fail_at_slice=1");
    const uint8_t x[4] = {0};
    float y[3];
    assert_int_equal(run_simple(engine, 1, x, y, NULL), DPI_OK);
    sim->close(engine);
}

static void calls_before_it_is_ready_are_no_slices(void **state)
{
    (void)state;
    backend_engine *engine;
    const uint8_t x[4] = {0};
    float y[3];
    assert_int_equal(open_with(SIMPLE, "fail_at_slice 1", -1, &engine, NULL), DPI_OK);
    for (int i = 0; i < 3; i++)
        assert_int_equal(run_simple(engine, 1, x, y, NULL), DPI_OK);
    sim->ready(engine);
    assert_int_equal(run_simple(engine, 1, x, y, NULL), DPI_E_ENGINE);
    sim->close(engine);
}

/* ---- several calls in flight ------------------------------------------------------------------------------------ */

#define DEPTH 3
#define STAGED                                                                                                         \
    "depth 3 copy_in_mb_s 0.0002 fixed_us 20000 copy_out_mb_s 0.0006" /* 20 ms each for one row of SIMPLE              \
                                                                       */

/* DEPTH calls of one row of SIMPLE, each with memory of its own. */
typedef struct flights {
    backend_engine *engine;
    uint8_t x[DEPTH][4];
    float y[DEPTH][3];
    backend_array in[DEPTH], out[DEPTH];
    backend_call calls[DEPTH];
} flights;

static void flights_open(flights *f, const char *options)
{
    *f = (flights){.engine = open_ok(SIMPLE, options)};
    for (int i = 0; i < DEPTH; i++) {
        memset(f->x[i], i + 1, sizeof f->x[i]);
        memset(f->y[i], 0xa5, sizeof f->y[i]);
        f->in[i] = (backend_array){.data = f->x[i], .rank = 2, .shape = {1, 4}};
        f->out[i] = (backend_array){.data = f->y[i], .rank = 2, .shape = {1, 3}};
        f->calls[i] = (backend_call){.rows = 1, .inputs = &f->in[i], .outputs = &f->out[i]};
    }
}

static dpi_status flights_enqueue(flights *f, int slot, dpi_error *error)
{
    return sim->enqueue(f->engine, slot, &f->calls[slot], error);
}

static void flights_enqueue_all(flights *f)
{
    for (int i = 0; i < DEPTH; i++)
        assert_int_equal(flights_enqueue(f, i, NULL), DPI_OK);
}

static dpi_status flights_wait(flights *f, int slot, dpi_error *error)
{
    backend_timing timing = {0};
    return sim->wait(f->engine, slot, &timing, error);
}

static bool is_written(const flights *f, int slot)
{
    float want[3], old[3];
    backend_engine *alone = open_ok(SIMPLE, NULL);
    assert_int_equal(run_simple(alone, 1, f->x[slot], want, NULL), DPI_OK);
    sim->close(alone);
    memset(old, 0xa5, sizeof old);
    bool written = memcmp(f->y[slot], want, sizeof want) == 0;
    assert_true(written || memcmp(f->y[slot], old, sizeof old) == 0);
    return written;
}

static void depth_is_what_was_asked_for(void **state)
{
    (void)state;
    static const char *const options[] = {NULL, "depth 1", "depth 3", "depth 8"}, *const wrong[] = {"depth 0",
                                                                                                    "depth 9"};
    static const int depths[] = {1, 1, 3, BACKEND_MAX_DEPTH};
    for (size_t i = 0; i < 4; i++) {
        backend_engine *engine = open_ok(SIMPLE, options[i]);
        assert_int_equal(sim->depth(engine), depths[i]);
        sim->close(engine);
    }
    for (size_t i = 0; i < 2; i++) {
        backend_engine *engine;
        dpi_error error = {0};
        assert_int_equal(open_with(SIMPLE, wrong[i], -1, &engine, &error), DPI_E_ARGUMENT);
        assert_non_null(strstr(error.message, "depth"));
    }
}

/* Who looks too early sees old data; a slot can be used again after its wait. */
static void results_appear_in_the_wait(void **state)
{
    (void)state;
    flights f;
    flights_open(&f, "depth 3");
    flights_enqueue_all(&f);
    for (int turn = 0; turn < 7; turn++) {
        int slot = turn % DEPTH;
        for (int i = 0; i < DEPTH; i++)
            assert_false(is_written(&f, i));
        assert_int_equal(flights_wait(&f, slot, NULL), DPI_OK);
        assert_true(is_written(&f, slot));
        memset(f.y[slot], 0xa5, sizeof f.y[slot]);
        f.x[slot][0] = (uint8_t)(50 + turn); /* another result */
        assert_int_equal(flights_enqueue(&f, slot, NULL), DPI_OK);
    }
    sim->close(f.engine); /* with calls in flight */
    flights_open(&f, "depth 3 fixed_us 2000");
    assert_int_equal(sim->run(f.engine, &f.calls[1], &(backend_timing){0}, NULL), DPI_OK);
    assert_true(is_written(&f, 1));
    sim->close(f.engine);
}

/* Copies add to a call alone; timing tells them from the rest. */
static void copies_take_their_time(void **state)
{
    (void)state;
    for (int depth = 1; depth <= DEPTH; depth += 2) {
        backend_timing timing = {0};
        flights f;
        flights_open(&f, depth == 1 ? STAGED " depth 1" : STAGED);
        int64_t began_ns = clock_now_ns();
        assert_int_equal(sim->run(f.engine, &f.calls[0], &timing, NULL), DPI_OK);
        assert_true(clock_now_ns() - began_ns >= 60000000);
        assert_int_equal(timing.copy_in_ns, 20000000);
        assert_int_equal(timing.copy_out_ns, 20000000);
        assert_true(is_written(&f, 0));
        sim->close(f.engine);
    }
}

/* Three calls of three stages of 20 ms end after 60, 80 and 100 ms, not after 60, 120 and 180. */
static bool stages_overlap_once(void)
{
    flights f;
    flights_open(&f, STAGED);
    int64_t began_ns = clock_now_ns(), took_ns = 0;
    flights_enqueue_all(&f);
    int64_t enqueued_ns = clock_now_ns() - began_ns;
    for (int i = 0; i < DEPTH; i++) {
        backend_timing timing = {0};
        assert_int_equal(sim->wait(f.engine, i, &timing, NULL), DPI_OK);
        took_ns = clock_now_ns() - began_ns;
        assert_true(took_ns >= (3 + i) * 20000000);
        assert_int_equal(timing.copy_in_ns, 20000000);
        assert_true(timing.compute_ns >= 20000000 && timing.compute_ns < 21000000); /* without the time in the queue */
        assert_int_equal(timing.copy_out_ns, 20000000);
    }
    sim->close(f.engine);
    return enqueued_ns < 20000000 && took_ns < 160000000;
}

static void stages_of_different_calls_overlap(void **state)
{
    (void)state;
    bool overlap = false;
    for (int i = 0; i < 10 && !overlap; i++) /* a busy machine may take longer now and then */
        overlap = stages_overlap_once();
    assert_true(overlap);
}

static void a_wrong_slot_is_refused(void **state)
{
    (void)state;
    flights f;
    flights_open(&f, "depth 3");
    assert_int_equal(flights_wait(&f, 0, NULL), DPI_E_INTERNAL); /* nothing is in flight */
    assert_int_equal(sim->enqueue(f.engine, 3, &f.calls[0], NULL), DPI_E_INTERNAL);
    assert_int_equal(sim->enqueue(f.engine, -1, &f.calls[0], NULL), DPI_E_INTERNAL);
    assert_int_equal(flights_enqueue(&f, 1, NULL), DPI_OK);
    assert_int_equal(flights_enqueue(&f, 1, NULL), DPI_E_INTERNAL);
    assert_int_equal(flights_enqueue(&f, 0, NULL), DPI_OK);
    assert_int_equal(flights_wait(&f, 0, NULL), DPI_E_INTERNAL); /* slot 1 is older */
    assert_int_equal(flights_wait(&f, 1, NULL), DPI_OK);
    assert_int_equal(flights_wait(&f, 0, NULL), DPI_OK);
    assert_true(is_written(&f, 0) && is_written(&f, 1) && !is_written(&f, 2));
    sim->close(f.engine);
}

/* A failure frees its slot, leaves its outputs alone and the other calls in flight as they were. */
static void a_failure_is_of_one_call(void **state)
{
    (void)state;
    flights f;
    dpi_error error = {0};
    flights_open(&f, "depth 3 fail_at_slice 2");
    flights_enqueue_all(&f);
    assert_int_equal(flights_wait(&f, 0, NULL), DPI_OK);
    assert_int_equal(flights_wait(&f, 1, &error), DPI_E_ENGINE);
    assert_non_null(strstr(error.message, "slice 2"));
    assert_int_equal(flights_enqueue(&f, 1, NULL), DPI_OK);
    assert_int_equal(flights_wait(&f, 2, NULL), DPI_OK);
    assert_true(is_written(&f, 0) && !is_written(&f, 1) && is_written(&f, 2));
    assert_int_equal(flights_wait(&f, 1, NULL), DPI_OK);
    assert_true(is_written(&f, 1));
    sim->close(f.engine);
    flights_open(&f, "depth 3 fail_at_slice 2 fault_in_enqueue 1");
    assert_int_equal(flights_enqueue(&f, 0, NULL), DPI_OK);
    assert_int_equal(flights_enqueue(&f, 1, &error), DPI_E_ENGINE);
    assert_int_equal(flights_enqueue(&f, 1, NULL), DPI_OK);
    assert_int_equal(flights_wait(&f, 0, NULL), DPI_OK);
    assert_int_equal(flights_wait(&f, 1, NULL), DPI_OK);
    sim->close(f.engine);
}

/* Deaths in the second call's wait, or in its enqueue. */
static void it_dies_in_the_wait_or_in_the_enqueue(void **state)
{
    (void)state;
    for (int in_enqueue = 0; in_enqueue <= 1; in_enqueue++) {
        int pipes[2], status = 0, steps = 0;
        char byte;
        assert_int_equal(pipe(pipes), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            flights f;
            flights_open(&f, in_enqueue ? "depth 3 exit_at_slice 2 fault_in_enqueue 1" : "depth 3 exit_at_slice 2");
            for (int i = 0; i < 2 * DEPTH; i++)
                if ((i < DEPTH ? flights_enqueue(&f, i, NULL) : flights_wait(&f, i - DEPTH, NULL)) ||
                    write(pipes[1], "", 1) != 1)
                    break;
            _exit(99);
        }
        close(pipes[1]);
        while (read(pipes[0], &byte, 1) == 1)
            steps++;
        close(pipes[0]);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 7);
        assert_int_equal(steps, in_enqueue ? 1 : DEPTH + 1);
    }
}

static void it_lists_its_device(void **state)
{
    (void)state;
    backend_library *library = NULL;
    backend_device_info list[2];
    backend_library_info info;
    size_t count = 0;
    assert_int_equal(sim->load(&(backend_load_options){0}, NULL, &library, NULL), DPI_OK);
    assert_int_equal(sim->list_devices(library, list, 2, &count, NULL), DPI_OK);
    assert_int_equal(count, 1);
    assert_string_equal(list[0].name, "sim:0");
    assert_int_equal(sim->list_devices(library, NULL, 0, &count, NULL), DPI_OK);
    assert_int_equal(count, 1);
    sim->library_info(library, &info);
    assert_string_equal(info.path, "");
    sim->unload(library);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dtype_gets_its_expected_rows),
        cmocka_unit_test(touch_decides_which_bytes_count),
        cmocka_unit_test(rows_do_not_depend_on_place_or_neighbours_unless_asked),
        cmocka_unit_test(rows_that_are_not_touched_are_all_the_same),
        cmocka_unit_test(size_bits_changes_last_bits_alone),
        cmocka_unit_test(shapes_follow_the_inputs),
        cmocka_unit_test(a_slice_takes_at_least_its_cost),
        cmocka_unit_test(a_busy_slice_burns_cpu_and_another_sleeps),
        cmocka_unit_test(compiling_takes_its_time_and_shows_that_it_lives),
        cmocka_unit_test(a_damaged_engine_is_refused),
        cmocka_unit_test(wrong_options_are_refused_by_name),
        cmocka_unit_test(it_dies_and_exits_at_the_planned_slice),
        cmocka_unit_test(it_hangs_at_the_planned_slice),
        cmocka_unit_test(it_fails_once_at_the_planned_slice),
        cmocka_unit_test(it_fails_in_several_ways),
        cmocka_unit_test(it_is_slow_from_the_planned_slice_on),
        cmocka_unit_test(it_cannot_be_compiled_by_plan),
        cmocka_unit_test(a_generation_has_faults_of_its_own),
        cmocka_unit_test(calls_before_it_is_ready_are_no_slices),
        cmocka_unit_test(depth_is_what_was_asked_for),
        cmocka_unit_test(results_appear_in_the_wait),
        cmocka_unit_test(copies_take_their_time),
        cmocka_unit_test(stages_of_different_calls_overlap),
        cmocka_unit_test(a_wrong_slot_is_refused),
        cmocka_unit_test(a_failure_is_of_one_call),
        cmocka_unit_test(it_dies_in_the_wait_or_in_the_enqueue),
        cmocka_unit_test(it_lists_its_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
