/* Sinks when the system says no: full disks, limits, folders that cannot be written, another run that ends at the wrong
 * moment. Some system calls are replaced here, to fail or to let something happen just before them. */
#include "data/sink.h"

#include "base/file.h"
#include "data/npy.h"
#include "folder_kit.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/dpi-test-sink-faults-XXXXXX";
static char npy[64], csv[64], part[80];
static const port scores = {.name = "scores", .dtype = DPI_F32, .rank = 2, .shape = {-1, 4}};

/* ---- system calls in our hands ---------------------------------------------------------------------------------- */

static int rename_error;                                  /* of renameat2 */
static int fallocate_errors[4], flock_error, fsync_error; /* 0: the real call; those of fallocate in turn */
static size_t fallocate_calls;
static void (*before_flock)(void); /* runs once */

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    int number = fallocate_calls < 4 ? fallocate_errors[fallocate_calls] : 0;
    fallocate_calls++;
    if (!number)
        return (int)syscall(SYS_fallocate, fd, mode, offset, length);
    errno = number;
    return -1;
}

int flock(int fd, int operation)
{
    void (*then)(void) = before_flock;
    before_flock = NULL;
    if (then)
        then();
    errno = flock_error;
    return flock_error ? -1 : (int)syscall(SYS_flock, fd, operation);
}

int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags)
{
    errno = rename_error;
    return rename_error ? -1 : (int)syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
}

int fsync(int fd)
{
    errno = fsync_error;
    return fsync_error ? -1 : (int)syscall(SYS_fsync, fd);
}

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

static int make_folder(void **state)
{
    (void)state;
    if (folder_make(folder))
        return -1;
    snprintf(npy, sizeof npy, "%s/y.npy", folder);
    snprintf(csv, sizeof csv, "%s/y.csv", folder);
    snprintf(part, sizeof part, "%s.part", npy);
    return 0;
}

static int start_clean(void **state)
{
    (void)state;
    folder_empty(folder);
    memset(fallocate_errors, 0, sizeof fallocate_errors);
    fallocate_calls = 0;
    flock_error = fsync_error = rename_error = 0;
    before_flock = NULL;
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    return folder_remove(folder);
}

static int count_files(void) { return folder_count(folder); }

static sink *create(const char *spec, const sink_options *options)
{
    sink *s;
    dpi_error error;
    if (sink_create(spec, options, &s, &error))
        fail_msg("%s", error.message);
    return s;
}

static void finish(sink *s)
{
    dpi_error error;
    if (sink_finish(s, &error))
        fail_msg("%s", error.message);
    sink_close(s, false);
}

/* Writes CSV records until it fails or `bytes` are through. */
static dpi_status write_much_csv(sink *s, size_t bytes, dpi_error *error)
{
    static sink_top records[1000];
    dpi_status status = DPI_OK;
    for (uint64_t row = 0; !status && row * 8 < bytes; row += 1000)
        status = sink_write_records(s, row, records, 1000, error);
    return status;
}

/* Runs `what` in a process of its own; it leaves with 0 (good), 77 (cannot be tried here) or the line that failed. */
static void apart(int (*what)(void))
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(what());
    int how = 0;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    if (!WIFEXITED(how))
        fail_msg("killed by signal %d", WTERMSIG(how));
    if (WEXITSTATUS(how) == 77)
        skip();
    if (WEXITSTATUS(how))
        fail_msg("the check of line ...%03d (modulo 256) failed", WEXITSTATUS(how));
}

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                            \
            return __LINE__ % 256 ? __LINE__ % 256 : 1;                                                                \
        }                                                                                                              \
    } while (0)

/* ---- no room ---------------------------------------------------------------------------------------------------- */

