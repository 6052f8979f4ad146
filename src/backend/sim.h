/*
 * The simulated backend: no library, no network, every cost and fault by number. For tests and scaling studies, and
 * the template for a new backend.
 *
 * Its model is a small text file, one statement a line, '#' begins a comment:
 *     input NAME DTYPE N 3 224 224     row axis N or a number (fixed batch); `?` for an axis that the data decides;
 *                                      no row axis but `broadcast` in its place: the same for every row
 *     output NAME DTYPE N 10           an axis may be NAME.AXIS: copied from that input's axis
 *     KEY VALUE                        one of the keys below
 * The same keys are the backend's options (--backend-option KEY=VALUE), which win over the file.
 *
 *     touch all|ends|none     how much of each input row is read
 *     fixed_us, row_us        cost of a slice: fixed + rows * row, slept to an absolute deadline
 *     jitter_us               a pseudo-random part on top, uniform
 *     bandwidth_mb_s          cost per byte of input on top
 *     copy_in_mb_s, copy_out_mb_s   rates at which the rows of the inputs come in and those of the outputs go out,
 *                             before and after the costs above; 0: in no time
 *     depth N                 calls in flight, 1 (the default) to 8. Above 1 the device is like a GPU with three
 *                             streams: copy in, compute and copy out each serve one call after another, and those of
 *                             different calls overlap. enqueue returns at once; wait sleeps until its call has been
 *                             copied out and only then reads the inputs and writes the outputs (`touch none` or `ends`
 *                             where that must not take the host's time).
 *     busy 1                  burns the core instead of sleeping
 *     compile_ms              how long opening takes
 *     rows_depend 1           each row's result depends on its neighbours (such a model is refused by the probe)
 *     data_sized 1            the output size depends on data (refused by infer_shapes)
 *     size_bits 1             the result depends on the slice size in its last bits
 *     most_rows N             larger slices fail, as one that does not fit in a device's memory
 *     die_at_slice K, signal S, exit_at_slice K, hang_at_slice K, fail_at_slice K
 *                             faults at the K-th slice (from 1) that this worker computes; the probe's
 *                             calls do not count (backend.ready). At a depth above 1 they strike in the slice's
 *                             wait, when its time is up and its outputs are not written yet
 *     no_memory_at_slice K    fails for lack of memory (DPI_E_SYSTEM)
 *     wrong_size_at_slice K   the outputs have a row too many, which is the engine's failure (DPI_E_ENGINE)
 *     slow_at_slice K, slow_us U
 *                             from the K-th slice on each takes U longer
 *     fault_in_enqueue 1      they strike in its enqueue instead
 *     die_compile 1, hang_compile 1, fail_compile 1
 *                             faults while the model is compiled (fail: DPI_E_MODEL)
 *     die_probe 1, hang_probe 1, die_ready 1, hang_ready 1
 *                             at the first call of the probe; behind its last, before the worker says that it is ready
 *     die_shutdown 1, hang_shutdown 1
 *                             when the session closes and the worker is about to leave
 *     die_at_step S           die_at_slice strikes at this step of the slice's life instead (backend_step, 1 to 7)
 *     spoil_at_slice K        writes garbage over the claim words of all batches and over its own page, and goes on
 *     rage_at_slice K         writes garbage to all memory that it can reach: whatever its descriptors, or the files
 *                             behind them opened anew, allow (maps, writes, sizes, holes, seals), for a tenth of a
 *                             second, and goes on. What it has reported and nobody has taken over may be lost with it
 *     babble_at_slice K       writes garbage into the control socket, and goes on
 *     escape_at_slice K       tries what a sandbox refuses (a program, a process, a socket, a signal, a file), fails
 *                             with what was not refused, and goes on where all was
 *     poison V, poison_how die|hang|fail
 *                             a slice with a row whose first element of the first input is V dies (of `signal`), hangs
 *                             or fails
 *     fault_generations G     only the first G generations of the worker have these faults; 0: all
 *     faults G:KEY=VALUE,...  faults of the G-th generation alone, beside these
 * Each fault is told on standard error as it strikes: "sim: dying at slice 3 as planned".
 */
#ifndef DPI_BACKEND_SIM_H
#define DPI_BACKEND_SIM_H

#include "backend/backend.h"

typedef enum sim_touch { SIM_TOUCH_ALL, SIM_TOUCH_ENDS, SIM_TOUCH_NONE } sim_touch;

#define SIM_FAULTS_SIZE 256 /* of the text of `faults` */

typedef enum sim_poison { SIM_POISON_DIE, SIM_POISON_HANG, SIM_POISON_FAIL } sim_poison;

/* Where an output axis comes from when it is not a number. */
typedef struct sim_axis {
    int input, axis; /* input -1: a number */
} sim_axis;

typedef struct sim_model {
    signature sig;
    bool broadcast[PORT_MAX];
    sim_axis axes[PORT_MAX][DPI_MAX_RANK]; /* of the outputs */
    sim_touch touch;
    double fixed_us, row_us, jitter_us, bandwidth_mb_s, copy_in_mb_s, copy_out_mb_s, compile_ms;
    bool busy, rows_depend, data_sized, size_bits, fault_in_enqueue;
    bool hang_compile, die_compile, fail_compile, hang_probe, die_probe, hang_ready, die_ready, hang_shutdown,
        die_shutdown;
    uint64_t depth, die_at_slice, exit_at_slice, hang_at_slice, fail_at_slice, signal, most_rows;
    uint64_t die_at_step, spoil_at_slice, rage_at_slice, babble_at_slice, escape_at_slice, fault_generations;
    uint64_t no_memory_at_slice, wrong_size_at_slice, slow_at_slice;
    double slow_us, poison;
    bool has_poison;
    sim_poison poison_how;
    char faults[SIM_FAULTS_SIZE]; /* of single generations: sim_plan_generation */
} sim_model;

#define SIM_OPTIONS                                                                                                    \
    "touch fixed_us row_us jitter_us bandwidth_mb_s copy_in_mb_s copy_out_mb_s depth busy compile_ms rows_depend "     \
    "data_sized size_bits most_rows fault_generations faults " SIM_FAULTS
#define SIM_FAULTS                                                                                                     \
    "die_at_slice exit_at_slice hang_at_slice fail_at_slice no_memory_at_slice wrong_size_at_slice slow_at_slice "     \
    "slow_us fault_in_enqueue signal hang_compile die_compile fail_compile hang_probe die_probe hang_ready "           \
    "die_ready hang_shutdown die_shutdown die_at_step spoil_at_slice rage_at_slice babble_at_slice escape_at_slice "   \
    "poison poison_how"

/* Parses an untrusted model of `bytes` bytes; `name` is for messages. DPI_E_MODEL names the line. */
dpi_status sim_model_parse(const char *data, size_t bytes, const char *name, sim_model *model, dpi_error *error);
/* One option; false when the value does not fit the key. */
bool sim_model_set(sim_model *model, const char *key, const char *value);
/* What `faults` plans for this generation is set; false when that text is not one of its form (whatever the
 * generation). */
bool sim_plan_generation(sim_model *model, uint32_t generation);

/* The reference: what the model computes for one row (docs: a hash of the bytes that `touch` covers, mapped to small
 * exact numbers). rows[i] points at the row of input i (the whole array for a broadcast input), row_bytes[i] its size.
 * Fills row_elements elements of output `output`. */
void sim_expected_row(const sim_model *model, const void *const *rows, const size_t *row_bytes, size_t output,
                      size_t row_elements, void *result);

#endif
