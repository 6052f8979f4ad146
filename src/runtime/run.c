/* dpi_run: a data set in chunks of slices; the workers read the sources and write the sinks. */
#include "runtime/run.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "data/spool.h"
#include "runtime/batch.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHUNK_SLICES  4096
#define CHUNK_RECORDS (1u << 20)  /* rows of a chunk whose text records wait in memory */
#define CHUNK_BYTES   (32u << 20) /* of a chunk's rows that wait in the arena as they are */
#define CHUNK_ROUNDS  4           /* then at least so many slices for each worker */
#define WRITE_BACK_NS 200000000
#define ROWS          "rows" /* the sink of an output whose rows the caller takes */

/* ---- sources and sinks ------------------------------------------------------------------------------------------ */

/* Splits "[NAME=]REST" where NAME is a port's: its index and REST; otherwise the next free port by position. What looks
 * like a name (neither '/' nor '.' in front of '=') and is none gives -1, rather than a file of that name. */
static int match_port(const port *ports, size_t count, const bool *skip, void *const *taken, const char *text,
                      const char **rest)
{
    const char *equals = strchr(text, '=');
    *rest = text;
    for (size_t i = 0; equals && i < count; i++)
        if (strlen(ports[i].name) == (size_t)(equals - text) &&
            strncmp(ports[i].name, text, strlen(ports[i].name)) == 0) {
            *rest = equals + 1;
            return (int)i;
        }
    if (equals && !memchr(text, '/', (size_t)(equals - text)) && !memchr(text, '.', (size_t)(equals - text)))
        return -1;
    for (size_t i = 0; i < count; i++)
        if (!taken[i] && !(skip && skip[i]))
            return (int)i;
    return -1;
}

static dpi_status check_source(const run *r, size_t i, dpi_error *error)
{
    const port *want = &r->s->sig.inputs[i], *got = source_port(r->sources[i]);
    bool good = want->dtype == got->dtype && want->rank == got->rank;
    for (int k = 1; good && k < want->rank; k++)
        good = want->shape[k] < 0 || want->shape[k] == got->shape[k];
    if (good)
        return DPI_OK;
    char expected[SHAPE_TEXT_SIZE], is[SHAPE_TEXT_SIZE];
    int64_t wanted[DPI_MAX_RANK];
    memcpy(wanted, want->shape, sizeof wanted);
    wanted[0] = -1;
    return error_set(error, DPI_E_DATA, "%s: the input %s expects %s %s and got %s %s", source_spec(r->sources[i]),
                     want->name, dpi_dtype_name(want->dtype), shape_text(wanted, want->rank, expected),
                     dpi_dtype_name(got->dtype), shape_text(got->shape, got->rank, is));
}

/* Whether the caller wants to stop, before there is anything to tell. */
static bool stop_asked(void *context)
{
    run *r = context;
    dpi_progress nothing_yet = {.struct_size = sizeof nothing_yet};
    r->cancelled |= r->o->progress && r->o->progress(r->o->progress_context, &nothing_yet) != 0;
    return r->cancelled;
}

static dpi_status open_source(run *r, size_t at, const char *spec, dpi_error *error)
{
    int fd = -1;
    dpi_status status = DPI_OK;
    spool_limits limits = {.max_bytes = r->o->spool_max_bytes, .stop = stop_asked, .context = r};
    if (source_is_stdin(spec) && r->stdin_taken)
        return error_set(error, DPI_E_ARGUMENT, "standard input can be the source of one input only");
    if (source_is_stdin(spec)) {
        r->stdin_taken = true;
        status = spool_read(STDIN_FILENO, &limits, &fd, r->stdin_content, error);
    }
    source_options options = {.want = &r->s->sig.inputs[at], .preprocess = r->o->preprocess, .spool = limits};
    if (!status)
        status = fd >= 0 ? source_open(spec, fd, &r->sources[at], error)
                         : source_open_for(spec, &options, &r->sources[at], error);
    if (fd >= 0)
        close(fd);
    if (!status && source_warning(r->sources[at]))
        log_warning(&r->s->log, "%s", source_warning(r->sources[at]));
    return status ? status : check_source(r, at, error);
}

static bool is_free(const run *r, size_t i) { return !r->s->is_broadcast[i] && !r->sources[i]; }

