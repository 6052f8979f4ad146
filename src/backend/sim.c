#include "backend/sim.h"
#include "backend/sim_faults.h"

#include "base/clock.h"
#include "base/file.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

struct backend_library {
    const logger *log;
};

/* What a device does to a slice; above depth 1 each by an engine of its own. */
enum { COPY_IN, COMPUTE, COPY_OUT, STAGES };

/* A slice on the device. */
typedef struct sim_slice {
    const backend_call *call; /* NULL: the slot is free */
    uint64_t number;          /* from 1; 0 for one of the probe's */
    size_t row_bytes[PORT_MAX];
    int64_t stage_ns[STAGES];
    int64_t end_ns;
} sim_slice;

struct backend_engine {
    sim_model model;
    uint64_t slices;  /* begun since it was ready; the probe's calls are none */
    uint64_t claimed; /* slices, by the steps that it was told of */
    bool ready;
    size_t worker;
    /* depth > 1 */
    sim_slice slots[BACKEND_MAX_DEPTH];
    int order[BACKEND_MAX_DEPTH]; /* the slots in flight, oldest first */
    int in_flight;
    int64_t free_ns[STAGES]; /* when each engine has done all that was enqueued */
};

#define SIM_MAX_US       1e12 /* a longer cost would not fit the clock */
#define SIM_EXPORT_MAGIC "dpinfer sim engine 1\n"

static dpi_status sim_load(const backend_load_options *options, const logger *log, backend_library **library,
                           dpi_error *error)
{
    (void)options;
    *library = calloc(1, sizeof **library);
    if (!*library)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    (*library)->log = log;
    return DPI_OK;
}

static void sim_unload(backend_library *library) { free(library); }

static void sim_library_info(const backend_library *library, backend_library_info *info)
{
    (void)library;
    info->path[0] = 0;
    strcpy(info->version, "1");
}

static dpi_status sim_list_devices(backend_library *library, backend_device_info *list, size_t capacity, size_t *count,
                                   dpi_error *error)
{
    (void)library;
    (void)error;
    *count = 1;
    if (capacity) {
        list[0] = (backend_device_info){0};
        strcpy(list[0].name, "sim:0");
        strcpy(list[0].description, "simulated, costs and faults by option");
        strcpy(list[0].precisions, "fp32");
    }
    return DPI_OK;
}

static dpi_status read_model(const backend_model *from, sim_model *model, dpi_error *error)
{
    if (!from->path)
        return sim_model_parse(from->data, from->bytes, "the model in memory", model, error);
    void *data;
    size_t bytes;
    dpi_status status = file_read(from->path, 1 << 20, &data, &bytes, error);
    if (status) {
        if (error)
            error->status = status == DPI_E_DATA ? DPI_E_MODEL : status;
        return status == DPI_E_DATA ? DPI_E_MODEL : status;
    }
    status = sim_model_parse(data, bytes, from->path, model, error);
    free(data);
    return status;
}

static dpi_status check_import(int fd, dpi_error *error)
{
    char magic[sizeof SIM_EXPORT_MAGIC] = {0};
    if (read(fd, magic, sizeof magic - 1) != (ssize_t)sizeof magic - 1 || strcmp(magic, SIM_EXPORT_MAGIC) != 0)
        return error_set(error, DPI_E_MODEL, "the stored engine is not one of sim's");
    return DPI_OK;
}

/* Compiling: waits, telling that it lives, unless a fault is planned. */
static dpi_status compile(const backend_open_options *options, const sim_model *model, dpi_error *error)
{
    dpi_status status = sim_strike_stage(model, SIM_COMPILING, error);
    if (status)
        return status;
    int64_t until = clock_now_ns() + (int64_t)(model->compile_ms * 1e6);
    for (int64_t now = clock_now_ns(); now < until; now = clock_now_ns()) {
        clock_sleep_until_ns(now + 10000000 < until ? now + 10000000 : until);
        if (options->alive)
            options->alive(options->alive_context);
    }
    return DPI_OK;
}

/* Keeps the outputs that were asked for, in that order. */
static dpi_status choose_outputs(const backend_open_options *options, sim_model *m, dpi_error *error)
{
    if (!options->output_names)
        return DPI_OK;
    sim_model all = *m;
    for (size_t i = 0; i < options->output_count; i++) {
        int at = port_find(all.sig.outputs, all.sig.output_count, options->output_names[i]);
        if (at < 0 || i >= PORT_MAX)
            return error_set(error, DPI_E_MODEL, "the model has no output \"%s\"", options->output_names[i]);
        m->sig.outputs[i] = all.sig.outputs[at];
        memcpy(m->axes[i], all.axes[at], sizeof m->axes[i]);
    }
    m->sig.output_count = options->output_count;
    return DPI_OK;
}

