/* Sinks: whole or absent, exclusive, and the top classes in the documented order. */
#include "data/sink.h"

#include "base/file.h"
#include "data/npy.h"
#include "folder_kit.h"

#include <fcntl.h>
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/dpi-test-sink-XXXXXX";
static char npy[64], csv[64], labels[64];

static int make_folder(void **state)
{
    (void)state;
    if (folder_make(folder))
        return -1;
    snprintf(npy, sizeof npy, "%s/y.npy", folder);
    snprintf(csv, sizeof csv, "%s/y.csv", folder);
    snprintf(labels, sizeof labels, "%s/labels", folder);
    return 0;
}

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

static int count_files(void) { return folder_count(folder); }

static const port scores = {.name = "scores", .dtype = DPI_F32, .rank = 2, .shape = {-1, 4}};

static sink *create(const char *spec, const sink_options *options)
{
    sink *s;
    dpi_error error;
    if (sink_create(spec, options, &s, &error))
        fail_msg("%s", error.message);
    assert_string_equal(sink_spec(s), spec);
    return s;
}

static void npy_is_whole_or_absent(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 100};
    dpi_error error;
    sink *s = create(npy, &o);
    assert_int_equal(sink_kind_of(s), SINK_NPY);
    assert_int_equal(sink_record_bytes(s), 0);
    assert_int_equal(access(npy, F_OK), -1);
    struct stat info;
    assert_int_equal(fstat(sink_fd(s), &info), 0);
    assert_int_equal(info.st_size, sink_data_offset(s) + 1600); /* all of it is reserved */
    assert_true(info.st_blocks * 512 >= 1600);
    sink_close(s, false); /* unfinished */
    assert_int_equal(count_files(), 0);
    s = create(npy, &o);
    float rows[100][4];
    for (int i = 0; i < 400; i++)
        rows[i / 4][i % 4] = (float)i;
    for (int i = 99; i >= 0; i--) /* in any order */
        assert_int_equal(pwrite(sink_fd(s), rows[i], 16, (off_t)sink_data_offset(s) + i * 16), 16);
    assert_int_equal(sink_finish(s, &error), DPI_OK);
    sink_close(s, false);
    assert_int_equal(count_files(), 1);
    npy_header h;
    void *data;
    assert_int_equal(npy_load(npy, 10000, &h, &data, &error), DPI_OK);
    assert_int_equal(h.shape[0], 100);
    assert_memory_equal(data, rows, sizeof rows);
    free(data);
    o.rows = 0;
    s = create(npy, &o); /* replaces the old one */
    assert_int_equal(sink_finish(s, &error), DPI_OK);
    sink_close(s, false);
    assert_int_equal(npy_load(npy, 10000, &h, &data, &error), DPI_OK);
    assert_int_equal(h.shape[0], 0);
    free(data);
    o.no_overwrite = true;
    assert_int_equal(sink_create(npy, &o, &s, &error), DPI_E_DATA);
    assert_non_null(strstr(error.message, npy));
    sink_close(NULL, false);
}

static void one_writer_at_a_time(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 10};
    sink *first = create(npy, &o), *second;
    dpi_error error;
    assert_int_equal(sink_create(npy, &o, &second, &error), DPI_E_DATA);
    assert_non_null(strstr(error.message, "another run"));
    assert_int_equal(count_files(), 1); /* the refused one took nothing away */
    assert_int_equal(sink_finish(first, &error), DPI_OK);
    sink_close(first, false);
    /* An old .part of a run that was killed is replaced. */
    char part[80];
    snprintf(part, sizeof part, "%s.part", npy);
    FILE *f = fopen(part, "we");
    for (int i = 0; i < 10000; i++)
        fputc('x', f);
    fclose(f);
    sink *s = create(npy, &o);
    assert_int_equal(sink_finish(s, &error), DPI_OK);
    sink_close(s, false);
    struct stat info;
    assert_int_equal(stat(npy, &info), 0);
    assert_int_equal(info.st_size, 128 + 160);
}

/* A source must not be replaced by its own results: the caller asks, whatever the names look like. */
static void its_own_source_is_known(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 10};
    dpi_error error;
    sink *s = create(npy, &o);
    int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_false(sink_same_file(s, nothing)); /* there is no file of that name yet */
    assert_int_equal(sink_finish(s, &error), DPI_OK);
    sink_close(s, false);
    char link_name[128], indirect[128];
    snprintf(link_name, sizeof link_name, "%s/hard.npy", folder);
    snprintf(indirect, sizeof indirect, "%s/../%s/y.npy", folder, strrchr(folder, '/') + 1);
    assert_int_equal(link(npy, link_name), 0);
    int fd = open(npy, O_RDONLY | O_CLOEXEC);
    const char *const names[] = {npy, link_name, indirect};
    for (int i = 0; i < 3; i++) {
        s = create(names[i], &o);
        assert_true(sink_same_file(s, fd));
        assert_false(sink_same_file(s, nothing));
        assert_false(sink_same_file(s, -1));
        sink_close(s, false);
    }
    s = create(csv, &o);
    assert_false(sink_same_file(s, fd));
    sink_close(s, false);
    close(fd);
    close(nothing);
}

