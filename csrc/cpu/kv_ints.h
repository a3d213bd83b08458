// Integer products of attention over int8 keys and values: 16 sums at a time, each over quads of four unsigned codes
// times four 16-bit numbers. Include a vec_*.h first. The sums are exact, so every form gives the same bits:
//   VNNI    two int8 planes of the 16-bit numbers, a VPDPBUSD for each; a quad of numbers is [4 high][4 low] bytes
//   others  VPMADDWD over codes widened to 16 bits;                    a quad is 16-bit [0][2][1][3]
#pragma once
#include <cstring>

#include "cpu/dot.h"
#include "cpu/rows.h"

#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
#define PYLLM_KV_VNNI 1
#endif

namespace pyllm {
namespace {

constexpr int kQuadBytes = 8;  // of four 16-bit numbers, whatever their form

#if defined(__AVX512F__)
// Of non-negative floats: the larger one; NaN is larger than infinity.
PYLLM_INLINE F16 f_larger(const F16& x, const F16& y) {
  return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(x.v), _mm512_castps_si512(y.v)))};
}
PYLLM_INLINE float f_reduce_larger(const F16& x) {
  const __m256i m8 = _mm256_max_epi32(_mm512_castsi512_si256(_mm512_castps_si512(x.v)),
                                      _mm512_extracti64x4_epi64(_mm512_castps_si512(x.v), 1));
  const __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
  const __m128i m2 = _mm_max_epi32(m4, _mm_unpackhi_epi64(m4, m4));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(m2, _mm_shuffle_epi32(m2, 1))));
}
// Writes 16 codes (-127..127) plus 128 as bytes.
PYLLM_INLINE void store_codes(uint8_t* p, const I16& x) {
  const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_add_epi32(x.v, _mm512_set1_epi32(128)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
#elif defined(__AVX2__)
// Of non-negative floats: the larger one; NaN is larger than infinity.
PYLLM_INLINE F16 f_larger(const F16& x, const F16& y) {
  const auto larger = [](__m256 a, __m256 b) {
    return _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
  };
  return {larger(x.lo, y.lo), larger(x.hi, y.hi)};
}
PYLLM_INLINE float f_reduce_larger(const F16& x) {
  const __m256i m8 = _mm256_max_epi32(_mm256_castps_si256(x.lo), _mm256_castps_si256(x.hi));
  const __m128i m4 = _mm_max_epi32(_mm256_castsi256_si128(m8), _mm256_extracti128_si256(m8, 1));
  const __m128i m2 = _mm_max_epi32(m4, _mm_unpackhi_epi64(m4, m4));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(m2, _mm_shuffle_epi32(m2, 1))));
}
// 16 integers that fit 16 bits, in order.
PYLLM_INLINE __m256i i_narrow(const I16& x) { return _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8); }
// Writes 16 codes (-127..127) plus 128 as bytes.
PYLLM_INLINE void store_codes(uint8_t* p, const I16& x) {
  const __m256i w = _mm256_add_epi16(i_narrow(x), _mm256_set1_epi16(128));
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
#else
// Of non-negative floats: the larger one; NaN is larger than infinity.
PYLLM_INLINE F16 f_larger(const F16& x, const F16& y) {
  return f_map(x, y, [](V4 p, V4 q) { return v4_choose(bits_as<I4>(p) > bits_as<I4>(q), p, q); });
}
PYLLM_INLINE float f_reduce_larger(const F16& x) {
  int32_t lanes[16], most = 0;
  std::memcpy(lanes, &x, sizeof lanes);
  for (int32_t lane : lanes) most = lane > most ? lane : most;
  return bits_as<float>(most);
}
// Writes 16 codes (-127..127) plus 128 as bytes.
PYLLM_INLINE void store_codes(uint8_t* p, const I16& x) {
  int32_t codes[16];
  std::memcpy(codes, &x, sizeof codes);
  for (int i = 0; i < 16; ++i) p[i] = uint8_t(codes[i] + 128);
}
#endif

// --- quads of 16-bit numbers, lines of 64 codes, sums of their products

#if defined(__AVX512F__) && defined(PYLLM_KV_VNNI)
struct QuadSum {
  __m512i high, low;
};
PYLLM_INLINE void store_quads(uint8_t* p, const I16& x) {
  const __m128i low = _mm512_cvtepi32_epi8(x.v);
  const __m128i high = _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_add_epi32(x.v, _mm512_set1_epi32(128)), 8));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_unpacklo_epi32(high, low));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + 1, _mm_unpackhi_epi32(high, low));
}
struct CodeLine {
  __m512i v;
};
PYLLM_INLINE CodeLine load_codes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
PYLLM_INLINE QuadSum quad_start(int32_t x) { return {_mm512_setzero_si512(), _mm512_set1_epi32(x)}; }
PYLLM_INLINE void add_quad(QuadSum& sum, const CodeLine& codes, const uint8_t* quad) {
  int32_t high, low;
  std::memcpy(&high, quad, 4);
  std::memcpy(&low, quad + 4, 4);
  sum.high = _mm512_dpbusd_epi32(sum.high, codes.v, _mm512_set1_epi32(high));
  sum.low = _mm512_dpbusd_epi32(sum.low, codes.v, _mm512_set1_epi32(low));
}
PYLLM_INLINE F16 quad_float(const QuadSum& s) {
  return i_to_float({_mm512_add_epi32(_mm512_slli_epi32(s.high, 8), s.low)});
}
#elif defined(__AVX512F__)
struct QuadSum {
  __m512i v;
};
PYLLM_INLINE void store_quads(uint8_t* p, const I16& x) {
  const __m256i order = _mm256_set_epi8(15, 14, 11, 10, 13, 12, 9, 8, 7, 6, 3, 2, 5, 4, 1, 0, 15, 14, 11, 10, 13, 12, 9,
                                        8, 7, 6, 3, 2, 5, 4, 1, 0);
  const __m256i quads = _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(x.v), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), quads);
}
struct CodeLine {
  __m512i even, odd;
};
PYLLM_INLINE CodeLine load_codes(const uint8_t* p) {
  const __m512i v = _mm512_loadu_si512(p);
  return {_mm512_and_si512(v, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(v, 8)};
}
PYLLM_INLINE QuadSum quad_start(int32_t x) { return {_mm512_set1_epi32(x)}; }
PYLLM_INLINE void add_quad(QuadSum& sum, const CodeLine& codes, const uint8_t* quad) {
  int32_t even, odd;
  std::memcpy(&even, quad, 4);
  std::memcpy(&odd, quad + 4, 4);
  sum.v = _mm512_add_epi32(sum.v, _mm512_madd_epi16(codes.even, _mm512_set1_epi32(even)));
  sum.v = _mm512_add_epi32(sum.v, _mm512_madd_epi16(codes.odd, _mm512_set1_epi32(odd)));
}
PYLLM_INLINE F16 quad_float(const QuadSum& s) { return i_to_float({s.v}); }
#elif defined(__AVX2__)
#if defined(PYLLM_KV_VNNI)
struct QuadSum {
  __m256i high[2], low[2];
};
PYLLM_INLINE void store_quads(uint8_t* p, const I16& x) {
  const __m256i w = i_narrow(x), low_bytes = _mm256_set1_epi16(0xff);
  const __m256i high = _mm256_and_si256(_mm256_srai_epi16(_mm256_add_epi16(w, _mm256_set1_epi16(128)), 8), low_bytes);
  const __m256i low = _mm256_and_si256(w, low_bytes);
  // Each 128-bit lane: eight high, then eight low bytes, as [4 high][4 low] twice.
  const __m256i planes = _mm256_shuffle_epi32(_mm256_packus_epi16(high, low), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), planes);
}
struct CodeLine {
  __m256i v[2];
};
PYLLM_INLINE CodeLine load_codes(const uint8_t* p) { return {{half_line(p, 0), half_line(p, 1)}}; }
PYLLM_INLINE QuadSum quad_start(int32_t x) {
  const __m256i zero = _mm256_setzero_si256(), start = _mm256_set1_epi32(x);
  return {{zero, zero}, {start, start}};
}
PYLLM_INLINE void add_quad(QuadSum& sum, const CodeLine& codes, const uint8_t* quad) {
  int32_t high, low;
  std::memcpy(&high, quad, 4);
  std::memcpy(&low, quad + 4, 4);
  const __m256i h = _mm256_set1_epi32(high), l = _mm256_set1_epi32(low);
  for (int i = 0; i < 2; ++i) {
    sum.high[i] = _mm256_dpbusd_avx_epi32(sum.high[i], codes.v[i], h);
    sum.low[i] = _mm256_dpbusd_avx_epi32(sum.low[i], codes.v[i], l);
  }
}
PYLLM_INLINE F16 quad_float(const QuadSum& s) {
  return i_to_float({_mm256_add_epi32(_mm256_slli_epi32(s.high[0], 8), s.low[0]),
                     _mm256_add_epi32(_mm256_slli_epi32(s.high[1], 8), s.low[1])});
}
#else
struct QuadSum {
  __m256i v[2];
};
PYLLM_INLINE void store_quads(uint8_t* p, const I16& x) {
  const __m256i order = _mm256_set_epi8(15, 14, 11, 10, 13, 12, 9, 8, 7, 6, 3, 2, 5, 4, 1, 0, 15, 14, 11, 10, 13, 12, 9,
                                        8, 7, 6, 3, 2, 5, 4, 1, 0);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_shuffle_epi8(i_narrow(x), order));
}
struct CodeLine {
  __m256i even[2], odd[2];
};
PYLLM_INLINE CodeLine load_codes(const uint8_t* p) {
  const __m256i a = half_line(p, 0), b = half_line(p, 1), mask = _mm256_set1_epi16(0xff);
  return {{_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)}, {_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8)}};
}
PYLLM_INLINE QuadSum quad_start(int32_t x) { return {{_mm256_set1_epi32(x), _mm256_set1_epi32(x)}}; }
PYLLM_INLINE void add_quad(QuadSum& sum, const CodeLine& codes, const uint8_t* quad) {
  int32_t even, odd;
  std::memcpy(&even, quad, 4);
  std::memcpy(&odd, quad + 4, 4);
  const __m256i e = _mm256_set1_epi32(even), o = _mm256_set1_epi32(odd);
  for (int i = 0; i < 2; ++i) {
    sum.v[i] = _mm256_add_epi32(sum.v[i], _mm256_madd_epi16(codes.even[i], e));
    sum.v[i] = _mm256_add_epi32(sum.v[i], _mm256_madd_epi16(codes.odd[i], o));
  }
}
PYLLM_INLINE F16 quad_float(const QuadSum& s) { return i_to_float({s.v[0], s.v[1]}); }
#endif
#else
struct QuadSum {
  uint32_t v[16];
};
PYLLM_INLINE void store_quads(uint8_t* p, const I16& x) {
  int32_t lanes[16];
  int16_t quads[16];
  std::memcpy(lanes, &x, sizeof lanes);
  for (int i = 0; i < 16; ++i) quads[i] = int16_t(lanes[i / 4 * 4 + i % 2 * 2 + i % 4 / 2]);
  std::memcpy(p, quads, sizeof quads);
}
struct CodeLine {
  const uint8_t* p;
};
PYLLM_INLINE CodeLine load_codes(const uint8_t* p) { return {p}; }
PYLLM_INLINE QuadSum quad_start(int32_t x) {
  QuadSum s;
  for (uint32_t& v : s.v) v = uint32_t(x);
  return s;
}
PYLLM_INLINE void add_quad(QuadSum& sum, const CodeLine& codes, const uint8_t* quad) {
  int16_t q[4];
  std::memcpy(q, quad, sizeof q);
  for (int i = 0; i < 16; ++i) {
    const uint8_t* c = codes.p + 4 * i;
    sum.v[i] += uint32_t(c[0] * q[0] + c[2] * q[1]) + uint32_t(c[1] * q[2] + c[3] * q[3]);
  }
}
PYLLM_INLINE F16 quad_float(const QuadSum& s) {
  I16 x;
  std::memcpy(&x, s.v, sizeof x);
  return i_to_float(x);
}
#endif

}  // namespace
}  // namespace pyllm
