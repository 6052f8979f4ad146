/*
 * One suite over backend.h for every backend. A backend takes part with a kit, which makes the suite's models in the
 * backend's own format; a library that is not there skips the whole (exit code 77).
 *
 * The models, by name (ports in this order; N are the rows):
 *     mlp          input float32 [N,64] -> output float32 [N,10]
 *     mlp4         the same with a batch fixed at 4
 *     mlp-external the same as mlp, its weights in a file beside it
 *     multi        x float32 [N,4], k int64 [N,3] -> sum float32 [N,4], positive bool [N,4], total int64 [N]
 *     scale        x float32 [N,4], s float32 [4] (the same for all rows) -> y float32 [N,4]
 *     dynamic      x float32 [N,?] -> y float32 [N,?]
 *     doubled      x float32 [N,S] -> y float32 [N,?], twice as wide (ONNX alone)
 *     encoder      ids, mask int64 [N,?] -> output float32 [N,64]
 *     nonzero      x float32 [N,8] -> y, whose size depends on data
 *     identity-T   x T [N,3,4] -> y T [N,3,4], T a dtype of dpinfer or one that it does not know
 */
#ifndef DPI_TESTS_BACKEND_CONFORMANCE_H
#define DPI_TESTS_BACKEND_CONFORMANCE_H

#include "backend/backend.h"

typedef struct conformance_kit {
    const backend *backend;
    const char *device_kind, *device_name;
    const char *format;
    /* Path of the model, malloc'd; NULL: the kit has none of this name (said as a skip). */
    char *(*make)(const char *model);
    /* What output `output` of row `row` is; false: not known, only consistency is tested. */
    bool (*reference)(const char *model, const signature *sig, const backend_array *inputs, size_t row, size_t output,
                      void *result);
    /* Dtypes, separated by blanks, that the library itself computes in fewer bits, or shows as a narrower dtype; NULL:
     * none. */
    const char *narrowed;
    /* Dtypes, separated by blanks, that the library may refuse; NULL: at most four, none of the common ones. */
    const char *may_refuse;
    /* NULL, or a pattern below SOURCE/.deps/oldest: that library is tested, and skipped when it is not there. */
    const char *oldest;
    bool standard_cases; /* runs the ONNX standard's own cases */
    bool parser_crashes; /* its library dies of some broken models: they are tried in workers only */
} conformance_kit;

extern const conformance_kit conformance_kit_sim, conformance_kit_onnxruntime, conformance_kit_openvino,
    conformance_kit_tensorrt, conformance_kit_aoti;

/* Runs the suite; the program's exit code. */
int conformance_main(const conformance_kit *kit);

struct CMUnitTest;
/* For a backend's tests of its own: runs `count` tests, each with the suite (library loaded) as its state, once more
 * over the oldest library before (`oldest`, a pattern below SOURCE/.deps/oldest) unless `variable` of the environment
 * names another. Ends the program: 0, 1, or 77 where the library is not there. */
int conformance_group(const conformance_kit *kit, const char *variable, const char *oldest, dpi_log_level level,
                      const struct CMUnitTest *tests, size_t count);

/* ---- shared by the suite's files ---- */

typedef struct conformance {
    const conformance_kit *kit;
    backend_library *library;
    backend_device device;
    int cpu;
    logger log;
} conformance;

/* The Python environment that holds the suite's packages holds the libraries too. */
void conformance_use_python(void);
/* Path of one of the suite's models, malloc'd; skips the test when the kit has none. */
char *conformance_make(const conformance *suite, const char *model);
/* Defaults for opening `model`, which must outlive them. */
backend_open_options conformance_options(const conformance *suite, const backend_model *model);
/* Opens a model file. NULL with *status and *error when it is refused. */
backend_engine *conformance_open(const conformance *suite, const char *path, size_t max_rows, dpi_status *status,
                                 dpi_error *error);
/* An engine of one of the suite's models, which must open. */
backend_engine *conformance_open_named(const conformance *suite, const char *name, size_t max_rows);
/* Runs a program without a shell; its exit code, -1 when it was ended by a signal or could not be started. */
int conformance_spawn(const char *const *arguments);
/* The ONNX standard's cases (conformance_onnx.c). */
void conformance_standard_cases(void **state);
/* conformance_files.c */
void a_model_in_memory_is_the_same_model(void **state);
void external_weights_are_found_beside_the_model(void **state);
void broken_models_are_refused(void **state);
void a_model_that_lies_about_its_size_is_refused(void **state);
void a_path_that_is_no_file_is_named(void **state);
/* Folder of this program's models, malloc'd: emptied at the start, so that a model is made once. */
char *conformance_folder(void);
/* Build folder, source folder, and the Python with onnx and numpy. Static storage of the environment. */
const char *conformance_build_folder(void);
const char *conformance_source_folder(void);
const char *conformance_python(void);

#endif
