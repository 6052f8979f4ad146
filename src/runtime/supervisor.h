/* What the supervisor's files share: supervisor.c (the thread, messages, hangs), supervisor_start.c (starting workers,
 * the first time and again), supervisor_death.c (how they end), supervisor_change.c (devices come and go). All of it is
 * the supervisor's thread alone. */
#ifndef DPI_RUNTIME_SUPERVISOR_H
#define DPI_RUNTIME_SUPERVISOR_H

#include "runtime/session.h"

/* How a worker came to its end. */
typedef struct ending {
    int signal_number, exit_code; /* -1 each where they do not apply */
    bool hung;
    char why[200]; /* it was ended by us: ": 12.0 s, its limit is 10.0 s", or "" */
} ending;

/* ---- supervisor.c ---- */
/* A worker's report is good. Takes it over; not the first one: the engine is the same, and others may look at what was
 * said of it. Under the lock. */
void supervisor_keep_report(dpi_session *s, size_t w, worker_report *report, bool first);

/* ---- supervisor_start.c ---- */
/* Starts worker w, or its next generation. On a failure it may have been started already: then its pidfd is there. */
dpi_status supervisor_start_worker(dpi_session *s, size_t w, dpi_error *error);
/* Nothing of a worker is there yet. */
void supervisor_set_up(session_worker *k);
/* All for the first time. A failure is the session's. */
void supervisor_start_all(dpi_session *s);
/* A worker's report is good: from here on it may claim slices. Until then it could run another engine. */
void supervisor_admit(dpi_session *s, size_t w);
/* It finishes what it has begun, claims nothing more, and leaves. */
void supervisor_dismiss(dpi_session *s, size_t w);
/* Those whose time has come. */
void supervisor_restart_due(dpi_session *s);

/* ---- supervisor_death.c ---- */
/* Takes what stands in a worker's log pipe. */
void supervisor_read_log(dpi_session *s, size_t w);
/* " while computing slice 3 (64 rows)" */
void supervisor_describe_work(const dpi_session *s, size_t w, char *out, size_t size);
/* True when the worker is gone (processes), or never was. */
bool supervisor_reap(dpi_session *s, size_t w, int64_t deadline_ns);
void supervisor_kill_all(dpi_session *s);
/* The session is over: all workers are killed, and every call says why. */
void supervisor_fail(dpi_session *s, const dpi_error *error);
/* A worker is dead, and has been waited for: its work goes to others, it is started again or given up. */
void supervisor_worker_died(dpi_session *s, size_t w, const ending *e);
/* SIGKILL, and waits until it is gone. False: it cannot be killed, and the session has failed of it; `why` says what
 * the worker had done. */
bool supervisor_kill(dpi_session *s, size_t w, const char *why);
/* Ends a worker that hangs, and waits until it is gone: only then may others have its slices. */
void supervisor_end_worker(dpi_session *s, size_t w, const ending *e);
/* Clears away what is left of a worker that is gone on our side. `died`: otherwise than by leaving when told to. */
void supervisor_bury(dpi_session *s, size_t w, bool died);
/* When a worker that is dead is to be started again, or that it is not. `explained`: the device is not to blame. */
void supervisor_plan_restart(dpi_session *s, size_t w, bool explained, const char *reason);
/* Gives a device up. */
void supervisor_retire(dpi_session *s, size_t w, const char *reason);
/* How many devices are in use, worker `except` (or SESSION_NOBODY) not counted. */
size_t supervisor_devices_left(const dpi_session *s, size_t except);
/* Somebody has written what nobody may into memory that all share, and nobody can say who: all start anew, and what is
 * not finished is computed again. */
void supervisor_start_anew(dpi_session *s, const char *what);

/* ---- supervisor_change.c ---- */
/* Begins what dpi_device_add or dpi_device_remove asks for; ends what has taken too long. */
void supervisor_change(dpi_session *s);
/* The report of a worker that is joining. Takes it over. */
void supervisor_take_joining(dpi_session *s, size_t w, worker_report *report);
/* A worker that is joining cannot: none of those asked for with it is added. */
void supervisor_refuse_joining(dpi_session *s, const dpi_error *error);
/* The worker of a device that is being removed is gone, and so is the device. */
void supervisor_removed(dpi_session *s, size_t w);

#endif
