#include "data/spool.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE  (1u << 20)
#define ASK_MS 100

/* ---- a file ----------------------------------------------------------------------------------------------------- */

static const char *folder(void)
{
    const char *tmp = getenv("TMPDIR");
    return tmp && *tmp ? tmp : "/tmp";
}

dpi_status spool_begin(const spool_limits *limits, spool *s, dpi_error *error)
{
    *s = (spool){.limits = limits, .fd = open(folder(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)};
    if (s->fd < 0) { /* a file system without nameless files */
        char *name = text_format("%s/dpinfer-spool-XXXXXX", folder());
        s->fd = name ? mkostemp(name, O_CLOEXEC) : -1;
        int number = errno;
        if (s->fd >= 0)
            unlink(name);
        free(name);
        errno = number;
    }
    if (s->fd >= 0)
        return DPI_OK;
    dpi_status status = error_set_errno(error, DPI_E_IO, errno, "cannot make a file in %s; set TMPDIR", folder());
    *s = (spool){0};
    return status;
}

static bool stopped(const spool_limits *limits) { return limits->stop && limits->stop(limits->context); }

dpi_status spool_count(spool *s, size_t bytes, const char *what, dpi_error *error)
{
    uint64_t most = s->limits->max_bytes ? s->limits->max_bytes : SPOOL_MOST_BYTES;
    int64_t now = clock_now_ns();
    if (now - s->asked_ns > ASK_MS * INT64_C(1000000)) {
        s->asked_ns = now;
        if (stopped(s->limits))
            return error_set(error, DPI_CANCELLED, "stopped while %s was read", what);
    }
    if (bytes > most - s->counted)
        return error_set(error, DPI_E_DATA,
                         "%s has more than the %llu bytes that may be kept in TMPDIR; --spool-max SIZE "
                         "(spool_max_bytes) allows more",
                         what, (unsigned long long)most);
    s->counted += bytes;
    return DPI_OK;
}

dpi_status spool_write(spool *s, const void *data, size_t bytes, dpi_error *error)
{
    struct rlimit limit; /* past it the kernel would send a signal that ends the program */
    dpi_error why;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && bytes > limit.rlim_cur - s->written)
        return error_set(error, DPI_E_IO, "no file may be larger than %llu bytes (ulimit -f), and one in %s would be",
                         (unsigned long long)limit.rlim_cur, folder());
    if (file_write_at(s->fd, data, bytes, s->written, "the file of what is read", &why))
        return error_set(error, DPI_E_IO, "%s (in %s: TMPDIR names another folder)", why.message, folder());
    s->written += bytes;
    return DPI_OK;
}

dpi_status spool_end(spool *s, int *fd, dpi_error *error)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", s->fd);
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    dpi_status status = *fd >= 0 ? DPI_OK : error_set_errno(error, DPI_E_SYSTEM, errno, "cannot open %s", path);
    spool_drop(s);
    return status;
}

void spool_drop(spool *s)
{
    if (s->limits)
        close(s->fd);
    *s = (spool){0};
}

/* ---- standard input --------------------------------------------------------------------------------------------- */

/* The next piece; 0 bytes at the end. */
static dpi_status next_piece(int in, const spool_limits *limits, void *piece, size_t *bytes, dpi_error *error)
{
    for (;;) {
        if (stopped(limits))
            return error_set(error, DPI_CANCELLED, "stopped while standard input was read");
        struct pollfd p = {.fd = in, .events = POLLIN};
        if (poll(&p, 1, ASK_MS) <= 0) /* nothing yet, or a signal */
            continue;
        ssize_t got = read(in, piece, PIECE);
        if (got >= 0) {
            *bytes = (size_t)got;
            return DPI_OK;
        }
        if (errno != EINTR && errno != EAGAIN)
            return error_set_errno(error, DPI_E_DATA, errno, "cannot read standard input");
    }
}

static dpi_status copy_all(int in, spool *to, hash_state *hash, dpi_error *error)
{
    void *piece = malloc(PIECE);
    size_t got = 1;
    dpi_status status = piece ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    while (!status && got) {
        status = next_piece(in, to->limits, piece, &got, error);
        if (!status)
            status = spool_count(to, got, "standard input", error);
        if (!status)
            status = spool_write(to, piece, got, error);
        if (!status)
            hash_add(hash, piece, got);
    }
    free(piece);
    return status;
}

dpi_status spool_read(int in, const spool_limits *limits, int *fd, char content[HASH_HEX_SIZE], dpi_error *error)
{
    struct stat info;
    *fd = -1;
    content[0] = 0;
    if (fstat(in, &info) != 0)
        return error_set_errno(error, DPI_E_DATA, errno, "cannot read standard input");
    if (isatty(in))
        return error_set(error, DPI_E_DATA, "standard input is a terminal; give a file or a pipe");
    if (S_ISREG(info.st_mode) && lseek(in, 0, SEEK_CUR) == 0) {
        *fd = fcntl(in, F_DUPFD_CLOEXEC, 3);
        return *fd >= 0 ? DPI_OK : error_set_errno(error, DPI_E_SYSTEM, errno, "cannot keep standard input");
    }
    hash_state *hash = hash_new();
    spool to = {0};
    dpi_status status = hash ? spool_begin(limits, &to, error) : error_set(error, DPI_E_SYSTEM, "out of memory");
    if (!status)
        status = copy_all(in, &to, hash, error);
    if (hash)
        hash_to_hex(hash_end(hash), content);
    if (!status)
        return spool_end(&to, fd, error);
    spool_drop(&to);
    return status;
}
