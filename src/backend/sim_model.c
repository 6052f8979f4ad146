#include "backend/sim.h"

#include "base/text.h"

#include <stdlib.h>
#include <string.h>

#define MAX_WORDS (DPI_MAX_RANK + 4)
#define MAX_LINE  1024

static bool set_number(double *field, const char *value)
{
    double v;
    if (!text_to_double(value, &v) || v < 0 || v > 1e12)
        return false;
    *field = v;
    return true;
}

static bool set_flag(bool *field, const char *value)
{
    uint64_t v;
    if (!text_to_u64(value, 0, 1, &v))
        return false;
    *field = v;
    return true;
}

static bool set_poison_how(sim_model *m, const char *value)
{
    static const char *const names[] = {"die", "hang", "fail"};
    for (int i = 0; i < 3; i++)
        if (strcmp(value, names[i]) == 0) {
            m->poison_how = (sim_poison)i;
            return true;
        }
    return false;
}

static bool set_touch(sim_model *m, const char *value)
{
    static const char *const names[] = {"all", "ends", "none"};
    for (int i = 0; i < 3; i++)
        if (strcmp(value, names[i]) == 0) {
            m->touch = (sim_touch)i;
            return true;
        }
    return false;
}

static bool set_faults(sim_model *m, const char *value)
{
    if (strlen(value) >= sizeof m->faults)
        return false;
    strcpy(m->faults, value);
    sim_model scratch = *m;
    return sim_plan_generation(&scratch, 0);
}

/* "G:KEY=VALUE" */
static bool plan_fault(sim_model *m, char *text, uint32_t generation)
{
    char *key = strchr(text, ':'), *value = key ? strchr(key, '=') : NULL;
    uint64_t of;
    if (!value)
        return false;
    *key++ = *value++ = 0;
    sim_model scratch = *m;
    return text_to_u64(text, 1, UINT32_MAX, &of) && backend_lists(SIM_FAULTS, key) &&
           sim_model_set(of == generation ? m : &scratch, key, value);
}

bool sim_plan_generation(sim_model *m, uint32_t generation)
{
    char text[SIM_FAULTS_SIZE], *rest = NULL;
    strcpy(text, m->faults);
    for (char *one = strtok_r(text, ",", &rest); one; one = strtok_r(NULL, ",", &rest))
        if (!plan_fault(m, one, generation))
            return false;
    return true;
}

