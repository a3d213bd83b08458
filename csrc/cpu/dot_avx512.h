// I16, a vector of 16 int32, as one 512-bit register, and products of 8-bit codes with integer activations: by VPDPBUSD
// where compiled for VNNI, else widened to 16 bits (VPMADDUBSW would saturate). After vec_avx512.h; holds no kernels.
#pragma once
#include <cstring>

#include "cpu/vec_avx512.h"

namespace pyllm {
namespace {

struct I16 {
  __m512i v;
};

PYLLM_INLINE I16 i_set(int32_t x) { return {_mm512_set1_epi32(x)}; }
PYLLM_INLINE I16 i_zero() { return {_mm512_setzero_si512()}; }
PYLLM_INLINE I16 i_load(const void* p) { return {_mm512_loadu_si512(p)}; }
PYLLM_INLINE void i_store(void* p, const I16& x) { _mm512_storeu_si512(p, x.v); }
PYLLM_INLINE I16 i_add(const I16& x, const I16& y) { return {_mm512_add_epi32(x.v, y.v)}; }
PYLLM_INLINE I16 i_sub(const I16& x, const I16& y) { return {_mm512_sub_epi32(x.v, y.v)}; }
PYLLM_INLINE I16 i_max(const I16& x, const I16& y) { return {_mm512_max_epi32(x.v, y.v)}; }
template <int N>
PYLLM_INLINE I16 i_left(const I16& x) {  // x * 2^N
  return {_mm512_slli_epi32(x.v, N)};
}
template <int N>
PYLLM_INLINE I16 i_right(const I16& x) {  // x / 2^N, rounded down
  return {_mm512_srai_epi32(x.v, N)};
}
// Lanes as pairs of int16: x[0] * y[0] + x[1] * y[1].
PYLLM_INLINE I16 i_pairs(const I16& x, const I16& y) { return {_mm512_madd_epi16(x.v, y.v)}; }
PYLLM_INLINE F16 i_to_float(const I16& x) { return {_mm512_cvtepi32_ps(x.v)}; }
PYLLM_INLINE I16 f_to_ints(const F16& x) { return {_mm512_cvtps_epi32(x.v)}; }  // ties to even
// The bits of |x|: as integers they have the order of the magnitudes, NaN above infinity.
PYLLM_INLINE I16 i_magnitude(const F16& x) {
  return {_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff))};
}
PYLLM_INLINE I16 i_from_u8(const void* p) {  // 16 bytes
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
PYLLM_INLINE int32_t i_reduce_add(const I16& x) {
  const __m256i s8 = _mm256_add_epi32(_mm512_castsi512_si256(x.v), _mm512_extracti64x4_epi64(x.v, 1));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
PYLLM_INLINE int32_t i_reduce_max(const I16& x) { return _mm512_reduce_max_epi32(x.v); }

PYLLM_INLINE __m512i repeat32(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}

// Codes: what i_dot takes of one line, 16 outputs by 4 k. Quad: 4 activations of a row, for all outputs; store_acts
// writes 16 activations in the order in which quads of them meet their codes (nibbles: two quads, of even k and of
// odd k, for every 8 k).
#if defined(__AVX512VNNI__)

using Act = int8_t;
struct Codes {
  __m512i v;
};
struct Quad {
  __m512i v;
};
PYLLM_INLINE Codes codes_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
PYLLM_INLINE Codes codes_low(const void* p) {  // of 4-bit codes: even k
  return {_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(0x0f))};
}
PYLLM_INLINE Codes codes_high(const void* p) {
  return {_mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), 4), _mm512_set1_epi8(0x0f))};
}
PYLLM_INLINE Quad quad_load(const Act* x) { return {repeat32(x)}; }
PYLLM_INLINE I16 i_dot(const I16& sum, const Codes& w, const Quad& x) { return {_mm512_dpbusd_epi32(sum.v, w.v, x.v)}; }
template <bool Nibbles>
PYLLM_INLINE void store_acts(Act* to, const I16& x) {
  __m128i bytes = _mm512_cvtepi32_epi8(x.v);
  if (Nibbles) bytes = _mm_shuffle_epi8(bytes, _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
}

#else

using Act = int16_t;
struct Codes {  // pairs of 16 bits: bytes 0 and 2, bytes 1 and 3
  __m512i even, odd;
};
struct Quad {
  __m512i even, odd;
};
PYLLM_INLINE Codes codes_bytes(const void* p) {
  const __m512i v = _mm512_loadu_si512(p);
  return {_mm512_and_si512(v, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(v, 8)};
}
PYLLM_INLINE Codes codes_low(const void* p) {
  const __m512i v = _mm512_loadu_si512(p), mask = _mm512_set1_epi16(0x0f);
  return {_mm512_and_si512(v, mask), _mm512_and_si512(_mm512_srli_epi16(v, 8), mask)};
}
PYLLM_INLINE Codes codes_high(const void* p) {
  const __m512i v = _mm512_loadu_si512(p), mask = _mm512_set1_epi16(0x0f);
  return {_mm512_and_si512(_mm512_srli_epi16(v, 4), mask), _mm512_srli_epi16(v, 12)};
}
PYLLM_INLINE Quad quad_load(const Act* x) { return {repeat32(x), repeat32(x + 2)}; }
PYLLM_INLINE I16 i_dot(const I16& sum, const Codes& w, const Quad& x) {
  return {
      _mm512_add_epi32(_mm512_add_epi32(sum.v, _mm512_madd_epi16(w.even, x.even)), _mm512_madd_epi16(w.odd, x.odd))};
}
template <bool Nibbles>
PYLLM_INLINE void store_acts(Act* to, const I16& x) {
  const __m128i order = Nibbles ? _mm_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, 2, 3, 10, 11, 6, 7, 14, 15)
                                : _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  const __m256i words = _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(x.v), _mm256_broadcastsi128_si256(order));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), words);
}

#endif

// Two lines of bytes, of even and of odd k, from a line of 4-bit codes.
PYLLM_INLINE void widen_nibbles(const void* p, uint8_t* even, uint8_t* odd) {
  const __m512i v = _mm512_loadu_si512(p), mask = _mm512_set1_epi8(0x0f);
  _mm512_storeu_si512(even, _mm512_and_si512(v, mask));
  _mm512_storeu_si512(odd, _mm512_and_si512(_mm512_srli_epi16(v, 4), mask));
}

}  // namespace
}  // namespace pyllm
