/*
 * FILE.npz: the outputs of a run as stored members of one zip archive, as np.savez writes them. All sizes are known
 * when the run begins, so that every row has its place from then on; only the checksums are not, and are written at the
 * end, with the directory that holds them too. Sizes always stand in zip64 fields. A member's .npy file begins at a
 * multiple of 64 bytes, so that its rows can be mapped and used in place.
 */
#include "base/file.h"
#include "data/npy.h"
#include "data/sink_kind.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <zlib.h>

#define ALIGNMENT    64
#define CRC_AT       14 /* in a local header */
#define HEADER_MOST  2048
#define PIECE        (1u << 20)
#define VERSION      45     /* zip64 */
#define FLAG_UTF8    0x0800 /* of names */
#define DOS_1980     0x21   /* 1 January 1980: a result has no time of its own */
#define EXTRA_ALIGN  0xd935 /* a field that is there for its length */
#define EXTRA_ZIP64  1
#define IN_THE_EXTRA UINT32_MAX

static void put(text_buffer *t, uint64_t value, int bytes)
{
    unsigned char raw[8];
    for (int i = 0; i < bytes; i++)
        raw[i] = (unsigned char)(value >> 8 * i);
    text_add_bytes(t, raw, (size_t)bytes);
}

/* An output's name as that of a member; unpacked, it must not lead out of a folder. */
static dpi_status name_of(const sink *m, char *name, size_t size, dpi_error *error)
{
    const char *own = m->output.name[0] ? m->output.name : "output";
    if (own[0] == '/' || strstr(own, ".."))
        return error_set(error, DPI_E_DATA,
                         "%s: \"%s\" cannot be the name of a member; write this output to a .npy file", m->spec, own);
    snprintf(name, size, "%s.npy", own);
    return DPI_OK;
}

/* What stands between a member's header_offset and its row 0, and how many bytes of rows follow. */
static dpi_status make_header(sink *m, text_buffer *t, uint64_t *row_bytes, dpi_error *error)
{
    char npy[1024], name[PORT_NAME_SIZE + 8];
    int64_t shape[DPI_MAX_RANK];
    size_t rows_bytes;
    memcpy(shape, m->output.shape, sizeof shape);
    shape[0] = (int64_t)m->rows;
    size_t npy_bytes = npy_format(m->output.dtype, shape, m->output.rank, npy, sizeof npy);
    if (!npy_bytes || !shape_bytes(m->output.dtype, shape, m->output.rank, &rows_bytes))
        return error_set(error, DPI_E_DATA, "%s cannot hold the output %s", m->spec, m->output.name);
    dpi_status status = name_of(m, name, sizeof name, error);
    if (status)
        return status;
    uint64_t bytes = npy_bytes + rows_bytes, end = m->header_offset + 30 + strlen(name) + 20 + 4;
    uint64_t padding = (ALIGNMENT - end % ALIGNMENT) % ALIGNMENT;
    put(t, 0x04034b50, 4);
    put(t, VERSION, 2);
    put(t, FLAG_UTF8, 2);
    put(t, 0, 2); /* stored */
    put(t, 0, 2);
    put(t, DOS_1980, 2);
    put(t, 0, 4); /* the checksum */
    put(t, IN_THE_EXTRA, 4);
    put(t, IN_THE_EXTRA, 4);
    put(t, strlen(name), 2);
    put(t, 20 + 4 + padding, 2);
    text_add_bytes(t, name, strlen(name));
    put(t, EXTRA_ZIP64, 2);
    put(t, 16, 2);
    put(t, bytes, 8);
    put(t, bytes, 8);
    put(t, EXTRA_ALIGN, 2);
    put(t, padding, 2);
    for (uint64_t i = 0; i < padding; i++)
        put(t, 0, 1);
    text_add_bytes(t, npy, npy_bytes);
    m->header_bytes = t->length;
    m->data_offset = m->header_offset + t->length;
    *row_bytes = rows_bytes;
    return t->failed ? error_set(error, DPI_E_SYSTEM, "out of memory while writing %s", m->spec) : DPI_OK;
}

/* One entry of the directory. */
static dpi_status add_entry(const sink *m, uint32_t crc, uint64_t bytes, text_buffer *t, dpi_error *error)
{
    char name[PORT_NAME_SIZE + 8];
    dpi_status status = name_of(m, name, sizeof name, error);
    put(t, 0x02014b50, 4);
    put(t, VERSION | 3 << 8, 2); /* made on a Unix */
    put(t, VERSION, 2);
    put(t, FLAG_UTF8, 2);
    put(t, 0, 2);
    put(t, 0, 2);
    put(t, DOS_1980, 2);
    put(t, crc, 4);
    put(t, IN_THE_EXTRA, 4);
    put(t, IN_THE_EXTRA, 4);
    put(t, strlen(name), 2);
    put(t, 28, 2);
    put(t, 0, 6);              /* no comment, one disk, binary */
    put(t, 0100644u << 16, 4); /* a file of mode 0644 */
    put(t, IN_THE_EXTRA, 4);
    text_add_bytes(t, name, strlen(name));
    put(t, EXTRA_ZIP64, 2);
    put(t, 24, 2);
    put(t, bytes, 8);
    put(t, bytes, 8);
    put(t, m->header_offset, 8);
    return status;
}

