#include "base/crew.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

struct crew {
    pthread_mutex_t lock;
    pthread_cond_t begin, end;
    /* under the lock */
    unsigned long loop; /* counts loops */
    size_t busy;        /* helpers inside the present loop */
    bool quit;
    /* of the present loop; constant while it runs, but for `next` */
    void (*job)(void *context, size_t i);
    void *context;
    size_t count;
    _Atomic size_t next;
    size_t helper_count;
    pthread_t helpers[];
};

static void take_part(crew *c)
{
    for (size_t i; (i = atomic_fetch_add_explicit(&c->next, 1, memory_order_relaxed)) < c->count;)
        c->job(c->context, i);
}

static void *help(void *argument)
{
    crew *c = argument;
    unsigned long seen = 0;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (c->loop == seen && !c->quit)
            pthread_cond_wait(&c->begin, &c->lock);
        if (c->quit)
            break;
        seen = c->loop;
        c->busy++;
        pthread_mutex_unlock(&c->lock);
        take_part(c);
        pthread_mutex_lock(&c->lock);
        if (--c->busy == 0)
            pthread_cond_signal(&c->end);
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

crew *crew_new(size_t helpers)
{
    crew *c = calloc(1, sizeof *c + helpers * sizeof c->helpers[0]);
    if (!c)
        return NULL;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->begin, NULL);
    pthread_cond_init(&c->end, NULL);
    while (c->helper_count < helpers && pthread_create(&c->helpers[c->helper_count], NULL, help, c) == 0)
        c->helper_count++;
    if (c->helper_count)
        return c;
    crew_free(c);
    return NULL;
}

void crew_free(crew *c)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    c->quit = true;
    pthread_cond_broadcast(&c->begin);
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < c->helper_count; i++)
        pthread_join(c->helpers[i], NULL);
    pthread_cond_destroy(&c->begin);
    pthread_cond_destroy(&c->end);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void crew_run(crew *c, size_t count, void (*job)(void *context, size_t i), void *context)
{
    if (!c || count < 2) {
        for (size_t i = 0; i < count; i++)
            job(context, i);
        return;
    }
    pthread_mutex_lock(&c->lock);
    /* A helper that slept through the last loop's work may only now look for some of it: let it find none. */
    while (c->busy)
        pthread_cond_wait(&c->end, &c->lock);
    c->job = job;
    c->context = context;
    c->count = count;
    atomic_store_explicit(&c->next, 0, memory_order_relaxed);
    c->loop++;
    pthread_cond_broadcast(&c->begin);
    pthread_mutex_unlock(&c->lock);
    take_part(c);
    pthread_mutex_lock(&c->lock);
    while (c->busy)
        pthread_cond_wait(&c->end, &c->lock);
    c->count = 0; /* who wakes up late finds nothing */
    pthread_mutex_unlock(&c->lock);
}
