/* What makes a run resumable: what decides its result, which rows are on disk, and how it ends. */
#include "base/clock.h"
#include "runtime/batch.h"
#include "runtime/events.h"
#include "runtime/run.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define RECORD_MS    1000
#define RECORD_SHARE 5 /* of the time at most one part in so many goes into records */

static bool has_file(const run *r, size_t o) { return r->sinks[o] && sink_has_file(r->sinks[o]); }

/* ---- facts ------------------------------------------------------------------------------------------------------ */

static void add_file_fact(run *r, const char *key, int fd, const char *path)
{
    char place[PATH_MAX];
    file_mark mark = {0};
    int own = fd < 0 ? open(path, O_PATH | O_CLOEXEC) : -1; /* what a link leads to, not the link */
    file_mark_of(own >= 0 ? own : fd, path, &mark);
    if (own >= 0)
        close(own);
    journal_fact(&r->facts, key, "%s (%llu bytes, inode %llu, changed at %lld.%09lld)",
                 realpath(path, place) ? place : path, (unsigned long long)mark.bytes, (unsigned long long)mark.inode,
                 (long long)mark.changed_s, (long long)mark.changed_ns);
}

static void add_engine_facts(run *r)
{
    const dpi_session *s = r->s;
    static const char *const precisions[] = {"model", "fp32", "tf32", "fp16", "bf16"};
    const worker_setup *setup = &s->setups[0];
    text_buffer all = {0};
    for (size_t w = 0; w < s->count; w++) { /* each once, in order: the number of devices decides nothing */
        const char *least = NULL;
        for (size_t i = 0; i < s->count; i++) {
            const char *one = s->workers[i].report.fingerprint;
            if ((!all.data || strcmp(one, all.data + all.length - strlen(one)) > 0) &&
                (!least || strcmp(one, least) < 0))
                least = one;
        }
        if (!least)
            break;
        text_add(&all, "%s%s", w ? " " : "", least);
    }
    if (setup->model_path)
        add_file_fact(r, "the model", -1, setup->model_path);
    journal_fact(&r->facts, "the precision (--precision)", "%s", precisions[setup->precision]);
    journal_fact(&r->facts, "the backend", "%s %s", s->backend->name, s->workers[0].report.version);
    if (setup->batch_auto && !s->fixed_rows)
        journal_fact(&r->facts, "the batch (--batch)", "auto");
    else
        journal_fact(&r->facts, "the batch (--batch)", "%zu", s->max_rows);
    journal_fact(&r->facts, "the engine", "fingerprint %s", all.data ? all.data : "");
    r->facts.failed |= all.failed;
    text_free(&all);
    for (size_t i = 0; i < setup->broadcast_count; i++) {
        const broadcast_input *b = &setup->broadcast[i];
        size_t bytes = 0;
        char hex[HASH_HEX_SIZE], key[PORT_NAME_SIZE + 40];
        shape_bytes(b->dtype, b->shape, b->rank, &bytes);
        hash_to_hex(hash_of(arena_at(s->inputs, b->offset), bytes), hex);
        snprintf(key, sizeof key, "the broadcast input %s", b->name);
        journal_fact(&r->facts, key, "%s", hex);
    }
}

static void add_sink_fact(run *r, size_t o)
{
    char key[PORT_NAME_SIZE + 40], folder[PATH_MAX], shape[SHAPE_TEXT_SIZE];
    const char *spec = r->sinks[o] ? sink_spec(r->sinks[o]) : "none", *slash = strrchr(spec, '/');
    char *copy = slash ? strndup(spec, slash == spec ? 1 : (size_t)(slash - spec)) : strdup(".");
    const char *place = copy && strcmp(spec, "none") != 0 && realpath(copy, folder) ? folder : "";
    free(copy);
    snprintf(key, sizeof key, "the output %s", r->s->sig.outputs[o].name);
    journal_fact(&r->facts, key, "%s%s%s, %s %s", place, *place ? "/" : "", slash && *place ? slash + 1 : spec,
                 dpi_dtype_name(r->s->sig.outputs[o].dtype),
                 shape_text(r->out[o] + 1, r->s->sig.outputs[o].rank ? r->s->sig.outputs[o].rank - 1 : 0, shape));
}

