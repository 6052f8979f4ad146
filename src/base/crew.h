/* A few threads that share one loop: for copies that are more than one core's work. */
#ifndef DPI_BASE_CREW_H
#define DPI_BASE_CREW_H

#include <stddef.h>

typedef struct crew crew;

/* Starts `helpers` threads, which sleep between loops. NULL when there is no memory or no thread to be had; fewer
 * threads than asked for are a crew too. */
crew *crew_new(size_t helpers);
/* Ends the threads; NULL is fine. */
void crew_free(crew *c);
/* Calls job(context, i) for every i below `count`, each once, on the helpers and on the calling thread, and returns
 * when all have returned. c NULL: the calling thread alone. One loop at a time. */
void crew_run(crew *c, size_t count, void (*job)(void *context, size_t i), void *context);

#endif
