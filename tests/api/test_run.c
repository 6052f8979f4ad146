/* dpi_run: data sets from sources to sinks; files are whole or absent, and nothing is left under another name. */
#include "folder_kit.h"
#include "sim_kit.h"

#include "base/clock.h"
#include "base/file.h"
#include "data/npy.h"
#include "data/sink.h"
#include "data/source.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 4\n"

static char folder[] = "/tmp/dpi-test-run-XXXXXX";

static const char *at(const char *name)
{
    static char paths[8][256];
    static unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state)
{
    (void)state;
    return folder_make(folder);
}

static int count_files(void) { return folder_count(folder); }

static int empty_folder(void **state)
{
    (void)state;
    folder_empty(folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return folder_remove(folder);
}

/* Writes the rows of random:SPEC as a .npy file. */
static void write_npy(const char *path, const char *spec)
{
    source *s;
    dpi_error error;
    kit_assert_ok(source_open(spec, -1, &s, &error), error);
    const port *p = source_port(s);
    size_t bytes = 0;
    assert_true(shape_bytes(p->dtype, p->shape, p->rank, &bytes));
    char header[256];
    size_t length = npy_format(p->dtype, p->shape, p->rank, header, sizeof header);
    const void *rows;
    void *data = malloc(bytes + 1);
    bool in_place;
    kit_assert_ok(source_rows_at(s, 0, (size_t)source_rows(s), data, true, &rows, &in_place, &error), error);
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    assert_int_equal(fwrite(header, 1, length, f), length);
    assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    assert_int_equal(fclose(f), 0);
    free(data);
    source_close(s);
}

static dpi_run_options to(const char *const *inputs, size_t input_count, const char *const *outputs,
                          size_t output_count)
{
    dpi_run_options o = DPI_INIT(dpi_run_options);
    o.inputs = inputs;
    o.input_count = input_count;
    o.outputs = outputs;
    o.output_count = output_count;
    return o;
}

/* Compares a .npy result with the reference, for rows [begin, begin + n) of the sources in the order of the inputs. */
static void check_result(const kit *k, const char *path, size_t output, const char *const *specs, uint64_t begin,
                         size_t n)
{
    npy_header h;
    void *got;
    dpi_error error;
    kit_assert_ok(npy_load(path, 1 << 28, &h, &got, &error), error);
    const port *p = &k->model.sig.outputs[output];
    assert_int_equal(h.dtype, p->dtype == DPI_BF16 ? DPI_U16 : p->dtype);
    assert_int_equal(h.shape[0], n);
    size_t row_bytes[PORT_MAX], out_bytes = 0, elements = 0;
    assert_true(shape_row_bytes(h.dtype, h.shape, h.rank, &out_bytes));
    assert_true(shape_elements(h.shape, 1, h.rank, &elements));
    unsigned char *data[PORT_MAX], *want = malloc(out_bytes + 1);
    for (size_t i = 0; i < k->model.sig.input_count; i++) {
        source *s;
        const void *rows;
        bool in_place;
        kit_assert_ok(source_open(specs[i], -1, &s, &error), error);
        const port *in = source_port(s);
        assert_true(shape_row_bytes(in->dtype, in->shape, in->rank, &row_bytes[i]));
        data[i] = malloc(row_bytes[i] * n + 1);
        kit_assert_ok(source_rows_at(s, begin, n, data[i], true, &rows, &in_place, &error), error);
        source_close(s);
    }
    for (size_t r = 0; r < n; r++) {
        const void *rows[PORT_MAX];
        for (size_t i = 0; i < k->model.sig.input_count; i++)
            rows[i] = data[i] + r * row_bytes[i];
        sim_expected_row(&k->model, rows, row_bytes, output, elements, want);
        if (memcmp(want, (char *)got + r * out_bytes, out_bytes) != 0)
            fail_msg("%s: row %zu differs", path, r);
    }
    for (size_t i = 0; i < k->model.sig.input_count; i++)
        free(data[i]);
    free(want);
    free(got);
}

/* ---- what works ------------------------------------------------------------------------------------------------- */

static void from_npy_and_random_to_npy(void **state)
{
    (void)state;
    static const size_t counts[] = {1, 2, 63, 64, 65, 1000};
    write_npy(at("in.npy"), "random:5:float32:1000:7");
    for (int isolation = 0; isolation < 2; isolation++)
        for (int devices = 1; devices <= 3; devices += 2) {
            dpi_options open_options = DPI_INIT(dpi_options);
            open_options.isolation = (dpi_isolation)isolation;
            open_options.batch = devices == 1 ? 16 : 7;
            kit *k = kit_open(SIMPLE, devices == 1 ? "sim:0" : "sim:0*3", &open_options);
            for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
                char spec[64];
                snprintf(spec, sizeof spec, "random:5:float32:%zu:7", counts[i]);
                const char *in[] = {i % 2 ? at("in.npy") : spec}, *out[] = {at("out.npy")};
                dpi_run_options o = to(in, 1, out, 1);
                o.row_end = counts[i];
                dpi_run_result result = DPI_INIT(dpi_run_result);
                dpi_error error = {.status = DPI_E_INTERNAL};
                kit_assert_ok(dpi_run(k->s, &o, &result, &error), error);
                assert_int_equal(error.status, DPI_OK);
                assert_int_equal(result.rows, counts[i]);
                check_result(k, out[0], 0, in, 0, counts[i]);
                assert_int_equal(count_files(), 2);
            }
            kit_forward(k, 20, 1); /* and batches in between */
            kit_close(k);
        }
}

