// The AMX table on emulated tiles: `kernels_amx_emulated`, for any CPU with AVX-512.
#include "emulated/tiles.h"

#define kernels_amx kernels_amx_emulated
#include "cpu/isa_amx.cpp"
