// The table of kernels for any architecture: the fallback, and what the other tables are compared with.
// clang-format off: the vector type comes first
#include "cpu/vec_scalar.h"
// clang-format on
#include "cpu/attention.h"
#include "cpu/linear.h"
#include "cpu/pack_panel.h"
#include "cpu/rows.h"
#include "kernels.h"

namespace pyllm {

const Kernels kernels_scalar = {
    "scalar", prepared_bytes, prepare_rows, linear_scratch, linear_panels, pack_panel_rows, layer_norm,     rms_norm,
    activate, gate,           softmax,      summarise,      rope,          kv_append,       attend_scratch, attend,
};

}  // namespace pyllm
