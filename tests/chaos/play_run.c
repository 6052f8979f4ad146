/* A data set of a plan: the file is whole and right, or absent, and a run that has been stopped goes on. */
#include "play.h"

#include "base/clock.h"
#include "base/file.h"
#include "data/npy.h"
#include "data/source.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MOST_CALLS 16

typedef struct data_set {
    size_t rows;
    void *in;                                                                 /* rows */
    char source[PATH_SIZE + 16], sink[PATH_SIZE + 16], whole[PATH_SIZE + 16]; /* whole: of an undisturbed run */
} data_set;

static void read_source(data_set *d)
{
    source *s;
    const void *rows;
    bool in_place;
    dpi_error error;
    if (source_open(d->source, -1, &s, &error) || source_rows_at(s, 0, d->rows, d->in, true, &rows, &in_place, &error))
        plan_fail("%s", error.message);
    source_close(s);
}

static void write_source(play *y, const data_set *d)
{
    char header[256];
    dpi_tensor t;
    subject_input(&y->what, d->rows, NULL, &t);
    size_t length = npy_format(t.dtype, t.shape, t.rank, header, sizeof header);
    FILE *f = fopen(d->source, "wbe");
    if (!f || fwrite(header, 1, length, f) != length || fwrite(d->in, y->what.in_bytes, d->rows, f) != d->rows ||
        fclose(f))
        plan_fail("cannot write %s", d->source);
}

static void make_data(play *y, data_set *d)
{
    const plan *p = y->p;
    bool generated = p->random_source && !p->backend;
    d->rows = p->jobs[0].rows;
    d->in = calloc(d->rows + 1, y->what.in_bytes);
    snprintf(d->sink, sizeof d->sink, "%s/out.%s", y->folder, p->csv ? "csv" : "npy");
    snprintf(d->whole, sizeof d->whole, "%s/whole.csv", y->folder);
    if (generated) {
        snprintf(d->source, sizeof d->source, "random:%d:float32:%zu:%llu", PLAN_WIDTH, d->rows,
                 (unsigned long long)(p->seed % 1000));
        read_source(d);
        return;
    }
    snprintf(d->source, sizeof d->source, "%s/in.npy", y->folder);
    subject_fill(&y->what, d->in, d->rows, p->seed);
    subject_poison(&y->what, d->in, p->jobs[0].poison, p->jobs[0].poison_count);
    write_source(y, d);
}

typedef struct patience {
    int64_t until_ns; /* the run is stopped then, once */
    bool stopped;
} patience;

static int stop_in_time(void *context, const dpi_progress *progress)
{
    patience *x = context;
    (void)progress;
    x->stopped |= clock_now_ns() >= x->until_ns;
    return x->stopped;
}

static dpi_run_options run_options(const char *const *in, const char *const *out, size_t outs)
{
    dpi_run_options o = DPI_INIT(dpi_run_options);
    o.inputs = in;
    o.input_count = 1;
    o.outputs = out;
    o.output_count = outs;
    return o;
}

/* One call of dpi_run. */
static dpi_status run_once(play *y, dpi_session *s, const data_set *d, const char *sink, patience *stop,
                           dpi_run_result *result, dpi_error *error)
{
    char first[PATH_SIZE + 32];
    snprintf(first, sizeof first, "%s%s", y->what.output_count > 1 ? "y=" : "", sink);
    const char *in[] = {d->source}, *out[] = {first, "z=none"};
    dpi_run_options o = run_options(in, out, y->what.output_count);
    o.no_journal = !y->p->journal_ms;
    o.journal_interval_ms = y->p->journal_ms;
    o.progress = stop ? stop_in_time : NULL;
    o.progress_context = stop;
    return dpi_run(s, &o, result, error);
}

/* What an undisturbed run on one device writes, for text. */
static void make_whole(play *y, const data_set *d)
{
    dpi_options o = play_options(y, false);
    dpi_session *s;
    dpi_error error;
    dpi_run_result result = DPI_INIT(dpi_run_result);
    if (dpi_open(&o, &s, &error) || run_once(y, s, d, d->whole, NULL, &result, &error))
        plan_fail("the undisturbed run: %s", error.message);
    dpi_close(s);
}

