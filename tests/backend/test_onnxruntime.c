/* What ONNX Runtime alone has to show: where a model comes from, ports and shapes, memory, threads, options, providers,
 * the library and its messages. The suite that every backend passes is in conformance.c. */
#include "backend/onnxruntime_kit.h"
#include "base/clock.h"
#include "base/file.h"

#include <dirent.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static const backend *const ort = &backend_onnxruntime;

/* ---- the model --------------------------------------------------------------------------------------------------- */

static void a_model_comes_from_a_file_or_memory(void **state)
{
    onnx m = onnx_small();
    text_buffer bytes = onnx_bytes(&m);
    char *path = onnx_write_small();
    const ort_opening openings[] = {{.path = path}, {.data = bytes.data, .bytes = bytes.length}};
    for (int i = 0; i < 2; i++) {
        backend_engine *engine = ort_open_well(*state, &openings[i]);
        signature sig;
        assert_int_equal(ort->describe(engine, &sig, NULL), DPI_OK);
        assert_int_equal(sig.input_count, 1);
        assert_int_equal(sig.output_count, 1);
        assert_string_equal(sig.inputs[0].name, "x");
        assert_string_equal(sig.outputs[0].name, "y");
        assert_int_equal(sig.inputs[0].dtype, DPI_F32);
        assert_int_equal(sig.inputs[0].shape[0], -1);
        assert_int_equal(sig.inputs[0].shape[1], 4);
        ort_check_small(engine);
        ort->close(engine);
    }
    text_free(&bytes);
    free(path);
}

static void a_file_that_is_none_or_cut_short_is_refused(void **state)
{
    onnx m = onnx_small();
    text_buffer bytes = onnx_bytes(&m);
    char *path = test_path("cut.onnx");
    ort_open_badly(*state, &(ort_opening){.path = "/nowhere/at/all.onnx"}, DPI_E_MODEL, "/nowhere/at/all.onnx", NULL);
    for (size_t cut = 0; cut < bytes.length; cut += 5) {
        test_write(path, bytes.data, cut);
        ort_open_badly(*state, &(ort_opening){.path = path}, DPI_E_MODEL, path, NULL);
        ort_open_badly(*state, &(ort_opening){.data = bytes.data, .bytes = cut}, DPI_E_MODEL, "memory", NULL);
    }
    text_free(&bytes);
    free(path);
}

static void an_operator_that_does_not_exist_is_named(void **state)
{
    onnx m = {0};
    onnx_input(&m, "x", ONNX_F32, "N 4");
    onnx_node(&m, "Frobnicate", "x", "y", NULL, 0);
    onnx_output(&m, "y", ONNX_F32, "N 4");
    char *path = onnx_write(&m, "frobnicate");
    ort_open_badly(*state, &(ort_opening){.path = path}, DPI_E_MODEL, path, "Frobnicate");
    free(path);
}

/* ---- ports ------------------------------------------------------------------------------------------------------- */

/* x [N,4] -> y = relu(x), and an output "odd" that dpinfer cannot move: a sequence, or made by a Cast. */
static char *write_odd_output(const char *name, int element, unsigned kind)
{
    onnx m = {0};
    onnx_input(&m, "x", ONNX_F32, "N 4");
    if (kind)
        onnx_node(&m, "SequenceConstruct", "x", "odd", NULL, 0);
    else
        onnx_node(&m, "Cast", "x", "odd", "to", element);
    onnx_node(&m, "Relu", "x", "y", NULL, 0);
    onnx_port(&m, ONNX_OUTPUT, "odd", element, "N 4", kind);
    onnx_output(&m, "y", ONNX_F32, "N 4");
    return onnx_write(&m, name);
}

static void strings_and_sequences_are_refused_by_name_and_may_stay_unused(void **state)
{
    char *paths[] = {write_odd_output("strings", ONNX_STRING, ONNX_TENSOR),
                     write_odd_output("sequence", ONNX_F32, ONNX_SEQUENCE)};
    for (int i = 0; i < 2; i++) {
        ort_open_badly(*state, &(ort_opening){.path = paths[i]}, DPI_E_MODEL, "odd", NULL);
        ort_open_badly(*state, &(ort_opening){.path = paths[i], .output_names = {"y", "odd"}}, DPI_E_MODEL, "odd",
                       NULL);
        backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = paths[i], .output_names = {"y"}});
        const float x[4] = {1, -1, 0, 2}, want[4] = {1, 0, 0, 2};
        float y[4];
        ort_run_floats(engine, x, 1, 4, y, 4);
        assert_memory_equal(y, want, sizeof want);
        ort->close(engine);
        free(paths[i]);
    }
}

