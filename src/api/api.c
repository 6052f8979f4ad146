/* The public functions: argument checks, then one call into the runtime. */
#include "base/clock.h"
#include "runtime/session.h"

#include <stdlib.h>
#include <string.h>

/* Copies a caller's option struct into one of our size: fields that a caller of an older header lacks are zero; a
 * larger struct of a newer header is fine as long as what we do not know is zero. */
static dpi_status take_struct(void *ours, size_t our_size, const void *theirs, const char *what, dpi_error *error)
{
    size_t size;
    memset(ours, 0, our_size);
    memcpy(&size, theirs, sizeof size);
    if (size < sizeof size || size > 65536)
        return error_set(error, DPI_E_ARGUMENT, "%s.struct_size is %zu; set it to sizeof(%s)", what, size, what);
    for (size_t i = our_size; i < size; i++)
        if (((const unsigned char *)theirs)[i])
            return error_set(error, DPI_E_ARGUMENT, "%s has options that this version of dpinfer (%s) does not know",
                             what, dpi_version());
    memcpy(ours, theirs, size < our_size ? size : our_size);
    return DPI_OK;
}

/* Copies one of our structs out into a caller's, no further than the caller's reaches. */
static void give_struct(void *theirs, const void *ours, size_t our_size)
{
    size_t size;
    memcpy(&size, theirs, sizeof size);
    memcpy(theirs, ours, size < our_size ? size : our_size);
    memcpy(theirs, &size, sizeof size);
}

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return error_set(error, DPI_E_ARGUMENT, __VA_ARGS__);                                                      \
    } while (0)

/* A success leaves an empty error, whatever was written into it on the way. */
static dpi_status settled(dpi_status status, dpi_error *error) { return status ? status : error_clear(error); }

DPI_API dpi_status dpi_open(const dpi_options *options, dpi_session **session, dpi_error *error)
{
    CHECK(session, "dpi_open: session is NULL");
    *session = NULL;
    CHECK(options, "dpi_open: options is NULL");
    dpi_options ours;
    dpi_status status = take_struct(&ours, sizeof ours, options, "dpi_options", error);
    dpi_error local;
    return status ? status : session_open(&ours, session, error ? error : &local);
}

DPI_API void dpi_close(dpi_session *session) { session_close(session); }

/* Both functions on devices. */
static dpi_status check_change(dpi_session *session, const char *devices, dpi_error *error)
{
    CHECK(session && devices, "an argument is NULL");
    dpi_status status = session_usable(session, error);
    if (status)
        return status;
    CHECK(!session->in_caller, "the devices of a session with isolation=thread are those that it was opened with");
    return DPI_OK;
}

DPI_API dpi_status dpi_device_add(dpi_session *session, const char *devices, int64_t timeout_ms, dpi_error *error)
{
    dpi_status status = check_change(session, devices, error);
    if (status)
        return status;
    CHECK(timeout_ms >= 0, "dpi_device_add: a timeout below 0 leaves no time to start a worker");
    return settled(session_device_add(session, devices, clock_deadline_ns(timeout_ms), error), error);
}

DPI_API dpi_status dpi_device_remove(dpi_session *session, const char *devices, int64_t timeout_ms, dpi_error *error)
{
    dpi_status status = check_change(session, devices, error);
    return status ? status
                  : settled(session_device_remove(session, devices, clock_deadline_ns(timeout_ms), error), error);
}

DPI_API dpi_status dpi_submit(dpi_session *session, const dpi_batch *batch_in, dpi_ticket *ticket, dpi_error *error)
{
    CHECK(session && batch_in && ticket, "dpi_submit: an argument is NULL");
    dpi_batch ours;
    dpi_status status = take_struct(&ours, sizeof ours, batch_in, "dpi_batch", error);
    if (!status)
        status = session_usable(session, error);
    if (status)
        return status;
    CHECK(ours.inputs || !ours.input_count, "dpi_submit: inputs is NULL");
    return settled(batch_submit(session, &ours, clock_deadline_ns(ours.queue_timeout_ms), ticket, error), error);
}

DPI_API dpi_status dpi_wait(dpi_session *session, dpi_ticket ticket, int64_t timeout_ms, dpi_tensor *outputs,
                            size_t output_count, dpi_error *error)
{
    CHECK(session && ticket, "dpi_wait: an argument is NULL");
    dpi_error unused;
    dpi_status status = session_usable(session, &unused);
    if (status == DPI_E_FORKED)
        return error_set(error, status, "%s", unused.message);
    return settled(
        batch_wait(session, ticket, clock_deadline_ns(timeout_ms), false, outputs, outputs ? output_count : 0, error),
        error);
}

DPI_API dpi_status dpi_release(dpi_session *session, dpi_ticket ticket, dpi_error *error)
{
    CHECK(session && ticket, "dpi_release: an argument is NULL");
    dpi_error unused;
    if (session_usable(session, &unused) == DPI_E_FORKED)
        return error_set(error, DPI_E_FORKED, "%s", unused.message);
    return settled(batch_release(session, ticket, error), error);
}

