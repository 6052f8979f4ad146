/* inspect, compile, devices and cache: what there is. */
#include "cli/cli.h"

#include "backend/backend.h"
#include "backend/cuda.h"
#include "base/topology.h"
#include "runtime/cache.h"
#include "runtime/device.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char inspect_help[] =
    "dpinfer inspect MODEL [--devices LIST] [--json]\n"
    "\n"
    "Opens a model and says what it takes, what it gives, and whether its rows can be split.\n"
    "\n"
    "    dpinfer inspect resnet50.onnx\n"
    "    dpinfer inspect net.onnx --devices cpu:0 --backend onnxruntime --json\n"
    "\n"
    "Takes all flags of `dpinfer run` on where and how.\n";

static const char compile_help[] =
    "dpinfer compile MODEL [--devices LIST] [--batch N] [--json]\n"
    "\n"
    "Compiles a model for the devices and keeps the engines in the cache, so that later starts are quick.\n"
    "\n"
    "    dpinfer compile resnet50.onnx --batch 32\n"
    "\n"
    "Takes all flags of `dpinfer run` on where and how; they must be the same later for the cache to be hit.\n";

static const char devices_help[] =
    "dpinfer devices [--json]\n"
    "\n"
    "Lists the cores that this process may use, and each backend with its library and devices.\n";

static const char cache_help[] = "dpinfer cache list|clear [--cache-dir DIR] [--json]\n"
                                 "\n"
                                 "    dpinfer cache list     compiled engines: size, last use, what they are\n"
                                 "    dpinfer cache clear    removes them all\n";

static void print_ports(const char *what, const dpi_tensor *ports, size_t count)
{
    char text[256];
    for (size_t i = 0; i < count; i++) {
        cli_shape_text(&ports[i], text, sizeof text);
        printf("%s %s: %s\n", what, ports[i].name, text);
    }
}

static void print_session(const dpi_description *d, bool compiled)
{
    print_ports("input ", d->inputs, d->input_count);
    print_ports("output", d->outputs, d->output_count);
    printf("rows  : %s\n",
           d->fixed_batch ? "independent, computed in calls of a fixed size" : "independent, any number per call");
    if (d->fixed_batch)
        printf("call  : %zu rows, short ones are padded inside\n", d->fixed_batch);
    for (size_t w = 0; w < d->worker_count; w++) {
        const dpi_worker_info *k = &d->workers[w];
        printf("device %s: %s %s, ready in %.2f s%s\n", k->device, k->backend, k->version, k->open_seconds,
               k->from_cache ? ", from the cache"
               : compiled    ? ", compiled"
                             : "");
    }
    if (!d->bit_identical)
        printf("The devices run different engines: results may differ by %.2g of the largest.\n", d->tolerance);
}

static int open_and_show(int argc, char **argv, const char *text, bool compiled)
{
    cli_options o;
    dpi_error error;
    dpi_session *s = NULL;
    dpi_description d = DPI_INIT(dpi_description);
    dpi_status status = cli_parse(argc, argv, CLI_MODEL, text, &o, &error);
    if (!status)
        status = dpi_open(&o.open, &s, &error);
    if (!status)
        status = dpi_describe(s, &d, &error);
    if (!status && o.json) {
        json_t *json = cli_describe_json(&d);
        json_object_set_new(json, "model", json_string(o.model));
        cli_print_json(json);
    } else if (!status) {
        print_session(&d, compiled);
        const backend *b = backend_find(d.workers[0].backend);
        if (compiled && b && !b->export_engine)
            printf("%s has nothing to keep in the cache on this device: its engines are built at each start\n",
                   b->name);
    }
    int code = status ? cli_fail(&error) : 0;
    dpi_close(s);
    cli_free(&o);
    return code;
}

int cmd_inspect(int argc, char **argv) { return open_and_show(argc, argv, inspect_help, false); }
int cmd_compile(int argc, char **argv) { return open_and_show(argc, argv, compile_help, true); }

/* ---- devices ---------------------------------------------------------------------------------------------------- */

