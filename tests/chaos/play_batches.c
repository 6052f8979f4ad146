/* The batches of a plan: submitted by one or two threads, some cancelled, waited for in another order. */
#include "play.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

#define WAIT_MS 60000 /* times the plan's patience: no plan needs so long, the batch is lost */

static int wait_ms(const play *y) { return WAIT_MS * (int)y->p->patience; }

/* A batch and its memory. */
typedef struct flight {
    const job *j;
    void *in, *out[2];
    void *at_return[2]; /* plain memory as it was when dpi_forward gave the batch up: nobody may touch it any more */
    dpi_tensor input, outputs[2];
    dpi_ticket ticket;
    bool cancelled, lost; /* lost: submitting it has failed, with the session */
} flight;

static void *memory_for(play *y, const job *j, size_t bytes, dpi_direction direction)
{
    dpi_error error;
    bool shared = j->memory == MEMORY_ALLOC;
    void *memory = shared ? dpi_alloc(y->s, bytes + 1, direction, &error) : malloc(bytes + 1);
    if (!memory && !(shared && session_may_end(y, &error)))
        plan_fail("no memory: %s", shared ? error.message : "malloc");
    return memory ? memory : calloc(1, bytes + 1); /* the session has ended: whatever comes now is refused */
}

static void make_flight(play *y, const job *j, uint64_t seed, flight *f)
{
    const subject *s = &y->what;
    *f = (flight){.j = j};
    f->in = memory_for(y, j, s->in_bytes * j->rows, DPI_INPUT);
    subject_fill(s, f->in, j->rows, seed);
    subject_poison(s, f->in, j->poison, j->poison_count);
    subject_input(s, j->rows, f->in, &f->input);
    for (size_t o = 0; o < s->output_count; o++) {
        if (j->memory == MEMORY_VIEWS && !j->forward_ms)
            continue;
        f->out[o] = memory_for(y, j, s->out_bytes[o] * j->rows, DPI_OUTPUT);
        memset(f->out[o], 0xa5, s->out_bytes[o] * j->rows);
        subject_output(s, o, j->rows, f->out[o], &f->outputs[o]);
    }
}

static void free_flight(play *y, flight *f)
{
    dpi_error error;
    bool shared = f->j->memory == MEMORY_ALLOC;
    for (int o = 0; o < 2; o++) {
        if (shared)
            dpi_free(y->s, f->out[o], &error);
        else
            free(f->out[o]);
        free(f->at_return[o]);
    }
    if (shared)
        dpi_free(y->s, f->in, &error);
    else
        free(f->in);
}

static void end_flight(play *y, flight *f, const void *const *out, dpi_status status, const dpi_error *error,
                       const left_out *bad, const char *what)
{
    verdict v = {.status = status, .error = error, .cancelled = f->cancelled, .of = f->j, .bad = bad, .what = what};
    y->r->batches++;
    judge(y, &v);
    if (status == DPI_OK || status == DPI_BAD_ROWS)
        check_rows(y, f->in, out, f->j->rows, bad, what);
}

/* dpi_forward with a limit: what is abandoned goes on without our memory. */
static void forward(play *y, flight *f)
{
    dpi_error error = {0};
    left_out bad = {.count = 0};
    const subject *s = &y->what;
    left_out_into(&bad);
    dpi_status status = dpi_forward(y->s, &f->input, 1, f->outputs, s->output_count, f->j->forward_ms, &error);
    if (status != DPI_TIMEOUT) {
        end_flight(y, f, (const void *const *)f->out, status, &error, &bad, "dpi_forward");
        return;
    }
    if (f->j->forward_ms > 30000)
        plan_fail("dpi_forward was not through after %d ms", f->j->forward_ms);
    for (size_t o = 0; o < s->output_count && f->j->memory != MEMORY_ALLOC; o++) {
        f->at_return[o] = malloc(s->out_bytes[o] * f->j->rows + 1);
        memcpy(f->at_return[o], f->out[o], s->out_bytes[o] * f->j->rows);
    }
}

