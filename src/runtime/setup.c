#include "runtime/setup.h"

#include <stdlib.h>
#include <string.h>

/* ---- small readers of untrusted JSON ---------------------------------------------------------------------------- */

static const char *get_text(const json_t *json, const char *key)
{
    const char *text = json_string_value(json_object_get(json, key));
    return text;
}

static uint64_t get_u64(const json_t *json, const char *key)
{
    json_int_t value = json_integer_value(json_object_get(json, key));
    return value < 0 ? 0 : (uint64_t)value;
}

static bool copy_text(const json_t *json, const char *key, char *out, size_t size)
{
    const char *text = get_text(json, key);
    if (!text || strlen(text) >= size)
        return false;
    memcpy(out, text, strlen(text) + 1);
    return true;
}

static char *dup_text(const json_t *json, const char *key)
{
    const char *text = get_text(json, key);
    return text ? strdup(text) : NULL;
}

static json_t *shape_to_json(const int64_t *shape, int rank)
{
    json_t *array = json_array();
    for (int i = 0; i < rank; i++)
        json_array_append_new(array, json_integer(shape[i]));
    return array;
}

static bool shape_from_json(const json_t *array, int64_t *shape, int *rank)
{
    if (!json_is_array(array) || json_array_size(array) > DPI_MAX_RANK)
        return false;
    *rank = (int)json_array_size(array);
    for (int i = 0; i < *rank; i++) {
        shape[i] = json_integer_value(json_array_get(array, (size_t)i));
        if (shape[i] < -1)
            return false;
    }
    return true;
}

/* ---- setup ------------------------------------------------------------------------------------------------------ */

static json_t *options_to_json(const dpi_key_value *options, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(array, json_pack("[ss]", options[i].key, options[i].value));
    return array;
}

static bool options_from_json(const json_t *array, dpi_key_value **options, size_t *count)
{
    size_t n = json_array_size(array);
    *options = calloc(n + 1, sizeof **options);
    if (!*options)
        return false;
    for (*count = 0; *count < n; ++*count) {
        const json_t *pair = json_array_get(array, *count);
        const char *key = json_string_value(json_array_get(pair, 0));
        const char *value = json_string_value(json_array_get(pair, 1));
        dpi_key_value *o = &(*options)[*count];
        o->key = key ? strdup(key) : NULL;
        o->value = value ? strdup(value) : NULL;
        if (!o->key || !o->value)
            return false;
    }
    return true;
}

static json_t *device_to_json(const backend_device *d)
{
    json_t *cpus = json_array();
    for (size_t i = 0; i < d->cpu_count; i++)
        json_array_append_new(cpus, json_integer(d->cpus[i]));
    return json_pack("{s:s, s:s, s:i, s:o, s:I, s:b, s:b}", "kind", d->kind, "name", d->name, "index", d->index, "cpus",
                     cpus, "threads", (json_int_t)d->threads, "pinned", d->pinned, "in_caller", d->in_caller);
}

static bool device_from_json(const json_t *json, worker_setup *setup)
{
    backend_device *d = &setup->device;
    if (!copy_text(json, "kind", d->kind, sizeof d->kind) || !copy_text(json, "name", d->name, sizeof d->name))
        return false;
    const json_t *cpus = json_object_get(json, "cpus");
    d->cpu_count = json_array_size(cpus);
    setup->cpus = calloc(d->cpu_count + 1, sizeof *setup->cpus);
    if (!setup->cpus)
        return false;
    for (size_t i = 0; i < d->cpu_count; i++)
        setup->cpus[i] = (int)json_integer_value(json_array_get(cpus, i));
    d->cpus = setup->cpus;
    d->index = (int)json_integer_value(json_object_get(json, "index"));
    d->threads = get_u64(json, "threads");
    d->pinned = json_is_true(json_object_get(json, "pinned"));
    d->in_caller = json_is_true(json_object_get(json, "in_caller"));
    d->worker = setup->worker;
    return true;
}

