/* The mailbox of strict isolation: what a report is taken for, and what must be seen with one. */
#include "ipc/bell.h"
#include "ipc/mailbox.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static void what_a_report_is_taken_for(void **state)
{
    (void)state;
    inbox *in = calloc(1, sizeof *in);
    uint32_t status = 99;
    const uint64_t number = 5 + 3 * MAILBOX_SEATS, before = mailbox_report(number - MAILBOX_SEATS, 0);
    atomic_store(&in->reports[5], before);
    assert_int_equal(mailbox_collect(in, number, before, true, &status), MAILBOX_SILENT);
    assert_int_equal(mailbox_collect(in, number, before, false, &status), MAILBOX_SILENT);
    mailbox_answer(in, number, 32);
    assert_int_equal(mailbox_collect(in, number, before, true, &status), MAILBOX_ANSWERED);
    assert_int_equal(status, 32);
    assert_int_equal(mailbox_collect(in, number, before, false, &status), MAILBOX_BREACH);
    assert_int_equal(mailbox_collect(in, number, mailbox_report(number, 32), false, &status), MAILBOX_SILENT);
    const uint64_t lies[] = {mailbox_report(number + MAILBOX_SEATS, 0), mailbox_report(number - 2 * MAILBOX_SEATS, 0),
                             0, UINT64_MAX};
    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        atomic_store(&in->reports[5], lies[i]);
        assert_int_equal(mailbox_collect(in, number, before, true, &status), MAILBOX_BREACH);
    }
    free(in);
}

static void an_assignment_is_seen_under_its_number_alone(void **state)
{
    (void)state;
    outbox *out = calloc(1, sizeof *out);
    assert_null(mailbox_next(out, 1));
    mailbox_assign(out, 1, (mailbox_slice){.slice = 7});
    assert_int_equal(mailbox_next(out, 1)->slice, 7);
    assert_null(mailbox_next(out, 2));
    assert_null(mailbox_next(out, 1 + MAILBOX_SEATS));
    mailbox_assign(out, 1 + MAILBOX_SEATS, (mailbox_slice){.slice = 8});
    assert_null(mailbox_next(out, 1));
    assert_int_equal(mailbox_next(out, 1 + MAILBOX_SEATS)->slice, 8);
    free(out);
}

/* ---- litmus ---------------------------------------------------------------------------------------------------------
 *
 * One side assigns and collects, the other takes, writes rows and reports, both sleep on their bells without a limit.
 * What is plain memory on either side must be seen whole with the number that was written after it, and nobody may
 * sleep for ever. */

enum { ASSIGNMENTS = 200000, IN_HAND = 4, ROW = 8 };

typedef struct exchange {
    outbox out;
    inbox in;
    _Atomic uint32_t worker_bell, worker_sleeping;
    uint64_t rows[MAILBOX_SEATS][ROW];
    uint64_t wrong_assignments;
} exchange;

static const bell_patience patience = {.mode = DPI_WAIT_YIELD, .spin_us = 20};

static void *work(void *argument)
{
    exchange *x = argument;
    for (uint64_t taken = 1; taken <= ASSIGNMENTS; taken++) {
        const mailbox_slice *next;
        for (;;) {
            uint32_t seen = atomic_load(&x->worker_bell);
            if ((next = mailbox_next(&x->out, taken)))
                break;
            bell_wait(&x->worker_bell, seen, &x->worker_sleeping, patience, CLOCK_NEVER);
        }
        x->wrong_assignments += next->slice != (uint32_t)taken || next->sequence != (uint32_t)taken * 3;
        for (size_t i = 0; i < ROW; i++)
            x->rows[taken % MAILBOX_SEATS][i] = taken * i;
        mailbox_answer(&x->in, taken, 0);
        bell_ring(&x->in.bell, &x->out.sleeping);
    }
    return NULL;
}

static void nothing_is_seen_too_early_and_nobody_sleeps_for_ever(void **state)
{
    (void)state;
    exchange *x = calloc(1, sizeof *x);
    uint64_t assigned = 0, collected = 0, wrong = 0;
    uint64_t seen_reports[MAILBOX_SEATS] = {0};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, work, x), 0);
    while (collected < ASSIGNMENTS) {
        uint32_t seen = atomic_load(&x->in.bell), status = 0;
        bool any = false;
        while (collected < assigned &&
               mailbox_collect(&x->in, collected + 1, seen_reports[(collected + 1) % MAILBOX_SEATS], true, &status) ==
                   MAILBOX_ANSWERED) {
            collected++;
            seen_reports[collected % MAILBOX_SEATS] = mailbox_report(collected, status);
            for (size_t i = 0; i < ROW; i++)
                wrong += x->rows[collected % MAILBOX_SEATS][i] != collected * i;
            any = true;
        }
        while (assigned < ASSIGNMENTS && assigned - collected < IN_HAND) {
            assigned++;
            mailbox_assign(&x->out, assigned,
                           (mailbox_slice){.slice = (uint32_t)assigned, .sequence = (uint32_t)assigned * 3});
            bell_ring(&x->worker_bell, &x->worker_sleeping);
            any = true;
        }
        if (!any)
            bell_wait(&x->in.bell, seen, &x->out.sleeping, patience, CLOCK_NEVER);
    }
    pthread_join(thread, NULL);
    assert_int_equal(wrong, 0);
    assert_int_equal(x->wrong_assignments, 0);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_report_is_taken_for),
        cmocka_unit_test(an_assignment_is_seen_under_its_number_alone),
        cmocka_unit_test(nothing_is_seen_too_early_and_nobody_sleeps_for_ever),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
