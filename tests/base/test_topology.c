/* CPU quotas from faked cgroup trees, and what holds on any real machine. */
#include "base/topology.h"

#include "base/file.h"

#include <ftw.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char root[] = "/tmp/dpi-test-cgroup-XXXXXX";

static int make_root(void **state)
{
    (void)state;
    return mkdtemp(root) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *info, int type, struct FTW *where)
{
    (void)info;
    (void)type;
    (void)where;
    return remove(path);
}

static int remove_root(void **state)
{
    (void)state;
    return nftw(root, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static void put(const char *tree, const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof full, "%s/%s%s", root, tree, path);
    char *slash = strrchr(full, '/');
    *slash = 0;
    assert_int_equal(file_make_folders(full, NULL), DPI_OK);
    *slash = '/';
    FILE *f = fopen(full, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void expect_quota(const char *tree, double want)
{
    char self[256], cgroup[256];
    snprintf(self, sizeof self, "%s/%s/self", root, tree);
    snprintf(cgroup, sizeof cgroup, "%s/%s/cgroup", root, tree);
    double got = topology_quota_at(self, cgroup);
    if (fabs(got - want) > 1e-9)
        fail_msg("%s: %g instead of %g", tree, got, want);
}

static void version_2(void **state)
{
    (void)state;
    put("v2", "/self", "0::/user/job\n");
    put("v2", "/cgroup/user/job/cpu.max", "150000 100000\n");
    expect_quota("v2", 1.5);
    put("v2", "/cgroup/user/cpu.max", "max 100000\n");
    expect_quota("v2", 1.5);
    put("v2", "/cgroup/user/cpu.max", "50000 100000\n"); /* an ancestor is tighter */
    expect_quota("v2", 0.5);
    put("v2", "/cgroup/cpu.max", "20000 100000\n"); /* the container's own root */
    expect_quota("v2", 0.2);
    put("v2none", "/self", "0::/\n");
    put("v2none", "/cgroup/cpu.max", "max 100000\n");
    expect_quota("v2none", 0);
    put("v2host", "/self", "0::/docker/0123\n"); /* a path of the host, seen without its namespace */
    put("v2host", "/cgroup/cpu.max", "300000 100000\n");
    expect_quota("v2host", 3);
}

static void version_1(void **state)
{
    (void)state;
    put("v1", "/self", "12:memory:/m\n5:cpu,cpuacct:/docker/job\n1:name=systemd:/x\n");
    put("v1", "/cgroup/cpu,cpuacct/docker/job/cpu.cfs_quota_us", "250000\n");
    put("v1", "/cgroup/cpu,cpuacct/docker/job/cpu.cfs_period_us", "100000\n");
    expect_quota("v1", 2.5);
    put("v1", "/cgroup/cpu,cpuacct/docker/cpu.cfs_quota_us", "-1\n");
    put("v1", "/cgroup/cpu,cpuacct/docker/cpu.cfs_period_us", "100000\n");
    expect_quota("v1", 2.5);
    put("v1", "/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "100000\n");
    put("v1", "/cgroup/cpu,cpuacct/cpu.cfs_period_us", "50000\n");
    expect_quota("v1", 2);
    put("v1link", "/self", "5:cpuacct,cpu:/job\n"); /* mounted under the controller's own name */
    put("v1link", "/cgroup/cpu/job/cpu.cfs_quota_us", "400000\n");
    put("v1link", "/cgroup/cpu/job/cpu.cfs_period_us", "100000\n");
    expect_quota("v1link", 4);
    put("v1set", "/self", "5:cpuset:/job\n"); /* cpuset is no cpu */
    put("v1set", "/cgroup/cpuset/job/cpu.cfs_quota_us", "400000\n");
    put("v1set", "/cgroup/cpuset/job/cpu.cfs_period_us", "100000\n");
    expect_quota("v1set", 0);
}

static void hybrid_takes_the_tightest(void **state)
{
    (void)state;
    put("mixed", "/self", "5:cpu:/a\n0::/b\n");
    put("mixed", "/cgroup/cpu/a/cpu.cfs_quota_us", "400000\n");
    put("mixed", "/cgroup/cpu/a/cpu.cfs_period_us", "100000\n");
    put("mixed", "/cgroup/unified/b/cpu.max", "300000 100000\n");
    expect_quota("mixed", 3);
    put("mixed", "/cgroup/cpu/a/cpu.cfs_quota_us", "100000\n");
    expect_quota("mixed", 1);
}

static void nonsense_is_no_limit(void **state)
{
    (void)state;
    expect_quota("absent", 0);
    static const char *const lines[] = {"",         "max",        "100000",        "0 100000",     "-5 100000",
                                        "100000 0", "nan 100000", "100000 banana", "1e400 100000", "100000 -1",
                                        "\n\n"};
    put("junk", "/self", "0::/a\n");
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        put("junk", "/cgroup/a/cpu.max", lines[i]);
        expect_quota("junk", 0);
    }
    put("junk", "/cgroup/a/cpu.max", "200000 100000");
    expect_quota("junk", 2);
    char *longer = malloc(9001);
    memset(longer, 'x', 9000);
    longer[9000] = 0;
    memcpy(longer, "0::/", 4);
    put("junk", "/self", longer);
    expect_quota("junk", 0);
    memcpy(longer, "1:cp", 4);
    put("junk", "/self", longer);
    expect_quota("junk", 0);
    put("junk", "/self", "::::\n0\n:\n0:\n0::\n");
    topology_quota_at("/nonexistent", "/nonexistent");
    free(longer);
}

static void this_machine(void **state)
{
    (void)state;
    topology t;
    dpi_error error;
    assert_int_equal(topology_read(&t, &error), DPI_OK);
    assert_true(t.cpu_count >= 1);
    for (size_t i = 0; i < t.cpu_count; i++) {
        assert_true(i == 0 || t.cpus[i].cpu > t.cpus[i - 1].cpu);
        assert_true(t.cpus[i].core >= 0 && t.cpus[i].numa >= 0 && t.cpus[i].l3 >= 0);
    }
    assert_true(t.core_count >= 1 && (size_t)t.core_count <= t.cpu_count);
    assert_true(t.numa_count >= 1 && t.numa_count <= t.core_count);
    assert_true(t.usable_threads >= 1 && t.usable_threads <= (size_t)t.core_count);
    assert_true(t.memory_bytes > 1 << 20);
    assert_true(t.quota >= 0);
    size_t all = t.cpu_count;
    cpu_set_t old, one;
    assert_int_equal(sched_getaffinity(0, sizeof old, &old), 0);
    CPU_ZERO(&one);
    CPU_SET((size_t)t.cpus[all - 1].cpu, &one);
    int last = t.cpus[all - 1].cpu;
    topology_free(&t);
    topology_free(&t);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0); /* only what the mask allows */
    assert_int_equal(topology_read(&t, &error), DPI_OK);
    assert_int_equal(sched_setaffinity(0, sizeof old, &old), 0);
    assert_int_equal(t.cpu_count, 1);
    assert_int_equal(t.cpus[0].cpu, last);
    assert_int_equal(t.usable_threads, 1);
    topology_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(version_2),
        cmocka_unit_test(version_1),
        cmocka_unit_test(hybrid_takes_the_tightest),
        cmocka_unit_test(nonsense_is_no_limit),
        cmocka_unit_test(this_machine),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
