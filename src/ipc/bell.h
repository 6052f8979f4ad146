/*
 * Doorbells: a counter that is rung by adding one, and a hint: how many sleep on it.
 *
 * The two sides cross like Dekker's algorithm: the sleeper counts itself in `sleeping`, then reads the bell and the
 * work; the ringer makes the work, adds to the bell, then reads `sleeping`. Both use sequentially consistent
 * operations, so at least one of them sees the other. A lying hint costs its writer's own wake-up; waits are bounded
 * all the same.
 */
#ifndef DPI_IPC_BELL_H
#define DPI_IPC_BELL_H

#include "base/clock.h"
#include "ipc/futex.h"

#include <dpinfer/dpinfer.h>
#include <sched.h>
#include <stdbool.h>

/* T11 ring (runtime/protocol.pml) */
static inline void bell_ring(_Atomic uint32_t *bell, const _Atomic uint32_t *sleeping)
{
    atomic_fetch_add(bell, 1);
    if (atomic_load(sleeping))
        futex_wake(bell);
}

/* How a waiter passes the time before it sleeps. */
typedef struct bell_patience {
    dpi_wait_mode mode; /* never DPI_WAIT_AUTO here */
    uint32_t spin_us;   /* spinning (SPIN) or yielding (YIELD) lasts at most this long, then the waiter sleeps */
} bell_patience;

/* T12 sleep. Waits until the bell differs from `seen` (true) or the deadline has passed (false). */
static inline bool bell_wait(const _Atomic uint32_t *bell, uint32_t seen, _Atomic uint32_t *sleeping,
                             bell_patience patience, int64_t deadline_ns)
{
    if (atomic_load(bell) != seen)
        return true;
    if (patience.mode != DPI_WAIT_BLOCK && patience.spin_us) {
        int64_t until = clock_now_ns() + (int64_t)patience.spin_us * 1000;
        do {
            for (int i = 0; i < 32; i++) {
                if (atomic_load_explicit(bell, memory_order_acquire) != seen)
                    return true;
                if (patience.mode == DPI_WAIT_YIELD)
                    sched_yield();
                else
                    spin_pause();
            }
        } while (clock_now_ns() < (until < deadline_ns ? until : deadline_ns));
    }
    atomic_fetch_add(sleeping, 1);
    while (atomic_load(bell) == seen && clock_now_ns() < deadline_ns)
        futex_wait(bell, seen, deadline_ns);
    atomic_fetch_sub(sleeping, 1);
    return atomic_load(bell) != seen;
}

#endif
