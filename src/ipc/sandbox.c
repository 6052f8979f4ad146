#include "ipc/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- limits ----------------------------------------------------------------------------------------------------- */

void sandbox_stop_core_dumps(void)
{
    /* 0 would not do: a core_pattern that is a pipe is run whatever the limit, except at 1. A file of one byte is
     * not written either. */
    const struct rlimit one = {.rlim_cur = 1, .rlim_max = 1};
    const struct rlimit none = {.rlim_cur = 0, .rlim_max = 0};
    if (setrlimit(RLIMIT_CORE, &one) == 0)
        return;
    setrlimit(RLIMIT_CORE, &none); /* it was 0 and may not be raised */
    prctl(PR_SET_DUMPABLE, 0);
}

dpi_status sandbox_limit_memory(uint64_t bytes, dpi_error *error)
{
    /* RLIMIT_DATA and not RLIMIT_AS: arenas are mapped at their largest size and files whole. */
    struct rlimit limit;
    getrlimit(RLIMIT_DATA, &limit);
    if (bytes >= limit.rlim_max)
        return DPI_OK; /* it is lower already */
    limit.rlim_cur = limit.rlim_max = bytes;
    return setrlimit(RLIMIT_DATA, &limit) == 0
               ? DPI_OK
               : error_set_errno(error, DPI_E_SYSTEM, errno, "cannot limit the memory of a worker");
}

/* ---- files: Landlock -------------------------------------------------------------------------------------------- */

/* Of linux/landlock.h, which may be older than the kernel. */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule       445
#define SYS_landlock_restrict_self  446
#endif
#define RULESET_VERSION  1u
#define RULE_PATH        1
#define RESTRICT_THREADS 8u /* LANDLOCK_RESTRICT_SELF_TSYNC */
#define THREADS_ABI      8

enum {
    FS_EXECUTE = 1 << 0,
    FS_WRITE_FILE = 1 << 1,
    FS_READ_FILE = 1 << 2,
    FS_READ_DIR = 1 << 3,
    FS_REMOVE_FILE = 1 << 5,
    FS_MAKE_REG = 1 << 8,
    FS_REFER = 1 << 13,    /* ABI 2 */
    FS_TRUNCATE = 1 << 14, /* ABI 3 */
    FS_IOCTL_DEV = 1 << 15 /* ABI 5 */
};
#define FS_FIRST_ABI 0x1fff
#define FS_OF_FILES  (FS_EXECUTE | FS_WRITE_FILE | FS_READ_FILE | FS_TRUNCATE | FS_IOCTL_DEV)
#define FS_READ      (FS_READ_FILE | FS_READ_DIR)
#define FS_WRITE     (FS_READ | FS_WRITE_FILE | FS_TRUNCATE | FS_REMOVE_FILE | FS_MAKE_REG)

typedef struct ruleset_attributes {
    uint64_t files, tcp, scoped;
} ruleset_attributes;

typedef struct path_attributes {
    uint64_t allowed;
    int32_t folder;
} __attribute__((packed)) path_attributes;

static ruleset_attributes attributes_of(int abi)
{
    ruleset_attributes a = {.files = FS_FIRST_ABI};
    a.files |= abi >= 2 ? FS_REFER : 0;
    a.files |= abi >= 3 ? FS_TRUNCATE : 0;
    a.files |= abi >= 5 ? FS_IOCTL_DEV : 0;
    a.tcp = abi >= 4 ? 3 : 0;    /* bind, connect */
    a.scoped = abi >= 6 ? 3 : 0; /* abstract sockets, signals */
    return a;
}

static dpi_status allow_path(int ruleset, uint64_t handled, const sandbox_path *p, dpi_error *error)
{
    int fd = open(p->path, O_PATH | O_CLOEXEC);
    struct stat info;
    if (fd < 0)
        return DPI_OK;
    path_attributes rule = {.allowed = (p->writable ? FS_WRITE : FS_READ) & handled, .folder = fd};
    if (fstat(fd, &info) == 0 && !S_ISDIR(info.st_mode))
        rule.allowed &= FS_OF_FILES;
    bool added = syscall(SYS_landlock_add_rule, ruleset, RULE_PATH, &rule, 0) == 0;
    int number = errno;
    close(fd);
    if (added || number == EBADFD) /* a pipe or a socket: no file of a file system, and not restricted either */
        return DPI_OK;
    return error_set_errno(error, DPI_E_SYSTEM, number, "Landlock takes no rule for %s", p->path);
}

