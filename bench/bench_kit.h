/* What the benches of the public interface share. compare_recovery.sh builds it for an older commit too: it uses
 * nothing that is younger than recovery. */
#ifndef BENCH_KIT_H
#define BENCH_KIT_H

#include <dpinfer/dpinfer.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static inline double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The exit code. */
static inline int failed(const dpi_error *error)
{
    printf("failed: %s\n", error->message);
    return 1;
}

/* Of a session of the sim model `text`, which has to stay. */
static inline dpi_options sim_options(const char *text, const char *devices, size_t batch)
{
    dpi_options o = DPI_INIT(dpi_options);
    o.model_data = text;
    o.model_bytes = strlen(text);
    o.model_format = "sim";
    o.devices = devices;
    o.batch = batch;
    return o;
}

#endif
