#include "data/npy.h"

#include "base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The header is a Python dict literal: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }. This reads just
 * that grammar: keys in any order, blanks anywhere, either quote, an optional last comma. */
typedef struct reader {
    const char *at, *end;
} reader;

static void skip_blanks(reader *r)
{
    while (r->at < r->end && (*r->at == ' ' || *r->at == '\t' || *r->at == '\n' || *r->at == '\r'))
        r->at++;
}

static bool take(reader *r, char c)
{
    skip_blanks(r);
    if (r->at >= r->end || *r->at != c)
        return false;
    r->at++;
    return true;
}

static bool take_word(reader *r, const char *word)
{
    size_t length = strlen(word);
    skip_blanks(r);
    if ((size_t)(r->end - r->at) < length || memcmp(r->at, word, length) != 0)
        return false;
    r->at += length;
    return true;
}

static bool take_string(reader *r, char *out, size_t size)
{
    skip_blanks(r);
    if (r->at >= r->end || (*r->at != '\'' && *r->at != '"'))
        return false;
    char quote = *r->at++;
    size_t length = 0;
    for (; r->at < r->end && *r->at != quote; r->at++) {
        if (*r->at == '\\' || (unsigned char)*r->at < ' ' || length + 1 >= size)
            return false;
        out[length++] = *r->at;
    }
    out[length] = 0;
    return take(r, quote);
}

static bool take_number(reader *r, int64_t *value)
{
    skip_blanks(r);
    const char *start = r->at;
    int64_t v = 0;
    for (; r->at < r->end && *r->at >= '0' && *r->at <= '9'; r->at++)
        if (__builtin_mul_overflow(v, (int64_t)10, &v) || __builtin_add_overflow(v, (int64_t)(*r->at - '0'), &v))
            return false;
    *value = v;
    return r->at > start;
}

static bool take_shape(reader *r, npy_header *h)
{
    if (!take(r, '('))
        return false;
    h->rank = 0;
    while (!take(r, ')')) {
        if (h->rank == DPI_MAX_RANK || !take_number(r, &h->shape[h->rank]))
            return false;
        h->rank++;
        if (!take(r, ',')) {
            /* (3) is a number in Python, not a tuple */
            return h->rank > 1 && take(r, ')');
        }
    }
    return true;
}

static const struct {
    const char *code;
    dpi_dtype dtype;
} npy_types[] = {{"b1", DPI_BOOL}, {"i1", DPI_I8},  {"u1", DPI_U8},  {"i2", DPI_I16}, {"u2", DPI_U16}, {"i4", DPI_I32},
                 {"u4", DPI_U32},  {"i8", DPI_I64}, {"u8", DPI_U64}, {"f2", DPI_F16}, {"f4", DPI_F32}, {"f8", DPI_F64}};

static dpi_status read_dtype(const char *descr, const char *name, npy_header *h, dpi_error *error)
{
    char order = descr[0];
    if (descr[0] && strchr("<>|=", order)) {
        for (size_t i = 0; i < sizeof npy_types / sizeof npy_types[0]; i++) {
            if (strcmp(descr + 1, npy_types[i].code) != 0)
                continue;
            h->dtype = npy_types[i].dtype;
            if (order == '>' && dpi_dtype_size(h->dtype) > 1)
                return error_set(error, DPI_E_DATA,
                                 "%s holds big-endian data (%s); write it again with numpy: a.astype('<%s')", name,
                                 descr, npy_types[i].code);
            return DPI_OK;
        }
    }
    if (strchr(descr, 'O'))
        return error_set(error, DPI_E_DATA, "%s holds Python objects (dtype object), which are never read", name);
    return error_set(error, DPI_E_DATA, "%s has the dtype \"%.40s\", which dpinfer does not read", name, descr);
}

static dpi_status read_dict(reader *r, const char *name, npy_header *h, dpi_error *error)
{
    bool has_descr = false, has_order = false, has_shape = false, fortran = false;
    char key[32], descr[64] = "";
    bool good = take(r, '{');
    while (good && !take(r, '}')) {
        good = take_string(r, key, sizeof key) && take(r, ':');
        if (!good)
            break;
        if (strcmp(key, "descr") == 0 && !has_descr) {
            skip_blanks(r);
            if (r->at < r->end && *r->at == '[')
                return error_set(error, DPI_E_DATA, "%s holds a structured array; save one field of it as plain array",
                                 name);
            has_descr = good = take_string(r, descr, sizeof descr);
        } else if (strcmp(key, "fortran_order") == 0 && !has_order) {
            fortran = take_word(r, "True");
            has_order = good = fortran || take_word(r, "False");
        } else if (strcmp(key, "shape") == 0 && !has_shape) {
            has_shape = good = take_shape(r, h);
        } else
            good = false;
        if (good && !take(r, ',')) {
            good = take(r, '}');
            break;
        }
    }
    skip_blanks(r);
    if (!good || !has_descr || !has_order || !has_shape || r->at != r->end)
        return error_set(error, DPI_E_DATA,
                         "%s has a header that is not valid (descr, fortran_order, shape, of at most "
                         "%d axes, none negative)",
                         name, DPI_MAX_RANK);
    dpi_status status = read_dtype(descr, name, h, error);
    int long_axes = 0;
    for (int i = 0; i < h->rank; i++)
        long_axes += h->shape[i] != 1;
    if (!status && fortran && long_axes > 1)
        return error_set(error, DPI_E_DATA,
                         "%s is in Fortran order; write it again with numpy: np.save(file, np.ascontiguousarray(a))",
                         name);
    return status;
}

