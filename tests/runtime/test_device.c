/* Lists of devices over machines that this test makes up. */
#include "runtime/device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- machines --------------------------------------------------------------------------------------------------- */

static topology_cpu cpu_table[TOPOLOGY_MAX_CPUS];

/* `nodes` NUMA nodes of `caches` last-level caches of `cores` cores of `threads` CPUs. Numbered as Linux does: first
 * the first threads of all cores, then the second ones. */
static topology make_machine(int nodes, int caches, int cores, int threads)
{
    int all = nodes * caches * cores;
    topology t = {.cpus = cpu_table, .core_count = all, .numa_count = nodes, .usable_threads = (size_t)all};
    for (int thread = 0; thread < threads; thread++)
        for (int core = 0; core < all; core++)
            cpu_table[t.cpu_count++] = (topology_cpu){
                .cpu = thread * all + core, .core = core, .l3 = core / cores, .numa = core / (caches * cores)};
    return t;
}

static topology with_quota(topology t, double quota, size_t usable)
{
    t.quota = quota;
    t.usable_threads = usable;
    return t;
}

/* Keeps only the CPUs that `keep` names, as an affinity mask does. */
static topology with_mask(topology t, bool (*keep)(int cpu))
{
    size_t count = 0;
    for (size_t i = 0; i < t.cpu_count; i++)
        if (keep(t.cpus[i].cpu))
            t.cpus[count++] = t.cpus[i];
    t.cpu_count = count;
    return t;
}

static device_list parse_for(const char *text, const topology *t, const char *kinds)
{
    device_list list;
    dpi_error error = {0};
    if (device_list_parse(text, t, kinds, &list, &error))
        fail_msg("\"%s\": %s", text, error.message);
    return list;
}

static device_list parse(const char *text, const topology *t) { return parse_for(text, t, "cpu sim cuda"); }

/* The names of all devices, a blank between them. */
static void expect_names(const char *text, const topology *t, const char *names)
{
    char got[4096] = "";
    device_list list = parse(text, t);
    for (size_t i = 0; i < list.count; i++) {
        strcat(got, i ? " " : "");
        strcat(got, list.items[i].name);
    }
    assert_string_equal(got, names);
    device_list_free(&list);
}

static void expect_error(const char *text, const topology *t, const char *words)
{
    device_list list;
    dpi_error error = {0};
    assert_int_equal(device_list_parse(text, t, "cpu sim", &list, &error), DPI_E_DEVICE);
    assert_int_equal(error.status, DPI_E_DEVICE);
    if (!strstr(error.message, words))
        fail_msg("\"%s\" says \"%s\", without \"%s\"", text, error.message, words);
    assert_null(list.items);
    assert_int_equal(list.count, 0);
    assert_int_equal(device_list_parse(text, t, "cpu sim", &list, NULL), DPI_E_DEVICE);
}

/* ---- named devices ---------------------------------------------------------------------------------------------- */

static void names_become_canonical(void **state)
{
    (void)state;
    topology t = make_machine(2, 1, 8, 1);
    expect_names("cpu:0", &t, "cpu:0");
    expect_names("cpu:3,0-2,8", &t, "cpu:0-3,8");
    expect_names("cpu:all", &t, "cpu:0-15");
    expect_names("cpu:numa1", &t, "cpu:8-15");
    expect_names("cpu:0-3,8-11", &t, "cpu:0-3,8-11");
    expect_names("cpu:0,cpu:1", &t, "cpu:0 cpu:1");
    expect_names(" cpu:0-1 ;cpu:2,3,cpu:4\n\tsim:7 ", &t, "cpu:0-1 cpu:2-3 cpu:4 sim:7");
    expect_names("cpu:0*2", &t, "cpu:0 cpu:0");
    expect_names("sim:0*3,cpu:1", &t, "sim:0 sim:0 sim:0 cpu:1");
    expect_names("cuda:1,cuda:GPU-ab12", &t, "cuda:1 cuda:GPU-ab12");
    expect_names("sim:0,auto", &t,
                 "sim:0 cpu:0 cpu:1 cpu:2 cpu:3 cpu:4 cpu:5 cpu:6 cpu:7 cpu:8 cpu:9 cpu:10 cpu:11 cpu:12 cpu:13 cpu:14 "
                 "cpu:15");
}

