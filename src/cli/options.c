#include "cli/cli.h"

#include "base/tensor.h"
#include "data/npy.h"
#include "data/source.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define BROADCAST_MAX_BYTES (1ull << 32)

enum {
    OPT_DEVICES = 256,
    OPT_BACKEND,
    OPT_LIBRARY,
    OPT_PRECISION,
    OPT_BATCH,
    OPT_SPLIT,
    OPT_TOTAL,
    OPT_BROADCAST,
    OPT_TRUST,
    OPT_DETERMINISTIC,
    OPT_ISOLATION,
    OPT_WAIT,
    OPT_QUEUE,
    OPT_ARENA,
    OPT_PROVIDER,
    OPT_PROVIDER_OPTION,
    OPT_BACKEND_OPTION,
    OPT_SHAPE,
    OPT_WORKER,
    OPT_NO_SANDBOX,
    OPT_CORE_DUMPS,
    OPT_WORKER_MEMORY,
    OPT_CACHE_DIR,
    OPT_NO_CACHE,
    OPT_COMPILE_TIMEOUT,
    OPT_SLICE_TIMEOUT,
    OPT_ON_BAD_ROW,
    OPT_MAX_BAD_ROWS,
    OPT_MAX_DEATHS,
    OPT_EVENTS,
    OPT_TRACE,
    OPT_INPUT,
    OPT_OUTPUT,
    OPT_PREPROCESS,
    OPT_RESIZE,
    OPT_CROP,
    OPT_MEAN,
    OPT_STD,
    OPT_SCALE,
    OPT_LAYOUT,
    OPT_INTERPOLATION,
    OPT_COLOR,
    OPT_MEMBER,
    OPT_MAX_PIXELS,
    OPT_MAX_IMAGE_BYTES,
    OPT_LOADER_THREADS,
    OPT_SPOOL_MAX,
    OPT_ROWS,
    OPT_TOP,
    OPT_LABELS,
    OPT_ACCURACY,
    OPT_NO_OVERWRITE,
    OPT_RESTART,
    OPT_NO_JOURNAL,
    OPT_JOURNAL_EVERY,
    OPT_DRY_RUN,
    OPT_JSON,
    OPT_MODE,
    OPT_REPEATS,
    OPT_SECONDS,
    OPT_SCALING,
    OPT_HELP,
};

