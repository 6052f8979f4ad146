/* Parts of dpinfer that stand in files of their own because they need a library that may be missing. */
#ifndef DPI_DATA_MODULE_H
#define DPI_DATA_MODULE_H

#include "base/error.h"

#include <stdint.h>

/* Loads "dpinfer-NAME.so" from beside the program or this library, or from ../libexec/dpinfer, for good, and returns
 * its table `symbol`, whose first member is a version. NULL: DPI_E_BACKEND says what to install (`needs`, a package).
 */
const void *module_load(const char *name, const char *symbol, uint32_t version, const char *needs, dpi_error *error);

#endif
