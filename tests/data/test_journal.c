/* Journals: what was written is read; torn at every length or changed at any byte, never a range that was not. */
#include "data/journal.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char path[] = "/tmp/dpi-test-journal-XXXXXX";
static const char facts[] = "the model\0m.sim\0the batch\0"
                            "64";

static journal *reopen(void)
{
    journal *j;
    dpi_error error;
    if (journal_open(path, &j, &error))
        fail_msg("%s", error.message);
    return j;
}

static void add(journal *j, uint64_t begin, uint64_t end)
{
    row_range one = {begin, end};
    row_set set = {.items = &one, .count = 1};
    uint64_t text[] = {0, end};
    dpi_error error;
    assert_int_equal(journal_add(j, &set, text, 2, &error), DPI_OK);
}

static void write_journal_with(bool left_out)
{
    char why[] = "it kills";
    const journal_bad bad[] = {{.row = 100, .reason = why}, {.row = 3, .reason = why}};
    dpi_error error;
    unlink(path);
    journal *j = reopen();
    assert_null(journal_begun(j));
    journal_begin begin = {.run = "abc", .part_inode = 7, .rows = 1000, .facts = facts, .facts_bytes = sizeof facts};
    assert_int_equal(journal_create(j, &begin, &error), DPI_OK);
    add(j, 0, 64);
    assert_int_equal(journal_add_bad(j, bad, left_out ? 2 : 0, &error), DPI_OK);
    add(j, 128, 192);
    add(j, 64, 128);
    journal_close(j);
}

static void write_journal(void) { write_journal_with(false); }

static size_t load(unsigned char *bytes, size_t most)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = read(fd, bytes, most);
    close(fd);
    assert_true(got > 0);
    return (size_t)got;
}

static void store(const unsigned char *bytes, size_t count)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, bytes, count), count);
    close(fd);
}

/* Only the states that were written once. */
static void assert_a_true_state(const journal *j)
{
    const row_set *done = journal_done(j);
    const row_range *r = done->items;
    size_t bad_count;
    const journal_bad *bad = journal_bad_rows(j, &bad_count);
    for (size_t i = 0; i < bad_count; i++)
        assert_true((bad[i].row == 3 || bad[i].row == 100) && row_set_has(done, bad[i].row) &&
                    strcmp(bad[i].reason, "it kills") == 0);
    if (!done->count)
        return;
    assert_non_null(journal_begun(j));
    bool good = (done->count == 1 && r[0].begin == 0 && (r[0].end == 64 || r[0].end == 192)) ||
                (done->count == 2 && r[0].begin == 0 && r[0].end == 64 && r[1].begin == 128 && r[1].end == 192);
    assert_true(good);
}

static void what_was_written_is_read(void **state)
{
    (void)state;
    write_journal();
    journal *j = reopen();
    dpi_error error;
    const journal_begin *b = journal_begun(j);
    assert_non_null(b);
    assert_int_equal(b->part_inode, 7);
    assert_int_equal(b->rows, 1000);
    assert_string_equal(journal_fact_find(b->facts, b->facts_bytes, "the batch"), "64");
    assert_int_equal(journal_done(j)->count, 1);
    assert_int_equal(row_set_rows(journal_done(j)), 192);
    assert_int_equal(journal_text_bytes(j, 1), 128);
    journal *second;
    assert_int_equal(journal_open(path, &second, &error), DPI_E_DATA); /* locked */
    assert_int_equal(journal_go_on(j, &error), DPI_OK);
    add(j, 192, 1000);
    file_mark mark = {.inode = 7, .bytes = 99};
    assert_int_equal(journal_seal(j, &mark, 1, &error), DPI_OK);
    journal_close(j);
    j = reopen();
    size_t count;
    assert_non_null(journal_sealed(j, &count));
    assert_int_equal(count, 1);
    assert_int_equal(row_set_rows(journal_done(j)), 1000);
    assert_int_equal(journal_remove(j, true, &error), DPI_OK);
    assert_int_equal(access(path, F_OK), -1);
    journal_close(j);
}

/* A process that is just being started has copies of all descriptors until it is the worker. */
static void a_closed_one_is_nobodys(void **state)
{
    (void)state;
    write_journal();
    journal *j = reopen();
    pid_t copy = fork();
    if (copy == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;)
            pause();
    }
    assert_true(copy > 0);
    journal_close(j);
    j = reopen();
    assert_non_null(j);
    journal_close(j);
    kill(copy, SIGKILL);
    assert_int_equal(waitpid(copy, NULL, 0), copy);
}

