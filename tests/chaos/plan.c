#include "plan.h"

#include "base/hash.h"

#include <signal.h>
#include <string.h>

const char *const fault_names[FAULT_KINDS] = {
#define X(kind, name, told) name,
    FAULT_LIST(X)
#undef X
};
const char *const fault_told[FAULT_KINDS] = {
#define X(kind, name, told) told,
    FAULT_LIST(X)
#undef X
};

uint64_t chance(uint64_t *state) { return hash_mix64(++*state, 0x9e3779b97f4a7c15u); }

unsigned chance_below(uint64_t *state, unsigned most) { return (unsigned)(chance(state) >> 11) % most; }

static bool one_in(uint64_t *c, unsigned n) { return chance_below(c, n) == 0; }

/* ---- drawing ---------------------------------------------------------------------------------------------------- */

static void draw_fault(plan *p, uint64_t *c, unsigned worker, unsigned generation)
{
    static const int signals[] = {SIGKILL, SIGSEGV, SIGABRT, SIGBUS, SIGTERM};
    fault *f = &p->faults[p->fault_count++];
    f->worker = worker;
    f->generation = generation;
    f->slice = 1 + chance_below(c, 5);
    f->step = 1 + chance_below(c, 7);
    f->signal = signals[chance_below(c, 5)];
    f->kind = (fault_kind)chance_below(c, FAULT_POISON);
    bool starting = f->kind >= FAULT_DIE_COMPILE && f->kind <= FAULT_FAIL_COMPILE;
    if (starting && worker < p->workers && generation == 1 && !one_in(c, 8)) /* few sessions that do not even open */
        f->kind = (fault_kind)chance_below(c, FAULT_DIE_COMPILE);
}

/* Chains of faults: the second strikes the worker that replaces the first. */
static void draw_faults(plan *p, uint64_t *c)
{
    unsigned workers = p->workers + (p->change_count ? 2 : 0);
    unsigned struck = one_in(c, 5) ? 0 : 1 + chance_below(c, workers);
    for (unsigned i = 0; i < struck; i++) {
        unsigned worker = chance_below(c, workers), generations = 1 + chance_below(c, 3);
        for (size_t k = 0; k < p->fault_count; k++)
            if (p->faults[k].worker == worker)
                generations = 0;
        for (unsigned g = 1; g <= generations && p->fault_count < PLAN_FAULTS; g++)
            draw_fault(p, c, worker, g);
    }
}

static void draw_kills(plan *p, uint64_t *c)
{
    unsigned kills = one_in(c, 2) ? 0 : 1 + chance_below(c, PLAN_KILLS), span_us = p->backend ? 200000 : 100000;
    bool stopped = false;
    if (p->backend && !kills)
        kills = 1 + chance_below(c, 4);
    for (unsigned i = 0; i < kills; i++) {
        outside *o = &p->kills[p->kill_count++];
        unsigned how = chance_below(c, 10);
        o->signal = how < 7 ? SIGKILL : how == 7 ? SIGSEGV : how == 8 ? SIGTERM : SIGSTOP;
        if (o->signal == SIGSTOP && (stopped || p->backend)) /* each costs its limit, and may count as a breach */
            o->signal = SIGKILL;
        stopped |= o->signal == SIGSTOP;
        o->at_us = chance_below(c, span_us);
    }
    p->kills_while_opening = one_in(c, 4);
}

static void draw_changes(plan *p, uint64_t *c)
{
    p->change_count = one_in(c, 2) ? 0 : 1 + chance_below(c, PLAN_CHANGES);
    p->one_name = one_in(c, 3);
    for (size_t i = 0; i < p->change_count; i++) {
        change *x = &p->changes[i];
        unsigned how = chance_below(c, 6);
        x->adds = i == 0 && p->workers == 1 ? true : one_in(c, 2);
        x->when = how < 3 ? WHEN_TIME : how < 5 ? WHEN_TROUBLE : WHEN_DIED;
        x->whom = x->when != WHEN_TIME && !one_in(c, 3) ? WHOM_TROUBLED
                  : !x->adds && one_in(c, 6)            ? WHOM_ALL
                                                        : WHOM_DRAWN;
        x->first = chance_below(c, p->workers + 2);
        x->count = one_in(c, 4) ? 2 : 1;
        x->at_us = x->when == WHEN_TIME ? chance_below(c, 30000) : 60000;
        x->timeout_ms = !one_in(c, 4) ? 0 : x->adds || one_in(c, 2) ? 1 + (int)chance_below(c, 30) : -1;
    }
}

