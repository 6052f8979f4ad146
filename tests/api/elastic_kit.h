/* What the tests of devices that come and go share. */
#ifndef TESTS_API_ELASTIC_KIT_H
#define TESTS_API_ELASTIC_KIT_H

#include "sim_kit.h"

#define SIMPLE "input x float32 N 5\noutput y float32 N 3\noutput z int32 N\n"

/* Two rows a slice, no log, events to `story` (may be NULL). */
dpi_options elastic_options(kit_story *story);
/* One more backend option: `list` holds them. */
void elastic_set(dpi_options *o, dpi_key_value *list, const char *key, const char *value);

dpi_stats_data elastic_stats(const kit *k, dpi_worker_stats *workers, size_t count);
uint64_t elastic_slices(const kit *k, size_t w); /* that worker w has finished */
bool elastic_is_busy(const kit *k, size_t w);    /* whether it shows that it is at one */
dpi_description elastic_describe(const kit *k);

/* dpi_device_add and dpi_device_remove, without limit, which must succeed. */
void elastic_add(const kit *k, const char *devices);
void elastic_remove(const kit *k, const char *devices);
/* Fails the test unless both are `wanted` and the message says `part`. */
void elastic_refused(dpi_status got, dpi_status wanted, const dpi_error *error, const char *part);
/* Forwards batches until worker w has computed something. */
void elastic_use(const kit *k, size_t w, size_t rows);
/* How often the story says `part`. */
size_t elastic_count(kit_story *story, const char *part);

#define ELASTIC_BATCHES 6

typedef struct elastic_queue {
    kit_batch *batches[ELASTIC_BATCHES];
    dpi_ticket tickets[ELASTIC_BATCHES];
} elastic_queue;

/* Batches in flight; waits for them, checks every row. */
void elastic_submit(const kit *k, elastic_queue *q, size_t rows);
void elastic_check(const kit *k, elastic_queue *q);

#endif
