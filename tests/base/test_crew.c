#include "base/crew.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MOST 1000

typedef struct tally {
    _Atomic int calls[MOST];
    useconds_t nap;
} tally;

static void count_one(void *context, size_t i)
{
    tally *t = context;
    if (t->nap && i % 7 == 0)
        usleep(t->nap);
    atomic_fetch_add(&t->calls[i], 1);
}

static void run_and_check(crew *c, size_t count, useconds_t nap)
{
    tally t = {.nap = nap};
    crew_run(c, count, count_one, &t);
    for (size_t i = 0; i < MOST; i++)
        assert_int_equal(t.calls[i], i < count);
}

static void every_part_is_done_once(void **state)
{
    (void)state;
    for (size_t helpers = 1; helpers <= 5; helpers += 2) {
        crew *c = crew_new(helpers);
        assert_non_null(c);
        for (int round = 0; round < 300; round++)
            run_and_check(c, (size_t)round % 40, 0);
        run_and_check(c, MOST, 0);
        run_and_check(c, 30, 1000);
        run_and_check(c, 2, 2000); /* fewer than hands */
        crew_free(c);
    }
}

static void without_a_crew_the_caller_does_it(void **state)
{
    (void)state;
    run_and_check(NULL, 10, 0);
    crew *c = crew_new(0);
    assert_null(c);
    crew_free(NULL);
}

static void an_idle_crew_ends(void **state)
{
    (void)state;
    crew_free(crew_new(4));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_part_is_done_once),
        cmocka_unit_test(without_a_crew_the_caller_does_it),
        cmocka_unit_test(an_idle_crew_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
