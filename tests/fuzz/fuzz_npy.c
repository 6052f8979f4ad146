/* Any bytes, and any words of a header, as a .npy file: an error or a header whose numbers fit together. */
#include "data/npy.h"
#include "npy_tokens.h"

#include <stdlib.h>

static void check(const void *data, size_t size)
{
    npy_header h;
    dpi_error error = {0};
    if (npy_parse(data, size, "fuzz.npy", &h, &error) == DPI_OK) {
        size_t bytes;
        if (h.data_offset > size || h.rank < 0 || h.rank > DPI_MAX_RANK || !dpi_dtype_size(h.dtype) ||
            !shape_bytes(h.dtype, h.shape, h.rank, &bytes) || bytes != h.data_bytes)
            abort();
        /* What is understood can be written, and is then understood as the same. */
        char buffer[512];
        npy_header again;
        size_t length = npy_format(h.dtype, h.shape, h.rank, buffer, sizeof buffer);
        if (!length || npy_parse(buffer, length, "again.npy", &again, &error) != DPI_OK || again.dtype != h.dtype ||
            again.rank != h.rank || memcmp(again.shape, h.shape, (size_t)h.rank * sizeof h.shape[0]) != 0)
            abort();
    } else if (!error.message[0] || error.status != DPI_E_DATA)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check(data, size);
    unsigned char words[NPY_TOKENS_MOST];
    size_t length = npy_from_tokens(data, size, words);
    unsigned char *exact = malloc(length); /* so that a read past the end is seen */
    if (exact)
        check(memcpy(exact, words, length), length);
    free(exact);
    return 0;
}
