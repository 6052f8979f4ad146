#include "cli/cli.h"
#include "cli/timeline.h"

#include "data/source.h"
#include "runtime/setup.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "dpinfer run MODEL --input [NAME=]SOURCE --output [NAME=]SINK\n"
    "\n"
    "Sends a data set through a model on all devices and writes the results in order.\n"
    "\n"
    "    dpinfer run digits.onnx --input images.npy --output scores.npy\n"
    "    dpinfer run resnet50.onnx --input photos.npy --output top.csv --top 5 --labels imagenet.txt\n"
    "    dpinfer run bert.onnx --input ids=ids.npy --input mask=mask.npy --output pooled=out.npy --batch 32\n"
    "    dpinfer run bert.onnx --input tokens.npz --output pooled=out.npy\n"
    "    camera | dpinfer run net.onnx --input raw:3x224x224:uint8:- --output top.csv\n"
    "    dpinfer run net.onnx --input random:3x224x224:float32:100000 --output none --devices cpu:0-3,cpu:4-7\n"
    "\n"
    "Data\n"
    "    --input [NAME=]SOURCE     FILE.npy (may be larger than memory), FILE.npz[:MEMBER] (without a member, each\n"
    "                              input has the one of its name), raw:SHAPE:DTYPE:FILE (rows and nothing else),\n"
    "                              - for a .npy file on standard input, raw:SHAPE:DTYPE:-, "
    "random:SHAPE:DTYPE:N[:SEED],\n"
    "                              or images: a folder, 'photos/*.jpg', list.txt, FILE.tar, shards-{000..009}.tar,\n"
    "                              FILE.tar.gz (.tgz, .tar.zst, .tar.xz, .tar.bz2, .tar.lz4)\n"
    "    --spool-max SIZE          how much of a pipe on standard input, or in compressed tars, is kept in TMPDIR\n"
    "                              while the run lasts (64GiB)\n"
    "    --output [NAME=]SINK      FILE.npy, FILE.npz (a member for each output), FILE.csv or FILE.jsonl (best\n"
    "                              classes of each row), or none; naming outputs chooses them\n"
    "    --broadcast NAME=FILE.npy an input that is the same for all rows\n"
    "    --rows A:B                rows A up to B of the sources\n"
    "    --top K --labels FILE     for .csv and .jsonl: how many classes, and their names, one a line\n"
    "    --accuracy LABELS.npy     share of rows whose best class is the label\n"
    "    --no-overwrite            refuse when an output exists\n"
    "    --restart                 begin anew where a run was stopped; without it the same command goes on\n"
    "    --no-journal              a run that is stopped leaves nothing to go on with\n"
    "    --journal-every S         how much work a kill may cost (1)\n"
    "Images (bad ones are left out, and the exit code is 3)\n"
    "    --preprocess RECIPE       imagenet, clip or none; uint8 inputs are imagenet without it\n"
    "    --resize N|HxW --crop N|HxW --interpolation bilinear|bicubic\n"
    "                              the shorter side or both; what is cut out of the centre\n"
    "    --scale S --mean R,G,B --std R,G,B       (pixel * S - mean) / std; S may be 1/255\n"
    "    --layout nchw|nhwc, --color rgb|bgr      where the model does not tell\n"
    "    --member SUFFIX           which file of a tar's samples (the first image)\n"
    "    --max-pixels N, --max-image-bytes SIZE   beyond them an image is a bad row (178956970, 256MiB)\n"
    "    --loader-threads N        of each worker, that decode (as many as it has processors)\n"
    "Stopping and going on (Ctrl-C or SIGTERM finishes the slices in flight; a second one ends at once)\n"
    "    Results are written to FILE.part and renamed to FILE when all rows are on disk. A run of over a second\n"
    "    keeps FILE.journal beside it: which rows are on disk, which are left out, and what decides the result\n"
    "    (model, engine, sources, options, outputs). After whatever ended the run the same command computes what\n"
    "    is missing, and FILE is the same to the bit; where something has changed it says what, and touches\n"
    "    nothing. The exit code is 130 or 143 after a signal, 1 after a failure; the message says how many rows\n"
    "    are kept.\n"
    "Where and how\n"
    "    --devices LIST            auto (default), cpu:0, cpu:0-3,8, cpu:all, cpu:numa0, cuda:0, cuda:GPU-uuid, "
    "sim:0;\n"
    "                              KIND:WHAT*2 is two workers\n"
    "    --batch N|auto            rows per device and engine call (64); auto measures which is best\n"
    "    --split N,N,...           fixed shares of each batch, one per device, instead of learnt ones; --total-batch "
    "N: even\n"
    "                              ones. For bench: a data set is dealt slice by slice\n"
    "    --precision P             model (default), fp32, tf32, fp16, bf16\n"
    "    --backend B               tensorrt, openvino, onnxruntime, aoti, sim; --library FILE names its library\n"
    "    --provider NAME --provider-option K=V    ONNX Runtime's execution provider\n"
    "    --shape NAME=RANGE        tensorrt: range of an input's free axes beside the rows: 3x224x224, or\n"
    "                              least:usual:most as 3x64x64:3x224x224:3x512x512\n"
    "    --backend-option K=V      passed to the backend; 2.K=V to worker 2 alone\n"
    "    --trust-rows              do not refuse a model whose rows seem to depend on each other\n"
    "    --deterministic           refuse devices that are not bit-identical\n"
    "Faults (a worker that dies or hangs is replaced, and nothing is lost)\n"
    "    --on-bad-row fail|skip    a row that kills every worker: the run fails and names it (fail), or its outputs\n"
    "                              are NaN or 0 and the exit code is 3; --max-bad-rows N of them (1000) are too many\n"
    "    --max-deaths N            of a device in a row until it is given up (5)\n"
    "    --events FILE             what happens, one JSON object a line: started, compiled, died (signal, last log\n"
    "                              lines), replayed, retired, added, removed, spoilt, bad_row, resumed "
    "(docs/reliability.md)\n"
    "    --slice-timeout S, --compile-timeout S    when a worker counts as hanging\n"
    "    --cache-dir DIR, --no-cache               the engine cache\n"
    "    --worker-memory SIZE      most memory of each worker's own, as 4GiB\n"
    "    --no-sandbox, --core-dumps                workers are confined and leave no core files; these say otherwise\n"
    "    --isolation process|thread|strict         strict: a worker gone mad spoils no rows but its own slices', for\n"
    "                              one copy more of each result; thread: a crash of the engine is ours\n"
    "    --arena-max SIZE, --wait auto|block|yield|spin\n"
    "Output\n"
    "    --trace FILE              what every worker did, slice by slice, for ui.perfetto.dev or chrome://tracing\n"
    "    --json[=FILE], --dry-run (opens model and sources, computes nothing), -v, -q\n";