static void inputs_of_foreign_kinds_are_refused_by_name(void **state)
{
    static const struct {
        int element;
        unsigned kind;
        const char *operator;
    } kinds[] = {{ONNX_STRING, ONNX_TENSOR, "Identity"},
                 {ONNX_F32, ONNX_SEQUENCE, "Identity"},
                 {ONNX_F32, ONNX_OPTIONAL, "Identity"}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        onnx m = {0};
        onnx_port(&m, ONNX_INPUT, "foreign", kinds[i].element, "N 4", kinds[i].kind);
        onnx_node(&m, kinds[i].operator, "foreign", "y", NULL, 0);
        onnx_port(&m, ONNX_OUTPUT, "y", kinds[i].element, "N 4", kinds[i].kind);
        char *path = onnx_write(&m, "foreign");
        ort_open_badly(*state, &(ort_opening){.path = path}, DPI_E_MODEL, "foreign", NULL);
        free(path);
    }
}

static void an_output_that_the_model_lacks_is_named(void **state)
{
    char *path = onnx_write_small();
    ort_open_badly(*state, &(ort_opening){.path = path, .output_names = {"z"}}, DPI_E_MODEL, "\"z\"", NULL);
    free(path);
}

static void an_output_that_is_wanted_twice_comes_twice(void **state)
{
    char *path = onnx_write_small();
    backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = path, .output_names = {"y", "y"}});
    float x[8] = {1, 0, 0, 0, 0, 1, 0, 1}, y[2][4] = {{0}}, want[4] = {1, 2, 10, 12};
    backend_array in = {.data = x, .rank = 2, .shape = {2, 4}};
    backend_array out[2] = {{.data = y[0], .rank = 2, .shape = {2, 2}}, {.data = y[1], .rank = 2, .shape = {2, 2}}};
    ort_run_well(engine, &in, out);
    assert_memory_equal(y[0], want, sizeof want);
    assert_memory_equal(y[1], want, sizeof want);
    ort->close(engine);
    free(path);
}

/* Nothing computes these outputs: they must stand in the caller's memory all the same. */
static void inputs_and_weights_that_are_outputs_too_are_written(void **state)
{
    static const float w[2][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}};
    onnx m = {0};
    onnx_input(&m, "x", ONNX_F32, "N 4");
    onnx_weight(&m, "w", 2, 4, w[0]);
    onnx_node(&m, "Relu", "x", "y", NULL, 0);
    onnx_output(&m, "x", ONNX_F32, "N 4");
    onnx_output(&m, "y", ONNX_F32, "N 4");
    onnx_output(&m, "w", ONNX_F32, "2 4");
    char *path = onnx_write(&m, "through");
    backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = path});
    float x[2][4] = {{1, -2, 3, -4}, {-5, 6, -7, 8}}, out[3][2][4] = {{{0}}}, relu[2][4] = {{1, 0, 3, 0}, {0, 6, 0, 8}};
    backend_array in = {.data = x, .rank = 2, .shape = {2, 4}}, outs[3];
    for (int o = 0; o < 3; o++)
        outs[o] = (backend_array){.data = out[o], .rank = 2, .shape = {2, 4}};
    ort_run_well(engine, &in, outs);
    assert_memory_equal(out[0], x, sizeof x);
    assert_memory_equal(out[1], relu, sizeof relu);
    assert_memory_equal(out[2], w, sizeof w);
    ort->close(engine);
    free(path);
}

/* ---- shapes ------------------------------------------------------------------------------------------------------ */

/* x [N,4] -> y = relu(x), where = the places of what is not zero (its size depends on data) */
static char *write_nonzero(void)
{
    onnx m = {0};
    onnx_input(&m, "x", ONNX_F32, "N 4");
    onnx_node(&m, "Relu", "x", "y", NULL, 0);
    onnx_node(&m, "NonZero", "y", "where", NULL, 0);
    onnx_output(&m, "y", ONNX_F32, "N 4");
    onnx_output(&m, "where", ONNX_I64, "2 ?");
    return onnx_write(&m, "nonzero");
}

