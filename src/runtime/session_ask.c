/* What the caller asks workers and tells them over their sockets: output shapes, and which run is under way. */
#include "base/clock.h"
#include "runtime/session.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_NS 10000000000 /* a worker that is at nothing else answers sooner, unless it has to run the engine */

/* Sends a question, numbered, when there is a worker that can answer it, which the supervisor ends when it does not
 * within limit_ns. Under the lock: no restart in between. */
static dpi_status post(dpi_session *s, size_t w, json_t *question, const int *fds, size_t fd_count, int64_t limit_ns,
                       dpi_error *error)
{
    session_worker *k = &s->workers[w];
    json_object_set_new(question, "id", json_integer((json_int_t)++k->asked));
    json_decref(k->reply);
    k->reply = NULL;
    dpi_status status = channel_send(k->socket, question, fds, fd_count, clock_now_ns() + 1000000000, error);
    if (status)
        return status;
    k->owes_ns = limit_ns;
    atomic_fetch_add(&s->control->workers[w].mail, 1);
    session_ring_worker(s, w);
    return DPI_OK;
}

static int64_t compile_limit_ns(const dpi_session *s) { return (int64_t)s->compile_timeout_ms * 1000000; }

/* To open and close the files of a run. */
static int64_t job_limit_ns(const dpi_session *s)
{
    return compile_limit_ns(s) < ANSWER_NS ? compile_limit_ns(s) : ANSWER_NS;
}

/* Of the generation that was asked. Under the lock. *answer is NULL with DPI_OK when it has died since, as it does in
 * the end when it does not answer; a thread (isolation=thread) cannot. */
static dpi_status await_answer(dpi_session *s, size_t w, uint32_t generation, json_t **answer, dpi_error *error)
{
    session_worker *k = &s->workers[w];
    int64_t until = s->in_caller ? clock_now_ns() + compile_limit_ns(s) : CLOCK_NEVER;
    struct timespec when = {.tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000)};
    *answer = NULL;
    while (!k->reply && k->ready && k->generation == generation && !atomic_load(&s->failed)) {
        if (clock_now_ns() >= until)
            return error_set(error, DPI_E_WORKER, "%s does not answer", s->devices.items[w].name);
        pthread_cond_timedwait(&s->changed, &s->lock, &when);
    }
    if (atomic_load(&s->failed))
        return error_set(error, s->failure.status, "%s", s->failure.message);
    *answer = k->reply;
    k->reply = NULL;
    if (!*answer || !json_object_get(*answer, "error"))
        return DPI_OK;
    worker_report unused;
    dpi_status status = report_from_json(*answer, &unused, error);
    json_decref(*answer);
    *answer = NULL;
    return status;
}

/* Asks any worker that is ready, waiting for one to become so. */
static dpi_status ask(dpi_session *s, json_t *question, json_t **answer, dpi_error *error)
{
    dpi_status status = DPI_OK;
    *answer = NULL;
    pthread_mutex_lock(&s->ask_lock);
    pthread_mutex_lock(&s->lock);
    while (!*answer && !status) {
        size_t w = 0;
        while (w < s->count && !s->workers[w].ready)
            w++;
        if (atomic_load(&s->failed))
            status = error_set(error, s->failure.status, "%s", s->failure.message);
        else if (w == s->count)
            pthread_cond_wait(&s->changed, &s->lock);
        else if (post(s, w, question, NULL, 0, compile_limit_ns(s), error) == DPI_OK)
            status = await_answer(s, w, s->workers[w].generation, answer, error);
        else {
            int64_t until = clock_now_ns() + 10000000; /* it is dying: until the supervisor has seen that, too */
            struct timespec when = {.tv_sec = (time_t)(until / 1000000000), .tv_nsec = (long)(until % 1000000000)};
            pthread_cond_timedwait(&s->changed, &s->lock, &when);
        }
    }
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->ask_lock);
    return status;
}

/* To all workers that are ready, and the first failure among their answers. A worker that dies of it, or before, is the
 * supervisor's business. Under both locks. */
static dpi_status tell_all(dpi_session *s, json_t *message, const int *fds, size_t fd_count, dpi_error *error)
{
    uint32_t posted[LAYOUT_WORKERS] = {0}; /* to which generation; 0: to none */
    dpi_error later;
    dpi_status status = DPI_OK;
    for (size_t w = 0; w < s->count; w++)
        if (s->workers[w].ready) {
            dpi_status one = post(s, w, message, fds, fd_count, job_limit_ns(s), status ? &later : error);
            posted[w] = one ? 0 : s->workers[w].generation;
            status = one == DPI_E_WORKER || status ? status : one;
        }
    for (size_t w = 0; w < s->count; w++) {
        json_t *answer = NULL;
        dpi_status one = posted[w] ? await_answer(s, w, posted[w], &answer, status ? &later : error) : DPI_OK;
        json_decref(answer);
        status = status ? status : one;
    }
    if (!status && atomic_load(&s->failed))
        status = error_set(error, s->failure.status, "%s", s->failure.message);
    return status;
}

/* ---- runs ------------------------------------------------------------------------------------------------------- */

static void forget_job(session_job *job)
{
    json_decref(job->message);
    for (size_t i = 0; i < job->fd_count; i++)
        close(job->fds[i]);
    *job = (session_job){0};
}

