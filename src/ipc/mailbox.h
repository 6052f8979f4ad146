/*
 * Mailbox of strict isolation: how a worker that can touch no claim word is given slices, and says that it has computed
 * them. The caller's courier (runtime/courier.h) is at the other end and moves the words.
 *
 * Assignments stand in control, which the caller alone can write; reports in the worker's page. Both are rings of
 * seats: assignment number n (1, 2, ... in each generation) is in seat n % MAILBOX_SEATS, and so is its report, which
 * carries the number. A seat holds one assignment at a time: the courier writes the next one only once the report of
 * the one before has come. The steps are those of runtime/mailbox.pml:
 *
 *     M1 assign    courier: what is to be computed, then its number (release); rings the worker
 *     M2 take      worker: the number of the one that comes next (acquire), then what it says; shows that it has it
 *     M3 report    worker: its rows, in its private memory; then the report (release); rings the courier
 *     M4 collect   courier: the report (acquire), then the rows are copied to their place, then the word is moved
 *     M5 stop      courier: the worker is dead; the last reports are collected, what it had not taken is CLAIMED again
 *
 * A report may hold anything: it is believed where it is the one that is awaited in its seat, and is a breach of the
 * protocol otherwise (mailbox_look). The seats are empty when a generation begins.
 */
#ifndef DPI_IPC_MAILBOX_H
#define DPI_IPC_MAILBOX_H

#include <assert.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define MAILBOX_SEATS 16 /* in flight at most: an engine's depth, what is loaded ahead, and one to come */

typedef struct mailbox_slice {
    uint32_t slot, sequence, slice, flags; /* flags: of the batch when it was claimed */
    uint32_t stolen, reserved;
} mailbox_slice;

typedef struct assignment {
    _Atomic uint64_t number; /* 0: none yet. Written last */
    mailbox_slice what;
} assignment;

static_assert(sizeof(assignment) == 32, "assignment: size");

/* One for each worker, in control. */
typedef struct outbox {
    alignas(64) _Atomic uint32_t sleeping; /* whether the courier sleeps on the bell in the page */
    uint32_t reserved[15];
    assignment seats[MAILBOX_SEATS];
} outbox;

static_assert(sizeof(outbox) == 64 + 32 * MAILBOX_SEATS, "outbox: size");

#define MAILBOX_REASON 1020

/* In the worker's page. The caller empties it before a generation begins and reads it afterwards. */
typedef struct inbox {
    _Atomic uint32_t
        bell;             /* of the courier: the worker rings it for a report, the caller for whatever may be claimed */
    _Atomic uint32_t job; /* the run whose files this worker has open, 0: none */
    _Atomic uint64_t taken; /* assignments that the worker has taken: those behind it cannot be what it died of */
    _Atomic uint64_t reports[MAILBOX_SEATS];
    char reasons[MAILBOX_SEATS][MAILBOX_REASON]; /* why the slice that is reported there has failed */
} inbox;

static inline uint64_t mailbox_report(uint64_t number, uint32_t status) { return number << 8 | (status & 0xffu); }

/* M1 assign. The seat's report has come. */
static inline void mailbox_assign(outbox *to, uint64_t number, mailbox_slice what)
{
    assignment *a = &to->seats[number % MAILBOX_SEATS];
    a->what = what;
    atomic_store_explicit(&a->number, number, memory_order_release); /* pairs with mailbox_next */
}

/* M2 take. Assignment `number`, NULL: it has not come yet. */
static inline const mailbox_slice *mailbox_next(const outbox *from, uint64_t number)
{
    const assignment *a = &from->seats[number % MAILBOX_SEATS];
    return atomic_load_explicit(&a->number, memory_order_acquire) == number ? &a->what : NULL;
}

/* M3 report. */
static inline void mailbox_answer(inbox *to, uint64_t number, uint32_t status)
{
    atomic_store_explicit(&to->reports[number % MAILBOX_SEATS], mailbox_report(number, status), memory_order_release);
}

typedef enum mailbox_look { MAILBOX_SILENT, MAILBOX_ANSWERED, MAILBOX_BREACH } mailbox_look;

/* M4 collect. What stands in the seat of assignment `number`, whose last report was `before` (0: it had none).
 * MAILBOX_ANSWERED: *status is what it says. `awaited`: else nothing may have come. */
static inline mailbox_look mailbox_collect(const inbox *from, uint64_t number, uint64_t before, bool awaited,
                                           uint32_t *status)
{
    uint64_t now = atomic_load_explicit(&from->reports[number % MAILBOX_SEATS], memory_order_acquire);
    if (now == before)
        return MAILBOX_SILENT;
    *status = (uint32_t)(now & 0xffu);
    return awaited && now >> 8 == number ? MAILBOX_ANSWERED : MAILBOX_BREACH;
}

#endif
