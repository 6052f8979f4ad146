/* What of CUDA needs no GPU: how a device's name becomes CUDA_VISIBLE_DEVICES. */
#include "backend/cuda.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static void names_become_entries(void **state)
{
    (void)state;
    static const struct {
        const char *device, *visible, *entry; /* entry NULL: refused */
    } cases[] = {
        {"cuda:0", NULL, "0"},
        {"cuda:3", NULL, "3"},
        {"cuda:0", "2,3", "2"},
        {"cuda:1", " 2 , 3 ", "3"},
        {"cuda:2", "2,3", NULL},
        {"cuda:0", "", NULL},
        {"cuda:1", "GPU-1234,GPU-abcd", "GPU-abcd"},
        {"cuda:GPU-abcd-ef", NULL, "GPU-abcd-ef"},
        {"cuda:GPU-abcd-ef", "GPU-1234,GPU-abcd", "GPU-abcd-ef"}, /* a beginning stands for the whole */
        {"cuda:GPU-abcd-ef", "GPU-1234", NULL},
        {"cuda:MIG-77", NULL, "MIG-77"},
        {"cuda:MIG-77", "MIG-78", NULL},
        {"cuda:0000:3b:00.0", NULL, NULL},
        {"cuda:x", NULL, NULL},
        {"cuda:-1", NULL, NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char entry[192] = "";
        dpi_error error = {0};
        dpi_status status = cuda_visible_entry(cases[i].device, cases[i].visible, entry, sizeof entry, &error);
        if (cases[i].entry) {
            assert_int_equal(status, DPI_OK);
            assert_string_equal(entry, cases[i].entry);
        } else {
            assert_int_equal(status, DPI_E_DEVICE);
            assert_non_null(strstr(error.message, cases[i].device));
        }
    }
}

static void a_name_that_is_too_long_is_refused(void **state)
{
    (void)state;
    char device[400] = "cuda:GPU-", entry[192];
    memset(device + 9, 'a', sizeof device - 10);
    assert_int_equal(cuda_visible_entry(device, NULL, entry, sizeof entry, NULL), DPI_E_DEVICE);
}

static void without_a_driver_nothing_happens(void **state)
{
    (void)state;
    const cuda_api *api;
    dpi_error error = {0};
    if (cuda_may_be_there())
        skip();
    assert_int_equal(cuda_load(&api, &error), DPI_E_BACKEND);
    assert_non_null(strstr(error.message, "driver"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_become_entries),
        cmocka_unit_test(a_name_that_is_too_long_is_refused),
        cmocka_unit_test(without_a_driver_nothing_happens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
