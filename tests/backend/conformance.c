#include "backend/conformance.h"

#include "backend/conformance_trial.h"
#include "base/file.h"
#include "base/text.h"

#include <fcntl.h>
#include <glob.h>
#include <math.h>
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

char *conformance_make(const conformance *suite, const char *model)
{
    char *path = suite->kit->make(model);
    if (!path) {
        print_message("the model %s could not be made (are the Python packages onnx and numpy there?)\n", model);
        skip();
    }
    return path;
}

backend_open_options conformance_options(const conformance *suite, const backend_model *model)
{
    return (backend_open_options){
        .model = model, .device = &suite->device, .max_rows = 16, .import_fd = -1, .log = &suite->log};
}

backend_engine *conformance_open(const conformance *suite, const char *path, size_t max_rows, dpi_status *status,
                                 dpi_error *error)
{
    backend_model model = {.path = path, .format = suite->kit->format};
    backend_open_options options = conformance_options(suite, &model);
    backend_engine *engine = NULL;
    options.max_rows = max_rows;
    *error = (dpi_error){0};
    *status = suite->kit->backend->open(suite->library, &options, &engine, error);
    if ((*status == DPI_OK) != (engine != NULL) || (*status && (error->status != *status || !error->message[0])))
        fail_msg("%s: open returned %d, engine %p, error %d \"%s\"", path, *status, (void *)engine, error->status,
                 error->message);
    return engine;
}

/* An engine of one of the suite's models, which must open. */
backend_engine *conformance_open_named(const conformance *suite, const char *name, size_t max_rows)
{
    char *path = conformance_make(suite, name);
    dpi_status status;
    dpi_error error;
    backend_engine *engine = conformance_open(suite, path, max_rows, &status, &error);
    if (status)
        fail_msg("%s: %s", path, error.message);
    free(path);
    return engine;
}

trial *conformance_start(const conformance *suite, backend_engine *engine, const char *model, size_t rows)
{
    return trial_new(suite->kit, engine, model, rows, &(trial_options){.extent = 5});
}

/* ---- the library ------------------------------------------------------------------------------------------------ */

static void the_library_says_what_it_is(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    backend_library_info info;
    memset(&info, 'x', sizeof info);
    b->library_info(suite->library, &info);
    assert_non_null(memchr(info.path, 0, sizeof info.path));
    assert_non_null(memchr(info.version, 0, sizeof info.version));
    assert_true(info.version[0] >= '0' && info.version[0] <= '9');
    assert_true(info.path[0] == 0 || access(info.path, R_OK) == 0);
    print_message("%s %s %s\n", b->name, info.version, info.path);
}

static void it_lists_devices_of_its_kinds(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    backend_device_info list[16];
    size_t count = 0, none = 0;
    assert_int_equal(b->list_devices(suite->library, list, 16, &count, NULL), DPI_OK);
    assert_true(count >= 1 && count <= 16);
    assert_int_equal(b->list_devices(suite->library, NULL, 0, &none, NULL), DPI_OK);
    assert_int_equal(none, count);
    for (size_t i = 0; i < count; i++) {
        char kind[16] = {0};
        memcpy(kind, list[i].name, strcspn(list[i].name, ":") % sizeof kind);
        assert_true(backend_lists(b->device_kinds, kind));
        assert_true(list[i].precisions[0] != 0);
    }
}

static void a_wrong_library_is_refused_by_its_path(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    backend_library_info info;
    b->library_info(suite->library, &info);
    if (!info.path[0])
        skip(); /* needs none */
    char *genuine_but_other = file_of_address((const void *)(uintptr_t)_cmocka_run_group_tests);
    const char *wrong[] = {"/nowhere/lib.so", conformance_python(), genuine_but_other};
    for (size_t i = 0; i < 3; i++) {
        backend_library *library = NULL;
        dpi_error error = {0};
        assert_int_equal(b->load(&(backend_load_options){.library = wrong[i]}, &suite->log, &library, &error),
                         DPI_E_BACKEND);
        assert_null(library);
        if (!strstr(error.message, wrong[i]))
            fail_msg("the message does not name %s: %s", wrong[i], error.message);
    }
    free(genuine_but_other);
}

