/* Archives as sinks: several outputs in one file, rows at their place from the beginning, whole or absent. */
#include "data/sink.h"

#include "base/file.h"
#include "data/zip.h"
#include "folder_kit.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

#define ROWS 37

static char folder[] = "/tmp/dpi-test-npz-XXXXXX";
static char npz[64], part[80];
static const port scores = {.name = "scores", .dtype = DPI_F32, .rank = 2, .shape = {-1, 5}},
                  codes = {.name = "codes/first:0", .dtype = DPI_I64, .rank = 1, .shape = {-1}};

static int make_folder(void **state)
{
    (void)state;
    if (folder_make(folder))
        return -1;
    snprintf(npz, sizeof npz, "%s/y.npz", folder);
    snprintf(part, sizeof part, "%s.part", npz);
    return 0;
}

static int clean(void **state)
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

typedef struct pair {
    sink *file, *joined;
} pair;

static pair open_pair(void)
{
    pair p;
    dpi_error error;
    sink_options first = {.output = &scores, .rows = ROWS}, second = {.output = &codes, .rows = ROWS};
    assert_int_equal(sink_open(npz, &first, &p.file, &error), DPI_OK);
    assert_int_equal(sink_join(p.file, &second, &p.joined, &error), DPI_OK);
    assert_true(sink_has_file(p.file) && !sink_has_file(p.joined) && !sink_is_text(p.file));
    return p;
}

static void close_pair(pair p, bool keep)
{
    sink_close(p.file, keep);
    sink_close(p.joined, keep);
}

static void write_rows(pair p)
{
    for (int64_t r = ROWS - 1; r >= 0; r--) {
        float row[5] = {(float)r, 1, 2, 3, 4};
        assert_int_equal(pwrite(sink_fd(p.file), row, 20, (off_t)sink_data_offset(p.file) + r * 20), 20);
        assert_int_equal(pwrite(sink_fd(p.joined), &r, 8, (off_t)sink_data_offset(p.joined) + r * 8), 8);
    }
}

static void check_file(void)
{
    dpi_error error;
    for (int m = 0; m < 2; m++) {
        char spec[128];
        snprintf(spec, sizeof spec, "%s:%s", npz, m ? codes.name : scores.name);
        source *s;
        if (source_open(spec, -1, &s, &error))
            fail_msg("%s", error.message);
        assert_int_equal(source_rows(s), ROWS);
        assert_true(source_is_mapped(s)); /* its rows are aligned */
        const void *rows;
        bool in_place;
        assert_int_equal(source_rows_at(s, 9, 1, NULL, false, &rows, &in_place, &error), DPI_OK);
        assert_true(m ? *(const int64_t *)rows == 9 : *(const float *)rows == 9.0f);
        source_close(s);
    }
    /* The checksums, which a source that is mapped does not look at. */
    void *data;
    size_t bytes;
    zip_directory d;
    assert_int_equal(file_read(npz, 1 << 20, &data, &bytes, &error), DPI_OK);
    int fd = open(npz, O_RDONLY | O_CLOEXEC);
    assert_int_equal(zip_read(fd, bytes, npz, &d, &error), DPI_OK);
    assert_int_equal(d.count, 2);
    for (size_t i = 0; i < d.count; i++) {
        uint64_t at;
        assert_int_equal(zip_find(fd, bytes, npz, &d.members[i], &at, &error), DPI_OK);
        assert_int_equal(at % 64, 0);
        assert_int_equal(crc32(0, (const Bytef *)data + at, (uInt)d.members[i].bytes), d.members[i].crc);
    }
    zip_free(&d);
    close(fd);
    free(data);
}