/* A source that no input is named for: the next free one; of an archive, every free input whose name a member has, or
 * the next free one where it has one member alone. */
static dpi_status open_unnamed(run *r, const char *spec, dpi_error *error)
{
    size_t inputs = r->s->sig.input_count, opened = 0;
    dpi_status status = DPI_OK;
    for (int by_name = 1; by_name >= 0 && !status && !opened; by_name--)
        for (size_t i = 0; i < inputs && !status && (by_name || !opened); i++) {
            char *one = NULL;
            if (!is_free(r, i))
                continue;
            status = source_member_for(spec, r->s->sig.inputs[i].name, &one, error);
            if (!status && one && (strcmp(one, spec) != 0) == by_name) {
                status = open_source(r, i, one, error);
                opened++;
            }
            free(one);
        }
    if (status || opened)
        return status;
    source *any = NULL; /* why an archive fits none; anything else finds no input left */
    status = text_ends_with(spec, ".npz") ? source_open(spec, -1, &any, error) : DPI_OK;
    source_close(any);
    return status
               ? status
               : error_set(error, DPI_E_ARGUMENT, "the source %s is for no input, or for one that has another", spec);
}

static dpi_status open_named(run *r, size_t at, const char *spec, dpi_error *error)
{
    char *one = NULL;
    if (!is_free(r, at))
        return error_set(error, DPI_E_ARGUMENT, "the source %s is for no input, or for one that has another", spec);
    dpi_status status = source_member_for(spec, r->s->sig.inputs[at].name, &one, error);
    if (!status)
        status = open_source(r, at, one ? one : spec, error);
    free(one);
    return status;
}

/* All sources are there and have the same rows. */
static dpi_status check_sources(run *r, uint64_t *total, dpi_error *error)
{
    const dpi_session *s = r->s;
    const source *first = NULL;
    size_t count = 0;
    for (size_t i = 0; i < s->sig.input_count; i++) {
        if (!r->sources[i])
            continue;
        if (first && source_rows(first) != source_rows(r->sources[i]))
            return error_set(error, DPI_E_DATA, "%s has %llu rows and %s has %llu", source_spec(first),
                             (unsigned long long)source_rows(first), source_spec(r->sources[i]),
                             (unsigned long long)source_rows(r->sources[i]));
        first = first ? first : r->sources[i];
        memcpy(r->in[i], source_port(r->sources[i])->shape, sizeof r->in[i]);
        count++;
    }
    if (count != s->batch_input_count)
        return error_set(error, DPI_E_ARGUMENT, "the model takes %zu inputs and %zu sources were given",
                         s->batch_input_count, count);
    *total = first ? source_rows(first) : 0;
    return DPI_OK;
}

static dpi_status open_sources(run *r, dpi_error *error)
{
    dpi_session *s = r->s;
    uint64_t total = 0;
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < r->o->input_count && !status; i++) {
        const char *text = r->o->inputs[i], *spec;
        int at = match_port(s->sig.inputs, s->sig.input_count, s->is_broadcast, (void *const *)r->sources, text, &spec);
        if (at < 0)
            return error_set(error, DPI_E_ARGUMENT, "the source %s is for no input, or for one that has another", text);
        status = spec == text ? open_unnamed(r, spec, error) : open_named(r, (size_t)at, spec, error);
    }
    if (!status)
        status = check_sources(r, &total, error);
    if (status)
        return status;
    uint64_t end = r->o->row_end ? r->o->row_end : total;
    if (r->o->row_begin > end || end > total)
        return error_set(error, DPI_E_ARGUMENT, "rows %llu:%llu were asked for and the sources have %llu",
                         (unsigned long long)r->o->row_begin, (unsigned long long)end, (unsigned long long)total);
    r->first_row = r->o->row_begin;
    r->rows = end - r->o->row_begin;
    return DPI_OK;
}

