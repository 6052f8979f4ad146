#include "base/tensor.h"

#include "base/hash.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

bool shape_elements(const int64_t *shape, int from, int rank, size_t *elements)
{
    size_t product = 1;
    for (int i = from; i < rank; i++)
        if (shape[i] < 0 || !size_multiply(product, (size_t)shape[i], &product))
            return false;
    *elements = product;
    return product <= SIZE_MAX / 16; /* room for any dtype */
}

bool shape_row_bytes(dpi_dtype dtype, const int64_t *shape, int rank, size_t *bytes)
{
    size_t elements;
    return rank >= 1 && shape_elements(shape, 1, rank, &elements) &&
           size_multiply(elements, dpi_dtype_size(dtype), bytes);
}

bool shape_bytes(dpi_dtype dtype, const int64_t *shape, int rank, size_t *bytes)
{
    size_t elements;
    return shape_elements(shape, 0, rank, &elements) && size_multiply(elements, dpi_dtype_size(dtype), bytes);
}

const char *shape_text(const int64_t *shape, int rank, char buffer[SHAPE_TEXT_SIZE])
{
    size_t used = 0;
    buffer[used++] = '[';
    for (int i = 0; i < rank && i < DPI_MAX_RANK; i++) {
        if (shape[i] < 0)
            used += (size_t)snprintf(buffer + used, SHAPE_TEXT_SIZE - used, "%s%s", i ? "," : "", i ? "?" : "N");
        else
            used +=
                (size_t)snprintf(buffer + used, SHAPE_TEXT_SIZE - used, "%s%lld", i ? "," : "", (long long)shape[i]);
    }
    snprintf(buffer + used, SHAPE_TEXT_SIZE - used, "]");
    return buffer;
}

bool shape_parse(const char *text, size_t length, int64_t *shape, int *rank)
{
    *rank = 0;
    if (length == 0)
        return true;
    for (size_t at = 0; at <= length;) {
        size_t end = at;
        char part[16];
        while (end < length && text[end] != 'x')
            end++;
        uint64_t extent;
        if (end - at >= sizeof part || *rank >= DPI_MAX_RANK - 1)
            return false;
        memcpy(part, text + at, end - at);
        part[end - at] = 0;
        if (!text_to_u64(part, 1, 1ull << 31, &extent))
            return false;
        shape[(*rank)++] = (int64_t)extent;
        at = end + 1;
    }
    return true;
}

bool port_accepts_shape(const port *p, const int64_t *shape, int rank)
{
    if (rank != p->rank)
        return false;
    for (int i = 0; i < rank; i++)
        if (p->shape[i] >= 0 && p->shape[i] != shape[i])
            return false;
    return true;
}

dpi_dtype dtype_by_name(const char *name)
{
#define X(dtype, number, bytes, text)                                                                                  \
    if (strcmp(name, text) == 0)                                                                                       \
        return dtype;
    DPI_DTYPE_LIST(X)
#undef X
    return DPI_DTYPE_NONE;
}

bool dtype_is_float(dpi_dtype dtype)
{
    return dtype == DPI_F16 || dtype == DPI_BF16 || dtype == DPI_F32 || dtype == DPI_F64;
}

int port_find(const port *ports, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(ports[i].name, name) == 0)
            return (int)i;
    return -1;
}

/* ---- elements --------------------------------------------------------------------------------------------------- */

static float half_to_float(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 0x3ffu;
    if (exponent == 0) /* zero or subnormal: fraction * 2^-24 is exact */
        return (sign ? -1.0f : 1.0f) * (float)fraction * 0x1p-24f;
    uint32_t bits =
        exponent == 31 ? sign | 0x7f800000u | fraction << 13 : sign | (exponent + 112) << 23 | fraction << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t float_to_half(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) /* rounds to 65520 or more: saturated to the largest, infinity kept */
        return (uint16_t)(sign | (magnitude == 0x7f800000u ? 0x7c00u : 0x7bffu));
    if (magnitude < 0x38800000u) { /* subnormal in half: let the FPU round to a multiple of 2^-24 */
        float scaled = fabsf(value) * 0x1p24f;
        return (uint16_t)(sign | (uint16_t)nearbyintf(scaled));
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u); /* to nearest, ties to even */
    return (uint16_t)(sign | (uint16_t)((rounded - 0x38000000u) >> 13));
}