static void a_device_says_what_it_is(void **state)
{
    (void)state;
    topology t = make_machine(1, 1, 8, 1);
    device_list list = parse("cpu:2,5-6 sim:4 cuda:3", &t);
    assert_int_equal(list.count, 3);
    const device *d = list.items;
    static const int cpus[3] = {2, 5, 6};
    assert_string_equal(d[0].kind, "cpu");
    assert_int_equal(d[0].index, 2);
    assert_int_equal(d[0].cpu_count, 3);
    assert_memory_equal(d[0].cpus, cpus, sizeof cpus);
    assert_int_equal(d[0].threads, 3);
    assert_true(d[0].pinned);
    assert_string_equal(d[1].kind, "sim");
    assert_int_equal(d[1].index, 4);
    assert_null(d[1].cpus);
    assert_int_equal(d[1].threads, 1);
    assert_string_equal(d[2].kind, "cuda");
    assert_int_equal(d[2].index, 3);
    assert_string_equal(list.how, "");
    backend_device b = device_for_backend(&list, 0, false);
    assert_string_equal(b.name, "cpu:2,5-6");
    assert_true(b.pinned && b.cpus == d[0].cpus && b.cpu_count == 3 && b.threads == 3 && b.worker == 0);
    b = device_for_backend(&list, 2, true);
    assert_true(b.in_caller && !b.pinned && b.worker == 2);
    device_list_free(&list);
    device_list_free(&list); /* twice is fine */
}

static void every_faulty_entry_is_named(void **state)
{
    (void)state;
    topology t = make_machine(2, 1, 4, 1);
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "no device was named"},
        {" ;\n", "no device was named"},
        {"cpu", "\"cpu\" is no device; say auto, cpu:0"},
        {"CPU:0", "\"CPU:0\""},
        {"cpu:", "cpu: is no device (say cpu:0-3,8"},
        {"cpu:x", "cpu:x is no device"},
        {"cpu:0-", "cpu:0- is no device"},
        {"cpu:3-1", "cpu:3-1 is no device"},
        {"cpu:-1", "cpu:-1 is no device"},
        {"cpu:0,,1", "cpu:0,,1 is no device"},
        {"cpu:0,", "cpu:0, is no device"},
        {"cpu:0,sim", "cpu:0,sim is no device"},
        {"cpu:99999999999999999999", "is no device"},
        {"cpu:8", "CPU 8 does not exist or this process may not use it"},
        {"cpu:0-3,6-9", "CPU 8 does not exist"},
        {"cpu:0,0", "cpu:0,0 names a CPU twice; for two workers on the same CPUs say cpu:0*2"},
        {"cpu:0-3,2", "names a CPU twice"},
        {"cpu:numa", "cpu:numa is no device; say cpu:numa0"},
        {"cpu:numa2", "cpu:numa2"},
        {"cpu:numa-1", "is no device"},
        {"cpu:0*0", "\"cpu:0*0\": behind * stands how often, 1 to 256"},
        {"cpu:0*", "behind * stands"},
        {"cpu:0*257", "behind * stands"},
        {"*2", "\"\" is no device"},
        {",cpu:0", "\"\" is no device"},
        {"sim:", "\"sim:\" is no device"},
        {"sim:-1", "\"sim:-1\" is no device"},
        {"sim:1000001", "is no device"},
        {"cuda:", "is no device"},
        {"cuda:0*-1*2", "\"cuda:0*-1\" is no device"},
        {"cuda:0,1", "\"cuda:0,1\" is no device"},
        {"gpu:0", "\"gpu:0\" is no device"},
        {"cpu:0 \x1b[31m", "\"?[31m\" is no device"},
        {"sim:0*256 sim:1", "more than 256 devices"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        expect_error(cases[i].text, &t, cases[i].words);
}

static void long_texts_are_refused_in_a_short_sentence(void **state)
{
    (void)state;
    topology t = make_machine(1, 1, 2, 1);
    char *text = malloc(70001);
    for (size_t length = 100; length <= 70000; length *= 5) {
        static const char *const starts[] = {"cpu:", "cpu:numa", "cuda:", "sim:", "", "cpu:0*"};
        for (size_t k = 0; k < 6; k++) {
            memset(text, '7', length);
            memcpy(text, starts[k], strlen(starts[k]));
            text[length] = 0;
            device_list list;
            dpi_error error = {0};
            dpi_status status = device_list_parse(text, &t, "cpu", &list, &error);
            if (k == 2 && length < 192)
                assert_int_equal(status, DPI_OK);
            else {
                assert_int_equal(status, DPI_E_DEVICE);
                assert_true(strlen(error.message) < 400);
            }
            device_list_free(&list);
        }
    }
    free(text);
}

static bool is_even(int cpu) { return cpu % 2 == 0; }