static json_t *broadcast_to_json(const worker_setup *setup)
{
    json_t *array = json_array();
    for (size_t i = 0; i < setup->broadcast_count; i++) {
        const broadcast_input *b = &setup->broadcast[i];
        json_array_append_new(array, json_pack("{s:s, s:i, s:o, s:I}", "name", b->name, "dtype", (int)b->dtype, "shape",
                                               shape_to_json(b->shape, b->rank), "offset", (json_int_t)b->offset));
    }
    return array;
}

static bool broadcast_from_json(const json_t *array, worker_setup *setup)
{
    setup->broadcast_count = json_array_size(array);
    setup->broadcast = calloc(setup->broadcast_count + 1, sizeof *setup->broadcast);
    if (!setup->broadcast)
        return false;
    for (size_t i = 0; i < setup->broadcast_count; i++) {
        const json_t *json = json_array_get(array, i);
        broadcast_input *b = &setup->broadcast[i];
        b->dtype = (dpi_dtype)json_integer_value(json_object_get(json, "dtype"));
        b->offset = get_u64(json, "offset");
        if (!copy_text(json, "name", b->name, sizeof b->name) ||
            !shape_from_json(json_object_get(json, "shape"), b->shape, &b->rank))
            return false;
    }
    return true;
}

static json_t *names_to_json(char *const *names, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(array, json_string(names[i]));
    return array;
}

static bool names_from_json(const json_t *array, char ***names, size_t *count)
{
    *names = calloc(json_array_size(array) + 1, sizeof **names);
    if (!*names)
        return false;
    for (*count = 0; *count < json_array_size(array); ++*count) {
        const char *name = json_string_value(json_array_get(array, *count));
        if (!name || !((*names)[*count] = strdup(name)))
            return false;
    }
    return true;
}

static void names_free(char **names, size_t count)
{
    for (size_t i = 0; names && i < count; i++)
        free(names[i]);
    free(names);
}

json_t *setup_to_json(const worker_setup *s)
{
    return json_pack(
        "{s:I, s:I, s:s, s:s?, s:s?, s:s?, s:o, s:i, s:o, s:I, s:s?, s:o, s:o, s:o, s:b, s:b, s:s?, s:I, s:i, s:b, "
        "s:b, s:I, s:o}",
        "worker", (json_int_t)s->worker, "generation", (json_int_t)s->generation, "backend", s->backend, "library",
        s->library, "model_path", s->model_path, "model_format", s->model_format, "device", device_to_json(&s->device),
        "precision", (int)s->precision, "outputs", names_to_json(s->output_names, s->output_count), "batch",
        (json_int_t)s->batch, "provider", s->provider, "provider_options",
        options_to_json(s->provider_options, s->provider_option_count), "backend_options",
        options_to_json(s->backend_options, s->backend_option_count), "broadcast", broadcast_to_json(s), "batch_auto",
        s->batch_auto, "trust_rows", s->trust_rows, "cache_dir", s->cache_dir, "cache_max_bytes",
        (json_int_t)s->cache_max_bytes, "log_level", (int)s->log_level, "no_sandbox", s->no_sandbox, "core_dumps",
        s->core_dumps, "memory_bytes", (json_int_t)s->memory_bytes, "data_folders",
        names_to_json(s->data_folders, s->data_folder_count));
}

