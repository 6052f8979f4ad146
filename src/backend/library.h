/* Finding and loading an inference library at run time. */
#ifndef DPI_BACKEND_LIBRARY_H
#define DPI_BACKEND_LIBRARY_H

#include "backend/backend.h"

typedef struct library_query {
    const char *what;         /* "ONNX Runtime", for messages */
    const char *environment;  /* "DPINFER_ONNXRUNTIME_LIBRARY" */
    const char *given;        /* the user's path, or NULL */
    const char *package_glob; /* below a site-packages folder: "onnxruntime/capi/libonnxruntime.so.*" */
    const char *file_glob;    /* beside the program and in ../lib: "libonnxruntime.so*" */
    const char *soname;       /* tried last, through the dynamic linker: "libonnxruntime.so"; NULL: don't */
    const char *install_hint; /* "pip install onnxruntime" */
} library_query;

/* Looks in this order: given, environment (each of these two must then load), beside the program (its folder, ../lib,
 * and ../.deps/venv of a source tree), $VIRTUAL_ENV, the folders of python3 in PATH and of the user's and the system's
 * site-packages, the dynamic linker. Of several matches in one folder the highest version wins. *handle is dlopen's
 * (RTLD_NOW | RTLD_LOCAL), `path` receives the file. DPI_E_BACKEND lists where it looked and ends with the hint. */
dpi_status library_load(const library_query *query, const logger *log, void **handle, char *path, size_t path_size,
                        dpi_error *error);

/* What the library of such a backend begins with: struct backend_library { library_common common; ... }. */
typedef struct library_common {
    const logger *log;
    char path[512], version[64];
} library_common;

/* Makes a library of `bytes`, cleared, loads the file that the query finds, and starts it: `start` looks up functions
 * and fills common.version. A failure is undone by `unload`, which takes a library that `start` has not finished, or
 * not seen. */
dpi_status library_open(const library_query *query, const logger *log, size_t bytes,
                        dpi_status (*start)(backend_library *library, void *handle, dpi_error *error),
                        void (*unload)(backend_library *library), backend_library **out, dpi_error *error);
/* The slot library_info of such a backend. */
void library_info(const backend_library *library, backend_library_info *info);

/* Symbol of a loaded library, or NULL with DPI_E_BACKEND that names both. */
void *library_symbol(void *handle, const char *symbol, const char *path, dpi_error *error);

#endif
