#include "runtime/model_hash.h"

#include "base/text.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NESTING_MAX 64 /* graphs in attributes of nodes of graphs: four messages a level */

/* The messages of onnx.proto on the way from a model to the names of its weight files, by field number. */
typedef enum message { MODEL, FUNCTION, GRAPH, NODE, ATTRIBUTE, SPARSE, TENSOR, ENTRY } message;
static const struct {
    unsigned char in, field, to;
} ways[] = {{MODEL, 7, GRAPH},       {MODEL, 25, FUNCTION},   {FUNCTION, 7, NODE},    {GRAPH, 1, NODE},
            {GRAPH, 5, TENSOR},      {GRAPH, 15, SPARSE},     {NODE, 5, ATTRIBUTE},   {ATTRIBUTE, 5, TENSOR},
            {ATTRIBUTE, 6, GRAPH},   {ATTRIBUTE, 10, TENSOR}, {ATTRIBUTE, 11, GRAPH}, {ATTRIBUTE, 22, SPARSE},
            {ATTRIBUTE, 23, SPARSE}, {SPARSE, 1, TENSOR},     {SPARSE, 2, TENSOR},    {TENSOR, 13, ENTRY}};

typedef struct span {
    const unsigned char *at, *end;
} span;

typedef struct weights {
    cache *store;
    char *folder; /* of the model, with a slash; "" for the current one */
    char *last;   /* name of the file that was added last: a model names one for each of its weights */
    size_t files;
    hash_state *state;
} weights;

static bool read_number(span *s, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; s->at < s->end && shift < 64; shift += 7) {
        unsigned char byte = *s->at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

/* The next field of a message and, where it has a length, its content; false at the end and where it is no message. */
static bool read_field(span *s, uint64_t *field, span *content)
{
    uint64_t tag, length = 0;
    *content = (span){NULL, NULL};
    if (s->at == s->end || !read_number(s, &tag))
        return false;
    *field = tag >> 3;
    switch (tag & 7) {
    case 0: return read_number(s, &length);
    case 1: length = 8; break;
    case 2:
        if (!read_number(s, &length))
            return false;
        break;
    case 5: length = 4; break;
    default: return false;
    }
    if (length > (uint64_t)(s->end - s->at))
        return false;
    if ((tag & 7) == 2)
        *content = (span){s->at, s->at + length};
    s->at += length;
    return true;
}

static void add_file(weights *w, const char *name)
{
    hash128 hash = {0, 0};
    if (w->last && strcmp(w->last, name) == 0)
        return;
    char *path = text_format("%s%s", name[0] == '/' ? "" : w->folder, name);
    bool there = path && cache_hash_file(w->store, path, &hash, NULL) == DPI_OK;
    hash_add_text(w->state, name);
    hash_add_u64(w->state, there);
    hash_add_u64(w->state, hash.low);
    hash_add_u64(w->state, hash.high);
    w->files++;
    free(path);
    free(w->last);
    w->last = strdup(name);
}

/* {key: "location", value: the file} */
static void add_entry(weights *w, span entry)
{
    uint64_t field;
    span content, key = {NULL, NULL}, value = {NULL, NULL};
    while (read_field(&entry, &field, &content))
        if (field == 1)
            key = content;
        else if (field == 2)
            value = content;
    if (key.end - key.at != 8 || memcmp(key.at, "location", 8) != 0 || value.at == value.end)
        return;
    char *name = strndup((const char *)value.at, (size_t)(value.end - value.at));
    if (name)
        add_file(w, name);
    free(name);
}

static void add_message(weights *w, message kind, span s, int depth)
{
    uint64_t field;
    span content;
    if (kind == ENTRY) {
        add_entry(w, s);
        return;
    }
    while (depth < NESTING_MAX && read_field(&s, &field, &content))
        for (size_t i = 0; content.at && i < sizeof ways / sizeof ways[0]; i++)
            if (ways[i].in == kind && ways[i].field == field)
                add_message(w, (message)ways[i].to, content, depth + 1);
}

static void add_onnx(weights *w, const char *path)
{
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return; /* opening the model says why */
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
        size_t bytes = (size_t)info.st_size;
        const unsigned char *data = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
        if (data != MAP_FAILED) {
            add_message(w, MODEL, (span){data, data + bytes}, 0);
            munmap((void *)(uintptr_t)data, bytes);
        }
    }
    close(fd);
}

dpi_status model_hash(cache *c, const backend_model *model, hash128 *content, dpi_error *error)
{
    if (!model->path) {
        *content = hash_of(model->data, model->bytes);
        return DPI_OK;
    }
    dpi_status status = cache_hash_file(c, model->path, content, error);
    if (status)
        return status;
    const char *slash = strrchr(model->path, '/'), *name = slash ? slash + 1 : model->path, *dot = strrchr(name, '.');
    weights w = {.store = c, .state = hash_new()};
    w.folder = strndup(model->path, (size_t)(name - model->path));
    char *bin = text_format("%.*s.bin", (int)(dot ? dot - name : 0), name);
    if (!w.state || !w.folder || !bin)
        status = error_set(error, DPI_E_SYSTEM, "out of memory");
    else if (strcmp(model->format, "xml") == 0)
        add_file(&w, bin);
    else if (strcmp(model->format, "onnx") == 0)
        add_onnx(&w, model->path);
    if (w.files) { /* a model in one file keeps its plain hash */
        hash_add_u64(w.state, content->low);
        hash_add_u64(w.state, content->high);
        *content = hash_end(w.state);
    } else if (w.state)
        hash_end(w.state);
    free(w.last);
    free(w.folder);
    free(bin);
    return status;
}
