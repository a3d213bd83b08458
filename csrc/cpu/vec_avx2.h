// F16, a vector of 16 floats, as two 256-bit registers (AVX2, FMA, F16C). Same functions and results as vec_scalar.h,
// except that f_fma and f_fnma round once. Holds no kernels.
#pragma once
#include <immintrin.h>

#include <cstdint>

#define PYLLM_INLINE inline __attribute__((always_inline))

namespace pyllm {
namespace {

struct F16 {
  __m256 lo, hi;
};

PYLLM_INLINE F16 f_set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
PYLLM_INLINE F16 f_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
PYLLM_INLINE F16 f_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
PYLLM_INLINE void f_store(float* p, const F16& v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
// All ones in the lanes of the half starting at lane `first` that are below n.
PYLLM_INLINE __m256i lanes_below(int n, int first) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n - first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// Lanes from n on are zero.
PYLLM_INLINE F16 f_load_n(const float* p, int n) {
  return {_mm256_maskload_ps(p, lanes_below(n, 0)), _mm256_maskload_ps(p + 8, lanes_below(n, 8))};
}
// Lanes from n on are not written.
PYLLM_INLINE void f_store_n(float* p, const F16& v, int n) {
  _mm256_maskstore_ps(p, lanes_below(n, 0), v.lo);
  _mm256_maskstore_ps(p + 8, lanes_below(n, 8), v.hi);
}

PYLLM_INLINE F16 f_add(const F16& x, const F16& y) { return {_mm256_add_ps(x.lo, y.lo), _mm256_add_ps(x.hi, y.hi)}; }
PYLLM_INLINE F16 f_sub(const F16& x, const F16& y) { return {_mm256_sub_ps(x.lo, y.lo), _mm256_sub_ps(x.hi, y.hi)}; }
PYLLM_INLINE F16 f_mul(const F16& x, const F16& y) { return {_mm256_mul_ps(x.lo, y.lo), _mm256_mul_ps(x.hi, y.hi)}; }
PYLLM_INLINE F16 f_div(const F16& x, const F16& y) { return {_mm256_div_ps(x.lo, y.lo), _mm256_div_ps(x.hi, y.hi)}; }
// x > y ? x : y, so y where either is NaN.
PYLLM_INLINE F16 f_max(const F16& x, const F16& y) { return {_mm256_max_ps(x.lo, y.lo), _mm256_max_ps(x.hi, y.hi)}; }
// x < y ? x : y, so y where either is NaN.
PYLLM_INLINE F16 f_min(const F16& x, const F16& y) { return {_mm256_min_ps(x.lo, y.lo), _mm256_min_ps(x.hi, y.hi)}; }
PYLLM_INLINE F16 f_fma(const F16& x, const F16& y, const F16& z) {  // x * y + z
  return {_mm256_fmadd_ps(x.lo, y.lo, z.lo), _mm256_fmadd_ps(x.hi, y.hi, z.hi)};
}
PYLLM_INLINE F16 f_fnma(const F16& x, const F16& y, const F16& z) {  // z - x * y
  return {_mm256_fnmadd_ps(x.lo, y.lo, z.lo), _mm256_fnmadd_ps(x.hi, y.hi, z.hi)};
}
PYLLM_INLINE F16 f_neg(const F16& x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.lo, sign), _mm256_xor_ps(x.hi, sign)};
}
PYLLM_INLINE F16 f_abs(const F16& x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.lo), _mm256_andnot_ps(sign, x.hi)};
}
// The magnitude of x (not negative) with the sign of y.
PYLLM_INLINE F16 f_copysign(const F16& x, const F16& y) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(x.lo, _mm256_and_ps(sign, y.lo)), _mm256_or_ps(x.hi, _mm256_and_ps(sign, y.hi))};
}
// x < y ? yes : no; `no` where x or y is NaN.
PYLLM_INLINE F16 f_choose_less(const F16& x, const F16& y, const F16& yes, const F16& no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, _mm256_cmp_ps(x.lo, y.lo, _CMP_LT_OQ)),
          _mm256_blendv_ps(no.hi, yes.hi, _mm256_cmp_ps(x.hi, y.hi, _CMP_LT_OQ))};
}
// To the nearest integer, ties to even; |x| < 2^22.
PYLLM_INLINE F16 f_round(const F16& x) {
  return {_mm256_round_ps(x.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
PYLLM_INLINE __m256 half_exp2i(__m256 n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
}
// 2^n for integral n in [-126, 127].
PYLLM_INLINE F16 f_exp2i(const F16& n) { return {half_exp2i(n.lo), half_exp2i(n.hi)}; }
// x * 2^n for integral n in [-252, 252], rounded once unless the result is denormal.
PYLLM_INLINE F16 f_scale(const F16& x, const F16& n) {
  const F16 half = f_round(f_mul(n, f_set(0.5f)));
  return f_mul(f_mul(x, f_exp2i(half)), f_exp2i(f_sub(n, half)));
}
PYLLM_INLINE F16 f_lane_index() {
  return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_ps(8, 9, 10, 11, 12, 13, 14, 15)};
}

// The sum by a fixed tree: lanes (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
PYLLM_INLINE float f_reduce_add(const F16& x) {
  const __m256 s8 = _mm256_add_ps(x.lo, x.hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
PYLLM_INLINE float f_reduce_max(const F16& x) {
  const __m256 m8 = _mm256_max_ps(x.lo, x.hi);
  const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
  const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
  return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}

PYLLM_INLINE __m256i half_line(const void* p, int i) { return _mm256_loadu_si256(static_cast<const __m256i*>(p) + i); }
// 32 bf16 at p: those with even or odd index, widened.
PYLLM_INLINE F16 f_bf16_even(const void* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(half_line(p, 0), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(half_line(p, 1), 16))};
}
PYLLM_INLINE F16 f_bf16_odd(const void* p) {
  const __m256i high = _mm256_set1_epi32(int(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(half_line(p, 0), high)),
          _mm256_castsi256_ps(_mm256_and_si256(half_line(p, 1), high))};
}
PYLLM_INLINE __m256 half_bf16_load(const void* p, int i) {
  const __m128i h = _mm_loadu_si128(static_cast<const __m128i*>(p) + i);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
// 16 contiguous bf16.
PYLLM_INLINE F16 f_bf16_load(const void* p) { return {half_bf16_load(p, 0), half_bf16_load(p, 1)}; }
// 16 contiguous IEEE half floats.
PYLLM_INLINE F16 f_f16_load(const void* p) {
  const __m128i* h = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(h)), _mm256_cvtph_ps(_mm_loadu_si128(h + 1))};
}
PYLLM_INLINE __m128i half_narrow_f16(__m256 x) {
  return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// Rounded to half floats (nearest, ties to even; infinity where too large), still as floats.
PYLLM_INLINE F16 f_round_f16(const F16& x) {
  return {_mm256_cvtph_ps(half_narrow_f16(x.lo)), _mm256_cvtph_ps(half_narrow_f16(x.hi))};
}
// Rounds and writes 16 contiguous half floats.
PYLLM_INLINE void f_f16_store(void* p, const F16& x) {
  _mm_storeu_si128(static_cast<__m128i*>(p), half_narrow_f16(x.lo));
  _mm_storeu_si128(static_cast<__m128i*>(p) + 1, half_narrow_f16(x.hi));
}
PYLLM_INLINE __m256 half_round_bf16(__m256 x) {
  const __m256i u = _mm256_castps_si256(x), high = _mm256_set1_epi32(int(0xffff0000u));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x00400000));
  const __m256i magnitude = _mm256_and_si256(u, _mm256_set1_epi32(0x7fffffff));
  const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
  const __m256i is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), magnitude);
  const __m256i r = _mm256_and_si256(_mm256_blendv_epi8(rounded, quiet, is_nan), high);
  return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_and_si256(is_small, _mm256_set1_epi32(0x7fffffff)), r));
}
// Rounded to bf16 (nearest, ties to even; denormals to zero; NaN stays NaN), still as floats.
PYLLM_INLINE F16 f_round_bf16(const F16& x) { return {half_round_bf16(x.lo), half_round_bf16(x.hi)}; }
// Rounds and writes 16 contiguous bf16.
PYLLM_INLINE void f_bf16_store(void* p, const F16& x) {
  const F16 r = f_round_bf16(x);
  const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(r.lo), 16),
                                             _mm256_srli_epi32(_mm256_castps_si256(r.hi), 16));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
