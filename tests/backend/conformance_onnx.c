/* The ONNX standard's own backend test cases, as tools/onnx_cases.py exports them. A case that the engine refuses with
 * an error is listed as such; a wrong value is a failure. */
#include "backend/conformance.h"
#include "base/file.h"
#include "base/text.h"

#include <fnmatch.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The standard's own tolerance for fp32 is its cases' rtol (1e-3 unless they say otherwise); the smallest atol is
 * raised from 1e-7, since engines may fuse. Half precision is good for about three decimals, and bfloat16 for two. */
#define ATOL            1e-5
#define RTOL_F16        1e-2
#define ATOL_F16        2e-3
#define RTOL_BF16       2e-2
#define ATOL_BF16       1e-2
#define MAX_PORTS       16
#define MAX_SINGLE_ROWS 6

/* Compilers of graphs are some twenty times slower under a sanitizer's allocator: then only one case in so many. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define CASE_STRIDE 12u
#endif
#endif
#if !defined(CASE_STRIDE) && (defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__))
#define CASE_STRIDE 12u
#elif !defined(CASE_STRIDE)
#define CASE_STRIDE 1u
#endif

/* Cases (patterns) where a library itself differs from the standard: its own Python interface gives the same values.
 * They are counted by themselves; everything else that differs is a failure. */
static const struct {
    const char *backend, *cases, *why;
} known_differences[] = {
    {"onnxruntime", "test_dft*", "fp32 sums: up to 4e-4 beside zeros"},
    {"onnxruntime", "test_resize_downsample_scales_*_align_corners", "takes the scale from the rounded size"},
    {"onnxruntime", "test_attention_4d_with_past_and_present_qk_matmul_bias_*", "the lowest number for -inf"},
    {"openvino", "test_averagepool_*_starts_on_pad", "2025.0: another output size"},
    {"openvino", "test_averagepool_*_dilations*", "2025.0: does not know dilations"},
    {"openvino", "test_bitwise_not_3d", "2025.0: saturates uint16"},
    {"openvino", "test_convtranspose_autopad_same", "2025.0: another output size"},
    {"openvino", "test_attention_4d_with_past_and_present_qk_matmul_bias_*", "leaves causal out beside a mask"},
    {"openvino", "test_attention_*_window*", "does not know the window of the newest operator set"},
    {"openvino", "test_bitshift_*", "negative numbers, and shifts beyond the width"},
    {"openvino", "test_dft*", "fp32 sums, and the shapes of one-sided transforms"},
    {"openvino", "test_div_*int8", "rounds integers where the shape is free"},
    {"openvino", "test_maxpool_2d_ceil_output_size_reduce_by_one", "another output size"},
    {"openvino", "test_operator_add*", "computes float64 as float32: these values do not fit"},
    {"openvino", "test_resize_downsample_scales_*_align_corners", "takes the scale from the rounded size"},
    {"openvino", "test_resize_*_exclude_outside", "does not know exclude_outside"},
    {"openvino", "test_resize_*_antialias", "does not know antialias"},
    {"openvino", "test_resize_*_not_larger", "does not know the aspect ratio policy"},
    {"openvino", "test_resize_*_not_smaller", "does not know the aspect ratio policy"},
    {"openvino", "test_spacetodepth_crd_mode_example", "does not know the mode of the newest operator set"},
    {"openvino", "test_top_k_same_values*", "another order of equal values"},
};

typedef struct case_array {
    char name[PORT_NAME_SIZE];
    dpi_dtype dtype;
    bool rows; /* axis 0 is the rows */
    int rank;
    int64_t shape[DPI_MAX_RANK];
    void *data;
    size_t bytes;
} case_array;

typedef struct standard_case {
    char name[200];
    size_t rows;
    int has_rows_model;
    double rtol, atol;
    size_t input_count, output_count;
    case_array inputs[MAX_PORTS], outputs[MAX_PORTS];
} standard_case;

typedef struct tally {
    const conformance *suite;
    char *folder;
    size_t seen, cases, passed, refused, known, wrong, calls;
} tally;

/* ---- reading the index ------------------------------------------------------------------------------------------ */

/* "in NAME DTYPE rows|whole FILE RANK AXIS..." */
static bool read_array(const char *folder, const char *case_name, char *line, case_array *a)
{
    char *rest = NULL, *word[6 + DPI_MAX_RANK] = {0};
    size_t count = 0;
    for (char *w = strtok_r(line, " \n", &rest); w && count < 6 + DPI_MAX_RANK; w = strtok_r(NULL, " \n", &rest))
        word[count++] = w;
    if (count < 6 || strlen(word[1]) >= sizeof a->name)
        return false;
    strcpy(a->name, word[1]);
    a->dtype = dtype_by_name(word[2]);
    a->rows = strcmp(word[3], "rows") == 0;
    a->rank = (int)count - 6;
    size_t want;
    for (int k = 0; k < a->rank; k++)
        if (!text_to_i64(word[6 + k], 0, INT64_MAX, &a->shape[k]))
            return false;
    char *path = text_format("%s/%s/%s", folder, case_name, word[4]);
    bool read = file_read(path, 1 << 28, &a->data, &a->bytes, NULL) == DPI_OK;
    free(path);
    return read && shape_bytes(a->dtype, a->shape, a->rank, &want) && want == a->bytes;
}