static void a_range_of_rows(void **state)
{
    (void)state;
    write_npy(at("in.npy"), "random:5:float32:500:3");
    kit *k = kit_open(SIMPLE, "sim:0*3", NULL);
    static const uint64_t ranges[][2] = {{0, 1}, {499, 500}, {100, 357}, {7, 7}, {500, 500}, {0, 0}};
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        const char *in[] = {at("in.npy")}, *out[] = {at("out.npy")};
        dpi_run_options o = to(in, 1, out, 1);
        o.row_begin = ranges[i][0];
        o.row_end = ranges[i][1];
        dpi_error error;
        kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
        uint64_t end = ranges[i][1] ? ranges[i][1] : 500;
        check_result(k, out[0], 0, in, ranges[i][0], end - ranges[i][0]);
    }
    kit_close(k);
}

static void several_sources_and_sinks(void **state)
{
    (void)state;
    kit *k = kit_open("input a float32 N 4\ninput b uint8 N 3 2\ninput c int64 N\n"
                      "output y float64 N 3\noutput z bfloat16 N 2 2\noutput w bool N\n",
                      "sim:0*3", NULL);
    write_npy(at("b.npy"), "random:3x2:uint8:301:2");
    const char *order[] = {"random:4:float32:301:1", at("b.npy"), "random::int64:301:3"};
    char named[300], named_sink[300];
    snprintf(named, sizeof named, "b=%s", order[1]);
    snprintf(named_sink, sizeof named_sink, "w=%s", at("w.npy"));
    const char *in[] = {named, order[0], order[2]}, *out[] = {named_sink, at("y.npy"), at("z.npy")};
    dpi_run_options o = to(in, 3, out, 3);
    dpi_error error;
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    check_result(k, at("y.npy"), 0, order, 0, 301);
    check_result(k, at("z.npy"), 1, order, 0, 301);
    check_result(k, at("w.npy"), 2, order, 0, 301);
    o.outputs = (const char *const[]){"none", "z=none"}; /* fewer sinks than outputs */
    o.output_count = 2;
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    o.output_count = 0;
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    assert_int_equal(count_files(), 4);
    kit_close(k);
}

