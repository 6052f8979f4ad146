/* The trace's ring: every record that is read is one that was written, whole, in order; those that were too many are
 * counted. What a worker gone mad writes does no harm. */
#include "ipc/trace_ring.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define WRITTEN 400000u

static trace_ring *new_ring(void) { return aligned_alloc(64, (sizeof(trace_ring) + 63) / 64 * 64); }

/* All words of record i follow from i. */
static trace_slice nth(uint64_t i)
{
    return (trace_slice){.generation = (uint32_t)i,
                         .slot = (uint32_t)(i % 64),
                         .slice = (uint32_t)(i * 3),
                         .sequence = (uint32_t)(i * 5),
                         .flags = (uint32_t)(i % 8),
                         .rows = (uint32_t)(i * 7),
                         .waited_from_ns = (int64_t)(i * 11),
                         .started_ns = (int64_t)(i * 13),
                         .loaded_ns = (int64_t)(i * 17),
                         .computed_ns = (int64_t)(i * 19),
                         .finished_ns = (int64_t)(i * 23),
                         .copy_in_ns = i * 29,
                         .compute_ns = i * 31,
                         .copy_out_ns = i * 37};
}

static void check(const trace_slice *got, uint64_t i)
{
    trace_slice right = nth(i);
    assert_memory_equal(got, &right, sizeof right);
}

static void in_order(void **state)
{
    (void)state;
    trace_ring *ring = new_ring();
    memset(ring, 0, sizeof *ring);
    uint64_t next = 0, lost = 0;
    trace_slice s;
    assert_false(trace_read(ring, &next, &s, &lost));
    for (uint64_t i = 0; i < 3 * TRACE_RECORDS; i++) {
        s = nth(i);
        trace_write(ring, &s);
        if (i % 3 == 2)
            for (uint64_t k = i - 2; k <= i; k++) {
                assert_true(trace_read(ring, &next, &s, &lost));
                check(&s, k);
            }
    }
    assert_int_equal(lost, 0);
    for (uint64_t i = 0; i < 2 * TRACE_RECORDS; i++) { /* nobody reads: the last ones stay */
        s = nth(i);
        trace_write(ring, &s);
    }
    for (uint64_t i = TRACE_RECORDS + 1; i < 2 * TRACE_RECORDS; i++) {
        assert_true(trace_read(ring, &next, &s, &lost));
        check(&s, i);
    }
    assert_false(trace_read(ring, &next, &s, &lost));
    assert_int_equal(lost, TRACE_RECORDS + 1);
    free(ring);
}

static void *write_many(void *context)
{
    for (uint64_t i = 0; i < WRITTEN; i++) {
        trace_slice s = nth(i);
        trace_write(context, &s);
    }
    return NULL;
}

static void beside_a_writer(void **state)
{
    (void)state;
    trace_ring *ring = new_ring();
    memset(ring, 0, sizeof *ring);
    pthread_t writer;
    assert_int_equal(pthread_create(&writer, NULL, write_many, ring), 0);
    uint64_t next = 0, lost = 0, seen = 0;
    trace_slice s;
    while (next < WRITTEN) {
        if (!trace_read(ring, &next, &s, &lost))
            continue;
        check(&s, next - 1);
        seen++;
    }
    pthread_join(writer, NULL);
    assert_int_equal(seen + lost, WRITTEN);
    free(ring);
}

static void any_count(void **state)
{
    (void)state;
    trace_ring *ring = new_ring();
    memset(ring, 0xa5, sizeof *ring);
    static const uint64_t counts[] = {0, 1, 5, UINT64_MAX, TRACE_RECORDS, 0, UINT64_MAX / 2, 3};
    uint64_t next = 0, lost = 0;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        trace_slice s;
        ring->count = counts[i];
        unsigned read = 0;
        while (trace_read(ring, &next, &s, &lost))
            assert_true(++read <= TRACE_RECORDS);
        assert_int_equal(next, counts[i]);
    }
    free(ring);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(in_order),
        cmocka_unit_test(beside_a_writer),
        cmocka_unit_test(any_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
