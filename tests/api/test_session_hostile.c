/*
 * A worker gone mad can write anything into its page, the claim words and the outputs. This test writes it for one,
 * from inside, while batches run: whatever stands there, the caller's calls end by their deadlines, with some status,
 * and dpi_close leaves nothing behind. Results are not looked at.
 */
#include "sim_kit.h"

#include "base/clock.h"
#include "runtime/session.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 4\n"

enum { AT_WORDS = 1, AT_HINTS = 2, AT_PAGES = 4 };

typedef struct vandal {
    dpi_session *s;
    unsigned where;
    uint64_t seed;
    _Atomic uint32_t quit;
} vandal;

/* Random bits, or a word that looks right: the batch's own sequence with any state and worker. */
static uint64_t draw_word(const vandal *v, uint32_t slot, uint64_t n)
{
    uint64_t bits = hash_mix64(v->seed, n);
    claim c = {.sequence = atomic_load(&v->s->control->batches[slot].sequence),
               .generation = bits & 0x100 ? 1 : (uint32_t)(bits >> 20),
               .worker = (uint32_t)(bits >> 40) & 0x3ff,
               .state = (uint32_t)(bits >> 10) & 7};
    return bits & 1 ? bits : claim_encode(c);
}

static void spoil_pages(const vandal *v, uint64_t n)
{
    uint64_t bits = hash_mix64(v->seed, n);
    worker_page *page = v->s->workers[bits % v->s->count].page;
    _Atomic uint64_t *words = (_Atomic uint64_t *)(void *)page;
    size_t at = (size_t)(bits >> 20) % (sizeof *page / 8);
    bool text = (at * 8 >= offsetof(worker_page, sigbus_source) && at * 8 < offsetof(worker_page, sample_count)) ||
                at * 8 >= offsetof(worker_page, failures);
    if (!text) /* plain fields are read by the supervisor: a race that is the worker's fault, not to be reported */
        atomic_store(&words[at], bits & 0x1000 ? bits * 77 : bits & 0xff);
}

static void *spoil(void *argument)
{
    vandal *v = argument;
    for (uint64_t n = 0; !atomic_load(&v->quit); n++) {
        uint32_t slot = (uint32_t)(hash_mix64(9, n) % 4);
        claims *c = (claims *)arena_at(v->s->outputs, slot * sizeof(claims));
        if (v->where & AT_WORDS)
            atomic_store(&c->word[n % 64], draw_word(v, slot, n));
        if (v->where & AT_HINTS) {
            atomic_store(&c->left, draw_word(v, slot, n + 1));
            atomic_store(&c->next, draw_word(v, slot, n + 2));
            atomic_store(&c->bell, (uint32_t)n);
        }
        if (v->where & AT_PAGES)
            spoil_pages(v, n);
        if (n % 16 == 0)
            sched_yield();
    }
    return NULL;
}

static void call_everything(kit *k, double seconds)
{
    double until = kit_now_s() + seconds;
    for (uint64_t i = 0; kit_now_s() < until; i++) {
        dpi_error error = {0};
        kit_batch *b = kit_batch_new(k, 1 + i * 13 % 70, i, 3);
        dpi_ticket ticket;
        dpi_tensor out[1];
        double began = kit_now_s();
        dpi_forward(k->s, b->in, 1, b->out, 1, 20, &error);
        if (kit_submit(k, b, true, 10, &ticket, &error) == DPI_OK) {
            if (i % 3 == 0)
                dpi_cancel(k->s, ticket, &error);
            if (dpi_wait(k->s, ticket, 20, out, 1, &error) == DPI_OK)
                dpi_release(k->s, ticket, &error);
        }
        dpi_worker_stats workers[4];
        dpi_stats_data stats = DPI_INIT(dpi_stats_data);
        stats.workers = workers;
        stats.worker_count = 4;
        dpi_stats(k->s, &stats, &error);
        if (kit_now_s() - began > 1.5)
            fail_msg("a call with a deadline of 20 ms took %.2f s: %s", kit_now_s() - began, error.message);
        kit_batch_free(b);
    }
}

