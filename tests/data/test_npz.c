/* Archives that were damaged: each byte in turn, and each length. Refused with a sentence, or the rows are read; what a
 * member's CRC covers is never given out wrong. The archive is made here, byte by byte, so that it has every kind. */
#include "data/source.h"

#include "data/npy.h"
#include "data/zip.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

#define ROWS 6

typedef struct archive {
    unsigned char data[4096];
    size_t length, packed_at, packed_bytes;
} archive;

static void put(archive *a, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        a->data[a->length++] = (unsigned char)(value >> 8 * i);
}

static void put_bytes(archive *a, const void *bytes, size_t count)
{
    memcpy(a->data + a->length, bytes, count);
    a->length += count;
}

static size_t make_npy(unsigned char *to)
{
    size_t length = npy_format(DPI_I32, (int64_t[]){ROWS, 3}, 2, (char *)to, 512);
    for (int32_t i = 0; i < ROWS * 3; i++)
        memcpy(to + length + (size_t)i * 4, &i, 4);
    return length + ROWS * 12;
}

static size_t deflate_it(const unsigned char *from, size_t bytes, unsigned char *to)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (unsigned char *)(uintptr_t)from;
    z.avail_in = (uInt)bytes;
    z.next_out = to;
    z.avail_out = 4096;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    size_t made = z.total_out;
    deflateEnd(&z);
    return made;
}

/* "a" stored and "b" deflated; in the directory, b's sizes and offset stand in a zip64 field. */
static void make_archive(archive *a)
{
    unsigned char npy[1024], packed[4096];
    size_t bytes = make_npy(npy), small = deflate_it(npy, bytes, packed), at[2];
    uint32_t crc = (uint32_t)crc32(0, npy, (uInt)bytes);
    *a = (archive){0};
    for (int m = 0; m < 2; m++) {
        at[m] = a->length;
        put(a, 0x04034b50, 4);
        put(a, 20, 2);
        put(a, 0, 2);
        put(a, m ? 8 : 0, 2);
        put(a, 0, 4);
        put(a, crc, 4);
        put(a, m ? small : bytes, 4);
        put(a, bytes, 4);
        put(a, 5, 2);
        put(a, 0, 2);
        put_bytes(a, m ? "b.npy" : "a.npy", 5);
        if (m)
            a->packed_at = a->length;
        put_bytes(a, m ? packed : npy, m ? small : bytes);
    }
    a->packed_bytes = small;
    size_t directory = a->length;
    for (int m = 0; m < 2; m++) {
        put(a, 0x02014b50, 4);
        put(a, 20, 2);
        put(a, 45, 2);
        put(a, 0, 2);
        put(a, m ? 8 : 0, 2);
        put(a, 0, 4);
        put(a, crc, 4);
        put(a, m ? UINT32_MAX : bytes, 4);
        put(a, m ? UINT32_MAX : bytes, 4);
        put(a, 5, 2);
        put(a, m ? 28 : 0, 2);
        put(a, 0, 8);
        put(a, 0, 2);
        put(a, m ? UINT32_MAX : at[m], 4);
        put_bytes(a, m ? "b.npy" : "a.npy", 5);
        if (!m)
            continue;
        put(a, 1, 2);
        put(a, 24, 2);
        put(a, bytes, 8);
        put(a, small, 8);
        put(a, at[m], 8);
    }
    size_t end = a->length;
    put(a, 0x06054b50, 4);
    put(a, 0, 4);
    put(a, 2, 2);
    put(a, 2, 2);
    put(a, end - directory, 4);
    put(a, directory, 4);
    put(a, 0, 2);
}

static int file_of(const unsigned char *data, size_t length)
{
    int fd = memfd_create("archive", MFD_CLOEXEC);
    assert_int_equal(write(fd, data, length), length);
    return fd;
}

/* Whether `spec` opens with ROWS rows of the right numbers; anything it opens with must be readable. */
static bool reads_right(const char *spec, int fd)
{
    source *s = NULL;
    dpi_error error = {0};
    if (source_open(spec, fd, &s, &error)) {
        assert_null(s);
        assert_true(error.message[0] != 0);
        return false;
    }
    const port *p = source_port(s);
    size_t row_bytes = 0;
    assert_true(shape_row_bytes(p->dtype, p->shape, p->rank, &row_bytes));
    bool right = source_rows(s) == ROWS && row_bytes == 12 && p->dtype == DPI_I32;
    for (uint64_t r = 0; r < source_rows(s) && row_bytes < 65536; r++) {
        unsigned char *row = malloc(row_bytes + 1);
        const void *rows;
        bool in_place;
        assert_int_equal(source_rows_at(s, r, 1, row, r & 1, &rows, &in_place, &error), DPI_OK);
        for (int32_t i = 0; right && i < 3; i++)
            right = ((const int32_t *)rows)[i] == (int32_t)r * 3 + i;
        free(row);
    }
    source_close(s);
    return right;
}

