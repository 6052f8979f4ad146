#include "cli/cli.h"

#include "base/tensor.h"
#include "base/topology.h"
#include "data/npy.h"
#include "data/source.h"
#include "runtime/setup.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int cli_fail(const dpi_error *error)
{
    int number = cli_signal();
    fprintf(stderr, "dpinfer: %s\n", error->message);
    if (error->status == DPI_CANCELLED && number)
        return 128 + number;
    return dpi_status_exit_code(error->status);
}

void cli_print_json(json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    putchar('\n');
    json_decref(json);
}

dpi_status cli_write_json(const char *path, json_t *json, dpi_error *error)
{
    if (!path) {
        cli_print_json(json);
        return DPI_OK;
    }
    bool written = json_dump_file(json, path, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) == 0;
    json_decref(json);
    return written ? DPI_OK : error_set(error, DPI_E_IO, "cannot write %s", path);
}

const char *cli_grouped(uint64_t number, char buffer[32])
{
    char plain[32];
    int length = snprintf(plain, sizeof plain, "%llu", (unsigned long long)number);
    size_t used = 0;
    for (int i = 0; i < length; i++) {
        if (i && (length - i) % 3 == 0)
            buffer[used++] = ',';
        buffer[used++] = plain[i];
    }
    buffer[used] = 0;
    return buffer;
}

/* ---- signals ---------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t caught; /* a handler has no context */

/* The second one ends the program at once, be it the same or the other. */
static void on_signal(int number)
{
    if (caught) {
        signal(number, SIG_DFL);
        raise(number);
    }
    caught = number;
}