/* Of the time that devices had slices: how much they waited for the rows of one to be loaded. */
static double loading_share(dpi_session *s, const dpi_description *d)
{
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    uint64_t load = 0, rest = 0;
    stats.worker_count = d->worker_count;
    stats.workers = calloc(d->worker_count, sizeof *stats.workers);
    if (stats.workers && dpi_stats(s, &stats, NULL) == DPI_OK)
        for (size_t w = 0; w < d->worker_count && w < stats.worker_count; w++) {
            load += stats.workers[w].load_ns;
            rest += stats.workers[w].copy_in_ns + stats.workers[w].compute_ns + stats.workers[w].copy_out_ns;
        }
    free(stats.workers);
    return load + rest ? (double)load / (double)(load + rest) : 0;
}

static void print_summary(const cli_options *o, const dpi_description *d, const dpi_run_result *result, double loading)
{
    char rows[32];
    if (o->quiet)
        return;
    printf("%s rows in %.2f s, %.0f rows/s, on %zu device%s (%s %s)\n", cli_grouped(result->rows, rows),
           result->seconds, result->seconds > 0 ? (double)result->rows / result->seconds : 0, d->worker_count,
           d->worker_count == 1 ? "" : "s", d->workers[0].backend, d->workers[0].version);
    if (loading >= 0.1)
        printf("The devices waited for rows to be loaded %.0f %% of the time%s.\n", 100 * loading,
               loading > 0.5 ? ": loading is the limit" : "");
    if (!d->bit_identical)
        printf("The devices run different engines: results may differ by %.2g of the largest.\n", d->tolerance);
}

/* One source that was given, for the input called `input` where it is an archive with a member for each. */
static bool stop_asked(void *unused)
{
    (void)unused;
    return cli_signal() != 0;
}

static dpi_status show_source(const cli_options *o, const char *spec, const dpi_tensor *input, dpi_error *error)
{
    char text[256], *one = NULL;
    source *opened;
    port want = {.dtype = input->dtype, .rank = input->rank};
    snprintf(want.name, sizeof want.name, "%s", input->name);
    memcpy(want.shape, input->shape, sizeof want.shape);
    source_options options = {.want = &want,
                              .preprocess = o->preprocess_given ? &o->preprocess : NULL,
                              .spool = {.max_bytes = o->spool_max_bytes, .stop = stop_asked}};
    dpi_status status = source_member_for(spec, input->name, &one, error);
    if (status || !one)
        return status;
    status = source_open_for(one, &options, &opened, error);
    if (!status) {
        dpi_tensor t = {.dtype = source_port(opened)->dtype, .rank = source_port(opened)->rank};
        memcpy(t.shape, source_port(opened)->shape, sizeof t.shape);
        cli_shape_text(&t, text, sizeof text);
        printf("source %s: %s\n", one, text);
        source_close(opened);
    }
    free(one);
    return status;
}