static void only_the_affinity_mask_counts(void **state)
{
    (void)state;
    topology t = with_mask(make_machine(1, 1, 256, 1), is_even);
    expect_error("cpu:1", &t, "CPU 1 does not exist or this process may not use it");
    device_list list = parse("cpu:all", &t);
    assert_int_equal(list.items[0].cpu_count, 128);
    size_t length = strlen(list.items[0].name); /* too long to be told in full: says so */
    assert_true(length < sizeof list.items[0].name);
    assert_string_equal(list.items[0].name + length - 3, "...");
    device_list_free(&list);
}

/* ---- quotas ----------------------------------------------------------------------------------------------------- */

static size_t threads_of(const char *text, const topology *t, size_t *count)
{
    device_list list = parse(text, t);
    size_t sum = 0;
    for (size_t i = 0; i < list.count; i++) {
        assert_false(list.items[i].pinned);
        assert_in_range(list.items[i].threads, 1, list.items[i].cpu_count);
        sum += list.items[i].threads;
    }
    *count = list.count;
    device_list_free(&list);
    return sum;
}

static void a_quota_limits_threads_and_unpins(void **state)
{
    (void)state;
    topology t = with_quota(make_machine(1, 1, 8, 1), 2.5, 3);
    size_t count;
    assert_int_equal(threads_of("cpu:all", &t, &count), 3);
    assert_int_equal(threads_of("cpu:0-3 cpu:4-7", &t, &count), 3);
    assert_int_equal(threads_of("cpu:0-5;cpu:6-7", &t, &count), 3);
    assert_int_equal(threads_of("cpu:0-1", &t, &count), 2);
    assert_int_equal(threads_of("cpu:0*5", &t, &count), 5); /* one each is the least */
    assert_int_equal(threads_of("auto", &t, &count), 3);
    assert_int_equal(count, 3);
    topology half = with_quota(make_machine(1, 1, 8, 1), 0.5, 1);
    assert_int_equal(threads_of("auto", &half, &count), 1);
    assert_int_equal(count, 1);
}

static void a_quota_that_covers_all_cpus_is_none(void **state)
{
    (void)state;
    topology t = with_quota(make_machine(1, 1, 4, 1), 4, 4);
    device_list list = parse("auto", &t);
    assert_int_equal(list.count, 4);
    assert_true(list.items[0].pinned);
    assert_null(strstr(list.how, "quota"));
    device_list_free(&list);
}

static void a_quota_between_cores_and_cpus_still_unpins(void **state)
{
    (void)state;
    topology t = with_quota(make_machine(1, 1, 4, 2), 6, 4);
    device_list list = parse("auto", &t);
    assert_int_equal(list.count, 4);
    assert_false(list.items[0].pinned);
    assert_non_null(strstr(list.how, "quota limits the threads, nothing is pinned"));
    device_list_free(&list);
}

/* ---- auto ------------------------------------------------------------------------------------------------------- */

/* What holds for every division: distinct cores, one thread each, one node per device, no more devices than allowed. */
static device_list check_auto(const topology *t, size_t per_node)
{
    device_list list = parse("auto", t);
    bool used[TOPOLOGY_MAX_CPUS] = {false};
    size_t cores = 0, on_node[64] = {0};
    assert_in_range(list.count, 1, DEVICE_MAX);
    assert_true(strlen(list.how) > 0 && strlen(list.how) < sizeof list.how - 1);
    for (size_t i = 0; i < list.count; i++) {
        const device *d = &list.items[i];
        assert_int_equal(d->threads, d->cpu_count);
        int node = -1;
        for (size_t k = 0; k < d->cpu_count; k++) {
            const topology_cpu *cpu = NULL;
            for (size_t j = 0; j < t->cpu_count; j++)
                cpu = t->cpus[j].cpu == d->cpus[k] ? &t->cpus[j] : cpu;
            assert_non_null(cpu);
            assert_false(used[cpu->core]);
            used[cpu->core] = true;
            cores++;
            assert_true(node < 0 || node == cpu->numa);
            node = cpu->numa;
        }
        on_node[node]++;
        assert_in_range(on_node[node], 1, per_node);
    }
    assert_int_equal(cores, t->core_count); /* all cores have work, siblings idle */
    return list;
}

static void auto_takes_one_device_per_core(void **state)
{
    (void)state;
    topology t = make_machine(1, 1, 2, 1);
    expect_names("auto", &t, "cpu:0 cpu:1");
    t = make_machine(1, 1, 4, 2); /* siblings 4-7 stay idle */
    expect_names("auto", &t, "cpu:0 cpu:1 cpu:2 cpu:3");
    device_list list = check_auto(&t, 16);
    assert_string_equal(list.how, "4 devices of 1 core, one thread per core, SMT siblings idle: this process may use 8 "
                                  "CPUs on 4 cores in 1 NUMA node");
    device_list_free(&list);
    t = make_machine(2, 2, 8, 2);
    list = check_auto(&t, 16);
    assert_int_equal(list.count, 32);
    device_list_free(&list);
}

