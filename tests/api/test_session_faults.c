/* What happens when a worker dies, leaves, hangs or fails: told with its name, soon, mended, and nothing left behind.
 */
#include "sim_kit.h"

#include "base/clock.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIMPLE "input x float32 N 5\noutput y float32 N 3\noutput z int32 N\n"

static dpi_options with(const dpi_key_value *options, size_t count)
{
    dpi_options o = DPI_INIT(dpi_options);
    o.backend_options = options;
    o.backend_option_count = count;
    return o;
}

/* ---- while opening ---------------------------------------------------------------------------------------------- */

#define OPENING_S 20 /* long before any default limit, also on a slow machine */

static void expect_open_fails(const dpi_options *o, dpi_status status, const char *const *parts)
{
    kit_traces before = kit_look();
    dpi_error error = {0};
    double began = kit_now_s();
    assert_null(kit_try_open(SIMPLE, "sim:0,sim:7,sim:2", o, &error));
    double took = kit_now_s() - began;
    if (error.status != status)
        fail_msg("%s: %s", dpi_status_name(error.status), error.message);
    for (; *parts; parts++)
        kit_assert_contains(error.message, *parts);
    if (took > OPENING_S)
        fail_msg("it took %.2f s to say: %s", took, error.message);
    kit_check_clean(before);
}

static void death_while_compiling(void **state)
{
    (void)state;
    const dpi_key_value die[] = {{"1.die_compile", "1"}, {"0.compile_ms", "60000"}, {"2.compile_ms", "60000"}};
    dpi_options o = with(die, 3);
    expect_open_fails(&o, DPI_E_WORKER, (const char *const[]){"worker 1", "sim:7", "signal 9", NULL});
    const dpi_key_value crash[] = {{"1.die_compile", "1"}, {"1.signal", "11"}};
    o = with(crash, 2);
    expect_open_fails(&o, DPI_E_WORKER, (const char *const[]){"worker 1", "sim:7", "signal 11", NULL});
}

/* Once is bad luck, twice in a row the device's fault. */
static void death_at_any_stage_of_starting(void **state)
{
    (void)state;
    static const char *const keys[] = {"1.die_compile", "1.die_probe", "1.die_ready"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const dpi_key_value once[] = {{keys[i], "1"}, {"1.fault_generations", "1"}}, always[] = {{keys[i], "1"}};
        dpi_options o = with(once, 2);
        kit *k = kit_open(SIMPLE, "sim:0,sim:7,sim:2", &o);
        kit_forward(k, 30, 1);
        kit_close(k);
        o = with(always, 1);
        expect_open_fails(&o, DPI_E_WORKER, (const char *const[]){"worker 1", "sim:7", "signal 9", NULL});
    }
}

static void hang_at_any_stage_of_starting(void **state)
{
    (void)state;
    static const char *const keys[] = {"1.hang_probe", "1.hang_ready"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        const dpi_key_value hang[] = {{keys[i], "1"}};
        dpi_options o = with(hang, 1);
        o.compile_timeout_ms = 300;
        expect_open_fails(&o, DPI_E_WORKER, (const char *const[]){"worker 1", "sim:7", "was not ready", NULL});
    }
}

static void a_compile_that_fails_says_why(void **state)
{
    (void)state;
    const dpi_key_value fail[] = {{"1.fail_compile", "1"}};
    dpi_options o = with(fail, 1);
    expect_open_fails(&o, DPI_E_MODEL, (const char *const[]){"cannot compile the model, as planned", NULL});
}

/* dpi_close does not wait for a worker that will not leave. */
static void faults_at_shutdown(void **state)
{
    (void)state;
    static const char *const keys[] = {"1.die_shutdown", "1.hang_shutdown"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        kit_traces before = kit_look();
        const dpi_key_value fault[] = {{keys[i], "1"}};
        dpi_options o = with(fault, 1);
        kit *k = kit_open(SIMPLE, "sim:0,sim:7,sim:2", &o);
        kit_forward(k, 30, 1);
        kit_close(k);
        kit_check_clean(before);
    }
}

