/*
 * Entries: KEY.engine, a header of 4,096 bytes (magic, sizes, checksum, label), then the engine. Beside them KEY.hash
 * (content hashes of model files), KEY.lock (single-flight; held by flock) and, where a file system has no nameless
 * files, .new-* (an engine being written, held by flock as long as its writer lives).
 */
#include "runtime/cache.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define ENTRY_MAGIC       "dpinfer engine 1"
#define ENTRY_HEADER      4096
#define ENTRY_SUFFIX      ".engine"
#define TEMPORARY_PREFIX  ".new-"
#define KEPT_S            (30 * 86400) /* content hashes and locks that are older go: they are made anew when needed */
#define WAITING_PERIOD_NS 1000000000

typedef struct entry_header {
    char magic[16];
    uint64_t bytes;
    hash128 checksum; /* of the engine */
    char label[256];
} entry_header;

struct cache {
    char *folder;
    uint64_t max_bytes;
    const logger *log;
};

struct cache_write {
    cache *c;
    hash128 key;
    int fd;
    char *temporary; /* its path; NULL for a nameless file */
};

/* ---- the folder ------------------------------------------------------------------------------------------------- */

static char *default_folder(void)
{
    const char *own = getenv("DPINFER_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (own && *own)
        return strdup(own);
    if (xdg && *xdg == '/')
        return text_format("%s/dpinfer", xdg);
    return home && *home == '/' ? text_format("%s/.cache/dpinfer", home) : NULL;
}

static dpi_status check_folder(const char *folder, dpi_error *error)
{
    struct stat info;
    if (stat(folder, &info) != 0)
        return error_set_errno(error, DPI_E_IO, errno, "cannot use the cache folder %s", folder);
    if (!S_ISDIR(info.st_mode))
        return error_set(error, DPI_E_IO, "the cache folder %s is not a folder; name another in DPINFER_CACHE", folder);
    if (info.st_uid != geteuid())
        return error_set(error, DPI_E_IO,
                         "the cache folder %s belongs to another user; engines are code: name "
                         "a folder of your own in DPINFER_CACHE",
                         folder);
    if (info.st_mode & 022)
        return error_set(error, DPI_E_IO, "others may write to the cache folder %s; engines are code: chmod 700 %s",
                         folder, folder);
    if (access(folder, W_OK | X_OK) != 0)
        return error_set_errno(error, DPI_E_IO, errno,
                               "cannot write to the cache folder %s (DPINFER_CACHE names another)", folder);
    return DPI_OK;
}

static void sweep(const cache *c, time_t max_age_s);

dpi_status cache_open(const char *folder, uint64_t max_bytes, const logger *log, cache **out, dpi_error *error)
{
    *out = NULL;
    cache *c = calloc(1, sizeof *c);
    if (!c)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    c->folder = folder && *folder ? strdup(folder) : default_folder();
    c->max_bytes = max_bytes ? max_bytes : 10ull << 30;
    c->log = log;
    dpi_status status =
        c->folder ? file_make_folders(c->folder, error)
                  : error_set(error, DPI_E_IO, "there is no cache folder: HOME is not set; set DPINFER_CACHE");
    if (!status)
        status = check_folder(c->folder, error);
    if (status) {
        cache_close(c);
        return status;
    }
    sweep(c, KEPT_S);
    *out = c;
    return DPI_OK;
}

void cache_close(cache *c)
{
    if (!c)
        return;
    free(c->folder);
    free(c);
}

const char *cache_folder(const cache *c) { return c->folder; }

static bool entry_path(const cache *c, hash128 key, const char *suffix, char path[PATH_MAX])
{
    char hex[HASH_HEX_SIZE];
    hash_to_hex(key, hex);
    return (size_t)snprintf(path, PATH_MAX, "%s/%s%s", c->folder, hex, suffix) < PATH_MAX;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* By read, not by mmap: a disk that fails is an error, not a SIGBUS. */
static dpi_status hash_contents(int fd, const char *name, uint64_t from, uint64_t bytes, hash128 *hash,
                                dpi_error *error)
{
    const size_t chunk = 1 << 20;
    char *buffer = malloc(chunk);
    hash_state *state = hash_new();
    dpi_status status = buffer && state ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    for (uint64_t at = 0; !status && at < bytes;) {
        size_t n = bytes - at < chunk ? (size_t)(bytes - at) : chunk;
        status = file_read_at(fd, buffer, n, from + at, name, error);
        if (!status)
            hash_add(state, buffer, n);
        at += n;
    }
    free(buffer);
    *hash = hash_end(state);
    return status;
}

static bool entry_is_whole(int fd, entry_header *h)
{
    struct stat info;
    hash128 sum;
    return pread(fd, h, sizeof *h, 0) == (ssize_t)sizeof *h && memcmp(h->magic, ENTRY_MAGIC, sizeof h->magic) == 0 &&
           fstat(fd, &info) == 0 && info.st_uid == geteuid() && h->bytes > 0 && h->bytes < 1ull << 40 &&
           (uint64_t)info.st_size == ENTRY_HEADER + h->bytes &&
           hash_contents(fd, "the cached engine", ENTRY_HEADER, h->bytes, &sum, NULL) == DPI_OK &&
           sum.low == h->checksum.low && sum.high == h->checksum.high;
}

int cache_get(cache *c, hash128 key, uint64_t *bytes)
{
    char path[PATH_MAX];
    entry_header h;
    if (!entry_path(c, key, ENTRY_SUFFIX, path))
        return -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return -1;
    if (!entry_is_whole(fd, &h) || lseek(fd, ENTRY_HEADER, SEEK_SET) != ENTRY_HEADER) {
        log_warning(c->log, "the cached engine %s is damaged and was removed", path);
        unlink(path);
        close(fd);
        return -1;
    }
    futimens(fd, NULL); /* used now: what was used longest ago goes first */
    *bytes = h.bytes;
    return fd;
}

/* ---- publishing ------------------------------------------------------------------------------------------------- */

/* A file with a name, for file systems without nameless ones. Held by flock while it is written: sweep removes those
 * that nobody holds. */
static int open_temporary(const cache *c, char **path)
{
    for (int i = 0; i < 100; i++) {
        struct stat info;
        *path = text_format("%s/%s%ld-%lld", c->folder, TEMPORARY_PREFIX, (long)getpid(), (long long)clock_now_ns());
        int fd = *path ? open(*path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
        /* A sweep may have come between: then it is gone, or held. */
        if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &info) == 0 && info.st_nlink > 0)
            return fd;
        int number = errno;
        bool again = fd >= 0 || number == EEXIST;
        if (fd >= 0) {
            unlink(*path);
            close(fd);
        }
        free(*path);
        *path = NULL;
        errno = number;
        if (!again)
            break;
    }
    return -1;
}

dpi_status cache_begin(cache *c, hash128 key, cache_write **out, int *fd, dpi_error *error)
{
    *out = NULL;
    cache_write *w = calloc(1, sizeof *w);
    if (!w)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    w->c = c;
    w->key = key;
    /* A nameless file: whatever happens before linkat, nothing is left. */
    w->fd = open(c->folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (w->fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR || errno == EINVAL || errno == ENOENT))
        w->fd = open_temporary(c, &w->temporary);
    if (w->fd < 0 || ftruncate(w->fd, ENTRY_HEADER) != 0 || lseek(w->fd, ENTRY_HEADER, SEEK_SET) != ENTRY_HEADER) {
        dpi_status status = error_set_errno(error, DPI_E_IO, errno, "cannot write to the cache folder %s", c->folder);
        cache_abort(w);
        return status;
    }
    *out = w;
    *fd = w->fd;
    return DPI_OK;
}

void cache_abort(cache_write *w)
{
    if (w->temporary)
        unlink(w->temporary);
    free(w->temporary);
    if (w->fd >= 0)
        close(w->fd);
    free(w);
}

/* One line of printable text. */
static void clean_label(char out[256], const char *label)
{
    size_t i = 0;
    for (; label[i] && i < 255; i++)
        out[i] = (unsigned char)label[i] < ' ' || label[i] == 127 ? '?' : label[i];
    memset(out + i, 0, 256 - i);
}

static dpi_status make_room(cache *c, hash128 newest, dpi_error *error);

static dpi_status publish(cache_write *w, dpi_error *error)
{
    char path[PATH_MAX], self[64];
    if (!entry_path(w->c, w->key, ENTRY_SUFFIX, path))
        return error_set(error, DPI_E_IO, "the path of the cache folder %s is too long", w->c->folder);
    snprintf(self, sizeof self, "/proc/self/fd/%d", w->fd);
    if (linkat(AT_FDCWD, w->temporary ? w->temporary : self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) == 0 || errno == EEXIST)
        return DPI_OK;
    /* A file system without hard links: rename would replace an equal entry, which is as good. */
    if (w->temporary && rename(w->temporary, path) == 0)
        return DPI_OK;
    return error_set_errno(error, DPI_E_IO, errno, "cannot publish %s", path);
}

dpi_status cache_commit(cache_write *w, const char *label, dpi_error *error)
{
    entry_header h = {.magic = ENTRY_MAGIC};
    _Static_assert(sizeof ENTRY_MAGIC - 1 == sizeof h.magic, "magic");
    struct stat info;
    dpi_status status = DPI_OK;
    clean_label(h.label, label);
    if (fstat(w->fd, &info) != 0 || info.st_size <= ENTRY_HEADER)
        status = error_set(error, DPI_E_IO, "the engine to cache is empty");
    else {
        h.bytes = (uint64_t)info.st_size - ENTRY_HEADER;
        status = hash_contents(w->fd, "the engine to cache", ENTRY_HEADER, h.bytes, &h.checksum, error);
    }
    if (!status)
        status = file_write_at(w->fd, &h, sizeof h, 0, "the engine cache", error);
    if (!status && fsync(w->fd) != 0)
        status = error_set_errno(error, DPI_E_IO, errno, "cannot write the engine to disk");
    if (!status)
        status = publish(w, error);
    if (!status)
        status = make_room(w->c, w->key, error);
    cache_abort(w);
    return status;
}

/* ---- single-flight ---------------------------------------------------------------------------------------------- */

static int64_t owner_of(int fd)
{
    char text[32] = "";
    uint64_t pid = 0;
    if (pread(fd, text, sizeof text - 1, 0) > 0)
        text_to_u64(text, 0, INT32_MAX, &pid);
    return (int64_t)pid;
}

/* The lock's file, held; -2 when another holds it (its pid in *owner); -1 on failure. */
static int try_lock(const char *path, int64_t *owner)
{
    struct stat ours, theirs;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -1;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int result = errno == EWOULDBLOCK || errno == EINTR ? -2 : -1;
        *owner = owner_of(fd);
        close(fd);
        return result;
    }
    /* A sweep may have removed the file between open and flock: then this lock keeps nobody out. */
    if (fstat(fd, &ours) == 0 && stat(path, &theirs) == 0 && ours.st_ino == theirs.st_ino)
        return fd;
    close(fd);
    *owner = 0;
    return -2;
}