/* Which sink each output has; an archive that no output is named for takes all that no other sink has. */
static dpi_status match_sinks(const run *r, const char *specs[PORT_MAX], dpi_error *error)
{
    const dpi_session *s = r->s;
    const char *archive = NULL;
    for (size_t i = 0; i < r->o->output_count; i++) {
        const char *spec, *text = r->o->outputs[i];
        int at = match_port(s->sig.outputs, s->sig.output_count, NULL, (void *const *)specs, text, &spec);
        if (at < 0 || specs[at])
            return error_set(error, DPI_E_ARGUMENT, "the sink %s is for no output, or for one that has another", text);
        specs[at] = spec;
        if (strcmp(spec, ROWS) == 0 && !r->o->take_rows)
            return error_set(error, DPI_E_ARGUMENT, "the sink \"" ROWS "\" needs take_rows");
        if (!archive && spec == text && text_ends_with(spec, ".npz"))
            archive = spec;
    }
    for (size_t o = 0; o < s->sig.output_count; o++) {
        specs[o] = specs[o] ? specs[o] : archive ? archive : "none";
        for (size_t p = 0; p < o; p++)
            if (strcmp(specs[p], specs[o]) == 0 && strcmp(specs[o], "none") != 0 && strcmp(specs[o], ROWS) != 0 &&
                !text_ends_with(specs[o], ".npz"))
                return error_set(error, DPI_E_ARGUMENT, "%s is named as the sink of two outputs", specs[o]);
    }
    return DPI_OK;
}

static const source *source_with_names(const run *r)
{
    char name[SOURCE_NAME_SIZE];
    for (size_t i = 0; i < r->s->sig.input_count; i++)
        if (r->sources[i] && source_rows(r->sources[i]) && source_row_name(r->sources[i], 0, name))
            return r->sources[i];
    return NULL;
}

static dpi_status open_sink(run *r, const char *const *specs, size_t o, dpi_error *error)
{
    const dpi_session *s = r->s;
    port output = s->sig.outputs[o];
    memcpy(output.shape, r->out[o], sizeof output.shape);
    output.shape[0] = (int64_t)r->rows;
    sink_options options = {.output = &output,
                            .rows = r->rows,
                            .top = r->o->top,
                            .labels_path = r->o->labels_path,
                            .names = r->names,
                            .no_overwrite = r->o->no_overwrite};
    for (size_t p = 0; p < o; p++)
        if (strcmp(specs[p], specs[o]) == 0 && sink_has_file(r->sinks[p]))
            return sink_join(r->sinks[p], &options, &r->sinks[o], error);
    r->hands_over[o] = strcmp(specs[o], ROWS) == 0;
    r->hands_any |= r->hands_over[o];
    dpi_status status = sink_open(r->hands_over[o] ? "none" : specs[o], &options, &r->sinks[o], error);
    for (size_t i = 0; i < s->sig.input_count && !status; i++)
        if (r->sources[i] && source_file_fd(r->sources[i]) >= 0 &&
            sink_same_file(r->sinks[o], source_file_fd(r->sources[i])))
            status = error_set(error, DPI_E_ARGUMENT, "%s is a source of this run; write the results to another file",
                               specs[o]);
    return status;
}

/* Whether an output's rows come through the arena as they are: the caller takes them, or writes them to the file. */
static bool in_arena(const run *r, size_t o) { return r->hands_over[o] || (r->s->strict && sink_fd(r->sinks[o]) >= 0); }

static dpi_status open_sinks(run *r, dpi_error *error)
{
    const dpi_session *s = r->s;
    const char *specs[PORT_MAX] = {NULL};
    r->names = source_with_names(r);
    dpi_status status = match_sinks(r, specs, error);
    for (size_t o = 0; o < s->sig.output_count && !status; o++) {
        status = open_sink(r, specs, o, error);
        if (status)
            break;
        r->record_bytes[o] = sink_record_bytes(r->sinks[o]);
        r->has_text |= sink_is_text(r->sinks[o]);
        if (in_arena(r, o) &&
            !shape_row_bytes(s->sig.outputs[o].dtype, r->out[o], s->sig.outputs[o].rank, &r->record_bytes[o]))
            status = error_set(error, DPI_E_MODEL, "the output %s has rows of no size", s->sig.outputs[o].name);
    }
    r->in_order = r->has_text || s->strict || r->hands_any;
    return status ? status : run_check_rows(r, error);
}

/* ---- telling the workers ---------------------------------------------------------------------------------------- */

static_assert(CHANNEL_MAX_FDS >= 3 * PORT_MAX, "a run's descriptors go in one message");

static void add_fd(json_t *object, const char *key, int fd, int *fds, size_t *count)
{
    if (fd < 0)
        return;
    json_object_set_new(object, key, json_integer((json_int_t)*count));
    fds[(*count)++] = fd;
}

