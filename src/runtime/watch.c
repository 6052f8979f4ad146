#include "runtime/watch.h"

#include "base/clock.h"
#include "base/text.h"
#include "ipc/child.h"
#include "ipc/claim.h"

#include "dpi_build.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CONTROL_LINK "/memfd:dpinfer-control"
#define MEMFD_LINK   "/memfd:dpinfer-"

/* One of a process's shared memories, mapped. */
typedef struct view {
    const void *at;
    size_t bytes;
    uint64_t inode;
} view;

/* Copies at most size - 1 characters of a text that may lack its end, without what would steer a terminal. */
static void copy_text(char *to, const char *from, size_t size)
{
    size_t i = 0;
    for (; i + 1 < size && from[i]; i++)
        to[i] = iscntrl((unsigned char)from[i]) ? '?' : from[i];
    to[i] = 0;
}

/* Maps the first `bytes` of descriptor `name` of a process; false when it is not what is looked for, by `inode` (0:
 * any), or could be cut under our eyes. */
static bool map_fd(int folder, const char *name, uint64_t inode, size_t bytes, view *v)
{
    struct stat info;
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    int seals = fcntl(fd, F_GET_SEALS);
    bool good = fstat(fd, &info) == 0 && seals >= 0 && (seals & F_SEAL_SHRINK) && (uint64_t)info.st_size >= bytes &&
                (!inode || info.st_ino == inode);
    void *at = good ? mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    close(fd);
    if (at == MAP_FAILED)
        return false;
    *v = (view){.at = at, .bytes = bytes, .inode = info.st_ino};
    return true;
}

static void unmap(view *v)
{
    if (v->at)
        munmap((void *)(uintptr_t)v->at, v->bytes);
    *v = (view){0};
}

/* The descriptor of a process whose memfd has this inode, mapped. */
static bool map_inode(int folder, uint64_t inode, size_t bytes, view *v)
{
    bool found = false;
    int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
    for (struct dirent *e; d && !found && (e = readdir(d));) {
        char link[64];
        struct stat info;
        ssize_t length = readlinkat(folder, e->d_name, link, sizeof link);
        if (length < (ssize_t)strlen(MEMFD_LINK) || memcmp(link, MEMFD_LINK, strlen(MEMFD_LINK)) != 0 ||
            fstatat(folder, e->d_name, &info, 0) != 0 || info.st_ino != inode)
            continue;
        found = map_fd(folder, e->d_name, inode, bytes, v);
    }
    if (d)
        closedir(d);
    else if (copy >= 0)
        close(copy);
    return found;
}

/* ---- one session ------------------------------------------------------------------------------------------------ */

static double seconds_of(const _Atomic uint64_t *ns)
{
    return (double)atomic_load_explicit(ns, memory_order_relaxed) * 1e-9;
}

static void look_at_page(const worker_page *page, int64_t now_ns, watched_device *d)
{
    int64_t since = atomic_load_explicit(&page->busy_since_ns, memory_order_relaxed);
    d->stage = atomic_load_explicit(&page->stage, memory_order_relaxed);
    d->rows = atomic_load_explicit(&page->rows, memory_order_relaxed);
    d->slices = atomic_load_explicit(&page->slices, memory_order_relaxed);
    d->busy = since > 0;
    d->busy_s = seconds_of(&page->load_ns) + seconds_of(&page->copy_in_ns) + seconds_of(&page->compute_ns) +
                seconds_of(&page->copy_out_ns);
    if (since > 0 && since < now_ns)
        d->busy_s += (double)(now_ns - since) * 1e-9;
}

/* Counts the words of the batches in flight. */
static void look_at_claims(const control *c, const unsigned char *outputs, watched_session *s)
{
    uint64_t active = atomic_load_explicit(&c->active, memory_order_relaxed);
    for (uint32_t slot = 0; slot < LAYOUT_SLOTS; slot++) {
        const batch_desc *b = &c->batches[slot];
        const claims *words = (const claims *)(const void *)(outputs + slot * sizeof(claims));
        uint32_t sequence = atomic_load_explicit(&b->sequence, memory_order_relaxed);
        uint32_t count = atomic_load_explicit(&b->slice_count, memory_order_relaxed);
        if (!(active >> slot & 1) || !sequence)
            continue;
        for (uint32_t i = 0; i < count && i < LAYOUT_SLICES; i++) {
            claim now = claim_load(&words->word[i]);
            if (now.sequence != sequence)
                continue;
            if (now.state == CLAIM_FREE || (now.state == CLAIM_CLAIMED && now.worker >= s->device_count))
                s->queued++;
            else if (now.state == CLAIM_CLAIMED)
                s->devices[now.worker].queued++;
            else if (now.state == CLAIM_RUNNING && now.worker < s->device_count)
                s->devices[now.worker].running++;
        }
    }
}

