#include <dpinfer/dpinfer.h>

#if __has_include("dpi_build.h")
#include "dpi_build.h"
#else
#define DPI_VERSION "0.1.0"
#endif

const char *dpi_status_name(dpi_status status)
{
    switch (status) {
#define X(name, number, blame, text)                                                                                   \
    case name: return #name;
        DPI_STATUS_LIST(X)
#undef X
    }
    return "?";
}

int dpi_status_exit_code(dpi_status status)
{
    switch (status) {
#define X(name, number, blame, text)                                                                                   \
    case name: return (blame) == 'u' ? 2 : (blame) == 'b' ? 3 : (name) == DPI_OK ? 0 : 1;
        DPI_STATUS_LIST(X)
#undef X
    }
    return 1;
}

const char *dpi_version(void) { return DPI_VERSION; }

size_t dpi_dtype_size(dpi_dtype dtype)
{
    switch (dtype) {
#define X(name, number, bytes, text)                                                                                   \
    case name: return bytes;
        DPI_DTYPE_LIST(X)
#undef X
    case DPI_DTYPE_NONE: break;
    }
    return 0;
}

const char *dpi_dtype_name(dpi_dtype dtype)
{
    switch (dtype) {
#define X(name, number, bytes, text)                                                                                   \
    case name: return text;
        DPI_DTYPE_LIST(X)
#undef X
    case DPI_DTYPE_NONE: break;
    }
    return "?";
}
