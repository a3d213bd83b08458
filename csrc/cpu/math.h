// Elementary functions and activations over F16, the same operations on every instruction set. Include a vec_*.h first.
//
// Relative errors are those of fp32 arithmetic (a few units in the last place); bounds stand beside each function.
#pragma once
#include "kernels.h"

namespace pyllm {
namespace {

// e^x within 2e-7 relative. 0 from -inf to about -87 (denormals are flushed by the caller's MXCSR), inf above 88.72,
// NaN stays NaN. x = n ln 2 + r with ln 2 in two parts (Cody and Waite), then 2^n times Cephes' polynomial for e^r.
PYLLM_INLINE F16 f_exp(const F16& x) {
  const F16 bounded = f_max(f_set(-105.0f), f_min(f_set(89.0f), x));  // NaN passes: it is the second operand
  const F16 n = f_round(f_mul(bounded, f_set(1.44269504f)));
  const F16 r = f_fnma(n, f_set(-2.12194440e-4f), f_fnma(n, f_set(0.693359375f), bounded));
  F16 p = f_fma(f_set(1.9875691500e-4f), r, f_set(1.3981999507e-3f));
  p = f_fma(p, r, f_set(8.3334519073e-3f));
  p = f_fma(p, r, f_set(4.1665795894e-2f));
  p = f_fma(p, r, f_set(1.6666665459e-1f));
  p = f_fma(p, r, f_set(5.0000001201e-1f));
  p = f_fma(f_mul(p, r), r, f_add(r, f_set(1.0f)));
  return f_scale(p, n);
}

PYLLM_INLINE F16 f_sigmoid(const F16& x) { return f_div(f_set(1.0f), f_add(f_set(1.0f), f_exp(f_neg(x)))); }

// tanh within 2e-7 relative: an odd minimax polynomial below 0.625, 1 - 2 / (e^2|x| + 1) above.
PYLLM_INLINE F16 f_tanh(const F16& x) {
  const F16 magnitude = f_abs(x), z = f_mul(x, x), one = f_set(1.0f);
  F16 p = f_fma(f_set(-0.00566693582f), z, f_set(0.0206061397f));
  p = f_fma(p, z, f_set(-0.0537299961f));
  p = f_fma(p, z, f_set(0.133313313f));
  p = f_fma(p, z, f_set(-0.333332777f));
  const F16 small = f_fma(f_mul(p, z), magnitude, magnitude);
  const F16 large = f_sub(one, f_div(f_set(2.0f), f_add(f_exp(f_add(magnitude, magnitude)), one)));
  return f_copysign(f_choose_less(magnitude, f_set(0.625f), small, large), x);
}

// Phi(x) = (1 + erf(x / sqrt 2)) / 2. The tail beyond |x| is e^(-x^2/2) G(t), t = 1 / (1 + 0.35 |x|), with G a minimax
// polynomial (3.2e-8 relative): so the left tail keeps its relative accuracy, 4e-7 to x = -3, and erf is never formed.
PYLLM_INLINE F16 f_normal_cdf(const F16& x) {
  const float coefficients[] = {-0.0291652456f, 0.144067407f, -0.25591591f, 0.159409434f, -0.023275584f,
                                0.10557995f,    0.11981415f,  0.139864534f, 0.139621243f};
  const F16 one = f_set(1.0f), magnitude = f_abs(x);
  const F16 t = f_div(one, f_fma(magnitude, f_set(0.35f), one));
  F16 g = f_set(coefficients[0]);
#pragma GCC unroll 8
  for (int i = 1; i < 9; ++i) g = f_fma(g, t, f_set(coefficients[i]));
  const F16 tail = f_mul(f_mul(g, t), f_exp(f_mul(f_mul(x, f_set(-0.5f)), x)));
  return f_choose_less(x, f_zero(), tail, f_sub(one, tail));
}

// x * share, where share falls to 0 for large negative x: bounded from below so that -inf gives -0 and not NaN.
PYLLM_INLINE F16 f_bounded_below(const F16& x) { return f_max(f_set(-1e30f), x); }

PYLLM_INLINE F16 f_relu(const F16& x) { return f_max(f_zero(), x); }
PYLLM_INLINE F16 f_gelu(const F16& x) {
  const F16 b = f_bounded_below(x);
  return f_mul(b, f_normal_cdf(b));
}
// x / (1 + e^-y): the product with sigmoid(y).
PYLLM_INLINE F16 f_times_sigmoid(const F16& x, const F16& y) { return f_div(x, f_add(f_set(1.0f), f_exp(f_neg(y)))); }
// 0.5 x (1 + tanh(u)) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
PYLLM_INLINE F16 f_gelu_tanh(const F16& x) {
  const F16 b = f_bounded_below(x);
  const F16 inner = f_fma(f_mul(b, b), f_set(0.0713548163f), f_set(1.59576912f));
  return f_times_sigmoid(b, f_mul(b, inner));
}
PYLLM_INLINE F16 f_quick_gelu(const F16& x) {
  const F16 b = f_bounded_below(x);
  return f_times_sigmoid(b, f_mul(b, f_set(1.702f)));
}
PYLLM_INLINE F16 f_silu(const F16& x) {
  const F16 b = f_bounded_below(x);
  return f_times_sigmoid(b, b);
}

inline F16 f_activation(Activation a, const F16& x) {
  switch (a) {
    case Activation::none:
      return x;
    case Activation::relu:
      return f_relu(x);
    case Activation::gelu:
      return f_gelu(x);
    case Activation::gelu_tanh:
      return f_gelu_tanh(x);
    case Activation::quick_gelu:
      return f_quick_gelu(x);
    case Activation::silu:
      return f_silu(x);
    case Activation::tanh:
      return f_tanh(x);
  }
  return x;
}

}  // namespace
}  // namespace pyllm
