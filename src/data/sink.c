#include "base/clock.h"
#include "base/file.h"
#include "data/npy.h"
#include "data/sink_kind.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define LOCK_WAIT_NS 1000000000

static bool same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* A run that was killed holds its lock until the last of its workers is gone, a moment later. */
static bool lock_soon(int fd)
{
    int64_t until = clock_now_ns() + LOCK_WAIT_NS;
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK) /* a file system without locks: go on */
            return true;
        if (clock_now_ns() > until)
            return false;
        clock_sleep_until_ns(clock_now_ns() + 10000000);
    }
    return true;
}

/* Opens FILE.part, into s->fd if it is a file that nobody else holds. */
static dpi_status open_and_lock(sink *s, struct stat *opened, dpi_error *error)
{
    int fd = file_open(s->part, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    s->made = fd >= 0;
    if (fd < 0 && errno == EEXIST)
        fd = file_open(s->part, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) {
        return error_set_errno(error, file_open_failure(errno), errno, "cannot create %s", s->part);
    }
    dpi_status status = DPI_OK;
    if (!lock_soon(fd))
        status = error_set(error, DPI_E_DATA, "%s is being written by another run", s->part);
    else if (fstat(fd, opened) != 0) {
        status = error_set_errno(error, DPI_E_IO, errno, "cannot read %s", s->part);
        if (s->made)
            unlink(s->part);
    } else if (!S_ISREG(opened->st_mode))
        status = error_set(error, DPI_E_DATA, "%s exists and is not a regular file", s->part);
    if (status)
        close(fd);
    else
        s->fd = fd;
    return status;
}

/* Opens FILE.part for us alone. A run that ends between our open and our lock has renamed or removed what we opened:
 * emptying that would destroy its result. Only what still has the name is ours, and not what has the final name too
 * (give_name was stopped in between). */
static dpi_status open_part(sink *s, dpi_error *error)
{
    struct stat info, opened = {0};
    if (stat(s->spec, &info) == 0 && !S_ISREG(info.st_mode))
        return error_set(error, DPI_E_DATA, "%s exists and is not a regular file", s->spec);
    for (int tries = 0; tries < 100; tries++) {
        dpi_status status = open_and_lock(s, &opened, error);
        if (status)
            return status;
        bool named = lstat(s->part, &info) == 0 && same_file(&info, &opened);
        bool final = lstat(s->spec, &info) == 0 && same_file(&info, &opened);
        if (named && !final)
            return DPI_OK;
        if (named && unlink(s->part) != 0)
            status = error_set_errno(error, DPI_E_IO, errno, "cannot remove %s", s->part);
        close(s->fd);
        s->fd = -1;
        if (status)
            return status;
    }
    return error_set(error, DPI_E_DATA, "%s is being written by other runs", s->part);
}

dpi_status sink_check_overwrite(const sink *s, dpi_error *error)
{
    struct stat info;
    return sink_has_file(s) && s->no_overwrite && lstat(s->spec, &info) == 0
               ? error_set(error, DPI_E_DATA, "%s exists already", s->spec)
               : DPI_OK;
}

dpi_status sink_check_limit(const sink *s, uint64_t bytes, dpi_error *error)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || bytes <= limit.rlim_cur)
        return DPI_OK;
    return error_set(error, DPI_E_IO, "%s needs %llu bytes and a file may have %llu here; raise ulimit -f", s->part,
                     (unsigned long long)bytes, (unsigned long long)limit.rlim_cur);
}

