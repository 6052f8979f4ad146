/* What the caller gave for a batch: matched with the model's inputs and outputs, and checked. */
#include "base/clock.h"
#include "runtime/batch.h"

#include <stdlib.h>
#include <string.h>

/* ---- what the caller gave --------------------------------------------------------------------------------------- */

static dpi_status match_input(dpi_session *s, const dpi_tensor *t, size_t position, bool seen[PORT_MAX], size_t *at,
                              dpi_error *error)
{
    size_t found = PORT_MAX;
    for (size_t i = 0, place = 0; i < s->sig.input_count && found == PORT_MAX; i++) {
        if (s->is_broadcast[i])
            continue;
        if (t->name ? strcmp(t->name, s->sig.inputs[i].name) == 0 : place == position)
            found = i;
        place++;
    }
    if (found == PORT_MAX)
        return t->name ? error_set(error, DPI_E_DATA, "the model has no input \"%s\" to be given by rows", t->name)
                       : error_set(error, DPI_E_DATA, "the model takes %zu inputs, and more were given",
                                   s->batch_input_count);
    if (seen[found])
        return error_set(error, DPI_E_DATA, "the input %s was given twice", s->sig.inputs[found].name);
    seen[found] = true;
    *at = found;
    return DPI_OK;
}

static dpi_status check_input(const dpi_session *s, const port *want, const dpi_tensor *t, dpi_error *error)
{
    char expected[SHAPE_TEXT_SIZE], got[SHAPE_TEXT_SIZE];
    int64_t shape[DPI_MAX_RANK];
    if (t->rank < 0 || t->rank > DPI_MAX_RANK)
        return error_set(error, DPI_E_DATA, "the input %s has rank %d; at most %d", want->name, t->rank, DPI_MAX_RANK);
    bool good = t->dtype == want->dtype && t->rank == want->rank;
    for (int k = 0; k < t->rank; k++) {
        good &= t->shape[k] >= 0;
        shape[k] = t->shape[k];
    }
    /* The model's fixed batch is padded to inside; the rows given are free. */
    for (int k = 1; good && k < t->rank; k++)
        good = want->shape[k] < 0 || want->shape[k] == shape[k];
    if (!good) {
        int64_t wanted[DPI_MAX_RANK];
        memcpy(wanted, want->shape, sizeof wanted);
        wanted[0] = s->fixed_rows || want->rank ? -1 : wanted[0];
        return error_set(error, DPI_E_DATA, "the input %s expects %s %s and got %s %s", want->name,
                         dpi_dtype_name(want->dtype), shape_text(wanted, want->rank, expected),
                         dpi_dtype_name(t->dtype), shape_text(shape, t->rank, got));
    }
    return DPI_OK;
}

dpi_status batch_gather_inputs(dpi_session *s, const dpi_batch *from, batch *b, dpi_error *error)
{
    bool seen[PORT_MAX] = {false};
    if (from->input_count != s->batch_input_count)
        return error_set(error, DPI_E_DATA, "the model takes %zu inputs and %zu were given", s->batch_input_count,
                         from->input_count);
    for (size_t i = 0; i < from->input_count; i++) {
        const dpi_tensor *t = &from->inputs[i];
        size_t at = 0;
        dpi_status status = match_input(s, t, i, seen, &at, error);
        if (!status)
            status = check_input(s, &s->sig.inputs[at], t, error);
        if (status)
            return status;
        if (i > 0 && (uint64_t)t->shape[0] != b->rows)
            return error_set(error, DPI_E_DATA, "the input %s has %lld rows and another has %llu",
                             s->sig.inputs[at].name, (long long)t->shape[0], (unsigned long long)b->rows);
        b->rows = (uint64_t)t->shape[0];
        batch_array *a = &b->inputs[at];
        a->rank = t->rank;
        memcpy(a->shape, t->shape, sizeof a->shape);
        a->plain = t->data;
        size_t total;
        if (!shape_row_bytes(t->dtype, t->shape, t->rank, &a->row_bytes) ||
            __builtin_mul_overflow(a->row_bytes, b->rows, &total))
            return error_set(error, DPI_E_DATA, "the input %s has a size that overflows", s->sig.inputs[at].name);
        if (!t->data && total)
            return error_set(error, DPI_E_ARGUMENT, "the input %s has no data", s->sig.inputs[at].name);
    }
    return DPI_OK;
}

dpi_status batch_shape_outputs(dpi_session *s, batch *b, dpi_error *error)
{
    int64_t in[PORT_MAX][DPI_MAX_RANK], out[PORT_MAX][DPI_MAX_RANK];
    for (size_t i = 0; i < s->sig.input_count; i++)
        memcpy(in[i], b->inputs[i].shape, sizeof in[i]);
    dpi_status status = session_output_shapes(s, in, out, error);
    for (size_t o = 0; !status && o < s->sig.output_count; o++) {
        batch_array *a = &b->outputs[o];
        a->rank = s->sig.outputs[o].rank;
        memcpy(a->shape, out[o], sizeof a->shape);
        a->shape[0] = (int64_t)b->rows;
        size_t total;
        if (!shape_row_bytes(s->sig.outputs[o].dtype, a->shape, a->rank, &a->row_bytes) ||
            __builtin_mul_overflow(a->row_bytes, b->rows, &total))
            status = error_set(error, DPI_E_DATA, "the output %s has a size that overflows", s->sig.outputs[o].name);
    }
    return status;
}

dpi_status batch_gather_outputs(dpi_session *s, const dpi_batch *from, batch *b, dpi_error *error)
{
    b->output_count = s->sig.output_count;
    bool seen[PORT_MAX] = {false};
    for (size_t o = 0; o < b->output_count; o++)
        b->outputs[o].view = true;
    if (from->outputs && from->output_count > b->output_count)
        return error_set(error, DPI_E_DATA, "the session has %zu outputs and %zu were given", b->output_count,
                         from->output_count);
    for (size_t i = 0; from->outputs && i < from->output_count; i++) {
        const dpi_tensor *t = &from->outputs[i];
        int at = t->name ? port_find(s->sig.outputs, s->sig.output_count, t->name) : (int)i;
        if (at < 0)
            return error_set(error, DPI_E_DATA, "the session has no output \"%s\"", t->name);
        if (seen[at])
            return error_set(error, DPI_E_DATA, "the output %s was given twice", s->sig.outputs[at].name);
        seen[at] = true;
        batch_array *a = &b->outputs[at];
        const port *p = &s->sig.outputs[at];
        bool fits = t->rank == 0 || (t->rank == a->rank && t->dtype == p->dtype);
        for (int k = 0; fits && k < t->rank; k++)
            fits = t->shape[k] == a->shape[k];
        if (!fits) {
            char want[SHAPE_TEXT_SIZE], got[SHAPE_TEXT_SIZE];
            return error_set(error, DPI_E_DATA, "the output %s is %s %s and the memory given for it %s %s", p->name,
                             dpi_dtype_name(p->dtype), shape_text(a->shape, a->rank, want), dpi_dtype_name(t->dtype),
                             shape_text(t->shape, t->rank < 0 || t->rank > DPI_MAX_RANK ? 0 : t->rank, got));
        }
        a->plain = t->data;
        a->view = !t->data;
    }
    return DPI_OK;
}
