// What a search needs of a row of V logits: maximum, log-sum-exp, the best k. Used by pyllm/decode/_search.pyx; knows
// no policy. Random draws are in draw.h. A row is cut into blocks, so that the best few are looked for only in blocks
// whose maximum says they can be there. Ties go to the lower id everywhere.
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

constexpr size_t kAhead = 4;    // blocks fetched ahead: logits often lie in an outer cache or in memory
constexpr size_t kBlock = 512;  // 2 KB; 99 blocks for 50257 logits, more than the usual k

#if defined(__GNUC__)
namespace baseline {
typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
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
inline double block_sum(const float* x, size_t n, float max) {
  double total = 0.0;
  for (size_t i = 0; i < n; ++i) total += std::exp(double(x[i] - max));
  return total;
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
#include "lanes.h"
}  // namespace avx2
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f")
namespace avx512 {
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
static inline Floats multiply_add(Floats a, Floats b, Floats c) { return (Floats)_mm512_fmadd_ps(a, b, c); }
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
  double (*block_sum)(const float* x, size_t n, float max);
};

inline std::vector<RowKernels> available_row_kernels() {  // the best one last
  std::vector<RowKernels> all{{baseline::block_max, baseline::block_sum}};
#if defined(PYLLM_SEARCH_X86)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    all.push_back({avx2::block_max, avx2::block_sum});
  if (__builtin_cpu_supports("avx512f")) all.push_back({avx512::block_max, avx512::block_sum});
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

// A row and the maxima of its blocks; with `summed` also the sums of exp(x - maximum of the block), taken while a block
// is in the L1 cache.
struct Row {
  const float* x;
  size_t n;
  std::vector<float> tops;
  std::vector<double> sums;
  float max = -INFINITY;
  bool has_nan = false;

  Row(const float* values, size_t count, bool summed = false)
      : x(values), n(count), tops((count + kBlock - 1) / kBlock) {
    if (summed) sums.resize(tops.size());
    for (size_t b = 0; b < tops.size(); ++b) {
      if (b + kAhead < tops.size()) prefetch(x + (b + kAhead) * kBlock, size_of(b + kAhead));
      tops[b] = kRow.block_max(x + b * kBlock, size_of(b), &has_nan);
      max = tops[b] > max ? tops[b] : max;
      if (summed) sums[b] = block_sum(b);
    }
  }
  double block_sum(size_t b) const {
    return std::isfinite(tops[b]) ? kRow.block_sum(x + b * kBlock, size_of(b), tops[b]) : 0.0;
  }
  size_t size_of(size_t block) const { return std::min(kBlock, n - block * kBlock); }
  // No NaN and a finite maximum: a softmax of this row exists.
  bool normal() const { return !has_nan && std::isfinite(max); }

  size_t argmax() const {
    for (size_t b = 0; b < tops.size(); ++b) {
      if (tops[b] == max)
        return b * kBlock + (std::find(x + b * kBlock, x + b * kBlock + size_of(b), max) - (x + b * kBlock));
    }
    return 0;
  }

  // Sums of exp(x - max) over the blocks; the maximum is finite.
  std::vector<double> sums_exp() const {
    std::vector<double> scaled(tops.size());
    for (size_t b = 0; b < scaled.size(); ++b) {
      scaled[b] = (sums.empty() ? block_sum(b) : sums[b]) * std::exp(double(tops[b]) - max);
    }
    return scaled;
  }
  double sum_exp() const {
    double total = 0.0;
    for (double sum : sums_exp()) total += sum;
    return total;
  }
  // NaN where softmax is undefined (a NaN or +inf in the row), -inf for a row of -inf.
  double log_sum_exp() const {
    if (normal()) return max + std::log(sum_exp());
    return has_nan || max > 0 ? NAN : -INFINITY;
  }

  // All values >= threshold in order of id; stops early once there are more than `limit`.
  std::vector<Candidate> at_least(float threshold, size_t limit = SIZE_MAX) const {
    std::vector<Candidate> found;
    for (size_t b = 0; b < tops.size() && found.size() <= limit; ++b) {
      if (!(tops[b] >= threshold)) continue;
      const size_t end = b * kBlock + size_of(b);
      for (size_t i = b * kBlock; i < end; ++i) {
        if (x[i] >= threshold) found.push_back({x[i], int32_t(i)});
      }
    }
    return found;
  }
  // The same for thresholds that many values reach: without a branch that would be mispredicted as often as not.
  std::vector<Candidate> many_at_least(float threshold) const {
    std::vector<Candidate> found;
    size_t count = 0;
    for (size_t b = 0; b < tops.size(); ++b) {
      if (!(tops[b] >= threshold)) continue;
      found.resize(count + kBlock);
      const size_t end = b * kBlock + size_of(b);
      for (size_t i = b * kBlock; i < end; ++i) {
        found[count] = {x[i], int32_t(i)};
        count += x[i] >= threshold;
      }
    }
    found.resize(count);
    return found;
  }

  // A value that at least k of the row's values reach (1 <= k <= n), near the k-th largest.
  float reached_by(size_t k) const {
    if (k <= tops.size()) {  // k blocks hold one such value each
      std::vector<float> sorted(tops);
      std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), [](float a, float b) { return a > b; });
      return sorted[k - 1];
    }
    for (float below = 4.0f; std::isfinite(max) && below < 1e30f; below *= 2) {
      if (at_least(max - below, k).size() >= k) return max - below;
    }
    return -INFINITY;
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
// itself or, with `normalise`, its log-probability; rows are `stride` floats apart. False when a row has no softmax
// (NaN or +inf).
struct Continuation {
  float score;
  int32_t row;
  int32_t id;
};
inline bool continuations(const float* x, size_t rows, size_t stride, size_t n, const float* running, size_t k,
                          bool normalise, std::vector<Continuation>& out) {
  for (size_t r = 0; r < rows; ++r) {
    const Row row(x + r * stride, n, normalise);
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
