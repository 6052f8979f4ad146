/* Any text as a random: source, and any file as that of a .npy one: refused with a sentence, or rows that fit the
 * shape and are the same however they are asked for. The first byte chooses. */
#include "data/source.h"
#include "npy_tokens.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST_BYTES 65536

static void require(bool holds)
{
    if (!holds)
        abort();
}

/* `count` rows as one piece, one by one and copied. */
static void check_rows(source *s, uint64_t first, size_t count, size_t row_bytes)
{
    unsigned char *scratch = malloc(3 * count * row_bytes + 1), *one = scratch + count * row_bytes;
    const void *rows, *row;
    bool in_place = false, one_in_place = false;
    dpi_error error;
    require(scratch && source_rows_at(s, first, count, scratch, false, &rows, &in_place, &error) == DPI_OK);
    require(in_place == source_is_mapped(s) && (in_place || rows == scratch));
    for (size_t r = 0; r < count; r++) {
        require(source_rows_at(s, first + r, 1, one, true, &row, &one_in_place, &error) == DPI_OK);
        require(row == one && !one_in_place && memcmp(one, (const char *)rows + r * row_bytes, row_bytes) == 0);
    }
    free(scratch);
}

static void check_source(source *s, const char *spec)
{
    const port *p = source_port(s);
    size_t row_bytes = 0;
    require(strcmp(source_spec(s), spec) == 0 && p->rank >= 1 && p->rank <= DPI_MAX_RANK);
    require(shape_row_bytes(p->dtype, p->shape, p->rank, &row_bytes));
    uint64_t rows = source_rows(s);
    require(p->shape[0] >= 0 && (uint64_t)p->shape[0] == rows);
    size_t count = rows < 3 ? (size_t)rows : 3;
    if (count && row_bytes <= MOST_BYTES) {
        check_rows(s, 0, count, row_bytes);
        check_rows(s, rows - count, count, row_bytes);
    }
    source_will_need(s, rows / 2, UINT64_MAX);
    const void *start;
    size_t bytes = 0;
    require(source_mapping(s, &start, &bytes) == (source_fd(s) >= 0));
    require(!source_is_mapped(s) || bytes >= rows * row_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    bool file = data[0] & 1;
    int fd = -1;
    char *spec = malloc(size + 16);
    require(spec);
    memcpy(spec, file ? "fuzz.npy" : "random:", file ? 9 : 7);
    if (file) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        unsigned char start[NPY_TOKENS_MOST];
        size_t length = npy_from_tokens(data + 1, size - 1, start);
        /* Behind the header: the input again, and then some zeros or none. */
        require(fd >= 0 && write(fd, start, length) == (ssize_t)length);
        require(write(fd, data, size) == (ssize_t)size);
        require(ftruncate(fd, (off_t)(length + size) + data[0] * 4) == 0);
    } else {
        memcpy(spec + 7, data + 1, size - 1);
        spec[7 + size - 1] = 0;
    }
    source *s = (source *)(uintptr_t)1;
    dpi_error error = {0};
    if (source_open(spec, fd, &s, &error) == DPI_OK)
        check_source(s, spec);
    else
        require(!s && error.message[0] && error.status == DPI_E_DATA);
    source_close(s);
    if (fd >= 0)
        close(fd);
    free(spec);
    return 0;
}
