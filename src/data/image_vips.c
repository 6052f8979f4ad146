/* The module dpinfer-images.so: decoding and resizing by libvips. */
#include "data/image_module.h"

#include <stdio.h>
#include <string.h>
#include <vips/vips.h>

#define KEEP_OVERSAMPLING 2 /* shrink-on-load leaves at least so many pixels for one */
#define STRIP_ROWS        32

static bool fail(char *why, size_t size, const char *text)
{
    /* One buffer for the whole process: what another thread's image left there in the same moment may be in it. */
    char *said = vips_error_buffer_copy();
    size_t length = said ? strcspn(said, "\n") : 0;
    if (length)
        snprintf(why, size, "%s: %.*s", text, (int)length, said);
    else
        snprintf(why, size, "%s", text);
    g_free(said);
    return false;
}

static void be_silent(const char *domain, GLogLevelFlags level, const char *message, void *context)
{
    (void)domain;
    (void)level;
    (void)message;
    (void)context;
}

static bool begin(char *why, size_t size)
{
    if (vips_init("dpinfer"))
        return fail(why, size, "libvips does not start");
    g_log_set_handler("VIPS", G_LOG_LEVEL_WARNING | G_LOG_LEVEL_MESSAGE | G_LOG_LEVEL_INFO, be_silent, NULL);
    vips_cache_set_max(0); /* it knows buffers by their address */
    vips_concurrency_set(1);
    vips_block_untrusted_set(TRUE);
    return true;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

typedef enum image_kind { KIND_NONE, KIND_JPEG, KIND_PNG, KIND_WEBP, KIND_TIFF } image_kind;

static image_kind kind_of(const unsigned char *data, size_t bytes)
{
    static const struct {
        image_kind kind;
        const char *magic;
        size_t length;
    } known[] = {{KIND_JPEG, "\xff\xd8\xff", 3}, {KIND_PNG, "\x89PNG\r\n\x1a\n", 8},
                 {KIND_TIFF, "II*\0", 4},        {KIND_TIFF, "MM\0*", 4},
                 {KIND_TIFF, "II+\0", 4},        {KIND_TIFF, "MM\0+", 4}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (bytes > known[i].length && memcmp(data, known[i].magic, known[i].length) == 0)
            return known[i].kind;
    return bytes > 12 && memcmp(data, "RIFF", 4) == 0 && memcmp(data + 8, "WEBP", 4) == 0 ? KIND_WEBP : KIND_NONE;
}

/* `shrink`: 1, 2, 4 or 8. Nothing but the header is read yet. */
static VipsImage *open_image(image_kind kind, const void *data, size_t bytes, int shrink)
{
    void *buffer = (void *)(uintptr_t)data; /* only read */
    VipsImage *image = NULL;
#define COMMON "access", VIPS_ACCESS_SEQUENTIAL, "memory", TRUE, "fail_on", VIPS_FAIL_ON_TRUNCATED
    switch (kind) {
    case KIND_JPEG: vips_jpegload_buffer(buffer, bytes, &image, COMMON, "shrink", shrink, NULL); break;
    case KIND_PNG: vips_pngload_buffer(buffer, bytes, &image, COMMON, NULL); break;
    case KIND_WEBP: vips_webpload_buffer(buffer, bytes, &image, COMMON, "scale", 1.0 / shrink, NULL); break;
    case KIND_TIFF: vips_tiffload_buffer(buffer, bytes, &image, COMMON, NULL); break;
    case KIND_NONE: break;
    }
#undef COMMON
    return image;
}

/* The size that an image of width x height is resized to. */
static void target_of(const image_geometry *g, int width, int height, int *to_width, int *to_height)
{
    *to_width = g->resize_width ? (int)g->resize_width : width;
    *to_height = g->resize_height ? (int)g->resize_height : g->resize_width ? (int)g->resize_width : height;
    if (!g->resize_width || g->resize_height)
        return;
    if (width <= height)
        *to_height = (int)((int64_t)g->resize_width * height / width);
    else
        *to_width = (int)((int64_t)g->resize_width * width / height);
}

static int shrink_for(int width, int height, int to_width, int to_height)
{
    int shrink = 1;
    while (shrink < 8 && width / (2 * shrink) >= KEEP_OVERSAMPLING * to_width &&
           height / (2 * shrink) >= KEEP_OVERSAMPLING * to_height)
        shrink *= 2;
    return shrink;
}

/* ---- pixels ----------------------------------------------------------------------------------------------------- */

/* Replaces *image by what an operation made of it; false when that failed. */
static bool replace(VipsImage **image, int failed, VipsImage **by)
{
    g_object_unref(*image);
    *image = failed ? NULL : *by;
    return !failed;
}

/* 8 bits, without alpha: 1 band of grey, 3 of colour or 4 of ink. */
static bool to_bytes(VipsImage **image, char *why, size_t size)
{
    VipsImage *next = NULL;
    VipsBandFormat format = (*image)->BandFmt;
    int bands = (*image)->Bands;
    bool ink = (*image)->Type == VIPS_INTERPRETATION_CMYK && bands >= 4;
    int keep = ink ? 4 : bands >= 3 ? 3 : 1;
    if (format != VIPS_FORMAT_UCHAR && format != VIPS_FORMAT_USHORT) {
        snprintf(why, size, "its pixels are neither of 8 nor of 16 bits");
        return false;
    }
    if (bands > keep && !replace(image, vips_extract_band(*image, &next, 0, "n", keep, NULL), &next))
        return fail(why, size, "cannot be converted");
    if (format == VIPS_FORMAT_USHORT &&
        !replace(image, vips_cast(*image, &next, VIPS_FORMAT_UCHAR, "shift", TRUE, NULL), &next))
        return fail(why, size, "cannot be converted");
    return true;
}

static bool make_smaller(VipsImage **image, VipsKernel kernel, int to_width, int to_height)
{
    double across = (double)(*image)->Xsize / to_width, down = (double)(*image)->Ysize / to_height;
    VipsImage *next = NULL;
    return (across <= 1 && down <= 1) ||
           replace(image,
                   vips_reduce(*image, &next, across > 1 ? across : 1, down > 1 ? down : 1, "kernel", kernel, NULL),
                   &next);
}

/* Pixels are areas: the centre of one is half a pixel from its corner, before as after. */
static bool make_larger(VipsImage **image, const char *interpolation, int to_width, int to_height)
{
    double across = (double)to_width / (*image)->Xsize, down = (double)to_height / (*image)->Ysize;
    if (across <= 1 && down <= 1)
        return true;
    VipsImage *next = NULL;
    VipsInterpolate *method = vips_interpolate_new(interpolation);
    VipsArrayInt *area = vips_array_int_newv(4, 0, 0, to_width, to_height);
    bool good =
        method && replace(image,
                          vips_affine(*image, &next, across, 0.0, 0.0, down, "interpolate", method, "idx", 0.5, "idy",
                                      0.5, "odx", -0.5, "ody", -0.5, "oarea", area, "extend", VIPS_EXTEND_COPY, NULL),
                          &next);
    vips_area_unref(VIPS_AREA(area));
    if (method)
        g_object_unref(method);
    return good;
}

static bool resize_and_crop(VipsImage **image, const image_geometry *g, int to_width, int to_height, char *why,
                            size_t size)
{
    VipsImage *next = NULL;
    if (!make_smaller(image, g->bicubic ? VIPS_KERNEL_CUBIC : VIPS_KERNEL_LINEAR, to_width, to_height) ||
        !make_larger(image, g->bicubic ? "bicubic" : "bilinear", to_width, to_height))
        return fail(why, size, "cannot be resized");
    int width = (int)g->width, height = (int)g->height;
    int spare_x = (*image)->Xsize - width, spare_y = (*image)->Ysize - height;
    if (spare_x < 0 || spare_y < 0 || (!g->resize_width && (spare_x || spare_y))) {
        snprintf(why, size, "has %d x %d pixels where %d x %d are wanted", (*image)->Xsize, (*image)->Ysize, width,
                 height);
        return false;
    }
    /* Half of an odd number goes to the even side, as Python rounds. */
    int left = spare_x / 2 + (spare_x % 4 == 3), top = spare_y / 2 + (spare_y % 4 == 3);
    if ((spare_x || spare_y) && !replace(image, vips_crop(*image, &next, left, top, width, height, NULL), &next))
        return fail(why, size, "cannot be cropped");
    return true;
}

static unsigned char luminance(unsigned red, unsigned green, unsigned blue)
{
    return (unsigned char)((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16);
}

static void put_row(const unsigned char *from, int bands, size_t count, uint32_t channels, unsigned char *to)
{
    for (size_t x = 0; x < count; x++, from += bands, to += channels) {
        unsigned char color[3] = {from[0], from[bands >= 3 ? 1 : 0], from[bands >= 3 ? 2 : 0]};
        for (int c = 0; bands == 4 && c < 3; c++)
            color[c] = (unsigned char)(((255u - from[c]) * (255u - from[3]) + 127) / 255);
        if (channels == 1)
            to[0] = bands == 1 ? from[0] : luminance(color[0], color[1], color[2]);
        else
            memcpy(to, color, 3);
    }
}

static const unsigned char *row_at(const VipsRegion *region, int y)
{
    return region->data + (size_t)(y - region->valid.top) * (size_t)region->bpl;
}

/* From top to bottom, in this thread and no other. */
static bool compute(VipsImage *image, const image_geometry *g, unsigned char *pixels, char *why, size_t size)
{
    VipsRegion *region = vips_region_new(image);
    bool good = region != NULL;
    size_t row_bytes = (size_t)g->width * g->channels;
    for (int top = 0; good && top < image->Ysize; top += STRIP_ROWS) {
        int rows = image->Ysize - top < STRIP_ROWS ? image->Ysize - top : STRIP_ROWS;
        VipsRect strip = {.left = 0, .top = top, .width = image->Xsize, .height = rows};
        good = vips_region_prepare(region, &strip) == 0;
        for (int y = 0; good && y < rows; y++)
            put_row(row_at(region, top + y), image->Bands, g->width, g->channels,
                    pixels + (size_t)(top + y) * row_bytes);
    }
    if (region)
        g_object_unref(region);
    return good || fail(why, size, "cannot be decoded");
}

static bool process(image_kind kind, VipsImage **image, const void *data, size_t bytes, const image_geometry *g,
                    unsigned char *pixels, char *why, size_t size)
{
    int width = (*image)->Xsize, height = (*image)->Ysize, to_width, to_height;
    if ((uint64_t)width * (uint64_t)height > g->max_pixels) {
        snprintf(why, size, "has %d x %d pixels, and %llu are allowed (--max-pixels)", width, height,
                 (unsigned long long)g->max_pixels);
        return false;
    }
    target_of(g, width, height, &to_width, &to_height);
    if ((uint64_t)to_width * (uint64_t)to_height > g->max_pixels) {
        snprintf(why, size, "is resized from %d x %d to %d x %d pixels, and %llu are allowed (--max-pixels)", width,
                 height, to_width, to_height, (unsigned long long)g->max_pixels);
        return false;
    }
    int shrink = kind == KIND_JPEG || kind == KIND_WEBP ? shrink_for(width, height, to_width, to_height) : 1;
    if (shrink > 1) {
        g_object_unref(*image);
        *image = open_image(kind, data, bytes, shrink);
        if (!*image)
            return fail(why, size, "cannot be decoded");
    }
    return to_bytes(image, why, size) && resize_and_crop(image, g, to_width, to_height, why, size) &&
           compute(*image, g, pixels, why, size);
}

static bool decode(const void *data, size_t bytes, const image_geometry *g, unsigned char *pixels, char *why,
                   size_t size)
{
    image_kind kind = kind_of(data, bytes);
    if (kind == KIND_NONE) {
        snprintf(why, size, bytes ? "is no JPEG, PNG, WebP or TIFF image" : "is empty");
        return false;
    }
    VipsImage *image = open_image(kind, data, bytes, 1);
    bool good = image ? process(kind, &image, data, bytes, g, pixels, why, size) : fail(why, size, "cannot be decoded");
    if (image)
        g_object_unref(image);
    return good;
}

__attribute__((visibility("default"))) const image_module dpi_image_module = {
    .version = IMAGE_MODULE_VERSION,
    .library = "libvips " VIPS_VERSION,
    .begin = begin,
    .decode = decode,
};
