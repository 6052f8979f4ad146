/* What a process may no longer do, call by call and path by path, and what goes on as before. Each in a child, since
 * nothing of it can be taken back. */
#include "ipc/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

enum { GOOD, BAD, LACKING };

/* In a child: says which line went wrong. */
#define NEED(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s (errno %s)\n", __FILE__, __LINE__, #condition, strerror(errno));                \
            return BAD;                                                                                                \
        }                                                                                                              \
    } while (0)

static int end_of(int (*body)(void))
{
    int how;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        _exit(body());
    assert_int_equal(waitpid(pid, &how, 0), pid);
    return how;
}

/* Runs `body`, which returns one of the words above. */
static void run(int (*body)(void))
{
    int how = end_of(body);
    if (!WIFEXITED(how))
        fail_msg("the child ended by signal %d", WTERMSIG(how));
    if (WEXITSTATUS(how) == LACKING)
        skip();
    assert_int_equal(WEXITSTATUS(how), GOOD);
}

static bool sanitized(void) { return getenv("DPI_SANITIZE") && *getenv("DPI_SANITIZE"); }

/* ---- system calls ----------------------------------------------------------------------------------------------- */

/* Arguments that do no harm where a call is let through. `contrast`: without a filter it gives anything but EPERM, also
 * to those without privileges. */
static const struct {
    const char *name;
    long number, a, b, c, d;
    bool contrast;
} denied[] = {
#define CALL(name, a, b, c, d, contrast)                                                                               \
    {                                                                                                                  \
#name, SYS_##name, a, b, c, d, contrast                                                                        \
    }
    CALL(execve, 0, 0, 0, 0, true),
    CALL(execveat, -1, 0, 0, 0, true),
    CALL(clone, 0x01000000, 0, 0, 0, false), /* CLONE_THREAD is not set */
#ifdef SYS_fork
    CALL(fork, 0, 0, 0, 0, false),
#endif
    CALL(tkill, 1, 0, 0, 0, false),
    CALL(pidfd_send_signal, -1, 0, 0, 0, true),
    CALL(pidfd_getfd, -1, 0, 0, 0, true),
    CALL(ptrace, 16 /* attach */, -1, 0, 0, true),
    CALL(process_vm_readv, -1, 0, 0, 0, true),
    CALL(process_vm_writev, -1, 0, 0, 0, true),
    CALL(process_madvise, -1, 0, 0, 0, true),
    CALL(kcmp, -1, -1, 0, 0, true),
#ifdef SYS_open
    CALL(open, 0, O_WRONLY, 0, 0, true),
    CALL(creat, 0, 0, 0, 0, true),
#endif
    CALL(openat, -1, 0, O_RDWR, 0, true),
    CALL(openat, -1, 0, O_RDONLY | O_CREAT, 0, true),
    CALL(openat, -1, 0, O_RDONLY | O_TRUNC, 0, true),
    CALL(truncate, 0, 0, 0, 0, true),
    CALL(socket, AF_INET, SOCK_STREAM, 0, 0, true),
    CALL(socketpair, AF_UNIX, SOCK_DGRAM, 0, 0, true),
    CALL(connect, -1, 0, 0, 0, true),
    CALL(bind, -1, 0, 0, 0, true),
    CALL(listen, -1, 0, 0, 0, true),
    CALL(accept, -1, 0, 0, 0, true),
    CALL(accept4, -1, 0, 0, 0, true),
    CALL(io_uring_setup, 0, 0, 0, 0, false),
    CALL(io_uring_enter, -1, 0, 0, 0, false),
    CALL(io_uring_register, -1, 0, 0, 0, false),
    CALL(bpf, -1, 0, 0, 0, false),
    CALL(perf_event_open, 0, 0, -1, -1, false),
    CALL(userfaultfd, -1, 0, 0, 0, false),
    CALL(add_key, 0, 0, 0, 0, true),
    CALL(request_key, 0, 0, 0, 0, true),
    CALL(keyctl, -1, 0, 0, 0, true),
    CALL(open_by_handle_at, -1, 0, 0, 0, false),
    CALL(unshare, 0, 0, 0, 0, true),
    CALL(setns, -1, 0, 0, 0, true),
    CALL(mount, 0, 0, 0, 0, false),
    CALL(umount2, 0, 0, 0, 0, false),
    CALL(pivot_root, 0, 0, 0, 0, false),
    CALL(chroot, 0, 0, 0, 0, false),
    CALL(fsopen, 0, 0, 0, 0, false),
    CALL(fsconfig, -1, 0, 0, 0, true),
    CALL(fsmount, -1, 0, 0, 0, false),
    CALL(fspick, -1, 0, 0, 0, false),
    CALL(open_tree, -1, 0, 0, 0, true),
    CALL(move_mount, -1, 0, -1, 0, false),
#ifdef SYS_mount_setattr
    CALL(mount_setattr, -1, 0, 0, 0, true),
#endif
    CALL(setuid, -1, 0, 0, 0, false),
    CALL(setgid, -1, 0, 0, 0, false),
    CALL(setreuid, -1, -1, 0, 0, true),
    CALL(setregid, -1, -1, 0, 0, true),
    CALL(setresuid, -1, -1, -1, 0, true),
    CALL(setresgid, -1, -1, -1, 0, true),
    CALL(setfsuid, -1, 0, 0, 0, true),
    CALL(setfsgid, -1, 0, 0, 0, true),
    CALL(setgroups, 1 << 20, 0, 0, 0, false),
    CALL(capset, 0, 0, 0, 0, true),
    CALL(init_module, 0, 0, 0, 0, false),
    CALL(finit_module, -1, 0, 0, 0, false),
    CALL(delete_module, 0, 0, 0, 0, false),
    CALL(kexec_load, 0, 0, 0, -1, false),
    CALL(reboot, 0, 0, 0, 0, false),
    CALL(swapon, 0, 0, 0, 0, false),
    CALL(swapoff, 0, 0, 0, 0, false),
    CALL(acct, 1, 0, 0, 0, false),
    CALL(quotactl, -1, 0, 0, 0, false),
    CALL(syslog, -1, 0, 0, 0, false),
    CALL(sethostname, 0, -1, 0, 0, false),
    CALL(setdomainname, 0, -1, 0, 0, false),
    CALL(settimeofday, 1, 0, 0, 0, false),
    CALL(clock_settime, -1, 0, 0, 0, true),
    CALL(clock_adjtime, -1, 0, 0, 0, true),
    CALL(adjtimex, 0, 0, 0, 0, true),
#undef CALL
};
#define DENIED (sizeof denied / sizeof denied[0])