static void sizes_that_depend_on_data_are_refused_by_the_outputs_name(void **state)
{
    char *path = write_nonzero();
    backend_array in = {.rank = 2, .shape = {3, 4}}, out[2] = {{0}};
    backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = path});
    dpi_error error = {0};
    for (int again = 0; again < 2; again++) {
        assert_int_equal(ort->infer_shapes(engine, &in, out, &error), DPI_E_MODEL);
        assert_non_null(strstr(error.message, "where"));
        ort_check_sentence(error.message);
    }
    ort->close(engine);
    engine = ort_open_well(*state, &(ort_opening){.path = path, .output_names = {"y"}});
    assert_int_equal(ort->infer_shapes(engine, &in, out, NULL), DPI_OK);
    assert_int_equal(out[0].rank, 2);
    assert_int_equal(out[0].shape[0], 3);
    assert_int_equal(out[0].shape[1], 4);
    ort->close(engine);
    free(path);
}

/* The model says that y is as wide as x, and it is twice that: found by the call at the latest. */
static void a_model_that_says_a_wrong_shape_does_no_harm(void **state)
{
    onnx m = {0};
    onnx_input(&m, "x", ONNX_F32, "N S");
    onnx_node(&m, "Concat", "x x", "y", "axis", 1);
    onnx_output(&m, "y", ONNX_F32, "N S");
    char *path = onnx_write(&m, "false");
    backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = path});
    float x[6] = {1, 2, 3, 4, 5, 6}, y[12 + 4] = {0};
    backend_array in = {.data = x, .rank = 2, .shape = {2, 3}}, out = {.rank = 2};
    dpi_error error;
    assert_int_equal(ort->infer_shapes(engine, &in, &out, &error), DPI_OK);
    out.data = y;
    dpi_status status = ort_try_run(engine, &in, &out, &error);
    if (out.shape[1] == 3) {
        assert_int_equal(status, DPI_E_ENGINE);
        ort_check_sentence(error.message);
        for (int e = 6; e < 16; e++)
            assert_true(y[e] == 0);
    } else
        assert_int_equal(status, DPI_OK);
    ort->close(engine);
    free(path);
}

/* k int64 [N,8] -> y = 0, 1, 2, ... (as many as the sum of all k): the size is made of the data, not a count of it. */
static void sizes_that_are_computed_from_data_are_refused(void **state)
{
    onnx m = {0};
    onnx_input(&m, "k", ONNX_I64, "N 8");
    onnx_node(&m, "ReduceSum", "k", "sum", "keepdims", 0);
    onnx_node(&m, "Sub", "sum sum", "none", NULL, 0);
    onnx_node(&m, "Pow", "none none", "one", NULL, 0);
    onnx_node(&m, "Range", "none sum one", "y", NULL, 0);
    onnx_output(&m, "y", ONNX_I64, "?");
    char *path = onnx_write(&m, "range");
    backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = path});
    backend_array in = {.rank = 2, .shape = {4, 8}}, out = {0};
    dpi_error error = {0};
    assert_int_equal(ort->infer_shapes(engine, &in, &out, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, "output y"));
    ort->close(engine);
    free(path);
}

