#include "data/sample_index.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define INDEX_MAGIC   0x5844494du /* "MIDX" */
#define INDEX_VERSION 2u

typedef struct index_head {
    uint32_t magic, version;
    uint64_t count, string_bytes;
    uint32_t base, reserved;
    image_plan plan;
} index_head;

static_assert(sizeof(sample_row) == 32, "sample_row: size");
static_assert(sizeof(index_head) % 8 == 0, "index_head: rows follow");

/* ---- making ----------------------------------------------------------------------------------------------------- */

uint32_t sample_text(sample_list *list, const char *text)
{
    if (!list->strings.length)
        text_add_bytes(&list->strings, "", 1); /* offset 0 is none */
    size_t at = list->strings.length;
    text_add_bytes(&list->strings, text, strlen(text) + 1);
    list->failed |= list->strings.failed || list->strings.length > UINT32_MAX;
    return (uint32_t)at;
}

void sample_add(sample_list *list, sample_row row)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 1024;
        sample_row *rows = realloc(list->rows, capacity * sizeof *rows);
        if (!rows) {
            list->failed = true;
            return;
        }
        list->rows = rows;
        list->capacity = capacity;
    }
    list->rows[list->count++] = row;
}

void sample_mark(sample_list *list, const char *path)
{
    struct stat info = {0};
    if (!list->marks && !(list->marks = hash_new()))
        list->failed = true;
    if (stat(path, &info) != 0)
        info = (struct stat){0};
    hash_add_u64(list->marks, (uint64_t)info.st_ino);
    hash_add_u64(list->marks, (uint64_t)info.st_size);
    hash_add_u64(list->marks, (uint64_t)info.st_mtim.tv_sec);
    hash_add_u64(list->marks, (uint64_t)info.st_mtim.tv_nsec);
}

void sample_list_free(sample_list *list)
{
    free(list->rows);
    free(list->warning);
    text_free(&list->strings);
    spool_drop(&list->spool);
    hash_end(list->marks);
    *list = (sample_list){0};
}

static bool write_all(int fd, const void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = write(fd, (const char *)data + done, bytes - done);
        if (n < 0 && errno != EINTR)
            return false;
        done += n > 0 ? (size_t)n : 0;
    }
    return true;
}

dpi_status sample_index_make(const sample_list *list, const image_plan *plan, sample_index *index, dpi_error *error)
{
    char folder[PATH_MAX] = "/";
    if (!getcwd(folder, sizeof folder))
        return error_set_errno(error, DPI_E_SYSTEM, errno, "the working folder has no name");
    if (list->failed)
        return error_set(error, DPI_E_SYSTEM, "out of memory for the names of %zu images", list->count);
    index_head head = {.magic = INDEX_MAGIC, .version = INDEX_VERSION, .count = list->count, .plan = *plan};
    head.base = list->strings.length ? (uint32_t)list->strings.length : 1;
    head.string_bytes = head.base + strlen(folder) + 1;
    if (head.string_bytes > UINT32_MAX)
        return error_set(error, DPI_E_DATA, "the images have more than 4 GiB of names");
    int fd = memfd_create("dpinfer-samples", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    bool good = fd >= 0 && write_all(fd, &head, sizeof head) &&
                write_all(fd, list->rows, list->count * sizeof *list->rows) &&
                write_all(fd, list->strings.length ? list->strings.data : "", head.base) &&
                write_all(fd, folder, strlen(folder) + 1) &&
                fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) == 0;
    dpi_status status =
        good ? sample_index_open(fd, index, error)
             : error_set_errno(error, DPI_E_SYSTEM, errno, "no memory for the names of %zu images", list->count);
    if (fd >= 0)
        close(fd);
    return status;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static bool plan_is_sane(const image_plan *p)
{
    const image_geometry *g = &p->geometry;
    return (g->channels == 1 || g->channels == 3) && g->width >= 1 && g->width <= 32768 && g->height >= 1 &&
           g->height <= 32768 && g->resize_width <= 32768 && g->resize_height <= 32768 &&
           (p->dtype == DPI_U8 || p->dtype == DPI_F16 || p->dtype == DPI_BF16 || p->dtype == DPI_F32);
}

static bool parse(sample_index *x)
{
    const index_head *head = (const index_head *)(const void *)x->map;
    size_t rows_bytes, all;
    if (x->bytes < sizeof *head || head->magic != INDEX_MAGIC || head->version != INDEX_VERSION ||
        !size_multiply(head->count, sizeof(sample_row), &rows_bytes) ||
        !size_add(rows_bytes, sizeof *head + head->string_bytes, &all) || all != x->bytes || !head->string_bytes ||
        x->map[x->bytes - 1] || head->base >= head->string_bytes || !plan_is_sane(&head->plan))
        return false;
    x->plan = &head->plan;
    x->rows = (const sample_row *)(const void *)(x->map + sizeof *head);
    x->count = head->count;
    x->strings = (const char *)x->map + sizeof *head + rows_bytes;
    x->string_bytes = head->string_bytes;
    x->base = x->strings + head->base;
    return true;
}

dpi_status sample_index_open(int fd, sample_index *x, dpi_error *error)
{
    struct stat info;
    *x = (sample_index){.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0)};
    /* One that could still shrink would be a signal later. */
    int seals = fcntl(fd, F_GET_SEALS);
    if (x->fd < 0 || fstat(fd, &info) != 0 || seals < 0 || !(seals & F_SEAL_SHRINK) || !(seals & F_SEAL_WRITE)) {
        sample_index_close(x);
        return error_set(error, DPI_E_DATA, "the index of images is no sealed memory");
    }
    x->bytes = (size_t)info.st_size;
    void *map = x->bytes ? mmap(NULL, x->bytes, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    x->map = map == MAP_FAILED ? NULL : map;
    if (x->map && parse(x))
        return DPI_OK;
    sample_index_close(x);
    return error_set(error, DPI_E_DATA, "the index of images is not valid");
}

void sample_index_close(sample_index *x)
{
    if (x->map)
        munmap((void *)(uintptr_t)x->map, x->bytes);
    if (x->fd >= 0)
        close(x->fd);
    *x = (sample_index){.fd = -1};
}

const char *sample_string(const sample_index *x, uint32_t offset)
{
    return offset && offset < x->string_bytes ? x->strings + offset : NULL;
}

hash128 sample_index_hash(const sample_index *x) { return hash_of(x->map, x->bytes); }
