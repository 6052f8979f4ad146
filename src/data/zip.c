#include "data/zip.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

enum {
    END_BYTES = 22,
    END64_BYTES = 56,
    LOCATOR_BYTES = 20,
    ENTRY_BYTES = 46,
    LOCAL_BYTES = 30,
    COMMENT_MOST = 65535,
    END_MARK = 0x06054b50,
    END64_MARK = 0x06064b50,
    LOCATOR_MARK = 0x07064b50,
    ENTRY_MARK = 0x02014b50,
    LOCAL_MARK = 0x04034b50,
    EXTRA_ZIP64 = 1,
    STORED = 0,
    DEFLATED = 8,
    FLAG_ENCRYPTED = 1,
};
#define DIRECTORY_MOST (64u << 20)
#define PIECE          (256u << 10)
#define RATIO_MOST     1032 /* of deflate: 258 bytes for two bits */

static uint64_t number(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

static dpi_status damaged(const char *name, const char *what, dpi_error *error)
{
    return error_set(error, DPI_E_DATA, "%s is no whole .npz archive: %s", name, what);
}

/* ---- the directory ---------------------------------------------------------------------------------------------- */

typedef struct place {
    uint64_t offset, bytes, members;
} place;

/* The 64-bit record, where the end says that there is one in front of it. */
static dpi_status take_end64(int fd, uint64_t end_offset, const char *name, place *where, dpi_error *error)
{
    unsigned char locator[LOCATOR_BYTES], end[END64_BYTES];
    dpi_status status = DPI_OK;
    if (end_offset < LOCATOR_BYTES)
        return DPI_OK;
    status = file_read_at(fd, locator, sizeof locator, end_offset - LOCATOR_BYTES, name, error);
    if (status || number(locator, 4) != LOCATOR_MARK)
        return status;
    uint64_t at = number(locator + 8, 8);
    if (end_offset - LOCATOR_BYTES < END64_BYTES || at > end_offset - LOCATOR_BYTES - END64_BYTES)
        return damaged(name, "its zip64 end is not where it is said to be", error);
    status = file_read_at(fd, end, sizeof end, at, name, error);
    if (status)
        return status;
    if (number(end, 4) != END64_MARK)
        return damaged(name, "its zip64 end is not where it is said to be", error);
    *where = (place){.members = number(end + 32, 8), .bytes = number(end + 40, 8), .offset = number(end + 48, 8)};
    return DPI_OK;
}

static dpi_status find_directory(int fd, uint64_t file_bytes, const char *name, place *where, dpi_error *error)
{
    size_t tail = file_bytes < END_BYTES + COMMENT_MOST ? (size_t)file_bytes : END_BYTES + COMMENT_MOST;
    unsigned char *end = malloc(tail + 1);
    if (!end)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    dpi_status status = file_read_at(fd, end, tail, file_bytes - tail, name, error);
    size_t at = tail < END_BYTES ? 0 : tail - END_BYTES + 1;
    bool found = false;
    while (!status && at > 0 && !found) {
        at--;
        found = number(end + at, 4) == END_MARK && number(end + at + 20, 2) <= tail - at - END_BYTES;
    }
    if (!status && !found)
        status = damaged(name, "it has no directory at its end; was it cut short?", error);
    if (!status) {
        uint64_t end_offset = file_bytes - tail + at;
        *where = (place){
            .members = number(end + at + 10, 2), .bytes = number(end + at + 12, 4), .offset = number(end + at + 16, 4)};
        status = take_end64(fd, end_offset, name, where, error);
        if (!status && (where->bytes > end_offset || where->offset > end_offset - where->bytes))
            status = damaged(name, "its directory is not within the file", error);
    }
    free(end);
    return status;
}

/* Sizes and offset that do not fit in 32 bits stand in an extra field, in this order and only those. */
static bool take_zip64(const unsigned char *extra, size_t bytes, zip_member *m)
{
    uint64_t *const wanted[] = {&m->bytes, &m->packed_bytes, &m->header_offset};
    while (bytes >= 4) {
        uint64_t id = number(extra, 2), length = number(extra + 2, 2);
        if (length > bytes - 4)
            return false;
        const unsigned char *at = extra + 4;
        for (size_t i = 0; id == EXTRA_ZIP64 && i < 3; i++)
            if (*wanted[i] == UINT32_MAX) {
                if (length < 8)
                    return false;
                *wanted[i] = number(at, 8);
                at += 8;
                length -= 8;
            }
        if (id == EXTRA_ZIP64)
            return true;
        extra += 4 + length;
        bytes -= 4 + (size_t)length;
    }
    return true;
}

/* One entry; how long it is, 0 when it is not whole. */
static size_t take_entry(const unsigned char *at, size_t left, zip_member *m)
{
    if (left < ENTRY_BYTES || number(at, 4) != ENTRY_MARK)
        return 0;
    size_t name = number(at + 28, 2), extra = number(at + 30, 2), comment = number(at + 32, 2);
    if (left - ENTRY_BYTES < name + extra + comment)
        return 0;
    *m = (zip_member){.flags = (uint16_t)number(at + 8, 2),
                      .method = (uint16_t)number(at + 10, 2),
                      .crc = (uint32_t)number(at + 16, 4),
                      .packed_bytes = number(at + 20, 4),
                      .bytes = number(at + 24, 4),
                      .header_offset = number(at + 42, 4)};
    if (!take_zip64(at + ENTRY_BYTES + name, extra, m))
        return 0;
    m->name = strndup((const char *)at + ENTRY_BYTES, name);
    return m->name ? ENTRY_BYTES + name + extra + comment : 0;
}

dpi_status zip_read(int fd, uint64_t file_bytes, const char *name, zip_directory *d, dpi_error *error)
{
    place where;
    *d = (zip_directory){0};
    dpi_status status = find_directory(fd, file_bytes, name, &where, error);
    if (status)
        return status;
    if (where.members > ZIP_MOST_MEMBERS || where.bytes > DIRECTORY_MOST || where.members > where.bytes / ENTRY_BYTES)
        return damaged(name, "its directory has an impossible size", error);
    unsigned char *all = malloc(where.bytes + 1);
    d->members = calloc(where.members + 1, sizeof *d->members);
    if (!all || !d->members)
        status = error_set(error, DPI_E_SYSTEM, "out of memory");
    if (!status)
        status = file_read_at(fd, all, where.bytes, where.offset, name, error);
    for (size_t at = 0, length; !status && d->count < where.members; at += length) {
        length = take_entry(all + at, where.bytes - at, &d->members[d->count]);
        if (!length)
            status = damaged(name, "its directory is damaged", error);
        else
            d->count++;
    }
    free(all);
    return status;
}

void zip_free(zip_directory *d)
{
    for (size_t i = 0; i < d->count; i++)
        free(d->members[i].name);
    free(d->members);
    *d = (zip_directory){0};
}

/* ---- members ---------------------------------------------------------------------------------------------------- */

uint32_t zip_crc(uint32_t crc, const void *data, size_t bytes) { return (uint32_t)crc32_z(crc, data, bytes); }

uint32_t zip_crc_combine(uint32_t first, uint32_t second, uint64_t bytes)
{
    return (uint32_t)crc32_combine64(first, second, (off64_t)bytes);
}

bool zip_is_stored(const zip_member *member) { return member->method == STORED; }

dpi_status zip_find(int fd, uint64_t file_bytes, const char *name, const zip_member *m, uint64_t *offset,
                    dpi_error *error)
{
    unsigned char local[LOCAL_BYTES];
    if (m->flags & FLAG_ENCRYPTED || (m->method != STORED && m->method != DEFLATED))
        return error_set(error, DPI_E_DATA,
                         "%s: the member %s is %s; np.savez and np.savez_compressed write it plainly", name, m->name,
                         m->flags & FLAG_ENCRYPTED ? "encrypted" : "compressed in an unknown way");
    if (file_bytes < LOCAL_BYTES || m->header_offset > file_bytes - LOCAL_BYTES)
        return damaged(name, "a member is not within the file", error);
    dpi_status status = file_read_at(fd, local, sizeof local, m->header_offset, name, error);
    if (status)
        return status;
    *offset = m->header_offset + LOCAL_BYTES + number(local + 26, 2) + number(local + 28, 2);
    if (number(local, 4) != LOCAL_MARK || *offset > file_bytes || m->packed_bytes > file_bytes - *offset ||
        (m->method == STORED ? m->bytes != m->packed_bytes : m->bytes / RATIO_MOST > m->packed_bytes))
        return damaged(name, "a member is not where the directory says", error);
    return DPI_OK;
}

/* All of the member's bytes into `to`, and nothing else may come out. */
static dpi_status inflate_into(int fd, const char *name, const zip_member *m, uint64_t offset, unsigned char *to,
                               dpi_error *error)
{
    z_stream z = {0};
    unsigned char *piece = malloc(PIECE), beyond;
    if (!piece || inflateInit2(&z, -MAX_WBITS) != Z_OK) {
        free(piece);
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    dpi_status status = DPI_OK;
    uint64_t taken = 0, made = 0;
    uLong crc = crc32(0, NULL, 0);
    int result = Z_OK;
    while (!status && result == Z_OK) {
        if (!z.avail_in && taken < m->packed_bytes) {
            z.avail_in = m->packed_bytes - taken < PIECE ? (uInt)(m->packed_bytes - taken) : PIECE;
            z.next_in = piece;
            status = file_read_at(fd, piece, z.avail_in, offset + taken, name, error);
            taken += z.avail_in;
        }
        uInt room = m->bytes - made < PIECE ? (uInt)(m->bytes - made) : PIECE;
        z.next_out = room ? to + made : &beyond;
        z.avail_out = room ? room : 1;
        if (!status)
            result = inflate(&z, Z_NO_FLUSH);
        uInt out = (room ? room : 1) - z.avail_out;
        if (!room && out)
            result = Z_DATA_ERROR;
        else if (out) { /* an empty member has no memory at all */
            crc = crc32(crc, to + made, out);
            made += out;
        }
    }
    inflateEnd(&z);
    free(piece);
    if (!status && (result != Z_STREAM_END || made != m->bytes || crc != m->crc))
        status = error_set(error, DPI_E_DATA, "%s: the member %s is damaged", name, m->name);
    return status;
}

dpi_status zip_inflate(int fd, const char *name, const zip_member *m, uint64_t offset, int *memfd, dpi_error *error)
{
    uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
    *memfd = -1;
    if (m->bytes > memory)
        return error_set(error, DPI_E_DATA,
                         "%s: the member %s would take %llu bytes of memory, more than there is; store it uncompressed "
                         "(np.savez), then it is read in place",
                         name, m->name, (unsigned long long)m->bytes);
    int to = memfd_create("dpinfer-inflated", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    unsigned char *map = MAP_FAILED;
    /* The memory now, so that a lack of it is an error here and not a signal in the middle. */
    if (to >= 0 && ftruncate(to, (off_t)m->bytes) == 0 && (!m->bytes || fallocate(to, 0, 0, (off_t)m->bytes) == 0))
        map = m->bytes ? mmap(NULL, m->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, to, 0) : NULL;
    dpi_status status = map == MAP_FAILED
                            ? error_set_errno(error, DPI_E_SYSTEM, errno, "%s: no memory for the %llu bytes of %s",
                                              name, (unsigned long long)m->bytes, m->name)
                            : inflate_into(fd, name, m, offset, map, error);
    if (map != MAP_FAILED && map)
        munmap(map, m->bytes);
    if (!status && fcntl(to, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)
        status = error_set_errno(error, DPI_E_SYSTEM, errno, "cannot seal the inflated %s", m->name);
    if (status && to >= 0)
        close(to);
    *memfd = status ? -1 : to;
    return status;
}