static void hang_while_compiling(void **state)
{
    (void)state;
    const dpi_key_value hang[] = {{"1.hang_compile", "1"}};
    dpi_options o = with(hang, 1);
    o.compile_timeout_ms = 500;
    expect_open_fails(&o, DPI_E_WORKER, (const char *const[]){"worker 1", "sim:7", NULL});
}

/* A long compile that shows life is no hang. */
static void a_slow_compile_is_waited_for(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.compile_timeout_ms = 300;
    kit *k = kit_open(SIMPLE "compile_ms 1200\n", "sim:0*2", &o);
    kit_forward(k, 5, 1);
    kit_close(k);
}

static void a_worker_program_that_is_none(void **state)
{
    (void)state;
    dpi_options o = DPI_INIT(dpi_options);
    o.worker_path = "/bin/true";
    expect_open_fails(&o, DPI_E_WORKER, (const char *const[]){"worker", "exit code 0", NULL});
    o.worker_path = "/bin/false";
    expect_open_fails(&o, DPI_E_WORKER, (const char *const[]){"worker", "exit code 1", NULL});
}

/* Too few descriptors for the workers: an error, not a half-open session. */
static void too_few_descriptors(void **state)
{
    (void)state;
    struct rlimit old, tight;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    for (rlim_t limit = 12; limit < 48; limit += 5) {
        kit_traces before = kit_look();
        dpi_error error = {0};
        tight = old;
        tight.rlim_cur = limit;
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &tight), 0);
        kit *k = kit_try_open(SIMPLE, "sim:0*16", NULL, &error);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
        assert_null(k);
        if (error.status != DPI_E_SYSTEM)
            fail_msg("at %d: %s: %s", (int)limit, dpi_status_name(error.status), error.message);
        kit_check_clean(before);
    }
}

/* ---- at a slice ------------------------------------------------------------------------------------------------- */

typedef struct fault {
    const char *key, *value, *parts[5];
    const char *signal;
    double within_s;
} fault;

/* Worker 1 has the fault in its first generation. Both batches come out right, soon, and the event tells the story. */
static void strike(const fault *f)
{
    kit_traces before = kit_look();
    kit_story story = KIT_STORY;
    char key[64];
    snprintf(key, sizeof key, "1.%s", f->key);
    const dpi_key_value options[] = {
        {key, f->value}, {"1.signal", f->signal ? f->signal : "9"}, {"1.fault_generations", "1"}};
    dpi_options o = with(options, 3);
    o.total_batch_size = 6;
    o.batch = 2;
    o.slice_timeout_ms = 400;
    o.event = kit_tell;
    o.event_context = &story;
    kit *k = kit_open(SIMPLE "fixed_us 5000\n", "sim:0,sim:7,sim:2", &o);
    kit_batch *b = kit_batch_new(k, 60, 1, 3), *waiting = kit_batch_new(k, 60, 2, 3);
    dpi_error error = {0};
    dpi_ticket second;
    kit_assert_ok(kit_submit(k, waiting, false, 0, &second, &error), error);
    double began = kit_now_s();
    kit_assert_ok(dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error), error);
    kit_assert_ok(dpi_wait(k->s, second, 0, NULL, 0, &error), error);
    if (kit_now_s() - began > f->within_s)
        fail_msg("%s: it took %.2f s", f->key, kit_now_s() - began);
    kit_batch_check(b, NULL);
    kit_batch_check(waiting, NULL);
    for (size_t i = 0; f->parts[i]; i++)
        if (!kit_story_says(&story, f->parts[i]))
            fail_msg("%s: the story does not say \"%s\": %s", f->key, f->parts[i], story.text);
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    assert_int_equal(stats.deaths, 1);
    assert_int_equal(stats.replayed_slices, 1);
    kit_close(k);
    kit_batch_free(b);
    kit_batch_free(waiting);
    kit_check_clean(before);
}