static void both_kinds_are_read(void **state)
{
    (void)state;
    archive a;
    make_archive(&a);
    int fd = file_of(a.data, a.length);
    assert_true(reads_right("x.npz:a", fd));
    assert_true(reads_right("x.npz:b", fd));
    assert_true(reads_right("x.npz:b.npy", fd));
    assert_false(reads_right("x.npz:c", fd));
    assert_false(reads_right("x.npz", fd)); /* which? */
    close(fd);
}

/* A worker opens by the caller's descriptor and what the caller has found out; nothing is parsed again. */
static void a_worker_opens_what_was_found(void **state)
{
    (void)state;
    archive a;
    make_archive(&a);
    for (int m = 0; m < 2; m++) {
        int fd = file_of(a.data, a.length);
        source *s, *again;
        dpi_error error;
        assert_int_equal(source_open(m ? "x.npz:b" : "x.npz:a", fd, &s, &error), DPI_OK);
        close(fd);
        assert_int_equal(source_file_fd(s) == source_fd(s), m == 0); /* inflated: another one */
        assert_int_equal(source_open(source_worker_spec(s), source_fd(s), &again, &error), DPI_OK);
        source_close(s);
        const void *rows;
        int32_t scratch[3];
        bool in_place;
        assert_int_equal(source_rows_at(again, 5, 1, scratch, false, &rows, &in_place, &error), DPI_OK);
        assert_int_equal(((const int32_t *)rows)[2], 17);
        source_close(again);
    }
}

static void every_byte_and_every_length(void **state)
{
    (void)state;
    archive a;
    make_archive(&a);
    for (size_t at = 0; at < a.length; at++)
        for (int change = 0; change < 3; change++) {
            archive b = a;
            b.data[at] = (unsigned char)(change == 0 ? ~b.data[at] : change == 1 ? b.data[at] ^ 1 : 0xff);
            int fd = file_of(b.data, b.length);
            reads_right("x.npz:a", fd);
            bool right = reads_right("x.npz:b", fd);
            if (right && b.data[at] != a.data[at] && at >= a.packed_at && at < a.packed_at + a.packed_bytes - 1)
                fail_msg("byte %zu of the deflated member was changed and nobody noticed", at - a.packed_at);
            close(fd);
        }
    for (size_t length = 0; length < a.length; length++) {
        int fd = file_of(a.data, length);
        assert_false(reads_right("x.npz:a", fd));
        close(fd);
    }
}

/* A member that inflates to more, or to less, than it says. */
static void a_size_that_is_not_true(void **state)
{
    (void)state;
    archive a;
    make_archive(&a);
    size_t field = a.length - 22 - 24; /* the zip64 field of b: its size */
    for (int more = 0; more < 2; more++) {
        archive b = a;
        b.data[field] = (unsigned char)(b.data[field] + (more ? 1 : -1));
        int fd = file_of(b.data, b.length);
        assert_false(reads_right("x.npz:b", fd));
        close(fd);
    }
    memset(a.data + field, 0x7f, 8); /* more than deflate can make of so few bytes: no memory is taken for it */
    int fd = file_of(a.data, a.length);
    assert_false(reads_right("x.npz:b", fd));
    close(fd);
}

/* A member that says it has nothing, as the fuzzer found. */
static void an_empty_member(void **state)
{
    (void)state;
    archive a;
    make_archive(&a);
    size_t field = a.length - 22 - 24;
    memset(a.data + field, 0, 8);
    int fd = file_of(a.data, a.length);
    assert_false(reads_right("x.npz:b", fd));
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_kinds_are_read),
        cmocka_unit_test(a_worker_opens_what_was_found),
        cmocka_unit_test(every_byte_and_every_length),
        cmocka_unit_test(a_size_that_is_not_true),
        cmocka_unit_test(an_empty_member),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
