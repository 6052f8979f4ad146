/* From the setup message to an engine that has passed its probe. */
#include "base/clock.h"
#include "base/topology.h"
#include "runtime/cache.h"
#include "runtime/loader.h"
#include "runtime/model_hash.h"
#include "runtime/probe.h"
#include "runtime/worker_job.h"
#include "runtime/worker_sandbox.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void set_stage(worker *w, uint32_t stage) { atomic_store(&w->page->stage, stage); }

static void alive(void *context)
{
    worker *w = context;
    atomic_fetch_add_explicit(&w->page->heartbeat, 1, memory_order_relaxed);
}

static void waiting_for(void *context, int64_t pid)
{
    worker *w = context;
    if (atomic_load(&w->page->stage) != STAGE_WAITING_FOR_BUILD)
        log_info(&w->log, "%s waits for process %lld, which compiles the same engine", w->setup.device.name,
                 (long long)pid);
    set_stage(w, STAGE_WAITING_FOR_BUILD);
    alive(w);
}

/* Before any library is loaded: thread pools take the mask that they find. */
static void pin(const worker *w)
{
    const backend_device *d = &w->setup.device;
    cpu_set_t *set = CPU_ALLOC(TOPOLOGY_MAX_CPUS);
    size_t bytes = CPU_ALLOC_SIZE(TOPOLOGY_MAX_CPUS);
    if (!set)
        return;
    CPU_ZERO_S(bytes, set);
    for (size_t i = 0; i < d->cpu_count; i++)
        CPU_SET_S((size_t)d->cpus[i], bytes, set);
    if (sched_setaffinity(0, bytes, set) != 0)
        log_warning(&w->log, "cannot be pinned to its cores: %s", strerror(errno));
    CPU_FREE(set);
}

static dpi_status map_model(worker *w, backend_model *model, dpi_error *error)
{
    *model = (backend_model){.path = w->setup.model_path, .format = w->setup.model_format};
    if (model->path)
        return DPI_OK;
    struct stat info;
    if (fstat(w->model_fd, &info) != 0 || info.st_size <= 0)
        return error_set(error, DPI_E_MODEL, "the model in memory is empty");
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_SHARED, w->model_fd, 0);
    if (data == MAP_FAILED)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map the model");
    w->model_data = data;
    w->model_bytes = (size_t)info.st_size;
    model->data = data;
    model->bytes = w->model_bytes;
    return DPI_OK;
}

/* Everything that decides what the compiled engine is; see docs/architecture.md, Engine cache. */
static dpi_status engine_key(const worker *w, hash128 content, hash128 *key, dpi_error *error)
{
    const worker_setup *s = &w->setup;
    backend_library_info info = {0};
    w->backend->library_info(w->library, &info);
    hash_state *h = hash_new();
    hash_add_u64(h, LAYOUT_VERSION);
    hash_add_u64(h, content.low);
    hash_add_u64(h, content.high);
    hash_add_text(h, s->model_format);
    hash_add_text(h, w->backend->name);
    hash_add_text(h, info.version);
    hash_add_text(h, s->device.kind);
    topology machine;
    if (topology_read(&machine, NULL) == DPI_OK) {
        hash_add_text(h, machine.model);
        hash_add_u64(h, (uint64_t)machine.has_avx2 | (uint64_t)machine.has_avx512 << 1 |
                            (uint64_t)machine.has_avx512_bf16 << 2 | (uint64_t)machine.has_amx_bf16 << 3 |
                            (uint64_t)machine.has_avx512_fp16 << 4);
        topology_free(&machine);
    }
    hash_add_u64(h, s->device.threads);
    hash_add_u64(h, (uint64_t)s->precision);
    hash_add_u64(h, s->batch);
    for (size_t i = 0; i < s->output_count; i++)
        hash_add_text(h, s->output_names[i]);
    hash_add_text(h, s->provider);
    for (size_t i = 0; i < s->provider_option_count; i++) {
        hash_add_text(h, s->provider_options[i].key);
        hash_add_text(h, s->provider_options[i].value);
    }
    for (size_t i = 0; i < s->backend_option_count; i++) {
        if (backend_lists(w->backend->run_options, s->backend_options[i].key))
            continue;
        hash_add_text(h, s->backend_options[i].key);
        hash_add_text(h, s->backend_options[i].value);
    }
    dpi_status status = w->backend->hash_device ? w->backend->hash_device(w->library, &s->device, h, error) : DPI_OK;
    *key = hash_end(h);
    return status;
}

