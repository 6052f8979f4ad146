/* The version of ONNX's operators that a model uses, for libraries that read newer ones wrongly instead of refusing. */
#ifndef DPI_BACKEND_ONNX_OPSET_H
#define DPI_BACKEND_ONNX_OPSET_H

#include "backend/backend.h"

/* Of the standard operators; 0 when the model does not say, or is no whole protobuf message (the library will say so).
 * Reads a few bytes of each top-level field, whatever the model's size. */
int64_t onnx_opset(const backend_model *model);

#endif
