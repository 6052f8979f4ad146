/*
 * Claims: each pair of atomics named in claim.h as a litmus test between threads. What is protected is plain memory,
 * so that a thread sanitizer sees an order that is too weak, and the counts show a slice computed twice or never.
 */
#include "ipc/claim.h"

#include "base/hash.h"
#include "ipc/layout.h"

#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void words_round_trip(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 100000; i++) {
        uint64_t word = hash_mix64(1, i);
        assert_int_equal(claim_encode(claim_decode(word)), word); /* all 64 bits are used */
        claim c = {.sequence = (uint32_t)word,
                   .generation = (uint32_t)(word >> 32) & 0x7ffff,
                   .worker = (uint32_t)(word >> 40) & 0x3ff,
                   .state = (uint32_t)(word >> 50) & 7};
        claim back = claim_decode(claim_encode(c));
        assert_memory_equal(&back, &c, sizeof c);
    }
    /* A field that is too large must not spill into its neighbours. */
    claim wide = {.sequence = 1, .generation = UINT32_MAX, .worker = 0, .state = CLAIM_FREE};
    assert_int_equal(claim_decode(claim_encode(wide)).worker, 0);
    assert_int_equal(claim_decode(claim_encode(wide)).state, CLAIM_FREE);
    assert_true(LAYOUT_WORKERS <= 0x3ff);
}

static void a_move_needs_the_whole_word(void **state)
{
    (void)state;
    _Atomic uint64_t word;
    claim now = {.sequence = 7, .generation = 3, .worker = 2, .state = CLAIM_CLAIMED}, next = now;
    next.state = CLAIM_RUNNING;
    claim_publish(&word, now);
    for (int field = 0; field < 4; field++) {
        claim stale = now;
        *(field == 0   ? &stale.sequence
          : field == 1 ? &stale.generation
          : field == 2 ? &stale.worker
                       : &stale.state) += 1;
        assert_false(claim_move(&word, stale, next));
    }
    assert_true(claim_move(&word, now, next));
    assert_false(claim_move(&word, now, next));
    assert_int_equal(claim_load(&word).state, CLAIM_RUNNING);
    assert_false(claim_is_terminal(claim_load(&word)));
    next.state = CLAIM_BAD;
    assert_true(claim_is_terminal(next));
    next.state = CLAIM_DONE;
    assert_true(claim_is_terminal(next));
}

/* ---- litmus: publish -> load -> RUNNING -> DONE -> load ------------------------------------------------------------
 */

enum { WORKERS = 3, SLICES = 64, BATCHES = 400 };

typedef struct bench {
    _Atomic uint64_t word[SLICES];
    _Atomic uint64_t left, next;
    _Atomic uint32_t quit;
    uint64_t input[SLICES], output[SLICES]; /* plain on purpose */
    unsigned computed[SLICES];              /* plain: only who holds RUNNING may touch it */
    _Atomic uint64_t last_ones;             /* how often somebody took `left` to 0 */
} bench;

typedef struct hand {
    bench *b;
    uint32_t worker;
    uint64_t done;
} hand;

/* A worker in the manner of worker_slice.c: by its own cursor, or from the shared queue. */
static void *work(void *argument)
{
    hand *h = argument;
    bench *b = h->b;
    while (!atomic_load(&b->quit))
        for (uint32_t i = 0; i < SLICES; i++) {
            claim now = claim_load(&b->word[i]), running = now, done;
            if (now.state != CLAIM_CLAIMED && now.state != CLAIM_FREE)
                continue;
            running.worker = h->worker;
            running.state = CLAIM_RUNNING;
            if (!claim_move(&b->word[i], now, running))
                continue;
            b->computed[i]++;
            b->output[i] = b->input[i] * 3 + 1;
            done = running;
            done.state = CLAIM_DONE;
            assert_true(claim_move(&b->word[i], running, done));
            uint32_t before;
            if (hint_step(&b->left, now.sequence, &before) && before == 1)
                atomic_fetch_add(&b->last_ones, 1);
            h->done++;
        }
    return NULL;
}

