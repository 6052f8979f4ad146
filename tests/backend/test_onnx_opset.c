/* Which operators a model uses, read off its first bytes: whole, cut short, hostile. */
#include "backend/onnx_opset.h"

#include "backend/onnx_file.h"
#include "base/file.h"
#include "base/hash.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static int64_t opset_of(const void *data, size_t bytes)
{
    unsigned char *copy = malloc(bytes ? bytes : 1); /* of just this size, for the address sanitizer */
    assert_non_null(copy);
    memcpy(copy, data, bytes);
    int64_t opset = onnx_opset(&(backend_model){.data = copy, .bytes = bytes, .format = "onnx"});
    free(copy);
    return opset;
}

static void a_model_in_memory_and_in_a_file(void **state)
{
    (void)state;
    onnx m = onnx_small();
    text_buffer model = onnx_bytes(&m);
    assert_int_equal(opset_of(model.data, model.length), 17);
    char path[] = "/tmp/dpi-opset-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(file_write_at(fd, model.data, model.length, 0, path, NULL), DPI_OK);
    close(fd);
    int64_t opset = onnx_opset(&(backend_model){.path = path, .format = "onnx"});
    unlink(path);
    assert_int_equal(opset, 17);
    free(model.data);
    assert_int_equal(onnx_opset(&(backend_model){.path = "/nowhere.onnx", .format = "onnx"}), 0);
    assert_int_equal(onnx_opset(&(backend_model){.path = "/", .format = "onnx"}), 0);
}

static void the_standard_operators_count(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t length;
        int64_t opset;
    } cases[] = {
#define MODEL(text, opset) {text, sizeof text - 1, opset}
        MODEL("", 0),
        MODEL("\x08\x08\x42\x02\x10\x14", 20),
        MODEL("\x42\x04\x0a\x00\x10\x12", 18), /* the empty domain, spelt out */
        MODEL("\x42\x0b\x0a\x07"
              "ai.onnx\x10\x0d",
              13),
        MODEL("\x42\x0b\x0a\x07"
              "other.d\x10\x63\x42\x02\x10\x11",
              17), /* another domain's beside it */
        MODEL("\x42\x0e\x0a\x0a"
              "ai.onnx.ml\x10\x05",
              0),
        MODEL("\x42\x02\x10\x11\x42\x02\x10\x14", 20),                            /* the newest of two */
        MODEL("\x42\x7f\x10\x11", 0),                                             /* longer than the file */
        MODEL("\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x42\x02\x10\x11", 0), /* a field of 2^64 bytes */
        MODEL("\x42\x0b\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 0),         /* a version of 2^64 */
        MODEL("\x43\x44\x42\x02\x10\x11", 0),                                     /* groups are no fields of ONNX */
        MODEL("\x0d\x01\x02\x03\x04\x11\x01\x02\x03\x04\x05\x06\x07\x08\x42\x02\x10\x0b", 11),
#undef MODEL
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int64_t got = opset_of(cases[i].bytes, cases[i].length);
        if (got != cases[i].opset)
            fail_msg("case %zu: %lld instead of %lld", i, (long long)got, (long long)cases[i].opset);
    }
}

static void broken_bytes_do_no_harm(void **state)
{
    (void)state;
    onnx m = onnx_small();
    text_buffer model = onnx_bytes(&m);
    for (size_t length = 0; length < model.length; length++) {
        int64_t opset = opset_of(model.data, length);
        assert_true(opset == 0 || opset == 17);
    }
    for (uint64_t seed = 0; seed < 2000; seed++) {
        char *spoilt = malloc(model.length);
        assert_non_null(spoilt);
        memcpy(spoilt, model.data, model.length);
        for (uint64_t k = 0; k < 4; k++)
            spoilt[hash_mix64(seed, k) % model.length] = (char)hash_mix64(seed, k + 4);
        assert_true(opset_of(spoilt, model.length) >= 0);
        free(spoilt);
    }
    free(model.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_model_in_memory_and_in_a_file),
        cmocka_unit_test(the_standard_operators_count),
        cmocka_unit_test(broken_bytes_do_no_harm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
