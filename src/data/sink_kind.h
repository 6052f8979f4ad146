/* The inside of sinks. */
#ifndef DPI_DATA_SINK_KIND_H
#define DPI_DATA_SINK_KIND_H

#include "base/text.h"
#include "data/sink.h"

struct sink {
    sink_kind kind;
    char *spec, *part; /* final name and FILE.part */
    int fd;
    bool finished, made, ours; /* made: by sink_open; ours: begun or resumed, its content is this run's */
    bool lost;                 /* a sync has failed */
    bool no_overwrite;
    char *labels_path;
    port output;
    uint64_t rows, data_offset;
    /* .csv */
    size_t top;
    char **labels;
    size_t label_count;
    char *label_text;
    uint64_t written; /* bytes in the file */
    text_buffer buffer;
};

/* Reads the labels and writes the header line. */
dpi_status sink_csv_start(sink *s, dpi_error *error);
/* Whether the file may grow to `bytes`: past RLIMIT_FSIZE the kernel would send a signal that ends the program. */
dpi_status sink_check_limit(const sink *s, uint64_t bytes, dpi_error *error);
/* Writes what is buffered. */
dpi_status sink_csv_flush(sink *s, dpi_error *error);

#endif
