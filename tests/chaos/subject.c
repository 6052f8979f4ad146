/* The rows of a plan, and whether results are right. */
#include "play.h"

#include "base/hash.h"
#include "base/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void subject_fill(const subject *s, void *rows, size_t count, uint64_t seed)
{
    if (!s->real) {
        tensor_fill_random(DPI_F32, rows, PLAN_WIDTH, 0, count, seed, false);
        return;
    }
    for (size_t i = 0; i < count; i++)
        memcpy((char *)rows + i * REAL_INPUT, s->real->input[(seed + i) % REAL_ROWS], REAL_INPUT);
}

void subject_poison(const subject *s, void *rows, const size_t *poison, size_t count)
{
    for (size_t i = 0; i < count && !s->real; i++)
        ((float *)rows)[poison[i] * PLAN_WIDTH] = POISON;
}

void subject_input(const subject *s, size_t rows, void *data, dpi_tensor *t)
{
    *t = (dpi_tensor){.dtype = s->in_dtype, .rank = s->in_rank, .data = data};
    t->shape[0] = (int64_t)rows;
    for (int k = 1; k < s->in_rank; k++)
        t->shape[k] = s->in_row[k - 1];
}

void subject_output(const subject *s, size_t o, size_t rows, void *data, dpi_tensor *t)
{
    *t = (dpi_tensor){.dtype = o == 0 ? DPI_F32 : DPI_I32, .rank = o == 0 ? 2 : 1, .data = data};
    t->shape[0] = (int64_t)rows;
    t->shape[1] = o == 0 ? (int64_t)(s->out_bytes[0] / sizeof(float)) : 0;
}

bool left_out_has(const left_out *bad, uint64_t row)
{
    for (size_t i = 0; bad && i < bad->count; i++)
        if (bad->rows[i] == row)
            return true;
    return false;
}

static void expect(const subject *s, const void *row, size_t o, bool is_bad, void *want)
{
    if (is_bad) {
        for (size_t i = 0; i < s->out_bytes[o] / 4; i++)
            if (o == 0)
                ((float *)want)[i] = NAN;
            else
                ((int32_t *)want)[i] = 0;
    } else if (!s->real) {
        sim_expected_row(&s->model, &row, &s->in_bytes, o, s->out_bytes[o] / 4, want);
    } else {
        for (size_t i = 0; i < REAL_ROWS; i++)
            if (memcmp(s->real->input[i], row, REAL_INPUT) == 0)
                memcpy(want, s->real->output[i], REAL_OUTPUT);
    }
}

void check_rows(play *y, const void *in, const void *const *out, size_t count, const left_out *bad, const char *what)
{
    const subject *s = &y->what;
    uint64_t wrong = 0, first = 0;
    for (size_t row = 0; row < count; row++)
        for (size_t o = 0; o < s->output_count; o++) {
            unsigned char want[REAL_OUTPUT] = {0};
            const unsigned char *got = (const unsigned char *)out[o] + row * s->out_bytes[o];
            expect(s, (const char *)in + row * s->in_bytes, o, left_out_has(bad, row), want);
            bool nan = left_out_has(bad, row) && o == 0 && isnan(*(const float *)(const void *)got);
            if (!nan && memcmp(want, got, s->out_bytes[o]) != 0) {
                first = wrong++ ? first : row;
                break;
            }
        }
    y->r->rows += count;
    y->r->wrong += wrong;
    if (wrong)
        plan_fail("%s: %llu of %zu rows are wrong, the first is %llu", what, (unsigned long long)wrong, count,
                  (unsigned long long)first);
}

static _Thread_local left_out *told;

void left_out_into(left_out *bad) { told = bad; }

void note_left_out(void *context, const dpi_bad_row *row)
{
    (void)context;
    if (left_out_has(told, row->row))
        plan_fail("row %llu was told twice", (unsigned long long)row->row);
    if (told->count == sizeof told->rows / sizeof told->rows[0])
        plan_fail("more rows are left out than a plan has");
    told->rows[told->count++] = row->row;
}