/* ---- signatures and shapes -------------------------------------------------------------------------------------- */

static void check_port(const port *p, const char *name, dpi_dtype dtype, const char *shape)
{
    char text[SHAPE_TEXT_SIZE];
    assert_string_equal(p->name, name);
    assert_int_equal(p->dtype, dtype);
    assert_string_equal(shape_text(p->shape, p->rank, text), shape);
}

static void describe_names_every_port(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    signature *sig = malloc(sizeof *sig);
    backend_engine *engine = conformance_open_named(suite, "multi", 8);
    assert_int_equal(b->describe(engine, sig, NULL), DPI_OK);
    assert_int_equal(sig->input_count, 2);
    assert_int_equal(sig->output_count, 3);
    check_port(&sig->inputs[0], "x", DPI_F32, "[N,4]");
    check_port(&sig->inputs[1], "k", DPI_I64, "[N,3]");
    check_port(&sig->outputs[0], "sum", DPI_F32, "[N,4]");
    check_port(&sig->outputs[1], "positive", DPI_BOOL, "[N,4]");
    check_port(&sig->outputs[2], "total", DPI_I64, "[N]");
    b->close(engine);
    engine = conformance_open_named(suite, "mlp4", 4);
    assert_int_equal(b->describe(engine, sig, NULL), DPI_OK);
    check_port(&sig->inputs[0], "input", DPI_F32, "[4,64]");
    b->close(engine);
    engine = conformance_open_named(suite, "dynamic", 8);
    assert_int_equal(b->describe(engine, sig, NULL), DPI_OK);
    check_port(&sig->inputs[0], "x", DPI_F32, "[N,?]");
    b->close(engine);
    free(sig);
}

static void output_shapes_follow_from_input_shapes(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    static const int64_t rows[] = {1, 2, 7, 3, 1, 100};
    backend_engine *engine = conformance_open_named(suite, "multi", 8);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        backend_array in[2] = {{.rank = 2, .shape = {rows[i], 4}}, {.rank = 2, .shape = {rows[i], 3}}};
        backend_array out[3] = {{0}};
        assert_int_equal(b->infer_shapes(engine, in, out, NULL), DPI_OK);
        assert_int_equal(out[0].rank, 2);
        assert_int_equal(out[0].shape[0], rows[i]);
        assert_int_equal(out[0].shape[1], 4);
        assert_int_equal(out[2].rank, 1);
        assert_int_equal(out[2].shape[0], rows[i]);
    }
    b->close(engine);
    engine = conformance_open_named(suite, "dynamic", 8);
    for (int64_t width = 1; width < 40; width += 13) {
        backend_array in = {.rank = 2, .shape = {3, width}}, out = {0};
        assert_int_equal(b->infer_shapes(engine, &in, &out, NULL), DPI_OK);
        assert_int_equal(out.shape[0], 3);
        assert_int_equal(out.shape[1], width);
    }
    b->close(engine);
}

/* Where an output axis is declared neither as a number nor as an input's: found out, and remembered. */
static void output_shapes_that_the_model_does_not_say_are_found(void **state)
{
    const conformance *suite = *state;
    if (!suite->kit->standard_cases)
        skip();
    backend_engine *engine = conformance_open_named(suite, "doubled", 8);
    for (int64_t pass = 0; pass < 24; pass++) {
        backend_array in = {.rank = 2, .shape = {1 + pass % 3, 1 + pass % 12}}, out = {0};
        assert_int_equal(suite->kit->backend->infer_shapes(engine, &in, &out, NULL), DPI_OK);
        assert_int_equal(out.rank, 2);
        assert_int_equal(out.shape[0], in.shape[0]);
        assert_int_equal(out.shape[1], in.shape[1] * 2);
    }
    trial *t = conformance_start(suite, engine, "doubled", 3);
    trial_run(t);
    trial_end(t);
    suite->kit->backend->close(engine);
}

