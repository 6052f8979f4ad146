#include "runtime/device.h"

#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TEXT 65536

/*
 * How `auto` divides the cores. Measured (docs/benchmarks.md): on 2 cores, two pinned one-thread workers beat one
 * session on two threads by 3 to 7 % for ResNet-50 and MobileNetV2, because nothing has to be synchronised inside a
 * layer. So: one device per physical core, one thread each, SMT siblings idle. Not measured, a default that
 * `dpinfer bench --devices` can check: beyond AUTO_DEVICES_PER_NODE devices per NUMA node neighbouring cores are joined,
 * since every device holds an engine's memory and shares the node's bandwidth.
 */
#define AUTO_DEVICES_PER_NODE 16

static dpi_status add_device(device_list *list, const device *d, dpi_error *error)
{
    if (list->count == DEVICE_MAX)
        return error_set(error, DPI_E_DEVICE, "more than %d devices were named", DEVICE_MAX);
    device *items = realloc(list->items, (list->count + 1) * sizeof *items);
    if (!items)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    list->items = items;
    device copy = *d;
    if (d->cpu_count) {
        copy.cpus = malloc(d->cpu_count * sizeof *copy.cpus);
        if (!copy.cpus)
            return error_set(error, DPI_E_SYSTEM, "out of memory");
        memcpy(copy.cpus, d->cpus, d->cpu_count * sizeof *copy.cpus);
    } else
        copy.cpus = NULL;
    list->items[list->count++] = copy;
    return DPI_OK;
}

/* A cpu device of these CPUs: its canonical name and its threads. Takes `cpus` over. */
static dpi_status add_cpus(device_list *list, int *cpus, size_t count, const topology *machine, size_t threads,
                           dpi_error *error)
{
    device d = {.cpus = cpus, .cpu_count = count, .index = cpus[0]};
    strcpy(d.kind, "cpu");
    char *set = text_from_set(cpus, count);
    snprintf(d.name, sizeof d.name, "cpu:%s", set ? set : "?");
    free(set);
    bool limited = machine->quota > 0 && machine->quota < (double)machine->cpu_count;
    d.pinned = !limited;
    d.threads = threads ? threads : count;
    if (limited && d.threads > machine->usable_threads)
        d.threads = machine->usable_threads;
    dpi_status status = add_device(list, &d, error);
    free(cpus);
    return status;
}

static bool allowed(const topology *machine, int cpu)
{
    for (size_t i = 0; i < machine->cpu_count; i++)
        if (machine->cpus[i].cpu == cpu)
            return true;
    return false;
}

static dpi_status named_cpus(const char *what, const topology *machine, int **cpus, size_t *count, dpi_error *error)
{
    uint64_t node = 0;
    bool all = strcmp(what, "all") == 0, numa = strncmp(what, "numa", 4) == 0;
    if (numa && !text_to_u64(what + 4, 0, 1u << 20, &node))
        return error_set(error, DPI_E_DEVICE, "cpu:%s is no device; say cpu:numa0", what);
    if (!all && !numa) {
        *cpus = text_to_set(what, TOPOLOGY_MAX_CPUS, count, error);
        if (!*cpus) {
            error_prefix(error, "cpu:%s is no device (say cpu:0-3,8 or cpu:all or cpu:numa0)", what);
            if (error)
                error->status = DPI_E_DEVICE;
            return DPI_E_DEVICE;
        }
        for (size_t i = 0; i < *count; i++)
            if (!allowed(machine, (*cpus)[i]))
                return error_set(error, DPI_E_DEVICE,
                                 "cpu:%s: CPU %d does not exist or this process may not use it; see dpinfer devices", what,
                                 (*cpus)[i]);
        return DPI_OK;
    }
    *cpus = calloc(machine->cpu_count + 1, sizeof **cpus);
    if (!*cpus)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    for (size_t i = 0; i < machine->cpu_count; i++)
        if (all || machine->cpus[i].numa == (int)node)
            (*cpus)[(*count)++] = machine->cpus[i].cpu;
    if (!*count)
        return error_set(error, DPI_E_DEVICE, "cpu:%s: this machine has no such NUMA node; see dpinfer devices", what);
    return DPI_OK;
}

static dpi_status add_named(device_list *list, const char *entry, const topology *machine, dpi_error *error)
{
    const char *colon = strchr(entry, ':');
    uint64_t index;
    if (strncmp(entry, "cpu:", 4) == 0) {
        int *cpus = NULL;
        size_t count = 0;
        dpi_status status = named_cpus(entry + 4, machine, &cpus, &count, error);
        if (status) {
            free(cpus);
            return status;
        }
        return add_cpus(list, cpus, count, machine, 0, error);
    }
    device d = {.threads = 1};
    if (strlen(entry) >= sizeof d.name)
        return error_set(error, DPI_E_DEVICE, "\"%.40s...\" is no device", entry);
    strcpy(d.name, entry);
    if (strncmp(entry, "sim:", 4) == 0 && text_to_u64(entry + 4, 0, 1000000, &index)) {
        strcpy(d.kind, "sim");
        d.index = (int)index;
        return add_device(list, &d, error);
    }
    if (strncmp(entry, "cuda:", 5) == 0 && entry[5]) {
        strcpy(d.kind, "cuda");
        d.index = text_to_u64(entry + 5, 0, 1000000, &index) ? (int)index : 0;
        return add_device(list, &d, error);
    }
    (void)colon;
    return error_set(error, DPI_E_DEVICE, "\"%.80s\" is no device; say auto, cpu:0, cpu:0-3,8, cpu:all, cpu:numa0, "
                                          "cuda:0 or sim:0; dpinfer devices lists what is there", entry);
}

