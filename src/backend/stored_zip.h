/* Reading an archive whose entries are stored, not compressed, as PyTorch writes them (ZIP and ZIP64). Nothing is
 * copied. */
#ifndef DPI_BACKEND_STORED_ZIP_H
#define DPI_BACKEND_STORED_ZIP_H

#include "base/error.h"

#include <stddef.h>

typedef struct zip_entry {
    char *name; /* terminated; malloc'd */
    const unsigned char *data;
    size_t bytes;
} zip_entry;

typedef struct stored_zip {
    zip_entry *entries;
    size_t count;
} stored_zip;

/* Reads the directory of an archive in memory, which must outlive `zip`. DPI_E_MODEL names `path` and says what is
 * wrong: no archive, cut short, a compressed or encrypted entry, an entry outside of the file. */
dpi_status stored_zip_read(const void *archive, size_t bytes, const char *path, stored_zip *zip, dpi_error *error);
void stored_zip_free(stored_zip *zip);

#endif
