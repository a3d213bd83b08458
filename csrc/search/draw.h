// Random draws from a row of V logits: counter-based uniforms, top-k, top-p and min-p sampling, draws without
// replacement.
#pragma once
#include "row.h"

namespace pyllm {
namespace search {
namespace {

constexpr size_t kFew = 1024;  // up to so many candidates are drawn from in double precision, one by one

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): counter-based, so a number
// depends on its coordinates only. Returns 53 random bits as a double in [0, 1).
inline double philox_uniform(uint64_t key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c0, p1 = uint64_t(0xCD9E8D57u) * c2;
    c0 = uint32_t(p1 >> 32) ^ c1 ^ k0;
    c1 = uint32_t(p1);
    c2 = uint32_t(p0 >> 32) ^ c3 ^ k1;
    c3 = uint32_t(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return double(((uint64_t(c1) << 32 | c0) >> 11)) * 0x1p-53;
}

// The candidate at u of the cumulative distribution exp(value), in the order given. Values are not NaN, one is finite.
inline int32_t draw_few(const std::vector<Candidate>& from, double u) {
  float max = -INFINITY;
  for (const Candidate& c : from) max = c.value > max ? c.value : max;
  double total = 0.0;
  for (const Candidate& c : from) total += std::exp(double(c.value) - max);
  double left = u * total;
  int32_t last = -1;
  for (const Candidate& c : from) {
    const double weight = std::exp(double(c.value) - max);
    if (weight > 0.0) last = c.id;
    left -= weight;
    if (left < 0.0) return last;
  }
  return last;
}

// The id at u of the cumulative softmax(x), ids ascending; -1 when there is no softmax.
inline int32_t draw(const Row& row, double u) {
  if (!row.normal()) return -1;
  const std::vector<Candidate> few = row.at_least(-3.4028235e38f, kFew);
  if (few.size() <= kFew) return draw_few(few, u);
  const std::vector<double> sums = row.sums_exp();
  double left = 0.0;
  for (double sum : sums) left += u * sum;
  size_t block = 0;
  while (block + 1 < sums.size() && left >= sums[block]) left -= sums[block++];
  int32_t last = -1;
  for (size_t i = block * kBlock; i < block * kBlock + row.size_of(block); ++i) {
    const double weight = std::exp(double(row.x[i]) - row.max);
    if (weight > 0.0) last = int32_t(i);
    left -= weight;
    if (left < 0.0) break;
  }
  return last >= 0 ? last : int32_t(row.argmax());
}

// What top-k leaves: every value that reaches the k-th largest, ties included (transformers' TopKLogitsWarper).
inline std::vector<Candidate> keep_top_k(const Row& row, size_t k) {
  std::vector<Candidate> found = row.at_least(row.reached_by(k));
  if (found.size() <= k) return found;
  std::vector<Candidate> order(found);
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), better);
  const float least = order[k - 1].value;
  found.erase(std::remove_if(found.begin(), found.end(), [=](const Candidate& c) { return c.value < least; }),
              found.end());
  return found;
}

// The sum of exp(value - max); max is finite and no less than any value.
inline double mass(const Candidate* from, size_t count, float max) {
  double total = 0.0;
  for (size_t start = 0; start < count; start += kBlock) {
    float values[kBlock];
    const size_t size = std::min(kBlock, count - start);
    for (size_t i = 0; i < size; ++i) values[i] = from[start + i].value;
    total += kRow.block_sum(values, size, max);
  }
  return total;
}

// Candidates enough for top-p: they hold at least the share p of the whole row's probability, which goes to *total.
inline std::vector<Candidate> hold_top_p(const Row& row, double p, double* total) {
  *total = row.sum_exp();
  for (float below = 3.0f; below < 128.0f; below *= 1.5f) {
    std::vector<Candidate> found = row.many_at_least(row.max - below);
    if (mass(found.data(), found.size(), row.max) >= p * *total) return found;
  }
  return row.many_at_least(-3.4028235e38f);
}

// What top-p leaves of `from`: the best, as long as those before have less than the share p of `total`. Halves the
// range in which the cut lies instead of sorting: the order of what is kept does not matter.
inline void keep_top_p(std::vector<Candidate>& from, double p, double total, float max) {
  const auto begin = from.begin();
  size_t low = 0, high = from.size();  // the best `low` are kept, those from `high` on are not
  double before = 0.0;
  while (high - low > 16) {
    const size_t middle = low + (high - low) / 2;
    std::nth_element(begin + low, begin + middle, begin + high, better);
    const double half = mass(&from[low], middle - low, max);
    if (before + half < p * total) {
      before += half;
      low = middle;
    } else {
      high = middle;
    }
  }
  std::sort(begin + low, begin + high, better);
  while (low < high && (low == 0 || before < p * total)) before += mass(&from[low++], 1, max);
  from.resize(low);
}

// Rules out what top-k does. A row with NaN stays as it is, for the draw to find.
inline void cut_top_k(float* x, size_t n, size_t k) {
  const Row row(x, n);
  if (row.has_nan || k >= n) return;
  const std::vector<Candidate> kept = keep_top_k(row, k);
  std::fill(x, x + n, -INFINITY);
  for (const Candidate& c : kept) x[c.id] = c.value;
}

// Top-k (0: off), then top-p (1: off), then min-p (0: off), then a draw, ids ascending. Overwrites x[0..n); -1 as
// `draw`.
inline int32_t sample(float* x, size_t n, size_t top_k, double top_p, double min_p, double u) {
  const Row row(x, n);
  if (!row.normal()) return -1;
  const bool cut_k = top_k > 0 && top_k < n;
  if (!cut_k && top_p >= 1.0 && min_p <= 0.0) return draw(row, u);
  std::vector<Candidate> kept;
  if (cut_k) kept = keep_top_k(row, top_k);
  if (top_p < 1.0) {
    double total = mass(kept.data(), kept.size(), row.max);
    if (!cut_k) kept = hold_top_p(row, top_p, &total);
    keep_top_p(kept, top_p, total, row.max);
  } else if (!cut_k) {
    kept = row.at_least(row.max + float(std::log(min_p)) - 1e-3f);
  }
  if (min_p > 0.0) {
    const auto rare = [&](const Candidate& c) { return std::exp(double(c.value) - row.max) < min_p; };
    kept.erase(std::remove_if(kept.begin(), kept.end(), rare), kept.end());
  }
  std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  if (kept.size() <= kFew) return draw_few(kept, u);
  std::fill(x, x + n, -INFINITY);
  for (const Candidate& c : kept) x[c.id] = c.value;
  return draw(Row(x, n), u);
}

// Draws k distinct ids one after another, each from the softmax of what is left, with uniforms u[0..k); where nothing
// of any probability is left, the best remaining ones follow.
inline std::vector<int32_t> draw_distinct(const Row& row, size_t k, const double* u) {
  std::vector<int32_t> drawn;
  std::vector<double> sums = row.sums_exp();
  const auto taken = [&](size_t id) { return std::find(drawn.begin(), drawn.end(), int32_t(id)) != drawn.end(); };
  for (size_t step = 0; step < k; ++step) {
    double left = 0.0;
    for (double sum : sums) left += u[step] * sum;
    size_t block = 0;
    while (block + 1 < sums.size() && left >= sums[block]) left -= sums[block++];
    int32_t last = -1;
    double weight = 0.0;
    for (size_t i = block * kBlock; i < block * kBlock + row.size_of(block); ++i) {
      const double one = std::exp(double(row.x[i]) - row.max);
      if (one < 1e-37 || taken(i)) continue;  // float32 has no smaller probability than that
      last = int32_t(i);
      weight = one;
      left -= one;
      if (left < 0.0) break;
    }
    if (last < 0) break;
    drawn.push_back(last);
    sums[block] = std::max(0.0, sums[block] - weight);
  }
  for (const Candidate& c : row.top_k(k + drawn.size())) {
    if (drawn.size() < k && !taken(size_t(c.id))) drawn.push_back(c.id);
  }
  return drawn;
}

}  // namespace
}  // namespace search
}  // namespace pyllm
