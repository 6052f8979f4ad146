/* --batch auto: which slice size an engine deserves. */
#ifndef DPI_RUNTIME_BEST_ROWS_H
#define DPI_RUNTIME_BEST_ROWS_H

#include "runtime/probe.h"

#define BEST_ROWS_MOST 256 /* sizes tried: 1, 2, 4, ... up to this; engines are compiled for it */

/* The smallest of the sizes 1, 2, 4, ... up to request->max_rows whose rate (rows a second, as many calls in flight as
 * the engine wants) is within 2 % of the best that was measured. Sizes that fail (too large for the device's memory)
 * and those behind a call of more than a second are not tried. A model of a fixed batch, or with free axes beside the
 * rows, is not measured: max_rows. Takes about a tenth of a second per size. DPI_E_* when even one row fails. */
dpi_status best_rows(const probe_request *request, size_t *rows, dpi_error *error);

/* The choice alone: rates[i] belongs to sizes[i], ascending. */
size_t best_rows_choose(const size_t *sizes, const double *rates, size_t count);

#endif
