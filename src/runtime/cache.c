/* Entries: a header of 4,096 bytes (magic, sizes, checksum, label), then the engine. */
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

#define ENTRY_MAGIC "dpinfer engine 1"
#define ENTRY_HEADER 4096
#define ENTRY_SUFFIX ".engine"

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
        return error_set(error, DPI_E_IO, "the cache folder %s is not a folder", folder);
    if (info.st_uid != geteuid())
        return error_set(error, DPI_E_IO, "the cache folder %s belongs to another user; engines are code", folder);
    if (info.st_mode & 022)
        return error_set(error, DPI_E_IO, "others may write to the cache folder %s; engines are code: chmod 700 %s",
                         folder, folder);
    if (access(folder, W_OK | X_OK) != 0)
        return error_set_errno(error, DPI_E_IO, errno, "cannot write to the cache folder %s", folder);
    return DPI_OK;
}

dpi_status cache_open(const char *folder, uint64_t max_bytes, const logger *log, cache **out, dpi_error *error)
{
    *out = NULL;
    cache *c = calloc(1, sizeof *c);
    if (!c)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    c->folder = folder && *folder ? strdup(folder) : default_folder();
    c->max_bytes = max_bytes ? max_bytes : 10ull << 30;
    c->log = log;
    dpi_status status = c->folder ? file_make_folders(c->folder, error)
                                  : error_set(error, DPI_E_IO, "there is no cache folder: HOME is not set");
    if (!status)
        status = check_folder(c->folder, error);
    if (status) {
        cache_close(c);
        return status;
    }
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

static bool checksum_of(int fd, uint64_t bytes, hash128 *sum)
{
    void *map = mmap(NULL, ENTRY_HEADER + bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    if (map == MAP_FAILED)
        return false;
    *sum = hash_of((char *)map + ENTRY_HEADER, bytes);
    munmap(map, ENTRY_HEADER + bytes);
    return true;
}

static bool entry_is_whole(int fd, entry_header *h)
{
    struct stat info;
    hash128 sum;
    return pread(fd, h, sizeof *h, 0) == (ssize_t)sizeof *h && memcmp(h->magic, ENTRY_MAGIC, sizeof h->magic) == 0 &&
           fstat(fd, &info) == 0 && info.st_uid == geteuid() && h->bytes > 0 && h->bytes < 1ull << 40 &&
           (uint64_t)info.st_size == ENTRY_HEADER + h->bytes && checksum_of(fd, h->bytes, &sum) &&
           sum.low == h->checksum.low && sum.high == h->checksum.high;
}

int cache_get(cache *c, hash128 key, uint64_t *bytes)
{
    char path[PATH_MAX];
    entry_header h;
    if (!entry_path(c, key, ENTRY_SUFFIX, path))
        return -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
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

static dpi_status make_room(cache *c, dpi_error *error);

dpi_status cache_commit(cache_write *w, const char *label, dpi_error *error)
{
    entry_header h = {.magic = ENTRY_MAGIC};
    _Static_assert(sizeof ENTRY_MAGIC - 1 == sizeof h.magic, "magic");
    char path[PATH_MAX], self[64];
    struct stat info;
    dpi_status status = DPI_OK;
    clean_label(h.label, label);
    snprintf(self, sizeof self, "/proc/self/fd/%d", w->fd);
    if (fstat(w->fd, &info) != 0 || info.st_size <= ENTRY_HEADER)
        status = error_set(error, DPI_E_IO, "the engine to cache is empty");
    else {
        h.bytes = (uint64_t)info.st_size - ENTRY_HEADER;
        if (!checksum_of(w->fd, h.bytes, &h.checksum))
            status = error_set_errno(error, DPI_E_IO, errno, "cannot read back the engine to cache");
    }
    if (!status)
        status = file_write_at(w->fd, &h, sizeof h, 0, "the engine cache", error);
    if (!status && fsync(w->fd) != 0)
        status = error_set_errno(error, DPI_E_IO, errno, "cannot write the engine to disk");
    if (!status && entry_path(w->c, w->key, ENTRY_SUFFIX, path) &&
        linkat(AT_FDCWD, self, AT_FDCWD, path, AT_SYMLINK_FOLLOW) != 0 && errno != EEXIST)
        status = error_set_errno(error, DPI_E_IO, errno, "cannot publish %s", path);
    if (!status)
        status = make_room(w->c, error);
    cache_abort(w);
    return status;
}

int cache_lock(cache *c, hash128 key, void (*waiting)(void *context, int64_t pid), void *context)
{
    char path[PATH_MAX], owner[32] = "";
    if (!entry_path(c, key, ".lock", path))
        return -1;
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return -1;
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            close(fd);
            return -1;
        }
        uint64_t pid = 0;
        memset(owner, 0, sizeof owner);
        if (pread(fd, owner, sizeof owner - 1, 0) > 0)
            text_to_u64(owner, 0, INT32_MAX, &pid);
        if (waiting)
            waiting(context, (int64_t)pid);
        clock_sleep_until_ns(clock_now_ns() + 200000000);
    }
    int length = snprintf(owner, sizeof owner, "%ld", (long)getpid());
    if (ftruncate(fd, 0) != 0 || pwrite(fd, owner, (size_t)length, 0) != length)
        log_debug(c->log, "cannot note the owner of %s", path);
    return fd;
}

/* ---- listing and clearing --------------------------------------------------------------------------------------- */

static int newest_first(const void *a, const void *b)
{
    const cache_entry *x = a, *y = b;
    return x->used_unix_s < y->used_unix_s ? 1 : x->used_unix_s > y->used_unix_s ? -1 : strcmp(x->key, y->key);
}

static bool is_entry_name(const char *name)
{
    return strlen(name) == HASH_HEX_SIZE - 1 + strlen(ENTRY_SUFFIX) &&
           strspn(name, "0123456789abcdef") == HASH_HEX_SIZE - 1 && strcmp(name + HASH_HEX_SIZE - 1, ENTRY_SUFFIX) == 0;
}

static bool read_entry(int folder, const char *name, cache_entry *e)
{
    int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat info;
    entry_header h;
    bool good = fd >= 0 && fstat(fd, &info) == 0 && pread(fd, &h, sizeof h, 0) == (ssize_t)sizeof h;
    if (fd >= 0)
        close(fd);
    if (!good)
        return false;
    *e = (cache_entry){.bytes = (uint64_t)info.st_size, .used_unix_s = info.st_mtim.tv_sec};
    memcpy(e->key, name, HASH_HEX_SIZE - 1);
    h.label[sizeof h.label - 1] = 0;
    clean_label(e->label, h.label);
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
        if (!is_entry_name(d->d_name) || !read_entry(dirfd(folder), d->d_name, &e))
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

/* Drops what was used longest ago until the rest fits. Readers keep what they have open. */
static dpi_status make_room(cache *c, dpi_error *error)
{
    cache_entry *entries;
    size_t count;
    dpi_status status = cache_list(c, &entries, &count, error);
    uint64_t total = 0;
    for (size_t i = 0; !status && i < count; i++) {
        total += entries[i].bytes;
        if (total > c->max_bytes && i > 0) /* the newest stays, however large */
            remove_entry(c, &entries[i]);
    }
    free(entries);
    return status;
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
    if (removed_bytes)
        *removed_bytes = removed;
    return status;
}

/* ---- content hashes --------------------------------------------------------------------------------------------- */

typedef struct hash_memo { /* file KEY.hash, KEY from device, inode, size and mtime */
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

static dpi_status hash_contents(int fd, const char *path, uint64_t bytes, hash128 *hash, dpi_error *error)
{
    const size_t chunk = 1 << 20;
    char *buffer = malloc(chunk);
    hash_state *state = hash_new();
    dpi_status status = buffer && state ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    for (uint64_t at = 0; !status && at < bytes;) {
        size_t n = bytes - at < chunk ? (size_t)(bytes - at) : chunk;
        status = file_read_at(fd, buffer, n, at, path, error);
        hash_add(state, buffer, n);
        at += n;
    }
    free(buffer);
    *hash = hash_end(state);
    return status;
}

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
        status = hash_contents(fd, path, (uint64_t)info.st_size, hash, error);
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        /* A file written within the clock's grain could change again without a new mtime. */
        if (!status && named && now.tv_sec - info.st_mtim.tv_sec > 2 && fstat(fd, &after) == 0 &&
            after.st_size == info.st_size && after.st_mtim.tv_nsec == info.st_mtim.tv_nsec)
            memo_write(memo, *hash);
    }
    close(fd);
    return status;
}