static dpi_status open_engine(worker *w, backend_open_options *options, int import_fd, dpi_error *error)
{
    set_stage(w, STAGE_COMPILING);
    options->import_fd = import_fd;
    return w->backend->open(w->library, options, &w->engine, error);
}

static void publish(worker *w, cache *store, hash128 key)
{
    dpi_error problem;
    cache_write *entry;
    int fd;
    if (cache_begin(store, key, &entry, &fd, &problem) == DPI_OK) {
        if (w->backend->export_engine(w->engine, fd, &problem) == DPI_OK) {
            char label[256];
            snprintf(label, sizeof label, "%s, %s, %s", w->setup.model_path ? w->setup.model_path : "(memory)",
                     w->backend->name, w->setup.device.name);
            if (cache_commit(entry, label, &problem) == DPI_OK)
                return;
        } else
            cache_abort(entry);
    }
    log_warning(&w->log, "the engine was not cached: %s", problem.message);
}

/* Takes the engine from the cache or compiles it; a cache that fails is a warning. */
static dpi_status open_cached(worker *w, backend_open_options *options, hash128 key, cache *store, bool *from_cache,
                              dpi_error *error)
{
    uint64_t bytes;
    int lock = -1, fd = cache_get(store, key, &bytes);
    if (fd < 0 && w->backend->single_flight) {
        lock = cache_lock(store, key, waiting_for, w);
        fd = cache_get(store, key, &bytes);
    }
    dpi_status status = DPI_E_MODEL;
    if (fd >= 0) {
        dpi_error problem;
        status = open_engine(w, options, fd, &problem);
        close(fd);
        *from_cache = status == DPI_OK;
        if (status) {
            log_warning(&w->log, "the cached engine could not be used and is compiled anew: %s", problem.message);
            cache_remove(store, key);
        }
    }
    if (status) {
        status = open_engine(w, options, -1, error);
        if (!status)
            publish(w, store, key);
    }
    if (lock >= 0)
        close(lock);
    return status;
}

/* From the setup to an engine: loads the library, maps the model, and takes the engine from the cache or compiles it.
 */
static dpi_status load_and_open(worker *w, worker_report *report, hash128 *key, dpi_error *error)
{
    worker_setup *s = &w->setup;
    set_stage(w, STAGE_LOADING);
    w->backend = backend_find(s->backend);
    if (!w->backend)
        return error_set(error, DPI_E_BACKEND, "there is no backend %s", s->backend);
    dpi_status status = w->backend->load(&(backend_load_options){.library = s->library}, &w->log, &w->library, error);
    backend_model model;
    if (!status)
        status = map_model(w, &model, error);
    if (status)
        return status;
    cache *store = NULL;
    dpi_error problem;
    bool cacheable = w->backend->export_engine && !backend_lists(w->backend->compiled_formats, model.format);
    if (cacheable && (!s->cache_dir || s->cache_dir[0]) &&
        cache_open(s->cache_dir, s->cache_max_bytes, &w->log, &store, &problem))
        log_warning(&w->log, "running without the engine cache: %s", problem.message);
    worker_sandbox_files(w, store ? cache_folder(store) : NULL);
    hash128 content;
    status = model_hash(store, &model, &content, error);
    if (!status)
        status = engine_key(w, content, key, error);
    if (!status) {
        backend_open_options options = {.model = &model,
                                        .device = &s->device,
                                        .precision = s->precision,
                                        .output_names = s->output_count ? (const char *const *)s->output_names : NULL,
                                        .output_count = s->output_count,
                                        .max_rows = s->batch,
                                        .provider = s->provider,
                                        .provider_options = s->provider_options,
                                        .provider_option_count = s->provider_option_count,
                                        .options = s->backend_options,
                                        .option_count = s->backend_option_count,
                                        .log = &w->log,
                                        .alive = alive,
                                        .alive_context = w};
        int64_t began_ns = clock_now_ns();
        status = store ? open_cached(w, &options, *key, store, &report->from_cache, error)
                       : open_engine(w, &options, -1, error);
        report->engine_seconds = (double)(clock_now_ns() - began_ns) * 1e-9;
    }
    cache_close(store);
    if (status)
        return status;
    backend_library_info info = {0};
    w->backend->library_info(w->library, &info);
    memcpy(report->library, info.path, sizeof info.path);
    memcpy(report->version, info.version, sizeof info.version);
    return w->backend->describe(w->engine, &w->sig, error);
}

