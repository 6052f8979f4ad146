/* Shapes and dtypes: what a model's inputs and outputs look like, and checked arithmetic on them. */
#ifndef DPI_BASE_TENSOR_H
#define DPI_BASE_TENSOR_H

#include <dpinfer/dpinfer.h>
#include <stdbool.h>

#define PORT_NAME_SIZE 256
#define PORT_MAX       64 /* inputs, and outputs, of one model at most */

/* One input or output of a model. shape[0] is the row axis (-1: free, > 0: fixed by the model); other axes are > 0,
 * or -1 where the data decides. rank is at least 1 for everything that is split by rows. */
typedef struct port {
    char name[PORT_NAME_SIZE];
    dpi_dtype dtype;
    int rank;
    int64_t shape[DPI_MAX_RANK];
} port;

typedef struct signature {
    port inputs[PORT_MAX], outputs[PORT_MAX];
    size_t input_count, output_count;
} signature;

/* Elements of shape[from..rank), or false: an axis is negative or the product overflows. */
bool shape_elements(const int64_t *shape, int from, int rank, size_t *elements);
/* Bytes of one row (axes 1.. of a shape with rank >= 1) and of `rows` rows; false as above. */
bool shape_row_bytes(dpi_dtype dtype, const int64_t *shape, int rank, size_t *bytes);
bool shape_bytes(dpi_dtype dtype, const int64_t *shape, int rank, size_t *bytes);
/* "[N,3,224,224]": axis 0 as N when it is -1, other -1 as ?. Returns `buffer`. */
#define SHAPE_TEXT_SIZE 192
const char *shape_text(const int64_t *shape, int rank, char buffer[SHAPE_TEXT_SIZE]);
/* "3x224x224" (what random: sources take); at most DPI_MAX_RANK - 1 axes, each 1..2^31; "" and "1" are both one. */
bool shape_parse(const char *text, size_t length, int64_t *shape, int *rank);
/* Whether `shape` fits what `p` wants (-1 fits all), row axis included. */
bool port_accepts_shape(const port *p, const int64_t *shape, int rank);

/* dtype by its short name ("float32"), DPI_DTYPE_NONE when there is none. */
dpi_dtype dtype_by_name(const char *name);
bool dtype_is_float(dpi_dtype dtype);
/* Element i as a double (bool as 0/1; 64-bit integers rounded). */
double dtype_get(dpi_dtype dtype, const void *data, size_t index);
/* Stores `value`, rounded to nearest and saturated to the dtype. */
void dtype_set(dpi_dtype dtype, void *data, size_t index, double value);

/* Index of the input or output called `name`; -1 when there is none. */
int port_find(const port *ports, size_t count, const char *name);

/* Fills `rows` rows with the counter-based generator: element e of row r depends on (seed, r, e) alone.
 * Floats: small normals (standard deviation 1); integers: zeros and ones when `small_integers`, else for u8/i8 the
 * full range and for wider ones 0..99; bool: zeros and ones. */
void tensor_fill_random(dpi_dtype dtype, void *data, size_t row_elements, uint64_t first_row, size_t rows,
                        uint64_t seed, bool small_integers);

#endif
