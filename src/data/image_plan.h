/* How an image becomes a row: what dpi_preprocess asks for and what the model's input wants, brought together. */
#ifndef DPI_DATA_IMAGE_PLAN_H
#define DPI_DATA_IMAGE_PLAN_H

#include "base/error.h"
#include "base/tensor.h"
#include "data/image_module.h"

/* Fixed widths: it stands in the index that workers are given. */
typedef struct image_plan {
    image_geometry geometry;
    uint32_t dtype;  /* dpi_dtype: uint8, float16, bfloat16 or float32 */
    uint32_t planes; /* channels come first: all of one channel, then the next */
    uint32_t bgr;    /* blue first */
    uint32_t reserved;
    double scale;           /* value = (pixel * scale - mean) / std; pixels are 0 to 255 */
    double mean[3], std[3]; /* of the channels as they stand in the row */
    uint64_t max_bytes;     /* of a file, or a member of a tar */
} image_plan;

/* The row of an input `want`: [N,3,H,W], [N,H,W,3], or 1 for 3. Free axes follow `o` (may be NULL). `shape` is the port
 * of such rows, axis 0 left at 0. DPI_E_ARGUMENT: they contradict each other, the input takes no images, or a float
 * input without a word on how pixels become numbers. */
dpi_status image_plan_make(const dpi_preprocess *o, const port *want, image_plan *plan, port *shape, dpi_error *error);

/* The element for each of 256 pixel values, for each channel of a row: channels * 256 elements of plan->dtype.
 * malloc'd, NULL when out of memory. */
void *image_plan_table(const image_plan *plan);
/* Pixels (height x width x channels, red first) to a row. */
void image_plan_store(const image_plan *plan, const void *table, const unsigned char *pixels, void *row);

#endif
