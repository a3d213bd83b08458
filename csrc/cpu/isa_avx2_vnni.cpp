// The table of kernels for AVX2 with AVX-VNNI.
// clang-format off: the vector type comes first
#include "cpu/vec_avx2.h"
// clang-format on
#include "cpu/table.h"

PYLLM_TABLE(avx2_vnni, )
