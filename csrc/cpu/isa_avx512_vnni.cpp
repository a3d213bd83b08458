// The table of kernels for AVX-512 with VNNI.
// clang-format off: the vector type comes first
#include "cpu/vec_avx512.h"
// clang-format on
#include "cpu/table.h"

PYLLM_TABLE(avx512_vnni, )