/* Finds the broadcast inputs among the model's, and checks what the user gave for them. */
static dpi_status place_broadcast(worker *w, dpi_error *error)
{
    for (size_t i = 0; i < w->setup.broadcast_count; i++) {
        const broadcast_input *b = &w->setup.broadcast[i];
        int at = port_find(w->sig.inputs, w->sig.input_count, b->name);
        if (at < 0)
            return error_set(error, DPI_E_ARGUMENT, "--broadcast %s: the model has no such input", b->name);
        const port *p = &w->sig.inputs[at];
        char want[SHAPE_TEXT_SIZE], got[SHAPE_TEXT_SIZE];
        if (p->dtype != b->dtype || !port_accepts_shape(p, b->shape, b->rank))
            return error_set(error, DPI_E_DATA, "--broadcast %s: the model expects %s %s and got %s %s", b->name,
                             dpi_dtype_name(p->dtype), shape_text(p->shape, p->rank, want), dpi_dtype_name(b->dtype),
                             shape_text(b->shape, b->rank, got));
        w->broadcast[at] = (backend_array){.data = w->inputs + b->offset, .rank = b->rank};
        memcpy(w->broadcast[at].shape, b->shape, sizeof b->shape);
    }
    return signature_fixed_rows(&w->sig, w->setup.broadcast, w->setup.broadcast_count, &w->fixed_rows, error);
}

dpi_status worker_load_engine(worker *w, worker_report *report, hash128 *key, dpi_error *error)
{
    dpi_status status = load_and_open(w, report, key, error);
    return status ? status : place_broadcast(w, error);
}

static dpi_status run_probe(worker *w, worker_report *report, dpi_error *error)
{
    set_stage(w, STAGE_PROBING);
    w->max_rows = w->fixed_rows ? w->fixed_rows : w->setup.batch;
    size_t limit = w->backend->max_rows ? w->backend->max_rows(w->engine) : 0;
    if (limit && limit < w->max_rows) {
        log_info(&w->log, "the engine takes %zu rows at once: --batch %zu is lowered", limit, w->max_rows);
        w->max_rows = limit;
    }
    probe_request request = {.backend = w->backend,
                             .engine = w->engine,
                             .sig = &w->sig,
                             .broadcast = w->broadcast,
                             .max_rows = w->max_rows,
                             .fixed_rows = w->fixed_rows,
                             .trust_rows = w->setup.trust_rows,
                             .find_rows = w->setup.batch_auto,
                             .log = &w->log};
    probe_result result;
    dpi_status status = probe_run(&request, &result, error);
    if (status)
        return status;
    if (w->setup.batch_auto) {
        w->max_rows = result.best_rows;
        log_info(&w->log, "batch auto: %zu rows", w->max_rows);
    }
    report->max_rows = w->max_rows;
    report->probe_skipped = result.skipped;
    report->size_changes_bits = result.size_changes_bits;
    report->fixed_ns = result.fixed_ns;
    report->row_ns = result.row_ns;
    hash_to_hex(result.hash, report->probe_hash);
    report->sample_count = result.sample_count > 256 ? 256 : result.sample_count;
    report->sample = result.sample;
    result.sample = NULL;
    probe_free(&result);
    return DPI_OK;
}

static dpi_status build(worker *w, worker_report *report, dpi_error *error)
{
    int64_t began_ns = clock_now_ns();
    hash128 key = {0};
    dpi_status status = worker_load_engine(w, report, &key, error);
    if (!status)
        status = run_probe(w, report, error);
    if (status)
        return status;
    worker_sandbox_calls(w);
    hash_state *h = hash_new();
    hash_add_u64(h, key.low);
    hash_add_u64(h, key.high);
    if (w->backend->fingerprint)
        w->backend->fingerprint(w->engine, h);
    hash_to_hex(hash_end(h), report->fingerprint);
    w->outputs_registered = LAYOUT_CLAIMS_BYTES; /* no rows stand before the claims' end */
    w->depth = w->backend->depth ? w->backend->depth(w->engine) : 1;
    report->depth = w->depth;
    report->sig = w->sig;
    report->open_seconds = (double)(clock_now_ns() - began_ns) * 1e-9;
    return DPI_OK;
}

dpi_status worker_take_setup(worker *w, const json_t *message, dpi_error *error)
{
    dpi_status status = setup_from_json(message, &w->setup, error);
    if (status)
        return status;
    w->log.level = w->setup.log_level;
    w->setup.device.generation = w->generation;
    if (w->setup.device.pinned && w->setup.device.cpu_count)
        pin(w);
    return worker_sandbox_limits(w, error);
}