static float bfloat_to_float(uint16_t bits16)
{
    uint32_t bits = (uint32_t)bits16 << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint16_t float_to_bfloat(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#define INTEGER_TYPES(X)                                                                                               \
    X(DPI_I8, int8_t, INT8_MIN, INT8_MAX)                                                                              \
    X(DPI_U8, uint8_t, 0, UINT8_MAX)                                                                                   \
    X(DPI_I16, int16_t, INT16_MIN, INT16_MAX)                                                                          \
    X(DPI_U16, uint16_t, 0, UINT16_MAX)                                                                                \
    X(DPI_I32, int32_t, INT32_MIN, INT32_MAX)                                                                          \
    X(DPI_U32, uint32_t, 0, UINT32_MAX)                                                                                \
    X(DPI_I64, int64_t, INT64_MIN, INT64_MAX)                                                                          \
    X(DPI_U64, uint64_t, 0, UINT64_MAX)

double dtype_get(dpi_dtype dtype, const void *data, size_t index)
{
    const unsigned char *at = (const unsigned char *)data + index * dpi_dtype_size(dtype);
    switch (dtype) {
#define X(name, type, low, high)                                                                                       \
    case name: {                                                                                                       \
        type value;                                                                                                    \
        memcpy(&value, at, sizeof value);                                                                              \
        return (double)value;                                                                                          \
    }
        INTEGER_TYPES(X)
#undef X
    case DPI_BOOL: return *at ? 1 : 0;
    case DPI_F16:
    case DPI_BF16: {
        uint16_t bits;
        memcpy(&bits, at, sizeof bits);
        return (double)(dtype == DPI_F16 ? half_to_float(bits) : bfloat_to_float(bits));
    }
    case DPI_F32: {
        float value;
        memcpy(&value, at, sizeof value);
        return (double)value;
    }
    case DPI_F64: {
        double value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    case DPI_DTYPE_NONE: break;
    }
    return 0;
}

void dtype_set(dpi_dtype dtype, void *data, size_t index, double value)
{
    unsigned char *at = (unsigned char *)data + index * dpi_dtype_size(dtype);
    double rounded = nearbyint(value);
    switch (dtype) {
#define X(name, type, low, high)                                                                                       \
    case name: {                                                                                                       \
        type stored = !(rounded > (double)(low))  ? (type)(low)                                                        \
                      : rounded >= (double)(high) ? (type)(high)                                                       \
                                                  : (type)rounded;                                                     \
        if (value != value)                                                                                            \
            stored = 0;                                                                                                \
        memcpy(at, &stored, sizeof stored);                                                                            \
        return;                                                                                                        \
    }
        INTEGER_TYPES(X)
#undef X
    case DPI_BOOL: *at = value != 0; return;
    case DPI_F16:
    case DPI_BF16: {
        uint16_t bits = dtype == DPI_F16 ? float_to_half((float)value) : float_to_bfloat((float)value);
        memcpy(at, &bits, sizeof bits);
        return;
    }
    case DPI_F32: {
        float stored = (float)value;
        memcpy(at, &stored, sizeof stored);
        return;
    }
    case DPI_F64: memcpy(at, &value, sizeof value); return;
    case DPI_DTYPE_NONE: return;
    }
}

/* ---- random rows ------------------------------------------------------------------------------------------------ */

/* A normal of standard deviation 1, near enough: the sum of four uniform 16-bit lanes (Irwin-Hall), which costs one
 * 64-bit hash. Range +-3.46. */
static double near_normal(uint64_t bits)
{
    uint64_t sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
    return ((double)sum - 2.0 * 65535.0) * (1.0 / 37837.0); /* sqrt(4/12) * 65536 */
}

static void fill_row(dpi_dtype dtype, unsigned char *row, size_t elements, uint64_t key, bool small)
{
    size_t size = dpi_dtype_size(dtype);
    if (dtype == DPI_F32) {
        for (size_t e = 0; e < elements; e++) {
            float value = (float)near_normal(hash_mix64(key, e));
            memcpy(row + e * 4, &value, 4);
        }
    } else if (size == 1 && dtype != DPI_BOOL && !small) {
        for (size_t e = 0; e < elements; e += 8) {
            uint64_t bits = hash_mix64(key, e / 8);
            memcpy(row + e, &bits, elements - e < 8 ? elements - e : 8);
        }
    } else {
        bool bit = dtype == DPI_BOOL || small;
        for (size_t e = 0; e < elements; e++) {
            uint64_t bits = hash_mix64(key, e);
            double integer = bit ? (double)(bits >> 63) : (double)((bits >> 33) % 100);
            dtype_set(dtype, row, e, dtype_is_float(dtype) ? near_normal(bits) : integer);
        }
    }
}

void tensor_fill_random(dpi_dtype dtype, void *data, size_t row_elements, uint64_t first_row, size_t rows,
                        uint64_t seed, bool small_integers)
{
    size_t row_bytes = row_elements * dpi_dtype_size(dtype);
    for (size_t r = 0; r < rows; r++)
        fill_row(dtype, (unsigned char *)data + r * row_bytes, row_elements, hash_mix64(seed, first_row + r),
                 small_integers);
}
