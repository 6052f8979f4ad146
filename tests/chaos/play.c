#include "play.h"

#include "base/clock.h"
#include "base/tensor.h"

#include "api/sim_kit.h"
#include "folder_kit.h"

#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOW_NS 100000000 /* of note_slowness; a tenth of it is usual */
#define CLOSE_S 15        /* dpi_close takes at most a few seconds, on a machine with nothing else to do */

_Noreturn void plan_fail_at(const char *file, int line, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "FAILED, %s:%d: ", strrchr(file, '/') ? strrchr(file, '/') + 1 : file, line);
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    _exit(1);
}

/* ---- what is told ----------------------------------------------------------------------------------------------- */

static int64_t began_ns;

static void hear_log(void *context, dpi_log_level level, const char *line)
{
    play *y = context;
    (void)level;
    for (int kind = 0; kind < FAULT_KINDS; kind++)
        if (fault_told[kind] && strstr(line, "says: sim: ") && strstr(line, fault_told[kind])) {
            y->r->faults[kind]++;
            seats_hear_trouble(y, line);
        }
    fprintf(stderr, "%7.3f %s\n", (double)(clock_now_ns() - began_ns) * 1e-9, line);
}

/* Whether something in the plan sends this signal, or sim of itself. */
static bool has_signal(const plan *p, int number)
{
    bool has = p->poison == POISON_DIE && number == SIGKILL;
    for (size_t i = 0; i < p->fault_count; i++)
        has |= p->faults[i].signal == number;
    for (size_t i = 0; i < p->kill_count; i++)
        has |= p->kills[i].signal == number;
    return has;
}

/* A worker that crashes, or that a sanitizer ends, without the plan's doing. */
static void judge_death(const plan *p, const char *json)
{
    enum { LEAVES = 7 }; /* exit_at_slice */
    const char *signal_at = strstr(json, "\"signal\":"), *code_at = strstr(json, "\"exit_code\":");
    int number = signal_at ? atoi(signal_at + 9) : 0, code = code_at ? atoi(code_at + 12) : 0;
    bool fails = code == 1 && plan_count(p, FAULT_FAIL_COMPILE, FAULT_FAIL_COMPILE);
    if ((number && !has_signal(p, number)) || (code && code != LEAVES && !fails))
        plan_fail("a worker died without the plan's doing: %s", json);
}

static void hear_event(void *context, const char *json)
{
    play *y = context;
    if (strstr(json, "{\"event\":\"died\"") == json && !strstr(json, "\"hung\":true"))
        judge_death(y->p, json);
    y->hangs += strstr(json, "\"hung\":true") != NULL;
    y->idle_hangs += strstr(json, "did nothing for") != NULL;
    seats_hear_event(y, json);
    const char *seconds = strstr(json, "{\"event\":\"started\"") == json ? strstr(json, "\"seconds\":") : NULL;
    if (seconds && !y->p->backend) /* whose start takes its time */
        note_slowness(y, (int64_t)(strtod(seconds + 10, NULL) * 1e9));
    fprintf(stderr, "%7.3f %s\n", (double)(clock_now_ns() - began_ns) * 1e-9, json);
}

/* ---- what is right ---------------------------------------------------------------------------------------------- */

void note_slowness(play *y, int64_t ns)
{
    if (ns > y->slow_ns)
        y->slow_ns = ns;
}

/* Without this a hang that the plan does not have is one of ours. */
static bool machine_is_slow(const play *y) { return y->slow_ns > SLOW_NS * y->p->patience; }

unsigned slow_hangs(const play *y)
{
    unsigned stops = 0, planned = plan_count(y->p, FAULT_HANG, FAULT_HANG) +
                                  plan_count(y->p, FAULT_HANG_COMPILE, FAULT_HANG_READY);
    for (size_t i = 0; i < y->p->kill_count; i++)
        stops += y->p->kills[i].signal == SIGSTOP;
    if (y->p->poison == POISON_HANG) /* these hang as often as they are tried, but in a slice */
        return y->idle_hangs > stops ? y->idle_hangs - stops : 0;
    planned += stops;
    return y->hangs <= planned ? 0 : y->hangs - planned;
}

