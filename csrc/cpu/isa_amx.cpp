// The table of kernels for AMX (tile, bf16, int8) with AVX-512, VNNI and BF16: tiles for matmuls and attention of more
// than a few rows, the AVX-512 kernels for the rest.
// clang-format off: the vector type comes first
#include "cpu/vec_avx512.h"
// clang-format on
#include "cpu/amx_attention.h"
#include "cpu/amx_linear.h"
#include "cpu/table.h"

PYLLM_TABLE(amx, amx_)
