#include "backend/conformance_workers.h"

int main(void)
{
    return conformance_workers_main(&conformance_kit_openvino, "DPINFER_OPENVINO_LIBRARY",
                                    "openvino/libs/libopenvino_c.so.*");
}
