/* Sets of rows, as sorted ranges that neither touch nor overlap. Zero-initialise; ranges_free ends one. */
#ifndef DPI_BASE_RANGES_H
#define DPI_BASE_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct row_range {
    uint64_t begin, end; /* begin < end */
} row_range;

typedef struct ranges {
    row_range *items;
    size_t count, capacity;
} ranges;

/* Puts [begin, end) behind the others as it is; nothing where it is empty. ranges_settle makes a set of it again.
 * false: out of memory, nothing has changed. */
bool ranges_append(ranges *r, uint64_t begin, uint64_t end);
/* Sorts and joins, in n log n: what was appended may come from a file that means no good. */
void ranges_settle(ranges *r);
uint64_t ranges_rows(const ranges *r);
/* The first range of [*at, limit) that is not in the set; false when there is none. */
bool ranges_next_gap(const ranges *r, uint64_t at, uint64_t limit, row_range *gap);
void ranges_free(ranges *r);

#endif
