/* Sets of rows, as sorted ranges that neither touch nor overlap. Zero-initialise; row_set_free ends one. */
#ifndef DPI_BASE_ROW_SET_H
#define DPI_BASE_ROW_SET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct row_range {
    uint64_t begin, end; /* begin < end */
} row_range;

typedef struct row_set {
    row_range *items;
    size_t count, capacity;
} row_set;

/* Puts [begin, end) behind the others as it is; nothing where it is empty. row_set_settle makes a set of it again.
 * false: out of memory, nothing has changed. */
bool row_set_append(row_set *r, uint64_t begin, uint64_t end);
/* Sorts and joins, in n log n: what was appended may come from a file that means no good. */
void row_set_settle(row_set *r);
uint64_t row_set_rows(const row_set *r);
bool row_set_has(const row_set *r, uint64_t row);
/* The first range of [*at, limit) that is not in the set; false when there is none. */
bool row_set_next_gap(const row_set *r, uint64_t at, uint64_t limit, row_range *gap);
void row_set_free(row_set *r);

#endif