int cache_lock(cache *c, hash128 key, void (*waiting)(void *context, int64_t pid), void *context)
{
    char path[PATH_MAX], owner[32];
    if (!entry_path(c, key, ".lock", path))
        return -1;
    int64_t pid = 0, next_call_ns = 0;
    int fd;
    while ((fd = try_lock(path, &pid)) == -2) {
        if (waiting && clock_now_ns() >= next_call_ns) {
            waiting(context, pid);
            next_call_ns = clock_now_ns() + WAITING_PERIOD_NS;
        }
        clock_sleep_until_ns(clock_now_ns() + WAITING_PERIOD_NS / 20);
    }
    if (fd < 0)
        return -1;
    int length = snprintf(owner, sizeof owner, "%ld", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, owner, (size_t)length, 0) != length)
        log_debug(c->log, "cannot note the owner of %s", path);
    return fd;
}

/* ---- listing and clearing --------------------------------------------------------------------------------------- */

static int newest_first(const void *a, const void *b)
{
    const cache_entry *x = a, *y = b;
    if (x->used_unix_s != y->used_unix_s)
        return x->used_unix_s < y->used_unix_s ? 1 : -1;
    return x->used_ns != y->used_ns ? (x->used_ns < y->used_ns ? 1 : -1) : strcmp(x->key, y->key);
}

