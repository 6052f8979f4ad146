/* The engine cache: whole entries or none, whoever dies, writes at once, damages files or owns the folder. */
#include "runtime/cache.h"

#include "base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[PATH_MAX]; /* of the current test; made anew for each */

/* ---- a file system without nameless files ----------------------------------------------------------------------- */

static bool lacks_tmpfile;

/* Stands in for libc's in this program. */
int open(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    unsigned mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, unsigned) : 0;
    va_end(arguments);
    if (lacks_tmpfile && (flags & O_TMPFILE) == O_TMPFILE) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

static void remove_tree(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        char inner[2 * PATH_MAX];
        snprintf(inner, sizeof inner, "%s/%s", path, e->d_name);
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (unlink(inner) != 0)
            remove_tree(inner);
    }
    if (d)
        closedir(d);
    rmdir(path);
}

static int make_folder(void **state)
{
    (void)state;
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/dpinfer-cache-XXXXXX", base && *base ? base : "/tmp");
    return mkdtemp(folder) ? 0 : -1;
}

static int drop_folder(void **state)
{
    (void)state;
    lacks_tmpfile = false;
    remove_tree(folder);
    return 0;
}

static void quiet(void *context, dpi_log_level level, const char *line)
{
    (void)level;
    (void)line;
    ++*(int *)context;
}

static int warnings;
static const logger quiet_log = {.sink = quiet, .context = &warnings};

static cache *open_cache(uint64_t max_bytes)
{
    cache *c;
    dpi_error error = {0};
    if (cache_open(folder, max_bytes, &quiet_log, &c, &error))
        fail_msg("%s", error.message);
    return c;
}

static hash128 key_of(uint64_t n) { return (hash128){.low = n, .high = 0xabcdef}; }

/* An engine whose bytes follow from `seed`. */
static void fill(unsigned char *data, size_t bytes, uint64_t seed)
{
    for (size_t i = 0; i < bytes; i++)
        data[i] = (unsigned char)hash_mix64(seed, i / 64);
}

static dpi_status publish(cache *c, uint64_t n, size_t bytes, const char *label)
{
    cache_write *w;
    int fd;
    dpi_error error = {0};
    if (cache_begin(c, key_of(n), &w, &fd, &error))
        fail_msg("%s", error.message);
    unsigned char *data = malloc(bytes + 1);
    fill(data, bytes, n);
    assert_int_equal(write(fd, data, bytes), bytes); /* as a backend does: from the descriptor's place on */
    free(data);
    return cache_commit(w, label, &error);
}

/* Whether the entry is there; fails when it is not what was published. */
static bool is_there(cache *c, uint64_t n)
{
    uint64_t bytes = 0;
    int fd = cache_get(c, key_of(n), &bytes);
    if (fd < 0)
        return false;
    assert_int_equal(lseek(fd, 0, SEEK_CUR) % 4096, 0);
    unsigned char *got = malloc(bytes + 1), *want = malloc(bytes);
    fill(want, bytes, n);
    assert_int_equal(read(fd, got, bytes + 1), bytes);
    assert_memory_equal(got, want, bytes);
    free(got);
    free(want);
    close(fd);
    return true;
}

static void path_of(uint64_t n, const char *suffix, char path[2 * PATH_MAX])
{
    char hex[HASH_HEX_SIZE];
    hash_to_hex(key_of(n), hex);
    snprintf(path, 2 * PATH_MAX, "%s/%s%s", folder, hex, suffix);
}

static size_t count_files(const char *ending)
{
    size_t count = 0;
    DIR *d = opendir(folder);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        size_t length = strlen(e->d_name), end = strlen(ending);
        count += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && length >= end &&
                 strcmp(e->d_name + length - end, ending) == 0;
    }
    closedir(d);
    return count;
}

