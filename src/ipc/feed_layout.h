/*
 * What the caller shares with its producers: who fills which rows. The rows themselves stand in the session's inputs.
 *
 * One 64-bit word per slot of a ring: state, producer, number of the range. Range r stands in slot r % slot_count and
 * is rows r * range_rows and following of the data set. Moved only by compare-and-swap:
 *
 *     FREE -> RESERVED (producer) -> FILLED | ENDED | FAILED (producer) -> TAKEN (caller) -> FREE for range r +
 * slot_count
 *
 * RESERVED -> FREE is the caller's, for a producer whose socket has closed: its memory is unmapped before its
 * descriptors are closed, so it can write no more.
 */
#ifndef DPI_IPC_FEED_LAYOUT_H
#define DPI_IPC_FEED_LAYOUT_H

#include "base/tensor.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FEED_MAGIC         UINT64_C(0x3144454546495044) /* "DPIFEED1" */
#define FEED_SLOTS_MAX     256
#define FEED_MESSAGE_SIZE  496
#define FEED_PRODUCERS_MAX 1024
#define FEED_NOBODY        0 /* producers count from 1 */

enum feed_state {
    FEED_FREE,
    FEED_RESERVED,
    FEED_FILLED,
    FEED_ENDED,  /* as FILLED, and this producer has nothing more (no rows known in advance) */
    FEED_FAILED, /* `message` says why; `rows` were right before it */
    FEED_TAKEN,
};

static inline uint64_t feed_word(enum feed_state state, uint32_t producer, uint64_t range)
{
    return (uint64_t)state | (uint64_t)producer << 3 | range << 16;
}
static inline enum feed_state feed_state_of(uint64_t word) { return (enum feed_state)(word & 7); }
static inline uint32_t feed_producer_of(uint64_t word) { return (uint32_t)(word >> 3) & 0x1fff; }
static inline uint64_t feed_range_of(uint64_t word) { return word >> 16; }

typedef struct feed_slot {
    _Atomic uint64_t word;
    uint32_t rows; /* written before FILLED, ENDED or FAILED (release), read after it (acquire) */
    uint32_t unused;
    char message[FEED_MESSAGE_SIZE];
} feed_slot;

typedef struct feed_input {
    char name[PORT_NAME_SIZE];
    uint32_t dtype, rank;
    int64_t shape[DPI_MAX_RANK]; /* of one range; axis 0 is range_rows */
    uint64_t offset, slot_bytes; /* slot k stands at offset + k * slot_bytes of the inputs */
} feed_input;

typedef struct feed_control {
    uint64_t magic, build_id;
    uint64_t rows; /* of the data set; UINT64_MAX: not known, and range r belongs to producer 1 + r % producers */
    uint64_t range_rows, input_max_bytes;
    uint32_t slot_count, input_count, producers, unused;
    feed_input inputs[PORT_MAX];
    _Atomic uint32_t free_bell, free_sleeping;     /* rung by the caller: there is a FREE word, or `closed` */
    _Atomic uint32_t filled_bell, filled_sleeping; /* rung by producers */
    _Atomic uint32_t closed;
    uint32_t unused_too[3];
    feed_slot slots[FEED_SLOTS_MAX];
} feed_control;

static_assert(sizeof(feed_slot) == 512, "a slot's layout is shared between processes");
static_assert(sizeof(feed_input) == PORT_NAME_SIZE + 88, "an input's layout is shared between processes");
static_assert(sizeof(feed_control) % 8 == 0, "the control's layout is shared between processes");

/* Rows of range r where their number is known: 0 behind the end. */
static inline uint64_t feed_rows_of(const feed_control *c, uint64_t range)
{
    if (c->rows == UINT64_MAX)
        return c->range_rows;
    uint64_t first = range * c->range_rows;
    return first >= c->rows ? 0 : c->rows - first < c->range_rows ? c->rows - first : c->range_rows;
}

#endif
