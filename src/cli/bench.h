/*
 * What bench measures and how it is told: bench_measure.c and bench_show.c, used by cmd_bench.c alone.
 *
 * All of one batch size is measured in turns, everything once in each, so that a machine whose speed drifts treats all
 * alike; what is compared with (the engines alone) is measured in the same turn.
 */
#ifndef DPI_CLI_BENCH_H
#define DPI_CLI_BENCH_H

#include "cli/cli.h"

#include "base/tensor.h"
#include "runtime/bare.h"

#define BENCH_IN_FLIGHT 4
#define BENCH_REPEATS   1000
#define BENCH_PLACES    10 /* 1, 2, 4 ... 256 devices, and all */

typedef enum bench_mode { BENCH_SINGLE, BENCH_SPLIT, BENCH_SPLIT_BLOCKING, BENCH_SHARD, BENCH_MODES } bench_mode;
extern const char *const bench_mode_names[BENCH_MODES];

/* The first `devices` of the list, in a session of their own. */
typedef struct bench_place {
    dpi_session *session;
    size_t devices;
    dpi_tensor inputs[PORT_MAX], outputs[BENCH_IN_FLIGHT][PORT_MAX]; /* in its arena, for batch * devices rows */
    double at_once[BENCH_REPEATS]; /* rows/s of these engines alone, all running; of the last place, or when scaling */
    double ideal[BENCH_REPEATS];   /* the sum of these engines, each running by itself; when scaling */
} bench_place;

/* One line of the table: a mode at a batch size on some devices, all its repeats. */
typedef struct bench_result {
    bench_mode mode;
    bool curve_only; /* no line of the table */
    size_t place, batch, devices, repeats;
    double rates[BENCH_REPEATS], seconds[BENCH_REPEATS];       /* rows/s; of each turn */
    double of_at_once[BENCH_REPEATS], of_ideal[BENCH_REPEATS]; /* rates over those of the engines */
    double *latencies_ms;                                      /* of all batches; empty for shard */
    size_t latency_count, latency_capacity;
    double loss_s[6], device_s;   /* summed over repeats and devices */
    double worker_loss_s[256][5]; /* of each device: all but the wake-ups, which are the caller's */
} bench_result;

typedef struct bench {
    const cli_options *o;
    size_t batch;
    uint64_t rows;                    /* of each measurement on all devices */
    bench_place places[BENCH_PLACES]; /* the first device; more and more of them, when scaling; all */
    size_t place_count;
    dpi_description d; /* of all */
    bare_engines *alone;
    char *sources[PORT_MAX]; /* NAME=FILE.npy */
    char folder[64];
} bench;

/* Opens the sessions of b->batch rows per device, with memory and files for the measurements, warm, and the engines
 * alone. `o` and `batch` are set, all else is zero. bench_close in any case. */
dpi_status bench_open(bench *b, dpi_error *error);
void bench_close(bench *b);
/* Every result once, behind the engines alone. */
dpi_status bench_turn(bench *b, bench_result *results, size_t count, size_t turn, dpi_error *error);
double bench_quantile(const double *values, size_t count, double q);

/* All that was measured, for showing. */
typedef struct bench_report {
    bench_result *results; /* lines of the table first, then those of the curve alone, for each batch size */
    size_t count;
    double base_rate;      /* rows/s of `single` at the first batch size; 0: not measured */
    json_t *alone, *curve; /* arrays; curve is NULL without --scaling */
} bench_report;

void bench_show_head(void);
/* The engines alone of one batch size, into r->alone and, with `text`, as a line. */
void bench_show_alone(bench_report *r, const bench *b, size_t repeats, bool text);
void bench_show_result(const bench_report *r, const bench_result *one);
/* A point of the curve, of what was measured in split or shard mode (others are none): into r->curve. */
void bench_note_curve(bench_report *r, const bench *b, const bench_result *one);
/* What stands under the table: the curve, and what became of the devices' time. */
void bench_show_rest(const bench_report *r);
json_t *bench_backend_json(const dpi_description *d);
/* To o->json_path, or standard output. `backend` is stolen. */
dpi_status bench_write_json(const cli_options *o, const bench_report *r, json_t *backend, dpi_error *error);

#endif