static void add_source_fact(run *r, size_t i)
{
    char key[PORT_NAME_SIZE + 40];
    const source *s = r->sources[i];
    snprintf(key, sizeof key, "the source of %s", r->s->sig.inputs[i].name);
    if (source_is_stdin(source_spec(s)) && r->stdin_content[0])
        journal_fact(&r->facts, key, "%s, content %s", source_spec(s), r->stdin_content);
    else if (source_fact(s))
        journal_fact(&r->facts, key, "%s", source_fact(s));
    else if (source_file_fd(s) >= 0)
        add_file_fact(r, key, source_file_fd(s), source_spec(s));
    else
        journal_fact(&r->facts, key, "%s", source_spec(s));
}

static dpi_status gather_facts(run *r, dpi_error *error)
{
    journal_fact(&r->facts, "dpinfer's version", "%s", dpi_version());
    add_engine_facts(r);
    for (size_t i = 0; i < r->s->sig.input_count; i++)
        if (r->sources[i])
            add_source_fact(r, i);
    journal_fact(&r->facts, "the range of rows (--rows)", "%llu:%llu", (unsigned long long)r->first_row,
                 (unsigned long long)(r->first_row + r->rows));
    for (size_t o = 0; o < r->s->sig.output_count; o++)
        add_sink_fact(r, o);
    if (r->has_text)
        journal_fact(&r->facts, "the number of classes (--top)", "%zu", r->o->top ? r->o->top : 1);
    if (r->has_text && r->o->labels_path)
        add_file_fact(r, "the labels (--labels)", -1, r->o->labels_path);
    return r->facts.failed ? error_set(error, DPI_E_SYSTEM, "out of memory") : DPI_OK;
}

/* The model's file decides nothing by itself, its content does, which the fingerprint holds: it only explains. */
static dpi_status compare(const run *r, size_t o, dpi_error *error)
{
    const journal_begin *then = journal_begun(r->journals[o]);
    const char *key, *was, *is, *model = "the model", *engine = "the engine";
    const char *old_engine = journal_fact_find(then->facts, then->facts_bytes, engine);
    const char *new_engine = journal_fact_find(r->facts.data, r->facts.length, engine);
    const char *old_model = journal_fact_find(then->facts, then->facts_bytes, model);
    const char *new_model = journal_fact_find(r->facts.data, r->facts.length, model);
    bool same_engine = old_engine && strcmp(old_engine, new_engine) == 0;
    if (!same_engine && old_model && new_model && strcmp(old_model, new_model) != 0) {
        key = model;
        was = old_model;
        is = new_model;
    } else if (!journal_facts_differ(then->facts, then->facts_bytes, r->facts.data, r->facts.length,
                                     same_engine ? model : NULL, &key, &was, &is))
        return then->rows == r->rows
                   ? DPI_OK
                   : error_set(error, DPI_E_DATA, "%s tells of another number of rows; --restart begins anew",
                               journal_path(r->journals[o]));
    return error_set(
        error, DPI_E_DATA,
        "%s has finished rows of an earlier run, and %s has changed since: it was %.200s and is %.200s; go "
        "back to that, or begin anew with --restart",
        sink_part(r->sinks[o]), key, was ? was : "absent", is ? is : "absent");
}

/* ---- beginning -------------------------------------------------------------------------------------------------- */

/* Whether journal o stands for finished rows. One that only begins may: of another set of outputs, whose first journal
 * has the records. Where the first one is ours and has none, the run was stopped before its first record. */
static bool protects_rows(const run *r, size_t o)
{
    const journal_begin *one = r->journals[o] ? journal_begun(r->journals[o]) : NULL;
    if (!one)
        return false;
    const journal *lead = r->journals[r->lead];
    const journal_begin *first = journal_begun(lead);
    size_t count;
    bool empty = first && !journal_done(lead)->count && !journal_sealed(lead, &count);
    return !(empty && memcmp(one->run, first->run, sizeof one->run) == 0);
}