static void death_at_a_slice(void **state)
{
    (void)state;
    const fault faults[] = {
        {"die_at_slice", "1", {"worker 1", "sim:7", "signal 9", "dying at slice 1", NULL}, "9", 1.2},
        {"die_at_slice", "4", {"worker 1", "sim:7", "signal 11", "Segmentation fault", NULL}, "11", 1.2},
        {"die_at_slice", "2", {"worker 1", "sim:7", "signal 6", NULL}, "6", 1.2},
        {"die_at_slice", "2", {"worker 1", "sim:7", "signal 7", NULL}, "7", 1.2}, /* SIGBUS is handled */
    };
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++)
        strike(&faults[i]);
}

static void leaving_at_a_slice(void **state)
{
    (void)state;
    strike(&(fault){"exit_at_slice", "2", {"worker 1", "sim:7", "\"exit_code\":7", NULL}, NULL, 1.2});
}

static void hanging_at_a_slice(void **state)
{
    (void)state;
    strike(&(fault){"hang_at_slice", "2", {"worker 1", "sim:7", "hung", "0.4 s", NULL}, NULL, 3});
}

/* The engine's own failure costs the batch, not the session. */
static void fails(const char *key, dpi_status status, const char *says)
{
    const dpi_key_value options[] = {{key, "3"}};
    dpi_options o = with(options, 1);
    o.total_batch_size = 6;
    kit *k = kit_open(SIMPLE, "sim:0,sim:7,sim:2", &o);
    kit_batch *b = kit_batch_new(k, 60, 1, 3);
    dpi_error error = {0};
    assert_int_equal(dpi_forward(k->s, b->in, 1, b->out, 2, 0, &error), status);
    kit_assert_contains(error.message, "worker 1");
    kit_assert_contains(error.message, "sim:7");
    kit_assert_contains(error.message, says);
    kit_forward(k, 60, 2);
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    assert_int_equal(stats.failed_batches, 1);
    assert_int_equal(stats.batches, 1);
    assert_int_equal(stats.deaths, 0);
    kit_batch_free(b);
    kit_close(k);
}

static void failing_at_a_slice(void **state)
{
    (void)state;
    fails("1.fail_at_slice", DPI_E_ENGINE, "slice 3");
    fails("1.wrong_size_at_slice", DPI_E_ENGINE, "has the shape");
    fails("1.no_memory_at_slice", DPI_E_SYSTEM, "out of memory");
}

/* Batches of one worker that fail at once: whoever is asked for late has its own reason all the same. */
static void each_batch_has_its_own_reason(void **state)
{
    (void)state;
    kit *k = kit_open(SIMPLE "fail_at_slice 1\nno_memory_at_slice 2\nwrong_size_at_slice 3\n", "sim:0", NULL);
    static const char *const says[] = {"failed at its slice 1", "out of memory at its slice 2", "has the shape"};
    kit_batch *b[3];
    dpi_ticket tickets[3];
    dpi_error error;
    for (int i = 0; i < 3; i++) {
        b[i] = kit_batch_new(k, 4, (uint64_t)i, 3);
        kit_assert_ok(kit_submit(k, b[i], false, 0, &tickets[i], &error), error);
    }
    for (int i = 2; i >= 0; i--) {
        assert_int_not_equal(dpi_wait(k->s, tickets[i], 0, NULL, 0, &error), DPI_OK);
        kit_assert_contains(error.message, says[i]);
        kit_batch_free(b[i]);
    }
    kit_close(k);
}

/* Slow is no hang: all rows come, from the others where that is sooner. */
static void being_slow_from_a_slice_on(void **state)
{
    (void)state;
    const dpi_key_value options[] = {{"1.slow_at_slice", "2"}, {"1.slow_us", "100000"}};
    dpi_options o = with(options, 2);
    o.batch = 2;
    kit *k = kit_open(SIMPLE "fixed_us 500\n", "sim:0,sim:7,sim:2", &o);
    for (uint64_t i = 0; i < 5; i++)
        kit_forward(k, 60, i);
    dpi_error error;
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    assert_int_equal(stats.deaths, 0);
    kit_close(k);
}

