/* Worker processes: spawned by the supervisor's thread alone, watched by pidfd. */
#ifndef DPI_IPC_CHILD_H
#define DPI_IPC_CHILD_H

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct child {
    pid_t pid;
    int pidfd; /* readable when the process is dead: its mappings are gone by then */
} child;

/* Starts `program` with `argv` (argv[0] included, NULL at the end). Its descriptors are 0 (/dev/null), 1 and 2 (`log`),
 * and fds[i] as 3 + i; everything else of ours is closed. It has a process group of its own (a terminal's Ctrl-C is
 * the caller's to handle), no blocked and no ignored signals. */
dpi_status child_spawn(const char *program, char *const argv[], int log, const int *fds, int fd_count, child *out,
                       dpi_error *error);

/* Has it ended? Waits until deadline_ns. On true *exit_signal and *exit_code say how (both -1 when the host program
 * reaped it first), and the pidfd is closed. */
bool child_ended(child *c, int64_t deadline_ns, int *exit_signal, int *exit_code);
/* SIGKILL; harmless when it has ended. */
void child_kill(const child *c);

/* Whether a process runs the worker program, by its name. */
bool child_is_worker(pid_t pid);

/* In the child, first of all: dies with its parent thread; false when `parent` is gone already. */
bool child_die_with(pid_t parent);

#endif
