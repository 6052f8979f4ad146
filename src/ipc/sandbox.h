/*
 * The least that a worker process needs: for the process itself, at its own start. Damage limitation and no security
 * boundary (docs/architecture.md, What a worker may do).
 *
 * None of it can be taken back. Each function that a kernel may lack says so by its status and leaves the process as
 * it was, so that the caller can go on without.
 */
#ifndef DPI_IPC_SANDBOX_H
#define DPI_IPC_SANDBOX_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* From here on a crash writes no core file and starts no program of core_pattern. The process stays open to debuggers
 * of its own user, except where the limit on core files was 0 for good. */
void sandbox_stop_core_dumps(void);

/* From here on memory of the process's own (heap, stacks, private mappings; not the arenas, not files) ends at `bytes`:
 * allocating more fails. */
dpi_status sandbox_limit_memory(uint64_t bytes, dpi_error *error);

/* A folder, with all below it, or a file. One that does not exist is left out. */
typedef struct sandbox_path {
    const char *path;
    bool writable; /* files may be made, written, linked and removed; else read only */
} sandbox_path;

/* Landlock: this thread, and those that it starts from now on, open `paths` and nothing else, and execute no file.
 * Descriptors that are open already stay what they are. *every_thread: the kernel could put all threads of the process
 * under it, those that were there before too. *abi is Landlock's version, 0 on failure. */
dpi_status sandbox_confine_files(const sandbox_path *paths, size_t count, int *abi, bool *every_thread,
                                 dpi_error *error);

/* A seccomp filter over all threads of the process: EPERM for programs, processes, sockets, signals to other
 * processes, their memory, files that are opened for anything but reading, mounts, namespaces, other users, kernel
 * modules and the like. Threads, memory, reading files, descriptors that are open and those that come over a socket
 * that is open already go on as before. */
dpi_status sandbox_deny_calls(dpi_error *error);

#endif