static void fixed_batches_and_free_axes(void **state)
{
    (void)state;
    dpi_error error;
    kit *k = kit_open("input x float32 4 5\noutput y float32 4 4\n", "sim:0*2", NULL);
    for (size_t n = 1; n < 12; n++) {
        char spec[64];
        snprintf(spec, sizeof spec, "random:5:float32:%zu", n);
        const char *in[] = {spec}, *out[] = {at("out.npy")};
        dpi_run_options o = to(in, 1, out, 1);
        kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
        check_result(k, out[0], 0, in, 0, n);
    }
    write_npy(at("in.npy"), "random:5:float32:9");
    const char *in[] = {at("in.npy")}, *out[] = {at("out.npy")};
    dpi_run_options o = to(in, 1, out, 1);
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    check_result(k, out[0], 0, in, 0, 9);
    kit_close(k);
    k = kit_open("input x float32 N ?\noutput y float32 N x.1\n", "sim:0*2", NULL);
    for (int extent = 1; extent < 30; extent += 13) {
        char spec[64];
        snprintf(spec, sizeof spec, "random:%d:float32:200", extent);
        in[0] = spec;
        kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
        check_result(k, out[0], 0, in, 0, 200);
    }
    kit_close(k);
}

/* .csv: the top classes in row order, checked against the .npy of the same run. */
static void the_best_classes_as_csv(void **state)
{
    (void)state;
    kit *k = kit_open(SIMPLE "output p float32 N 6\njitter_us 300\n", "sim:0*3",
                      &(dpi_options){.struct_size = sizeof(dpi_options), .batch = 3});
    const char *in[] = {"random:5:float32:700:2"}, *out[] = {"none", at("p.csv")};
    dpi_run_options o = to(in, 1, out, 2);
    dpi_error error;
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    FILE *f = fopen(out[1], "re");
    char line[256];
    assert_non_null(f);
    assert_non_null(fgets(line, sizeof line, f));
    assert_string_equal(line, "row,class,score\n");
    source *s;
    kit_assert_ok(source_open(in[0], -1, &s, &error), error);
    for (unsigned r = 0; r < 700; r++) {
        float x[5], p[6];
        const void *rows[] = {x}, *data;
        size_t bytes[] = {sizeof x}, best = 0;
        bool in_place;
        source_rows_at(s, r, 1, x, true, &data, &in_place, &error);
        sim_expected_row(&k->model, rows, bytes, 1, 6, p);
        for (size_t c = 1; c < 6; c++)
            best = p[c] > p[best] ? c : best;
        unsigned row = 0, class_index = 0;
        float score = 0;
        assert_non_null(fgets(line, sizeof line, f));
        assert_int_equal(sscanf(line, "%u,%u,%f", &row, &class_index, &score), 3);
        assert_int_equal(row, r);
        assert_int_equal(class_index, best);
        assert_true(score == p[best]);
    }
    assert_null(fgets(line, sizeof line, f));
    fclose(f);
    source_close(s);
    o.top = 7; /* of six */
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_E_DATA);
    kit_assert_contains(error.message, "7");
    kit_close(k);
}

static void labels_in_csv(void **state)
{
    (void)state;
    FILE *f = fopen(at("labels.txt"), "we");
    fputs("zero\none, or so\n\"two\"\nthree\n", f);
    fclose(f);
    kit *k = kit_open(SIMPLE, "sim:0*2", NULL);
    const char *in[] = {"random:5:float32:50:2"}, *out[] = {at("y.csv")};
    dpi_run_options o = to(in, 1, out, 1);
    o.top = 4;
    o.row_begin = 10;
    o.labels_path = at("labels.txt");
    dpi_error error;
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    void *text;
    size_t bytes;
    kit_assert_ok(file_read(out[0], 1 << 20, &text, &bytes, &error), error);
    assert_int_equal(strncmp(text, "row,class1,score1,class2,score2,class3,score3,class4,score4\n10,", 62), 0);
    kit_assert_contains((char *)text, ",\"one, or so\",");
    kit_assert_contains((char *)text, ",\"\"\"two\"\"\",");
    free(text);
    o.labels_path = at("absent.txt");
    assert_true(dpi_run(k->s, &o, NULL, &error) != DPI_OK);
    kit_assert_contains(error.message, "absent.txt");
    kit_close(k);
}

typedef struct watcher {
    uint64_t last, total, calls, stop_at;
    size_t workers;
} watcher;

