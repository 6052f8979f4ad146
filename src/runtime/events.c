#include "runtime/events.h"

#include "runtime/tracer.h"

#include <stdlib.h>
#include <sys/time.h>

/* Takes the event, adds when, and hands it out. */
static void emit(dpi_session *s, json_t *event)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    if (event && s->tracer)
        tracer_event(s->tracer, event);
    if (event && s->event) {
        json_object_set_new(event, "unix_s", json_real((double)now.tv_sec + (double)now.tv_usec * 1e-6));
        char *text = json_dumps(event, JSON_COMPACT);
        pthread_mutex_lock(&s->event_lock);
        if (text)
            s->event(s->event_context, text);
        pthread_mutex_unlock(&s->event_lock);
        free(text);
    }
    json_decref(event);
}

static json_t *about(const dpi_session *s, const char *what, size_t w)
{
    return json_pack("{s:s, s:i, s:s, s:i, s:i}", "event", what, "worker", (int)w, "device", s->devices.items[w].name,
                     "pid", (int)s->workers[w].process.pid, "generation", (int)s->workers[w].generation);
}

void event_started(dpi_session *s, size_t w, const worker_report *report)
{
    json_t *event = about(s, "compiled", w);
    json_object_set_new(event, "seconds", json_real(report->engine_seconds));
    if (report->from_cache)
        json_decref(event);
    else
        emit(s, event);
    event = about(s, "started", w);
    json_object_set_new(event, "seconds", json_real(report->open_seconds));
    json_object_set_new(event, "from_cache", json_boolean(report->from_cache));
    emit(s, event);
}

static json_t *last_lines(const session_worker *k)
{
    json_t *lines = json_array();
    size_t count = k->log_count < SESSION_LOG_LINES ? k->log_count : SESSION_LOG_LINES;
    for (size_t i = k->log_count - count; i < k->log_count; i++)
        json_array_append_new(lines, text_to_json(k->log_lines[i % SESSION_LOG_LINES]));
    return lines;
}

void event_died(dpi_session *s, size_t w, int signal_number, int exit_code, bool hung, const char *reason)
{
    json_t *event = about(s, "died", w);
    if (hung)
        json_object_set_new(event, "hung", json_true());
    else if (signal_number > 0)
        json_object_set_new(event, "signal", json_integer(signal_number));
    else if (exit_code >= 0)
        json_object_set_new(event, "exit_code", json_integer(exit_code));
    json_object_set_new(event, "reason", text_to_json(reason));
    json_object_set_new(event, "log", last_lines(&s->workers[w]));
    emit(s, event);
}

void event_replayed(dpi_session *s, size_t w, uint32_t slice)
{
    json_t *event = about(s, "replayed", w);
    json_object_set_new(event, "slice", json_integer(slice));
    emit(s, event);
}

void event_bad_row(dpi_session *s, uint64_t row, const char *reason)
{
    emit(s, json_pack("{s:s, s:I, s:o}", "event", "bad_row", "row", (json_int_t)row, "reason", text_to_json(reason)));
}

void event_retired(dpi_session *s, size_t w, const char *reason)
{
    json_t *event = about(s, "retired", w);
    json_object_set_new(event, "reason", text_to_json(reason));
    emit(s, event);
}

void event_added(dpi_session *s, size_t w) { emit(s, about(s, "added", w)); }

void event_removed(dpi_session *s, size_t w) { emit(s, about(s, "removed", w)); }

void event_spoilt(dpi_session *s, const char *reason)
{
    emit(s, json_pack("{s:s, s:o}", "event", "spoilt", "reason", text_to_json(reason)));
}

void event_resumed(dpi_session *s, uint64_t rows, uint64_t total)
{
    emit(s, json_pack("{s:s, s:I, s:I}", "event", "resumed", "rows", (json_int_t)rows, "total", (json_int_t)total));
}