static const struct option table[] = {
    {"devices", 1, NULL, OPT_DEVICES},
    {"device", 1, NULL, OPT_DEVICES},
    {"backend", 1, NULL, OPT_BACKEND},
    {"library", 1, NULL, OPT_LIBRARY},
    {"precision", 1, NULL, OPT_PRECISION},
    {"batch", 1, NULL, OPT_BATCH},
    {"split", 1, NULL, OPT_SPLIT},
    {"total-batch", 1, NULL, OPT_TOTAL},
    {"broadcast", 1, NULL, OPT_BROADCAST},
    {"trust-rows", 0, NULL, OPT_TRUST},
    {"deterministic", 0, NULL, OPT_DETERMINISTIC},
    {"isolation", 1, NULL, OPT_ISOLATION},
    {"wait", 1, NULL, OPT_WAIT},
    {"queue-depth", 1, NULL, OPT_QUEUE},
    {"arena-max", 1, NULL, OPT_ARENA},
    {"provider", 1, NULL, OPT_PROVIDER},
    {"provider-option", 1, NULL, OPT_PROVIDER_OPTION},
    {"backend-option", 1, NULL, OPT_BACKEND_OPTION},
    {"shape", 1, NULL, OPT_SHAPE},
    {"worker", 1, NULL, OPT_WORKER},
    {"no-sandbox", 0, NULL, OPT_NO_SANDBOX},
    {"core-dumps", 0, NULL, OPT_CORE_DUMPS},
    {"worker-memory", 1, NULL, OPT_WORKER_MEMORY},
    {"cache-dir", 1, NULL, OPT_CACHE_DIR},
    {"no-cache", 0, NULL, OPT_NO_CACHE},
    {"compile-timeout", 1, NULL, OPT_COMPILE_TIMEOUT},
    {"slice-timeout", 1, NULL, OPT_SLICE_TIMEOUT},
    {"on-bad-row", 1, NULL, OPT_ON_BAD_ROW},
    {"max-bad-rows", 1, NULL, OPT_MAX_BAD_ROWS},
    {"max-deaths", 1, NULL, OPT_MAX_DEATHS},
    {"events", 1, NULL, OPT_EVENTS},
    {"trace", 1, NULL, OPT_TRACE},
    {"input", 1, NULL, OPT_INPUT},
    {"output", 1, NULL, OPT_OUTPUT},
    {"preprocess", 1, NULL, OPT_PREPROCESS},
    {"resize", 1, NULL, OPT_RESIZE},
    {"crop", 1, NULL, OPT_CROP},
    {"mean", 1, NULL, OPT_MEAN},
    {"std", 1, NULL, OPT_STD},
    {"scale", 1, NULL, OPT_SCALE},
    {"layout", 1, NULL, OPT_LAYOUT},
    {"interpolation", 1, NULL, OPT_INTERPOLATION},
    {"color", 1, NULL, OPT_COLOR},
    {"member", 1, NULL, OPT_MEMBER},
    {"max-pixels", 1, NULL, OPT_MAX_PIXELS},
    {"max-image-bytes", 1, NULL, OPT_MAX_IMAGE_BYTES},
    {"loader-threads", 1, NULL, OPT_LOADER_THREADS},
    {"spool-max", 1, NULL, OPT_SPOOL_MAX},
    {"rows", 1, NULL, OPT_ROWS},
    {"top", 1, NULL, OPT_TOP},
    {"labels", 1, NULL, OPT_LABELS},
    {"accuracy", 1, NULL, OPT_ACCURACY},
    {"no-overwrite", 0, NULL, OPT_NO_OVERWRITE},
    {"restart", 0, NULL, OPT_RESTART},
    {"no-journal", 0, NULL, OPT_NO_JOURNAL},
    {"journal-every", 1, NULL, OPT_JOURNAL_EVERY},
    {"dry-run", 0, NULL, OPT_DRY_RUN},
    {"json", 2, NULL, OPT_JSON},
    {"mode", 1, NULL, OPT_MODE},
    {"repeats", 1, NULL, OPT_REPEATS},
    {"seconds", 1, NULL, OPT_SECONDS},
    {"scaling", 0, NULL, OPT_SCALING},
    {"verbose", 0, NULL, 'v'},
    {"quiet", 0, NULL, 'q'},
    {"help", 0, NULL, OPT_HELP},
    {NULL, 0, NULL, 0},
};

static dpi_status bad_value(const char *flag, const char *wants, const char *got, dpi_error *error)
{
    return error_set(error, DPI_E_ARGUMENT, "--%s takes %s, not \"%.100s\"", flag, wants, got);
}

/* One of several words; its index. */
static dpi_status take_word(const char *flag, const char *text, const char *const *words, size_t count, int *index,
                            dpi_error *error)
{
    char all[256] = "";
    for (size_t i = 0; i < count; i++) {
        if (strcmp(text, words[i]) == 0) {
            *index = (int)i;
            return DPI_OK;
        }
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", i ? ", " : "", words[i]);
    }
    return bad_value(flag, all, text, error);
}

static dpi_status take_number(const char *flag, const char *text, uint64_t min, uint64_t max, uint64_t *value,
                              dpi_error *error)
{
    return text_to_u64(text, min, max, value) ? DPI_OK : bad_value(flag, "a number", text, error);
}

static dpi_status take_size_list(const char *flag, const char *text, size_t *list, size_t capacity, uint64_t min,
                                 size_t *count, dpi_error *error)
{
    *count = 0;
    for (const char *at = text;; at++) {
        char part[24];
        size_t length = strcspn(at, ",");
        uint64_t value;
        if (length >= sizeof part || *count >= capacity)
            return bad_value(flag, "numbers separated by commas", text, error);
        memcpy(part, at, length);
        part[length] = 0;
        if (!text_to_u64(part, min, 1u << 24, &value))
            return bad_value(flag, "numbers separated by commas", text, error);
        list[(*count)++] = value;
        at += length;
        if (!*at)
            return DPI_OK;
    }
}

