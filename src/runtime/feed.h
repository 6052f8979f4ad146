/* Producers: other processes that write rows straight into a session's inputs. The public functions of feeds (caller's
 * side) and producers (the other side) are described in dpinfer.h; these are they, after argument checks. */
#ifndef DPI_RUNTIME_FEED_H
#define DPI_RUNTIME_FEED_H

#include "runtime/session.h"

dpi_status feed_open(dpi_session *s, const dpi_feed_options *o, dpi_feed **feed, dpi_error *error);
dpi_status feed_connect(dpi_feed *feed, int *socket, dpi_error *error);
dpi_status feed_next(dpi_feed *feed, int64_t deadline_ns, dpi_range *range, dpi_tensor *inputs, dpi_error *error);
dpi_status feed_release(dpi_feed *feed, uint64_t index, dpi_error *error);
void feed_close(dpi_feed *feed);

dpi_status producer_open(int socket, dpi_producer **producer, dpi_error *error);
dpi_status producer_reserve(dpi_producer *p, int64_t deadline_ns, dpi_range *range, dpi_tensor *inputs,
                            dpi_error *error);
dpi_status producer_fill(dpi_producer *p, const dpi_range *range, bool last, dpi_error *error);
dpi_status producer_fail(dpi_producer *p, const dpi_range *range, const char *message, dpi_error *error);
size_t producer_inputs(const dpi_producer *p);
void producer_close(dpi_producer *p);

#endif