dpi_status sandbox_confine_files(const sandbox_path *paths, size_t count, int *abi, bool *every_thread,
                                 dpi_error *error)
{
    *abi = 0;
    *every_thread = false;
    int version = (int)syscall(SYS_landlock_create_ruleset, NULL, 0, RULESET_VERSION);
    if (version < 1)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "this kernel has no Landlock");
    ruleset_attributes attributes = attributes_of(version);
    int ruleset = (int)syscall(SYS_landlock_create_ruleset, &attributes, sizeof attributes, 0);
    if (ruleset < 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "Landlock makes no set of rules");
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < count && !status; i++)
        status = allow_path(ruleset, attributes.files, &paths[i], error);
    if (!status && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        status = error_set_errno(error, DPI_E_SYSTEM, errno, "no_new_privs cannot be set");
    if (!status && version >= THREADS_ABI)
        *every_thread = syscall(SYS_landlock_restrict_self, ruleset, RESTRICT_THREADS) == 0;
    if (!status && !*every_thread && syscall(SYS_landlock_restrict_self, ruleset, 0) != 0)
        status = error_set_errno(error, DPI_E_SYSTEM, errno, "Landlock cannot be entered");
    close(ruleset);
    *abi = status ? 0 : version;
    return status;
}

/* ---- system calls: seccomp -------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define FILTER_ARCH AUDIT_ARCH_X86_64
#define X32_BIT     0x40000000u
#elif defined(__aarch64__)
#define FILTER_ARCH AUDIT_ARCH_AARCH64
#endif

#ifdef FILTER_ARCH

typedef enum call_rule {
    NEVER,        /* EPERM */
    OURS,         /* its first argument is a process: only this one */
    THREADS_ONLY, /* its first argument is clone's flags */
    READS_ONLY_1, /* its second argument is flags of open: no writing, making or cutting of a file */
    READS_ONLY_2, /* its third is */
    ABSENT,       /* ENOSYS: the C library goes on with an older call, whose arguments a filter can see */
} call_rule;

static const struct {
    unsigned number;
    call_rule rule;
} rules[] = {
    /* programs and processes */
    {SYS_execve, NEVER},
    {SYS_execveat, NEVER},
    {SYS_clone, THREADS_ONLY},
    {SYS_clone3, ABSENT},
#ifdef SYS_fork
    {SYS_fork, NEVER},
    {SYS_vfork, NEVER},
#endif
    /* other processes: signals, memory, descriptors, limits */
    {SYS_kill, OURS},
    {SYS_tkill, OURS},
    {SYS_tgkill, OURS},
    {SYS_rt_sigqueueinfo, OURS},
    {SYS_rt_tgsigqueueinfo, OURS},
    {SYS_pidfd_send_signal, NEVER},
    {SYS_pidfd_getfd, NEVER},
    {SYS_ptrace, NEVER},
    {SYS_process_vm_readv, NEVER},
    {SYS_process_vm_writev, NEVER},
    {SYS_process_madvise, NEVER},
    {SYS_kcmp, NEVER},
/* files: none is opened for writing. /proc/self/fd would give the session's inputs writable, where no seal keeps them
 */
#ifdef SYS_open
    {SYS_open, READS_ONLY_1},
    {SYS_creat, NEVER},
#endif
    {SYS_openat, READS_ONLY_2},
    {SYS_openat2, ABSENT},
    {SYS_truncate, NEVER},
    /* the network, and other programs by sockets: one of socketpair may send to any path */
    {SYS_socket, NEVER},
    {SYS_socketpair, NEVER},
    {SYS_connect, NEVER},
    {SYS_bind, NEVER},
    {SYS_listen, NEVER},
    {SYS_accept, NEVER},
    {SYS_accept4, NEVER},
    /* ways around a filter, and parts of the kernel that are large */
    {SYS_io_uring_setup, NEVER},
    {SYS_io_uring_enter, NEVER},
    {SYS_io_uring_register, NEVER},
    {SYS_bpf, NEVER},
    {SYS_perf_event_open, NEVER},
    {SYS_userfaultfd, NEVER},
    {SYS_add_key, NEVER},
    {SYS_request_key, NEVER},
    {SYS_keyctl, NEVER},
    {SYS_open_by_handle_at, NEVER},
    /* namespaces, mounts, users */
    {SYS_unshare, NEVER},
    {SYS_setns, NEVER},
    {SYS_mount, NEVER},
    {SYS_umount2, NEVER},
    {SYS_pivot_root, NEVER},
    {SYS_chroot, NEVER},
    {SYS_fsopen, NEVER},
    {SYS_fsconfig, NEVER},
    {SYS_fsmount, NEVER},
    {SYS_fspick, NEVER},
    {SYS_open_tree, NEVER},
    {SYS_move_mount, NEVER},
#ifdef SYS_mount_setattr
    {SYS_mount_setattr, NEVER},
#endif
    {SYS_setuid, NEVER},
    {SYS_setgid, NEVER},
    {SYS_setreuid, NEVER},
    {SYS_setregid, NEVER},
    {SYS_setresuid, NEVER},
    {SYS_setresgid, NEVER},
    {SYS_setfsuid, NEVER},
    {SYS_setfsgid, NEVER},
    {SYS_setgroups, NEVER},
    {SYS_capset, NEVER},
    /* the machine */
    {SYS_init_module, NEVER},
    {SYS_finit_module, NEVER},
    {SYS_delete_module, NEVER},
    {SYS_kexec_load, NEVER},
#ifdef SYS_kexec_file_load
    {SYS_kexec_file_load, NEVER},
#endif
    {SYS_reboot, NEVER},
    {SYS_swapon, NEVER},
    {SYS_swapoff, NEVER},
    {SYS_acct, NEVER},
    {SYS_quotactl, NEVER},
    {SYS_syslog, NEVER},
    {SYS_sethostname, NEVER},
    {SYS_setdomainname, NEVER},
    {SYS_settimeofday, NEVER},
    {SYS_clock_settime, NEVER},
    {SYS_clock_adjtime, NEVER},
    {SYS_adjtimex, NEVER},
#ifdef SYS_iopl
    {SYS_iopl, NEVER},
    {SYS_ioperm, NEVER},
    {SYS_modify_ldt, NEVER},
#endif
};

