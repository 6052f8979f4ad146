#include "base/row_set.h"

#include <stdlib.h>

bool row_set_append(row_set *r, uint64_t begin, uint64_t end)
{
    if (begin >= end)
        return true;
    if (r->count && r->items[r->count - 1].end == begin) { /* rows mostly come in order */
        r->items[r->count - 1].end = end;
        return true;
    }
    if (r->count == r->capacity) {
        size_t capacity = r->capacity ? 2 * r->capacity : 16;
        row_range *items = reallocarray(r->items, capacity, sizeof *items);
        if (!items)
            return false;
        r->items = items;
        r->capacity = capacity;
    }
    r->items[r->count++] = (row_range){begin, end};
    return true;
}

static int by_begin(const void *a, const void *b)
{
    uint64_t x = ((const row_range *)a)->begin, y = ((const row_range *)b)->begin;
    return (x > y) - (x < y);
}

void row_set_settle(row_set *r)
{
    if (r->count < 2)
        return;
    qsort(r->items, r->count, sizeof *r->items, by_begin);
    size_t last = 0;
    for (size_t i = 1; i < r->count; i++) {
        if (r->items[i].begin > r->items[last].end)
            r->items[++last] = r->items[i];
        else if (r->items[i].end > r->items[last].end)
            r->items[last].end = r->items[i].end;
    }
    r->count = last + 1;
}

uint64_t row_set_rows(const row_set *r)
{
    uint64_t rows = 0;
    for (size_t i = 0; i < r->count; i++)
        rows += r->items[i].end - r->items[i].begin;
    return rows;
}

bool row_set_next_gap(const row_set *r, uint64_t at, uint64_t limit, row_range *gap)
{
    size_t low = 0, high = r->count; /* the first range that ends behind `at` */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (r->items[middle].end > at)
            high = middle;
        else
            low = middle + 1;
    }
    if (low < r->count && r->items[low].begin <= at)
        at = r->items[low++].end;
    *gap = (row_range){at, low < r->count && r->items[low].begin < limit ? r->items[low].begin : limit};
    return at < limit;
}

bool row_set_has(const row_set *r, uint64_t row)
{
    row_range gap;
    return !row_set_next_gap(r, row, row + 1, &gap);
}

void row_set_free(row_set *r)
{
    free(r->items);
    *r = (row_set){0};
}