static void draw_poison(plan *p, uint64_t *c, job *j)
{
    if (!p->poison || !j->rows || one_in(c, 2))
        return;
    j->poison_count = p->poison == POISON_HANG ? 1 : 1 + chance_below(c, PLAN_POISON);
    for (size_t i = 0; i < j->poison_count; i++)
        j->poison[i] = chance_below(c, (unsigned)j->rows);
}

static void draw_jobs(plan *p, uint64_t *c)
{
    p->threads = 1 + chance_below(c, 2);
    p->job_count = p->shard ? 1 : 1 + chance_below(c, PLAN_JOBS);
    for (size_t i = 0; i < p->job_count; i++) {
        job *j = &p->jobs[i];
        j->rows = one_in(c, 20) ? chance_below(c, 3) : 1 + chance_below(c, p->shard ? 600 : 200);
        if (p->shard)
            j->rows += 1;
        if (p->backend)
            j->rows *= 20; /* the model is small */
        j->memory = (enum memory)chance_below(c, MEMORY_KINDS);
        j->cancel_us = one_in(c, 8) ? (int)chance_below(c, 20000) : -1;
        j->forward_ms = one_in(c, 6) ? 1 + (int)chance_below(c, one_in(c, 2) ? 20 : 2000) : 0;
        draw_poison(p, c, j);
    }
    p->csv = !p->poison && one_in(c, 3);
    p->random_source = !p->poison && one_in(c, 2);
    p->journal_ms = one_in(c, 4) ? 0 : 1 + chance_below(c, 20);
    p->stop_us = one_in(c, 4) ? (int)chance_below(c, 60000) : -1;
}

static void draw_limits(plan *p, unsigned patience)
{
    bool hangs = p->poison == POISON_HANG;
    for (size_t i = 0; i < p->fault_count; i++) {
        fault_kind k = p->faults[i].kind;
        hangs |= k == FAULT_HANG || k == FAULT_SPOIL || (k >= FAULT_HANG_COMPILE && k <= FAULT_HANG_READY);
    }
    for (size_t i = 0; i < p->kill_count; i++)
        hangs |= p->kills[i].signal == SIGSTOP;
    p->patience = patience;
    p->slice_timeout_ms = hangs ? 300 * patience : 0;
    p->compile_timeout_ms = hangs ? 4000 * patience : 0;
}

void plan_draw(plan *p, uint64_t seed, const char *real, unsigned patience)
{
    uint64_t state = hash_mix64(seed, 1), *c = &state;
    *p = (plan){.seed = seed, .backend = real};
    p->workers = real ? 2 : 1 + chance_below(c, PLAN_WORKERS);
    p->depth = 1 + chance_below(c, 3);
    p->batch = 1 + chance_below(c, 16);
    p->share = one_in(c, 3) ? 1 + chance_below(c, 40) : 0; /* --split: rows of one round over all workers */
    p->share += p->share && p->share < p->workers ? p->workers : 0;
    p->fixed_us = 50 + chance_below(c, one_in(c, 3) ? 3000 : 600);
    p->row_us = chance_below(c, 50);
    p->jitter_us = one_in(c, 2) ? chance_below(c, 500) : 0;
    p->shard = one_in(c, 3);
    p->skip = one_in(c, 2);
    p->in_enqueue = one_in(c, 3);
    p->poison = real || !one_in(c, 5) ? POISON_NONE
                : one_in(c, 6)        ? POISON_HANG
                : one_in(c, 2)        ? POISON_DIE
                                      : POISON_FAIL;
    p->max_deaths = one_in(c, 6) ? 1 + chance_below(c, 3) : 0;
    draw_changes(p, c);
    if (!real)
        draw_faults(p, c);
    draw_kills(p, c);
    draw_jobs(p, c);
    draw_limits(p, patience);
    p->strict = hash_mix64(seed, 2) % 3 == 0; /* a draw of its own: seeds of before mean the same plans */
}

/* ---- for sim ---------------------------------------------------------------------------------------------------- */

