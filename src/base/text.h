/* Strings and numbers from untrusted text. */
#ifndef DPI_BASE_TEXT_H
#define DPI_BASE_TEXT_H

#include <dpinfer/dpinfer.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A decimal number that fills the whole of `text` and lies in [min, max]. No sign, no blanks, no leading '+'. */
bool text_to_u64(const char *text, uint64_t min, uint64_t max, uint64_t *value);
bool text_to_i64(const char *text, int64_t min, int64_t max, int64_t *value);
/* Finite decimal number that fills the whole of `text`, independent of the locale. */
bool text_to_double(const char *text, double *value);

/* A set of non-negative numbers as "0-3,8,10-11", each below `limit`; sorted, doubles removed.
 * Returns a malloc'd array and its length, or NULL with an error (names the faulty part). */
int *text_to_set(const char *text, int limit, size_t *count, dpi_error *error);
/* The reverse, "0-3,8": malloc'd, NULL when out of memory. */
char *text_from_set(const int *numbers, size_t count);

/* Whether `text` is longer than `end` and ends with it. */
bool text_ends_with(const char *text, const char *end);

/* printf into a malloc'd string, NULL when out of memory. */
char *text_format(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A growing text. Zero-initialise it; text_free ends it. After running out of memory `failed` is set and the text
 * stays as it was. */
typedef struct text_buffer {
    char *data; /* always terminated once something has been added */
    size_t length, capacity;
    bool failed;
} text_buffer;
void text_add(text_buffer *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
void text_add_bytes(text_buffer *t, const void *bytes, size_t count);
/* `text` as a JSON string, in quotes. Bytes that are no UTF-8 become U+FFFD. */
void text_add_json(text_buffer *t, const char *text);
void text_free(text_buffer *t);

/* a * b and a + b, false on overflow. */
static inline bool size_multiply(size_t a, size_t b, size_t *product) { return !__builtin_mul_overflow(a, b, product); }
static inline bool size_add(size_t a, size_t b, size_t *sum) { return !__builtin_add_overflow(a, b, sum); }

#endif
