/* Where a model comes from: a file, memory, weights beside it; and files that are none. */
#include "backend/conformance.h"
#include "backend/conformance_trial.h"
#include "base/file.h"
#include "base/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static dpi_status open_bytes(const conformance *suite, const void *data, size_t bytes, backend_engine **engine,
                             dpi_error *error)
{
    backend_model model = {.data = data, .bytes = bytes, .format = suite->kit->format};
    backend_open_options options = conformance_options(suite, &model);
    *engine = NULL;
    *error = (dpi_error){0};
    return suite->kit->backend->open(suite->library, &options, engine, error);
}

void a_model_in_memory_is_the_same_model(void **state)
{
    const conformance *suite = *state;
    char *path = conformance_make(suite, "mlp");
    void *data;
    size_t bytes;
    backend_engine *from_file = conformance_open_named(suite, "mlp", 16), *from_memory;
    dpi_error error;
    assert_int_equal(file_read(path, 1 << 24, &data, &bytes, NULL), DPI_OK);
    if (open_bytes(suite, data, bytes, &from_memory, &error))
        fail_msg("%s", error.message);
    trial *a = conformance_start(suite, from_file, "mlp", 7), *b = conformance_start(suite, from_memory, "mlp", 7);
    trial_run(a);
    trial_run(b);
    trial_compare(a, b, 0, 7, 0);
    trial_end(a);
    trial_end(b);
    suite->kit->backend->close(from_file);
    suite->kit->backend->close(from_memory);
    free(data);
    free(path);
}

void external_weights_are_found_beside_the_model(void **state)
{
    const conformance *suite = *state;
    if (!suite->kit->standard_cases)
        skip();
    backend_engine *whole = conformance_open_named(suite, "mlp", 16),
                   *external = conformance_open_named(suite, "mlp-external", 16);
    trial *a = conformance_start(suite, whole, "mlp", 7), *b = conformance_start(suite, external, "mlp", 7);
    trial_run(a);
    trial_run(b);
    trial_compare(a, b, 0, 7, 0);
    trial_end(a);
    trial_end(b);
    suite->kit->backend->close(whole);
    suite->kit->backend->close(external);
}

static void write_file(const char *path, const void *data, size_t bytes)
{
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(data, 1, bytes, out), bytes);
    assert_int_equal(fclose(out), 0);
}

/* From a file and from memory: never a crash; an engine, or DPI_E_MODEL naming the file. `what` names the case. */
static void try_broken(const conformance *suite, const char *what, const void *data, size_t bytes, bool must_fail)
{
    char *folder = conformance_folder(), *path = text_format("%s/broken.%s", folder, suite->kit->format);
    dpi_status status;
    dpi_error error = {0};
    write_file(path, data, bytes);
    backend_engine *engine = conformance_open(suite, path, 4, &status, &error);
    if (engine)
        suite->kit->backend->close(engine);
    if ((must_fail || status) && (status != DPI_E_MODEL || !strstr(error.message, path)))
        fail_msg("%s, %zu bytes: status %d, \"%s\"", what, bytes, status, error.message);
    status = open_bytes(suite, data, bytes, &engine, &error);
    if (engine)
        suite->kit->backend->close(engine);
    if ((must_fail || status) && status != DPI_E_MODEL)
        fail_msg("%s, %zu bytes in memory: status %d, \"%s\"", what, bytes, status, error.message);
    free(path);
    free(folder);
}

void broken_models_are_refused(void **state)
{
    const conformance *suite = *state;
    if (suite->kit->parser_crashes) {
        print_message("%s crashes on some of these: tools/try_broken.py tries them in workers\n",
                      suite->kit->backend->name);
        skip();
    }
    char *path = conformance_make(suite, "mlp");
    unsigned char *data;
    void *read;
    size_t bytes;
    assert_int_equal(file_read(path, 1 << 24, &read, &bytes, NULL), DPI_OK);
    data = read;
    try_broken(suite, "empty", data, 0, true);
    try_broken(suite, "one byte", data, 1, true);
    for (uint64_t i = 0; i < 8; i++)
        try_broken(suite, "cut", data, hash_mix64(1, i) % bytes, suite->kit->standard_cases);
    try_broken(suite, "last byte missing", data, bytes - 1, suite->kit->standard_cases);
    for (uint64_t i = 0; i < 16; i++) { /* one byte wrong: it may well be a valid model still */
        size_t at = hash_mix64(2, i) % (bytes < 200 ? bytes : 200);
        data[at] ^= (unsigned char)(1u << (i % 8));
        char what[64];
        snprintf(what, sizeof what, "bit %d of byte %zu flipped", (int)(i % 8), at);
        try_broken(suite, what, data, bytes, false);
        data[at] ^= (unsigned char)(1u << (i % 8));
    }
    unsigned char noise[5000];
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (unsigned char)hash_mix64(3, i);
    try_broken(suite, "noise", noise, sizeof noise, true);
    memset(noise, 0, sizeof noise);
    try_broken(suite, "zeros", noise, sizeof noise, true);
    free(data);
    free(path);
}

void a_model_that_lies_about_its_size_is_refused(void **state)
{
    const conformance *suite = *state;
    if (!suite->kit->standard_cases)
        skip();
    char *path = conformance_make(suite, "hostile");
    void *data;
    size_t bytes;
    assert_int_equal(file_read(path, 1 << 24, &data, &bytes, NULL), DPI_OK);
    try_broken(suite, "lies about its size", data, bytes, true);
    free(data);
    free(path);
}

void a_path_that_is_no_file_is_named(void **state)
{
    const conformance *suite = *state;
    char *folder = conformance_folder(), *missing = text_format("%s/missing.%s", folder, suite->kit->format);
    const char *const paths[] = {missing, folder};
    for (size_t i = 0; i < 2; i++) {
        dpi_status status;
        dpi_error error;
        backend_engine *engine = conformance_open(suite, paths[i], 4, &status, &error);
        assert_null(engine);
        if (status != DPI_E_MODEL || !strstr(error.message, paths[i]))
            fail_msg("%s: status %d, \"%s\"", paths[i], status, error.message);
    }
    free(missing);
    free(folder);
}
