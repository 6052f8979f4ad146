/*
 * How many GPUs there are, asked in a process of its own: CUDA, once initialised, would be lost to every child that the
 * caller forks later.
 */
#ifndef DPI_RUNTIME_GPUS_H
#define DPI_RUNTIME_GPUS_H

#include "base/error.h"

#define GPUS_ARGUMENT "count-gpus" /* what the worker program is started with */

/* The number of CUDA devices that a worker would see (CUDA_VISIBLE_DEVICES is respected); 0 when there is no driver, no
 * GPU, or no answer within 30 s. Starts nothing where there is no driver. Blocks for CUDA's start-up, about 0.3 s. */
int gpus_count(const char *worker_path);

/* The other side, in the worker program: prints the number. */
int gpus_main(void);

#endif
