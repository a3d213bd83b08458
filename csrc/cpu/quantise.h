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

// --- int4. The weight of the largest magnitude, `top`, gets the code -8, so scales may be negative; what varies is how
// far beyond -8 it would lie, i.e. how much of the range is given up for finer steps. On Gaussian weights the best of
// these leaves 17 % less error (root mean square) than top / 7, 6 % less than top / -8; twice as many gain 0.1 % more.
constexpr int kLevels = 16;
constexpr float kFirstLevel = 7.0f, kLevelStep = 0.25f;

// For t[group][16] with |t| <= 1: (sum t q)^2 / sum q^2 is what the codes q = rint(t * level) explain of the sum of t^2
// under their best scale, sum t q / sum q^2. The scale whose codes explain most, into `scale`.
__attribute__((noinline)) void best_level(const float* t, int64_t group, F16& scale) {
  F16 most = f_zero();
  for (int level = 0; level < kLevels; level += 2) {
    F16 tq[2] = {f_zero(), f_zero()}, qq[2] = {f_zero(), f_zero()};
    const F16 inv[2] = {f_set(kFirstLevel + kLevelStep * float(level)),
                        f_set(kFirstLevel + kLevelStep * float(level + 1))};
    for (int64_t i = 0; i < group; ++i) {
      const F16 x = f_load(t + 16 * i);
      for (int c = 0; c < 2; ++c) {
        const F16 q = code_of(x, inv[c], -8.0f, 7.0f);
        tq[c] = f_add(tq[c], f_mul(x, q));
        qq[c] = f_add(qq[c], f_mul(q, q));
      }
    }
    for (int c = 0; c < 2; ++c) {
      const F16 fit = f_div(tq[c], qq[c]), explained = f_mul(tq[c], fit);
      scale = f_choose_less(most, explained, fit, scale);
      most = f_choose_less(most, explained, explained, most);
    }
  }
}

// The squared error, in units of top, that a scale leaves over w[group][16] = top * t, and the best scale of its codes.
__attribute__((noinline)) void try_scale(const float* w, const float* t, int64_t group, const F16& scale,
                                         const F16& unit, F16& error, F16& fit) {
  const F16 inv = inverse(scale), step = f_mul(scale, unit);
  F16 tq = f_zero(), qq = f_zero();
  error = f_zero();
  for (int64_t i = 0; i < group; ++i) {
    const F16 x = f_load(t + 16 * i), q = code_of(f_load(w + 16 * i), inv, -8.0f, 7.0f);
    const F16 off = f_sub(x, f_mul(q, step));
    error = f_add(error, f_mul(off, off));
    tq = f_add(tq, f_mul(x, q));
    qq = f_add(qq, f_mul(q, q));
  }
  fit = f_div(tq, qq);
}

// Scale, a float16, of a group of int4 weights w[group][16], into `scale`: of top / 7, top / -8 and the best level,
// then once more fitted to its codes, the one that leaves the least error. NaN where a weight is infinite or NaN.
__attribute__((noinline)) void int4_scale(const float* w, int64_t group, F16& scale) {
  alignas(64) float t[128 * 16];
  F16 top = f_zero(), bad = f_zero(), error, fit = f_set(0.125f);
  for (int64_t i = 0; i < group; ++i) {
    const F16 x = f_load(w + 16 * i);
    top = f_choose_less(f_abs(top), f_abs(x), x, top);
    bad = f_add(bad, f_mul(x, f_zero()));
  }
  top = f_neg(top);
  const F16 unit = inverse(top);
  for (int64_t i = 0; i < group; ++i) f_store(t + 16 * i, f_mul(f_load(w + 16 * i), unit));
  scale = f_round_f16(f_mul(top, fit));
  F16 least, unused;
  try_scale(w, t, group, scale, unit, least, unused);
  best_level(t, group, fit);
  const F16 seventh = f_div(f_set(1.0f), f_set(-7.0f));
  for (int i = 0; i < 3; ++i) {
    const F16 tried = f_round_f16(f_mul(top, i == 2 ? seventh : fit));
    try_scale(w, t, group, tried, unit, error, fit);
    scale = f_choose_less(error, least, tried, scale);
    least = f_choose_less(error, least, error, least);
  }
  scale = f_add(scale, bad);
}

// --- int8: a row's largest magnitude / 127, or a part of that which leaves less error. Rows without outliers keep all.
constexpr int kClips = 6;
constexpr float kClip[kClips] = {1.0f, 0.9f, 0.8f, 0.7f, 0.6f, 0.5f};
constexpr float kSmallest = 1e-30f;  // rows below are zeros: the inverse of their scale is no float

struct Int8Search {
  F16 top, bad, unit, scale[kClips], inv[kClips], error[kClips];
};
PYLLM_INLINE void int8_see(Int8Search& s, const F16& x) {
  s.top = f_max(f_abs(x), s.top);
  s.bad = f_add(s.bad, f_mul(x, f_zero()));
}
PYLLM_INLINE void int8_begin(Int8Search& s) {
  const F16 all = f_choose_less(s.top, f_set(kSmallest), f_zero(), f_div(s.top, f_set(127.0f)));
  s.unit = inverse(all);
  for (int i = 0; i < kClips; ++i) {
    s.scale[i] = f_mul(all, f_set(kClip[i]));
    s.inv[i] = inverse(s.scale[i]);
    s.error[i] = f_zero();
  }
}
// Adds the squared errors of 16 k, in units of the largest scale.
__attribute__((noinline)) void int8_try(Int8Search& s, const F16 (&x)[16]) {
  for (int i = 0; i < kClips; ++i) {
    const F16 inv = s.inv[i];
    F16 error = f_zero();
    for (int j = 0; j < 16; ++j) {
      const F16 q = code_of(x[j], inv, -127.0f, 127.0f);
      const F16 off = f_sub(f_mul(x[j], s.unit), f_mul(q, f_set(kClip[i])));
      error = f_add(error, f_mul(off, off));
    }
    s.error[i] = f_add(s.error[i], error);
  }
}
PYLLM_INLINE F16 int8_scale(const Int8Search& s) {
  F16 scale = s.scale[0], least = s.error[0];
  for (int i = 1; i < kClips; ++i) {
    scale = f_choose_less(s.error[i], least, s.scale[i], scale);
    least = f_choose_less(s.error[i], least, s.error[i], least);
  }
  return f_add(scale, s.bad);
}

}  // namespace
}  // namespace pyllm