static void sizes_that_depend_on_data_are_refused(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    char *path = conformance_make(suite, "nonzero");
    dpi_status status;
    dpi_error error;
    backend_engine *engine = conformance_open(suite, path, 8, &status, &error);
    if (engine) {
        backend_array in = {.rank = 2, .shape = {2, 8}}, out[2] = {{0}};
        status = b->infer_shapes(engine, &in, out, &error);
        b->close(engine);
    }
    assert_int_equal(status, DPI_E_MODEL);
    if (!strstr(error.message, "depend") || !strstr(error.message, "data"))
        fail_msg("the message does not give the reason: %s", error.message);
    free(path);
}

/* At the latest by the call; some backends know the output shapes without looking at all of the inputs'. */
static void an_input_shape_that_does_not_fit_is_refused(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    backend_engine *engine = conformance_open_named(suite, "mlp", 8);
    float x[2 * 64] = {0}, y[2 * 10];
    backend_array in = {.data = x, .rank = 2, .shape = {2, 63}}, out = {0};
    backend_call call = {.rows = 2, .inputs = &in, .outputs = &out};
    dpi_error error = {0};
    dpi_status status = b->infer_shapes(engine, &in, &out, &error);
    if (!status) {
        out = (backend_array){.data = y, .rank = 2, .shape = {2, 10}};
        status = b->run(engine, &call, &(backend_timing){0}, &error);
    }
    assert_int_not_equal(status, DPI_OK);
    assert_true(error.message[0] != 0);
    trial *t = conformance_start(suite, engine, "mlp", 3); /* it works all the same afterwards */
    trial_run(t);
    trial_end(t);
    b->close(engine);
}

/* ---- computing -------------------------------------------------------------------------------------------------- */

/* Rows alone and in any number give the same, and what the kit's reference says where it knows. */
static void compute_at_many_sizes(const conformance *suite, const char *model, size_t most, bool describe_only_fixed)
{
    backend_engine *engine = conformance_open_named(suite, model, most);
    trial *all = conformance_start(suite, engine, model, most);
    trial_run(all);
    trial_check_reference(all);
    for (size_t rows = 1; !describe_only_fixed && rows < most; rows = rows < 4 ? rows + 1 : rows * 2) {
        trial *some = conformance_start(suite, engine, model, rows);
        trial_run(some);
        trial_check_reference(some);
        trial_compare(all, some, 0, rows, 1e-4);
        trial_end(some);
    }
    trial *again = conformance_start(suite, engine, model, most);
    trial_run(again);
    trial_compare(all, again, 0, most, 0);
    trial_end(again);
    trial_end(all);
    suite->kit->backend->close(engine);
}

static void it_computes_any_number_of_rows(void **state) { compute_at_many_sizes(*state, "mlp", 33, false); }

static void it_computes_several_inputs_and_outputs(void **state) { compute_at_many_sizes(*state, "multi", 17, false); }

static void it_computes_a_fixed_batch(void **state) { compute_at_many_sizes(*state, "mlp4", 4, true); }

static void it_computes_with_a_broadcast_input(void **state) { compute_at_many_sizes(*state, "scale", 9, false); }

static void it_computes_free_axes_of_any_extent(void **state)
{
    const conformance *suite = *state;
    static const char *const models[] = {"dynamic", "encoder"};
    for (size_t m = 0; m < 2; m++) {
        backend_engine *engine = conformance_open_named(suite, models[m], 8);
        for (int64_t extent = 1; extent <= 20; extent = extent * 2 + 3) {
            trial_options options = {.extent = extent};
            trial *t = trial_new(suite->kit, engine, models[m], 4, &options);
            trial *one = trial_new(suite->kit, engine, models[m], 1, &options);
            trial_run(t);
            trial_run(one);
            trial_check_reference(t);
            trial_compare(t, one, 0, 1, 1e-4);
            trial_end(t);
            trial_end(one);
        }
        suite->kit->backend->close(engine);
    }
}

static void neighbours_and_place_do_not_matter(void **state)
{
    const conformance *suite = *state;
    backend_engine *engine = conformance_open_named(suite, "mlp", 8);
    trial *a = conformance_start(suite, engine, "mlp", 6);
    trial *b = trial_new(suite->kit, engine, "mlp", 6, &(trial_options){.extent = 5, .first_row = 3});
    trial_run(a);
    trial_run(b);
    trial_compare_shifted(a, 3, b, 0, 3, 1e-4); /* rows 3..5 are b's first */
    trial_end(a);
    trial_end(b);
    suite->kit->backend->close(engine);
}