/* Workers that have no processors of their own. */
static size_t without_cpus(const dpi_session *s)
{
    size_t count = 0;
    for (size_t w = 0; w < s->count; w++)
        count += !s->devices.items[w].cpu_count;
    return count;
}

static dpi_status tell_workers(run *r, dpi_error *error)
{
    dpi_session *s = r->s;
    int fds[CHANNEL_MAX_FDS];
    size_t fd_count = 0;
    r->dear = false;
    json_t *sources = json_array(), *sinks = json_array();
    for (size_t i = 0; i < s->sig.input_count; i++) {
        json_t *one = json_object();
        if (r->sources[i]) {
            json_object_set_new(one, "spec", json_string(source_worker_spec(r->sources[i])));
            json_object_set_new(one, "dear", json_boolean(source_is_dear(r->sources[i])));
            r->dear |= source_is_dear(r->sources[i]);
            add_fd(one, "fd", source_fd(r->sources[i]), fds, &fd_count);
            add_fd(one, "spool", source_spool_fd(r->sources[i]), fds, &fd_count);
        }
        json_array_append_new(sources, one);
    }
    for (size_t o = 0; o < s->sig.output_count; o++) {
        json_t *one = json_pack("{s:I, s:i, s:b, s:s}", "data_offset", (json_int_t)sink_data_offset(r->sinks[o]), "top",
                                (int)(sink_record_bytes(r->sinks[o]) / sizeof(sink_top)), "in_arena", in_arena(r, o),
                                "name", sink_spec(r->sinks[o]));
        if (one && !s->strict)
            add_fd(one, "fd", sink_fd(r->sinks[o]), fds, &fd_count);
        json_array_append_new(sinks, one ? one : json_object());
    }
    json_t *question = json_pack("{s:s, s:I, s:o, s:o, s:I, s:I}", "what", "job", "job", (json_int_t)r->job, "sources",
                                 sources, "sinks", sinks, "loader_threads", (json_int_t)r->o->loader_threads, "sharing",
                                 (json_int_t)without_cpus(s));
    dpi_status status =
        question ? DPI_OK : error_set(error, DPI_E_ARGUMENT, "the name of a source or sink is not valid UTF-8");
    if (!status)
        status = session_start_job(s, question, fds, fd_count, error);
    json_decref(question);
    return status;
}

/* ---- chunks ----------------------------------------------------------------------------------------------------- */

static void show_progress(run *r, bool last)
{
    int64_t now = clock_now_ns();
    if (!last && now - r->shown_ns < 100000000)
        return;
    r->shown_ns = now;
    uint64_t done = r->resumed_rows;
    size_t count = r->s->count;
    for (size_t w = 0; w < count; w++) {
        r->worker_rows[w] = atomic_load(&r->s->workers[w].page->rows) - r->base_rows[w];
        done += r->worker_rows[w];
    }
    run_check_follow(r->check, done); /* slices are dealt in order */
    if (!r->o->progress || (r->cancelled && !last))
        return;
    dpi_progress p = {.struct_size = sizeof p,
                      .rows_done = done < r->rows ? done : r->rows,
                      .rows_total = r->rows,
                      .seconds = (double)(now - r->began_ns) * 1e-9,
                      .worker_rows = r->worker_rows,
                      .worker_count = count,
                      .rows_resumed = r->resumed_rows};
    if (r->o->progress(r->o->progress_context, &p) != 0)
        r->cancelled = true;
}

/* The next rows to compute, from *at on: a part of what is not done, in one chunk. */
static bool next_chunk(const run *r, uint64_t at, run_chunk *chunk)
{
    row_range gap;
    if (!row_set_next_gap(&r->todo_without, at, r->rows, &gap))
        return false;
    uint64_t rows = gap.end - gap.begin;
    *chunk = (run_chunk){.at = gap.begin, .rows = rows < r->chunk_rows ? rows : r->chunk_rows, .slot = -1};
    return true;
}

static dpi_status submit_chunk(run *r, run_chunk *to, dpi_error *error)
{
    shard_chunk chunk = {.job = r->job,
                         .rows = to->rows,
                         .first_row = r->first_row + to->at,
                         .result_row = to->at,
                         .input_shapes = (const int64_t(*)[DPI_MAX_RANK])r->in,
                         .output_shapes = (const int64_t(*)[DPI_MAX_RANK])r->out,
                         .record_bytes = r->record_bytes,
                         .dear = r->dear};
    dpi_status status = batch_submit_chunk(r->s, &chunk, &to->ticket, error);
    if (!status)
        batch_where(r->s, to->ticket, &to->slot, &to->sequence);
    return status;
}