static json_t *backend_json(const backend *b)
{
    backend_library *library = NULL;
    dpi_error error;
    logger quiet = {.level = DPI_LOG_ERROR};
    json_t *json = json_pack("{s:s, s:s}", "backend", b->name, "formats", b->formats);
    if (b->load(&(backend_load_options){0}, &quiet, &library, &error)) {
        json_object_set_new(json, "available", json_false());
        json_object_set_new(json, "reason", json_string(error.message));
        return json;
    }
    backend_library_info info = {0};
    backend_device_info list[64];
    size_t count = 0;
    b->library_info(library, &info);
    json_object_set_new(json, "available", json_true());
    json_object_set_new(json, "library", json_string(info.path));
    json_object_set_new(json, "version", json_string(info.version));
    json_t *devices = json_array();
    if (b->list_devices(library, list, 64, &count, &error) == DPI_OK)
        for (size_t i = 0; i < count && i < 64; i++)
            json_array_append_new(devices, json_pack("{s:s, s:s, s:s, s:I}", "device", list[i].name, "description",
                                                     list[i].description, "precisions", list[i].precisions,
                                                     "memory_bytes", (json_int_t)list[i].memory_bytes));
    json_object_set_new(json, "devices", devices);
    b->unload(library);
    return json;
}

/* GPUs, whatever libraries there are for them. */
static json_t *gpus_json(void)
{
    json_t *list = json_array();
    const cuda_api *cuda;
    dpi_error error;
    int count = 0;
    if (!cuda_may_be_there() || cuda_load(&cuda, &error) || cuda->cuDeviceGetCount(&count))
        return list;
    char driver[96], name[32];
    cuda_driver_text(cuda, driver, sizeof driver);
    for (int i = 0; i < count; i++) {
        cuda_facts f;
        if (cuda_read_facts(cuda, i, &f, &error))
            continue;
        snprintf(name, sizeof name, "cuda:%d", i);
        json_array_append_new(list, json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:s, s:I, s:I, s:i}", "device", name,
                                              "name", f.name, "uuid", f.uuid, "driver", driver, "bus", f.bus,
                                              "compute_major", f.major, "compute_minor", f.minor, "link", f.link,
                                              "memory_bytes", (json_int_t)f.memory_bytes, "free_bytes",
                                              (json_int_t)cuda_free_memory(cuda, i), "numa_node", f.numa));
    }
    return list;
}

static void print_gpus(const json_t *gpus)
{
    size_t i;
    json_t *g;
    json_array_foreach(gpus, i, g)
    {
        long long numa = json_integer_value(json_object_get(g, "numa_node"));
        const char *link = json_string_value(json_object_get(g, "link"));
        printf("%s: %s, compute %lld.%lld, %.1f of %.1f GiB free, driver %s%s%s",
               json_string_value(json_object_get(g, "device")), json_string_value(json_object_get(g, "name")),
               json_integer_value(json_object_get(g, "compute_major")),
               json_integer_value(json_object_get(g, "compute_minor")),
               (double)json_integer_value(json_object_get(g, "free_bytes")) / (1 << 30),
               (double)json_integer_value(json_object_get(g, "memory_bytes")) / (1 << 30),
               json_string_value(json_object_get(g, "driver")), *link ? ", " : "", link);
        if (numa >= 0)
            printf(", NUMA node %lld", numa);
        printf(", %s\n", json_string_value(json_object_get(g, "uuid")));
    }
}

static json_t *machine_json(const topology *t, const device_list *autos)
{
    json_t *devices = json_array();
    for (size_t i = 0; i < autos->count; i++)
        json_array_append_new(devices, json_string(autos->items[i].name));
    return json_pack("{s:s, s:I, s:i, s:i, s:f, s:I, s:o, s:s}", "processor", t->model, "cpus",
                     (json_int_t)t->cpu_count, "cores", t->core_count, "numa_nodes", t->numa_count, "quota_cpus",
                     t->quota, "memory_bytes", (json_int_t)t->memory_bytes, "auto", devices, "auto_how", autos->how);
}

