/* Rows that a worker knows to be bad: it says so itself, before their slice is DONE, and nothing has to be tried. */
#include "base/clock.h"
#include "ipc/bell.h"
#include "runtime/worker.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_PER_MESSAGE 128
#define REASON_BYTES     600 /* so many rows' fit a message (CHANNEL_MAX_BYTES), every byte escaped to five */

/* NaN, or 0 where the dtype has none. */
void worker_void_row(const worker *w, flight *f, size_t row)
{
    for (size_t o = 0; o < w->sig.output_count; o++) {
        dpi_dtype dtype = w->sig.outputs[o].dtype;
        size_t elements = 0;
        shape_elements(f->outputs[o].shape, 1, f->outputs[o].rank, &elements);
        for (size_t i = row * elements; i < (row + 1) * elements; i++)
            dtype_set(dtype, f->outputs[o].data, i, dtype_is_float(dtype) ? NAN : 0);
    }
}

/* The reason as JSON text: names hold any bytes, and what is no printable ASCII and no UTF-8 becomes \xNN. */
static json_t *printable(const char *reason)
{
    char text[REASON_BYTES + 8];
    size_t length = strnlen(reason, REASON_BYTES);
    memcpy(text, reason, length);
    text[length] = 0;
    json_t *json = NULL;
    bool plain = true;
    for (size_t i = 0; i < length; i++)
        plain &= (unsigned char)text[i] >= ' ' && text[i] != 0x7f;
    if (plain && (json = json_string(text)))
        return json;
    char escaped[4 * REASON_BYTES + 1], *to = escaped;
    for (size_t i = 0; i < length; i++) {
        bool ascii = text[i] >= ' ' && text[i] < 0x7f;
        to += snprintf(to, 5, ascii ? "%c" : "\\x%02x", ascii ? text[i] : (unsigned char)text[i]);
    }
    return json_string(escaped);
}

/* A number that no earlier report has, of this generation or another. */
static uint32_t next_report(worker *w) { return w->generation << 20 | (++w->reports & 0xfffffu); }

/* Waits until the caller has dealt with report `number`; false when it has refused it, or is going. */
static bool await_heard(worker *w, uint32_t number)
{
    const worker_control *mine = &w->control->workers[w->index];
    static const bell_patience patience = {.mode = DPI_WAIT_BLOCK};
    while (!atomic_load(&w->control->shutdown)) {
        uint32_t seen = atomic_load(&mine->bell);
        /* Pairs with the supervisor's release: `refused` is set before. */
        if (atomic_load_explicit(&mine->heard, memory_order_acquire) == number)
            return atomic_load_explicit(&mine->refused, memory_order_relaxed) != number;
        bell_wait(&mine->bell, seen, &w->page->sleeping, patience, clock_now_ns() + 100000000);
    }
    return false;
}

static bool report(worker *w, const flight *f, const flight_bad *bad, size_t count)
{
    json_t *rows = json_array();
    uint32_t number = next_report(w);
    for (size_t i = 0; i < count; i++)
        json_array_append_new(rows,
                              json_pack("[I, o]", (json_int_t)(f->first_row + bad[i].row), printable(bad[i].reason)));
    json_t *message = json_pack("{s:I, s:I, s:I, s:I, s:o}", "bad", (json_int_t)number, "slot", (json_int_t)f->slot,
                                "sequence", (json_int_t)f->sequence, "slice", (json_int_t)f->slice, "rows", rows);
    dpi_error unheard;
    dpi_status status = channel_send(w->socket, message, NULL, 0, clock_now_ns() + 5000000000, &unheard);
    json_decref(message);
    return !status && await_heard(w, number);
}

dpi_status worker_report_bad(worker *w, const flight *f, dpi_error *error)
{
    for (size_t i = 0; i < f->bad_count; i += ROWS_PER_MESSAGE) {
        size_t count = f->bad_count - i < ROWS_PER_MESSAGE ? f->bad_count - i : ROWS_PER_MESSAGE;
        if (report(w, f, &f->bad[i], count))
            continue;
        return error_set(error, DPI_E_DATA, "row %llu cannot be had: %s%s",
                         (unsigned long long)(f->source_row + f->bad[i].row), f->bad[i].reason,
                         w->control->on_bad_row == DPI_BAD_ROW_SKIP ? "; that is one bad row too many" : "");
    }
    return DPI_OK;
}

void flight_forget_bad(flight *f)
{
    for (size_t i = 0; i < f->bad_count; i++)
        free(f->bad[i].reason);
    free(f->bad);
    f->bad = NULL;
    f->bad_count = 0;
}

void flight_free(flight *f)
{
    flight_forget_bad(f);
    for (int k = 0; k < PORT_MAX; k++) {
        free(f->in[k].data);
        free(f->out[k].data);
    }
}
