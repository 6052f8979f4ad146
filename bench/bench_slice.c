/*
 * What the runtime costs a slice when nothing fails: one simulated device, slices that cost nothing, 4096 of them a
 * call, the median of 300 calls in nanoseconds. bench/compare_recovery.sh builds it for an older commit too: it uses
 * nothing that is younger than recovery. usage: bench_slice
 */
#include <dpinfer/dpinfer.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SLICES 4096
#define CALLS  300

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int failed(const dpi_error *error)
{
    printf("failed: %s\n", error->message);
    return 1;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(void)
{
    const char *text = "input x float32 N 1\noutput y float32 N 1\ntouch none\n";
    static float x[SLICES], y[SLICES];
    static double ns[CALLS];
    dpi_options o = DPI_INIT(dpi_options);
    dpi_error error;
    dpi_session *s;
    o.model_data = text;
    o.model_bytes = strlen(text);
    o.model_format = "sim";
    o.devices = "sim:0";
    o.batch = 1;
    if (dpi_open(&o, &s, &error))
        return failed(&error);
    for (int i = -30; i < CALLS; i++) {
        dpi_tensor in = {.dtype = DPI_F32, .rank = 2, .shape = {SLICES, 1}, .data = x};
        dpi_tensor out = {.dtype = DPI_F32, .rank = 2, .shape = {SLICES, 1}, .data = y};
        double began = now_s();
        if (dpi_forward(s, &in, 1, &out, 1, 60000, &error))
            return failed(&error);
        if (i >= 0)
            ns[i] = (now_s() - began) * 1e9 / SLICES;
    }
    dpi_close(s);
    qsort(ns, CALLS, sizeof *ns, by_value);
    printf("%.1f\n", ns[CALLS / 2]);
    return 0;
}