static void bad_specs(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 10};
    char missing[128];
    snprintf(missing, sizeof missing, "%s/no/y.npy", folder);
    const char *specs[] = {"", "x", "none2", ".npy", ".csv", "y.txt", folder, missing, "/proc/y.npy"};
    dpi_error error;
    sink *s = (sink *)(uintptr_t)1;
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        error = (dpi_error){0};
        if (sink_create(specs[i], &o, &s, &error) != DPI_E_DATA || s || !strstr(error.message, specs[i]))
            fail_msg("\"%s\": %s", specs[i], error.message);
    }
    assert_int_equal(mkdir(npy, 0700), 0);
    assert_int_equal(sink_create(npy, &o, &s, &error), DPI_E_DATA);
    rmdir(npy);
    char part[80];
    snprintf(part, sizeof part, "%s.part", npy);
    assert_int_equal(symlink("/etc/passwd", part), 0); /* is not followed */
    assert_int_equal(sink_create(npy, &o, &s, &error), DPI_E_DATA);
    o.rows = 1ull << 60;
    unlink(part);
    assert_true(sink_create(npy, &o, &s, &error) != DPI_OK);
    assert_int_equal(count_files(), 0);
    s = create("none", &(sink_options){.output = &scores, .rows = 10});
    assert_int_equal(sink_kind_of(s), SINK_NONE);
    assert_int_equal(sink_fd(s), -1);
    assert_int_equal(sink_finish(s, &error), DPI_OK);
    sink_close(s, false);
}

/* ---- csv -------------------------------------------------------------------------------------------------------- */

static void the_top_of_a_row(void **state)
{
    (void)state;
    static const float rows[][4] = {
        {1, 3, 2, 0}, {5, 5, 5, 5}, {NAN, -1, NAN, -2}, {NAN, NAN, NAN, NAN}, {-INFINITY, 0, INFINITY, -0.0f}};
    sink_top records[5][3];
    sink_top_records(&scores, rows, 5, 3, &records[0][0]);
    static const uint32_t want[5][3] = {{1, 2, 0}, {0, 1, 2}, {1, 3, 0}, {0, 1, 2}, {2, 1, 3}};
    for (int r = 0; r < 5; r++)
        for (int i = 0; i < 3; i++)
            assert_int_equal(records[r][i].class_index, want[r][i]);
    assert_true(records[0][0].value == 3 && records[4][0].value == INFINITY);
    /* Scores that are one and the same float32 still have an order. */
    static const double close_doubles[] = {1, 1 + 1e-12, 1 + 2e-12, 1e300};
    static const int32_t close_integers[] = {16777216, 16777217, -1, 16777217};
    port wide = {.dtype = DPI_F64, .rank = 2, .shape = {-1, 4}};
    sink_top three[3];
    sink_top_records(&wide, close_doubles, 1, 3, three);
    assert_int_equal(three[0].class_index, 3);
    assert_true(three[0].value == INFINITY);
    assert_int_equal(three[1].class_index, 2);
    assert_int_equal(three[2].class_index, 1);
    wide.dtype = DPI_I32;
    sink_top_records(&wide, close_integers, 1, 3, three);
    assert_int_equal(three[0].class_index, 1);
    assert_int_equal(three[1].class_index, 3);
    assert_int_equal(three[2].class_index, 0);
    /* Other dtypes, and all the classes. */
    static const int8_t small[] = {-5, 7, 7, -128};
    port p = {.dtype = DPI_I8, .rank = 2, .shape = {-1, 4}};
    sink_top four[4];
    sink_top_records(&p, small, 1, 4, four);
    assert_int_equal(four[0].class_index, 1);
    assert_int_equal(four[1].class_index, 2);
    assert_int_equal(four[2].class_index, 0);
    assert_int_equal(four[3].class_index, 3);
}

/* noinline: gcc 12 takes the inlined result for a pointer to `data` itself and warns. */
static __attribute__((noinline)) char *text_of(const char *path)
{
    void *data = NULL;
    size_t bytes;
    dpi_error error;
    if (file_read(path, 1 << 24, &data, &bytes, &error))
        fail_msg("%s", error.message);
    return data;
}

