/* What CPUs this process may really use: affinity mask, cgroup v1 and v2 quotas, NUMA and SMT (by hwloc). */
#ifndef DPI_BASE_TOPOLOGY_H
#define DPI_BASE_TOPOLOGY_H

#include <dpinfer/dpinfer.h>
#include <sched.h>
#include <stddef.h>

#define TOPOLOGY_MAX_CPUS 1024

typedef struct topology_cpu {
    int cpu;  /* the kernel's number */
    int core; /* logical number of the physical core */
    int numa; /* the kernel's number of the NUMA node, 0 where there is none */
    int l3;   /* logical number of the last-level cache, 0 where unknown */
} topology_cpu;

typedef struct topology {
    topology_cpu *cpus; /* only those in this process's affinity mask, ascending by cpu */
    size_t cpu_count;
    int core_count, numa_count; /* among these */
    double quota;               /* cgroup CPU limit in CPUs; 0: none. The tightest of v1, v2 and all ancestors. */
    size_t usable_threads;      /* min(cores, ceil(quota)) at least 1: how many compute threads make sense */
    uint64_t memory_bytes;      /* min(physical, cgroup limits) */
    char model[128];            /* of the processor, "" when unknown */
    int gpus;                   /* CUDA devices for `auto`; topology_read leaves it 0, runtime/gpus.h finds them */
    bool has_avx2, has_avx512, has_avx512_bf16, has_amx_bf16, has_avx512_fp16;
} topology;

/* Reads it all anew. *out is freed by topology_free. */
dpi_status topology_read(topology *out, dpi_error *error);
void topology_free(topology *t);

/* Like topology_read's quota, with the roots of /proc/self and /sys/fs/cgroup replaced; for tests. */
double topology_quota_at(const char *proc_self_cgroup, const char *cgroup_root);

#endif
