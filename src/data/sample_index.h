/*
 * Which images a run has: made by the caller, who looks at folders, lists and tars once, and handed to the workers as
 * one sealed memfd. Fixed widths and offsets; whoever opens one checks it.
 */
#ifndef DPI_DATA_SAMPLE_INDEX_H
#define DPI_DATA_SAMPLE_INDEX_H

#include "base/error.h"
#include "base/hash.h"
#include "base/text.h"
#include "data/image_plan.h"
#include "data/spool.h"

/* A string is its offset among the strings, 0 for none. */
typedef struct sample_row {
    uint64_t offset, bytes; /* of the image within a tar or the spool */
    uint32_t path, name;    /* of the file; of the row */
    uint32_t problem;       /* why the row is bad already */
    uint32_t place;         /* sample_place */
} sample_row;

typedef enum sample_place {
    SAMPLE_IS_FILE,
    SAMPLE_IN_TAR,
    SAMPLE_IN_SPOOL, /* its tar is compressed */
} sample_place;

/* Being made. Zero-initialise; sample_list_free ends one. */
typedef struct sample_list {
    sample_row *rows;
    size_t count, capacity;
    text_buffer strings;
    hash_state *marks; /* of the files: sizes and times */
    char *warning;     /* malloc'd: what is wrong with the source as a whole */
    spool spool;       /* images of compressed tars, one after another; zero where there are none */
    bool failed;       /* out of memory, or more than 4 GiB of names */
} sample_list;

uint32_t sample_text(sample_list *list, const char *text);
void sample_add(sample_list *list, sample_row row);
/* What the file looks like now; a file that is not there is marked as such. */
void sample_mark(sample_list *list, const char *path);
void sample_list_free(sample_list *list);

typedef struct sample_index {
    int fd;
    const unsigned char *map;
    size_t bytes;
    const image_plan *plan;
    const sample_row *rows;
    uint64_t count;
    const char *strings, *base; /* base: the folder that relative paths start from */
    size_t string_bytes;
} sample_index;

dpi_status sample_index_make(const sample_list *list, const image_plan *plan, sample_index *index, dpi_error *error);
/* `fd` is dup'ed. DPI_E_DATA: it is no index. */
dpi_status sample_index_open(int fd, sample_index *index, dpi_error *error);
void sample_index_close(sample_index *index);
/* NULL for none. */
const char *sample_string(const sample_index *index, uint32_t offset);
/* Everything that decides what the rows are, but for the marks. */
hash128 sample_index_hash(const sample_index *index);

#endif
