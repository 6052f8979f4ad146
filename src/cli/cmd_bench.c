/* bench: single, split and sharded in turn, beside the engine alone; a table, and JSON for a plot. */
#include "cli/bench.h"

#include <stdlib.h>
#include <string.h>

static const char help[] =
    "dpinfer bench MODEL [--devices LIST] [--batch 8,16,32] [--rows N] [--json FILE]\n"
    "\n"
    "Measures what the devices do with a model: one device, a batch split over all (several in flight, and one "
    "blocking\n"
    "call after another), a data set sharded over all; and the engine alone, without dpinfer, on all devices at once.\n"
    "\n"
    "    dpinfer bench resnet50.onnx --batch 8,16,32\n"
    "    dpinfer bench net.onnx --devices cpu:0,cpu:1 --mode split,shard --repeats 15 --json results.json\n"
    "\n"
    "    --batch LIST      rows per device, a sweep (default 32)\n"
    "    --rows N          rows of each measurement (default: about a second's worth,\n"
    "                      of which shard mode makes a file in TMPDIR, of at most an eighth of the memory)\n"
    "    --scaling         split and shard also on the first 1, 2, 4 ... devices, against the ideal: each engine "
    "alone\n"
    "                      by itself, summed up; takes memory for some more engines per device\n"
    "    --mode LIST       of single, split, split-blocking, shard (default all)\n"
    "    --repeats N       of everything, in turn; the median is shown (default 3)\n"
    "    --seconds S       how long each measurement takes (default 1)\n"
    "    --json[=FILE]     machine, command, model, backend, engine_alone, rows and scaling, as one JSON object\n"
    "\n"
    "Takes all flags of `dpinfer run` on where and how. Efficiency is rows/s over the engine alone on all devices,\n"
    "measured in the same turn. The lines under the table say where the devices' time went.\n";

/* What one batch size may need: a line for each mode, and split and shard on fewer devices. */
#define MOST_RESULTS (BENCH_MODES + 2 * (BENCH_PLACES - 1))

/* The modes asked for, in order. */
static dpi_status choose_modes(const cli_options *o, bench_mode modes[BENCH_MODES], size_t *count, dpi_error *error)
{
    *count = 0;
    for (int m = 0; m < BENCH_MODES; m++) {
        bool wanted = !o->modes;
        for (const char *at = o->modes; at && *at; at += strcspn(at, ","), at += *at == ',')
            wanted |= strcspn(at, ",") == strlen(bench_mode_names[m]) &&
                      strncmp(at, bench_mode_names[m], strlen(bench_mode_names[m])) == 0;
        if (wanted)
            modes[(*count)++] = (bench_mode)m;
    }
    for (size_t i = 0; o->scaling && i < *count; i++)
        if (modes[i] == BENCH_SPLIT || modes[i] == BENCH_SHARD)
            return DPI_OK;
    if (o->scaling && *count)
        return error_set(error, DPI_E_ARGUMENT, "--scaling is about split and shard, and --mode leaves out both");
    return *count ? DPI_OK
                  : error_set(error, DPI_E_ARGUMENT,
                              "--mode takes a list of single, split, split-blocking and shard, not \"%s\"", o->modes);
}

/* Places of all results; returns how many there are. */
static size_t choose_results(const bench *b, const bench_mode *modes, size_t mode_count, bench_result *results)
{
    size_t count = 0, all = b->place_count - 1;
    for (size_t m = 0; m < mode_count; m++)
        results[count++] = (bench_result){.mode = modes[m], .place = modes[m] == BENCH_SINGLE ? 0 : all};
    for (size_t m = 0; m < mode_count && b->o->scaling; m++)
        for (size_t p = 0; p < all; p++)
            if ((modes[m] == BENCH_SPLIT || modes[m] == BENCH_SHARD) && b->places[p].devices < b->places[all].devices)
                results[count++] = (bench_result){.mode = modes[m], .place = p, .curve_only = true};
    for (size_t i = 0; i < count; i++) {
        results[i].batch = b->batch;
        results[i].devices = b->places[results[i].place].devices;
    }
    return count;
}

/* In the order of the curve: each mode by itself, from one device to all. */
static void note_curve(bench_report *report, const bench *b, const bench_result *results, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (results[i].curve_only)
            continue;
        for (size_t k = i + 1; k < count; k++)
            if (results[k].curve_only && results[k].mode == results[i].mode)
                bench_note_curve(report, b, &results[k]);
        bench_note_curve(report, b, &results[i]);
    }
}

static dpi_status run_batch_size(const cli_options *o, size_t batch, const bench_mode *modes, size_t mode_count,
                                 bench_report *report, json_t **backend, dpi_error *error)
{
    size_t repeats = o->repeats ? o->repeats : 3, count = 0;
    bool text = !o->json || o->json_path;
    bench_result *results = &report->results[report->count];
    bench *b = calloc(1, sizeof *b);
    if (!b)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    b->o = o;
    b->batch = batch;
    dpi_status status = bench_open(b, error);
    if (!status)
        report->count += count = choose_results(b, modes, mode_count, results);
    for (size_t turn = 0; turn < repeats && !status; turn++)
        status = bench_turn(b, results, count, turn, error);
    if (!status) {
        if (report->base_rate <= 0 && results[0].mode == BENCH_SINGLE)
            report->base_rate = bench_quantile(results[0].rates, repeats, 0.5);
        if (!*backend)
            *backend = bench_backend_json(&b->d);
        bench_show_alone(report, b, repeats, text);
        for (size_t i = 0; i < mode_count && text; i++)
            bench_show_result(report, &results[i]);
        fflush(stdout);
        if (o->scaling)
            note_curve(report, b, results, count);
    }
    bench_close(b);
    free(b);
    return status;
}

static dpi_status run_bench(const cli_options *o, dpi_error *error)
{
    bench_mode modes[BENCH_MODES];
    size_t mode_count, batches = o->batch_count ? o->batch_count : 1;
    dpi_status status = choose_modes(o, modes, &mode_count, error);
    bool text = !o->json || o->json_path;
    bench_report report = {.results = calloc(batches * MOST_RESULTS, sizeof *report.results),
                           .alone = json_array(),
                           .curve = o->scaling ? json_array() : NULL};
    json_t *backend = NULL;
    if (!report.results)
        status = error_set(error, DPI_E_SYSTEM, "out of memory");
    if (!status && text)
        bench_show_head();
    for (size_t i = 0; i < batches && !status; i++)
        status = run_batch_size(o, o->batch_count ? o->batches[i] : 32, modes, mode_count, &report, &backend, error);
    if (!status && text)
        bench_show_rest(&report);
    if (!status && o->json)
        status = bench_write_json(o, &report, json_incref(backend), error);
    json_decref(backend);
    json_decref(report.alone);
    json_decref(report.curve);
    for (size_t i = 0; i < report.count; i++)
        free(report.results[i].latencies_ms);
    free(report.results);
    return status;
}

int cmd_bench(int argc, char **argv)
{
    cli_options o;
    dpi_error error;
    dpi_status status = cli_parse(argc, argv, CLI_MODEL | CLI_BENCH, help, &o, &error);
    if (!status) {
        cli_catch_signals();
        status = run_bench(&o, &error);
    }
    int code = status ? cli_fail(&error) : 0;
    cli_free(&o);
    return code;
}