/* A row that is not at fault may be given up when three trials of it have died of other things. */
static bool may_be_unlucky(const play *y, bool poisoned)
{
    return plan_bad_luck(y->p) + slow_hangs(y) >= (poisoned ? 3u : 4u);
}

static bool is_poison(const job *j, uint64_t row)
{
    for (size_t i = 0; i < j->poison_count; i++)
        if (j->poison[i] == row)
            return true;
    return false;
}

static void judge_left_out(play *y, const verdict *v)
{
    const left_out *bad = v->bad;
    size_t found = 0;
    if (v->status == DPI_BAD_ROWS && (!y->p->skip || !bad->count))
        plan_fail("%s: DPI_BAD_ROWS with %zu rows", v->what, bad->count);
    for (size_t i = 0; i < bad->count; i++) {
        bool planned = is_poison(v->of, bad->rows[i]);
        if (!planned && !may_be_unlucky(y, v->of->poison_count > 0))
            plan_fail("%s: the good row %llu was left out", v->what, (unsigned long long)bad->rows[i]);
        y->r->left_out += planned;
        y->r->unlucky_rows += !planned;
    }
    for (size_t i = 0; i < v->of->poison_count; i++)
        found += left_out_has(bad, v->of->poison[i]);
    if (!v->resumed && found != v->of->poison_count)
        plan_fail("%s: %zu of %zu poison rows were found", v->what, found, v->of->poison_count);
}

static bool row_is_to_blame(play *y, const verdict *v)
{
    unsigned long long row;
    if (y->p->skip || sscanf(v->error->message, "row %llu cannot be computed", &row) != 1)
        return false;
    if (is_poison(v->of, row)) {
        y->r->left_out++;
        return true;
    }
    y->r->unlucky_rows++;
    return may_be_unlucky(y, v->of->poison_count > 0);
}

bool session_may_end(play *y, const dpi_error *error)
{
    if (strstr(error->message, "spoilt the memory"))
        y->ended |= plan_may_be_spoilt(y->p);
    else if (strstr(error->message, "every device has failed") || strstr(error->message, "the device keeps failing"))
        y->ended |= seats_all_given_up(y, slow_hangs(y));
    else
        return false;
    return y->ended;
}

/* A worker keeps one failure for whoever waits: of two batches that fail at once one may be told the other's. */
static bool engine_may_fail(play *y, const verdict *v)
{
    if (y->p->skip)
        return v->status == DPI_E_SYSTEM && plan_count(y->p, FAULT_MEMORY, FAULT_MEMORY);
    return plan_count(y->p, FAULT_FAIL, FAULT_MEMORY) || (y->p->poison == POISON_FAIL && v->of->poison_count) ||
           (v->status == DPI_E_ENGINE && row_is_to_blame(y, v));
}

static bool may_fail(play *y, const verdict *v)
{
    switch (v->status) {
    case DPI_CANCELLED: return v->cancelled;
    case DPI_E_ENGINE:
    case DPI_E_SYSTEM: return engine_may_fail(y, v);
    case DPI_E_WORKER: return row_is_to_blame(y, v) || session_may_end(y, v->error);
    default: return false;
    }
}

void judge(play *y, const verdict *v)
{
    if (v->status == DPI_OK || v->status == DPI_BAD_ROWS) {
        judge_left_out(y, v);
        return;
    }
    if (!may_fail(y, v))
        plan_fail("%s ended with %s: %s", v->what, dpi_status_name(v->status), v->error->message);
    y->r->cancelled += v->status == DPI_CANCELLED;
    y->r->failed += v->status != DPI_CANCELLED;
}

/* ---- the session ------------------------------------------------------------------------------------------------ */