/* Unaligned for vectors, but aligned for the element, as rows of a batch are. */
static void row_pointers_need_no_more_than_element_alignment(void **state)
{
    const conformance *suite = *state;
    static const char *const models[] = {"mlp", "multi", "identity-uint8"};
    for (size_t m = 0; m < 3; m++) {
        backend_engine *engine = conformance_open_named(suite, models[m], 8);
        trial *aligned = conformance_start(suite, engine, models[m], 5);
        trial_run(aligned);
        for (size_t off = 1; off < 16; off *= 3) {
            trial_options options = {.extent = 5, .misaligned_elements = off};
            trial *t = trial_new(suite->kit, engine, models[m], 5, &options);
            trial_run(t);
            trial_check_reference(t);
            trial_compare(aligned, t, 0, 5, 1e-4);
            trial_end(t);
        }
        trial_end(aligned);
        suite->kit->backend->close(engine);
    }
}

static void every_dtype_passes_through(void **state)
{
    const conformance *suite = *state;
    int refused = 0;
    for (dpi_dtype dtype = DPI_BOOL; dtype <= DPI_F64; dtype++) {
        char *model = text_format("identity-%s", dpi_dtype_name(dtype)), *path = conformance_make(suite, model);
        dpi_status status;
        dpi_error error;
        backend_engine *engine = conformance_open(suite, path, 8, &status, &error);
        if (engine) {
            trial *t = conformance_start(suite, engine, model, 5);
            if (t->sig.inputs[0].dtype != dtype)
                assert_true(backend_lists(suite->kit->narrowed, dpi_dtype_name(dtype)));
            trial_run(t);
            trial_check_reference(t);
            trial_end(t);
            suite->kit->backend->close(engine);
        } else {
            refused++;
            print_message("%s refuses %s: %s\n", suite->kit->backend->name, dpi_dtype_name(dtype), error.message);
            assert_true(status == DPI_E_MODEL || status == DPI_E_ENGINE || status == DPI_E_DEVICE);
            if (suite->kit->may_refuse)
                assert_true(backend_lists(suite->kit->may_refuse, dpi_dtype_name(dtype)));
            else
                assert_true(dtype != DPI_F32 && dtype != DPI_I64 && dtype != DPI_U8 && dtype != DPI_BOOL);
        }
        free(model);
        free(path);
    }
    assert_true(suite->kit->may_refuse || refused <= 4);
}

static void values_keep_all_their_bits(void **state)
{
    const conformance *suite = *state;
    static const dpi_dtype wide[] = {DPI_I64, DPI_U64, DPI_U32, DPI_I32, DPI_F64, DPI_F32, DPI_F16, DPI_BF16};
    for (size_t d = 0; d < sizeof wide / sizeof wide[0]; d++) {
        char *model = text_format("identity-%s", dpi_dtype_name(wide[d])), *path = conformance_make(suite, model);
        dpi_status status;
        dpi_error error;
        backend_engine *engine = conformance_open(suite, path, 8, &status, &error);
        if (engine) {
            trial *t = trial_new(suite->kit, engine, model, 5, &(trial_options){.extent = 5, .wide_values = true});
            trial_run(t);
            if (backend_lists(suite->kit->narrowed, dpi_dtype_name(wide[d])))
                print_message("%s computes %s in fewer bits\n", suite->kit->backend->name, dpi_dtype_name(wide[d]));
            else
                trial_check_reference(t);
            trial_end(t);
            suite->kit->backend->close(engine);
        }
        free(model);
        free(path);
    }
}

static void dtypes_that_dpinfer_does_not_know_are_refused(void **state)
{
    const conformance *suite = *state;
    if (!suite->kit->standard_cases)
        skip(); /* sim's own test covers its text */
    static const char *const names[] = {"string", "complex64", "fp8e4m3fn", "uint4"};
    signature *sig = malloc(sizeof *sig);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *model = text_format("identity-%s", names[i]), *path = conformance_make(suite, model);
        dpi_status status;
        dpi_error error;
        backend_engine *engine = conformance_open(suite, path, 8, &status, &error);
        if (engine) {
            status = suite->kit->backend->describe(engine, sig, &error);
            suite->kit->backend->close(engine);
        }
        if (status != DPI_E_MODEL)
            fail_msg("%s: status %d, \"%s\"", names[i], status, error.message);
        free(model);
        free(path);
    }
    free(sig);
}

