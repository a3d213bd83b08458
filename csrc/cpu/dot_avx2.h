// I16, a vector of 16 int32, as two 256-bit registers, and products of 8-bit codes with integer activations: by
// VPDPBUSD where compiled for AVX-VNNI, else widened to 16 bits. Same functions as dot_avx512.h; after vec_avx2.h.
#pragma once
#include <cstring>

#include "cpu/vec_avx2.h"

namespace pyllm {
namespace {

struct I16 {
  __m256i lo, hi;
};

PYLLM_INLINE I16 i_set(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
PYLLM_INLINE I16 i_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
PYLLM_INLINE I16 i_load(const void* p) { return {half_line(p, 0), half_line(p, 1)}; }
PYLLM_INLINE void i_store(void* p, const I16& x) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), x.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, x.hi);
}
PYLLM_INLINE I16 i_add(const I16& x, const I16& y) {
  return {_mm256_add_epi32(x.lo, y.lo), _mm256_add_epi32(x.hi, y.hi)};
}
PYLLM_INLINE I16 i_sub(const I16& x, const I16& y) {
  return {_mm256_sub_epi32(x.lo, y.lo), _mm256_sub_epi32(x.hi, y.hi)};
}
PYLLM_INLINE I16 i_max(const I16& x, const I16& y) {
  return {_mm256_max_epi32(x.lo, y.lo), _mm256_max_epi32(x.hi, y.hi)};
}
template <int N>
PYLLM_INLINE I16 i_left(const I16& x) {
  return {_mm256_slli_epi32(x.lo, N), _mm256_slli_epi32(x.hi, N)};
}
template <int N>
PYLLM_INLINE I16 i_right(const I16& x) {
  return {_mm256_srai_epi32(x.lo, N), _mm256_srai_epi32(x.hi, N)};
}
PYLLM_INLINE I16 i_pairs(const I16& x, const I16& y) {
  return {_mm256_madd_epi16(x.lo, y.lo), _mm256_madd_epi16(x.hi, y.hi)};
}
PYLLM_INLINE F16 i_to_float(const I16& x) { return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)}; }
PYLLM_INLINE I16 f_to_ints(const F16& x) { return {_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi)}; }
PYLLM_INLINE I16 i_magnitude(const F16& x) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  return {_mm256_and_si256(_mm256_castps_si256(x.lo), mask), _mm256_and_si256(_mm256_castps_si256(x.hi), mask)};
}
PYLLM_INLINE I16 i_from_u8(const void* p) {
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
PYLLM_INLINE int32_t i_reduce_add(const I16& x) {
  const __m256i s8 = _mm256_add_epi32(x.lo, x.hi);
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
PYLLM_INLINE int32_t i_reduce_max(const I16& x) {
  const __m256i m8 = _mm256_max_epi32(x.lo, x.hi);
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}

PYLLM_INLINE __m256i repeat32(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}
PYLLM_INLINE __m256i low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(0x0f)); }
PYLLM_INLINE __m256i high_nibbles(__m256i v) { return low_nibbles(_mm256_srli_epi16(v, 4)); }
PYLLM_INLINE __m256i narrow_words(const I16& x) {  // to int16, in order
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8);
}

#if defined(__AVXVNNI__)

using Act = int8_t;
struct Codes {
  __m256i lo, hi;
};
struct Quad {
  __m256i v;
};
PYLLM_INLINE Codes codes_bytes(const void* p) { return {half_line(p, 0), half_line(p, 1)}; }
PYLLM_INLINE Codes codes_low(const void* p) { return {low_nibbles(half_line(p, 0)), low_nibbles(half_line(p, 1))}; }
PYLLM_INLINE Codes codes_high(const void* p) { return {high_nibbles(half_line(p, 0)), high_nibbles(half_line(p, 1))}; }
PYLLM_INLINE Quad quad_load(const Act* x) { return {repeat32(x)}; }
PYLLM_INLINE I16 i_dot(const I16& sum, const Codes& w, const Quad& x) {
  return {_mm256_dpbusd_avx_epi32(sum.lo, w.lo, x.v), _mm256_dpbusd_avx_epi32(sum.hi, w.hi, x.v)};
}
template <bool Nibbles>
PYLLM_INLINE void store_acts(Act* to, const I16& x) {
  const __m256i words = narrow_words(x);
  __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  if (Nibbles) bytes = _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}

#else

using Act = int16_t;
struct Codes {  // pairs of 16 bits of each half: bytes 0 and 2, bytes 1 and 3
  __m256i even_lo, even_hi, odd_lo, odd_hi;
};
struct Quad {
  __m256i even, odd;
};
PYLLM_INLINE Codes codes_bytes(const void* p) {
  const __m256i lo = half_line(p, 0), hi = half_line(p, 1), mask = _mm256_set1_epi16(0xff);
  return {_mm256_and_si256(lo, mask), _mm256_and_si256(hi, mask), _mm256_srli_epi16(lo, 8), _mm256_srli_epi16(hi, 8)};
}
PYLLM_INLINE Codes codes_low(const void* p) {
  const __m256i lo = half_line(p, 0), hi = half_line(p, 1), mask = _mm256_set1_epi16(0x0f);
  return {_mm256_and_si256(lo, mask), _mm256_and_si256(hi, mask), _mm256_and_si256(_mm256_srli_epi16(lo, 8), mask),
          _mm256_and_si256(_mm256_srli_epi16(hi, 8), mask)};
}
PYLLM_INLINE Codes codes_high(const void* p) {
  const __m256i lo = half_line(p, 0), hi = half_line(p, 1), mask = _mm256_set1_epi16(0x0f);
  return {_mm256_and_si256(_mm256_srli_epi16(lo, 4), mask), _mm256_and_si256(_mm256_srli_epi16(hi, 4), mask),
          _mm256_srli_epi16(lo, 12), _mm256_srli_epi16(hi, 12)};
}
PYLLM_INLINE Quad quad_load(const Act* x) { return {repeat32(x), repeat32(x + 2)}; }
PYLLM_INLINE I16 i_dot(const I16& sum, const Codes& w, const Quad& x) {
  return {_mm256_add_epi32(_mm256_add_epi32(sum.lo, _mm256_madd_epi16(w.even_lo, x.even)),
                           _mm256_madd_epi16(w.odd_lo, x.odd)),
          _mm256_add_epi32(_mm256_add_epi32(sum.hi, _mm256_madd_epi16(w.even_hi, x.even)),
                           _mm256_madd_epi16(w.odd_hi, x.odd))};
}
template <bool Nibbles>
PYLLM_INLINE void store_acts(Act* to, const I16& x) {
  const __m128i order = Nibbles ? _mm_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 10, 11, 6, 7, 14, 15)
                                : _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  const __m256i words = _mm256_shuffle_epi8(narrow_words(x), _mm256_broadcastsi128_si256(order));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
}

#endif

PYLLM_INLINE void widen_nibbles(const void* p, uint8_t* even, uint8_t* odd) {
  const __m256i lo = half_line(p, 0), hi = half_line(p, 1);
  i_store(even, {low_nibbles(lo), low_nibbles(hi)});
  i_store(odd, {high_nibbles(lo), high_nibbles(hi)});
}

}  // namespace
}  // namespace pyllm