/* Rows of the result from row r->written on. */
static dpi_status write_rows(run *r, size_t o, const char *records, uint64_t rows, dpi_error *error)
{
    sink *to = r->sinks[o];
    if (sink_is_text(to))
        return sink_write_records(to, r->first_row + r->written, (const sink_top *)(const void *)records, rows, error);
    return file_write_at(sink_fd(to), records, rows * r->record_bytes[o],
                         sink_data_offset(to) + r->written * r->record_bytes[o], sink_part(to), error);
}

/* Writes rows up to row `end` of the result, which stand in `chunk`. */
static dpi_status write_up_to(run *r, const run_chunk *chunk, uint64_t end, dpi_error *error)
{
    dpi_status status = DPI_OK;
    row_range gap;
    if (r->written < chunk->at && row_set_next_gap(&r->todo_without, r->written, r->rows, &gap) &&
        gap.begin == chunk->at)
        r->written = chunk->at;                      /* an earlier run has written what is between */
    if (end <= r->written || r->written < chunk->at) /* the latter: rows before are missing, their chunk failed */
        return DPI_OK;
    uint64_t skip = r->written - chunk->at;
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++) {
        const char *records = r->record_bytes[o] && !r->hands_over[o] ? batch_records(r->s, chunk->ticket, o) : NULL;
        if (records)
            status = write_rows(r, o, records + skip * r->record_bytes[o], end - r->written, error);
    }
    if (!status && r->hands_any)
        status = run_hand_over(r, chunk, r->written, end, error);
    r->written = status ? r->written : end;
    return status;
}

static bool only_leading(void *context, uint32_t first, uint32_t end)
{
    *(uint32_t *)context = first == 0 ? end : 0;
    return false;
}

static uint32_t slices_of(const run *r, const run_chunk *chunk)
{
    return (uint32_t)((chunk->rows + r->s->max_rows - 1) / r->s->max_rows);
}

dpi_status run_write(run *r, dpi_error *error)
{
    if (!r->in_flight)
        return DPI_OK;
    const run_chunk *chunk = &r->chunks[r->head];
    uint32_t leading = 0;
    batch_done_slices(r->s, chunk->slot, chunk->sequence, slices_of(r, chunk), only_leading, &leading, NULL);
    uint64_t rows = (uint64_t)leading * r->s->max_rows;
    return write_up_to(r, chunk, chunk->at + (rows < chunk->rows ? rows : chunk->rows), error);
}

/* Lets the disk work beside the devices. Not too often: a page that is written to again goes to disk again. */
static void write_back(run *r)
{
    int64_t now = clock_now_ns();
    if (now - r->written_back_ns < WRITE_BACK_NS)
        return;
    r->written_back_ns = now;
    for (size_t o = 0; o < r->s->sig.output_count; o++)
        sink_write_back(r->sinks[o]);
}

static void cancel_chunks(run *r)
{
    for (size_t i = 0; i < r->in_flight; i++)
        batch_cancel(r->s, r->chunks[(r->head + i) % CHUNKS_IN_FLIGHT].ticket, NULL);
}

static bool ignore_slices(void *context, uint32_t first, uint32_t end)
{
    (void)context;
    (void)first;
    (void)end;
    return true;
}

/* Stopped by the caller: slices in flight are finished, and what they brought is noted while it can still be seen. */
static dpi_status drain_chunks(run *r, dpi_error *error)
{
    for (size_t i = 0; i < r->in_flight; i++) {
        const run_chunk *chunk = &r->chunks[(r->head + i) % CHUNKS_IN_FLIGHT];
        bool terminal = chunk->slot < 0;
        while (!terminal && !atomic_load(&r->s->failed)) {
            cancel_chunks(r);
            batch_done_slices(r->s, chunk->slot, chunk->sequence, slices_of(r, chunk), ignore_slices, NULL, &terminal);
            if (!terminal)
                clock_sleep_until_ns(clock_now_ns() + 2000000);
        }
    }
    return run_record(r, true, error);
}