dpi_status npy_parse(const void *data, size_t bytes, const char *name, npy_header *h, dpi_error *error)
{
    const unsigned char *b = data;
    memset(h, 0, sizeof *h);
    if (bytes < 10)
        return error_set(error, DPI_E_DATA, "%s is cut short: %zu bytes are no .npy header", name, bytes);
    if (memcmp(b, "\x93NUMPY", 6) != 0)
        return error_set(error, DPI_E_DATA, "%s is not a .npy file", name);
    if (b[6] < 1 || b[6] > 3)
        return error_set(error, DPI_E_DATA, "%s has .npy version %u.%u; 1.0 to 3.0 are read", name, b[6], b[7]);
    size_t prefix = b[6] == 1 ? 10 : 12;
    if (bytes < prefix)
        return error_set(error, DPI_E_DATA, "%s is cut short inside its header", name);
    uint64_t length = b[6] == 1 ? (uint64_t)b[8] | (uint64_t)b[9] << 8
                                : (uint64_t)b[8] | (uint64_t)b[9] << 8 | (uint64_t)b[10] << 16 | (uint64_t)b[11] << 24;
    if (length > NPY_MAX_HEADER)
        return error_set(error, DPI_E_DATA, "%s has a header of %llu bytes; at most %d are read", name,
                         (unsigned long long)length, NPY_MAX_HEADER);
    if (bytes < prefix + length)
        return error_set(error, DPI_E_DATA, "%s is cut short inside its header", name);
    reader r = {.at = (const char *)b + prefix, .end = (const char *)b + prefix + length};
    dpi_status status = read_dict(&r, name, h, error);
    if (status)
        return status;
    size_t size;
    if (!shape_bytes(h->dtype, h->shape, h->rank, &size) || size > (size_t)INT64_MAX - NPY_MAX_HEADER)
        return error_set(error, DPI_E_DATA, "%s has a shape whose size overflows", name);
    h->data_offset = prefix + length;
    h->data_bytes = size;
    return DPI_OK;
}

size_t npy_format(dpi_dtype dtype, const int64_t *shape, int rank, char *buffer, size_t size)
{
    const char *code = dtype == DPI_BF16 ? "u2" : NULL;
    for (size_t i = 0; i < sizeof npy_types / sizeof npy_types[0]; i++)
        if (npy_types[i].dtype == dtype)
            code = npy_types[i].code;
    char dict[512];
    int used = snprintf(dict, sizeof dict, "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                        dpi_dtype_size(dtype) == 1 ? '|' : '<', code ? code : "?");
    for (int i = 0; i < rank; i++)
        used += snprintf(dict + used, sizeof dict - (size_t)used, i + 1 < rank || rank == 1 ? "%lld, " : "%lld",
                         (long long)shape[i]);
    if (rank == 1)
        used--; /* "(3,)" */
    used += snprintf(dict + used, sizeof dict - (size_t)used, "), }");
    size_t total = (10 + (size_t)used + 1 + 63) / 64 * 64;
    if (!code || total > size)
        return 0;
    memcpy(buffer, "\x93NUMPY\x01\x00", 8);
    buffer[8] = (char)((total - 10) & 0xff);
    buffer[9] = (char)((total - 10) >> 8);
    memcpy(buffer + 10, dict, (size_t)used);
    memset(buffer + 10 + used, ' ', total - 10 - (size_t)used);
    buffer[total - 1] = '\n';
    return total;
}

dpi_status npy_load(const char *path, uint64_t max_bytes, npy_header *h, void **data, dpi_error *error)
{
    void *file;
    size_t bytes;
    *data = NULL;
    dpi_status status = file_read(path, (size_t)max_bytes + NPY_MAX_HEADER, &file, &bytes, error);
    if (status)
        return status;
    status = npy_parse(file, bytes, path, h, error);
    if (!status && bytes - h->data_offset < h->data_bytes)
        status = error_set(error, DPI_E_DATA, "%s is cut short: it holds %llu of %llu bytes of data", path,
                           (unsigned long long)(bytes - h->data_offset), (unsigned long long)h->data_bytes);
    if (!status) {
        *data = malloc(h->data_bytes ? h->data_bytes : 1);
        if (!*data)
            status = error_set(error, DPI_E_SYSTEM, "out of memory");
        else
            memcpy(*data, (char *)file + h->data_offset, h->data_bytes);
    }
    free(file);
    return status;
}
