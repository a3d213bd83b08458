// What a search needs of a row of V logits: maximum, log-sum-exp, the best k. Used by pyllm/decode/_search.pyx; knows
// no policy. Random draws are in draw.h. A row is cut into blocks of 64, each with its maximum and its sum of
// exponentials, so that most of the row need not be read; whoever computed the logits may have summarised them already.
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
static inline Floats evens(Floats a, Floats b) { return Floats{a[0], a[2], b[0], b[2]}; }
static inline Floats odds(Floats a, Floats b) { return Floats{a[1], a[3], b[1], b[3]}; }
static inline unsigned at_least(Floats v, float bound) {
  const Ints reached = v >= bound;
  return unsigned((reached[0] & 1) | (reached[1] & 2) | (reached[2] & 4) | (reached[3] & 8));
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
inline float sum_at_least(const float* x, size_t n, float bound, float max, float scale, size_t* count) {
  double total = 0.0;
  for (size_t i = 0; i < n; ++i) {
    if (!(x[i] >= bound)) continue;
    total += std::exp(double((x[i] - max) * scale));
    ++*count;
  }
  return float(total);
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
#pragma GCC target("avx2,fma")
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
static inline Floats in_order(__m256 v) {  // quarters 0 2 1 3
  return (Floats)_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8);
}
static inline Floats evens(Floats a, Floats b) { return in_order(_mm256_shuffle_ps(a, b, 0x88)); }
static inline Floats odds(Floats a, Floats b) { return in_order(_mm256_shuffle_ps(a, b, 0xdd)); }
static inline unsigned at_least(Floats v, float bound) { return unsigned(_mm256_movemask_ps((__m256)(v >= bound))); }
#include "lanes.h"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f")
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
  float (*sum_at_least)(const float* x, size_t n, float bound, float max, float scale, size_t* count);
  uint64_t (*which_at_least)(const float* x, size_t n, float bound);
};
#define PYLLM_ROW_KERNELS(space)                                                                             \
  RowKernels {                                                                                               \
    space::block_max, space::block_sum, space::scan, space::take_apart, space::weigh, space::count_at_least, \
        space::sum_at_least, space::which_at_least                                                           \
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

struct Candidate {
  float value;
  int32_t id;
};
inline bool better(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
}
inline int lowest_bit(uint64_t bits) {
#if defined(__GNUC__)
  return __builtin_ctzll(bits);
#else
  int i = 0;
  while (!(bits >> i & 1)) ++i;
  return i;
#endif
}

// A row, the maxima of its blocks, and the sums of exp((x - maximum of the block) * scale) where they are wanted.
// `summary` holds maximum and sum of each block, or is nullptr: then the row is read. Its sums are of `summary_scale`.
struct Row {
  const float* x;
  size_t n;
  size_t count;             // blocks
  std::vector<float> tops;  // padded to a multiple of 16 with -inf
  std::vector<float> sums;  // the same, empty until they are wanted
  float scale;
  float max = -INFINITY;
  bool has_nan = false;

  Row(const float* values, size_t size, bool summed = false, float scale_ = 1.0f, const float* summary = nullptr,
      float summary_scale = 1.0f)
      : x(values),
        n(size),
        count((size + kBlock - 1) / kBlock),
        tops((count + 15) / 16 * 16, -INFINITY),
        scale(scale_) {
    if (summary) {
      read(summary);
      for (size_t b = 0; b < count && summed && scale != summary_scale; ++b) sums[b] = block_sum(b);
      return;
    }
    if (summed) sums.resize(tops.size());
    max = kRow.scan(x, n, scale, tops.data(), summed ? sums.data() : nullptr, &has_nan);
  }

  // Takes the blocks from a summary. A sum is NaN where the block holds NaN or +inf, or nothing but -inf.
  void read(const float* summary) {
    bool odd;
    sums.resize(tops.size());
    max = kRow.take_apart(summary, count, tops.data(), sums.data(), &odd);
    for (size_t b = 0; odd && b < count; ++b) {
      if (sums[b] >= 0.0f) continue;
      tops[b] = kRow.block_max(x + b * kBlock, size_of(b), &has_nan);
      max = tops[b] > max ? tops[b] : max;
      sums[b] = block_sum(b);
    }
  }
  float block_sum(size_t b) const {
    return std::isfinite(tops[b]) ? kRow.block_sum(x + b * kBlock, size_of(b), tops[b], scale) : 0.0f;
  }
  size_t size_of(size_t block) const { return std::min(kBlock, n - block * kBlock); }
  // No NaN and a finite maximum: a softmax of this row exists.
  bool normal() const { return !has_nan && std::isfinite(max); }

  size_t argmax() const {
    for (size_t b = 0; b < count; ++b) {
      if (tops[b] == max)
        return b * kBlock + (std::find(x + b * kBlock, x + b * kBlock + size_of(b), max) - (x + b * kBlock));
    }
    return 0;
  }

  // Sums of exp((x - max) * scale) over the blocks (padded with 0), and their sum, which never depends on where the
  // blocks came from; the maximum is finite.
  std::vector<float> weights(double* total) const {
    std::vector<float> all(tops.size()), own;
    if (sums.empty()) {
      own.resize(tops.size());
      for (size_t b = 0; b < count; ++b) own[b] = block_sum(b);
    }
    const float* from = sums.empty() ? own.data() : sums.data();
    *total = kRow.weigh(tops.data(), from, tops.size(), max, scale, all.data());
    return all;
  }
  // NaN where softmax is undefined (a NaN or +inf in the row), -inf for a row of -inf.
  double log_sum_exp() const {
    if (!normal()) return has_nan || max > 0 ? NAN : -INFINITY;
    double total;
    weights(&total);
    return max + std::log(total) / scale;
  }

  // The values that reach a bound: how many, and their share of the sum of exp((x - max) * scale).
  struct Reached {
    float bound;
    double sum;
    size_t count;
  };
  Reached reaching(float bound) const {
    Reached found{bound, 0.0, 0};
    for (size_t b = 0; b < count; ++b) {
      if (!(tops[b] >= bound)) continue;
      found.sum += kRow.sum_at_least(x + b * kBlock, size_of(b), bound, max, scale, &found.count);
    }
    return found;
  }

  // All values >= threshold in order of id.
  std::vector<Candidate> at_least(float threshold) const {
    std::vector<int32_t> blocks;
    blocks.reserve(count);
    for (size_t i = 0; i < count; i += kBlock) {
      uint64_t bits = kRow.which_at_least(&tops[i], std::min(kBlock, count - i), threshold);
      for (; bits; bits &= bits - 1) {
        blocks.push_back(int32_t(i + lowest_bit(bits)));
        if (blocks.size() <= kAhead) prefetch(x + blocks.back() * kBlock, size_of(blocks.back()));
      }
    }
    std::vector<Candidate> found;
    found.reserve(2 * blocks.size());
    for (size_t at = 0; at < blocks.size(); ++at) {
      if (at + kAhead < blocks.size()) prefetch(x + blocks[at + kAhead] * kBlock, size_of(blocks[at + kAhead]));
      const size_t first = size_t(blocks[at]) * kBlock;
      uint64_t bits = kRow.which_at_least(x + first, std::min(kBlock, n - first), threshold);
      for (; bits; bits &= bits - 1) {
        const size_t id = first + lowest_bit(bits);
        found.push_back({x[id], int32_t(id)});
      }
    }
    return found;
  }

  // A value that at least k of the row's values reach (1 <= k <= n), near the k-th largest.
  float reached_by(size_t k) const {
    float below = 1.0f;
    if (k > count) {  // more than the maxima can tell
      for (below = 4.0f; std::isfinite(max) && below < 1e30f; below *= 2) {
        if (at_least(max - below).size() >= k) return max - below;
      }
      return -INFINITY;
    }
    if (!std::isfinite(max)) return -INFINITY;
    // k blocks whose maximum reaches the bound hold one such value each: halve the range until hardly more than k do.
    while (below < 1e30f && kRow.count_at_least(tops.data(), tops.size(), max - below) < k) below *= 2;
    if (below >= 1e30f) return -INFINITY;
    float low = max - below, high = below > 1.0f ? max - below / 2 : max;
    for (int halving = 0; halving < 12; ++halving) {
      const float middle = low + (high - low) / 2;
      const size_t reached = kRow.count_at_least(tops.data(), tops.size(), middle);
      if (reached < k) {
        high = middle;
      } else {
        low = middle;
        if (reached <= k + k / 8) break;
      }
    }
    return low;
  }

  // The best k, best first.
  std::vector<Candidate> top_k(size_t k) const {
    k = std::min(k, n);
    if (k == 0) return {};
    std::vector<Candidate> found = at_least(reached_by(k));
    k = std::min(k, found.size());  // NaN is not among them
    std::partial_sort(found.begin(), found.begin() + k, found.end(), better);
    found.resize(k);
    return found;
  }
};

// Subtracts a double from floats without losing its low part; -inf stays -inf.
struct Shift {
  float high, low;
  explicit Shift(double by) : high(std::isinf(by) ? 0.0f : float(by)), low(std::isinf(by) ? 0.0f : float(by - high)) {}
  float of(float x) const { return (x - high) - low; }
};

// The k best continuations of `rows` sequences, best first: score = value + running[row], where value is the logit
// itself or, with `normalise`, its log-probability; rows are `stride` floats apart, their summaries (nullptr: none) one
// after the other. False when a row has no softmax (NaN or +inf).
struct Continuation {
  float score;
  int32_t row;
  int32_t id;
};
inline bool continuations(const float* x, size_t rows, size_t stride, size_t n, const float* summary,
                          const float* running, size_t k, bool normalise, std::vector<Continuation>& out) {
  const size_t blocks = (n + kBlock - 1) / kBlock;
  for (size_t r = 0; r < rows; ++r) {
    const Row row(x + r * stride, n, normalise, 1.0f, summary ? summary + r * blocks * 2 : nullptr);
    if (row.has_nan || row.max == INFINITY) return false;
    const Shift shift(normalise ? row.log_sum_exp() : 0.0);
    for (const Candidate& c : row.top_k(k)) {
      out.push_back({shift.of(c.value) + running[r], int32_t(r), c.id});
    }
  }
  const auto first = [](const Continuation& a, const Continuation& b) { return a.score > b.score; };
  std::stable_sort(out.begin(), out.end(), first);
  out.resize(std::min(out.size(), k));
  return true;
}

// Divides positive and multiplies negative values of the named tokens, each once (transformers' repetition penalty).
inline void penalise(float* x, const int64_t* ids, size_t count, float penalty) {
  std::vector<float> before(count);
  for (size_t i = 0; i < count; ++i) before[i] = x[ids[i]];
  for (size_t i = 0; i < count; ++i) x[ids[i]] = before[i] < 0 ? before[i] * penalty : before[i] / penalty;
}

// x - log_sum_exp(x), in place. False when a row has no softmax.
inline bool log_softmax(float* x, size_t n) {
  const double sum = Row(x, n, true).log_sum_exp();
  if (std::isnan(sum)) return false;
  const Shift shift(sum);
  for (size_t i = 0; i < n; ++i) x[i] = shift.of(x[i]);
  return true;
}

}  // namespace
}  // namespace search
}  // namespace pyllm
