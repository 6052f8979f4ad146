#include "backend/openvino_ir.h"

#include "backend/conformance.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

int ir_layer(ir *m, const char *type, const char *data, const int *from, const char *precision, const char *dims,
             const char *name)
{
    int id = m->count++, ports = 0;
    const char *version = strcmp(type, "NonZero") == 0 ? "opset3" : "opset1"; /* the first set that has it */
    text_add(&m->layers, "<layer id=\"%d\" name=\"layer%d\" type=\"%s\" version=\"%s\"><data %s/>", id, id, type,
             version, data);
    for (; from && from[ports] >= 0; ports++) {
        text_add(&m->layers, "%s<port id=\"%d\"/>", ports ? "" : "<input>", ports);
        text_add(&m->edges, "<edge from-layer=\"%d\" from-port=\"9\" to-layer=\"%d\" to-port=\"%d\"/>", from[ports], id,
                 ports);
    }
    text_add(&m->layers, "%s", ports ? "</input>" : "");
    if (dims) {
        text_add(&m->layers, "<output><port id=\"9\" precision=\"%s\"", precision);
        if (name)
            text_add(&m->layers, " names=\"%s\"", name);
        text_add(&m->layers, ">");
        for (const char *at = dims; *at; at += strspn(at, ", "))
            text_add(&m->layers, "<dim>%ld</dim>", strtol(at, (char **)(uintptr_t)&at, 10));
        text_add(&m->layers, "</port></output>");
    }
    text_add(&m->layers, "</layer>");
    return id;
}

int ir_input(ir *m, const char *type, const char *precision, const char *shape, const char *dims, const char *name)
{
    char data[128];
    snprintf(data, sizeof data, "shape=\"%s\" element_type=\"%s\"", shape, type);
    return ir_layer(m, "Parameter", data, NULL, precision, dims, name);
}

int ir_weight(ir *m, const char *type, const char *precision, const char *shape, const void *values, size_t bytes)
{
    char data[160];
    snprintf(data, sizeof data, "element_type=\"%s\" shape=\"%s\" offset=\"%zu\" size=\"%zu\"", type, shape,
             m->weights.length, bytes);
    text_add_bytes(&m->weights, values, bytes);
    return ir_layer(m, "Const", data, NULL, precision, shape, NULL);
}

void ir_output(ir *m, int from) { ir_layer(m, "Result", "", (const int[]){from, -1}, NULL, NULL, NULL); }

char *ir_text(const ir *m)
{
    char *text = text_format("<?xml version=\"1.0\"?><net name=\"test\" version=\"11\"><layers>%s</layers><edges>%s"
                             "</edges></net>",
                             m->layers.data, m->edges.data ? m->edges.data : "");
    assert_non_null(text);
    return text;
}

void test_write(const char *path, const void *data, size_t bytes)
{
    FILE *out = fopen(path, "wb");
    assert_non_null(out);
    if (bytes)
        assert_int_equal(fwrite(data, 1, bytes, out), bytes);
    assert_int_equal(fclose(out), 0);
}

char *test_path(const char *file)
{
    char *folder = conformance_folder(), *path = text_format("%s/%s", folder, file);
    assert_non_null(path);
    free(folder);
    return path;
}

char *ir_write(ir *m, const char *name)
{
    char file[64];
    snprintf(file, sizeof file, "%s.bin", name);
    char *bin = test_path(file), *text = ir_text(m);
    snprintf(file, sizeof file, "%s.xml", name);
    char *xml = test_path(file);
    test_write(bin, m->weights.data, m->weights.length);
    test_write(xml, text, strlen(text));
    text_free(&m->layers);
    text_free(&m->edges);
    text_free(&m->weights);
    free(text);
    free(bin);
    return xml;
}
