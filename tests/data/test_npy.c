/* .npy headers: what numpy writes is read, what is hostile is refused by name, and nothing is read past the end. */
#include "data/npy.h"

#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* A file's beginning with this dictionary; malloc'd to the byte, so that a sanitizer sees a read past it. */
static unsigned char *wrap(int version, const char *dict, size_t *bytes)
{
    size_t length = strlen(dict), prefix = version == 1 ? 10 : 12;
    unsigned char *file = malloc(prefix + length);
    memcpy(file, "\x93NUMPY", 6);
    file[6] = (unsigned char)version;
    file[7] = 0;
    for (size_t i = 8; i < prefix; i++)
        file[i] = (unsigned char)(length >> (8 * (i - 8)));
    memcpy(file + prefix, dict, length);
    *bytes = prefix + length;
    return file;
}

static dpi_status parse(int version, const char *dict, npy_header *h, dpi_error *error)
{
    size_t bytes;
    unsigned char *file = wrap(version, dict, &bytes);
    error->message[0] = 0;
    dpi_status status = npy_parse(file, bytes, "the-file.npy", h, error);
    if (!status)
        assert_int_equal(h->data_offset, bytes);
    free(file);
    return status;
}

static void good_headers(void **state)
{
    (void)state;
    static const struct {
        const char *dict;
        dpi_dtype dtype;
        int rank;
        int64_t shape[4];
        uint64_t data_bytes;
    } good[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }\n", DPI_F32, 2, {3, 4}, 48},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", DPI_F32, 1, {3}, 12},
        {"{'descr': '<f8', 'fortran_order': False, 'shape': ()}", DPI_F64, 0, {0}, 8},
        {"{'shape':(2,3,4),'descr':'|u1','fortran_order':False}   ", DPI_U8, 3, {2, 3, 4}, 24},
        {"{\"shape\" : ( 2 , ) , \"descr\":\"|b1\", \"fortran_order\":\tFalse}", DPI_BOOL, 1, {2}, 2},
        {"{'descr': '=i8', 'fortran_order': False, 'shape': (0, 7), }", DPI_I64, 2, {0, 7}, 0},
        {"{'descr': '<u2', 'fortran_order': True, 'shape': (7,), }", DPI_U16, 1, {7}, 14},
        {"{'descr': '<f2', 'fortran_order': True, 'shape': (7, 1), }", DPI_F16, 2, {7, 1}, 14},
        {"{'descr': '>i1', 'fortran_order': False, 'shape': (7, 1), }", DPI_I8, 2, {7, 1}, 7},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 2)}", DPI_I32, 8, {1, 1, 1, 1}, 8},
    };
    for (int version = 1; version <= 3; version++)
        for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
            npy_header h;
            dpi_error error = {0};
            if (parse(version, good[i].dict, &h, &error))
                fail_msg("%s: %s", good[i].dict, error.message);
            assert_int_equal(h.dtype, good[i].dtype);
            assert_int_equal(h.rank, good[i].rank);
            for (int k = 0; k < good[i].rank && k < 4; k++)
                assert_int_equal(h.shape[k], good[i].shape[k]);
            assert_int_equal(h.data_bytes, good[i].data_bytes);
        }
}

static void bad_headers(void **state)
{
    (void)state;
#define REST ", 'fortran_order': False, 'shape': (3, 4), }"
    static const struct {
        const char *dict, *part;
    } bad[] = {
        {"", "not valid"},
        {"{", "not valid"},
        {"{}", "not valid"},
        {"}", "not valid"},
        {"{'descr': '<f4'}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)", "not valid"},
        {"{'descr': '<f4', 'descr': '<f4'" REST, "not valid"},
        {"{'descr': '<f4', 'extra': 1" REST, "not valid"},
        {"{'descr': '<f4'" REST " x", "not valid"},
        {"{'descr': '<f4'" REST "}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3)}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': 3}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': [3]}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3 4)}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (,)}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3,,4)}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4)}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,)}", "not valid"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9)}", "overflow"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", "overflow"},
        {"{'descr': '<f8', 'fortran_order': False, 'shape': (2305843009213693951,)}", "overflow"},
        {"{'descr': '>f4'" REST, "big-endian"},
        {"{'descr': '|O'" REST, "objects"},
        {"{'descr': '<c8'" REST, "<c8"},
        {"{'descr': '<U5'" REST, "<U5"},
        {"{'descr': '<M8[ns]'" REST, "<M8"},
        {"{'descr': 'f4'" REST, "f4"},
        {"{'descr': ''" REST, "dtype"},
        {"{'descr': '<'" REST, "dtype"},
        {"{'descr': [('a', '<f4')]" REST, "structured"},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }", "Fortran"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        npy_header h;
        dpi_error error = {0};
        dpi_status status = parse(1, bad[i].dict, &h, &error);
        if (status != DPI_E_DATA || !strstr(error.message, bad[i].part) || !strstr(error.message, "the-file.npy"))
            fail_msg("%s: %s \"%s\"", bad[i].dict, dpi_status_name(status), error.message);
    }
}

