// The loops of a search over a row of logits, once per instruction set, and the choice among them: what lanes.h holds.
// Ties go to the lower id everywhere.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define PYLLM_SEARCH_X86 1
#include <immintrin.h>
#endif

namespace pyllm {
namespace search {
namespace {

constexpr size_t kBlock = 64;  // a panel of csrc/kernels.h
constexpr size_t kAhead = 32;  // blocks fetched ahead: logits often lie in an outer cache or in memory

#if defined(__GNUC__)
namespace baseline {
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
static inline float reduce_max(const Floats* v) {
  Floats m = v[0];
  for (int k = 1; k < 4; ++k) m = v[k] > m ? v[k] : m;
  return std::max(std::max(m[0], m[1]), std::max(m[2], m[3]));
}
// The sum by a fixed tree: lanes (i, i + 8), (i, i + 4), (i, i + 2), (i, i + 1).
static inline float reduce_add(const Floats* v) {
  const Floats s = (v[0] + v[2]) + (v[1] + v[3]);
  return (s[0] + s[2]) + (s[1] + s[3]);
}
static inline bool any(const Ints* v) {
  const Ints all = v[0] | v[1] | v[2] | v[3];
  return all[0] | all[1] | all[2] | all[3];
}
typedef double Pair __attribute__((vector_size(16)));
static inline void widen(Floats v, Pair& low, Pair& high) {
  low = Pair{v[0], v[1]};
  high = Pair{v[2], v[3]};
}
static inline Floats evens(Floats a, Floats b) { return Floats{a[0], a[2], b[0], b[2]}; }
static inline Floats odds(Floats a, Floats b) { return Floats{a[1], a[3], b[1], b[3]}; }
static inline unsigned at_least(Floats v, float bound) {
  const Ints reached = v >= bound;
  return unsigned((reached[0] & 1) | (reached[1] & 2) | (reached[2] & 4) | (reached[3] & 8));
}
// Writes the lanes named by the bits one after the other, and something to the rest of kLanes places.
static inline void compress(Floats v, unsigned bits, float* out) {
  for (int l = 0; l < 4; ++l) {
    *out = v[l];
    out += bits >> l & 1;
  }
}
#include "lanes.h"
}  // namespace baseline
#else
namespace baseline {  // without vector types: the same functions as plain loops
inline float block_max(const float* x, size_t n, bool* has_nan) {
  float top = -INFINITY;
  for (size_t i = 0; i < n; ++i) {
    top = x[i] > top ? x[i] : top;
    if (x[i] != x[i]) *has_nan = true;
  }
  return top;
}
inline float block_sum(const float* x, size_t n, float max, float scale) {
  double total = 0.0;
  for (size_t i = 0; i < n; ++i) total += std::exp(double((x[i] - max) * scale));
  return float(total);
}
inline float scan(const float* x, size_t n, float scale, float* tops, float* sums, bool* has_nan) {
  float largest = -INFINITY;
  for (size_t b = 0; b * kBlock < n; ++b) {
    const size_t size = std::min(kBlock, n - b * kBlock);
    tops[b] = block_max(x + b * kBlock, size, has_nan);
    largest = tops[b] > largest ? tops[b] : largest;
    if (sums) sums[b] = std::isfinite(tops[b]) ? block_sum(x + b * kBlock, size, tops[b], scale) : 0.0f;
  }
  return largest;
}
inline float take_apart(const float* pairs, size_t n, float* tops, float* sums, bool* odd) {
  float largest = -INFINITY;
  *odd = false;
  for (size_t i = 0; i < n; ++i) {
    tops[i] = pairs[2 * i];
    sums[i] = pairs[2 * i + 1];
    largest = tops[i] > largest ? tops[i] : largest;
    *odd |= !(sums[i] >= 0.0f);
  }
  return largest;
}
inline double weigh(const float* tops, const float* sums, size_t n, float max, float scale, float* weights) {
  double total = 0.0;
  for (size_t i = 0; i < n; ++i) total += weights[i] = sums[i] * float(std::exp(double((tops[i] - max) * scale)));
  return total;
}
inline size_t count_at_least(const float* x, size_t n, float bound) {
  size_t total = 0;
  for (size_t i = 0; i < n; ++i) total += x[i] >= bound;
  return total;
}
inline void powers(const float* x, size_t n, float limit, float max, float scale, float* weights) {
  for (size_t i = 0; i < n; ++i) weights[i] = x[i] < limit ? float(std::exp(double((x[i] - max) * scale))) : 0.0f;
}
inline double sum_at_least(const float* x, const float* weights, size_t n, float bound) {
  double total = 0.0;
  for (size_t i = 0; i < n; ++i) total += x[i] >= bound ? weights[i] : 0.0f;
  return total;
}
inline void sums_at_least(const float* x, const float* weights, size_t n, float bound, float* sums) {
  for (size_t i = 0; i < n; i += 64) sums[i / 64] = float(sum_at_least(x + i, weights + i, 64, bound));
}
inline size_t collect(const float* x, size_t n, const int32_t* blocks, size_t count, float bound, float* out,
                      uint32_t* starts) {
  size_t found = 0;
  for (size_t at = 0; at < count; ++at) {
    starts[at] = uint32_t(found);
    const size_t first = size_t(blocks[at]) * kBlock;
    for (size_t i = first; i < std::min(first + kBlock, n); ++i) {
      if (x[i] >= bound) out[found++] = x[i];
    }
  }
  return found;
}
inline size_t between(const float* x, const float* weights, size_t n, float low, float high, float* out,
                      float* out_weights) {
  size_t found = 0;
  for (size_t i = 0; i < n; ++i) {
    if (!(x[i] >= low && x[i] < high)) continue;
    out_weights[found] = weights[i];
    out[found++] = x[i];
  }
  return found;
}
inline uint64_t which_at_least(const float* x, size_t n, float bound) {
  uint64_t bits = 0;
  for (size_t i = 0; i < n; ++i) bits |= uint64_t(x[i] >= bound) << i;
  return bits;
}
}  // namespace baseline
#endif

// gcc compiles part of a file for another instruction set; nothing in these namespaces is visible to a linker.
#if defined(PYLLM_SEARCH_X86)
#pragma GCC push_options
#pragma GCC target("avx2,fma,popcnt")
namespace avx2 {
typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return (Floats)_mm256_fmadd_ps(a, b, c); }
static inline float reduce_max(const Floats* v) {
  const __m256 m8 = _mm256_max_ps(v[0], v[1]);
  const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
  const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
  return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}
static inline float reduce_add(const Floats* v) {
  const __m256 s8 = _mm256_add_ps(v[0], v[1]);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
static inline bool any(const Ints* v) {
  const __m256i all = (__m256i)(v[0] | v[1]);
  return !_mm256_testz_si256(all, all);
}
static inline void widen(Floats v, __m256d& low, __m256d& high) {
  low = _mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v));
  high = _mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1));
}
static inline Floats in_order(__m256 v) {  // quarters 0 2 1 3
  return (Floats)_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8);
}
static inline Floats evens(Floats a, Floats b) { return in_order(_mm256_shuffle_ps(a, b, 0x88)); }
static inline Floats odds(Floats a, Floats b) { return in_order(_mm256_shuffle_ps(a, b, 0xdd)); }
static inline unsigned at_least(Floats v, float bound) { return unsigned(_mm256_movemask_ps((__m256)(v >= bound))); }
// Byte i of entry `bits`: the i-th of the lanes that the bits name.
struct LaneTable {
  uint64_t lanes[256];
  constexpr LaneTable() : lanes() {
    for (unsigned bits = 0; bits < 256; ++bits) {
      unsigned at = 0;
      for (unsigned l = 0; l < 8; ++l) {
        if (bits >> l & 1) lanes[bits] |= uint64_t(l) << (8 * at++);
      }
    }
  }
};
constexpr LaneTable kLaneTable;
static inline void compress(Floats v, unsigned bits, float* out) {
  const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)&kLaneTable.lanes[bits]));
  _mm256_storeu_ps(out, _mm256_permutevar8x32_ps((__m256)v, lanes));
}
#include "lanes.h"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,popcnt")
namespace avx512 {
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps(a, b, c); }
static inline float reduce_max(const Floats* v) {
  __m256 half[2];
  std::memcpy(half, v, 64);
  const __m256 m8 = _mm256_max_ps(half[0], half[1]);
  const __m128 m4 = _mm_max_ps(_mm256_castps256_ps128(m8), _mm256_extractf128_ps(m8, 1));
  const __m128 m2 = _mm_max_ps(m4, _mm_movehl_ps(m4, m4));
  return _mm_cvtss_f32(_mm_max_ss(m2, _mm_movehdup_ps(m2)));
}
static inline float reduce_add(const Floats* v) {
  __m256 half[2];
  std::memcpy(half, v, 64);
  const __m256 s8 = _mm256_add_ps(half[0], half[1]);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_movehdup_ps(s2)));
}
static inline bool any(const Ints* v) { return _mm512_test_epi32_mask((__m512i)*v, (__m512i)*v) != 0; }
static inline void widen(Floats v, __m512d& low, __m512d& high) {
  typedef double Wide __attribute__((vector_size(64)));
  low = (__m512d) __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), Wide);
  high = (__m512d) __builtin_convertvector(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15), Wide);
}
static inline Floats evens(Floats a, Floats b) {
  const __m512i which = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  return (Floats)_mm512_permutex2var_ps(a, which, b);
}
static inline Floats odds(Floats a, Floats b) {
  const __m512i which = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
  return (Floats)_mm512_permutex2var_ps(a, which, b);
}
static inline unsigned at_least(Floats v, float bound) {
  return _mm512_cmp_ps_mask(v, _mm512_set1_ps(bound), _CMP_GE_OQ);
}
static inline void compress(Floats v, unsigned bits, float* out) {
  const __m512 packed = _mm512_maskz_compress_ps(__mmask16(bits), v);
  std::memcpy(out, &packed, 32);  // 64 bytes would nearly always lie on two cache lines
  if (__builtin_popcount(bits) > 8) _mm512_storeu_ps(out, packed);
}
#include "lanes.h"
}  // namespace avx512
#pragma GCC pop_options
#endif

