/* The inside of sinks. */
#ifndef DPI_DATA_SINK_KIND_H
#define DPI_DATA_SINK_KIND_H

#include "base/text.h"
#include "data/sink.h"

typedef struct sink_format {
    void (*header)(sink *s); /* NULL: none */
    void (*row)(sink *s, uint64_t row, const char *name, const sink_top *best);
} sink_format;

struct sink {
    sink_kind kind;
    char *spec, *part; /* final name and FILE.part */
    int fd;
    bool quiet;                /* sink_nobody_writes */
    bool finished, made, ours; /* made: by sink_open; ours: begun or resumed, its content is this run's */
    bool lost;                 /* a sync has failed */
    bool no_overwrite;
    char *labels_path;
    port output;
    uint64_t rows, data_offset;
    /* .npz */
    sink *archive;           /* of a sink that joined: the one with the file; it has no fd of its own */
    sink *members[PORT_MAX]; /* of the one with the file: itself, and those that joined */
    size_t member_count;
    uint64_t header_offset, header_bytes; /* of this member: up to row 0 */
    bool complete;
    /* .csv, .jsonl */
    const sink_format *format;
    const source *names; /* NULL: rows have none */
    size_t top;
    char **labels;
    size_t label_count;
    char *label_text;
    uint64_t written; /* bytes in the file */
    text_buffer buffer;
};

extern const sink_format sink_csv, sink_jsonl;

/* ---- sink.c ---- */
/* Whether the file may grow to `bytes`: past RLIMIT_FSIZE the kernel would send a signal that ends the program. */
dpi_status sink_check_limit(const sink *s, uint64_t bytes, dpi_error *error);
/* All of the file's blocks now, so that a full disk is an error here and not a signal or a hole later. */
dpi_status sink_preallocate(sink *s, uint64_t bytes, dpi_error *error);
dpi_status sink_another_part(const sink *s, dpi_error *error);

/* ---- sink_text.c ---- */
/* Reads the labels, checks that the output is one of scores, and buffers the header. */
dpi_status sink_text_start(sink *s, dpi_error *error);
/* Goes on behind the first `text_bytes` of the file. */
dpi_status sink_text_resume(sink *s, uint64_t text_bytes, dpi_error *error);
/* Writes what is buffered. */
dpi_status sink_text_flush(sink *s, dpi_error *error);
/* The shortest form of a finite number that reads back as the same float. */
void sink_text_score(sink *s, float value);

/* ---- sink_npz.c ---- */
/* Reserves the file and writes the members' headers; every member then knows where its rows stand. */
dpi_status sink_npz_start(sink *s, dpi_error *error);
/* DPI_E_DATA where FILE.part is not what sink_npz_start has made. */
dpi_status sink_npz_resume(sink *s, dpi_error *error);
/* Reads all rows again for their checksums, and writes these and the directory. */
dpi_status sink_npz_complete(sink *s, dpi_error *error);

#endif
