/* The worker's loop by itself, without a session: what it finds in its mail. */
#include "base/clock.h"
#include "ipc/bell.h"
#include "ipc/channel.h"
#include "runtime/worker.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define MAIL 5

static const backend no_backend = {.name = "none"};

static void *run_loop(void *argument)
{
    worker_loop(argument);
    return NULL;
}

/* Messages that have come with a single ring are all answered. */
static void all_mail_is_answered(void **state)
{
    (void)state;
    int pair[2];
    dpi_error error;
    control *c = calloc(1, sizeof *c);
    worker *w = calloc(1, sizeof *w);
    worker_page *page = calloc(1, PAGE_BYTES);
    assert_int_equal(channel_pair(pair, &error), DPI_OK);
    c->wait_mode = DPI_WAIT_BLOCK;
    w->control = c;
    w->page = page;
    w->socket = pair[1];
    w->backend = &no_backend;
    w->depth = 1;
    for (int i = 0; i < MAIL; i++) {
        json_t *question = json_pack("{s:s, s:i, s:i}", "what", "drop", "job", 7, "id", i);
        assert_int_equal(channel_send(pair[0], question, NULL, 0, clock_now_ns() + 1000000000, &error), DPI_OK);
        json_decref(question);
    }
    atomic_store(&c->workers[0].mail, MAIL);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, run_loop, w), 0);
    for (int i = 0; i < MAIL; i++) {
        json_t *answer;
        if (channel_receive(pair[0], clock_now_ns() + 10000000000, &answer, NULL, NULL, &error))
            fail_msg("%d of %d messages were answered", i, MAIL);
        assert_int_equal(json_integer_value(json_object_get(answer, "id")), i);
        json_decref(answer);
    }
    atomic_store(&c->shutdown, 1);
    bell_ring(&c->workers[0].bell, &page->sleeping);
    pthread_join(thread, NULL);
    close(pair[0]);
    close(pair[1]);
    free(page);
    free(w);
    free(c);
}

/* A slice that a spoilt word has outlived its run: an error of that slice, not the worker's end. */
static void a_slice_of_a_run_that_is_over(void **state)
{
    (void)state;
    dpi_error error = {0};
    control *c = calloc(1, sizeof *c);
    worker *w = calloc(1, sizeof *w);
    c->batches[0].job = 3;
    w->control = c;
    flight f = {.flags = BATCH_SHARD, .rows = 4, .call_rows = 4};
    assert_int_equal(worker_deliver(w, &f, &error), DPI_E_INTERNAL);
    assert_non_null(strstr(error.message, "a run that is over"));
    free(w);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_mail_is_answered),
                                       cmocka_unit_test(a_slice_of_a_run_that_is_over)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
