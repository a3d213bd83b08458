// What follows the sums of a matmul: bias, activation, gate, cap, scale and residual, on the way into y.
#pragma once
#include "cpu/math.h"
#include "kernels.h"

namespace pyllm {
namespace {

PYLLM_INLINE F16 cap_and_scale(const LinearArgs& a, F16 s) {
  if (a.softcap > 0) s = f_mul(f_set(a.softcap), f_tanh(f_div(s, f_set(a.softcap))));
  return a.scale != 1.0f ? f_mul(f_set(a.scale), s) : s;
}
// The end of 32 outputs of one row: columns [column, column + 32) of the packed order, sums s0 and s1. Bias, activation
// (gated: 16 gate and 16 up columns give 16 outputs), cap, scale, residual, in this order.
PYLLM_INLINE void finish_columns(const LinearArgs& a, int64_t row, int64_t column, F16 s0, F16 s1) {
  if (a.bias) {
    s0 = f_add(s0, f_load(a.bias + column));
    s1 = f_add(s1, f_load(a.bias + column + 16));
  }
  s0 = f_activation(a.activation, s0);
  const int64_t out = a.gated ? column / 2 : column;
  float* y = a.y + row * a.y_ld + out;
  const float* residual = a.residual ? a.residual + row * a.residual_ld + out : nullptr;
  if (a.gated) {
    s0 = cap_and_scale(a, f_mul(s0, s1));
    f_store(y, residual ? f_add(f_load(residual), s0) : s0);
    return;
  }
  s1 = cap_and_scale(a, f_activation(a.activation, s1));
  s0 = cap_and_scale(a, s0);
  f_store(y, residual ? f_add(f_load(residual), s0) : s0);
  f_store(y + 16, residual ? f_add(f_load(residual + 16), s1) : s1);
}

void finish_rows(const LinearArgs& a, int panel, int row0, int rows, const float* c) {
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < kPanel; i += 32) {
      const float* sums = c + r * kPanel + i;
      finish_columns(a, row0 + r, int64_t(panel) * kPanel + i, f_load(sums), f_load(sums + 16));
    }
}

}  // namespace
}  // namespace pyllm
