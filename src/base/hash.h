/* 128-bit content hashes (XXH3, 128 bits, of Yann Collet's xxHash). Not for adversaries: keys of a private cache. */
#ifndef DPI_BASE_HASH_H
#define DPI_BASE_HASH_H

#include <stddef.h>
#include <stdint.h>

typedef struct hash128 {
    uint64_t low, high;
} hash128;

#define HASH_HEX_SIZE 33 /* with the terminating zero */

typedef struct hash_state hash_state;
hash_state *hash_new(void); /* NULL when out of memory */
void hash_add(hash_state *state, const void *data, size_t bytes);
/* Adds the length and then the text, so that ("ab","c") and ("a","bc") differ. NULL counts as "". */
void hash_add_text(hash_state *state, const char *text);
void hash_add_u64(hash_state *state, uint64_t value);
/* Ends and frees the state. */
hash128 hash_end(hash_state *state);

hash128 hash_of(const void *data, size_t bytes);
void hash_to_hex(hash128 hash, char hex[HASH_HEX_SIZE]);
/* 64-bit mix of (seed, counter): splitmix64's finaliser; the generator behind random: sources and probes. */
uint64_t hash_mix64(uint64_t seed, uint64_t counter);

#endif