/* "64", "4K", "2G", "2GiB" */
static dpi_status take_bytes(const char *flag, const char *text, uint64_t *value, dpi_error *error)
{
    char number[32];
    size_t length = strlen(text);
    uint64_t shift = 0;
    bool spelt_out = length > 3 && strcmp(text + length - 2, "iB") == 0;
    length -= spelt_out ? 2 : 0;
    const char *unit = length ? strchr("KMGT", text[length - 1]) : NULL;
    if (unit) {
        shift = 10 * (uint64_t)(*unit == 'K' ? 1 : *unit == 'M' ? 2 : *unit == 'G' ? 3 : 4);
        length--;
    }
    if (length >= sizeof number || (spelt_out && !unit))
        return bad_value(flag, "a size such as 8G", text, error);
    memcpy(number, text, length);
    number[length] = 0;
    if (!text_to_u64(number, 1, UINT64_MAX >> (shift + 1), value))
        return bad_value(flag, "a size such as 8G", text, error);
    *value <<= shift;
    return DPI_OK;
}

static dpi_status take_timeout(const char *flag, const char *text, uint32_t *ms, dpi_error *error)
{
    double seconds;
    if (!text_to_double(text, &seconds) || seconds < 0.001 || seconds > 4e6)
        return bad_value(flag, "seconds", text, error);
    *ms = (uint32_t)(seconds * 1000);
    return DPI_OK;
}

/* Splits KEY=VALUE at the first '='. */
static dpi_status take_pair(cli_options *o, const char *flag, const char *text, dpi_key_value *list, size_t *count,
                            dpi_error *error)
{
    const char *equals = strchr(text, '=');
    if (!equals || equals == text)
        return bad_value(flag, "KEY=VALUE", text, error);
    if (*count >= CLI_MAX_LIST)
        return error_set(error, DPI_E_ARGUMENT, "--%s was given more than %d times", flag, CLI_MAX_LIST);
    char *key = strndup(text, (size_t)(equals - text));
    if (!key)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    o->owned[o->owned_count++] = key;
    list[(*count)++] = (dpi_key_value){.key = key, .value = equals + 1};
    return DPI_OK;
}

/* --shape NAME=RANGE is the backend's option shape.NAME. */
static dpi_status take_shape(cli_options *o, const char *text, dpi_error *error)
{
    size_t *count = &o->open.backend_option_count;
    dpi_status status = take_pair(o, "shape", text, o->backend_options, count, error);
    if (status)
        return status;
    dpi_key_value *added = &o->backend_options[*count - 1];
    char *key = text_format("shape.%s", added->key);
    if (!key)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    free(o->owned[o->owned_count - 1]);
    o->owned[o->owned_count - 1] = key;
    added->key = key;
    return DPI_OK;
}

static dpi_status take_broadcast(cli_options *o, const char *text, dpi_error *error)
{
    dpi_key_value pair[CLI_MAX_LIST];
    size_t count = 0, at = o->open.broadcast_count;
    if (at >= CLI_MAX_LIST)
        return error_set(error, DPI_E_ARGUMENT, "--broadcast was given more than %d times", CLI_MAX_LIST);
    dpi_status status = take_pair(o, "broadcast", text, pair, &count, error);
    npy_header h;
    if (!status)
        status = npy_load(pair[0].value, BROADCAST_MAX_BYTES, &h, &o->broadcast_data[at], error);
    if (status)
        return status;
    o->broadcast[at] =
        (dpi_tensor){.name = pair[0].key, .dtype = h.dtype, .rank = h.rank, .data = o->broadcast_data[at]};
    memcpy(o->broadcast[at].shape, h.shape, sizeof h.shape);
    o->open.broadcast = o->broadcast;
    o->open.broadcast_count++;
    return DPI_OK;
}

static dpi_status take_rows(cli_options *o, unsigned flags, const char *text, dpi_error *error)
{
    if (flags & CLI_BENCH)
        return take_number("rows", text, 1, 1ull << 40, &o->rows, error);
    char first[32] = "";
    const char *colon = strchr(text, ':');
    if (!colon || (size_t)(colon - text) >= sizeof first)
        return bad_value("rows", "A:B", text, error);
    memcpy(first, text, (size_t)(colon - text));
    if ((first[0] && !text_to_u64(first, 0, 1ull << 40, &o->row_begin)) ||
        (colon[1] && !text_to_u64(colon + 1, 1, 1ull << 40, &o->row_end)))
        return bad_value("rows", "A:B", text, error);
    return DPI_OK;
}