/* x [N,S] -> y = squeeze(x): how many axes that has depends on the extents, which no shape of a port can say. */
static void an_open_number_of_axes_is_refused(void **state)
{
    onnx m = {0};
    onnx_input(&m, "x", ONNX_F32, "N S");
    onnx_node(&m, "Squeeze", "x", "loose", NULL, 0);
    onnx_port(&m, ONNX_OUTPUT, "loose", ONNX_F32, NULL, ONNX_TENSOR);
    char *path = onnx_write(&m, "loose");
    backend_engine *engine;
    dpi_error error;
    dpi_status status = ort_try_open(*state, &(ort_opening){.path = path}, &engine, &error);
    if (!status) {
        backend_array in = {.rank = 2, .shape = {3, 4}}, out = {0};
        status = ort->infer_shapes(engine, &in, &out, &error);
        ort->close(engine);
    }
    assert_int_equal(status, DPI_E_MODEL);
    assert_non_null(strstr(error.message, "loose"));
    assert_non_null(strstr(error.message, "axes"));
    ort_check_sentence(error.message);
    free(path);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

/* The caller's idea of the output is wrong: an error, and not a byte beside its memory. */
static void an_output_of_another_shape_is_an_error_and_not_written_past(void **state)
{
    static const backend_array wrong[] = {
        {.rank = 2, .shape = {3, 1}}, {.rank = 2, .shape = {3, 3}},    {.rank = 2, .shape = {2, 2}},
        {.rank = 2, .shape = {1, 2}}, {.rank = 2, .shape = {4, 2}},    {.rank = 1, .shape = {3}},
        {.rank = 1, .shape = {6}},    {.rank = 3, .shape = {3, 2, 1}}, {.rank = 0}};
    char *path = onnx_write_small(), *nonzero = write_nonzero();
    backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = path});
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *memory = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    assert_int_equal(mprotect(memory, page, PROT_NONE) | mprotect(memory + 2 * page, page, PROT_NONE), 0);
    float x[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    backend_array in = {.data = x, .rank = 2, .shape = {3, 4}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        backend_array out = wrong[i];
        size_t bytes;
        dpi_error error;
        assert_true(shape_bytes(DPI_F32, out.shape, out.rank, &bytes));
        memset(memory + page, 0x5A, page);
        out.data = memory + 2 * page - bytes; /* its end is the page's: a write past it is a crash */
        assert_int_equal(ort_try_run(engine, &in, &out, &error), DPI_E_ENGINE);
        ort_check_sentence(error.message);
        for (char *c = memory + page; c < (char *)out.data; c++)
            assert_int_equal(*c, 0x5A);
        ort_check_small(engine);
    }
    ort->close(engine);
    /* Inference cannot know everything: 5 places were foreseen, the data has 3. */
    engine = ort_open_well(*state, &(ort_opening){.path = nonzero, .output_names = {"where"}});
    float three[4] = {1, 0, 2, 3};
    in = (backend_array){.data = three, .rank = 2, .shape = {1, 4}};
    for (int64_t foreseen = 0; foreseen < 6; foreseen++) {
        backend_array out = {.rank = 2, .shape = {2, foreseen}};
        dpi_error error;
        out.data = memory + 2 * page - (size_t)foreseen * 2 * sizeof(int64_t);
        assert_int_equal(ort_try_run(engine, &in, &out, &error), foreseen == 3 ? DPI_OK : DPI_E_ENGINE);
    }
    ort->close(engine);
    munmap(memory, 3 * page);
    free(nonzero);
    free(path);
}

static void memory_may_stay_the_same_or_change_between_calls(void **state)
{
    char *path = onnx_write_small();
    backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = path});
    float x[2][3 * 4], y[2][3 * 2], wide[3 * 5] = {0};
    for (uint64_t i = 0; i < 64; i++) {
        uint64_t from = hash_mix64(9, i) % 2, to = hash_mix64(10, i) % 2, rows = 1 + hash_mix64(11, i) % 3;
        for (size_t e = 0; e < 3 * 4; e++)
            x[from][e] = (float)((i + e) % 7);
        if (i % 16 == 5) { /* a call that fails */
            backend_array in = {.data = wide, .rank = 2, .shape = {3, 5}};
            backend_array out = {.data = y[to], .rank = 2, .shape = {3, 2}};
            dpi_error error;
            assert_int_equal(ort_try_run(engine, &in, &out, &error), DPI_E_ENGINE);
            ort_check_sentence(error.message);
        }
        ort_run_floats(engine, x[from], (int64_t)rows, 4, y[to], 2);
        for (size_t r = 0; r < rows; r++) {
            const float *a = x[from] + r * 4, *b = y[to] + r * 2;
            assert_true(b[0] == a[0] + 3 * a[1] + 5 * a[2] + 7 * a[3]);
            assert_true(b[1] == 2 * a[0] + 4 * a[1] + 6 * a[2] + 8 * a[3]);
        }
    }
    ort->close(engine);
    free(path);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

#define DEEP 384
#define WIDE 256

/* y [N,WIDE] = relu(x [N,DEEP] * w) */
static char *write_deep(void)
{
    float *w = malloc(sizeof *w * DEEP * WIDE);
    assert_non_null(w);
    tensor_fill_random(DPI_F32, w, DEEP * WIDE, 0, 1, 2, false);
    onnx m = {0};
    onnx_input(&m, "x", ONNX_F32, "N 384");
    onnx_weight(&m, "w", DEEP, WIDE, w);
    onnx_node(&m, "MatMul", "x w", "h", NULL, 0);
    onnx_node(&m, "Relu", "h", "y", NULL, 0);
    onnx_output(&m, "y", ONNX_F32, "N 256");
    free(w);
    return onnx_write(&m, "deep");
}

/* The first two CPUs that this process may use; false when there is one. */
static bool two_cpus(int cpus[2])
{
    cpu_set_t mask;
    size_t found = 0;
    CPU_ZERO(&mask);
    assert_int_equal(sched_getaffinity(0, sizeof mask, &mask), 0);
    for (int c = 0; c < CPU_SETSIZE && found < 2; c++)
        if (CPU_ISSET((size_t)c, &mask))
            cpus[found++] = c;
    return found == 2;
}