static int watch(void *context, const dpi_progress *p)
{
    watcher *w = context;
    uint64_t sum = 0;
    assert_true(p->rows_done >= w->last && p->rows_done <= p->rows_total);
    for (size_t i = 0; i < p->worker_count; i++)
        sum += p->worker_rows[i];
    assert_true(sum >= p->rows_done);
    w->last = p->rows_done;
    w->total = p->rows_total;
    w->workers = p->worker_count;
    w->calls++;
    return w->stop_at && p->rows_done >= w->stop_at;
}

static void progress_and_cancel(void **state)
{
    (void)state;
    kit *k =
        kit_open(SIMPLE "fixed_us 2000\n", "sim:0*2", &(dpi_options){.struct_size = sizeof(dpi_options), .batch = 4});
    const char *in[] = {"random:5:float32:1600"}, *out[] = {at("y.npy")};
    watcher w = {0};
    dpi_run_options o = to(in, 1, out, 1);
    o.progress = watch;
    o.progress_context = &w;
    dpi_error error;
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    assert_int_equal(w.last, 1600);
    assert_int_equal(w.total, 1600);
    assert_int_equal(w.workers, 2);
    assert_true(w.calls >= 2 && w.calls < 50);
    unlink(out[0]);
    w = (watcher){.stop_at = 1};
    in[0] = "random:5:float32:1000000000";
    out[0] = at("y.csv"); /* of which nothing is reserved */
    double began = kit_now_s();
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_CANCELLED);
    assert_int_equal(error.status, DPI_CANCELLED);
    assert_true(kit_now_s() - began < 3);
    assert_true(w.last < 1000000);
    assert_int_equal(count_files(), 2); /* y.csv.part and y.csv.journal: the same run would go on */
    kit_assert_contains(error.message, "goes on");
    o.restart = true;
    w = (watcher){0};
    in[0] = "random:5:float32:100";
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    kit_close(k);
}

/* A chunk that is over before the first is settled, and its slot another's, while the run is told to stop. */
static void stopped_while_the_first_chunk_is_slow(void **state)
{
    (void)state;
    dpi_options options = DPI_INIT(dpi_options);
    const dpi_key_value slow[] = {{"1.slow_at_slice", "10"}, {"1.slow_us", "2000000"}};
    options.batch = 1;
    options.queue_depth = 2;
    options.backend_options = slow;
    options.backend_option_count = 2;
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", &options);
    const char *in[] = {"random:5:float32:40000"}, *out[] = {at("y.npy")};
    watcher w = {.stop_at = 8300};
    dpi_run_options o = to(in, 1, out, 1);
    o.progress = watch;
    o.progress_context = &w;
    dpi_error error;
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_CANCELLED);
    o.restart = true;
    o.progress = NULL;
    in[0] = "random:5:float32:100";
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    kit_close(k);
}

typedef struct long_run {
    kit *k;
    _Atomic int calls;
} long_run;

static int count_call(void *context, const dpi_progress *p)
{
    (void)p;
    ((long_run *)context)->calls++;
    return 0;
}

static void *run_in_thread(void *argument)
{
    long_run *l = argument;
    const char *in[] = {"random:5:float32:600"}, *out[] = {at("long.npy")};
    dpi_run_options o = to(in, 1, out, 1);
    o.progress = count_call;
    o.progress_context = l;
    dpi_error error;
    kit_assert_ok(dpi_run(l->k->s, &o, NULL, &error), error);
    check_result(l->k, out[0], 0, in, 0, 600);
    return NULL;
}

/* One run at a time, but batches go on beside it. */
static void one_run_at_a_time(void **state)
{
    (void)state;
    kit *k =
        kit_open(SIMPLE "fixed_us 5000\n", "sim:0*2", &(dpi_options){.struct_size = sizeof(dpi_options), .batch = 4});
    long_run l = {.k = k};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_in_thread, &l), 0);
    const char *in[] = {"random:5:float32:4"}, *out[] = {"none"};
    dpi_run_options o = to(in, 1, out, 1);
    dpi_error error = {0};
    for (double until = kit_now_s() + 5; !l.calls && kit_now_s() < until;)
        clock_sleep_until_ns(clock_now_ns() + 1000000);
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_E_ARGUMENT);
    kit_assert_contains(error.message, "under way");
    kit_forward(k, 20, 1);
    pthread_join(thread, NULL);
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    kit_close(k);
}