static dpi_status open_journals(run *r, dpi_error *error)
{
    for (size_t o = 0; o < r->s->sig.output_count; o++) {
        if (!has_file(r, o))
            continue;
        char *path = text_format("%s.journal", sink_spec(r->sinks[o]));
        dpi_status status =
            path ? journal_open(path, &r->journals[o], error) : error_set(error, DPI_E_SYSTEM, "out of memory");
        free(path);
        if (status)
            return status;
        if (r->lead < 0)
            r->lead = (int)o;
    }
    return DPI_OK;
}

/* Whether the journals together tell of one earlier run that this one can go on with. */
static dpi_status can_go_on(const run *r, bool *yes, dpi_error *error)
{
    *yes = r->lead >= 0 && protects_rows(r, (size_t)r->lead);
    const journal_begin *lead = *yes ? journal_begun(r->journals[r->lead]) : NULL;
    size_t count;
    bool is_sealed = *yes && journal_sealed(r->journals[r->lead], &count);
    for (size_t o = 0; o < r->s->sig.output_count; o++) {
        const journal_begin *one = r->journals[o] ? journal_begun(r->journals[o]) : NULL;
        if (r->journals[o] && journal_damaged(r->journals[o]))
            log_warning(&r->s->log, "%s is damaged from its beginning on: the run begins anew",
                        journal_path(r->journals[o]));
        if (one && protects_rows(r, o)) {
            dpi_status status = compare(r, o, error);
            if (status)
                return status;
        }
        if (lead && r->journals[o] && !is_sealed) /* once sealed, the others may be gone */
            *yes = *yes && one && memcmp(one->run, lead->run, sizeof lead->run) == 0;
    }
    return DPI_OK;
}

static dpi_status adopt_all(run *r, const file_mark *marks, size_t count, dpi_error *error)
{
    size_t at = 0;
    dpi_status status = DPI_OK;
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++)
        if (has_file(r, o))
            status = at < count ? sink_adopt(r->sinks[o], &marks[at++], error)
                                : error_set(error, DPI_E_DATA, "%s tells of fewer files; --restart begins anew",
                                            journal_path(r->journals[r->lead]));
    r->sealed = r->started = !status;
    r->resumed_rows = r->recorded_rows = status ? 0 : r->rows;
    return status;
}

static dpi_status go_on(run *r, dpi_error *error)
{
    journal *lead = r->journals[r->lead];
    size_t count;
    const file_mark *marks = journal_sealed(lead, &count);
    dpi_status status = DPI_OK;
    if (marks)
        return adopt_all(r, marks, count, error);
    const row_set *done = journal_done(lead);
    /* Text is written in order: what stands in it is the first range. */
    if (r->has_text && (done->count > 1 || (done->count == 1 && done->items[0].begin != 0)))
        return error_set(error, DPI_E_DATA, "%s does not fit a text file; --restart begins anew", journal_path(lead));
    for (size_t i = 0; i < done->count; i++)
        if (!row_set_append(&r->done, done->items[i].begin, done->items[i].end))
            return error_set(error, DPI_E_SYSTEM, "out of memory");
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++)
        if (has_file(r, o))
            status =
                sink_resume(r->sinks[o], journal_begun(r->journals[o])->part_inode, journal_text_bytes(lead, o), error);
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++)
        if (r->journals[o])
            status = journal_go_on(r->journals[o], error);
    r->resumed_rows = r->recorded_rows = status ? 0 : row_set_rows(&r->done);
    r->started = r->resumed_rows > 0;
    return status;
}

/* Rows that the earlier run has left out must still be allowed, and they are this run's too. */
static dpi_status take_bad_rows(run *r, dpi_error *error)
{
    size_t count;
    dpi_session *s = r->s;
    const journal *lead = r->journals[r->lead];
    const journal_bad *bad = journal_bad_rows(lead, &count);
    if (count && (s->on_bad_row != DPI_BAD_ROW_SKIP || count > s->max_bad_rows))
        return error_set(error, DPI_E_DATA,
                         "an earlier run has left %zu row%s out of %s, row %llu first: --on-bad-row skip and "
                         "--max-bad-rows allow that, or begin anew with --restart",
                         count, count > 1 ? "s" : "", sink_part(r->sinks[r->lead]),
                         (unsigned long long)(r->first_row + bad[0].row));
    bool good = true;
    pthread_mutex_lock(&s->lock);
    for (size_t i = 0; i < count && good; i++)
        good = batch_add_bad_row(&s->run_bad, &s->run_bad_rows, r->first_row + bad[i].row, bad[i].reason);
    pthread_mutex_unlock(&s->lock);
    r->noted_bad = count;
    r->bad_rows = count > 0;
    return good ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
}

