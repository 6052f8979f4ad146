/*
 * Where rows go in shard mode. The caller creates and finishes a sink; workers write rows of a .npy sink by
 * themselves through its descriptor, and hand fixed-size records of a .csv sink to the caller, which formats them in
 * order.
 */
#ifndef DPI_DATA_SINK_H
#define DPI_DATA_SINK_H

#include "base/error.h"
#include "base/tensor.h"

typedef enum sink_kind {
    SINK_NONE, /* rows are dropped */
    SINK_NPY,  /* rows stand at their place in the file: offset + row * row_bytes */
    SINK_CSV,  /* top classes of each row as text; needs a numeric output of shape [N, classes] */
} sink_kind;

typedef struct sink sink;

typedef struct sink_options {
    const port *output;      /* what the model delivers: dtype and complete row shape */
    uint64_t rows;           /* of the result */
    size_t top;              /* SINK_CSV: classes per row, >= 1 */
    const char *labels_path; /* SINK_CSV: NULL: numbers */
    bool no_overwrite;
} sink_options;

/* Creates "FILE.npy", "FILE.csv" or "none": makes FILE.part (O_EXCL is not used: an old .part is replaced; a second
 * run on the same .part is refused by an advisory lock), writes the header, preallocates (a full disk is DPI_E_IO
 * here). A folder that does not exist or may not be written is DPI_E_DATA. */
dpi_status sink_create(const char *spec, const sink_options *options, sink **out, dpi_error *error);

sink_kind sink_kind_of(const sink *s);
const char *sink_spec(const sink *s);
int sink_fd(const sink *s);               /* SINK_NPY: what workers write to, else -1 */
uint64_t sink_data_offset(const sink *s); /* SINK_NPY: of row 0 */
size_t sink_record_bytes(const sink *s);  /* SINK_CSV: of one row's record, else 0 */

/* Whether the open file `fd` is the one that finishing will replace: a source that would be lost. */
bool sink_same_file(const sink *s, int fd);

/* Worker's side of a CSV sink: the top classes of `rows` rows of an output of `port`, one record per row.
 * A record is `top` pairs (uint32 class, float32 value), best first; ties go to the lower class; NaN counts as lowest.
 */
typedef struct sink_top {
    uint32_t class_index;
    float value;
} sink_top;
void sink_top_records(const port *output, const void *rows_data, size_t rows, size_t top, sink_top *records);

/* Caller's side: the records of rows [first, first + rows), called in row order without gaps. The text has a header
 * line `row,class,score` (top 1) or `row,class1,score1,class2,score2,...`; `first` counts from the source's own row. */
dpi_status sink_write_records(sink *s, uint64_t first_row, const sink_top *records, size_t rows, dpi_error *error);

/* Asks the kernel to begin writing what is dirty to disk, so that sink_finish has little left to wait for. May be
 * called at any time from the caller's side. */
void sink_write_back(const sink *s);

/* All rows are written: syncs, renames to the final name, syncs the folder. */
dpi_status sink_finish(sink *s, dpi_error *error);
/* Frees; an unfinished sink's .part is removed. NULL is fine. */
void sink_close(sink *s);

#endif
