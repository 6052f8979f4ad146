/* The text of a sim model is untrusted: parse it, and compute a small row of whatever it describes. */
#include "backend/sim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_ports(const port *ports, size_t count)
{
    assert(count >= 1 && count <= PORT_MAX);
    for (size_t i = 0; i < count; i++) {
        assert(memchr(ports[i].name, 0, sizeof ports[i].name) && ports[i].name[0]);
        assert(dpi_dtype_size(ports[i].dtype) > 0);
        assert(ports[i].rank >= 0 && ports[i].rank <= DPI_MAX_RANK);
        for (int k = 0; k < ports[i].rank; k++)
            assert(ports[i].shape[k] >= -1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    sim_model *m = malloc(sizeof *m);
    dpi_error error = {0};
    dpi_status status = m ? sim_model_parse((const char *)data, size, "fuzz.sim", m, &error) : DPI_E_SYSTEM;
    if (status == DPI_OK) {
        check_ports(m->sig.inputs, m->sig.input_count);
        check_ports(m->sig.outputs, m->sig.output_count);
        const void *rows[PORT_MAX];
        size_t row_bytes[PORT_MAX];
        for (size_t i = 0; i < m->sig.input_count; i++) {
            rows[i] = data;
            row_bytes[i] = size;
        }
        for (size_t o = 0; o < m->sig.output_count; o++) {
            char result[4 * 8];
            sim_expected_row(m, rows, row_bytes, o, 4, result);
            for (int k = 0; k < m->sig.outputs[o].rank; k++) {
                sim_axis from = m->axes[o][k];
                assert(from.input < (int)m->sig.input_count);
                assert(from.input < 0 || from.axis < m->sig.inputs[from.input].rank);
            }
        }
    } else
        assert(error.status == status && error.message[0]);
    free(m);
    return 0;
}