static backend_device two_threads(const conformance *suite, const int cpus[2], bool pinned)
{
    backend_device device = suite->device;
    device.threads = 2;
    device.cpus = cpus;
    device.cpu_count = 2;
    device.pinned = pinned;
    return device;
}

static void the_number_of_threads_does_not_matter(void **state)
{
    int cpus[2] = {0, 1};
    bool two = two_cpus(cpus);
    float *x = malloc(sizeof *x * 65 * DEEP), *y[3] = {NULL};
    char *path = write_deep();
    assert_non_null(x);
    tensor_fill_random(DPI_F32, x, 65 * DEEP, 0, 1, 1, false);
    for (int i = 0; i < (two ? 3 : 2); i++) { /* one; two; two with a core for each */
        backend_device device = two_threads(*state, cpus, i == 2);
        device.threads = i == 0 ? 1 : 2;
        backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = path, .device = &device});
        y[i] = malloc(sizeof *y[i] * 65 * WIDE);
        assert_non_null(y[i]);
        ort_run_floats(engine, x, 65, DEEP, y[i], WIDE);
        ort->close(engine);
        assert_memory_equal(y[i], y[0], sizeof *y[i] * 65 * WIDE);
    }
    for (int i = 0; i < 3; i++)
        free(y[i]);
    free(x);
    free(path);
}

#define THREADS_MAX 256

/* Numbers of the threads of this process. */
static size_t list_threads(pid_t list[THREADS_MAX])
{
    DIR *folder = opendir("/proc/self/task");
    size_t count = 0;
    assert_non_null(folder);
    for (const struct dirent *entry; count < THREADS_MAX && (entry = readdir(folder));)
        if (entry->d_name[0] != '.')
            list[count++] = (pid_t)strtol(entry->d_name, NULL, 10);
    closedir(folder);
    return count;
}

/* The one CPU that the thread which is not in `old` may use, -1 when it may use several. A thread pins itself once it
 * runs: that is waited for. */
static int cpu_of_new_thread(const pid_t *old, size_t old_count)
{
    pid_t now[THREADS_MAX], fresh = 0;
    size_t count = list_threads(now), found = 0;
    for (size_t i = 0; i < count; i++) {
        size_t k = 0;
        while (k < old_count && old[k] != now[i])
            k++;
        if (k == old_count) {
            fresh = now[i];
            found++;
        }
    }
    assert_int_equal(found, 1);
    cpu_set_t mask;
    int64_t deadline = clock_now_ns() + 10000000000;
    do {
        CPU_ZERO(&mask);
        assert_int_equal(sched_getaffinity(fresh, sizeof mask, &mask), 0);
        sched_yield();
    } while (CPU_COUNT(&mask) != 1 && clock_now_ns() < deadline);
    for (int c = 0; c < CPU_SETSIZE; c++)
        if (CPU_ISSET((size_t)c, &mask) && CPU_COUNT(&mask) == 1)
            return c;
    return -1;
}

static void the_second_thread_of_a_pinned_device_sits_on_its_second_core(void **state)
{
    int cpus[2];
    pid_t threads[THREADS_MAX];
    if (!two_cpus(cpus))
        skip();
    char *path = onnx_write_small();
    for (int turn = 0; turn < 2; turn++) {
        size_t count = list_threads(threads);
        backend_device device = two_threads(*state, cpus, true);
        backend_engine *engine = ort_open_well(*state, &(ort_opening){.path = path, .device = &device});
        assert_int_equal(cpu_of_new_thread(threads, count), cpus[1]);
        ort_check_small(engine);
        ort->close(engine);
        int first = cpus[0]; /* and the other way round */
        cpus[0] = cpus[1];
        cpus[1] = first;
    }
    free(path);
}

typedef struct runner {
    backend_engine *engine;
    const float *x;
    float *y;
    int failed;
} runner;

static void *run_many(void *context)
{
    runner *r = context;
    for (int i = 0; i < 200; i++) {
        backend_array in = {.data = (void *)(uintptr_t)r->x, .rank = 2, .shape = {3, DEEP}};
        backend_array out = {.data = r->y, .rank = 2, .shape = {3, WIDE}};
        backend_call call = {.rows = 3, .inputs = &in, .outputs = &out};
        backend_timing timing = {0};
        memset(r->y, 0, sizeof *r->y * 3 * WIDE);
        r->failed += ort->run(r->engine, &call, &timing, NULL) != DPI_OK;
    }
    return NULL;
}

