/* A data set, sharded over every device, with progress: build with `cc data_set.c $(pkg-config --cflags --libs
 * dpinfer)`. usage: data_set MODEL.onnx IN.npy OUT.npy */
#include <dpinfer/dpinfer.h>
#include <stdio.h>

static int show(void *context, const dpi_progress *p)
{
    (void)context;
    fprintf(stderr, "\r%llu of %llu rows ", (unsigned long long)p->rows_done, (unsigned long long)p->rows_total);
    return 0; /* anything else would stop the run */
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    dpi_error error;
    dpi_session *session;
    dpi_options options = DPI_INIT(dpi_options);
    options.model_path = argv[1];
    options.batch = 32; /* rows per device and engine call */
    dpi_status status = dpi_open(&options, &session, &error);
    if (!status) {
        const char *input = argv[2], *output = argv[3];
        dpi_run_options run = DPI_INIT(dpi_run_options);
        dpi_run_result result = DPI_INIT(dpi_run_result);
        run.inputs = &input;
        run.input_count = 1;
        run.outputs = &output;
        run.output_count = 1;
        run.progress = show;
        status = dpi_run(session, &run, &result, &error);
        if (!status)
            printf("\n%llu rows in %.2f s: %s\n", (unsigned long long)result.rows, result.seconds, output);
        dpi_close(session);
    }
    if (status)
        fprintf(stderr, "%s\n", error.message);
    return dpi_status_exit_code(status);
}