/* ---- what does not ---------------------------------------------------------------------------------------------- */

static void wrong_specs_are_named(void **state)
{
    (void)state;
    kit *k = kit_open(SIMPLE, "sim:0*2", NULL);
    FILE *f = fopen(at("text.npy"), "we");
    fputs("this is no array at all, is it", f);
    fclose(f);
    write_npy(at("cut.npy"), "random:5:float32:100");
    assert_int_equal(truncate(at("cut.npy"), 1000), 0);
    write_npy(at("double.npy"), "random:5:float64:100");
    write_npy(at("wide.npy"), "random:6:float32:100");
    write_npy(at("old.npy"), "random:5:float32:1");
    char cut[256], text[256], wide[256], twice[256], missing[256], nowhere[256];
    strcpy(cut, at("cut.npy"));
    strcpy(text, at("text.npy"));
    strcpy(wide, at("wide.npy"));
    strcpy(twice, at("double.npy"));
    strcpy(missing, at("missing.npy"));
    strcpy(nowhere, at("no/such/folder.npy"));
    const struct {
        const char *in, *out, *part;
        uint64_t begin, end;
    } cases[] = {
        {missing, "none", "missing.npy", 0, 0},
        {text, "none", "text.npy", 0, 0},
        {cut, "none", "cut.npy", 0, 0},
        {twice, "none", "double.npy: the input x expects float32 [N,5] and got float64", 0, 0},
        {wide, "none", "[100,6]", 0, 0},
        {folder, "none", folder, 0, 0},
        {"random:5:float32", "none", "random:5:float32", 0, 0},
        {"random:5:float99:3", "none", "float99", 0, 0},
        {"random:-5:float32:3", "none", "random:-5", 0, 0},
        {"random:5:float32:99999999999999999999", "none", "number", 0, 0},
        {"nothing.txt", "none", "nothing.txt", 0, 0},
        {"", "none", "source", 0, 0},
        {"z=random:5:float32:3", "none", "z=", 0, 0},
        {"random:5:float32:10", "none", "5:11", 5, 11},
        {"random:5:float32:10", "none", "9:8", 9, 8},
        {"random:5:float32:10", "out.txt", "out.txt", 0, 0},
        {"random:5:float32:10", "", "sink", 0, 0},
        {"random:5:float32:10", ".npy", ".npy", 0, 0},
        {"random:5:float32:10", nowhere, "folder.npy", 0, 0},
    };
    int files = count_files();
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *in[] = {cases[i].in}, *out[] = {cases[i].out};
        dpi_run_options o = to(in, 1, out, 1);
        o.row_begin = cases[i].begin;
        o.row_end = cases[i].end;
        dpi_error error = {0};
        dpi_status status = dpi_run(k->s, &o, NULL, &error);
        if (dpi_status_exit_code(status) != 2 || error.status != status || !strstr(error.message, cases[i].part))
            fail_msg("case %zu (%s to %s): %s \"%s\" does not say \"%s\"", i, in[0], out[0], dpi_status_name(status),
                     error.message, cases[i].part);
    }
    const char *two[] = {"random:5:float32:10", "random:5:float32:10"}, *out[] = {at("old.npy")};
    dpi_run_options o = to(two, 2, out, 1);
    dpi_error error;
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_E_ARGUMENT);
    o.input_count = 1;
    o.no_overwrite = true;
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_E_DATA);
    kit_assert_contains(error.message, "old.npy");
    assert_int_equal(count_files(), files);
    kit_forward(k, 5, 1);
    kit_close(k);
}

