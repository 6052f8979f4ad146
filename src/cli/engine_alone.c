#include "cli/engine_alone.h"

#include "backend/backend.h"
#include "base/clock.h"
#include "base/file.h"
#include "runtime/device.h"
#include "runtime/setup.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

typedef struct alone_process {
    pid_t pid;
    FILE *to, *from;
} alone_process;

struct engine_alone {
    alone_process *processes;
    size_t count;
};

/* ---- the parent's side ------------------------------------------------------------------------------------------ */

static dpi_status spawn_one(const cli_options *o, const dpi_worker_info *worker, size_t batch, alone_process *p,
                            dpi_error *error)
{
    int to[2], from[2];
    char *program = file_of_program(), rows[24];
    if (!program || pipe2(to, O_CLOEXEC) != 0 || pipe2(from, O_CLOEXEC) != 0) {
        free(program);
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot start the bare engine");
    }
    snprintf(rows, sizeof rows, "%zu", batch);
    const char *argv[16 + 2 * CLI_MAX_LIST] = {"dpinfer", "__engine", o->model,    "--devices",    worker->device,
                                               "--batch", rows,       "--backend", worker->backend};
    size_t argc = 9;
    static const char *const precisions[] = {"model", "fp32", "tf32", "fp16", "bf16"};
    argv[argc++] = "--precision";
    argv[argc++] = precisions[o->open.precision];
    char *pairs[CLI_MAX_LIST] = {NULL};
    for (size_t i = 0; i < o->open.backend_option_count; i++) {
        pairs[i] = text_format("%s=%s", o->backend_options[i].key, o->backend_options[i].value);
        argv[argc++] = "--backend-option";
        argv[argc++] = pairs[i] ? pairs[i] : "";
    }
    if (worker->library[0]) {
        argv[argc++] = "--library";
        argv[argc++] = worker->library;
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, to[0], 0);
    posix_spawn_file_actions_adddup2(&actions, from[1], 1);
    int bad = posix_spawn(&p->pid, program, &actions, NULL, (char *const *)(uintptr_t)argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(to[0]);
    close(from[1]);
    p->to = fdopen(to[1], "w");
    p->from = fdopen(from[0], "r");
    for (size_t i = 0; i < CLI_MAX_LIST; i++)
        free(pairs[i]);
    free(program);
    return bad ? error_set_errno(error, DPI_E_SYSTEM, bad, "cannot start the bare engine") : DPI_OK;
}

static dpi_status read_answer(const alone_process *p, double *rows, double *seconds, dpi_error *error)
{
    char line[1200];
    if (!p->from || !fgets(line, sizeof line, p->from))
        return error_set(error, DPI_E_ENGINE, "the bare engine ended without a word");
    line[strcspn(line, "\n")] = 0;
    if (sscanf(line, "ok %lf %lf", rows, seconds) == 2)
        return DPI_OK;
    return error_set(error, DPI_E_ENGINE, "the bare engine failed: %s", line);
}

dpi_status engine_alone_start(const cli_options *o, const dpi_description *d, size_t batch, engine_alone **out,
                              dpi_error *error)
{
    engine_alone *e = calloc(1, sizeof *e);
    if (!e || !(e->processes = calloc(d->worker_count, sizeof *e->processes))) {
        free(e);
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    dpi_status status = DPI_OK;
    for (; e->count < d->worker_count && !status; e->count++)
        status = spawn_one(o, &d->workers[e->count], batch, &e->processes[e->count], error);
    double rows, seconds;
    for (size_t i = 0; i < e->count && !status; i++)
        status = read_answer(&e->processes[i], &rows, &seconds, error);
    if (status) {
        engine_alone_stop(e);
        return status;
    }
    *out = e;
    return DPI_OK;
}

dpi_status engine_alone_run(engine_alone *e, double seconds, double *rows_per_s, dpi_error *error)
{
    *rows_per_s = 0;
    for (size_t i = 0; i < e->count; i++) {
        fprintf(e->processes[i].to, "%.6f\n", seconds);
        fflush(e->processes[i].to);
    }
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < e->count && !status; i++) {
        double rows, took;
        status = read_answer(&e->processes[i], &rows, &took, error);
        *rows_per_s += !status && took > 0 ? rows / took : 0;
    }
    return status;
}

void engine_alone_stop(engine_alone *e)
{
    if (!e)
        return;
    for (size_t i = 0; i < e->count; i++) {
        alone_process *p = &e->processes[i];
        if (p->to)
            fclose(p->to); /* end of file: it leaves */
        if (p->from)
            fclose(p->from);
        if (p->pid > 0)
            waitpid(p->pid, NULL, 0);
    }
    free(e->processes);
    free(e);
}

/* ---- the bare loop ---------------------------------------------------------------------------------------------- */

typedef struct bare {
    const backend *b;
    backend_library *library;
    backend_engine *engine;
    signature sig;
    backend_array inputs[PORT_MAX], outputs[PORT_MAX];
    size_t rows;
} bare;

static void pin_to(const device *d)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    for (size_t i = 0; i < d->cpu_count && d->cpus[i] < CPU_SETSIZE; i++)
        CPU_SET((size_t)d->cpus[i], &set);
    if (d->pinned && d->cpu_count)
        sched_setaffinity(0, sizeof set, &set);
}