static dpi_status sim_open(backend_library *library, const backend_open_options *options, backend_engine **engine,
                           dpi_error *error)
{
    (void)library;
    if (options->precision != DPI_PRECISION_MODEL && options->precision != DPI_PRECISION_FP32)
        return error_set(error, DPI_E_DEVICE, "%s: sim computes in fp32 only", options->device->name);
    backend_engine *e = calloc(1, sizeof *e);
    if (!e)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    e->worker = options->device->worker;
    dpi_status status = backend_check_options(options, "sim", SIM_OPTIONS, error);
    if (!status)
        status = read_model(options->model, &e->model, error);
    for (size_t i = 0; !status && i < options->option_count; i++)
        if (!sim_model_set(&e->model, options->options[i].key, options->options[i].value))
            status = error_set(error, DPI_E_ARGUMENT, "sim's option %s does not take \"%s\"", options->options[i].key,
                               options->options[i].value);
    if (!status)
        status = choose_outputs(options, &e->model, error);
    if (e->model.fault_generations && options->device->generation > e->model.fault_generations)
        sim_without_faults(&e->model);
    sim_plan_generation(&e->model, options->device->generation);
    if (options->device->in_caller) /* there is no shared memory and no socket to spoil */
        e->model.spoil_at_slice = e->model.rage_at_slice = e->model.babble_at_slice = 0;
    if (!status && options->import_fd >= 0)
        status = check_import(options->import_fd, error);
    else if (!status)
        status = compile(options, &e->model, error);
    if (status) {
        free(e);
        return status;
    }
    prctl(PR_SET_TIMERSLACK, 1); /* of this thread: sleeps end on time */
    *engine = e;
    return DPI_OK;
}

static void sim_close(backend_engine *engine) { free(engine); }

static dpi_status sim_describe(const backend_engine *engine, signature *sig, dpi_error *error)
{
    (void)error;
    *sig = engine->model.sig;
    return DPI_OK;
}

static dpi_status sim_infer_shapes(backend_engine *engine, const backend_array *inputs, backend_array *outputs,
                                   dpi_error *error)
{
    const sim_model *m = &engine->model;
    if (m->data_sized)
        return error_set(error, DPI_E_MODEL, "the size of the output %s depends on data", m->sig.outputs[0].name);
    int64_t rows = -1;
    for (size_t i = 0; i < m->sig.input_count; i++) {
        char want[SHAPE_TEXT_SIZE], got[SHAPE_TEXT_SIZE];
        const port *p = &m->sig.inputs[i];
        if (!port_accepts_shape(p, inputs[i].shape, inputs[i].rank) ||
            (!m->broadcast[i] && rows >= 0 && inputs[i].shape[0] != rows))
            return error_set(error, DPI_E_DATA, "the input %s expects %s and got %s", p->name,
                             shape_text(p->shape, p->rank, want), shape_text(inputs[i].shape, inputs[i].rank, got));
        rows = m->broadcast[i] ? rows : inputs[i].shape[0];
    }
    for (size_t o = 0; o < m->sig.output_count; o++) {
        const port *p = &m->sig.outputs[o];
        outputs[o].rank = p->rank;
        for (int k = 0; k < p->rank; k++) {
            sim_axis from = m->axes[o][k];
            outputs[o].shape[k] = p->shape[k] >= 0  ? p->shape[k]
                                  : from.input >= 0 ? inputs[from.input].shape[from.axis]
                                                    : rows;
        }
    }
    return DPI_OK;
}

static void sim_ready(backend_engine *engine)
{
    sim_strike_stage(&engine->model, SIM_READY, NULL);
    engine->ready = true;
}

static void sim_step(backend_engine *engine, backend_step step)
{
    if (step == STEP_LEAVING)
        sim_strike_stage(&engine->model, SIM_LEAVING, NULL);
    engine->claimed += step == STEP_CLAIMED;
    if (engine->model.die_at_step)
        sim_die_at_step(&engine->model, engine->claimed, step);
}

