#include "backend/sim_faults.h"

#include "base/hash.h"
#include "ipc/layout.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SPOILT_WORDS 64 /* of each batch slot */
#define RAGE_BYTES   (1u << 20)
#define RAGE_TURNS   10
#define RAGE_US      100000

/* A plan is checked by what has been told of it. */
static void tell(const char *what, uint64_t slice)
{
    fprintf(stderr, "sim: %s at slice %llu as planned\n", what, (unsigned long long)slice);
}

static void tell_stage(const char *what, const char *when) { fprintf(stderr, "sim: %s %s as planned\n", what, when); }

static void die(const sim_model *m) { raise(m->signal ? (int)m->signal : SIGKILL); }

static void hang(void)
{
    for (;;)
        pause();
}

/* What a worker gone mad could do: it may write to the claims and to its page. */
static void spoil_memory(uint64_t seed)
{
    size_t bytes = LAYOUT_CLAIMS_BYTES;
    unsigned char *all = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, WORKER_FD_OUTPUTS, 0);
    worker_page *page = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, WORKER_FD_PAGE, 0);
    if (all == MAP_FAILED || (void *)page == MAP_FAILED)
        return;
    for (uint64_t slot = 0; slot < LAYOUT_SLOTS; slot++) {
        claims *c = (claims *)(void *)(all + slot * sizeof(claims));
        for (uint64_t i = 0; i < SPOILT_WORDS; i++)
            atomic_store(&c->word[i], hash_mix64(seed, slot * SPOILT_WORDS + i));
    }
    memset(page->samples, 0xA5, sizeof page->samples);
    atomic_store(&page->slices, hash_mix64(seed, 1));
    atomic_store(&page->sample_count, hash_mix64(seed, 2));
    munmap(all, bytes);
    munmap(page, PAGE_BYTES);
}

/* Garbage over a part of a memory, by all ways that lead there. */
static void rage_in(int fd, uint64_t at, size_t bytes, uint64_t seed)
{
    unsigned char garbage[4096];
    for (size_t i = 0; i < sizeof garbage; i++)
        garbage[i] = (unsigned char)hash_mix64(seed, i);
    struct stat info;
    if (fstat(fd, &info) != 0 || (uint64_t)info.st_size < at + bytes)
        return;
    unsigned char *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)at);
    for (size_t done = 0; done + sizeof garbage <= bytes; done += sizeof garbage) {
        if ((void *)mapped != MAP_FAILED)
            memcpy(mapped + done, garbage, sizeof garbage);
        if (pwrite(fd, garbage, sizeof garbage, (off_t)(at + done)) < 0)
            fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(at + done), sizeof garbage);
    }
    if ((void *)mapped != MAP_FAILED)
        munmap(mapped, bytes);
}

static void rage_at(int fd, uint64_t seed, bool claims_too)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const int both[] = {fd, open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK)};
    for (int i = 0; i < 2 && both[i] >= 0; i++) {
        struct stat info;
        rage_in(both[i], LAYOUT_CLAIMS_BYTES, RAGE_BYTES, seed); /* rows, where it has some */
        if (!claims_too || fstat(both[i], &info) != 0)
            continue;
        if (info.st_size <= RAGE_BYTES) /* its page */
            rage_in(both[i], 0, (size_t)info.st_size / 4096 * 4096, seed);
        for (uint64_t slot = 0; slot < 4; slot++)
            rage_in(both[i], slot * sizeof(claims) / 4096 * 4096, 4096, seed);
        /* Cut, made larger, never to be made larger again, never to be written again. */
        bool any = ftruncate(both[i], 0) == 0;
        any |= ftruncate(both[i], info.st_size + RAGE_BYTES) == 0;
        any |= fcntl(both[i], F_ADD_SEALS, F_SEAL_GROW | F_SEAL_WRITE) == 0;
        any |= fcntl(both[i], F_ADD_SEALS, F_SEAL_GROW) == 0;
        if (any)
            fprintf(stderr, "sim: descriptor %d was not refused\n", fd);
    }
    if (both[1] >= 0)
        close(both[1]);
}

/* What a worker gone mad could do at worst. Rows first, for a while: others may deliver theirs meanwhile. */
static void rage(uint64_t seed)
{
    for (int turn = 0; turn <= RAGE_TURNS; turn++) {
        for (int fd = WORKER_FD_CONTROL; fd < WORKER_FD_EVENT; fd++)
            rage_at(fd, seed, turn == RAGE_TURNS);
        usleep(RAGE_US / RAGE_TURNS);
    }
}

static void babble(void)
{
    static const char garbage[] = "{\"what\": this is no JSON";
    if (write(WORKER_FD_SOCKET, garbage, sizeof garbage) < 0)
        fprintf(stderr, "sim: nobody listens\n");
}

static bool runs_a_program(void)
{
    char *const argv[] = {NULL};
    return execve("/none", argv, argv) != 0 && errno != EPERM;
}

static bool makes_a_process(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    return pid > 0 && waitpid(pid, NULL, 0) == pid;
}

static bool closes(int fd) { return fd >= 0 && close(fd) == 0; }

