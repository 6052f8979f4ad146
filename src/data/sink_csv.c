/* CSV: RFC 4180, but with LF. */
#include "data/sink_kind.h"

#include <math.h>
#include <string.h>

static void add_field(sink *s, const char *text)
{
    if (!strpbrk(text, ",\"\r\n")) {
        text_add(&s->buffer, ",%s", text);
        return;
    }
    text_add(&s->buffer, ",\"");
    for (const char *c = text; *c; c++)
        text_add_bytes(&s->buffer, *c == '"' ? "\"\"" : c, *c == '"' ? 2 : 1);
    text_add(&s->buffer, "\"");
}

static void csv_header(sink *s)
{
    text_add(&s->buffer, s->names ? "row,name" : "row");
    for (size_t i = 1; i <= s->top; i++)
        s->top == 1 ? text_add(&s->buffer, ",class,score") : text_add(&s->buffer, ",class%zu,score%zu", i, i);
    text_add(&s->buffer, "\n");
}

static void csv_row(sink *s, uint64_t row, const char *name, const sink_top *best)
{
    text_add(&s->buffer, "%llu", (unsigned long long)row);
    if (name)
        add_field(s, name);
    for (size_t i = 0; i < s->top; i++) {
        if (s->labels && best[i].class_index < s->label_count)
            add_field(s, s->labels[best[i].class_index]);
        else
            text_add(&s->buffer, ",%u", best[i].class_index);
        text_add(&s->buffer, ",");
        if (isnan(best[i].value))
            text_add(&s->buffer, "nan"); /* without the sign that it may have */
        else
            sink_text_score(s, best[i].value);
    }
    text_add(&s->buffer, "\n");
}

const sink_format sink_csv = {.header = csv_header, .row = csv_row};
