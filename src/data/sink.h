/*
 * Where rows go in shard mode. The caller creates and finishes a sink; workers write rows of a .npy or .npz sink by
 * themselves through its descriptor, and hand fixed-size records of a text sink (.csv, .jsonl) to the caller, which
 * formats them in order.
 */
#ifndef DPI_DATA_SINK_H
#define DPI_DATA_SINK_H

#include "base/error.h"
#include "base/tensor.h"
#include "data/journal.h"
#include "data/source.h"

typedef enum sink_kind {
    SINK_NONE,  /* rows are dropped */
    SINK_NPY,   /* rows stand at their place in the file: offset + row * row_bytes */
    SINK_NPZ,   /* the same, in an archive with a member for each output */
    SINK_CSV,   /* top classes of each row as text; needs a numeric output of shape [N, classes] */
    SINK_JSONL, /* the same as one JSON object a line */
} sink_kind;

typedef struct sink sink;

typedef struct sink_options {
    const port *output;      /* what the model delivers: dtype and complete row shape */
    uint64_t rows;           /* of the result */
    size_t top;              /* text: classes per row, >= 1 */
    const char *labels_path; /* text: NULL: numbers */
    const source *names;     /* text: names the rows (of the source: first_row of sink_write_records); NULL: none does.
                                Borrowed until sink_close */
    bool no_overwrite;
} sink_options;

/* Opens "FILE.npy", "FILE.npz", "FILE.csv", "FILE.jsonl" or "none": takes FILE.part for this run alone (a second run is
 * refused by an advisory lock; one whose workers are just dying is waited for) and leaves what is in it as it is. A
 * folder that does not exist or may not be written is DPI_E_DATA. Then one of the three below. */
dpi_status sink_open(const char *spec, const sink_options *options, sink **out, dpi_error *error);
/* A sink for one more output of the archive of `file` (SINK_NPZ, opened and not begun), closed like any other. What it
 * has not: a file of its own (sink_has_file); of the calls below those on the file do nothing. */
dpi_status sink_join(sink *file, const sink_options *options, sink **out, dpi_error *error);
/* DPI_E_DATA where FILE exists and is not to be overwritten. */
dpi_status sink_check_overwrite(const sink *s, dpi_error *error);
/* Begins anew: empties FILE.part, writes the header, preallocates (a full disk is DPI_E_IO here). */
dpi_status sink_begin(sink *s, dpi_error *error);
/* Goes on with what another run has left in FILE.part, which must be the file `inode` and hold what it ought to; text
 * is cut to `text_bytes`. DPI_E_DATA when it is another file. */
dpi_status sink_resume(sink *s, uint64_t inode, uint64_t text_bytes, dpi_error *error);
/* Every row was on disk when another run ended, and the file looked like `mark`: whether FILE itself is that file
 * (then the sink is finished), or FILE.part still is (then sink_finish is what is left). DPI_E_DATA: neither. */
dpi_status sink_adopt(sink *s, const file_mark *mark, dpi_error *error);
/* sink_open and sink_begin in one. */
dpi_status sink_create(const char *spec, const sink_options *options, sink **out, dpi_error *error);

sink_kind sink_kind_of(const sink *s);
const char *sink_spec(const sink *s);
const char *sink_part(const sink *s);           /* FILE.part */
bool sink_mark(const sink *s, file_mark *mark); /* of FILE.part as it is now */
bool sink_has_file(const sink *s);              /* one to be finished: neither none nor joined */
bool sink_is_text(const sink *s);
int sink_fd(const sink *s);               /* what workers write rows to, -1: they do not */
uint64_t sink_data_offset(const sink *s); /* of row 0 there, once it is begun */
size_t sink_record_bytes(const sink *s);  /* text: of one row's record, else 0 */

/* Whether the open file `fd` is the one that finishing will replace: a source that would be lost. */
bool sink_same_file(const sink *s, int fd);

/* Worker's side of a text sink: the top classes of `rows` rows of an output of `port`, one record per row.
 * A record is `top` pairs (uint32 class, float32 value), best first; ties go to the lower class; NaN counts as lowest.
 */
typedef struct sink_top {
    uint32_t class_index;
    float value;
} sink_top;
void sink_top_records(const port *output, const void *rows_data, size_t rows, size_t top, sink_top *records);

/* Caller's side: the records of rows [first, first + rows), called in row order without gaps; `first` counts from the
 * source's own row. CSV (RFC 4180, but with LF) has a header line `row,class,score` (top 1) or
 * `row,class1,score1,class2,score2,...`, with a column `name` behind `row` where rows have names. A JSON line is
 * {"row": 7, "name": "a.jpg", "top": [{"class": 3, "label": "cat", "score": 0.5}, ...]}; `name` and `label` where there
 * are some, a score that is no finite number is null, bytes that are no UTF-8 are U+FFFD. */
dpi_status sink_write_records(sink *s, uint64_t first_row, const sink_top *records, size_t rows, dpi_error *error);

/* Asks the kernel to begin writing what is dirty to disk, so that sink_finish has little left to wait for. May be
 * called at any time from the caller's side. */
void sink_write_back(const sink *s);

/* All rows are written: what is derived from them (checksums of an archive, for which it is read once more). Before the
 * last sink_sync; sink_finish does it where it was not called. */
dpi_status sink_complete(sink *s, dpi_error *error);
/* What was written by now is on disk when this returns; *text_bytes is then how much text that is (0: no text). Where
 * it has failed once it fails for good: what the kernel could not write it may forget, and a later sync succeeds. */
dpi_status sink_sync(sink *s, uint64_t *text_bytes, dpi_error *error);
/* All rows are written: syncs, renames to the final name, syncs the folder. Nothing where it is finished already. With
 * no_overwrite a file that has that name by then stays, and it is DPI_E_IO. */
dpi_status sink_finish(sink *s, dpi_error *error);
bool sink_finished(const sink *s); /* the final name has been given */
/* Nobody writes any more: sink_close gives the file free for other runs, also where a process that was given its
 * descriptor still has it (a worker that does not get to leaving). Without this they wait until the last one is gone.
 */
void sink_nobody_writes(sink *s);
/* Frees. What is unfinished stays as FILE.part with `keep`, and is removed without; of what was only opened, a
 * FILE.part of an earlier run stays and one that was not there before is removed, either way. NULL is fine. */
void sink_close(sink *s, bool keep);

#endif
