/*
 * The part of OpenVINO's C interface (openvino/c/openvino.h, 2025.0 to 2026.4) that dpinfer uses, loaded by name, so
 * that no header is needed to build. Element types are not declared here: their numbers shifted between releases and
 * are learnt at run time (openvino.c).
 */
#ifndef DPI_BACKEND_OPENVINO_API_H
#define DPI_BACKEND_OPENVINO_API_H

#include <stddef.h>
#include <stdint.h>

typedef struct ov_opaque ov_opaque; /* every handle of the library */

typedef struct ov_shape {
    int64_t rank;
    int64_t *dims;
} ov_shape;

typedef struct ov_dimension {
    int64_t min, max;
} ov_dimension;

typedef struct ov_partial_shape {
    ov_dimension rank; /* min == max where it is known */
    ov_dimension *dims;
} ov_partial_shape;

typedef struct ov_version {
    const char *number, *description;
} ov_version;

/* name without ov_, return type, arguments; an int result is 0 for success */
#define OV_FUNCTIONS(X)                                                                                                \
    X(get_openvino_version, int, (ov_version * version))                                                               \
    X(version_free, void, (ov_version * version))                                                                      \
    X(get_error_info, const char *, (int status))                                                                      \
    X(get_last_err_msg, const char *, (void))                                                                          \
    X(free, void, (const char *content))                                                                               \
    X(core_create, int, (ov_opaque * *core))                                                                           \
    X(core_free, void, (ov_opaque * core))                                                                             \
    X(core_set_property, int, (const ov_opaque *core, const char *device, ...))                                        \
    X(core_get_property, int, (const ov_opaque *core, const char *device, const char *key, char **value))              \
    X(core_read_model, int, (const ov_opaque *core, const char *path, const char *bin_path, ov_opaque **model))        \
    X(core_read_model_from_memory_buffer, int,                                                                         \
      (const ov_opaque *core, const char *data, size_t bytes, const ov_opaque *weights, ov_opaque **model))            \
    X(core_compile_model, int,                                                                                         \
      (const ov_opaque *core, const ov_opaque *model, const char *device, size_t properties, ov_opaque **compiled,     \
       ...))                                                                                                           \
    X(core_import_model, int,                                                                                          \
      (const ov_opaque *core, const char *data, size_t bytes, const char *device, ov_opaque **compiled))               \
    X(model_free, void, (ov_opaque * model))                                                                           \
    X(model_const_input_by_index, int, (const ov_opaque *model, size_t index, ov_opaque **port))                       \
    X(compiled_model_inputs_size, int, (const ov_opaque *compiled, size_t *count))                                     \
    X(compiled_model_outputs_size, int, (const ov_opaque *compiled, size_t *count))                                    \
    X(compiled_model_input_by_index, int, (const ov_opaque *compiled, size_t index, ov_opaque **port))                 \
    X(compiled_model_output_by_index, int, (const ov_opaque *compiled, size_t index, ov_opaque **port))                \
    X(compiled_model_create_infer_request, int, (const ov_opaque *compiled, ov_opaque **request))                      \
    X(compiled_model_export_model, int, (const ov_opaque *compiled, const char *path))                                 \
    X(compiled_model_free, void, (ov_opaque * compiled))                                                               \
    X(infer_request_set_input_tensor_by_index, int, (ov_opaque * request, size_t index, const ov_opaque *tensor))      \
    X(infer_request_set_output_tensor_by_index, int, (ov_opaque * request, size_t index, const ov_opaque *tensor))     \
    X(infer_request_get_output_tensor_by_index, int, (const ov_opaque *request, size_t index, ov_opaque **tensor))     \
    X(infer_request_infer, int, (ov_opaque * request))                                                                 \
    X(infer_request_free, void, (ov_opaque * request))                                                                 \
    X(port_get_any_name, int, (const ov_opaque *port, char **name))                                                    \
    X(port_get_partial_shape, int, (const ov_opaque *port, ov_partial_shape *shape))                                   \
    X(port_get_element_type, int, (const ov_opaque *port, int *type))                                                  \
    X(output_const_port_free, void, (ov_opaque * port))                                                                \
    X(partial_shape_free, void, (ov_partial_shape * shape))                                                            \
    X(tensor_create_from_host_ptr, int, (int type, ov_shape shape, void *data, ov_opaque **tensor))                    \
    X(tensor_get_shape, int, (const ov_opaque *tensor, ov_shape *shape))                                               \
    X(tensor_get_byte_size, int, (const ov_opaque *tensor, size_t *bytes))                                             \
    X(tensor_data, int, (const ov_opaque *tensor, void **data))                                                        \
    X(tensor_free, void, (ov_opaque * tensor))                                                                         \
    X(shape_free, int, (ov_shape * shape))

typedef struct ov_api {
#define X(name, result, arguments) result(*name) arguments;
    OV_FUNCTIONS(X)
#undef X
} ov_api;

#endif
