// F16, a vector of 16 floats, for any architecture: four 4-float vectors of the compiler's own extension (SSE2 on
// x86-64, NEON on AArch64). No fused multiply-add: f_fma is a product and a sum. Holds no kernels.
#pragma once
#include <cstdint>
#include <cstring>

#if !defined(__GNUC__) && !defined(__clang__)
#error "The kernels use vector extensions of GCC and Clang; on Windows build with clang-cl."
#endif
#define PYLLM_INLINE inline __attribute__((always_inline))

namespace pyllm {
namespace {

typedef float V4 __attribute__((vector_size(16)));
typedef int32_t I4 __attribute__((vector_size(16)));
typedef uint32_t U4 __attribute__((vector_size(16)));

struct F16 {
  V4 a, b, c, d;
};

template <class Op>
PYLLM_INLINE F16 f_map(const F16& x, Op op) {
  return {op(x.a), op(x.b), op(x.c), op(x.d)};
}
template <class Op>
PYLLM_INLINE F16 f_map(const F16& x, const F16& y, Op op) {
  return {op(x.a, y.a), op(x.b, y.b), op(x.c, y.c), op(x.d, y.d)};
}
template <class To, class From>
PYLLM_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
PYLLM_INLINE V4 v4(float x) { return V4{x, x, x, x}; }
PYLLM_INLINE U4 u4(uint32_t x) { return U4{x, x, x, x}; }
PYLLM_INLINE V4 v4_choose(const I4& mask, const V4& x, const V4& y) {
  return bits_as<V4>((mask & bits_as<I4>(x)) | (~mask & bits_as<I4>(y)));
}

PYLLM_INLINE F16 f_set(float x) { return {v4(x), v4(x), v4(x), v4(x)}; }
PYLLM_INLINE F16 f_zero() { return f_set(0.0f); }
PYLLM_INLINE F16 f_load(const float* p) {
  F16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
PYLLM_INLINE void f_store(float* p, const F16& v) { std::memcpy(p, &v, sizeof v); }
// Lanes from n on are zero.
PYLLM_INLINE F16 f_load_n(const float* p, int n) {
  float lanes[16] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return f_load(lanes);
}
// Lanes from n on are not written.
PYLLM_INLINE void f_store_n(float* p, const F16& v, int n) {
  float lanes[16];
  f_store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
}

PYLLM_INLINE F16 f_add(const F16& x, const F16& y) {
  return f_map(x, y, [](V4 p, V4 q) { return p + q; });
}
PYLLM_INLINE F16 f_sub(const F16& x, const F16& y) {
  return f_map(x, y, [](V4 p, V4 q) { return p - q; });
}
PYLLM_INLINE F16 f_mul(const F16& x, const F16& y) {
  return f_map(x, y, [](V4 p, V4 q) { return p * q; });
}
PYLLM_INLINE F16 f_div(const F16& x, const F16& y) {
  return f_map(x, y, [](V4 p, V4 q) { return p / q; });
}
// x > y ? x : y, so y where either is NaN.
PYLLM_INLINE F16 f_max(const F16& x, const F16& y) {
  return f_map(x, y, [](V4 p, V4 q) { return v4_choose(p > q, p, q); });
}
// x < y ? x : y, so y where either is NaN.
PYLLM_INLINE F16 f_min(const F16& x, const F16& y) {
  return f_map(x, y, [](V4 p, V4 q) { return v4_choose(p < q, p, q); });
}
PYLLM_INLINE F16 f_fma(const F16& x, const F16& y, const F16& z) { return f_add(f_mul(x, y), z); }   // x * y + z
PYLLM_INLINE F16 f_fnma(const F16& x, const F16& y, const F16& z) { return f_sub(z, f_mul(x, y)); }  // z - x * y
PYLLM_INLINE F16 f_neg(const F16& x) {
  return f_map(x, [](V4 p) { return bits_as<V4>(bits_as<U4>(p) ^ u4(0x80000000u)); });
}
PYLLM_INLINE F16 f_abs(const F16& x) {
  return f_map(x, [](V4 p) { return bits_as<V4>(bits_as<U4>(p) & u4(0x7fffffffu)); });
}
// The magnitude of x (not negative) with the sign of y.
PYLLM_INLINE F16 f_copysign(const F16& x, const F16& y) {
  return f_map(x, y, [](V4 p, V4 q) { return bits_as<V4>(bits_as<U4>(p) | (bits_as<U4>(q) & u4(0x80000000u))); });
}
// x < y ? yes : no; `no` where x or y is NaN.
PYLLM_INLINE F16 f_choose_less(const F16& x, const F16& y, const F16& yes, const F16& no) {
  return {v4_choose(x.a < y.a, yes.a, no.a), v4_choose(x.b < y.b, yes.b, no.b), v4_choose(x.c < y.c, yes.c, no.c),
          v4_choose(x.d < y.d, yes.d, no.d)};
}
// To the nearest integer, ties to even; |x| < 2^22.
PYLLM_INLINE F16 f_round(const F16& x) {
  return f_map(x, [](V4 p) {
    const V4 r = (p + v4(12582912.0f)) - v4(12582912.0f);
    return bits_as<V4>(bits_as<U4>(r) | (bits_as<U4>(p) & u4(0x80000000u)));  // -0.2 gives -0
  });
}
// 2^n for integral n in [-126, 127].
PYLLM_INLINE F16 f_exp2i(const F16& n) {
  return f_map(n, [](V4 p) { return bits_as<V4>((__builtin_convertvector(p, I4) + 127) << 23); });
}
// x * 2^n for integral n in [-252, 252], rounded once unless the result is denormal.
PYLLM_INLINE F16 f_scale(const F16& x, const F16& n) {
  const F16 half = f_round(f_mul(n, f_set(0.5f)));
  return f_mul(f_mul(x, f_exp2i(half)), f_exp2i(f_sub(n, half)));
}
PYLLM_INLINE F16 f_lane_index() { return {V4{0, 1, 2, 3}, V4{4, 5, 6, 7}, V4{8, 9, 10, 11}, V4{12, 13, 14, 15}}; }

// The sum by a fixed tree: lanes (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
PYLLM_INLINE float f_reduce_add(const F16& x) {
  const V4 s = (x.a + x.c) + (x.b + x.d);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
PYLLM_INLINE float f_reduce_max(const F16& x) {
  const F16 ab = {x.a, x.b, x.a, x.b}, cd = {x.c, x.d, x.c, x.d}, m8 = f_max(ab, cd);
  const V4 m4 = v4_choose(m8.a > m8.b, m8.a, m8.b);
  const float even = m4[0] > m4[2] ? m4[0] : m4[2], odd = m4[1] > m4[3] ? m4[1] : m4[3];
  return even > odd ? even : odd;
}

// 32 bf16 at p: those with even or odd index, widened.
PYLLM_INLINE F16 f_bf16_even(const void* p) {
  U4 u[4];
  std::memcpy(u, p, sizeof u);
  return {bits_as<V4>(u[0] << 16), bits_as<V4>(u[1] << 16), bits_as<V4>(u[2] << 16), bits_as<V4>(u[3] << 16)};
}
PYLLM_INLINE F16 f_bf16_odd(const void* p) {
  U4 u[4];
  std::memcpy(u, p, sizeof u);
  const U4 high = u4(0xffff0000u);
  return {bits_as<V4>(u[0] & high), bits_as<V4>(u[1] & high), bits_as<V4>(u[2] & high), bits_as<V4>(u[3] & high)};
}
// 16 contiguous bf16.
PYLLM_INLINE F16 f_bf16_load(const void* p) {
  uint16_t h[16];
  uint32_t u[16];
  std::memcpy(h, p, sizeof h);
  for (int i = 0; i < 16; ++i) u[i] = uint32_t(h[i]) << 16;
  return bits_as<F16>(u);
}
// 16 contiguous IEEE half floats. Denormal halves are normal floats, so DAZ does not touch them.
PYLLM_INLINE F16 f_f16_load(const void* p) {
  uint16_t h[16];
  float f[16];
  std::memcpy(h, p, sizeof h);
  for (int i = 0; i < 16; ++i) {
    const uint32_t sign = uint32_t(h[i] & 0x8000) << 16, exponent = (h[i] >> 10) & 31, mantissa = h[i] & 0x3ff;
    const uint32_t quiet = exponent == 31 && mantissa ? 0x400000u : 0;
    const uint32_t finite = ((exponent + 112) << 23) | (mantissa << 13),
                   special = 0x7f800000u | quiet | (mantissa << 13);
    const uint32_t small = bits_as<uint32_t>(float(int(mantissa)) * (1.0f / 16777216.0f));
    f[i] = bits_as<float>(sign | (exponent == 0 ? small : exponent == 31 ? special : finite));
  }
  return f_load(f);
}
// Rounds to nearest even and writes 16 contiguous half floats.
PYLLM_INLINE void f_f16_store(void* p, const F16& x) {
  uint32_t u[16];
  uint16_t h[16];
  std::memcpy(u, &x, sizeof u);
  for (int i = 0; i < 16; ++i) {
    const uint32_t sign = (u[i] >> 16) & 0x8000u, magnitude = u[i] & 0x7fffffffu;
    uint32_t half = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
    if (magnitude >= 0x47800000u) half = 0x7c00u;
    if (magnitude > 0x7f800000u) half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
    if (magnitude < 0x38800000u)  // a denormal half: in units of 2^-24, which are those of the last place at 0.5
      half = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;
    h[i] = uint16_t(sign | half);
  }
  std::memcpy(p, h, sizeof h);
}
// Rounded to half floats, still as floats.
PYLLM_INLINE F16 f_round_f16(const F16& x) {
  uint16_t h[16];
  f_f16_store(h, x);
  return f_f16_load(h);
}
// Rounded to bf16 (nearest, ties to even; denormals to zero; NaN stays NaN), still as floats.
PYLLM_INLINE F16 f_round_bf16(const F16& x) {
  return f_map(x, [](V4 p) {
    const U4 u = bits_as<U4>(p), magnitude = u & u4(0x7fffffffu);
    const U4 rounded = (u + u4(0x7fffu) + ((u >> 16) & u4(1))) & u4(0xffff0000u);
    const U4 quiet = (u | u4(0x00400000u)) & u4(0xffff0000u), zero = u & u4(0x80000000u);
    const I4 is_nan = bits_as<I4>(magnitude) > 0x7f800000, is_small = bits_as<I4>(magnitude) < 0x00800000;
    return v4_choose(is_nan, bits_as<V4>(quiet), v4_choose(is_small, bits_as<V4>(zero), bits_as<V4>(rounded)));
  });
}
// Rounds and writes 16 contiguous bf16.
PYLLM_INLINE void f_bf16_store(void* p, const F16& x) {
  uint32_t u[16];
  uint16_t h[16];
  const F16 rounded = f_round_bf16(x);
  std::memcpy(u, &rounded, sizeof u);
  for (int i = 0; i < 16; ++i) h[i] = uint16_t(u[i] >> 16);
  std::memcpy(p, h, sizeof h);
}
// Rounds and writes 32 bf16: even[0] odd[0] even[1] odd[1] ...
PYLLM_INLINE void f_bf16_interleave_store(void* p, const F16& even, const F16& odd) {
  const F16 pairs = f_map(f_round_bf16(even), f_round_bf16(odd),
                          [](V4 e, V4 o) { return bits_as<V4>((bits_as<U4>(e) >> 16) | bits_as<U4>(o)); });
  std::memcpy(p, &pairs, sizeof pairs);
}
// Writes 16 words low + 65536 * high of integral low and high in [0, 65535].
PYLLM_INLINE void f_words_store(void* p, const F16& low, const F16& high) {
  const F16 words = f_map(low, high, [](V4 l, V4 h) {
    return bits_as<V4>(__builtin_convertvector(l, I4) | __builtin_convertvector(h, I4) << 16);
  });
  std::memcpy(p, &words, sizeof words);
}
// Rows become columns.
PYLLM_INLINE void f_transpose(F16 (&x)[16]) {
  float rows[16][16], columns[16][16];
  std::memcpy(rows, x, sizeof rows);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) columns[j][i] = rows[i][j];
  std::memcpy(x, columns, sizeof columns);
}
PYLLM_INLINE void f_prefetch_l1(const void* p) { __builtin_prefetch(p, 0, 3); }
PYLLM_INLINE void f_prefetch_l2(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
}  // namespace pyllm