static void submit(play *y, flight *f)
{
    dpi_error error = {0};
    dpi_batch b = DPI_INIT(dpi_batch);
    bool views = f->j->memory == MEMORY_VIEWS;
    b.inputs = &f->input;
    b.input_count = 1;
    b.outputs = views ? NULL : f->outputs;
    b.output_count = views ? 0 : y->what.output_count;
    dpi_status status = dpi_submit(y->s, &b, &f->ticket, &error);
    f->lost = status != DPI_OK;
    if (status)
        judge(y, &(verdict){.status = status, .error = &error, .of = f->j, .what = "dpi_submit"});
    if (!f->lost && f->j->cancel_us >= 0) {
        clock_sleep_until_ns(clock_now_ns() + (int64_t)f->j->cancel_us * 1000);
        f->cancelled = dpi_cancel(y->s, f->ticket, &error) == DPI_OK;
    }
}

static void wait_for(play *y, flight *f)
{
    dpi_error error = {0};
    left_out bad = {.count = 0};
    dpi_tensor views[2];
    const void *out[2];
    left_out_into(&bad);
    dpi_status status = dpi_wait(y->s, f->ticket, wait_ms(y), views, y->what.output_count, &error);
    if (status == DPI_TIMEOUT)
        plan_fail("a batch of %zu rows is not done after %d ms", f->j->rows, wait_ms(y));
    for (size_t o = 0; o < y->what.output_count; o++)
        out[o] = views[o].data;
    end_flight(y, f, out, status, &error, &bad, "the batch");
    if (f->j->memory == MEMORY_VIEWS)
        dpi_release(y->s, f->ticket, &error);
}

typedef struct submitter {
    play *y;
    unsigned number;
    flight flights[PLAN_JOBS];
    size_t count;
    pthread_t thread;
} submitter;

static void *submit_all(void *argument)
{
    submitter *t = argument;
    play *y = t->y;
    uint64_t c = y->p->seed + t->number;
    for (size_t i = t->number; i < y->p->job_count; i += y->p->threads) {
        flight *f = &t->flights[t->count++];
        make_flight(y, &y->p->jobs[i], y->p->seed * PLAN_JOBS + i, f);
        if (f->j->forward_ms)
            forward(y, f);
        else
            submit(y, f);
    }
    for (size_t left = t->count; left; left--) { /* in an order by chance */
        size_t at = chance_below(&c, (unsigned)left);
        flight f = t->flights[at];
        t->flights[at] = t->flights[left - 1];
        t->flights[left - 1] = f;
        if (!f.j->forward_ms && !f.lost)
            wait_for(y, &f);
    }
    return NULL;
}

static void check_untouched(play *y, const flight *f)
{
    for (size_t o = 0; o < y->what.output_count; o++)
        if (f->at_return[o] && memcmp(f->at_return[o], f->out[o], y->what.out_bytes[o] * f->j->rows) != 0)
            plan_fail("memory of an abandoned batch was written to");
}

void play_once_more(play *y)
{
    const job quiet = {.rows = 20, .forward_ms = wait_ms(y), .cancel_us = -1};
    uint64_t before[PLAN_SEATS], after[PLAN_SEATS];
    flight f;
    seats_look_at_slices(y, before);
    make_flight(y, &quiet, y->p->seed + 77, &f);
    forward(y, &f);
    free_flight(y, &f);
    seats_look_at_slices(y, after);
    for (unsigned w = 0; w < PLAN_SEATS; w++)
        if (before[w] != UINT64_MAX && after[w] != before[w])
            plan_fail("worker %u was removed and computes", w);
}

void play_batches(play *y)
{
    submitter all[2] = {{.y = y}, {.y = y, .number = 1}};
    for (unsigned i = 0; i < y->p->threads; i++)
        if (pthread_create(&all[i].thread, NULL, submit_all, &all[i]) != 0)
            plan_fail("cannot start a thread");
    for (unsigned i = 0; i < y->p->threads; i++)
        pthread_join(all[i].thread, NULL);
    changer_stop(y);
    play_once_more(y);
    for (unsigned i = 0; i < y->p->threads; i++)
        for (size_t k = 0; k < all[i].count; k++) {
            check_untouched(y, &all[i].flights[k]);
            free_flight(y, &all[i].flights[k]);
        }
}