PYLLM_INLINE __m256i half_interleave(__m256 even, __m256 odd) {
  return _mm256_or_si256(_mm256_srli_epi32(_mm256_castps_si256(even), 16), _mm256_castps_si256(odd));
}
// Rounds and writes 32 bf16: even[0] odd[0] even[1] odd[1] ...
PYLLM_INLINE void f_bf16_interleave_store(void* p, const F16& even, const F16& odd) {
  const F16 e = f_round_bf16(even), o = f_round_bf16(odd);
  _mm256_storeu_si256(static_cast<__m256i*>(p), half_interleave(e.lo, o.lo));
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, half_interleave(e.hi, o.hi));
}
PYLLM_INLINE __m256i half_words(__m256 low, __m256 high) {
  return _mm256_or_si256(_mm256_cvtps_epi32(low), _mm256_slli_epi32(_mm256_cvtps_epi32(high), 16));
}
// Writes 16 words low + 65536 * high of integral low and high in [0, 65535].
PYLLM_INLINE void f_words_store(void* p, const F16& low, const F16& high) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), half_words(low.lo, high.lo));
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, half_words(low.hi, high.hi));
}
PYLLM_INLINE void transpose_eighth(const __m256 (&x)[8], __m256 (&y)[8]) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    y[j] = _mm256_permute2f128_ps(b[j], b[j + 4], 0x20);
    y[j + 4] = _mm256_permute2f128_ps(b[j], b[j + 4], 0x31);
  }
}
// Rows become columns.
PYLLM_INLINE void f_transpose(F16 (&x)[16]) {
  __m256 from[4][8], to[8];
  for (int i = 0; i < 8; ++i) {
    from[0][i] = x[i].lo;
    from[1][i] = x[i].hi;
    from[2][i] = x[i + 8].lo;
    from[3][i] = x[i + 8].hi;
  }
  for (int part = 0; part < 4; ++part) {
    transpose_eighth(from[part], to);
    for (int i = 0; i < 8; ++i) (part < 2 ? x[part * 8 + i].lo : x[(part - 2) * 8 + i].hi) = to[i];
  }
}
PYLLM_INLINE void f_prefetch_l1(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
PYLLM_INLINE void f_prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
}  // namespace pyllm