static int on_a_tiny_disk(void)
{
    sink_options o = {.output = &scores, .rows = 100000};
    dpi_error error = {0};
    sink *s = NULL;
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("tmpfs", folder, "tmpfs", 0, "size=256k"))
        return 77;
    CHECK(sink_create(npy, &o, &s, &error) == DPI_E_IO && !s);
    CHECK(strstr(error.message, npy) && strstr(error.message, "1600128") && strstr(error.message, "262144"));
    CHECK(count_files() == 0);
    fallocate_errors[0] = EOPNOTSUPP; /* a file system without it: the free space decides */
    fallocate_calls = 0;
    CHECK(sink_create(npy, &o, &s, &error) == DPI_E_IO && strstr(error.message, "262144"));
    CHECK(count_files() == 0);
    CHECK(sink_create(csv, &o, &s, &error) == DPI_OK);
    CHECK(write_much_csv(s, 4 << 20, &error) == DPI_E_IO);
    CHECK(strstr(error.message, csv) && strstr(error.message, strerror(ENOSPC)));
    sink_close(s, false);
    CHECK(count_files() == 0);
    o.rows = 1000; /* the disk is free again */
    CHECK(sink_create(npy, &o, &s, &error) == DPI_OK);
    CHECK(sink_finish(s, &error) == DPI_OK);
    sink_close(s, false);
    CHECK(count_files() == 1);
    return 0;
}

static int under_a_size_limit(void)
{
    struct rlimit small = {100000, 100000}, no_core = {0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    CHECK(setrlimit(RLIMIT_FSIZE, &small) == 0); /* the kernel's own answer would be SIGXFSZ */
    sink_options o = {.output = &scores, .rows = 100000};
    dpi_error error = {0};
    sink *s = NULL;
    CHECK(sink_create(npy, &o, &s, &error) == DPI_E_IO && !s);
    CHECK(strstr(error.message, npy) && strstr(error.message, "1600128") && strstr(error.message, "100000"));
    CHECK(count_files() == 0);
    CHECK(sink_create(csv, &o, &s, &error) == DPI_OK);
    CHECK(write_much_csv(s, 4 << 20, &error) == DPI_E_IO);
    CHECK(strstr(error.message, csv) && strstr(error.message, "100000"));
    sink_close(s, false);
    CHECK(count_files() == 0);
    o.rows = 6242; /* 128 + 6242 * 16 = 100000 bytes: just what is allowed */
    CHECK(sink_create(npy, &o, &s, &error) == DPI_OK);
    sink_close(s, false);
    o.rows++;
    CHECK(sink_create(npy, &o, &s, &error) == DPI_E_IO);
    return 0;
}

static void a_full_disk(void **state)
{
    (void)state;
    apart(on_a_tiny_disk);
}

static void a_size_limit(void **state)
{
    (void)state;
    apart(under_a_size_limit);
}

static void file_systems_without_fallocate(void **state)
{
    (void)state;
    static const int lacking[] = {EOPNOTSUPP, ENOSYS};
    sink_options o = {.output = &scores, .rows = 1000};
    for (int i = 0; i < 2; i++) {
        start_clean(NULL);
        fallocate_errors[0] = lacking[i];
        sink *s = create(npy, &o);
        struct stat info;
        assert_int_equal(fstat(sink_fd(s), &info), 0);
        assert_int_equal(info.st_size, 16128);
        finish(s);
    }
    start_clean(NULL);
    fallocate_errors[0] = fallocate_errors[1] = EINTR; /* the caller's program has timers */
    finish(create(npy, &o));
    static const int fatal[] = {ENOSPC, EDQUOT, EFBIG, EIO};
    for (int i = 0; i < 4; i++) {
        start_clean(NULL);
        fallocate_errors[0] = fatal[i];
        sink *s;
        dpi_error error;
        assert_int_equal(sink_create(npy, &o, &s, &error), DPI_E_IO);
        assert_non_null(strstr(error.message, "16128"));
        assert_non_null(strstr(error.message, strerror(fatal[i])));
        assert_int_equal(count_files(), 0);
    }
}

static void what_did_not_reach_the_disk_is_absent(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 10};
    dpi_error error;
    for (int kind = 0; kind < 2; kind++) {
        sink *s = create(kind ? csv : npy, &o);
        fsync_error = EIO;
        assert_int_equal(sink_finish(s, &error), DPI_E_IO);
        assert_non_null(strstr(error.message, strerror(EIO)));
        sink_close(s, false);
        assert_int_equal(count_files(), 0);
        fsync_error = 0;
    }
}

