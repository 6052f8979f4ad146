/* The worker's loop by itself, without a session: what it finds in its mail. */
#include "base/clock.h"
#include "ipc/bell.h"
#include "ipc/channel.h"
#include "runtime/worker.h"

#include <pthread.h>
#include <sched.h>
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

/* ---- litmus: freed words and `orphans` ------------------------------------------------------------------------------
 *
 * The supervisor frees a word, then moves `orphans`. A worker that has seen the last move and has looked has seen every
 * word that was freed before it, also those behind where it stood, and what the supervisor wrote before. */

enum { ORPHANS = 6, ROUNDS = 20000 };

typedef struct orphanage {
    worker *w;
    uint32_t written[ORPHANS]; /* plain memory, of the supervisor until the word is FREE */
    _Atomic uint32_t quit, wrong;
} orphanage;

static void *adopt(void *argument)
{
    orphanage *o = argument;
    worker *w = o->w;
    flight f = {0};
    int64_t look_again_ns = CLOCK_NEVER;
    while (!atomic_load(&o->quit)) {
        if (!worker_claim(w, &f, false, false, &look_again_ns))
            continue;
        if (o->written[f.slice] != f.sequence)
            atomic_fetch_add(&o->wrong, 1);
        claim running = {.sequence = f.sequence, .generation = 1, .state = CLAIM_RUNNING}, done = running;
        done.state = CLAIM_DONE;
        claim_move(&worker_claims(w, 0)->word[f.slice], running, done);
    }
    return NULL;
}

/* A batch whose slices are planned for worker 1. */
static void publish_round(control *c, claims *words, uint32_t round)
{
    batch_desc *d = &c->batches[0];
    atomic_store(&d->sequence, 0);
    atomic_store(&d->orphans, 0);
    atomic_store(&d->slice_count, ORPHANS);
    atomic_store(&d->planned_workers, 2);
    atomic_store(&d->first_slice[2], ORPHANS);
    for (uint32_t i = 0; i < ORPHANS; i++)
        claim_publish(&words->word[i],
                      (claim){.sequence = round, .generation = 1, .worker = 1, .state = CLAIM_CLAIMED});
    atomic_store_explicit(&d->sequence, round, memory_order_release);
}

static bool all_done(claims *words)
{
    for (uint32_t i = 0; i < ORPHANS; i++)
        if (claim_load(&words->word[i]).state != CLAIM_DONE)
            return false;
    return true;
}

static void every_orphan_is_found(void **state)
{
    (void)state;
    control *c = calloc(1, sizeof *c);
    claims *words = calloc(1, sizeof *words);
    orphanage o = {.w = calloc(1, sizeof *o.w)};
    o.w->control = c;
    o.w->outputs = (unsigned char *)words;
    o.w->page = calloc(1, PAGE_BYTES);
    o.w->generation = 1;
    atomic_store(&c->active, 1);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, adopt, &o), 0);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        publish_round(c, words, round);
        for (uint32_t k = 0; k < ORPHANS;
             k++) { /* in an order of its own each round: behind the worker, and before it */
            uint32_t i = (k * 5 + round) % ORPHANS;
            claim planned = {.sequence = round, .generation = 1, .worker = 1, .state = CLAIM_CLAIMED};
            o.written[i] = round;
            claim_move(&words->word[i], planned, (claim){.sequence = round, .generation = 0, .state = CLAIM_FREE});
            atomic_fetch_add(&c->batches[0].orphans, 1);
            for (uint32_t pause = 0; pause < round % 37; pause++)
                atomic_load(&o.quit);
        }
        int64_t until_ns = clock_now_ns() + 20000000000;
        while (!all_done(words)) {
            if (clock_now_ns() > until_ns)
                fail_msg("round %u: a slice that is free is looked for by nobody", round);
            sched_yield();
        }
    }
    atomic_store(&o.quit, 1);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&o.wrong), 0);
    free(o.w->page);
    free(o.w);
    free(words);
    free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_mail_is_answered),
                                       cmocka_unit_test(a_slice_of_a_run_that_is_over),
                                       cmocka_unit_test(every_orphan_is_found)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