static dpi_status show_sources(const cli_options *o, const dpi_description *d, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < o->input_count && !status; i++) {
        const char *spec = o->inputs[i], *equals = strchr(spec, '=');
        size_t named = d->input_count;
        for (size_t k = 0; equals && k < d->input_count; k++)
            if (strlen(d->inputs[k].name) == (size_t)(equals - spec) &&
                strncmp(spec, d->inputs[k].name, (size_t)(equals - spec)) == 0)
                named = k;
        spec = named < d->input_count ? equals + 1 : spec;
        if (source_is_stdin(spec)) {
            printf("source %s: standard input, which a dry run does not read\n", spec);
            continue;
        }
        bool all = named == d->input_count && text_ends_with(spec, ".npz");
        size_t first = named < d->input_count ? named : all || i >= d->input_count ? 0 : i;
        size_t end = all ? d->input_count : first + 1;
        for (size_t k = first; k < end && !status; k++)
            status = show_source(o, spec, &d->inputs[k], error);
    }
    return status;
}

static dpi_status dry_run(const cli_options *o, const dpi_description *d, dpi_error *error)
{
    char text[256];
    dpi_status status = show_sources(o, d, error);
    if (status)
        return status;
    for (size_t i = 0; i < d->input_count; i++) {
        cli_shape_text(&d->inputs[i], text, sizeof text);
        printf("input  %s: %s\n", d->inputs[i].name, text);
    }
    for (size_t i = 0; i < d->output_count; i++) {
        cli_shape_text(&d->outputs[i], text, sizeof text);
        printf("output %s: %s\n", d->outputs[i].name, text);
    }
    for (size_t w = 0; w < d->worker_count; w++)
        printf("device %s: %s %s, ready in %.2f s\n", d->workers[w].device, d->workers[w].backend,
               d->workers[w].version, d->workers[w].open_seconds);
    return DPI_OK;
}

#define BAD_ROWS_SHOWN 10
#define BAD_ROWS_KEPT  1000

/* What a run tells while it lasts. */
typedef struct listener {
    dpi_session *session;
    cli_progress progress;
    timeline *timeline; /* NULL: nobody asks for it */
    json_t *bad_rows;
    uint64_t bad_count;
} listener;

static void show_bad_row(void *context, const dpi_bad_row *row)
{
    listener *l = context;
    if (++l->bad_count <= BAD_ROWS_SHOWN)
        fprintf(stderr, "dpinfer: row %llu is left out: %s\n", (unsigned long long)row->row, row->reason);
    else if (l->bad_count == BAD_ROWS_SHOWN + 1)
        fprintf(stderr, "dpinfer: more rows are left out; --events FILE lists them all\n");
    if (l->bad_count <= BAD_ROWS_KEPT)
        json_array_append_new(
            l->bad_rows, json_pack("{s:I, s:o}", "row", (json_int_t)row->row, "reason", text_to_json(row->reason)));
}

static int show_progress(void *context, const dpi_progress *now)
{
    listener *l = context;
    if (now->worker_count)
        timeline_look(l->timeline, l->session, now->seconds, now->rows_done == now->rows_total);
    return cli_progress_show(&l->progress, now);
}

static json_t *result_json(const cli_options *o, const dpi_description *d, const dpi_run_result *result,
                           const listener *l, double loading)
{
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    dpi_stats(l->session, &stats, NULL);
    uint64_t computed = result->rows - result->resumed_rows;
    json_t *json = json_pack("{s:o, s:I, s:I, s:f, s:f, s:f, s:o, s:O, s:o, s:o, s:o, s:I, s:O, s:I, s:I}", "model",
                             text_to_json(o->model), "rows", (json_int_t)result->rows, "resumed_rows",
                             (json_int_t)result->resumed_rows, "seconds", result->seconds, "rows_per_s",
                             result->seconds > 0 ? (double)computed / result->seconds : 0.0, "loading_share", loading,
                             "session", cli_describe_json(d), "command", o->command, "machine", cli_machine_json(),
                             "devices", timeline_devices(l->session, d), "timeline", timeline_json(l->timeline),
                             "bad_row_count", (json_int_t)l->bad_count, "bad_rows", l->bad_rows, "deaths",
                             (json_int_t)stats.deaths, "replayed_slices", (json_int_t)stats.replayed_slices);
    if (json && stats.slice_p50_ms > 0)
        json_object_set_new(json, "slice_ms",
                            json_pack("{s:f, s:f, s:f}", "p50", stats.slice_p50_ms, "p90", stats.slice_p90_ms, "p99",
                                      stats.slice_p99_ms));
    return json;
}

