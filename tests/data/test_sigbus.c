/* The SIGBUS handler of workers: a mapped file that shrinks ends the process with a note; anything else is not its
 * business. Each case runs in a process of its own. */
#include "data/sigbus.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define PAGES 8
#define PAGE  4096

typedef struct note {
    uint32_t source;
    uint64_t offset;
} note;

/* Maps a fresh file of PAGES pages. */
static unsigned char *map_file(int *fd)
{
    *fd = memfd_create("dpi-test-sigbus", MFD_CLOEXEC);
    if (*fd < 0 || ftruncate(*fd, PAGES * PAGE) != 0)
        _exit(100);
    unsigned char *map = mmap(NULL, PAGES * PAGE, PROT_READ, MAP_SHARED, *fd, 0);
    if (map == MAP_FAILED)
        _exit(100);
    return map;
}

typedef void scene(note *n);

/* How a scene's process ends: waitpid's word. */
static int play(scene *what, note *n)
{
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(SIGBUS, SIG_DFL); /* a sanitizer's handler is not what is tested */
        what(n);
        _exit(99);
    }
    int how = 0;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    return how;
}

static void shrink_and_read(note *n)
{
    int fd, other;
    unsigned char *first = map_file(&other), *second = map_file(&fd);
    sigbus_watch(&n->source, &n->offset);
    sigbus_add(first, PAGES * PAGE, 3);
    sigbus_add(second, PAGES * PAGE, 7);
    if (ftruncate(fd, 2 * PAGE) != 0)
        _exit(100);
    volatile unsigned char *at = second;
    for (size_t i = 0; i < PAGES * PAGE; i += 512)
        (void)at[i];
}

static void read_unwatched(note *n)
{
    int fd;
    unsigned char *map = map_file(&fd);
    sigbus_watch(&n->source, &n->offset);
    sigbus_add(map, PAGES * PAGE, 3);
    sigbus_remove(map);
    if (ftruncate(fd, 0) != 0)
        _exit(100);
    (void)*(volatile unsigned char *)map;
}

static void be_sent_one(note *n)
{
    sigbus_watch(&n->source, &n->offset);
    raise(SIGBUS);
}

static void fill_all_places(note *n)
{
    int fd;
    unsigned char *map = map_file(&fd);
    sigbus_watch(&n->source, &n->offset);
    for (uint32_t i = 0; i < SIGBUS_MAX + 5; i++)
        sigbus_add(map + 1 + i, 1, i + 1);
    for (uint32_t i = 0; i < SIGBUS_MAX + 5; i++)
        sigbus_remove(map + 1 + i);
    sigbus_add(map, PAGES * PAGE, 9); /* there is room again */
    if (ftruncate(fd, 0) != 0)
        _exit(100);
    (void)((volatile unsigned char *)map)[5000];
}

static void the_source_and_the_offset_are_noted(void **state)
{
    (void)state;
    note *n = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(n, MAP_FAILED);
    int how = play(shrink_and_read, n);
    assert_true(WIFEXITED(how));
    assert_int_equal(WEXITSTATUS(how), SIGBUS_EXIT_CODE);
    assert_int_equal(n->source, 7);
    assert_int_equal(n->offset, 2 * PAGE);
    *n = (note){0};
    how = play(fill_all_places, n);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == SIGBUS_EXIT_CODE);
    assert_int_equal(n->source, 9);
    assert_int_equal(n->offset, 5000);
    munmap(n, PAGE);
}

static void other_faults_kill(void **state)
{
    (void)state;
    note n = {0};
    int how = play(read_unwatched, &n);
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGBUS);
    how = play(be_sent_one, &n);
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGBUS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_source_and_the_offset_are_noted),
        cmocka_unit_test(other_faults_kill),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
