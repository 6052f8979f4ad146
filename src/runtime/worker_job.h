/* A run's sources and sinks as a worker sees them. */
#ifndef DPI_RUNTIME_WORKER_JOB_H
#define DPI_RUNTIME_WORKER_JOB_H

#include "data/sink.h"
#include "data/source.h"
#include "runtime/worker.h"

typedef struct job_sink {
    int fd;               /* where rows go; -1: nowhere, or to the arena */
    bool in_arena;        /* rows go there as they are */
    uint64_t data_offset; /* of row 0 in it */
    size_t top;           /* > 0: records of so many classes */
    char name[256];       /* for messages */
} job_sink;

struct worker_job {
    struct worker_job *next;
    uint32_t id;
    bool dear;                 /* one of its sources has rows that are dear to load */
    source *sources[PORT_MAX]; /* per input; NULL for a broadcast input */
    size_t source_count;
    job_sink sinks[PORT_MAX]; /* per output */
    size_t sink_count;
};

/* Opens what the message {"job": id, "sources": [...], "sinks": [...]} names; `fds` are taken over. */
dpi_status worker_job_open(worker *w, const json_t *message, int *fds, size_t fd_count, dpi_error *error);
void worker_job_drop(worker *w, uint32_t id);
const worker_job *worker_job_find(const worker *w, uint32_t id);

/* Inputs of a slice from the sources (filling scratch where needed; where rows are dear to load, only their place is
 * prepared), and its outputs to the sinks. */
dpi_status worker_job_load(worker *w, const worker_job *job, flight *f, uint64_t source_row, dpi_error *error);
dpi_status worker_job_store(worker *w, const worker_job *job, flight *f, uint64_t result_row, const batch_desc *batch,
                            dpi_error *error);

#endif
