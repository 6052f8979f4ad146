/*
 * A worker's way out when a file that it has mapped shrinks: the access raises SIGBUS, the handler writes which source
 * and where into the worker's page, and the process leaves. Never installed in the caller's process.
 */
#ifndef DPI_DATA_SIGBUS_H
#define DPI_DATA_SIGBUS_H

#include <stddef.h>
#include <stdint.h>

#define SIGBUS_EXIT_CODE 74 /* EX_IOERR of sysexits.h */
#define SIGBUS_MAX       64

/* Installs the handler; the two words receive the source's number and the byte offset in its file. */
void sigbus_watch(uint32_t *source_word, uint64_t *offset_word);
/* A mapping to watch, from one thread; `number` > 0. Silently ignored beyond SIGBUS_MAX: the default action then. */
void sigbus_add(const void *start, size_t bytes, uint32_t number);
void sigbus_remove(const void *start);

#endif
