/* Doorbells: no ring is lost, whichever way the waiter passes its time; what stands before a ring is seen after it. */
#include "ipc/bell.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LOST_NS 5000000000 /* a ring that takes this long was lost */

typedef struct side {
    _Atomic uint32_t bell, sleeping;
    uint64_t letter; /* plain: handed over by the bell */
} side;

typedef struct pair {
    side a, b;
    bell_patience patience;
    uint32_t turns;
    _Atomic uint32_t lost;
} pair;

/* Waits for one ring of `mine`, adds one to the letter and passes it on. */
static bool turn(pair *p, side *mine, side *other, uint32_t *seen)
{
    if (!bell_wait(&mine->bell, *seen, &mine->sleeping, p->patience, clock_now_ns() + LOST_NS)) {
        atomic_store(&p->lost, 1);
        return false;
    }
    ++*seen;
    other->letter = mine->letter + 1;
    bell_ring(&other->bell, &other->sleeping);
    return true;
}

static void *answer(void *argument)
{
    pair *p = argument;
    uint32_t seen = 0;
    for (uint32_t i = 0; i < p->turns && turn(p, &p->b, &p->a, &seen); i++)
        ;
    return NULL;
}

static void play(pair *p)
{
    pthread_t thread;
    uint32_t seen = 0;
    assert_int_equal(pthread_create(&thread, NULL, answer, p), 0);
    p->b.letter = 1;
    bell_ring(&p->b.bell, &p->b.sleeping);
    for (uint32_t i = 0; i + 1 < p->turns && turn(p, &p->a, &p->b, &seen); i++)
        ;
    pthread_join(thread, NULL);
    assert_int_equal(p->lost, 0);
    assert_int_equal(p->a.letter, 2ull * p->turns);
    assert_int_equal(p->a.sleeping, 0);
    assert_int_equal(p->b.sleeping, 0);
}

static void no_ring_is_lost(void **state)
{
    (void)state;
    static const struct {
        bell_patience patience;
        uint32_t turns;
    } ways[] = {
        {{DPI_WAIT_BLOCK, 0}, 10000}, {{DPI_WAIT_YIELD, 20}, 10000}, {{DPI_WAIT_SPIN, 1}, 5000},
        {{DPI_WAIT_SPIN, 30}, 2000},  {{DPI_WAIT_YIELD, 0}, 3000},
    };
    for (size_t i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        pair p = {.patience = ways[i].patience, .turns = ways[i].turns};
        play(&p);
    }
}

/* Dekker's crossing itself: the sleeper goes to sleep just as the ringer rings, without a turn to synchronise them. */
typedef struct crossing {
    _Atomic uint32_t bell, sleeping, done, heard;
    uint32_t rings;
} crossing;

static void *sleep_always(void *argument)
{
    crossing *c = argument;
    uint32_t seen = 0;
    while (seen < c->rings) {
        if (!bell_wait(&c->bell, seen, &c->sleeping, (bell_patience){DPI_WAIT_BLOCK, 0}, clock_now_ns() + LOST_NS))
            break;
        seen = atomic_load(&c->bell);
        atomic_store(&c->heard, seen);
    }
    atomic_store(&c->done, 1);
    return NULL;
}

static void sleeping_and_ringing_cross(void **state)
{
    (void)state;
    crossing c = {.rings = 20000};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, sleep_always, &c), 0);
    for (uint32_t i = 0; i < c.rings; i++) {
        bell_ring(&c.bell, &c.sleeping);
        for (uint32_t pause = 0; pause < i % 97; pause++)
            spin_pause();
        if (i % 5 == 0) { /* now and then wait until it is heard, so that the sleeper really sleeps */
            int64_t until = clock_now_ns() + LOST_NS;
            while (atomic_load(&c.heard) <= i && clock_now_ns() < until)
                sched_yield();
            assert_true(atomic_load(&c.heard) > i);
        }
    }
    pthread_join(thread, NULL);
    assert_int_equal(c.heard, c.rings);
    assert_int_equal(c.sleeping, 0);
}

static void *sleep_once(void *argument)
{
    crossing *c = argument;
    if (bell_wait(&c->bell, 0, &c->sleeping, (bell_patience){DPI_WAIT_BLOCK, 0}, clock_now_ns() + LOST_NS))
        atomic_fetch_add(&c->heard, 1);
    return NULL;
}

static void one_ring_wakes_all(void **state)
{
    (void)state;
    crossing c = {0};
    pthread_t threads[6];
    for (int i = 0; i < 6; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, sleep_once, &c), 0);
    while (atomic_load(&c.sleeping) < 6)
        sched_yield();
    bell_ring(&c.bell, &c.sleeping);
    for (int i = 0; i < 6; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(c.heard, 6);
}

static void deadlines_hold(void **state)
{
    (void)state;
    static const bell_patience ways[] = {{DPI_WAIT_BLOCK, 0}, {DPI_WAIT_YIELD, 1000000}, {DPI_WAIT_SPIN, 1000000}};
    for (size_t i = 0; i < 3; i++) {
        _Atomic uint32_t bell = 3, sleeping = 0;
        assert_true(bell_wait(&bell, 2, &sleeping, ways[i], 0)); /* rung already: no look at the clock */
        int64_t began = clock_now_ns();
        assert_false(bell_wait(&bell, 3, &sleeping, ways[i], began + 20000000));
        int64_t took = clock_now_ns() - began;
        assert_true(took >= 20000000 && took < 1000000000);
        assert_false(bell_wait(&bell, 3, &sleeping, ways[i], began)); /* in the past */
        assert_int_equal(sleeping, 0);
    }
}

/* Between processes, as it is meant: the word lies in shared memory, which the sleeper maps read-only. */
static void across_processes(void **state)
{
    (void)state;
    struct shared {
        _Atomic uint32_t bell, sleeping, back, back_sleeping;
    } *s = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(s, MAP_FAILED);
    enum { TURNS = 500 };
    bell_patience block = {DPI_WAIT_BLOCK, 0};
    pid_t pid = fork();
    if (pid == 0) {
        for (uint32_t i = 0; i < TURNS; i++) {
            if (!bell_wait(&s->bell, i, &s->sleeping, block, clock_now_ns() + LOST_NS))
                _exit(1);
            bell_ring(&s->back, &s->back_sleeping);
        }
        _exit(0);
    }
    for (uint32_t i = 0; i < TURNS; i++) {
        bell_ring(&s->bell, &s->sleeping);
        assert_true(bell_wait(&s->back, i, &s->back_sleeping, block, clock_now_ns() + LOST_NS));
    }
    int how = -1;
    waitpid(pid, &how, 0);
    assert_int_equal(how, 0);
    munmap(s, 4096);
}

static void a_read_only_word_can_be_waited_for(void **state)
{
    (void)state;
    _Atomic uint32_t *word = mmap(NULL, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0), sleeping = 0;
    assert_ptr_not_equal(word, MAP_FAILED);
    int64_t began = clock_now_ns();
    assert_false(bell_wait(word, 0, &sleeping, (bell_patience){DPI_WAIT_BLOCK, 0}, began + 10000000));
    assert_true(clock_now_ns() - began >= 10000000);
    munmap((void *)(uintptr_t)word, 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(no_ring_is_lost),    cmocka_unit_test(sleeping_and_ringing_cross),
        cmocka_unit_test(one_ring_wakes_all), cmocka_unit_test(deadlines_hold),
        cmocka_unit_test(across_processes),   cmocka_unit_test(a_read_only_word_can_be_waited_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
