/* Sources: the same rows by every way of reading, and every fault of a file named before a row is read. */
#include "data/source.h"

#include "data/npy.h"

#include <dirent.h>
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

#include <cmocka.h>

static char folder[] = "/tmp/dpi-test-source-XXXXXX";
static char path[64];

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof path, "%s/in.npy", folder);
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(folder);
}

static int count_fds(void)
{
    int count = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d))
        count++;
    closedir(d);
    return count;
}

/* A file with rows of `elements` int32: row * 1000 + element; `pad` more blanks in its header. */
static void write_rows(int64_t rows, int64_t elements, size_t pad)
{
    FILE *f = fopen(path, "we");
    char header[512];
    size_t length = npy_format(DPI_I32, (int64_t[]){rows, elements}, 2, header, sizeof header);
    memset(header + length - 1, ' ', pad);
    header[length + pad - 1] = '\n';
    header[8] = (char)(length + pad - 10);
    assert_int_equal(fwrite(header, 1, length + pad, f), length + pad);
    for (int32_t r = 0; r < rows; r++)
        for (int32_t e = 0; e < elements; e++) {
            int32_t v = r * 1000 + e;
            fwrite(&v, 4, 1, f);
        }
    fclose(f);
}

static source *open_good(const char *spec, int fd)
{
    source *s;
    dpi_error error;
    if (source_open(spec, fd, &s, &error))
        fail_msg("%s", error.message);
    return s;
}

static void npy_rows_by_every_way(void **state)
{
    (void)state;
    for (size_t pad = 0; pad < 3; pad++) { /* with an odd header rows are not aligned and must be copied */
        write_rows(50, 7, pad);
        source *s = open_good(path, -1);
        assert_int_equal(source_rows(s), 50);
        assert_int_equal(source_port(s)->dtype, DPI_I32);
        assert_int_equal(source_port(s)->rank, 2);
        assert_int_equal(source_port(s)->shape[1], 7);
        assert_int_equal(source_is_mapped(s), pad == 0);
        for (int copy = 0; copy < 2; copy++)
            for (uint64_t first = 0; first < 50; first += 11) {
                size_t count = 50 - first < 11 ? 50 - first : 11;
                int32_t *scratch = malloc(count * 28);
                const void *rows;
                bool in_place;
                dpi_error error;
                assert_int_equal(source_rows_at(s, first, count, scratch, copy, &rows, &in_place, &error), DPI_OK);
                assert_int_equal(in_place, pad == 0 && !copy);
                for (size_t i = 0; i < count * 7; i++)
                    assert_int_equal(((const int32_t *)rows)[i], (int32_t)((first + i / 7) * 1000 + i % 7));
                free(scratch);
            }
        source_will_need(s, 0, 50);
        source_will_need(s, 49, UINT64_MAX);
        source_will_need(s, 50, 1);
        source_will_need(s, UINT64_MAX, 1);
        const void *start;
        size_t bytes;
        assert_true(source_mapping(s, &start, &bytes));
        source_close(s);
    }
    source_close(NULL);
}

/* As workers do it: by the caller's descriptor, whatever has happened to the name. */
static void by_descriptor(void **state)
{
    (void)state;
    write_rows(5, 3, 0);
    int before = count_fds();
    source *s = open_good(path, -1);
    unlink(path);
    source *again = open_good(path, source_fd(s));
    source_close(s);
    const void *rows;
    bool in_place;
    assert_int_equal(source_rows_at(again, 4, 1, NULL, false, &rows, &in_place, NULL), DPI_OK);
    assert_int_equal(((const int32_t *)rows)[2], 4002);
    source_close(again);
    assert_int_equal(count_fds(), before);
}

static void a_file_that_shrank_is_an_error_when_copied(void **state)
{
    (void)state;
    write_rows(5000, 3, 0);
    source *s = open_good(path, -1);
    assert_int_equal(truncate(path, 1000), 0);
    int32_t scratch[30];
    const void *rows;
    bool in_place;
    dpi_error error;
    assert_int_equal(source_rows_at(s, 4000, 10, scratch, true, &rows, &in_place, &error), DPI_E_IO);
    assert_non_null(strstr(error.message, "in.npy"));
    source_close(s);
}

