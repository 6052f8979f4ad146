#include "runtime/session.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "runtime/best_rows.h"
#include "runtime/gpus.h"
#include "runtime/probe.h"
#include "runtime/recovery.h"
#include "runtime/tracer.h"

#include "dpi_build.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

#define DEFAULT_BATCH      64
#define DEFAULT_QUEUE      16
#define DEFAULT_COMPILE_MS 600000
#define DEFAULT_DEATHS     5
#define DEFAULT_BAD_ROWS   1000

/* ---- options ---------------------------------------------------------------------------------------------------- */

static dpi_status check_options(const dpi_options *o, dpi_error *error)
{
    if (!o->model_path && !o->model_data)
        return error_set(error, DPI_E_ARGUMENT, "no model was given");
    if (o->model_path && o->model_data)
        return error_set(error, DPI_E_ARGUMENT, "a model is given by path or by memory, not both");
    if (o->total_batch_size && o->batch_size_list)
        return error_set(error, DPI_E_ARGUMENT, "total_batch_size and batch_size_list exclude each other");
    if (o->batch == DPI_BATCH_AUTO && (o->total_batch_size || o->batch_size_list))
        return error_set(error, DPI_E_ARGUMENT, "a fixed split names the rows itself: leave batch auto out");
    if (o->batch > 1u << 24 && o->batch != DPI_BATCH_AUTO)
        return error_set(error, DPI_E_ARGUMENT, "a batch of %zu rows per device is too large", o->batch);
    if (o->queue_depth > LAYOUT_SLOTS)
        return error_set(error, DPI_E_ARGUMENT, "queue_depth is at most %d", LAYOUT_SLOTS);
    if (o->isolation > DPI_ISOLATION_STRICT || o->wait_mode > DPI_WAIT_SPIN || o->precision > DPI_PRECISION_BF16 ||
        o->on_bad_row > DPI_BAD_ROW_SKIP)
        return error_set(error, DPI_E_ARGUMENT,
                         "isolation, wait_mode, precision or on_bad_row is not one of the values");
    if (o->model_path && access(o->model_path, R_OK) != 0)
        return error_set_errno(error, DPI_E_MODEL, errno, "cannot read the model %s", o->model_path);
    struct stat info;
    if (o->model_path && stat(o->model_path, &info) == 0 && !S_ISREG(info.st_mode))
        return error_set(error, DPI_E_MODEL, "the model %s is not a regular file", o->model_path);
    return DPI_OK;
}

