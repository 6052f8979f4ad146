/* What the files on dpi_run share: run.c (sources, sinks, chunks), run_journal.c (what makes it resumable). */
#ifndef DPI_RUNTIME_RUN_H
#define DPI_RUNTIME_RUN_H

#include "base/hash.h"
#include "data/journal.h"
#include "data/sink.h"
#include "data/source.h"
#include "runtime/run_check.h"
#include "runtime/session.h"

#define CHUNKS_IN_FLIGHT 3

/* A batch of consecutive rows of the result. Its slot and sequence say where its claim words stand, also after its end:
 * words of a later batch carry another sequence. */
typedef struct run_chunk {
    dpi_ticket ticket;
    uint64_t at, rows;
    int slot; /* -1: it has ended before we could look */
    uint32_t sequence;
} run_chunk;

typedef struct run {
    dpi_session *s;
    const dpi_run_options *o;
    source *sources[PORT_MAX];
    sink *sinks[PORT_MAX];
    int64_t in[PORT_MAX][DPI_MAX_RANK], out[PORT_MAX][DPI_MAX_RANK];
    size_t record_bytes[PORT_MAX];
    bool hands_over[PORT_MAX], hands_any; /* outputs whose rows the caller takes */
    const source *names;                  /* one of sources; NULL: rows have none */
    char stdin_content[HASH_HEX_SIZE];    /* the hash of what was read from a pipe; "" where none was */
    bool stdin_taken;
    uint64_t first_row, rows, chunk_rows;
    uint32_t job;
    bool has_text, dear; /* dear: a source's rows are to load */
    bool in_order; /* rows come through the outputs arena and are written here, in order: text, take_rows, or strict
                      isolation */
    int64_t began_ns, shown_ns, written_back_ns;
    uint64_t *base_rows, *worker_rows; /* rows of each worker before the run, and since */
    bool cancelled, bad_rows;

    run_chunk chunks[CHUNKS_IN_FLIGHT]; /* a ring, in order of rows */
    size_t head, in_flight;
    uint64_t written; /* in_order: all rows before it are in the sinks */
    run_check *check; /* NULL: nothing to compare, or not every row is read */

    /* ---- run_journal.c ---- */
    journal *journals[PORT_MAX]; /* one for each sink with a file; the first is the one with the records */
    int lead;                    /* its index, -1: no journal is kept */
    text_buffer facts;
    unsigned char id[16];
    row_set done;         /* rows whose slices are done, on disk or not yet */
    row_set fresh;        /* those that the journal does not know yet */
    row_set todo_without; /* rows that an earlier run has finished */
    uint64_t resumed_rows;
    size_t noted_bad; /* of the session's run_bad, those that the journal tells of */
    bool going_on;    /* with an earlier run's rows */
    bool begun;       /* the sinks are; before, what an earlier run has left is as it was */
    bool started;     /* rows are being computed, or were by an earlier run: what there is may be worth keeping */
    bool sealed;      /* every row is on disk, and the journal knows; what is missing is renames */
    int64_t recorded_ns, record_took_ns;
    uint64_t recorded_rows; /* those of `done` that the journal tells of, on disk */
} run;

/* Sinks are open. Reads their journals, compares, and begins each sink or goes on with it; then tells of the rows that
 * the earlier run has left out. DPI_E_DATA where something has changed: nothing on disk is touched then. */
dpi_status run_begin_sinks(run *r, dpi_error *error);
/* Rows of the result that are finished. */
dpi_status run_note_done(run *r, uint64_t begin, uint64_t end, dpi_error *error);
/* The finished slices of a chunk, also of one that has ended otherwise than well. */
dpi_status run_note_chunk(run *r, const run_chunk *chunk, dpi_error *error);
/* Looks at the chunks in flight, and about once a second makes what is finished durable. `now`: in any case. */
dpi_status run_record(run *r, bool now, dpi_error *error);
/* Every row is done: syncs, seals where several files are to be renamed, renames, removes the journals. */
dpi_status run_finish_sinks(run *r, dpi_error *error);
/* Closes sinks and journals; keeps them where the same command can go on, and says so in `error`. */
void run_close_sinks(run *r, dpi_status status, dpi_error *error);
/* in_order: writes the leading finished rows of the first chunk in flight to the sinks. run.c */
dpi_status run_write(run *r, dpi_error *error);

/* ---- run_rows.c ---- */
/* Whether what the options say of outputs that the caller takes can be: DPI_E_ARGUMENT. Sinks are open. */
dpi_status run_check_rows(const run *r, dpi_error *error);
/* Hands rows [begin, end) of the result over, which stand in `chunk`. */
dpi_status run_hand_over(run *r, const run_chunk *chunk, uint64_t begin, uint64_t end, dpi_error *error);

/* ---- batch_done.c ---- */
/* Where the words of a chunk stand. */
void batch_where(dpi_session *s, dpi_ticket ticket, int *slot, uint32_t *sequence);
/* Calls for each run of consecutive slices of a chunk that are DONE, `slices` of them in all; stops when it says false.
 * `terminal` (may be NULL): whether every slice is DONE or BAD, or was: the slot is another batch's by now. Words of
 * another batch count as neither. */
void batch_done_slices(const dpi_session *s, int slot, uint32_t sequence, uint32_t slices,
                       bool (*each)(void *context, uint32_t first, uint32_t end), void *context, bool *terminal);

#endif
