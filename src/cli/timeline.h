/* What every device did over the time of a run, for `run --json`: at most TIMELINE_MOST looks, further apart the longer
 * the run is. */
#ifndef DPI_CLI_TIMELINE_H
#define DPI_CLI_TIMELINE_H

#include <dpinfer/dpinfer.h>
#include <jansson.h>

#define TIMELINE_MOST 240

typedef struct timeline timeline;

timeline *timeline_new(void); /* NULL when out of memory: the functions below then do nothing */
void timeline_free(timeline *t);
/* Looks at the session, when the last look is long enough ago, or `now`. */
void timeline_look(timeline *t, dpi_session *s, double seconds, bool now);
/* [{"s": 1.2, "devices": [[rows, load, copy_in, compute, copy_out], ...]}, ...]: rows and seconds since the first look,
 * which is all zeros. */
json_t *timeline_json(const timeline *t);
/* What each device did in all, by its name: [{"device", "rows", "slices", "stolen", "load", ...}], seconds. */
json_t *timeline_devices(dpi_session *s, const dpi_description *d);

#endif
