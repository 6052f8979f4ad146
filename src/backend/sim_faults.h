/* The faults that a sim model plans: see sim.h. */
#ifndef DPI_BACKEND_SIM_FAULTS_H
#define DPI_BACKEND_SIM_FAULTS_H

#include "backend/sim.h"

/* The planned faults of a slice (0: one of the probe's): may not return. */
dpi_status sim_strike(const sim_model *m, const backend_call *call, uint64_t slice, dpi_error *error);
/* Those of a stage of the worker's life: may not return. */
typedef enum sim_stage { SIM_COMPILING, SIM_PROBING, SIM_READY, SIM_LEAVING } sim_stage;
dpi_status sim_strike_stage(const sim_model *m, sim_stage stage, dpi_error *error);
/* Dies at the planned step once the planned slice has been claimed. */
void sim_die_at_step(const sim_model *m, uint64_t claimed, backend_step step);
/* What the slice takes longer, by plan. */
double sim_slowness_us(const sim_model *m, uint64_t slice);
/* Takes the faults out of a model. */
void sim_without_faults(sim_model *m);

#endif
