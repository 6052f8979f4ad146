#include "backend/cuda.h"

#include "base/text.h"

#include <ctype.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- the driver ------------------------------------------------------------------------------------------------- */

static cuda_api the_api;
static dpi_error load_error;
static pthread_once_t load_once = PTHREAD_ONCE_INIT;

static void words(const cuda_api *api, CUresult result, char *text, size_t size)
{
    const char *name = NULL, *sentence = NULL;
    if (api->cuGetErrorName(result, &name) || api->cuGetErrorString(result, &sentence))
        name = sentence = NULL;
    snprintf(text, size, "%s (%s, %d)", sentence ? sentence : "unknown error", name ? name : "?", result);
}

static void load(void)
{
    void *handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!handle) {
        error_set(&load_error, DPI_E_BACKEND, "there is no NVIDIA driver: %s", dlerror());
        return;
    }
    static const struct {
        const char *symbol;
        size_t offset;
    } functions[] = {
#define X(name, symbol, parameters) {symbol, offsetof(cuda_api, name)},
        CUDA_FUNCTIONS(X)
#undef X
    };
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *address = dlsym(handle, functions[i].symbol);
        if (!address) {
            error_set(&load_error, DPI_E_BACKEND, "the NVIDIA driver is too old: it has no %s", functions[i].symbol);
            return;
        }
        memcpy((char *)&the_api + functions[i].offset, &address, sizeof address);
    }
    CUresult result = the_api.cuInit(0);
    char text[200];
    if (result == CUDA_SUCCESS_)
        return;
    words(&the_api, result, text, sizeof text);
    error_set(&load_error, result == CUDA_ERROR_NO_DEVICE_ ? DPI_E_DEVICE : DPI_E_BACKEND,
              "CUDA cannot be initialised: %s", text);
}

dpi_status cuda_load(const cuda_api **api, dpi_error *error)
{
    pthread_once(&load_once, load);
    *api = &the_api;
    return load_error.status ? error_set(error, load_error.status, "%s", load_error.message) : DPI_OK;
}

bool cuda_may_be_there(void) { return access("/dev/nvidiactl", F_OK) == 0 || access("/dev/dxg", F_OK) == 0; }

dpi_status cuda_check(const cuda_api *api, CUresult result, const char *device, const char *what, dpi_error *error)
{
    if (result == CUDA_SUCCESS_)
        return DPI_OK;
    char text[200];
    words(api, result, text, sizeof text);
    size_t free_bytes, total;
    if (result == CUDA_ERROR_OUT_OF_MEMORY_ && api->cuMemGetInfo(&free_bytes, &total) == CUDA_SUCCESS_)
        return error_set(error, DPI_E_DEVICE, "%s: %s: out of GPU memory (%zu of %zu MiB are free); lower --batch",
                         device, what, free_bytes >> 20, total >> 20);
    return error_set(error, DPI_E_DEVICE, "%s: %s: %s", device, what, text);
}

/* ---- facts ------------------------------------------------------------------------------------------------------ */

/* First line of a file below a PCI device's folder. */
static bool pci_line(const char *bus, const char *file, char *line, int size)
{
    char path[128];
    snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/%s", bus, file);
    FILE *f = fopen(path, "re");
    bool good = f && fgets(line, size, f);
    if (f)
        fclose(f);
    if (good)
        line[strcspn(line, "\n")] = 0;
    return good;
}

static void read_link(cuda_facts *f)
{
    char speed[32], width[16], node[16];
    if (pci_line(f->bus, "current_link_speed", speed, sizeof speed) &&
        pci_line(f->bus, "current_link_width", width, sizeof width)) {
        char *behind = strstr(speed, " PCIe");
        if (behind)
            *behind = 0;
        snprintf(f->link, sizeof f->link, "PCIe %s x%s", speed, width);
    }
    f->numa = pci_line(f->bus, "numa_node", node, sizeof node) ? atoi(node) : -1;
}

dpi_status cuda_read_facts(const cuda_api *api, int index, cuda_facts *f, dpi_error *error)
{
    *f = (cuda_facts){.numa = -1};
    char what[32];
    snprintf(what, sizeof what, "cuda:%d", index);
    CUdevice device;
    CUuuid uuid;
    size_t total = 0;
    dpi_status status = cuda_check(api, api->cuDeviceGet(&device, index), what, "asking for the device", error);
    if (status)
        return status;
    CUresult result = api->cuDeviceGetName(f->name, sizeof f->name, device);
    if (!result)
        result = api->cuDeviceGetUuid(&uuid, device);
    if (!result)
        result = api->cuDeviceGetAttribute(&f->major, CU_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR_, device);
    if (!result)
        result = api->cuDeviceGetAttribute(&f->minor, CU_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR_, device);
    if (!result)
        result = api->cuDeviceGetAttribute(&f->multiprocessors, CU_ATTRIBUTE_MULTIPROCESSOR_COUNT_, device);
    if (!result)
        result = api->cuDeviceTotalMem(&total, device);
    if (result)
        return cuda_check(api, result, what, "asking for its properties", error);
    f->memory_bytes = total;
    const unsigned char *u = uuid.bytes;
    snprintf(f->uuid, sizeof f->uuid, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0],
             u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
    if (api->cuDeviceGetPCIBusId(f->bus, sizeof f->bus, device) == CUDA_SUCCESS_) {
        for (char *c = f->bus; *c; c++)
            *c = (char)tolower((unsigned char)*c);
        read_link(f);
    }
    return DPI_OK;
}

