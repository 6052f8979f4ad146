#include "sim_kit.h"

#include "base/clock.h"

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#define GUARD_BYTE 0xa5

static void fill_broadcast(kit *k, int64_t extent)
{
    for (size_t i = 0; i < k->model.sig.input_count; i++) {
        if (!k->model.broadcast[i])
            continue;
        const port *p = &k->model.sig.inputs[i];
        dpi_tensor *t = &k->broadcast[k->broadcast_count++];
        *t = (dpi_tensor){.name = p->name, .dtype = p->dtype, .rank = p->rank};
        for (int a = 0; a < p->rank; a++)
            t->shape[a] = p->shape[a] < 0 ? extent : p->shape[a];
        size_t bytes = 0;
        assert_true(shape_bytes(t->dtype, t->shape, t->rank, &bytes));
        t->data = calloc(1, bytes + 1);
        tensor_fill_random(t->dtype, t->data, bytes / dpi_dtype_size(t->dtype), 0, 1, 77, false);
    }
}

bool kit_is_strict(void)
{
    const char *isolation = getenv("DPI_TEST_ISOLATION");
    return isolation && strcmp(isolation, "strict") == 0;
}

static void free_kit(kit *k)
{
    for (size_t i = 0; i < k->broadcast_count; i++)
        free(k->broadcast[i].data);
    free(k);
}

static void quiet(void *context, dpi_log_level level, const char *line)
{
    (void)context;
    (void)level;
    (void)line;
}

kit *kit_try_open(const char *text, const char *devices, const dpi_options *o, dpi_error *error)
{
    kit *k = calloc(1, sizeof *k);
    dpi_options options = o ? *o : DPI_INIT(dpi_options);
    assert_int_equal(sim_model_parse(text, strlen(text), "test", &k->model, error), DPI_OK);
    fill_broadcast(k, 3);
    options.model_data = text;
    options.model_bytes = strlen(text);
    options.model_format = "sim";
    options.devices = devices;
    options.broadcast = k->broadcast;
    options.broadcast_count = k->broadcast_count;
    options.cache_dir = options.cache_dir ? options.cache_dir : "";
    options.log = options.log ? options.log : quiet;
    if (kit_is_strict() && options.isolation == DPI_ISOLATION_PROCESS)
        options.isolation = DPI_ISOLATION_STRICT;
    /* The wanted outputs, in their order, for the reference. */
    sim_model all = k->model;
    for (size_t i = 0; options.output_names && i < options.output_count; i++) {
        int at = port_find(all.sig.outputs, all.sig.output_count, options.output_names[i]);
        if (at >= 0)
            k->model.sig.outputs[i] = all.sig.outputs[at];
        k->model.sig.output_count = options.output_count;
    }
    dpi_status status = dpi_open(&options, &k->s, error);
    assert_int_equal(status, error->status);
    if (status == DPI_OK) {
        assert_non_null(k->s);
        return k;
    }
    assert_null(k->s);
    assert_true(error->message[0] != 0);
    free_kit(k);
    return NULL;
}

kit *kit_open(const char *text, const char *devices, const dpi_options *o)
{
    dpi_error error = {0};
    kit *k = kit_try_open(text, devices, o, &error);
    if (!k)
        fail_msg("cannot open on %s: %s", devices, error.message);
    return k;
}

dpi_options kit_impatient(void)
{
    dpi_options o = DPI_INIT(dpi_options);
    o.slice_timeout_ms = 300;
    o.compile_timeout_ms = 1000;
    return o;
}

void kit_close(kit *k)
{
    if (!k)
        return;
    dpi_close(k->s);
    free_kit(k);
}

/* ---- batches ---------------------------------------------------------------------------------------------------- */

static void shape_of_output(const kit *k, size_t o, size_t rows, int64_t extent, dpi_tensor *t)
{
    const port *p = &k->model.sig.outputs[o];
    *t = (dpi_tensor){.name = p->name, .dtype = p->dtype, .rank = p->rank};
    for (int a = 0; a < p->rank; a++)
        t->shape[a] = a == 0 ? (int64_t)rows : p->shape[a] < 0 ? extent : p->shape[a];
}

