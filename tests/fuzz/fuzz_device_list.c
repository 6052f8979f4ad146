/* A list of devices is untrusted text: whatever it says, the devices that come of it lie within the machine. */
#include "runtime/device.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CPUS 48

static void check_device(const device *d, const topology *machine)
{
    assert(strcmp(d->kind, "cpu") == 0 || strcmp(d->kind, "sim") == 0 || strcmp(d->kind, "cuda") == 0);
    assert(memchr(d->name, 0, sizeof d->name));
    assert(strncmp(d->name, d->kind, strlen(d->kind)) == 0 && d->name[strlen(d->kind)] == ':');
    assert(d->threads >= 1 && (!d->cpu_count || d->threads <= d->cpu_count));
    assert((d->cpu_count > 0) == (strcmp(d->kind, "cpu") == 0));
    assert(d->cpu_count <= machine->cpu_count);
    for (size_t i = 0; i < d->cpu_count; i++) {
        bool known = false;
        for (size_t k = 0; k < machine->cpu_count; k++)
            known |= machine->cpus[k].cpu == d->cpus[i];
        assert(known && (i == 0 || d->cpus[i] > d->cpus[i - 1]));
    }
}

static void check_list(const char *text, const topology *machine)
{
    device_list list, again;
    dpi_error error = {0};
    dpi_status status = device_list_parse(text, machine, "cpu sim", &list, &error);
    if (status) {
        assert(status == DPI_E_DEVICE && error.status == status && error.message[0] && !list.items);
        return;
    }
    assert(list.count >= 1 && list.count <= DEVICE_MAX);
    for (size_t i = 0; i < list.count; i++) {
        check_device(&list.items[i], machine);
        if (i > 8 || strstr(list.items[i].name, "..."))
            continue;
        /* Canonical names mean the same device. */
        assert(device_list_parse(list.items[i].name, machine, "cpu sim", &again, NULL) == DPI_OK);
        assert(again.count == 1 && strcmp(again.items[0].name, list.items[i].name) == 0);
        device_list_free(&again);
    }
    device_list_free(&list);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* Two nodes of three caches, SMT, some CPUs missing from the mask. */
    topology_cpu cpus[CPUS];
    topology machine = {.cpus = cpus, .core_count = CPUS / 2, .numa_count = 2, .usable_threads = CPUS / 2};
    for (int i = 0; i < CPUS; i++)
        if (i % 7 != 5)
            cpus[machine.cpu_count++] = (topology_cpu){.cpu = i, .core = i % 24, .numa = i % 24 / 12, .l3 = i % 24 / 4};
    char *text = malloc(size + 1);
    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = 0;
    check_list(text, &machine);
    machine.quota = 3.5;
    machine.usable_threads = 4;
    check_list(text, &machine);
    free(text);
    return 0;
}
