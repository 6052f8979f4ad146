/* Memory that the user takes from the arenas: dpi_alloc and dpi_free. */
#include "base/clock.h"
#include "runtime/batch.h"

#include <stdlib.h>
#include <string.h>

/* ---- blocks of dpi_alloc ---------------------------------------------------------------------------------------- */

void *block_alloc(dpi_session *s, size_t bytes, dpi_direction direction, dpi_error *error)
{
    arena *from = direction == DPI_INPUT ? s->inputs : s->outputs;
    uint64_t offset = arena_alloc(from, bytes);
    if (offset == ARENA_NONE) {
        error_set(error, DPI_E_SYSTEM, "dpi_alloc: no room for %zu bytes (arena_max_bytes is %llu)", bytes,
                  (unsigned long long)arena_max(from));
        return NULL;
    }
    pthread_mutex_lock(&s->lock);
    size_t at = 0;
    while (at < s->block_count && s->blocks[at].arena)
        at++;
    if (at == s->block_capacity) {
        size_t capacity = s->block_capacity ? s->block_capacity * 2 : 64;
        user_block *blocks = realloc(s->blocks, capacity * sizeof *blocks);
        if (!blocks) {
            pthread_mutex_unlock(&s->lock);
            arena_free(from, offset);
            error_set(error, DPI_E_SYSTEM, "out of memory");
            return NULL;
        }
        s->blocks = blocks;
        s->block_capacity = capacity;
    }
    s->blocks[at] = (user_block){.offset = offset, .arena = from};
    s->block_count = at == s->block_count ? at + 1 : s->block_count;
    pthread_mutex_unlock(&s->lock);
    return arena_at(from, offset);
}

static user_block *find_block(dpi_session *s, arena *in, uint64_t offset)
{
    for (size_t i = 0; i < s->block_count; i++)
        if (s->blocks[i].arena == in && s->blocks[i].offset == offset && !s->blocks[i].freed)
            return &s->blocks[i];
    return NULL;
}

static void drop_block(user_block *b)
{
    arena_free(b->arena, b->offset);
    *b = (user_block){0};
}

dpi_status block_free(dpi_session *s, void *memory, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    user_block *found = NULL;
    for (int i = 0; i < 2 && !found; i++) {
        arena *in = i ? s->outputs : s->inputs;
        uint64_t offset = arena_find(in, memory, 0, NULL);
        found = offset == ARENA_NONE ? NULL : find_block(s, in, offset);
    }
    if (found && found->uses)
        found->freed = true;
    else if (found)
        drop_block(found);
    pthread_mutex_unlock(&s->lock);
    return found ? DPI_OK
                 : error_set(error, DPI_E_ARGUMENT, "dpi_free: this is no buffer of dpi_alloc of this session");
}

/* Marks the dpi_alloc block that holds [address, +bytes) as used, if there is one. Under the lock. */
bool block_use(dpi_session *s, arena *in, const void *address, uint64_t bytes, batch_array *a)
{
    uint64_t block, offset = arena_find(in, address, bytes, &block);
    user_block *found = offset == ARENA_NONE ? NULL : find_block(s, in, block);
    if (!found)
        return false;
    found->uses++;
    a->user_block = (size_t)(found - s->blocks) + 1;
    a->offset = offset;
    return true;
}

void block_unuse(dpi_session *s, batch_array *a)
{
    if (!a->user_block)
        return;
    user_block *b = &s->blocks[a->user_block - 1];
    a->user_block = 0;
    if (--b->uses == 0 && b->freed)
        drop_block(b);
}