static void free_case(standard_case *c)
{
    for (size_t i = 0; i < c->input_count; i++)
        free(c->inputs[i].data);
    for (size_t o = 0; o < c->output_count; o++)
        free(c->outputs[o].data);
}

/* ---- one case --------------------------------------------------------------------------------------------------- */

static bool value_fits(const standard_case *c, dpi_dtype dtype, double got, double want)
{
    double rtol = dtype == DPI_F16 ? RTOL_F16 : dtype == DPI_BF16 ? RTOL_BF16 : c->rtol;
    double atol = dtype == DPI_F16 ? ATOL_F16 : dtype == DPI_BF16 ? ATOL_BF16 : fmax(c->atol, ATOL);
    if (got == want || (isnan(got) && isnan(want)))
        return true;
    return isfinite(got) && isfinite(want) && fabs(got - want) <= atol + fmax(rtol, c->rtol) * fabs(want);
}

/* Points the engine's inputs at `rows` rows of the case's from `first`. False: the engine's ports are others. */
static bool bind_inputs(const standard_case *c, const signature *sig, size_t first, size_t rows, backend_array *in)
{
    if (sig->input_count != c->input_count)
        return false;
    for (size_t i = 0; i < sig->input_count; i++) {
        const case_array *a = NULL;
        for (size_t k = 0; k < c->input_count && !a; k++)
            a = strcmp(c->inputs[k].name, sig->inputs[i].name) == 0 ? &c->inputs[k] : NULL;
        if (!a || a->dtype != sig->inputs[i].dtype)
            return false;
        size_t row_bytes = a->rows ? a->bytes / c->rows : 0;
        in[i] = (backend_array){.data = (char *)a->data + first * row_bytes, .rank = a->rank};
        memcpy(in[i].shape, a->shape, sizeof a->shape);
        if (a->rows)
            in[i].shape[0] = (int64_t)rows;
    }
    return true;
}

static void compare_output(tally *t, const standard_case *c, const case_array *want, size_t first, size_t rows,
                           const void *got, bool *wrong)
{
    size_t row = want->bytes / c->rows / dpi_dtype_size(want->dtype);
    for (size_t e = 0; e < rows * row && !*wrong; e++) {
        double x = dtype_get(want->dtype, got, e), y = dtype_get(want->dtype, want->data, first * row + e);
        if (value_fits(c, want->dtype, x, y))
            continue;
        *wrong = true;
        print_message("%s (%s) differs: output %s, %zu rows from %zu, element %zu is %.9g and not %.9g\n", c->name,
                      t->suite->kit->backend->name, want->name, rows, first, e, x, y);
    }
}

typedef enum verdict { PASSED, REFUSED, WRONG } verdict;

static verdict run_rows(tally *t, const standard_case *c, backend_engine *engine, const signature *sig, size_t first,
                        size_t rows, dpi_error *error)
{
    const backend *b = t->suite->kit->backend;
    backend_array in[PORT_MAX] = {0}, out[PORT_MAX] = {0};
    backend_timing timing = {0};
    if (!bind_inputs(c, sig, first, rows, in) || sig->output_count != c->output_count) {
        error_set(error, DPI_E_MODEL, "its ports are not those of the model");
        return REFUSED;
    }
    if (b->infer_shapes(engine, in, out, error))
        return REFUSED;
    bool wrong = false;
    for (size_t o = 0; o < sig->output_count && !wrong; o++) {
        const case_array *want = &c->outputs[o];
        wrong = sig->outputs[o].dtype != want->dtype || out[o].rank != want->rank || out[o].shape[0] != (int64_t)rows ||
                memcmp(out[o].shape + 1, want->shape + 1, sizeof *want->shape * (size_t)(want->rank - 1)) != 0;
        out[o].data = wrong ? NULL : malloc(want->bytes);
        if (wrong)
            print_message("%s (%s) differs: the output %s has another dtype or shape\n", c->name, b->name, want->name);
    }
    backend_call call = {.rows = rows, .inputs = in, .outputs = out};
    dpi_status status = wrong ? DPI_OK : b->run(engine, &call, &timing, error);
    for (size_t o = 0; o < sig->output_count; o++) {
        if (!status && !wrong)
            compare_output(t, c, &c->outputs[o], first, rows, out[o].data, &wrong);
        free(out[o].data);
    }
    t->calls++;
    return status ? REFUSED : wrong ? WRONG : PASSED;
}

