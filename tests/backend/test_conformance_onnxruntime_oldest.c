#include "backend/conformance.h"

int main(void)
{
    conformance_kit kit = conformance_kit_onnxruntime;
    kit.oldest = "onnxruntime/capi/libonnxruntime.so.*";
    return conformance_main(&kit);
}