static dpi_status report(const cli_options *o, const dpi_description *d, const dpi_run_result *result,
                         const listener *l, dpi_error *error)
{
    double loading = loading_share(l->session, d);
    double share = -1;
    uint64_t labelled = 0;
    if (o->accuracy) {
        if (!o->output_count || strcmp(o->outputs[0], "none") == 0)
            return error_set(error, DPI_E_ARGUMENT, "--accuracy needs an --output that is a file");
        dpi_status status = cli_accuracy(o->outputs[0], o->accuracy, o->row_begin, &share, &labelled, error);
        if (status)
            return status;
    }
    if (!o->json || o->json_path) {
        print_summary(o, d, result, loading);
        if (o->accuracy)
            printf("accuracy: %.2f %% of %llu rows\n", 100 * share, (unsigned long long)labelled);
    }
    if (!o->json)
        return DPI_OK;
    json_t *json = result_json(o, d, result, l, loading);
    if (!json)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    if (o->accuracy)
        json_object_set_new(json, "accuracy", json_real(share));
    return cli_write_json(o->json_path, json, error);
}

static void write_event(void *context, const char *json)
{
    fprintf(context, "%s\n", json);
    fflush(context);
}

/* Whom the session tells of what happens. *events is to be closed behind the session. */
static dpi_status listen_to(cli_options *o, listener *l, FILE **events, dpi_error *error)
{
    o->open.bad_row = show_bad_row;
    o->open.bad_row_context = l;
    l->bad_rows = json_array();
    l->timeline = o->json ? timeline_new() : NULL;
    if (!o->events)
        return DPI_OK;
    *events = fopen(o->events, "we");
    if (!*events)
        return error_set_errno(error, DPI_E_DATA, errno, "cannot write the events to %s", o->events);
    o->open.event = write_event;
    o->open.event_context = *events;
    return DPI_OK;
}

int cmd_run(int argc, char **argv)
{
    cli_options o;
    dpi_error error;
    dpi_session *s = NULL;
    listener l = {0};
    FILE *events = NULL;
    dpi_description d = DPI_INIT(dpi_description);
    dpi_status status = cli_parse(argc, argv, CLI_MODEL | CLI_RUN, help, &o, &error);
    if (!status && !o.input_count)
        status = error_set(&error, DPI_E_ARGUMENT, "run: which --input? See dpinfer run --help");
    if (!status)
        status = listen_to(&o, &l, &events, &error);
    if (!status) {
        cli_catch_signals();
        status = dpi_open(&o.open, &s, &error);
    }
    if (!status)
        status = dpi_describe(s, &d, &error);
    if (!status && o.dry_run)
        status = dry_run(&o, &d, &error);
    else if (!status) {
        l.session = s;
        timeline_look(l.timeline, s, 0, true);
        cli_progress_start(&l.progress, &d, o.quiet);
        dpi_run_options run = DPI_INIT(dpi_run_options);
        dpi_run_result result = DPI_INIT(dpi_run_result);
        run.inputs = o.inputs;
        run.input_count = o.input_count;
        run.outputs = o.outputs;
        run.output_count = o.output_count;
        run.row_begin = o.row_begin;
        run.row_end = o.row_end;
        run.top = o.top;
        run.labels_path = o.labels;
        run.no_overwrite = o.no_overwrite;
        run.restart = o.restart;
        run.no_journal = o.no_journal;
        run.journal_interval_ms = o.journal_interval_ms;
        run.preprocess = o.preprocess_given ? &o.preprocess : NULL;
        run.loader_threads = o.loader_threads;
        run.spool_max_bytes = o.spool_max_bytes;
        l.progress.output = o.output_count ? o.outputs[0] : "";
        run.progress = show_progress;
        run.progress_context = &l;
        status = dpi_run(s, &run, &result, &error);
        if (!status || status == DPI_BAD_ROWS) {
            dpi_error later;
            dpi_status reported = report(&o, &d, &result, &l, status ? &later : &error);
            status = status ? status : reported;
        }
    }
    int code = status ? cli_fail(&error) : 0;
    dpi_close(s);
    if (events)
        fclose(events);
    timeline_free(l.timeline);
    json_decref(l.bad_rows);
    cli_free(&o);
    return code;
}