/* ---- places that cannot be written ------------------------------------------------------------------------------ */

static void places_that_cannot_be_written(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 10};
    char below[80], name[400];
    snprintf(below, sizeof below, "%s/y.npy", npy); /* a file is no folder */
    int fd = open(npy, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    close(fd);
    memset(name, 'n', sizeof name);
    snprintf(name + 300, 8, ".npy");
    const char *const places[] = {below, name, "/proc/self/y.csv", "/sys/y.npy"};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        sink *s;
        dpi_error error = {0};
        if (sink_create(places[i], &o, &s, &error) != DPI_E_DATA || !strstr(error.message, places[i]))
            fail_msg("%s: %s", places[i], error.message);
    }
    assert_int_equal(count_files(), 1);
}

static void a_part_that_is_no_file(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 10};
    sink *s;
    dpi_error error;
    assert_int_equal(mkfifo(part, 0600), 0);
    assert_int_equal(sink_create(npy, &o, &s, &error), DPI_E_DATA);
    assert_non_null(strstr(error.message, part));
    assert_int_equal(count_files(), 1); /* it is not ours to remove */
    unlink(part);
    assert_int_equal(mkdir(part, 0700), 0);
    assert_int_equal(sink_create(npy, &o, &s, &error), DPI_E_DATA);
    assert_int_equal(count_files(), 1);
    rmdir(part);
}

/* ---- names ------------------------------------------------------------------------------------------------------- */

static void write_text(const char *name, const char *text)
{
    FILE *file = fopen(name, "we");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
}

static void assert_text(const char *name, const char *text)
{
    void *data;
    size_t bytes;
    dpi_error error;
    assert_int_equal(file_read(name, 1000, &data, &bytes, &error), DPI_OK);
    assert_string_equal(data, text);
    free(data);
}

/* Looked for at the beginning, and again at the rename, by either way of renaming. */
static void nothing_is_overwritten(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 2, .no_overwrite = true};
    static const int ways[] = {0, EINVAL, ENOSYS};
    for (int i = 0; i < 3; i++) {
        rename_error = ways[i];
        dpi_error error;
        sink *s = create(npy, &o);
        write_text(npy, "somebody else's");
        assert_int_equal(sink_finish(s, &error), DPI_E_IO);
        assert_non_null(strstr(error.message, npy));
        assert_non_null(strstr(error.message, "exists already"));
        assert_text(npy, "somebody else's");
        assert_int_equal(count_files(), 2);
        assert_int_equal(unlink(npy), 0);
        finish(s);
        assert_int_equal(count_files(), 1);
        assert_int_equal(sink_create(npy, &o, &s, &error), DPI_E_DATA);
        start_clean(NULL);
    }
}

/* A run was killed between the link and the unlink: FILE.part is FILE, and emptying it would empty that. */
static void a_part_that_is_the_result(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 2};
    sink *s;
    dpi_error error;
    write_text(npy, "whole");
    assert_int_equal(link(npy, part), 0);
    s = create(npy, &o);
    assert_text(npy, "whole");
    sink_close(s, false);
    assert_text(npy, "whole");
    assert_int_equal(count_files(), 1);
    file_mark mark; /* the same where a journal tells of it */
    assert_true(file_mark_of(-1, npy, &mark));
    assert_int_equal(link(npy, part), 0);
    assert_int_equal(sink_open(npy, &o, &s, &error), DPI_OK);
    assert_int_equal(sink_adopt(s, &mark, &error), DPI_OK);
    assert_true(sink_finished(s));
    sink_close(s, false);
    assert_int_equal(count_files(), 1);
    write_text(part, ""); /* left by a run that was killed before it had adopted */
    assert_int_equal(sink_open(npy, &o, &s, &error), DPI_OK);
    assert_int_equal(sink_adopt(s, &mark, &error), DPI_OK);
    assert_true(sink_finished(s));
    sink_close(s, false);
    assert_int_equal(count_files(), 1);
}