kit_batch *kit_batch_new(const kit *k, size_t rows, uint64_t seed, int64_t extent)
{
    kit_batch *b = calloc(1, sizeof *b);
    b->k = k;
    b->rows = rows;
    for (size_t i = 0; i < k->model.sig.input_count; i++) {
        if (k->model.broadcast[i])
            continue;
        const port *p = &k->model.sig.inputs[i];
        dpi_tensor *t = &b->in[b->in_count];
        b->in_index[b->in_count++] = i;
        *t = (dpi_tensor){.name = p->name, .dtype = p->dtype, .rank = p->rank};
        for (int a = 0; a < p->rank; a++)
            t->shape[a] = a == 0 ? (int64_t)rows : p->shape[a] < 0 ? extent : p->shape[a];
        size_t bytes = 0, elements = 0;
        assert_true(shape_bytes(t->dtype, t->shape, t->rank, &bytes));
        assert_true(shape_elements(t->shape, 1, t->rank, &elements));
        t->data = malloc(bytes + 1);
        tensor_fill_random(t->dtype, t->data, elements, 0, rows, seed + i, false);
    }
    b->out_count = k->model.sig.output_count;
    for (size_t o = 0; o < b->out_count; o++) {
        size_t bytes = 0;
        shape_of_output(k, o, rows, extent, &b->out[o]);
        assert_true(shape_bytes(b->out[o].dtype, b->out[o].shape, b->out[o].rank, &bytes));
        b->out[o].data = malloc(bytes + KIT_GUARD);
    }
    kit_batch_spoil(b);
    return b;
}

void kit_batch_spoil(kit_batch *b)
{
    for (size_t o = 0; o < b->out_count; o++) {
        size_t bytes = 0;
        assert_true(shape_bytes(b->out[o].dtype, b->out[o].shape, b->out[o].rank, &bytes));
        memset(b->out[o].data, GUARD_BYTE, bytes + KIT_GUARD);
    }
}

void kit_batch_free(kit_batch *b)
{
    for (size_t i = 0; i < b->in_count; i++)
        free(b->in[i].data);
    for (size_t o = 0; o < b->out_count; o++)
        free(b->out[o].data);
    free(b);
}

/* Pointers to the row of every input of the model, and its size. */
static void point_at_row(const kit_batch *b, size_t row, const void **rows, size_t *row_bytes)
{
    const kit *k = b->k;
    for (size_t i = 0, given = 0, broadcast = 0; i < k->model.sig.input_count; i++) {
        if (k->model.broadcast[i]) {
            const dpi_tensor *t = &k->broadcast[broadcast++];
            assert_true(shape_bytes(t->dtype, t->shape, t->rank, &row_bytes[i]));
            rows[i] = t->data;
            continue;
        }
        const dpi_tensor *t = &b->in[given++];
        assert_true(shape_row_bytes(t->dtype, t->shape, t->rank, &row_bytes[i]));
        rows[i] = (const char *)t->data + row * row_bytes[i];
    }
}

static void check_row(const kit_batch *b, const dpi_tensor *out, size_t o, size_t row)
{
    const void *rows[PORT_MAX];
    size_t row_bytes[PORT_MAX], elements = 0, bytes = 0;
    point_at_row(b, row, rows, row_bytes);
    assert_true(shape_elements(out->shape, 1, out->rank, &elements));
    assert_true(shape_row_bytes(out->dtype, out->shape, out->rank, &bytes));
    unsigned char *want = malloc(bytes + 1);
    sim_expected_row(&b->k->model, rows, row_bytes, o, elements, want);
    const unsigned char *got = (const unsigned char *)out->data + row * bytes;
    if (memcmp(want, got, bytes) != 0)
        fail_msg("row %zu of %zu, output %s: element 0 is %g and should be %g", row, b->rows, out->name,
                 elements ? dtype_get(out->dtype, got, 0) : 0, elements ? dtype_get(out->dtype, want, 0) : 0);
    free(want);
}

void kit_batch_check(const kit_batch *b, const dpi_tensor *outputs)
{
    for (size_t o = 0; o < b->out_count; o++) {
        const dpi_tensor *out = outputs ? &outputs[o] : &b->out[o];
        assert_int_equal(out->dtype, b->out[o].dtype);
        assert_int_equal(out->rank, b->out[o].rank);
        assert_memory_equal(out->shape, b->out[o].shape, (size_t)out->rank * sizeof out->shape[0]);
        assert_string_equal(out->name, b->out[o].name);
        for (size_t row = 0; row < b->rows; row++)
            check_row(b, out, o, row);
        size_t bytes = 0;
        assert_true(shape_bytes(out->dtype, out->shape, out->rank, &bytes));
        for (size_t g = 0; !outputs && g < KIT_GUARD; g++)
            assert_int_equal(((unsigned char *)out->data)[bytes + g], GUARD_BYTE);
    }
}

void kit_poison(kit_batch *b, size_t row)
{
    size_t elements = 1;
    for (int axis = 1; axis < b->in[0].rank; axis++)
        elements *= (size_t)b->in[0].shape[axis];
    dtype_set(b->in[0].dtype, b->in[0].data, row * elements, KIT_POISON);
}

void kit_forward(const kit *k, size_t rows, uint64_t seed)
{
    dpi_error error = {.status = DPI_E_INTERNAL, .message = "stale"};
    kit_batch *b = kit_batch_new(k, rows, seed, 3);
    kit_assert_ok(dpi_forward(k->s, b->in, b->in_count, b->out, b->out_count, 20000, &error), error);
    assert_int_equal(error.status, DPI_OK);
    assert_string_equal(error.message, "");
    kit_batch_check(b, NULL);
    kit_batch_free(b);
}

