/* What a worker process may do once it is ready: nothing but its work. */
#include "sim_kit.h"

#include "base/clock.h"
#include "ipc/sandbox.h"

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 3\n"

static bool has_landlock, has_seccomp;

/* What this kernel has, tried in a child since it cannot be taken back. */
static void look_at_kernel(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        int abi;
        bool every_thread;
        int have = sandbox_confine_files(NULL, 0, &abi, &every_thread, NULL) == DPI_OK ? 1 : 0;
        _exit(have | (sandbox_deny_calls(NULL) == DPI_OK ? 2 : 0));
    }
    int how;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_true(WIFEXITED(how));
    has_landlock = WEXITSTATUS(how) & 1;
    has_seccomp = WEXITSTATUS(how) & 2;
}

typedef struct story {
    pthread_mutex_t lock;
    char text[8192];
} story;

static void tell(void *context, dpi_log_level level, const char *line)
{
    story *told = context;
    (void)level;
    pthread_mutex_lock(&told->lock);
    size_t used = strlen(told->text);
    snprintf(told->text + used, sizeof told->text - used, "%s\n", line);
    pthread_mutex_unlock(&told->lock);
}

static dpi_options escaping(story *told, const dpi_key_value *fault)
{
    dpi_options o = DPI_INIT(dpi_options);
    o.backend_options = fault;
    o.backend_option_count = 1;
    o.log = tell;
    o.log_context = told;
    o.log_level = DPI_LOG_INFO;
    return o;
}

static const dpi_key_value at_first_slice = {"escape_at_slice", "1"};

static void a_worker_that_tries_is_refused(void **state)
{
    (void)state;
    if (!has_landlock || !has_seccomp)
        skip();
    story told = {.lock = PTHREAD_MUTEX_INITIALIZER};
    dpi_options o = escaping(&told, &at_first_slice);
    kit *k = kit_open(SIMPLE, "sim:0*2", &o);
    kit_forward(k, 100, 1);
    kit_close(k);
    kit_assert_contains(told.text, "sandbox: files by Landlock");
    kit_assert_contains(told.text, "sandbox: system calls by seccomp");
}

static void without_sandbox_it_is_not(void **state)
{
    (void)state;
    story told = {.lock = PTHREAD_MUTEX_INITIALIZER};
    dpi_options o = escaping(&told, &at_first_slice);
    o.no_sandbox = true;
    kit *k = kit_open(SIMPLE, "sim:0", &o);
    kit_batch *b = kit_batch_new(k, 10, 1, 1);
    dpi_error error;
    assert_int_equal(dpi_forward(k->s, b->in, b->in_count, b->out, b->out_count, 0, &error), DPI_E_ENGINE);
    kit_assert_contains(error.message, "not refused: a program a process a socket a signal a file");
    kit_batch_free(b);
    kit_close(k);
    assert_null(strstr(told.text, "sandbox:"));
}

/* The caller's process is not ours to confine. */
static void thread_isolation_changes_nothing(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    struct rlimit before, after;
    o.isolation = DPI_ISOLATION_THREAD;
    o.worker_memory_bytes = 1 << 20;
    assert_int_equal(getrlimit(RLIMIT_CORE, &before), 0);
    kit *k = kit_open(SIMPLE, "sim:0*2", &o);
    kit_forward(k, 100, 1);
    kit_close(k);
    assert_int_equal(getrlimit(RLIMIT_CORE, &after), 0);
    assert_memory_equal(&before, &after, sizeof before);
    assert_int_equal(getrlimit(RLIMIT_DATA, &after), 0);
    assert_true(after.rlim_cur > 1 << 20);
    pid_t pid = fork();
    if (pid == 0)
        _exit(3);
    int how;
    assert_int_equal(waitpid(pid, &how, 0), pid);
    assert_int_equal(how, 3 << 8);
}

static int64_t worker_pid(const kit *k)
{
    dpi_description d = DPI_INIT(dpi_description);
    dpi_error error;
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    return d.workers[0].pid;
}

static void limits_of(const kit *k, struct rlimit *core, struct rlimit *data)
{
    assert_int_equal(prlimit((pid_t)worker_pid(k), RLIMIT_CORE, NULL, core), 0);
    assert_int_equal(prlimit((pid_t)worker_pid(k), RLIMIT_DATA, NULL, data), 0);
}

static void limits_are_the_workers_own(void **state)
{
    (void)state;
    struct rlimit mine, core, data, untouched;
    dpi_options o = DPI_INIT(dpi_options);
    assert_int_equal(getrlimit(RLIMIT_CORE, &mine), 0);
    assert_int_equal(getrlimit(RLIMIT_DATA, &untouched), 0);
    kit *k = kit_open(SIMPLE, "sim:0", &o);
    limits_of(k, &core, &data);
    assert_true(core.rlim_cur <= 1 && core.rlim_max <= 1);
    assert_memory_equal(&data, &untouched, sizeof data);
    /* The supervisor's question whether a worker still moves. */
    assert_true(clock_process_cpu_ns(worker_pid(k)) > 0);
    kit_close(k);
    o.core_dumps = true;
    o.worker_memory_bytes = 1ull << 60;
    k = kit_open(SIMPLE, "sim:0", &o);
    limits_of(k, &core, &data);
    assert_memory_equal(&core, &mine, sizeof core);
    assert_int_equal(data.rlim_cur, 1ull << 60);
    kit_close(k);
}

static bool sanitized(void) { return getenv("DPI_SANITIZE") && *getenv("DPI_SANITIZE"); }

/* Ten rows need 320 MB of results in memory of the worker's own, before they go to the file. */
static void memory_ends_where_it_was_told_to(void **state)
{
    (void)state;
    if (sanitized()) /* its shadow memory is beyond any limit from the start */
        skip();
    static const char model[] = "input x float32 N 5\noutput y float32 N 4000000\ntouch none\n";
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error = {0};
    o.batch = 20;
    o.worker_memory_bytes = 100 << 20;
    assert_null(kit_try_open(model, "sim:0", &o, &error));
    assert_int_equal(dpi_status_exit_code(error.status), 1);
    kit_assert_contains(error.message, "104857600 bytes of memory");
    o.worker_memory_bytes = 4ull << 30;
    kit *k = kit_open(model, "sim:0", &o);
    kit_close(k);
}

static void a_worker_has_its_own_descriptors_only(void **state)
{
    (void)state;
    int stray[20];
    for (int i = 0; i < 20; i++) /* without O_CLOEXEC, as a careless host program has them */
        assert_true((stray[i] = dup(0)) >= 0);
    kit *k = kit_open(SIMPLE, "sim:0", NULL);
    kit_forward(k, 100, 1);
    char path[64];
    snprintf(path, sizeof path, "/proc/%lld/fd", (long long)worker_pid(k));
    DIR *folder = opendir(path);
    assert_non_null(folder);
    for (const struct dirent *e; (e = readdir(folder));)
        if (e->d_name[0] != '.' && (atoi(e->d_name) < 0 || atoi(e->d_name) > 9))
            fail_msg("a worker has descriptor %s", e->d_name);
    closedir(folder);
    kit_close(k);
    for (int i = 0; i < 20; i++)
        close(stray[i]);
}

int main(void)
{
    look_at_kernel();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_worker_that_tries_is_refused),   cmocka_unit_test(without_sandbox_it_is_not),
        cmocka_unit_test(thread_isolation_changes_nothing), cmocka_unit_test(limits_are_the_workers_own),
        cmocka_unit_test(memory_ends_where_it_was_told_to), cmocka_unit_test(a_worker_has_its_own_descriptors_only),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
