/* Where rows come from in shard mode. A source is opened by the caller, which checks it, and again by each worker. */
#ifndef DPI_DATA_SOURCE_H
#define DPI_DATA_SOURCE_H

#include "base/error.h"
#include "base/tensor.h"
#include "data/spool.h"

typedef struct source source;

/* Opens one of (SHAPE is that of a row, without the row axis: "3x224x224", "" for single values)
 *   FILE.npy
 *   FILE.npz[:MEMBER]           the only member where none is named; "ids" and "ids.npy" are the same member. What is
 *                               stored is mapped in place, what is deflated is inflated into a sealed memfd
 *   raw:SHAPE:DTYPE:FILE        rows one after another, little-endian, nothing else in the file
 *   random:SHAPE:DTYPE:N[:SEED]
 *   -, raw:SHAPE:DTYPE:-        standard input, as .npy or raw; only with the `fd` that spool_stdin gives
 * DPI_E_DATA names the file and what is wrong: missing, cut short, no .npy, version, header too large (64 KiB), fortran
 * order, object or structured dtype, big-endian elements wider than a byte, negative or overflowing shape, no row axis;
 * an archive that is damaged, encrypted or has no such member; a raw file that does not end with a row.
 * Files are memory-mapped, read-only. `fd` >= 0 is used instead of opening the path again (it is dup'ed). */
dpi_status source_open(const char *spec, int fd, source **out, dpi_error *error);
/* Whether a spec asks for standard input. */
bool source_is_stdin(const char *spec);
/* Which source "FILE.npz" is for the input `port`: "FILE.npz:PORT" where it has a member of that name, else
 * "FILE.npz" where it has one member alone, else NULL. Any other spec is itself. *out is the caller's to free. */
dpi_status source_member_for(const char *spec, const char *port, char **out, dpi_error *error);
void source_close(source *s); /* NULL is fine */

/* The same for a run's caller, and sources of images besides (data/image_list.h): their rows follow the input `want`
 * and `preprocess` (may be NULL). Also DPI_E_ARGUMENT, where those do not fit; DPI_E_BACKEND: built without libarchive;
 * DPI_E_IO, DPI_CANCELLED: compressed tars, which are unpacked to a spool. */
typedef struct source_options {
    const port *want;
    const dpi_preprocess *preprocess;
    spool_limits spool; /* of compressed tars */
} source_options;
dpi_status source_open_for(const char *spec, const source_options *options, source **out, dpi_error *error);
/* A worker's: images by the index that the caller's source_fd is, and its source_spool_fd, which are dup'ed.
 * DPI_E_BACKEND: built without libvips; DPI_E_ARGUMENT: this process may not read their folder. */
dpi_status source_open_index(const char *spec, int fd, int spool_fd, source **out, dpi_error *error);

const port *source_port(const source *s); /* name "", dtype, rank, shape with shape[0] the number of rows */
uint64_t source_rows(const source *s);
const char *source_spec(const source *s);
/* What a worker opens the source by, together with source_fd: the spec, or what the caller has found out already. */
const char *source_worker_spec(const source *s);
int source_fd(const source *s);       /* where the rows are, or the index of images; -1 for random: */
int source_spool_fd(const source *s); /* where the images of compressed tars are; -1: there are none */
/* The file that the user has named: another one for inflated members, -1 for images and random: */
int source_file_fd(const source *s);

/* Rows [first, first + count) as dense memory: a pointer into the mapping where that is possible (*in_place true),
 * else `scratch` (count * row bytes, given by the caller) filled. Bounds are the caller's to keep (asserted).
 * A file that shrank after opening: the access raises SIGBUS; see sigbus.h. With `copy` always fills scratch and reads
 * by pread, so that a shrunk file is DPI_E_IO instead (thread isolation). */
dpi_status source_rows_at(source *s, uint64_t first, size_t count, void *scratch, bool copy, const void **rows,
                          bool *in_place, dpi_error *error);
/* Whether source_rows_at can do without scratch. */
bool source_is_mapped(const source *s);
/* Tells the kernel that rows from `first` on are next. */
void source_will_need(source *s, uint64_t first, uint64_t count);

/* Whether rows are dear to load: one by one, by source_row_load, and not by source_rows_at. */
bool source_is_dear(const source *s);
/* Memory of one thread that loads rows. Zero-initialise; row_scratch_free ends one. */
typedef struct row_scratch {
    void *file;
    unsigned char *pixels;
    size_t file_bytes, pixel_bytes;
} row_scratch;
void row_scratch_free(row_scratch *scratch);
/* Fills one row. DPI_E_DATA: it is bad, by no fault of others, and the message has its name and why. Any thread of a
 * process that source_open_index has opened it in. */
dpi_status source_row_load(const source *s, uint64_t row, void *to, row_scratch *scratch, dpi_error *error);

/* What its file says of `bytes` bytes of source_fd from `offset` on, all rows among them, and nobody has compared. */
typedef struct source_promise {
    uint64_t offset, bytes;
    uint32_t crc; /* zip_crc */
} source_promise;
bool source_promises(const source *s, source_promise *promise); /* false: nothing */

/* For a journal: what tells of all that decides its rows. NULL: the file of source_file_fd does, or the
 * spec. */
const char *source_fact(const source *s);
/* What is wrong with it as a whole though its rows are there (a tar that was cut short); NULL: nothing. */
const char *source_warning(const source *s);
/* Real paths of the folders that hold its files, malloc'd, in malloc'd memory that ends with NULL; NULL when out of
 * memory. Empty for what is no source of images. Where there are many folders it is one that holds them all. */
char **source_folders(const char *spec);

/* The name of a row: of an image the file's, as it was listed; of a tar the sample's key. NULL where rows have none.
 * It stands in `buffer` or in the source, and holds whatever bytes the file system had: perhaps no UTF-8, perhaps
 * blanks, quotes or line ends. A name that does not fit is cut. Any thread. */
#define SOURCE_NAME_SIZE 4352
const char *source_row_name(const source *s, uint64_t row, char buffer[SOURCE_NAME_SIZE]);

/* The address range of the mapping, for the SIGBUS handler; false when there is none. */
bool source_mapping(const source *s, const void **start, size_t *bytes);

#endif
