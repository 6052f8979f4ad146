/* The index of images: what was put in comes out, and anything else is refused. */
#include "data/sample_index.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

static const image_plan plan = {
    .geometry = {.resize_width = 256, .width = 224, .height = 224, .channels = 3, .max_pixels = 1000},
    .dtype = DPI_U8,
    .max_bytes = 1000};

static void fill(sample_list *list, size_t count)
{
    char name[32];
    for (size_t i = 0; i < count; i++) {
        snprintf(name, sizeof name, "photo %zu.jpg", i);
        uint32_t at = sample_text(list, name);
        sample_add(list, (sample_row){.path = at, .name = at, .offset = i * 512, .bytes = i});
    }
}

static void what_goes_in_comes_out(void **state)
{
    (void)state;
    static const size_t counts[] = {0, 1, 1023, 1024, 5000};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        sample_list list = {0};
        sample_index index;
        dpi_error error;
        char name[32];
        fill(&list, counts[c]);
        assert_int_equal(sample_index_make(&list, &plan, &index, &error), DPI_OK);
        sample_list_free(&list);
        assert_int_equal(index.count, counts[c]);
        assert_int_equal(index.plan->geometry.width, 224);
        for (size_t i = 0; i < counts[c]; i++) {
            snprintf(name, sizeof name, "photo %zu.jpg", i);
            assert_string_equal(sample_string(&index, index.rows[i].name), name);
            assert_int_equal(index.rows[i].offset, i * 512);
        }
        assert_null(sample_string(&index, 0));
        assert_null(sample_string(&index, UINT32_MAX));
        assert_int_equal(index.base[0], '/');
        sample_index_close(&index);
    }
}

static int memory_of(const unsigned char *data, size_t bytes, bool sealed)
{
    int fd = memfd_create("test", MFD_ALLOW_SEALING);
    assert_int_equal(write(fd, data, bytes), bytes);
    if (sealed)
        assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), 0);
    return fd;
}

/* Opened and every string asked for: no read beyond it, whatever stands there. */
static void try_bytes(const unsigned char *data, size_t bytes)
{
    sample_index index;
    dpi_error error;
    int fd = memory_of(data, bytes, true);
    if (sample_index_open(fd, &index, &error) == DPI_OK) {
        for (uint64_t i = 0; i < index.count; i++) {
            const char *name = sample_string(&index, index.rows[i].name);
            if (name)
                assert_true(strlen(name) < bytes);
        }
        sample_index_close(&index);
    }
    close(fd);
}

static void anything_else_is_refused(void **state)
{
    (void)state;
    sample_list list = {0};
    sample_index index, other;
    dpi_error error;
    fill(&list, 3);
    assert_int_equal(sample_index_make(&list, &plan, &index, &error), DPI_OK);
    sample_list_free(&list);
    size_t bytes = index.bytes;
    unsigned char *copy = malloc(bytes);
    memcpy(copy, index.map, bytes);
    sample_index_close(&index);
    int fd = memory_of(copy, bytes, false);
    assert_int_equal(sample_index_open(fd, &other, &error), DPI_E_DATA); /* could shrink under its reader */
    close(fd);
    for (size_t cut = 0; cut < bytes; cut++) {
        fd = memory_of(copy, cut, true);
        assert_int_equal(sample_index_open(fd, &other, &error), DPI_E_DATA);
        close(fd);
    }
    for (size_t at = 0; at < bytes; at++)
        for (int bit = 0; bit < 8; bit++) {
            copy[at] ^= (unsigned char)(1 << bit);
            try_bytes(copy, bytes);
            copy[at] ^= (unsigned char)(1 << bit);
        }
    free(copy);
    assert_int_equal(sample_index_open(0x7fffffff, &other, &error), DPI_E_DATA);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_goes_in_comes_out),
        cmocka_unit_test(anything_else_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
