#include "backend/aoti_package.h"

#include "base/file.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MODEL_FOLDER "/data/aotinductor/"

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static dpi_status map_file(aoti_package *p, const char *path, dpi_error *error)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_set_errno(error, DPI_E_MODEL, errno, "cannot open %s", path);
    dpi_status status = DPI_OK;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size <= 0)
        status = error_set(error, DPI_E_MODEL, "%s is no file, or an empty one", path);
    void *memory = status ? MAP_FAILED : mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (!status && memory == MAP_FAILED)
        status = error_set_errno(error, DPI_E_SYSTEM, errno, "cannot map %s", path);
    if (!status) {
        p->mapped = memory;
        p->bytes = (size_t)info.st_size;
    }
    close(fd);
    return status;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static bool in_model_folder(const aoti_package *p, const zip_entry *e)
{
    return strncmp(e->name, p->library->name, p->folder_length) == 0 && !strchr(e->name + p->folder_length, '/');
}

static dpi_status find_library(aoti_package *p, dpi_error *error)
{
    for (size_t i = 0; i < p->zip.count; i++) {
        const zip_entry *e = &p->zip.entries[i];
        const char *folder = strstr(e->name, MODEL_FOLDER);
        if (!folder || !ends_with(e->name, ".so"))
            continue;
        if (p->library)
            return error_set(error, DPI_E_MODEL, "%s holds several models; package the one that is to run by itself",
                             p->name);
        p->library = e;
        p->folder_length = (size_t)(strrchr(e->name, '/') - e->name) + 1;
    }
    return p->library
               ? DPI_OK
               : error_set(
                     error, DPI_E_MODEL,
                     "%s holds no model compiled by AOTInductor; write it by dpinfer.compile(..., format=\"pt2\")",
                     p->name);
}

/* Operators that only PyTorch's own loader can call are listed in a file of their own. */
static dpi_status refuse_operators(const aoti_package *p, const zip_entry *e, dpi_error *error)
{
    json_t *root = json_loadb((const char *)e->data, e->bytes, 0, NULL), *node;
    text_buffer names = {0};
    size_t i;
    json_array_foreach(json_object_get(root, "nodes"), i, node)
    {
        const char *target = json_string_value(json_object_get(json_object_get(node, "node"), "target"));
        if (target && i < 5)
            text_add(&names, "%s%s", names.length ? ", " : "", target);
    }
    dpi_status status = error_set(
        error, DPI_E_MODEL, "%s needs operators that cannot be called from C (%.300s); export the model without them",
        p->name, names.data ? names.data : e->name + p->folder_length);
    text_free(&names);
    json_decref(root);
    return status;
}

static void take_text(const json_t *root, const char *key, char *to, size_t size)
{
    const char *text = json_string_value(json_object_get(root, key));
    snprintf(to, size, "%s", text ? text : "");
}

static char *copy_text(const json_t *root, const char *key)
{
    const char *text = json_string_value(json_object_get(root, key));
    return text ? strdup(text) : NULL;
}

static dpi_status read_notes(aoti_package *p, dpi_error *error)
{
    json_t *root = NULL;
    for (size_t i = 0; i < p->zip.count; i++) {
        const zip_entry *e = &p->zip.entries[i];
        if (!in_model_folder(p, e))
            continue;
        if (ends_with(e->name, ".blob")) {
            json_decref(root);
            return error_set(error, DPI_E_MODEL,
                             "%s has its weights outside of the model's library, which is not read; "
                             "compile it with the constants in the library",
                             p->name);
        }
        if (ends_with(e->name, ".wrapper_metadata.json") || (!root && ends_with(e->name, "_metadata.json"))) {
            json_decref(root);
            root = json_loadb((const char *)e->data, e->bytes, 0, NULL);
        } else if (ends_with(e->name, ".json") && !ends_with(e->name, "_metadata.json")) {
            json_decref(root);
            return refuse_operators(p, e, error);
        }
    }
    take_text(root, "AOTI_DEVICE_KEY", p->device, sizeof p->device);
    take_text(root, "AOTI_CPU_ISA", p->isa, sizeof p->isa);
    take_text(root, "AOTI_COMPUTE_CAPABILITY", p->capability, sizeof p->capability);
    p->inputs = copy_text(root, "DPINFER_INPUTS");
    p->outputs = copy_text(root, "DPINFER_OUTPUTS");
    json_decref(root);
    return p->device[0] ? DPI_OK
                        : error_set(error, DPI_E_MODEL,
                                    "%s does not say for which device it was compiled; compile it again", p->name);
}