static void devices_of(const plan *p, char *text, size_t size)
{
    size_t used = 0;
    for (unsigned d = 0; d < p->workers; d++) {
        char name[SEAT_NAME];
        plan_device(p, d, name, sizeof name);
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? "," : "", name);
    }
}

static void set_faults(const plan *p, dpi_options *o)
{
    static char keys[PLAN_SEATS][24], values[PLAN_SEATS][256];
    static dpi_key_value list[PLAN_SEATS];
    o->backend_options = list;
    for (unsigned w = 0; w < PLAN_SEATS; w++) {
        plan_worker_faults(p, w, values[w], sizeof values[w]);
        snprintf(keys[w], sizeof keys[w], "%u.faults", w);
        if (values[w][0])
            list[o->backend_option_count++] = (dpi_key_value){keys[w], values[w]};
    }
}

dpi_options play_options(play *y, bool faulty)
{
    static char text[1024], devices[64], path[PATH_SIZE];
    const plan *p = y->p;
    dpi_options o = DPI_INIT(dpi_options);
    devices_of(p, devices, sizeof devices);
    o.devices = faulty ? devices : p->backend ? "cpu:0" : "sim:0";
    o.batch = p->batch;
    o.log = hear_log;
    o.log_context = y;
    o.log_level = DPI_LOG_INFO;
    if (p->backend) {
        snprintf(path, sizeof path, "%.200s/models/digits.onnx", getenv("DPI_SRC") ? getenv("DPI_SRC") : ".");
        o.model_path = path;
        o.backend = p->backend;
    } else {
        plan_model(p, text, sizeof text);
        o.model_data = text;
        o.model_bytes = strlen(text);
        o.model_format = "sim";
        o.cache_dir = "";
    }
    if (!faulty)
        return o;
    o.isolation = p->strict ? DPI_ISOLATION_STRICT : DPI_ISOLATION_PROCESS;
    set_faults(p, &o);
    o.total_batch_size = p->share;
    o.on_bad_row = p->skip ? DPI_BAD_ROW_SKIP : DPI_BAD_ROW_FAIL;
    o.bad_row = note_left_out;
    o.bad_row_context = y;
    o.max_deaths = p->max_deaths;
    o.slice_timeout_ms = p->slice_timeout_ms;
    o.compile_timeout_ms = p->compile_timeout_ms;
    o.event = hear_event;
    o.event_context = y;
    return o;
}

static void describe_subject(play *y, const real_data *real)
{
    subject *s = &y->what;
    if (real) {
        *s = (subject){.real = real, .in_dtype = DPI_U8, .in_rank = 3, .in_row = {8, 8}, .in_bytes = REAL_INPUT};
        s->output_count = 1;
        s->out_bytes[0] = REAL_OUTPUT;
        return;
    }
    char text[1024];
    dpi_error error;
    plan_model(y->p, text, sizeof text);
    *s = (subject){.in_dtype = DPI_F32, .in_rank = 2, .in_row = {PLAN_WIDTH}, .in_bytes = PLAN_WIDTH * sizeof(float)};
    s->output_count = 2;
    s->out_bytes[0] = 3 * sizeof(float);
    s->out_bytes[1] = sizeof(int32_t);
    if (sim_model_parse(text, strlen(text), "the plan's", &s->model, &error))
        plan_fail("%s", error.message);
}

/* Faults that strike when the session closes, where their worker has lived to see it. */
static void count_shutdown_faults(play *y)
{
    dpi_error error;
    dpi_description d = DPI_INIT(dpi_description);
    if (dpi_describe(y->s, &d, &error)) { /* it may have ended with nobody waiting */
        if (!session_may_end(y, &error))
            plan_fail("dpi_describe: %s", error.message);
        return;
    }
    for (size_t i = 0; i < y->p->fault_count; i++) {
        const fault *f = &y->p->faults[i];
        if ((f->kind == FAULT_DIE_SHUTDOWN || f->kind == FAULT_HANG_SHUTDOWN) && f->worker < d.worker_count &&
            d.workers[f->worker].pid && d.workers[f->worker].generation == f->generation)
            y->r->faults[f->kind]++;
    }
}

