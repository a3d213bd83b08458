// The table of kernels for AVX-512 (F, BW, VL, DQ).
// clang-format off: the vector type comes first
#include "cpu/vec_avx512.h"
// clang-format on
#include "cpu/attention.h"
#include "cpu/linear.h"
#include "cpu/pack_panel.h"
#include "cpu/rows.h"
#include "kernels.h"

namespace pyllm {

const Kernels kernels_avx512 = {
    "avx512", prepared_bytes, prepare_rows, linear_scratch, linear_panels, pack_panel_rows, layer_norm,     rms_norm,
    activate, gate,           softmax,      summarise,      rope,          kv_append,       attend_scratch, attend,
};

}  // namespace pyllm