static void add_end(text_buffer *t, uint64_t members, uint64_t offset)
{
    uint64_t bytes = t->length;
    put(t, 0x06064b50, 4);
    put(t, 44, 8);
    put(t, VERSION | 3 << 8, 2);
    put(t, VERSION, 2);
    put(t, 0, 8);
    put(t, members, 8);
    put(t, members, 8);
    put(t, bytes, 8);
    put(t, offset, 8);
    put(t, 0x07064b50, 4);
    put(t, 0, 4);
    put(t, offset + bytes, 8);
    put(t, 1, 4);
    put(t, 0x06054b50, 4);
    put(t, 0, 4);
    put(t, members, 2);
    put(t, members, 2);
    put(t, IN_THE_EXTRA, 4);
    put(t, IN_THE_EXTRA, 4);
    put(t, 0, 2);
}

/* ---- the file --------------------------------------------------------------------------------------------------- */

/* Calls for each member in order with its header and the bytes of its rows; *directory is where the last one ends. */
static dpi_status each_member(sink *s, dpi_status (*call)(sink *, sink *, text_buffer *, uint64_t, void *, dpi_error *),
                              void *context, uint64_t *directory, dpi_error *error)
{
    uint64_t offset = 0, row_bytes = 0;
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < s->member_count && !status; i++) {
        text_buffer header = {0};
        s->members[i]->header_offset = offset;
        status = make_header(s->members[i], &header, &row_bytes, error);
        if (!status && call)
            status = call(s, s->members[i], &header, row_bytes, context, error);
        offset = s->members[i]->data_offset + row_bytes;
        text_free(&header);
    }
    *directory = offset;
    return status;
}

/* How long the file will be. */
static dpi_status measure(sink *s, uint64_t *bytes, dpi_error *error)
{
    text_buffer t = {0};
    uint64_t directory;
    dpi_status status = each_member(s, NULL, NULL, &directory, error);
    for (size_t i = 0; i < s->member_count && !status; i++)
        status = add_entry(s->members[i], 0, 0, &t, error);
    add_end(&t, s->member_count, directory);
    *bytes = directory + t.length;
    text_free(&t);
    return status;
}

static dpi_status write_header(sink *s, sink *m, text_buffer *header, uint64_t row_bytes, void *context,
                               dpi_error *error)
{
    (void)row_bytes;
    (void)context;
    return file_write_at(s->fd, header->data, header->length, m->header_offset, s->part, error);
}

dpi_status sink_npz_start(sink *s, dpi_error *error)
{
    uint64_t bytes, directory;
    dpi_status status = measure(s, &bytes, error);
    if (!status)
        status = sink_preallocate(s, bytes, error);
    return status ? status : each_member(s, write_header, NULL, &directory, error);
}

/* But for the checksum, which is there already where a run was stopped behind sink_npz_complete. */
static dpi_status compare_header(sink *s, sink *m, text_buffer *header, uint64_t row_bytes, void *context,
                                 dpi_error *error)
{
    char there[HEADER_MOST];
    (void)row_bytes;
    (void)context;
    if (header->length > sizeof there)
        return sink_another_part(s, error);
    dpi_status status = file_read_at(s->fd, there, header->length, m->header_offset, s->part, error);
    memset(there + CRC_AT, 0, 4);
    return status ? status : memcmp(there, header->data, header->length) == 0 ? DPI_OK : sink_another_part(s, error);
}

dpi_status sink_npz_resume(sink *s, dpi_error *error)
{
    struct stat info;
    uint64_t bytes, directory;
    dpi_status status = measure(s, &bytes, error);
    if (!status && fstat(s->fd, &info) != 0)
        status = error_set_errno(error, DPI_E_IO, errno, "cannot read %s", s->part);
    if (!status && (uint64_t)info.st_size != bytes)
        status = sink_another_part(s, error);
    return status ? status : each_member(s, compare_header, NULL, &directory, error);
}

static dpi_status checksum(const sink *s, uint64_t from, uint64_t bytes, uint32_t *crc, dpi_error *error)
{
    void *piece = malloc(PIECE);
    dpi_status status = piece ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory while writing %s", s->spec);
    for (uint64_t at = 0, part; at < bytes && !status; at += part) {
        part = bytes - at < PIECE ? bytes - at : PIECE;
        status = file_read_at(s->fd, piece, part, from + at, s->part, error);
        if (!status)
            *crc = (uint32_t)crc32(*crc, piece, (uInt)part);
    }
    free(piece);
    return status;
}

static dpi_status complete_member(sink *s, sink *m, text_buffer *header, uint64_t row_bytes, void *context,
                                  dpi_error *error)
{
    text_buffer *directory = context;
    const unsigned char *h = (const unsigned char *)header->data;
    uint64_t local = 30u + h[26] + 256u * h[27] + h[28] + 256u * h[29], bytes = header->length - local + row_bytes;
    uint32_t crc = (uint32_t)crc32(0, h + local, (uInt)(header->length - local));
    dpi_status status = checksum(s, m->data_offset, row_bytes, &crc, error);
    text_buffer four = {0};
    put(&four, crc, 4);
    if (!status)
        status = file_write_at(s->fd, four.data, 4, m->header_offset + CRC_AT, s->part, error);
    text_free(&four);
    return status ? status : add_entry(m, crc, bytes, directory, error);
}

dpi_status sink_npz_complete(sink *s, dpi_error *error)
{
    text_buffer t = {0};
    uint64_t directory;
    dpi_status status = each_member(s, complete_member, &t, &directory, error);
    add_end(&t, s->member_count, directory);
    if (!status && t.failed)
        status = error_set(error, DPI_E_SYSTEM, "out of memory while writing %s", s->spec);
    if (!status)
        status = file_write_at(s->fd, t.data, t.length, directory, s->part, error);
    text_free(&t);
    return status;
}