dpi_status worker_open(worker *w, dpi_error *error)
{
    error_clear(error);
    json_t *message = NULL;
    dpi_status status = channel_receive(w->socket, clock_now_ns() + 30000000000, &message, NULL, NULL, error);
    if (status)
        return status == DPI_TIMEOUT ? error_set(error, DPI_E_WORKER, "no setup message came") : status;
    worker_report report = {0};
    status = worker_take_setup(w, message, error);
    json_decref(message);
    if (!status && (status = build(w, &report, error)))
        worker_sandbox_explain(w, error);
    json_t *reply = status ? NULL : report_to_json(&report);
    if (!status && !reply)
        status = error_set(error, DPI_E_MODEL, "the model's port names are not valid UTF-8");
    if (!reply)
        reply = failure_to_json(error);
    dpi_error problem;
    if (channel_send(w->socket, reply, NULL, 0, clock_now_ns() + 30000000000, &problem) && !status)
        status = error_set(error, problem.status, "%s", problem.message);
    json_decref(reply);
    report_free(&report);
    if (!status)
        atomic_store(&w->page->stage, STAGE_READY);
    return status;
}

_Noreturn void worker_leave(const worker *w, int exit_code)
{
    fflush(NULL);
    if (w->engine && w->backend->leave)
        w->backend->leave(w->engine);
    _exit(exit_code);
}

void worker_close(worker *w)
{
    if (w->engine)
        w->backend->close(w->engine);
    if (w->library)
        w->backend->unload(w->library);
    if (w->model_data)
        munmap(w->model_data, w->model_bytes);
    loader_stop(w->loader);
    for (int i = 0; i < BACKEND_MAX_DEPTH; i++)
        flight_free(&w->flights[i]);
    setup_free(&w->setup);
}

/* ---- mail ------------------------------------------------------------------------------------------------------- */

static json_t *answer_shapes(worker *w, const json_t *message, dpi_error *error)
{
    backend_array inputs[PORT_MAX] = {0}, outputs[PORT_MAX] = {0};
    const json_t *shapes = json_object_get(message, "shapes");
    for (size_t i = 0; i < w->sig.input_count; i++) {
        const json_t *shape = json_array_get(shapes, i);
        inputs[i] = w->broadcast[i];
        if (w->broadcast[i].data)
            continue;
        inputs[i].rank = (int)json_array_size(shape);
        if (inputs[i].rank > DPI_MAX_RANK) {
            error_set(error, DPI_E_INTERNAL, "a question about shapes is not valid");
            return NULL;
        }
        for (int k = 0; k < inputs[i].rank; k++)
            inputs[i].shape[k] = json_integer_value(json_array_get(shape, (size_t)k));
    }
    if (w->backend->infer_shapes(w->engine, inputs, outputs, error))
        return NULL;
    json_t *list = json_array();
    for (size_t i = 0; i < w->sig.output_count; i++) {
        json_t *shape = json_array();
        for (int k = 0; k < outputs[i].rank; k++)
            json_array_append_new(shape, json_integer(outputs[i].shape[k]));
        json_array_append_new(list, shape);
    }
    return json_pack("{s:o}", "shapes", list);
}

static json_t *answer(worker *w, const json_t *message, int *fds, size_t fd_count, dpi_error *error)
{
    const char *what = json_string_value(json_object_get(message, "what"));
    if (what && strcmp(what, "job") == 0)
        return worker_job_open(w, message, fds, fd_count, error) ? NULL : json_pack("{s:b}", "ok", 1);
    if (what && strcmp(what, "drop") == 0) {
        worker_job_drop(w, (uint32_t)json_integer_value(json_object_get(message, "job")));
        return json_pack("{s:b}", "ok", 1);
    }
    if (what && strcmp(what, "shapes") == 0)
        return answer_shapes(w, message, error);
    error_set(error, DPI_E_INTERNAL, "an unknown message came: %s", what ? what : "(none)");
    return NULL;
}

void worker_handle_mail(worker *w)
{
    w->mail_seen++;
    int fds[CHANNEL_MAX_FDS];
    size_t fd_count = 0;
    json_t *message = NULL;
    dpi_error error;
    error_clear(&error);
    if (channel_receive(w->socket, clock_now_ns() + 5000000000, &message, fds, &fd_count, &error))
        return; /* the caller is gone or will give up on us; both are seen elsewhere */
    json_t *reply = answer(w, message, fds, fd_count, &error);
    if (!reply)
        reply = failure_to_json(&error);
    json_object_set(reply, "id", json_object_get(message, "id"));
    for (size_t i = 0; i < fd_count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    channel_send(w->socket, reply, NULL, 0, clock_now_ns() + 5000000000, &error);
    json_decref(reply);
    json_decref(message);
}
