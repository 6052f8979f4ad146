#include "cli/bench.h"

#include <math.h>
#include <stdio.h>

const char *const bench_mode_names[BENCH_MODES] = {"single", "split", "split-blocking", "shard"};
static const char *const loss_names[6] = {"waiting", "load", "copy_in", "compute", "copy_out", "wake_up"};

/* 95 % interval of the median by order statistics (binomial; exact for any distribution, wide for few repeats). */
static void median_interval(const double *values, size_t count, double *low, double *high)
{
    double half = 0.98 * sqrt((double)count); /* 1.96 * sqrt(n / 4) */
    double first = ((double)count - 1) / 2 - half, last = ((double)count - 1) / 2 + half;
    *low = bench_quantile(values, count, first > 0 ? first / ((double)count - 1) : 0);
    *high = bench_quantile(values, count, last < (double)count - 1 ? last / ((double)count - 1) : 1);
}

void bench_show_head(void)
{
    printf("%-15s %7s %6s %9s %11s %8s %10s %8s %8s %8s %6s\n", "mode", "devices", "batch", "seconds", "rows/s",
           "speed-up", "efficiency", "p50 ms", "p90 ms", "p99 ms", "spread");
}

void bench_show_alone(bench_report *r, const bench *b, size_t repeats, bool text)
{
    const bench_place *all = &b->places[b->place_count - 1];
    double rate = bench_quantile(all->at_once, repeats, 0.5);
    json_array_append_new(r->alone, json_pack("{s:I, s:I, s:f}", "batch_per_device", (json_int_t)b->batch, "devices",
                                              (json_int_t)all->devices, "rows_per_s", rate));
    if (text)
        printf("%-15s %7zu %6zu %9s %11.1f\n", "engine alone", all->devices, b->batch, "-", rate);
}

void bench_show_result(const bench_report *report, const bench_result *r)
{
    double base_rate = report->base_rate;
    double rate = bench_quantile(r->rates, r->repeats, 0.5);
    double spread =
        rate > 0 ? (bench_quantile(r->rates, r->repeats, 1) - bench_quantile(r->rates, r->repeats, 0)) / rate : 0;
    char speed_up[24] = "-"; /* without `single` there is nothing to compare with */
    if (base_rate > 0)
        snprintf(speed_up, sizeof speed_up, "%.2f", rate / base_rate);
    printf("%-15s %7zu %6zu %9.3f %11.1f %8s %10.3f", bench_mode_names[r->mode], r->devices, r->batch,
           bench_quantile(r->seconds, r->repeats, 0.5), rate, speed_up, bench_quantile(r->of_at_once, r->repeats, 0.5));
    if (r->latency_count)
        printf(" %8.2f %8.2f %8.2f", bench_quantile(r->latencies_ms, r->latency_count, 0.5),
               bench_quantile(r->latencies_ms, r->latency_count, 0.9),
               bench_quantile(r->latencies_ms, r->latency_count, 0.99));
    else
        printf(" %8s %8s %8s", "-", "-", "-");
    printf(" %5.1f%%\n", 100 * spread);
}

static void print_loss(const bench_result *r)
{
    printf("%-15s %7zu %6zu  ", bench_mode_names[r->mode], r->devices, r->batch);
    for (int i = 0; i < 6; i++)
        printf(" %s %.1f%%", loss_names[i], r->device_s > 0 ? 100 * r->loss_s[i] / r->device_s : 0);
    printf("\n");
}

void bench_note_curve(bench_report *report, const bench *b, const bench_result *r)
{
    const bench_place *p = &b->places[r->place];
    double low, high;
    if (r->mode != BENCH_SPLIT && r->mode != BENCH_SHARD)
        return;
    median_interval(r->of_ideal, r->repeats, &low, &high);
    json_t *point = json_pack("{s:s, s:I, s:I, s:f, s:f, s:f, s:f, s:[ff], s:I}", "mode", bench_mode_names[r->mode],
                              "devices", (json_int_t)r->devices, "batch_per_device", (json_int_t)r->batch, "rows_per_s",
                              bench_quantile(r->rates, r->repeats, 0.5), "ideal_rows_per_s",
                              bench_quantile(p->ideal, r->repeats, 0.5), "at_once_rows_per_s",
                              bench_quantile(p->at_once, r->repeats, 0.5), "efficiency",
                              bench_quantile(r->of_ideal, r->repeats, 0.5), "efficiency_interval", low, high, "repeats",
                              (json_int_t)r->repeats);
    json_array_append_new(report->curve, point);
}