/* The caller in the manner of batch.c: inputs, word; then scans, then reads outputs. Slots are reused. */
static void each_slice_exactly_once(void **state)
{
    (void)state;
    static bench b;
    hand hands[WORKERS];
    pthread_t threads[WORKERS];
    for (uint32_t w = 0; w < WORKERS; w++) {
        hands[w] = (hand){.b = &b, .worker = w};
        assert_int_equal(pthread_create(&threads[w], NULL, work, &hands[w]), 0);
    }
    for (uint32_t sequence = 1; sequence <= BATCHES; sequence++) {
        hint_start(&b.left, sequence, SLICES);
        for (uint32_t i = 0; i < SLICES; i++) {
            b.input[i] = hash_mix64(sequence, i);
            claim_publish(&b.word[i], (claim){.sequence = sequence,
                                              .generation = 1,
                                              .worker = i % WORKERS,
                                              .state = i % 2 ? CLAIM_CLAIMED : CLAIM_FREE});
        }
        for (uint32_t i = 0; i < SLICES;) {
            claim now = claim_load(&b.word[i]);
            assert_int_equal(now.sequence, sequence);
            if (!claim_is_terminal(now))
                continue;
            assert_int_equal(b.output[i], b.input[i] * 3 + 1);
            assert_int_equal(b.computed[i], sequence);
            i++;
        }
    }
    atomic_store(&b.quit, 1);
    uint64_t done = 0;
    for (uint32_t w = 0; w < WORKERS; w++) {
        pthread_join(threads[w], NULL);
        done += hands[w].done;
    }
    assert_int_equal(done, (uint64_t)SLICES * BATCHES);
    /* `left` is a hint: the caller may have reused the slot before the last step, but never are there too many. */
    assert_true(b.last_ones <= BATCHES);
}

/* ---- litmus: a late worker against a reused slot --------------------------------------------------------------------
 */

typedef struct late {
    _Atomic uint64_t word, hint;
    _Atomic uint32_t quit;
    uint64_t stolen; /* plain: the late thread's alone */
} late;

/* Remembers words and comes back with them much later. */
static void *come_late(void *argument)
{
    late *l = argument;
    while (!atomic_load(&l->quit)) {
        claim old = claim_load(&l->word), running = old, done;
        if (old.state != CLAIM_CLAIMED)
            continue;
        for (int i = 0; i < 50; i++)
            atomic_load(&l->quit);
        running.state = CLAIM_RUNNING;
        if (!claim_move(&l->word, old, running))
            continue;
        done = running;
        done.state = CLAIM_DONE;
        assert_true(claim_move(&l->word, running, done)); /* nobody else moves a word that is RUNNING */
        uint32_t before;
        if (hint_step(&l->hint, old.sequence, &before))
            assert_int_equal(before, 1);
        l->stolen++;
    }
    return NULL;
}

static void a_late_worker_touches_nothing(void **state)
{
    (void)state;
    static late l;
    pthread_t thread;
    uint64_t kept = 0, lost = 0;
    assert_int_equal(pthread_create(&thread, NULL, come_late, &l), 0);
    for (uint32_t sequence = 1; sequence < 60000; sequence++) {
        claim mine = {.sequence = sequence, .generation = 1, .state = CLAIM_CLAIMED}, bad = mine;
        hint_start(&l.hint, sequence, 1);
        claim_publish(&l.word, mine);
        bad.state = CLAIM_BAD; /* the caller cancels at once */
        if (claim_move(&l.word, mine, bad))
            kept++;
        else {
            lost++;
            while (!claim_is_terminal(claim_load(&l.word)))
                ;
            assert_int_equal(claim_load(&l.word).state, CLAIM_DONE);
        }
        assert_int_equal(claim_load(&l.word).sequence, sequence);
    }
    atomic_store(&l.quit, 1);
    pthread_join(thread, NULL);
    assert_int_equal(kept + lost, 59999);
    assert_int_equal(l.stolen, lost);
}

