/* Where the suite's models come from, and what they compute. */
#include "backend/conformance.h"
#include "backend/sim.h"
#include "base/file.h"
#include "base/text.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

const char *conformance_build_folder(void) { return getenv("DPI_BUILD") ? getenv("DPI_BUILD") : "."; }

const char *conformance_source_folder(void) { return getenv("DPI_SRC") ? getenv("DPI_SRC") : "."; }

const char *conformance_python(void) { return getenv("DPI_PYTHON") ? getenv("DPI_PYTHON") : "python3"; }

int conformance_spawn(const char *const *arguments)
{
    pid_t child;
    int status = 0;
    if (posix_spawnp(&child, arguments[0], NULL, NULL, (char *const *)(uintptr_t)arguments, environ) != 0)
        return -1;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

char *conformance_folder(void)
{
    return text_format("%s/conformance/%s", conformance_build_folder(), program_invocation_short_name);
}

static char *model_path(const char *model, const char *format)
{
    char *folder = conformance_folder();
    char *path = NULL;
    if (folder && file_make_folders(folder, NULL) == DPI_OK)
        path = text_format("%s/%s.%s", folder, model, format);
    free(folder);
    return path;
}

/* ---- sim -------------------------------------------------------------------------------------------------------- */

static char *sim_text(const char *model)
{
    static const char *const texts[][2] = {
        {"mlp", "input input float32 N 64\noutput output float32 N 10\n"},
        {"mlp4", "input input float32 4 64\noutput output float32 4 10\n"},
        {"multi", "input x float32 N 4\ninput k int64 N 3\n"
                  "output sum float32 N 4\noutput positive bool N 4\noutput total int64 N\n"},
        {"scale", "input x float32 N 4\ninput s float32 broadcast 4\noutput y float32 N 4\n"},
        {"dynamic", "input x float32 N ?\noutput y float32 N x.1\n"},
        {"encoder", "input ids int64 N ?\ninput mask int64 N ?\noutput output float32 N 64\n"},
        {"nonzero", "input x float32 N 8\noutput y int64 N 2\ndata_sized 1\n"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (strcmp(model, texts[i][0]) == 0)
            return strdup(texts[i][1]);
    if (strncmp(model, "identity-", 9) == 0)
        return text_format("input x %s N 3 4\noutput y %s N 3 4\n", model + 9, model + 9);
    return NULL;
}

static char *sim_make(const char *model)
{
    char *text = sim_text(model), *path = text ? model_path(model, "sim") : NULL;
    FILE *out = path ? fopen(path, "w") : NULL;
    bool written = out && fputs(text, out) >= 0;
    if (out)
        written = fclose(out) == 0 && written;
    free(text);
    if (written)
        return path;
    free(path);
    return NULL;
}

static bool sim_reference(const char *model, const signature *sig, const backend_array *inputs, size_t row,
                          size_t output, void *result)
{
    char *text = sim_text(model);
    sim_model *m = malloc(sizeof *m);
    bool known = text && m && sim_model_parse(text, strlen(text), model, m, NULL) == DPI_OK;
    const void *rows[PORT_MAX] = {0};
    size_t bytes[PORT_MAX] = {0}, elements = 1;
    for (size_t i = 0; known && i < sig->input_count; i++) {
        const backend_array *a = &inputs[i];
        known = m->broadcast[i] ? shape_bytes(sig->inputs[i].dtype, a->shape, a->rank, &bytes[i])
                                : shape_row_bytes(sig->inputs[i].dtype, a->shape, a->rank, &bytes[i]);
        rows[i] = (const char *)a->data + (m->broadcast[i] ? 0 : row * bytes[i]);
    }
    const port *p = &sig->outputs[output];
    for (int k = 1; k < p->rank; k++) /* a free axis of the suite's models is that of the first input */
        elements *= (size_t)(p->shape[k] < 0 ? inputs[0].shape[k] : p->shape[k]);
    int at = known ? port_find(m->sig.outputs, m->sig.output_count, p->name) : -1;
    if (at >= 0)
        sim_expected_row(m, rows, bytes, (size_t)at, elements, result);
    free(text);
    free(m);
    return at >= 0;
}

const conformance_kit conformance_kit_sim = {.backend = &backend_sim,
                                             .device_kind = "sim",
                                             .device_name = "sim:0",
                                             .format = "sim",
                                             .make = sim_make,
                                             .reference = sim_reference};

/* ---- ONNX ------------------------------------------------------------------------------------------------------- */

static const char *onnx_element(const char *dtype)
{
    static const char *const names[][2] = {
        {"float16", "fp16"}, {"bfloat16", "bf16"}, {"float32", "fp32"}, {"float64", "fp64"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(dtype, names[i][0]) == 0)
            return names[i][1];
    return dtype;
}

static char *onnx_make(const char *model)
{
    char *path = model_path(model, "onnx"), *tool = text_format("%s/tools/make_model.py", conformance_source_folder());
    char *own = text_format("%s/tests/backend/conformance_models.py", conformance_source_folder());
    const char *command[10] = {conformance_python(), tool, model, path};
    if (strcmp(model, "mlp4") == 0) {
        command[2] = "mlp";
        command[4] = "--batch";
        command[5] = "4";
    } else if (strcmp(model, "mlp-external") == 0) {
        command[2] = "mlp";
        command[4] = "--external";
    } else if (strncmp(model, "identity-", 9) == 0) {
        command[2] = "identity";
        command[4] = "--elem";
        command[5] = onnx_element(model + 9);
        command[6] = "--shape";
        command[7] = "3,4";
    } else if (backend_lists("scale dynamic doubled hostile", model))
        command[1] = own;
    bool made = path && tool && own && (access(path, R_OK) == 0 || conformance_spawn(command) == 0);
    free(tool);
    free(own);
    if (made)
        return path;
    free(path);
    return NULL;
}

static bool multi_reference(const backend_array *inputs, size_t row, const char *output, void *result)
{
    const float *x = (const float *)inputs[0].data + row * 4;
    const int64_t *k = (const int64_t *)inputs[1].data + row * 3, total = k[0] + k[1] + k[2];
    for (size_t e = 0; e < 4; e++) {
        float sum = x[e] + (float)total;
        if (strcmp(output, "sum") == 0)
            ((float *)result)[e] = sum;
        else if (strcmp(output, "positive") == 0)
            ((unsigned char *)result)[e] = sum > 0;
        else
            *(int64_t *)result = total;
    }
    return true;
}

static bool onnx_reference(const char *model, const signature *sig, const backend_array *inputs, size_t row,
                           size_t output, void *result)
{
    size_t bytes = 0;
    if (strcmp(model, "multi") == 0)
        return multi_reference(inputs, row, sig->outputs[output].name, result);
    if (!shape_row_bytes(sig->inputs[0].dtype, inputs[0].shape, inputs[0].rank, &bytes))
        return false;
    const char *x = (const char *)inputs[0].data + row * bytes;
    if (strncmp(model, "identity-", 9) == 0) {
        memcpy(result, x, bytes);
        return true;
    }
    bool scale = strcmp(model, "scale") == 0;
    if (!scale && strcmp(model, "dynamic") != 0)
        return false;
    for (size_t e = 0; e < bytes / sizeof(float); e++) {
        float value = ((const float *)(const void *)x)[e];
        ((float *)result)[e] = scale ? value * ((const float *)inputs[1].data)[e] : value > 0 ? value : 0;
    }
    return true;
}

const conformance_kit conformance_kit_onnxruntime = {.backend = &backend_onnxruntime,
                                                     .device_kind = "cpu",
                                                     .device_name = "cpu:0",
                                                     .format = "onnx",
                                                     .make = onnx_make,
                                                     .reference = onnx_reference,
                                                     .standard_cases = true};

const conformance_kit conformance_kit_openvino = {.backend = &backend_openvino,
                                                  .device_kind = "cpu",
                                                  .device_name = "cpu:0",
                                                  .format = "onnx",
                                                  .make = onnx_make,
                                                  .reference = onnx_reference,
                                                  .narrowed = "int64",
                                                  .standard_cases = true};

/* TensorRT needs the range of every free axis, which the suite does not give, and before version 10 has no int64. */
static char *tensorrt_make(const char *model)
{
    return backend_lists("dynamic doubled encoder multi", model) ? NULL : onnx_make(model);
}

const conformance_kit conformance_kit_tensorrt = {.backend = &backend_tensorrt,
                                                  .device_kind = "cuda",
                                                  .device_name = "cuda:0",
                                                  .format = "onnx",
                                                  .make = tensorrt_make,
                                                  .reference = onnx_reference,
                                                  .narrowed = "int64 float64",
                                                  .parser_crashes = true,
                                                  .may_refuse = "bool int8 uint8 int16 uint16 uint32 uint64 bfloat16 "
                                                                "float64"};

/* ---- PyTorch ---------------------------------------------------------------------------------------------------- */

/* All models at once, in one process: starting PyTorch takes longer than compiling one. They are kept from run to run,
 * for they take minutes; the script makes those anew that are older than itself. */
static char *aoti_make(const char *model)
{
    static int code = -1;
    char *folder = text_format("%s/aoti-models", conformance_build_folder());
    char *path = text_format("%s/%s.pt2", folder, model);
    char *own = text_format("%s/tests/backend/aoti_models.py", conformance_source_folder());
    const char *const command[] = {conformance_python(), own, folder, NULL};
    if (code < 0 && file_make_folders(folder, NULL) == DPI_OK)
        code = conformance_spawn(command);
    free(own);
    free(folder);
    if (code == 0 && path && access(path, R_OK) == 0)
        return path;
    free(path);
    return NULL;
}

const conformance_kit conformance_kit_aoti = {.backend = &backend_aoti,
                                              .device_kind = "cpu",
                                              .device_name = "cpu:0",
                                              .format = "pt2",
                                              .make = aoti_make,
                                              .reference = onnx_reference,
                                              .may_refuse = ""};
