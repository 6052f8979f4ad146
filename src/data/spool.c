#include "data/spool.h"

#include "base/file.h"
#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define PIECE  (1u << 20)
#define ASK_MS 100

static const char *folder(void)
{
    const char *tmp = getenv("TMPDIR");
    return tmp && *tmp ? tmp : "/tmp";
}

static dpi_status make_file(int *fd, dpi_error *error)
{
    *fd = open(folder(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (*fd < 0) { /* a file system without nameless files */
        char *name = text_format("%s/dpinfer-stdin-XXXXXX", folder());
        *fd = name ? mkostemp(name, O_CLOEXEC) : -1;
        int number = errno;
        if (*fd >= 0)
            unlink(name);
        free(name);
        errno = number;
    }
    return *fd >= 0 ? DPI_OK
                    : error_set_errno(error, DPI_E_IO, errno, "cannot make a file for standard input in %s; set TMPDIR",
                                      folder());
}

/* How much the file may hold: past RLIMIT_FSIZE the kernel would send a signal that ends the program. */
static uint64_t most_bytes(void)
{
    struct rlimit limit;
    bool known = getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
    return known && limit.rlim_cur < SPOOL_MOST_BYTES ? limit.rlim_cur : SPOOL_MOST_BYTES;
}

/* The next piece; 0 bytes at the end. */
static dpi_status next_piece(int in, bool (*stop)(void *), void *context, void *piece, size_t *bytes, dpi_error *error)
{
    for (;;) {
        if (stop && stop(context))
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

static dpi_status copy_all(int in, int to, bool (*stop)(void *), void *context, hash_state *hash, dpi_error *error)
{
    void *piece = malloc(PIECE);
    uint64_t total = 0, most = most_bytes();
    size_t got = 1;
    dpi_status status = piece ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    while (!status && got) {
        status = next_piece(in, stop, context, piece, &got, error);
        if (!status && got > most - total)
            status =
                error_set(error, DPI_E_DATA,
                          "standard input has more than the %llu bytes that are kept of it; write it to a file and "
                          "give that",
                          (unsigned long long)most);
        dpi_error why;
        if (!status && file_write_at(to, piece, got, total, "the copy of standard input", &why))
            status = error_set(error, DPI_E_IO, "%s (in %s: TMPDIR names another folder)", why.message, folder());
        if (!status)
            hash_add(hash, piece, got);
        total += status ? 0 : got;
    }
    free(piece);
    return status;
}

dpi_status spool_read(int in, bool (*stop)(void *), void *context, int *fd, char content[HASH_HEX_SIZE],
                      dpi_error *error)
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
    int to = -1;
    dpi_status status = hash ? make_file(&to, error) : error_set(error, DPI_E_SYSTEM, "out of memory");
    if (!status)
        status = copy_all(in, to, stop, context, hash, error);
    if (hash)
        hash_to_hex(hash_end(hash), content);
    if (status && to >= 0)
        close(to);
    *fd = status ? -1 : to;
    return status;
}
