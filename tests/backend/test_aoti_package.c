/* Reading .pt2 packages: whole ones, damaged ones, and what is refused by name. No PyTorch is needed. */
#include "backend/aoti_package.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define FOLDER "m/data/aotinductor/model/"

typedef struct part {
    const char *name, *text;
} part;

typedef struct bytes {
    unsigned char data[8192];
    size_t count;
} bytes;

static void put(bytes *b, uint64_t value, int count)
{
    for (int i = 0; i < count; i++, value >>= 8)
        b->data[b->count++] = (unsigned char)value;
}

static void put_text(bytes *b, const char *text, size_t length)
{
    memcpy(b->data + b->count, text, length);
    b->count += length;
}

/* An archive of stored entries, with 64-bit sizes where `long_sizes`. */
static void make_archive(bytes *b, const part *parts, size_t count, bool long_sizes)
{
    uint64_t at[16];
    *b = (bytes){.count = 0};
    for (size_t i = 0; i < count; i++) {
        size_t name = strlen(parts[i].name), size = strlen(parts[i].text);
        at[i] = b->count;
        put(b, 0x04034b50, 4);
        put(b, 0, 14);
        put(b, size, 4);
        put(b, size, 4);
        put(b, name, 2);
        put(b, 0, 2);
        put_text(b, parts[i].name, name);
        put_text(b, parts[i].text, size);
    }
    uint64_t directory = b->count;
    for (size_t i = 0; i < count; i++) {
        size_t name = strlen(parts[i].name), size = strlen(parts[i].text);
        put(b, 0x02014b50, 4);
        put(b, 0, 16);
        put(b, long_sizes ? UINT32_MAX : size, 4);
        put(b, long_sizes ? UINT32_MAX : size, 4);
        put(b, name, 2);
        put(b, long_sizes ? 28 : 0, 2);
        put(b, 0, 10);
        put(b, long_sizes ? UINT32_MAX : at[i], 4);
        put_text(b, parts[i].name, name);
        if (long_sizes) {
            put(b, 1, 2);
            put(b, 24, 2);
            put(b, size, 8);
            put(b, size, 8);
            put(b, at[i], 8);
        }
    }
    uint64_t end = b->count, length = end - directory;
    if (long_sizes) {
        put(b, 0x06064b50, 4);
        put(b, 44, 8);
        put(b, 0, 12);
        put(b, count, 8);
        put(b, count, 8);
        put(b, length, 8);
        put(b, directory, 8);
        put(b, 0x07064b50, 4);
        put(b, 0, 4);
        put(b, end, 8);
        put(b, 1, 4);
    }
    put(b, 0x06054b50, 4);
    put(b, 0, 4);
    put(b, long_sizes ? UINT16_MAX : count, 2);
    put(b, long_sizes ? UINT16_MAX : count, 2);
    put(b, long_sizes ? UINT32_MAX : length, 4);
    put(b, long_sizes ? UINT32_MAX : directory, 4);
    put(b, 0, 2);
}

static const part whole[] = {
    {FOLDER "a.wrapper.so", "a library"},
    {FOLDER "a.kernel_metadata.json", "{\"AOTI_DEVICE_KEY\": \"other\"}"},
    {FOLDER "a.wrapper_metadata.json",
     "{\"AOTI_DEVICE_KEY\": \"cpu\", \"DPINFER_INPUTS\": \"x float32 1:8,3\", \"DPINFER_OUTPUTS\": \"y\"}"},
    {"m/version", "1"},
};

static dpi_status open_bytes(const void *data, size_t count, aoti_package *p, dpi_error *error)
{
    backend_model model = {.data = data, .bytes = count, .format = "pt2"};
    backend_device device = {.kind = "cpu", .name = "cpu:0"};
    *error = (dpi_error){0};
    return aoti_package_open(&model, &device, p, error);
}

static void refused(const part *parts, size_t count, dpi_status want, const char *word)
{
    static bytes b;
    aoti_package p;
    dpi_error error;
    make_archive(&b, parts, count, false);
    dpi_status status = open_bytes(b.data, b.count, &p, &error);
    aoti_package_close(&p);
    if (status != want || !strstr(error.message, word))
        fail_msg("status %d instead of %d, \"%s\" without \"%s\"", status, want, error.message, word);
}