dpi_status session_start_job(dpi_session *s, json_t *message, const int *fds, size_t fd_count, dpi_error *error)
{
    dpi_status status = DPI_OK;
    pthread_mutex_lock(&s->ask_lock);
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < fd_count && !status; i++) {
        int fd = fcntl(fds[i], F_DUPFD_CLOEXEC, 3);
        if (fd < 0)
            status = error_set(error, DPI_E_SYSTEM, "too many open files for this run; raise `ulimit -n`");
        else
            s->job.fds[s->job.fd_count++] = fd;
    }
    s->job.message = json_incref(message);
    if (!status)
        status = tell_all(s, message, fds, fd_count, error);
    if (status)
        forget_job(&s->job);
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->ask_lock);
    return status;
}

void session_end_job(dpi_session *s, uint32_t job)
{
    json_t *question = json_pack("{s:s, s:I}", "what", "drop", "job", (json_int_t)job);
    pthread_mutex_lock(&s->ask_lock);
    pthread_mutex_lock(&s->lock);
    forget_job(&s->job);
    if (question && job && !atomic_load(&s->failed))
        tell_all(s, question, NULL, 0, NULL);
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->ask_lock);
    json_decref(question);
}

void session_tell_newcomer(dpi_session *s, size_t w)
{
    dpi_error error;
    if (s->job.message && post(s, w, s->job.message, s->job.fds, s->job.fd_count, job_limit_ns(s), &error))
        log_warning(&s->log, "%s cannot be told of the run: %s", s->devices.items[w].name, error.message);
}

/* ---- output shapes ---------------------------------------------------------------------------------------------- */

static bool output_is_static(const port *p)
{
    for (int k = 1; k < p->rank; k++)
        if (p->shape[k] < 0)
            return false;
    return true;
}

static dpi_status ask_shapes(dpi_session *s, int64_t inputs[PORT_MAX][DPI_MAX_RANK],
                             int64_t outputs[PORT_MAX][DPI_MAX_RANK], dpi_error *error)
{
    json_t *shapes = json_array(), *answer;
    for (size_t i = 0; i < s->sig.input_count; i++) {
        json_t *shape = json_array();
        for (int k = 0; k < s->sig.inputs[i].rank; k++)
            json_array_append_new(shape, json_integer(k == 0 ? (json_int_t)(s->fixed_rows ? s->fixed_rows : 1)
                                                             : (json_int_t)inputs[i][k]));
        json_array_append_new(shapes, shape);
    }
    json_t *question = json_pack("{s:s, s:o}", "what", "shapes", "shapes", shapes);
    dpi_status status = ask(s, question, &answer, error);
    json_decref(question);
    if (status)
        return status;
    const json_t *list = json_object_get(answer, "shapes");
    for (size_t o = 0; o < s->sig.output_count; o++) {
        const json_t *shape = json_array_get(list, o);
        if (json_array_size(shape) != (size_t)s->sig.outputs[o].rank)
            status = error_set(error, DPI_E_WORKER, "the worker's answer about shapes is not valid");
        for (int k = 0; !status && k < s->sig.outputs[o].rank; k++) {
            outputs[o][k] = json_integer_value(json_array_get(shape, (size_t)k));
            if (outputs[o][k] < 0)
                status = error_set(error, DPI_E_WORKER, "the worker's answer about shapes is not valid");
        }
    }
    json_decref(answer);
    return status;
}

dpi_status session_output_shapes(dpi_session *s, int64_t inputs[PORT_MAX][DPI_MAX_RANK],
                                 int64_t outputs[PORT_MAX][DPI_MAX_RANK], dpi_error *error)
{
    bool all_static = true;
    for (size_t o = 0; o < s->sig.output_count; o++) {
        all_static &= output_is_static(&s->sig.outputs[o]);
        memcpy(outputs[o], s->sig.outputs[o].shape, sizeof outputs[o]);
    }
    if (all_static)
        return DPI_OK;
    pthread_mutex_lock(&s->lock);
    for (size_t m = 0; m < SESSION_MEMOS; m++) {
        bool hit = s->memos[m].used;
        for (size_t i = 0; hit && i < s->sig.input_count; i++)
            for (int k = 1; hit && k < s->sig.inputs[i].rank; k++)
                hit = s->is_broadcast[i] || s->memos[m].inputs[i][k] == inputs[i][k];
        if (!hit)
            continue;
        memcpy(outputs, s->memos[m].outputs, sizeof s->memos[m].outputs);
        pthread_mutex_unlock(&s->lock);
        return DPI_OK;
    }
    pthread_mutex_unlock(&s->lock);
    int64_t answer[PORT_MAX][DPI_MAX_RANK] = {{0}};
    dpi_status status = ask_shapes(s, inputs, answer, error);
    if (status)
        return status;
    pthread_mutex_lock(&s->lock);
    struct shape_memo *memo = &s->memos[s->memo_next++ % SESSION_MEMOS];
    memo->used = true;
    memcpy(memo->inputs, inputs, sizeof memo->inputs);
    memcpy(memo->outputs, answer, sizeof memo->outputs);
    memcpy(outputs, answer, sizeof answer);
    pthread_mutex_unlock(&s->lock);
    return DPI_OK;
}