static void csv_text(void **state)
{
    (void)state;
    static const sink_top records[] = {{2, 0.1f}, {0, -1e-20f}, {3, 16777216}, {1, INFINITY}};
    FILE *f = fopen(labels, "we");
    fputs("zero\r\none\ntwo, \"quoted\"\nthree", f); /* CRLF, no last newline */
    fclose(f);
    setlocale(LC_NUMERIC, "de_DE.UTF-8");
    for (int with = 0; with < 2; with++) {
        sink_options o = {.output = &scores, .rows = 2, .top = 2, .labels_path = with ? labels : NULL};
        dpi_error error;
        sink *s = create(csv, &o);
        assert_int_equal(sink_record_bytes(s), 16);
        assert_int_equal(sink_fd(s), -1);
        assert_int_equal(sink_write_records(s, 10, records, 1, &error), DPI_OK);
        assert_int_equal(sink_write_records(s, 11, records + 2, 1, &error), DPI_OK);
        assert_int_equal(sink_finish(s, &error), DPI_OK);
        sink_close(s, false);
        char *text = text_of(csv);
        assert_string_equal(text, with ? "row,class1,score1,class2,score2\n10,\"two, \"\"quoted\"\"\",0.1,zero,-1e-20\n"
                                         "11,three,16777216,one,inf\n"
                                       : "row,class1,score1,class2,score2\n10,2,0.1,0,-1e-20\n11,3,16777216,1,inf\n");
        free(text);
    }
    setlocale(LC_NUMERIC, "C");
}

static void many_csv_rows(void **state)
{
    (void)state;
    enum { ROWS = 60000 }; /* more than one flush */
    sink_options o = {.output = &scores, .rows = ROWS};
    sink_top *records = malloc(ROWS * sizeof *records);
    for (uint32_t i = 0; i < ROWS; i++)
        records[i] = (sink_top){.class_index = i % 4, .value = (float)i / 7};
    dpi_error error;
    sink *s = create(csv, &o);
    for (size_t at = 0; at < ROWS; at += 10000)
        assert_int_equal(sink_write_records(s, at, records + at, 10000, &error), DPI_OK);
    assert_int_equal(sink_finish(s, &error), DPI_OK);
    sink_close(s, false);
    char *text = text_of(csv);
    const char *at = strchr(text, '\n') + 1;
    for (uint32_t i = 0; i < ROWS; i++) {
        char *end = NULL;
        assert_int_equal(strtoul(at, &end, 10), i);
        assert_int_equal(strtoul(end + 1, &end, 10), i % 4);
        assert_true(strtof(end + 1, &end) == records[i].value); /* reads back as the same float */
        assert_int_equal(*end, '\n');
        at = end + 1;
    }
    assert_int_equal(*at, 0);
    free(text);
    free(records);
}

/* Records are a worker's word: a class that does not exist must not read past the labels. */
static void hostile_records(void **state)
{
    (void)state;
    FILE *f = fopen(labels, "we");
    fputs("a\nb\nc\nd\n", f);
    fclose(f);
    sink_options o = {.output = &scores, .rows = 1, .labels_path = labels};
    dpi_error error;
    sink *s = create(csv, &o);
    sink_top record = {.class_index = UINT32_MAX, .value = -(float)NAN};
    assert_int_equal(sink_write_records(s, 0, &record, 1, &error), DPI_OK);
    assert_int_equal(sink_finish(s, &error), DPI_OK);
    sink_close(s, false);
    char *text = text_of(csv);
    assert_string_equal(text, "row,class,score\n0,4294967295,nan\n");
    free(text);
}

static void csv_needs_scores(void **state)
{
    (void)state;
    static const port bad[] = {{.name = "b", .dtype = DPI_BOOL, .rank = 2, .shape = {-1, 4}},
                               {.name = "e", .dtype = DPI_F32, .rank = 2, .shape = {-1, 0}},
                               {.name = "f", .dtype = DPI_F32, .rank = 2, .shape = {-1, -1}}};
    sink *s;
    dpi_error error;
    for (int i = 0; i < 3; i++) {
        sink_options o = {.output = &bad[i], .rows = 10};
        assert_int_equal(sink_create(csv, &o, &s, &error), DPI_E_DATA);
    }
    sink_options o = {.output = &scores, .rows = 10, .top = 5};
    assert_int_equal(sink_create(csv, &o, &s, &error), DPI_E_DATA);
    o.top = 1;
    o.labels_path = labels;
    unlink(labels);
    assert_true(sink_create(csv, &o, &s, &error) != DPI_OK);
    static const char *const texts[] = {"a\nb\nc\n", "a\nb\nc\nd\r\n\r\n", ""}, *const counts[] = {"has 3", "has 5",
                                                                                                   "has 0"};
    for (int i = 0; i < 3; i++) {
        FILE *f = fopen(labels, "we");
        fputs(texts[i], f);
        fclose(f);
        assert_int_equal(sink_create(csv, &o, &s, &error), DPI_E_DATA);
        assert_non_null(strstr(error.message, labels));
        assert_non_null(strstr(error.message, counts[i]));
        assert_non_null(strstr(error.message, "4 classes"));
    }
    unlink(labels);
    assert_int_equal(count_files(), 0);
}

#define SINK_TEST(test) cmocka_unit_test_setup_teardown(test, empty_folder, empty_folder)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SINK_TEST(npy_is_whole_or_absent),  SINK_TEST(one_writer_at_a_time),
        SINK_TEST(its_own_source_is_known), SINK_TEST(bad_specs),
        SINK_TEST(the_top_of_a_row),        SINK_TEST(csv_text),
        SINK_TEST(many_csv_rows),           SINK_TEST(hostile_records),
        SINK_TEST(csv_needs_scores),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
