// F16, a vector of 16 floats, as one 512-bit register (AVX-512 F, BW, VL, DQ; BF16 where compiled for). Same functions
// and results as vec_avx2.h, bit for bit. Holds no kernels.
#pragma once
#include <immintrin.h>

#include <cstdint>

#define PYLLM_INLINE inline __attribute__((always_inline))

namespace pyllm {
namespace {

struct F16 {
  __m512 v;
};

PYLLM_INLINE F16 f_set(float x) { return {_mm512_set1_ps(x)}; }
PYLLM_INLINE F16 f_zero() { return {_mm512_setzero_ps()}; }
PYLLM_INLINE F16 f_load(const float* p) { return {_mm512_loadu_ps(p)}; }
PYLLM_INLINE void f_store(float* p, const F16& x) { _mm512_storeu_ps(p, x.v); }
PYLLM_INLINE __mmask16 lanes_below(int n) { return __mmask16((1u << n) - 1); }
// Lanes from n on are zero.
PYLLM_INLINE F16 f_load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(lanes_below(n), p)}; }
// Lanes from n on are not written.
PYLLM_INLINE void f_store_n(float* p, const F16& x, int n) { _mm512_mask_storeu_ps(p, lanes_below(n), x.v); }

PYLLM_INLINE F16 f_add(const F16& x, const F16& y) { return {_mm512_add_ps(x.v, y.v)}; }
PYLLM_INLINE F16 f_sub(const F16& x, const F16& y) { return {_mm512_sub_ps(x.v, y.v)}; }
PYLLM_INLINE F16 f_mul(const F16& x, const F16& y) { return {_mm512_mul_ps(x.v, y.v)}; }
PYLLM_INLINE F16 f_div(const F16& x, const F16& y) { return {_mm512_div_ps(x.v, y.v)}; }
// x > y ? x : y, so y where either is NaN.
PYLLM_INLINE F16 f_max(const F16& x, const F16& y) { return {_mm512_max_ps(x.v, y.v)}; }
// x < y ? x : y, so y where either is NaN.
PYLLM_INLINE F16 f_min(const F16& x, const F16& y) { return {_mm512_min_ps(x.v, y.v)}; }
PYLLM_INLINE F16 f_fma(const F16& x, const F16& y, const F16& z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
PYLLM_INLINE F16 f_fnma(const F16& x, const F16& y, const F16& z) { return {_mm512_fnmadd_ps(x.v, y.v, z.v)}; }
PYLLM_INLINE F16 f_neg(const F16& x) { return {_mm512_xor_ps(x.v, _mm512_set1_ps(-0.0f))}; }
PYLLM_INLINE F16 f_abs(const F16& x) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), x.v)}; }
// The magnitude of x (not negative) with the sign of y.
PYLLM_INLINE F16 f_copysign(const F16& x, const F16& y) {
  return {_mm512_or_ps(x.v, _mm512_and_ps(_mm512_set1_ps(-0.0f), y.v))};
}
// x < y ? yes : no; `no` where x or y is NaN.
PYLLM_INLINE F16 f_choose_less(const F16& x, const F16& y, const F16& yes, const F16& no) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ), no.v, yes.v)};
}
// To the nearest integer, ties to even; |x| < 2^22.
PYLLM_INLINE F16 f_round(const F16& x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral n in [-126, 127].
PYLLM_INLINE F16 f_exp2i(const F16& n) {
  const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// x * 2^n for integral n in [-252, 252], rounded once.
PYLLM_INLINE F16 f_scale(const F16& x, const F16& n) { return {_mm512_scalef_ps(x.v, n.v)}; }
PYLLM_INLINE F16 f_lane_index() { return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }

PYLLM_INLINE __m256 upper_half(__m512 x) { return _mm512_extractf32x8_ps(x, 1); }
// The sum by a fixed tree: lanes (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
PYLLM_INLINE float f_reduce_add(const F16& x) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(x.v), upper_half(x.v));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
PYLLM_INLINE float f_reduce_max(const F16& x) {
  const __m256 m8 = _mm256_max_ps(_mm512_castps512_ps256(x.v), upper_half(x.v));
  const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
  const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
  return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}

// 32 bf16 at p: those with even or odd index, widened.
PYLLM_INLINE F16 f_bf16_even(const void* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
PYLLM_INLINE F16 f_bf16_odd(const void* p) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int(0xffff0000u))))};
}
PYLLM_INLINE F16 widen_bf16(__m256i h) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
// 16 contiguous bf16.
PYLLM_INLINE F16 f_bf16_load(const void* p) { return widen_bf16(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
// 16 contiguous IEEE half floats.
PYLLM_INLINE F16 f_f16_load(const void* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
PYLLM_INLINE __m256i narrow_f16(__m512 x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// Rounded to half floats (nearest, ties to even; infinity where too large), still as floats.
PYLLM_INLINE F16 f_round_f16(const F16& x) { return {_mm512_cvtph_ps(narrow_f16(x.v))}; }
// Rounds and writes 16 contiguous half floats.
PYLLM_INLINE void f_f16_store(void* p, const F16& x) { _mm256_storeu_si256(static_cast<__m256i*>(p), narrow_f16(x.v)); }
// To nearest even, denormals to zero, NaN stays NaN, whatever MXCSR says; one instruction with AVX512_BF16.
PYLLM_INLINE __m256i narrow_bf16(__m512 x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i u = _mm512_castps_si512(x), one = _mm512_set1_epi32(1);
  const __m512i bias = _mm512_add_epi32(_mm512_set1_epi32(0x7fff), _mm512_and_si512(_mm512_srli_epi32(u, 16), one));
  const __m512i magnitude = _mm512_and_si512(u, _mm512_set1_epi32(0x7fffffff));
  const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
  const __mmask16 is_small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x00800000));
  __m512i r = _mm512_mask_or_epi32(_mm512_add_epi32(u, bias), is_nan, u, _mm512_set1_epi32(0x00400000));
  r = _mm512_mask_and_epi32(r, is_small, u, _mm512_set1_epi32(int(0x80000000u)));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
#endif
}
// Rounded to bf16 (nearest, ties to even; denormals to zero; NaN stays NaN), still as floats.
PYLLM_INLINE F16 f_round_bf16(const F16& x) { return widen_bf16(narrow_bf16(x.v)); }
// Rounds and writes 16 contiguous bf16.
PYLLM_INLINE void f_bf16_store(void* p, const F16& x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), narrow_bf16(x.v));
}
// Rounds and writes 32 bf16: even[0] odd[0] even[1] odd[1] ...
PYLLM_INLINE void f_bf16_interleave_store(void* p, const F16& even, const F16& odd) {
  const __m512i e = _mm512_cvtepu16_epi32(narrow_bf16(even.v)), o = _mm512_cvtepu16_epi32(narrow_bf16(odd.v));
  _mm512_storeu_si512(p, _mm512_or_si512(e, _mm512_slli_epi32(o, 16)));
}
// Writes 16 words low + 65536 * high of integral low and high in [0, 65535].
PYLLM_INLINE void f_words_store(void* p, const F16& low, const F16& high) {
  _mm512_storeu_si512(p, _mm512_or_si512(_mm512_cvtps_epi32(low.v), _mm512_slli_epi32(_mm512_cvtps_epi32(high.v), 16)));
}
// Rows become columns.
PYLLM_INLINE void f_transpose(F16 (&x)[16]) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4)  // b[i + j]: of each quarter column j of rows i .. i + 3
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xee);
    }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {  // column 4 q + j: quarter q of b[j], b[j + 4], b[j + 8], b[j + 12]
    const __m512 low01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x44),
                 high01 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xee);
    const __m512 low23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x44),
                 high23 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xee);
    x[j].v = _mm512_shuffle_f32x4(low01, low23, 0x88);
    x[j + 4].v = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    x[j + 8].v = _mm512_shuffle_f32x4(high01, high23, 0x88);
    x[j + 12].v = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
}

#if defined(__AVX512BF16__) && defined(PYLLM_BF16_DOT)
// Pairs of bf16, 16 of them; and sum + the products of both pairs: per lane fma(x1, y1, sum), then fma(x0, y0, that),
// denormals to zero at every step, whatever MXCSR says.
struct P16 {
  __m512i v;
};
PYLLM_INLINE P16 p_load(const void* p) { return {_mm512_loadu_si512(p)}; }
PYLLM_INLINE P16 p_set(uint32_t pair) { return {_mm512_set1_epi32(int(pair))}; }
PYLLM_INLINE F16 f_dpbf16(const F16& sum, const P16& x, const P16& y) {
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)x.v, (__m512bh)y.v)};
}
#endif

PYLLM_INLINE void f_prefetch_l1(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
PYLLM_INLINE void f_prefetch_l2(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1); }

}  // namespace
}  // namespace pyllm
