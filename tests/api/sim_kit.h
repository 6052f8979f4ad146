/* Sessions on sim devices whose every row is known: helpers of the tests of the public interface. */
#ifndef TESTS_API_SIM_KIT_H
#define TESTS_API_SIM_KIT_H

#include "backend/sim.h"

#include <dpinfer/dpinfer.h>

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

#include <cmocka.h>

#define KIT_PORTS 16
#define KIT_GUARD 64 /* bytes behind every output that must stay as they were */

typedef struct kit {
    dpi_session *s;
    sim_model model;
    dpi_tensor broadcast[KIT_PORTS]; /* of the model's broadcast inputs; data malloc'd */
    size_t broadcast_count;
} kit;

/* Opens `text` on `devices`. `o` (may be NULL) brings other options; its model, devices, broadcast and cache are set
 * here, and without one of its own nothing is logged. With DPI_TEST_ISOLATION=strict process isolation is strict. Fails
 * the test when it does not open. */
kit *kit_open(const char *text, const char *devices, const dpi_options *o);
bool kit_is_strict(void);
/* The same, and the status instead of a failure; NULL then. */
kit *kit_try_open(const char *text, const char *devices, const dpi_options *o, dpi_error *error);
void kit_close(kit *k);

/* Options with which a hang ends soon: 300 ms a slice, 1 s to start and for a worker's first slice. */
dpi_options kit_impatient(void);

/* A batch of random rows in plain memory, and memory for its results. */
typedef struct kit_batch {
    const kit *k;
    size_t rows;
    dpi_tensor in[KIT_PORTS], out[KIT_PORTS];
    size_t in_count, out_count, in_index[KIT_PORTS]; /* in_index: which input of the model */
} kit_batch;

/* `extent` stands for every free axis but the first. */
kit_batch *kit_batch_new(const kit *k, size_t rows, uint64_t seed, int64_t extent);
void kit_batch_free(kit_batch *b);
/* Compares `outputs` (NULL: the batch's own memory, guard included) with the reference, row by row. */
void kit_batch_check(const kit_batch *b, const dpi_tensor *outputs);
/* Overwrites the result memory, so that a later check cannot pass on old results. */
void kit_batch_spoil(kit_batch *b);
/* Makes row `row` the one that a model with `poison 777` means. */
#define KIT_POISON 777
void kit_poison(kit_batch *b, size_t row);
/* dpi_forward and check. */
void kit_forward(const kit *k, size_t rows, uint64_t seed);
dpi_status kit_submit(const kit *k, kit_batch *b, bool views, int64_t queue_timeout_ms, dpi_ticket *ticket,
                      dpi_error *error);

/* What a process must not have left behind: children, descriptors, mappings of ours, threads. */
typedef struct kit_traces {
    int fds, mappings, threads, children;
} kit_traces;
kit_traces kit_look(void);
int kit_count_mappings(void);
/* The processes that this one has started, those that have ended and were not waited for among them; returns how many.
 */
size_t kit_children(pid_t *pids, size_t most);
/* Compares with `before`, waiting up to two seconds for what ends by itself. */
void kit_check_clean(kit_traces before);

double kit_now_s(void);

dpi_stats_data kit_stats(const kit *k); /* of the session as a whole */
pid_t kit_pid(const kit *k, size_t w);  /* worker w's, 0 while there is none */

/* A sanitizer in the worker would turn crashes into exits: from here on it does not; its other options stay. */
void kit_let_workers_crash(void);

/* Collects the events of a session: set o.event = kit_tell, o.event_context = the story. */
typedef struct kit_story {
    pthread_mutex_t lock;
    char text[16384];
    size_t used;
} kit_story;
#define KIT_STORY                                                                                                      \
    {                                                                                                                  \
        .lock = PTHREAD_MUTEX_INITIALIZER                                                                              \
    }
void kit_tell(void *context, const char *json);
bool kit_story_says(kit_story *story, const char *part);

#define kit_assert_ok(call, error)                                                                                     \
    do {                                                                                                               \
        if ((call) != DPI_OK)                                                                                          \
            fail_msg("%s: %s %s", #call, dpi_status_name((error).status), (error).message);                            \
    } while (0)
#define kit_assert_contains(text, part)                                                                                \
    do {                                                                                                               \
        if (!strstr((text), (part)))                                                                                   \
            fail_msg("\"%s\" does not say \"%s\"", (text), (part));                                                    \
    } while (0)

#endif
