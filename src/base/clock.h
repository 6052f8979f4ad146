/* Time. All deadlines are CLOCK_MONOTONIC nanoseconds, the same in every process of the machine. */
#ifndef DPI_BASE_CLOCK_H
#define DPI_BASE_CLOCK_H

#include <stdint.h>

#define CLOCK_NEVER INT64_MAX

/* Nanoseconds since boot. */
int64_t clock_now_ns(void);

/* Absolute deadline for a public timeout: 0 never, < 0 now, else `timeout_ms` from now (saturating). */
int64_t clock_deadline_ns(int64_t timeout_ms);

/* Sleeps to an absolute time; returns at once when it has passed. Signals do not cut it short. */
void clock_sleep_until_ns(int64_t when_ns);

/* CPU time used by this thread, and by process `pid` (0 when it is gone), nanoseconds. */
int64_t clock_thread_cpu_ns(void);
int64_t clock_process_cpu_ns(int64_t pid);

#endif