/* Thread isolation: one process, several engines, each in a thread of its own. */
static void engines_run_at_once_in_one_process(void **state)
{
    float x[2][3 * DEEP], want[2][3 * WIDE], y[2][3 * WIDE];
    char *path = write_deep();
    runner runners[2];
    pthread_t threads[2];
    for (uint64_t i = 0; i < 2; i++) {
        tensor_fill_random(DPI_F32, x[i], 3 * DEEP, 0, 1, 5 + i, false);
        runners[i] = (runner){.engine = ort_open_well(*state, &(ort_opening){.path = path}), .x = x[i], .y = y[i]};
        ort_run_floats(runners[i].engine, x[i], 3, DEEP, want[i], WIDE);
    }
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, run_many, &runners[i]), 0);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_int_equal(runners[i].failed, 0);
        assert_memory_equal(y[i], want[i], sizeof want[i]);
        ort->close(runners[i].engine);
    }
    free(path);
}

/* ---- options ----------------------------------------------------------------------------------------------------- */

static void every_option_is_taken_and_none_changes_the_result(void **state)
{
    static const char *const good[][2] = {{"graph_optimization", "0"},
                                          {"graph_optimization", "1"},
                                          {"graph_optimization", "2"},
                                          {"graph_optimization", "99"},
                                          {"allow_spinning", "0"},
                                          {"allow_spinning", "1"},
                                          {"mem_pattern", "0"},
                                          {"mem_pattern", "1"},
                                          {"arena", "0"},
                                          {"arena", "1"}};
    char *path = onnx_write_small();
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        backend_engine *engine =
            ort_open_well(*state, &(ort_opening){.path = path, .key = good[i][0], .value = good[i][1]});
        ort_check_small(engine);
        ort->close(engine);
    }
    free(path);
}

static void a_wrong_option_is_refused_by_name(void **state)
{
    static const char *const bad[][2] = {{"graph_optimization", "7"}, {"graph_optimization", "all"},
                                         {"graph_optimization", ""},  {"allow_spinning", "yes"},
                                         {"mem_pattern", "off"},      {"arena", "2"}};
    char *path = onnx_write_small();
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        ort_open_badly(*state, &(ort_opening){.path = path, .key = bad[i][0], .value = bad[i][1]}, DPI_E_ARGUMENT,
                       bad[i][0], bad[i][1]);
    ort_open_badly(*state, &(ort_opening){.path = path, .key = "colour", .value = "1"}, DPI_E_ARGUMENT, "colour",
                   "arena");
    free(path);
}

/* ---- precision and providers ------------------------------------------------------------------------------------- */

static void only_the_models_own_precision_is_there(void **state)
{
    char *path = onnx_write_small();
    static const dpi_precision lacking[] = {DPI_PRECISION_FP16, DPI_PRECISION_BF16, DPI_PRECISION_TF32};
    static const char *const names[] = {NULL, "CPU", "CPUExecutionProvider"};
    for (size_t n = 0; n < 3; n++) {
        for (size_t i = 0; i < 3; i++)
            ort_open_badly(*state, &(ort_opening){.path = path, .precision = lacking[i], .provider = names[n]},
                           DPI_E_DEVICE, "precision", "float32");
        ort_opening same = {.path = path, .precision = DPI_PRECISION_FP32, .provider = names[n]};
        backend_engine *engine = ort_open_well(*state, &same);
        ort_check_small(engine);
        ort->close(engine);
    }
    free(path);
    onnx m = {0};
    onnx_input(&m, "x", ONNX_F16, "N 4");
    onnx_node(&m, "Relu", "x", "y", NULL, 0);
    onnx_output(&m, "y", ONNX_F16, "N 4");
    path = onnx_write(&m, "half");
    ort->close(ort_open_well(*state, &(ort_opening){.path = path, .precision = DPI_PRECISION_FP16}));
    ort_open_badly(*state, &(ort_opening){.path = path, .precision = DPI_PRECISION_FP32}, DPI_E_DEVICE, "precision",
                   "float16");
    ort_open_badly(*state, &(ort_opening){.path = path, .precision = DPI_PRECISION_BF16}, DPI_E_DEVICE, "precision",
                   "float16");
    free(path);
}