dpi_status session_find_worker(const dpi_options *o, char **path, dpi_error *error)
{
    const char *named = o->worker_path ? o->worker_path : getenv("DPINFER_WORKER");
    if (named && *named) {
        if (access(named, X_OK) != 0)
            return error_set_errno(error, DPI_E_ARGUMENT, errno, "the worker program %s cannot be run", named);
        *path = strdup(named);
        return *path ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    char *library = file_of_address((const void *)(uintptr_t)&session_open);
    char *slash = library ? strrchr(library, '/') : NULL;
    static const char *const places[] = {"%s/dpinfer-worker", "%s/../libexec/dpinfer/dpinfer-worker",
                                         "%s/../../libexec/dpinfer/dpinfer-worker"};
    if (slash)
        *slash = 0;
    for (size_t i = 0; slash && !*path && i < sizeof places / sizeof places[0]; i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        char *candidate = text_format(places[i], library);
#pragma GCC diagnostic pop
        if (candidate && access(candidate, X_OK) == 0)
            *path = candidate;
        else
            free(candidate);
    }
    dpi_status status = DPI_OK;
    if (!*path)
        status = error_set(error, DPI_E_ARGUMENT,
                           "the program dpinfer-worker was not found beside %s nor in ../libexec/dpinfer; "
                           "name it in DPINFER_WORKER",
                           library ? library : "the library");
    free(library);
    return status;
}

static bool copy_options(const dpi_key_value *from, size_t count, long number_of_worker, dpi_key_value **to,
                         size_t *to_count)
{
    *to = calloc(count + 1, sizeof **to);
    if (!*to)
        return false;
    for (size_t i = 0; i < count; i++) {
        const char *key = from[i].key ? from[i].key : "", *dot = strchr(key, '.');
        uint64_t number;
        char prefix[16];
        if (number_of_worker >= 0 && dot && (size_t)(dot - key) < sizeof prefix) { /* "2.row_us": worker 2 alone */
            memcpy(prefix, key, (size_t)(dot - key));
            prefix[dot - key] = 0;
            if (text_to_u64(prefix, 0, LAYOUT_WORKERS, &number)) {
                if (number != (uint64_t)number_of_worker)
                    continue;
                key = dot + 1;
            }
        }
        dpi_key_value *o = &(*to)[(*to_count)++];
        o->key = strdup(key);
        o->value = strdup(from[i].value ? from[i].value : "");
        if (!o->key || !o->value)
            return false;
    }
    return true;
}

static char *dup_or_null(const char *text) { return text ? strdup(text) : NULL; }

static void identify(dpi_session *s)
{
    if (s->worker_path && stat(s->worker_path, &s->program_identity) != 0)
        s->program_identity.st_ino = 0;
    const char *model = s->common_setup.model_path;
    if (model && stat(model, &s->model_identity) != 0)
        s->model_identity.st_ino = 0;
}

static bool is_still(const char *path, const struct stat *was)
{
    struct stat now;
    return stat(path, &now) == 0 && now.st_dev == was->st_dev && now.st_ino == was->st_ino &&
           now.st_size == was->st_size && now.st_mtim.tv_sec == was->st_mtim.tv_sec &&
           now.st_mtim.tv_nsec == was->st_mtim.tv_nsec;
}

dpi_status session_files_unchanged(const dpi_session *s, dpi_error *error)
{
    const char *model = s->common_setup.model_path;
    if (!is_still(s->worker_path, &s->program_identity))
        return error_set(error, DPI_E_WORKER, "%s has changed since the session was opened; open it again",
                         s->worker_path);
    if (model && !is_still(model, &s->model_identity))
        return error_set(error, DPI_E_MODEL, "%s has changed since the session was opened; open it again", model);
    return DPI_OK;
}

static dpi_status fill_common_setup(dpi_session *s, const dpi_options *o, const char *format, dpi_error *error)
{
    worker_setup *t = &s->common_setup;
    t->backend = strdup(s->backend->name);
    t->library = dup_or_null(o->library);
    t->model_path = o->model_path ? realpath(o->model_path, NULL) : NULL;
    t->model_format = strdup(format);
    t->precision = o->precision;
    t->batch = s->max_rows;
    t->provider = dup_or_null(o->provider);
    t->batch_auto = o->batch == DPI_BATCH_AUTO;
    t->trust_rows = o->trust_rows;
    t->cache_dir = dup_or_null(o->cache_dir);
    t->cache_max_bytes = o->cache_max_bytes;
    t->no_sandbox = o->no_sandbox;
    t->core_dumps = o->core_dumps;
    t->memory_bytes = o->worker_memory_bytes;
    t->log_level = s->log.level;
    t->output_count = o->output_names ? o->output_count : 0;
    t->output_names = calloc(t->output_count + 1, sizeof *t->output_names);
    for (size_t i = 0; t->output_names && i < t->output_count; i++)
        t->output_names[i] = strdup(o->output_names[i]);
    t->data_folders = calloc(o->data_folder_count + 1, sizeof *t->data_folders);
    for (size_t i = 0; t->data_folders && o->data_folders && i < o->data_folder_count; i++)
        if ((t->data_folders[t->data_folder_count] = realpath(o->data_folders[i], NULL)))
            t->data_folder_count++; /* what is not there, whoever reads from it will say */
    bool good =
        t->output_names && t->data_folders && t->backend && t->model_format && (!o->model_path || t->model_path) &&
        copy_options(o->provider_options, o->provider_option_count, -1, &t->provider_options,
                     &t->provider_option_count) &&
        copy_options(o->backend_options, o->backend_option_count, -1, &t->backend_options, &t->backend_option_count);
    t->broadcast = calloc(o->broadcast_count + 1, sizeof *t->broadcast);
    return good && t->broadcast ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory while preparing a worker");
}

dpi_status session_fill_setup(dpi_session *s, size_t w, dpi_error *error)
{
    const worker_setup *from = &s->common_setup;
    worker_setup *t = &s->setups[w];
    json_t *json = setup_to_json(from); /* as it will travel to the worker anyway */
    if (!json)
        return error_set(error, DPI_E_ARGUMENT, "an option or a path is not valid UTF-8");
    dpi_status status = setup_from_json(json, t, error);
    json_decref(json);
    if (status)
        return status;
    t->worker = w;
    t->device = device_for_backend(&s->devices, w, s->in_caller);
    options_free(t->backend_options, t->backend_option_count);
    t->backend_option_count = 0;
    return copy_options(from->backend_options, from->backend_option_count, (long)w, &t->backend_options,
                        &t->backend_option_count)
               ? DPI_OK
               : error_set(error, DPI_E_SYSTEM, "out of memory while preparing a worker");
}

/* Puts the broadcast inputs into the arena, once for all workers. */
static dpi_status place_broadcast(dpi_session *s, const dpi_options *o, dpi_error *error)
{
    for (size_t i = 0; i < o->broadcast_count; i++) {
        const dpi_tensor *t = &o->broadcast[i];
        size_t bytes;
        if (!t->name || !*t->name || strlen(t->name) >= PORT_NAME_SIZE)
            return error_set(error, DPI_E_ARGUMENT, "a broadcast input has no name; say --broadcast NAME=FILE");
        if (t->rank < 0 || t->rank > DPI_MAX_RANK || !shape_bytes(t->dtype, t->shape, t->rank, &bytes) ||
            (!t->data && bytes))
            return error_set(error, DPI_E_DATA, "the broadcast input %s has no valid shape or no data", t->name);
        uint64_t offset = arena_alloc(s->inputs, bytes);
        if (offset == ARENA_NONE)
            return error_set(error, DPI_E_SYSTEM, "no room for %zu bytes of the broadcast input %s", bytes, t->name);
        if (bytes)
            memcpy(arena_at(s->inputs, offset), t->data, bytes);
        broadcast_input *b = &s->common_setup.broadcast[s->common_setup.broadcast_count++];
        strcpy(b->name, t->name);
        b->dtype = t->dtype;
        b->rank = t->rank;
        memcpy(b->shape, t->shape, sizeof b->shape);
        b->offset = offset;
    }
    return DPI_OK;
}

void session_spread(const dpi_session *s, size_t rows, size_t *shares)
{
    size_t even[LAYOUT_WORKERS], devices = 0, next = 0;
    for (size_t w = 0; w < s->count; w++)
        devices += s->workers[w].device == DEVICE_IN_USE;
    plan_even(rows, devices ? devices : s->count, even); /* none: the session is about to fail */
    for (size_t w = 0; w < s->count; w++)
        shares[w] = !devices || s->workers[w].device == DEVICE_IN_USE ? even[next++] : 0;
}

static dpi_status keep_shares(dpi_session *s, const dpi_options *o, dpi_error *error)
{
    if (!o->total_batch_size && !o->batch_size_list)
        return DPI_OK;
    if (o->batch_size_list && o->batch_size_count != s->count)
        return error_set(error, DPI_E_ARGUMENT, "the split names %zu shares and there are %zu devices",
                         o->batch_size_count, s->count);
    s->shares = calloc(LAYOUT_WORKERS, sizeof *s->shares);
    if (!s->shares)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    s->total_rows = o->total_batch_size;
    if (s->total_rows)
        session_spread(s, s->total_rows, s->shares);
    size_t total = 0;
    for (size_t w = 0; w < s->count; w++) {
        if (!s->total_rows)
            s->shares[w] = o->batch_size_list[w];
        total += s->shares[w];
        if (s->shares[w] > s->max_rows && !o->batch)
            s->max_rows = s->shares[w]; /* a share is one engine call, unless --batch says otherwise */
    }
    return total ? DPI_OK : error_set(error, DPI_E_ARGUMENT, "the split gives no rows to any device");
}

/* ---- making ----------------------------------------------------------------------------------------------------- */

static void fill_board(dpi_session *s, const dpi_options *o)
{
    board *b = &s->control->board;
    struct stat info;
    const char *slash = o->model_path ? strrchr(o->model_path, '/') : NULL;
    b->pid = (uint32_t)getpid();
    b->opened_ns = clock_now_ns();
    b->outputs_inode = fstat(arena_fd(s->outputs), &info) == 0 ? info.st_ino : 0;
    snprintf(b->model, sizeof b->model, "%s", slash ? slash + 1 : o->model_path ? o->model_path : "(in memory)");
}

static dpi_status make_memory(dpi_session *s, const dpi_options *o, uint64_t machine_bytes, dpi_error *error)
{
    uint64_t max = o->arena_max_bytes ? o->arena_max_bytes : machine_bytes;
    dpi_status status = arena_create("dpinfer-control", sizeof(control), sizeof(control), ARENA_CALLER_WRITES,
                                     &s->control_arena, error);
    if (!status)
        status = arena_create("dpinfer-inputs", max, 0, o->producers ? ARENA_PRODUCERS_WRITE : ARENA_CALLER_WRITES,
                              &s->inputs, error);
    if (!status)
        status = arena_create("dpinfer-outputs", LAYOUT_CLAIMS_BYTES + max, LAYOUT_CLAIMS_BYTES,
                              s->strict ? ARENA_CALLER_WRITES : ARENA_ALL_WRITE, &s->outputs, error);
    if (status)
        return status;
    s->control = arena_at(s->control_arena, 0);
    s->control->magic = LAYOUT_MAGIC;
    s->control->version = LAYOUT_VERSION;
    s->control->build_id = DPI_BUILD_ID;
    s->control->input_max_bytes = arena_max(s->inputs);
    s->control->output_max_bytes = arena_max(s->outputs);
    s->control->on_bad_row = (uint32_t)s->on_bad_row;
    s->control->strict = s->strict;
    fill_board(s, o);
    s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->event_fd < 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot make an event descriptor");
    void *guard = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (guard == MAP_FAILED)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "out of memory");
    madvise(guard, 4096, MADV_WIPEONFORK);
    s->fork_guard = guard;
    atomic_store(s->fork_guard, 1);
    return DPI_OK;
}

