/* Text sinks of rows that have names: every line of .jsonl is one JSON value that says what went in, whatever bytes
 * names and labels have; .csv gets one more column. */
#include "data/sink.h"

#include "base/file.h"
#include "data/source_kind.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/dpi-test-jsonl-XXXXXX";
static char path[64], labels[64];
static const port scores = {.name = "scores", .dtype = DPI_F32, .rank = 2, .shape = {-1, 3}};

/* What a row is called, and what a reader of JSON finds. */
static const struct {
    const char *name, *json;
} names[] = {
    {"plain.jpg", "plain.jpg"},
    {"a \"quoted\"\\, name\n\t\x01", "a \"quoted\"\\, name\n\t\x01"},
    {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
    {"no\xff utf\xc3", "no\xef\xbf\xbd utf\xef\xbf\xbd"},
    {"\xc0\xaf\xe0\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* overlong */
    {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},                                 /* a surrogate */
    {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},                 /* beyond */
    {"", ""},
};
#define NAMES (sizeof names / sizeof names[0])

static const char *name_of(const source *s, uint64_t row, char buffer[SOURCE_NAME_SIZE])
{
    (void)s;
    snprintf(buffer, SOURCE_NAME_SIZE, "%s", names[row].name);
    return buffer;
}

static const source_kind named_kind = {.row_name = name_of};
static const source named = {.kind = &named_kind, .rows = NAMES};

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(labels, sizeof labels, "%s/labels", folder);
    FILE *f = fopen(labels, "we");
    fprintf(f, "tabby, cat\n\"dog\" \xff\nbird\n");
    return fclose(f);
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(labels);
    return rmdir(folder);
}

/* The text of a sink with a row for each name: scores 1/3, NaN and infinity. */
static char *write_all(const char *end, const source *rows_names, const char *labels_path, size_t top)
{
    dpi_error error;
    sink *s;
    snprintf(path, sizeof path, "%s/y.%s", folder, end);
    sink_options o = {.output = &scores, .rows = NAMES, .top = top, .labels_path = labels_path, .names = rows_names};
    if (sink_create(path, &o, &s, &error))
        fail_msg("%s", error.message);
    assert_true(sink_is_text(s) && sink_record_bytes(s) == top * sizeof(sink_top));
    for (uint64_t r = 0; r < NAMES; r++) {
        sink_top records[3] = {{.class_index = (uint32_t)(r % 3), .value = 1.0f / 3},
                               {.class_index = 1, .value = -NAN},
                               {.class_index = 7, .value = INFINITY}};
        assert_int_equal(sink_write_records(s, r, records, 1, &error), DPI_OK);
    }
    assert_int_equal(sink_finish(s, &error), DPI_OK);
    sink_close(s, false);
    void *text;
    size_t bytes;
    assert_int_equal(file_read(path, 1 << 20, &text, &bytes, &error), DPI_OK);
    unlink(path);
    return text;
}

static void every_line_is_json(void **state)
{
    (void)state;
    char *text = write_all("jsonl", &named, labels, 3), *line = text;
    for (uint64_t r = 0; r < NAMES; r++) {
        char *end = strchr(line, '\n');
        assert_non_null(end);
        json_error_t why;
        json_t *json = json_loadb(line, (size_t)(end - line), 0, &why);
        if (!json)
            fail_msg("%s: %.*s", why.text, (int)(end - line), line);
        assert_int_equal(json_integer_value(json_object_get(json, "row")), r);
        assert_string_equal(json_string_value(json_object_get(json, "name")), names[r].json);
        const json_t *top = json_object_get(json, "top"), *first = json_array_get(top, 0);
        assert_int_equal(json_array_size(top), 3);
        assert_true((float)json_real_value(json_object_get(first, "score")) == 1.0f / 3);
        if (r % 3 == 1)
            assert_string_equal(json_string_value(json_object_get(first, "label")), "\"dog\" \xef\xbf\xbd");
        for (size_t i = 1; i < 3; i++)
            assert_true(json_is_null(json_object_get(json_array_get(top, i), "score")));
        assert_null(json_object_get(json_array_get(top, 2), "label")); /* a class that no label is for */
        json_decref(json);
        line = end + 1;
    }
    assert_int_equal(*line, 0);
    free(text);
}

static void without_names_and_labels(void **state)
{
    (void)state;
    char *text = write_all("jsonl", NULL, NULL, 1);
    static const char first[] = "{\"row\": 0, \"top\": [{\"class\": 0, \"score\": 0.33333334}]}\n";
    assert_memory_equal(text, first, strlen(first));
    free(text);
}

static void csv_has_a_column_of_names(void **state)
{
    (void)state;
    char *text = write_all("csv", &named, labels, 1);
    static const char first[] = "row,name,class,score\n0,plain.jpg,\"tabby, cat\",0.33333334\n"
                                "1,\"a \"\"quoted\"\"\\, name\n\t\x01\",";
    assert_memory_equal(text, first, strlen(first));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_line_is_json),
        cmocka_unit_test(without_names_and_labels),
        cmocka_unit_test(csv_has_a_column_of_names),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
