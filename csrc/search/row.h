// What a search needs of a row of V logits: maximum, log-sum-exp, the best k. Used by pyllm/decode/_search.pyx; knows
// no policy. Random draws are in draw.h. A row is cut into blocks of 64, each with its maximum and its sum of
// exponentials, so that most of the row need not be read; whoever computed the logits may have summarised them already.
// Ties go to the lower id everywhere.
#pragma once
#include "row_kernels.h"

namespace pyllm {
namespace search {
namespace {

struct Candidate {
  float value;
  int32_t id;
};
inline bool better(const Candidate& a, const Candidate& b) {
  return a.value > b.value || (a.value == b.value && a.id < b.id);
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