dpi_status sink_preallocate(sink *s, uint64_t bytes, dpi_error *error)
{
    dpi_status status = sink_check_limit(s, bytes, error);
    if (status || !bytes)
        return status;
    int bad;
    do
        bad = fallocate(s->fd, 0, 0, (off_t)bytes);
    while (bad && errno == EINTR);
    if (!bad)
        return DPI_OK;
    int number = errno;
    struct statvfs disk;
    unsigned long long room = 0;
    if (fstatvfs(s->fd, &disk) == 0)
        room = (unsigned long long)disk.f_bavail * disk.f_frsize;
    if (number == EOPNOTSUPP || number == ENOSYS) {
        if (room >= bytes && file_cut(s->fd, bytes))
            return DPI_OK;
        number = ENOSPC;
    }
    return error_set_errno(error, DPI_E_IO, number, "cannot reserve %llu bytes for %s (%llu are free)",
                           (unsigned long long)bytes, s->part, room);
}

/* The header, its length in s->data_offset, and how long the file is with all rows. */
static dpi_status npy_layout(sink *s, char *header, size_t size, uint64_t *file_bytes, dpi_error *error)
{
    int64_t shape[DPI_MAX_RANK];
    memcpy(shape, s->output.shape, sizeof shape);
    shape[0] = (int64_t)s->rows;
    size_t bytes, length = npy_format(s->output.dtype, shape, s->output.rank, header, size);
    if (!length || !shape_bytes(s->output.dtype, shape, s->output.rank, &bytes))
        return error_set(error, DPI_E_DATA, "%s cannot hold the output %s", s->spec, s->output.name);
    s->data_offset = length;
    *file_bytes = length + bytes;
    return DPI_OK;
}

static dpi_status start_npy(sink *s, dpi_error *error)
{
    char header[1024];
    uint64_t bytes;
    dpi_status status = npy_layout(s, header, sizeof header, &bytes, error);
    if (!status)
        status = sink_preallocate(s, bytes, error);
    return status ? status : file_write_at(s->fd, header, s->data_offset, 0, s->part, error);
}

dpi_status sink_another_part(const sink *s, dpi_error *error)
{
    return error_set(error, DPI_E_DATA, "%s is not the file that its journal tells of; --restart begins anew", s->part);
}

static dpi_status resume_npy(sink *s, dpi_error *error)
{
    char header[1024], there[1024];
    uint64_t bytes;
    struct stat info;
    dpi_status status = npy_layout(s, header, sizeof header, &bytes, error);
    if (!status && fstat(s->fd, &info) != 0)
        status = error_set_errno(error, DPI_E_IO, errno, "cannot read %s", s->part);
    if (!status && (uint64_t)info.st_size != bytes)
        status = sink_another_part(s, error);
    if (!status)
        status = file_read_at(s->fd, there, s->data_offset, 0, s->part, error);
    return status ? status : memcmp(header, there, s->data_offset) == 0 ? DPI_OK : sink_another_part(s, error);
}

static const struct {
    const char *end;
    sink_kind kind;
    const sink_format *format;
} kinds[] = {{".npy", SINK_NPY, NULL},
             {".npz", SINK_NPZ, NULL},
             {".csv", SINK_CSV, &sink_csv},
             {".jsonl", SINK_JSONL, &sink_jsonl}};

static void choose_kind(sink *s)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (text_ends_with(s->spec, kinds[i].end)) {
            s->kind = kinds[i].kind;
            s->format = kinds[i].format;
        }
}

static sink *new_sink(const char *spec, const sink_options *options)
{
    sink *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->fd = -1;
    if (!(s->spec = strdup(spec)) || !(s->part = text_format("%s.part", spec)) ||
        (options->labels_path && !(s->labels_path = strdup(options->labels_path)))) {
        sink_close(s, false);
        return NULL;
    }
    s->output = *options->output;
    s->rows = options->rows;
    s->names = options->names;
    s->top = options->top ? options->top : 1;
    s->no_overwrite = options->no_overwrite;
    return s;
}

