// The matmul entries of the AMX table.
#pragma once
#include "cpu/linear.h"

namespace pyllm {
namespace {

inline size_t amx_prepared_bytes(Format f, int m, int64_t k) { return prepared_bytes(f, m, k); }
inline void amx_prepare_rows(Format f, const float* x, int64_t x_ld, int m, int64_t k, int row0, int row1, void* out) {
  prepare_rows(f, x, x_ld, m, k, row0, row1, out);
}
inline size_t amx_linear_scratch(const LinearArgs& a, int panels) { return linear_scratch(a, panels); }
inline void amx_linear_panels(const LinearArgs& a, int p0, int p1, void* scratch) { linear_panels(a, p0, p1, scratch); }

}  // namespace
}  // namespace pyllm
