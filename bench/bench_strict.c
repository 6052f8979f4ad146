/*
 * What strict isolation costs beside process isolation, in turn in one process: slices that cost nothing, one call of
 * 2 x 32 x 3 x 224 x 224 floats in memory of dpi_alloc with a small result and with one as large, and slices of 1 ms.
 * Medians, and the median difference of the turns. usage: bench_strict
 */
#include "bench_kit.h"

#include <stdlib.h>

#define TURNS 41

typedef struct load {
    const char *name, *text, *devices, *unit;
    size_t batch, rows, split; /* split: rows of each device, 0: adaptive */
    int rank;
    int64_t in[4], out[4]; /* shapes but for the rows */
    int out_rank;
    double scale; /* from seconds a call */
} load;

static const load loads[] = {
    {"a slice that costs nothing",
     "input x float32 N 1\noutput y float32 N 1\ntouch none\n",
     "sim:0",
     "us a slice",
     1,
     4096,
     0,
     2,
     {0, 1},
     {0, 1},
     2,
     1e6 / 4096},
    {"38.5 MB in, 256 bytes out",
     "input x float32 N 3 224 224\noutput y float32 N 1\ntouch none\n",
     "sim:0,sim:1",
     "us a call",
     0,
     64,
     32,
     4,
     {0, 3, 224, 224},
     {0, 1},
     2,
     1e6},
    {"38.5 MB in, 38.5 MB out",
     "input x float32 N 3 224 224\noutput y float32 N 3 224 224\ntouch none\n",
     "sim:0,sim:1",
     "ms a call",
     0,
     64,
     32,
     4,
     {0, 3, 224, 224},
     {0, 3, 224, 224},
     4,
     1e3},
    {"100 slices of 1 ms, two devices",
     "input x float32 N 16\noutput y float32 N 1000\nfixed_us 1000\ntouch none\n",
     "sim:0,sim:1",
     "ms a call",
     8,
     800,
     0,
     2,
     {0, 16},
     {0, 1000},
     2,
     1e3},
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median_of(const double *values)
{
    double sorted[TURNS];
    memcpy(sorted, values, sizeof sorted);
    qsort(sorted, TURNS, sizeof *sorted, by_value);
    return sorted[TURNS / 2];
}

static size_t bytes_of(const int64_t *shape, int rank, size_t rows)
{
    size_t bytes = rows * sizeof(float);
    for (int k = 1; k < rank; k++)
        bytes *= (size_t)shape[k];
    return bytes;
}

typedef struct side {
    dpi_session *s;
    dpi_tensor in, out;
    double took[TURNS];
} side;

static int open_side(const load *l, dpi_isolation isolation, side *to)
{
    size_t even[2] = {l->split, l->split};
    dpi_options o = sim_options(l->text, l->devices, l->batch);
    dpi_error error;
    o.isolation = isolation;
    o.batch_size_list = l->split ? even : NULL;
    o.batch_size_count = l->split ? 2 : 0;
    if (dpi_open(&o, &to->s, &error))
        return failed(&error);
    to->in = (dpi_tensor){.dtype = DPI_F32, .rank = l->rank};
    to->out = (dpi_tensor){.dtype = DPI_F32, .rank = l->out_rank};
    memcpy(to->in.shape, l->in, sizeof l->in);
    memcpy(to->out.shape, l->out, sizeof l->out);
    to->in.shape[0] = to->out.shape[0] = (int64_t)l->rows;
    size_t in_bytes = bytes_of(l->in, l->rank, l->rows), out_bytes = bytes_of(l->out, l->out_rank, l->rows);
    to->in.data = dpi_alloc(to->s, in_bytes, DPI_INPUT, &error);
    to->out.data = dpi_alloc(to->s, out_bytes, DPI_OUTPUT, &error);
    if (!to->in.data || !to->out.data)
        return failed(&error);
    memset(to->in.data, 0, in_bytes);
    return 0;
}

static int measure(const load *l)
{
    static side sides[2];
    double more[TURNS];
    dpi_error error;
    if (open_side(l, DPI_ISOLATION_PROCESS, &sides[0]) || open_side(l, DPI_ISOLATION_STRICT, &sides[1]))
        return 1;
    for (int turn = -10; turn < TURNS; turn++)
        for (int i = 0; i < 2; i++) {
            double began = now_s();
            if (dpi_forward(sides[i].s, &sides[i].in, 1, &sides[i].out, 1, 60000, &error))
                return failed(&error);
            if (turn >= 0)
                sides[i].took[turn] = (now_s() - began) * l->scale;
        }
    for (int i = 0; i < TURNS; i++)
        more[i] = sides[1].took[i] - sides[0].took[i];
    printf("%-34s process %9.3f, strict %9.3f %s, difference %9.3f\n", l->name, median_of(sides[0].took),
           median_of(sides[1].took), l->unit, median_of(more));
    dpi_close(sides[0].s);
    dpi_close(sides[1].s);
    return 0;
}

int main(void)
{
    for (size_t i = 0; i < sizeof loads / sizeof loads[0]; i++)
        if (measure(&loads[i]))
            return 1;
    return 0;
}
