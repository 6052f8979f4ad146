#include "base/own_thread.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>

void own_thread_begin(const char *name)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    prctl(PR_SET_NAME, name);
}
