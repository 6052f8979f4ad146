/* top: what running sessions do, seen from outside (runtime/watch.h). */
#include "cli/cli.h"

#include "base/clock.h"
#include "base/text.h"
#include "runtime/watch.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const char help[] =
    "dpinfer top [PID] [--once] [--interval S] [--json]\n"
    "\n"
    "Shows what every session of this user does: rows a second, how busy each device is, slices that wait for it, and "
    "how\n"
    "often its worker was started again. PID: those of one process. The sessions do nothing for it.\n"
    "\n"
    "    dpinfer top\n"
    "    dpinfer top --once --interval 5\n"
    "\n"
    "    --interval S    seconds between two looks (1)\n"
    "    --once          one table of one interval; so does a standard output that is no terminal\n"
    "    --json          the same as one JSON object\n"
    "\n"
    "busy is the share of the time in which a device loads, copies or computes. Sessions of other versions of dpinfer\n"
    "are named and no more. Ends with Ctrl-C.\n";

typedef struct top_options {
    pid_t pid;
    bool once, json;
    double interval;
} top_options;

static dpi_status parse(int argc, char **argv, top_options *o, dpi_error *error)
{
    *o = (top_options){.interval = 1};
    for (int i = 1; i < argc; i++) {
        uint64_t pid;
        bool is_interval = strncmp(argv[i], "--interval", 10) == 0;
        const char *value = is_interval && argv[i][10] == '='             ? argv[i] + 11
                            : is_interval && !argv[i][10] && i + 1 < argc ? argv[++i]
                                                                          : NULL;
        if (value) {
            if (!text_to_double(value, &o->interval) || o->interval < 0.05 || o->interval > 86400)
                return error_set(error, DPI_E_ARGUMENT, "--interval takes seconds (0.05 to 86400), not \"%.100s\"",
                                 value);
        } else if (strcmp(argv[i], "--once") == 0)
            o->once = true;
        else if (strcmp(argv[i], "--json") == 0)
            o->once = o->json = true;
        else if (argv[i][0] == '-')
            return error_set(error, DPI_E_ARGUMENT,
                             "top: the flag %s is unknown or lacks its value; see dpinfer top --help", argv[i]);
        else if (!text_to_u64(argv[i], 1, INT32_MAX, &pid) || o->pid)
            return error_set(error, DPI_E_ARGUMENT, "top: \"%s\" is not the number of a process", argv[i]);
        else
            o->pid = (pid_t)pid;
    }
    return DPI_OK;
}

/* ---- two looks -------------------------------------------------------------------------------------------------- */

typedef struct sight {
    watched_session *list;
    size_t count;
} sight;

/* The same session in an earlier look. */
static const watched_session *before_of(const sight *before, const watched_session *s)
{
    for (size_t i = 0; i < before->count; i++)
        if (before->list[i].pid == s->pid && before->list[i].inode == s->inode && !before->list[i].other_build)
            return &before->list[i];
    return NULL;
}

typedef struct rates {
    double rows_per_s, busy; /* busy: 0 to 1 */
} rates;

static rates rates_of(const watched_session *before, const watched_session *now, size_t w)
{
    double seconds = before ? now->now_s - before->now_s : 0;
    if (seconds <= 0 || w >= before->device_count)
        return (rates){0, 0};
    const watched_device *a = &before->devices[w], *b = &now->devices[w];
    double busy = (b->busy_s - a->busy_s) / seconds;
    return (rates){.rows_per_s = b->rows > a->rows ? (double)(b->rows - a->rows) / seconds : 0,
                   .busy = busy < 0   ? 0
                           : busy > 1 ? 1
                                      : busy};
}

static const char *state_of(const watched_device *d)
{
    static const char *const names[] = {"starting",  "starting", "loading", "waits to build",
                                        "compiling", "probing",  "idle",    "leaving"};
    if (!d->in_use)
        return "out of use";
    if (d->stage == STAGE_READY && d->busy)
        return "computing";
    return d->stage < sizeof names / sizeof names[0] ? names[d->stage] : "?";
}

static double session_rate(const watched_session *before, const watched_session *s)
{
    double rate = 0;
    for (size_t w = 0; w < s->device_count; w++)
        rate += rates_of(before, s, w).rows_per_s;
    return rate;
}

/* ---- showing ---------------------------------------------------------------------------------------------------- */

static void add_time(text_buffer *t, double seconds)
{
    unsigned long long s = seconds > 0 ? (unsigned long long)seconds : 0;
    if (s >= 3600)
        text_add(t, "%llu:%02llu:%02llu", s / 3600, s / 60 % 60, s % 60);
    else
        text_add(t, "%llu:%02llu", s / 60, s % 60);
}

