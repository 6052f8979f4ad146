/* What a session tells of itself: dpi_describe and dpi_stats. */
#include "runtime/session.h"

#include <stdlib.h>
#include <string.h>

static size_t describe_ports(const port *ports, size_t count, const bool *skip, dpi_tensor *out)
{
    size_t used = 0;
    for (size_t i = 0; i < count; i++) {
        if (skip && skip[i])
            continue;
        out[used] = (dpi_tensor){.name = ports[i].name, .dtype = ports[i].dtype, .rank = ports[i].rank};
        memcpy(out[used].shape, ports[i].shape, sizeof out[used].shape);
        out[used++].shape[0] = -1;
    }
    return used;
}

void session_describe(dpi_session *s, dpi_description *d)
{
    pthread_mutex_lock(&s->lock);
    if (!s->describe_workers)
        s->describe_workers = calloc(LAYOUT_WORKERS, sizeof *s->describe_workers);
    d->inputs = s->describe_inputs;
    d->input_count = describe_ports(s->sig.inputs, s->sig.input_count, s->is_broadcast, s->describe_inputs);
    d->outputs = s->describe_outputs;
    d->output_count = describe_ports(s->sig.outputs, s->sig.output_count, NULL, s->describe_outputs);
    d->workers = s->describe_workers;
    d->worker_count = s->describe_workers ? s->count : 0;
    for (size_t w = 0; w < d->worker_count; w++) {
        const session_worker *k = &s->workers[w];
        s->describe_workers[w] = (dpi_worker_info){.device = s->devices.items[w].name,
                                                   .backend = s->backend->name,
                                                   .library = k->report.library,
                                                   .version = k->report.version,
                                                   .fingerprint = k->report.fingerprint,
                                                   .pid = s->in_caller || k->socket < 0 ? 0 : k->process.pid,
                                                   .generation = k->generation,
                                                   .open_seconds = k->report.open_seconds,
                                                   .from_cache = k->report.from_cache};
    }
    d->batch = s->max_rows;
    d->fixed_batch = s->fixed_rows;
    d->bit_identical = s->bit_identical;
    d->tolerance = s->tolerance;
    pthread_mutex_unlock(&s->lock);
}

/* The q-th quantile of all workers' slices, from what they counted. */
static double latency_ms(const dpi_session *s, double q)
{
    uint64_t counts[PAGE_LATENCIES] = {0}, total = 0, below = 0;
    for (size_t w = 0; w < s->count; w++)
        for (unsigned i = 0; i < PAGE_LATENCIES; i++)
            counts[i] += atomic_load_explicit(&s->workers[w].page->latencies[i], memory_order_relaxed);
    for (unsigned i = 0; i < PAGE_LATENCIES; i++)
        total += counts[i];
    for (unsigned i = 0; i < PAGE_LATENCIES; i++) {
        below += counts[i];
        if (counts[i] && (double)below >= q * (double)total)
            return latency_of_bucket(i) * 1e-6;
    }
    return 0;
}

void session_stats(dpi_session *s, dpi_stats_data *d)
{
    pthread_mutex_lock(&s->lock);
    d->batches = s->batches_done;
    d->rows = s->rows_done;
    d->failed_batches = s->batches_failed;
    d->copy_in_ns = __atomic_load_n(&s->copy_in_ns, __ATOMIC_RELAXED);
    d->copy_out_ns = __atomic_load_n(&s->copy_out_ns, __ATOMIC_RELAXED);
    d->copied_in_bytes = __atomic_load_n(&s->copied_in_bytes, __ATOMIC_RELAXED);
    d->copied_out_bytes = __atomic_load_n(&s->copied_out_bytes, __ATOMIC_RELAXED);
    d->wake_ns = s->wake_ns;
    d->slice_p50_ms = latency_ms(s, 0.5);
    d->slice_p90_ms = latency_ms(s, 0.9);
    d->slice_p99_ms = latency_ms(s, 0.99);
    d->deaths = s->deaths;
    d->replayed_slices = s->replayed;
    d->bad_rows = s->bad_rows;
    d->retired_devices = s->retired;
    d->worker_starts = s->starts;
    d->compiled_engines = s->compiled;
    d->resumed_rows = s->resumed_rows;
    d->arena_input_bytes = arena_committed(s->inputs);
    d->arena_output_bytes = arena_committed(s->outputs) - LAYOUT_CLAIMS_BYTES;
    for (size_t w = 0; w < s->count && d->workers && w < d->worker_count; w++) {
        const worker_page *page = s->workers[w].page;
        plan_cost cost = planner_cost(s->planner, w);
        d->workers[w] = (dpi_worker_stats){.slices = atomic_load(&page->slices),
                                           .rows = atomic_load(&page->rows),
                                           .stolen = atomic_load(&page->stolen),
                                           .wait_ns = atomic_load(&page->wait_ns),
                                           .load_ns = atomic_load(&page->load_ns),
                                           .copy_in_ns = atomic_load(&page->copy_in_ns),
                                           .compute_ns = atomic_load(&page->compute_ns),
                                           .copy_out_ns = atomic_load(&page->copy_out_ns),
                                           .fixed_us = cost.fixed_ns * 1e-3,
                                           .row_us = cost.row_ns * 1e-3};
    }
    d->worker_count = s->count;
    pthread_mutex_unlock(&s->lock);
}
