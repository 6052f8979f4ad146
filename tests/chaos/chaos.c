/*
 * The chaos test: plays plans at random and checks every row. Each plan is played by a process of its own, several at a
 * time; one that fails, crashes or hangs is named with the command that plays it again.
 *
 *     chaos [--plans N] [--seed S] [--jobs J] [--real N] [--patience N] [--again] [--show]
 *         --plans N   how many (300)
 *         --seed S    the first one's seed, those behind it count on; by default by chance, and printed
 *         --jobs J    at once (16)
 *         --real N    every N-th plan has a real backend (50; 0: none)
 *         --patience N   multiplies the limits of hangs; by default 1, 5 in builds with a sanitizer, and more while the
 *                     machine is slow: as measured in the plans before
 *         --again     all of them have the first one's seed
 *         --show      what each plan is and tells
 */
#include "play.h"

#include "base/clock.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MOST_JOBS     64
#define PLAN_LIMIT    240 /* s: longer is a hang */
#define MOST_FAILED   20
#define MOST_PATIENCE 9 /* a real hang must end a plan, in its time */

static const char *const backends[] = {"onnxruntime", "openvino"};

typedef struct settings {
    uint64_t plans, seed, jobs, real, patience; /* patience 0: as measured */
    bool again, show;
} settings;

/* A plan that is being played. */
typedef struct slot {
    pid_t pid; /* 0: free */
    plan p;
    int words; /* what it says */
    int64_t until_ns;
    char folder[PATH_SIZE];
} slot;

/* Shared by all processes. */
typedef struct shared {
    tally r;
    real_data real[2];
} shared;

static char folder[] = "/tmp/dpi-chaos-XXXXXX";

static void usage(void)
{
    fprintf(stderr, "usage: chaos [--plans N] [--seed S] [--jobs J] [--real N] [--patience N] [--again] "
                    "[--show]\n");
    exit(2);
}

static settings read_arguments(int argc, char **argv)
{
    settings s = {.plans = 300, .seed = (uint64_t)clock_now_ns() % 1000000000, .jobs = 16, .real = 50};
    const struct {
        const char *name;
        uint64_t *value, least, most;
    } numbers[] = {{"--plans", &s.plans, 1, 100000000},
                   {"--seed", &s.seed, 0, UINT64_MAX / 2},
                   {"--jobs", &s.jobs, 1, MOST_JOBS},
                   {"--real", &s.real, 0, 100000000},
                   {"--patience", &s.patience, 1, 1000}};
    for (int i = 1; i < argc; i++) {
        bool known = true;
        if (strcmp(argv[i], "--again") == 0)
            s.again = true;
        else if (strcmp(argv[i], "--show") == 0)
            s.show = true;
        else
            known = false;
        for (size_t n = 0; n < sizeof numbers / sizeof numbers[0] && !known && i + 1 < argc; n++)
            if (strcmp(argv[i], numbers[n].name) == 0)
                known = text_to_u64(argv[++i], numbers[n].least, numbers[n].most, numbers[n].value);
        if (!known)
            usage();
    }
    return s;
}

/* ---- one plan --------------------------------------------------------------------------------------------------- */

/* Limits that are meant for the machine as it is: what takes 100 ms takes a tenth of that when nothing else runs. */
static unsigned measured_patience(const shared *all)
{
    const char *sanitizer = getenv("DPI_SANITIZE");
    int64_t usual = sanitizer && sanitizer[0] ? 5 : 1, slow = all->r.slow_ns / (100000000 * usual);
    return (unsigned)(usual * (1 + (slow < MOST_PATIENCE ? slow : MOST_PATIENCE)));
}

static void start(slot *s, const settings *set, uint64_t seed, shared *all)
{
    uint64_t real = set->real && seed % set->real == 0 ? 1 + seed / set->real % 2 : 0;
    plan_draw(&s->p, seed, real ? backends[real - 1] : NULL,
              set->patience ? (unsigned)set->patience : measured_patience(all));
    s->words = memfd_create("chaos", MFD_CLOEXEC);
    s->until_ns = clock_now_ns() + PLAN_LIMIT * 1000000000ll * s->p.patience;
    fflush(NULL);
    s->pid = fork();
    if (s->pid < 0 || s->words < 0) {
        perror("chaos");
        exit(1);
    }
    if (s->pid)
        return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(s->words, 2);
    play_plan(&s->p, &all->r, real ? &all->real[real - 1] : NULL, s->folder);
    exit(0); /* not _exit: a sanitizer's look for leaks */
}

static void show_words(const slot *s)
{
    char buffer[4096];
    ssize_t got;
    plan_print(&s->p, stdout);
    fflush(stdout);
    for (off_t at = 0; (got = pread(s->words, buffer, sizeof buffer, at)) > 0; at += got)
        if (write(1, buffer, (size_t)got) < 0)
            return;
}

