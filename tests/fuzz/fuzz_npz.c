/* Any bytes as an archive: refused with a sentence, or rows that can be read. A zip's end and directory are put behind
 * the input, pointing into it, when the first byte says so; otherwise the input is the whole file. */
#include "data/source.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void add_end(int fd, size_t directory, size_t length)
{
    unsigned char end[22] = {'P', 'K', 5, 6, [8] = 1, [10] = 1};
    uint32_t bytes = (uint32_t)(length - directory), offset = (uint32_t)directory;
    memcpy(end + 12, &bytes, 4);
    memcpy(end + 16, &offset, 4);
    require(write(fd, end, sizeof end) == sizeof end);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2)
        return 0;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    require(fd >= 0 && write(fd, data + 2, size - 2) == (ssize_t)(size - 2));
    if (data[0] & 1)
        add_end(fd, data[1] < size - 2 ? data[1] : size - 2, size - 2);
    source *s = (source *)(uintptr_t)1;
    dpi_error error = {0};
    if (source_open(data[0] & 2 ? "fuzz.npz:a" : "fuzz.npz", fd, &s, &error) == DPI_OK) {
        size_t row_bytes = 0;
        const port *p = source_port(s);
        require(shape_row_bytes(p->dtype, p->shape, p->rank, &row_bytes));
        if (source_rows(s) && row_bytes <= 65536) {
            unsigned char *scratch = malloc(row_bytes);
            const void *rows;
            bool in_place;
            require(source_rows_at(s, source_rows(s) - 1, 1, scratch, true, &rows, &in_place, &error) == DPI_OK);
            free(scratch);
        }
    } else
        require(!s && error.message[0]);
    source_close(s);
    close(fd);
    return 0;
}