inline void prefetch(const float* x, size_t n) {
#if defined(__GNUC__)
  for (size_t i = 0; i < n; i += 16) __builtin_prefetch(x + i);
#else
  (void)x, (void)n;
#endif
}

struct RowKernels {
  float (*block_max)(const float* x, size_t n, bool* has_nan);
  float (*block_sum)(const float* x, size_t n, float max, float scale);
  float (*scan)(const float* x, size_t n, float scale, float* tops, float* sums, bool* has_nan);
  float (*take_apart)(const float* pairs, size_t n, float* tops, float* sums, bool* odd);
  double (*weigh)(const float* tops, const float* sums, size_t n, float max, float scale, float* weights);
  size_t (*count_at_least)(const float* x, size_t n, float bound);
  void (*powers)(const float* x, size_t n, float limit, float max, float scale, float* weights);
  double (*sum_at_least)(const float* x, const float* weights, size_t n, float bound);
  void (*sums_at_least)(const float* x, const float* weights, size_t n, float bound, float* sums);
  size_t (*collect)(const float* x, size_t n, const int32_t* blocks, size_t count, float bound, float* out,
                    uint32_t* starts);
  size_t (*between)(const float* x, const float* weights, size_t n, float low, float high, float* out,
                    float* out_weights);
  uint64_t (*which_at_least)(const float* x, size_t n, float bound);
};
#define PYLLM_ROW_KERNELS(space)                                                                             \
  RowKernels {                                                                                               \
    space::block_max, space::block_sum, space::scan, space::take_apart, space::weigh, space::count_at_least, \
        space::powers, space::sum_at_least, space::sums_at_least, space::collect, space::between,            \
        space::which_at_least                                                                                \
  }

inline std::vector<RowKernels> available_row_kernels() {  // the best one last
  std::vector<RowKernels> all{PYLLM_ROW_KERNELS(baseline)};
#if defined(PYLLM_SEARCH_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back(PYLLM_ROW_KERNELS(avx2));
  if (__builtin_cpu_supports("avx512f")) all.push_back(PYLLM_ROW_KERNELS(avx512));
#endif
  return all;
}

RowKernels kRow = available_row_kernels().back();  // written by tests only

inline int lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
  return __builtin_ctzll(bits);
#else
  int i = 0;
  while (!(bits >> i & 1)) ++i;
  return i;
#endif
}

}  // namespace
}  // namespace search
}  // namespace pyllm