/* Of a library without any: the message says whose library, what it has, and why. */
static void a_provider_that_is_missing_is_said_with_those_that_are_there(void **state)
{
    static const char *const missing[] = {
        "CUDA",     "CUDAExecutionProvider",     "TensorRT",   "TensorrtExecutionProvider",
        "OpenVINO", "OpenVINOExecutionProvider", "NoSuchThing"};
    const conformance *suite = *state;
    backend_library_info info;
    char *path = onnx_write_small();
    ort->library_info(suite->library, &info);
    for (size_t i = 0; i < sizeof missing / sizeof missing[0]; i++) {
        ort_opening o = {.path = path, .provider = missing[i], .provider_option = {"device_id", "0"}};
        ort_open_badly(suite, &o, DPI_E_DEVICE, missing[i], "CPUExecutionProvider");
        ort_open_badly(suite, &o, DPI_E_DEVICE, info.path, "says");
    }
    free(path);
}

static void the_device_names_the_providers(void **state)
{
    const conformance *suite = *state;
    backend_device_info device;
    size_t count;
    assert_int_equal(ort->list_devices(suite->library, &device, 1, &count, NULL), DPI_OK);
    assert_int_equal(count, 1);
    assert_string_equal(device.name, "cpu:all");
    assert_non_null(strstr(device.description, "CPUExecutionProvider"));
}

/* ---- the library ------------------------------------------------------------------------------------------------- */

static void another_library_is_refused_by_its_path(void **state)
{
    char *text = test_path("libonnxruntime.so"), *math = file_of_address((const void *)(uintptr_t)cos);
    test_write(text, "no library", 10);
    const char *const wrong[] = {text, math, "/nowhere/libonnxruntime.so"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        backend_library *library;
        dpi_error error;
        assert_int_equal(ort_try_load(*state, wrong[i], &library, &error), DPI_E_BACKEND);
        assert_null(library);
        assert_non_null(strstr(error.message, wrong[i]));
    }
    free(text);
    free(math);
}

/* Libraries before 1.20 know no such table: a stand-in for one, compiled here. */
static void a_library_that_is_too_old_says_so(void **state)
{
    static const char source[] = "static const void *table(unsigned version) { (void)version; return 0; }\n"
                                 "static const char *version(void) { return \"1.19.2\"; }\n"
                                 "static const struct { const void *(*t)(unsigned); const char *(*v)(void); } base = "
                                 "{table, version};\n"
                                 "const void *OrtGetApiBase(void) { return &base; }\n";
    char *code = test_path("old.c"), *path = test_path("libold.so");
    const char *const command[] = {"cc", "-shared", "-fPIC", "-o", path, code, NULL};
    test_write(code, source, sizeof source - 1);
    if (conformance_spawn(command) != 0)
        skip();
    backend_library *library;
    dpi_error error;
    assert_int_equal(ort_try_load(*state, path, &library, &error), DPI_E_BACKEND);
    assert_null(library);
    assert_non_null(strstr(error.message, path));
    assert_non_null(strstr(error.message, "1.19.2"));
    assert_non_null(strstr(error.message, "1.20"));
    free(code);
    free(path);
}

/* Thread isolation: sessions come and go in one process, and two may be open at once. */
static void the_library_is_loaded_and_left_again_beside_itself(void **state)
{
    const conformance *suite = *state;
    backend_library_info info;
    char *path = onnx_write_small();
    backend_engine *kept = ort_open_well(suite, &(ort_opening){.path = path});
    ort->library_info(suite->library, &info);
    for (int i = 0; i < 3; i++) {
        conformance other = *suite;
        dpi_error error;
        if (ort_try_load(suite, info.path, &other.library, &error))
            fail_msg("%s", error.message);
        backend_engine *engine = ort_open_well(&other, &(ort_opening){.path = path});
        ort_check_small(engine);
        ort_check_small(kept);
        ort->close(engine);
        ort->unload(other.library);
    }
    ort_check_small(kept);
    ort->close(kept);
    free(path);
}

typedef struct notes {
    char text[8192];
} notes;

static void note_line(void *context, dpi_log_level level, const char *line)
{
    notes *n = context;
    size_t used = strlen(n->text);
    snprintf(n->text + used, sizeof n->text - used, "%d %s\n", (int)level, line);
}

/* The library has one log for the process, made by who comes first: each session's lines must still be its own, also
 * when the first has gone. */