/* Whoever looks at this run alone must learn of them too. */
static void tell_of_earlier_run(const run *r)
{
    dpi_session *s = r->s;
    pthread_mutex_lock(&s->lock);
    s->resumed_rows += r->resumed_rows;
    pthread_mutex_unlock(&s->lock);
    event_resumed(s, r->resumed_rows, r->rows);
    for (size_t i = 0; i < r->noted_bad; i++) { /* no worker runs yet: nobody adds to the list */
        event_bad_row(s, s->run_bad[i].row, s->run_bad[i].reason);
        if (s->bad_row)
            s->bad_row(s->bad_row_context, &(dpi_bad_row){.row = s->run_bad[i].row, .reason = s->run_bad[i].reason});
    }
}

/* The one that tells of all files last: where there is another, it is there. */
static dpi_status remove_journals(run *r, bool durably, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t o = r->s->sig.output_count; o-- > 0 && !status;)
        if (r->journals[o])
            status = journal_remove(r->journals[o], durably, error);
    return status;
}

static dpi_status begin_anew(run *r, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++)
        status = sink_check_overwrite(r->sinks[o], error);
    if (status)
        return status;
    /* A journal must be gone, on disk too, before what it tells of is emptied. */
    status = remove_journals(r, true, error);
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++)
        status = sink_begin(r->sinks[o], error);
    if (!status && getrandom(r->id, sizeof r->id, 0) != sizeof r->id)
        status = error_set_errno(error, DPI_E_SYSTEM, errno, "cannot draw a random number");
    return status;
}

dpi_status run_begin_sinks(run *r, dpi_error *error)
{
    dpi_status status = open_journals(r, error);
    if (!status)
        status = gather_facts(r, error);
    for (size_t o = 0; r->o->no_journal && !r->o->restart && !status && o < r->s->sig.output_count; o++)
        if (protects_rows(r, o))
            status =
                error_set(error, DPI_E_ARGUMENT,
                          "%s has finished rows of an earlier run: leave --no-journal out to go on with them, or begin "
                          "anew with --restart",
                          sink_part(r->sinks[o]));
    if (!status && !r->o->restart)
        status = can_go_on(r, &r->going_on, error);
    if (!status && r->going_on)
        status = take_bad_rows(r, error);
    if (!status)
        status = r->going_on ? go_on(r, error) : begin_anew(r, error);
    r->begun = !status;
    if (r->begun && r->going_on)
        tell_of_earlier_run(r);
    if (r->o->no_journal)
        r->lead = -1;
    r->recorded_ns = clock_now_ns();
    return status;
}

/* ---- recording -------------------------------------------------------------------------------------------------- */

dpi_status run_note_done(run *r, uint64_t begin, uint64_t end, dpi_error *error)
{
    return row_set_append(&r->fresh, begin, end) ? DPI_OK : error_set(error, DPI_E_SYSTEM, "out of memory");
}

typedef struct look {
    run *r;
    const run_chunk *chunk;
    bool failed;
} look;

static bool note_slices(void *context, uint32_t first, uint32_t end)
{
    look *l = context;
    uint64_t from = (uint64_t)first * l->r->s->max_rows, to = (uint64_t)end * l->r->s->max_rows;
    to = to < l->chunk->rows ? to : l->chunk->rows;
    l->failed |= from < to && !row_set_append(&l->r->fresh, l->chunk->at + from, l->chunk->at + to);
    return !l->failed;
}

