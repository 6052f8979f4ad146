/*
 * A GPU worker is killed in the middle of a batch: once its exit is seen, nothing of it writes any more; then another
 * takes its place and the batch is completed.
 * usage: test_gpu_kill SPREAD.onnx      skipped without a model: tools/test_gpu.sh makes it and calls this
 */
#include <dpinfer/dpinfer.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ROUNDS  8
#define ROWS    100000
#define CLASSES 100

static void quiet(void *context, dpi_log_level level, const char *line)
{
    (void)context;
    (void)level;
    (void)line;
}

static void stop(const char *what, const dpi_error *error)
{
    fprintf(stderr, "%s: %s\n", what, error ? error->message : "failed");
    exit(1);
}

static size_t written(const unsigned char *memory, size_t bytes)
{
    size_t count = 0;
    for (size_t i = 0; i < bytes; i += 4)
        count += memory[i] != 0xA5 || memory[i + 1] != 0xA5 || memory[i + 2] != 0xA5 || memory[i + 3] != 0xA5;
    return count;
}

/* Waits until the results of `row` stand in `out`; false after a minute or two. */
static bool has_come(const void *out, size_t row)
{
    const volatile unsigned char *at = (const volatile unsigned char *)out + row * CLASSES * 4;
    for (int i = 0; i < 1000000; i++) {
        if (at[0] != 0xA5 || at[1] != 0xA5 || at[2] != 0xA5 || at[3] != 0xA5)
            return true;
        usleep(30);
    }
    return false;
}

/* Kills the worker as soon as the results of `row` are there; the share of all results that stood there then, in per
 * cent. */
static double one_round(const char *model, size_t row)
{
    dpi_options o = DPI_INIT(dpi_options);
    dpi_session *session;
    dpi_error error;
    o.model_path = model;
    o.backend = "tensorrt";
    o.devices = "cuda:0";
    o.batch = 64;
    o.log = quiet;
    if (dpi_open(&o, &session, &error))
        stop("open", &error);
    dpi_description d = DPI_INIT(dpi_description);
    dpi_describe(session, &d, &error);
    size_t in_bytes = (size_t)ROWS * 3 * 64 * 64 * 4, out_bytes = (size_t)ROWS * CLASSES * 4;
    dpi_tensor in = d.inputs[0], out = d.outputs[0];
    in.shape[0] = out.shape[0] = ROWS;
    in.data = dpi_alloc(session, in_bytes, DPI_INPUT, &error);
    out.data = dpi_alloc(session, out_bytes, DPI_OUTPUT, &error);
    unsigned char *before = malloc(out_bytes);
    if (!in.data || !out.data || !before)
        stop("memory", &error);
    memset(in.data, 1, in_bytes);
    in.shape[0] = out.shape[0] = 64;
    if (dpi_forward(session, &in, 1, &out, 1, 60000, &error))
        stop("the first batch", &error);
    memset(out.data, 0xA5, out_bytes);
    in.shape[0] = out.shape[0] = ROWS;
    dpi_batch b = DPI_INIT(dpi_batch);
    dpi_ticket ticket = 0;
    b.inputs = &in;
    b.outputs = &out;
    b.input_count = b.output_count = 1;
    pid_t worker = (pid_t)d.workers[0].pid;
    int pidfd = (int)syscall(SYS_pidfd_open, worker, 0);
    if (pidfd < 0 || dpi_submit(session, &b, &ticket, &error))
        stop("submit", &error);
    if (!has_come(out.data, row))
        stop("no result comes", NULL);
    kill(worker, SIGKILL);
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    if (poll(&p, 1, 10000) != 1)
        stop("the worker does not die", NULL);
    memcpy(before, out.data, out_bytes);
    usleep(300000);
    if (memcmp(before, out.data, out_bytes) != 0)
        stop("results were written after the worker's exit was seen", NULL);
    /* Another worker takes its place, and every row is there. */
    if (dpi_wait(session, ticket, 60000, NULL, 0, &error))
        stop("the batch did not outlive its worker", &error);
    if (written(out.data, out_bytes) != out_bytes / 4)
        stop("rows are missing", NULL);
    double share = 100.0 * (double)written(before, out_bytes) / (double)(out_bytes / 4);
    free(before);
    close(pidfd);
    dpi_close(session);
    return share;
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 77;
    int in_the_middle = 0;
    for (unsigned i = 0; i < ROUNDS; i++) {
        size_t row = (size_t)ROWS * i / ROUNDS;
        double share = one_round(argv[1], row);
        printf("killed once row %zu was there: %.1f %% of the results were there, and no more came\n", row, share);
        in_the_middle += share > 0 && share < 100;
    }
    return in_the_middle >= ROUNDS / 2 ? 0 : 1;
}
