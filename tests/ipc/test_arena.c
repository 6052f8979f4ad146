/* The arena: blocks never overlap, are found and freed exactly, and what workers get cannot be written or shrunk. */
#include "ipc/arena.h"

#include "base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static arena *make(uint64_t max_bytes, uint64_t head, arena_access access)
{
    arena *a;
    dpi_error error;
    if (arena_create("dpi-test", max_bytes, head, access, &a, &error))
        fail_msg("%s", error.message);
    return a;
}

typedef struct block {
    uint64_t offset, bytes;
    unsigned char mark;
} block;

/* Random allocations and frees; every block carries a mark from end to end that nobody else may touch. */
static void blocks_do_not_overlap(void **state)
{
    (void)state;
    enum { BLOCKS = 60, TURNS = 20000, HEAD = 10000, MAX = 2 << 20 };
    arena *a = make(MAX, HEAD, ARENA_ALL_WRITE);
    block blocks[BLOCKS] = {{0}};
    unsigned refused = 0;
    for (uint64_t turn = 0; turn < TURNS; turn++) {
        uint64_t draw = hash_mix64(5, turn);
        block *b = &blocks[draw % BLOCKS];
        if (b->bytes) {
            const unsigned char *at = arena_at(a, b->offset);
            assert_int_equal(at[0], b->mark);
            assert_int_equal(at[b->bytes - 1], b->mark);
            assert_true(arena_free(a, b->offset));
            assert_false(arena_free(a, b->offset));
            b->bytes = 0;
            continue;
        }
        uint64_t bytes = 1 + (draw >> 20) % (draw & 0x10000 ? 200000 : 5000);
        uint64_t offset = arena_alloc(a, bytes);
        if (offset == ARENA_NONE) {
            refused++;
            continue;
        }
        assert_int_equal(offset % ARENA_GRAIN, 0);
        assert_true(offset >= HEAD && offset + bytes <= MAX);
        *b = (block){.offset = offset, .bytes = bytes, .mark = (unsigned char)(turn % 255 + 1)};
        memset(arena_at(a, offset), b->mark, bytes);
    }
    if (!refused || refused > TURNS / 3)
        fail_msg("%u of %d were refused", refused, TURNS);
    for (int i = 0; i < BLOCKS; i++)
        if (blocks[i].bytes)
            assert_true(arena_free(a, blocks[i].offset));
    /* All holes have joined: everything fits again, in one piece. */
    uint64_t rest = MAX - (HEAD + ARENA_GRAIN - 1) / ARENA_GRAIN * ARENA_GRAIN;
    uint64_t whole = arena_alloc(a, rest);
    assert_true(whole != ARENA_NONE);
    assert_int_equal(arena_alloc(a, 1), ARENA_NONE);
    assert_true(arena_free(a, whole));
    arena_destroy(a);
}

static void sizes_at_the_edge(void **state)
{
    (void)state;
    arena *a = make(8 * ARENA_GRAIN, 0, ARENA_ALL_WRITE);
    assert_int_equal(arena_max(a), 8 * ARENA_GRAIN);
    assert_int_equal(arena_alloc(a, UINT64_MAX), ARENA_NONE);
    assert_int_equal(arena_alloc(a, UINT64_MAX - 4095), ARENA_NONE);
    assert_int_equal(arena_alloc(a, 8 * ARENA_GRAIN + 1), ARENA_NONE);
    uint64_t zero = arena_alloc(a, 0), other = arena_alloc(a, 0);
    assert_true(zero != ARENA_NONE && other != ARENA_NONE && zero != other);
    assert_false(arena_free(a, zero + 1));
    assert_false(arena_free(a, ARENA_NONE));
    assert_false(arena_free(a, 7 * ARENA_GRAIN));
    assert_int_equal(arena_alloc(a, 7 * ARENA_GRAIN), ARENA_NONE);
    assert_true(arena_alloc(a, 6 * ARENA_GRAIN) != ARENA_NONE);
    assert_true(arena_committed(a) <= arena_max(a));
    arena_destroy(a);
    a = make(100, 3 * ARENA_GRAIN, ARENA_ALL_WRITE); /* a head larger than the whole */
    assert_int_equal(arena_alloc(a, 1), ARENA_NONE);
    memset(arena_at(a, 0), 1, 3 * ARENA_GRAIN);
    arena_destroy(a);
    arena_destroy(NULL);
}

static void addresses_are_found(void **state)
{
    (void)state;
    arena *a = make(1 << 20, 0, ARENA_ALL_WRITE);
    uint64_t first = arena_alloc(a, 10000), second = arena_alloc(a, 5000), begin = 0;
    char *one = arena_at(a, first), *two = arena_at(a, second);
    assert_int_equal(arena_find(a, one, 10000, &begin), first);
    assert_int_equal(begin, first);
    assert_int_equal(arena_find(a, one + 100, 9900, &begin), first + 100);
    assert_int_equal(begin, first);
    assert_int_equal(arena_find(a, one, 12288, NULL), first); /* rounded up to the grain */
    assert_int_equal(arena_find(a, one, 12289, NULL), ARENA_NONE);
    assert_int_equal(arena_find(a, one, UINT64_MAX, NULL), ARENA_NONE);
    assert_int_equal(arena_find(a, two + 8191, 1, &begin), second + 8191);
    assert_int_equal(arena_find(a, two + 8192, 0, NULL), ARENA_NONE);
    assert_int_equal(arena_find(a, &a, 1, NULL), ARENA_NONE);
    assert_int_equal(arena_find(a, NULL, 0, NULL), ARENA_NONE);
    assert_true(arena_free(a, first));
    assert_int_equal(arena_find(a, one, 1, NULL), ARENA_NONE);
    arena_destroy(a);
}

