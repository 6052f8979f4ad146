#include "base/topology.h"

#include "base/error.h"
#include "base/text.h"

#include <hwloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* ---- cgroups ---------------------------------------------------------------------------------------------------- */

/* First line of DIR/NAME, without newline; false when there is none. */
static bool read_line(const char *folder, const char *name, char *line, size_t size)
{
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s/%s", folder, name) >= sizeof path)
        return false;
    FILE *file = fopen(path, "re");
    if (!file)
        return false;
    bool got = fgets(line, (int)size, file) != NULL;
    fclose(file);
    if (got)
        line[strcspn(line, "\n")] = 0;
    return got;
}

/* The limit of one cgroup folder in CPUs, 0 for none; v2's cpu.max or v1's pair of files. */
static double folder_quota(const char *folder)
{
    char line[128], period[64];
    double quota_us, period_us;
    if (read_line(folder, "cpu.max", line, sizeof line)) {
        char *blank = strchr(line, ' ');
        if (!blank)
            return 0;
        *blank = 0;
        return text_to_double(line, &quota_us) && text_to_double(blank + 1, &period_us) && quota_us > 0 && period_us > 0
                   ? quota_us / period_us
                   : 0;
    }
    if (read_line(folder, "cpu.cfs_quota_us", line, sizeof line) &&
        read_line(folder, "cpu.cfs_period_us", period, sizeof period) && text_to_double(line, &quota_us) &&
        text_to_double(period, &period_us) && quota_us > 0 && period_us > 0)
        return quota_us / period_us;
    return 0;
}

static double folder_memory(const char *folder)
{
    static const char *const names[] = {"memory.max", "memory.limit_in_bytes"};
    char line[128];
    double bytes;
    for (int i = 0; i < 2; i++)
        if (read_line(folder, names[i], line, sizeof line) && text_to_double(line, &bytes) && bytes > 0)
            return bytes;
    return 0;
}

/* The tightest limit that `read` finds in the folder of `path` below `root` and in all folders above it. */
static double tightest(const char *root, const char *path, double (*read)(const char *))
{
    char folder[4096];
    if ((size_t)snprintf(folder, sizeof folder, "%s%s", root, path) >= sizeof folder)
        return 0;
    double limit = 0;
    for (size_t root_length = strlen(root);;) {
        double here = read(folder);
        if (here > 0 && (limit == 0 || here < limit))
            limit = here;
        char *slash = strrchr(folder, '/');
        if (!slash || (size_t)(slash - folder) < root_length)
            break;
        *slash = 0;
    }
    return limit;
}

/* Goes through the lines "ID:CONTROLLERS:PATH" of /proc/self/cgroup: v2 has no controllers, v1 a folder for each. */
static double limit_at(const char *proc_self_cgroup, const char *cgroup_root, const char *controller,
                       double (*read)(const char *))
{
    FILE *file = fopen(proc_self_cgroup, "re");
    double limit = 0;
    char line[4096];
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':'), *path = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!path)
            continue;
        *path++ = 0;
        controllers++;
        const char *folders[3] = {"", "/unified", NULL};
        char named[300], joined[300];
        if (*controllers) {
            bool ours = false;
            char copy[256], *rest = NULL;
            snprintf(copy, sizeof copy, "%s", controllers);
            for (char *word = strtok_r(copy, ",", &rest); word; word = strtok_r(NULL, ",", &rest))
                ours |= strcmp(word, controller) == 0;
            if (!ours)
                continue;
            snprintf(named, sizeof named, "/%s", controller);
            snprintf(joined, sizeof joined, "/%.290s", controllers); /* as in /sys/fs/cgroup/cpu,cpuacct */
            folders[0] = named;
            folders[1] = joined;
        }
        for (int i = 0; i < 2; i++) {
            char root[4096];
            snprintf(root, sizeof root, "%s%s", cgroup_root, folders[i]);
            double here = tightest(root, path, read);
            if (here > 0 && (limit == 0 || here < limit))
                limit = here;
        }
    }
    if (file)
        fclose(file);
    return limit;
}

double topology_quota_at(const char *proc_self_cgroup, const char *cgroup_root)
{
    return limit_at(proc_self_cgroup, cgroup_root, "cpu", folder_quota);
}

/* ---- processor -------------------------------------------------------------------------------------------------- */

static void read_model(topology *t)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char line[512];
    while (file && fgets(line, sizeof line, file)) {
        char *value = strchr(line, ':');
        if (!value || strncmp(line, "model name", 10) != 0)
            continue;
        value += strspn(value, ": \t");
        value[strcspn(value, "\n")] = 0;
        snprintf(t->model, sizeof t->model, "%.127s", value);
        break;
    }
    if (file)
        fclose(file);
}

