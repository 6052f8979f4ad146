/* The control socket: whole messages with descriptors, and anything else refused without a leak. */
#include "ipc/channel.h"

#include "base/clock.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static int64_t in_ms(int64_t ms) { return clock_now_ns() + ms * 1000000; }

static int count_fds(void)
{
    int count = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d))
        count++;
    closedir(d);
    return count;
}

static void open_pair(int fds[2])
{
    dpi_error error;
    assert_int_equal(channel_pair(fds, &error), DPI_OK);
    for (int i = 0; i < 2; i++)
        assert_true(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
}

static void messages_come_whole_and_in_order(void **state)
{
    (void)state;
    int fds[2];
    dpi_error error;
    open_pair(fds);
    for (int i = 0; i < 20; i++) {
        json_t *m = json_pack("{s:i, s:s}", "number", i, "text", "gr\xc3\xbc\xc3\x9f");
        assert_int_equal(channel_send(fds[0], m, NULL, 0, in_ms(1000), &error), DPI_OK);
        json_decref(m);
    }
    for (int i = 0; i < 20; i++) {
        json_t *m;
        assert_int_equal(channel_receive(fds[1], in_ms(1000), &m, NULL, NULL, &error), DPI_OK);
        assert_int_equal(json_integer_value(json_object_get(m, "number")), i);
        assert_string_equal(json_string_value(json_object_get(m, "text")), "gr\xc3\xbc\xc3\x9f");
        json_decref(m);
    }
    close(fds[0]);
    close(fds[1]);
}

static void descriptors_travel_along(void **state)
{
    (void)state;
    int fds[2], before, sent[CHANNEL_MAX_FDS + 1], got[CHANNEL_MAX_FDS];
    size_t count = 99;
    dpi_error error;
    open_pair(fds);
    for (int i = 0; i <= CHANNEL_MAX_FDS; i++)
        sent[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    before = count_fds();
    json_t *m = json_object(), *back;
    assert_int_equal(channel_send(fds[0], m, sent, CHANNEL_MAX_FDS + 1, in_ms(100), &error), DPI_E_SYSTEM);
    size_t sizes[] = {0, 1, 7, CHANNEL_MAX_FDS};
    for (int i = 0; i < 4; i++) {
        assert_int_equal(channel_send(fds[0], m, sent, sizes[i], in_ms(1000), &error), DPI_OK);
        assert_int_equal(channel_receive(fds[1], in_ms(1000), &back, got, &count, &error), DPI_OK);
        assert_int_equal(count, sizes[i]);
        for (size_t k = 0; k < count; k++) {
            assert_true(fcntl(got[k], F_GETFD) & FD_CLOEXEC);
            assert_int_equal(close(got[k]), 0);
        }
        json_decref(back);
    }
    /* Who wants none gets none, and they are closed. */
    assert_int_equal(channel_send(fds[0], m, sent, 5, in_ms(1000), &error), DPI_OK);
    assert_int_equal(channel_receive(fds[1], in_ms(1000), &back, NULL, NULL, &error), DPI_OK);
    json_decref(back);
    json_decref(m);
    assert_int_equal(count_fds(), before);
    for (int i = 0; i <= CHANNEL_MAX_FDS; i++)
        close(sent[i]);
    close(fds[0]);
    close(fds[1]);
}

static void send_raw(int fd, const void *bytes, size_t size, int passed)
{
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = size};
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } ancillary = {.bytes = {0}};
    struct msghdr h = {.msg_iov = &part, .msg_iovlen = 1};
    if (passed >= 0) {
        h.msg_control = ancillary.bytes;
        h.msg_controllen = sizeof ancillary.bytes;
        struct cmsghdr *c = CMSG_FIRSTHDR(&h);
        *c = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
        memcpy(CMSG_DATA(c), &passed, sizeof passed);
    }
    assert_int_equal(sendmsg(fd, &h, MSG_NOSIGNAL), size);
}

static void what_is_no_object_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",           "x",        "[1,2]", "3",    "\"text\"",         "{",          "{\"a\":1,\"a\":2}",
        "{\"a\":1}}", "\xff\xfe", "{}x",   "null", "{\"a\":\"\xff\"}", "{\"a\":NaN}"};
    int fds[2], before = 0, got[CHANNEL_MAX_FDS], null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    open_pair(fds);
    before = count_fds();
    for (size_t i = 1; i < sizeof bad / sizeof bad[0]; i++) {
        json_t *m = (json_t *)(uintptr_t)1;
        dpi_error error = {0};
        size_t count;
        send_raw(fds[0], bad[i], strlen(bad[i]), null_fd);
        if (channel_receive(fds[1], in_ms(1000), &m, got, &count, &error) != DPI_E_WORKER)
            fail_msg("\"%s\" was taken", bad[i]);
        assert_null(m);
        assert_true(error.message[0] != 0);
        assert_int_equal(count_fds(), before); /* the descriptor beside it is closed */
    }
    /* Deep nesting must not exhaust the stack. */
    char *deep = malloc(100000);
    memset(deep, '[', 100000);
    memcpy(deep, "{\"a\":", 5);
    json_t *m;
    dpi_error error;
    send_raw(fds[0], deep, 100000, -1);
    assert_int_equal(channel_receive(fds[1], in_ms(1000), &m, NULL, NULL, &error), DPI_E_WORKER);
    free(deep);
    close(null_fd);
    close(fds[0]);
    close(fds[1]);
}

