/*
 * The directory of a .zip file, as .npz files are: PKWARE's APPNOTE.TXT, zip64 included. Only what numpy writes: stored
 * and deflated members of one file. Everything in the file is untrusted.
 */
#ifndef DPI_DATA_ZIP_H
#define DPI_DATA_ZIP_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ZIP_MOST_MEMBERS 65536

typedef struct zip_member {
    char *name;
    uint64_t header_offset; /* of its local header */
    uint64_t packed_bytes, bytes;
    uint32_t crc;
    uint16_t method, flags;
} zip_member;

typedef struct zip_directory {
    zip_member *members;
    size_t count;
} zip_directory;

/* Reads the directory at the end of the file; zip_free in any case. DPI_E_DATA names `name` and what is wrong. */
dpi_status zip_read(int fd, uint64_t file_bytes, const char *name, zip_directory *directory, dpi_error *error);
void zip_free(zip_directory *directory);

/* The checksum that members have, of bytes behind those that gave `crc` (0: the first ones); of two parts, `bytes` in
 * the second. */
uint32_t zip_crc(uint32_t crc, const void *data, size_t bytes);
uint32_t zip_crc_combine(uint32_t first, uint32_t second, uint64_t bytes);

bool zip_is_stored(const zip_member *member);
/* Where a member's bytes begin; they are within the file. DPI_E_DATA: neither stored nor deflated, encrypted, damaged.
 */
dpi_status zip_find(int fd, uint64_t file_bytes, const char *name, const zip_member *member, uint64_t *offset,
                    dpi_error *error);
/* Inflates a member, whose bytes begin at `offset`, into a sealed memfd, the caller's to close; checks its CRC. A size
 * beyond the machine's memory is refused. */
dpi_status zip_inflate(int fd, const char *name, const zip_member *member, uint64_t offset, int *memfd,
                       dpi_error *error);

#endif
