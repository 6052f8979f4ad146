/* The user's list of devices: parsing, `auto`, and what each worker is told. */
#ifndef DPI_RUNTIME_DEVICE_H
#define DPI_RUNTIME_DEVICE_H

#include "backend/backend.h"
#include "base/topology.h"

#define DEVICE_MAX 256 /* workers of one session */

typedef struct device {
    char kind[16];
    char name[192]; /* canonical: "cpu:0-3,8" */
    int index;
    int *cpus; /* owned; NULL for others than cpu */
    size_t cpu_count;
    size_t threads; /* compute threads: cpu_count, less under a quota */
    bool pinned;    /* false under a quota without a cpuset */
} device;

typedef struct device_list {
    device *items;
    size_t count;
    char how[256]; /* for `auto`: one sentence on how the machine was divided, else "" */
} device_list;

/* Parses "auto" or a list. Entries are separated by blanks, ';', or by a comma in front of KIND: ("cpu:0,cpu:1" is
 * two devices, "cpu:0-3,8-11" is one). "*K" behind an entry repeats it. Entries: cpu:SET, cpu:all (every CPU this
 * process may use, one device), cpu:numaN, sim:N, cuda:N, cuda:GPU-UUID and cuda:MIG-UUID (text; the worker finds it).
 * CPUs outside of the affinity mask are DPI_E_DEVICE and named. For `auto`, `backend_kinds` (the backend's
 * device_kinds) decides: cuda -> every GPU (machine->gpus); sim -> one sim:0; cpu -> the usable cores divided into
 * devices that give the best throughput: one thread per physical core, devices within one NUMA node / last-level cache;
 * see device.c for the evidence. Under a quota without a cpuset nothing is pinned and the threads are limited to the
 * quota. `text` is untrusted: at most 64 KiB, at most DEVICE_MAX devices. device_list_free ends the list. */
dpi_status device_list_parse(const char *text, const topology *machine, const char *backend_kinds, device_list *list,
                             dpi_error *error);
void device_list_free(device_list *list);

/* The backend's view of device `i`; points into the list. */
backend_device device_for_backend(const device_list *list, size_t i, bool in_caller);

#endif