static bool answers_eperm(size_t i)
{
    const pid_t self = getpid();
    errno = 0;
    long result = syscall((long)denied[i].number, denied[i].a, denied[i].b, denied[i].c, denied[i].d, 0, 0);
    if (getpid() != self)
        _exit(GOOD); /* a child that should not be */
    return result == -1 && errno == EPERM;
}

static int refuses_each(void)
{
    int bad = 0;
    for (size_t i = 0; i < DENIED; i++)
        if (denied[i].contrast && answers_eperm(i))
            bad += fprintf(stderr, "%s is refused without a filter: the test shows nothing\n", denied[i].name);
    if (sandbox_deny_calls(NULL))
        return LACKING;
    for (size_t i = 0; i < DENIED; i++)
        if (!answers_eperm(i))
            bad += fprintf(stderr, "%s is not refused: %s\n", denied[i].name, strerror(errno));
#ifdef __x86_64__
    NEED(syscall(0x40000000L | SYS_getpid) == -1 && errno == EPERM); /* x32 */
#endif
    return bad ? BAD : GOOD;
}

/* As one without privileges: what a filter needs is no_new_privs alone. */
static int refuses_each_of_nobody(void)
{
    if (getuid() == 0)
        NEED(setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0);
    return refuses_each();
}

static void calls_are_refused(void **state)
{
    (void)state;
    run(refuses_each);
    run(refuses_each_of_nobody);
}