static void rows_that_were_left_out(void **state)
{
    (void)state;
    char why[] = "it kills", again[] = "it killed again", other[] = "", late[] = "not finished yet";
    const journal_bad first[] = {{.row = 130, .reason = why}, {.row = 5, .reason = other}};
    const journal_bad second[] = {{.row = 130, .reason = again}, {.row = 999, .reason = late}};
    dpi_error error;
    size_t count;
    write_journal(); /* finished: [0, 192) */
    journal *j = reopen();
    assert_int_equal(journal_go_on(j, &error), DPI_OK);
    assert_int_equal(journal_add_bad(j, first, 2, &error), DPI_OK);
    assert_int_equal(journal_add_bad(j, second, 2, &error), DPI_OK);
    assert_int_equal(journal_add_bad(j, NULL, 0, &error), DPI_OK);
    journal_close(j);
    j = reopen();
    const journal_bad *bad = journal_bad_rows(j, &count);
    assert_int_equal(count, 2);
    assert_int_equal(bad[0].row, 5);
    assert_string_equal(bad[0].reason, "");
    assert_int_equal(bad[1].row, 130);
    assert_true(strcmp(bad[1].reason, why) == 0 || strcmp(bad[1].reason, again) == 0);
    assert_int_equal(row_set_rows(journal_done(j)), 192);
    assert_int_equal(journal_go_on(j, &error), DPI_OK);
    add(j, 192, 1000);
    journal_close(j);
    j = reopen();
    bad = journal_bad_rows(j, &count);
    assert_int_equal(count, 3);
    assert_string_equal(bad[2].reason, late);
    journal_close(j);
}

/* More than one record holds. */
static void very_many_rows_that_were_left_out(void **state)
{
    (void)state;
    enum { ROWS = 1000 };
    char reason[4000];
    journal_bad bad[ROWS];
    dpi_error error;
    size_t count;
    memset(reason, 'r', sizeof reason - 1);
    reason[sizeof reason - 1] = 0;
    for (uint64_t i = 0; i < ROWS; i++)
        bad[i] = (journal_bad){.row = i, .reason = reason};
    write_journal();
    journal *j = reopen();
    assert_int_equal(journal_go_on(j, &error), DPI_OK);
    assert_int_equal(journal_add_bad(j, bad, ROWS, &error), DPI_OK);
    add(j, 0, 1000);
    journal_close(j);
    j = reopen();
    const journal_bad *read = journal_bad_rows(j, &count);
    assert_int_equal(count, ROWS);
    assert_string_equal(read[ROWS - 1].reason, reason);
    journal_close(j);
}

/* A journal that could not be made is ours to remove, and nothing to rely upon. */
static void one_that_cannot_be_made(void **state)
{
    (void)state;
    char deep[80];
    journal *j;
    dpi_error error;
    journal_begin begin = {.run = "abc", .rows = 1, .facts = facts, .facts_bytes = sizeof facts};
    snprintf(deep, sizeof deep, "%s.none/journal", path);
    assert_int_equal(journal_open(deep, &j, &error), DPI_OK);
    assert_int_equal(journal_create(j, &begin, &error), DPI_E_IO);
    assert_false(journal_is_ours(j));
    assert_false(journal_is_written(j));
    journal_close(j);
    unlink(path);
    j = reopen();
    struct rlimit old, tight;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    tight = (struct rlimit){.rlim_cur = 20, .rlim_max = old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
    dpi_status status = journal_create(j, &begin, &error);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(status, DPI_E_IO);
    assert_true(journal_is_ours(j));
    assert_false(journal_is_written(j));
    assert_int_equal(journal_remove(j, true, &error), DPI_OK);
    assert_false(journal_is_ours(j));
    journal_close(j);
}

static void torn_anywhere(void **state)
{
    (void)state;
    unsigned char bytes[4096];
    write_journal_with(true);
    size_t size = load(bytes, sizeof bytes);
    for (size_t length = 0; length < size; length++) {
        store(bytes, length);
        journal *j = reopen();
        assert_a_true_state(j);
        assert_true(row_set_rows(journal_done(j)) < 192);
        journal_close(j);
    }
}

static void changed_anywhere(void **state)
{
    (void)state;
    unsigned char bytes[4096];
    write_journal_with(true);
    size_t size = load(bytes, sizeof bytes);
    for (size_t i = 0; i < size; i++)
        for (int bit = 0; bit < 8; bit++) {
            journal *j;
            dpi_error error;
            bytes[i] ^= (unsigned char)(1 << bit);
            store(bytes, size);
            bytes[i] ^= (unsigned char)(1 << bit);
            if (journal_open(path, &j, &error)) { /* not ours any more */
                assert_true(i < 16);
                continue;
            }
            assert_a_true_state(j);
            assert_true(row_set_rows(journal_done(j)) < 192);
            journal_close(j);
        }
}

static void files_of_others_are_refused(void **state)
{
    (void)state;
    journal *j;
    dpi_error error;
    store((const unsigned char *)"dear diary, today", 17);
    assert_int_equal(journal_open(path, &j, &error), DPI_E_DATA);
    assert_null(j);
    assert_int_equal(access(path, F_OK), 0);
}

int main(void)
{
    close(mkstemp(path));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read), cmocka_unit_test(a_closed_one_is_nobodys),
        cmocka_unit_test(rows_that_were_left_out),  cmocka_unit_test(very_many_rows_that_were_left_out),
        cmocka_unit_test(one_that_cannot_be_made),  cmocka_unit_test(torn_anywhere),
        cmocka_unit_test(changed_anywhere),         cmocka_unit_test(files_of_others_are_refused),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return failed;
}
