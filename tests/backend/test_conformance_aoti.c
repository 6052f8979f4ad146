#include "backend/conformance.h"

int main(void) { return conformance_main(&conformance_kit_aoti); }