void plan_model(const plan *p, char *text, size_t size)
{
    static const char *const how[] = {"", "die", "hang", "fail"};
    char poison[80] = "";
    if (p->poison)
        snprintf(poison, sizeof poison, "poison %d\npoison_how %s\n", POISON, how[p->poison]);
    snprintf(text, size,
             "input x float32 N %d\noutput y float32 N 3\noutput z int32 N\nfixed_us %u\nrow_us %u\njitter_us %u\n"
             "depth %u\nfault_in_enqueue %d\n%s",
             PLAN_WIDTH, p->fixed_us, p->row_us, p->jitter_us, p->depth, p->in_enqueue, poison);
}

static const char *key_of(fault_kind kind)
{
    static const char *const keys[] = {
        [FAULT_DIE] = "die_at_slice",
        [FAULT_STEP] = "die_at_slice",
        [FAULT_EXIT] = "exit_at_slice",
        [FAULT_HANG] = "hang_at_slice",
        [FAULT_SPOIL] = "spoil_at_slice",
        [FAULT_BABBLE] = "babble_at_slice",
        [FAULT_SLOW] = "slow_at_slice",
        [FAULT_FAIL] = "fail_at_slice",
        [FAULT_SIZE] = "wrong_size_at_slice",
        [FAULT_MEMORY] = "no_memory_at_slice",
        [FAULT_DIE_COMPILE] = "die_compile",
        [FAULT_DIE_PROBE] = "die_probe",
        [FAULT_DIE_READY] = "die_ready",
        [FAULT_HANG_COMPILE] = "hang_compile",
        [FAULT_HANG_PROBE] = "hang_probe",
        [FAULT_HANG_READY] = "hang_ready",
        [FAULT_FAIL_COMPILE] = "fail_compile",
        [FAULT_DIE_SHUTDOWN] = "die_shutdown",
        [FAULT_HANG_SHUTDOWN] = "hang_shutdown",
    };
    return keys[kind];
}

void plan_device(const plan *p, unsigned d, char *text, size_t size)
{
    if (p->backend)
        snprintf(text, size, "cpu:%u", d % 2);
    else
        snprintf(text, size, "sim:%u", p->one_name ? 0 : d);
}

void plan_worker_faults(const plan *p, unsigned w, char *text, size_t size)
{
    size_t used = 0;
    text[0] = 0;
    for (size_t i = 0; i < p->fault_count && used < size; i++) {
        const fault *f = &p->faults[i];
        if (f->worker != w)
            continue;
        bool rages = f->kind == FAULT_SPOIL && p->strict;
        used += (size_t)snprintf(text + used, size - used, "%s%u:%s=%u,%u:signal=%d", used ? "," : "", f->generation,
                                 rages ? "rage_at_slice" : key_of(f->kind),
                                 f->kind <= FAULT_MEMORY && !rages ? f->slice : 1, f->generation, f->signal);
        if (f->kind == FAULT_STEP && used < size)
            used += (size_t)snprintf(text + used, size - used, ",%u:die_at_step=%u", f->generation, f->step);
        if (f->kind == FAULT_SLOW && used < size)
            used += (size_t)snprintf(text + used, size - used, ",%u:slow_us=%u", f->generation, 1000 * f->step);
    }
}

static void print_changes(const plan *p, FILE *to)
{
    static const char *const when[] = {"", ", at the next fault", ", at the next death"};
    static const char *const whom[] = {"device", "the one in trouble, or device", "all, or device"};
    for (size_t i = 0; i < p->change_count; i++) {
        const change *x = &p->changes[i];
        fprintf(to, "  %s %s %u (%u)%s, after %u us, within %d ms\n", x->adds ? "add" : "remove", whom[x->whom],
                x->first, x->count, when[x->when], x->at_us, x->timeout_ms);
    }
}