/* A hang delays everybody: waiters in several threads, and those who wait for room in the queue; then all go on. */
static void *forward_it(void *argument)
{
    kit_forward(argument, 30, 1);
    return NULL;
}

static void a_hang_holds_up_and_no_more(void **state)
{
    (void)state;
    const dpi_key_value options[] = {{"hang_at_slice", "1"}, {"fault_generations", "1"}};
    dpi_options o = with(options, 2);
    o.queue_depth = 2;
    o.slice_timeout_ms = 300;
    o.compile_timeout_ms = 300; /* also the limit of a first slice */
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", &o);
    dpi_error error;
    int fd = dpi_event_fd(k->s, &error);
    pthread_t threads[4];
    double began = kit_now_s();
    for (int i = 0; i < 4; i++) /* two of them are in flight, two wait for room */
        assert_int_equal(pthread_create(&threads[i], NULL, forward_it, k), 0);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 5000), 1);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    assert_true(kit_now_s() - began < 5);
    kit_close(k);
}

static void a_death_while_idle_is_mended(void **state)
{
    (void)state;
    kit_story story = KIT_STORY;
    dpi_options o = DPI_INIT(dpi_options);
    o.event = kit_tell;
    o.event_context = &story;
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", &o);
    kit_forward(k, 10, 1);
    dpi_error error;
    dpi_description d = DPI_INIT(dpi_description);
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    int64_t pid = d.workers[1].pid;
    assert_int_equal(kill((pid_t)pid, SIGTERM), 0);
    for (double until = kit_now_s() + 5; kit_now_s() < until && !kit_story_says(&story, "\"generation\":2");)
        kit_forward(k, 10, 1);
    assert_true(kit_story_says(&story, "signal 15"));
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    assert_int_equal(d.workers[1].generation, 2);
    assert_true(d.workers[1].pid != pid);
    kit_close(k);
}

/* The host program reaps every child: the death is noticed all the same. */
static void a_host_that_reaps_everything(void **state)
{
    (void)state;
    struct sigaction ignore = {.sa_handler = SIG_IGN}, old;
    assert_int_equal(sigaction(SIGCHLD, &ignore, &old), 0); /* the kernel reaps at once */
    kit_traces before = kit_look();
    kit *k = kit_open(SIMPLE, "sim:0,sim:7", NULL);
    kit_forward(k, 10, 1);
    kit_close(k);
    kit_check_clean(before);
    const dpi_key_value options[] = {{"die_at_slice", "2"}, {"fault_generations", "1"}};
    dpi_options o = with(options, 2);
    k = kit_open(SIMPLE, "sim:0*2", &o);
    for (int i = 0; i < 5; i++)
        kit_forward(k, 200, 1);
    dpi_error error = {0};
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    assert_true(stats.deaths >= 1);
    kit_close(k);
    kit_check_clean(before);
    assert_int_equal(sigaction(SIGCHLD, &old, NULL), 0);
}

/* ---- the caller dies -------------------------------------------------------------------------------------------- */

static bool is_alive(pid_t pid)
{
    /* A zombie whose parent is elsewhere is gone as far as we care. */
    char path[64], state = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return false;
    if (fscanf(f, "%*d %*s %c", &state) != 1)
        state = 0;
    fclose(f);
    return state && state != 'Z' && state != 'X';
}

