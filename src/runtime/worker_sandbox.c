#include "runtime/worker_sandbox.h"

#include "base/text.h"
#include "ipc/sandbox.h"

#include <dirent.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define PATHS 256 /* those behind them are not opened up */

typedef struct path_list {
    sandbox_path items[PATHS];
    size_t count;
} path_list;

static bool is_confined(const worker *w)
{
    const worker_setup *s = &w->setup;
    bool cpu =
        !s->provider || strcasecmp(s->provider, "CPU") == 0 || strcasecmp(s->provider, "CPUExecutionProvider") == 0;
    return !s->device.in_caller && !s->no_sandbox && cpu && strcmp(s->device.kind, "cuda") != 0;
}

dpi_status worker_sandbox_limits(const worker *w, dpi_error *error)
{
    const worker_setup *s = &w->setup;
    if (s->device.in_caller)
        return DPI_OK;
    if (!s->core_dumps)
        sandbox_stop_core_dumps();
    return s->memory_bytes ? sandbox_limit_memory(s->memory_bytes, error) : DPI_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static void add_path(path_list *list, const char *path, bool writable)
{
    for (size_t i = 0; i < list->count; i++)
        if (list->items[i].writable == writable && strcmp(list->items[i].path, path) == 0)
            return;
    char *copy = list->count < PATHS ? strdup(path) : NULL;
    if (copy)
        list->items[list->count++] = (sandbox_path){.path = copy, .writable = writable};
}

/* The folder of a file, links followed. */
static void add_folder_of(path_list *list, const char *file)
{
    char *path = realpath(file, NULL), *slash = path ? strrchr(path, '/') : NULL;
    if (slash && slash != path) {
        *slash = 0;
        add_path(list, path, false);
    }
    free(path);
}

/* Weights may be links out of the model's folder. */
static void add_links_in(path_list *list, const char *folder)
{
    DIR *d = opendir(folder);
    for (const struct dirent *e; d && (e = readdir(d));) {
        char *link = e->d_type == DT_LNK ? text_format("%s/%s", folder, e->d_name) : NULL;
        char *file = link ? realpath(link, NULL) : NULL;
        if (file)
            add_path(list, file, false);
        free(link);
        free(file);
    }
    if (d)
        closedir(d);
}

static void add_model(path_list *list, const char *model)
{
    char *folder = strdup(model), *slash = folder ? strrchr(folder, '/') : NULL;
    if (slash) {
        slash[slash == folder] = 0;
        add_path(list, folder, false);
        add_links_in(list, folder);
    }
    free(folder);
}

/* A library loads parts of itself later, from where it and what it needs stand. */
static int add_library(struct dl_phdr_info *info, size_t size, void *list)
{
    (void)size;
    if (info->dlpi_name && strchr(info->dlpi_name, '/'))
        add_folder_of(list, info->dlpi_name);
    return 0;
}

static void add_search_path(path_list *list)
{
    const char *folders = getenv("LD_LIBRARY_PATH");
    char *copy = folders ? strdup(folders) : NULL, *rest = NULL;
    for (char *folder = copy ? strtok_r(copy, ":", &rest) : NULL; folder; folder = strtok_r(NULL, ":", &rest))
        add_path(list, folder, false);
    free(copy);
}

static void list_paths(const worker *w, const char *cache_folder, path_list *list)
{
    static const char *const system[] = {"/usr", "/lib",      "/lib64",       "/etc",       "/proc",
                                         "/sys", "/dev/zero", "/dev/urandom", "/dev/random"};
    add_path(list, "/dev/null", true);
    if (cache_folder)
        add_path(list, cache_folder, true);
    for (size_t i = 0; i < sizeof system / sizeof system[0]; i++)
        add_path(list, system[i], false);
    for (size_t i = 0; i < w->setup.data_folder_count; i++)
        add_path(list, w->setup.data_folders[i], false);
    if (w->setup.model_path)
        add_model(list, w->setup.model_path);
    add_folder_of(list, "/proc/self/exe"); /* modules for images and tars stand beside the worker */
    dl_iterate_phdr(add_library, list);
    add_search_path(list);
}

void worker_sandbox_files(const worker *w, const char *cache_folder)
{
    if (!is_confined(w))
        return;
    path_list list = {.count = 0};
    list_paths(w, cache_folder, &list);
    int abi;
    bool every_thread;
    dpi_error problem;
    if (sandbox_confine_files(list.items, list.count, &abi, &every_thread, &problem))
        log_info(&w->log, "sandbox: files are not confined: %s", problem.message);
    else
        log_info(&w->log, "sandbox: files by Landlock %d%s", abi, every_thread ? ", every thread" : "");
    text_buffer text = {0};
    for (size_t i = 0; i < list.count; i++) {
        text_add(&text, " %s%s", list.items[i].path, list.items[i].writable ? " (writable)" : "");
        free((char *)(uintptr_t)list.items[i].path);
    }
    log_debug(&w->log, "sandbox:%s", text.data ? text.data : "");
    text_free(&text);
}

/* ---- system calls ----------------------------------------------------------------------------------------------- */

void worker_sandbox_calls(const worker *w)
{
    dpi_error problem;
    if (!is_confined(w))
        return;
    if (sandbox_deny_calls(&problem))
        log_info(&w->log, "sandbox: system calls are not confined: %s", problem.message);
    else
        log_info(&w->log, "sandbox: system calls by seccomp");
}

/* What libraries say of EACCES; the second is ONNX Runtime's where it maps weights. */
static bool speaks_of_permission(const char *message)
{
    return strcasestr(message, "permission denied") || strstr(message, "SystemError : 13");
}

void worker_sandbox_explain(const worker *w, dpi_error *error)
{
    const worker_setup *s = &w->setup;
    if (s->device.in_caller)
        return;
    if (is_confined(w) && speaks_of_permission(error->message))
        error_prefix(error, "a worker reads no folders but the model's and the system's (--no-sandbox lifts this)");
    if (s->memory_bytes)
        error_prefix(error, "with %llu bytes of memory (--worker-memory)", (unsigned long long)s->memory_bytes);
}