void plan_print(const plan *p, FILE *to)
{
    static const char *const memory[] = {"plain", "dpi_alloc", "views"};
    fprintf(to,
            "plan of seed %llu: %s%s, %u workers%s, depth %u, batch %u, split %u, %s, bad rows %s, max_deaths %u, "
            "limits %u "
            "and %u ms\n",
            (unsigned long long)p->seed, p->backend ? p->backend : "sim", p->strict ? " (strict)" : "", p->workers,
            p->one_name ? " of one name" : "", p->depth, p->batch, p->share, p->shard ? "a run" : "batches",
            p->skip ? "skipped" : "fail", p->max_deaths, p->slice_timeout_ms, p->compile_timeout_ms);
    for (unsigned w = 0; w < PLAN_SEATS; w++) {
        char text[256];
        plan_worker_faults(p, w, text, sizeof text);
        if (text[0])
            fprintf(to, "  worker %u: %s\n", w, text);
    }
    for (size_t i = 0; i < p->kill_count; i++)
        fprintf(to, "  signal %d after %u us%s\n", p->kills[i].signal, p->kills[i].at_us,
                p->kills_while_opening ? "" : " of the open session");
    print_changes(p, to);
    for (size_t i = 0; i < p->job_count; i++) {
        const job *j = &p->jobs[i];
        fprintf(to, "  %zu rows, %s, forward %d ms, cancelled after %d us", j->rows, memory[j->memory], j->forward_ms,
                j->cancel_us);
        for (size_t k = 0; k < j->poison_count; k++)
            fprintf(to, ", poison %d at %zu", (int)p->poison, j->poison[k]);
        fprintf(to, "\n");
    }
    if (p->shard)
        fprintf(to, "  %s sink, %s source, journal %u ms, stopped after %d us\n", p->csv ? "csv" : "npy",
                p->random_source ? "random" : "npy", p->journal_ms, p->stop_us);
}

/* ---- what may come of it ---------------------------------------------------------------------------------------- */

unsigned plan_count(const plan *p, fault_kind first, fault_kind last)
{
    unsigned count = 0;
    for (size_t i = 0; i < p->fault_count; i++)
        count += p->faults[i].kind >= first && p->faults[i].kind <= last;
    return count;
}

unsigned plan_bad_luck(const plan *p)
{
    return (unsigned)(p->fault_count + p->kill_count) - plan_count(p, FAULT_SLOW, FAULT_SLOW) -
           plan_count(p, FAULT_DIE_SHUTDOWN, FAULT_HANG_SHUTDOWN);
}

/* Faults for which all workers pay. */
static unsigned plan_spoils(const plan *p) { return p->strict ? 0 : plan_count(p, FAULT_SPOIL, FAULT_SPOIL); }

bool plan_may_give_up(const plan *p, unsigned devices, unsigned more_deaths)
{
    unsigned limit = p->max_deaths ? p->max_deaths : 5;
    return plan_bad_luck(p) + more_deaths - plan_spoils(p) - plan_count(p, FAULT_FAIL, FAULT_MEMORY) >= limit * devices;
}

static unsigned count_stops(const plan *p)
{
    unsigned stops = 0;
    for (size_t i = 0; i < p->kill_count; i++)
        stops += p->kills[i].signal == SIGSTOP;
    return stops;
}

bool plan_may_be_spoilt(const plan *p) { return plan_spoils(p) + count_stops(p) > 3; }

bool plan_may_not_add(const plan *p)
{
    return plan_count(p, FAULT_DIE_COMPILE, FAULT_FAIL_COMPILE) || plan_count(p, FAULT_SPOIL, FAULT_SPOIL) ||
           p->kill_count;
}

/* Of the workers that the session opens with. */
static bool has_start_fault(const plan *p, fault_kind first, fault_kind last, unsigned generation)
{
    for (size_t i = 0; i < p->fault_count; i++)
        if (p->faults[i].worker < p->workers && p->faults[i].kind >= first && p->faults[i].kind <= last &&
            p->faults[i].generation == generation)
            return true;
    return false;
}

bool plan_cannot_open(const plan *p)
{
    return !(p->kills_while_opening && p->kill_count) && has_start_fault(p, FAULT_HANG_COMPILE, FAULT_FAIL_COMPILE, 1);
}

bool plan_may_not_open(const plan *p)
{
    unsigned kills = p->kills_while_opening ? (unsigned)p->kill_count : 0;
    bool first = has_start_fault(p, FAULT_DIE_COMPILE, FAULT_DIE_READY, 1),
         second = has_start_fault(p, FAULT_DIE_COMPILE, FAULT_FAIL_COMPILE, 2);
    return (kills && count_stops(p)) || plan_cannot_open(p) ||
           has_start_fault(p, FAULT_HANG_COMPILE, FAULT_FAIL_COMPILE, 1) || kills >= 2 ||
           (first && (second || kills)) || (kills && second);
}
