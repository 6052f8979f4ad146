#include "base/clock.h"

#include <errno.h>
#include <sys/types.h>
#include <time.h>

static int64_t read_ns(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now) != 0)
        return 0;
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t clock_now_ns(void) { return read_ns(CLOCK_MONOTONIC); }

int64_t clock_deadline_ns(int64_t timeout_ms)
{
    if (timeout_ms == 0)
        return CLOCK_NEVER;
    int64_t now = clock_now_ns();
    if (timeout_ms < 0)
        return now;
    return timeout_ms > (CLOCK_NEVER - now) / 1000000 ? CLOCK_NEVER : now + timeout_ms * 1000000;
}

void clock_sleep_until_ns(int64_t when_ns)
{
    struct timespec when = {.tv_sec = (time_t)(when_ns / 1000000000), .tv_nsec = (long)(when_ns % 1000000000)};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &when, NULL) == EINTR)
        ;
}

int64_t clock_thread_cpu_ns(void) { return read_ns(CLOCK_THREAD_CPUTIME_ID); }

int64_t clock_process_cpu_ns(int64_t pid)
{
    clockid_t clock;
    if (clock_getcpuclockid((pid_t)pid, &clock) != 0)
        return 0;
    return read_ns(clock);
}
