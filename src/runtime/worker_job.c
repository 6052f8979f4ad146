#include "runtime/worker_job.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/topology.h"
#include "data/sigbus.h"
#include "runtime/loader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const worker_job *worker_job_find(const worker *w, uint32_t id)
{
    for (const worker_job *job = w->jobs; job; job = job->next)
        if (job->id == id)
            return job;
    return NULL;
}

static void job_free(worker_job *job)
{
    for (size_t i = 0; i < job->source_count; i++) {
        const void *start;
        size_t bytes;
        if (job->sources[i] && source_mapping(job->sources[i], &start, &bytes))
            sigbus_remove(start);
        source_close(job->sources[i]);
    }
    for (size_t i = 0; i < job->sink_count; i++)
        if (job->sinks[i].fd >= 0)
            close(job->sinks[i].fd);
    free(job);
}

void worker_job_drop(worker *w, uint32_t id)
{
    for (worker_job **at = &w->jobs; *at; at = &(*at)->next) {
        if ((*at)->id != id)
            continue;
        worker_job *job = *at;
        *at = job->next;
        worker_show_job(w, 0); /* the caller has one run at a time */
        if (job->dear)
            loader_forget(w->loader, job);
        if (job->dear && !loader_count(w->loader)) {
            loader_stop(w->loader);
            w->loader = NULL;
        }
        job_free(job);
        return;
    }
}

static int take_fd(const json_t *json, const char *key, int *fds, size_t fd_count)
{
    const json_t *number = json_object_get(json, key);
    json_int_t index = json_is_integer(number) ? json_integer_value(number) : -1;
    if (index < 0 || (size_t)index >= fd_count)
        return -1;
    int fd = fds[index];
    fds[index] = -1;
    return fd;
}

static dpi_status open_source(worker *w, worker_job *job, const json_t *json, int *fds, size_t fd_count,
                              dpi_error *error)
{
    const char *spec = json_string_value(json_object_get(json, "spec"));
    size_t i = job->source_count++;
    if (!spec)
        return DPI_OK; /* a broadcast input */
    int fd = take_fd(json, "fd", fds, fd_count), spool_fd = take_fd(json, "spool", fds, fd_count);
    dpi_status status = json_is_true(json_object_get(json, "dear"))
                            ? source_open_index(spec, fd, spool_fd, &job->sources[i], error)
                            : source_open(spec, fd, &job->sources[i], error);
    job->dear |= !status && source_is_dear(job->sources[i]);
    if (fd >= 0)
        close(fd);
    if (spool_fd >= 0)
        close(spool_fd);
    const void *start;
    size_t bytes;
    if (!status && !w->setup.device.in_caller && source_mapping(job->sources[i], &start, &bytes))
        sigbus_add(start, bytes, (uint32_t)i + 1);
    return status;
}

static void open_sink(worker_job *job, const json_t *json, int *fds, size_t fd_count)
{
    job_sink *to = &job->sinks[job->sink_count++];
    const char *name = json_string_value(json_object_get(json, "name"));
    to->fd = take_fd(json, "fd", fds, fd_count);
    to->data_offset = (uint64_t)json_integer_value(json_object_get(json, "data_offset"));
    to->top = (size_t)json_integer_value(json_object_get(json, "top"));
    to->in_arena = json_is_true(json_object_get(json, "in_arena"));
    snprintf(to->name, sizeof to->name, "%s", name ? name : "?");
}

/* How many threads may load rows: as many as the device has processors, and where it is none of them, a fair part of
 * what there is for `sharing` such workers. */
static size_t loader_threads(const worker *w, size_t sharing)
{
    const backend_device *d = &w->setup.device;
    topology machine;
    if (d->cpu_count)
        return d->threads ? d->threads : d->cpu_count;
    size_t threads = 1;
    if (topology_read(&machine, NULL) == DPI_OK) {
        threads = machine.usable_threads / (sharing ? sharing : 1);
        topology_free(&machine);
    }
    return threads ? threads : 1;
}

static dpi_status start_loader(worker *w, const json_t *message, dpi_error *error)
{
    size_t threads = (size_t)json_integer_value(json_object_get(message, "loader_threads"));
    bool helps = w->depth == 1;
    if (w->loader)
        return DPI_OK;
    if (!threads)
        threads = loader_threads(w, (size_t)json_integer_value(json_object_get(message, "sharing")));
    w->loader = loader_start(threads - (helps ? 1 : 0), helps);
    return w->loader ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
}

