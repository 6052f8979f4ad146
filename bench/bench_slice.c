/*
 * What the runtime costs a slice when nothing fails: one simulated device, slices that cost nothing, 4096 of them a
 * call, the median of 300 calls in nanoseconds. bench/compare_recovery.sh builds it for an older commit too: it uses
 * nothing that is younger than recovery. usage: bench_slice
 */
#include "bench_kit.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SLICES 4096
#define CALLS  300

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
    dpi_options o = sim_options(text, "sim:0", 1);
    dpi_error error;
    dpi_session *s;
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
