#include "backend/tensorrt_library.h"

#include "base/file.h"
#include "base/text.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void on_message(void *context, dpi_log_level severity, const char *text)
{
    const backend_library *library = context;
    if (library->alive)
        library->alive(library->alive_context);
    /* TensorRT warns of what is normal; its errors come back as ours. */
    dpi_log_level level = severity == DPI_LOG_ERROR ? DPI_LOG_INFO : DPI_LOG_DEBUG;
    log_line(library->common.log, level, "TensorRT: %s", text);
}

dpi_status tensorrt_refuse(backend_library *library, dpi_error *error, dpi_status status, const char *what,
                           const char *model, const char *device)
{
    char text[700], memory[160] = "";
    size_t free_bytes = 0, total = 0;
    library->shim->last_errors(library->trt, text, sizeof text);
    if ((strstr(text, "emory") || strstr(text, "volume exceeds") || !*text) &&
        library->gpu.api->cuMemGetInfo(&free_bytes, &total) == CUDA_SUCCESS_)
        snprintf(memory, sizeof memory, "; %zu of %zu MiB of GPU memory are free; lower --batch or workspace_mb",
                 free_bytes >> 20, total >> 20);
    return error_set(error, status, "%s: TensorRT %s %s %s: %s%s", device, library->common.version, what, model,
                     *text ? text : "it gave no reason", memory);
}

/* The shim for a TensorRT major: beside the program or this library, or in ../libexec/dpinfer. */
static const trt_shim *find_shim(int major)
{
    char *places[] = {file_of_program(), file_of_address((const void *)(uintptr_t)&find_shim)};
    static const char *const folders[] = {"", "/../libexec/dpinfer", "/../../libexec/dpinfer"};
    const trt_shim *shim = NULL;
    for (size_t p = 0; p < 2; p++) {
        char *slash = places[p] ? strrchr(places[p], '/') : NULL;
        if (slash)
            *slash = 0;
        for (size_t f = 0; slash && !shim && f < sizeof folders / sizeof folders[0]; f++) {
            char file[PATH_MAX];
            if ((size_t)snprintf(file, sizeof file, "%s%s/dpinfer-tensorrt%d.so", places[p], folders[f], major) >=
                sizeof file)
                continue;
            void *handle = access(file, R_OK) == 0 ? dlopen(file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) : NULL;
            void *symbol = handle ? dlsym(handle, TRT_SHIM_SYMBOL) : NULL;
            trt_shim_fn entry;
            memcpy(&entry, &symbol, sizeof entry);
            if (symbol && entry()->version == TRT_SHIM_VERSION && entry()->major == major)
                shim = entry();
        }
        free(places[p]);
    }
    return shim;
}

static const int majors[] = {11, 10, 8}; /* those that a shim can be built for, the newest first */
#define MAJORS (sizeof majors / sizeof majors[0])

static dpi_status no_shim(int major, const char *path, dpi_error *error)
{
    text_buffer built = {0};
    for (size_t i = 0; i < MAJORS; i++)
        if (find_shim(majors[i]))
            text_add(&built, "%s%d", built.length ? ", " : "", majors[i]);
    dpi_status status;
    if (path)
        status = error_set(error, DPI_E_BACKEND,
                           "%s is TensorRT %d; this dpinfer was built for: %s (cmake -DDPI_TENSORRT_INCLUDE=folder of "
                           "NvInfer.h and NvOnnxParser.h)",
                           path, major, built.data ? built.data : "none");
    else
        status = error_set(error, DPI_E_BACKEND,
                           "this dpinfer was built without TensorRT (cmake -DDPI_TENSORRT_INCLUDE=folder of NvInfer.h "
                           "and NvOnnxParser.h)");
    text_free(&built);
    return status;
}