static void sources_of_different_lengths(void **state)
{
    (void)state;
    kit *k = kit_open("input a float32 N 4\ninput b uint8 N\noutput y float32 N\noutput z float32 N\n", "sim:0", NULL);
    const char *in[] = {"random:4:float32:10", "random::uint8:11"}, *out[] = {at("o.npy"), at("o.npy")};
    dpi_run_options o = to(in, 2, out, 1);
    dpi_error error;
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_E_DATA);
    kit_assert_contains(error.message, "10");
    kit_assert_contains(error.message, "11");
    in[1] = "random::uint8:10";
    o.output_count = 2; /* the same file twice */
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_E_ARGUMENT);
    assert_int_equal(count_files(), 0);
    kit_close(k);
}

/* A file may not grow beyond a limit, as on a full disk: one sentence, and neither file nor .part. */
static void a_full_disk(void **state)
{
    (void)state;
    struct rlimit old, tight;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    tight = old;
    tight.rlim_cur = 100000;
    for (int csv = 0; csv < 2; csv++) {
        /* The outputs arena is a file too, so the limit comes after opening. */
        kit *k = kit_open(SIMPLE, "sim:0*2", NULL);
        const char *in[] = {"random:5:float32:20000"}, *out[] = {csv ? at("y.csv") : at("y.npy")};
        dpi_run_options o = to(in, 1, out, 1);
        dpi_error error = {0};
        kit_forward(k, 3, 1);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
        dpi_status status = dpi_run(k->s, &o, NULL, &error);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
        if (status != DPI_E_IO)
            fail_msg("%s: %s", dpi_status_name(status), error.message);
        kit_assert_contains(error.message, csv ? "y.csv" : "y.npy");
        assert_int_equal(dpi_status_exit_code(status), 1);
        assert_int_equal(count_files(), 0);
        kit_close(k);
    }
}

/* The same on a real file system without room, where one may be mounted. */
static void a_full_file_system(void **state)
{
    (void)state;
    if (mkdir(at("disk"), 0700) != 0 || mount("none", at("disk"), "tmpfs", 0, "size=64k") != 0) {
        rmdir(at("disk"));
        skip();
    }
    kit *k = kit_open(SIMPLE, "sim:0*2", NULL);
    const char *names[] = {"disk/y.npy", "disk/y.csv"};
    for (int i = 0; i < 2; i++) {
        const char *in[] = {"random:5:float32:20000"}, *out[] = {at(names[i])};
        dpi_run_options o = to(in, 1, out, 1);
        dpi_error error = {0};
        dpi_status status = dpi_run(k->s, &o, NULL, &error);
        if (status != DPI_E_IO)
            print_error("%s: %s\n", dpi_status_name(status), error.message);
        bool clean = access(at(names[i]), F_OK) != 0 && rmdir(at("disk")) != 0 && errno == EBUSY;
        assert_int_equal(status, DPI_E_IO);
        assert_true(clean);
        in[0] = "random:5:float32:100";
        kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error); /* as much as fits */
        unlink(out[0]);
    }
    umount2(at("disk"), MNT_DETACH);
    rmdir(at("disk"));
    kit_close(k);
}

typedef struct shrinker {
    const char *path;
    bool done;
} shrinker;

static int shrink(void *context, const dpi_progress *p)
{
    shrinker *s = context;
    if (!s->done && p->rows_done) {
        s->done = true;
        assert_int_equal(truncate(s->path, 4096), 0);
    }
    return 0;
}

static void a_source_that_shrinks(void **state)
{
    (void)state;
    for (int isolation = 0; isolation < 2; isolation++) {
        kit_traces before = kit_look();
        dpi_options open_options = DPI_INIT(dpi_options);
        open_options.isolation = (dpi_isolation)isolation;
        open_options.batch = 10;
        kit *k = kit_open("input x float32 N 1024\noutput y float32 N 4\nfixed_us 3000\n", "sim:0*2", &open_options);
        char path[256];
        strcpy(path, at("in.npy"));
        write_npy(path, "random:1024:float32:2000");
        const char *in[] = {path}, *out[] = {at("y.npy")};
        shrinker s = {.path = path};
        dpi_run_options o = to(in, 1, out, 1);
        o.progress = shrink;
        o.progress_context = &s;
        dpi_error error = {0};
        dpi_status status = dpi_run(k->s, &o, NULL, &error);
        assert_true(s.done);
        if (status != DPI_E_IO)
            fail_msg("isolation %d: %s: %s", isolation, dpi_status_name(status), error.message);
        kit_assert_contains(error.message, isolation ? "in.npy" : "shrank");
        assert_int_equal(access(out[0], F_OK), -1);
        assert_int_equal(count_files(), 1);
        kit_close(k);
        kit_check_clean(before);
    }
}

