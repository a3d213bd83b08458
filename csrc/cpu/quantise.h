// Choice of scales and codes for int8 and int4 weights, 16 outputs at a time. Include a vec_*.h first. Everything is
// float32 without fused multiply-adds, element by element: the same bits from every kernel table.
#pragma once
#include "kernels.h"

namespace pyllm {
namespace {

// 1 / x, or 0 where x is 0, infinite or NaN.
PYLLM_INLINE F16 inverse(const F16& x) { return f_choose_less(f_zero(), f_abs(x), f_div(f_set(1.0f), x), f_zero()); }

// The code of w as a float: rint(w * inv) within [low, high]; `low` for NaN.
PYLLM_INLINE F16 code_of(const F16& w, const F16& inv, float low, float high) {
  return f_min(f_max(f_round(f_mul(w, inv)), f_set(low)), f_set(high));
}

// Scale, a float16, of a group of int4 weights w[group][16].
PYLLM_INLINE F16 int4_scale(const float* w, int64_t group) {
  F16 top = f_zero(), bad = f_zero();
  for (int64_t i = 0; i < group; ++i) {
    const F16 x = f_load(w + 16 * i);
    top = f_choose_less(f_abs(top), f_abs(x), x, top);
    bad = f_add(bad, f_mul(x, f_zero()));
  }
  return f_add(f_round_f16(f_mul(top, f_set(-0.125f))), bad);
}

// What the scale of an int8 row is chosen from.
struct Int8Search {
  F16 top, bad;
};
PYLLM_INLINE void int8_see(Int8Search& s, const F16& x) {
  s.top = f_max(f_abs(x), s.top);
  s.bad = f_add(s.bad, f_mul(x, f_zero()));
}

}  // namespace
}  // namespace pyllm
