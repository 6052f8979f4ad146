#include "backend/library.h"

#include "base/file.h"
#include "base/text.h"

#include <dlfcn.h>
#include <errno.h>
#include <glob.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool open_file(const char *file, void **handle, char *path, size_t path_size)
{
    /* RTLD_NODELETE: their destructors crash, so a library stays once it is loaded. */
    *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (*handle)
        snprintf(path, path_size, "%s", file);
    return *handle != NULL;
}

/* The last match in version order, malloc'd. */
static char *best_match(const char *pattern)
{
    glob_t found;
    char *best = NULL;
    if (glob(pattern, GLOB_NOSORT, NULL, &found) == 0) {
        size_t at = 0;
        for (size_t i = 1; i < found.gl_pathc; i++)
            if (strverscmp(found.gl_pathv[i], found.gl_pathv[at]) > 0)
                at = i;
        best = strdup(found.gl_pathv[at]);
        globfree(&found);
    }
    return best;
}

/* A folder may itself hold characters that a pattern gives a meaning: "*", "[", "\". malloc'd. */
static char *escape_pattern(const char *folder)
{
    text_buffer t = {0};
    for (const char *c = folder; *c; c++)
        text_add(&t, "%s%c", strchr("*?[\\", *c) ? "\\" : "", *c);
    return t.data;
}

/* Tries FOLDER/PATTERN; notes in `looked` what was tried. */
static bool try_folder(const library_query *q, const logger *log, const char *folder, const char *pattern,
                       text_buffer *looked, void **handle, char *path, size_t path_size)
{
    char *full = text_format("%s/%s", folder, pattern), *escaped = escape_pattern(folder);
    char *literal = escaped ? text_format("%s/%s", escaped, pattern) : NULL;
    char *file = full && literal ? best_match(literal) : NULL;
    bool loaded = file && open_file(file, handle, path, path_size);
    if (file && !loaded)
        log_warning(log, "%s was found but does not load: %s", file, dlerror());
    if (!loaded && full)
        text_add(looked, "%s%s", looked->length ? ", " : "", full);
    free(file);
    free(full);
    free(literal);
    free(escaped);
    (void)q;
    return loaded;
}

/* Folder of the running program, "" when unknown. */
static void program_folder(char folder[PATH_MAX])
{
    char *program = file_of_program();
    snprintf(folder, PATH_MAX, "%s", program ? program : "");
    free(program);
    char *slash = strrchr(folder, '/');
    if (slash)
        *slash = 0;
}

static bool try_near_program(const library_query *q, const logger *log, text_buffer *looked, void **handle, char *path,
                             size_t path_size)
{
    char folder[PATH_MAX], other[PATH_MAX + 64], pattern[300];
    program_folder(folder);
    if (try_folder(q, log, folder, q->file_glob, looked, handle, path, path_size))
        return true;
    snprintf(other, sizeof other, "%s/../lib", folder);
    if (try_folder(q, log, other, q->file_glob, looked, handle, path, path_size))
        return true;
    snprintf(other, sizeof other, "%s/../.deps/venv/lib", folder);
    snprintf(pattern, sizeof pattern, "python3*/site-packages/%s", q->package_glob);
    return try_folder(q, log, other, pattern, looked, handle, path, path_size);
}

/* Prefix of the python3 that PATH finds ("/usr" for /usr/bin/python3), or false. */
static bool python_prefix(char prefix[PATH_MAX])
{
    const char *search = getenv("PATH");
    char *copy = search ? strdup(search) : NULL, *rest = NULL;
    bool found = false;
    for (char *folder = copy ? strtok_r(copy, ":", &rest) : NULL; folder && !found;
         folder = strtok_r(NULL, ":", &rest)) {
        char file[PATH_MAX];
        if ((size_t)snprintf(file, sizeof file, "%s/python3", folder) >= sizeof file || access(file, X_OK) != 0)
            continue;
        /* A virtual environment's python3 is a link out of it: its own folder counts, not the link's target. */
        snprintf(prefix, PATH_MAX, "%s", folder);
        char *slash = strrchr(prefix, '/');
        if (slash)
            *slash = 0;
        found = true;
    }
    free(copy);
    return found;
}

static bool try_python(const library_query *q, const logger *log, text_buffer *looked, void **handle, char *path,
                       size_t path_size)
{
    char prefix[PATH_MAX], folder[PATH_MAX + 64], pattern[320];
    const char *home = getenv("HOME"), *venv = getenv("VIRTUAL_ENV");
    snprintf(pattern, sizeof pattern, "lib/python3*/site-packages/%s", q->package_glob);
    if (venv && *venv && try_folder(q, log, venv, pattern, looked, handle, path, path_size))
        return true;
    if (python_prefix(prefix) && try_folder(q, log, prefix, pattern, looked, handle, path, path_size))
        return true;
    if (home && *home) {
        snprintf(folder, sizeof folder, "%s/.local", home);
        if (try_folder(q, log, folder, pattern, looked, handle, path, path_size))
            return true;
    }
    snprintf(pattern, sizeof pattern, "python3*/dist-packages/%s", q->package_glob);
    return try_folder(q, log, "/usr/local/lib", pattern, looked, handle, path, path_size) ||
           try_folder(q, log, "/usr/lib", pattern, looked, handle, path, path_size);
}

dpi_status library_load(const library_query *q, const logger *log, void **handle, char *path, size_t path_size,
                        dpi_error *error)
{
    *handle = NULL;
    const char *named = q->given ? q->given : getenv(q->environment);
    if (named && *named) {
        if (open_file(named, handle, path, path_size))
            return DPI_OK;
        return error_set(error, DPI_E_BACKEND, "%s, named as the library of %s %s, does not load: %s", named, q->what,
                         q->given ? "by option" : q->environment, dlerror());
    }
    text_buffer looked = {0};
    bool loaded = try_near_program(q, log, &looked, handle, path, path_size) ||
                  try_python(q, log, &looked, handle, path, path_size) ||
                  (q->soname && open_file(q->soname, handle, path, path_size));
    dpi_status status = DPI_OK;
    if (!loaded)
        status = error_set(error, DPI_E_BACKEND,
                           "the library of %s was not found; install it (%s) or name it in %s; looked for: %s", q->what,
                           q->install_hint, q->environment, looked.data ? looked.data : "?");
    text_free(&looked);
    return status;
}

dpi_status library_open(const library_query *query, const logger *log, size_t bytes,
                        dpi_status (*start)(backend_library *library, void *handle, dpi_error *error),
                        void (*unload)(backend_library *library), backend_library **out, dpi_error *error)
{
    library_common *common = calloc(1, bytes);
    if (!common)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    backend_library *library = (backend_library *)common;
    common->log = log;
    void *handle;
    dpi_status status = library_load(query, log, &handle, common->path, sizeof common->path, error);
    if (!status)
        status = start(library, handle, error);
    if (status) {
        unload(library);
        return status;
    }
    *out = library;
    return DPI_OK;
}

void library_info(const backend_library *library, backend_library_info *info)
{
    const library_common *common = (const library_common *)library;
    memcpy(info->path, common->path, sizeof info->path);
    memcpy(info->version, common->version, sizeof info->version);
}

void *library_symbol(void *handle, const char *symbol, const char *path, dpi_error *error)
{
    void *address = dlsym(handle, symbol);
    if (!address)
        error_set(error, DPI_E_BACKEND, "%s has no function %s; it is not the expected library or too old", path,
                  symbol);
    return address;
}