/* Inputs of a session with producers have no seal; nor does the file's mode keep its owner, who may change it. */
static int read_only_stays_so(void)
{
    int fd = memfd_create("dpi-test", MFD_CLOEXEC);
    char path[40];
    NEED(fd >= 0 && ftruncate(fd, 4096) == 0 && fchmod(fd, 0400) == 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int reader = open(path, O_RDONLY | O_CLOEXEC);
    NEED(reader >= 0 && close(fd) == 0);
    if (sandbox_deny_calls(NULL))
        return LACKING;
    snprintf(path, sizeof path, "/proc/self/fd/%d", reader);
    (void)fchmod(reader, 0600);
    NEED(open(path, O_RDWR | O_CLOEXEC) == -1 && errno == EPERM);
    NEED(open(path, O_RDONLY | O_CLOEXEC) >= 0);
    NEED(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, reader, 0) == MAP_FAILED && errno == EACCES);
    char *seen = mmap(NULL, 4096, PROT_READ, MAP_SHARED, reader, 0);
    NEED(seen != MAP_FAILED && mprotect(seen, 4096, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    return GOOD;
}

static void inputs_without_a_seal_stay_read_only(void **state)
{
    (void)state;
    run(read_only_stays_so);
}

static volatile sig_atomic_t signalled;
static void on_signal(int number) { signalled = number; }

static int signals_stay_inside(void)
{
    NEED(kill(getppid(), 0) == 0);
    signal(SIGUSR1, on_signal);
    if (sandbox_deny_calls(NULL))
        return LACKING;
    siginfo_t info = {.si_code = SI_QUEUE};
    NEED(kill(getppid(), 0) == -1 && errno == EPERM);
    NEED(kill(0, 0) == -1 && errno == EPERM);
    NEED(kill(-1, 0) == -1 && errno == EPERM);
    NEED(syscall(SYS_tgkill, getppid(), getppid(), 0) == -1 && errno == EPERM);
    NEED(syscall(SYS_rt_sigqueueinfo, getppid(), SIGUSR1, &info) == -1 && errno == EPERM);
    NEED(syscall(SYS_rt_tgsigqueueinfo, getppid(), getppid(), SIGUSR1, &info) == -1 && errno == EPERM);
    NEED(!signalled);
    NEED(raise(SIGUSR1) == 0 && signalled == SIGUSR1);
    signalled = 0;
    NEED(kill(getpid(), SIGUSR1) == 0 && signalled == SIGUSR1);
    return GOOD;
}

static void signals_to_others_are_refused(void **state)
{
    (void)state;
    run(signals_stay_inside);
}

static void *add_one(void *argument)
{
    ++*(int *)argument;
    return NULL;
}

static bool threads_work(void)
{
    int count = 0;
    pthread_t thread;
    return pthread_create(&thread, NULL, add_one, &count) == 0 && pthread_join(thread, NULL) == 0 && count == 1;
}

static bool memory_works(void)
{
    int fd = memfd_create("dpi-test", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, 1 << 20) != 0 || pwrite(fd, "x", 1, 4096) != 1)
        return false;
    char *shared = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *own = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || own == MAP_FAILED || shared[4096] != 'x')
        return false;
    own[5] = 1;
    return mprotect(own, 4096, PROT_READ) == 0 && munmap(own, 1 << 20) == 0 && munmap(shared, 1 << 20) == 0 &&
           close(fd) == 0;
}

