/*
 * Shard mode over 64 simulated devices of 5 ms a slice while one worker of them, chosen at random, is killed with
 * SIGKILL each second. Efficiency: the slices' own time over the time that devices lived, from a death's being seen
 * until the successor is ready not counted; what a killed slice had done already, its replay, and the time until the
 * death is seen all count as lost. The second figure counts the time of being down as well. usage: bench_kills SECONDS
 */
#include "bench_kit.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEVICES 64
#define SLICE_S 0.005
#define ROWS    8 /* of a slice */

typedef struct lives {
    pthread_mutex_t lock;
    double down_since[DEVICES], down_s; /* 0: it lives */
    unsigned deaths;
    volatile int stop;
    dpi_session *s;
} lives;

/* A worker is down from its death's being seen until its successor is ready. */
static void hear(void *context, const char *json)
{
    lives *l = context;
    const char *at = strstr(json, "\"worker\": ");
    if (!at)
        at = strstr(json, "\"worker\":");
    unsigned long w = at ? strtoul(strchr(at + 8, ':') + 1, NULL, 10) : DEVICES;
    if (w >= DEVICES)
        return;
    pthread_mutex_lock(&l->lock);
    if (strstr(json, "\"died\"")) {
        l->down_since[w] = now_s();
        l->deaths++;
    } else if (strstr(json, "\"started\"") && l->down_since[w] > 0) {
        l->down_s += now_s() - l->down_since[w];
        l->down_since[w] = 0;
    }
    pthread_mutex_unlock(&l->lock);
}

static void *kill_one_each_second(void *argument)
{
    lives *l = argument;
    unsigned seed = 1;
    dpi_error error;
    double next = now_s() + 1;
    while (!l->stop) {
        if (now_s() < next) {
            usleep(10000);
            continue;
        }
        next += 1;
        dpi_description d = DPI_INIT(dpi_description);
        size_t w = (size_t)rand_r(&seed) % DEVICES;
        if (dpi_describe(l->s, &d, &error) == DPI_OK && d.workers[w].pid > 0)
            kill((pid_t)d.workers[w].pid, SIGKILL);
    }
    return NULL;
}

static int kills(double seconds)
{
    static lives l = {.lock = PTHREAD_MUTEX_INITIALIZER};
    const char *text = "input x float32 N 16\noutput y float32 N 1\nfixed_us 5000\n";
    char source[80];
    const char *inputs[] = {source};
    dpi_options o = sim_options(text, "sim:0*64", ROWS);
    dpi_error error;
    o.event = hear;
    o.event_context = &l;
    if (dpi_open(&o, &l.s, &error))
        return failed(&error);
    double slices = seconds * DEVICES / SLICE_S;
    snprintf(source, sizeof source, "random:16:float32:%.0f", slices * ROWS);
    pthread_t killer;
    pthread_create(&killer, NULL, kill_one_each_second, &l);
    dpi_run_options run = DPI_INIT(dpi_run_options);
    dpi_run_result result = DPI_INIT(dpi_run_result);
    run.inputs = inputs;
    run.input_count = 1;
    if (dpi_run(l.s, &run, &result, &error))
        return failed(&error);
    l.stop = 1;
    pthread_join(killer, NULL);
    double busy = slices * SLICE_S, all = DEVICES * result.seconds;
    printf("%u workers killed in %.1f s, each down for %.0f ms on average\n", l.deaths, result.seconds,
           l.deaths ? 1000 * l.down_s / l.deaths : 0);
    printf("efficiency of the devices that live %.3f, of all 64 %.3f\n", busy / (all - l.down_s), busy / all);
    dpi_close(l.s);
    return 0;
}

int main(int argc, char **argv)
{
    double seconds = argc == 2 ? strtod(argv[1], NULL) : 0;
    if (!(seconds > 0)) {
        fprintf(stderr, "usage: bench_kills SECONDS\n");
        return 2;
    }
    return kills(seconds);
}
