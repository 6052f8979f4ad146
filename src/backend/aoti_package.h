/* A .pt2 file: an archive of a compiled model's library, for a GPU its kernels, and what was noted when it was
 * compiled. */
#ifndef DPI_BACKEND_AOTI_PACKAGE_H
#define DPI_BACKEND_AOTI_PACKAGE_H

#include "backend/backend.h"
#include "backend/kernel_folder.h"
#include "backend/stored_zip.h"

typedef struct aoti_package {
    char name[512];             /* for messages */
    char device[16];            /* that it was compiled for: "cpu", "cuda" */
    char isa[64];               /* "AVX512 AVX512_VNNI", "" for none */
    char capability[16];        /* of the GPU: "90", "" for none */
    char *inputs, *outputs;     /* DPINFER_INPUTS and DPINFER_OUTPUTS as dpinfer.compile notes them; NULL: not noted */
    const void *mapped, *given; /* the archive: a mapping of the file, or the caller's memory */
    size_t bytes;
    stored_zip zip;
    const zip_entry *library;
    size_t folder_length; /* of library->name: the model's folder, with its slash */
    int library_fd; /* the library in memory of its own, which is opened as /proc/self/fd/N and read again later */
    kernel_folder kernels; /* the GPU's, where there are some */
} aoti_package;

/* Opens and checks a package. DPI_E_MODEL: it is damaged, holds several models, or needs custom operators, which are
 * named: they run through an object of PyTorch's that has no C interface. DPI_E_DEVICE: compiled for another kind of
 * device, or for instructions that this processor lacks. aoti_package_close ends it, also after a failure. */
dpi_status aoti_package_open(const backend_model *model, const backend_device *device, aoti_package *p,
                             dpi_error *error);
/* Writes library and kernels to where they can be loaded from. */
dpi_status aoti_package_unpack(aoti_package *p, dpi_error *error);
void aoti_package_close(aoti_package *p);

/* The range of each axis of one input: min == max for a fixed one. */
typedef struct aoti_range {
    int64_t min[DPI_MAX_RANK], max[DPI_MAX_RANK];
} aoti_range;

/* Reads "x float32 1:256,3,224,224;ids int64 1:256,2:512" into ports and ranges: name, dtype and for each axis a number
 * or least:most, axis 0 the rows. `source` names the text in messages (DPI_E_MODEL). */
dpi_status aoti_inputs_parse(const char *text, const char *source, port *ports, aoti_range *ranges, size_t *count,
                             dpi_error *error);

#endif
