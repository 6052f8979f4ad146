/* WebDataset tars: members whose names agree up to the first dot are one sample, and one of them is its image. */
#include "base/text.h"
#include "data/image_list.h"
#include "data/module.h"
#include "data/tar_module.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_TARS 1000000

static bool has_end(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length > tail && strcasecmp(text + length - tail, end) == 0;
}

bool tar_spec(const char *spec)
{
    static const char *const ends[] = {".tar",    ".tar.gz", ".tgz",     ".tar.zst", ".tzst",
                                       ".tar.xz", ".txz",    ".tar.bz2", ".tar.lz4"};
    bool is = false;
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        is |= has_end(spec, ends[i]);
    return is;
}

dpi_status tar_expand(const char *spec, path_list *paths, dpi_error *error)
{
    const char *open = strchr(spec, '{'), *close = open ? strchr(open, '}') : NULL,
               *dots = open ? strstr(open, "..") : NULL;
    if (!open || !close || !dots || dots > close) {
        path_list_add(paths, spec);
        return DPI_OK;
    }
    char first[24] = "", last[24] = "";
    size_t width = (size_t)(dots - open - 1), last_width = (size_t)(close - dots - 2);
    uint64_t from, to;
    if (width >= sizeof first || last_width >= sizeof last)
        return error_set(error, DPI_E_DATA, "%s: {..} takes two numbers, as in shards-{000..009}.tar", spec);
    memcpy(first, open + 1, width);
    memcpy(last, dots + 2, last_width);
    if (!text_to_u64(first, 0, 1ull << 40, &from) || !text_to_u64(last, from, from + MAX_TARS, &to))
        return error_set(error, DPI_E_DATA, "%s: {..} takes two numbers, as in shards-{000..009}.tar", spec);
    for (uint64_t i = from; i <= to; i++) {
        char *path = text_format("%.*s%0*llu%s", (int)(open - spec), spec, first[0] == '0' ? (int)width : 0,
                                 (unsigned long long)i, close + 1);
        dpi_status status = path ? tar_expand(path, paths, error) : error_set(error, DPI_E_SYSTEM, "out of memory");
        free(path);
        if (status)
            return status;
    }
    return DPI_OK;
}

/* ---- one tar ---------------------------------------------------------------------------------------------------- */

typedef struct reader {
    sample_list *list;
    const char *path, *member;
    uint32_t path_text;
    uint64_t file_bytes;
    char *key; /* of the sample that is being read, malloc'd */
    sample_row row;
    bool cut; /* a member reaches beyond the end */
    /* of a compressed one */
    uint64_t max_bytes; /* of an image that is kept */
    uint64_t left;      /* of the member that is being kept */
    dpi_status status;
    dpi_error *error;
} reader;

static void end_sample(reader *r)
{
    if (!r->key)
        return;
    r->row.name = sample_text(r->list, r->key);
    if (!r->row.bytes && !r->row.problem) {
        char text[64];
        snprintf(text, sizeof text, "the sample has no %.40s", r->member ? r->member : "image");
        r->row.problem = sample_text(r->list, text);
    }
    sample_add(r->list, r->row);
    free(r->key);
    r->key = NULL;
}

static bool is_wanted(const reader *r, const char *suffix)
{
    char dotted[64];
    if (r->member)
        return strcasecmp(suffix, r->member) == 0;
    return !strchr(suffix, '.') && snprintf(dotted, sizeof dotted, "x.%s", suffix) < (int)sizeof dotted &&
           image_suffix(dotted);
}

/* From here on the sample in hand is the member's. Its suffix, where that is what is wanted of it; else NULL. */
static const char *wanted_of_sample(reader *r, const char *member, sample_place place)
{
    const char *slash = strrchr(member, '/'), *base = slash ? slash + 1 : member, *dot = strchr(base, '.');
    if (!dot || dot == base)
        return NULL; /* no sample: hidden, or without a suffix */
    size_t length = (size_t)(dot - member);
    if (!r->key || strlen(r->key) != length || memcmp(r->key, member, length) != 0) {
        end_sample(r);
        r->key = strndup(member, length);
        r->list->failed |= !r->key;
        r->row = (sample_row){.path = r->path_text, .place = place};
    }
    return !r->row.bytes && !r->row.problem && is_wanted(r, dot + 1) ? dot + 1 : NULL;
}

static void take_place(reader *r, const tar_member *m, uint64_t offset, bool cut)
{
    r->row.offset = offset;
    r->row.bytes = m->bytes;
    const char *problem = cut              ? "the tar is cut short within it"
                          : !m->bytes      ? "is empty"
                          : !m->contiguous ? "it is stored with holes; pack the tar without --sparse"
                                           : NULL;
    if (problem)
        r->row.problem = sample_text(r->list, problem);
}

static bool take_member(void *context, const tar_member *m)
{
    reader *r = context;
    bool cut = m->bytes > r->file_bytes || m->offset > r->file_bytes - m->bytes;
    const char *suffix = wanted_of_sample(r, m->name, SAMPLE_IN_TAR);
    r->cut |= cut;
    if (suffix)
        take_place(r, m, m->offset, cut);
    return true;
}

