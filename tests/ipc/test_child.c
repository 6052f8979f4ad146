/* Worker processes: exactly the descriptors they are given, clean signals, and an end that is always noticed. */
#include "ipc/child.h"

#include "base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static int64_t in_ms(int64_t ms) { return clock_now_ns() + ms * 1000000; }

/* Runs a shell script as a child; its output comes back through `log`. */
static child start(const char *script, int log, const int *fds, int count)
{
    char *argv[] = {(char *)(uintptr_t) "sh", (char *)(uintptr_t) "-c", (char *)(uintptr_t)script, NULL};
    child c;
    dpi_error error;
    if (child_spawn("/bin/sh", argv, log, fds, count, &c, &error))
        fail_msg("%s", error.message);
    assert_true(c.pid > 0 && c.pidfd >= 0);
    return c;
}

static void end(child *c, int want_signal, int want_code)
{
    int signal_number = 0, code = 0, pidfd = c->pidfd;
    assert_true(child_ended(c, in_ms(10000), &signal_number, &code));
    assert_int_equal(signal_number, want_signal);
    assert_int_equal(code, want_code);
    assert_int_equal(c->pidfd, -1);
    assert_int_equal(fcntl(pidfd, F_GETFD), -1);
    assert_true(child_ended(c, 0, &signal_number, &code)); /* asking again is harmless */
    child_kill(c);
}

static int make_file(const char *text)
{
    int fd = memfd_create("dpi-test-file", MFD_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    return fd;
}

/* What a script wrote to its standard output and error. */
static char *run(const char *script, const int *fds, int count)
{
    static char output[4096];
    int log = memfd_create("dpi-test-log", MFD_CLOEXEC);
    child c = start(script, log, fds, count);
    int signal_number, code;
    assert_true(child_ended(&c, in_ms(10000), &signal_number, &code));
    ssize_t got = pread(log, output, sizeof output - 1, 0);
    assert_true(got >= 0);
    output[got] = 0;
    close(log);
    return output;
}

static void descriptors_stand_in_their_places(void **state)
{
    (void)state;
    int a = make_file("A"), b = make_file("B"), c = make_file("C");
    /* Read through /proc: the offset is shared, and stands at the end. */
    const char *script = "cat /proc/self/fd/3 /proc/self/fd/4 /proc/self/fd/5; ls /proc/self/fd | tr '\\n' ' '";
    char *output = run(script, (int[]){a, b, c}, 3);
    assert_int_equal(strncmp(output, "ABC0 1 2 3 4 5 ", 15), 0);
    output = run(script, (int[]){c, c, a}, 3);
    assert_int_equal(strncmp(output, "CCA0 1 2 3 4 5 ", 15), 0);
    output = run("ls /proc/self/fd | tr '\\n' ' '", NULL, 0);
    assert_int_equal(strncmp(output, "0 1 2 ", 6), 0);
    /* Ours may have the very numbers that the child's are to get, crosswise. */
    int low[3];
    for (int i = 0; i < 3; i++) {
        low[i] = fcntl(i == 0 ? a : i == 1 ? b : c, F_DUPFD_CLOEXEC, 3);
        assert_true(low[i] >= 3);
    }
    output = run(script, (int[]){low[2], low[0], low[1]}, 3);
    assert_int_equal(strncmp(output, "CAB0 1 2 3 4 5 ", 15), 0);
    output = run("cat; readlink /proc/self/fd/0", NULL, 0);
    assert_string_equal(output, "/dev/null\n");
    for (int i = 0; i < 3; i++)
        close(low[i]);
    close(a);
    close(b);
    close(c);
}

/* The same in a process whose lowest descriptors are free or taken in every way: none may be clobbered. */
static void crosswise_from_three_on(void **state)
{
    (void)state;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        int a = make_file("A"), b = make_file("B"), log = memfd_create("log", MFD_CLOEXEC);
        dup3(a, 100, O_CLOEXEC);
        dup3(b, 101, O_CLOEXEC);
        dup3(log, 102, O_CLOEXEC);
        for (int fd = 3; fd < 100; fd++)
            close(fd);
        dup3(101, 3, O_CLOEXEC); /* B stands at 3, A at 4, and the child wants A, B, the log at 5 */
        dup3(100, 4, O_CLOEXEC);
        dup3(102, 5, O_CLOEXEC);
        for (int fd = 100; fd < 103; fd++)
            close(fd);
        char *argv[] = {(char *)(uintptr_t) "sh", (char *)(uintptr_t) "-c",
                        (char *)(uintptr_t) "cat /proc/self/fd/3 /proc/self/fd/4", NULL},
             text[8] = "";
        child c;
        int signal_number, code;
        if (child_spawn("/bin/sh", argv, 5, (int[]){4, 3}, 2, &c, NULL))
            _exit(1);
        child_ended(&c, in_ms(5000), &signal_number, &code);
        _exit(pread(5, text, 7, 0) == 2 && strcmp(text, "AB") == 0 ? 0 : 2);
    }
    int how = -1;
    waitpid(pid, &how, 0);
    assert_int_equal(how, 0);
}

