#include "cli/timeline.h"

#include <stdlib.h>
#include <string.h>

#define WORKERS    256
#define NUMBERS    5
#define FIRST_STEP 0.05

typedef struct moment {
    double seconds, (*of)[NUMBERS]; /* of each device */
    size_t count;
} moment;

struct timeline {
    moment moments[TIMELINE_MOST];
    size_t count;
    double step, next;
    double base[WORKERS][NUMBERS];
};

timeline *timeline_new(void)
{
    timeline *t = calloc(1, sizeof *t);
    if (t)
        t->step = FIRST_STEP;
    return t;
}

void timeline_free(timeline *t)
{
    for (size_t i = 0; t && i < t->count; i++)
        free(t->moments[i].of);
    free(t);
}

/* Every other look goes, and the next ones are twice as far apart. */
static void thin_out(timeline *t)
{
    size_t kept = 0;
    for (size_t i = 0; i < t->count; i++)
        if (i % 2)
            free(t->moments[i].of);
        else
            t->moments[kept++] = t->moments[i];
    t->count = kept;
    t->step *= 2;
}

static size_t look(dpi_session *s, double of[WORKERS][NUMBERS])
{
    dpi_worker_stats workers[WORKERS];
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    stats.workers = workers;
    stats.worker_count = WORKERS;
    if (dpi_stats(s, &stats, NULL))
        return 0;
    size_t count = stats.worker_count < WORKERS ? stats.worker_count : WORKERS;
    for (size_t w = 0; w < count; w++) {
        of[w][0] = (double)workers[w].rows;
        of[w][1] = (double)workers[w].load_ns * 1e-9;
        of[w][2] = (double)workers[w].copy_in_ns * 1e-9;
        of[w][3] = (double)workers[w].compute_ns * 1e-9;
        of[w][4] = (double)workers[w].copy_out_ns * 1e-9;
    }
    return count;
}

void timeline_look(timeline *t, dpi_session *s, double seconds, bool now)
{
    double of[WORKERS][NUMBERS];
    if (!t || (!now && seconds < t->next))
        return;
    size_t count = look(s, of);
    if (!t->count)
        memcpy(t->base, of, count * sizeof of[0]);
    if (t->count == TIMELINE_MOST)
        thin_out(t);
    t->next = seconds + t->step;
    moment *m = &t->moments[t->count];
    *m = (moment){.seconds = seconds, .of = malloc((count + 1) * sizeof *m->of), .count = count};
    if (!m->of)
        return;
    memcpy(m->of, of, count * sizeof *m->of);
    t->count++;
}

json_t *timeline_json(const timeline *t)
{
    json_t *all = json_array();
    for (size_t i = 0; t && i < t->count; i++) {
        json_t *devices = json_array();
        for (size_t w = 0; w < t->moments[i].count; w++) {
            json_t *numbers = json_array();
            for (int n = 0; n < NUMBERS; n++)
                json_array_append_new(numbers, json_real(t->moments[i].of[w][n] - t->base[w][n]));
            json_array_append_new(devices, numbers);
        }
        json_array_append_new(all, json_pack("{s:f, s:o}", "s", t->moments[i].seconds, "devices", devices));
    }
    return all;
}

json_t *timeline_devices(dpi_session *s, const dpi_description *d)
{
    dpi_worker_stats workers[WORKERS];
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    stats.workers = workers;
    stats.worker_count = WORKERS;
    json_t *all = json_array();
    if (dpi_stats(s, &stats, NULL))
        return all;
    for (size_t w = 0; w < stats.worker_count && w < WORKERS && w < d->worker_count; w++) {
        const dpi_worker_stats *k = &workers[w];
        json_array_append_new(
            all, json_pack("{s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:i}", "device", d->workers[w].device, "rows",
                           (json_int_t)k->rows, "slices", (json_int_t)k->slices, "stolen", (json_int_t)k->stolen,
                           "waiting", (double)k->wait_ns * 1e-9, "load", (double)k->load_ns * 1e-9, "copy_in",
                           (double)k->copy_in_ns * 1e-9, "compute", (double)k->compute_ns * 1e-9, "copy_out",
                           (double)k->copy_out_ns * 1e-9, "generation", (int)d->workers[w].generation));
    }
    return all;
}