bool sim_model_set(sim_model *m, const char *key, const char *value)
{
    const struct {
        const char *key;
        double *number;
        bool *flag;
        uint64_t *count, least, most;
    } fields[] = {
        {"fixed_us", &m->fixed_us, NULL, NULL, 0, 0},
        {"row_us", &m->row_us, NULL, NULL, 0, 0},
        {"jitter_us", &m->jitter_us, NULL, NULL, 0, 0},
        {"bandwidth_mb_s", &m->bandwidth_mb_s, NULL, NULL, 0, 0},
        {"copy_in_mb_s", &m->copy_in_mb_s, NULL, NULL, 0, 0},
        {"copy_out_mb_s", &m->copy_out_mb_s, NULL, NULL, 0, 0},
        {"compile_ms", &m->compile_ms, NULL, NULL, 0, 0},
        {"busy", NULL, &m->busy, NULL, 0, 0},
        {"rows_depend", NULL, &m->rows_depend, NULL, 0, 0},
        {"data_sized", NULL, &m->data_sized, NULL, 0, 0},
        {"size_bits", NULL, &m->size_bits, NULL, 0, 0},
        {"hang_compile", NULL, &m->hang_compile, NULL, 0, 0},
        {"die_compile", NULL, &m->die_compile, NULL, 0, 0},
        {"fail_compile", NULL, &m->fail_compile, NULL, 0, 0},
        {"hang_probe", NULL, &m->hang_probe, NULL, 0, 0},
        {"die_probe", NULL, &m->die_probe, NULL, 0, 0},
        {"hang_ready", NULL, &m->hang_ready, NULL, 0, 0},
        {"die_ready", NULL, &m->die_ready, NULL, 0, 0},
        {"hang_shutdown", NULL, &m->hang_shutdown, NULL, 0, 0},
        {"die_shutdown", NULL, &m->die_shutdown, NULL, 0, 0},
        {"fault_in_enqueue", NULL, &m->fault_in_enqueue, NULL, 0, 0},
        {"depth", NULL, NULL, &m->depth, 1, BACKEND_MAX_DEPTH},
        {"die_at_slice", NULL, NULL, &m->die_at_slice, 0, INT64_MAX},
        {"exit_at_slice", NULL, NULL, &m->exit_at_slice, 0, INT64_MAX},
        {"hang_at_slice", NULL, NULL, &m->hang_at_slice, 0, INT64_MAX},
        {"fail_at_slice", NULL, NULL, &m->fail_at_slice, 0, INT64_MAX},
        {"spoil_at_slice", NULL, NULL, &m->spoil_at_slice, 0, INT64_MAX},
        {"rage_at_slice", NULL, NULL, &m->rage_at_slice, 0, INT64_MAX},
        {"babble_at_slice", NULL, NULL, &m->babble_at_slice, 0, INT64_MAX},
        {"escape_at_slice", NULL, NULL, &m->escape_at_slice, 0, INT64_MAX},
        {"no_memory_at_slice", NULL, NULL, &m->no_memory_at_slice, 0, INT64_MAX},
        {"wrong_size_at_slice", NULL, NULL, &m->wrong_size_at_slice, 0, INT64_MAX},
        {"slow_at_slice", NULL, NULL, &m->slow_at_slice, 0, INT64_MAX},
        {"slow_us", &m->slow_us, NULL, NULL, 0, 0},
        {"die_at_step", NULL, NULL, &m->die_at_step, 0, STEP_RUNG},
        {"fault_generations", NULL, NULL, &m->fault_generations, 0, INT64_MAX},
        {"poison", &m->poison, NULL, NULL, 0, 0},
        {"signal", NULL, NULL, &m->signal, 0, 64},
        {"most_rows", NULL, NULL, &m->most_rows, 0, INT64_MAX},
    };
    if (strcmp(key, "touch") == 0)
        return set_touch(m, value);
    if (strcmp(key, "poison_how") == 0)
        return set_poison_how(m, value);
    if (strcmp(key, "faults") == 0)
        return set_faults(m, value);
    m->has_poison |= strcmp(key, "poison") == 0;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        if (strcmp(key, fields[i].key) != 0)
            continue;
        return fields[i].number ? set_number(fields[i].number, value)
               : fields[i].flag ? set_flag(fields[i].flag, value)
                                : text_to_u64(value, fields[i].least, fields[i].most, fields[i].count);
    }
    return false;
}

/* "input.1" */
static bool parse_axis_reference(const sim_model *m, const char *word, sim_axis *axis)
{
    const char *dot = strrchr(word, '.');
    uint64_t number;
    if (!dot || !text_to_u64(dot + 1, 1, DPI_MAX_RANK - 1, &number))
        return false;
    for (size_t i = 0; i < m->sig.input_count; i++) {
        const port *in = &m->sig.inputs[i];
        if (strlen(in->name) == (size_t)(dot - word) && strncmp(in->name, word, (size_t)(dot - word)) == 0 &&
            (int)number < in->rank) {
            *axis = (sim_axis){.input = (int)i, .axis = (int)number};
            return true;
        }
    }
    return false;
}