static dpi_status add_text(const char *flag, const char *text, const char **list, size_t *count, dpi_error *error)
{
    if (*count >= CLI_MAX_LIST)
        return error_set(error, DPI_E_ARGUMENT, "--%s was given more than %d times", flag, CLI_MAX_LIST);
    list[(*count)++] = text;
    return DPI_OK;
}

/* What is done about workers that die. Returns false when the option is none of these. */
static bool take_fault_option(cli_options *o, int option, const char *value, dpi_status *status, dpi_error *error)
{
    static const char *const choices[] = {"fail", "skip"};
    int index = 0;
    uint64_t number = 0;
    switch (option) {
    case OPT_ON_BAD_ROW:
        *status = take_word("on-bad-row", value, choices, 2, &index, error);
        o->open.on_bad_row = (dpi_on_bad_row)index;
        o->on_bad_row_given = true;
        break;
    case OPT_MAX_BAD_ROWS:
        *status = take_number("max-bad-rows", value, 1, 1ull << 40, &o->open.max_bad_rows, error);
        break;
    case OPT_MAX_DEATHS:
        *status = take_number("max-deaths", value, 1, 1000000, &number, error);
        o->open.max_deaths = *status ? 0 : (uint32_t)number;
        break;
    case OPT_EVENTS: o->events = value; break;
    case OPT_TRACE: o->open.trace_path = value; break;
    default: return false;
    }
    return true;
}

/* How the model is opened. Returns false when the option is none of these. */
static bool take_open_option(cli_options *o, int option, const char *value, dpi_status *status, dpi_error *error)
{
    static const char *const precisions[] = {"model", "fp32", "tf32", "fp16", "bf16"};
    static const char *const isolations[] = {"process", "thread", "strict"}, *const waits[] = {"auto", "block", "yield",
                                                                                               "spin"};
    dpi_options *open = &o->open;
    int index = 0;
    uint64_t number;
    *status = DPI_OK;
    switch (option) {
    case OPT_DEVICES: open->devices = value; break;
    case OPT_BACKEND: open->backend = value; break;
    case OPT_LIBRARY: open->library = value; break;
    case OPT_PROVIDER: open->provider = value; break;
    case OPT_WORKER: open->worker_path = value; break;
    case OPT_NO_SANDBOX: open->no_sandbox = true; break;
    case OPT_CORE_DUMPS: open->core_dumps = true; break;
    case OPT_WORKER_MEMORY: *status = take_bytes("worker-memory", value, &open->worker_memory_bytes, error); break;
    case OPT_CACHE_DIR: open->cache_dir = value; break;
    case OPT_NO_CACHE: open->cache_dir = ""; break;
    case OPT_TRUST: open->trust_rows = true; break;
    case OPT_DETERMINISTIC: open->deterministic = true; break;
    case OPT_PRECISION:
        *status = take_word("precision", value, precisions, 5, &index, error);
        open->precision = (dpi_precision)index;
        break;
    case OPT_ISOLATION:
        *status = take_word("isolation", value, isolations, 3, &index, error);
        open->isolation = (dpi_isolation)index;
        break;
    case OPT_WAIT:
        *status = take_word("wait", value, waits, 4, &index, error);
        open->wait_mode = (dpi_wait_mode)index;
        break;
    case OPT_SPLIT:
        *status = take_size_list("split", value, o->shares, 256, 0, &open->batch_size_count, error);
        open->batch_size_list = o->shares;
        break;
    case OPT_TOTAL:
        *status = take_number("total-batch", value, 1, 1ull << 32, &number, error);
        open->total_batch_size = *status ? 0 : number;
        break;
    case OPT_QUEUE:
        *status = take_number("queue-depth", value, 1, 64, &number, error);
        open->queue_depth = *status ? 0 : number;
        break;
    case OPT_ARENA: *status = take_bytes("arena-max", value, &open->arena_max_bytes, error); break;
    case OPT_BROADCAST: *status = take_broadcast(o, value, error); break;
    case OPT_PROVIDER_OPTION:
        *status = take_pair(o, "provider-option", value, o->provider_options, &open->provider_option_count, error);
        open->provider_options = o->provider_options;
        break;
    case OPT_BACKEND_OPTION:
        *status = take_pair(o, "backend-option", value, o->backend_options, &open->backend_option_count, error);
        open->backend_options = o->backend_options;
        break;
    case OPT_SHAPE:
        *status = take_shape(o, value, error);
        open->backend_options = o->backend_options;
        break;
    case OPT_COMPILE_TIMEOUT: *status = take_timeout("compile-timeout", value, &open->compile_timeout_ms, error); break;
    case OPT_SLICE_TIMEOUT: *status = take_timeout("slice-timeout", value, &open->slice_timeout_ms, error); break;
    default: return take_fault_option(o, option, value, status, error);
    }
    return true;
}