static void check_text(play *y, const data_set *d)
{
    void *got, *want;
    size_t got_bytes, want_bytes;
    dpi_error error;
    if (file_read(d->sink, 1 << 24, &got, &got_bytes, &error) ||
        file_read(d->whole, 1 << 24, &want, &want_bytes, &error))
        plan_fail("%s", error.message);
    y->r->rows += d->rows;
    if (got_bytes != want_bytes || memcmp(got, want, got_bytes) != 0) {
        y->r->wrong++;
        plan_fail("the text differs from that of an undisturbed run (%zu and %zu bytes)", got_bytes, want_bytes);
    }
    free(got);
    free(want);
}

static void check_file(play *y, const data_set *d, const left_out *bad)
{
    npy_header h;
    void *got;
    dpi_error error;
    if (npy_load(d->sink, 1 << 24, &h, &got, &error))
        plan_fail("%s", error.message);
    if ((size_t)h.shape[0] != d->rows)
        plan_fail("the file has %lld rows instead of %zu", (long long)h.shape[0], d->rows);
    size_t outputs = y->what.output_count;
    const void *out[] = {got, NULL};
    y->what.output_count = 1; /* the other one was not written */
    check_rows(y, d->in, out, d->rows, bad, "the run");
    y->what.output_count = outputs;
    free(got);
}

/* Files of the folder: none but those may be there. */
static void check_folder(play *y, bool done)
{
    static const char *const always[] = {"in.npy", "whole.csv"}, *const undone[] = {".part", ".journal"};
    DIR *f = opendir(y->folder);
    for (struct dirent *e; f && (e = readdir(f));) {
        bool fine = e->d_name[0] == '.';
        for (int i = 0; i < 2; i++) {
            const char *end = strrchr(e->d_name, '.');
            fine |= strcmp(e->d_name, always[i]) == 0 || (!done && end && strcmp(end, undone[i]) == 0);
        }
        fine |= done && strncmp(e->d_name, "out.", 4) == 0 && strlen(e->d_name) == 7;
        if (!fine)
            plan_fail("%s was left behind", e->d_name);
    }
    closedir(f);
}

/* What earlier calls have left out stays so, whether they could still tell or not. */
static void join(left_out *all, const left_out *bad, const job *j, bool resumed)
{
    for (size_t i = 0; i < bad->count; i++)
        if (!left_out_has(all, bad->rows[i]) && all->count < 16)
            all->rows[all->count++] = bad->rows[i];
    for (size_t i = 0; resumed && i < j->poison_count; i++)
        if (!left_out_has(all, j->poison[i]) && all->count < 16)
            all->rows[all->count++] = j->poison[i];
}

/* True when the run is to be called again: it was stopped, or failed as the plan has it. */
static bool call_again(play *y, const data_set *d, patience *stop, left_out *all)
{
    const plan *p = y->p;
    const job *j = &p->jobs[0];
    dpi_error error = {0};
    dpi_run_result result = DPI_INIT(dpi_run_result);
    left_out bad = {.count = 0};
    left_out_into(&bad);
    verdict v = {.error = &error, .of = j, .bad = &bad, .what = "the run"};
    v.status = run_once(y, y->s, d, d->sink, stop, &result, &error);
    v.cancelled = stop->stopped;
    v.resumed = result.resumed_rows > 0;
    y->r->batches++;
    y->r->resumed += v.resumed;
    bool done = v.status == DPI_OK || v.status == DPI_BAD_ROWS;
    judge(y, &v);
    check_folder(y, done);
    join(all, &bad, j, v.resumed);
    if (done && p->csv)
        check_text(y, d);
    else if (done)
        check_file(y, d, all);
    return !done && !y->ended && (p->skip || !j->poison_count || v.status == DPI_CANCELLED);
}

void play_run(play *y)
{
    data_set d = {.rows = 0};
    patience stop = {.until_ns = INT64_MAX};
    left_out all = {.count = 0};
    make_data(y, &d);
    if (y->p->stop_us >= 0)
        stop.until_ns = clock_now_ns() + (int64_t)y->p->stop_us * 1000;
    for (int call = 0; call_again(y, &d, &stop, &all); call++) {
        stop = (patience){.until_ns = INT64_MAX};
        if (call == MOST_CALLS)
            plan_fail("the run is not done after %d calls", call);
    }
    changer_stop(y);
    play_once_more(y);
    free(d.in);
}

void play_run_undisturbed(play *y)
{
    data_set d = {.rows = 0};
    make_data(y, &d);
    make_whole(y, &d);
    free(d.in);
}