/* A file that ends anywhere, header or data, is refused; only the whole one is read. */
static void a_file_cut_anywhere(void **state)
{
    (void)state;
    write_rows(9, 3, 0);
    int fd = open(path, O_RDWR | O_CLOEXEC), before = count_fds();
    off_t whole = lseek(fd, 0, SEEK_END);
    assert_int_equal(whole, 128 + 9 * 12);
    for (off_t size = whole + 5; size >= 0; size--) { /* what follows the data is not looked at */
        assert_int_equal(ftruncate(fd, size), 0);
        source *s;
        dpi_error error = {0};
        dpi_status status = source_open(path, fd, &s, &error);
        if (status != (size < whole ? DPI_E_DATA : DPI_OK) || (status && !strstr(error.message, "cut short")))
            fail_msg("%lld bytes: %s", (long long)size, error.message);
        if (size >= 128 && size < whole) {
            char held[64];
            snprintf(held, sizeof held, "%lld of 108 bytes", (long long)size - 128);
            assert_non_null(strstr(error.message, held));
        }
        source_close(s);
    }
    assert_int_equal(count_fds(), before);
    close(fd);
}

static void no_rows(void **state)
{
    (void)state;
    write_rows(0, 3, 0);
    source *s = open_good(path, -1), *none = open_good("random:3:uint8:0", -1);
    const void *rows;
    bool in_place;
    assert_int_equal(source_rows(s), 0);
    assert_int_equal(source_rows_at(s, 0, 0, NULL, false, &rows, &in_place, NULL), DPI_OK);
    assert_int_equal(source_rows_at(s, 0, 0, NULL, true, &rows, &in_place, NULL), DPI_OK);
    assert_int_equal(source_rows_at(none, 0, 0, NULL, false, &rows, &in_place, NULL), DPI_OK);
    source_will_need(s, 0, 1);
    source_close(s);
    source_close(none);
}

static void links_yes_devices_no(void **state)
{
    (void)state;
    char name[128];
    snprintf(name, sizeof name, "%s/link.npy", folder);
    write_rows(4, 3, 0);
    assert_int_equal(symlink(path, name), 0);
    source *s = open_good(name, -1);
    assert_int_equal(source_rows(s), 4);
    source_close(s);
    unlink(name);
    static const char *const no[] = {"/dev/zero", "/dev/null", "/proc/self", "/nonexistent"};
    for (size_t i = 0; i < sizeof no / sizeof no[0]; i++) {
        dpi_error error = {0};
        assert_int_equal(symlink(no[i], name), 0);
        assert_int_equal(source_open(name, -1, &s, &error), DPI_E_DATA);
        assert_non_null(strstr(error.message, name));
        unlink(name);
    }
}

/* Row 2^40 - 1 is there at once, and every dtype comes out as the same bytes however it is asked for. */
static void far_random_rows(void **state)
{
    (void)state;
#define X(dtype, number, bytes, text) text,
    static const char *const names[] = {DPI_DTYPE_LIST(X)};
#undef X
    for (size_t d = 0; d < sizeof names / sizeof names[0]; d++) {
        char spec[80];
        snprintf(spec, sizeof spec, "random:5:%s:1099511627776:18446744073709551615", names[d]);
        source *s = open_good(spec, -1);
        size_t row = 5 * dpi_dtype_size(source_port(s)->dtype);
        uint64_t last = source_rows(s) - 1;
        assert_int_equal(last, (1ull << 40) - 1);
        unsigned char three[3 * 40], one[40];
        const void *rows;
        bool in_place;
        source_rows_at(s, last - 2, 3, three, false, &rows, &in_place, NULL);
        for (uint64_t r = 0; r < 3; r++) {
            source_rows_at(s, last - 2 + r, 1, one, r & 1, &rows, &in_place, NULL);
            assert_memory_equal(one, three + r * row, row);
        }
        source_close(s);
    }
}