static void compute_row(const backend_engine *e, const backend_call *call, size_t row, const size_t *row_bytes)
{
    const sim_model *m = &e->model;
    const void *rows[PORT_MAX];
    for (size_t i = 0; i < m->sig.input_count; i++)
        rows[i] = (const char *)call->inputs[i].data + (m->broadcast[i] ? 0 : row * row_bytes[i]);
    for (size_t o = 0; o < m->sig.output_count; o++) {
        size_t elements = 0;
        shape_elements(call->outputs[o].shape, 1, call->outputs[o].rank, &elements);
        size_t size = dpi_dtype_size(m->sig.outputs[o].dtype);
        char *first = call->outputs[o].data, *result = first + row * elements * size;
        if (row && m->touch == SIM_TOUCH_NONE) { /* no row is looked at, so all results are the same */
            memcpy(result, first, elements * size);
        } else {
            sim_expected_row(m, rows, row_bytes, o, elements, result);
            if (m->size_bits && elements)
                dtype_set(m->sig.outputs[o].dtype, result, 0,
                          dtype_get(m->sig.outputs[o].dtype, result, 0) + (double)call->rows / 65536.0);
        }
        if (m->rows_depend && elements && call->rows > 1) {
            double x = dtype_get(m->sig.inputs[0].dtype, call->inputs[0].data, 0);
            dtype_set(m->sig.outputs[o].dtype, result, 0, x + (double)row);
        }
    }
}

static void compute_rows(const backend_engine *e, const sim_slice *s)
{
    for (size_t row = 0; row < s->call->rows; row++)
        compute_row(e, s->call, row, s->row_bytes);
}

static int64_t cost_ns(double us) { return (int64_t)((us < SIM_MAX_US ? us : SIM_MAX_US) * 1000); }

static double copy_us(size_t bytes, double mb_s) { return mb_s > 0 ? (double)bytes / mb_s : 0; }

/* Counts the slice and reckons what it costs. */
static dpi_status begin_slice(backend_engine *e, const backend_call *call, sim_slice *s, dpi_error *error)
{
    const sim_model *m = &e->model;
    size_t bytes_in = 0, bytes_out = 0, bytes;
    if (m->most_rows && call->rows > m->most_rows)
        return error_set(error, DPI_E_DEVICE, "sim: a slice of %zu rows does not fit; lower --batch", call->rows);
    e->slices += e->ready;
    s->number = e->ready ? e->slices : 0;
    s->call = call;
    for (size_t i = 0; i < m->sig.input_count; i++) {
        const backend_array *a = &call->inputs[i];
        dpi_dtype dtype = m->sig.inputs[i].dtype;
        bool whole = m->broadcast[i];
        if (!(whole ? shape_bytes(dtype, a->shape, a->rank, &s->row_bytes[i])
                    : shape_row_bytes(dtype, a->shape, a->rank, &s->row_bytes[i])))
            return error_set(error, DPI_E_INTERNAL, "a call of sim has no complete shape for %s",
                             m->sig.inputs[i].name);
        bytes_in += whole ? 0 : s->row_bytes[i] * call->rows; /* a broadcast input is on the device already */
    }
    for (size_t o = 0; o < m->sig.output_count; o++)
        if (shape_row_bytes(m->sig.outputs[o].dtype, call->outputs[o].shape, call->outputs[o].rank, &bytes))
            bytes_out += bytes * call->rows;
    double us = m->fixed_us + m->row_us * (double)call->rows + copy_us(bytes_in, m->bandwidth_mb_s);
    us += sim_slowness_us(m, s->number) + m->jitter_us * ((double)(hash_mix64(e->worker, e->slices) >> 11) * 0x1p-53);
    s->stage_ns[COPY_IN] = cost_ns(copy_us(bytes_in, m->copy_in_mb_s));
    s->stage_ns[COMPUTE] = cost_ns(us);
    s->stage_ns[COPY_OUT] = cost_ns(copy_us(bytes_out, m->copy_out_mb_s));
    return DPI_OK;
}

/* Lets the planned time pass. */
static void spend(const sim_model *m, int64_t until_ns)
{
    if (!m->busy)
        clock_sleep_until_ns(until_ns);
    while (clock_now_ns() < until_ns)
        ;
}

static void tell_timing(const sim_slice *s, backend_timing *timing)
{
    timing->copy_in_ns = (uint64_t)s->stage_ns[COPY_IN];
    timing->copy_out_ns = (uint64_t)s->stage_ns[COPY_OUT];
}

/* ---- one call at a time ----------------------------------------------------------------------------------------- */