static bool option_belongs(int option, unsigned flags)
{
    switch (option) {
    case OPT_INPUT:
    case OPT_OUTPUT: return flags & (CLI_RUN | CLI_BENCH);
    case OPT_PREPROCESS:
    case OPT_RESIZE:
    case OPT_CROP:
    case OPT_MEAN:
    case OPT_STD:
    case OPT_SCALE:
    case OPT_LAYOUT:
    case OPT_INTERPOLATION:
    case OPT_COLOR:
    case OPT_MEMBER:
    case OPT_MAX_PIXELS:
    case OPT_MAX_IMAGE_BYTES:
    case OPT_LOADER_THREADS:
    case OPT_SPOOL_MAX:
    case OPT_TOP:
    case OPT_LABELS:
    case OPT_ACCURACY:
    case OPT_NO_OVERWRITE:
    case OPT_ON_BAD_ROW:
    case OPT_MAX_BAD_ROWS:
    case OPT_EVENTS:
    case OPT_TRACE:
    case OPT_RESTART:
    case OPT_NO_JOURNAL:
    case OPT_JOURNAL_EVERY:
    case OPT_DRY_RUN: return flags & CLI_RUN;
    case OPT_MODE:
    case OPT_REPEATS:
    case OPT_SCALING:
    case OPT_SECONDS: return flags & CLI_BENCH;
    case OPT_ROWS: return flags & (CLI_RUN | CLI_BENCH);
    case OPT_JSON:
    case 'v':
    case 'q': return true;
    default: return flags & CLI_MODEL || option == OPT_CACHE_DIR;
    }
}

/* "256" or "HEIGHTxWIDTH". */
static dpi_status take_size(const char *flag, const char *text, uint32_t size[2], dpi_error *error)
{
    int64_t sides[DPI_MAX_RANK];
    int count;
    if (!shape_parse(text, strlen(text), sides, &count) || count < 1 || count > 2 || sides[0] > 32768 ||
        (count == 2 && sides[1] > 32768))
        return bad_value(flag, "a number of pixels, or HEIGHTxWIDTH", text, error);
    size[0] = (uint32_t)sides[0];
    size[1] = count == 2 ? (uint32_t)sides[1] : 0;
    return DPI_OK;
}

/* A number, or a fraction such as 1/255. */
static bool take_ratio(const char *text, double *value)
{
    char above[64];
    const char *slash = strchr(text, '/');
    double below = 1;
    if (!slash)
        return text_to_double(text, value);
    if ((size_t)(slash - text) >= sizeof above)
        return false;
    memcpy(above, text, (size_t)(slash - text));
    above[slash - text] = 0;
    if (!text_to_double(above, value) || !text_to_double(slash + 1, &below) || below == 0)
        return false;
    *value /= below;
    return true;
}

static dpi_status take_three(const char *flag, const char *text, double list[3], const double **to, dpi_error *error)
{
    char part[64];
    int count = 0;
    for (const char *at = text; count < 3; at++) {
        size_t length = strcspn(at, ",");
        if (length >= sizeof part)
            break;
        memcpy(part, at, length);
        part[length] = 0;
        if (!take_ratio(part, &list[count]))
            break;
        count++;
        at += length;
        if (!*at) {
            for (int c = count; count == 1 && c < 3; c++)
                list[c] = list[0];
            *to = list;
            return count != 2 ? DPI_OK : bad_value(flag, "one number or three", text, error);
        }
    }
    return bad_value(flag, "three numbers separated by commas", text, error);
}

