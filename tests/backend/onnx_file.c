#include "backend/onnx_file.h"

#include "backend/openvino_ir.h" /* test_path, test_write */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Numbers of fields are those of onnx.proto; types 0 (a varint) and 2 (bytes with their length before) suffice. */
static void put_varint(text_buffer *t, uint64_t value)
{
    unsigned char byte;
    do {
        byte = (unsigned char)((value & 127) | (value > 127 ? 128 : 0));
        text_add_bytes(t, &byte, 1);
    } while (value >>= 7);
}

static void put_number(text_buffer *t, unsigned field, uint64_t value)
{
    put_varint(t, field << 3);
    put_varint(t, value);
}

static void put_bytes(text_buffer *t, unsigned field, const void *data, size_t bytes)
{
    put_varint(t, field << 3 | 2);
    put_varint(t, bytes);
    text_add_bytes(t, data, bytes);
}

static void put_text(text_buffer *t, unsigned field, const char *text) { put_bytes(t, field, text, strlen(text)); }

/* Puts a finished part into `t` and frees it. */
static void put_part(text_buffer *t, unsigned field, text_buffer *part)
{
    put_bytes(t, field, part->data ? part->data : "", part->length);
    text_free(part);
    *part = (text_buffer){0};
}

static void put_words(text_buffer *t, unsigned field, const char *words)
{
    for (size_t length; *words; words += length + (words[length] == ' ')) {
        length = strcspn(words, " ");
        put_bytes(t, field, words, length);
    }
}

void onnx_node(onnx *m, const char *type, const char *inputs, const char *outputs, const char *attribute, int64_t value)
{
    text_buffer node = {0}, a = {0};
    put_words(&node, 1, inputs);
    put_words(&node, 2, outputs);
    put_text(&node, 4, type);
    if (attribute) {
        put_text(&a, 1, attribute);
        put_number(&a, 3, (uint64_t)value);
        put_number(&a, 20, 2); /* INT */
        put_part(&node, 5, &a);
    }
    put_part(&m->graph, 1, &node);
}

void onnx_weight(onnx *m, const char *name, size_t rows, size_t columns, const float *values)
{
    text_buffer tensor = {0};
    put_number(&tensor, 1, rows);
    put_number(&tensor, 1, columns);
    put_number(&tensor, 2, ONNX_F32);
    put_text(&tensor, 8, name);
    put_bytes(&tensor, 9, values, rows * columns * sizeof *values);
    put_part(&m->graph, 5, &tensor);
}

/* TypeProto of a tensor. */
static text_buffer tensor_type(int element, const char *shape)
{
    text_buffer type = {0}, tensor = {0}, dims = {0}, dim = {0};
    put_number(&tensor, 1, (uint64_t)element);
    for (size_t length; shape && *shape; shape += length + (shape[length] == ' ')) {
        length = strcspn(shape, " ");
        if (*shape >= '0' && *shape <= '9')
            put_number(&dim, 1, strtoull(shape, NULL, 10));
        else if (*shape != '?')
            put_bytes(&dim, 2, shape, length);
        put_part(&dims, 1, &dim);
    }
    if (shape)
        put_part(&tensor, 2, &dims);
    put_part(&type, 1, &tensor);
    return type;
}

void onnx_port(onnx *m, unsigned direction, const char *name, int element, const char *shape, unsigned kind)
{
    text_buffer info = {0}, type = tensor_type(element, shape), inner = {0}, outer = {0};
    put_text(&info, 1, name);
    if (kind) {
        put_part(&inner, 1, &type);
        put_part(&outer, kind, &inner);
        type = outer;
    }
    put_part(&info, 2, &type);
    put_part(&m->graph, direction, &info);
}

void onnx_input(onnx *m, const char *name, int element, const char *shape)
{
    onnx_port(m, ONNX_INPUT, name, element, shape, ONNX_TENSOR);
}

void onnx_output(onnx *m, const char *name, int element, const char *shape)
{
    onnx_port(m, ONNX_OUTPUT, name, element, shape, ONNX_TENSOR);
}

text_buffer onnx_bytes(onnx *m)
{
    text_buffer model = {0}, opset = {0};
    put_text(&m->graph, 2, "test");
    put_number(&model, 1, 8); /* IR version */
    put_part(&model, 7, &m->graph);
    put_number(&opset, 2, 17);
    put_part(&model, 8, &opset);
    assert_false(model.failed);
    return model;
}

char *onnx_write(onnx *m, const char *name)
{
    char *file = text_format("%s.onnx", name), *path = test_path(file);
    text_buffer bytes = onnx_bytes(m);
    test_write(path, bytes.data, bytes.length);
    text_free(&bytes);
    free(file);
    return path;
}

onnx onnx_small(void)
{
    static const float w[4][2] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}};
    onnx m = {0};
    onnx_input(&m, "x", ONNX_F32, "N 4");
    onnx_weight(&m, "w", 4, 2, w[0]);
    onnx_node(&m, "MatMul", "x w", "y", NULL, 0);
    onnx_output(&m, "y", ONNX_F32, "N 2");
    return m;
}

char *onnx_write_small(void)
{
    onnx m = onnx_small();
    return onnx_write(&m, "small");
}
