/*
 * Arbitrary words where workers write: claim words, hints, and the JSON of the control socket. The caller must decode
 * each without crashing, and no decoded field may leave its range.
 */
#include "ipc/claim.h"
#include "runtime/setup.h"

#include <stdlib.h>
#include <string.h>

static void words(const uint8_t *data, size_t size)
{
    for (size_t i = 0; i + 8 <= size; i += 8) {
        uint64_t word;
        memcpy(&word, data + i, sizeof word);
        claim c = claim_decode(word);
        if (claim_encode(c) != word || c.state > 7 || c.worker > 0x3ff || c.generation > 0x7ffff)
            abort();
        _Atomic uint64_t hint = word;
        uint32_t before, sequence = c.sequence;
        bool stepped = hint_step(&hint, sequence, &before);
        if (stepped && ((uint32_t)(word >> 32) != sequence || before == 0))
            abort();
    }
}

static void messages(const uint8_t *data, size_t size)
{
    json_error_t problem;
    json_t *json = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, &problem);
    worker_report *report = malloc(sizeof *report);
    worker_setup setup;
    dpi_error error;
    if (report && json_is_object(json)) {
        if (report_from_json(json, report, &error) == DPI_OK) {
            if (report->sig.input_count > PORT_MAX || report->sig.output_count > PORT_MAX)
                abort();
            report_free(report);
        } else if (!error.message[0])
            abort();
        if (setup_from_json(json, &setup, &error) == DPI_OK)
            setup_free(&setup);
    }
    free(report);
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    words(data, size);
    messages(data, size);
    return 0;
}