static dpi_status make_model_fd(dpi_session *s, const dpi_options *o, dpi_error *error)
{
    s->model_fd = -1;
    if (!o->model_data)
        return DPI_OK;
    s->model_fd = memfd_create("dpinfer-model", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (s->model_fd < 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot keep the model in memory");
    dpi_status status = file_write_at(s->model_fd, o->model_data, o->model_bytes, 0, "the model's memory", error);
    fcntl(s->model_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
    return status;
}

/* How the two sides wait. Spinning costs nobody anything only where every worker and one more thread have a core. */
static void choose_waiting(dpi_session *s, const dpi_options *o, const topology *machine)
{
    size_t worker_cpus = 0;
    for (size_t w = 0; w < s->count; w++)
        worker_cpus += s->devices.items[w].cpu_count;
    size_t couriers = s->strict ? s->count : 0;
    bool room = worker_cpus && worker_cpus + couriers < machine->cpu_count && machine->quota <= 0;
    dpi_wait_mode mode = o->wait_mode;
    uint32_t spin_us = 2000;
    if (mode == DPI_WAIT_AUTO) {
        mode = room ? DPI_WAIT_SPIN : DPI_WAIT_YIELD;
        spin_us = room ? 50 : 20;
    }
    s->patience = (bell_patience){.mode = mode, .spin_us = mode == DPI_WAIT_BLOCK ? 0 : spin_us};
    s->control->wait_mode = (uint32_t)mode;
    s->control->spin_us = s->patience.spin_us;
}

static void keep_options(dpi_session *s, const dpi_options *o)
{
    s->log =
        (logger){.sink = o->log, .context = o->log_context, .level = o->log_level ? o->log_level : DPI_LOG_WARNING};
    s->isolation = o->isolation;
    s->in_caller = o->isolation == DPI_ISOLATION_THREAD;
    s->strict = o->isolation == DPI_ISOLATION_STRICT;
    s->max_rows = o->batch == DPI_BATCH_AUTO ? BEST_ROWS_MOST : o->batch ? o->batch : DEFAULT_BATCH;
    s->queue_depth = o->queue_depth ? o->queue_depth : DEFAULT_QUEUE;
    s->compile_timeout_ms = o->compile_timeout_ms ? o->compile_timeout_ms : DEFAULT_COMPILE_MS;
    s->slice_timeout_ms = o->slice_timeout_ms;
    s->max_deaths = o->max_deaths ? o->max_deaths : DEFAULT_DEATHS;
    s->on_bad_row = o->on_bad_row;
    s->max_bad_rows = o->max_bad_rows ? o->max_bad_rows : DEFAULT_BAD_ROWS;
    s->has_producers = o->producers;
    s->bad_row = o->bad_row;
    s->bad_row_context = o->bad_row_context;
    s->event = o->event;
    s->event_context = o->event_context;
    s->deterministic = o->deterministic;
}

/* The devices of the opening, and room for those that may be added. */
static dpi_status find_devices(dpi_session *s, const dpi_options *o, const topology *machine, dpi_error *error)
{
    const char *devices = o->devices ? o->devices : "auto";
    topology here = *machine;
    if (backend_lists(s->backend->device_kinds, "cuda") && strstr(devices, "auto"))
        here.gpus = s->in_caller ? 1 : gpus_count(s->worker_path);
    dpi_status status = device_list_parse(devices, &here, s->backend->device_kinds, &s->devices, error);
    if (status)
        return status;
    device *room = realloc(s->devices.items, LAYOUT_WORKERS * sizeof *room);
    if (!room)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    s->devices.items = room;
    s->count = s->devices.count;
    for (size_t w = 0; w < s->count; w++)
        if (!backend_lists(s->backend->device_kinds, s->devices.items[w].kind))
            return error_set(error, DPI_E_DEVICE, "the backend %s does not run on %s; it runs on: %s", s->backend->name,
                             s->devices.items[w].name, s->backend->device_kinds);
    if (s->in_caller && s->count > 1 && s->backend->threading == BACKEND_ONE_CPU_DEVICE)
        return error_set(error, DPI_E_DEVICE, "%s has one CPU device per process: isolation=thread takes one device",
                         s->backend->name);
    if (s->devices.how[0])
        log_info(&s->log, "auto: %s", s->devices.how);
    core_locks_take(&s->locks, &s->devices, NULL, &s->log);
    return DPI_OK;
}

static dpi_status prepare(dpi_session *s, const dpi_options *o, const char *format, const topology *machine,
                          dpi_error *error)
{
    keep_options(s, o);
    dpi_status status = s->in_caller ? DPI_OK : session_find_worker(o, &s->worker_path, error);
    if (!status)
        status = find_devices(s, o, machine, error);
    if (status)
        return status;
    s->workers = calloc(LAYOUT_WORKERS, sizeof *s->workers); /* address space: pages are there once they are used */
    s->setups = calloc(LAYOUT_WORKERS, sizeof *s->setups);
    s->memos = calloc(SESSION_MEMOS, sizeof *s->memos);
    s->predicted_ns = calloc(LAYOUT_SLOTS, sizeof *s->predicted_ns);
    if (!s->workers || !s->setups || !s->memos || !s->predicted_ns)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    status = keep_shares(s, o, error);
    if (!status)
        status = make_memory(s, o, machine->memory_bytes, error);
    if (!status)
        status = make_model_fd(s, o, error);
    if (!status)
        status = fill_common_setup(s, o, format, error);
    if (!status)
        status = place_broadcast(s, o, error);
    for (size_t w = 0; !status && w < s->count; w++)
        status = session_fill_setup(s, w, error);
    if (status)
        return status;
    choose_waiting(s, o, machine);
    identify(s);
    return DPI_OK;
}

/* ---- becoming ready --------------------------------------------------------------------------------------------- */

static dpi_status wait_ready(dpi_session *s, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    while (s->state == SESSION_OPENING)
        pthread_cond_wait(&s->changed, &s->lock);
    dpi_status status =
        s->state == SESSION_FAILED ? error_set(error, s->failure.status, "%s", s->failure.message) : DPI_OK;
    pthread_mutex_unlock(&s->lock);
    return status;
}

bool session_same_signature(const signature *a, const signature *b)
{
    if (a->input_count != b->input_count || a->output_count != b->output_count)
        return false;
    for (size_t side = 0; side < 2; side++) {
        const port *x = side ? a->outputs : a->inputs, *y = side ? b->outputs : b->inputs;
        for (size_t i = 0; i < (side ? a->output_count : a->input_count); i++)
            if (strcmp(x[i].name, y[i].name) != 0 || x[i].dtype != y[i].dtype || x[i].rank != y[i].rank ||
                memcmp(x[i].shape, y[i].shape, (size_t)x[i].rank * sizeof x[i].shape[0]) != 0)
                return false;
    }
    return true;
}

dpi_status session_compare(const dpi_session *s, size_t w, size_t others, const worker_report *report,
                           bool *other_engine, double *difference, dpi_error *error)
{
    const worker_report *first = &s->workers[0].report;
    const char *name = s->devices.items[w].name;
    *other_engine = true;
    *difference = 0;
    if (!session_same_signature(&first->sig, &report->sig))
        return error_set(error, DPI_E_WORKER, "%s and %s see different inputs or outputs in the model",
                         s->devices.items[0].name, name);
    for (size_t i = 0; i < others; i++) {
        const worker_report *r = &s->workers[i].report;
        if (i == w || strcmp(r->fingerprint, report->fingerprint) != 0)
            continue;
        *other_engine = false;
        if (strcmp(r->probe_hash, report->probe_hash) != 0)
            return error_set(error, DPI_E_WORKER,
                             "%s and %s run the same engine and give different results for the same "
                             "rows; one of them is faulty",
                             s->devices.items[i].name, name);
    }
    probe_result a = {.sample = first->sample, .sample_count = first->sample_count};
    probe_result b = {.sample = report->sample, .sample_count = report->sample_count};
    if (*other_engine)
        *difference = probe_difference(&a, &b);
    return DPI_OK;
}

/* Replicas of one fingerprint must agree bit for bit; mixed ones within a tolerance that is shown. */
static dpi_status compare_replicas(dpi_session *s, dpi_error *error)
{
    s->bit_identical = true;
    for (size_t w = 1; w < s->count; w++) {
        bool other_engine;
        double difference;
        dpi_status status = session_compare(s, w, w, &s->workers[w].report, &other_engine, &difference, error);
        if (status)
            return status;
        s->bit_identical &= !other_engine;
        s->tolerance = difference > s->tolerance ? difference : s->tolerance;
    }
    if (!s->bit_identical && s->deterministic)
        return error_set(error, DPI_E_DEVICE,
                         "the devices run different engines, so results may differ in their last bits "
                         "(by %.2g of the largest); choose equal devices or leave out --deterministic",
                         s->tolerance);
    return DPI_OK;
}

static dpi_status adopt_reports(dpi_session *s, dpi_error *error)
{
    dpi_status status = compare_replicas(s, error);
    if (status)
        return status;
    s->sig = s->workers[0].report.sig;
    for (size_t i = 0; i < s->sig.input_count; i++) {
        s->is_broadcast[i] =
            broadcast_find(s->setups[0].broadcast, s->setups[0].broadcast_count, s->sig.inputs[i].name) != NULL;
        s->batch_input_count += !s->is_broadcast[i];
    }
    if (!s->batch_input_count)
        return error_set(error, DPI_E_MODEL, "every input of the model is broadcast: there are no rows to split");
    status = signature_fixed_rows(&s->sig, s->setups[0].broadcast, s->setups[0].broadcast_count, &s->fixed_rows, error);
    if (status)
        return status;
    if (s->fixed_rows)
        s->max_rows = s->fixed_rows;
    for (size_t w = 0; w < s->count; w++)
        if (s->workers[w].report.max_rows && s->workers[w].report.max_rows < s->max_rows)
            s->max_rows = s->workers[w].report.max_rows;
    plan_cost costs[LAYOUT_WORKERS];
    for (size_t w = 0; w < s->count; w++) {
        const worker_report *r = &s->workers[w].report;
        if (r->size_changes_bits)
            s->fixed_rows = s->max_rows;
        costs[w] = (plan_cost){.fixed_ns = r->fixed_ns, .row_ns = r->row_ns};
        atomic_store(&s->control->workers[w].fixed_ns, (uint64_t)r->fixed_ns);
        atomic_store(&s->control->workers[w].row_ns, (uint64_t)r->row_ns);
    }
    planner *p = planner_new(s->count, costs);
    if (!p)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    pthread_mutex_lock(&s->lock);
    for (size_t w = 0; w < s->count; w++)
        if (s->workers[w].device != DEVICE_IN_USE) /* given up since all were ready */
            planner_enable(p, w, false);
    s->planner = p;
    pthread_mutex_unlock(&s->lock);
    return DPI_OK;
}

static dpi_status start_tracer(dpi_session *s, const dpi_options *o, dpi_error *error)
{
    dpi_status status = o->trace_path ? tracer_open(s, o->trace_path, &s->tracer, error) : DPI_OK;
    return status || !s->tracer ? status : tracer_start(s->tracer, error);
}

static dpi_status open_with(const backend *chosen, const dpi_options *o, const char *format, const topology *machine,
                            dpi_session **out, dpi_error *error)
{
    dpi_session *s = calloc(1, sizeof *s);
    if (!s)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    s->backend = chosen;
    s->model_fd = s->event_fd = s->supervisor_wake = -1;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->engine_lock, NULL);
    pthread_mutex_init(&s->ask_lock, NULL);
    pthread_mutex_init(&s->event_lock, NULL);
    dpi_status status = prepare(s, o, format, machine, error);
    if (!status)
        status = start_tracer(s, o, error);
    if (!status)
        status = supervisor_start(s, error);
    if (!status)
        status = wait_ready(s, error);
    if (!status)
        status = adopt_reports(s, error);
    if (status) {
        session_close(s);
        return status;
    }
    *out = s;
    return DPI_OK;
}

/* Whether a backend could run on these devices: one that is named is of its kinds, or the choice is its own. */
static bool suits(const backend *b, const char *devices)
{
    if (!devices || strstr(devices, "auto"))
        return true;
    static const char *const kinds[] = {"cpu", "cuda", "sim"};
    bool named = false;
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        char prefix[8];
        snprintf(prefix, sizeof prefix, "%s:", kinds[i]);
        if (!strstr(devices, prefix))
            continue;
        named = true;
        if (backend_lists(b->device_kinds, kinds[i]))
            return true;
    }
    return !named;
}

dpi_status session_open(const dpi_options *o, dpi_session **out, dpi_error *error)
{
    *out = NULL;
    error_clear(error);
    char format[16] = "";
    dpi_status status = check_options(o, error);
    if (status)
        return status;
    if (o->model_path)
        backend_format_of(o->model_path, format);
    else
        snprintf(format, sizeof format, "%s", o->model_format ? o->model_format : "onnx");
    topology machine;
    status = topology_read(&machine, error);
    if (status)
        return status;
    size_t count;
    const backend *const *list = backend_list(&count);
    dpi_error ours;
    if (backend_for(format, NULL))
        error_set(&ours, DPI_E_DEVICE, "no backend runs \"%s\" files on %s", format, o->devices ? o->devices : "auto");
    else
        error_set(&ours, DPI_E_MODEL, "no backend opens \"%s\" files (%s)", format,
                  o->model_path ? o->model_path : "memory");
    dpi_status none = ours.status; /* anything that a backend says tells more */
    if (o->backend && !backend_find(o->backend))
        error_set(&ours, DPI_E_BACKEND, "there is no backend \"%s\"; dpinfer devices lists them", o->backend);
    status = ours.status;
    /* Unless one is named: the first in the documented order whose library is there and that can do what is asked. */
    bool tried_all = false;
    for (size_t i = 0; i < count && !tried_all && !*out; i++) {
        bool candidate = backend_lists(list[i]->formats, format) && suits(list[i], o->devices);
        if (o->backend ? strcmp(o->backend, list[i]->name) != 0 : !candidate)
            continue;
        dpi_error one;
        dpi_status now = backend_lists(list[i]->formats, format)
                             ? open_with(list[i], o, format, &machine, out, &one)
                             : error_set(&one, DPI_E_MODEL, "the backend %s does not open \"%s\" files; it opens: %s",
                                         list[i]->name, format, list[i]->formats);
        tried_all = now != DPI_E_BACKEND && now != DPI_E_DEVICE;
        /* Of several refusals the first that is not about a missing library tells most. */
        if (!now || none || ours.status != DPI_E_DEVICE)
            ours = one;
        none = DPI_OK;
        status = now ? ours.status : DPI_OK;
    }
    topology_free(&machine);
    if (status)
        return error_set(error, status, "%s", ours.message);
    return error_clear(error);
}

/* ---- ending ----------------------------------------------------------------------------------------------------- */

static bool is_forked(const dpi_session *s)
{
    return s->fork_guard && atomic_load_explicit(s->fork_guard, memory_order_relaxed) != 1;
}

void session_close(dpi_session *s)
{
    if (!s)
        return;
    if (is_forked(s)) { /* a child: the memory is the parent's business, and so is everything else */
        arena_abandon(s->control_arena);
        arena_abandon(s->inputs);
        arena_abandon(s->outputs);
        for (size_t w = 0; w < s->seats; w++)
            if (s->workers[w].page)
                munmap(s->workers[w].page, s->workers[w].page_bytes);
        return;
    }
    supervisor_stop(s);
    tracer_close(s->tracer);
    recovery_close(s);
    batch_free_all(s);
    session_end_job(s, 0);
    for (size_t w = 0; w < s->seats; w++) {
        session_worker *k = &s->workers[w];
        report_free(&k->report);
        json_decref(k->reply);
        free(k->last_death);
        if (k->page)
            munmap(k->page, k->page_bytes);
        int fds[] = {k->socket, k->page_fd, k->private_fd, k->log_pipe};
        for (size_t i = 0; i < 4; i++)
            if (fds[i] >= 0)
                close(fds[i]);
    }
    for (size_t w = 0; w < s->devices.count && s->setups; w++)
        setup_free(&s->setups[w]);
    setup_free(&s->common_setup);
    int fds[] = {s->model_fd, s->event_fd, s->supervisor_wake};
    for (size_t i = 0; i < 3; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    arena_destroy(s->control_arena);
    arena_destroy(s->inputs);
    arena_destroy(s->outputs);
    if (s->fork_guard)
        munmap((void *)(uintptr_t)s->fork_guard, 4096);
    planner_free(s->planner);
    core_locks_release(&s->locks);
    device_list_free(&s->devices);
    pthread_mutex_destroy(&s->lock);
    pthread_mutex_destroy(&s->engine_lock);
    pthread_mutex_destroy(&s->ask_lock);
    pthread_mutex_destroy(&s->event_lock);
    pthread_cond_destroy(&s->changed);
    free(s->worker_path);
    free(s->workers);
    free(s->setups);
    free(s->memos);
    free(s->predicted_ns);
    free(s->shares);
    free(s->describe_workers);
    free(s);
}

dpi_status session_usable(dpi_session *s, dpi_error *error)
{
    if (is_forked(s))
        return error_set(error, DPI_E_FORKED, "this session was opened before fork(); open one in the child");
    if (atomic_load_explicit(&s->failed, memory_order_acquire))
        return error_set(error, s->failure.status, "%s", s->failure.message);
    return DPI_OK;
}
