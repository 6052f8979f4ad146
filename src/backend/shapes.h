/* Finding output shapes by running the engine, for backends whose library has no shape inference of its own. */
#ifndef DPI_BACKEND_SHAPES_H
#define DPI_BACKEND_SHAPES_H

#include "backend/backend.h"

#define SHAPES_MEMOS 16

typedef struct shapes_memo {
    bool used;
    int64_t in[PORT_MAX][DPI_MAX_RANK], out[PORT_MAX][DPI_MAX_RANK]; /* axis 0 of `out`: -1 stands for the rows */
} shapes_memo;

typedef struct shapes {
    shapes_memo *memos; /* malloc'd at the first use; shapes_free */
    size_t next;
} shapes;

/* One run on these inputs; the engine allocates its outputs, `outputs` receives rank and shape. */
typedef dpi_status (*shapes_try_fn)(void *engine, const backend_array *inputs, backend_array *outputs,
                                    dpi_error *error);

/* Complete output shapes for complete input shapes: remembered, or found by three runs of one or two rows on different
 * data (an input whose `data` is not NULL brings its own and is not split). DPI_E_MODEL when the shapes depend on data.
 * Axis 0 of an output is the rows where it followed them in all runs. */
dpi_status shapes_measure(shapes *s, const signature *sig, shapes_try_fn try_run, void *engine,
                          const backend_array *inputs, backend_array *outputs, dpi_error *error);
void shapes_free(shapes *s);

#endif