/* input|output NAME DTYPE AXES... */
static bool parse_port(sim_model *m, char **words, int count)
{
    bool output = strcmp(words[0], "output") == 0;
    size_t *ports = output ? &m->sig.output_count : &m->sig.input_count;
    if (count < 4 || *ports >= PORT_MAX || strlen(words[1]) >= PORT_NAME_SIZE)
        return false;
    port *p = output ? &m->sig.outputs[*ports] : &m->sig.inputs[*ports];
    strcpy(p->name, words[1]);
    p->dtype = dtype_by_name(words[2]);
    bool broadcast = !output && strcmp(words[3], "broadcast") == 0;
    int first = broadcast ? 4 : 3;
    if (count - first > DPI_MAX_RANK || port_find(output ? m->sig.outputs : m->sig.inputs, *ports, words[1]) >= 0)
        return false;
    m->broadcast[*ports] = output ? m->broadcast[*ports] : broadcast;
    p->rank = count - first;
    for (int i = 0; i < p->rank; i++) {
        const char *word = words[first + i];
        uint64_t extent;
        sim_axis *axis = &m->axes[*ports][i];
        if (output)
            axis->input = -1;
        p->shape[i] = -1;
        if (text_to_u64(word, i == 0 && !broadcast ? 1 : 0, 1ull << 40, &extent))
            p->shape[i] = (int64_t)extent;
        else if (i == 0 && !broadcast ? strcmp(word, "N") != 0
                 : output             ? !parse_axis_reference(m, word, axis)
                                      : strcmp(word, "?") != 0)
            return false;
    }
    ++*ports;
    size_t bytes;
    bool complete = true;
    for (int i = 1; i < p->rank; i++)
        complete &= p->shape[i] >= 0;
    return p->dtype != DPI_DTYPE_NONE &&
           (!complete || p->rank == 0 || shape_row_bytes(p->dtype, p->shape, p->rank, &bytes));
}

static int split_words(char *line, char **words)
{
    int count = 0;
    char *rest = NULL;
    for (char *word = strtok_r(line, " \t\r", &rest); word && *word != '#'; word = strtok_r(NULL, " \t\r", &rest)) {
        if (count == MAX_WORDS)
            return -1;
        words[count++] = word;
    }
    return count;
}

static bool parse_line(sim_model *m, char *line)
{
    char *words[MAX_WORDS];
    int count = split_words(line, words);
    if (count == 0)
        return true;
    if (count > 0 && (strcmp(words[0], "input") == 0 || strcmp(words[0], "output") == 0))
        return parse_port(m, words, count);
    return count == 2 && sim_model_set(m, words[0], words[1]);
}

dpi_status sim_model_parse(const char *data, size_t bytes, const char *name, sim_model *m, dpi_error *error)
{
    memset(m, 0, sizeof *m);
    m->depth = 1;
    int number = 1;
    for (size_t at = 0; at < bytes; number++) {
        const char *end = memchr(data + at, '\n', bytes - at);
        size_t length = end ? (size_t)(end - data) - at : bytes - at;
        char line[MAX_LINE];
        if (length >= sizeof line || memchr(data + at, 0, length))
            return error_set(error, DPI_E_MODEL, "%s, line %d: too long or not text", name, number);
        memcpy(line, data + at, length);
        line[length] = 0;
        if (!parse_line(m, line))
            return error_set(error, DPI_E_MODEL, "%s, line %d: \"%.80s\" is not a statement of a sim model", name,
                             number, line);
        at += length + 1;
    }
    if (!m->sig.input_count || !m->sig.output_count)
        return error_set(error, DPI_E_MODEL, "%s: a sim model needs at least one input and one output line", name);
    return DPI_OK;
}

/* ---- the reference function ------------------------------------------------------------------------------------- */

static uint64_t hash_input(const sim_model *m, size_t i, const void *row, size_t bytes)
{
    if (m->touch == SIM_TOUCH_NONE)
        return 0;
    if (m->touch == SIM_TOUCH_ENDS && bytes)
        return ((const unsigned char *)row)[0] + 256u * ((const unsigned char *)row)[bytes - 1] + i;
    hash128 h = hash_of(row, bytes);
    return h.low + i;
}

void sim_expected_row(const sim_model *m, const void *const *rows, const size_t *row_bytes, size_t output,
                      size_t row_elements, void *result)
{
    uint64_t key = 0;
    for (size_t i = 0; i < m->sig.input_count; i++)
        key = hash_mix64(key, hash_input(m, i, rows[i], row_bytes[i]));
    dpi_dtype dtype = m->sig.outputs[output].dtype;
    for (size_t e = 0; e < row_elements; e++) {
        uint64_t bits = hash_mix64(key, output << 32 | e) >> 20;
        /* Exact in every dtype: multiples of 1/16 in [-8, 8) for floats, 0..99 for integers. */
        double value = dtype_is_float(dtype) ? (double)(bits % 256) / 16.0 - 8.0
                       : dtype == DPI_BOOL   ? (double)(bits & 1)
                                             : (double)(bits % 100);
        dtype_set(dtype, result, e, value);
    }
}
