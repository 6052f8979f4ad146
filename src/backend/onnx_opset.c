#include "backend/onnx_opset.h"

#include "base/file.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Of onnx.proto: ModelProto.opset_import, a list of OperatorSetIdProto {domain, version}; "" and "ai.onnx" are the
 * standard operators. */
#define OPSET_IMPORT 8u
#define DOMAIN       1u
#define VERSION      2u

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

/* A file, or bytes in memory. */
typedef struct bytes {
    int fd;
    const unsigned char *data;
    uint64_t size;
} bytes;

static bool read_at(const bytes *b, uint64_t at, void *to, uint64_t count)
{
    if (at > b->size || count > b->size - at)
        return false;
    if (b->data) {
        memcpy(to, b->data + at, count);
        return true;
    }
    return file_read_at(b->fd, to, count, at, "the model", NULL) == DPI_OK;
}

static bool read_varint(const bytes *b, uint64_t *at, uint64_t *value)
{
    *value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        unsigned char byte;
        if (!read_at(b, (*at)++, &byte, 1))
            return false;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (!(byte & 0x80))
            return true;
    }
    return false;
}

/* The field at *at: its number, where its content stands, and *at behind it. A varint's content is its value. */
static bool next_field(const bytes *b, uint64_t *at, uint64_t end, uint64_t *number, uint64_t *content,
                       uint64_t *length)
{
    uint64_t tag;
    *length = 0;
    if (*at >= end || !read_varint(b, at, &tag))
        return false;
    *number = tag >> 3;
    switch (tag & 7) {
    case WIRE_VARINT: return read_varint(b, at, content) && *at <= end;
    case WIRE_64: *length = 8; break;
    case WIRE_32: *length = 4; break;
    case WIRE_BYTES:
        if (!read_varint(b, at, length))
            return false;
        break;
    default: return false;
    }
    *content = *at;
    if (*at > end || *length > end - *at)
        return false;
    *at += *length;
    return true;
}

static int64_t version_of(const bytes *b, uint64_t at, uint64_t end)
{
    uint64_t number, content, length, version = 0;
    bool standard = true;
    while (next_field(b, &at, end, &number, &content, &length)) {
        char domain[8] = "";
        if (number == VERSION && !length)
            version = content;
        else if (number == DOMAIN && length)
            standard = length == 7 && read_at(b, content, domain, 7) && strcmp(domain, "ai.onnx") == 0;
    }
    return standard && version <= INT32_MAX ? (int64_t)version : 0;
}

static int64_t find_opset(const bytes *b)
{
    uint64_t at = 0, number, content, length;
    int64_t opset = 0;
    while (next_field(b, &at, b->size, &number, &content, &length))
        if (number == OPSET_IMPORT && length) {
            int64_t version = version_of(b, content, content + length);
            opset = version > opset ? version : opset;
        }
    return opset;
}

int64_t onnx_opset(const backend_model *model)
{
    if (!model->path)
        return find_opset(&(bytes){.fd = -1, .data = model->data, .size = model->bytes});
    struct stat info;
    int fd = file_open(model->path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    int64_t opset = fstat(fd, &info) == 0 ? find_opset(&(bytes){.fd = fd, .size = (uint64_t)info.st_size}) : 0;
    close(fd);
    return opset;
}
