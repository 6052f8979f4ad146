/* The control socket between the caller and one worker: JSON messages, with descriptors beside them. */
#ifndef DPI_IPC_CHANNEL_H
#define DPI_IPC_CHANNEL_H

#include "base/error.h"

#include <jansson.h>

#define CHANNEL_MAX_BYTES (512 * 1024)
#define CHANNEL_MAX_FDS   192 /* of a run: 64 sources, their spools, 64 sinks; the kernel takes 253 */

/* A pair of connected SOCK_SEQPACKET sockets, close-on-exec. */
dpi_status channel_pair(int fds[2], dpi_error *error);

/* Sends one message (borrowed) and up to CHANNEL_MAX_FDS descriptors. Waits until deadline_ns for room. Thread-safe
 * as a whole message. DPI_E_WORKER when the other side is gone. */
dpi_status channel_send(int fd, const json_t *message, const int *fds, size_t fd_count, int64_t deadline_ns,
                        dpi_error *error);

/* Receives one message (new reference, an object) and its descriptors (close-on-exec, the receiver's to close).
 * Waits until deadline_ns; DPI_TIMEOUT then. DPI_E_WORKER at end of file or for anything that is no JSON object.
 * `fds` NULL: descriptors are refused (closed). */
dpi_status channel_receive(int fd, int64_t deadline_ns, json_t **message, int fds[CHANNEL_MAX_FDS], size_t *fd_count,
                           dpi_error *error);

#endif
