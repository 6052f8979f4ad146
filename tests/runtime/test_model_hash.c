/* A model is its file and the weights beside it: when one of them changes, so does the hash, and a cached engine is not
 * taken for it. */
#include "runtime/model_hash.h"

#include "base/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct bytes {
    unsigned char data[4096];
    size_t count;
} bytes;

/* A field of a protobuf message that has a length. */
static bytes field(unsigned number, const void *data, size_t count)
{
    bytes b = {{0}, 0};
    uint64_t numbers[2] = {(uint64_t)number << 3 | 2, count};
    for (int i = 0; i < 2; i++) {
        for (; numbers[i] > 127; numbers[i] >>= 7)
            b.data[b.count++] = (unsigned char)(numbers[i] | 128);
        b.data[b.count++] = (unsigned char)numbers[i];
    }
    assert_true(b.count + count <= sizeof b.data);
    memcpy(b.data + b.count, data, count);
    b.count += count;
    return b;
}

static bytes wrap(unsigned number, bytes inner) { return field(number, inner.data, inner.count); }

static bytes join(bytes a, bytes b)
{
    assert_true(a.count + b.count <= sizeof a.data);
    memcpy(a.data + a.count, b.data, b.count);
    a.count += b.count;
    return a;
}

/* A tensor whose values are in a file: its name, a dimension, then where. */
static bytes tensor(const char *file)
{
    static const unsigned char dimension[] = {1 << 3, 0x90, 0x03}, location[] = {14 << 3, 1};
    bytes entry = join(field(1, "location", 8), field(2, file, strlen(file)));
    bytes offset = join(field(1, "offset", 6), field(2, "4096", 4)), t = {{0}, 0};
    memcpy(t.data, dimension, t.count = sizeof dimension);
    t = join(t, join(wrap(13, offset), wrap(13, entry)));
    memcpy(t.data + t.count, location, sizeof location);
    t.count += sizeof location;
    return t;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static void put(const char *folder, const char *name, const void *data, size_t count)
{
    char *path = text_format("%s/%s", folder, name);
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    assert_int_equal(fwrite(data, 1, count, out), count);
    assert_int_equal(fclose(out), 0);
    free(path);
}

static hash128 hash_file(const char *folder, const char *name, const char *format)
{
    char *path = text_format("%s/%s", folder, name);
    backend_model model = {.path = path, .format = format};
    hash128 hash = {0, 0};
    dpi_error error = {0};
    if (model_hash(NULL, &model, &hash, &error))
        fail_msg("%s", error.message);
    free(path);
    return hash;
}

static bool same(hash128 a, hash128 b) { return a.low == b.low && a.high == b.high; }

static int setup(void **state)
{
    char *folder = strdup("/tmp/dpi-model-XXXXXX");
    *state = folder;
    return folder && mkdtemp(folder) ? 0 : -1;
}

static int teardown(void **state)
{
    char *command = text_format("rm -rf %s", (char *)*state);
    int code = system(command);
    free(command);
    free(*state);
    return code;
}

/* The hash follows the file `weights` and no other, for a model of these bytes. */
static void follows(const char *folder, bytes model, const char *weights)
{
    put(folder, "m.onnx", model.data, model.count);
    put(folder, "other", "x", 1);
    put(folder, weights, "first", 5);
    hash128 first = hash_file(folder, "m.onnx", "onnx");
    put(folder, "other", "y", 1);
    assert_true(same(first, hash_file(folder, "m.onnx", "onnx")));
    put(folder, weights, "other", 5);
    hash128 second = hash_file(folder, "m.onnx", "onnx");
    assert_false(same(first, second));
    put(folder, weights, "first", 5);
    assert_true(same(first, hash_file(folder, "m.onnx", "onnx")));
    char *path = text_format("%s/%s", folder, weights);
    assert_int_equal(unlink(path), 0);
    free(path);
    assert_false(same(first, hash_file(folder, "m.onnx", "onnx")));
}

static void weights_in_files_are_found_wherever_a_model_names_them(void **state)
{
    bytes t = tensor("w.data");
    bytes constant = wrap(1, wrap(5, wrap(5, t))); /* of a graph: node, attribute, tensor */
    follows(*state, wrap(7, wrap(5, t)), "w.data");
    follows(*state, wrap(7, constant), "w.data");
    follows(*state, wrap(7, wrap(1, wrap(5, wrap(6, wrap(5, t))))), "w.data");      /* a branch's graph */
    follows(*state, wrap(7, wrap(1, wrap(5, wrap(11, constant)))), "w.data");       /* several graphs */
    follows(*state, wrap(7, wrap(15, wrap(2, t))), "w.data");                       /* sparse */
    follows(*state, wrap(25, wrap(7, wrap(5, wrap(5, t)))), "w.data");              /* a function */
    follows(*state, join(wrap(7, wrap(5, tensor("v"))), wrap(7, wrap(5, t))), "v"); /* the first of two */
    follows(*state, join(wrap(7, wrap(5, tensor("v"))), wrap(7, wrap(5, t))), "w.data");
}

static void a_model_in_one_file_is_that_file(void **state)
{
    hash128 plain;
    bytes inside = join(wrap(7, wrap(5, field(9, "location of w.data", 18))), field(2, "location", 8));
    put(*state, "m.onnx", inside.data, inside.count);
    char *path = text_format("%s/m.onnx", (char *)*state);
    assert_int_equal(cache_hash_file(NULL, path, &plain, NULL), DPI_OK);
    assert_true(same(plain, hash_file(*state, "m.onnx", "onnx")));
    hash128 memory;
    backend_model model = {.data = "abc", .bytes = 3, .format = "onnx"};
    assert_int_equal(model_hash(NULL, &model, &memory, NULL), DPI_OK);
    assert_true(same(memory, hash_of("abc", 3)));
    free(path);
}

static void ir_is_its_text_and_its_weights(void **state)
{
    put(*state, "m.xml", "<net/>", 6);
    hash128 alone = hash_file(*state, "m.xml", "xml");
    put(*state, "m.bin", "1234", 4);
    hash128 first = hash_file(*state, "m.xml", "xml");
    put(*state, "m.bin", "1235", 4);
    hash128 second = hash_file(*state, "m.xml", "xml");
    put(*state, "m.xml", "<net />", 7);
    hash128 third = hash_file(*state, "m.xml", "xml");
    assert_false(same(alone, first) || same(first, second) || same(second, third) || same(alone, second));
}

static void a_missing_model_is_named(void **state)
{
    char *path = text_format("%s/none.onnx", (char *)*state);
    backend_model model = {.path = path, .format = "onnx"};
    hash128 hash;
    dpi_error error = {0};
    assert_int_equal(model_hash(NULL, &model, &hash, &error), DPI_E_MODEL);
    assert_non_null(strstr(error.message, path));
    free(path);
}

/* Cut, bent, and nested without end: some hash, no crash. The engine refuses what is no model. */
static void what_is_no_model_has_a_hash_too(void **state)
{
    bytes model = wrap(7, join(wrap(5, tensor("w.data")), wrap(1, wrap(5, wrap(6, wrap(5, tensor("v")))))));
    put(*state, "w.data", "w", 1);
    for (size_t cut = 0; cut <= model.count; cut++) {
        put(*state, "m.onnx", model.data, cut);
        hash_file(*state, "m.onnx", "onnx");
    }
    for (uint64_t i = 0; i < 3000; i++) {
        bytes bent = model;
        for (uint64_t k = 0; k < 1 + i % 4; k++)
            bent.data[hash_mix64(i, k) % bent.count] = (unsigned char)hash_mix64(i, k + 100);
        put(*state, "m.onnx", bent.data, bent.count);
        hash_file(*state, "m.onnx", "onnx");
    }
    bytes deep = tensor("w.data");
    for (int i = 0; i < 200; i++)
        deep = wrap(i % 3 == 0 ? 6 : i % 3 == 1 ? 5 : 1, deep);
    deep = wrap(7, deep);
    put(*state, "m.onnx", deep.data, deep.count);
    hash_file(*state, "m.onnx", "onnx");
    put(*state, "m.onnx", "", 0);
    hash_file(*state, "m.onnx", "onnx");
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(weights_in_files_are_found_wherever_a_model_names_them),
        T(a_model_in_one_file_is_that_file),
        T(ir_is_its_text_and_its_weights),
        T(a_missing_model_is_named),
        T(what_is_no_model_has_a_hash_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