DPI_API dpi_status dpi_cancel(dpi_session *session, dpi_ticket ticket, dpi_error *error)
{
    CHECK(session && ticket, "dpi_cancel: an argument is NULL");
    dpi_status status = session_usable(session, error);
    return status ? status : settled(batch_cancel(session, ticket, error), error);
}

DPI_API dpi_status dpi_forward(dpi_session *session, const dpi_tensor *inputs, size_t input_count,
                               const dpi_tensor *outputs, size_t output_count, int64_t timeout_ms, dpi_error *error)
{
    CHECK(session && inputs && outputs, "dpi_forward: an argument is NULL");
    for (size_t i = 0; i < output_count; i++)
        CHECK(outputs[i].data || (outputs[i].rank > 0 && outputs[i].shape[0] == 0),
              "dpi_forward: output %zu has no memory; use dpi_submit for views", i);
    dpi_status status = session_usable(session, error);
    if (status)
        return status;
    CHECK(output_count == session->sig.output_count, "dpi_forward: the session has %zu outputs and %zu were given",
          session->sig.output_count, output_count);
    dpi_batch one = {.inputs = inputs, .input_count = input_count, .outputs = outputs, .output_count = output_count};
    int64_t deadline_ns = clock_deadline_ns(timeout_ms);
    dpi_ticket ticket;
    status = batch_submit(session, &one, deadline_ns, &ticket, error);
    if (status == DPI_BUSY)
        return error_set(error, DPI_TIMEOUT, "the deadline passed while the queue was full");
    return status ? status : settled(batch_wait(session, ticket, deadline_ns, true, NULL, 0, error), error);
}

DPI_API int dpi_event_fd(dpi_session *session, dpi_error *error)
{
    if (!session) {
        error_set(error, DPI_E_ARGUMENT, "dpi_event_fd: session is NULL");
        return -1;
    }
    if (session_usable(session, error))
        return -1;
    atomic_store(&session->control->event_wanted, 1);
    return session->event_fd;
}

DPI_API void *dpi_alloc(dpi_session *session, size_t bytes, dpi_direction direction, dpi_error *error)
{
    if (!session || (direction != DPI_INPUT && direction != DPI_OUTPUT)) {
        error_set(error, DPI_E_ARGUMENT, "dpi_alloc: the session is NULL or the direction is neither input nor output");
        return NULL;
    }
    return session_usable(session, error) ? NULL : block_alloc(session, bytes, direction, error);
}

DPI_API dpi_status dpi_free(dpi_session *session, void *memory, dpi_error *error)
{
    CHECK(session, "dpi_free: session is NULL");
    dpi_error unused;
    if (session_usable(session, &unused) == DPI_E_FORKED)
        return error_set(error, DPI_E_FORKED, "%s", unused.message);
    return settled(memory ? block_free(session, memory, error) : DPI_OK, error);
}

DPI_API dpi_status dpi_run(dpi_session *session, const dpi_run_options *options, dpi_run_result *result,
                           dpi_error *error)
{
    CHECK(session && options, "dpi_run: an argument is NULL");
    dpi_run_options ours;
    dpi_run_result done = {0};
    dpi_status status = take_struct(&ours, sizeof ours, options, "dpi_run_options", error);
    if (!status)
        status = session_usable(session, error);
    if (status)
        return status;
    CHECK(ours.inputs && ours.input_count, "dpi_run: no source was given");
    CHECK(ours.outputs || !ours.output_count, "dpi_run: outputs is NULL");
    CHECK(ours.input_count <= PORT_MAX && ours.output_count <= PORT_MAX, "dpi_run: too many sources or sinks");
    dpi_preprocess how;
    if (ours.preprocess) {
        status = take_struct(&how, sizeof how, ours.preprocess, "dpi_preprocess", error);
        if (status)
            return status;
        ours.preprocess = &how;
    }
    dpi_error local;
    status = session_run(session, &ours, &done, error ? error : &local);
    if (result)
        give_struct(result, &done, sizeof done);
    return settled(status, error);
}

DPI_API dpi_status dpi_describe(dpi_session *session, dpi_description *description, dpi_error *error)
{
    CHECK(session && description, "dpi_describe: an argument is NULL");
    dpi_status status = session_usable(session, error);
    if (status)
        return status;
    dpi_description ours = {0};
    session_describe(session, &ours);
    give_struct(description, &ours, sizeof ours);
    return error_clear(error);
}

DPI_API dpi_status dpi_stats(dpi_session *session, dpi_stats_data *stats, dpi_error *error)
{
    CHECK(session && stats, "dpi_stats: an argument is NULL");
    dpi_stats_data ours;
    dpi_error unused;
    if (session_usable(session, &unused) == DPI_E_FORKED)
        return error_set(error, DPI_E_FORKED, "%s", unused.message);
    dpi_status status = take_struct(&ours, sizeof ours, stats, "dpi_stats_data", error);
    if (status)
        return status;
    session_stats(session, &ours);
    give_struct(stats, &ours, sizeof ours);
    return error_clear(error);
}