static dpi_status finish_chunk(run *r, dpi_error *error)
{
    const run_chunk *chunk = &r->chunks[r->head];
    dpi_status status = DPI_OK, waited;
    bool drained = false;
    dpi_error later; /* once something has failed, that is the story */
    while ((waited = batch_wait(r->s, chunk->ticket, clock_now_ns() + 100000000, false, NULL, 0,
                                status ? &later : error)) == DPI_TIMEOUT) {
        show_progress(r, false);
        write_back(r);
        if (!status)
            status = run_record(r, false, error);
        if (!status && r->hands_any && !r->cancelled)
            status = run_write(r, error);
        if (!status && r->cancelled && !drained)
            status = drain_chunks(r, error);
        drained |= r->cancelled;
        if (status || r->cancelled)
            cancel_chunks(r);
    }
    r->bad_rows |= waited == DPI_BAD_ROWS;
    waited = waited == DPI_BAD_ROWS ? DPI_OK : waited;
    if (!waited && !status && r->in_order)
        status = write_up_to(r, chunk, chunk->at + chunk->rows, error);
    if (waited && !status && r->in_order)
        run_write(r, &later);                 /* what it has brought before it failed */
    batch_release(r->s, chunk->ticket, NULL); /* where it has no rows in the arena it is released already */
    if (!waited && !status && !r->in_order && r->lead >= 0)
        status = run_note_done(r, chunk->at, chunk->at + chunk->rows, error);
    if (waited)
        run_note_chunk(r, chunk, &later);
    show_progress(r, false);
    return status ? status : waited;
}

