// Kernels over one row of floats: norms, softmax, activations, rotary embedding. Include a vec_*.h first.
//
// Sums run over 16 lanes (lane = index % 16, ascending) and end in the fixed tree of f_reduce_add, so a row's result
// depends on that row alone and is the same on every instruction set that has fused multiply-add.
#pragma once
#include "cpu/math.h"

namespace pyllm {
namespace {

// Calls each(i, lanes) for i = 0, 16, ...; lanes is 16 except in the last piece.
template <class Each>
PYLLM_INLINE void for_pieces(int64_t n, Each each) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) each(i, 16);
  if (i < n) each(i, int(n - i));
}
PYLLM_INLINE F16 load_piece(const float* p, int lanes) { return lanes == 16 ? f_load(p) : f_load_n(p, lanes); }
PYLLM_INLINE void store_piece(float* p, const F16& v, int lanes) {
  if (lanes == 16) {
    f_store(p, v);
  } else {
    f_store_n(p, v, lanes);
  }
}
// v with lanes from `lanes` on replaced.
PYLLM_INLINE F16 keep_lanes(const F16& v, int lanes, const F16& other) {
  return lanes == 16 ? v : f_choose_less(f_lane_index(), f_set(float(lanes)), v, other);
}
inline void zero_columns(float* y, int64_t from, int64_t to) {
  for_pieces(to - from, [&](int64_t i, int lanes) { store_piece(y + from + i, f_zero(), lanes); });
}

// 1 / sqrt(mean(centred x^2) + eps).
inline float inverse_deviation(const float* x, float mean, float eps, int64_t n) {
  F16 squares = f_zero();
  for_pieces(n, [&](int64_t i, int lanes) {
    const F16 centred = keep_lanes(f_sub(load_piece(x + i, lanes), f_set(mean)), lanes, f_zero());
    squares = f_fma(centred, centred, squares);
  });
  return 1.0f / __builtin_sqrtf(f_reduce_add(squares) / float(n) + eps);
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias.
inline void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t n_padded,
                       float* y) {
  F16 sum = f_zero();
  for_pieces(n, [&](int64_t i, int lanes) { sum = f_add(sum, load_piece(x + i, lanes)); });
  const float mean = f_reduce_add(sum) / float(n);
  const F16 m = f_set(mean), inverse = f_set(inverse_deviation(x, mean, eps, n));
  for_pieces(n, [&](int64_t i, int lanes) {
    const F16 scaled = f_mul(f_sub(load_piece(x + i, lanes), m), inverse);
    const F16 b = bias ? load_piece(bias + i, lanes) : f_zero();
    store_piece(y + i, f_fma(scaled, load_piece(weight + i, lanes), b), lanes);
  });
  zero_columns(y, n, n_padded);
}

// y = x / sqrt(mean(x^2) + eps) * weight.
inline void rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t n_padded, float* y) {
  const F16 inverse = f_set(inverse_deviation(x, 0.0f, eps, n));
  for_pieces(n, [&](int64_t i, int lanes) {
    const F16 scaled = f_mul(load_piece(x + i, lanes), inverse);
    store_piece(y + i, f_mul(scaled, load_piece(weight + i, lanes)), lanes);
  });
  zero_columns(y, n, n_padded);
}

// Calls run(f) with the function of the activation, so that the choice is made once a row.
template <class Run>
PYLLM_INLINE void with_activation(Activation a, Run run) {
  switch (a) {
    case Activation::none:
      return run([](const F16& x) { return x; });
    case Activation::relu:
      return run([](const F16& x) { return f_relu(x); });
    case Activation::gelu:
      return run([](const F16& x) { return f_gelu(x); });
    case Activation::gelu_tanh:
      return run([](const F16& x) { return f_gelu_tanh(x); });
    case Activation::quick_gelu:
      return run([](const F16& x) { return f_quick_gelu(x); });
    case Activation::silu:
      return run([](const F16& x) { return f_silu(x); });
    case Activation::tanh:
      return run([](const F16& x) { return f_tanh(x); });
  }
}

inline void activate(Activation a, int64_t n, float* x) {
  with_activation(a, [&](auto f) {
    for_pieces(n, [&](int64_t i, int lanes) { store_piece(x + i, f(load_piece(x + i, lanes)), lanes); });
  });
}

inline void gate(Activation a, int64_t n, const float* g, const float* u, float* y) {
  with_activation(a, [&](auto f) {
    for_pieces(n, [&](int64_t i, int lanes) {
      store_piece(y + i, f_mul(f(load_piece(g + i, lanes)), load_piece(u + i, lanes)), lanes);
    });
  });
}

inline float maximum(const float* x, int64_t n) {
  const F16 lowest = f_set(-__builtin_inff());
  F16 highest = lowest;
  for_pieces(
      n, [&](int64_t i, int lanes) { highest = f_max(highest, keep_lanes(load_piece(x + i, lanes), lanes, lowest)); });
  return f_reduce_max(highest);
}

inline void summarise(const float* x, int64_t n, float scale, float* max_and_sum) {
  const float highest = maximum(x, n);
  max_and_sum[0] = highest;
  if (scale == 0.0f) {  // no exponentials: x - x is 0, or NaN
    F16 zeros = f_zero();
    for_pieces(n, [&](int64_t i, int lanes) {
      const F16 v = load_piece(x + i, lanes);
      zeros = f_add(zeros, keep_lanes(f_sub(v, v), lanes, f_zero()));
    });
    max_and_sum[1] = float(n) + f_reduce_add(zeros);
    return;
  }
  const F16 top = f_set(highest), times = f_set(scale);
  F16 sum = f_zero();
  for_pieces(n, [&](int64_t i, int lanes) {
    const F16 power = f_exp(f_mul(f_sub(load_piece(x + i, lanes), top), times));
    sum = f_add(sum, keep_lanes(power, lanes, f_zero()));
  });
  max_and_sum[1] = f_reduce_add(sum);
}

inline void softmax(int64_t n, float* x) {
  const F16 top = f_set(maximum(x, n));
  F16 sum = f_zero();
  for_pieces(n, [&](int64_t i, int lanes) {
    const F16 p = keep_lanes(f_exp(f_sub(load_piece(x + i, lanes), top)), lanes, f_zero());
    sum = f_add(sum, p);
    store_piece(x + i, p, lanes);
  });
  const F16 inverse = f_set(1.0f / f_reduce_add(sum));
  for_pieces(n, [&](int64_t i, int lanes) { store_piece(x + i, f_mul(load_piece(x + i, lanes), inverse), lanes); });
}

// (a, b) becomes (a cos - b sin, b cos + a sin), each product rounded as Hugging Face rounds it.
inline void rope_halves(const float* cosines, const float* sines, int64_t half, float* x) {
  for_pieces(half, [&](int64_t i, int lanes) {
    const F16 a = load_piece(x + i, lanes), b = load_piece(x + half + i, lanes);
    const F16 c = load_piece(cosines + i, lanes), s = load_piece(sines + i, lanes);
    store_piece(x + i, f_sub(f_mul(a, c), f_mul(b, s)), lanes);
    store_piece(x + half + i, f_add(f_mul(b, c), f_mul(a, s)), lanes);
  });
}

inline void rope(const float* cos_sin, int64_t rotary_dim, bool interleaved, float* x) {
  const int64_t half = rotary_dim / 2;
  const float* sines = cos_sin + half;
  if (!interleaved) return rope_halves(cos_sin, sines, half, x);
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cos_sin[i] - b * sines[i];
    x[2 * i + 1] = b * cos_sin[i] + a * sines[i];
  }
}

}  // namespace
}  // namespace pyllm
