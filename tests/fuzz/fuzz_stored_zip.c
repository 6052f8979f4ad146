/* Any bytes as a package of PyTorch's: refused with a sentence, or entries that lie within it. An end (and with it the
 * directory's place, in the old or the 64-bit form) is put behind the input when the first byte says so. */
#include "backend/stored_zip.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void require(bool holds)
{
    if (!holds)
        abort();
}

static void put(unsigned char *to, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        to[i] = (unsigned char)(value >> (8 * i));
}

/* The end of an archive whose directory begins at `directory` and ends here; returns its bytes. */
static size_t add_end(unsigned char *at, size_t directory, size_t length, uint64_t count, bool is_long)
{
    size_t used = 0;
    if (is_long) {
        unsigned char end[56] = {'P', 'K', 6, 6}, locator[20] = {'P', 'K', 6, 7};
        put(end + 32, count, 8);
        put(end + 40, length - directory, 8);
        put(end + 48, directory, 8);
        put(locator + 8, length, 8);
        memcpy(at, end, sizeof end);
        memcpy(at + sizeof end, locator, sizeof locator);
        used = sizeof end + sizeof locator;
    }
    unsigned char end[22] = {'P', 'K', 5, 6};
    put(end + 10, is_long ? UINT16_MAX : count, 2);
    put(end + 12, is_long ? UINT32_MAX : length - directory, 4);
    put(end + 16, is_long ? UINT32_MAX : directory, 4);
    memcpy(at + used, end, sizeof end);
    return used + sizeof end;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 3)
        return 0;
    size_t bytes = size - 3, directory = data[1] < bytes ? data[1] : bytes;
    unsigned char *archive = malloc(bytes + 98);
    require(archive != NULL);
    memcpy(archive, data + 3, bytes);
    if (data[0] & 1)
        bytes += add_end(archive + bytes, directory, bytes, data[2], data[0] & 2);
    unsigned char *exact = malloc(bytes + !bytes); /* a byte too far is seen */
    require(exact != NULL);
    memcpy(exact, archive, bytes);
    free(archive);
    stored_zip zip;
    dpi_error error = {0};
    dpi_status status = stored_zip_read(exact, bytes, "fuzz.pt2", &zip, &error);
    require(status == DPI_OK || (error.status == status && error.message[0] && !zip.count && !zip.entries));
    unsigned sum = 0;
    for (size_t i = 0; i < zip.count; i++) {
        const zip_entry *e = &zip.entries[i];
        require(e->name[0] && e->data >= exact && e->bytes <= bytes - (size_t)(e->data - exact));
        for (size_t k = 0; k < e->bytes; k++)
            sum += e->data[k];
    }
    stored_zip_free(&zip);
    free(exact);
    return sum == UINT32_MAX;
}
