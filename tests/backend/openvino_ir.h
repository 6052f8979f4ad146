/* Writes OpenVINO's IR by hand: small models whose every weight a test knows, without any Python. */
#ifndef DPI_TESTS_BACKEND_OPENVINO_IR_H
#define DPI_TESTS_BACKEND_OPENVINO_IR_H

#include "base/text.h"

/* A model in the making: text and weights; starts as {0}. Every layer has at most one output. */
typedef struct ir {
    text_buffer layers, edges, weights;
    int count;
} ir;

/* Adds a layer that takes the outputs of the layers from[] (ended by -1; NULL: none); its number. `data` are the
 * attributes of the operation. `dims` of its output, separated by commas, -1 for a free one; NULL for a layer without
 * an output. `name` of the output; NULL: nameless. */
int ir_layer(ir *m, const char *type, const char *data, const int *from, const char *precision, const char *dims,
             const char *name);
/* An input; `shape` as "?,4", `dims` the same as "-1,4". */
int ir_input(ir *m, const char *type, const char *precision, const char *shape, const char *dims, const char *name);
int ir_weight(ir *m, const char *type, const char *precision, const char *shape, const void *values, size_t bytes);
/* Makes the output of layer `from` one of the model. */
void ir_output(ir *m, int from);
/* The model without its weights, malloc'd. */
char *ir_text(const ir *m);
/* Writes NAME.xml and NAME.bin and frees the model; the path of the former, malloc'd. */
char *ir_write(ir *m, const char *name);

/* Path of a file in this program's own folder, malloc'd. */
char *test_path(const char *file);
void test_write(const char *path, const void *data, size_t bytes);

#endif