/* What the kernel could not write it forgets: the next sync succeeds, and says nothing. */
static void a_sync_that_failed_once(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 2};
    dpi_error error;
    uint64_t text;
    sink *s = create(npy, &o);
    fsync_error = EIO;
    assert_int_equal(sink_finish(s, &error), DPI_E_IO);
    fsync_error = 0;
    assert_int_equal(sink_sync(s, &text, &error), DPI_E_IO);
    assert_non_null(strstr(error.message, part));
    assert_int_equal(sink_finish(s, &error), DPI_E_IO);
    sink_close(s, false);
    assert_int_equal(count_files(), 0);
}

/* ---- other runs ------------------------------------------------------------------------------------------------- */

static sink *other;

static void other_finishes(void)
{
    dpi_error error;
    assert_int_equal(sink_finish(other, &error), DPI_OK);
    sink_close(other, false);
}

static void other_gives_up(void) { sink_close(other, false); }

/* Between our opening of FILE.part and our lock on it, the run that held it ends: what we hold is its result by then,
 * or a file without a name. */
static void the_other_run_ends_meanwhile(void **state)
{
    (void)state;
    sink_options o = {.output = &scores, .rows = 2};
    static const float theirs[2][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}};
    for (int gives_up = 0; gives_up < 2; gives_up++) {
        other = create(npy, &o);
        assert_int_equal(pwrite(sink_fd(other), theirs, sizeof theirs, (off_t)sink_data_offset(other)), sizeof theirs);
        before_flock = gives_up ? other_gives_up : other_finishes;
        sink *s = create(npy, &o);
        npy_header h;
        void *data;
        dpi_error error;
        if (!gives_up) {
            if (npy_load(npy, 1000, &h, &data, &error))
                fail_msg("the result of the other run: %s", error.message);
            assert_memory_equal(data, theirs, sizeof theirs);
            free(data);
        }
        finish(s); /* ours has its name still */
        assert_int_equal(count_files(), 1);
        assert_int_equal(npy_load(npy, 1000, &h, &data, &error), DPI_OK);
        assert_memory_not_equal(data, theirs, sizeof theirs);
        free(data);
        unlink(npy);
    }
}

static void file_systems_without_locks(void **state)
{
    (void)state;
    static const int lacking[] = {ENOSYS, EOPNOTSUPP, ENOLCK};
    sink_options o = {.output = &scores, .rows = 2};
    for (int i = 0; i < 3; i++) {
        flock_error = lacking[i];
        finish(create(npy, &o));
        assert_int_equal(count_files(), 1);
    }
}

#define SINK_TEST(test) cmocka_unit_test_setup_teardown(test, start_clean, start_clean)

int main(void)
{
    const struct CMUnitTest tests[] = {
        SINK_TEST(a_full_disk),
        SINK_TEST(a_size_limit),
        SINK_TEST(file_systems_without_fallocate),
        SINK_TEST(what_did_not_reach_the_disk_is_absent),
        SINK_TEST(places_that_cannot_be_written),
        SINK_TEST(a_part_that_is_no_file),
        SINK_TEST(nothing_is_overwritten),
        SINK_TEST(a_part_that_is_the_result),
        SINK_TEST(a_sync_that_failed_once),
        SINK_TEST(the_other_run_ends_meanwhile),
        SINK_TEST(file_systems_without_locks),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