static dpi_status run_alone(backend_engine *e, const backend_call *call, backend_timing *timing, dpi_error *error)
{
    sim_slice s;
    int64_t began_ns = clock_now_ns(), total_ns = 0;
    dpi_status status = begin_slice(e, call, &s, error);
    if (!status)
        status = sim_strike(&e->model, call, s.number, error);
    if (status)
        return status;
    compute_rows(e, &s);
    for (int i = 0; i < STAGES; i++)
        total_ns += s.stage_ns[i];
    if (total_ns > 0)
        spend(&e->model, began_ns + total_ns);
    tell_timing(&s, timing); /* compute_ns stays 0: what is left, the time for real results included */
    return DPI_OK;
}

/* ---- several in flight ------------------------------------------------------------------------------------------ */

static int sim_depth(const backend_engine *engine) { return (int)engine->model.depth; }

static dpi_status sim_enqueue(backend_engine *e, int slot, const backend_call *call, dpi_error *error)
{
    if (slot < 0 || slot >= sim_depth(e) || e->slots[slot].call)
        return error_set(error, DPI_E_INTERNAL, "a call was put into slot %d of sim, which is not free", slot);
    sim_slice s;
    dpi_status status = begin_slice(e, call, &s, error);
    if (!status && e->model.fault_in_enqueue)
        status = sim_strike(&e->model, call, s.number, error);
    if (status)
        return status;
    /* Each engine takes the slice when the one before is through with it and all earlier slices. */
    s.end_ns = clock_now_ns();
    for (int i = 0; i < STAGES; i++) {
        s.end_ns = (s.end_ns > e->free_ns[i] ? s.end_ns : e->free_ns[i]) + s.stage_ns[i];
        e->free_ns[i] = s.end_ns;
    }
    e->slots[slot] = s;
    e->order[e->in_flight++] = slot;
    return DPI_OK;
}

static dpi_status sim_wait(backend_engine *e, int slot, backend_timing *timing, dpi_error *error)
{
    if (!e->in_flight || e->order[0] != slot)
        return error_set(error, DPI_E_INTERNAL, "slot %d of sim is waited for, and it is not the oldest", slot);
    sim_slice *s = &e->slots[slot];
    spend(&e->model, s->end_ns);
    dpi_status status = e->model.fault_in_enqueue ? DPI_OK : sim_strike(&e->model, s->call, s->number, error);
    if (!status) {
        compute_rows(e, s);
        tell_timing(s, timing);
        timing->compute_ns = (uint64_t)s->stage_ns[COMPUTE] + 1; /* 0 would mean the rest, waiting in turn included */
    }
    s->call = NULL;
    e->in_flight--;
    memmove(e->order, e->order + 1, (size_t)e->in_flight * sizeof e->order[0]);
    return status;
}

static dpi_status sim_compute_alone(backend_engine *e, const backend_call *call, size_t times, uint64_t *ns,
                                    dpi_error *error)
{
    sim_slice s;
    dpi_status status = begin_slice(e, call, &s, error);
    if (!status)
        status = sim_strike(&e->model, call, s.number, error);
    *ns = status ? 0 : (uint64_t)s.stage_ns[COMPUTE] * times;
    if (!status)
        spend(&e->model, clock_now_ns() + (int64_t)*ns);
    return status;
}

/* At any depth, for callers that have one call at a time. */
static dpi_status sim_run(backend_engine *e, const backend_call *call, backend_timing *timing, dpi_error *error)
{
    if (sim_depth(e) == 1)
        return run_alone(e, call, timing, error);
    dpi_status status = sim_enqueue(e, 0, call, error);
    return status ? status : sim_wait(e, 0, timing, error);
}

static dpi_status sim_export(backend_engine *engine, int fd, dpi_error *error)
{
    (void)engine;
    off_t at = lseek(fd, 0, SEEK_CUR);
    return file_write_at(fd, SIM_EXPORT_MAGIC, strlen(SIM_EXPORT_MAGIC), at < 0 ? 0 : (uint64_t)at, "the engine",
                         error);
}

const backend backend_sim = {
    .name = "sim",
    .formats = "sim",
    .device_kinds = "sim",
    .threading = BACKEND_ENGINES_INDEPENDENT,
    .deterministic_rows = true,
    .run_options = "faults", /* of generations: the engine is the same */
    .load = sim_load,
    .unload = sim_unload,
    .library_info = sim_library_info,
    .list_devices = sim_list_devices,
    .open = sim_open,
    .close = sim_close,
    .describe = sim_describe,
    .infer_shapes = sim_infer_shapes,
    .ready = sim_ready,
    .step = sim_step,
    .depth = sim_depth,
    .run = sim_run,
    .enqueue = sim_enqueue,
    .wait = sim_wait,
    .compute_alone = sim_compute_alone,
    .export_engine = sim_export,
};