static void a_whole_package_is_read(void **state)
{
    (void)state;
    static bytes b;
    for (int long_sizes = 0; long_sizes < 2; long_sizes++) {
        aoti_package p;
        dpi_error error;
        make_archive(&b, whole, 4, long_sizes);
        if (open_bytes(b.data, b.count, &p, &error))
            fail_msg("%s", error.message);
        assert_string_equal(p.device, "cpu");
        assert_string_equal(p.inputs, "x float32 1:8,3");
        assert_string_equal(p.outputs, "y");
        assert_int_equal(p.zip.count, 4);
        assert_int_equal(aoti_package_unpack(&p, &error), DPI_OK);
        char text[16] = {0};
        assert_int_equal(pread(p.library_fd, text, sizeof text, 0), 9);
        assert_string_equal(text, "a library");
        assert_null(p.kernels.path);
        aoti_package_close(&p);
    }
}

static void kernels_are_unpacked_and_removed(void **state)
{
    (void)state;
    static bytes b;
    part parts[5] = {[4] = {FOLDER "k.cubin", "code"}};
    memcpy(parts, whole, sizeof whole);
    make_archive(&b, parts, 5, false);
    aoti_package p;
    dpi_error error;
    assert_int_equal(open_bytes(b.data, b.count, &p, &error), DPI_OK);
    assert_int_equal(aoti_package_unpack(&p, &error), DPI_OK);
    char file[600];
    struct stat info;
    snprintf(file, sizeof file, "%s/k.cubin", p.kernels.path);
    assert_int_equal(stat(file, &info), 0);
    assert_int_equal(info.st_size, 4);
    aoti_package_close(&p);
    assert_int_not_equal(stat(file, &info), 0);
}

static bool is_there(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

/* A process with kernels of its own, whose path it writes to `out`; it waits for its end. */
static pid_t keeper(int out)
{
    pid_t child = fork();
    if (child)
        return child;
    kernel_folder k;
    char path[256] = {0};
    if (kernel_folder_make(&k, NULL) || kernel_folder_add(&k, "k.cubin", "code", 4, NULL))
        _exit(1);
    snprintf(path, sizeof path, "%s", k.path);
    if (write(out, path, sizeof path) != sizeof path)
        _exit(1);
    for (;;)
        pause();
}

static void ends(pid_t child)
{
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, NULL, 0), child);
}

static void kernels_of_the_killed_are_swept(void **state)
{
    (void)state;
    char base[] = "/tmp/dpi-kernels-XXXXXX", paths[2][256], other[300], foreign[300];
    int out[2];
    assert_non_null(mkdtemp(base));
    setenv("TMPDIR", base, 1);
    snprintf(other, sizeof other, "%s/dpinfer-other", base);
    snprintf(foreign, sizeof foreign, "%s/dpinfer-kernels-foreign", base);
    assert_int_equal(mkdir(other, 0700), 0);
    assert_int_equal(symlink(other, foreign), 0);
    assert_int_equal(pipe(out), 0);
    pid_t children[2];
    for (int i = 0; i < 2; i++) {
        children[i] = keeper(out[1]);
        assert_int_equal(read(out[0], paths[i], sizeof paths[i]), sizeof paths[i]);
    }
    ends(children[0]);
    kernel_folder k;
    dpi_error error;
    assert_true(is_there(paths[0]) && is_there(paths[1]));
    assert_int_equal(kernel_folder_make(&k, &error), DPI_OK);
    assert_false(is_there(paths[0]));
    assert_true(is_there(paths[1]) && is_there(k.path) && is_there(other) && is_there(foreign));
    assert_int_equal(kernel_folder_add(&k, "../k.cubin", "code", 4, &error), DPI_E_INTERNAL);
    ends(children[1]);
    kernel_folder_remove(&k);
    assert_int_equal(kernel_folder_make(&k, &error), DPI_OK);
    kernel_folder_remove(&k);
    assert_false(is_there(paths[1]));
    unlink(foreign);
    rmdir(other);
    assert_int_equal(rmdir(base), 0); /* nothing else is left */
    assert_int_equal(kernel_folder_make(&k, &error), DPI_E_IO);
    assert_non_null(strstr(error.message, base));
    unsetenv("TMPDIR");
    close(out[0]);
    close(out[1]);
}

