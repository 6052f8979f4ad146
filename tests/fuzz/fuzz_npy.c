/* Any bytes as a .npy file: an error or a header whose numbers fit together. */
#include "data/npy.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    npy_header h;
    dpi_error error;
    if (npy_parse(data, size, "fuzz.npy", &h, &error) == DPI_OK) {
        size_t bytes;
        if (h.data_offset > size || h.rank < 0 || h.rank > DPI_MAX_RANK || !dpi_dtype_size(h.dtype) ||
            !shape_bytes(h.dtype, h.shape, h.rank, &bytes) || bytes != h.data_bytes)
            abort();
    } else if (!error.message[0] || error.status != DPI_E_DATA)
        abort();
    return 0;
}
