/* Where an inference library is looked for, which one wins, and what is said when there is none. The libraries are
 * copies of one that this program has loaded itself. */
#include "backend/library.h"
#include "base/file.h"
#include "base/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define ENVIRONMENT "DPINFER_TEST_LIBRARY"

typedef struct fixture {
    char folder[64];
    char *genuine; /* path of a library that loads */
    char log[4096];
    logger log_to;
} fixture;

static void note_line(void *context, dpi_log_level level, const char *line)
{
    (void)level;
    fixture *f = context;
    size_t used = strlen(f->log);
    snprintf(f->log + used, sizeof f->log - used, "%s\n", line);
}

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    strcpy(f->folder, "/tmp/dpi-library-XXXXXX");
    if (!mkdtemp(f->folder))
        return -1;
    f->genuine = file_of_address((const void *)(uintptr_t)_cmocka_run_group_tests);
    f->log_to = (logger){.sink = note_line, .context = f, .level = DPI_LOG_DEBUG};
    unsetenv(ENVIRONMENT);
    unsetenv("VIRTUAL_ENV");
    setenv("HOME", f->folder, 1);
    setenv("PATH", "/nowhere", 1);
    *state = f;
    return f->genuine ? 0 : -1;
}

static int teardown(void **state)
{
    fixture *f = *state;
    char *command = text_format("/bin/rm -rf %s", f->folder);
    int code = system(command);
    free(command);
    free(f->genuine);
    free(f);
    return code;
}

/* FOLDER/NAME, in folders that are made; content NULL: a copy of the library that loads. */
static char *put(const fixture *f, const char *name, const char *content)
{
    char *path = text_format("%s/%s", f->folder, name);
    char *folder = strdup(path);
    *strrchr(folder, '/') = 0;
    assert_int_equal(file_make_folders(folder, NULL), DPI_OK);
    free(folder);
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    void *data = NULL;
    size_t bytes = content ? strlen(content) : 0;
    if (!content)
        assert_int_equal(file_read(f->genuine, 1 << 24, &data, &bytes, NULL), DPI_OK);
    assert_int_equal(fwrite(content ? content : data, 1, bytes, out), bytes);
    fclose(out);
    free(data);
    return path;
}

static library_query query(void)
{
    return (library_query){.what = "Test Engine",
                           .environment = ENVIRONMENT,
                           .package_glob = "testengine/libs/libtestengine.so.*",
                           .file_glob = "libtestengine.so*",
                           .install_hint = "pip install testengine"};
}

static dpi_status load(fixture *f, const library_query *q, char path[512], dpi_error *error)
{
    void *handle = NULL;
    path[0] = 0;
    dpi_status status = library_load(q, &f->log_to, &handle, path, 512, error);
    assert_int_equal(status == DPI_OK, handle != NULL);
    return status;
}

static void a_missing_library_says_where_it_was_looked_for(void **state)
{
    fixture *f = *state;
    library_query q = query();
    char path[512];
    dpi_error error = {0};
    assert_int_equal(load(f, &q, path, &error), DPI_E_BACKEND);
    assert_int_equal(error.status, DPI_E_BACKEND);
    assert_non_null(strstr(error.message, "Test Engine"));
    assert_non_null(strstr(error.message, "pip install testengine"));
    assert_non_null(strstr(error.message, ENVIRONMENT));
    assert_non_null(strstr(error.message, "libtestengine.so"));
    assert_int_equal(load(f, &q, path, NULL), DPI_E_BACKEND);
}

static void a_given_library_must_load(void **state)
{
    fixture *f = *state;
    library_query q = query();
    char path[512];
    dpi_error error = {0};
    free(put(f, "venv/lib/python3.9/site-packages/testengine/libs/libtestengine.so.1", NULL));
    char *venv = text_format("%s/venv", f->folder), *bad = put(f, "bad.so", "no library at all");
    setenv("VIRTUAL_ENV", venv, 1); /* would be found, but was not asked for */
    q.given = bad;
    assert_int_equal(load(f, &q, path, &error), DPI_E_BACKEND);
    assert_non_null(strstr(error.message, bad));
    q.given = "/nowhere/at/all.so";
    assert_int_equal(load(f, &q, path, &error), DPI_E_BACKEND);
    assert_non_null(strstr(error.message, "/nowhere/at/all.so"));
    q.given = f->genuine;
    assert_int_equal(load(f, &q, path, &error), DPI_OK);
    assert_string_equal(path, f->genuine);
    free(bad);
    free(venv);
}

static void the_environment_names_one_that_must_load(void **state)
{
    fixture *f = *state;
    library_query q = query();
    char path[512];
    dpi_error error = {0};
    setenv(ENVIRONMENT, "/nowhere/from/environment.so", 1);
    assert_int_equal(load(f, &q, path, &error), DPI_E_BACKEND);
    assert_non_null(strstr(error.message, "/nowhere/from/environment.so"));
    assert_non_null(strstr(error.message, ENVIRONMENT));
    setenv(ENVIRONMENT, f->genuine, 1);
    assert_int_equal(load(f, &q, path, &error), DPI_OK);
    assert_string_equal(path, f->genuine);
    setenv(ENVIRONMENT, "/nowhere/from/environment.so", 1);
    q.given = f->genuine; /* the option wins */
    assert_int_equal(load(f, &q, path, &error), DPI_OK);
}