static void read_features(topology *t)
{
#if defined(__x86_64__)
    t->has_avx2 = __builtin_cpu_supports("avx2");
    t->has_avx512 = __builtin_cpu_supports("avx512f");
    unsigned a, b, c, d;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d))
        t->has_avx512_bf16 = t->has_avx512 && (a >> 5 & 1);
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        t->has_amx_bf16 = d >> 22 & 1;
        t->has_avx512_fp16 = t->has_avx512 && (d >> 23 & 1);
    }
#else
    (void)t;
#endif
}

/* ---- places of CPUs --------------------------------------------------------------------------------------------- */

/* Where the machine's description lacks a level, every CPU counts as a core of its own in node and cache 0. */
static void place_cpus(topology *t)
{
    hwloc_topology_t tree;
    bool known = hwloc_topology_init(&tree) == 0;
    if (known) {
        hwloc_topology_set_flags(tree, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED);
        hwloc_topology_set_io_types_filter(tree, HWLOC_TYPE_FILTER_KEEP_NONE);
        hwloc_topology_set_icache_types_filter(tree, HWLOC_TYPE_FILTER_KEEP_NONE);
        if (hwloc_topology_load(tree) != 0) {
            hwloc_topology_destroy(tree);
            known = false;
        }
    }
    for (size_t i = 0; i < t->cpu_count; i++) {
        topology_cpu *cpu = &t->cpus[i];
        cpu->core = (int)i;
        hwloc_obj_t unit = known ? hwloc_get_pu_obj_by_os_index(tree, (unsigned)cpu->cpu) : NULL;
        if (!unit)
            continue;
        hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(tree, HWLOC_OBJ_CORE, unit);
        hwloc_obj_t cache = hwloc_get_ancestor_obj_by_type(tree, HWLOC_OBJ_L3CACHE, unit);
        cpu->core = core ? (int)core->logical_index : (int)i;
        cpu->l3 = cache ? (int)cache->logical_index : 0;
        hwloc_obj_t node = NULL;
        while ((node = hwloc_get_next_obj_by_type(tree, HWLOC_OBJ_NUMANODE, node)))
            if (hwloc_bitmap_isset(node->cpuset, (unsigned)cpu->cpu))
                cpu->numa = (int)node->os_index;
    }
    if (known)
        hwloc_topology_destroy(tree);
}

static int count_distinct(const topology *t, size_t field)
{
    int count = 0;
    for (size_t i = 0; i < t->cpu_count; i++) {
        int value = *(const int *)(const void *)((const char *)&t->cpus[i] + field);
        bool seen = false;
        for (size_t j = 0; j < i && !seen; j++)
            seen = *(const int *)(const void *)((const char *)&t->cpus[j] + field) == value;
        count += !seen;
    }
    return count;
}

dpi_status topology_read(topology *t, dpi_error *error)
{
    *t = (topology){0};
    size_t bytes = CPU_ALLOC_SIZE(TOPOLOGY_MAX_CPUS);
    cpu_set_t *mask = CPU_ALLOC(TOPOLOGY_MAX_CPUS);
    t->cpus = calloc(TOPOLOGY_MAX_CPUS, sizeof *t->cpus);
    if (!mask || !t->cpus || sched_getaffinity(0, bytes, mask) != 0) {
        if (mask)
            CPU_FREE(mask);
        topology_free(t);
        return error_set(error, DPI_E_SYSTEM, "cannot read which CPUs this process may use (at most %d are supported)",
                         TOPOLOGY_MAX_CPUS);
    }
    for (int cpu = 0; cpu < TOPOLOGY_MAX_CPUS; cpu++)
        if (CPU_ISSET_S((size_t)cpu, bytes, mask))
            t->cpus[t->cpu_count++].cpu = cpu;
    CPU_FREE(mask);
    place_cpus(t);
    t->core_count = count_distinct(t, offsetof(topology_cpu, core));
    t->numa_count = count_distinct(t, offsetof(topology_cpu, numa));
    t->quota = topology_quota_at("/proc/self/cgroup", "/sys/fs/cgroup");
    double threads = t->quota > 0 ? ceil(t->quota) : t->core_count;
    t->usable_threads = threads < t->core_count ? (size_t)threads : (size_t)t->core_count;
    double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    double limit = limit_at("/proc/self/cgroup", "/sys/fs/cgroup", "memory", folder_memory);
    t->memory_bytes = (uint64_t)(limit > 0 && limit < memory ? limit : memory);
    read_model(t);
    read_features(t);
    return DPI_OK;
}

void topology_free(topology *t)
{
    free(t->cpus);
    t->cpus = NULL;
    t->cpu_count = 0;
}