static dpi_status allocate(bare *x, dpi_error *error)
{
    size_t fixed;
    dpi_status status = signature_fixed_rows(&x->sig, NULL, 0, &fixed, error);
    x->rows = fixed ? fixed : x->rows;
    for (size_t i = 0; i < x->sig.input_count && !status; i++) {
        const port *p = &x->sig.inputs[i];
        x->inputs[i].rank = p->rank;
        for (int k = 0; k < p->rank; k++)
            x->inputs[i].shape[k] = p->shape[k] < 0 ? 8 : p->shape[k];
        x->inputs[i].shape[0] = (int64_t)x->rows;
    }
    if (!status)
        status = x->b->infer_shapes(x->engine, x->inputs, x->outputs, error);
    for (size_t i = 0; i < x->sig.input_count + x->sig.output_count && !status; i++) {
        bool in = i < x->sig.input_count;
        backend_array *a = in ? &x->inputs[i] : &x->outputs[i - x->sig.input_count];
        dpi_dtype dtype = in ? x->sig.inputs[i].dtype : x->sig.outputs[i - x->sig.input_count].dtype;
        size_t bytes, elements;
        if (!shape_bytes(dtype, a->shape, a->rank, &bytes) || !shape_elements(a->shape, 0, a->rank, &elements) ||
            !(a->data = aligned_alloc(4096, bytes / 4096 * 4096 + 4096)))
            status = error_set(error, DPI_E_SYSTEM, "out of memory");
        else if (in)
            tensor_fill_random(dtype, a->data, elements, 0, 1, 1, true);
    }
    return status;
}

static dpi_status run_once(bare *x, dpi_error *error)
{
    backend_call call = {.rows = x->rows, .inputs = x->inputs, .outputs = x->outputs};
    backend_timing timing = {0};
    if (x->b->run)
        return x->b->run(x->engine, &call, &timing, error);
    dpi_status status = x->b->enqueue(x->engine, 0, &call, error);
    return status ? status : x->b->wait(x->engine, 0, &timing, error);
}

static dpi_status open_bare(bare *x, const cli_options *o, const backend_device *on, dpi_error *error)
{
    static const logger quiet = {.level = DPI_LOG_ERROR};
    char format[16];
    backend_format_of(o->model, format);
    backend_model model = {.path = o->model, .format = format};
    backend_open_options open = {.model = &model,
                                 .device = on,
                                 .precision = o->open.precision,
                                 .max_rows = x->rows,
                                 .options = o->backend_options,
                                 .option_count = o->open.backend_option_count,
                                 .import_fd = -1,
                                 .log = &quiet};
    x->b = backend_find(o->open.backend ? o->open.backend : "");
    if (!x->b)
        return error_set(error, DPI_E_BACKEND, "no backend");
    dpi_status status = x->b->load(&(backend_load_options){.library = o->open.library}, &quiet, &x->library, error);
    if (!status)
        status = x->b->open(x->library, &open, &x->engine, error);
    if (!status)
        status = x->b->describe(x->engine, &x->sig, error);
    if (!status)
        status = allocate(x, error);
    for (int i = 0; i < 2 && !status; i++)
        status = run_once(x, error);
    return status;
}

/* For each line SECONDS on standard input: runs that long, then answers "ok ROWS SECONDS". */
static dpi_status serve(bare *x, dpi_error *error)
{
    double limit;
    dpi_status status = DPI_OK;
    while (!status && scanf("%lf", &limit) == 1) {
        int64_t began = clock_now_ns(), now = began;
        double rows = 0;
        while (!status && (double)(now - began) * 1e-9 < limit) {
            status = run_once(x, error);
            rows += (double)x->rows;
            now = clock_now_ns();
        }
        if (!status)
            printf("ok %.0f %.9f\n", rows, (double)(now - began) * 1e-9);
        fflush(stdout);
    }
    return status;
}

int cmd_engine(int argc, char **argv)
{
    cli_options o;
    dpi_error error;
    topology machine = {0};
    device_list devices = {0};
    bare x = {0};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dpi_status status = cli_parse(argc, argv, CLI_MODEL, "", &o, &error);
    if (!status)
        status = topology_read(&machine, &error);
    if (!status)
        status = device_list_parse(o.open.devices ? o.open.devices : "auto", &machine, "cpu sim", &devices, &error);
    if (!status) {
        x.rows = o.open.batch ? o.open.batch : 64;
        pin_to(&devices.items[0]);
        backend_device first = device_for_backend(&devices, 0, false);
        status = open_bare(&x, &o, &first, &error);
    }
    if (!status) {
        printf("ok 0 0\n");
        fflush(stdout);
        status = serve(&x, &error);
    }
    if (status)
        printf("%s\n", error.message);
    fflush(stdout);
    _exit(status ? 1 : 0);
}
