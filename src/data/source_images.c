/* Images: the caller lists them, workers decode them. */
#include "base/file.h"
#include "data/image_list.h"
#include "data/module.h"
#include "data/source_kind.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_FOLDERS 64
#define NAME_SHOWN  300 /* bytes of a long name, its end, in messages */

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static void shape_from_plan(source *s)
{
    const image_plan *plan = s->index.plan;
    const image_geometry *g = &plan->geometry;
    s->rows = s->index.count;
    s->shape.dtype = (dpi_dtype)plan->dtype;
    s->shape.rank = 4;
    s->shape.shape[0] = (int64_t)s->rows;
    s->shape.shape[plan->planes ? 1 : 3] = g->channels;
    s->shape.shape[plan->planes ? 2 : 1] = g->height;
    s->shape.shape[plan->planes ? 3 : 2] = g->width;
}

static dpi_status list_images(source *s, dpi_error *error)
{
    const source_options *o = s->options;
    image_plan plan;
    port shape;
    dpi_status status = image_plan_make(o->preprocess, o->want, &plan, &shape, error);
    if (status)
        return error_prefix(error, "%s", s->spec);
    sample_list list = {0};
    image_wants wants = {
        .member = o->preprocess ? o->preprocess->member : NULL, .max_bytes = plan.max_bytes, .limits = &o->spool};
    status = image_list(s->spec, &wants, &list, error);
    if (!status && list.spool.limits)
        status = spool_end(&list.spool, &s->spool_fd, error);
    if (!status)
        status = sample_index_make(&list, &plan, &s->index, error);
    if (!status) {
        char hex[HASH_HEX_SIZE], marks[HASH_HEX_SIZE];
        hash_to_hex(sample_index_hash(&s->index), hex);
        hash_to_hex(hash_end(list.marks), marks);
        list.marks = NULL;
        s->fact = text_format("%s (%llu images, %s and %s)", s->spec, (unsigned long long)s->index.count, hex, marks);
        s->warning = list.warning;
        list.warning = NULL;
    }
    sample_list_free(&list);
    return status;
}

/* The path of a row's file; false when it does not fit. */
static bool path_of(const source *s, const sample_row *row, char path[PATH_MAX])
{
    const char *name = sample_string(&s->index, row->path);
    if (!name)
        return false;
    size_t base = name[0] == '/' ? 0 : strlen(s->index.base), length = strlen(name);
    if (base + length + 2 > PATH_MAX)
        return false;
    memcpy(path, s->index.base, base);
    if (base)
        path[base++] = '/';
    memcpy(path + base, name, length + 1);
    return true;
}

/* A worker that may not read the first image's folder would find every row bad. */
static dpi_status check_folder(const source *s, dpi_error *error)
{
    char path[PATH_MAX];
    if (!s->index.count || !path_of(s, &s->index.rows[0], path))
        return DPI_OK;
    char *slash = strrchr(path, '/');
    slash[slash == path] = 0;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0)
        close(fd);
    return fd >= 0 || errno != EACCES
               ? DPI_OK
               : error_set(error, DPI_E_ARGUMENT,
                           "a worker may not read %s; name that folder in data_folders when the model is opened", path);
}

/* libvips starts once in a process. */
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static bool started;

static dpi_status start_decoder(source *s, dpi_error *error)
{
    char why[256] = "";
    const image_module *module = module_load("images", IMAGE_MODULE_SYMBOL, IMAGE_MODULE_VERSION, "libvips-dev", error);
    if (!module)
        return DPI_E_BACKEND;
    pthread_mutex_lock(&starting);
    bool good = started = started || module->begin(why, sizeof why);
    pthread_mutex_unlock(&starting);
    if (!good)
        return error_set(error, DPI_E_BACKEND, "%s: %s", module->library, why);
    s->module = module;
    s->table = image_plan_table(s->index.plan);
    return s->table ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
}

static dpi_status images_open(source *s, int fd, dpi_error *error)
{
    dpi_status status = fd >= 0 ? sample_index_open(fd, &s->index, error) : list_images(s, error);
    if (!status && fd >= 0)
        status = check_folder(s, error);
    if (!status && fd >= 0)
        status = start_decoder(s, error);
    if (status)
        return status;
    s->fd = s->index.fd;
    shape_from_plan(s);
    return DPI_OK;
}

