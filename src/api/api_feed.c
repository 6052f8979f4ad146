/* The public functions of feeds and producers: argument checks, then one call into the runtime. */
#include "base/clock.h"
#include "runtime/feed.h"

#include <string.h>

#define CHECK(condition, ...)                                                                                          \
    do {                                                                                                               \
        if (!(condition))                                                                                              \
            return error_set(error, DPI_E_ARGUMENT, __VA_ARGS__);                                                      \
    } while (0)

static dpi_status settled(dpi_status status, dpi_error *error) { return status ? status : error_clear(error); }

DPI_API dpi_status dpi_feed_open(dpi_session *session, const dpi_feed_options *options, dpi_feed **feed,
                                 dpi_error *error)
{
    CHECK(session && options && feed, "dpi_feed_open: an argument is NULL");
    *feed = NULL;
    CHECK(options->struct_size == sizeof *options,
          "dpi_feed_options.struct_size is %zu; set it to sizeof(dpi_feed_options)", options->struct_size);
    CHECK(options->inputs || !options->input_count, "dpi_feed_open: inputs is NULL");
    dpi_status status = session_usable(session, error);
    dpi_error local;
    return status ? status : settled(feed_open(session, options, feed, error ? error : &local), error);
}

DPI_API dpi_status dpi_feed_connect(dpi_feed *feed, int *socket, dpi_error *error)
{
    CHECK(feed && socket, "dpi_feed_connect: an argument is NULL");
    return settled(feed_connect(feed, socket, error), error);
}

DPI_API dpi_status dpi_feed_next(dpi_feed *feed, int64_t timeout_ms, dpi_range *range, dpi_tensor *inputs,
                                 dpi_error *error)
{
    CHECK(feed && range && inputs, "dpi_feed_next: an argument is NULL");
    return settled(feed_next(feed, clock_deadline_ns(timeout_ms), range, inputs, error), error);
}

DPI_API dpi_status dpi_feed_release(dpi_feed *feed, uint64_t index, dpi_error *error)
{
    CHECK(feed, "dpi_feed_release: feed is NULL");
    return settled(feed_release(feed, index, error), error);
}

DPI_API void dpi_feed_close(dpi_feed *feed) { feed_close(feed); }

DPI_API dpi_status dpi_producer_open(int socket, dpi_producer **producer, dpi_error *error)
{
    CHECK(producer, "dpi_producer_open: producer is NULL");
    *producer = NULL;
    CHECK(socket >= 0, "dpi_producer_open: %d is no descriptor", socket);
    return settled(producer_open(socket, producer, error), error);
}

DPI_API size_t dpi_producer_inputs(const dpi_producer *producer) { return producer ? producer_inputs(producer) : 0; }

DPI_API dpi_status dpi_producer_reserve(dpi_producer *producer, int64_t timeout_ms, dpi_range *range,
                                        dpi_tensor *inputs, dpi_error *error)
{
    CHECK(producer && range && inputs, "dpi_producer_reserve: an argument is NULL");
    return settled(producer_reserve(producer, clock_deadline_ns(timeout_ms), range, inputs, error), error);
}

DPI_API dpi_status dpi_producer_fill(dpi_producer *producer, const dpi_range *range, bool last, dpi_error *error)
{
    CHECK(producer && range, "dpi_producer_fill: an argument is NULL");
    return settled(producer_fill(producer, range, last, error), error);
}

DPI_API dpi_status dpi_producer_fail(dpi_producer *producer, const dpi_range *range, const char *message,
                                     dpi_error *error)
{
    CHECK(producer && range && message, "dpi_producer_fail: an argument is NULL");
    return settled(producer_fail(producer, range, message, error), error);
}

DPI_API void dpi_producer_close(dpi_producer *producer) { producer_close(producer); }
