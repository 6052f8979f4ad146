#include "ipc/futex.h"

#include "base/clock.h"

#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

void futex_wait(const _Atomic uint32_t *word, uint32_t seen, int64_t deadline_ns)
{
    struct timespec until, *timeout = NULL;
    if (deadline_ns != CLOCK_NEVER) {
        if (deadline_ns < 0)
            deadline_ns = 0;
        until.tv_sec = (time_t)(deadline_ns / 1000000000);
        until.tv_nsec = (long)(deadline_ns % 1000000000);
        timeout = &until;
    }
    /* WAIT_BITSET takes an absolute deadline on CLOCK_MONOTONIC; plain WAIT would take a relative one. */
    syscall(SYS_futex, word, FUTEX_WAIT_BITSET, seen, timeout, NULL, FUTEX_BITSET_MATCH_ANY);
}

void futex_wake(const _Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0); }