static void too_long_is_refused(void **state)
{
    (void)state;
    int fds[2], bytes = 4 * CHANNEL_MAX_BYTES;
    open_pair(fds);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes); /* as root; else the send itself fails */
    char *text = malloc(CHANNEL_MAX_BYTES + 100);
    memset(text, ' ', CHANNEL_MAX_BYTES + 100);
    memcpy(text, "{}", 2);
    json_t *m;
    dpi_error error;
    if (send(fds[0], text, CHANNEL_MAX_BYTES + 100, MSG_NOSIGNAL) > 0) {
        assert_int_equal(channel_receive(fds[1], in_ms(1000), &m, NULL, NULL, &error), DPI_E_WORKER);
        assert_non_null(strstr(error.message, "too long"));
    } else
        assert_int_equal(errno, EMSGSIZE);
    free(text);
    close(fds[0]);
    close(fds[1]);
}

static void deadlines_and_the_end(void **state)
{
    (void)state;
    int fds[2];
    json_t *m;
    dpi_error error;
    open_pair(fds);
    int64_t began = clock_now_ns();
    assert_int_equal(channel_receive(fds[1], began + 20000000, &m, NULL, NULL, &error), DPI_TIMEOUT);
    assert_true(clock_now_ns() - began >= 20000000);
    assert_int_equal(channel_receive(fds[1], began, &m, NULL, NULL, &error), DPI_TIMEOUT);
    json_t *big = json_object();
    char *filler = malloc(60001);
    memset(filler, 'x', 60000);
    filler[60000] = 0;
    json_object_set_new(big, "text", json_string(filler));
    dpi_status status = DPI_OK;
    int sent = 0;
    while (!status && sent < 1000) { /* nobody reads: it fills up, and the deadline holds */
        began = clock_now_ns();
        status = channel_send(fds[0], big, NULL, 0, began + 30000000, &error);
        sent++;
    }
    assert_int_equal(status, DPI_E_WORKER);
    assert_true(clock_now_ns() - began < 1000000000);
    for (int i = 1; i < sent; i++) {
        assert_int_equal(channel_receive(fds[1], in_ms(1000), &m, NULL, NULL, &error), DPI_OK);
        json_decref(m);
    }
    close(fds[0]);
    assert_int_equal(channel_receive(fds[1], in_ms(1000), &m, NULL, NULL, &error), DPI_E_WORKER);
    assert_int_equal(channel_send(fds[1], big, NULL, 0, in_ms(1000), &error), DPI_E_WORKER); /* and no SIGPIPE */
    assert_int_equal(channel_receive(-1, in_ms(0), &m, NULL, NULL, &error), DPI_E_WORKER);
    json_decref(big);
    free(filler);
    close(fds[1]);
}

static void *send_many(void *argument)
{
    int fd = *(int *)argument;
    for (int i = 0; i < 200; i++) {
        dpi_error error;
        json_t *m = json_pack("{s:i}", "n", i);
        assert_int_equal(channel_send(fd, m, NULL, 0, in_ms(5000), &error), DPI_OK);
        json_decref(m);
    }
    return NULL;
}

static void several_senders(void **state)
{
    (void)state;
    int fds[2], sum = 0;
    dpi_error error;
    open_pair(fds);
    pthread_t threads[3];
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, send_many, &fds[0]), 0);
    for (int i = 0; i < 600; i++) {
        json_t *m;
        assert_int_equal(channel_receive(fds[1], in_ms(5000), &m, NULL, NULL, &error), DPI_OK);
        sum += (int)json_integer_value(json_object_get(m, "n"));
        json_decref(m);
    }
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(sum, 3 * 199 * 100);
    close(fds[0]);
    close(fds[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_come_whole_and_in_order),
        cmocka_unit_test(descriptors_travel_along),
        cmocka_unit_test(what_is_no_object_is_refused),
        cmocka_unit_test(too_long_is_refused),
        cmocka_unit_test(deadlines_and_the_end),
        cmocka_unit_test(several_senders),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