static void messages_go_to_the_log_of_their_own_session(void **state)
{
    const conformance *suite = *state;
    notes said[2] = {{{0}}};
    conformance each[2] = {*suite, *suite};
    backend_library_info info;
    backend_engine *engines[2];
    dpi_error error;
    char *path = write_nonzero();
    float x[4] = {1, 1, 1, 1};
    int64_t y[2];
    backend_array in = {.data = x, .rank = 2, .shape = {1, 4}}, out = {.data = y, .rank = 2, .shape = {2, 1}};
    ort->library_info(suite->library, &info);
    for (int i = 0; i < 2; i++) {
        each[i].log = (logger){.sink = note_line, .context = &said[i], .level = DPI_LOG_WARNING};
        if (ort_try_load(&each[i], info.path, &each[i].library, &error))
            fail_msg("%s", error.message);
        engines[i] = ort_open_well(&each[i], &(ort_opening){.path = path, .output_names = {"where"}});
    }
    for (int i = 0; i < 2; i++) {
        assert_int_equal(ort_try_run(engines[i], &in, &out, &error), DPI_E_ENGINE); /* 4 places, not 1 */
        assert_non_null(strstr(said[i].text, "NonZero"));
        assert_null(strchr(said[i].text, '\033'));
        assert_string_equal(said[!i].text, "");
        memset(&said[i], 0, sizeof said[i]);
        ort->close(engines[i]);
        ort->unload(each[i].library);
        each[i].log = (logger){0};
    }
    free(path);
}

/* What belongs to no session, such as that a thread cannot be pinned, goes to no log that may have gone: neither that
 * of who loaded the library first, nor that of who did last. */
static void messages_of_no_session_need_no_log(void **state)
{
    conformance *suite = *state, other = *suite;
    const int cpus[2] = {0, CPU_SETSIZE - 1};
    backend_device device = two_threads(suite, cpus, true);
    backend_library_info info;
    dpi_error error;
    char *path = onnx_write_small();
    ort->library_info(suite->library, &info);
    for (int i = 0; i < 2; i++) {
        if (ort_try_load(&other, info.path, &other.library, &error))
            fail_msg("%s", error.message);
        ort->unload(suite->library); /* who came first */
        suite->library = other.library;
        backend_engine *engine = ort_open_well(suite, &(ort_opening){.path = path, .device = &device});
        ort_check_small(engine);
        ort->close(engine);
    }
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_device_names_the_providers),
        cmocka_unit_test(a_model_comes_from_a_file_or_memory),
        cmocka_unit_test(a_file_that_is_none_or_cut_short_is_refused),
        cmocka_unit_test(an_operator_that_does_not_exist_is_named),
        cmocka_unit_test(strings_and_sequences_are_refused_by_name_and_may_stay_unused),
        cmocka_unit_test(inputs_of_foreign_kinds_are_refused_by_name),
        cmocka_unit_test(an_output_that_the_model_lacks_is_named),
        cmocka_unit_test(an_output_that_is_wanted_twice_comes_twice),
        cmocka_unit_test(inputs_and_weights_that_are_outputs_too_are_written),
        cmocka_unit_test(sizes_that_depend_on_data_are_refused_by_the_outputs_name),
        cmocka_unit_test(sizes_that_are_computed_from_data_are_refused),
        cmocka_unit_test(a_model_that_says_a_wrong_shape_does_no_harm),
        cmocka_unit_test(an_open_number_of_axes_is_refused),
        cmocka_unit_test(an_output_of_another_shape_is_an_error_and_not_written_past),
        cmocka_unit_test(memory_may_stay_the_same_or_change_between_calls),
        cmocka_unit_test(the_number_of_threads_does_not_matter),
        cmocka_unit_test(the_second_thread_of_a_pinned_device_sits_on_its_second_core),
        cmocka_unit_test(engines_run_at_once_in_one_process),
        cmocka_unit_test(every_option_is_taken_and_none_changes_the_result),
        cmocka_unit_test(a_wrong_option_is_refused_by_name),
        cmocka_unit_test(only_the_models_own_precision_is_there),
        cmocka_unit_test(a_provider_that_is_missing_is_said_with_those_that_are_there),
        cmocka_unit_test(another_library_is_refused_by_its_path),
        cmocka_unit_test(a_library_that_is_too_old_says_so),
        cmocka_unit_test(the_library_is_loaded_and_left_again_beside_itself),
        cmocka_unit_test(messages_go_to_the_log_of_their_own_session),
        cmocka_unit_test(messages_of_no_session_need_no_log),
    };
    return ort_main(tests, sizeof tests / sizeof tests[0]);
}