/* This program again, as a process of its own: opens a session, tells its workers' pids, and does as `how` says. */
static void be_a_caller(int out, int how)
{
    kit *k = kit_open(SIMPLE "hang_at_slice 1\n", "sim:0*3", NULL);
    dpi_error error;
    dpi_description d = DPI_INIT(dpi_description);
    dpi_describe(k->s, &d, &error);
    kit_batch *b = kit_batch_new(k, 600, 1, 3);
    dpi_ticket ticket;
    if (how == 1)
        kit_submit(k, b, true, 0, &ticket, &error);
    for (size_t w = 0; w < d.worker_count; w++)
        if (write(out, &d.workers[w].pid, sizeof d.workers[w].pid) < 0)
            _exit(1);
    if (how == 2)
        _exit(0); /* without dpi_close */
    for (;;)
        pause();
}

static void a_dead_caller_leaves_no_worker(void **state)
{
    (void)state;
    for (int how = 0; how < 3; how++) {
        int pipe_fds[2], unused;
        assert_int_equal(pipe(pipe_fds), 0);
        pid_t caller = fork();
        assert_true(caller >= 0);
        if (caller == 0) {
            char out[16], way[16];
            snprintf(out, sizeof out, "%d", pipe_fds[1]);
            snprintf(way, sizeof way, "%d", how);
            close(pipe_fds[0]);
            execl("/proc/self/exe", "caller", out, way, (char *)NULL);
            _exit(1);
        }
        close(pipe_fds[1]);
        int64_t workers[3];
        for (int w = 0; w < 3; w++)
            assert_int_equal(read(pipe_fds[0], &workers[w], sizeof workers[w]), sizeof workers[w]);
        for (int w = 0; w < 3 && how < 2; w++)
            assert_true(is_alive((pid_t)workers[w]));
        if (how < 2)
            assert_int_equal(kill(caller, SIGKILL), 0);
        assert_int_equal(waitpid(caller, &unused, 0), caller);
        double until = kit_now_s() + 2;
        for (int w = 0; w < 3; w++)
            while (is_alive((pid_t)workers[w])) {
                if (kit_now_s() > until)
                    fail_msg("way %d: worker %d (pid %lld) outlived its caller", how, w, (long long)workers[w]);
                clock_sleep_until_ns(clock_now_ns() + 5000000);
            }
        close(pipe_fds[0]);
    }
}

/* The thread that opened the session ends: the workers are the supervisor's, and stay. */
static void *open_in_thread(void *argument)
{
    kit **k = argument;
    *k = kit_open(SIMPLE, "sim:0*2", NULL);
    return NULL;
}

static void the_opening_thread_may_end(void **state)
{
    (void)state;
    kit *k = NULL;
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, open_in_thread, &k), 0);
    pthread_join(thread, NULL);
    clock_sleep_until_ns(clock_now_ns() + 50000000);
    kit_forward(k, 30, 1);
    kit_close(k);
}

int main(int argc, char **argv)
{
    if (argc == 3)
        be_a_caller(atoi(argv[1]), atoi(argv[2]));
    kit_let_workers_crash();
    signal(SIGPIPE, SIG_DFL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(death_while_compiling),
        cmocka_unit_test(death_at_any_stage_of_starting),
        cmocka_unit_test(hang_at_any_stage_of_starting),
        cmocka_unit_test(a_compile_that_fails_says_why),
        cmocka_unit_test(faults_at_shutdown),
        cmocka_unit_test(hang_while_compiling),
        cmocka_unit_test(a_slow_compile_is_waited_for),
        cmocka_unit_test(a_worker_program_that_is_none),
        cmocka_unit_test(too_few_descriptors),
        cmocka_unit_test(death_at_a_slice),
        cmocka_unit_test(leaving_at_a_slice),
        cmocka_unit_test(hanging_at_a_slice),
        cmocka_unit_test(failing_at_a_slice),
        cmocka_unit_test(each_batch_has_its_own_reason),
        cmocka_unit_test(being_slow_from_a_slice_on),
        cmocka_unit_test(a_hang_holds_up_and_no_more),
        cmocka_unit_test(a_death_while_idle_is_mended),
        cmocka_unit_test(a_host_that_reaps_everything),
        cmocka_unit_test(a_dead_caller_leaves_no_worker),
        cmocka_unit_test(the_opening_thread_may_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
