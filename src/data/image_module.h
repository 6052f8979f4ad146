/*
 * What dpinfer needs of libvips, as one table. image_vips.c fills it and is built as a module of its own,
 * dpinfer-images.so, so that a worker without images loads no image library, and a build without libvips lacks only
 * this (data/module.h finds it).
 */
#ifndef DPI_DATA_IMAGE_MODULE_H
#define DPI_DATA_IMAGE_MODULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define IMAGE_MODULE_VERSION 1u
#define IMAGE_MODULE_SYMBOL  "dpi_image_module"

/* From an image of any size to one of height x width x channels bytes. */
typedef struct image_geometry {
    uint32_t resize_width, resize_height; /* both: exactly; height 0: the shorter side becomes `width`, the longer keeps
                                             the ratio (rounded down, as torchvision does); both 0: as it is */
    uint32_t width, height;               /* of what is cut out of the centre */
    uint32_t channels;                    /* 3: red, green, blue; 1: luminance */
    uint32_t bicubic;                     /* else bilinear; both as wide as the reduction needs (antialias) */
    uint64_t max_pixels;                  /* of the image as its header says */
} image_geometry;

typedef struct image_module {
    uint32_t version;
    const char *library; /* "libvips 8.14.1" */
    /* Starts the library, once per process. false: `why` says what is wrong. */
    bool (*begin)(char *why, size_t size);
    /* JPEG, PNG, WebP or TIFF (the first page) in memory, told by its content. false: `why` says what is wrong with the
     * image. Several threads at once; starts none that outlives the call. */
    bool (*decode)(const void *data, size_t bytes, const image_geometry *g, unsigned char *pixels, char *why,
                   size_t size);
} image_module;

#endif
