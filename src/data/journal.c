#include "data/journal.h"

#include "base/file.h"
#include "base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC       "dpinfer journal\n"
#define MAGIC_BYTES 16
#define PAYLOAD_MAX (16u << 20)
#define BAD_BYTES   (1u << 20) /* of one record of bad rows, about */
#define RANGES_MOST (1u << 20) /* held before they are joined, and (a sixteenth) after: far more than a run leaves */

enum { RECORD_BEGIN = 1, RECORD_PROGRESS, RECORD_SEALED, RECORD_BAD };

typedef struct record_head {
    uint32_t type, bytes; /* of the payload, behind which stands the hash */
    uint64_t number;
} record_head;

typedef struct begin_payload {
    unsigned char run[16];
    uint64_t part_inode, rows;
} begin_payload;

typedef struct progress_payload {
    uint32_t range_count, text_count;
} progress_payload;

/* Of one bad row; the reason stands behind it. */
typedef struct bad_payload {
    uint64_t row, reason_bytes;
} bad_payload;

_Static_assert(sizeof(record_head) == 16 && sizeof(begin_payload) == 32 && sizeof(progress_payload) == 8 &&
                   sizeof(bad_payload) == 16 && sizeof(row_range) == 16 && sizeof(file_mark) == 32 &&
                   sizeof(hash128) == 16,
               "the layout of the file");

struct journal {
    char *path;
    int fd;
    bool damaged, ours, written, sealed;
    bool starved; /* there was no memory for a record that is good */
    journal_begin begin;
    char *facts;
    row_set done;
    uint64_t text[PORT_MAX];
    file_mark marks[PORT_MAX];
    size_t mark_count;
    journal_bad *bad;
    size_t bad_count, bad_capacity;
    uint64_t end, number; /* of what is valid */
    hash128 last;
};

/* ---- marks and facts -------------------------------------------------------------------------------------------- */

bool file_mark_of(int fd, const char *path, file_mark *mark)
{
    struct stat info;
    if (fd >= 0 ? fstat(fd, &info) != 0 : lstat(path, &info) != 0)
        return false;
    *mark = (file_mark){.inode = info.st_ino,
                        .bytes = (uint64_t)info.st_size,
                        .changed_s = info.st_mtim.tv_sec,
                        .changed_ns = info.st_mtim.tv_nsec};
    return true;
}

bool file_mark_equal(const file_mark *a, const file_mark *b) { return memcmp(a, b, sizeof *a) == 0; }

void journal_fact(text_buffer *facts, const char *key, const char *format, ...)
{
    char *value = NULL;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&value, format, arguments) < 0)
        value = NULL;
    va_end(arguments);
    facts->failed |= !value;
    text_add_bytes(facts, key, strlen(key) + 1);
    text_add_bytes(facts, value ? value : "", value ? strlen(value) + 1 : 1);
    free(value);
}

/* Whether they are pairs of terminated strings. */
static bool facts_valid(const char *facts, size_t bytes)
{
    size_t strings = 0;
    for (size_t i = 0; i < bytes; i++)
        strings += !facts[i];
    return bytes == 0 || (!facts[bytes - 1] && strings % 2 == 0);
}

