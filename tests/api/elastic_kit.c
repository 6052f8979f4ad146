#include "elastic_kit.h"

#include "runtime/session.h"

dpi_options elastic_options(kit_story *story)
{
    dpi_options o = DPI_INIT(dpi_options);
    o.batch = 2;
    o.slice_timeout_ms = 5000;
    o.event = story ? kit_tell : NULL;
    o.event_context = story;
    return o;
}

/* Options `key` = `value` of worker `w` alone, one after another. */
void elastic_set(dpi_options *o, dpi_key_value *list, const char *key, const char *value)
{
    list[o->backend_option_count++] = (dpi_key_value){key, value};
    o->backend_options = list;
}

dpi_stats_data elastic_stats(const kit *k, dpi_worker_stats *workers, size_t count)
{
    dpi_error error;
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    stats.workers = workers;
    stats.worker_count = count;
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    return stats;
}

uint64_t elastic_slices(const kit *k, size_t w)
{
    dpi_worker_stats workers[16];
    assert_true(w < elastic_stats(k, workers, 16).worker_count);
    return workers[w].slices;
}

bool elastic_is_busy(const kit *k, size_t w) { return atomic_load(&k->s->workers[w].page->busy_since_ns) != 0; }

dpi_description elastic_describe(const kit *k)
{
    dpi_error error;
    dpi_description d = DPI_INIT(dpi_description);
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    return d;
}

void elastic_add(const kit *k, const char *devices)
{
    dpi_error error = {.status = DPI_E_INTERNAL, .message = "stale"};
    kit_assert_ok(dpi_device_add(k->s, devices, 0, &error), error);
    assert_string_equal(error.message, "");
}

void elastic_remove(const kit *k, const char *devices)
{
    dpi_error error = {.status = DPI_E_INTERNAL, .message = "stale"};
    kit_assert_ok(dpi_device_remove(k->s, devices, 0, &error), error);
    assert_string_equal(error.message, "");
}

void elastic_refused(dpi_status got, dpi_status wanted, const dpi_error *error, const char *part)
{
    if (got != wanted || error->status != wanted)
        fail_msg("%s instead of %s: %s", dpi_status_name(got), dpi_status_name(wanted), error->message);
    kit_assert_contains(error->message, part);
}

/* Forwards batches until worker w has computed something. */
void elastic_use(const kit *k, size_t w, size_t rows)
{
    uint64_t before = elastic_slices(k, w);
    double until = kit_now_s() + 30;
    for (uint64_t i = 0; elastic_slices(k, w) == before && kit_now_s() < until; i++)
        kit_forward(k, rows, i);
    assert_true(elastic_slices(k, w) > before);
}

size_t elastic_count(kit_story *story, const char *part)
{
    size_t count = 0;
    pthread_mutex_lock(&story->lock);
    for (const char *at = story->text; (at = strstr(at, part)); at++)
        count++;
    pthread_mutex_unlock(&story->lock);
    return count;
}

void elastic_submit(const kit *k, elastic_queue *q, size_t rows)
{
    dpi_error error = {0};
    for (uint64_t i = 0; i < ELASTIC_BATCHES; i++) {
        q->batches[i] = kit_batch_new(k, rows, i, 3);
        kit_assert_ok(kit_submit(k, q->batches[i], false, 0, &q->tickets[i], &error), error);
    }
}

void elastic_check(const kit *k, elastic_queue *q)
{
    dpi_error error = {0};
    for (size_t i = 0; i < ELASTIC_BATCHES; i++) {
        kit_assert_ok(dpi_wait(k->s, q->tickets[i], 60000, NULL, 0, &error), error);
        kit_batch_check(q->batches[i], NULL);
        kit_batch_free(q->batches[i]);
    }
}
