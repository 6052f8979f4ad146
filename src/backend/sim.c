#include "backend/sim.h"

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

struct backend_engine {
    sim_model model;
    uint64_t slices; /* begun since it was ready; the probe's calls are none */
    bool ready;
    size_t worker;
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

/* Compiling: waits, telling that it lives, unless it is to hang. */
static void compile(const backend_open_options *options, const sim_model *model)
{
    if (model->die_compile)
        raise(model->signal ? (int)model->signal : SIGKILL);
    if (model->hang_compile)
        for (;;)
            pause();
    int64_t until = clock_now_ns() + (int64_t)(model->compile_ms * 1e6);
    for (int64_t now = clock_now_ns(); now < until; now = clock_now_ns()) {
        clock_sleep_until_ns(now + 10000000 < until ? now + 10000000 : until);
        if (options->alive)
            options->alive(options->alive_context);
    }
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
    if (!status && options->import_fd >= 0)
        status = check_import(options->import_fd, error);
    else if (!status)
        compile(options, &e->model);
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

static void sim_ready(backend_engine *engine) { engine->ready = true; }

static void strike(const backend_engine *e)
{
    const sim_model *m = &e->model;
    if (m->die_at_slice == e->slices) {
        fprintf(stderr, "sim: dying at slice %llu as planned\n", (unsigned long long)e->slices);
        raise(m->signal ? (int)m->signal : SIGKILL);
    }
    if (m->exit_at_slice == e->slices)
        _exit(7);
    if (m->hang_at_slice == e->slices)
        for (;;)
            pause();
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
        char *result = (char *)call->outputs[o].data + row * elements * size;
        sim_expected_row(m, rows, row_bytes, o, elements, result);
        if (m->size_bits && elements)
            dtype_set(m->sig.outputs[o].dtype, result, 0,
                      dtype_get(m->sig.outputs[o].dtype, result, 0) + (double)call->rows / 65536.0);
        if (m->rows_depend && elements && call->rows > 1) {
            double first = dtype_get(m->sig.inputs[0].dtype, call->inputs[0].data, 0);
            dtype_set(m->sig.outputs[o].dtype, result, 0, first + (double)row);
        }
    }
}

/* Lets the planned time pass, from `began`. */
static void spend(const sim_model *m, int64_t began_ns, size_t rows, size_t bytes, uint64_t draw)
{
    double us = m->fixed_us + m->row_us * (double)rows;
    us += m->jitter_us * ((double)(draw >> 11) * 0x1p-53);
    us += m->bandwidth_mb_s > 0 ? (double)bytes / m->bandwidth_mb_s : 0;
    if (us <= 0)
        return;
    int64_t until = began_ns + (int64_t)((us < SIM_MAX_US ? us : SIM_MAX_US) * 1000);
    if (!m->busy)
        clock_sleep_until_ns(until);
    while (clock_now_ns() < until)
        ;
}

static dpi_status sim_run(backend_engine *e, const backend_call *call, backend_timing *timing, dpi_error *error)
{
    (void)timing;
    const sim_model *m = &e->model;
    int64_t began_ns = clock_now_ns();
    e->slices += e->ready;
    if (e->ready)
        strike(e);
    if (e->ready && m->fail_at_slice == e->slices)
        return error_set(error, DPI_E_ENGINE, "sim failed at its slice %llu as planned", (unsigned long long)e->slices);
    size_t row_bytes[PORT_MAX], bytes = 0;
    for (size_t i = 0; i < m->sig.input_count; i++) {
        const backend_array *a = &call->inputs[i];
        bool whole = m->broadcast[i];
        if (!(whole ? shape_bytes(m->sig.inputs[i].dtype, a->shape, a->rank, &row_bytes[i])
                    : shape_row_bytes(m->sig.inputs[i].dtype, a->shape, a->rank, &row_bytes[i])))
            return error_set(error, DPI_E_INTERNAL, "a call of sim has no complete shape for %s",
                             m->sig.inputs[i].name);
        bytes += whole ? 0 : row_bytes[i] * call->rows;
    }
    for (size_t row = 0; row < call->rows; row++)
        compute_row(e, call, row, row_bytes);
    spend(m, began_ns, call->rows, bytes, hash_mix64(e->worker, e->slices));
    return DPI_OK;
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
    .load = sim_load,
    .unload = sim_unload,
    .library_info = sim_library_info,
    .list_devices = sim_list_devices,
    .open = sim_open,
    .close = sim_close,
    .describe = sim_describe,
    .infer_shapes = sim_infer_shapes,
    .ready = sim_ready,
    .run = sim_run,
    .export_engine = sim_export,
};