static bool is_key_name(const char *name, const char *suffix)
{
    return strlen(name) == HASH_HEX_SIZE - 1 + strlen(suffix) &&
           strspn(name, "0123456789abcdef") == HASH_HEX_SIZE - 1 && strcmp(name + HASH_HEX_SIZE - 1, suffix) == 0;
}

static bool read_entry(int folder, const char *name, cache_entry *e)
{
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat info;
    entry_header h;
    bool there = fd >= 0 && fstat(fd, &info) == 0 && S_ISREG(info.st_mode);
    bool good =
        there && pread(fd, &h, sizeof h, 0) == (ssize_t)sizeof h && memcmp(h.magic, ENTRY_MAGIC, sizeof h.magic) == 0;
    if (fd >= 0)
        close(fd);
    if (!there)
        return false;
    *e = (cache_entry){
        .bytes = (uint64_t)info.st_size, .used_unix_s = info.st_mtim.tv_sec, .used_ns = (int32_t)info.st_mtim.tv_nsec};
    memcpy(e->key, name, HASH_HEX_SIZE - 1);
    h.label[sizeof h.label - 1] = 0;
    clean_label(e->label, good ? h.label : "(damaged)"); /* listed all the same: it takes room, and is to be cleared */
    return true;
}

dpi_status cache_list(cache *c, cache_entry **entries, size_t *count, dpi_error *error)
{
    *entries = NULL;
    *count = 0;
    DIR *folder = opendir(c->folder);
    if (!folder)
        return error_set_errno(error, DPI_E_IO, errno, "cannot read the cache folder %s", c->folder);
    size_t capacity = 0;
    dpi_status status = DPI_OK;
    for (struct dirent *d; !status && (d = readdir(folder));) {
        cache_entry e;
        if (!is_key_name(d->d_name, ENTRY_SUFFIX) || !read_entry(dirfd(folder), d->d_name, &e))
            continue;
        if (*count == capacity) {
            capacity = capacity ? capacity * 2 : 16;
            cache_entry *more = realloc(*entries, capacity * sizeof *more);
            if (!more) {
                status = error_set(error, DPI_E_SYSTEM, "out of memory");
                break;
            }
            *entries = more;
        }
        (*entries)[(*count)++] = e;
    }
    closedir(folder);
    if (status) {
        free(*entries);
        *entries = NULL;
        *count = 0;
    } else if (*count)
        qsort(*entries, *count, sizeof **entries, newest_first);
    return status;
}