/* ---- litmus: finishing a slice and marking its batch as unsure cross ------------------------------------------------
 */

typedef struct unsure {
    _Atomic uint64_t word;
    _Atomic uint32_t flags, begun, ended, quit;
    bool worker_saw; /* the worker's until `ended` has moved */
} unsure;

/* The end of worker_finish: the word, then the flags. */
static void *finish_slices(void *argument)
{
    unsure *u = argument;
    for (uint32_t round = 1, looks = 0; !atomic_load(&u->quit);) {
        if (atomic_load(&u->begun) != round) {
            if (++looks % 256 == 0)
                sched_yield();
            continue;
        }
        claim running = {.sequence = round, .generation = 1, .state = CLAIM_RUNNING}, done = running;
        done.state = CLAIM_DONE;
        claim_move(&u->word, running, done);
        u->worker_saw = atomic_load(&u->flags) != 0;
        atomic_store(&u->ended, round++);
    }
    return NULL;
}

/* recovery.c: the flags, then the words. Whichever is later sees the other, or nobody would tell of the batch's end. */
static void finishing_and_marking_cross(void **state)
{
    (void)state;
    static unsure u;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, finish_slices, &u), 0);
    for (uint32_t round = 1; round < 30000; round++) {
        atomic_store(&u.flags, 0);
        claim_publish(&u.word, (claim){.sequence = round, .generation = 1, .state = CLAIM_RUNNING});
        atomic_store(&u.begun, round);
        for (uint32_t pause = 0; pause < round % 61; pause++)
            atomic_load(&u.quit);
        atomic_fetch_or(&u.flags, 1);
        bool seen = claim_is_terminal(claim_load(&u.word));
        while (atomic_load(&u.ended) != round)
            sched_yield();
        assert_true(seen || u.worker_saw);
    }
    atomic_store(&u.quit, 1);
    pthread_join(thread, NULL);
}

/* ---- hints ------------------------------------------------------------------------------------------------------ */

static void hints_count_their_own_batch(void **state)
{
    (void)state;
    _Atomic uint64_t hint;
    uint32_t before = 77;
    hint_start(&hint, 5, 2);
    assert_false(hint_step(&hint, 4, &before));
    assert_true(hint_step(&hint, 5, &before));
    assert_int_equal(before, 2);
    assert_true(hint_step(&hint, 5, &before));
    assert_int_equal(before, 1);
    assert_false(hint_step(&hint, 5, &before)); /* never below zero */
    assert_int_equal(atomic_load(&hint), 5ull << 32);
    hint_start(&hint, UINT32_MAX, UINT32_MAX);
    assert_true(hint_step(&hint, UINT32_MAX, &before));
    assert_int_equal(before, UINT32_MAX);
}

typedef struct counting {
    _Atomic uint64_t hint;
    _Atomic uint32_t round, finished;
    _Atomic uint8_t *seen;
} counting;

enum { DEAL = 20000 };

static void *step_down(void *argument)
{
    counting *c = argument;
    uint32_t before;
    while (hint_step(&c->hint, 3, &before))
        atomic_fetch_add(&c->seen[before], 1);
    return NULL;
}

/* As the queue of shard mode: every index is dealt to exactly one worker. */
static void a_hint_deals_each_index_once(void **state)
{
    (void)state;
    counting c = {.seen = calloc(DEAL + 1, 1)};
    hint_start(&c.hint, 3, DEAL);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, step_down, &c), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(c.seen[0], 0);
    for (int i = 1; i <= DEAL; i++)
        assert_int_equal(c.seen[i], 1);
    free((void *)c.seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_round_trip),
        cmocka_unit_test(a_move_needs_the_whole_word),
        cmocka_unit_test(each_slice_exactly_once),
        cmocka_unit_test(a_late_worker_touches_nothing),
        cmocka_unit_test(finishing_and_marking_cross),
        cmocka_unit_test(hints_count_their_own_batch),
        cmocka_unit_test(a_hint_deals_each_index_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
