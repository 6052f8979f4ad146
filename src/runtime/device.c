#include "runtime/device.h"

#include "base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TEXT 65536

/*
 * How `auto` divides the cores. Measured (docs/benchmarks.md): on 2 cores, two pinned one-thread workers beat one
 * session on two threads by 3 to 7 % for ResNet-50 and MobileNetV2, because nothing has to be synchronised inside a
 * layer. So: one device per physical core, one thread each, SMT siblings idle. Not measured, a default that
 * `dpinfer bench --devices` can check: beyond AUTO_DEVICES_PER_NODE devices per NUMA node neighbouring cores are
 * joined, since every device holds an engine's memory and shares the node's bandwidth. Joined cores share a last-level
 * cache unless the node has more caches than devices.
 */
#define AUTO_DEVICES_PER_NODE 16

static dpi_status add_device(device_list *list, const device *d, dpi_error *error)
{
    if (list->count == DEVICE_MAX)
        return error_set(error, DPI_E_DEVICE, "more than %d devices were named; name fewer", DEVICE_MAX);
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

/* A CPU quota without a cpuset: the scheduler may move this process's time anywhere, so nothing is pinned. */
static bool is_limited(const topology *machine)
{
    return machine->quota > 0 && machine->quota < (double)machine->cpu_count;
}

/* A cpu device of these CPUs: its canonical name and its threads. Takes `cpus` over. */
static dpi_status add_cpus(device_list *list, int *cpus, size_t count, const topology *machine, dpi_error *error)
{
    device d = {.cpus = cpus, .cpu_count = count, .index = cpus[0]};
    strcpy(d.kind, "cpu");
    char *set = text_from_set(cpus, count);
    if (snprintf(d.name, sizeof d.name, "cpu:%s", set ? set : "?") >= (int)sizeof d.name)
        strcpy(d.name + sizeof d.name - 4, "...");
    free(set);
    d.pinned = !is_limited(machine);
    d.threads = count;
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

/* How many numbers a set that text_to_set has accepted names, doubles counted. */
static size_t numbers_named(const char *set)
{
    size_t count = 0;
    for (char *at = (char *)(uintptr_t)set;; at++) {
        unsigned long low = strtoul(at, &at, 10), high = *at == '-' ? strtoul(at + 1, &at, 10) : low;
        count += high - low + 1;
        if (!*at)
            return count;
    }
}

static dpi_status named_cpus(const char *what, const topology *machine, int **cpus, size_t *count, dpi_error *error)
{
    uint64_t node = 0;
    bool all = strcmp(what, "all") == 0, numa = strncmp(what, "numa", 4) == 0;
    if (numa && !text_to_u64(what + 4, 0, 1u << 20, &node))
        return error_set(error, DPI_E_DEVICE, "cpu:%.80s is no device; say cpu:numa0", what);
    if (!all && !numa) {
        *cpus = text_to_set(what, TOPOLOGY_MAX_CPUS, count, error);
        if (!*cpus) {
            error_prefix(error, "cpu:%.80s is no device (say cpu:0-3,8 or cpu:all or cpu:numa0)", what);
            if (error)
                error->status = DPI_E_DEVICE;
            return DPI_E_DEVICE;
        }
        if (numbers_named(what) != *count)
            return error_set(error, DPI_E_DEVICE,
                             "cpu:%.80s names a CPU twice; for two workers on the same CPUs say cpu:0*2", what);
        for (size_t i = 0; i < *count; i++)
            if (!allowed(machine, (*cpus)[i]))
                return error_set(error, DPI_E_DEVICE,
                                 "cpu:%.80s: CPU %d does not exist or this process may not use it; see dpinfer devices",
                                 what, (*cpus)[i]);
        return DPI_OK;
    }
    *cpus = calloc(machine->cpu_count + 1, sizeof **cpus);
    if (!*cpus)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    for (size_t i = 0; i < machine->cpu_count; i++)
        if (all || machine->cpus[i].numa == (int)node)
            (*cpus)[(*count)++] = machine->cpus[i].cpu;
    if (!*count)
        return error_set(error, DPI_E_DEVICE,
                         "cpu:%.80s: this process may use no CPU of such a NUMA node; see dpinfer devices", what);
    return DPI_OK;
}

/* Of a GPU's number or UUID (GPU-..., MIG-...). */
static const char id_characters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-/";

static dpi_status add_named(device_list *list, const char *entry, const topology *machine, dpi_error *error)
{
    uint64_t index;
    if (strncmp(entry, "cpu:", 4) == 0) {
        int *cpus = NULL;
        size_t count = 0;
        dpi_status status = named_cpus(entry + 4, machine, &cpus, &count, error);
        if (status) {
            free(cpus);
            return status;
        }
        return add_cpus(list, cpus, count, machine, error);
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
    if (strncmp(entry, "cuda:", 5) == 0 && entry[5] && !entry[5 + strspn(entry + 5, id_characters)]) {
        strcpy(d.kind, "cuda");
        d.index = text_to_u64(entry + 5, 0, 1000000, &index) ? (int)index : 0;
        return add_device(list, &d, error);
    }
    return error_set(error, DPI_E_DEVICE,
                     "\"%.80s\" is no device; say auto, cpu:0, cpu:0-3,8, cpu:all, cpu:numa0, "
                     "cuda:0 or sim:0; dpinfer devices lists what is there",
                     entry);
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

/* Whether core i joins the device that began at `first`. */
static bool joins(const topology_cpu *cores, size_t first, size_t i, size_t group, bool within_l3)
{
    return i - first < group && cores[i].numa == cores[first].numa && (!within_l3 || cores[i].l3 == cores[first].l3);
}

static size_t count_groups(const topology_cpu *cores, size_t count, size_t group, bool within_l3)
{
    size_t groups = 0;
    for (size_t first = 0, i; first < count; first = i, groups++)
        for (i = first + 1; i < count && joins(cores, first, i, group, within_l3);)
            i++;
    return groups;
}

/* One node's cores, sorted by cache: the smallest groups that make at most `most` devices. */
static dpi_status auto_node(device_list *list, const topology_cpu *cores, size_t count, size_t most,
                            const topology *machine, dpi_error *error)
{
    size_t group = (count + most - 1) / most;
    bool within_l3 = count_groups(cores, count, count, true) <= most;
    while (count_groups(cores, count, group, within_l3) > most)
        group++;
    dpi_status status = DPI_OK;
    for (size_t first = 0, i; first < count && !status; first = i) {
        for (i = first + 1; i < count && joins(cores, first, i, group, within_l3);)
            i++;
        int *cpus = calloc(i - first, sizeof *cpus);
        for (size_t k = first; cpus && k < i; k++)
            cpus[k - first] = cores[k].cpu;
        status =
            cpus ? add_cpus(list, cpus, i - first, machine, error) : error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    return status;
}

static void say_how(device_list *list, const topology *machine)
{
    size_t group = 1;
    for (size_t i = 0; i < list->count; i++)
        group = list->items[i].cpu_count > group ? list->items[i].cpu_count : group;
    snprintf(
        list->how, sizeof list->how,
        "%zu device%s of %s%zu core%s, one thread per core%s: this process may use %zu CPU%s on %d core%s in %d NUMA "
        "node%s%s",
        list->count, list->count == 1 ? "" : "s", group > 1 && list->count > 1 ? "up to " : "", group,
        group == 1 ? "" : "s", machine->cpu_count > (size_t)machine->core_count ? ", SMT siblings idle" : "",
        machine->cpu_count, machine->cpu_count == 1 ? "" : "s", machine->core_count,
        machine->core_count == 1 ? "" : "s", machine->numa_count, machine->numa_count == 1 ? "" : "s",
        is_limited(machine) ? "; a CPU quota limits the threads, nothing is pinned" : "");
}

static dpi_status auto_cpus(device_list *list, const topology *machine, dpi_error *error)
{
    topology_cpu *cores = calloc(machine->cpu_count + 1, sizeof *cores);
    if (!cores)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    size_t count = first_threads(machine, cores);
    qsort(cores, count, sizeof *cores, by_place);
    if (is_limited(machine) && machine->usable_threads < count)
        count = machine->usable_threads;
    size_t nodes = machine->numa_count > 0 ? (size_t)machine->numa_count : 1, most = AUTO_DEVICES_PER_NODE;
    if (most > DEVICE_MAX / nodes)
        most = DEVICE_MAX / nodes ? DEVICE_MAX / nodes : 1;
    dpi_status status = DPI_OK;
    for (size_t first = 0, i; first < count && !status; first = i) {
        for (i = first + 1; i < count && cores[i].numa == cores[first].numa;)
            i++;
        status = auto_node(list, cores + first, i - first, most, machine, error);
    }
    free(cores);
    say_how(list, machine);
    return status;
}

static dpi_status auto_gpus(device_list *list, const topology *machine, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (int i = 0; i < machine->gpus && !status; i++) {
        char name[32];
        snprintf(name, sizeof name, "cuda:%d", i);
        status = add_named(list, name, machine, error);
    }
    snprintf(list->how, sizeof list->how, "%d GPU%s; the cores feed %s", machine->gpus, machine->gpus == 1 ? "" : "s",
             machine->gpus == 1 ? "it" : "them");
    return status;
}

static dpi_status add_auto(device_list *list, const topology *machine, const char *kinds, dpi_error *error)
{
    if (backend_lists(kinds, "cuda") && machine->gpus > 0)
        return auto_gpus(list, machine, error);
    if (backend_lists(kinds, "cpu"))
        return auto_cpus(list, machine, error);
    if (backend_lists(kinds, "sim")) {
        snprintf(list->how, sizeof list->how, "one simulated device");
        return add_named(list, "sim:0", machine, error);
    }
    /* A library without its device: another backend is to be tried, as with a library that is missing. */
    return error_set(error, DPI_E_BACKEND, "auto found no device of the kind %s", kinds);
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
            return error_set(error, DPI_E_DEVICE, "\"%.80s*%.20s\": behind * stands how often, 1 to %d", entry,
                             star + 1, DEVICE_MAX);
    }
    dpi_status status = DPI_OK;
    for (uint64_t i = 0; i < times && !status; i++)
        status =
            strcmp(entry, "auto") == 0 ? add_auto(list, machine, kinds, error) : add_named(list, entry, machine, error);
    return status;
}

/* Under a quota: shares the usable threads out among the cpu devices in proportion to what they asked for, at least
 * one each. */
static void limit_threads(device_list *list, const topology *machine)
{
    size_t wanted = 0, given = 0;
    for (size_t i = 0; i < list->count; i++)
        wanted += list->items[i].cpu_count;
    if (!is_limited(machine) || wanted <= machine->usable_threads)
        return;
    for (size_t i = 0; i < list->count; i++) {
        device *d = &list->items[i];
        size_t share = d->cpu_count * machine->usable_threads / wanted;
        d->threads = d->cpu_count && share ? share : 1;
        given += d->cpu_count ? d->threads : 0;
    }
    for (size_t i = 0; i < list->count && given < machine->usable_threads; i++)
        if (list->items[i].threads < list->items[i].cpu_count) {
            list->items[i].threads++;
            given++;
        }
}

dpi_status device_list_parse(const char *text, const topology *machine, const char *kinds, device_list *list,
                             dpi_error *error)
{
    *list = (device_list){0};
    if (strlen(text) > MAX_TEXT)
        return error_set(error, DPI_E_DEVICE, "the list of devices is longer than %d bytes; name fewer", MAX_TEXT);
    char *copy = strdup(text);
    if (!copy)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    for (char *c = copy; *c; c++) /* messages quote the text: nothing that would steer a terminal */
        if (((unsigned char)*c < ' ' && *c != '\t' && *c != '\n') || *c == 127)
            *c = '?';
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
        status = error_set(error, DPI_E_DEVICE, "no device was named; say auto, or for example cpu:0-3");
    if (status)
        device_list_free(list);
    else
        limit_threads(list, machine);
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