/* What a worker gets of the inputs: it can read and nothing else, whatever it tries. */
static void readers_cannot_write(void **state)
{
    (void)state;
    arena *a = make(1 << 20, 0, ARENA_CALLER_WRITES);
    dpi_error error;
    uint64_t offset = arena_alloc(a, 100);
    memcpy(arena_at(a, offset), "hello", 6);
    int fd = arena_fd(a);
    char *seen = arena_attach(fd, arena_max(a), false, &error);
    assert_non_null(seen);
    assert_string_equal(seen + offset, "hello");
    assert_null(arena_attach(fd, arena_max(a), true, &error));
    assert_int_equal(error.status, DPI_E_SYSTEM);
    assert_int_equal(mprotect(seen, 4096, PROT_READ | PROT_WRITE), -1);
    assert_true(write(fd, "x", 1) < 0);
    assert_int_equal(ftruncate(fd, 0), -1);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, O_RDWR | O_CLOEXEC); /* the permission bits allow it, the seal must not */
    if (again >= 0) {
        assert_true(write(again, "x", 1) < 0);
        assert_true(pwrite(again, "x", 1, 0) < 0);
        assert_ptr_equal(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, again, 0), MAP_FAILED);
        assert_int_equal(ftruncate(again, 0), -1);
        close(again);
    }
    assert_string_equal(arena_at(a, offset), "hello");
    memcpy(arena_at(a, offset), "still", 6); /* the caller can */
    assert_string_equal(seen + offset, "still");
    munmap(seen, arena_max(a));
    arena_destroy(a);
}

static void writers_cannot_shrink(void **state)
{
    (void)state;
    arena *a = make(1 << 20, 0, ARENA_ALL_WRITE);
    dpi_error error;
    uint64_t offset = arena_alloc(a, 100);
    char *seen = arena_attach(arena_fd(a), arena_max(a), true, &error);
    assert_non_null(seen);
    strcpy(seen + offset, "written");
    assert_string_equal(arena_at(a, offset), "written");
    assert_int_equal(ftruncate(arena_fd(a), 0), -1);
    munmap(seen, arena_max(a));
    arena_destroy(a);
}

static void growing_keeps_addresses(void **state)
{
    (void)state;
    arena *a = make(64 << 20, 0, ARENA_CALLER_WRITES);
    uint64_t small = arena_alloc(a, 100), before = arena_committed(a);
    char *at = arena_at(a, small);
    strcpy(at, "kept");
    uint64_t large = arena_alloc(a, 40 << 20);
    assert_true(large != ARENA_NONE);
    assert_true(arena_committed(a) > before);
    memset(arena_at(a, large), 1, 40 << 20);
    assert_string_equal(at, "kept");
    assert_ptr_equal(arena_at(a, small), at);
    struct stat info;
    assert_int_equal(fstat(arena_fd(a), &info), 0);
    assert_int_equal(info.st_size, arena_committed(a));
    arena_destroy(a);
}

static void *churn(void *argument)
{
    arena *a = argument;
    for (uint64_t i = 0; i < 3000; i++) {
        uint64_t bytes = 1 + hash_mix64((uintptr_t)&i, i) % 9000, offset = arena_alloc(a, bytes);
        if (offset == ARENA_NONE)
            continue;
        memset(arena_at(a, offset), (int)i, bytes);
        assert_int_equal(arena_find(a, (char *)arena_at(a, offset) + bytes - 1, 1, NULL), offset + bytes - 1);
        assert_true(arena_free(a, offset));
    }
    return NULL;
}

static void several_threads(void **state)
{
    (void)state;
    arena *a = make(256 << 10, 0, ARENA_ALL_WRITE);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, churn, a), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_true(arena_alloc(a, 256 << 10) != ARENA_NONE); /* nothing lost */
    arena_destroy(a);
}

static void a_child_abandons(void **state)
{
    (void)state;
    arena *a = make(1 << 20, 0, ARENA_ALL_WRITE);
    uint64_t offset = arena_alloc(a, 100);
    strcpy(arena_at(a, offset), "parent's");
    pid_t pid = fork();
    if (pid == 0) {
        arena_abandon(a);
        arena_abandon(a);
        arena_abandon(NULL);
        _exit(0);
    }
    int how = -1;
    waitpid(pid, &how, 0);
    assert_int_equal(how, 0);
    assert_string_equal(arena_at(a, offset), "parent's");
    arena_destroy(a);
}

static void too_much_address_space(void **state)
{
    (void)state;
    arena *a;
    dpi_error error = {0};
    assert_int_equal(arena_create("dpi-test", 1ull << 60, 0, ARENA_ALL_WRITE, &a, &error), DPI_E_SYSTEM);
    assert_null(a);
    assert_non_null(strstr(error.message, "arena_max_bytes"));
    assert_null(arena_attach(-1, 4096, false, &error));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_do_not_overlap),  cmocka_unit_test(sizes_at_the_edge),
        cmocka_unit_test(addresses_are_found),    cmocka_unit_test(readers_cannot_write),
        cmocka_unit_test(writers_cannot_shrink),  cmocka_unit_test(growing_keeps_addresses),
        cmocka_unit_test(several_threads),        cmocka_unit_test(a_child_abandons),
        cmocka_unit_test(too_much_address_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
