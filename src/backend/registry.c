#include "backend/backend.h"

#include <ctype.h>
#include <string.h>

static const backend *const backends[] = {&backend_tensorrt, &backend_openvino, &backend_onnxruntime, &backend_aoti,
                                          &backend_sim};

const backend *const *backend_list(size_t *count)
{
    *count = sizeof backends / sizeof backends[0];
    return backends;
}

const backend *backend_find(const char *name)
{
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++)
        if (strcmp(backends[i]->name, name) == 0)
            return backends[i];
    return NULL;
}

bool backend_lists(const char *list, const char *word)
{
    size_t length = strcspn(word, " ");
    for (const char *at = list; length && !word[length] && at && *at; at += strcspn(at, " ")) {
        at += strspn(at, " ");
        if (strncmp(at, word, length) == 0 && (at[length] == ' ' || !at[length]))
            return true;
    }
    return false;
}

const backend *backend_for(const char *format, const char *device_kind)
{
    for (size_t i = 0; i < sizeof backends / sizeof backends[0]; i++)
        if (backend_lists(backends[i]->formats, format) &&
            (!device_kind || backend_lists(backends[i]->device_kinds, device_kind)))
            return backends[i];
    return NULL;
}

void backend_format_of(const char *path, char format[16])
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path, *dot = strrchr(name, '.');
    size_t i = 0;
    for (const char *c = dot ? dot + 1 : ""; *c && i < 15; c++)
        format[i++] = (char)tolower((unsigned char)*c);
    format[i] = 0;
}

const char *backend_option(const backend_open_options *options, const char *key)
{
    const char *value = NULL;
    for (size_t i = 0; i < options->option_count; i++)
        if (strcmp(options->options[i].key, key) == 0)
            value = options->options[i].value; /* the last one counts */
    return value;
}

dpi_status backend_check_options(const backend_open_options *options, const char *backend_name, const char *known,
                                 dpi_error *error)
{
    for (size_t i = 0; i < options->option_count; i++)
        if (!backend_lists(known, options->options[i].key))
            return error_set(error, DPI_E_ARGUMENT, "the backend %s has no option \"%s\"; it knows: %s", backend_name,
                             options->options[i].key, known);
    return DPI_OK;
}