dpi_status setup_from_json(const json_t *json, worker_setup *s, dpi_error *error)
{
    *s = (worker_setup){.worker = get_u64(json, "worker"), .generation = (uint32_t)get_u64(json, "generation")};
    s->backend = dup_text(json, "backend");
    s->library = dup_text(json, "library");
    s->model_path = dup_text(json, "model_path");
    s->model_format = dup_text(json, "model_format");
    s->provider = dup_text(json, "provider");
    s->cache_dir = dup_text(json, "cache_dir");
    s->precision = (dpi_precision)get_u64(json, "precision");
    s->batch = get_u64(json, "batch");
    s->batch_auto = json_is_true(json_object_get(json, "batch_auto"));
    s->trust_rows = json_is_true(json_object_get(json, "trust_rows"));
    s->cache_max_bytes = get_u64(json, "cache_max_bytes");
    s->no_sandbox = json_is_true(json_object_get(json, "no_sandbox"));
    s->core_dumps = json_is_true(json_object_get(json, "core_dumps"));
    s->memory_bytes = get_u64(json, "memory_bytes");
    s->log_level = (dpi_log_level)get_u64(json, "log_level");
    if (s->backend && s->model_format && device_from_json(json_object_get(json, "device"), s) &&
        names_from_json(json_object_get(json, "outputs"), &s->output_names, &s->output_count) &&
        names_from_json(json_object_get(json, "data_folders"), &s->data_folders, &s->data_folder_count) &&
        options_from_json(json_object_get(json, "provider_options"), &s->provider_options, &s->provider_option_count) &&
        options_from_json(json_object_get(json, "backend_options"), &s->backend_options, &s->backend_option_count) &&
        broadcast_from_json(json_object_get(json, "broadcast"), s))
        return DPI_OK;
    setup_free(s);
    return error_set(error, DPI_E_INTERNAL, "the worker's setup message is incomplete");
}

void options_free(dpi_key_value *options, size_t count)
{
    for (size_t i = 0; options && i < count; i++) {
        free((char *)(uintptr_t)options[i].key);
        free((char *)(uintptr_t)options[i].value);
    }
    free(options);
}

void setup_free(worker_setup *s)
{
    free(s->backend);
    free(s->library);
    free(s->model_path);
    free(s->model_format);
    free(s->provider);
    free(s->cache_dir);
    free(s->cpus);
    free(s->broadcast);
    names_free(s->output_names, s->output_count);
    names_free(s->data_folders, s->data_folder_count);
    options_free(s->provider_options, s->provider_option_count);
    options_free(s->backend_options, s->backend_option_count);
    *s = (worker_setup){0};
}

/* ---- report ----------------------------------------------------------------------------------------------------- */

static json_t *ports_to_json(const port *ports, size_t count)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(array, json_pack("{s:s, s:i, s:o}", "name", ports[i].name, "dtype", (int)ports[i].dtype,
                                               "shape", shape_to_json(ports[i].shape, ports[i].rank)));
    return array;
}

static bool ports_from_json(const json_t *array, port *ports, size_t *count)
{
    *count = json_array_size(array);
    if (*count > PORT_MAX)
        return false;
    for (size_t i = 0; i < *count; i++) {
        const json_t *json = json_array_get(array, i);
        ports[i].dtype = (dpi_dtype)get_u64(json, "dtype");
        if (!dpi_dtype_size(ports[i].dtype) || !copy_text(json, "name", ports[i].name, PORT_NAME_SIZE) ||
            !shape_from_json(json_object_get(json, "shape"), ports[i].shape, &ports[i].rank))
            return false;
    }
    return true;
}

json_t *report_to_json(const worker_report *r)
{
    json_t *sample = json_array();
    for (size_t i = 0; i < r->sample_count; i++) /* JSON has no NaN: null stands for it */
        json_array_append_new(sample, r->sample[i] - r->sample[i] == 0 ? json_real(r->sample[i]) : json_null());
    return json_pack("{s:o, s:o, s:s, s:s, s:b, s:b, s:b, s:f, s:f, s:f, s:f, s:s, s:s, s:i, s:I, s:o}", "inputs",
                     ports_to_json(r->sig.inputs, r->sig.input_count), "outputs",
                     ports_to_json(r->sig.outputs, r->sig.output_count), "fingerprint", r->fingerprint, "probe_hash",
                     r->probe_hash, "probe_skipped", r->probe_skipped, "size_changes_bits", r->size_changes_bits,
                     "from_cache", r->from_cache, "fixed_ns", r->fixed_ns, "row_ns", r->row_ns, "open_seconds",
                     r->open_seconds, "engine_seconds", r->engine_seconds, "library", r->library, "version", r->version,
                     "depth", r->depth, "max_rows", (json_int_t)r->max_rows, "sample", sample);
}

json_t *text_to_json(const char *text)
{
    json_t *json = json_string(text);
    char *plain = json ? NULL : strdup(text);
    for (char *c = plain; c && *c; c++)
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    if (plain)
        json = json_string(plain);
    free(plain);
    return json;
}

