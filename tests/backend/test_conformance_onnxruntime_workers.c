#include "backend/conformance_workers.h"

int main(void)
{
    return conformance_workers_main(&conformance_kit_onnxruntime, "DPINFER_ONNXRUNTIME_LIBRARY",
                                    "onnxruntime/capi/libonnxruntime.so.*");
}