/* ---- choices ---------------------------------------------------------------------------------------------------- */

static void outputs_are_chosen_by_name_and_in_order(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    char *path = conformance_make(suite, "multi");
    const char *const wanted[] = {"total", "sum"};
    backend_model model = {.path = path, .format = suite->kit->format};
    backend_open_options options = conformance_options(suite, &model);
    backend_engine *engine = NULL;
    dpi_error error = {0};
    options.output_names = wanted;
    options.output_count = 2;
    assert_int_equal(b->open(suite->library, &options, &engine, &error), DPI_OK);
    trial *t = conformance_start(suite, engine, "multi", 3);
    assert_int_equal(t->sig.output_count, 2);
    assert_string_equal(t->sig.outputs[0].name, "total");
    assert_string_equal(t->sig.outputs[1].name, "sum");
    trial_run(t);
    if (suite->kit->standard_cases) /* sim's outputs are numbered in the reference */
        trial_check_reference(t);
    trial_end(t);
    b->close(engine);
    const char *const unknown[] = {"sum", "nothing"};
    options.output_names = unknown;
    engine = NULL;
    assert_int_equal(b->open(suite->library, &options, &engine, &error), DPI_E_MODEL);
    assert_null(engine);
    assert_non_null(strstr(error.message, "nothing"));
    free(path);
}

static void a_precision_that_is_lacking_is_refused(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    static const char *const names[] = {"", "fp32", "tf32", "fp16", "bf16"};
    backend_device_info device;
    size_t count;
    assert_int_equal(b->list_devices(suite->library, &device, 1, &count, NULL), DPI_OK);
    char *path = conformance_make(suite, "mlp");
    backend_model model = {.path = path, .format = suite->kit->format};
    for (int p = DPI_PRECISION_FP32; p <= DPI_PRECISION_BF16; p++) {
        backend_open_options options = conformance_options(suite, &model);
        backend_engine *engine = NULL;
        dpi_error error = {0};
        options.precision = (dpi_precision)p;
        dpi_status status = b->open(suite->library, &options, &engine, &error);
        bool own = p == DPI_PRECISION_FP32 && backend_lists(device.precisions, "model");
        if (own || backend_lists(device.precisions, names[p])) {
            if (status)
                fail_msg("%s is listed but refused: %s", names[p], error.message);
            trial *t = conformance_start(suite, engine, "mlp", 3);
            trial_run(t);
            trial_end(t);
            b->close(engine);
        } else if (status != DPI_E_DEVICE ||
                   !(strstr(error.message, names[p]) || strstr(error.message, suite->device.name)))
            fail_msg("%s is not listed: status %d, \"%s\"", names[p], status, error.message);
    }
    free(path);
}

static void an_unknown_option_is_refused_by_name(void **state)
{
    const conformance *suite = *state;
    char *path = conformance_make(suite, "mlp");
    const dpi_key_value option = {"no_such_option", "1"};
    backend_model model = {.path = path, .format = suite->kit->format};
    backend_open_options options = conformance_options(suite, &model);
    backend_engine *engine = NULL;
    dpi_error error = {0};
    options.options = &option;
    options.option_count = 1;
    assert_int_equal(suite->kit->backend->open(suite->library, &options, &engine, &error), DPI_E_ARGUMENT);
    assert_null(engine);
    assert_non_null(strstr(error.message, "no_such_option"));
    free(path);
}

/* ---- lives ------------------------------------------------------------------------------------------------------ */

