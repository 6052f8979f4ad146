#include "data/image_list.h"

#include "base/file.h"

#include <errno.h>
#include <fts.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#define PREFIX         "images:"
#define MAX_LIST_BYTES (4ull << 30)

static const char *without_prefix(const char *spec)
{
    return strncmp(spec, PREFIX, strlen(PREFIX)) == 0 ? spec + strlen(PREFIX) : spec;
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length > tail && strcasecmp(text + length - tail, end) == 0;
}

bool image_suffix(const char *name)
{
    static const char *const ends[] = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"};
    bool is = false;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        is |= ends_with(name, ends[i]);
    return is;
}

static bool is_folder(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static bool is_pattern(const char *path)
{
    struct stat info;
    return strpbrk(path, "*?[") && lstat(path, &info) != 0; /* a file may have such a name */
}

bool image_spec(const char *spec)
{
    return without_prefix(spec) != spec || tar_spec(spec) || image_suffix(spec) || ends_with(spec, ".txt") ||
           is_folder(spec) || is_pattern(spec);
}

/* ---- paths ------------------------------------------------------------------------------------------------------ */

void path_list_add(path_list *list, const char *path)
{
    if (list->count == list->capacity) {
        size_t capacity = list->capacity ? list->capacity * 2 : 256;
        char **items = realloc(list->items, capacity * sizeof *items);
        list->failed |= !items;
        if (!items)
            return;
        list->items = items;
        list->capacity = capacity;
    }
    char *copy = strdup(path);
    list->failed |= !copy;
    if (copy)
        list->items[list->count++] = copy;
}

void path_list_free(path_list *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->items[i]);
    free(list->items);
    *list = (path_list){0};
}

static int by_bytes(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void sort(path_list *paths)
{
    if (paths->count)
        qsort(paths->items, paths->count, sizeof *paths->items, by_bytes);
}

/* What begins with a dot is hidden; links to folders are not followed, links to files are files. */
static dpi_status walk_folder(const char *folder, path_list *paths, dpi_error *error)
{
    size_t length = strlen(folder);
    char *root = strndup(folder, length > 1 && folder[length - 1] == '/' ? length - 1 : length);
    char *roots[] = {root, NULL};
    FTS *walk = root ? fts_open(roots, FTS_PHYSICAL | FTS_COMFOLLOW | FTS_NOCHDIR, NULL) : NULL;
    if (!walk) {
        free(root);
        return error_set_errno(error, DPI_E_DATA, errno, "cannot read the folder %s", folder);
    }
    dpi_status status = DPI_OK;
    for (FTSENT *at; !status && (at = fts_read(walk));) {
        if (at->fts_level > 0 && at->fts_name[0] == '.')
            fts_set(walk, at, FTS_SKIP);
        else if (at->fts_info == FTS_DNR || at->fts_info == FTS_ERR)
            status = error_set_errno(error, DPI_E_DATA, at->fts_errno, "cannot read the folder %s", at->fts_path);
        else if (at->fts_info != FTS_D && at->fts_info != FTS_DP && image_suffix(at->fts_name) &&
                 !(at->fts_info == FTS_SL && is_folder(at->fts_path)))
            path_list_add(paths, at->fts_path);
    }
    fts_close(walk);
    free(root);
    if (!status && !paths->count)
        status =
            error_set(error, DPI_E_DATA, "there is no image in %s (.jpg, .jpeg, .png, .webp, .tif, .tiff)", folder);
    sort(paths);
    return status;
}

static dpi_status match_pattern(const char *pattern, path_list *paths, dpi_error *error)
{
    glob_t found = {0};
    int result = glob(pattern, GLOB_NOSORT, NULL, &found);
    for (size_t i = 0; !result && i < found.gl_pathc; i++)
        if (!is_folder(found.gl_pathv[i]))
            path_list_add(paths, found.gl_pathv[i]);
    globfree(&found);
    if (result == GLOB_NOSPACE)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    sort(paths);
    return paths->count ? DPI_OK : error_set(error, DPI_E_DATA, "there is no file %s", pattern);
}

static dpi_status read_list(const char *file, path_list *paths, dpi_error *error)
{
    void *data;
    size_t bytes;
    dpi_status status = file_read(file, MAX_LIST_BYTES, &data, &bytes, error);
    if (status)
        return status;
    const char *slash = strrchr(file, '/');
    int folder = slash ? (int)(slash - file + 1) : 0;
    char *rest = data;
    if (strlen(data) != bytes)
        status = error_set(error, DPI_E_DATA, "%s is no list of files: it holds a zero byte", file);
    for (char *line; !status && (line = strsep(&rest, "\n"));) {
        size_t length = strlen(line);
        if (length && line[length - 1] == '\r')
            line[--length] = 0;
        char *path = length && line[0] != '/' ? text_format("%.*s%s", folder, file, line) : NULL;
        if (length)
            path_list_add(paths, path ? path : line);
        free(path);
    }
    free(data);
    if (!status && !paths->count)
        status = error_set(error, DPI_E_DATA, "%s names no image", file);
    return status;
}

dpi_status image_paths(const char *spec, path_list *paths, dpi_error *error)
{
    const char *what = without_prefix(spec);
    dpi_status status;
    if (is_folder(what))
        status = walk_folder(what, paths, error);
    else if (is_pattern(what))
        status = match_pattern(what, paths, error);
    else if (tar_spec(what))
        status = tar_expand(what, paths, error);
    else if (ends_with(what, ".txt"))
        status = read_list(what, paths, error);
    else {
        struct stat info;
        path_list_add(paths, what);
        status = stat(what, &info) == 0 ? DPI_OK : error_set_errno(error, DPI_E_DATA, errno, "cannot open %s", what);
    }
    return !status && paths->failed ? error_set(error, DPI_E_SYSTEM, "out of memory") : status;
}

dpi_status image_list(const char *spec, const image_wants *wants, sample_list *list, dpi_error *error)
{
    path_list paths = {0};
    dpi_status status = image_paths(spec, &paths, error);
    if (!status && tar_spec(without_prefix(spec)))
        status = tar_list(&paths, wants, list, error);
    else
        for (size_t i = 0; !status && i < paths.count; i++) {
            uint32_t name = sample_text(list, paths.items[i]);
            sample_add(list, (sample_row){.path = name, .name = name});
            sample_mark(list, paths.items[i]);
        }
    path_list_free(&paths);
    return status;
}
