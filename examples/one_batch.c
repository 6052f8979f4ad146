/* One batch, split over every device: build with `cc one_batch.c $(pkg-config --cflags --libs dpinfer)`.
 * usage: one_batch MODEL.onnx ROWS   (a model with one float input of fixed row shape) */
#include <dpinfer/dpinfer.h>
#include <stdio.h>
#include <stdlib.h>

static size_t row_elements(const dpi_tensor *t)
{
    size_t n = 1;
    for (int i = 1; i < t->rank; i++)
        n *= (size_t)t->shape[i];
    return n;
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    dpi_error error;
    dpi_session *session;
    dpi_options options = DPI_INIT(dpi_options);
    options.model_path = argv[1];
    if (dpi_open(&options, &session, &error)) {
        fprintf(stderr, "%s\n", error.message);
        return dpi_status_exit_code(error.status);
    }
    dpi_description d = DPI_INIT(dpi_description);
    dpi_describe(session, &d, NULL);

    /* Memory from dpi_alloc is seen by every worker: nothing is copied. */
    size_t rows = (size_t)atol(argv[2]);
    dpi_tensor in = d.inputs[0], out = d.outputs[0];
    in.shape[0] = out.shape[0] = (int64_t)rows;
    in.data = dpi_alloc(session, rows * row_elements(&in) * dpi_dtype_size(in.dtype), DPI_INPUT, &error);
    out.data = dpi_alloc(session, rows * row_elements(&out) * dpi_dtype_size(out.dtype), DPI_OUTPUT, &error);
    dpi_status status = in.data && out.data ? DPI_OK : error.status;
    if (!status && in.dtype == DPI_F32)
        for (size_t i = 0; i < rows * row_elements(&in); i++)
            ((float *)in.data)[i] = (float)(i % 17) / 17;
    if (!status)
        status = dpi_forward(session, &in, 1, &out, 1, 0, &error);
    if (status)
        fprintf(stderr, "%s\n", error.message);
    else if (out.dtype == DPI_F32 && rows)
        printf("%zu rows on %zu devices; the first result is %g\n", rows, d.worker_count,
               (double)((float *)out.data)[0]);
    dpi_close(session);
    return dpi_status_exit_code(status);
}