dpi_status run_note_chunk(run *r, const run_chunk *chunk, dpi_error *error)
{
    look l = {.r = r, .chunk = chunk};
    uint64_t slices = (chunk->rows + r->s->max_rows - 1) / r->s->max_rows;
    if (r->lead >= 0 && !r->in_order)
        batch_done_slices(r->s, chunk->slot, chunk->sequence, (uint32_t)slices, note_slices, &l, NULL);
    return l.failed ? error_set(error, DPI_E_SYSTEM, "out of memory") : DPI_OK;
}

static dpi_status note_chunks(run *r, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t i = 0; i < r->in_flight && !status; i++)
        status = run_note_chunk(r, &r->chunks[(r->head + i) % CHUNKS_IN_FLIGHT], error);
    return status;
}

static dpi_status create_journals(run *r, dpi_error *error)
{
    dpi_status status = DPI_OK;
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++) { /* the one with the records first */
        file_mark mark;
        if (!r->journals[o] || journal_is_written(r->journals[o]))
            continue;
        if (!sink_mark(r->sinks[o], &mark))
            return error_set_errno(error, DPI_E_IO, errno, "cannot read %s", sink_part(r->sinks[o]));
        journal_begin begin = {
            .part_inode = mark.inode, .rows = r->rows, .facts = r->facts.data, .facts_bytes = r->facts.length};
        memcpy(begin.run, r->id, sizeof begin.run);
        status = journal_create(r->journals[o], &begin, error);
    }
    return status;
}

/* Those that the journal does not know yet. A row is in the list before the word of its slice is DONE: of every slice
 * that was seen so, all are here. */
static dpi_status record_bad_rows(run *r, dpi_error *error)
{
    dpi_session *s = r->s;
    pthread_mutex_lock(&s->lock);
    size_t count = s->run_bad_rows - r->noted_bad;
    journal_bad *bad = count ? calloc(count, sizeof *bad) : NULL;
    for (size_t i = 0; i < count && bad; i++) { /* the reasons stay where they are until the run ends */
        const batch_bad_row *from = &s->run_bad[r->noted_bad + i];
        bad[i] = (journal_bad){.row = from->row - r->first_row, .reason = from->reason};
    }
    pthread_mutex_unlock(&s->lock);
    if (count && !bad)
        return error_set(error, DPI_E_SYSTEM, "out of memory");
    dpi_status status = journal_add_bad(r->journals[r->lead], bad, count, error);
    r->noted_bad += status ? 0 : count;
    free(bad);
    return status;
}

static dpi_status record(run *r, dpi_error *error)
{
    uint64_t text[PORT_MAX] = {0};
    dpi_status status = DPI_OK;
    if (r->in_order) {
        r->fresh.count = 0;
        status = run_write(r, error);
        if (!status && r->written)
            status = run_note_done(r, 0, r->written, error);
    } else
        status = note_chunks(r, error);
    if (status)
        return status;
    for (size_t i = 0; i < r->fresh.count; i++)
        if (!row_set_append(&r->done, r->fresh.items[i].begin, r->fresh.items[i].end))
            return error_set(error, DPI_E_SYSTEM, "out of memory");
    row_set_settle(&r->done);
    row_set_settle(&r->fresh);
    if (row_set_rows(&r->done) == r->recorded_rows)
        return DPI_OK;
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++)
        status = sink_sync(r->sinks[o], &text[o], error);
    if (!status)
        status = create_journals(r, error);
    if (!status)
        status = record_bad_rows(r, error);
    if (!status)
        status = journal_add(r->journals[r->lead], &r->fresh, text, r->s->sig.output_count, error);
    if (status) /* what is fresh stays so, for another try */
        return status;
    r->recorded_rows = row_set_rows(&r->done);
    r->fresh.count = 0;
    return DPI_OK;
}

dpi_status run_record(run *r, bool now, dpi_error *error)
{
    int64_t began = clock_now_ns();
    int64_t pause = (int64_t)(r->o->journal_interval_ms ? r->o->journal_interval_ms : RECORD_MS) * 1000000;
    pause = pause > RECORD_SHARE * r->record_took_ns ? pause : RECORD_SHARE * r->record_took_ns;
    if (r->lead < 0 || (!now && began - r->recorded_ns < pause))
        return DPI_OK;
    dpi_status status = record(r, error);
    r->recorded_ns = clock_now_ns();
    r->record_took_ns = r->recorded_ns - began;
    return status;
}