/* Nobody is given up, and no device blamed, for what bad rows do. */
static void check_stats(play *y)
{
    dpi_error error;
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    if (dpi_stats(y->s, &stats, &error))
        plan_fail("%s", error.message);
    unsigned limit = y->p->max_deaths ? y->p->max_deaths : 5, luck = plan_bad_luck(y->p) + slow_hangs(y);
    if (stats.retired_devices * limit > luck)
        plan_fail("%llu devices were given up, for %u faults at most", (unsigned long long)stats.retired_devices, luck);
    if (slow_hangs(y) && !machine_is_slow(y))
        plan_fail("%u hangs that the plan does not have, and the machine was not slow (%.0f ms)", slow_hangs(y),
                  (double)y->slow_ns * 1e-6);
    y->r->slow_hangs += slow_hangs(y);
}

static void see_through(play *y)
{
    y->open = true;
    changer_start(y);
    if (y->p->shard)
        play_run(y);
    else
        play_batches(y);
    check_stats(y);
    count_shutdown_faults(y);
    y->r->ended += y->ended;
    int64_t closing_ns = clock_now_ns();
    dpi_close(y->s);
    if (clock_now_ns() - closing_ns > CLOSE_S * 1000000000ll)
        plan_fail("dpi_close took %.1f s", (double)(clock_now_ns() - closing_ns) * 1e-9);
}

void play_plan(const plan *p, tally *r, const real_data *real, const char *folder)
{
    play y = {.p = p, .r = r};
    began_ns = clock_now_ns();
    kit_let_workers_crash();
    folder_empty(folder);
    snprintf(y.folder, sizeof y.folder, "%s", folder);
    if (p->backend && !real->there) {
        r->absent++;
        return;
    }
    describe_subject(&y, p->backend ? real : NULL);
    kit_traces before = kit_look();
    if (p->shard && p->csv)
        play_run_undisturbed(&y);
    dpi_options o = play_options(&y, true);
    dpi_error error = {0};
    seats_open(&y);
    killer_start(&y);
    dpi_status status = dpi_open(&o, &y.s, &error);
    if (!status && plan_cannot_open(p))
        plan_fail("the session opened although a worker cannot start");
    bool slow = status && machine_is_slow(&y) && strstr(error.message, "was not ready after");
    if (status && !plan_may_not_open(p) && !slow)
        plan_fail("dpi_open: %s: %s", dpi_status_name(status), error.message);
    r->unopened += status != DPI_OK;
    r->slow_hangs += slow;
    if (!status)
        see_through(&y);
    killer_stop(&y);
    fprintf(stderr, "        slowness: %.0f ms\n", (double)y.slow_ns * 1e-6);
    kit_check_clean(before);
    folder_empty(folder);
    r->slow_ns = (3 * r->slow_ns + y.slow_ns) / 4;
}

void real_data_make(real_data *data, const char *name)
{
    plan p = {.backend = name, .batch = 16};
    static tally nobody;
    play y = {.p = &p, .r = &nobody};
    dpi_options o = play_options(&y, false);
    dpi_session *s;
    dpi_error error;
    dpi_tensor in, out;
    describe_subject(&y, data);
    for (size_t i = 0; i < REAL_ROWS; i++)
        for (size_t k = 0; k < REAL_INPUT; k++)
            data->input[i][k] = (unsigned char)((i * 31 + k * k + (i >> 3) * k) % 17);
    o.log_level = DPI_LOG_WARNING;
    subject_input(&y.what, REAL_ROWS, data->input, &in);
    subject_output(&y.what, 0, REAL_ROWS, data->output, &out);
    dpi_status status = dpi_open(&o, &s, &error);
    if (status == DPI_E_BACKEND)
        return;
    if (status || dpi_forward(s, &in, 1, &out, 1, 0, &error))
        plan_fail("%s: %s", name, error.message);
    dpi_close(s);
    data->there = true;
}
