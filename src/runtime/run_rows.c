/* Rows that the caller takes himself, dpi_run_options.take_rows: workers leave them in the arena, as records of text.
 */
#include "base/text.h"
#include "runtime/batch.h"
#include "runtime/run.h"

#include <stdlib.h>
#include <string.h>

#define PIECE_ROWS 1024 /* of one call */

dpi_status run_check_rows(const run *r, dpi_error *error)
{
    for (size_t o = 0; r->hands_any && o < r->s->sig.output_count; o++)
        if (sink_has_file(r->sinks[o]))
            return error_set(error, DPI_E_ARGUMENT,
                             "the caller takes rows, and they cannot be taken again where a run goes on; write %s by "
                             "another run",
                             sink_spec(r->sinks[o]));
    return DPI_OK;
}

/* What one call tells. */
typedef struct piece {
    dpi_tensor outputs[PORT_MAX];
    size_t output_count;
    const char *names[PIECE_ROWS];
    bool bad[PIECE_ROWS], any_bad;
} piece;

static dpi_status name_rows(const run *r, uint64_t first, size_t count, text_buffer *text, piece *p, dpi_error *error)
{
    char name[SOURCE_NAME_SIZE];
    size_t at[PIECE_ROWS];
    text->length = 0;
    for (size_t i = 0; i < count; i++) {
        const char *own = source_row_name(r->names, first + i, name);
        at[i] = text->length;
        text_add_bytes(text, own ? own : "", (own ? strlen(own) : 0) + 1);
    }
    if (text->failed)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    for (size_t i = 0; i < count; i++)
        p->names[i] = text->data + at[i];
    return DPI_OK;
}

/* A row is in the list before the word of its slice is DONE. */
static void find_bad(const run *r, uint64_t first, size_t count, piece *p)
{
    dpi_session *s = r->s;
    p->any_bad = false;
    memset(p->bad, 0, sizeof p->bad);
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < s->run_bad_rows; i++)
        if (s->run_bad[i].row >= first && s->run_bad[i].row - first < count)
            p->bad[s->run_bad[i].row - first] = p->any_bad = true;
    pthread_mutex_unlock(&s->lock);
}

static void place_outputs(const run *r, const run_chunk *chunk, uint64_t begin, size_t count, piece *p)
{
    p->output_count = 0;
    for (size_t o = 0; o < r->s->sig.output_count; o++) {
        const port *is = &r->s->sig.outputs[o];
        const char *rows = r->hands_over[o] ? batch_records(r->s, chunk->ticket, o) : NULL;
        if (!r->hands_over[o])
            continue;
        dpi_tensor *t = &p->outputs[p->output_count++];
        *t = (dpi_tensor){.name = is->name, .dtype = is->dtype, .rank = is->rank};
        memcpy(t->shape, r->out[o], sizeof t->shape);
        t->shape[0] = (int64_t)count;
        t->data = (void *)(uintptr_t)(rows ? rows + (begin - chunk->at) * r->record_bytes[o] : NULL);
    }
}

dpi_status run_hand_over(run *r, const run_chunk *chunk, uint64_t begin, uint64_t end, dpi_error *error)
{
    piece *p = malloc(sizeof *p);
    text_buffer text = {0};
    dpi_status status = p ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
    for (size_t count; begin < end && !status; begin += count) {
        uint64_t first = r->first_row + begin;
        count = end - begin < PIECE_ROWS ? (size_t)(end - begin) : PIECE_ROWS;
        place_outputs(r, chunk, begin, count, p);
        find_bad(r, first, count, p);
        if (r->names)
            status = name_rows(r, first, count, &text, p, error);
        dpi_rows rows = {.struct_size = sizeof rows,
                         .first = first,
                         .count = count,
                         .outputs = p->outputs,
                         .output_count = p->output_count,
                         .names = r->names ? p->names : NULL,
                         .bad = p->any_bad ? p->bad : NULL};
        if (!status && r->o->take_rows(r->o->take_rows_context, &rows) != 0) {
            r->cancelled = true;
            status = error_set(error, DPI_CANCELLED, "stopped by whoever takes the rows");
        }
    }
    text_free(&text);
    free(p);
    return status;
}