/* Whether the plan has ended; *failed when it should not have ended so. */
static bool has_ended(slot *s, bool *failed)
{
    int status;
    bool late = clock_now_ns() > s->until_ns;
    if (late)
        kill(s->pid, SIGABRT);
    if (waitpid(s->pid, &status, late ? 0 : WNOHANG) != s->pid)
        return false;
    *failed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    if (*failed && late)
        printf("seed %llu hung\n", (unsigned long long)s->p.seed);
    else if (*failed)
        printf("seed %llu failed (%s %d)\n", (unsigned long long)s->p.seed, WIFEXITED(status) ? "exit code" : "signal",
               WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    s->pid = 0;
    return true;
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

static unsigned finish(slot *s, const settings *set)
{
    bool failed;
    if (!s->pid || !has_ended(s, &failed))
        return 0;
    if (failed || set->show)
        show_words(s);
    if (failed)
        printf("again by: chaos --seed %llu --plans 1 --real %llu --patience %u --show\n\n",
               (unsigned long long)s->p.seed, (unsigned long long)set->real, s->p.patience);
    fflush(stdout);
    close(s->words);
    return failed;
}

static unsigned play_all(const settings *set, shared *all)
{
    static slot slots[MOST_JOBS];
    unsigned failed = 0;
    uint64_t begun = 0, running = 1, shown = 0;
    for (uint64_t i = 0; i < set->jobs; i++) {
        snprintf(slots[i].folder, sizeof slots[i].folder, "%s/%llu", folder, (unsigned long long)i);
        mkdir(slots[i].folder, 0700);
    }
    while (running || (begun < set->plans && failed < MOST_FAILED)) {
        running = 0;
        for (uint64_t i = 0; i < set->jobs; i++) {
            failed += finish(&slots[i], set);
            if (!slots[i].pid && begun < set->plans && failed < MOST_FAILED)
                start(&slots[i], set, set->seed + (set->again ? 0 : begun), all), begun++;
            running += slots[i].pid != 0;
        }
        if (begun / 1000 > shown) {
            shown = begun / 1000;
            printf("%llu plans, %llu rows, %u failed\n", (unsigned long long)begun, (unsigned long long)all->r.rows,
                   failed);
            fflush(stdout);
        }
        clock_sleep_until_ns(clock_now_ns() + 1000000);
    }
    printf("plans: %llu played, %u failed\n", (unsigned long long)begun, failed);
    for (uint64_t i = 0; i < set->jobs; i++)
        rmdir(slots[i].folder);
    return failed;
}

static void report(const tally *r, double seconds)
{
    uint64_t sum = 0;
    for (int k = 0; k < FAULT_KINDS; k++) {
        printf("  %-45s %8llu\n", fault_names[k], (unsigned long long)r->faults[k]);
        sum += r->faults[k];
    }
    printf("faults injected: %llu\n", (unsigned long long)sum);
    printf("rows checked: %llu, wrong: %llu\n", (unsigned long long)r->rows, (unsigned long long)r->wrong);
    printf("batches and runs: %llu; as planned %llu failed, %llu were cancelled, %llu runs went on where they had "
           "stopped, %llu bad rows were found\n",
           (unsigned long long)r->batches, (unsigned long long)r->failed, (unsigned long long)r->cancelled,
           (unsigned long long)r->resumed, (unsigned long long)r->left_out);
    printf("as planned %llu sessions did not open, %llu ended with no device left; good rows given up after three more "
           "deaths: %llu\n",
           (unsigned long long)r->unopened, (unsigned long long)r->ended, (unsigned long long)r->unlucky_rows);
    printf("devices added: %llu, removed: %llu; changes refused: %llu, past their limit: %llu, devices that could not "
           "start: %llu\n",
           (unsigned long long)r->added, (unsigned long long)r->removed, (unsigned long long)r->refused,
           (unsigned long long)r->too_late, (unsigned long long)r->not_added);
    printf("plans without their library: %llu; hangs of a slow machine: %llu; %.0f s\n", (unsigned long long)r->absent,
           (unsigned long long)r->slow_hangs, seconds);
}

/* In a process of its own, so that no plan inherits a library's threads. */
static bool make_real(shared *all)
{
    pid_t pid = fork();
    int status = 1;
    if (pid == 0) {
        for (int i = 0; i < 2; i++)
            real_data_make(&all->real[i], backends[i]);
        _exit(0);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

/* Libraries are looked for in the environment of the tests' Python. */
static void use_python_environment(void)
{
    char folder_of[PATH_MAX];
    const char *python = getenv("DPI_PYTHON"), *end = python ? strstr(python, "/bin/python") : NULL;
    if (!end || getenv("VIRTUAL_ENV"))
        return;
    snprintf(folder_of, sizeof folder_of, "%.*s", (int)(end - python), python);
    setenv("VIRTUAL_ENV", folder_of, 1);
}

int main(int argc, char **argv)
{
    const settings set = read_arguments(argc, argv);
    int64_t began = clock_now_ns();
    shared *all = mmap(NULL, sizeof *all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    signal(SIGPIPE, SIG_DFL);
    use_python_environment();
    printf("--seed %llu\n", (unsigned long long)set.seed);
    fflush(stdout);
    if (all == MAP_FAILED || !mkdtemp(folder)) {
        perror("chaos");
        return 1;
    }
    if (set.real && !make_real(all)) {
        printf("the real backends' reference cannot be computed\n");
        return 1;
    }
    unsigned failed = play_all(&set, all);
    report(&all->r, (double)(clock_now_ns() - began) * 1e-9);
    rmdir(folder);
    return failed || all->r.wrong || !all->r.rows ? 1 : 0;
}
