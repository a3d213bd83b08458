// The table of kernels for AMX (tile, bf16) with AVX-512 and its BF16: tiles for bf16 matmuls and attention of more
// than a few rows, the AVX-512 kernels for the rest.
// clang-format off: the vector type comes first
#include "cpu/vec_avx512.h"
// clang-format on
#include "cpu/amx_attention.h"
#include "cpu/amx_linear.h"
#include "cpu/attention.h"
#include "cpu/linear.h"
#include "cpu/pack_panel.h"
#include "cpu/rows.h"
#include "kernels.h"

namespace pyllm {

const Kernels kernels_amx = {
    "amx",
    amx_prepared_bytes,
    amx_prepare_rows,
    amx_linear_scratch,
    amx_linear_panels,
    pack_panel_rows,
    layer_norm,
    rms_norm,
    activate,
    gate,
    softmax,
    summarise,
    rope,
    kv_append,
    attend_scratch,
    amx_attend,
};

}  // namespace pyllm