/* How images become rows. Returns false when the option is none of these. */
static bool take_image_option(cli_options *o, int option, const char *value, dpi_status *status, dpi_error *error)
{
    dpi_preprocess *p = &o->preprocess;
    uint64_t number = 0;
    *status = DPI_OK;
    switch (option) {
    case OPT_PREPROCESS: p->recipe = value; break;
    case OPT_RESIZE: *status = take_size("resize", value, p->resize, error); break;
    case OPT_CROP: *status = take_size("crop", value, p->crop, error); break;
    case OPT_MEAN: *status = take_three("mean", value, o->mean, &p->mean, error); break;
    case OPT_STD: *status = take_three("std", value, o->std, &p->std, error); break;
    case OPT_SCALE:
        if (!take_ratio(value, &p->scale) || p->scale == 0)
            *status = bad_value("scale", "a number such as 1/255", value, error);
        break;
    case OPT_LAYOUT: p->layout = value; break;
    case OPT_INTERPOLATION: p->interpolation = value; break;
    case OPT_COLOR: p->color = value; break;
    case OPT_MEMBER: p->member = value; break;
    case OPT_MAX_PIXELS: *status = take_number("max-pixels", value, 1, 1ull << 40, &p->max_pixels, error); break;
    case OPT_MAX_IMAGE_BYTES: *status = take_bytes("max-image-bytes", value, &p->max_image_bytes, error); break;
    case OPT_LOADER_THREADS:
        *status = take_number("loader-threads", value, 1, 1024, &number, error);
        o->loader_threads = (uint32_t)number;
        return true;
    default: return false;
    }
    o->preprocess_given = true;
    return true;
}

static dpi_status take_option(cli_options *o, unsigned flags, int option, const char *value, dpi_error *error)
{
    dpi_status status;
    if (take_open_option(o, option, value, &status, error) || take_image_option(o, option, value, &status, error))
        return status;
    switch (option) {
    case OPT_BATCH:
        if (strcmp(value, "auto") == 0 && !(flags & CLI_BENCH)) {
            o->open.batch = DPI_BATCH_AUTO;
            return DPI_OK;
        }
        status = take_size_list("batch", value, o->batches, CLI_MAX_LIST, 1, &o->batch_count, error);
        if (!status && o->batch_count > 1 && !(flags & CLI_BENCH))
            return bad_value("batch", "one number (rows per device; only bench takes a list)", value, error);
        o->open.batch = status ? 0 : o->batches[0];
        return status;
    case OPT_INPUT: return add_text("input", value, o->inputs, &o->input_count, error);
    case OPT_OUTPUT: return add_text("output", value, o->outputs, &o->output_count, error);
    case OPT_ROWS: return take_rows(o, flags, value, error);
    case OPT_TOP: return take_number("top", value, 1, 100000, &o->top, error);
    case OPT_LABELS: o->labels = value; return DPI_OK;
    case OPT_ACCURACY: o->accuracy = value; return DPI_OK;
    case OPT_NO_OVERWRITE: o->no_overwrite = true; return DPI_OK;
    case OPT_RESTART: o->restart = true; return DPI_OK;
    case OPT_NO_JOURNAL: o->no_journal = true; return DPI_OK;
    case OPT_JOURNAL_EVERY: return take_timeout("journal-every", value, &o->journal_interval_ms, error);
    case OPT_DRY_RUN: o->dry_run = true; return DPI_OK;
    case OPT_SPOOL_MAX: return take_bytes("spool-max", value, &o->spool_max_bytes, error);
    case OPT_MODE: o->modes = value; return DPI_OK;
    case OPT_SCALING: o->scaling = true; return DPI_OK;
    case OPT_REPEATS: return take_number("repeats", value, 1, 1000, &o->repeats, error);
    case OPT_SECONDS:
        o->seconds_given = true;
        return text_to_double(value, &o->seconds) && o->seconds > 0 ? DPI_OK
                                                                    : bad_value("seconds", "seconds", value, error);
    case 'v': o->open.log_level = o->open.log_level == DPI_LOG_INFO ? DPI_LOG_DEBUG : DPI_LOG_INFO; return DPI_OK;
    case 'q': o->quiet = true; return DPI_OK;
    }
    return error_set(error, DPI_E_INTERNAL, "an option is not handled");
}

/* --output NAME=SINK also chooses the model's outputs, when every one is named. */
static void choose_outputs(cli_options *o)
{
    for (size_t i = 0; i < o->output_count; i++) {
        const char *equals = strchr(o->outputs[i], '=');
        if (!equals || memchr(o->outputs[i], '/', (size_t)(equals - o->outputs[i])))
            return;
        char *name = strndup(o->outputs[i], (size_t)(equals - o->outputs[i]));
        if (!name)
            return;
        o->owned[o->owned_count++] = name;
        o->output_names[i] = name;
    }
    o->open.output_names = o->output_count ? o->output_names : NULL;
    o->open.output_count = o->output_count;
}