/* PyTorch's names of instruction sets, in words of its own list; another word is believed. */
static const char *lacking_instructions(const char *isa)
{
#if defined(__x86_64__)
    if (backend_lists(isa, "AVX512") && !(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")))
        return "AVX512";
    if (backend_lists(isa, "AVX512_VNNI") && !__builtin_cpu_supports("avx512vnni"))
        return "AVX512_VNNI";
    if (backend_lists(isa, "AVX2") && !(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")))
        return "AVX2";
#endif
    (void)isa;
    return NULL;
}

static dpi_status check_device(const aoti_package *p, const backend_device *device, dpi_error *error)
{
    if (strcmp(p->device, device->kind) != 0)
        return error_set(error, DPI_E_DEVICE,
                         "%s: %s was compiled for %s; compile it for this device, or choose another", device->name,
                         p->name, p->device);
    const char *lacking = strcmp(device->kind, "cpu") == 0 ? lacking_instructions(p->isa) : NULL;
    if (lacking)
        return error_set(error, DPI_E_DEVICE,
                         "%s: %s was compiled for processors with %s, which this one lacks; compile it here",
                         device->name, p->name, lacking);
    return DPI_OK;
}

dpi_status aoti_package_open(const backend_model *model, const backend_device *device, aoti_package *p,
                             dpi_error *error)
{
    *p = (aoti_package){.library_fd = -1, .kernels = KERNEL_FOLDER_NONE, .given = model->data, .bytes = model->bytes};
    snprintf(p->name, sizeof p->name, "%s", model->path ? model->path : "the model in memory");
    dpi_status status = model->path ? map_file(p, model->path, error) : DPI_OK;
    if (!status)
        status = stored_zip_read(p->mapped ? p->mapped : p->given, p->bytes, p->name, &p->zip, error);
    if (!status)
        status = find_library(p, error);
    if (!status)
        status = read_notes(p, error);
    return status ? status : check_device(p, device, error);
}

/* ---- unpacking -------------------------------------------------------------------------------------------------- */

static bool is_kernel(const aoti_package *p, const zip_entry *e)
{
    return in_model_folder(p, e) && ends_with(e->name, ".cubin");
}

static dpi_status write_kernels(aoti_package *p, dpi_error *error)
{
    dpi_status status = kernel_folder_make(&p->kernels, error);
    for (size_t i = 0; i < p->zip.count && !status; i++) {
        const zip_entry *e = &p->zip.entries[i];
        if (is_kernel(p, e))
            status = kernel_folder_add(&p->kernels, e->name + p->folder_length, e->data, e->bytes, error);
    }
    return status;
}

static bool has_kernels(const aoti_package *p)
{
    bool found = false;
    for (size_t i = 0; i < p->zip.count; i++)
        found |= is_kernel(p, &p->zip.entries[i]);
    return found;
}

dpi_status aoti_package_unpack(aoti_package *p, dpi_error *error)
{
    p->library_fd = memfd_create("dpinfer-model", MFD_CLOEXEC);
    if (p->library_fd < 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot make memory for the library of %s", p->name);
    dpi_status status = file_write_at(p->library_fd, p->library->data, p->library->bytes, 0, p->name, error);
    return !status && has_kernels(p) ? write_kernels(p, error) : status;
}

void aoti_package_close(aoti_package *p)
{
    kernel_folder_remove(&p->kernels);
    if (p->library_fd >= 0)
        close(p->library_fd);
    stored_zip_free(&p->zip);
    if (p->mapped)
        munmap((void *)(uintptr_t)p->mapped, p->bytes);
    free(p->inputs);
    free(p->outputs);
    *p = (aoti_package){.library_fd = -1, .kernels = KERNEL_FOLDER_NONE};
}

/* ---- the note about inputs -------------------------------------------------------------------------------------- */

/* "4" or "1:256" */
static bool parse_axis(char *text, int64_t *min, int64_t *max)
{
    char *colon = strchr(text, ':');
    if (colon)
        *colon = 0;
    return text_to_i64(text, 1, INT32_MAX, min) && text_to_i64(colon ? colon + 1 : text, *min, INT32_MAX, max);
}

static bool parse_input(char *text, port *p, aoti_range *range)
{
    char *rest = NULL, *name = strtok_r(text, " ", &rest), *dtype = strtok_r(NULL, " ", &rest);
    char *axes = strtok_r(NULL, " ", &rest), *more = NULL;
    if (!axes || strtok_r(NULL, " ", &rest) || strlen(name) >= sizeof p->name)
        return false;
    *p = (port){.dtype = dtype_by_name(dtype)};
    memcpy(p->name, name, strlen(name) + 1);
    for (char *axis = strtok_r(axes, ",", &more); axis; axis = strtok_r(NULL, ",", &more), p->rank++) {
        if (p->rank == DPI_MAX_RANK || !parse_axis(axis, &range->min[p->rank], &range->max[p->rank]))
            return false;
        p->shape[p->rank] = range->min[p->rank] == range->max[p->rank] ? range->min[p->rank] : -1;
    }
    return p->dtype != DPI_DTYPE_NONE && p->rank > 0;
}

dpi_status aoti_inputs_parse(const char *text, const char *source, port *ports, aoti_range *ranges, size_t *count,
                             dpi_error *error)
{
    char *copy = strdup(text), *rest = NULL;
    dpi_status status = copy ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    *count = 0;
    for (char *one = copy ? strtok_r(copy, ";", &rest) : NULL; one && !status; one = strtok_r(NULL, ";", &rest)) {
        if (*count == PORT_MAX || !parse_input(one, &ports[*count], &ranges[*count]))
            status = error_set(
                error, DPI_E_MODEL,
                "%s: \"%.200s\" does not describe inputs; they look like \"x float32 1:256,3,224,224;ids int64 "
                "1:256,128\"",
                source, text);
        else
            ++*count;
    }
    free(copy);
    if (!status && !*count)
        status = error_set(error, DPI_E_MODEL, "%s describes no inputs", source);
    return status;
}
