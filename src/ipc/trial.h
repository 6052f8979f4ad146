/*
 * Trials: rows that one worker is to compute with nothing else in flight (runtime/recovery.h). The caller alone writes,
 * and `number` is 0 while it does. A worker reads the number first and again after the rest: what it has read in
 * between is of that trial, whole.
 */
#ifndef DPI_IPC_TRIAL_H
#define DPI_IPC_TRIAL_H

#include "ipc/layout.h"

typedef struct trial_order {
    uint32_t worker, slot, sequence, slice;
    uint64_t first_row, rows; /* within the batch */
    bool fill;                /* not computed: the outputs get the value of rows that cannot be */
} trial_order;

/* Pairs with trial_read. `number` is not 0, and none that was asked for before. */
static inline void trial_ask(trial *t, uint64_t number, const trial_order *o)
{
    atomic_store(&t->number, 0);
    atomic_store(&t->worker, o->worker);
    atomic_store(&t->slot, o->slot);
    atomic_store(&t->sequence, o->sequence);
    atomic_store(&t->slice, o->slice);
    atomic_store(&t->first_row, o->first_row);
    atomic_store(&t->rows, o->rows);
    atomic_store(&t->fill, o->fill);
    atomic_store(&t->number, number);
}

/* The trial that is asked for: its number, 0 when there is none or it is just being replaced (then the bell rings). */
static inline uint64_t trial_read(const trial *t, trial_order *o)
{
    uint64_t number = atomic_load(&t->number);
    *o = (trial_order){.worker = atomic_load(&t->worker),
                       .slot = atomic_load(&t->slot),
                       .sequence = atomic_load(&t->sequence),
                       .slice = atomic_load(&t->slice),
                       .first_row = atomic_load(&t->first_row),
                       .rows = atomic_load(&t->rows),
                       .fill = atomic_load(&t->fill) != 0};
    return atomic_load(&t->number) == number ? number : 0;
}

#endif