/* ---- auto ------------------------------------------------------------------------------------------------------- */

/* The first CPU of every physical core, grouped by node and cache as hwloc numbers them. */
static size_t first_threads(const topology *machine, topology_cpu *out)
{
    size_t count = 0;
    for (size_t i = 0; i < machine->cpu_count; i++) {
        bool sibling = false;
        for (size_t j = 0; j < count && !sibling; j++)
            sibling = out[j].core == machine->cpus[i].core;
        if (!sibling)
            out[count++] = machine->cpus[i];
    }
    return count;
}

static int by_place(const void *a, const void *b)
{
    const topology_cpu *x = a, *y = b;
    return x->numa != y->numa ? x->numa - y->numa : x->l3 != y->l3 ? x->l3 - y->l3 : x->cpu - y->cpu;
}

static dpi_status auto_cpus(device_list *list, const topology *machine, dpi_error *error)
{
    topology_cpu *cores = calloc(machine->cpu_count + 1, sizeof *cores);
    if (!cores)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    size_t count = first_threads(machine, cores);
    qsort(cores, count, sizeof *cores, by_place);
    bool limited = machine->quota > 0 && machine->quota < (double)count;
    size_t usable = limited ? machine->usable_threads : count;
    size_t nodes = machine->numa_count > 0 ? (size_t)machine->numa_count : 1;
    size_t group = (usable + nodes * AUTO_DEVICES_PER_NODE - 1) / (nodes * AUTO_DEVICES_PER_NODE);
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < usable && !status;) {
        size_t n = 1;
        while (n < group && i + n < usable && cores[i + n].numa == cores[i].numa)
            n++;
        int *cpus = calloc(n, sizeof *cpus);
        for (size_t k = 0; cpus && k < n; k++)
            cpus[k] = cores[i + k].cpu;
        status = cpus ? add_cpus(list, cpus, n, machine, n, error) : error_set(error, DPI_E_SYSTEM, "out of memory");
        i += n;
    }
    free(cores);
    snprintf(list->how, sizeof list->how,
             "%zu device%s of %zu core%s: %zu CPUs may be used, on %d cores in %d NUMA node%s%s", list->count,
             list->count == 1 ? "" : "s", group, group == 1 ? "" : "s", machine->cpu_count, machine->core_count,
             machine->numa_count, machine->numa_count == 1 ? "" : "s",
             limited ? "; a CPU quota limits the threads, nothing is pinned" : "");
    return status;
}

static dpi_status add_auto(device_list *list, const topology *machine, const char *kinds, dpi_error *error)
{
    if (backend_lists(kinds, "cpu"))
        return auto_cpus(list, machine, error);
    if (backend_lists(kinds, "sim")) {
        snprintf(list->how, sizeof list->how, "one simulated device");
        return add_named(list, "sim:0", machine, error);
    }
    return error_set(error, DPI_E_DEVICE, "auto found no device for this backend; name one");
}

/* ---- the list --------------------------------------------------------------------------------------------------- */

/* Whether an entry begins at `at`: KIND: or auto. A comma in front of anything else belongs to a set of CPUs. */
static bool entry_begins(const char *at)
{
    size_t letters = strspn(at, "abcdefghijklmnopqrstuvwxyz");
    return letters && (at[letters] == ':' || (letters == 4 && strncmp(at, "auto", 4) == 0));
}

static dpi_status add_entry(device_list *list, char *entry, const topology *machine, const char *kinds,
                            dpi_error *error)
{
    uint64_t times = 1;
    char *star = strrchr(entry, '*');
    if (star) {
        *star = 0;
        if (!text_to_u64(star + 1, 1, DEVICE_MAX, &times))
            return error_set(error, DPI_E_DEVICE, "\"%.80s*%.20s\": behind * stands how often, 1 to %d", entry, star + 1,
                             DEVICE_MAX);
    }
    dpi_status status = DPI_OK;
    for (uint64_t i = 0; i < times && !status; i++)
        status = strcmp(entry, "auto") == 0 ? add_auto(list, machine, kinds, error)
                                            : add_named(list, entry, machine, error);
    return status;
}

dpi_status device_list_parse(const char *text, const topology *machine, const char *kinds, device_list *list,
                             dpi_error *error)
{
    *list = (device_list){0};
    if (strlen(text) > MAX_TEXT)
        return error_set(error, DPI_E_DEVICE, "the list of devices is too long");
    char *copy = strdup(text);
    if (!copy)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    dpi_status status = DPI_OK;
    char *at = copy;
    while (!status) {
        at += strspn(at, " \t\n;");
        if (!*at)
            break;
        char *end = at;
        while (*end && !strchr(" \t\n;", *end) && !(*end == ',' && entry_begins(end + 1)))
            end++;
        bool more = *end != 0;
        *end = 0;
        status = add_entry(list, at, machine, kinds, error);
        at = end + more;
    }
    free(copy);
    if (!status && !list->count)
        status = error_set(error, DPI_E_DEVICE, "no device was named");
    if (status)
        device_list_free(list);
    return status;
}

void device_list_free(device_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i].cpus);
    free(list->items);
    *list = (device_list){0};
}

backend_device device_for_backend(const device_list *list, size_t i, bool in_caller)
{
    const device *from = &list->items[i];
    backend_device d = {.index = from->index,
                        .cpus = from->cpus,
                        .cpu_count = from->cpu_count,
                        .threads = from->threads,
                        .pinned = from->pinned && !in_caller,
                        .in_caller = in_caller,
                        .worker = i};
    strcpy(d.kind, from->kind);
    strcpy(d.name, from->name);
    return d;
}