void cli_catch_signals(void)
{
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

int cli_signal(void) { return (int)caught; }

/* ---- progress --------------------------------------------------------------------------------------------------- */

void cli_progress_start(cli_progress *p, const dpi_description *description, bool quiet)
{
    *p = (cli_progress){.description = description, .quiet = quiet, .terminal = isatty(2), .next_line_s = 2};
}

static void draw_bar(const cli_progress *p, const dpi_progress *now, double rate)
{
    char done[32], total[32], bar[25];
    size_t filled = now->rows_total ? (size_t)(24 * now->rows_done / now->rows_total) : 24;
    memset(bar, ' ', sizeof bar);
    memset(bar, '=', filled);
    bar[24] = 0;
    fprintf(stderr, "\r[%s] %s/%s rows, %.0f rows/s", bar, cli_grouped(now->rows_done, done),
            cli_grouped(now->rows_total, total), rate);
    for (size_t w = 0; w < now->worker_count && w < 4; w++)
        fprintf(stderr, ", %s %.0f", p->description->workers[w].device,
                now->seconds > 0 ? (double)now->worker_rows[w] / now->seconds : 0);
    if (now->worker_count > 4)
        fprintf(stderr, ", ...");
    double left = rate > 0 ? (double)(now->rows_total - now->rows_done) / rate : 0;
    fprintf(stderr, ", %d:%02d left \033[K", (int)left / 60, (int)left % 60);
    if (now->rows_done == now->rows_total)
        fputc('\n', stderr); /* and no more: checksums may still be compared */
}

int cli_progress_show(void *context, const dpi_progress *now)
{
    cli_progress *p = context;
    if (!now->worker_count) /* standard input is still being read, or a compressed tar */
        return cli_signal() != 0;
    p->rows_done = now->rows_done;
    double rate = now->seconds > 0 ? (double)(now->rows_done - now->rows_resumed) / now->seconds : 0;
    if (now->rows_resumed && !p->resumed_shown && !p->quiet) {
        char done[32], total[32];
        fprintf(stderr, "resuming %s: %s of %s rows were finished\n", p->output, cli_grouped(now->rows_resumed, done),
                cli_grouped(now->rows_total, total));
    }
    p->resumed_shown = true;
    if (!p->quiet && p->terminal && !p->whole)
        draw_bar(p, now, rate);
    else if (!p->quiet && now->seconds >= p->next_line_s) {
        char done[32], total[32];
        fprintf(stderr, "%s of %s rows, %.0f rows/s\n", cli_grouped(now->rows_done, done),
                cli_grouped(now->rows_total, total), rate);
        p->next_line_s = now->seconds + 5;
    }
    p->whole = now->rows_done == now->rows_total;
    return cli_signal() != 0;
}

/* ---- facts ------------------------------------------------------------------------------------------------------ */

void cli_shape_text(const dpi_tensor *t, char *out, size_t size)
{
    char buffer[SHAPE_TEXT_SIZE];
    snprintf(out, size, "%s %s", dpi_dtype_name(t->dtype), shape_text(t->shape, t->rank, buffer));
}

json_t *cli_tensor_json(const dpi_tensor *t)
{
    json_t *shape = json_array();
    for (int i = 0; i < t->rank; i++)
        json_array_append_new(shape, json_integer(t->shape[i]));
    return json_pack("{s:s, s:s, s:o}", "name", t->name, "dtype", dpi_dtype_name(t->dtype), "shape", shape);
}

json_t *cli_describe_json(const dpi_description *d)
{
    json_t *inputs = json_array(), *outputs = json_array(), *workers = json_array();
    for (size_t i = 0; i < d->input_count; i++)
        json_array_append_new(inputs, cli_tensor_json(&d->inputs[i]));
    for (size_t i = 0; i < d->output_count; i++)
        json_array_append_new(outputs, cli_tensor_json(&d->outputs[i]));
    for (size_t w = 0; w < d->worker_count; w++) {
        const dpi_worker_info *k = &d->workers[w];
        json_array_append_new(workers,
                              json_pack("{s:s, s:s, s:s, s:s, s:s, s:f, s:b}", "device", k->device, "backend",
                                        k->backend, "library", k->library, "version", k->version, "fingerprint",
                                        k->fingerprint, "open_seconds", k->open_seconds, "from_cache", k->from_cache));
    }
    return json_pack("{s:o, s:o, s:o, s:I, s:I, s:b, s:f}", "inputs", inputs, "outputs", outputs, "workers", workers,
                     "batch", (json_int_t)d->batch, "fixed_batch", (json_int_t)d->fixed_batch, "bit_identical",
                     d->bit_identical, "tolerance", d->tolerance);
}

json_t *cli_machine_json(void)
{
    topology t;
    if (topology_read(&t, NULL))
        return json_object();
    json_t *json = json_pack("{s:s, s:I, s:i, s:f, s:I}", "processor", t.model, "cpus", (json_int_t)t.cpu_count,
                             "cores", t.core_count, "quota_cpus", t.quota, "memory_bytes", (json_int_t)t.memory_bytes);
    topology_free(&t);
    return json;
}

json_t *cli_command_json(int argc, char **argv)
{
    json_t *words = json_pack("[s]", "dpinfer");
    for (int i = 0; i < argc; i++)
        json_array_append_new(words, text_to_json(argv[i]));
    return words;
}

/* ---- accuracy --------------------------------------------------------------------------------------------------- */

static dpi_status count_npy(const char *output, const npy_header *lh, const void *labels, uint64_t begin,
                            uint64_t *right, uint64_t *rows, dpi_error *error)
{
    source *s;
    dpi_status status = source_open(output, -1, &s, error);
    if (status)
        return status;
    const port *p = source_port(s);
    size_t classes = 0;
    shape_elements(p->shape, 1, p->rank, &classes);
    *rows = source_rows(s);
    void *row = malloc(classes * dpi_dtype_size(p->dtype) + 1);
    for (uint64_t r = 0; row && !status && r < *rows; r++) {
        const void *data;
        bool in_place;
        status = source_rows_at(s, r, 1, row, false, &data, &in_place, error);
        size_t best = 0;
        for (size_t c = 1; !status && c < classes; c++)
            if (dtype_get(p->dtype, data, c) > dtype_get(p->dtype, data, best))
                best = c;
        if (begin + r < (uint64_t)lh->shape[0])
            *right += dtype_get(lh->dtype, labels, begin + r) == (double)best;
    }
    if (!row)
        status = error_set(error, DPI_E_SYSTEM, "out of memory");
    free(row);
    source_close(s);
    return status;
}

/* Row and best class of a CSV line; the row's name may stand between them. False: the header. */
static dpi_status take_csv(char *line, bool *has_name, const char *output, int64_t *row, int64_t *best,
                           dpi_error *error)
{
    *row = -1;
    if (strncmp(line, "row,", 4) == 0) {
        *has_name = strncmp(line, "row,name,", 9) == 0;
        return DPI_OK;
    }
    char *class = strchr(line, ',');
    if (class && *has_name && class[1] == '"') {
        for (class += 2; *class && (*class != '"' || class[1] == '"');)
            class += *class == '"' ? 2 : 1;
        class = strchr(class, ',');
    } else if (class && *has_name)
        class = strchr(class + 1, ',');
    char *end = class ? strchr(class + 1, ',') : NULL;
    line[strcspn(line, ",")] = 0;
    if (end)
        *end = 0;
    return end && text_to_i64(line, 0, INT64_MAX, row) && text_to_i64(class + 1, 0, UINT32_MAX, best)
               ? DPI_OK
               : error_set(error, DPI_E_ARGUMENT, "--accuracy needs class numbers in %s: leave --labels out", output);
}

static dpi_status take_jsonl(const char *line, const char *output, int64_t *row, int64_t *best, dpi_error *error)
{
    json_t *json = json_loads(line, 0, NULL);
    bool good = json_unpack(json, "{s:I, s:[{s:I}]}", "row", row, "top", "class", best) == 0 && *row >= 0;
    json_decref(json);
    return good ? DPI_OK : error_set(error, DPI_E_DATA, "%s has a line that is no result", output);
}

static dpi_status count_text(const char *output, const npy_header *lh, const void *labels, uint64_t *right,
                             uint64_t *rows, dpi_error *error)
{
    FILE *file = fopen(output, "re");
    if (!file)
        return error_set(error, DPI_E_DATA, "cannot read %s again", output);
    char *line = NULL;
    size_t size = 0;
    bool has_name = false, is_csv = text_ends_with(output, ".csv");
    dpi_status status = DPI_OK;
    while (!status && getline(&line, &size, file) > 0) {
        int64_t row, best;
        status = is_csv ? take_csv(line, &has_name, output, &row, &best, error)
                        : take_jsonl(line, output, &row, &best, error);
        if (status || row < 0)
            continue;
        if (row < lh->shape[0])
            *right += dtype_get(lh->dtype, labels, (size_t)row) == (double)best;
        ++*rows;
    }
    free(line);
    fclose(file);
    return status;
}

dpi_status cli_accuracy(const char *output, const char *labels, uint64_t row_begin, double *share, uint64_t *rows,
                        dpi_error *error)
{
    npy_header h;
    void *data;
    const char *equals = strchr(output, '=');
    if (equals && !memchr(output, '/', (size_t)(equals - output)))
        output = equals + 1;
    dpi_status status = npy_load(labels, 1ull << 34, &h, &data, error);
    if (status)
        return status;
    uint64_t right = 0;
    *rows = 0;
    if (h.rank != 1)
        status = error_set(error, DPI_E_DATA, "%s: labels are one number a row", labels);
    else if (text_ends_with(output, ".npy") || text_ends_with(output, ".npz"))
        status = count_npy(output, &h, data, row_begin, &right, rows, error);
    else
        status = count_text(output, &h, data, &right, rows, error);
    if (!status && row_begin + *rows > (uint64_t)h.shape[0])
        status = error_set(error, DPI_E_DATA, "%s has %lld labels for %llu rows", labels, (long long)h.shape[0],
                           (unsigned long long)(row_begin + *rows));
    free(data);
    *share = *rows ? (double)right / (double)*rows : 0;
    return status;
}