static void expect_end(pid_t pid)
{
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- entries ---------------------------------------------------------------------------------------------------- */

static void an_entry_comes_back_as_it_was(void **state)
{
    (void)state;
    for (int named = 0; named < 2; named++) {
        lacks_tmpfile = named;
        cache *c = open_cache(0);
        uint64_t first = (uint64_t)named * 10;
        assert_false(is_there(c, first));
        static const size_t sizes[] = {1, 4096, 1 << 20, (3 << 20) + 17};
        for (size_t i = 0; i < 4; i++) {
            assert_int_equal(publish(c, first + i, sizes[i], "model"), DPI_OK);
            assert_true(is_there(c, first + i));
        }
        cache_close(c);
        c = open_cache(0);
        for (size_t i = 0; i < 4; i++)
            assert_true(is_there(c, first + i));
        cache_close(c);
    }
    assert_int_equal(count_files(".engine"), 8);
    assert_int_equal(count_files(""), 8); /* nothing else */
}

static void nothing_is_left_of_an_aborted_or_empty_one(void **state)
{
    (void)state;
    for (int named = 0; named < 2; named++) {
        lacks_tmpfile = named;
        cache *c = open_cache(0);
        cache_write *w;
        int fd;
        dpi_error error = {0};
        assert_int_equal(cache_begin(c, key_of(1), &w, &fd, NULL), DPI_OK);
        assert_int_equal(write(fd, "abc", 3), 3);
        assert_int_equal(count_files(""), named);
        cache_abort(w);
        assert_int_equal(count_files(""), 0);
        assert_int_equal(cache_begin(c, key_of(1), &w, &fd, NULL), DPI_OK);
        assert_int_equal(cache_commit(w, "", &error), DPI_E_IO);
        assert_non_null(strstr(error.message, "empty"));
        assert_int_equal(count_files(""), 0);
        cache_close(c);
    }
}

static void damaged_entries_are_removed(void **state)
{
    (void)state;
    cache *c = open_cache(0);
    char path[2 * PATH_MAX];
    path_of(5, ".engine", path);
    static const struct {
        off_t at, length;
    } damage[] = {{0, -1}, {16, -1}, {24, -1},  {4096, -1}, {4096 + 9999, -1},
                  {0, 0},  {0, 10},  {0, 4096}, {0, 5000},  {0, 20000}};
    for (size_t i = 0; i < sizeof damage / sizeof damage[0]; i++) {
        assert_int_equal(publish(c, 5, 10000, "model"), DPI_OK);
        assert_true(is_there(c, 5));
        if (damage[i].length >= 0)
            assert_int_equal(truncate(path, damage[i].length), 0);
        else {
            int fd = open(path, O_RDWR);
            char byte;
            assert_int_equal(pread(fd, &byte, 1, damage[i].at), 1);
            byte = (char)~byte;
            assert_int_equal(pwrite(fd, &byte, 1, damage[i].at), 1);
            close(fd);
        }
        warnings = 0;
        assert_false(is_there(c, 5));
        assert_int_equal(warnings, 1);
        assert_int_equal(access(path, F_OK), -1);
    }
    /* No regular files at all, under an entry's name. */
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_false(is_there(c, 5));
    assert_int_equal(symlink("/dev/zero", path), 0);
    assert_false(is_there(c, 5));
    unlink(path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_false(is_there(c, 5));
    cache_close(c);
}

static void labels_are_one_line(void **state)
{
    (void)state;
    cache *c = open_cache(0);
    char longest[400];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(publish(c, 1, 10, "a\nb\x1b[31m\tc\x7f"), DPI_OK);
    assert_int_equal(publish(c, 2, 10, longest), DPI_OK);
    cache_entry *entries;
    size_t count;
    assert_int_equal(cache_list(c, &entries, &count, NULL), DPI_OK);
    assert_int_equal(count, 2);
    for (size_t i = 0; i < count; i++) {
        if (entries[i].label[0] == 'a')
            assert_string_equal(entries[i].label, "a?b?[31m?c?");
        else
            assert_int_equal(strlen(entries[i].label), 255);
        assert_int_equal(entries[i].bytes, 4096 + 10);
        assert_true(llabs((long long)entries[i].used_unix_s - time(NULL)) < 100);
        assert_int_equal(strlen(entries[i].key), 32);
    }
    free(entries);
    cache_close(c);
}

static void list_and_clear_keep_to_their_own(void **state)
{
    (void)state;
    cache *c = open_cache(0);
    char path[2 * PATH_MAX];
    assert_int_equal(publish(c, 1, 100, "one"), DPI_OK);
    assert_int_equal(publish(c, 2, 200, "two"), DPI_OK);
    path_of(3, ".engine", path); /* too short for a header: takes room all the same */
    close(open(path, O_CREAT | O_WRONLY, 0600));
    snprintf(path, sizeof path, "%s/notes.engine", folder);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    cache_entry *entries;
    size_t count;
    uint64_t removed;
    assert_int_equal(cache_list(c, &entries, &count, NULL), DPI_OK);
    assert_int_equal(count, 3);
    bool told = false;
    for (size_t i = 0; i < count; i++)
        told |= strcmp(entries[i].label, "(damaged)") == 0 && entries[i].bytes == 0;
    assert_true(told);
    free(entries);
    close(cache_lock(c, key_of(1), NULL, NULL));
    assert_int_equal(cache_clear(c, &removed, NULL), DPI_OK);
    assert_int_equal(removed, 2 * 4096 + 300);
    assert_int_equal(count_files(""), 1);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(cache_clear(c, NULL, NULL), DPI_OK);
    cache_close(c);
}

/* ---- the bound -------------------------------------------------------------------------------------------------- */

/* Makes the entry one that was used `seconds` ago. */
static void age(uint64_t n, int seconds)
{
    char path[2 * PATH_MAX];
    path_of(n, ".engine", path);
    struct timespec times[2] = {{.tv_sec = time(NULL) - seconds}, {.tv_sec = time(NULL) - seconds}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

static void what_was_used_longest_ago_goes_first(void **state)
{
    (void)state;
    cache *c = open_cache(3 * (4096 + 1000) + 100);
    for (uint64_t n = 1; n <= 3; n++) {
        assert_int_equal(publish(c, n, 1000, "m"), DPI_OK);
        age(n, 100 - (int)n);
    }
    assert_true(is_there(c, 1)); /* now the newest */
    assert_int_equal(publish(c, 4, 1000, "m"), DPI_OK);
    assert_int_equal(count_files(".engine"), 3);
    char path[2 * PATH_MAX];
    path_of(2, ".engine", path);
    assert_int_equal(access(path, F_OK), -1);
    assert_true(is_there(c, 1) && is_there(c, 3) && is_there(c, 4));
    cache_close(c);
}

static void the_one_just_published_stays(void **state)
{
    (void)state;
    cache *c = open_cache(6000);
    for (uint64_t n = 1; n < 30; n++) { /* within one second: no clock tells which is newer */
        assert_int_equal(publish(c, n, 1000, "m"), DPI_OK);
        assert_true(is_there(c, n));
        assert_int_equal(count_files(".engine"), 1);
    }
    assert_int_equal(publish(c, 40, 100000, "larger than the bound"), DPI_OK);
    assert_true(is_there(c, 40));
    assert_int_equal(count_files(".engine"), 1);
    cache_close(c);
}

static void an_evicted_entry_stays_readable(void **state)
{
    (void)state;
    cache *c = open_cache(6000);
    unsigned char want[1000], got[1000];
    uint64_t bytes;
    assert_int_equal(publish(c, 1, 1000, "m"), DPI_OK);
    int fd = cache_get(c, key_of(1), &bytes);
    assert_true(fd >= 0);
    assert_int_equal(publish(c, 2, 1000, "m"), DPI_OK);
    assert_false(is_there(c, 1));
    fill(want, sizeof want, 1);
    assert_int_equal(read(fd, got, sizeof got), 1000);
    assert_memory_equal(got, want, sizeof want);
    close(fd);
    cache_close(c);
}

/* ---- several processes ------------------------------------------------------------------------------------------ */

static void many_publish_and_read_at_once(void **state)
{
    (void)state;
    enum { PROCESSES = 4, ROUNDS = 60, KEYS = 5 };
    for (int named = 0; named < 2; named++) {
        lacks_tmpfile = named;
        pid_t pids[PROCESSES];
        for (int i = 0; i < PROCESSES; i++) {
            pids[i] = fork();
            if (pids[i])
                continue;
            cache *c;
            bool good = cache_open(folder, 3 * 40000, &quiet_log, &c, NULL) == DPI_OK;
            warnings = 0;
            for (int r = 0; good && r < ROUNDS; r++) {
                uint64_t n = (uint64_t)(r + i) % KEYS;
                good = publish(c, n, 30000 + n, "m") == DPI_OK;
                is_there(c, (n + 1) % KEYS);
            }
            _exit(good && !warnings ? 0 : 1); /* a torn entry would have been a warning */
        }
        for (int i = 0; i < PROCESSES; i++)
            expect_end(pids[i]);
        assert_int_equal(count_files(""), count_files(".engine"));
    }
}

/* A child that has begun to write and says so; it waits to be killed. */
static pid_t begin_in_child(cache *c)
{
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    pid_t pid = fork();
    if (pid == 0) {
        cache_write *w;
        int fd;
        if (cache_begin(c, key_of(1), &w, &fd, NULL) == DPI_OK && write(fd, "half", 4) == 4 &&
            write(ready[1], "x", 1) == 1)
            for (;;)
                pause();
        _exit(1);
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    return pid;
}

static void kill_and_reap(pid_t pid)
{
    int status;
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, &status, 0), pid);
}

static void a_killed_writer_leaves_nothing(void **state)
{
    (void)state;
    cache *c = open_cache(0);
    kill_and_reap(begin_in_child(c));
    assert_int_equal(count_files(""), 0);
    /* Where files have names: one of a living writer stays, one of a dead writer is swept by the next to open. */
    lacks_tmpfile = true;
    pid_t pid = begin_in_child(c);
    cache_close(open_cache(0));
    assert_int_equal(count_files(""), 1);
    kill_and_reap(pid);
    assert_int_equal(count_files(""), 1);
    cache_close(open_cache(0));
    assert_int_equal(count_files(""), 0);
    cache_close(c);
}

typedef struct holder {
    pid_t pid;
    int calls;
    int64_t seen, last_ns, shortest_ns;
} holder;

/* The second call ends the holder: the lock must then be free. */
static void note_waiting(void *context, int64_t pid)
{
    holder *h = context;
    int64_t now = clock_now_ns();
    if (h->calls)
        h->shortest_ns = now - h->last_ns;
    h->last_ns = now;
    h->seen = pid;
    if (++h->calls == 2)
        kill_and_reap(h->pid);
}

static void a_lock_waits_for_its_holder_and_survives_its_death(void **state)
{
    (void)state;
    cache *c = open_cache(0);
    int ready[2];
    char byte;
    assert_int_equal(pipe(ready), 0);
    holder h = {.pid = fork()};
    if (h.pid == 0) {
        if (cache_lock(c, key_of(9), NULL, NULL) >= 0 && write(ready[1], "x", 1) == 1)
            for (;;)
                pause();
        _exit(1);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    int other = cache_lock(c, key_of(8), note_waiting, &h); /* another key: free */
    assert_true(other >= 0);
    assert_int_equal(h.calls, 0);
    int fd = cache_lock(c, key_of(9), note_waiting, &h);
    assert_true(fd >= 0);
    assert_int_equal(h.calls, 2);
    assert_int_equal(h.seen, h.pid);
    assert_true(h.shortest_ns > 900000000); /* about once a second */
    close(fd);
    close(other);
    fd = cache_lock(c, key_of(9), note_waiting, &h);
    assert_true(fd >= 0);
    assert_int_equal(h.calls, 2);
    close(fd);
    cache_close(c);
}

static void a_lock_keeps_all_others_out(void **state)
{
    (void)state;
    enum { PROCESSES = 4, ROUNDS = 12 };
    cache *c = open_cache(0);
    char inside[2 * PATH_MAX];
    snprintf(inside, sizeof inside, "%s/inside", folder);
    pid_t pids[PROCESSES];
    for (int i = 0; i < PROCESSES; i++) {
        pids[i] = fork();
        if (pids[i])
            continue;
        bool good = true;
        for (int r = 0; good && r < ROUNDS; r++) {
            int fd = cache_lock(c, key_of(1), NULL, NULL);
            int mark = open(inside, O_CREAT | O_EXCL | O_WRONLY, 0600);
            good = fd >= 0 && mark >= 0 && close(mark) == 0 && unlink(inside) == 0 && close(fd) == 0;
            if (i == 0)
                cache_clear(c, NULL, NULL); /* sweeps locks that nobody holds */
        }
        _exit(good ? 0 : 1);
    }
    for (int i = 0; i < PROCESSES; i++)
        expect_end(pids[i]);
    cache_close(c);
}

/* ---- the folder ------------------------------------------------------------------------------------------------- */

static void expect_refusal(const char *path, const char *words)
{
    cache *c = (cache *)(void *)&warnings;
    dpi_error error = {0};
    assert_int_equal(cache_open(path, 0, &quiet_log, &c, &error), DPI_E_IO);
    assert_null(c);
    if (!strstr(error.message, words))
        fail_msg("\"%s\" lacks \"%s\"", error.message, words);
}

static void the_folder_is_private(void **state)
{
    (void)state;
    char path[2 * PATH_MAX];
    struct stat info;
    cache *c;
    snprintf(path, sizeof path, "%s/a/b/c", folder);
    assert_int_equal(cache_open(path, 0, &quiet_log, &c, NULL), DPI_OK);
    assert_string_equal(cache_folder(c), path);
    assert_int_equal(publish(c, 1, 10, "m"), DPI_OK);
    cache_close(c);
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0700);
    strcat(path, "/x");
    char entry[2 * PATH_MAX + 64], hex[HASH_HEX_SIZE];
    hash_to_hex(key_of(1), hex);
    snprintf(entry, sizeof entry, "%.*s/%s.engine", (int)strlen(path) - 2, path, hex);
    assert_int_equal(stat(entry, &info), 0);
    assert_int_equal(info.st_mode & 0777, 0600);
}

static void folders_of_others_are_refused(void **state)
{
    (void)state;
    char path[2 * PATH_MAX], chmod_line[3 * PATH_MAX];
    snprintf(path, sizeof path, "%s/shared", folder);
    snprintf(chmod_line, sizeof chmod_line, "chmod 700 %s", path);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(chmod(path, 0770), 0);
    expect_refusal(path, chmod_line);
    assert_int_equal(chmod(path, 0702), 0);
    expect_refusal(path, chmod_line);
    assert_int_equal(chmod(path, 0755), 0); /* to read is no harm */
    cache *c;
    assert_int_equal(cache_open(path, 0, &quiet_log, &c, NULL), DPI_OK);
    cache_close(c);
    if (geteuid() == 0) {
        assert_int_equal(chown(path, 12345, 12345), 0);
        expect_refusal(path, "belongs to another user");
    }
    snprintf(path, sizeof path, "%s/file", folder);
    close(open(path, O_CREAT | O_WRONLY, 0600));
    expect_refusal(path, path);
    strcat(path, "/below");
    expect_refusal(path, path);
    expect_refusal("/proc/dpinfer-cache", "/proc/dpinfer-cache");
}

static void an_unwritable_folder_is_refused(void **state)
{
    (void)state;
    pid_t pid = fork(); /* root may write everywhere: as nobody, then */
    if (pid == 0) {
        char path[2 * PATH_MAX];
        snprintf(path, sizeof path, "%s/closed", folder);
        cache *c;
        dpi_error error = {0};
        bool good = mkdir(path, 0700) == 0 && chmod(folder, 0755) == 0;
        if (geteuid() == 0)
            good = good && chown(path, 65534, 65534) == 0 && setgid(65534) == 0 && setuid(65534) == 0;
        good = good && chmod(path, 0500) == 0 && cache_open(path, 0, &quiet_log, &c, &error) == DPI_E_IO &&
               strstr(error.message, path) && strstr(error.message, "DPINFER_CACHE");
        if (!good)
            fprintf(stderr, "%s\n", error.message);
        _exit(good ? 0 : 1);
    }
    expect_end(pid);
}

static void the_environment_names_the_folder(void **state)
{
    (void)state;
    char own[2 * PATH_MAX], xdg[2 * PATH_MAX], want[3 * PATH_MAX];
    snprintf(own, sizeof own, "%s/own", folder);
    snprintf(xdg, sizeof xdg, "%s/xdg", folder);
    setenv("DPINFER_CACHE", own, 1);
    setenv("XDG_CACHE_HOME", xdg, 1);
    setenv("HOME", folder, 1);
    cache *c;
    assert_int_equal(cache_open(NULL, 0, &quiet_log, &c, NULL), DPI_OK);
    assert_string_equal(cache_folder(c), own);
    cache_close(c);
    setenv("DPINFER_CACHE", "", 1);
    assert_int_equal(cache_open(NULL, 0, &quiet_log, &c, NULL), DPI_OK);
    snprintf(want, sizeof want, "%s/dpinfer", xdg);
    assert_string_equal(cache_folder(c), want);
    cache_close(c);
    unsetenv("XDG_CACHE_HOME");
    assert_int_equal(cache_open(NULL, 0, &quiet_log, &c, NULL), DPI_OK);
    snprintf(want, sizeof want, "%s/.cache/dpinfer", folder);
    assert_string_equal(cache_folder(c), want);
    cache_close(c);
    unsetenv("HOME");
    expect_refusal(NULL, "HOME is not set; set DPINFER_CACHE");
    setenv("HOME", "relative", 1);
    expect_refusal(NULL, "HOME is not set");
}

/* ---- content hashes --------------------------------------------------------------------------------------------- */

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static void expect_hash(cache *c, const char *path, const char *text)
{
    hash128 got, want = hash_of(text, strlen(text));
    assert_int_equal(cache_hash_file(c, path, &got, NULL), DPI_OK);
    assert_memory_equal(&got, &want, sizeof got);
}

static void a_hash_is_the_contents(void **state)
{
    (void)state;
    cache *c = open_cache(0);
    char path[2 * PATH_MAX];
    snprintf(path, sizeof path, "%s/model.onnx", folder);
    struct stat info;
    write_file(path, "first");
    expect_hash(c, path, "first");
    expect_hash(NULL, path, "first");
    assert_int_equal(stat(path, &info), 0);
    for (int i = 0; i < 50; i++) { /* as quickly as can be, the same size, and the time set back */
        char text[16];
        snprintf(text, sizeof text, "%05d", i);
        write_file(path, text);
        struct timespec times[2] = {info.st_atim, info.st_mtim};
        assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
        expect_hash(c, path, text);
    }
    struct timespec old[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}}; /* looks old, but was changed just now */
    write_file(path, "old");
    assert_int_equal(utimensat(AT_FDCWD, path, old, 0), 0);
    expect_hash(c, path, "old");
    assert_int_equal(count_files(".hash"), 0);
    write_file(path, "");
    expect_hash(c, path, "");
    cache_close(c);
}

static void what_is_no_file_is_refused(void **state)
{
    (void)state;
    cache *c = open_cache(0);
    char path[2 * PATH_MAX];
    hash128 h;
    dpi_error error = {0};
    snprintf(path, sizeof path, "%s/missing.onnx", folder);
    assert_int_equal(cache_hash_file(c, path, &h, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, path));
    assert_int_equal(cache_hash_file(c, folder, &h, &error), DPI_E_MODEL);
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(cache_hash_file(c, path, &h, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, "not a regular file"));
    assert_int_equal(cache_hash_file(NULL, path, &h, NULL), DPI_E_MODEL);
    cache_close(c);
}

/* The only .hash file of the folder. */
static int open_memo(int flags)
{
    char path[2 * PATH_MAX];
    DIR *d = opendir(folder);
    int fd = -1;
    for (struct dirent *e; (e = readdir(d));)
        if (strstr(e->d_name, ".hash")) {
            snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
            fd = open(path, flags);
        }
    closedir(d);
    return fd;
}

static void an_old_files_hash_is_remembered(void **state)
{
    (void)state;
    cache *c = open_cache(0);
    char path[PATH_MAX] = "";
    struct stat info;
    hash128 first, again, poison = {.low = 1, .high = 2};
    assert_true(readlink("/proc/self/exe", path, sizeof path - 1) > 0); /* a file that nobody changes now */
    assert_int_equal(stat(path, &info), 0);
    while (time(NULL) - info.st_ctim.tv_sec <= 3) /* just built */
        clock_sleep_until_ns(clock_now_ns() + 100000000);
    assert_int_equal(cache_hash_file(NULL, path, &first, NULL), DPI_OK);
    assert_int_equal(cache_hash_file(c, path, &again, NULL), DPI_OK);
    assert_memory_equal(&first, &again, sizeof first);
    assert_int_equal(count_files(".hash"), 1);
    int fd = open_memo(O_RDWR); /* what stands there is believed */
    assert_int_equal(pwrite(fd, &poison, sizeof poison, 16), sizeof poison);
    assert_int_equal(cache_hash_file(c, path, &again, NULL), DPI_OK);
    assert_memory_equal(&poison, &again, sizeof poison);
    assert_int_equal(ftruncate(fd, 20), 0); /* unless it is cut short */
    close(fd);
    assert_int_equal(cache_hash_file(c, path, &again, NULL), DPI_OK);
    assert_memory_equal(&first, &again, sizeof first);
    assert_int_equal(cache_clear(c, NULL, NULL), DPI_OK);
    assert_int_equal(count_files(""), 0);
    cache_close(c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, make_folder, drop_folder)

int main(void)
{
    static const struct CMUnitTest tests[] = {
        TEST(an_entry_comes_back_as_it_was),
        TEST(nothing_is_left_of_an_aborted_or_empty_one),
        TEST(damaged_entries_are_removed),
        TEST(labels_are_one_line),
        TEST(list_and_clear_keep_to_their_own),
        TEST(what_was_used_longest_ago_goes_first),
        TEST(the_one_just_published_stays),
        TEST(an_evicted_entry_stays_readable),
        TEST(many_publish_and_read_at_once),
        TEST(a_killed_writer_leaves_nothing),
        TEST(a_lock_waits_for_its_holder_and_survives_its_death),
        TEST(a_lock_keeps_all_others_out),
        TEST(the_folder_is_private),
        TEST(folders_of_others_are_refused),
        TEST(an_unwritable_folder_is_refused),
        TEST(the_environment_names_the_folder),
        TEST(a_hash_is_the_contents),
        TEST(what_is_no_file_is_refused),
        TEST(an_old_files_hash_is_remembered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