static void engines_are_opened_and_closed_again(void **state)
{
    const conformance *suite = *state;
    backend_engine *kept = conformance_open_named(suite, "mlp", 16);
    trial *first = conformance_start(suite, kept, "mlp", 4);
    trial_run(first);
    for (int i = 0; i < 5; i++) {
        backend_engine *engine = conformance_open_named(suite, "mlp", 16);
        trial *t = conformance_start(suite, engine, "mlp", 4);
        trial_run(t);
        trial_compare(first, t, 0, 4, 0);
        trial_end(t);
        suite->kit->backend->close(engine);
    }
    trial *again = conformance_start(suite, kept, "mlp", 4); /* undisturbed by the others */
    trial_run(again);
    trial_compare(first, again, 0, 4, 0);
    trial_end(again);
    trial_end(first);
    suite->kit->backend->close(kept);
}

static dpi_status open_stored(const conformance *suite, const char *path, int fd, backend_engine **engine)
{
    backend_model model = {.path = path, .format = suite->kit->format};
    backend_open_options options = conformance_options(suite, &model);
    dpi_error error = {0};
    options.import_fd = fd;
    *engine = NULL;
    lseek(fd, 0, SEEK_SET);
    dpi_status status = suite->kit->backend->open(suite->library, &options, engine, &error);
    assert_int_equal(status == DPI_OK, *engine != NULL);
    if (status)
        print_message("refused: %s\n", error.message);
    return status;
}

static void computing_alone_tells_the_devices_time_and_leaves_the_engine_fit(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    if (!b->compute_alone)
        skip();
    char *path = conformance_make(suite, "mlp");
    dpi_status status;
    dpi_error error = {0};
    backend_engine *engine = conformance_open(suite, path, 32, &status, &error);
    assert_non_null(engine);
    trial *t = conformance_start(suite, engine, "mlp", 32);
    backend_call call = {.rows = 32, .inputs = t->in, .outputs = t->out};
    uint64_t few_ns = 0, many_ns = 0;
    assert_int_equal(b->compute_alone(engine, &call, 1, &few_ns, &error), DPI_OK);
    assert_int_equal(b->compute_alone(engine, &call, 100, &many_ns, &error), DPI_OK);
    assert_true(many_ns > few_ns || (!many_ns && strcmp(b->name, "sim") == 0)); /* sim's mlp takes no time */
    trial_run(t);
    trial_check_reference(t);
    trial_end(t);
    b->close(engine);
    free(path);
}

static void a_stored_engine_computes_the_same(void **state)
{
    const conformance *suite = *state;
    const backend *b = suite->kit->backend;
    if (!b->export_engine)
        skip();
    char *path = conformance_make(suite, "mlp");
    backend_engine *engine = conformance_open_named(suite, "mlp", 16), *stored;
    int fd = memfd_create("engine", MFD_CLOEXEC);
    assert_int_equal(b->export_engine(engine, fd, NULL), DPI_OK);
    off_t bytes = lseek(fd, 0, SEEK_END);
    assert_true(bytes > 0);
    assert_int_equal(open_stored(suite, path, fd, &stored), DPI_OK);
    trial *a = conformance_start(suite, engine, "mlp", 7), *c = conformance_start(suite, stored, "mlp", 7);
    trial_run(a);
    trial_run(c);
    trial_compare(a, c, 0, 7, 0);
    trial_end(a);
    trial_end(c);
    b->close(engine);
    b->close(stored);
    assert_int_equal(ftruncate(fd, 0), 0);
    assert_int_not_equal(open_stored(suite, path, fd, &stored), DPI_OK);
    close(fd);
    free(path);
}

/* ---- the program ------------------------------------------------------------------------------------------------ */

/* A Python environment holds the libraries too. */
void conformance_use_python(void)
{
    char *python = strdup(conformance_python()), *slash = strrchr(python, '/');
    if (slash && !getenv("VIRTUAL_ENV")) {
        *slash = 0;
        slash = strrchr(python, '/');
        if (slash) {
            *slash = 0;
            setenv("VIRTUAL_ENV", python, 1);
        }
    }
    free(python);
}

/* The library to load: malloc'd, NULL to search. */
static char *find_oldest(const conformance_kit *kit)
{
    char *pattern = text_format("%s/.deps/oldest/%s", conformance_source_folder(), kit->oldest), *path = NULL;
    glob_t found;
    if (pattern && glob(pattern, 0, NULL, &found) == 0) {
        path = strdup(found.gl_pathv[0]);
        globfree(&found);
    }
    free(pattern);
    return path;
}

