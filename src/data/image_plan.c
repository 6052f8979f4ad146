#include "data/image_plan.h"

#include <stdlib.h>
#include <string.h>

#define MAX_SIDE       32768
#define MAX_PIXELS     178956970ull /* what Pillow refuses as a decompression bomb */
#define MAX_FILE_BYTES (256ull << 20)

typedef struct recipe {
    const char *name;
    uint32_t margin, of; /* the shorter side becomes crop * margin / of; 0: as it is */
    bool bicubic;
    double scale, mean[3], std[3];
} recipe;

static const recipe recipes[] = {
    {"imagenet", 256, 224, false, 1.0 / 255, {0.485, 0.456, 0.406}, {0.229, 0.224, 0.225}},
    {"clip", 1, 1, true, 1.0 / 255, {0.48145466, 0.4578275, 0.40821073}, {0.26862954, 0.26130258, 0.27577711}},
    {"none", 0, 1, false, 1, {0, 0, 0}, {1, 1, 1}},
};

static const recipe *find_recipe(const char *name)
{
    for (size_t i = 0; i < sizeof recipes / sizeof recipes[0]; i++)
        if (strcmp(recipes[i].name, name) == 0)
            return &recipes[i];
    return NULL;
}

static dpi_status choose_recipe(const dpi_preprocess *o, const port *want, const recipe **of, dpi_error *error)
{
    bool numbers = o->mean || o->std || o->scale != 0;
    if (want->dtype == DPI_U8 && numbers)
        return error_set(error, DPI_E_ARGUMENT,
                         "the input %s takes uint8: pixels stay as they are, and --mean, --std and --scale say nothing",
                         want->name);
    const char *name = o->recipe ? o->recipe : want->dtype == DPI_U8 ? "imagenet" : numbers ? "none" : NULL;
    if (!name)
        return error_set(error, DPI_E_ARGUMENT,
                         "the input %s takes %s, and how pixels become such numbers its model does not tell: give "
                         "--preprocess imagenet, clip or none, or --scale, --mean and --std",
                         want->name, dpi_dtype_name(want->dtype));
    *of = find_recipe(name);
    return *of ? DPI_OK
               : error_set(error, DPI_E_ARGUMENT, "there is no recipe \"%.40s\"; say imagenet, clip or none", name);
}

static bool is_word(const char *word, const char *first, const char *second, dpi_status *status, const char *flag,
                    dpi_error *error)
{
    if (!word || strcmp(word, first) == 0 || strcmp(word, second) == 0)
        return word && strcmp(word, second) == 0;
    *status = error_set(error, DPI_E_ARGUMENT, "--%s takes %s or %s, not \"%.40s\"", flag, first, second, word);
    return false;
}

static bool is_channels(int64_t extent) { return extent == 3 || extent == 1; }

/* Which axes are height and width, and whether channels come first. */
static dpi_status place_axes(const dpi_preprocess *o, const port *want, int *height, int *channels, dpi_error *error)
{
    char text[SHAPE_TEXT_SIZE];
    dpi_status status = DPI_OK;
    bool takes = want->dtype == DPI_U8 || want->dtype == DPI_F32 || want->dtype == DPI_F16 || want->dtype == DPI_BF16;
    if (!takes || want->rank != 4)
        return error_set(error, DPI_E_ARGUMENT,
                         "the input %s takes %s %s, no images (uint8 or float, [N,3,H,W] or [N,H,W,3])", want->name,
                         dpi_dtype_name(want->dtype), shape_text(want->shape, want->rank, text));
    bool last = is_word(o->layout, "nchw", "nhwc", &status, "layout", error);
    if (!o->layout) {
        bool may_first = is_channels(want->shape[1]), may_last = is_channels(want->shape[3]);
        if (may_first == may_last)
            return error_set(error, DPI_E_ARGUMENT, "the input %s is %s: which axis holds the channels? Give --layout",
                             want->name, shape_text(want->shape, want->rank, text));
        last = may_last;
    }
    *channels = last ? 3 : 1;
    *height = last ? 1 : 2;
    int64_t count = want->shape[*channels];
    if (!status && count >= 0 && !is_channels(count))
        status = error_set(error, DPI_E_ARGUMENT, "the input %s takes %lld channels; images have 3 or 1", want->name,
                           (long long)count);
    return status;
}

/* One side of what is cut out: as the model says, as was asked, else 224. */
static dpi_status choose_side(const port *want, int axis, uint32_t asked, uint32_t *side, dpi_error *error)
{
    int64_t fixed = want->shape[axis];
    if (fixed > 0 && asked && asked != fixed)
        return error_set(error, DPI_E_ARGUMENT, "the input %s takes images of %lld on axis %d, and --crop says %u",
                         want->name, (long long)fixed, axis, asked);
    int64_t is = fixed > 0 ? fixed : asked ? asked : 224;
    if (is > MAX_SIDE)
        return error_set(error, DPI_E_ARGUMENT, "images of more than %d pixels a side are not made", MAX_SIDE);
    *side = (uint32_t)is;
    return DPI_OK;
}

