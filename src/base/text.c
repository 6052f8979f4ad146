#include "base/text.h"

#include "base/error.h"

#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool text_to_u64(const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
    if (!text || !*text)
        return false;
    uint64_t v = 0;
    for (const char *c = text; *c; c++) {
        if (*c < '0' || *c > '9' || __builtin_mul_overflow(v, (uint64_t)10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(*c - '0'), &v))
            return false;
    }
    if (v < min || v > max)
        return false;
    *value = v;
    return true;
}

bool text_to_i64(const char *text, int64_t min, int64_t max, int64_t *value)
{
    bool negative = text && *text == '-';
    uint64_t v;
    if (!text_to_u64(text + negative, 0, (uint64_t)INT64_MAX + negative, &v))
        return false;
    int64_t result = negative ? (int64_t)(0 - v) : (int64_t)v;
    if (result < min || result > max)
        return false;
    *value = result;
    return true;
}

bool text_to_double(const char *text, double *value)
{
    if (!text || !*text || strspn(text, "0123456789+-.eE") != strlen(text))
        return false;
    locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    char *end = NULL;
    double v = plain ? strtod_l(text, &end, plain) : strtod(text, &end);
    if (plain)
        freelocale(plain);
    if (*end || v - v != 0)
        return false;
    *value = v;
    return true;
}

/* "7" or "3-5", `length` characters. */
static bool parse_range(const char *text, size_t length, int limit, int *low, int *high)
{
    char part[32];
    if (length >= sizeof part)
        return false;
    memcpy(part, text, length);
    part[length] = 0;
    char *dash = strchr(part, '-');
    if (dash)
        *dash = 0;
    uint64_t a, b;
    if (limit < 1 || !text_to_u64(part, 0, (uint64_t)limit - 1, &a))
        return false;
    b = a;
    if (dash && !text_to_u64(dash + 1, a, (uint64_t)limit - 1, &b))
        return false;
    *low = (int)a;
    *high = (int)b;
    return true;
}

int *text_to_set(const char *text, int limit, size_t *count, dpi_error *error)
{
    *count = 0;
    unsigned char *has = calloc((size_t)(limit > 0 ? limit : 1), 1);
    int *numbers = calloc((size_t)(limit > 0 ? limit : 1), sizeof *numbers);
    if (!has || !numbers) {
        error_set(error, DPI_E_SYSTEM, "out of memory");
        goto fail;
    }
    for (const char *at = text;; at++) {
        size_t length = strcspn(at, ",");
        int low, high;
        if (!parse_range(at, length, limit, &low, &high)) {
            error_set(error, DPI_E_ARGUMENT, "\"%.*s\" is not a number or range below %d, as in 0-3,8",
                      (int)(length > 40 ? 40 : length), at, limit);
            goto fail;
        }
        memset(has + low, 1, (size_t)(high - low + 1));
        at += length;
        if (!*at)
            break;
    }
    for (int i = 0; i < limit; i++)
        if (has[i])
            numbers[(*count)++] = i;
    free(has);
    return numbers;
fail:
    free(has);
    free(numbers);
    return NULL;
}

char *text_from_set(const int *numbers, size_t count)
{
    text_buffer t = {0};
    text_add(&t, "%s", "");
    for (size_t i = 0; i < count;) {
        size_t j = i;
        while (j + 1 < count && numbers[j + 1] == numbers[j] + 1)
            j++;
        text_add(&t, j > i ? "%s%d-%d" : "%s%d", i ? "," : "", numbers[i], numbers[j]);
        i = j + 1;
    }
    if (t.failed) {
        text_free(&t);
        return NULL;
    }
    return t.data;
}

bool text_ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length > tail && strcmp(text + length - tail, end) == 0;
}

char *text_format(const char *format, ...)
{
    char *out = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&out, format, arguments) < 0)
        out = NULL;
    va_end(arguments);
    return out;
}

void text_add_bytes(text_buffer *t, const void *bytes, size_t count)
{
    size_t need;
    if (t->failed || !size_add(t->length, count, &need) || !size_add(need, 1, &need)) {
        t->failed = true;
        return;
    }
    if (need > t->capacity) {
        size_t capacity = need < 256 ? 256 : need * 2;
        char *data = realloc(t->data, capacity);
        if (!data) {
            t->failed = true;
            return;
        }
        t->data = data;
        t->capacity = capacity;
    }
    memcpy(t->data + t->length, bytes, count);
    t->length += count;
    t->data[t->length] = 0;
}

void text_add(text_buffer *t, const char *format, ...)
{
    char *part = NULL;
    va_list arguments;
    va_start(arguments, format);
    int length = vasprintf(&part, format, arguments);
    va_end(arguments);
    if (length < 0) {
        t->failed = true;
        return;
    }
    text_add_bytes(t, part, (size_t)length);
    free(part);
}

/* How many bytes the character at `c` has in UTF-8 (RFC 3629); 0 when it is none. */
static size_t utf8_length(const unsigned char *c)
{
    size_t length = c[0] < 0x80 ? 1 : c[0] >= 0xc2 && c[0] < 0xe0 ? 2 : (c[0] & 0xf0) == 0xe0 ? 3 : 4;
    if (length == 1)
        return 1;
    if (c[0] < 0xc2 || c[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < length; i++)
        if ((c[i] & 0xc0) != 0x80) /* the terminating zero too */
            return 0;
    bool overlong = (c[0] == 0xe0 && c[1] < 0xa0) || (c[0] == 0xf0 && c[1] < 0x90);
    bool beyond = (c[0] == 0xed && c[1] >= 0xa0) || (c[0] == 0xf4 && c[1] >= 0x90); /* a surrogate, or no character */
    return overlong || beyond ? 0 : length;
}

void text_add_json(text_buffer *t, const char *text)
{
    text_add_bytes(t, "\"", 1);
    for (const unsigned char *c = (const unsigned char *)text; *c;) {
        size_t length = utf8_length(c);
        if (!length)
            text_add(t, "\\ufffd");
        else if (*c < ' ' || *c == 0x7f)
            text_add(t, "\\u%04x", *c);
        else {
            if (*c == '"' || *c == '\\')
                text_add_bytes(t, "\\", 1);
            text_add_bytes(t, c, length);
        }
        c += length ? length : 1;
    }
    text_add_bytes(t, "\"", 1);
}

void text_free(text_buffer *t)
{
    free(t->data);
    *t = (text_buffer){0};
}