uint64_t cuda_free_memory(const cuda_api *api, int index)
{
    CUdevice device;
    CUcontext context;
    size_t free_bytes = 0, total;
    if (api->cuDeviceGet(&device, index) || api->cuDevicePrimaryCtxRetain(&context, device))
        return 0;
    if (api->cuCtxSetCurrent(context) || api->cuMemGetInfo(&free_bytes, &total))
        free_bytes = 0;
    api->cuDevicePrimaryCtxRelease(device);
    return free_bytes;
}

void cuda_driver_text(const cuda_api *api, char *text, size_t size)
{
    char driver[64] = "";
    int version = 0;
    FILE *f = fopen("/sys/module/nvidia/version", "re");
    if (f && fgets(driver, sizeof driver, f))
        driver[strcspn(driver, "\n")] = 0;
    if (f)
        fclose(f);
    api->cuDriverGetVersion(&version);
    snprintf(text, size, "%s%sCUDA %d.%d", driver, *driver ? ", " : "", version / 1000, version % 1000 / 10);
}

/* ---- choosing --------------------------------------------------------------------------------------------------- */

/* Entry `number` of a comma-separated list; false when it has fewer. */
static bool list_entry(const char *list, uint64_t number, char *entry, size_t size)
{
    for (const char *at = list;; number--) {
        size_t length = strcspn(at, ",");
        if (number == 0) {
            while (length && isspace((unsigned char)*at)) {
                at++;
                length--;
            }
            while (length && isspace((unsigned char)at[length - 1]))
                length--;
            return (size_t)snprintf(entry, size, "%.*s", (int)length, at) < size && length;
        }
        if (!at[length])
            return false;
        at += length + 1;
    }
}

static bool has_entry(const char *list, const char *wanted)
{
    char entry[192];
    for (uint64_t i = 0; list_entry(list, i, entry, sizeof entry); i++)
        if (strncmp(entry, wanted, strlen(entry)) == 0) /* CUDA takes a UUID's beginning for the whole */
            return true;
    return false;
}

dpi_status cuda_visible_entry(const char *device_name, const char *visible, char *entry, size_t size, dpi_error *error)
{
    const char *what = strchr(device_name, ':');
    what = what ? what + 1 : device_name;
    uint64_t number;
    if (text_to_u64(what, 0, 1000000, &number)) {
        if (!visible) {
            snprintf(entry, size, "%llu", (unsigned long long)number);
            return DPI_OK;
        }
        if (list_entry(visible, number, entry, size))
            return DPI_OK;
        return error_set(error, DPI_E_DEVICE, "%s: CUDA_VISIBLE_DEVICES is \"%.100s\" and has no such entry",
                         device_name, visible);
    }
    if (strncmp(what, "GPU-", 4) != 0 && strncmp(what, "MIG-", 4) != 0)
        return error_set(error, DPI_E_DEVICE, "%s is no CUDA device; say cuda:0, cuda:GPU-uuid or cuda:MIG-uuid",
                         device_name);
    if (visible && (strstr(visible, "GPU-") || strstr(visible, "MIG-")) && !has_entry(visible, what))
        return error_set(error, DPI_E_DEVICE, "%s: CUDA_VISIBLE_DEVICES is \"%.100s\" and does not name it",
                         device_name, visible);
    if ((size_t)snprintf(entry, size, "%s", what) >= size)
        return error_set(error, DPI_E_DEVICE, "%.80s...: the name is too long", device_name);
    return DPI_OK;
}

/* In a process that sees several GPUs: the one of this name. */
static dpi_status find_by_name(const char *device_name, int *index, dpi_error *error)
{
    const cuda_api *api;
    dpi_status status = cuda_load(&api, error);
    uint64_t number;
    const char *what = device_name + strcspn(device_name, ":");
    what += *what == ':';
    int count = 0;
    if (!status)
        status = cuda_check(api, api->cuDeviceGetCount(&count), device_name, "counting the GPUs", error);
    if (!status && text_to_u64(what, 0, 1000000, &number)) {
        *index = (int)number;
        return (int)number < count ? DPI_OK
                                   : error_set(error, DPI_E_DEVICE, "%s: there are %d GPUs", device_name, count);
    }
    for (int i = 0; !status && i < count; i++) {
        cuda_facts facts;
        status = cuda_read_facts(api, i, &facts, error);
        if (!status && strncmp(facts.uuid, what, strlen(what)) == 0) {
            *index = i;
            return DPI_OK;
        }
    }
    return status ? status : error_set(error, DPI_E_DEVICE, "%s: there is no such GPU", device_name);
}

/* Leaves one GPU to see, whose index is 0 then. */
static dpi_status hide_others(const char *device_name, dpi_error *error)
{
    char entry[192];
    dpi_status status = cuda_visible_entry(device_name, getenv("CUDA_VISIBLE_DEVICES"), entry, sizeof entry, error);
    if (status)
        return status;
    if (setenv("CUDA_VISIBLE_DEVICES", entry, 1) != 0)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    const cuda_api *api;
    status = cuda_load(&api, error);
    int count = 0;
    if (status == DPI_E_DEVICE || (!status && (api->cuDeviceGetCount(&count) || !count)))
        return error_set(error, DPI_E_DEVICE, "%s: there is no such GPU; dpinfer devices lists what is there",
                         device_name);
    return status;
}

dpi_status cuda_choose(cuda_choice *choice, const char *device_name, bool only_it, dpi_error *error)
{
    if (strcmp(choice->device, device_name) == 0)
        return DPI_OK;
    int index = 0;
    dpi_status status = only_it ? hide_others(device_name, error) : find_by_name(device_name, &index, error);
    if (!status)
        status = cuda_load(&choice->api, error);
    if (!status) {
        choice->index = index;
        snprintf(choice->device, sizeof choice->device, "%s", device_name);
    }
    return status;
}