static void random_rows(void **state)
{
    (void)state;
    source *a = open_good("random:3x2:float32:1000:9", -1), *b = open_good("random:3x2:float32:1000:9", -1),
           *c = open_good("random:3x2:float32:1000", -1), *row = open_good("random::int64:5", -1);
    assert_int_equal(source_rows(a), 1000);
    assert_int_equal(source_port(a)->rank, 3);
    assert_int_equal(source_port(row)->rank, 1);
    assert_int_equal(source_fd(a), -1);
    assert_false(source_is_mapped(a));
    const void *start;
    size_t bytes;
    assert_false(source_mapping(a, &start, &bytes));
    source_will_need(a, 0, 10);
    float x[60], y[60], z[60];
    const void *rows;
    bool in_place;
    assert_int_equal(source_rows_at(a, 500, 10, x, false, &rows, &in_place, NULL), DPI_OK);
    assert_ptr_equal(rows, x);
    assert_false(in_place);
    for (uint64_t r = 0; r < 10; r++)
        source_rows_at(b, 509 - r, 1, y + 54 - r * 6, false, &rows, &in_place, NULL);
    source_rows_at(c, 500, 10, z, false, &rows, &in_place, NULL);
    assert_memory_equal(x, y, sizeof x);
    assert_memory_not_equal(x, z, sizeof x);
    source_close(a);
    source_close(b);
    source_close(c);
    source_close(row);
}

static void bad_specs(void **state)
{
    (void)state;
    static const char *const specs[] = {"random:",
                                        "random:3",
                                        "random:3:float32",
                                        "random:3:float32:",
                                        "random:3:float32:-1",
                                        "random:3:float32:1:2:3",
                                        "random:3:float32:1:x",
                                        "random:0:float32:1",
                                        "random:3x:float32:1",
                                        "random:3:f4:1",
                                        "random:3:float32:1099511627777",
                                        "random:2147483648x2147483648x2147483648:float64:1",
                                        "",
                                        "x",
                                        ".npy",
                                        "a.csv",
                                        "/nonexistent/x.npy",
                                        "random"};
    int before = count_fds();
    for (size_t i = 0; i < sizeof specs / sizeof specs[0]; i++) {
        source *s = (source *)(uintptr_t)1;
        dpi_error error = {0};
        if (source_open(specs[i], -1, &s, &error) != DPI_E_DATA || s || !error.message[0])
            fail_msg("\"%s\": %s", specs[i], error.message);
        assert_non_null(strstr(error.message, specs[i]));
    }
    source *s;
    dpi_error error;
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0); /* a folder, a pipe: not opened for ever */
    assert_int_equal(source_open(path, -1, &s, &error), DPI_E_DATA);
    rmdir(path);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(source_open(path, -1, &s, &error), DPI_E_DATA);
    unlink(path);
    FILE *f = fopen(path, "we");
    fclose(f);
    assert_int_equal(source_open(path, -1, &s, &error), DPI_E_DATA); /* empty */
    f = fopen(path, "we");
    char header[256];
    size_t length = npy_format(DPI_F64, NULL, 0, header, sizeof header);
    fwrite(header, 1, length, f);
    fwrite(header, 1, 8, f);
    fclose(f);
    assert_int_equal(source_open(path, -1, &s, &error), DPI_E_DATA); /* no row axis */
    assert_non_null(strstr(error.message, "single value"));
    f = fopen(path, "we");
    length = npy_format(DPI_F64, (int64_t[]){1ll << 50, 100}, 2, header, sizeof header);
    fwrite(header, 1, length, f);
    fclose(f);
    assert_int_equal(source_open(path, -1, &s, &error), DPI_E_DATA); /* claims more than it has */
    assert_non_null(strstr(error.message, "cut short"));
    assert_int_equal(count_fds(), before);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(npy_rows_by_every_way),
        cmocka_unit_test(by_descriptor),
        cmocka_unit_test(a_file_that_shrank_is_an_error_when_copied),
        cmocka_unit_test(a_file_cut_anywhere),
        cmocka_unit_test(no_rows),
        cmocka_unit_test(links_yes_devices_no),
        cmocka_unit_test(random_rows),
        cmocka_unit_test(far_random_rows),
        cmocka_unit_test(bad_specs),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