static void the_highest_version_of_a_folder_wins(void **state)
{
    fixture *f = *state;
    library_query q = query();
    char path[512];
    free(put(f, "venv/lib/python3.9/site-packages/testengine/libs/libtestengine.so.1.9.0", NULL));
    char *high = put(f, "venv/lib/python3.9/site-packages/testengine/libs/libtestengine.so.1.32.0", NULL);
    free(put(f, "venv/lib/python3.9/site-packages/testengine/libs/libtestengine.so.1.4.2", NULL));
    char *venv = text_format("%s/venv", f->folder);
    setenv("VIRTUAL_ENV", venv, 1);
    assert_int_equal(load(f, &q, path, NULL), DPI_OK);
    assert_string_equal(path, high);
    free(high);
    free(venv);
}

static void the_python_in_path_and_the_users_packages_are_looked_into(void **state)
{
    fixture *f = *state;
    library_query q = query();
    char path[512];
    char *user = put(f, ".local/lib/python3.11/site-packages/testengine/libs/libtestengine.so.1", NULL);
    assert_int_equal(load(f, &q, path, NULL), DPI_OK);
    assert_string_equal(path, user);
    char *python = put(f, "prefix/bin/python3", "#!/bin/false\n");
    char *package = put(f, "prefix/lib/python3.12/site-packages/testengine/libs/libtestengine.so.1", NULL);
    assert_int_equal(chmod(python, 0755), 0);
    char *search = text_format("/nowhere:%s/prefix/bin", f->folder);
    setenv("PATH", search, 1);
    assert_int_equal(load(f, &q, path, NULL), DPI_OK);
    assert_string_equal(path, package);
    free(user);
    free(python);
    free(package);
    free(search);
}

static void one_that_does_not_load_is_reported_and_the_next_is_tried(void **state)
{
    fixture *f = *state;
    library_query q = query();
    char path[512];
    char *bad = put(f, "venv/lib/python3.9/site-packages/testengine/libs/libtestengine.so.2", "text");
    char *good = put(f, ".local/lib/python3.9/site-packages/testengine/libs/libtestengine.so.1", NULL);
    char *venv = text_format("%s/venv", f->folder);
    setenv("VIRTUAL_ENV", venv, 1);
    assert_int_equal(load(f, &q, path, NULL), DPI_OK);
    assert_string_equal(path, good);
    assert_non_null(strstr(f->log, bad));
    free(bad);
    free(good);
    free(venv);
}

static void a_folder_with_pattern_characters_in_its_name_is_only_a_folder(void **state)
{
    fixture *f = *state;
    library_query q = query();
    char path[512];
    char *library = put(f, "my [new]*/lib/python3.9/site-packages/testengine/libs/libtestengine.so.1", NULL);
    char *venv = text_format("%s/my [new]*", f->folder);
    setenv("VIRTUAL_ENV", venv, 1);
    assert_int_equal(load(f, &q, path, NULL), DPI_OK);
    assert_string_equal(path, library);
    free(library);
    free(venv);
}

static void the_dynamic_linker_is_the_last_resort(void **state)
{
    fixture *f = *state;
    library_query q = query();
    char path[512];
    q.soname = "libm.so.6";
    assert_int_equal(load(f, &q, path, NULL), DPI_OK);
    assert_non_null(strstr(path, "libm.so.6"));
    q.soname = "libthis-is-not-there.so.77";
    assert_int_equal(load(f, &q, path, NULL), DPI_E_BACKEND);
}

static void a_missing_symbol_names_itself_and_the_file(void **state)
{
    fixture *f = *state;
    library_query q = query();
    char path[512];
    void *handle = NULL;
    dpi_error error = {0};
    q.given = f->genuine;
    assert_int_equal(library_load(&q, NULL, &handle, path, sizeof path, &error), DPI_OK);
    assert_non_null(library_symbol(handle, "_cmocka_run_group_tests", path, &error));
    assert_null(library_symbol(handle, "no_such_function", path, &error));
    assert_int_equal(error.status, DPI_E_BACKEND);
    assert_non_null(strstr(error.message, "no_such_function"));
    assert_non_null(strstr(error.message, f->genuine));
}

int main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(a_missing_library_says_where_it_was_looked_for),
        T(a_given_library_must_load),
        T(the_environment_names_one_that_must_load),
        T(the_highest_version_of_a_folder_wins),
        T(the_python_in_path_and_the_users_packages_are_looked_into),
        T(one_that_does_not_load_is_reported_and_the_next_is_tried),
        T(a_folder_with_pattern_characters_in_its_name_is_only_a_folder),
        T(the_dynamic_linker_is_the_last_resort),
        T(a_missing_symbol_names_itself_and_the_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