static void whole_or_absent(void **state)
{
    (void)state;
    dpi_error error;
    pair p = open_pair();
    assert_int_equal(sink_begin(p.file, &error), DPI_OK);
    assert_int_equal(sink_begin(p.joined, &error), DPI_OK);
    struct stat info;
    assert_int_equal(fstat(sink_fd(p.file), &info), 0);
    uint64_t size = (uint64_t)info.st_size;
    assert_true(info.st_blocks * 512 >= info.st_size);
    close_pair(p, false);
    assert_int_equal(count_files(), 0);
    p = open_pair();
    assert_int_equal(sink_begin(p.file, &error), DPI_OK);
    write_rows(p);
    assert_int_equal(sink_finish(p.joined, &error), DPI_OK);
    assert_int_equal(access(npz, F_OK), -1);
    assert_int_equal(sink_finish(p.file, &error), DPI_OK);
    close_pair(p, false);
    assert_int_equal(count_files(), 1);
    assert_int_equal(stat(npz, &info), 0);
    assert_int_equal(info.st_size, size); /* as long as it was reserved */
    check_file();
}

/* Stopped with some rows there, and stopped behind the checksums: the same file goes on. */
static void goes_on(void **state)
{
    (void)state;
    dpi_error error;
    for (int late = 0; late < 2; late++) {
        pair p = open_pair();
        file_mark mark;
        assert_int_equal(sink_begin(p.file, &error), DPI_OK);
        if (late) {
            write_rows(p);
            assert_int_equal(sink_complete(p.file, &error), DPI_OK);
        }
        assert_true(sink_mark(p.file, &mark));
        close_pair(p, true);
        p = open_pair();
        assert_int_equal(sink_resume(p.file, mark.inode, 0, &error), DPI_OK);
        assert_int_equal(sink_resume(p.joined, 0, 0, &error), DPI_OK);
        write_rows(p);
        assert_int_equal(sink_finish(p.file, &error), DPI_OK);
        close_pair(p, false);
        check_file();
        unlink(npz);
    }
}

/* Every byte of the headers counts, but the checksums; so does the length. */
static void another_part_is_refused(void **state)
{
    (void)state;
    dpi_error error;
    pair p = open_pair();
    file_mark mark;
    assert_int_equal(sink_begin(p.file, &error), DPI_OK);
    assert_true(sink_mark(p.file, &mark));
    uint64_t header = sink_data_offset(p.file);
    close_pair(p, true);
    for (uint64_t at = 0; at <= header; at++) {
        int fd = open(part, O_RDWR | O_CLOEXEC);
        unsigned char byte, other;
        assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
        other = byte ^ 1;
        assert_int_equal(pwrite(fd, &other, 1, (off_t)at), 1);
        p = open_pair();
        dpi_status status = sink_resume(p.file, mark.inode, 0, &error);
        assert_int_equal(status, at == header || (at >= 14 && at < 18) ? DPI_OK : DPI_E_DATA);
        assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
        close_pair(p, true);
        close(fd);
    }
    assert_int_equal(truncate(part, (off_t)header), 0);
    p = open_pair();
    assert_int_equal(sink_resume(p.file, mark.inode, 0, &error), DPI_E_DATA);
    close_pair(p, true);
}

static void names_that_lead_out_are_refused(void **state)
{
    (void)state;
    static const char *const names[] = {"/etc/passwd", "../up", "a/../../b"};
    for (size_t i = 0; i < 3; i++) {
        port odd = scores;
        snprintf(odd.name, sizeof odd.name, "%s", names[i]);
        sink_options o = {.output = &odd, .rows = 1};
        sink *s;
        dpi_error error;
        assert_int_equal(sink_create(npz, &o, &s, &error), DPI_E_DATA);
        assert_non_null(strstr(error.message, names[i]));
    }
    assert_int_equal(count_files(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(whole_or_absent, clean, clean),
        cmocka_unit_test_setup_teardown(goes_on, clean, clean),
        cmocka_unit_test_setup_teardown(another_part_is_refused, clean, clean),
        cmocka_unit_test_setup_teardown(names_that_lead_out_are_refused, clean, clean),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
