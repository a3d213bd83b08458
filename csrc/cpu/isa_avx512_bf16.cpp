// The table of kernels for AVX-512 with VNNI and BF16: bfloat16 products in VDPBF16PS order, twice as fast.
// clang-format off: the vector type comes first
#define PYLLM_BF16_DOT 1
#include "cpu/vec_avx512.h"
// clang-format on
#include "cpu/table.h"

PYLLM_TABLE(avx512_bf16, )
