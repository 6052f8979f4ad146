/* Filling in dpi_error, and unwinding on failure. */
#ifndef DPI_BASE_ERROR_H
#define DPI_BASE_ERROR_H

#include <dpinfer/dpinfer.h>
#include <stdarg.h>

/* Fills `error` (may be NULL) and returns `status`, so that a failing function ends with
 *     return error_set(error, DPI_E_DATA, "%s: the header is cut short; write the file again", path);
 * The sentence says what happened, to which file or device, and what to do next; no newline, no final full stop. */
#define error_set(error, status, ...) (error_fill((error), (status), __VA_ARGS__), error_same(status))

/* The same, with ": " and the text of errno value `number` appended. */
#define error_set_errno(error, status, number, ...)                                                                    \
    (error_fill_errno((error), (status), (number), __VA_ARGS__), error_same(status))

/* What the two are made of: macros around them, so that a compiler sees which status comes back. */
static inline dpi_status error_same(dpi_status status) { return status; }
void error_fill(dpi_error *error, dpi_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
void error_fill_errno(dpi_error *error, dpi_status status, int number, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Puts "text: " before the message that is there already; keeps and returns the status. For callers that know what
 * the callee could not: the file, the device. */
dpi_status error_prefix(dpi_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Empties `error` (may be NULL); returns DPI_OK. */
dpi_status error_clear(dpi_error *error);

#endif