static void warn(sample_list *list, const char *path, const char *why)
{
    char *before = list->warning;
    list->warning = text_format("%s%s%s %s", before ? before : "", before ? "; " : "", path, why);
    free(before);
}

/* ---- a compressed one ------------------------------------------------------------------------------------------- */

/* What unpacks the file; NULL where it is not compressed. */
static const char *tool_for(int fd)
{
    static const struct {
        const char *magic, *tool;
        size_t length;
    } known[] = {{"\x1f\x8b", "gunzip", 2},
                 {"\x28\xb5\x2f\xfd", "zstd -d", 4},
                 {"BZh", "bunzip2", 3},
                 {"\x04\x22\x4d\x18", "lz4 -d", 4},
                 {"\xfd"
                  "7zXZ",
                  "unxz", 5}};
    char head[8] = "";
    ssize_t n = pread(fd, head, sizeof head, 0);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (n >= (ssize_t)known[i].length && memcmp(head, known[i].magic, known[i].length) == 0)
            return known[i].tool;
    return NULL;
}

static bool take_packed_member(void *context, const tar_member *m)
{
    reader *r = context;
    r->left = 0;
    if (!wanted_of_sample(r, m->name, SAMPLE_IN_SPOOL))
        return true;
    take_place(r, m, r->list->spool.written, false);
    if (!r->row.problem && m->bytes <= r->max_bytes) /* a larger one is a bad row whatever it holds */
        r->left = m->bytes;
    return true;
}

static bool take_piece(void *context, const void *data, size_t bytes)
{
    reader *r = context;
    size_t part = !data ? 0 : bytes < r->left ? bytes : (size_t)r->left;
    r->status = spool_count(&r->list->spool, bytes, r->path, r->error);
    if (!r->status && part)
        r->status = spool_write(&r->list->spool, data, part, r->error);
    r->left -= part;
    return !r->status;
}

static dpi_status unpack_tar(const tar_module *module, int fd, reader *r, const spool_limits *limits, tar_end *end,
                             char *why, size_t size)
{
    spool *to = &r->list->spool;
    r->status = to->limits ? DPI_OK : spool_begin(limits, to, r->error);
    if (r->status)
        return r->status;
    *end = module->unpack(fd, take_packed_member, take_piece, r, why, size);
    if (r->left && *end == TAR_DAMAGED) {
        r->cut = true;
        r->row.problem = sample_text(r->list, "the tar is cut short or damaged within it");
    }
    return r->status;
}

/* ---- all of them ------------------------------------------------------------------------------------------------ */

static dpi_status read_tar(const tar_module *module, int fd, reader *r, const spool_limits *limits, dpi_error *error)
{
    struct stat info;
    char why[256] = "";
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode))
        return error_set(error, DPI_E_DATA, "%s is no regular file", r->path);
    const char *tool = tool_for(fd);
    tar_end end = TAR_DAMAGED;
    size_t before = r->list->count;
    r->file_bytes = (uint64_t)info.st_size;
    r->error = error;
    if (!tool)
        end = module->scan(fd, take_member, r, why, sizeof why);
    else if (unpack_tar(module, fd, r, limits, &end, why, sizeof why))
        return r->status;
    bool none = r->list->count == before && !r->key;
    end_sample(r);
    if (none && end == TAR_DAMAGED && tool)
        return error_set(error, DPI_E_DATA, "%s holds no tar that can be unpacked (%s); %s may say more", r->path, why,
                         tool);
    if (none && end == TAR_DAMAGED)
        return error_set(error, DPI_E_DATA, "%s is no tar: %s", r->path, why);
    if (end == TAR_DAMAGED || r->cut)
        warn(r->list, r->path, "is cut short or damaged: the samples before that are computed");
    if (end == TAR_DAMAGED && !r->cut) { /* nobody knows which samples are lost: one row stands for them */
        uint32_t problem = sample_text(r->list, "the tar is cut short or damaged from here on");
        sample_add(r->list, (sample_row){.path = r->path_text, .name = r->path_text, .problem = problem});
    }
    return DPI_OK;
}

dpi_status tar_list(const path_list *paths, const image_wants *wants, sample_list *list, dpi_error *error)
{
    const tar_module *module = module_load("tar", TAR_MODULE_SYMBOL, TAR_MODULE_VERSION, "libarchive-dev", error);
    dpi_status status = module ? DPI_OK : DPI_E_BACKEND;
    for (size_t i = 0; !status && i < paths->count; i++) {
        const char *path = paths->items[i];
        int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (fd < 0)
            return error_set_errno(error, DPI_E_DATA, errno, "cannot open %s", path);
        reader r = {.list = list,
                    .path = path,
                    .member = wants->member,
                    .max_bytes = wants->max_bytes,
                    .path_text = sample_text(list, path)};
        sample_mark(list, path);
        status = read_tar(module, fd, &r, wants->limits, error);
        free(r.key);
        close(fd);
    }
    if (!status && !list->count)
        status = error_set(error, DPI_E_DATA, "there is no sample in %s", paths->count ? paths->items[0] : "the tars");
    return status;
}
