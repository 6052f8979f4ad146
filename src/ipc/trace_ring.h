/*
 * What a worker did, slice by slice: a ring behind its page, in the same memfd, where the session is traced. The worker
 * writes and never waits; the caller reads often enough, and knows how many it has missed. Layout rules as in layout.h;
 * the reader believes nothing.
 */
#ifndef DPI_IPC_TRACE_RING_H
#define DPI_IPC_TRACE_RING_H

#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define TRACE_RECORDS 8192 /* a power of two: what 10 ms between two looks bring at 800,000 slices a second */
#define TRACE_WORDS   12

typedef struct trace_record {
    _Atomic uint64_t word[TRACE_WORDS];
} trace_record;

typedef struct trace_ring {
    alignas(64) _Atomic uint64_t count; /* records written; record i stands at i % TRACE_RECORDS */
    uint64_t padding[7];
    trace_record records[TRACE_RECORDS];
} trace_ring;

static_assert(sizeof(trace_record) == 96, "trace_record: size");
static_assert(sizeof(trace_ring) == 64 + 96ull * TRACE_RECORDS, "trace_ring: size");

enum {
    TRACE_STOLEN = 1u << 0, /* planned for another worker */
    TRACE_SHARD = 1u << 1,  /* its rows come from and go to files */
    TRACE_FAILED = 1u << 2,
};

/* Times of CLOCK_MONOTONIC, nanoseconds, in this order; waited_from_ns is 0 where the worker did not wait before. */
typedef struct trace_slice {
    uint32_t generation, slot, slice, sequence, flags, rows;
    int64_t waited_from_ns, started_ns, loaded_ns, computed_ns, finished_ns;
    uint64_t copy_in_ns, compute_ns, copy_out_ns; /* of the engine's time, loaded to computed */
} trace_slice;

/* Worker's side, one thread. */
static inline void trace_write(trace_ring *ring, const trace_slice *s)
{
    uint64_t at = atomic_load_explicit(&ring->count, memory_order_relaxed);
    _Atomic uint64_t *word = ring->records[at % TRACE_RECORDS].word;
    const uint64_t values[TRACE_WORDS] = {(uint64_t)s->generation << 32 | s->slot,
                                          (uint64_t)s->slice << 32 | s->sequence,
                                          (uint64_t)s->flags << 32 | s->rows,
                                          (uint64_t)s->waited_from_ns,
                                          (uint64_t)s->started_ns,
                                          (uint64_t)s->loaded_ns,
                                          (uint64_t)s->computed_ns,
                                          (uint64_t)s->finished_ns,
                                          s->copy_in_ns,
                                          s->compute_ns,
                                          s->copy_out_ns};
    /* Whoever sees a word of this record sees the count before it too: pairs with the acquire in trace_read. */
    for (int i = 0; i < TRACE_WORDS; i++)
        atomic_store_explicit(&word[i], values[i], memory_order_release);
    atomic_store_explicit(&ring->count, at + 1, memory_order_release);
}

/* Caller's side: record *next, which moves on; false when it is not written yet. Records that were overwritten before
 * they were read are skipped and added to *lost. A count that moves backwards is taken as it is. */
static inline bool trace_read(const trace_ring *ring, uint64_t *next, trace_slice *s, uint64_t *lost)
{
    for (;;) {
        uint64_t count = atomic_load_explicit(&ring->count, memory_order_acquire), value[TRACE_WORDS];
        if (count < *next)
            *next = count;
        if (count == *next)
            return false;
        if (count - *next > TRACE_RECORDS - 1) { /* the oldest may be being overwritten */
            uint64_t from = count - (TRACE_RECORDS - 1);
            *lost += from - *next;
            *next = from;
        }
        const _Atomic uint64_t *word = ring->records[*next % TRACE_RECORDS].word;
        for (int i = 0; i < TRACE_WORDS; i++)
            value[i] = atomic_load_explicit(&word[i], memory_order_acquire); /* so the count is read behind it */
        uint64_t after = atomic_load_explicit(&ring->count, memory_order_relaxed);
        if (after >= count && after - *next > TRACE_RECORDS - 1)
            continue;
        *next += 1;
        *s = (trace_slice){.generation = (uint32_t)(value[0] >> 32),
                           .slot = (uint32_t)value[0],
                           .slice = (uint32_t)(value[1] >> 32),
                           .sequence = (uint32_t)value[1],
                           .flags = (uint32_t)(value[2] >> 32),
                           .rows = (uint32_t)value[2],
                           .waited_from_ns = (int64_t)value[3],
                           .started_ns = (int64_t)value[4],
                           .loaded_ns = (int64_t)value[5],
                           .computed_ns = (int64_t)value[6],
                           .finished_ns = (int64_t)value[7],
                           .copy_in_ns = value[8],
                           .compute_ns = value[9],
                           .copy_out_ns = value[10]};
        return true;
    }
}

#endif