static void add_session(text_buffer *t, const watched_session *before, const watched_session *s)
{
    char a[32], b[32];
    double rate = session_rate(before, s);
    if (s->other_build) {
        text_add(t, "%d  of another version of dpinfer\n\n", (int)s->pid);
        return;
    }
    text_add(t, "%d  %s, open for ", (int)s->pid, s->model);
    add_time(t, s->open_s);
    text_add(t, ", %s rows/s", cli_grouped((uint64_t)(rate + 0.5), a));
    if (s->run_rows) {
        text_add(t, ", %s of %s rows", cli_grouped(s->run_done, a), cli_grouped(s->run_rows, b));
        if (rate > 0) {
            text_add(t, ", ");
            add_time(t, (double)(s->run_rows - s->run_done) / rate);
            text_add(t, " left");
        }
    }
    if (s->queued)
        text_add(t, ", %u slices for whoever is free", s->queued);
    text_add(t, "\n  %-20s %-14s %12s %7s %7s %8s %9s\n", "device", "state", "rows/s", "busy", "queue", "running",
             "restarts");
    for (size_t w = 0; w < s->device_count; w++) {
        const watched_device *d = &s->devices[w];
        rates r = rates_of(before, s, w);
        text_add(t, "  %-20.20s %-14s %12s %6.0f%% %7u %8u %9u\n", d->name, state_of(d),
                 cli_grouped((uint64_t)(r.rows_per_s + 0.5), a), 100 * r.busy, d->queued, d->running,
                 d->starts ? d->starts - 1 : 0);
    }
    text_add(t, "\n");
}

static json_t *session_json(const watched_session *before, const watched_session *s)
{
    json_t *devices = json_array();
    if (s->other_build)
        return json_pack("{s:i, s:b, s:o}", "pid", (int)s->pid, "other_version", 1, "devices", devices);
    for (size_t w = 0; w < s->device_count; w++) {
        const watched_device *d = &s->devices[w];
        rates r = rates_of(before, s, w);
        json_array_append_new(devices, json_pack("{s:s, s:s, s:f, s:f, s:i, s:i, s:i, s:I, s:I}", "device", d->name,
                                                 "state", state_of(d), "rows_per_s", r.rows_per_s, "busy", r.busy,
                                                 "queue", (int)d->queued, "running", (int)d->running, "restarts",
                                                 (int)(d->starts ? d->starts - 1 : 0), "rows", (json_int_t)d->rows,
                                                 "slices", (json_int_t)d->slices));
    }
    json_t *model = json_string(s->model);
    return json_pack("{s:i, s:o, s:f, s:f, s:I, s:I, s:i, s:o}", "pid", (int)s->pid, "model",
                     model ? model : json_string("?"), "open_s", s->open_s, "rows_per_s", session_rate(before, s),
                     "run_rows", (json_int_t)s->run_rows, "run_done", (json_int_t)s->run_done, "queue", (int)s->queued,
                     "devices", devices);
}

static void show_json(const sight *before, const sight *now)
{
    json_t *all = json_array();
    for (size_t i = 0; i < now->count; i++)
        json_array_append_new(all, session_json(before_of(before, &now->list[i]), &now->list[i]));
    cli_print_json(json_pack("{s:o}", "sessions", all));
}

/* On a terminal no more than fits: a line that wraps would shift what stands below it. */
static void print_lines(const char *text, bool terminal)
{
    struct winsize size = {0};
    bool cut = terminal && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col && size.ws_row;
    for (unsigned line = 1; *text; line++) {
        size_t length = strcspn(text, "\n"), shown = cut && length > size.ws_col ? size.ws_col : length;
        if (cut && line >= size.ws_row)
            break;
        printf("%.*s%s\n", (int)shown, text, terminal ? "\033[K" : "");
        text += length + (text[length] == '\n');
    }
}

static void show_text(const sight *before, const sight *now, bool terminal)
{
    text_buffer t = {0};
    for (size_t i = 0; i < now->count; i++)
        add_session(&t, before_of(before, &now->list[i]), &now->list[i]);
    if (!now->count)
        text_add(&t, "no session of dpinfer is open\n");
    fputs(terminal ? "\033[H" : "", stdout);
    print_lines(t.data ? t.data : "", terminal);
    fputs(terminal ? "\033[J" : "", stdout);
    fflush(stdout);
    text_free(&t);
}

static void wait_for(double seconds)
{
    int64_t until = clock_now_ns() + (int64_t)(seconds * 1e9);
    while (clock_now_ns() < until && !cli_signal()) {
        int64_t step = clock_now_ns() + 50000000;
        clock_sleep_until_ns(step < until ? step : until);
    }
}

static dpi_status watch(const top_options *o, dpi_error *error)
{
    bool terminal = !o->once && isatty(STDOUT_FILENO);
    sight before = {0}, now = {0};
    dpi_status status = watch_sessions(o->pid, &before.list, &before.count, error);
    fputs(terminal ? "\033[?1049h\033[?25l" : "", stdout); /* a screen of its own, without a cursor */
    if (terminal && !status)
        show_text(&before, &before, true);
    while (!status && !cli_signal()) {
        wait_for(o->interval);
        status = watch_sessions(o->pid, &now.list, &now.count, error);
        if (!status && o->json)
            show_json(&before, &now);
        else if (!status)
            show_text(&before, &now, terminal);
        free(before.list);
        before = now;
        now = (sight){0};
        if (!terminal)
            break;
    }
    fputs(terminal ? "\033[?25h\033[?1049l" : "", stdout);
    free(before.list);
    return status;
}

int cmd_top(int argc, char **argv)
{
    top_options o;
    dpi_error error;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            fputs(help, stdout);
            return 0;
        }
    dpi_status status = parse(argc, argv, &o, &error);
    if (!status) {
        cli_catch_signals();
        status = watch(&o, &error);
    }
    return status ? cli_fail(&error) : 0;
}
