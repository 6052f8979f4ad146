#include "runtime/gpus.h"

#include "backend/cuda.h"
#include "base/clock.h"
#include "base/text.h"
#include "ipc/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define ANSWER_NS 30000000000

int gpus_main(void)
{
    const cuda_api *cuda;
    dpi_error error;
    int count = 0;
    if (cuda_load(&cuda, &error) || cuda->cuDeviceGetCount(&count))
        count = 0;
    printf("%d\n", count);
    fflush(stdout);
    return 0;
}

/* Everything up to the end of the pipe, at most size - 1 bytes. */
static void read_answer(int fd, char *text, size_t size)
{
    size_t length = 0;
    int64_t until_ns = clock_now_ns() + ANSWER_NS;
    for (;;) {
        int64_t left_ms = (until_ns - clock_now_ns()) / 1000000;
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int ready = left_ms > 0 ? poll(&p, 1, (int)left_ms) : 0;
        ssize_t got = ready > 0 ? read(fd, text + length, size - 1 - length) : -1;
        if ((ready < 0 || (ready > 0 && got < 0)) && errno == EINTR)
            continue;
        if (got <= 0 || (length += (size_t)got) == size - 1)
            break;
    }
    text[length] = 0;
}

int gpus_count(const char *worker_path)
{
    int ends[2];
    if (!cuda_may_be_there() || pipe2(ends, O_CLOEXEC) != 0)
        return 0;
    char *argv[] = {(char *)(uintptr_t)worker_path, (char *)(uintptr_t)GPUS_ARGUMENT, NULL}, text[64];
    child process;
    int signal, code;
    uint64_t count = 0;
    dpi_error error;
    dpi_status status = child_spawn(worker_path, argv, ends[1], NULL, 0, &process, &error);
    close(ends[1]);
    if (!status) {
        read_answer(ends[0], text, sizeof text);
        child_kill(&process);
        child_ended(&process, clock_now_ns() + ANSWER_NS, &signal, &code);
        text[strcspn(text, "\n")] = 0;
        if (!text_to_u64(text, 0, 256, &count))
            count = 0;
    }
    close(ends[0]);
    return (int)count;
}
