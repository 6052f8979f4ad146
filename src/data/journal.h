/*
 * The journal of a run: which rows of its results are on disk. NAME.journal stands beside NAME.part and outlives a run
 * that was stopped; the same command then goes on where that one ended.
 *
 * A file of records, only ever appended to. Each carries a hash over itself and the hash of the record before it, so
 * that what a crash has torn, an older journal has left or somebody has changed ends the journal there: nothing behind
 * the first bad byte is believed, and going on cuts it off. The order of writes is the promise: data synced, then the
 * record, then its sync. Behind the line "dpinfer journal":
 *
 * - begin: run (16 random bytes, the same in the journals of all sinks of a run), inode of NAME.part, rows, facts;
 * - progress: ranges of finished rows, and the length of each text sink that holds them;
 * - bad rows: which of them could not be computed and are left out, and why; stands before the progress they are part
 * of;
 * - sealed: every row is on disk, and what each file looks like, so that a rename that was done is known.
 *
 * Facts are what decides the result, as pairs "key\0value\0": compared before going on, told when they differ.
 */
#ifndef DPI_DATA_JOURNAL_H
#define DPI_DATA_JOURNAL_H

#include "base/error.h"
#include "base/row_set.h"
#include "base/tensor.h"
#include "base/text.h"

/* What a file looks like, as far as that survives a rename and a reboot. */
typedef struct file_mark {
    uint64_t inode, bytes;
    int64_t changed_s, changed_ns;
} file_mark;
/* Of the open file `fd`, or of `path` where fd < 0 (a link is not followed); false with errno when it cannot be had. */
bool file_mark_of(int fd, const char *path, file_mark *mark);
bool file_mark_equal(const file_mark *a, const file_mark *b);

typedef struct journal_begin {
    unsigned char run[16];
    uint64_t part_inode, rows;
    const char *facts; /* owned by the journal, or borrowed by journal_create */
    size_t facts_bytes;
} journal_begin;

/* A row of the result that was left out. */
typedef struct journal_bad {
    uint64_t row;
    char *reason;
} journal_bad;

typedef struct journal journal;

/* Reads `path` if it is there and locks it. DPI_E_DATA: another run has it, or it is a file of somebody else (which is
 * never touched); DPI_E_IO: it cannot be read. */
dpi_status journal_open(const char *path, journal **out, dpi_error *error);
/* Frees and unlocks; the file stays. NULL is fine. */
void journal_close(journal *j);
const char *journal_path(const journal *j);

/* What was read: NULL when there is no journal, or none whose beginning is whole (journal_damaged tells which). */
const journal_begin *journal_begun(const journal *j);
bool journal_damaged(const journal *j);
/* Finished rows, a settled set within [0, rows). */
const row_set *journal_done(const journal *j);
/* Those of them that were left out, by row, each once; valid as long as the journal. */
const journal_bad *journal_bad_rows(const journal *j, size_t *count);
/* How many bytes of text sink i hold them; 0 where nothing was noted. */
uint64_t journal_text_bytes(const journal *j, size_t i);
/* The marks of all files of the run, NULL unless it is sealed. */
const file_mark *journal_sealed(const journal *j, size_t *count);

/* Makes the file anew (an old one is replaced), with its beginning, on disk when this returns. Where it fails the file
 * may hold anything. */
dpi_status journal_create(journal *j, const journal_begin *begin, dpi_error *error);
/* Cuts off what is not valid, to append behind it. */
dpi_status journal_go_on(journal *j, dpi_error *error);
/* Whether one of the two has been called, so that the file is no other run's any more, and whether one has succeeded,
 * so that it can be relied upon. */
bool journal_is_ours(const journal *j);
bool journal_is_written(const journal *j);
/* Rows that were left out, before the journal_add that tells of them as finished. */
dpi_status journal_add_bad(journal *j, const journal_bad *rows, size_t count, dpi_error *error);
/* The data must be synced before. `text` has one length for each of `count` sinks (0 for those that are no text). */
dpi_status journal_add(journal *j, const row_set *finished, const uint64_t *text, size_t count, dpi_error *error);
dpi_status journal_seal(journal *j, const file_mark *marks, size_t count, dpi_error *error);
/* Removes the file, if there is one. `durably`: it is gone from the disk too when this returns, as what it tells of may
 * be destroyed only then. */
dpi_status journal_remove(journal *j, bool durably, dpi_error *error);

/* Adds a fact. */
void journal_fact(text_buffer *facts, const char *key, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* The value of `key`, NULL when there is none. */
const char *journal_fact_find(const char *facts, size_t bytes, const char *key);
/* The first fact in which the two differ, or which one lacks (NULL value); false when they are the same. `but` (may be
 * NULL) is left out. */
bool journal_facts_differ(const char *then, size_t then_bytes, const char *now, size_t now_bytes, const char *but,
                          const char **key, const char **was, const char **is);

#endif
