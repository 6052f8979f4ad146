#include "backend/conformance_workers.h"

int main(void) { return conformance_workers_main(&conformance_kit_aoti, "DPINFER_TORCH_LIBRARY", "torch/none"); }