dpi_status sink_open(const char *spec, const sink_options *options, sink **out, dpi_error *error)
{
    *out = NULL;
    sink *s = new_sink(spec, options);
    if (!s)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    choose_kind(s);
    s->members[s->member_count++] = s;
    dpi_status status = DPI_OK;
    if (s->kind != SINK_NONE)
        status = open_part(s, error);
    else if (strcmp(spec, "none") != 0)
        status = error_set(error, DPI_E_DATA,
                           "%s is no sink that dpinfer writes: FILE.npy, FILE.npz, FILE.csv, FILE.jsonl or none; tables are written from Python", spec);
    if (status) {
        sink_close(s, false);
        return status;
    }
    *out = s;
    return DPI_OK;
}

dpi_status sink_join(sink *file, const sink_options *options, sink **out, dpi_error *error)
{
    assert(file->kind == SINK_NPZ && !file->ours && file->member_count < PORT_MAX);
    *out = new_sink(file->spec, options);
    if (!*out)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    (*out)->kind = SINK_NPZ;
    (*out)->archive = file;
    file->members[file->member_count++] = *out;
    return DPI_OK;
}

static dpi_status start(sink *s, dpi_error *error)
{
    return s->kind == SINK_NPY   ? start_npy(s, error)
           : s->kind == SINK_NPZ ? sink_npz_start(s, error)
                                 : sink_text_start(s, error);
}

static dpi_status resume(sink *s, uint64_t text_bytes, dpi_error *error)
{
    return s->kind == SINK_NPY   ? resume_npy(s, error)
           : s->kind == SINK_NPZ ? sink_npz_resume(s, error)
                                 : sink_text_resume(s, text_bytes, error);
}

dpi_status sink_begin(sink *s, dpi_error *error)
{
    if (!sink_has_file(s))
        return DPI_OK;
    dpi_status status = sink_check_overwrite(s, error);
    if (status)
        return status;
    s->ours = true;
    if (!file_cut(s->fd, 0))
        return error_set_errno(error, DPI_E_IO, errno, "cannot empty %s", s->part);
    return start(s, error);
}

dpi_status sink_resume(sink *s, uint64_t inode, uint64_t text_bytes, dpi_error *error)
{
    file_mark now;
    if (!sink_has_file(s))
        return DPI_OK;
    dpi_status status = sink_check_overwrite(s, error);
    if (status)
        return status;
    if (!sink_mark(s, &now))
        return error_set_errno(error, DPI_E_IO, errno, "cannot read %s", s->part);
    if (s->made || now.inode != inode)
        return sink_another_part(s, error);
    status = resume(s, text_bytes, error);
    s->ours = !status;
    return status;
}

dpi_status sink_adopt(sink *s, const file_mark *mark, dpi_error *error)
{
    file_mark now, part;
    if (!sink_has_file(s))
        return DPI_OK;
    if (!sink_mark(s, &part))
        return error_set_errno(error, DPI_E_IO, errno, "cannot read %s", s->part);
    s->complete = true; /* before the mark was taken */
    bool there = file_mark_of(-1, s->spec, &now);
    if (!there && errno != ENOENT)
        return error_set_errno(error, DPI_E_IO, errno, "cannot read %s", s->spec);
    if (there && file_mark_equal(&now, mark)) {
        if (!part.bytes) /* made by us a moment ago, or by a run that was stopped here */
            unlink(s->part);
        s->finished = true;
        return DPI_OK;
    }
    return !s->made && file_mark_equal(&part, mark) ? DPI_OK : sink_another_part(s, error);
}

dpi_status sink_create(const char *spec, const sink_options *options, sink **out, dpi_error *error)
{
    dpi_status status = sink_open(spec, options, out, error);
    if (!status)
        status = sink_begin(*out, error);
    if (status) {
        sink_close(*out, false);
        *out = NULL;
    }
    return status;
}