const char *journal_fact_find(const char *facts, size_t bytes, const char *key)
{
    for (const char *at = facts, *end = facts + bytes; at < end;) {
        const char *value = at + strlen(at) + 1;
        if (strcmp(at, key) == 0)
            return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}

bool journal_facts_differ(const char *then, size_t then_bytes, const char *now, size_t now_bytes, const char *but,
                          const char **key, const char **was, const char **is)
{
    for (int side = 0; side < 2; side++) { /* what is asked for now, then what was and is not any more */
        const char *facts = side ? then : now, *end = facts + (side ? then_bytes : now_bytes);
        for (const char *at = facts; at < end;) {
            const char *value = at + strlen(at) + 1;
            const char *other = journal_fact_find(side ? now : then, side ? now_bytes : then_bytes, at);
            if ((!but || strcmp(at, but) != 0) && (!other || strcmp(value, other) != 0)) {
                *key = at;
                *was = side ? value : other;
                *is = side ? other : value;
                return true;
            }
            at = value + strlen(value) + 1;
        }
    }
    return false;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static hash128 chained(hash128 before, const record_head *head, const void *payload)
{
    hash_state *state = hash_new();
    hash_add(state, &before, sizeof before);
    hash_add(state, head, sizeof *head);
    hash_add(state, payload, head->bytes);
    return hash_end(state);
}

static bool take_begin(journal *j, const unsigned char *payload, size_t bytes)
{
    begin_payload b;
    if (bytes < sizeof b || j->number)
        return false;
    memcpy(&b, payload, sizeof b);
    size_t facts_bytes = bytes - sizeof b;
    if (!facts_valid((const char *)payload + sizeof b, facts_bytes))
        return false;
    j->facts = malloc(facts_bytes + 1);
    if (!j->facts)
        return !(j->starved = true);
    memcpy(j->facts, payload + sizeof b, facts_bytes);
    memcpy(j->begin.run, b.run, sizeof b.run);
    j->begin.part_inode = b.part_inode;
    j->begin.rows = b.rows;
    j->begin.facts = j->facts;
    j->begin.facts_bytes = facts_bytes;
    return true;
}

static bool take_progress(journal *j, const unsigned char *payload, size_t bytes)
{
    progress_payload p;
    if (bytes < sizeof p || j->sealed)
        return false;
    memcpy(&p, payload, sizeof p);
    if (p.text_count > PORT_MAX ||
        bytes != sizeof p + (uint64_t)p.range_count * sizeof(row_range) + p.text_count * 8ull)
        return false;
    const unsigned char *at = payload + sizeof p;
    row_range one;
    for (uint32_t i = 0; i < p.range_count; i++) {
        memcpy(&one, at + i * sizeof one, sizeof one);
        if (one.begin >= one.end || one.end > j->begin.rows)
            return false;
    }
    if (j->done.count + p.range_count > RANGES_MOST)
        row_set_settle(&j->done);
    if (j->done.count > RANGES_MOST / 16 && j->done.count + p.range_count > RANGES_MOST)
        return false;
    size_t before = j->done.count;
    for (uint32_t i = 0; i < p.range_count; i++) {
        memcpy(&one, at + i * sizeof one, sizeof one);
        if (!row_set_append(&j->done, one.begin, one.end)) {
            j->done.count = before;
            return !(j->starved = true);
        }
    }
    memcpy(j->text, at + p.range_count * sizeof one, p.text_count * 8ull);
    return true;
}

static bool add_bad(journal *j, uint64_t row, const unsigned char *reason, size_t bytes)
{
    if (j->bad_count == j->bad_capacity) {
        size_t capacity = j->bad_capacity ? 2 * j->bad_capacity : 16;
        journal_bad *more = reallocarray(j->bad, capacity, sizeof *more);
        if (!more)
            return !(j->starved = true);
        j->bad = more;
        j->bad_capacity = capacity;
    }
    char *copy = strndup((const char *)reason, bytes);
    if (copy)
        j->bad[j->bad_count++] = (journal_bad){.row = row, .reason = copy};
    j->starved |= !copy;
    return copy;
}

static bool take_bad(journal *j, const unsigned char *payload, size_t bytes)
{
    size_t before = j->bad_count, left = bytes;
    bool good = !j->sealed;
    while (good && left) {
        bad_payload one;
        if (!(good = left >= sizeof one))
            break;
        memcpy(&one, payload, sizeof one);
        payload += sizeof one;
        left -= sizeof one;
        good = one.row < j->begin.rows && one.reason_bytes <= left && add_bad(j, one.row, payload, one.reason_bytes);
        payload += good ? one.reason_bytes : 0;
        left -= good ? one.reason_bytes : 0;
    }
    while (!good && j->bad_count > before)
        free(j->bad[--j->bad_count].reason);
    return good;
}

static int by_row(const void *a, const void *b)
{
    uint64_t x = ((const journal_bad *)a)->row, y = ((const journal_bad *)b)->row;
    return (x > y) - (x < y);
}

/* Leaves those of finished rows, each once: of the others it is not known whether they are left out in the end. */
static void settle_bad(journal *j)
{
    size_t kept = 0;
    if (j->bad_count)
        qsort(j->bad, j->bad_count, sizeof *j->bad, by_row);
    for (size_t i = 0; i < j->bad_count; i++) {
        if ((!j->sealed && !row_set_has(&j->done, j->bad[i].row)) || (kept && j->bad[kept - 1].row == j->bad[i].row))
            free(j->bad[i].reason);
        else
            j->bad[kept++] = j->bad[i];
    }
    j->bad_count = kept;
}

static bool take_sealed(journal *j, const unsigned char *payload, size_t bytes)
{
    if (j->sealed || bytes % sizeof(file_mark) || bytes / sizeof(file_mark) > PORT_MAX)
        return false;
    memcpy(j->marks, payload, bytes);
    j->mark_count = bytes / sizeof(file_mark);
    return j->sealed = true;
}

static bool take(journal *j, const record_head *head, const unsigned char *payload)
{
    switch (head->type) {
    case RECORD_BEGIN: return take_begin(j, payload, head->bytes);
    case RECORD_PROGRESS: return take_progress(j, payload, head->bytes);
    case RECORD_SEALED: return take_sealed(j, payload, head->bytes);
    case RECORD_BAD: return take_bad(j, payload, head->bytes);
    default: return false;
    }
}

/* One record at j->end; *more is false at the first that is not whole and right. A disk that fails is no such end. */
static dpi_status read_record(journal *j, uint64_t file_bytes, bool *more, dpi_error *error)
{
    record_head head;
    hash128 hash;
    uint64_t left = file_bytes - j->end;
    *more = false;
    if (left < sizeof head + sizeof hash)
        return DPI_OK;
    dpi_status status = file_read_at(j->fd, &head, sizeof head, j->end, j->path, error);
    if (status)
        return status;
    if (head.bytes > PAYLOAD_MAX || head.bytes > left - sizeof head - sizeof hash || head.number != j->number ||
        (head.type == RECORD_BEGIN) != (head.number == 0))
        return DPI_OK;
    unsigned char *payload = malloc(head.bytes + sizeof hash);
    if (!payload)
        return error_set(error, DPI_E_SYSTEM, "out of memory while reading %s", j->path);
    status = file_read_at(j->fd, payload, head.bytes + sizeof hash, j->end + sizeof head, j->path, error);
    if (!status) {
        memcpy(&hash, payload + head.bytes, sizeof hash);
        hash128 right = chained(j->last, &head, payload);
        *more = hash.low == right.low && hash.high == right.high && take(j, &head, payload);
    }
    free(payload);
    if (j->starved)
        return error_set(error, DPI_E_SYSTEM, "out of memory while reading %s", j->path);
    if (!*more)
        return status;
    j->last = hash;
    j->number++;
    j->end += sizeof head + head.bytes + sizeof hash;
    return DPI_OK;
}

/* Whether what begins the file is the magic, or what a crash leaves of it: a part of it, or zeros. */
static bool begins_like_ours(const char *start, size_t bytes)
{
    static const char zeros[MAGIC_BYTES];
    return memcmp(start, MAGIC, bytes) == 0 || memcmp(start, zeros, bytes) == 0;
}

static dpi_status read_all(journal *j, dpi_error *error)
{
    struct stat info;
    char start[MAGIC_BYTES] = "";
    if (fstat(j->fd, &info) != 0)
        return error_set_errno(error, DPI_E_IO, errno, "cannot read %s", j->path);
    if (!S_ISREG(info.st_mode))
        return error_set(error, DPI_E_DATA, "%s exists and is not a regular file", j->path);
    uint64_t bytes = (uint64_t)info.st_size;
    size_t length = bytes < MAGIC_BYTES ? (size_t)bytes : MAGIC_BYTES;
    dpi_status status = file_read_at(j->fd, start, length, 0, j->path, error);
    if (status)
        return status;
    if (!begins_like_ours(start, length))
        return error_set(error, DPI_E_DATA, "%s is no journal of dpinfer; move it away, or write to another file",
                         j->path);
    j->end = MAGIC_BYTES;
    bool more = length == MAGIC_BYTES && memcmp(start, MAGIC, MAGIC_BYTES) == 0;
    while (more && !status)
        status = read_record(j, bytes, &more, error);
    if (status)
        return status;
    row_set_settle(&j->done);
    settle_bad(j);
    j->damaged = j->number == 0;
    return DPI_OK;
}

dpi_status journal_open(const char *path, journal **out, dpi_error *error)
{
    *out = NULL;
    journal *j = calloc(1, sizeof *j);
    if (!j || !(j->path = strdup(path))) {
        free(j);
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    }
    dpi_status status = DPI_OK;
    j->fd = file_open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0);
    if (j->fd < 0 && errno != ENOENT)
        status = error_set_errno(error, file_open_failure(errno), errno, "cannot open %s", path);
    else if (j->fd >= 0 && flock(j->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        status = error_set(error, DPI_E_DATA, "%s is being written by another run", path);
    else if (j->fd >= 0)
        status = read_all(j, error);
    if (status) {
        journal_close(j);
        return status;
    }
    *out = j;
    return DPI_OK;
}

void journal_close(journal *j)
{
    if (!j)
        return;
    if (j->fd >= 0) {
        flock(j->fd, LOCK_UN); /* also where a process that is just being started still has a copy of the descriptor */
        close(j->fd);
    }
    row_set_free(&j->done);
    for (size_t i = 0; i < j->bad_count; i++)
        free(j->bad[i].reason);
    free(j->bad);
    free(j->facts);
    free(j->path);
    free(j);
}

const char *journal_path(const journal *j) { return j->path; }
const journal_begin *journal_begun(const journal *j) { return j->number ? &j->begin : NULL; }
bool journal_damaged(const journal *j) { return j->damaged; }
const row_set *journal_done(const journal *j) { return &j->done; }
uint64_t journal_text_bytes(const journal *j, size_t i) { return i < PORT_MAX ? j->text[i] : 0; }
bool journal_is_ours(const journal *j) { return j->ours; }
bool journal_is_written(const journal *j) { return j->written; }

const journal_bad *journal_bad_rows(const journal *j, size_t *count)
{
    *count = j->bad_count;
    return j->bad;
}

const file_mark *journal_sealed(const journal *j, size_t *count)
{
    *count = j->mark_count;
    return j->sealed ? j->marks : NULL;
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static dpi_status sync_data(const journal *j, dpi_error *error)
{
    return file_sync(j->fd, true) ? DPI_OK
                                  : error_set_errno(error, DPI_E_IO, errno, "cannot write %s to disk", j->path);
}

/* The payload is the two parts together. */
static dpi_status append(journal *j, uint32_t type, const void *first, size_t first_bytes, const void *second,
                         size_t second_bytes, dpi_error *error)
{
    record_head head = {.type = type, .bytes = (uint32_t)(first_bytes + second_bytes), .number = j->number};
    size_t bytes = sizeof head + first_bytes + second_bytes + sizeof(hash128);
    unsigned char *record = malloc(bytes), *payload = record ? record + sizeof head : NULL;
    if (!record)
        return error_set(error, DPI_E_SYSTEM, "out of memory while writing %s", j->path);
    memcpy(record, &head, sizeof head);
    if (first_bytes)
        memcpy(payload, first, first_bytes);
    if (second_bytes)
        memcpy(payload + first_bytes, second, second_bytes);
    hash128 hash = chained(j->last, &head, payload);
    memcpy(payload + head.bytes, &hash, sizeof hash);
    dpi_status status = file_write_at(j->fd, record, bytes, j->end, j->path, error);
    if (!status)
        status = sync_data(j, error);
    free(record);
    if (status)
        return status;
    j->last = hash;
    j->number++;
    j->end += bytes;
    return DPI_OK;
}

dpi_status journal_create(journal *j, const journal_begin *begin, dpi_error *error)
{
    if (j->fd < 0)
        j->fd = file_open(j->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0666);
    if (j->fd < 0)
        return error_set_errno(error, DPI_E_IO, errno, "cannot create %s", j->path);
    if (flock(j->fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        return error_set(error, DPI_E_DATA, "%s is being written by another run", j->path);
    j->ours = true;
    if (!file_cut(j->fd, 0))
        return error_set_errno(error, DPI_E_IO, errno, "cannot empty %s", j->path);
    j->number = 0;
    j->end = MAGIC_BYTES;
    j->last = (hash128){0, 0};
    begin_payload b = {.part_inode = begin->part_inode, .rows = begin->rows};
    memcpy(b.run, begin->run, sizeof b.run);
    dpi_status status = file_write_at(j->fd, MAGIC, MAGIC_BYTES, 0, j->path, error);
    if (!status)
        status = append(j, RECORD_BEGIN, &b, sizeof b, begin->facts, begin->facts_bytes, error);
    if (!status)
        status = file_sync_folder_of(j->path, error);
    j->written = !status;
    return status;
}

dpi_status journal_go_on(journal *j, dpi_error *error)
{
    if (!file_cut(j->fd, j->end))
        return error_set_errno(error, DPI_E_IO, errno, "cannot cut %s", j->path);
    dpi_status status = sync_data(j, error);
    j->ours = j->written = !status;
    return status;
}

dpi_status journal_add(journal *j, const row_set *finished, const uint64_t *text, size_t count, dpi_error *error)
{
    progress_payload p = {.range_count = (uint32_t)finished->count, .text_count = (uint32_t)count};
    size_t range_bytes = finished->count * sizeof(row_range), bytes = range_bytes + count * sizeof *text;
    unsigned char *rest = malloc(bytes + 1);
    if (!rest)
        return error_set(error, DPI_E_SYSTEM, "out of memory while writing %s", j->path);
    if (range_bytes)
        memcpy(rest, finished->items, range_bytes);
    if (count)
        memcpy(rest + range_bytes, text, count * sizeof *text);
    dpi_status status = append(j, RECORD_PROGRESS, &p, sizeof p, rest, bytes, error);
    free(rest);
    return status;
}

/* One record of the first of `count` rows; how many in *taken. */
static dpi_status add_some_bad(journal *j, const journal_bad *rows, size_t count, size_t *taken, dpi_error *error)
{
    text_buffer all = {0};
    for (*taken = 0; *taken < count && all.length < BAD_BYTES; ++*taken) {
        bad_payload one = {.row = rows[*taken].row, .reason_bytes = strlen(rows[*taken].reason)};
        text_add_bytes(&all, &one, sizeof one);
        text_add_bytes(&all, rows[*taken].reason, one.reason_bytes);
    }
    dpi_status status = all.failed ? error_set(error, DPI_E_SYSTEM, "out of memory while writing %s", j->path)
                                   : append(j, RECORD_BAD, all.data, all.length, NULL, 0, error);
    text_free(&all);
    return status;
}

dpi_status journal_add_bad(journal *j, const journal_bad *rows, size_t count, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t done = 0, taken; done < count && !status; done += taken)
        status = add_some_bad(j, rows + done, count - done, &taken, error);
    return status;
}

dpi_status journal_seal(journal *j, const file_mark *marks, size_t count, dpi_error *error)
{
    return append(j, RECORD_SEALED, marks, count * sizeof *marks, NULL, 0, error);
}

dpi_status journal_remove(journal *j, bool durably, dpi_error *error)
{
    if (j->fd < 0)
        return DPI_OK;
    if (unlink(j->path) != 0 && errno != ENOENT)
        return error_set_errno(error, DPI_E_IO, errno, "cannot remove %s", j->path);
    close(j->fd);
    j->fd = -1;
    j->ours = j->written = false;
    j->number = 0;
    return durably ? file_sync_folder_of(j->path, error) : DPI_OK;
}