dpi_status worker_job_open(worker *w, const json_t *message, int *fds, size_t fd_count, dpi_error *error)
{
    worker_job *job = calloc(1, sizeof *job);
    if (!job)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    job->id = (uint32_t)json_integer_value(json_object_get(message, "job"));
    const json_t *sources = json_object_get(message, "sources"), *sinks = json_object_get(message, "sinks");
    dpi_status status = DPI_OK;
    if (json_array_size(sources) != w->sig.input_count || json_array_size(sinks) != w->sig.output_count)
        status = error_set(error, DPI_E_INTERNAL, "a run names %zu sources and %zu sinks", json_array_size(sources),
                           json_array_size(sinks));
    for (size_t i = 0; !status && i < json_array_size(sources); i++)
        status = open_source(w, job, json_array_get(sources, i), fds, fd_count, error);
    for (size_t i = 0; !status && i < json_array_size(sinks); i++)
        open_sink(job, json_array_get(sinks, i), fds, fd_count);
    if (!status && job->dear)
        status = start_loader(w, message, error);
    if (status) {
        job_free(job);
        return status;
    }
    job->next = w->jobs;
    w->jobs = job;
    worker_show_job(w, job->id);
    return DPI_OK;
}

static dpi_status out_of_memory(dpi_error *error, size_t bytes)
{
    return error_set(error, DPI_E_SYSTEM, "the worker cannot allocate %zu bytes for a slice; lower --batch", bytes);
}

dpi_status worker_job_load(worker *w, const worker_job *job, flight *f, uint64_t source_row, dpi_error *error)
{
    for (size_t i = 0; i < job->source_count; i++) {
        source *s = job->sources[i];
        if (!s)
            continue;
        size_t row_bytes;
        const port *p = source_port(s);
        if (!shape_row_bytes(p->dtype, p->shape, p->rank, &row_bytes))
            return error_set(error, DPI_E_INTERNAL, "%s has rows of no size", source_spec(s));
        bool padded = f->call_rows != f->rows, copy = w->setup.device.in_caller;
        if (source_is_dear(s)) {
            if (!scratch_ensure(&f->in[i], row_bytes * f->call_rows))
                return out_of_memory(error, row_bytes * f->call_rows);
            f->inputs[i].data = f->in[i].data;
            continue;
        }
        if ((padded || copy || !source_is_mapped(s)) && !scratch_ensure(&f->in[i], row_bytes * f->call_rows))
            return out_of_memory(error, row_bytes * f->call_rows);
        const void *rows = NULL;
        bool in_place = false;
        dpi_status status = source_rows_at(s, source_row, f->rows, f->in[i].data, copy, &rows, &in_place, error);
        if (status)
            return status;
        if (padded && in_place) {
            memcpy(f->in[i].data, rows, row_bytes * f->rows);
            rows = f->in[i].data;
        }
        f->inputs[i].data = (void *)(uintptr_t)rows; /* read-only for the engine */
    }
    return DPI_OK;
}

dpi_status worker_job_store(worker *w, const worker_job *job, flight *f, uint64_t result_row, const batch_desc *batch,
                            dpi_error *error)
{
    for (size_t i = 0; i < job->sink_count; i++) {
        const job_sink *to = &job->sinks[i];
        const layout_array *out = &batch->outputs[i];
        dpi_status status = DPI_OK;
        if (to->fd >= 0)
            status = file_write_at(to->fd, f->outputs[i].data, f->rows * out->row_bytes,
                                   to->data_offset + result_row * out->row_bytes, to->name, error);
        else if (to->in_arena && f->call_rows != f->rows)
            memcpy(w->outputs + out->offset + f->first_row * out->row_bytes, f->outputs[i].data,
                   f->rows * out->row_bytes);
        else if (to->top) {
            /* Records go to the outputs arena, at the batch's own rows; the caller formats them in order. */
            port p = w->sig.outputs[i];
            p.rank = f->outputs[i].rank;
            memcpy(p.shape, f->outputs[i].shape, sizeof p.shape);
            sink_top *records = (sink_top *)(void *)(w->outputs + out->offset) + f->first_row * to->top;
            sink_top_records(&p, f->outputs[i].data, f->rows, to->top, records);
        }
        if (status)
            return status;
    }
    return DPI_OK;
}