/* Where sources are images: what workers must be allowed to read, and bad ones are left out unless said otherwise. */
static void allow_images(cli_options *o)
{
    for (size_t i = 0; i < o->input_count; i++) {
        const char *spec = o->inputs[i], *equals = strchr(spec, '=');
        struct stat info;
        if (equals && stat(spec, &info) != 0)
            spec = equals + 1; /* NAME=SOURCE */
        o->folders[i] = source_folders(spec);
        for (char **folder = o->folders[i]; folder && *folder; folder++) {
            o->data_folders[o->open.data_folder_count++] = *folder;
            if (!o->on_bad_row_given)
                o->open.on_bad_row = DPI_BAD_ROW_SKIP;
        }
    }
    o->open.data_folders = o->data_folders;
}

static const char *flag_name(int option)
{
    for (size_t i = 0; table[i].name; i++)
        if (table[i].val == option)
            return table[i].name;
    return "?";
}

/* --json FILE is as good as --json=FILE where the next word is no flag and a file is meant (bench, run). */
static void take_json(cli_options *o, unsigned flags, int argc, char **argv)
{
    if (!optarg && flags & (CLI_BENCH | CLI_RUN) && optind < argc && argv[optind][0] != '-' &&
        strlen(argv[optind]) > 5 && strcmp(argv[optind] + strlen(argv[optind]) - 5, ".json") == 0)
        optarg = argv[optind++];
    o->json = true;
    o->json_path = optarg;
}

dpi_status cli_parse(int argc, char **argv, unsigned flags, const char *help, cli_options *o, dpi_error *error)
{
    memset(o, 0, sizeof *o);
    o->open.struct_size = sizeof o->open;
    o->preprocess.struct_size = sizeof o->preprocess;
    if (flags & (CLI_RUN | CLI_BENCH))
        o->command = cli_command_json(argc, argv); /* before getopt moves words */
    opterr = 0;
    optind = 0; /* GNU: begin anew, also after a parse that was cut short */
    dpi_status status = DPI_OK;
    for (int option; !status && (option = getopt_long(argc, argv, "hvq", table, NULL)) != -1;) {
        if (option == OPT_HELP || option == 'h') {
            fputs(help, stdout);
            exit(0);
        }
        if (option == '?')
            return error_set(error, DPI_E_ARGUMENT,
                             "%s: the flag %s is unknown or lacks its value; see dpinfer %s --help", argv[0],
                             argv[optind - 1], argv[0]);
        if (!option_belongs(option, flags))
            return error_set(error, DPI_E_ARGUMENT, "dpinfer %s takes no --%s; see dpinfer %s --help", argv[0],
                             flag_name(option), argv[0]);
        if (option == OPT_JSON)
            take_json(o, flags, argc, argv);
        else
            status = take_option(o, flags, option, optarg ? optarg : "", error); /* "": it takes no value */
    }
    if (status)
        return status;
    if (optind < argc)
        o->positional = argv[optind++];
    if (optind < argc)
        return error_set(error, DPI_E_ARGUMENT, "%s: \"%s\" is one word too many", argv[0], argv[optind]);
    o->model = o->positional;
    o->open.model_path = o->model;
    if ((flags & CLI_MODEL) && !o->model)
        return error_set(error, DPI_E_ARGUMENT, "%s: which MODEL? See dpinfer %s --help", argv[0], argv[0]);
    if (flags & CLI_RUN) {
        choose_outputs(o);
        allow_images(o);
    }
    if (o->quiet)
        o->open.log_level = DPI_LOG_ERROR;
    return DPI_OK;
}

void cli_free(cli_options *o)
{
    for (size_t i = 0; i < o->owned_count; i++)
        free(o->owned[i]);
    for (size_t i = 0; i < CLI_MAX_LIST; i++) {
        free(o->broadcast_data[i]);
        for (char **folder = o->folders[i]; folder && *folder; folder++)
            free(*folder);
        free(o->folders[i]);
    }
    json_decref(o->command);
}