sink_kind sink_kind_of(const sink *s) { return s->kind; }
const char *sink_spec(const sink *s) { return s->spec; }
const char *sink_part(const sink *s) { return s->part; }
bool sink_mark(const sink *s, file_mark *mark) { return s->fd >= 0 && file_mark_of(s->fd, NULL, mark); }
bool sink_finished(const sink *s) { return s->finished; }
bool sink_has_file(const sink *s) { return s->kind != SINK_NONE && !s->archive; }
bool sink_is_text(const sink *s) { return s->format != NULL; }
int sink_fd(const sink *s) { return s->archive ? s->archive->fd : s->format ? -1 : s->fd; }
uint64_t sink_data_offset(const sink *s) { return s->data_offset; }
size_t sink_record_bytes(const sink *s) { return s->format ? s->top * sizeof(sink_top) : 0; }

bool sink_same_file(const sink *s, int fd)
{
    struct stat target, other;
    return s->kind != SINK_NONE && stat(s->spec, &target) == 0 && fstat(fd, &other) == 0 && same_file(&target, &other);
}

void sink_write_back(const sink *s)
{
    if (sink_has_file(s) && !s->format)
        sync_file_range(s->fd, 0, 0, SYNC_FILE_RANGE_WRITE); /* advice: a failure shows in sink_finish */
}

static dpi_status sync_part(sink *s, bool data_only, dpi_error *error)
{
    dpi_status status = s->format ? sink_text_flush(s, error) : DPI_OK;
    if (status)
        return status;
    if (s->lost)
        return error_set(error, DPI_E_IO, "%s could not be written to disk before", s->part);
    s->lost = !file_sync(s->fd, data_only);
    return s->lost ? error_set_errno(error, DPI_E_IO, errno, "cannot write %s to disk", s->part) : DPI_OK;
}

dpi_status sink_complete(sink *s, dpi_error *error)
{
    if (!sink_has_file(s) || s->finished || s->kind != SINK_NPZ || s->complete)
        return DPI_OK;
    dpi_status status = sink_npz_complete(s, error);
    s->complete = !status;
    return status;
}

dpi_status sink_sync(sink *s, uint64_t *text_bytes, dpi_error *error)
{
    *text_bytes = 0;
    if (!sink_has_file(s) || s->finished)
        return DPI_OK;
    dpi_status status = sync_part(s, true, error);
    *text_bytes = s->written;
    return status;
}

/* Without replacing anything: some file systems cannot rename so, and link instead. */
static bool rename_anew(const sink *s)
{
    if (renameat2(AT_FDCWD, s->part, AT_FDCWD, s->spec, RENAME_NOREPLACE) == 0)
        return true;
    return (errno == EINVAL || errno == ENOSYS) && link(s->part, s->spec) == 0 && unlink(s->part) == 0;
}

static dpi_status give_name(const sink *s, dpi_error *error)
{
    if (s->no_overwrite ? rename_anew(s) : rename(s->part, s->spec) == 0)
        return DPI_OK;
    if (s->no_overwrite && errno == EEXIST)
        return error_set(error, DPI_E_IO, "%s exists already, since the run began; move it away", s->spec);
    return error_set_errno(error, DPI_E_IO, errno, "cannot rename %s to %s", s->part, s->spec);
}

dpi_status sink_finish(sink *s, dpi_error *error)
{
    if (!sink_has_file(s) || s->finished)
        return DPI_OK;
    dpi_status status = sink_complete(s, error);
    if (!status)
        status = sync_part(s, false, error);
    if (!status)
        status = give_name(s, error);
    if (status)
        return status;
    s->finished = true;
    return file_sync_folder_of(s->spec, error);
}

void sink_nobody_writes(sink *s) { s->quiet = true; }

void sink_close(sink *s, bool keep)
{
    if (!s)
        return;
    if (s->fd >= 0) {
        if (!s->finished && (s->ours ? !keep : s->made))
            unlink(s->part); /* while we hold the lock: nobody else's */
        if (s->quiet)
            flock(s->fd, LOCK_UN);
        close(s->fd);
    }
    free(s->labels);
    free(s->labels_path);
    free(s->label_text);
    text_free(&s->buffer);
    free(s->spec);
    free(s->part);
    free(s);
}