static void look_at_board(int folder, const control *c, watched_session *s)
{
    const board *b = &c->board;
    int64_t now_ns = clock_now_ns();
    uint32_t count = atomic_load_explicit(&b->worker_count, memory_order_acquire);
    uint64_t rows = 0;
    s->now_s = (double)now_ns * 1e-9;
    s->open_s = (double)(now_ns - b->opened_ns) * 1e-9;
    copy_text(s->model, b->model, sizeof s->model);
    s->device_count = count < LAYOUT_WORKERS ? count : LAYOUT_WORKERS;
    for (size_t w = 0; w < s->device_count; w++) {
        const board_worker *from = &b->workers[w];
        watched_device *to = &s->devices[w];
        uint64_t inode = atomic_load_explicit(&from->page_inode, memory_order_acquire);
        view page = {0};
        if (!inode)
            continue;
        copy_text(to->name, from->device, sizeof to->name);
        to->starts = atomic_load_explicit(&from->starts, memory_order_relaxed);
        to->in_use = atomic_load_explicit(&from->in_use, memory_order_relaxed);
        if (map_inode(folder, inode, PAGE_BYTES, &page))
            look_at_page(page.at, now_ns, to);
        unmap(&page);
        rows += to->rows;
    }
    view outputs = {0};
    if (map_inode(folder, b->outputs_inode, LAYOUT_CLAIMS_BYTES, &outputs))
        look_at_claims(c, outputs.at, s);
    unmap(&outputs);
    s->run_rows = atomic_load_explicit(&b->run_rows, memory_order_relaxed);
    uint64_t base = atomic_load_explicit(&b->run_base, memory_order_relaxed);
    s->run_done = rows - base < s->run_rows ? rows - base : s->run_rows;
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

typedef struct search {
    watched_session *list;
    size_t count, capacity;
    bool out_of_memory;
} search;

static watched_session *add_session(search *all)
{
    if (all->count == all->capacity) {
        size_t capacity = all->capacity ? 2 * all->capacity : 4;
        watched_session *more = reallocarray(all->list, capacity, sizeof *more);
        if (!more) {
            all->out_of_memory = true;
            return NULL;
        }
        all->list = more;
        all->capacity = capacity;
    }
    watched_session *s = &all->list[all->count++];
    memset(s, 0, sizeof *s);
    return s;
}

/* The session whose control memory this descriptor is, if `pid` is its caller: workers have one too. */
static void take_control(search *all, pid_t pid, int folder, const char *name)
{
    view v = {0};
    if (!map_fd(folder, name, 0, offsetof(control, build_id) + sizeof(uint64_t), &v))
        return;
    const control *c = v.at;
    bool ours = c->magic == LAYOUT_MAGIC && c->version == LAYOUT_VERSION && c->build_id == DPI_BUILD_ID;
    bool other_build = c->magic == LAYOUT_MAGIC && !ours;
    uint64_t inode = v.inode;
    unmap(&v);
    bool known = false; /* the caller has two descriptors of it */
    for (size_t i = 0; i < all->count; i++)
        known |= all->list[i].pid == pid && all->list[i].inode == inode;
    if (known || (!ours && !other_build))
        return;
    if (ours && !map_fd(folder, name, inode, sizeof(control), &v))
        return;
    c = v.at;
    /* Of another version it is not known who the caller is; by their name workers are not. */
    watched_session *s =
        (other_build ? !child_is_worker(pid) : c->board.pid == (uint32_t)pid) ? add_session(all) : NULL;
    if (s) {
        s->pid = pid;
        s->inode = inode;
        s->other_build = other_build;
        if (ours)
            look_at_board(folder, c, s);
    }
    unmap(&v);
}

static void look_at_process(search *all, pid_t pid)
{
    char path[64];
    struct stat info;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *d = stat(path, &info) == 0 && info.st_uid == geteuid() ? opendir(path) : NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        char link[64];
        ssize_t length = readlinkat(dirfd(d), e->d_name, link, sizeof link);
        if (length >= (ssize_t)strlen(CONTROL_LINK) && memcmp(link, CONTROL_LINK, strlen(CONTROL_LINK)) == 0)
            take_control(all, pid, dirfd(d), e->d_name);
    }
    if (d)
        closedir(d);
}

static int by_pid(const void *a, const void *b)
{
    const watched_session *x = a, *y = b;
    return x->pid != y->pid ? (x->pid > y->pid) - (x->pid < y->pid) : (x->inode > y->inode) - (x->inode < y->inode);
}

dpi_status watch_sessions(pid_t only, watched_session **list, size_t *count, dpi_error *error)
{
    search all = {0};
    *list = NULL;
    *count = 0;
    DIR *d = opendir("/proc");
    if (!d)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot look at processes in /proc");
    for (struct dirent *e; (e = readdir(d));) {
        uint64_t pid;
        if (text_to_u64(e->d_name, 1, INT32_MAX, &pid) && (!only || (pid_t)pid == only))
            look_at_process(&all, (pid_t)pid);
    }
    closedir(d);
    if (all.out_of_memory) {
        free(all.list);
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    if (all.count)
        qsort(all.list, all.count, sizeof *all.list, by_pid);
    *list = all.list;
    *count = all.count;
    return DPI_OK;
}
