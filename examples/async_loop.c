/* Several batches in flight, finished as an event loop hears of them.
 * usage: async_loop MODEL.onnx BATCHES   (a model with one float input of fixed row shape) */
#include <dpinfer/dpinfer.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define IN_FLIGHT 4
#define ROWS      32

static int fail(const dpi_error *error)
{
    fprintf(stderr, "%s\n", error->message);
    return dpi_status_exit_code(error->status);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    dpi_error error;
    dpi_session *session;
    dpi_options options = DPI_INIT(dpi_options);
    options.model_path = argv[1];
    if (dpi_open(&options, &session, &error))
        return fail(&error);
    dpi_description d = DPI_INIT(dpi_description);
    dpi_describe(session, &d, NULL);
    dpi_tensor in = d.inputs[0];
    size_t bytes = ROWS * dpi_dtype_size(in.dtype);
    for (int i = 1; i < in.rank; i++)
        bytes *= (size_t)in.shape[i];
    in.shape[0] = ROWS;
    in.data = calloc(1, bytes);

    dpi_ticket tickets[IN_FLIGHT] = {0};
    int fd = dpi_event_fd(session, &error), batches = atoi(argv[2]), sent = 0, done = 0;
    while (done < batches) {
        for (int i = 0; i < IN_FLIGHT && sent < batches; i++) {
            if (tickets[i])
                continue;
            dpi_batch batch = DPI_INIT(dpi_batch); /* no outputs given: views of the session's memory */
            batch.inputs = &in;
            batch.input_count = 1;
            if (dpi_submit(session, &batch, &tickets[i], &error))
                return fail(&error);
            sent++;
        }
        struct pollfd p = {.fd = fd, .events = POLLIN};
        unsigned long long count;
        if (poll(&p, 1, 1000) > 0 && read(fd, &count, sizeof count) < 0)
            perror("eventfd");
        for (int i = 0; i < IN_FLIGHT; i++) {
            dpi_tensor out;
            dpi_status status = tickets[i] ? dpi_wait(session, tickets[i], -1, &out, 1, &error) : DPI_TIMEOUT;
            if (status == DPI_TIMEOUT)
                continue;
            if (status)
                return fail(&error);
            dpi_release(session, tickets[i], NULL); /* `out` was valid until here */
            tickets[i] = 0;
            done++;
        }
    }
    printf("%d batches of %d rows\n", done, ROWS);
    free(in.data);
    dpi_close(session);
    return 0;
}
