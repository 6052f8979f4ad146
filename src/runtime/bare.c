#include "runtime/bare.h"

#include "base/clock.h"
#include "runtime/session.h"
#include "runtime/stand.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ANSWER_NS 30000000000

typedef struct bare_process {
    child process;
    int socket;
} bare_process;

struct bare_engines {
    bare_process *processes;
    size_t count;
    int64_t open_ns; /* how long opening may take */
};

/* ---- the caller's side ------------------------------------------------------------------------------------------ */

static dpi_status tell(int socket, json_t *message, dpi_error *error)
{
    dpi_status status = message ? channel_send(socket, message, NULL, 0, clock_now_ns() + ANSWER_NS, error)
                                : error_set(error, DPI_E_ARGUMENT, "an option or a path is not valid UTF-8");
    json_decref(message);
    return status;
}

static dpi_status spawn_one(const char *program, const worker_setup *setup, size_t rows, bare_process *p,
                            dpi_error *error)
{
    int pair[2];
    char parent[24];
    *p = (bare_process){.socket = -1, .process.pidfd = -1};
    dpi_status status = channel_pair(pair, error);
    if (status)
        return status;
    p->socket = pair[0];
    snprintf(parent, sizeof parent, "%lld", (long long)getpid());
    char *argv[] = {(char *)(uintptr_t)program, (char *)(uintptr_t)BARE_ARGUMENT, parent, NULL};
    status = child_spawn(program, argv, STDERR_FILENO, &pair[1], 1, &p->process, error);
    close(pair[1]);
    if (!status)
        status = tell(p->socket, setup_to_json(setup), error);
    return status ? status : tell(p->socket, json_pack("{s:I}", "rows", (json_int_t)rows), error);
}

static dpi_status read_answer(const bare_process *p, int64_t within_ns, double *rows_per_s, dpi_error *error)
{
    json_t *answer = NULL;
    dpi_status status = channel_receive(p->socket, clock_now_ns() + within_ns, &answer, NULL, NULL, error);
    if (status)
        return error_set(error, DPI_E_ENGINE, "a bare engine ended or hung without a word");
    const char *problem = json_string_value(json_object_get(json_object_get(answer, "error"), "message"));
    if (problem)
        status = error_set(error, DPI_E_ENGINE, "a bare engine failed: %s", problem);
    *rows_per_s = json_number_value(json_object_get(answer, "rows_per_s"));
    json_decref(answer);
    return status;
}

