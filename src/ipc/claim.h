/*
 * Claims: who computes a slice, exactly once.
 *
 * One 64-bit word per slice: state, worker, generation, batch sequence; moved only by compare-and-swap:
 *
 *     FREE -> CLAIMED -> RUNNING -> DONE or BAD
 *     after a death: CLAIMED -> FREE, RUNNING -> SUSPECT -> DONE or BAD
 *
 * runtime/protocol.pml is this protocol for a model checker; its steps T1 to T23 are marked where they happen.
 *
 * FREE     nobody's: shard mode's queue, or slices of a worker that died (never while it can still write)
 * CLAIMED  planned for `worker`, not started: that worker starts it, or an idle one steals it
 * RUNNING  `worker` in `generation` computes it
 * SUSPECT  `worker` died of it, or failed: the supervisor alone moves it on, after trials (runtime/recovery.h)
 * DONE     its output rows are in place; BAD: they never will be (the worker's page says why, or it was cancelled)
 *
 * The sequence stops a late worker from touching the word after its slot was given to another batch. Memory order:
 * each successful exchange is acq_rel at least, so a slice's inputs happen before RUNNING, and its outputs before
 * whoever reads DONE with claim_load (acquire). The words may hold anything (a worker gone mad): decode first, trust
 * nothing.
 */
#ifndef DPI_IPC_CLAIM_H
#define DPI_IPC_CLAIM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum claim_state { CLAIM_NONE = 0, CLAIM_FREE, CLAIM_CLAIMED, CLAIM_RUNNING, CLAIM_DONE, CLAIM_BAD, CLAIM_SUSPECT };

/* In `worker` of a BAD word: no worker's page tells why. */
#define CLAIM_DROPPED 0x3ffu /* nobody had started it when its batch was cancelled or failed */
#define CLAIM_JUDGED  0x3feu /* the supervisor's verdict, which stands in its batch */

typedef struct claim {
    uint32_t sequence;   /* 32 bits */
    uint32_t generation; /* 19 bits */
    uint32_t worker;     /* 10 bits */
    uint32_t state;      /* 3 bits */
} claim;

static inline uint64_t claim_encode(claim c)
{
    return (uint64_t)c.sequence | (uint64_t)(c.generation & 0x7ffffu) << 32 | (uint64_t)(c.worker & 0x3ffu) << 51 |
           (uint64_t)(c.state & 7u) << 61;
}

static inline claim claim_decode(uint64_t word)
{
    return (claim){.sequence = (uint32_t)word,
                   .generation = (uint32_t)(word >> 32) & 0x7ffffu,
                   .worker = (uint32_t)(word >> 51) & 0x3ffu,
                   .state = (uint32_t)(word >> 61)};
}

static inline bool claim_is_terminal(claim c) { return c.state == CLAIM_DONE || c.state == CLAIM_BAD; }

/* Pairs with claim_move and claim_publish. Sequentially consistent, as is claim_move: a worker moves its word and then
 * reads BATCH_UNSURE, the supervisor sets that and then reads the words; one of them must see the other. */
static inline claim claim_load(const _Atomic uint64_t *word) { return claim_decode(atomic_load(word)); }

/* The caller's first word of a slice: what workers may read before it (inputs, descriptor) is visible with it. */
static inline void claim_publish(_Atomic uint64_t *word, claim c)
{
    atomic_store_explicit(word, claim_encode(c), memory_order_release);
}

/* One transition; false when somebody else was first. */
static inline bool claim_move(_Atomic uint64_t *word, claim from, claim to)
{
    uint64_t expected = claim_encode(from);
    return atomic_compare_exchange_strong(word, &expected, claim_encode(to));
}

/* Hints: a count that belongs to one batch, its sequence in the upper half, so that a late worker cannot disturb the
 * count of the batch that came after. */
static inline void hint_start(_Atomic uint64_t *hint, uint32_t sequence, uint32_t count)
{
    atomic_store_explicit(hint, (uint64_t)sequence << 32 | count, memory_order_release);
}

/* Takes one off: true with the count before (>= 1), or false: it is used up, or another batch's. */
static inline bool hint_step(_Atomic uint64_t *hint, uint32_t sequence, uint32_t *before)
{
    uint64_t now = atomic_load_explicit(hint, memory_order_relaxed);
    do {
        if ((uint32_t)(now >> 32) != sequence || !(uint32_t)now)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(hint, &now, now - 1, memory_order_acq_rel, memory_order_relaxed));
    *before = (uint32_t)now;
    return true;
}

#endif
