/* The program around a backend's tests of its own. */
#include "backend/conformance.h"
#include "base/file.h"
#include "base/text.h"

#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* Runs this program once more over the oldest library, where it is installed and no other was named; its exit code. */
static int run_oldest(const char *variable, const char *oldest)
{
    char *pattern = text_format("%s/.deps/oldest/%s", conformance_source_folder(), oldest);
    char *program = file_of_program();
    const char *const command[] = {program, NULL};
    glob_t found;
    int code = 0;
    if (pattern && program && !getenv(variable) && glob(pattern, 0, NULL, &found) == 0) {
        setenv(variable, found.gl_pathv[0], 1);
        code = conformance_spawn(command);
        unsetenv(variable);
        globfree(&found);
    }
    free(program);
    free(pattern);
    return code;
}

static void load_library(conformance *suite, const char *variable)
{
    const backend *b = suite->kit->backend;
    const char *named = getenv(variable);
    dpi_error error = {0};
    conformance_use_python();
    setenv("TBB_ENABLE_SANITIZERS", "1", 0); /* else oneTBB loads a library in a way that the sanitizers refuse */
    if (named && access(named, R_OK) != 0) {
        fprintf(stderr, "%s is not there\n", named);
        exit(77);
    }
    if (b->load(&(backend_load_options){0}, &suite->log, &suite->library, &error)) {
        fprintf(stderr, "%s\n", error.message);
        exit(strstr(error.message, "not found") ? 77 : 1); /* found, but bad: a failure */
    }
    backend_library_info info;
    b->library_info(suite->library, &info);
    print_message("%s %s: %s\n", b->name, info.version, info.path);
}

int conformance_group(const conformance_kit *kit, const char *variable, const char *oldest_pattern, dpi_log_level level,
                      const struct CMUnitTest *tests, size_t count)
{
    int cpu = 0, oldest = run_oldest(variable, oldest_pattern);
    conformance suite = {.kit = kit, .log = {.level = level}};
    suite.device = (backend_device){.kind = "cpu", .name = "cpu:0", .cpus = &cpu, .cpu_count = 1, .threads = 1};
    load_library(&suite, variable);
    char *folder = conformance_folder();
    if (!folder || file_make_folders(folder, NULL))
        return 1;
    free(folder);
    struct CMUnitTest *all = malloc(count * sizeof *all);
    if (!all)
        return 1;
    memcpy(all, tests, count * sizeof *all);
    for (size_t i = 0; i < count; i++)
        all[i].initial_state = &suite;
    int failed = _cmocka_run_group_tests(kit->backend->name, all, count, NULL, NULL);
    free(all);
    kit->backend->unload(suite.library);
    /* Inference libraries run threads and destructors of their own at exit, which are not what is tested here. */
    fflush(NULL);
    _exit(failed || (oldest && oldest != 77) ? 1 : 0);
}
