/*
 * Looking at the sessions of other processes of this user, without their doing anything for it. A session's memory is
 * memfds, which /proc/PID/fd shows: `control` holds a board with the facts (layout.h), workers' pages their counters,
 * `outputs` the claims. All are mapped read-only for the moment of a look. Nothing is published, and nothing is left
 * when a process dies. What is read may be anybody's: it is copied, checked and bounded.
 */
#ifndef DPI_RUNTIME_WATCH_H
#define DPI_RUNTIME_WATCH_H

#include "base/error.h"
#include "ipc/layout.h"

#include <sys/types.h>

typedef struct watched_device {
    char name[BOARD_NAME_SIZE];
    uint32_t stage, starts; /* page_stage; how often its worker was started */
    bool in_use, busy;
    uint64_t rows, slices;
    double busy_s;            /* since the session was opened: loading, copying, computing */
    unsigned queued, running; /* slices that it has been given and not begun; that it has begun */
} watched_device;

typedef struct watched_session {
    pid_t pid;
    uint64_t inode;   /* with pid: which one */
    bool other_build; /* of another version of dpinfer: nothing below is known */
    char model[BOARD_MODEL_SIZE];
    double now_s, open_s;        /* of CLOCK_MONOTONIC; how long it has been open */
    uint64_t run_rows, run_done; /* of a dpi_run; run_rows 0: there is none */
    unsigned queued;             /* slices that any device may take */
    size_t device_count;
    watched_device devices[LAYOUT_WORKERS];
} watched_session;

/* All sessions, or those of process `only` where it is not 0, by pid; *list is malloc'd. Processes of other users are
 * left out, and so are those that end meanwhile. DPI_E_SYSTEM: /proc cannot be read. */
dpi_status watch_sessions(pid_t only, watched_session **list, size_t *count, dpi_error *error);

#endif