static void scribble(unsigned where, size_t rows_per_slice)
{
    kit_traces before = kit_look();
    dpi_options o = DPI_INIT(dpi_options);
    o.queue_depth = 4;
    o.batch = rows_per_slice;
    kit *k = kit_open(SIMPLE "fixed_us 200\n", "sim:0*3", &o);
    vandal v = {.s = k->s, .where = where, .seed = where};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, spoil, &v), 0);
    call_everything(k, 0.7);
    atomic_store(&v.quit, 1);
    pthread_join(thread, NULL);
    double began = kit_now_s();
    kit_close(k);
    if (kit_now_s() - began > 3)
        fail_msg("closing took %.2f s", kit_now_s() - began);
    kit_check_clean(before);
}

static void mad_claim_words(void **state)
{
    (void)state;
    scribble(AT_WORDS, 1);
    scribble(AT_WORDS, 64);
}

static void mad_hints_and_bells(void **state)
{
    (void)state;
    scribble(AT_HINTS, 1);
}

static void mad_pages(void **state)
{
    (void)state;
    scribble(AT_PAGES, 4);
}

static void mad_everything(void **state)
{
    (void)state;
    scribble(AT_WORDS | AT_HINTS | AT_PAGES, 2);
}

/* It hangs, and its page says that its slice begins in a hundred years, or began before the machine did. */
static void a_worker_hangs_and_lies(int64_t lie)
{
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error = {0};
    o.batch = 2;
    o.total_batch_size = 6;
    o.slice_timeout_ms = 300;
    kit *k = kit_open(SIMPLE "fixed_us 50000\n", "sim:0,sim:7,sim:2", &o);
    dpi_ticket ticket;
    kit_forward(k, 60, 2); /* the first slice of a shape has a limit of its own */
    kit_batch *b = kit_batch_new(k, 60, 1, 3);
    kit_assert_ok(kit_submit(k, b, false, 0, &ticket, &error), error);
    worker_page *page = k->s->workers[1].page;
    double until = kit_now_s() + 20;
    while (!atomic_load(&page->busy_since_ns) && kit_now_s() < until)
        sched_yield();
    dpi_description d = DPI_INIT(dpi_description);
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    kill((pid_t)d.workers[1].pid, SIGSTOP);
    clock_sleep_until_ns(clock_now_ns() + 20000000); /* it may still write until it has stopped */
    if (atomic_load(&page->busy_since_ns))
        atomic_store(&page->busy_since_ns, lie);
    kit_assert_ok(dpi_wait(k->s, ticket, 20000, NULL, 0, &error), error);
    kit_batch_check(b, NULL);
    kit_batch_free(b);
    kit_close(k);
}

static void lies_about_the_time(void **state)
{
    (void)state;
    a_worker_hangs_and_lies(INT64_MAX);
    a_worker_hangs_and_lies(INT64_MIN);
    a_worker_hangs_and_lies(-1);
}

typedef struct changer {
    const kit *k;
    _Atomic uint32_t quit;
} changer;

static void *change_devices(void *argument)
{
    changer *c = argument;
    dpi_error error;
    while (!atomic_load(&c->quit)) {
        dpi_device_remove(c->k->s, "sim:7", 300, &error);
        dpi_device_add(c->k->s, "sim:7", 300, &error);
        dpi_device_add(c->k->s, "sim:8", 20, &error);
    }
    return NULL;
}

/* Each change ends by its deadline, or with a session that has been spoilt too often. */
static void mad_while_devices_change(void **state)
{
    (void)state;
    for (unsigned where = AT_WORDS; where <= AT_PAGES; where *= 2) {
        kit_traces before = kit_look();
        dpi_options o = DPI_INIT(dpi_options);
        o.queue_depth = 4;
        o.batch = 2;
        kit *k = kit_open(SIMPLE "fixed_us 200\n", "sim:0,sim:7,sim:2", &o);
        vandal v = {.s = k->s, .where = where, .seed = where};
        changer c = {.k = k};
        pthread_t threads[2];
        assert_int_equal(pthread_create(&threads[0], NULL, spoil, &v), 0);
        assert_int_equal(pthread_create(&threads[1], NULL, change_devices, &c), 0);
        call_everything(k, 1);
        atomic_store(&c.quit, 1);
        pthread_join(threads[1], NULL);
        atomic_store(&v.quit, 1);
        pthread_join(threads[0], NULL);
        kit_close(k);
        kit_check_clean(before);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mad_claim_words),
        cmocka_unit_test(mad_hints_and_bells),
        cmocka_unit_test(mad_pages),
        cmocka_unit_test(mad_everything),
        cmocka_unit_test(mad_while_devices_change),
        cmocka_unit_test(lies_about_the_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