static void signals_are_clean(void **state)
{
    (void)state;
    sigset_t all, old;
    sigfillset(&all);
    assert_int_equal(pthread_sigmask(SIG_BLOCK, &all, &old), 0);
    void (*pipe_action)(int) = signal(SIGPIPE, SIG_IGN), (*term_action)(int) = signal(SIGTERM, SIG_IGN);
    char *output = run("grep -E '^Sig(Blk|Ign):' /proc/self/status", NULL, 0);
    signal(SIGPIPE, pipe_action);
    signal(SIGTERM, term_action);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, &old, NULL), 0);
    assert_non_null(strstr(output, "SigBlk:\t0000000000000000"));
    char *ignored = strstr(output, "SigIgn:\t");
    assert_non_null(ignored);
    if (strtoull(ignored + 8, NULL, 16) & ~(3ull << 31)) /* 32 and 33 are glibc's own; its posix_spawn ignores them */
        fail_msg("signals are ignored: %s", output);
}

static void a_group_of_its_own(void **state)
{
    (void)state;
    int log = open("/dev/null", O_WRONLY | O_CLOEXEC);
    child c = start("sleep 60", log, NULL, 0);
    assert_int_equal(getpgid(c.pid), c.pid);
    assert_int_not_equal(getpgid(c.pid), getpgrp());
    kill(-c.pid, SIGKILL); /* the shell's own child too */
    end(&c, SIGKILL, -1);
    close(log);
}

static void ends_are_told_apart(void **state)
{
    (void)state;
    int log = open("/dev/null", O_WRONLY | O_CLOEXEC), signal_number, code;
    child c = start("exit 0", log, NULL, 0);
    end(&c, -1, 0);
    c = start("exit 74", log, NULL, 0);
    end(&c, -1, 74);
    c = start("kill -SEGV $$", log, NULL, 0);
    end(&c, SIGSEGV, -1);
    c = start("exec sleep 60", log, NULL, 0);
    int64_t began = clock_now_ns();
    assert_false(child_ended(&c, began + 30000000, &signal_number, &code));
    assert_true(clock_now_ns() - began >= 30000000 && clock_now_ns() - began < 2000000000);
    assert_false(child_ended(&c, 0, &signal_number, &code));
    struct pollfd p = {.fd = c.pidfd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 0), 0);
    child_kill(&c);
    assert_int_equal(poll(&p, 1, 5000), 1);
    end(&c, SIGKILL, -1);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no zombie */
    assert_int_equal(errno, ECHILD);
    close(log);
}

static void a_host_that_reaps(void **state)
{
    (void)state;
    int log = open("/dev/null", O_WRONLY | O_CLOEXEC), how;
    child c = start("exit 3", log, NULL, 0);
    assert_int_equal(waitpid(c.pid, &how, 0), c.pid); /* somebody else's waitpid(-1) */
    end(&c, -1, -1);
    c = start("exit 3", log, NULL, 0);
    waitpid(c.pid, &how, 0);
    child_kill(&c); /* nobody is hit, even if the number lives again */
    end(&c, -1, -1);
    close(log);
}

static void what_cannot_be_started(void **state)
{
    (void)state;
    int log = open("/dev/null", O_WRONLY | O_CLOEXEC);
    char *argv[] = {(char *)(uintptr_t) "x", NULL};
    static const char *const programs[] = {"/nonexistent/program", "/etc", "/etc/passwd", ""};
    for (size_t i = 0; i < 4; i++) {
        child c;
        dpi_error error = {0};
        assert_int_equal(child_spawn(programs[i], argv, log, NULL, 0, &c, &error), DPI_E_SYSTEM);
        assert_non_null(strstr(error.message, programs[i]));
        assert_int_equal(c.pidfd, -1);
    }
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    close(log);
}

/* child_die_with: false for a parent that is gone already; and the parent's death is the child's. */
static void dying_with_the_parent(void **state)
{
    (void)state;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    pid_t pid = fork();
    if (pid == 0) {
        bool wrong = child_die_with(getpid()), right = child_die_with(getppid());
        _exit(!wrong && right ? 0 : 1);
    }
    int how = -1;
    waitpid(pid, &how, 0);
    assert_int_equal(how, 0);
    pid = fork();
    if (pid == 0) { /* the middle one, to be killed */
        pid_t middle = getpid();
        if (fork() == 0) {
            bool good = child_die_with(middle);
            if (write(fds[1], good ? "y" : "n", 1) < 0)
                _exit(1);
            for (;;)
                pause();
        }
        for (;;)
            pause();
    }
    close(fds[1]);
    char answer = 0;
    assert_int_equal(read(fds[0], &answer, 1), 1);
    assert_int_equal(answer, 'y');
    kill(pid, SIGKILL);
    waitpid(pid, &how, 0);
    struct pollfd p = {.fd = fds[0], .events = POLLIN};
    assert_int_equal(poll(&p, 1, 5000), 1); /* the grandchild's end of the pipe closes with it */
    assert_int_equal(read(fds[0], &answer, 1), 0);
    close(fds[0]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(descriptors_stand_in_their_places),
        cmocka_unit_test(crosswise_from_three_on),
        cmocka_unit_test(signals_are_clean),
        cmocka_unit_test(a_group_of_its_own),
        cmocka_unit_test(ends_are_told_apart),
        cmocka_unit_test(a_host_that_reaps),
        cmocka_unit_test(what_cannot_be_started),
        cmocka_unit_test(dying_with_the_parent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