/* dlopen's handle of libnvinfer; *major is what the library says of itself. */
static dpi_status load_nvinfer(const char *given, const logger *log, backend_library *library, void **handle,
                               int *major, dpi_error *error)
{
    dpi_status status = no_shim(0, NULL, error);
    *handle = NULL;
    for (size_t i = 0; i < MAJORS && !*handle; i++) {
        char package[64], file[64];
        snprintf(package, sizeof package,
                 majors[i] < 10 ? "tensorrt/libnvinfer.so.%d" : "tensorrt_libs/libnvinfer.so.%d", majors[i]);
        snprintf(file, sizeof file, "libnvinfer.so.%d", majors[i]);
        if (!given && !getenv("DPINFER_TENSORRT_LIBRARY") && !find_shim(majors[i]))
            continue;
        status = library_load(&(library_query){.what = "TensorRT",
                                               .environment = "DPINFER_TENSORRT_LIBRARY",
                                               .given = given,
                                               .package_glob = package,
                                               .file_glob = file,
                                               .soname = file,
                                               .install_hint = "NVIDIA's packages, or pip install tensorrt"},
                              log, handle, library->common.path, sizeof library->common.path, error);
    }
    if (!*handle)
        return status;
    int (*version)(void) = NULL;
    void *symbol = library_symbol(*handle, "getInferLibVersion", library->common.path, error);
    memcpy(&version, &symbol, sizeof version);
    if (!symbol)
        return DPI_E_BACKEND;
    int number = version(), scale = number >= 100000 ? 10000 : 1000; /* 10.16.0 is 101600, 8.6.0 is 8600 */
    *major = number / scale;
    snprintf(library->common.version, sizeof library->common.version, "%d.%d.%d", *major, number % scale / 100,
             number % 100);
    return error_clear(error);
}

/* Another of TensorRT's libraries: beside libnvinfer, else by the linker. NULL when it does not load. */
static void *load_companion(const backend_library *library, const char *name)
{
    char full[PATH_MAX + 64];
    snprintf(full, sizeof full, "%s", library->common.path);
    char *slash = strrchr(full, '/');
    void *handle = NULL;
    if (slash) {
        snprintf(slash + 1, sizeof full - (size_t)(slash + 1 - full), "%s", name);
        handle = dlopen(full, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    }
    return handle ? handle : dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

static dpi_status connect(backend_library *library, void *nvinfer, int major, dpi_error *error)
{
    trt_entry_points entry = {0};
    entry.create_builder = library_symbol(nvinfer, "createInferBuilder_INTERNAL", library->common.path, error);
    entry.create_runtime = library_symbol(nvinfer, "createInferRuntime_INTERNAL", library->common.path, error);
    if (!entry.create_builder || !entry.create_runtime)
        return DPI_E_BACKEND;
    char plugins[64], parser[64];
    snprintf(plugins, sizeof plugins, "libnvinfer_plugin.so.%d", major);
    snprintf(parser, sizeof parser, "libnvonnxparser.so.%d", major);
    load_companion(library, plugins); /* the parser is linked to it and finds it loaded */
    void *handle = load_companion(library, parser);
    if (handle)
        entry.create_parser = dlsym(handle, "createNvOnnxParser_INTERNAL");
    else
        log_info(library->common.log, "TensorRT's ONNX parser does not load, engine files only: %s", dlerror());
    library->trt = library->shim->library_new(&entry, on_message, library);
    return library->trt ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
}

dpi_status tensorrt_load(const backend_load_options *options, const logger *log, backend_library **out,
                         dpi_error *error)
{
    *out = NULL;
    if (!cuda_may_be_there())
        return error_set(error, DPI_E_BACKEND, "TensorRT needs an NVIDIA GPU and its driver; there is none here");
    backend_library *library = calloc(1, sizeof *library);
    if (!library)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    library->common.log = log;
    void *nvinfer;
    int major = 0;
    dpi_status status = load_nvinfer(options->library, log, library, &nvinfer, &major, error);
    if (!status) {
        library->shim = find_shim(major);
        status = library->shim ? connect(library, nvinfer, major, error) : no_shim(major, library->common.path, error);
    }
    if (status) {
        free(library);
        return status;
    }
    *out = library;
    return DPI_OK;
}

void tensorrt_unload(backend_library *library) { (void)library; }