#define RULES   (sizeof rules / sizeof rules[0])
#define LONGEST (8 + 5 * RULES)

typedef struct filter {
    struct sock_filter code[LONGEST];
    unsigned short length;
} filter;

static void emit(filter *f, unsigned code, unsigned value, unsigned if_true, unsigned if_false)
{
    f->code[f->length++] = (struct sock_filter){
        .code = (unsigned short)code, .jt = (unsigned char)if_true, .jf = (unsigned char)if_false, .k = value};
}

static void load(filter *f, size_t offset) { emit(f, BPF_LD | BPF_W | BPF_ABS, (unsigned)offset, 0, 0); }
static void give(filter *f, unsigned verdict) { emit(f, BPF_RET | BPF_K, verdict, 0, 0); }

#define REFUSE (SECCOMP_RET_ERRNO | EPERM)

/* What is looked at in a call: jumps over what lets it through unless the lower half of the argument passes. The kernel
 * reads no more of a pid or of flags. */
static void look(filter *f, call_rule rule, unsigned own_pid)
{
    unsigned argument = rule == READS_ONLY_1 ? 1 : rule == READS_ONLY_2 ? 2 : 0;
    load(f, offsetof(struct seccomp_data, args) + argument * sizeof(uint64_t));
    if (rule == OURS)
        emit(f, BPF_JMP | BPF_JEQ | BPF_K, own_pid, 0, 1);
    else if (rule == THREADS_ONLY)
        emit(f, BPF_JMP | BPF_JSET | BPF_K, CLONE_THREAD, 0, 1);
    else
        emit(f, BPF_JMP | BPF_JSET | BPF_K, O_ACCMODE | O_CREAT | O_TRUNC, 1, 0);
}

/* Where the number, which is loaded, is that of the rule: the verdict. */
static void add_rule(filter *f, unsigned number, call_rule rule, unsigned own_pid)
{
    bool looks = rule != NEVER && rule != ABSENT;
    emit(f, BPF_JMP | BPF_JEQ | BPF_K, number, 0, looks ? 4 : 1);
    if (!looks) {
        give(f, rule == ABSENT ? SECCOMP_RET_ERRNO | ENOSYS : REFUSE);
        return;
    }
    look(f, rule, own_pid);
    give(f, SECCOMP_RET_ALLOW);
    give(f, REFUSE);
}

static void make_filter(filter *f)
{
    f->length = 0;
    load(f, offsetof(struct seccomp_data, arch));
    emit(f, BPF_JMP | BPF_JEQ | BPF_K, FILTER_ARCH, 1, 0);
    give(f, REFUSE); /* 32-bit calls have numbers of their own */
    load(f, offsetof(struct seccomp_data, nr));
#ifdef X32_BIT
    emit(f, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
    give(f, REFUSE);
#endif
    for (size_t i = 0; i < RULES; i++)
        add_rule(f, rules[i].number, rules[i].rule, (unsigned)getpid());
    give(f, SECCOMP_RET_ALLOW);
}

dpi_status sandbox_deny_calls(dpi_error *error)
{
    filter f;
    make_filter(&f);
    struct sock_fprog program = {.len = f.length, .filter = f.code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "no_new_privs cannot be set");
    long result = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
    if (result < 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "this kernel takes no seccomp filter");
    if (result > 0)
        return error_set(error, DPI_E_SYSTEM, "thread %ld has a seccomp filter of its own", result);
    return DPI_OK;
}

#else

dpi_status sandbox_deny_calls(dpi_error *error)
{
    return error_set(error, DPI_E_SYSTEM, "there is no seccomp filter for this processor yet");
}

#endif