/* Cut anywhere, and with any byte changed: refused or read, never outside of the memory (run under a sanitizer). */
static void damaged_packages_are_refused(void **state)
{
    (void)state;
    static bytes b;
    aoti_package p;
    dpi_error error;
    for (int long_sizes = 0; long_sizes < 2; long_sizes++) {
        make_archive(&b, whole, 4, long_sizes);
        for (size_t count = 0; count < b.count; count++) {
            unsigned char *cut = malloc(count + 1);
            memcpy(cut, b.data, count);
            dpi_status status = open_bytes(cut, count, &p, &error);
            aoti_package_close(&p);
            free(cut);
            if (status != DPI_E_MODEL || !strstr(error.message, "package"))
                fail_msg("cut to %zu bytes: status %d, \"%s\"", count, status, error.message);
        }
        unsigned char *exact = malloc(b.count);
        for (size_t i = 0; i < b.count; i++)
            for (int value = 0; value < 256; value += 51) {
                memcpy(exact, b.data, b.count);
                exact[i] = (unsigned char)value;
                dpi_status status = open_bytes(exact, b.count, &p, &error);
                aoti_package_close(&p);
                if (status && status != DPI_E_MODEL && status != DPI_E_DEVICE)
                    fail_msg("byte %zu = %d: status %d, \"%s\"", i, value, status, error.message);
            }
        free(exact);
    }
}

static void what_cannot_run_is_refused_by_name(void **state)
{
    (void)state;
    part parts[5];
    memcpy(parts, whole, sizeof whole);
    parts[4] =
        (part){FOLDER "a.wrapper.json", "{\"nodes\": [{\"name\": \"n\", \"node\": {\"target\": \"my::operator\"}}]}"};
    refused(parts, 5, DPI_E_MODEL, "my::operator");
    parts[4] = (part){FOLDER "b.wrapper.so", "another"};
    refused(parts, 5, DPI_E_MODEL, "several models");
    parts[4] = (part){FOLDER "a.weights.blob", "weights"};
    refused(parts, 5, DPI_E_MODEL, "weights");
    refused(whole + 3, 1, DPI_E_MODEL, "no model");
    refused(whole, 1, DPI_E_MODEL, "for which device");
    const part gpu[] = {whole[0], {FOLDER "a.wrapper_metadata.json", "{\"AOTI_DEVICE_KEY\": \"cuda\"}"}};
    refused(gpu, 2, DPI_E_DEVICE, "compiled for cuda");
}

static void inputs_are_described(void **state)
{
    (void)state;
    static port ports[PORT_MAX];
    static aoti_range ranges[PORT_MAX];
    size_t count;
    dpi_error error;
    assert_int_equal(aoti_inputs_parse("x float32 1:256,3,2:9;ids int64 4,7", "here", ports, ranges, &count, &error),
                     DPI_OK);
    assert_int_equal(count, 2);
    assert_string_equal(ports[0].name, "x");
    assert_int_equal(ports[0].dtype, DPI_F32);
    assert_int_equal(ports[0].rank, 3);
    assert_int_equal(ports[0].shape[0], -1);
    assert_int_equal(ports[0].shape[1], 3);
    assert_int_equal(ports[0].shape[2], -1);
    assert_int_equal(ranges[0].min[2], 2);
    assert_int_equal(ranges[0].max[2], 9);
    assert_int_equal(ports[1].shape[0], 4);
    static const char *const wrong[] = {"",
                                        ";",
                                        "x",
                                        "x float32",
                                        "x float33 3",
                                        "x float32 0",
                                        "x float32 3:1",
                                        "x float32 -1",
                                        "x float32 a",
                                        "x float32 1 2",
                                        "x float32 1,2,3,4,5,6,7,8,9",
                                        "x float32 99999999999"};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        error = (dpi_error){0};
        dpi_status status = aoti_inputs_parse(wrong[i], "here", ports, ranges, &count, &error);
        if (status != DPI_E_MODEL || !strstr(error.message, "here"))
            fail_msg("\"%s\": status %d, \"%s\"", wrong[i], status, error.message);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_whole_package_is_read),
        cmocka_unit_test(kernels_are_unpacked_and_removed),
        cmocka_unit_test(kernels_of_the_killed_are_swept),
        cmocka_unit_test(damaged_packages_are_refused),
        cmocka_unit_test(what_cannot_run_is_refused_by_name),
        cmocka_unit_test(inputs_are_described),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