static void images_close(source *s)
{
    sample_index_close(&s->index);
    if (s->spool_fd >= 0)
        close(s->spool_fd);
    free(s->fact);
    free(s->warning);
    free(s->table);
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

static const char *images_row_name(const source *s, uint64_t row, char buffer[SOURCE_NAME_SIZE])
{
    const char *name = sample_string(&s->index, s->index.rows[row].name);
    if (!name)
        return NULL;
    size_t length = strnlen(name, SOURCE_NAME_SIZE - 1);
    memcpy(buffer, name, length);
    buffer[length] = 0;
    return buffer;
}

static dpi_status grow(void **memory, size_t *have, size_t want, dpi_error *error)
{
    if (*have >= want)
        return DPI_OK;
    free(*memory);
    *memory = malloc(want);
    *have = *memory ? want : 0;
    return *memory ? DPI_OK : error_set(error, DPI_E_SYSTEM, "no memory for an image of %zu bytes", want);
}

/* What the process lacks, and not the row. */
static dpi_status open_failed(int number, dpi_error *error)
{
    bool ours = number == EMFILE || number == ENFILE || number == ENOMEM;
    return error_set_errno(error, ours ? DPI_E_SYSTEM : DPI_E_DATA, number, "cannot be opened");
}

static dpi_status read_bytes(int fd, const sample_row *row, uint64_t limit, row_scratch *scratch, size_t *bytes,
                             dpi_error *error)
{
    struct stat info;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
        return error_set(error, DPI_E_DATA, "is no regular file");
    bool part = row->place != SAMPLE_IS_FILE;
    uint64_t want = part ? row->bytes : (uint64_t)info.st_size;
    if (want > limit)
        return error_set(error, DPI_E_DATA, "has %llu bytes, and %llu are allowed (--max-image-bytes)",
                         (unsigned long long)want, (unsigned long long)limit);
    /* Files differ in size: one that does not fit is a bad row, and not the end of the others. */
    dpi_status status = grow(&scratch->file, &scratch->file_bytes, (size_t)want, error) ? DPI_E_DATA : DPI_OK;
    if (!status && want && file_read_at(fd, scratch->file, (size_t)want, part ? row->offset : 0, "it", error))
        status = DPI_E_DATA;
    *bytes = (size_t)want;
    return status;
}

static dpi_status read_file(const source *s, const sample_row *row, row_scratch *scratch, size_t *bytes,
                            dpi_error *error)
{
    char path[PATH_MAX];
    if (row->problem)
        return error_set(error, DPI_E_DATA, "%s", sample_string(&s->index, row->problem));
    if (row->place == SAMPLE_IN_SPOOL)
        return read_bytes(s->spool_fd, row, s->index.plan->max_bytes, scratch, bytes, error);
    if (!path_of(s, row, path))
        return error_set(error, DPI_E_DATA, "has too long a name");
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return open_failed(errno, error);
    dpi_status status = read_bytes(fd, row, s->index.plan->max_bytes, scratch, bytes, error);
    close(fd);
    return status;
}

static dpi_status images_load(const source *s, uint64_t row, void *to, row_scratch *scratch, dpi_error *error)
{
    const image_geometry *g = &s->index.plan->geometry;
    size_t pixel_bytes = (size_t)g->width * g->height * g->channels, bytes = 0;
    char why[320], buffer[SOURCE_NAME_SIZE];
    void *pixels = scratch->pixels;
    dpi_status status = grow(&pixels, &scratch->pixel_bytes, pixel_bytes, error);
    scratch->pixels = pixels;
    if (!status)
        status = read_file(s, &s->index.rows[row], scratch, &bytes, error);
    if (!status && !s->module->decode(scratch->file, bytes, g, scratch->pixels, why, sizeof why))
        status = error_set(error, DPI_E_DATA, "%s", why);
    if (!status)
        image_plan_store(s->index.plan, s->table, scratch->pixels, to);
    else if (status == DPI_E_DATA) {
        const char *name = images_row_name(s, row, buffer);
        size_t length = name ? strlen(name) : 0;
        bool is_long = length > NAME_SHOWN;
        error_prefix(error, "%s%s", is_long ? "..." : "", name ? name + (is_long ? length - NAME_SHOWN : 0) : "?");
    }
    return status;
}

const source_kind source_images = {
    .open = images_open, .close = images_close, .row_name = images_row_name, .load = images_load};

/* ---- folders ---------------------------------------------------------------------------------------------------- */

/* The part that two folders share, in `a`. */
static void keep_common(char *a, const char *b)
{
    size_t same = 0, at = 0;
    for (; a[at] && a[at] == b[at]; at++)
        same = a[at] == '/' ? at : same;
    if ((!a[at] && (!b[at] || b[at] == '/')) || (!b[at] && a[at] == '/'))
        same = at;
    a[same ? same : 1] = 0;
}

static bool is_within(const char *path, const char *folder)
{
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (!path[length] || path[length] == '/' || length == 1);
}

static void add_folder_of(char **folders, size_t *count, const char *file)
{
    char *real = realpath(file, NULL), *slash = real ? strrchr(real, '/') : NULL;
    if (slash)
        slash[slash == real] = 0;
    bool there = !slash; /* a file that is not there is a bad row, later */
    for (size_t i = 0; i < *count; i++)
        there = there || is_within(real, folders[i]);
    if (there) {
        free(real);
        return;
    }
    if (*count < MAX_FOLDERS) {
        folders[(*count)++] = real;
        return;
    }
    keep_common(folders[0], real);
    free(real);
    for (; *count > 1; folders[*count] = NULL) {
        keep_common(folders[0], folders[--*count]);
        free(folders[*count]);
    }
}

static bool in_same_folder(const char *a, const char *b)
{
    const char *slash_a = strrchr(a, '/'), *slash_b = strrchr(b, '/');
    size_t length = slash_a ? (size_t)(slash_a - a) : 0;
    return length == (slash_b ? (size_t)(slash_b - b) : 0) && memcmp(a, b, length) == 0;
}

char **source_folders(const char *spec)
{
    char **folders = calloc(MAX_FOLDERS + 1, sizeof *folders);
    path_list paths = {0};
    dpi_error unheard; /* whoever opens the source hears of it */
    size_t count = 0;
    if (folders && image_spec(spec) && image_paths(spec, &paths, &unheard) == DPI_OK)
        for (size_t i = 0; i < paths.count; i++) {
            struct stat info;
            bool link = lstat(paths.items[i], &info) != 0 || S_ISLNK(info.st_mode);
            if (!i || link || !in_same_folder(paths.items[i], paths.items[i - 1]))
                add_folder_of(folders, &count, paths.items[i]);
        }
    path_list_free(&paths);
    return folders;
}
