/* Writes ONNX files byte by byte: small models whose every weight a test knows, without any Python. */
#ifndef DPI_TESTS_BACKEND_ONNX_FILE_H
#define DPI_TESTS_BACKEND_ONNX_FILE_H

#include "base/text.h"

/* Numbers of element types, as in onnx.proto. */
enum { ONNX_F32 = 1, ONNX_I64 = 7, ONNX_STRING = 8, ONNX_F16 = 10 };

/* What holds a tensor instead of being one: fields of onnx.proto's TypeProto. */
enum { ONNX_TENSOR = 0, ONNX_SEQUENCE = 4, ONNX_OPTIONAL = 9 };

enum { ONNX_INPUT = 11, ONNX_OUTPUT = 12 };

/* A graph in the making, as protobuf; starts as {0}. */
typedef struct onnx {
    text_buffer graph;
} onnx;

/* `inputs` and `outputs` are names, separated by blanks; `attribute` (NULL: none) is a whole number. */
void onnx_node(onnx *m, const char *type, const char *inputs, const char *outputs, const char *attribute,
               int64_t value);
/* A constant of float32, [rows,columns]. */
void onnx_weight(onnx *m, const char *name, size_t rows, size_t columns, const float *values);
/* `shape` as "N 4 ?" (a symbol, a number, nothing known); NULL: not even the number of axes. */
void onnx_port(onnx *m, unsigned direction, const char *name, int element, const char *shape, unsigned kind);
void onnx_input(onnx *m, const char *name, int element, const char *shape);
void onnx_output(onnx *m, const char *name, int element, const char *shape);
/* The whole file; frees the graph. */
text_buffer onnx_bytes(onnx *m);
/* Writes NAME.onnx and frees the graph; its path, malloc'd. */
char *onnx_write(onnx *m, const char *name);

/* y [N,2] = x [N,4] * {{1,2},{3,4},{5,6},{7,8}}, and small.onnx with it. */
onnx onnx_small(void);
char *onnx_write_small(void);

#endif
