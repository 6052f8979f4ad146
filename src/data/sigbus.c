#include "data/sigbus.h"

#include <signal.h>
#include <string.h>
#include <unistd.h>

/* A signal handler has no context: this is the one place with state of its own, and only worker processes use it. */
static struct {
    uintptr_t start;
    size_t bytes;
    uint32_t number;
} mappings[SIGBUS_MAX];
static uint32_t *note_source;
static uint64_t *note_offset;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
    (void)context;
    uintptr_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < SIGBUS_MAX; i++) {
        if (!mappings[i].number || at < mappings[i].start || at - mappings[i].start >= mappings[i].bytes)
            continue;
        *note_offset = at - mappings[i].start;
        *note_source = mappings[i].number;
        _exit(SIGBUS_EXIT_CODE);
    }
    signal(number, SIG_DFL); /* not ours: the default action, as soon as this handler returns */
    raise(number);           /* a signal that was sent comes no second time by itself, as a fault would */
}

void sigbus_watch(uint32_t *source_word, uint64_t *offset_word)
{
    note_source = source_word;
    note_offset = offset_word;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGBUS, &action, NULL);
}

void sigbus_add(const void *start, size_t bytes, uint32_t number)
{
    for (int i = 0; i < SIGBUS_MAX; i++) {
        if (mappings[i].number)
            continue;
        mappings[i].start = (uintptr_t)start;
        mappings[i].bytes = bytes;
        mappings[i].number = number;
        return;
    }
}

void sigbus_remove(const void *start)
{
    for (int i = 0; i < SIGBUS_MAX; i++)
        if (mappings[i].number && mappings[i].start == (uintptr_t)start)
            mappings[i].number = 0;
}
