/* Messages to people. There is no global logger: each part is handed the one of its session or program. */
#ifndef DPI_BASE_LOG_H
#define DPI_BASE_LOG_H

#include <dpinfer/dpinfer.h>
#include <stdarg.h>

typedef struct logger {
    dpi_log_fn sink; /* NULL: standard error, as "dpinfer: warning: ..." */
    void *context;
    dpi_log_level level; /* lines above it are dropped; 0: warnings and errors */
} logger;

/* Formats one line and hands it to the sink. `log` may be NULL (standard error, warnings). Any thread. */
void log_line(const logger *log, dpi_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

#define log_error(log, ...)   log_line((log), DPI_LOG_ERROR, __VA_ARGS__)
#define log_warning(log, ...) log_line((log), DPI_LOG_WARNING, __VA_ARGS__)
#define log_info(log, ...)    log_line((log), DPI_LOG_INFO, __VA_ARGS__)
#define log_debug(log, ...)   log_line((log), DPI_LOG_DEBUG, __VA_ARGS__)

#endif