static void auto_joins_cores_of_one_cache_on_large_machines(void **state)
{
    (void)state;
    topology t = make_machine(2, 8, 8, 2); /* 2 x 64 cores, 8 per cache: groups of 4 */
    device_list list = check_auto(&t, 16);
    assert_int_equal(list.count, 32);
    for (size_t i = 0; i < list.count; i++) {
        assert_int_equal(list.items[i].cpu_count, 4);
        assert_int_equal(list.items[i].cpus[0] / 8, list.items[i].cpus[3] / 8);
    }
    assert_non_null(strstr(list.how, "32 devices of up to 4 cores"));
    device_list_free(&list);

    t = make_machine(1, 12, 3, 1); /* 36 cores, 3 per cache: groups of 3, not 2 + 1 */
    list = check_auto(&t, 16);
    assert_int_equal(list.count, 12);
    device_list_free(&list);

    t = make_machine(1, 24, 2, 1); /* more caches than devices: caches are joined too */
    list = check_auto(&t, 16);
    assert_int_equal(list.count, 16);
    device_list_free(&list);
}

static void auto_holds_on_odd_machines(void **state)
{
    (void)state;
    static const int shapes[][4] = {{1, 1, 1, 1},   {1, 1, 1, 2},  {1, 1, 17, 1},  {3, 1, 5, 2},  {4, 3, 7, 2},
                                    {1, 1, 192, 2}, {8, 1, 24, 2}, {32, 1, 16, 2}, {64, 1, 8, 1}, {2, 16, 16, 2}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        topology t = make_machine(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3]);
        device_list list = check_auto(&t, 16);
        device_list_free(&list);
    }
}

static bool is_lopsided(int cpu) { return cpu < 30 || cpu == 32; }

static void auto_looks_at_each_node(void **state)
{
    (void)state;
    topology t = with_mask(make_machine(2, 1, 32, 1), is_lopsided); /* 30 cores of one node, 1 of the other */
    t.core_count = 31;
    device_list list = check_auto(&t, 16);
    assert_int_equal(list.count, 16);
    device_list_free(&list);
}

static void auto_follows_the_backend(void **state)
{
    (void)state;
    topology t = make_machine(1, 1, 4, 1);
    device_list list = parse_for("auto", &t, "sim");
    assert_int_equal(list.count, 1);
    assert_string_equal(list.items[0].name, "sim:0");
    device_list_free(&list);
    dpi_error error = {0};
    assert_int_equal(device_list_parse("auto", &t, "cuda", &list, &error), DPI_E_BACKEND);
    assert_non_null(strstr(error.message, "cuda"));
    t.gpus = 2;
    list = parse_for("auto", &t, "cuda");
    assert_int_equal(list.count, 2);
    assert_string_equal(list.items[1].name, "cuda:1");
    assert_int_equal(list.items[1].index, 1);
    assert_int_equal(list.items[1].cpu_count, 0);
    device_list_free(&list);
}

/* ---- this machine ----------------------------------------------------------------------------------------------- */

static void auto_works_here(void **state)
{
    (void)state;
    topology t;
    assert_int_equal(topology_read(&t, NULL), DPI_OK);
    device_list list = parse("auto", &t);
    print_message("%s\n", list.how);
    assert_in_range(list.count, 1, DEVICE_MAX);
    device_list_free(&list);
    topology_free(&t);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_become_canonical),
        cmocka_unit_test(a_device_says_what_it_is),
        cmocka_unit_test(every_faulty_entry_is_named),
        cmocka_unit_test(long_texts_are_refused_in_a_short_sentence),
        cmocka_unit_test(only_the_affinity_mask_counts),
        cmocka_unit_test(a_quota_limits_threads_and_unpins),
        cmocka_unit_test(a_quota_that_covers_all_cpus_is_none),
        cmocka_unit_test(a_quota_between_cores_and_cpus_still_unpins),
        cmocka_unit_test(auto_takes_one_device_per_core),
        cmocka_unit_test(auto_joins_cores_of_one_cache_on_large_machines),
        cmocka_unit_test(auto_holds_on_odd_machines),
        cmocka_unit_test(auto_looks_at_each_node),
        cmocka_unit_test(auto_follows_the_backend),
        cmocka_unit_test(auto_works_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
