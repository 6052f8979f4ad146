#include "backend/conformance_workers.h"

#include "base/tensor.h"
#include "base/text.h"

#include <dpinfer/dpinfer.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ROWS 7
#define WIDE 5 /* of a free axis */
#define MOST 8 /* inputs, outputs */

typedef struct results {
    dpi_tensor outputs[MOST]; /* data malloc'd */
    size_t bytes[MOST], count;
    char told[4096];
} results;

static void tell(void *context, dpi_log_level level, const char *line)
{
    char *told = ((results *)context)->told;
    (void)level;
    if (strstr(line, "sandbox: ") && strlen(told) + strlen(line) + 2 < sizeof((results *)0)->told) {
        strcat(told, line);
        strcat(told, "\n");
    }
}

static void fill_inputs(const dpi_description *d, dpi_tensor *inputs)
{
    assert_true(d->input_count <= MOST && d->output_count <= MOST);
    for (size_t i = 0; i < d->input_count; i++) {
        dpi_tensor *t = &inputs[i];
        size_t elements;
        *t = d->inputs[i];
        t->shape[0] = ROWS;
        for (int k = 1; k < t->rank; k++)
            t->shape[k] = t->shape[k] < 0 ? WIDE : t->shape[k];
        assert_true(shape_elements(t->shape, 0, t->rank, &elements));
        t->data = calloc(elements + 1, dpi_dtype_size(t->dtype));
        assert_non_null(t->data);
        tensor_fill_random(t->dtype, t->data, elements, 0, 1, 11 + i, true);
    }
}

static void keep_outputs(results *r, const dpi_tensor *views)
{
    for (size_t o = 0; o < r->count; o++) {
        assert_true(shape_bytes(views[o].dtype, views[o].shape, views[o].rank, &r->bytes[o]));
        r->outputs[o] = views[o];
        r->outputs[o].data = malloc(r->bytes[o] + 1);
        assert_non_null(r->outputs[o].data);
        memcpy(r->outputs[o].data, views[o].data, r->bytes[o]);
    }
}

static void free_results(results *r)
{
    for (size_t o = 0; o < r->count; o++)
        free(r->outputs[o].data);
    *r = (results){0};
}

/* What a worker process makes of the model. */
static void compute(const conformance *suite, const char *path, bool confined, results *r)
{
    float scales[4] = {1, 2, 3, 4};
    const dpi_tensor broadcast = {.name = "s", .dtype = DPI_F32, .rank = 1, .shape = {4}, .data = scales};
    bool scaled = strstr(path, "/scale.") != NULL;
    dpi_options o = DPI_INIT(dpi_options);
    o.model_path = path;
    o.backend = suite->kit->backend->name;
    o.devices = "cpu:0";
    o.cache_dir = ""; /* what is confined must compile, too */
    o.no_sandbox = !confined;
    o.broadcast = scaled ? &broadcast : NULL;
    o.broadcast_count = scaled;
    o.log = tell;
    o.log_context = r;
    o.log_level = DPI_LOG_INFO;
    dpi_session *s;
    dpi_error error;
    dpi_ticket ticket = 0;
    dpi_tensor inputs[MOST] = {{0}}, views[MOST];
    dpi_description d = DPI_INIT(dpi_description);
    if (dpi_open(&o, &s, &error) || dpi_describe(s, &d, &error))
        fail_msg("%s, %s: %s", path, confined ? "confined" : "free", error.message);
    fill_inputs(&d, inputs);
    r->count = d.output_count;
    dpi_batch b = DPI_INIT(dpi_batch);
    b.inputs = inputs;
    b.input_count = d.input_count;
    if (dpi_submit(s, &b, &ticket, &error) || dpi_wait(s, ticket, 0, views, r->count, &error))
        fail_msg("%s, %s: %s", path, confined ? "confined" : "free", error.message);
    keep_outputs(r, views);
    for (size_t i = 0; i < d.input_count; i++)
        free(inputs[i].data);
    dpi_close(s);
}

static void compare(const conformance *suite, const char *model)
{
    results confined = {.count = 0}, unconfined = {.count = 0};
    char *path = conformance_make(suite, model);
    compute(suite, path, true, &confined);
    compute(suite, path, false, &unconfined);
    if (!strstr(confined.told, "sandbox: files") || !strstr(confined.told, "sandbox: system calls"))
        fail_msg("%s was not confined: %s", model, confined.told);
    assert_string_equal(unconfined.told, "");
    assert_int_equal(confined.count, unconfined.count);
    for (size_t o = 0; o < confined.count; o++) {
        assert_true(confined.bytes[o] > 0);
        assert_int_equal(confined.bytes[o], unconfined.bytes[o]);
        assert_memory_equal(confined.outputs[o].data, unconfined.outputs[o].data, confined.bytes[o]);
    }
    free_results(&confined);
    free_results(&unconfined);
    free(path);
}

static void confined_workers_give_the_same_bits(void **state)
{
    static const char *const models[] = {
        "mlp", "mlp4", "multi", "scale", "dynamic", "encoder", "identity-float16", "identity-uint8"};
    for (size_t i = 0; i < sizeof models / sizeof models[0]; i++)
        compare(*state, models[i]);
}

static void confined_workers_read_weights_beside_the_model(void **state) { compare(*state, "mlp-external"); }

int conformance_workers_main(const conformance_kit *kit, const char *variable, const char *oldest)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(confined_workers_give_the_same_bits),
                                       cmocka_unit_test(confined_workers_read_weights_beside_the_model)};
    return conformance_group(kit, variable, oldest, DPI_LOG_ERROR, tests, 2);
}
