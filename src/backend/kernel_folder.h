/* A temporary folder for a GPU's kernels, which PyTorch loads by path, one by one, as they are first used. */
#ifndef DPI_BACKEND_KERNEL_FOLDER_H
#define DPI_BACKEND_KERNEL_FOLDER_H

#include "base/error.h"

/* Held by whoever made it, by a lock that ends with the process. */
typedef struct kernel_folder {
    char *path; /* NULL: there is none */
    int fd;     /* of the folder, with the lock */
} kernel_folder;

#define KERNEL_FOLDER_NONE ((kernel_folder){.fd = -1})

/* Makes a folder in TMPDIR, or /tmp, that nobody else can read. Removes those that processes of this user left when
 * they were killed. DPI_E_IO. */
dpi_status kernel_folder_make(kernel_folder *k, dpi_error *error);
/* Writes one kernel. `name` is no path and ends in ".cubin". */
dpi_status kernel_folder_add(const kernel_folder *k, const char *name, const void *data, size_t bytes,
                             dpi_error *error);
/* With all kernels in it. */
void kernel_folder_remove(kernel_folder *k);

#endif
