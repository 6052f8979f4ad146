/* Threads of ours in the caller's process. */
#ifndef DPI_BASE_OWN_THREAD_H
#define DPI_BASE_OWN_THREAD_H

/* The first that such a thread calls: it takes no signal, since the program's signals are for its own threads, and is
 * seen as `name` (at most 15 bytes). Threads that it starts take no signals either. */
void own_thread_begin(const char *name);

#endif