/* Tries what a worker has no need of; none of it does any harm. */
static dpi_status escape(dpi_error *error)
{
    const bool program = runs_a_program(), process = makes_a_process(),
               connection = closes(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), other = kill(getppid(), 0) == 0,
               file = closes(open("/tmp", O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
    if (!program && !process && !connection && !other && !file)
        return DPI_OK;
    return error_set(error, DPI_E_ENGINE, "sim was not refused:%s%s%s%s%s", program ? " a program" : "",
                     process ? " a process" : "", connection ? " a socket" : "", other ? " a signal" : "",
                     file ? " a file" : "");
}

static bool is_poisoned(const sim_model *m, const backend_call *call)
{
    size_t elements = 0;
    dpi_dtype dtype = m->sig.inputs[0].dtype;
    if (!m->has_poison || !shape_elements(call->inputs[0].shape, 1, call->inputs[0].rank, &elements) || !elements)
        return false;
    for (size_t row = 0; row < call->rows; row++) {
        double first = dtype_get(dtype, call->inputs[0].data, row * elements);
        if (first >= m->poison && first <= m->poison)
            return true;
    }
    return false;
}

static dpi_status poison(const sim_model *m, uint64_t slice, dpi_error *error)
{
    tell("poisoned", slice);
    if (m->poison_how == SIM_POISON_FAIL)
        return error_set(error, DPI_E_ENGINE, "sim refuses a row, as planned");
    if (m->poison_how == SIM_POISON_HANG)
        hang();
    die(m);
    return DPI_OK;
}

/* As the adapters of real libraries do when an output is not as large as its memory. */
static dpi_status wrong_size(const sim_model *m, const backend_call *call, dpi_error *error)
{
    char got[SHAPE_TEXT_SIZE], want[SHAPE_TEXT_SIZE];
    backend_array wrong = call->outputs[0];
    shape_text(wrong.shape, wrong.rank, want);
    wrong.shape[0]++;
    return error_set(error, DPI_E_ENGINE, "the output %s has the shape %s, not %s, as planned", m->sig.outputs[0].name,
                     shape_text(wrong.shape, wrong.rank, got), want);
}

static dpi_status fail(const sim_model *m, const backend_call *call, uint64_t slice, dpi_error *error)
{
    if (m->no_memory_at_slice == slice) {
        tell("out of memory", slice);
        return error_set(error, DPI_E_SYSTEM, "sim is out of memory at its slice %llu as planned",
                         (unsigned long long)slice);
    }
    if (m->wrong_size_at_slice == slice) {
        tell("a wrong size", slice);
        return wrong_size(m, call, error);
    }
    if (m->fail_at_slice == slice) {
        tell("failing", slice);
        return error_set(error, DPI_E_ENGINE, "sim failed at its slice %llu as planned", (unsigned long long)slice);
    }
    return DPI_OK;
}

dpi_status sim_strike(const sim_model *m, const backend_call *call, uint64_t slice, dpi_error *error)
{
    if (!slice)
        return sim_strike_stage(m, SIM_PROBING, error);
    if (is_poisoned(m, call))
        return poison(m, slice, error);
    if (m->die_at_slice == slice && !m->die_at_step) {
        tell("dying", slice);
        die(m);
    }
    if (m->exit_at_slice == slice) {
        tell("leaving", slice);
        _exit(7);
    }
    if (m->hang_at_slice == slice) {
        tell("hanging", slice);
        hang();
    }
    if (m->spoil_at_slice == slice) {
        tell("spoiling memory", slice);
        spoil_memory(slice);
    }
    if (m->rage_at_slice == slice) {
        tell("raging: spoiling memory", slice);
        rage(slice);
    }
    if (m->babble_at_slice == slice) {
        tell("babbling", slice);
        babble();
    }
    if (m->slow_at_slice == slice)
        tell("slow", slice);
    dpi_status status = fail(m, call, slice, error);
    return status || m->escape_at_slice != slice ? status : escape(error);
}

dpi_status sim_strike_stage(const sim_model *m, sim_stage stage, dpi_error *error)
{
    static const char *const when[] = {"while compiling", "while probed", "when ready", "while leaving"};
    const bool dies[] = {m->die_compile, m->die_probe, m->die_ready, m->die_shutdown};
    const bool hangs[] = {m->hang_compile, m->hang_probe, m->hang_ready, m->hang_shutdown};
    if (dies[stage]) {
        tell_stage("dying", when[stage]);
        die(m);
    }
    if (hangs[stage]) {
        tell_stage("hanging", when[stage]);
        hang();
    }
    if (stage != SIM_COMPILING || !m->fail_compile)
        return DPI_OK;
    tell_stage("failing", when[stage]);
    return error_set(error, DPI_E_MODEL, "sim cannot compile the model, as planned");
}

void sim_die_at_step(const sim_model *m, uint64_t claimed, backend_step step)
{
    if (!m->die_at_slice || claimed < m->die_at_slice || m->die_at_step != (uint64_t)step)
        return;
    fprintf(stderr, "sim: dying at step %d of slice %llu as planned\n", (int)step, (unsigned long long)claimed);
    die(m);
}

double sim_slowness_us(const sim_model *m, uint64_t slice)
{
    return m->slow_at_slice && slice >= m->slow_at_slice ? m->slow_us : 0;
}

void sim_without_faults(sim_model *m)
{
    m->die_at_slice = m->exit_at_slice = m->hang_at_slice = m->fail_at_slice = m->spoil_at_slice = m->rage_at_slice =
        m->babble_at_slice = m->escape_at_slice = m->die_at_step = m->no_memory_at_slice = m->wrong_size_at_slice =
            m->slow_at_slice = 0;
    m->has_poison = m->hang_compile = m->die_compile = m->fail_compile = m->hang_probe = m->die_probe = m->hang_ready =
        m->die_ready = m->hang_shutdown = m->die_shutdown = false;
}
