#include "backend/conformance.h"

int main(void)
{
    conformance_kit kit = conformance_kit_openvino;
    kit.oldest = "openvino/libs/libopenvino_c.so.*";
    return conformance_main(&kit);
}
