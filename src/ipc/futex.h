/* Waiting for a 32-bit word in memory that several processes share. */
#ifndef DPI_IPC_FUTEX_H
#define DPI_IPC_FUTEX_H

#include <stdatomic.h>
#include <stdint.h>

/* Sleeps until woken, until *word differs from `seen`, or until the deadline (CLOCK_MONOTONIC ns, CLOCK_NEVER for
 * none). May return early for no reason: callers loop. The memory may be mapped read-only. */
void futex_wait(const _Atomic uint32_t *word, uint32_t seen, int64_t deadline_ns);
/* Wakes everyone who waits for the word. */
void futex_wake(const _Atomic uint32_t *word);

/* One turn of a spinning wait: a CPU hint, no system call. */
static inline void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
