/* What a model is, for the engine cache and the fingerprint: the bytes of its file and of the weights beside it. */
#ifndef DPI_RUNTIME_MODEL_HASH_H
#define DPI_RUNTIME_MODEL_HASH_H

#include "backend/backend.h"
#include "runtime/cache.h"

/* Hash of the model's content: of its file, of the .bin beside an IR, and of every file that an ONNX model names for
 * its weights. One that is missing counts as such: opening the model says so. `c` as in cache_hash_file. */
dpi_status model_hash(cache *c, const backend_model *model, hash128 *content, dpi_error *error);

#endif