/* A death or a hang costs the run nothing; an engine that fails ends it. */
static void a_fault_in_a_run(void **state)
{
    (void)state;
    static const char *const keys[] = {"1.die_at_slice", "1.hang_at_slice", "1.fail_at_slice"};
    for (int i = 0; i < 3; i++) {
        kit_traces before = kit_look();
        const dpi_key_value options[] = {{keys[i], "9"}, {"1.fault_generations", "1"}};
        dpi_options open_options = DPI_INIT(dpi_options);
        open_options.backend_options = options;
        open_options.backend_option_count = 2;
        open_options.batch = 4;
        open_options.slice_timeout_ms = 300;
        kit *k = kit_open(SIMPLE "fixed_us 2000\n", "sim:0,sim:7", &open_options);
        const char *in[] = {"random:5:float32:4000"}, *out[] = {at("y.npy")};
        dpi_run_options o = to(in, 1, out, 1);
        dpi_error error = {0};
        dpi_status status = dpi_run(k->s, &o, NULL, &error);
        if (i < 2) {
            kit_assert_ok(status, error);
            dpi_stats_data stats = DPI_INIT(dpi_stats_data);
            kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
            assert_int_equal(stats.deaths, 1);
            check_result(k, out[0], 0, in, 0, 4000);
            unlink(out[0]);
        } else {
            assert_int_equal(status, DPI_E_ENGINE);
            kit_assert_contains(error.message, "worker 1");
            kit_assert_contains(error.message, "sim:7");
            kit_assert_contains(error.message, "goes on");
        }
        assert_int_equal(count_files(), i < 2 ? 0 : 2);
        o.restart = true;
        in[0] = "random:5:float32:100";
        kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
        check_result(k, out[0], 0, in, 0, 100);
        unlink(out[0]);
        kit_close(k);
        kit_check_clean(before);
        empty_folder(NULL);
    }
}

/* The sink's old content survives a run that fails, and is replaced by one that does not. */
static void an_old_result_stays_until_the_new_is_whole(void **state)
{
    (void)state;
    dpi_error error;
    const char *in[] = {"random:5:float32:100"}, *out[] = {at("y.npy")};
    dpi_run_options o = to(in, 1, out, 1);
    kit *k = kit_open(SIMPLE, "sim:0", NULL);
    kit_assert_ok(dpi_run(k->s, &o, NULL, &error), error);
    kit_close(k);
    k = kit_open(SIMPLE "fail_at_slice 2\n", "sim:0", &(dpi_options){.struct_size = sizeof(dpi_options), .batch = 4});
    assert_int_equal(dpi_run(k->s, &o, NULL, &error), DPI_E_ENGINE);
    check_result(k, out[0], 0, in, 0, 100);
    assert_int_equal(count_files(), 3);
    kit_close(k);
}

#define RUN_TEST(test) cmocka_unit_test_setup_teardown(test, empty_folder, empty_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        RUN_TEST(from_npy_and_random_to_npy),
        RUN_TEST(a_range_of_rows),
        RUN_TEST(several_sources_and_sinks),
        RUN_TEST(fixed_batches_and_free_axes),
        RUN_TEST(the_best_classes_as_csv),
        RUN_TEST(labels_in_csv),
        RUN_TEST(progress_and_cancel),
        RUN_TEST(stopped_while_the_first_chunk_is_slow),
        RUN_TEST(one_run_at_a_time),
        RUN_TEST(wrong_specs_are_named),
        RUN_TEST(sources_of_different_lengths),
        RUN_TEST(a_full_disk),
        RUN_TEST(a_full_file_system),
        RUN_TEST(a_source_that_shrinks),
        RUN_TEST(a_fault_in_a_run),
        RUN_TEST(an_old_result_stays_until_the_new_is_whole),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
