#include "ipc/channel.h"

#include "base/clock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

dpi_status channel_pair(int fds[2], dpi_error *error)
{
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0)
        return error_set_errno(error, DPI_E_SYSTEM, errno, "cannot make a control socket");
    int bytes = 2 * CHANNEL_MAX_BYTES;
    for (int i = 0; i < 2; i++) /* the kernel may grant less; long messages then fail by name */
        setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    return DPI_OK;
}

/* Waits for `events`; false at the deadline. */
static bool channel_wait(int fd, short events, int64_t deadline_ns)
{
    for (;;) {
        int64_t left_ms = deadline_ns == CLOCK_NEVER ? 60000 : (deadline_ns - clock_now_ns() + 999999) / 1000000;
        struct pollfd p = {.fd = fd, .events = events};
        int ready = poll(&p, 1, left_ms < 0 ? 0 : left_ms > 60000 ? 60000 : (int)left_ms);
        if (ready > 0)
            return true;
        if (ready < 0 && errno != EINTR)
            return true; /* let the caller's own call say what is wrong */
        if (deadline_ns != CLOCK_NEVER && clock_now_ns() >= deadline_ns)
            return false;
    }
}

dpi_status channel_send(int fd, const json_t *message, const int *fds, size_t fd_count, int64_t deadline_ns,
                        dpi_error *error)
{
    char *body = json_dumps(message, JSON_COMPACT);
    if (!body || fd_count > CHANNEL_MAX_FDS) {
        free(body);
        return error_set(error, DPI_E_SYSTEM, "out of memory while writing to a worker");
    }
    struct iovec part = {.iov_base = body, .iov_len = strlen(body)};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(CHANNEL_MAX_FDS * sizeof(int))];
    } ancillary;
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd_count) {
        memset(&ancillary, 0, sizeof ancillary);
        header.msg_control = ancillary.bytes;
        header.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&header);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
    }
    dpi_status status = DPI_OK;
    while (sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
        if ((errno == EAGAIN || errno == EINTR) && channel_wait(fd, POLLOUT, deadline_ns))
            continue;
        status =
            error_set_errno(error, DPI_E_WORKER, errno, "cannot send %zu bytes over the control socket", part.iov_len);
        break;
    }
    free(body);
    return status;
}

/* Takes the descriptors out of a received header; all beyond `capacity` are closed. */
static size_t take_descriptors(struct msghdr *header, int *fds, size_t capacity)
{
    size_t count = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
            if (count < capacity)
                fds[count++] = fd;
            else
                close(fd);
        }
    }
    return count;
}

static dpi_status parse_message(const char *body, size_t bytes, json_t **message, dpi_error *error)
{
    json_error_t problem;
    json_t *parsed = json_loadb(body, bytes, JSON_REJECT_DUPLICATES, &problem);
    if (json_is_object(parsed)) {
        *message = parsed;
        return DPI_OK;
    }
    json_decref(parsed);
    return error_set(error, DPI_E_WORKER, "a message on the control socket is not a JSON object: %s", problem.text);
}

dpi_status channel_receive(int fd, int64_t deadline_ns, json_t **message, int fds[CHANNEL_MAX_FDS], size_t *fd_count,
                           dpi_error *error)
{
    *message = NULL;
    if (fd_count)
        *fd_count = 0;
    char *body = malloc(CHANNEL_MAX_BYTES);
    if (!body)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    struct iovec part = {.iov_base = body, .iov_len = CHANNEL_MAX_BYTES};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(CHANNEL_MAX_FDS * sizeof(int))];
    } ancillary;
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = ancillary.bytes, .msg_controllen = sizeof ancillary.bytes};
    dpi_status status = DPI_OK;
    ssize_t got;
    while ((got = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC)) < 0) {
        if (errno != EAGAIN && errno != EINTR) {
            status = error_set_errno(error, DPI_E_WORKER, errno, "cannot read the control socket");
            break;
        }
        if (!channel_wait(fd, POLLIN, deadline_ns)) {
            status = DPI_TIMEOUT;
            break;
        }
    }
    if (!status) {
        size_t count = take_descriptors(&header, fds, fds ? CHANNEL_MAX_FDS : 0);
        if (fd_count)
            *fd_count = count;
        if (got == 0)
            status = error_set(error, DPI_E_WORKER, "the other side closed the control socket");
        else if (header.msg_flags & MSG_TRUNC)
            status = error_set(error, DPI_E_WORKER, "a message on the control socket is too long");
        else
            status = parse_message(body, (size_t)got, message, error);
        if (status)
            for (size_t i = 0; fds && i < count; i++)
                close(fds[i]);
    }
    free(body);
    return status;
}
