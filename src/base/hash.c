#include "base/hash.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define XXH_INLINE_ALL
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wshadow"
#include <xxhash.h>
#pragma GCC diagnostic pop

struct hash_state {
    XXH3_state_t xxh; /* wants 64-byte alignment */
};

hash_state *hash_new(void)
{
    hash_state *state = aligned_alloc(64, (sizeof *state + 63) / 64 * 64);
    if (state)
        XXH3_128bits_reset(&state->xxh);
    return state;
}

void hash_add(hash_state *state, const void *data, size_t bytes)
{
    if (state)
        XXH3_128bits_update(&state->xxh, data, bytes);
}

void hash_add_u64(hash_state *state, uint64_t value) { hash_add(state, &value, sizeof value); }

void hash_add_text(hash_state *state, const char *text)
{
    size_t length = text ? strlen(text) : 0;
    hash_add_u64(state, length);
    hash_add(state, text ? text : "", length);
}

static hash128 convert(XXH128_hash_t h) { return (hash128){.low = h.low64, .high = h.high64}; }

hash128 hash_end(hash_state *state)
{
    if (!state)
        return (hash128){0};
    hash128 result = convert(XXH3_128bits_digest(&state->xxh));
    free(state);
    return result;
}

hash128 hash_of(const void *data, size_t bytes) { return convert(XXH3_128bits(data, bytes)); }

void hash_to_hex(hash128 hash, char hex[HASH_HEX_SIZE])
{
    snprintf(hex, HASH_HEX_SIZE, "%016llx%016llx", (unsigned long long)hash.high, (unsigned long long)hash.low);
}

uint64_t hash_mix64(uint64_t seed, uint64_t counter)
{
    /* splitmix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014. */
    uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}
