/* Signals from outside, at their instants, to whichever worker there is then. */
#include "play.h"

#include "base/clock.h"
#include "ipc/child.h"

#include "api/sim_kit.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* Our children are workers and nothing else. One that is reaped between the look and the kill is missed: its number is
 * not given out again so soon. posix_spawn waits, as vfork does, until its child has become the worker program: one
 * that is stopped before that stops the supervisor with it, until somebody lets it go on, and nothing can be done about
 * that. */
static void send_one(play *y, int signal_number, uint64_t *c)
{
    pid_t pids[2 * PLAN_SEATS];
    size_t count = kit_children(pids, 2 * PLAN_SEATS);
    pid_t pid = count ? pids[chance_below(c, (unsigned)count)] : -1;
    if (pid < 0 || (signal_number == SIGSTOP && !child_is_worker(pid)) || kill(pid, signal_number) != 0)
        return;
    y->killed++;
    y->r->faults[signal_number == SIGKILL   ? FAULT_KILLED
                 : signal_number == SIGSTOP ? FAULT_STOPPED
                                            : FAULT_SIGNALLED]++;
}

static void *kill_by_plan(void *argument)
{
    play *y = argument;
    const plan *p = y->p;
    uint64_t c = p->seed;
    while (!p->kills_while_opening && !y->open && !y->over)
        clock_sleep_until_ns(clock_now_ns() + 200000);
    int64_t began = clock_now_ns();
    bool sent[PLAN_KILLS] = {false};
    while (!y->over) {
        for (size_t i = 0; i < p->kill_count; i++)
            if (!sent[i] && clock_now_ns() - began > (int64_t)p->kills[i].at_us * 1000) {
                sent[i] = true;
                send_one(y, p->kills[i].signal, &c);
            }
        int64_t until_ns = clock_now_ns() + 300000 + (int64_t)(chance(&c) % 700000);
        clock_sleep_until_ns(until_ns);
        note_slowness(y, 4 * (clock_now_ns() - until_ns));
    }
    return NULL;
}

void killer_start(play *y)
{
    if (pthread_create(&y->killer, NULL, kill_by_plan, y) != 0)
        plan_fail("cannot start a thread");
}

void killer_stop(play *y)
{
    y->over = true;
    pthread_join(y->killer, NULL);
}
