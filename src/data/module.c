#include "data/module.h"

#include "base/file.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The file, or false when it is not there. */
static bool find(const char *name, char file[PATH_MAX])
{
    static const char *const folders[] = {"", "/../libexec/dpinfer", "/../../libexec/dpinfer"};
    char *places[] = {file_of_program(), file_of_address((const void *)(uintptr_t)&module_load)};
    bool found = false;
    for (size_t p = 0; p < 2; p++) {
        char *slash = places[p] ? strrchr(places[p], '/') : NULL;
        if (slash)
            *slash = 0;
        for (size_t f = 0; slash && !found && f < sizeof folders / sizeof folders[0]; f++) {
            int length = snprintf(file, PATH_MAX, "%s%s/dpinfer-%s.so", places[p], folders[f], name);
            found = length > 0 && length < PATH_MAX && access(file, R_OK) == 0;
        }
        free(places[p]);
    }
    return found;
}

const void *module_load(const char *name, const char *symbol, uint32_t version, const char *needs, dpi_error *error)
{
    char file[PATH_MAX];
    if (!find(name, file)) {
        error_set(error, DPI_E_BACKEND,
                  "this dpinfer was built without dpinfer-%s.so; install %s (apt-get install %s) and build it again",
                  name, needs, needs);
        return NULL;
    }
    void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const void *table = handle ? dlsym(handle, symbol) : NULL;
    uint32_t is = 0;
    if (table)
        memcpy(&is, table, sizeof is);
    if (is == version)
        return table;
    const char *why = handle ? "it is of another dpinfer" : dlerror();
    error_set(error, DPI_E_BACKEND, "%s cannot be loaded: %s; install the libraries it needs, or build it again", file,
              why ? why : "no reason was given");
    return NULL;
}