static void bad_beginnings(void **state)
{
    (void)state;
    npy_header h;
    dpi_error error;
    size_t bytes;
    unsigned char *file = wrap(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }\n", &bytes);
    for (size_t n = 0; n < bytes; n++) { /* cut anywhere */
        unsigned char *cut = malloc(n + 1);
        memcpy(cut, file, n);
        unsigned char *exact = malloc(n ? n : 1);
        memcpy(exact, cut, n);
        assert_int_equal(npy_parse(exact, n, "cut", &h, &error), DPI_E_DATA);
        free(exact);
        free(cut);
    }
    file[6] = 4;
    assert_int_equal(npy_parse(file, bytes, "new", &h, &error), DPI_E_DATA);
    assert_non_null(strstr(error.message, "version"));
    file[6] = 2; /* its length is now four bytes, huge */
    file[11] = 0xff;
    assert_int_equal(npy_parse(file, bytes, "huge", &h, &error), DPI_E_DATA);
    assert_non_null(strstr(error.message, "header"));
    file[0] = 'P';
    assert_int_equal(npy_parse(file, bytes, "zip", &h, &error), DPI_E_DATA);
    assert_non_null(strstr(error.message, "not a .npy"));
    free(file);
}

/* A valid header with random bytes changed: an answer always comes, and its sizes are consistent. */
static void mutated_headers(void **state)
{
    (void)state;
    static const char dict[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }";
    for (uint64_t i = 0; i < 100000; i++) {
        size_t bytes;
        npy_header h;
        dpi_error error;
        unsigned char *file = wrap((int)(i % 3) + 1, dict, &bytes);
        for (uint64_t k = 0; k <= i % 4; k++) {
            uint64_t draw = hash_mix64(i, k);
            static const char likely[] = "0123456789(){}',:<>|-TF \n\\\0x";
            file[draw % bytes] =
                (unsigned char)(draw & 1ull << 40 ? likely[(draw >> 41) % sizeof likely] : (char)(draw >> 41));
        }
        if (npy_parse(file, bytes, "mutated", &h, &error) == DPI_OK) {
            size_t size = 0;
            assert_true(shape_bytes(h.dtype, h.shape, h.rank, &size));
            assert_int_equal(size, h.data_bytes);
            assert_true(h.data_offset <= bytes);
        }
        free(file);
    }
}

static void what_is_written_is_read(void **state)
{
    (void)state;
#define X(dtype, number, bytes, text) dtype,
    static const dpi_dtype all[] = {DPI_DTYPE_LIST(X)};
#undef X
    static const int64_t shape[DPI_MAX_RANK] = {1ll << 40, 3, 1, 17, 2, 5, 1, 2};
    for (size_t d = 0; d < sizeof all / sizeof all[0]; d++)
        for (int rank = 0; rank <= DPI_MAX_RANK; rank++) {
            char buffer[512];
            npy_header h;
            dpi_error error;
            size_t length = npy_format(all[d], shape, rank, buffer, sizeof buffer);
            assert_true(length > 0 && length % 64 == 0);
            assert_int_equal(buffer[length - 1], '\n');
            if (npy_parse(buffer, length, "own", &h, &error))
                fail_msg("rank %d: %.*s: %s", rank, (int)length - 10, buffer + 10, error.message);
            assert_int_equal(h.dtype, all[d] == DPI_BF16 ? DPI_U16 : all[d]);
            assert_int_equal(h.rank, rank);
            assert_memory_equal(h.shape, shape, (size_t)rank * sizeof shape[0]);
            assert_int_equal(h.data_offset, length);
            assert_int_equal(npy_format(all[d], shape, rank, buffer, length - 1), 0);
        }
    char buffer[512];
    size_t length = npy_format(DPI_F32, (int64_t[]){3, 4}, 2, buffer, sizeof buffer);
    assert_int_equal(strncmp(buffer + 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }", 59), 0);
    assert_int_equal(length, 128);
    npy_format(DPI_U8, (int64_t[]){3}, 1, buffer, sizeof buffer);
    assert_int_equal(strncmp(buffer + 10, "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }", 57), 0);
}

static void small_files_are_loaded(void **state)
{
    (void)state;
    char path[] = "/tmp/dpi-test-npy-XXXXXX", buffer[256];
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    size_t length = npy_format(DPI_I32, (int64_t[]){3}, 1, buffer, sizeof buffer);
    memcpy(buffer + length, (int32_t[]){7, 8, 9}, 12);
    assert_int_equal(write(fd, buffer, length + 12), length + 12);
    npy_header h;
    void *data;
    dpi_error error;
    assert_int_equal(npy_load(path, 1000, &h, &data, &error), DPI_OK);
    assert_int_equal(((int32_t *)data)[2], 9);
    free(data);
    assert_int_equal(ftruncate(fd, (off_t)length + 11), 0);
    assert_int_equal(npy_load(path, 1000, &h, &data, &error), DPI_E_DATA);
    assert_non_null(strstr(error.message, "11 of 12"));
    assert_null(data);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    assert_true(npy_load(path, 1000, &h, &data, &error) != DPI_OK);
    close(fd);
    unlink(path);
    assert_int_equal(npy_load(path, 1000, &h, &data, &error), DPI_E_DATA);
    assert_non_null(strstr(error.message, path));
    assert_int_equal(npy_load("/tmp", 1000, &h, &data, &error), DPI_E_DATA);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(good_headers),
        cmocka_unit_test(bad_headers),
        cmocka_unit_test(bad_beginnings),
        cmocka_unit_test(mutated_headers),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(small_files_are_loaded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
