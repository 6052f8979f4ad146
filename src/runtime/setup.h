/*
 * What the caller tells a worker at its start, and what the worker reports back, as JSON on the control socket.
 * One description of each, used by both sides and in thread isolation alike.
 */
#ifndef DPI_RUNTIME_SETUP_H
#define DPI_RUNTIME_SETUP_H

#include "backend/backend.h"

#include <jansson.h>

typedef struct broadcast_input {
    char name[PORT_NAME_SIZE];
    dpi_dtype dtype;
    int rank;
    int64_t shape[DPI_MAX_RANK];
    uint64_t offset; /* in the inputs arena */
} broadcast_input;

/* Strings are owned (malloc'd); setup_free ends them all. */
typedef struct worker_setup {
    size_t worker;
    uint32_t generation;
    char *backend, *library;         /* library NULL: search */
    char *model_path, *model_format; /* path NULL: the bytes are in WORKER_FD_MODEL */
    backend_device device;
    int *cpus; /* device.cpus points here */
    dpi_precision precision;
    char **output_names;
    size_t output_count;
    size_t batch; /* most rows of one slice */
    char *provider;
    dpi_key_value *provider_options, *backend_options; /* the latter already for this worker */
    size_t provider_option_count, backend_option_count;
    broadcast_input *broadcast;
    size_t broadcast_count;
    bool batch_auto; /* `batch` is the largest size to try */
    bool trust_rows;
    char *cache_dir; /* NULL: the default folder; "": none */
    uint64_t cache_max_bytes;
    char **data_folders; /* to be read besides */
    size_t data_folder_count;
    bool no_sandbox, core_dumps;
    uint64_t memory_bytes; /* of the worker's own; 0: no limit */
    dpi_log_level log_level;
} worker_setup;

json_t *setup_to_json(const worker_setup *setup); /* NULL when out of memory */
dpi_status setup_from_json(const json_t *json, worker_setup *setup, dpi_error *error);
void setup_free(worker_setup *setup);
void options_free(dpi_key_value *options, size_t count);

/* A worker that is ready. */
typedef struct worker_report {
    signature sig;
    char fingerprint[HASH_HEX_SIZE], probe_hash[HASH_HEX_SIZE];
    bool probe_skipped, size_changes_bits, from_cache;
    double fixed_ns, row_ns, open_seconds, engine_seconds; /* the latter: compiling it, or taking it from the cache */
    char library[512], version[64];
    int depth;
    size_t max_rows; /* of one slice: the setup's batch, or less where the engine has a limit */
    double *sample;  /* malloc'd */
    size_t sample_count;
} worker_report;

json_t *report_to_json(const worker_report *report);
/* {"error": {...}} becomes that status and message. Anything out of range is DPI_E_WORKER: it is a worker's word. */
dpi_status report_from_json(const json_t *json, worker_report *report, dpi_error *error);
void report_free(worker_report *report);

/* Text that may hold any bytes (a library's words, a line that was cut): JSON wants UTF-8, others become '?'. */
json_t *text_to_json(const char *text);
json_t *failure_to_json(const dpi_error *error);

/* The rows that the model itself fixes for every call (its batch axis is a number), 0 where it is free. DPI_E_MODEL
 * where the model's inputs contradict each other or have no row axis. */
dpi_status signature_fixed_rows(const signature *sig, const broadcast_input *broadcast, size_t broadcast_count,
                                size_t *rows, dpi_error *error);
const broadcast_input *broadcast_find(const broadcast_input *list, size_t count, const char *name);

#endif
