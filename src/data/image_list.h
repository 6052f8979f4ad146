/* Which images a spec names: folders, patterns, lists, tars. The caller's side alone. */
#ifndef DPI_DATA_IMAGE_LIST_H
#define DPI_DATA_IMAGE_LIST_H

#include "data/sample_index.h"

/* Whether a spec is one of images, going by its look and what stands there: "images:...", a folder, a name that ends as
 * images, lists or tars do, a pattern. */
bool image_spec(const char *spec);
bool image_suffix(const char *name);
typedef struct image_wants {
    const char *member;         /* as in dpi_preprocess */
    uint64_t max_bytes;         /* of an image: larger ones of compressed tars are listed and not kept */
    const spool_limits *limits; /* of compressed tars */
} image_wants;
/* Adds the rows; what compressed tars hold of them goes to list->spool. DPI_E_DATA: nothing there, none of it an image,
 * more than the limits; DPI_E_IO: no room in TMPDIR; DPI_CANCELLED. */
dpi_status image_list(const char *spec, const image_wants *wants, sample_list *list, dpi_error *error);

/* Paths, malloc'd; path_list_free ends one. */
typedef struct path_list {
    char **items;
    size_t count, capacity;
    bool failed;
} path_list;
void path_list_add(path_list *list, const char *path);
void path_list_free(path_list *list);
/* The files of a spec in their order: of tars their own. */
dpi_status image_paths(const char *spec, path_list *paths, dpi_error *error);

/* ---- image_tar.c ---- */
bool tar_spec(const char *spec);
/* "a-{08..11}.tar" to its names. DPI_E_DATA: too many, or the braces are not a range of numbers. */
dpi_status tar_expand(const char *spec, path_list *paths, dpi_error *error);
dpi_status tar_list(const path_list *paths, const image_wants *wants, sample_list *list, dpi_error *error);

#endif