static void print_curve(const json_t *curve)
{
    size_t i;
    json_t *point;
    printf("\n%-15s %7s %6s %11s %14s %16s %10s\n", "scaling", "devices", "batch", "rows/s", "engines alone",
           "ideal: each by", "efficiency");
    printf("%-15s %7s %6s %11s %14s %16s %10s\n", "", "", "", "", "at once", "itself, summed", "");
    json_array_foreach(curve, i, point)
        printf("%-15s %7lld %6lld %11.1f %14.1f %16.1f %10.3f\n", json_string_value(json_object_get(point, "mode")),
               json_integer_value(json_object_get(point, "devices")),
               json_integer_value(json_object_get(point, "batch_per_device")),
               json_real_value(json_object_get(point, "rows_per_s")),
               json_real_value(json_object_get(point, "at_once_rows_per_s")),
               json_real_value(json_object_get(point, "ideal_rows_per_s")),
               json_real_value(json_object_get(point, "efficiency")));
}

void bench_show_rest(const bench_report *r)
{
    if (r->curve)
        print_curve(r->curve);
    printf("\nwhere the devices' time went\n");
    for (size_t i = 0; i < r->count; i++)
        if (!r->results[i].curve_only)
            print_loss(&r->results[i]);
}

static json_t *result_json(const bench_result *r, double base_rate)
{
    double rate = bench_quantile(r->rates, r->repeats, 0.5), low, high;
    median_interval(r->of_at_once, r->repeats, &low, &high);
    json_t *loss = json_object();
    for (int i = 0; i < 6; i++)
        json_object_set_new(loss, loss_names[i], json_real(r->device_s > 0 ? r->loss_s[i] / r->device_s : 0));
    json_t *workers = json_array();
    for (size_t w = 0; w < r->devices && w < 256; w++) {
        json_t *one = json_object();
        for (int i = 0; i < 5; i++)
            json_object_set_new(one, loss_names[i], json_real(r->worker_loss_s[w][i]));
        json_array_append_new(workers, one);
    }
    return json_pack("{s:s, s:I, s:I, s:f, s:f, s:o, s:f, s:[ff], s:f, s:f, s:f, s:I, s:o, s:o}", "mode",
                     bench_mode_names[r->mode], "devices", (json_int_t)r->devices, "batch_per_device",
                     (json_int_t)r->batch, "seconds", bench_quantile(r->seconds, r->repeats, 0.5), "rows_per_s", rate,
                     "speedup", base_rate > 0 ? json_real(rate / base_rate) : json_null(), "efficiency",
                     bench_quantile(r->of_at_once, r->repeats, 0.5), "efficiency_interval", low, high, "p50_ms",
                     bench_quantile(r->latencies_ms, r->latency_count, 0.5), "p90_ms",
                     bench_quantile(r->latencies_ms, r->latency_count, 0.9), "p99_ms",
                     bench_quantile(r->latencies_ms, r->latency_count, 0.99), "repeats", (json_int_t)r->repeats, "loss",
                     loss, "device_seconds", workers);
}

json_t *bench_backend_json(const dpi_description *d)
{
    json_t *devices = json_array();
    for (size_t w = 0; w < d->worker_count; w++)
        json_array_append_new(devices, json_string(d->workers[w].device));
    return json_pack("{s:s, s:s, s:o}", "name", d->workers[0].backend, "version", d->workers[0].version, "devices",
                     devices);
}

dpi_status bench_write_json(const cli_options *o, const bench_report *r, json_t *backend, dpi_error *error)
{
    json_t *rows = json_array();
    for (size_t i = 0; i < r->count; i++)
        if (!r->results[i].curve_only)
            json_array_append_new(rows, result_json(&r->results[i], r->base_rate));
    json_t *json =
        json_pack("{s:o, s:O, s:s, s:o, s:O, s:o, s:O*}", "machine", cli_machine_json(), "command", o->command, "model",
                  o->model, "backend", backend, "engine_alone", r->alone, "rows", rows, "scaling", r->curve);
    return cli_write_json(o->json_path, json, error);
}