/* A descriptor over a socket that was there before, as those of a run's files come. */
static bool descriptors_come(int socket, int other)
{
    int file = memfd_create("dpi-test", MFD_CLOEXEC), got = -1;
    char byte = 'b', room[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec text = {.iov_base = &byte, .iov_len = 1};
    struct msghdr m = {.msg_iov = &text, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &file, sizeof file);
    if (sendmsg(other, &m, 0) != 1 || recvmsg(socket, &m, MSG_CMSG_CLOEXEC) != 1 || !(c = CMSG_FIRSTHDR(&m)))
        return false;
    memcpy(&got, CMSG_DATA(c), sizeof got);
    return got >= 0 && pwrite(got, "y", 1, 0) == 1 && close(got) == 0 && close(file) == 0;
}

static int work_goes_on(void)
{
    int pair[2];
    cpu_set_t cores;
    NEED(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    if (sandbox_deny_calls(NULL))
        return LACKING;
    NEED(threads_work());
    NEED(memory_works());
    NEED(descriptors_come(pair[0], pair[1]));
    NEED(sched_getaffinity(0, sizeof cores, &cores) == 0 && sched_setaffinity(0, sizeof cores, &cores) == 0);
    FILE *status = fopen("/proc/self/status", "r");
    NEED(status && fclose(status) == 0);
    NEED(syscall(SYS_clone3, NULL, 0) == -1 && errno == ENOSYS);
    NEED(sandbox_deny_calls(NULL) == DPI_OK); /* once more is harmless */
    return GOOD;
}

static void work_goes_on_as_before(void **state)
{
    (void)state;
    run(work_goes_on);
}

static pthread_barrier_t meeting;

static void *try_socket(void *argument)
{
    pthread_barrier_wait(&meeting);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    *(int *)argument = fd < 0 ? errno : 0;
    return NULL;
}

/* A library's threads are there before the filter. */
static int older_threads_too(void)
{
    pthread_t thread;
    int number = -1;
    pthread_barrier_init(&meeting, NULL, 2);
    NEED(pthread_create(&thread, NULL, try_socket, &number) == 0);
    if (sandbox_deny_calls(NULL))
        return LACKING;
    pthread_barrier_wait(&meeting);
    pthread_join(thread, NULL);
    NEED(number == EPERM);
    return GOOD;
}

static void threads_that_were_there_are_under_it(void **state)
{
    (void)state;
    run(older_threads_too);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static char top[] = "/tmp/dpi-sandbox-XXXXXX";

static const char *in_top(const char *name)
{
    static char path[8][128];
    static unsigned next;
    char *p = path[next++ % 8];
    snprintf(p, sizeof path[0], "%s/%s", top, name);
    return p;
}

static bool put(const char *path)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    return fd >= 0 && write(fd, "text", 4) == 4 && close(fd) == 0;
}

static bool get(const char *path)
{
    char text[4];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd >= 0 && read(fd, text, 4) == 4 && close(fd) == 0;
}

static bool refused(bool result) { return !result && errno == EACCES; }

static int confine(void)
{
    int abi;
    bool every_thread;
    const sandbox_path paths[] = {
        {in_top("open"), false},     {in_top("own"), true}, {in_top("closed/but-this"), false},
        {in_top("never-was"), true}, {"/dev/null", true},   {"/proc", false}};
    return sandbox_confine_files(paths, sizeof paths / sizeof paths[0], &abi, &every_thread, NULL) ? LACKING : GOOD;
}

static int reads_and_writes_where_told(void)
{
    int before = open(in_top("closed/file"), O_RDWR | O_CLOEXEC);
    NEED(before >= 0);
    if (confine())
        return LACKING;
    NEED(get(in_top("open/file")) && get(in_top("own/file")) && get(in_top("closed/but-this")));
    NEED(refused(get(in_top("closed/file"))));
    NEED(refused(get("/etc/passwd")));
    NEED(refused(put(in_top("open/file"))) && refused(put(in_top("open/new"))));
    NEED(refused(put(in_top("closed/but-this"))) && refused(put(in_top("new"))));
    NEED(refused(unlink(in_top("open/file")) == 0) && refused(mkdir(in_top("own/folder"), 0700) == 0));
    NEED(refused(symlink("x", in_top("own/link")) == 0));
    NEED(put(in_top("own/new")) && rename(in_top("own/new"), in_top("own/newer")) == 0);
    NEED(link(in_top("own/newer"), in_top("own/twin")) == 0 && unlink(in_top("own/newer")) == 0);
    NEED(rename(in_top("own/twin"), in_top("open/twin")) != 0);
    NEED(put("/dev/null"));
    NEED(pwrite(before, "more", 4, 0) == 4 && get("/proc/self/status") && memory_works());
    return GOOD;
}

/* As the cache publishes an engine. */
static int a_nameless_file_gets_its_name(void)
{
    char self[64];
    if (confine())
        return LACKING;
    int fd = open(in_top("own"), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR))
        return LACKING;
    NEED(fd >= 0);
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    NEED(linkat(AT_FDCWD, self, AT_FDCWD, in_top("own/named"), AT_SYMLINK_FOLLOW) == 0);
    NEED(unlink(in_top("own/named")) == 0);
    NEED(refused(open(in_top("open"), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) >= 0));
    return GOOD;
}

static void *try_file(void *argument)
{
    *(int *)argument = get(in_top("closed/file")) ? 0 : errno;
    return NULL;
}

static int later_threads_and_programs(void)
{
    pthread_t thread;
    int number = -1;
    if (confine())
        return LACKING;
    NEED(pthread_create(&thread, NULL, try_file, &number) == 0 && pthread_join(thread, NULL) == 0);
    NEED(number == EACCES);
    char *const argv[] = {(char *)(uintptr_t) "true", NULL};
    NEED(refused(execv("/bin/true", argv) == 0));
    return GOOD;
}

/* Root may; those without privileges may, too. */
static int of_nobody(void)
{
    if (getuid() == 0)
        NEED(chmod(top, 0755) == 0 && chown(in_top("own"), 65534, 65534) == 0 &&
             chown(in_top("own/file"), 65534, 65534) == 0 && setresgid(65534, 65534, 65534) == 0 &&
             setresuid(65534, 65534, 65534) == 0);
    return a_nameless_file_gets_its_name();
}

static void files_are_confined(void **state)
{
    (void)state;
    run(reads_and_writes_where_told);
    run(a_nameless_file_gets_its_name);
    run(later_threads_and_programs);
    run(of_nobody);
}

static int make_tree(void **state)
{
    (void)state;
    if (!mkdtemp(top))
        return -1;
    bool made =
        mkdir(in_top("open"), 0755) == 0 && mkdir(in_top("own"), 0755) == 0 && mkdir(in_top("closed"), 0755) == 0;
    return made && put(in_top("open/file")) && put(in_top("own/file")) && put(in_top("closed/file")) &&
                   put(in_top("closed/but-this"))
               ? 0
               : -1;
}

static int remove_tree(void **state)
{
    (void)state;
    char command[200];
    snprintf(command, sizeof command, "rm -rf '%s'", top);
    return system(command);
}

/* ---- limits ----------------------------------------------------------------------------------------------------- */

static bool stop_dumps;

static int crash(void)
{
    const struct rlimit all = {.rlim_cur = RLIM_INFINITY, .rlim_max = RLIM_INFINITY};
    NEED(chdir(in_top("own")) == 0);
    setrlimit(RLIMIT_CORE, &all);
    if (stop_dumps)
        sandbox_stop_core_dumps();
    signal(SIGABRT, SIG_DFL);
    abort();
}

static void a_crash_leaves_no_core(void **state)
{
    (void)state;
    stop_dumps = false;
    int how = end_of(crash);
    assert_true(WIFSIGNALED(how));
    if (!WCOREDUMP(how)) /* nothing here dumps cores: there is nothing to see */
        skip();
    stop_dumps = true;
    how = end_of(crash);
    assert_true(WIFSIGNALED(how));
    assert_int_equal(WTERMSIG(how), SIGABRT);
    assert_false(WCOREDUMP(how));
}

static int memory_of_its_own_ends(void)
{
    const size_t size = 256 << 20;
    int arena = memfd_create("dpi-test", MFD_CLOEXEC);
    NEED(arena >= 0 && ftruncate(arena, (off_t)size) == 0);
    NEED(sandbox_limit_memory(64 << 20, NULL) == DPI_OK);
    void *own = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    NEED(own == MAP_FAILED && errno == ENOMEM);
    NEED(mmap(NULL, 16 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    NEED(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, arena, 0) != MAP_FAILED);
    const struct rlimit more = {.rlim_cur = size, .rlim_max = size};
    NEED(sandbox_limit_memory(1ull << 40, NULL) == DPI_OK); /* it stays at the lower one */
    struct rlimit now;
    NEED(getrlimit(RLIMIT_DATA, &now) == 0 && now.rlim_cur == 64 << 20);
    NEED(geteuid() == 0 || setrlimit(RLIMIT_DATA, &more) != 0);
    return GOOD;
}

static void memory_is_limited(void **state)
{
    (void)state;
    if (sanitized()) /* its shadow memory is beyond any limit from the start */
        skip();
    run(memory_of_its_own_ends);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_are_refused),
        cmocka_unit_test(signals_to_others_are_refused),
        cmocka_unit_test(inputs_without_a_seal_stay_read_only),
        cmocka_unit_test(work_goes_on_as_before),
        cmocka_unit_test(threads_that_were_there_are_under_it),
        cmocka_unit_test(files_are_confined),
        cmocka_unit_test(a_crash_leaves_no_core),
        cmocka_unit_test(memory_is_limited),
    };
    return cmocka_run_group_tests(tests, make_tree, remove_tree);
}
