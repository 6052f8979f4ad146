/* .npy files from a fuzzer's bytes: each byte is a word of the header's dictionary, so that valid headers and nearly
 * valid ones are found in seconds (from raw bytes alone they are not found in an hour). */
#ifndef DPI_TESTS_FUZZ_NPY_TOKENS_H
#define DPI_TESTS_FUZZ_NPY_TOKENS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define NPY_TOKENS_MOST 4096

/* Writes a header of `data`'s words to `file` (NPY_TOKENS_MOST bytes), version 1.0 to 3.0; returns its length. */
static inline size_t npy_from_tokens(const uint8_t *data, size_t size, unsigned char *file)
{
    static const char *const words[] = {"{'descr': ",
                                        "'<f4'",
                                        "'fortran_order': ",
                                        "False",
                                        "True",
                                        "'shape': (",
                                        "), }",
                                        "}",
                                        "2, ",
                                        "3",
                                        "0, ",
                                        ",",
                                        "1, ",
                                        ")",
                                        "'|u1'",
                                        "'<i8'",
                                        "'|b1'",
                                        "'<f2'",
                                        "'>i4'",
                                        "'|O'",
                                        "'>u1'",
                                        "[",
                                        "{",
                                        "\"shape\": ()",
                                        "2147483648,",
                                        "4294967297",
                                        "-",
                                        "L",
                                        "'descr'",
                                        ":",
                                        "{'descr': '=f8', 'fortran_order': False, 'shape': (",
                                        "'<u2', "};
    static const unsigned count = sizeof words / sizeof words[0];
    unsigned version = size ? data[0] % 3 + 1 : 1;
    size_t prefix = version == 1 ? 10 : 12, at = prefix;
    for (size_t i = 1; i < size; i++) {
        const char *word = words[data[i] % count];
        size_t length = data[i] < 4 * count ? strlen(word) : 1; /* else the byte itself */
        if (at + length > NPY_TOKENS_MOST)
            break;
        memcpy(file + at, data[i] < 4 * count ? word : (const char *)data + i, length);
        at += length;
    }
    memset(file, 0, prefix);
    memcpy(file, "\x93NUMPY", 6);
    file[6] = (unsigned char)version;
    file[8] = (unsigned char)(at - prefix);
    file[9] = (unsigned char)((at - prefix) >> 8);
    return at;
}

#endif