dpi_status bare_start(const dpi_session *s, size_t rows, bare_engines **out, dpi_error *error)
{
    *out = NULL;
    bare_engines *e = calloc(1, sizeof *e);
    if (!e || !(e->processes = calloc(s->count, sizeof *e->processes))) {
        free(e);
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    e->open_ns = (int64_t)s->compile_timeout_ms * 1000000;
    char *program = NULL;
    dpi_status status = session_find_worker(&(dpi_options){.worker_path = s->worker_path}, &program, error);
    for (; e->count < s->count && !status; e->count++)
        status = spawn_one(program, &s->setups[e->count], rows, &e->processes[e->count], error);
    free(program);
    double rate;
    for (size_t i = 0; i < e->count && !status; i++)
        status = read_answer(&e->processes[i], e->open_ns, &rate, error);
    if (status)
        bare_stop(e);
    else
        *out = e;
    return status;
}

dpi_status bare_run(bare_engines *e, size_t first, size_t count, double seconds, double *rows_per_s, dpi_error *error)
{
    *rows_per_s = 0;
    dpi_status status = DPI_OK;
    for (size_t i = first; i < first + count && !status; i++)
        status = tell(e->processes[i].socket, json_pack("{s:f}", "seconds", seconds), error);
    for (size_t i = first; i < first + count && !status; i++) {
        double rate = 0;
        status = read_answer(&e->processes[i], e->open_ns + (int64_t)(seconds * 1e9), &rate, error);
        *rows_per_s += rate;
    }
    return status;
}

void bare_stop(bare_engines *e)
{
    if (!e)
        return;
    for (size_t i = 0; i < e->count; i++) {
        bare_process *p = &e->processes[i];
        int signal, code;
        if (p->process.pidfd >= 0) {
            child_kill(&p->process);
            child_ended(&p->process, clock_now_ns() + ANSWER_NS, &signal, &code);
        }
        if (p->socket >= 0)
            close(p->socket);
    }
    free(e->processes);
    free(e);
}

/* ---- the bare loop ---------------------------------------------------------------------------------------------- */

static json_t *receive(int64_t until_ns, dpi_error *error)
{
    json_t *message = NULL;
    return channel_receive(WORKER_FD_SOCKET, until_ns, &message, NULL, NULL, error) ? NULL : message;
}

/* Where the broadcast inputs stand in a worker is nothing's here: zeros, as long as they reach. */
static dpi_status make_broadcast_memory(worker *w, dpi_error *error)
{
    size_t end = 1, bytes;
    for (size_t i = 0; i < w->setup.broadcast_count; i++) {
        const broadcast_input *b = &w->setup.broadcast[i];
        if (!shape_bytes(b->dtype, b->shape, b->rank, &bytes))
            return error_set(error, DPI_E_ARGUMENT, "the broadcast input %s has no size", b->name);
        end = b->offset + bytes > end ? b->offset + bytes : end;
    }
    w->inputs = calloc(1, end);
    return w->inputs ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
}

static dpi_status open_bare(worker *w, stand *s, size_t *rows, dpi_error *error)
{
    worker_report report = {0};
    hash128 key;
    int64_t until_ns = clock_now_ns() + ANSWER_NS;
    json_t *setup = receive(until_ns, error), *size = setup ? receive(until_ns, error) : NULL;
    if (!size)
        return error_set(error, DPI_E_WORKER, "no setup message came");
    *rows = (size_t)json_integer_value(json_object_get(size, "rows"));
    w->page = calloc(1, PAGE_BYTES);
    dpi_status status = w->page ? worker_take_setup(w, setup, error) : error_set(error, DPI_E_SYSTEM, "out of memory");
    if (!status)
        status = make_broadcast_memory(w, error);
    if (!status)
        status = worker_load_engine(w, &report, &key, error);
    *rows = w->fixed_rows ? w->fixed_rows : *rows;
    if (!status)
        status = stand_open(s, w->backend, w->engine, &w->sig, w->broadcast, *rows, error);
    json_decref(setup);
    json_decref(size);
    return status;
}

/* For each {"seconds": S}: runs that long, then answers {"rows_per_s": R}. */
static dpi_status serve(const worker *w, stand *s, size_t rows, dpi_error *error)
{
    stand_rate rate = {0};
    stand_limits limits = {.least = 1, .slow_ns = CLOCK_NEVER};
    dpi_status status = stand_measure_alone(s, rows, &limits, &rate, error); /* warm */
    while (!status) {
        json_t *answer = json_pack("{s:f}", "rows_per_s", rate.rows_per_s);
        status = channel_send(WORKER_FD_SOCKET, answer, NULL, 0, clock_now_ns() + ANSWER_NS, error);
        json_decref(answer);
        json_t *request = status ? NULL : receive(CLOCK_NEVER, error);
        if (!request)
            worker_leave(w, 0); /* the caller has no more questions */
        limits.ns = (int64_t)(json_number_value(json_object_get(request, "seconds")) * 1e9);
        json_decref(request);
        status = stand_measure_alone(s, rows, &limits, &rate, error);
    }
    return status;
}

int bare_main(pid_t parent)
{
    if (!child_die_with(parent))
        return 0;
    static worker w = {.socket = WORKER_FD_SOCKET, .model_fd = -1, .generation = 1};
    stand s;
    size_t rows;
    dpi_error error;
    error_clear(&error);
    dpi_status status = open_bare(&w, &s, &rows, &error);
    if (!status)
        status = serve(&w, &s, rows, &error);
    json_t *failure = failure_to_json(&error);
    channel_send(w.socket, failure, NULL, 0, clock_now_ns() + ANSWER_NS, &error);
    worker_leave(&w, 1);
}