dpi_status kit_submit(const kit *k, kit_batch *b, bool views, int64_t queue_timeout_ms, dpi_ticket *ticket,
                      dpi_error *error)
{
    dpi_batch one = DPI_INIT(dpi_batch);
    one.inputs = b->in;
    one.input_count = b->in_count;
    one.outputs = views ? NULL : b->out;
    one.output_count = views ? 0 : b->out_count;
    one.queue_timeout_ms = queue_timeout_ms;
    return dpi_submit(k->s, &one, ticket, error);
}

/* ---- what is left ----------------------------------------------------------------------------------------------- */

static int count_entries(const char *folder)
{
    DIR *d = opendir(folder);
    int count = 0;
    assert_non_null(d);
    while (readdir(d))
        count++;
    closedir(d);
    return count;
}

size_t kit_children(pid_t *pids, size_t most)
{
    size_t count = 0;
    DIR *tasks = opendir("/proc/self/task");
    assert_non_null(tasks);
    for (struct dirent *e; (e = readdir(tasks));) {
        char path[300];
        snprintf(path, sizeof path, "/proc/self/task/%s/children", e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "re");
        while (f && count < most && fscanf(f, "%d", &pids[count]) == 1)
            count++;
        if (f)
            fclose(f);
    }
    closedir(tasks);
    return count;
}

static int count_children(void)
{
    pid_t pids[1024];
    return (int)kit_children(pids, sizeof pids / sizeof pids[0]);
}

int kit_count_mappings(void)
{
    int count = 0;
    char line[1024];
    FILE *f = fopen("/proc/self/maps", "re");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        count += strstr(line, "memfd:dpinfer") != NULL;
    fclose(f);
    return count;
}

static void *nothing(void *argument) { return argument; }

kit_traces kit_look(void)
{
    pthread_t thread; /* the first one ever may bring a sanitizer's own with it */
    if (pthread_create(&thread, NULL, nothing, NULL) == 0)
        pthread_join(thread, NULL);
    return (kit_traces){.fds = count_entries("/proc/self/fd"),
                        .mappings = kit_count_mappings(),
                        .threads = count_entries("/proc/self/task"),
                        .children = count_children()};
}

void kit_check_clean(kit_traces before)
{
    kit_traces now = kit_look();
    for (double until = kit_now_s() + 2; kit_now_s() < until; now = kit_look())
        if (now.children == before.children && now.mappings == before.mappings && now.fds == before.fds &&
            now.threads <= before.threads) /* one that has been joined may show a moment longer */
            return;
        else
            clock_sleep_until_ns(clock_now_ns() + 5000000);
    assert_int_equal(now.children, before.children);
    assert_int_equal(now.mappings, before.mappings);
    assert_int_equal(now.fds, before.fds);
    assert_true(now.threads <= before.threads);
}

dpi_stats_data kit_stats(const kit *k)
{
    dpi_error error;
    dpi_stats_data stats = DPI_INIT(dpi_stats_data);
    kit_assert_ok(dpi_stats(k->s, &stats, &error), error);
    return stats;
}

pid_t kit_pid(const kit *k, size_t w)
{
    dpi_error error;
    dpi_description d = DPI_INIT(dpi_description);
    kit_assert_ok(dpi_describe(k->s, &d, &error), error);
    assert_true(w < d.worker_count);
    return (pid_t)d.workers[w].pid;
}

double kit_now_s(void) { return (double)clock_now_ns() * 1e-9; }

/* ---- what happened ---------------------------------------------------------------------------------------------- */

void kit_tell(void *context, const char *json)
{
    kit_story *story = context;
    pthread_mutex_lock(&story->lock);
    int more = snprintf(story->text + story->used, sizeof story->text - story->used, "%s\n", json);
    if (more > 0 && story->used + (size_t)more < sizeof story->text)
        story->used += (size_t)more;
    pthread_mutex_unlock(&story->lock);
}

bool kit_story_says(kit_story *story, const char *part)
{
    pthread_mutex_lock(&story->lock);
    bool says = strstr(story->text, part) != NULL;
    pthread_mutex_unlock(&story->lock);
    return says;
}

static void let_workers_crash(const char *variable)
{
    char value[1024];
    const char *old = getenv(variable);
    snprintf(value, sizeof value, "%s%shandle_segv=0:handle_sigbus=0:handle_abort=0", old ? old : "", old ? ":" : "");
    setenv(variable, value, 1);
}

void kit_let_workers_crash(void)
{
    let_workers_crash("ASAN_OPTIONS");
    let_workers_crash("TSAN_OPTIONS");
    let_workers_crash("UBSAN_OPTIONS");
}
