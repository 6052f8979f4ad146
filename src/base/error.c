#include "base/error.h"

#include <stdio.h>
#include <string.h>

static void fill(dpi_error *error, dpi_status status, const char *format, va_list arguments)
{
    if (!error)
        return;
    error->status = status;
    vsnprintf(error->message, sizeof error->message, format, arguments);
}

void error_fill(dpi_error *error, dpi_status status, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fill(error, status, format, arguments);
    va_end(arguments);
}

void error_fill_errno(dpi_error *error, dpi_status status, int number, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fill(error, status, format, arguments);
    va_end(arguments);
    if (error) {
        char buffer[128];
        const char *text = strerror_r(number, buffer, sizeof buffer); /* GNU's */
        size_t used = strlen(error->message);
        snprintf(error->message + used, sizeof error->message - used, ": %s", text);
    }
}

dpi_status error_prefix(dpi_error *error, const char *format, ...)
{
    if (!error)
        return DPI_E_INTERNAL;
    char old[sizeof error->message];
    memcpy(old, error->message, sizeof old);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    size_t used = strlen(error->message);
    snprintf(error->message + used, sizeof error->message - used, ": %s", old);
    return error->status;
}

dpi_status error_clear(dpi_error *error)
{
    if (error) {
        error->status = DPI_OK;
        error->message[0] = 0;
    }
    return DPI_OK;
}
