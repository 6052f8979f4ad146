/* JSON lines: one object for each row. */
#include "data/sink_kind.h"

#include <math.h>

static void jsonl_row(sink *s, uint64_t row, const char *name, const sink_top *best)
{
    text_add(&s->buffer, "{\"row\": %llu, ", (unsigned long long)row);
    if (name) {
        text_add(&s->buffer, "\"name\": ");
        text_add_json(&s->buffer, name);
        text_add(&s->buffer, ", ");
    }
    text_add(&s->buffer, "\"top\": [");
    for (size_t i = 0; i < s->top; i++) {
        text_add(&s->buffer, "%s{\"class\": %u, ", i ? ", " : "", best[i].class_index);
        if (s->labels && best[i].class_index < s->label_count) {
            text_add(&s->buffer, "\"label\": ");
            text_add_json(&s->buffer, s->labels[best[i].class_index]);
            text_add(&s->buffer, ", ");
        }
        text_add(&s->buffer, "\"score\": ");
        if (isfinite(best[i].value))
            sink_text_score(s, best[i].value);
        else
            text_add(&s->buffer, "null");
        text_add(&s->buffer, "}");
    }
    text_add(&s->buffer, "]}\n");
}

const sink_format sink_jsonl = {.row = jsonl_row};