json_t *failure_to_json(const dpi_error *e)
{
    return json_pack("{s:{s:i, s:o}}", "error", "status", (int)e->status, "message", text_to_json(e->message));
}

static bool sample_from_json(const json_t *array, worker_report *r)
{
    r->sample_count = json_array_size(array);
    r->sample = calloc(r->sample_count + 1, sizeof *r->sample);
    for (size_t i = 0; r->sample && i < r->sample_count; i++) {
        const json_t *value = json_array_get(array, i);
        r->sample[i] = json_is_null(value) ? __builtin_nan("") : json_number_value(value);
    }
    return r->sample != NULL;
}

static double get_cost(const json_t *json, const char *key)
{
    double value = json_number_value(json_object_get(json, key));
    return value >= 0 && value < 1e15 ? value : 0;
}

dpi_status report_from_json(const json_t *json, worker_report *r, dpi_error *error)
{
    *r = (worker_report){0};
    const json_t *failure = json_object_get(json, "error");
    if (failure) {
        const char *message = get_text(failure, "message");
        dpi_status status = (dpi_status)get_u64(failure, "status");
        if (status < DPI_E_ARGUMENT || status > DPI_E_INTERNAL)
            status = DPI_E_WORKER;
        return error_set(error, status, "%s", message ? message : "the worker failed without a word");
    }
    r->fixed_ns = get_cost(json, "fixed_ns");
    r->row_ns = get_cost(json, "row_ns");
    r->open_seconds = get_cost(json, "open_seconds");
    r->engine_seconds = get_cost(json, "engine_seconds");
    r->probe_skipped = json_is_true(json_object_get(json, "probe_skipped"));
    r->size_changes_bits = json_is_true(json_object_get(json, "size_changes_bits"));
    r->from_cache = json_is_true(json_object_get(json, "from_cache"));
    r->depth = (int)get_u64(json, "depth");
    r->max_rows = get_u64(json, "max_rows");
    if (ports_from_json(json_object_get(json, "inputs"), r->sig.inputs, &r->sig.input_count) &&
        ports_from_json(json_object_get(json, "outputs"), r->sig.outputs, &r->sig.output_count) &&
        copy_text(json, "fingerprint", r->fingerprint, sizeof r->fingerprint) &&
        copy_text(json, "probe_hash", r->probe_hash, sizeof r->probe_hash) &&
        copy_text(json, "library", r->library, sizeof r->library) &&
        copy_text(json, "version", r->version, sizeof r->version) &&
        sample_from_json(json_object_get(json, "sample"), r))
        return DPI_OK;
    report_free(r);
    return error_set(error, DPI_E_WORKER, "the worker's report is not valid");
}

void report_free(worker_report *r)
{
    free(r->sample);
    r->sample = NULL;
}

/* ---- signature -------------------------------------------------------------------------------------------------- */

const broadcast_input *broadcast_find(const broadcast_input *list, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(list[i].name, name) == 0)
            return &list[i];
    return NULL;
}

dpi_status signature_fixed_rows(const signature *sig, const broadcast_input *broadcast, size_t broadcast_count,
                                size_t *rows, dpi_error *error)
{
    *rows = 0;
    const port *first = NULL;
    for (size_t i = 0; i < sig->input_count; i++) {
        const port *p = &sig->inputs[i];
        if (broadcast_find(broadcast, broadcast_count, p->name))
            continue;
        if (p->rank == 0)
            return error_set(error, DPI_E_MODEL,
                             "the model's input %s is a single value, not rows; give it with --broadcast %s=FILE",
                             p->name, p->name);
        if (p->shape[0] <= 0)
            continue;
        if (first && first->shape[0] != p->shape[0])
            return error_set(error, DPI_E_MODEL,
                             "the model cannot be split by rows: its input %s has %lld rows and %s has %lld; if one of "
                             "them is the same for all rows give it with --broadcast",
                             first->name, (long long)first->shape[0], p->name, (long long)p->shape[0]);
        first = p;
        *rows = (size_t)p->shape[0];
    }
    return DPI_OK;
}
