/* The suite's models in real workers, as users have them: confined, and not. */
#ifndef DPI_TESTS_BACKEND_CONFORMANCE_WORKERS_H
#define DPI_TESTS_BACKEND_CONFORMANCE_WORKERS_H

#include "backend/conformance.h"

/* A whole program: the library that is found and the oldest one. `variable` and `oldest` as in conformance_group. */
int conformance_workers_main(const conformance_kit *kit, const char *variable, const char *oldest);

#endif