/* ---- the end ---------------------------------------------------------------------------------------------------- */

static dpi_status seal(run *r, dpi_error *error)
{
    file_mark marks[PORT_MAX];
    size_t count = 0;
    uint64_t text;
    dpi_status status = DPI_OK;
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++)
        status = sink_sync(r->sinks[o], &text, error);
    if (!status)
        status = create_journals(r, error);
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++)
        if (has_file(r, o) && !sink_mark(r->sinks[o], &marks[count++]))
            status = error_set_errno(error, DPI_E_IO, errno, "cannot read %s", sink_part(r->sinks[o]));
    if (!status)
        status = record_bad_rows(r, error);
    return status ? status : journal_seal(r->journals[r->lead], marks, count, error);
}

dpi_status run_finish_sinks(run *r, dpi_error *error)
{
    size_t files = 0;
    dpi_status status = DPI_OK;
    for (size_t o = 0; o < r->s->sig.output_count; o++)
        files += has_file(r, o);
    for (size_t o = 0; o < r->s->sig.output_count && !r->sealed && !status; o++)
        status = sink_complete(r->sinks[o], error);
    if (status)
        return status;
    bool kept = r->lead >= 0 && (journal_is_written(r->journals[r->lead]) || files > 1);
    if (kept && !r->sealed)
        status = seal(r, error);
    if (kept && !status) {
        r->sealed = true;
        r->recorded_rows = r->rows;
    }
    for (size_t o = 0; o < r->s->sig.output_count && !status; o++)
        status = sink_finish(r->sinks[o], error);
    return status ? status : remove_journals(r, false, error);
}

/* A source that was changed meanwhile makes what is finished worthless: the same command would refuse it. What has
 * changed is copied to `what`. */
static bool facts_have_changed(run *r, char *what, size_t size)
{
    text_buffer before = r->facts;
    const char *key = "the memory that is left", *was, *is;
    r->facts = (text_buffer){0};
    bool changed = gather_facts(r, NULL) || journal_facts_differ(before.data, before.length, r->facts.data,
                                                                 r->facts.length, NULL, &key, &was, &is);
    snprintf(what, size, "%s", key);
    text_free(&r->facts);
    r->facts = before;
    return changed;
}

/* Whether the same command can go on with what is there; records what was not yet, and completes the story. */
static bool keep_rows(run *r, dpi_error *error)
{
    dpi_error story = *error, unused;
    char what[PORT_NAME_SIZE + 40];
    if (r->lead < 0 || !r->started)
        return false;
    if (!r->sealed && sink_finished(r->sinks[r->lead])) /* a short run that failed behind its rename: it has all */
        return false;
    if (!r->sealed && facts_have_changed(r, what, sizeof what)) {
        error_set(error, story.status, "%.700s; no rows are kept, for %s has changed meanwhile", story.message, what);
        return false;
    }
    if (!r->sealed)
        run_record(r, true, &unused); /* where it fails, what was recorded before still holds */
    if (!r->recorded_rows)
        return false;
    error_set(error, story.status, "%.700s; %llu of %llu rows are kept, the same command goes on with them",
              story.message, (unsigned long long)r->recorded_rows, (unsigned long long)r->rows);
    return true;
}

void run_close_sinks(run *r, dpi_status status, dpi_error *error)
{
    bool failed = status && status != DPI_BAD_ROWS; /* with bad rows the run is done */
    bool untouched = failed && r->going_on && !r->begun;
    bool keep = untouched || (failed && keep_rows(r, error));
    for (size_t o = 0; o < PORT_MAX; o++) {
        if (r->journals[o] && failed && !keep && journal_is_ours(r->journals[o]))
            journal_remove(r->journals[o], false, NULL);
        if (r->sinks[o] && !atomic_load(&r->s->failed)) /* then there may be a worker that cannot be killed */
            sink_nobody_writes(r->sinks[o]);
        sink_close(r->sinks[o], keep);
        journal_close(r->journals[o]);
    }
    text_free(&r->facts);
    row_set_free(&r->done);
    row_set_free(&r->fresh);
}