static dpi_status run_chunks(run *r, dpi_error *error)
{
    uint64_t submitted = 0; /* rows before it are done or in flight */
    dpi_status status = DPI_OK;
    bool more = true;
    for (;;) {
        while (!status && !r->cancelled && more && r->in_flight < CHUNKS_IN_FLIGHT) {
            run_chunk *next = &r->chunks[(r->head + r->in_flight) % CHUNKS_IN_FLIGHT];
            more = next_chunk(r, submitted, next);
            if (!more || (status = submit_chunk(r, next, error)))
                break;
            r->in_flight++;
            submitted = next->at + next->rows;
        }
        if (!r->in_flight)
            break;
        dpi_error later;
        dpi_status one = finish_chunk(r, status ? &later : error);
        r->head = (r->head + 1) % CHUNKS_IN_FLIGHT;
        r->in_flight--;
        if (!status && !one)
            one = run_record(r, false, error);
        if (!status && one) { /* the first failure is the story; what is still in flight is dropped */
            status = one;
            cancel_chunks(r);
        }
    }
    if (!status && r->cancelled && more && next_chunk(r, submitted, &r->chunks[0]))
        status = error_set(error, DPI_CANCELLED, "the run was stopped");
    return status;
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

/* What was done before this run: `done` grows, and what is to do must not change under the chunks. */
static dpi_status copy_done(run *r, dpi_error *error)
{
    for (size_t i = 0; i < r->done.count; i++)
        if (!row_set_append(&r->todo_without, r->done.items[i].begin, r->done.items[i].end))
            return error_set(error, DPI_E_SYSTEM, "out of memory");
    return DPI_OK;
}

/* Tells whoever looks (watch.h); 0 rows: it is over. */
static void show_run(const run *r, uint64_t rows)
{
    board *b = &r->s->control->board;
    uint64_t base = 0;
    for (size_t w = 0; rows && w < r->s->count; w++)
        base += r->base_rows[w];
    atomic_store_explicit(&b->run_base, base - r->resumed_rows, memory_order_relaxed);
    atomic_store_explicit(&b->run_rows, rows, memory_order_relaxed);
}

/* What goes through the arena is bounded, but for enough slices to keep all devices busy. */
static uint64_t slices_of_chunk(const run *r)
{
    const dpi_session *s = r->s;
    bool bounded = s->strict || r->hands_any;
    uint64_t bytes = 0, slices = CHUNK_SLICES, least = bounded ? CHUNK_ROUNDS * s->count : 1;
    for (size_t o = 0; o < s->sig.output_count; o++)
        bytes += r->record_bytes[o] * s->max_rows;
    if (r->has_text && CHUNK_RECORDS / s->max_rows < slices)
        slices = CHUNK_RECORDS / s->max_rows;
    if (bounded && bytes && CHUNK_BYTES / bytes < slices)
        slices = CHUNK_BYTES / bytes;
    return slices > least ? slices : least;
}

static bool stop_waiting(void *context)
{
    run *r = context;
    show_progress(r, false);
    return r->cancelled;
}

/* Rows that were computed from damaged bytes are not kept. */
static dpi_status compare_checksums(run *r, dpi_error *error)
{
    dpi_status status = run_check_wait(r->check, stop_waiting, r, error);
    r->started &= status != DPI_E_DATA;
    return status;
}

/* Of the sources; 0 where the model takes none. */
static uint64_t all_rows(const run *r)
{
    for (size_t i = 0; i < r->s->sig.input_count; i++)
        if (r->sources[i])
            return source_rows(r->sources[i]);
    return 0;
}

static dpi_status run_all(run *r, dpi_error *error)
{
    dpi_status status = open_sources(r, error);
    if (!status)
        status = session_output_shapes(r->s, r->in, r->out, error);
    if (!status)
        status = open_sinks(r, error);
    if (!status)
        status = run_begin_sinks(r, error);
    if (status)
        return status;
    r->chunk_rows = slices_of_chunk(r) * r->s->max_rows;
    r->base_rows = calloc(LAYOUT_WORKERS, sizeof *r->base_rows); /* devices may be added */
    r->worker_rows = calloc(LAYOUT_WORKERS, sizeof *r->worker_rows);
    if (!r->base_rows || !r->worker_rows)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    for (size_t w = 0; w < r->s->count; w++)
        r->base_rows[w] = atomic_load(&r->s->workers[w].page->rows);
    show_run(r, r->rows);
    if (!r->sealed && r->rows == all_rows(r))
        status = run_check_start(r->sources, r->s->sig.input_count, &r->check, error);
    if (status)
        return status;
    if (r->resumed_rows)
        show_progress(r, true);
    if (r->rows > r->resumed_rows) {
        status = copy_done(r, error);
        if (!status)
            status = tell_workers(r, error);
        r->began_ns = clock_now_ns();
        r->started |= !status;
        if (!status)
            status = run_chunks(r, error);
        session_end_job(r->s, r->job);
    }
    if (!status)
        status = compare_checksums(r, error);
    if (!status)
        status = run_finish_sinks(r, error);
    if (!status)
        show_progress(r, true);
    if (!status && r->bad_rows)
        status = error_set(error, DPI_BAD_ROWS, "%llu row%s could not be computed and %s left out",
                           (unsigned long long)r->s->run_bad_rows, r->s->run_bad_rows == 1 ? "" : "s",
                           r->s->run_bad_rows == 1 ? "was" : "were");
    return status;
}

dpi_status session_run(dpi_session *s, const dpi_run_options *options, dpi_run_result *result, dpi_error *error)
{
    pthread_mutex_lock(&s->lock);
    bool busy = s->running;
    s->running = true;
    uint32_t job = ++s->next_job;
    pthread_mutex_unlock(&s->lock);
    if (busy)
        return error_set(error, DPI_E_ARGUMENT, "another dpi_run is under way on this session");
    run *r = calloc(1, sizeof *r);
    dpi_status status = DPI_E_SYSTEM;
    if (r) {
        r->s = s;
        r->o = options;
        r->job = job;
        r->lead = -1;
        r->began_ns = clock_now_ns();
        status = run_all(r, error);
        run_check_end(r->check);
        if (result) {
            result->rows = r->rows;
            result->seconds = (double)(clock_now_ns() - r->began_ns) * 1e-9;
            result->resumed_rows = r->resumed_rows;
        }
        show_run(r, 0);
        run_close_sinks(r, status, error);
        pthread_mutex_lock(&s->lock);
        batch_free_bad_rows(s->run_bad, s->run_bad_rows);
        s->run_bad = NULL;
        s->run_bad_rows = 0;
        pthread_mutex_unlock(&s->lock);
        for (size_t i = 0; i < PORT_MAX; i++)
            source_close(r->sources[i]);
        row_set_free(&r->todo_without);
        free(r->base_rows);
        free(r->worker_rows);
        free(r);
    } else
        error_set(error, DPI_E_SYSTEM, "out of memory");
    pthread_mutex_lock(&s->lock);
    s->running = false;
    pthread_mutex_unlock(&s->lock);
    return status;
}