/* One model file of a case: all rows at once, and some alone where their number is free. */
static verdict run_model(tally *t, const standard_case *c, const char *file, bool each, dpi_error *error)
{
    const backend *b = t->suite->kit->backend;
    char *path = text_format("%s/%s/%s", t->folder, c->name, file);
    signature *sig = malloc(sizeof *sig);
    dpi_status status;
    verdict v = REFUSED;
    backend_engine *engine = conformance_open(t->suite, path, c->rows, &status, error);
    if (engine && b->describe(engine, sig, error) == DPI_OK) {
        v = run_rows(t, c, engine, sig, 0, c->rows, error);
        size_t step = c->rows > MAX_SINGLE_ROWS ? c->rows / MAX_SINGLE_ROWS : 1;
        for (size_t row = 0; each && v == PASSED && row < c->rows; row += step)
            v = run_rows(t, c, engine, sig, row, 1, error);
    }
    if (engine)
        b->close(engine);
    free(sig);
    free(path);
    return v;
}

static const char *known_difference(const tally *t, const standard_case *c)
{
    for (size_t i = 0; i < sizeof known_differences / sizeof known_differences[0]; i++)
        if (strcmp(known_differences[i].backend, t->suite->kit->backend->name) == 0 &&
            fnmatch(known_differences[i].cases, c->name, 0) == 0)
            return known_differences[i].why;
    return NULL;
}

static void run_case(tally *t, const standard_case *c)
{
    dpi_error error = {0};
    if (t->seen++ % (CASE_STRIDE * (t->suite->kit->oldest ? 3u : 1u)) != 0)
        return;
    verdict v = run_model(t, c, "model.onnx", false, &error);
    if (v == PASSED && c->has_rows_model)
        v = run_model(t, c, "rows.onnx", true, &error);
    t->cases++;
    t->passed += v == PASSED;
    const char *why = v == WRONG ? known_difference(t, c) : NULL;
    t->known += why != NULL;
    t->wrong += v == WRONG && !why;
    if (v == WRONG)
        print_message("%s %s%s\n", why ? "known:" : "WRONG", why ? why : c->name, why ? "" : ": a failure");
    t->refused += v == REFUSED;
    if (v == REFUSED)
        print_message("refused %s: %.160s\n", c->name, error.message);
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

static bool take_line(tally *t, standard_case *c, char *line)
{
    bool input = strncmp(line, "in ", 3) == 0, output = strncmp(line, "out ", 4) == 0;
    if (input && c->input_count < MAX_PORTS)
        return read_array(t->folder, c->name, line, &c->inputs[c->input_count++]);
    if (output && c->output_count < MAX_PORTS)
        return read_array(t->folder, c->name, line, &c->outputs[c->output_count++]);
    if (strncmp(line, "case ", 5) != 0)
        return line[0] == '#';
    if (c->name[0])
        run_case(t, c);
    free_case(c);
    *c = (standard_case){0};
    return sscanf(line, "case %199s %zu %d %lf %lf", c->name, &c->rows, &c->has_rows_model, &c->rtol, &c->atol) == 5;
}

void conformance_standard_cases(void **state)
{
    const conformance *suite = *state;
    if (!suite->kit->standard_cases)
        skip();
    tally t = {.suite = suite, .folder = text_format("%s/onnx-cases", conformance_build_folder())};
    char *tool = text_format("%s/tools/onnx_cases.py", conformance_source_folder());
    const char *const command[] = {conformance_python(), tool, t.folder, NULL};
    int code = conformance_spawn(command);
    free(tool);
    if (code == 77)
        skip();
    assert_int_equal(code, 0);
    char *index = text_format("%s/index.txt", t.folder), line[4096];
    FILE *in = fopen(index, "r");
    assert_non_null(in);
    standard_case *c = calloc(1, sizeof *c);
    while (fgets(line, sizeof line, in))
        if (!take_line(&t, c, line))
            fail_msg("%s: a line of the index is wrong: %s", index, line);
    if (c->name[0])
        run_case(&t, c);
    free_case(c);
    free(c);
    fclose(in);
    print_message("ONNX standard cases, %s: %zu of %zu cases in %zu calls: %zu passed, %zu refused, %zu known to "
                  "differ, %zu wrong\n",
                  suite->kit->backend->name, t.cases, t.seen, t.calls, t.passed, t.refused, t.known, t.wrong);
    free(index);
    free(t.folder);
    assert_int_equal(t.wrong, 0);
    /* An old library refuses what it is too old for, which is much: the newest operator set is everywhere. */
    assert_true(t.passed >= t.cases / 4);
}
