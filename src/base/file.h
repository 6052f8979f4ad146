/* Small helpers around files that several layers need. */
#ifndef DPI_BASE_FILE_H
#define DPI_BASE_FILE_H

#include <dpinfer/dpinfer.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Reads a whole regular file of at most `limit` bytes into malloc'd memory with a zero byte behind it (not counted). */
dpi_status file_read(const char *path, size_t limit, void **data, size_t *bytes, dpi_error *error);

/* Writes all of it at `offset`, however often the kernel stops short. DPI_E_IO with errno's text and `name`. */
dpi_status file_write_at(int fd, const void *data, size_t bytes, uint64_t offset, const char *name, dpi_error *error);
/* Reads exactly `bytes`; a short file is DPI_E_IO. */
dpi_status file_read_at(int fd, void *data, size_t bytes, uint64_t offset, const char *name, dpi_error *error);

/* What it is that a file cannot be opened or made with this errno: DPI_E_IO where the disk fails or is full, otherwise
 * DPI_E_DATA, the user's mistake. */
dpi_status file_open_failure(int number);

/* open, ftruncate and fsync (with `data_only` fdatasync), again where a signal of the caller's program came between.
 * errno says why not. */
int file_open(const char *path, int flags, mode_t mode);
bool file_cut(int fd, uint64_t bytes);
bool file_sync(int fd, bool data_only);

/* Creates the missing folders of `path` itself, mode 0700. */
dpi_status file_make_folders(const char *path, dpi_error *error);

/* fsyncs the folder that holds `path`, so that a rename in it is durable. */
dpi_status file_sync_folder_of(const char *path, dpi_error *error);

/* Path of the running program or of the library that holds `address`; malloc'd, NULL when unknown. */
char *file_of_program(void);
char *file_of_address(const void *address);

#endif