static void empty_folder(void)
{
    char *folder = conformance_folder();
    const char *const command[] = {"rm", "-rf", folder, NULL};
    if (conformance_spawn(command) != 0 || file_make_folders(folder, NULL) != DPI_OK)
        fprintf(stderr, "%s cannot be emptied\n", folder);
    free(folder);
}

static int run_suite(conformance *suite)
{
#define T(name)                                                                                                        \
    {                                                                                                                  \
#name, name, NULL, NULL, suite                                                                                 \
    }
    const struct CMUnitTest tests[] = {
        T(the_library_says_what_it_is),
        T(it_lists_devices_of_its_kinds),
        T(a_wrong_library_is_refused_by_its_path),
        T(describe_names_every_port),
        T(output_shapes_follow_from_input_shapes),
        T(output_shapes_that_the_model_does_not_say_are_found),
        T(sizes_that_depend_on_data_are_refused),
        T(an_input_shape_that_does_not_fit_is_refused),
        T(it_computes_any_number_of_rows),
        T(it_computes_several_inputs_and_outputs),
        T(it_computes_a_fixed_batch),
        T(it_computes_with_a_broadcast_input),
        T(it_computes_free_axes_of_any_extent),
        T(neighbours_and_place_do_not_matter),
        T(row_pointers_need_no_more_than_element_alignment),
        T(every_dtype_passes_through),
        T(values_keep_all_their_bits),
        T(dtypes_that_dpinfer_does_not_know_are_refused),
        T(outputs_are_chosen_by_name_and_in_order),
        T(a_precision_that_is_lacking_is_refused),
        T(an_unknown_option_is_refused_by_name),
        T(a_model_in_memory_is_the_same_model),
        T(external_weights_are_found_beside_the_model),
        T(broken_models_are_refused),
        T(a_model_that_lies_about_its_size_is_refused),
        T(a_path_that_is_no_file_is_named),
        T(engines_are_opened_and_closed_again),
        T(computing_alone_tells_the_devices_time_and_leaves_the_engine_fit),
        T(a_stored_engine_computes_the_same),
        T(conformance_standard_cases),
    };
#undef T
    return cmocka_run_group_tests(tests, NULL, NULL);
}

int conformance_main(const conformance_kit *kit)
{
    conformance_use_python();
    setenv("TBB_ENABLE_SANITIZERS", "1", 0); /* else oneTBB loads a library in a way that the sanitizers refuse */
    empty_folder();
    conformance suite = {.kit = kit, .log = {.level = DPI_LOG_WARNING}};
    cpu_set_t mask;
    CPU_ZERO(&mask);
    if (sched_getaffinity(0, sizeof mask, &mask) == 0)
        while (suite.cpu < CPU_SETSIZE - 1 && !CPU_ISSET((size_t)suite.cpu, &mask))
            suite.cpu++;
    suite.device = (backend_device){.cpus = &suite.cpu, .cpu_count = 1, .threads = 1};
    snprintf(suite.device.kind, sizeof suite.device.kind, "%s", kit->device_kind);
    snprintf(suite.device.name, sizeof suite.device.name, "%s", kit->device_name);
    dpi_error error = {0};
    char *library = kit->oldest ? find_oldest(kit) : NULL;
    if (kit->oldest && !library) {
        fprintf(stderr, "%s: not found: .deps/oldest/%s\n", kit->backend->name, kit->oldest);
        return 77;
    }
    backend_load_options options = {.library = library};
    dpi_status status = kit->backend->load(&options, &suite.log, &suite.library, &error);
    free(library);
    if (status) {
        fprintf(stderr, "%s: %s\n", kit->backend->name, error.message);
        static const char *const absent[] = {"not found", "none here", "built without"};
        for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++)
            if (status == DPI_E_BACKEND && strstr(error.message, absent[i]))
                return 77;
        return 1; /* found, but bad */
    }
    int failed = run_suite(&suite);
    kit->backend->unload(suite.library);
    /* Inference libraries run threads and destructors of their own at exit, which are not what is tested here. */
    fflush(NULL);
    _exit(failed ? 1 : 0);
}