static void print_devices(const json_t *json)
{
    const json_t *m = json_object_get(json, "machine");
    printf("%s: %lld CPUs on %lld cores, %lld NUMA node(s), %.1f GiB of memory",
           json_string_value(json_object_get(m, "processor")), json_integer_value(json_object_get(m, "cpus")),
           json_integer_value(json_object_get(m, "cores")), json_integer_value(json_object_get(m, "numa_nodes")),
           (double)json_integer_value(json_object_get(m, "memory_bytes")) / (1 << 30));
    double quota = json_number_value(json_object_get(m, "quota_cpus"));
    if (quota > 0)
        printf(", limited to %.2f CPUs", quota);
    const json_t *gpus = json_object_get(json, "gpus");
    printf("\nauto%s: %s\n", json_array_size(gpus) ? ", where no GPU library opens the model" : "",
           json_string_value(json_object_get(m, "auto_how")));
    print_gpus(gpus);
    size_t i, k;
    json_t *b, *d;
    json_array_foreach(json_object_get(json, "backends"), i, b)
    {
        const char *reason = json_string_value(json_object_get(b, "reason"));
        printf("%s: ", json_string_value(json_object_get(b, "backend")));
        if (reason) {
            printf("not available: %s\n", reason);
            continue;
        }
        printf("%s %s\n", json_string_value(json_object_get(b, "version")),
               json_string_value(json_object_get(b, "library")));
        json_array_foreach(json_object_get(b, "devices"), k, d) printf(
            "    %s  %s  (%s)\n", json_string_value(json_object_get(d, "device")),
            json_string_value(json_object_get(d, "description")), json_string_value(json_object_get(d, "precisions")));
    }
}

int cmd_devices(int argc, char **argv)
{
    cli_options o;
    dpi_error error;
    topology machine = {0};
    device_list autos = {0};
    dpi_status status = cli_parse(argc, argv, 0, devices_help, &o, &error);
    if (!status)
        status = topology_read(&machine, &error);
    if (!status)
        status = device_list_parse("auto", &machine, "cpu", &autos, &error);
    if (!status) {
        size_t count;
        const backend *const *list = backend_list(&count);
        json_t *backends = json_array();
        for (size_t i = 0; i < count; i++)
            json_array_append_new(backends, backend_json(list[i]));
        json_t *json = json_pack("{s:o, s:o, s:o}", "machine", machine_json(&machine, &autos), "gpus", gpus_json(),
                                 "backends", backends);
        if (o.json)
            cli_print_json(json);
        else {
            print_devices(json);
            json_decref(json);
        }
    }
    device_list_free(&autos);
    topology_free(&machine);
    if (status)
        return cli_fail(&error);
    fflush(NULL);
    _Exit(0); /* inference libraries were loaded: their destructors crash */
}

/* ---- cache ------------------------------------------------------------------------------------------------------ */

static void print_entries(const cache *c, const cache_entry *entries, size_t count)
{
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) {
        char when[32];
        time_t used = (time_t)entries[i].used_unix_s;
        struct tm local;
        strftime(when, sizeof when, "%Y-%m-%d %H:%M", localtime_r(&used, &local));
        printf("%.12s  %8.1f MB  %s  %s\n", entries[i].key, (double)entries[i].bytes * 1e-6, when, entries[i].label);
        total += entries[i].bytes;
    }
    printf("%zu engine%s, %.1f MB in %s\n", count, count == 1 ? "" : "s", (double)total * 1e-6, cache_folder(c));
}

static json_t *entries_json(const cache *c, const cache_entry *entries, size_t count)
{
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:I}", "key", entries[i].key, "label", entries[i].label,
                                              "bytes", (json_int_t)entries[i].bytes, "used_unix_s",
                                              (json_int_t)entries[i].used_unix_s));
    return json_pack("{s:s, s:o}", "folder", cache_folder(c), "engines", list);
}

int cmd_cache(int argc, char **argv)
{
    cli_options o;
    dpi_error error;
    cache *c = NULL;
    logger log = {0};
    dpi_status status = cli_parse(argc, argv, 0, cache_help, &o, &error);
    const char *verb = o.positional ? o.positional : "list";
    if (!status && strcmp(verb, "list") != 0 && strcmp(verb, "clear") != 0)
        status = error_set(&error, DPI_E_ARGUMENT, "cache: say list or clear, not \"%s\"", verb);
    if (!status)
        status = cache_open(o.open.cache_dir, 0, &log, &c, &error);
    if (!status && strcmp(verb, "clear") == 0) {
        uint64_t removed;
        status = cache_clear(c, &removed, &error);
        if (!status && o.json)
            cli_print_json(json_pack("{s:I}", "removed_bytes", (json_int_t)removed));
        else if (!status)
            printf("removed %.1f MB from %s\n", (double)removed * 1e-6, cache_folder(c));
    } else if (!status) {
        cache_entry *entries = NULL;
        size_t count = 0;
        status = cache_list(c, &entries, &count, &error);
        if (!status && o.json)
            cli_print_json(entries_json(c, entries, count));
        else if (!status)
            print_entries(c, entries, count);
        free(entries);
    }
    cache_close(c);
    return status ? cli_fail(&error) : 0;
}