static bool remove_entry(cache *c, const cache_entry *e)
{
    char path[PATH_MAX];
    return (size_t)snprintf(path, sizeof path, "%s/%s%s", c->folder, e->key, ENTRY_SUFFIX) < sizeof path &&
           unlink(path) == 0;
}

/* Drops what was used longest ago until the rest fits; the newest stays, however large. Readers keep what they have
 * open. */
static dpi_status make_room(cache *c, hash128 newest, dpi_error *error)
{
    cache_entry *entries;
    size_t count;
    char keep[HASH_HEX_SIZE];
    hash_to_hex(newest, keep);
    dpi_status status = cache_list(c, &entries, &count, error);
    uint64_t total = 0;
    for (size_t i = 0; !status && i < count; i++)
        total += strcmp(entries[i].key, keep) == 0 ? entries[i].bytes : 0;
    for (size_t i = 0; !status && i < count; i++) {
        if (strcmp(entries[i].key, keep) == 0)
            continue;
        total += entries[i].bytes;
        if (total > c->max_bytes && remove_entry(c, &entries[i]))
            total -= entries[i].bytes;
    }
    free(entries);
    return status;
}

/* Removes a file that nobody holds by flock. */
static void remove_unheld(int folder, const char *name)
{
    int fd = openat(folder, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
        unlinkat(folder, name, 0);
    if (fd >= 0)
        close(fd);
}

/* Removes what writers who were killed have left, and content hashes and unheld locks of at least this age. */
static void sweep(const cache *c, time_t max_age_s)
{
    DIR *folder = opendir(c->folder);
    struct stat info;
    time_t now = time(NULL);
    for (struct dirent *d; folder && (d = readdir(folder));) {
        bool temporary = strncmp(d->d_name, TEMPORARY_PREFIX, strlen(TEMPORARY_PREFIX)) == 0;
        bool lock = is_key_name(d->d_name, ".lock"), memo = is_key_name(d->d_name, ".hash");
        if (!temporary && !((lock || memo) && fstatat(dirfd(folder), d->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
                            now - info.st_mtim.tv_sec >= max_age_s))
            continue;
        if (memo)
            unlinkat(dirfd(folder), d->d_name, 0);
        else
            remove_unheld(dirfd(folder), d->d_name);
    }
    if (folder)
        closedir(folder);
}

void cache_remove(cache *c, hash128 key)
{
    char path[PATH_MAX];
    if (entry_path(c, key, ENTRY_SUFFIX, path))
        unlink(path);
}

dpi_status cache_clear(cache *c, uint64_t *removed_bytes, dpi_error *error)
{
    cache_entry *entries;
    size_t count;
    dpi_status status = cache_list(c, &entries, &count, error);
    uint64_t removed = 0;
    for (size_t i = 0; !status && i < count; i++)
        removed += remove_entry(c, &entries[i]) ? entries[i].bytes : 0;
    free(entries);
    sweep(c, 0);
    if (removed_bytes)
        *removed_bytes = removed;
    return status;
}

/* ---- content hashes --------------------------------------------------------------------------------------------- */

typedef struct hash_memo { /* file KEY.hash, KEY from device, inode, size, mtime, and ctime, which nobody can set back
                            */
    char magic[16];
    hash128 content;
} hash_memo;

static bool memo_path(cache *c, const struct stat *info, char path[PATH_MAX])
{
    hash_state *h = hash_new();
    hash_add_u64(h, info->st_dev);
    hash_add_u64(h, info->st_ino);
    hash_add_u64(h, (uint64_t)info->st_size);
    hash_add_u64(h, (uint64_t)info->st_mtim.tv_sec);
    hash_add_u64(h, (uint64_t)info->st_mtim.tv_nsec);
    hash_add_u64(h, (uint64_t)info->st_ctim.tv_sec);
    hash_add_u64(h, (uint64_t)info->st_ctim.tv_nsec);
    return entry_path(c, hash_end(h), ".hash", path);
}

static bool memo_read(const char *path, hash128 *content)
{
    hash_memo memo;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    bool good = fd >= 0 && read(fd, &memo, sizeof memo) == (ssize_t)sizeof memo &&
                memcmp(memo.magic, "dpinfer hash 1  ", 16) == 0;
    if (fd >= 0)
        close(fd);
    if (good)
        *content = memo.content;
    return good;
}

static void memo_write(const char *path, hash128 content)
{
    hash_memo memo = {.content = content};
    memcpy(memo.magic, "dpinfer hash 1  ", 16);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    if (write(fd, &memo, sizeof memo) != (ssize_t)sizeof memo)
        unlink(path);
    close(fd);
}

static bool same_time(struct timespec a, struct timespec b) { return a.tv_sec == b.tv_sec && a.tv_nsec == b.tv_nsec; }

dpi_status cache_hash_file(cache *c, const char *path, hash128 *hash, dpi_error *error)
{
    char memo[PATH_MAX];
    struct stat info, after;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &info) != 0) {
        if (fd >= 0)
            close(fd);
        return error_set_errno(error, DPI_E_MODEL, errno, "cannot open the model %s", path);
    }
    dpi_status status = DPI_OK;
    if (!S_ISREG(info.st_mode))
        status = error_set(error, DPI_E_MODEL, "the model %s is not a regular file", path);
    bool named = !status && c && memo_path(c, &info, memo);
    if (!status && !(named && memo_read(memo, hash))) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        status = hash_contents(fd, path, 0, (uint64_t)info.st_size, hash, error);
        /* A file written within the clock's grain could change again without a new time. */
        if (!status && named && now.tv_sec - info.st_mtim.tv_sec > 2 && now.tv_sec - info.st_ctim.tv_sec > 2 &&
            fstat(fd, &after) == 0 && after.st_size == info.st_size && same_time(after.st_mtim, info.st_mtim) &&
            same_time(after.st_ctim, info.st_ctim))
            memo_write(memo, *hash);
    }
    close(fd);
    return status;
}
