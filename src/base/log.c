#include "base/log.h"

#include <stdio.h>

static void write_to_stderr(dpi_log_level level, const char *line)
{
    static const char *const names[] = {"", "error", "warning", "info", "debug"};
    fprintf(stderr, "dpinfer: %s: %s\n", names[level], line);
}

void log_line(const logger *log, dpi_log_level level, const char *format, ...)
{
    dpi_log_level limit = log && log->level ? log->level : DPI_LOG_WARNING;
    if (level > limit || level < DPI_LOG_ERROR)
        return;
    char line[2048];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    if (log && log->sink)
        log->sink(log->context, level, line);
    else
        write_to_stderr(level, line);
}