static dpi_status choose_resize(const dpi_preprocess *o, const recipe *r, image_geometry *g, dpi_error *error)
{
    uint32_t shorter = g->width < g->height ? g->width : g->height, longer = g->width + g->height - shorter;
    if (o->resize[0] > MAX_SIDE || o->resize[1] > MAX_SIDE || (!o->resize[0] && o->resize[1]))
        return error_set(error, DPI_E_ARGUMENT, "--resize takes sides of 1 to %d pixels", MAX_SIDE);
    if (o->resize[1]) {
        g->resize_height = o->resize[0];
        g->resize_width = o->resize[1];
    } else if (o->resize[0]) {
        g->resize_width = o->resize[0];
    } else if (r->margin) {
        g->resize_width = (uint32_t)(((uint64_t)longer * r->margin + r->of / 2) / r->of);
    }
    bool fits = !g->resize_width || (o->resize[1] ? g->resize_width >= g->width && g->resize_height >= g->height
                                                  : g->resize_width >= longer);
    return fits ? DPI_OK
                : error_set(error, DPI_E_ARGUMENT,
                            "what --resize leaves is smaller than the %u x %u pixels to be cut out", g->width,
                            g->height);
}

static dpi_status choose_numbers(const dpi_preprocess *o, const recipe *r, image_plan *plan, dpi_error *error)
{
    plan->scale = o->scale != 0 ? o->scale : r->scale;
    const double *mean = o->mean ? o->mean : r->mean, *std = o->std ? o->std : r->std;
    bool good = plan->scale - plan->scale == 0; /* finite */
    for (int c = 0; c < 3; c++) {
        plan->mean[c] = mean[c];
        plan->std[c] = std[c];
        good &= mean[c] - mean[c] == 0 && std[c] - std[c] == 0 && std[c] != 0;
    }
    return good ? DPI_OK : error_set(error, DPI_E_ARGUMENT, "--scale, --mean and --std must be finite, --std not 0");
}

dpi_status image_plan_make(const dpi_preprocess *given, const port *want, image_plan *plan, port *shape,
                           dpi_error *error)
{
    dpi_preprocess none = DPI_INIT(dpi_preprocess);
    const dpi_preprocess *o = given ? given : &none;
    const recipe *r = NULL;
    int height = 0, channels = 0;
    memset(plan, 0, sizeof *plan);
    image_geometry *g = &plan->geometry;
    dpi_status status = place_axes(o, want, &height, &channels, error);
    if (!status)
        status = choose_recipe(o, want, &r, error);
    if (!status)
        status = choose_side(want, height, o->crop[0], &g->height, error);
    if (!status)
        status = choose_side(want, height + 1, o->crop[1] ? o->crop[1] : o->crop[0], &g->width, error);
    if (!status)
        status = choose_resize(o, r, g, error);
    if (!status)
        status = choose_numbers(o, r, plan, error);
    if (status)
        return status;
    g->bicubic = r->bicubic;
    if (o->interpolation)
        g->bicubic = is_word(o->interpolation, "bilinear", "bicubic", &status, "interpolation", error);
    plan->bgr = is_word(o->color, "rgb", "bgr", &status, "color", error);
    g->channels = want->shape[channels] == 1 ? 1 : 3;
    g->max_pixels = o->max_pixels ? o->max_pixels : MAX_PIXELS;
    plan->max_bytes = o->max_image_bytes ? o->max_image_bytes : MAX_FILE_BYTES;
    plan->dtype = (uint32_t)want->dtype;
    plan->planes = channels == 1;
    *shape = *want;
    shape->shape[0] = 0;
    shape->shape[channels] = g->channels;
    shape->shape[height] = g->height;
    shape->shape[height + 1] = g->width;
    return status;
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

void *image_plan_table(const image_plan *plan)
{
    dpi_dtype dtype = (dpi_dtype)plan->dtype;
    void *table = malloc(plan->geometry.channels * 256 * dpi_dtype_size(dtype));
    for (size_t i = 0; table && i < plan->geometry.channels * 256; i++) {
        double pixel = (double)(i % 256);
        size_t c = i / 256;
        dtype_set(dtype, table, i, dtype == DPI_U8 ? pixel : (pixel * plan->scale - plan->mean[c]) / plan->std[c]);
    }
    return table;
}

/* One channel of `count` pixels. */
#define STORE(type)                                                                                                    \
    do {                                                                                                               \
        const type *t = (const type *)table + c * 256;                                                                 \
        type *to = (type *)row + (plan->planes ? c * count : c);                                                       \
        for (size_t i = 0; i < count; i++)                                                                             \
            to[i * step] = t[from[i * channels]];                                                                      \
    } while (0)

void image_plan_store(const image_plan *plan, const void *table, const unsigned char *pixels, void *row)
{
    size_t channels = plan->geometry.channels, count = (size_t)plan->geometry.width * plan->geometry.height;
    size_t step = plan->planes ? 1 : channels;
    for (size_t c = 0; c < channels; c++) {
        const unsigned char *from = pixels + (plan->bgr ? channels - 1 - c : c);
        switch (dpi_dtype_size((dpi_dtype)plan->dtype)) {
        case 1: STORE(unsigned char); break;
        case 2: STORE(uint16_t); break;
        default: STORE(uint32_t); break;
        }
    }
}
