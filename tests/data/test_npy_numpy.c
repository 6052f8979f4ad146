/* .npy files of numpy's own making are read, and ours are read by numpy: numpy_files.py is the other half. */
#include "data/sink.h"
#include "data/source.h"

#include <dirent.h>
#include <setjmp.h>
#include <spawn.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/dpi-test-numpy-XXXXXX";

#define X(dtype, number, bytes, text) {dtype, text},
static const struct {
    dpi_dtype dtype;
    const char *name;
} dtypes[] = {DPI_DTYPE_LIST(X)};
#undef X
#define DTYPES (sizeof dtypes / sizeof dtypes[0])

/* Exit code of `python numpy_files.py what folder`. */
static int run_script(const char *what)
{
    const char *python = getenv("DPI_PYTHON"), *src = getenv("DPI_SRC");
    if (!python || !src)
        return 77;
    char script[512];
    snprintf(script, sizeof script, "%s/tests/data/numpy_files.py", src);
    char *argv[] = {(char *)(uintptr_t)python, (char *)(uintptr_t) "-B", script, (char *)(uintptr_t)what, folder, NULL};
    pid_t pid;
    int how = 0;
    if (posix_spawnp(&pid, python, NULL, NULL, argv, environ) != 0 || waitpid(pid, &how, 0) != pid)
        return 77;
    return WIFEXITED(how) ? WEXITSTATUS(how) : -1;
}

static void remove_folder(void)
{
    DIR *d = opendir(folder);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.')
            unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
    rmdir(folder);
}

/* What numpy_files.py says element i is. */
static double value_of(dpi_dtype dtype, size_t i)
{
    bool is_unsigned = dtype == DPI_U8 || dtype == DPI_U16 || dtype == DPI_U32 || dtype == DPI_U64;
    return dtype == DPI_BOOL ? (double)(i % 2) : is_unsigned ? (double)i : (double)i - 3;
}

static void every_dtype_and_version_is_read(void **state)
{
    (void)state;
    for (size_t d = 0; d < DTYPES; d++)
        for (int version = 1; version <= 3 && dtypes[d].dtype != DPI_BF16; version++) {
            char path[128];
            snprintf(path, sizeof path, "%s/%s-%d.npy", folder, dtypes[d].name, version);
            source *s;
            dpi_error error;
            if (source_open(path, -1, &s, &error))
                fail_msg("%s", error.message);
            assert_int_equal(source_port(s)->dtype, dtypes[d].dtype);
            assert_int_equal(source_port(s)->rank, 3);
            assert_memory_equal(source_port(s)->shape, ((int64_t[]){3, 2, 5}), 24);
            assert_true(source_is_mapped(s)); /* numpy aligns its data */
            const void *rows;
            bool in_place;
            assert_int_equal(source_rows_at(s, 0, 3, NULL, false, &rows, &in_place, &error), DPI_OK);
            for (size_t i = 0; i < 30; i++)
                assert_true(dtype_get(dtypes[d].dtype, rows, i) == value_of(dtypes[d].dtype, i));
            source_close(s);
        }
}

static void kinds_of_arrays(void **state)
{
    (void)state;
    int good = 0, bad = 0;
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        char path[400];
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        bool is_good = strncmp(e->d_name, "good-", 5) == 0, is_bad = strncmp(e->d_name, "bad-", 4) == 0;
        if (!is_good && !is_bad)
            continue;
        source *s;
        dpi_error error = {0};
        dpi_status status = source_open(path, -1, &s, &error);
        if (status != (is_good ? DPI_OK : DPI_E_DATA) || (is_bad && !strstr(error.message, path)))
            fail_msg("%s: %s \"%s\"", path, dpi_status_name(status), error.message);
        source_close(s);
        good += is_good;
        bad += is_bad;
    }
    closedir(d);
    assert_int_equal(good, 7);
    assert_int_equal(bad, 12);
}

static void write_own(const char *name, const port *p)
{
    char path[128];
    snprintf(path, sizeof path, "%s/own-%s.npy", folder, name);
    sink_options o = {.output = p, .rows = (uint64_t)p->shape[0]};
    sink *s;
    dpi_error error;
    if (sink_create(path, &o, &s, &error))
        fail_msg("%s", error.message);
    size_t elements, size = dpi_dtype_size(p->dtype);
    assert_true(shape_elements(p->shape, 0, p->rank, &elements));
    for (size_t i = 0; i < elements; i++) {
        unsigned char element[8];
        dtype_set(p->dtype, element, 0, value_of(p->dtype, i));
        assert_int_equal(pwrite(sink_fd(s), element, size, (off_t)(sink_data_offset(s) + i * size)), size);
    }
    if (sink_finish(s, &error))
        fail_msg("%s", error.message);
    sink_close(s, false);
}

static void numpy_reads_ours(void **state)
{
    (void)state;
    for (size_t d = 0; d < DTYPES; d++) {
        port p = {.dtype = dtypes[d].dtype, .rank = 3, .shape = {3, 2, 5}};
        write_own(dtypes[d].name, &p);
    }
    for (int rank = 1; rank <= DPI_MAX_RANK; rank++) {
        port p = {.dtype = DPI_I64, .rank = rank, .shape = {4, 1, 2, 1, 2, 1, 2, 1}};
        char name[16];
        snprintf(name, sizeof name, "rank%d", rank);
        write_own(name, &p);
    }
    assert_int_equal(run_script("check"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_dtype_and_version_is_read),
        cmocka_unit_test(kinds_of_arrays),
        cmocka_unit_test(numpy_reads_ours),
    };
    if (!mkdtemp(folder))
        return 1;
    int written = run_script("write");
    int bad = written ? written : cmocka_run_group_tests(tests, NULL, NULL);
    remove_folder();
    return bad;
}
