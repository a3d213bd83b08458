// Random draws from a row of V logits: counter-based uniforms, top-k, top-p and min-p sampling, draws without
// replacement.
#pragma once
#include "nucleus.h"

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

// What a draw needs beside the logits: filters of sampling, each off at the value given here. The scores are
// logits / temperature; top-k comes first, then top-p, then min-p, as in transformers.
struct Cuts {
  double temperature = 1.0;
  size_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
  float scale() const { return float(1.0 / temperature); }
  bool none(size_t n) const { return (top_k == 0 || top_k >= n) && top_p >= 1.0 && min_p <= 0.0; }
};

// What may be drawn, ids ascending, with the weights exp((value - max) / temperature) and their sum.
struct Choices {
  std::vector<Candidate> all;
  std::vector<double> weights;
  double total = 0.0;

  void weigh(float max, double temperature) {
    weights.resize(all.size());
    total = 0.0;
    for (size_t i = 0; i < all.size(); ++i) total += weights[i] = std::exp((double(all[i].value) - max) / temperature);
  }
  // The id at u of the cumulative distribution; -1 when there is nothing.
  int32_t at(double u) const {
    double left = u * total;
    int32_t last = -1;
    for (size_t i = 0; i < all.size(); ++i) {
      if (weights[i] > 0.0) last = all[i].id;
      left -= weights[i];
      if (left < 0.0) break;
    }
    return last;
  }
};

// The id at u of the cumulative softmax(x / temperature), ids ascending; -1 when there is no softmax. The row's sums
// have the scale of the temperature.
inline int32_t draw(const Row& row, double temperature, double u) {
  if (!row.normal()) return -1;
  const size_t finite = kRow.count_at_least(row.tops.data(), row.tops.size(), kLowest);
  if (finite * kBlock <= kFew) {
    Choices few;
    few.all = row.at_least(kLowest);
    few.weigh(row.max, temperature);
    return few.at(u);
  }
  double total;
  const std::vector<float> weights = row.weights(&total);
  double left = u * total;
  size_t block = 0;
  while (block + 1 < row.count && left >= weights[block]) left -= weights[block++];
  int32_t last = -1;
  for (size_t i = block * kBlock; i < block * kBlock + row.size_of(block); ++i) {
    const double weight = std::exp((double(row.x[i]) - row.max) / temperature);
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
  std::vector<float> order(found.size());
  for (size_t i = 0; i < found.size(); ++i) order[i] = found[i].value;
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), [](float a, float b) { return a > b; });
  const float least = order[k - 1];
  found.erase(std::remove_if(found.begin(), found.end(), [=](const Candidate& c) { return c.value < least; }),
              found.end());
  return found;
}

// The sum of exp((value - max) * scale); max is finite and no less than any value.
inline double mass(const Candidate* from, size_t count, float max, float scale) {
  constexpr size_t kChunk = 512;
  double total = 0.0;
  for (size_t start = 0; start < count; start += kChunk) {
    float values[kChunk];
    const size_t size = std::min(kChunk, count - start);
    for (size_t i = 0; i < size; ++i) values[i] = from[start + i].value;
    total += kRow.block_sum(values, size, max, scale);
  }
  return total;
}

// What top-p leaves of `from`: the best, as long as those before have less than the share p of `total`. Halves the
// range in which the cut lies instead of sorting: the order of what is kept does not matter.
inline void keep_top_p(std::vector<Candidate>& from, double p, double total, float max, float scale) {
  const auto begin = from.begin();
  size_t low = 0, high = from.size();  // the best `low` are kept, those from `high` on are not
  double before = 0.0;
  while (high - low > 16) {
    const size_t middle = low + (high - low) / 2;
    std::nth_element(begin + low, begin + middle, begin + high, better);
    const double half = mass(&from[low], middle - low, max, scale);
    if (before + half < p * total) {
      before += half;
      low = middle;
    } else {
      high = middle;
    }
  }
  std::sort(begin + low, begin + high, better);
  while (low < high && (low == 0 || before < p * total)) before += mass(&from[low++], 1, max, scale);
  from.resize(low);
}

// What the cuts leave of a row that has a softmax, ids ascending.
inline Choices choices(const Row& row, const Cuts& cuts) {
  Choices kept;
  const bool cut_k = cuts.top_k > 0 && cuts.top_k < row.n;
  if (cut_k) kept.all = keep_top_k(row, cuts.top_k);
  if (cut_k && cuts.top_p < 1.0) {
    const double total = mass(kept.all.data(), kept.all.size(), row.max, row.scale);
    keep_top_p(kept.all, cuts.top_p, total, row.max, row.scale);
    std::sort(kept.all.begin(), kept.all.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  } else if (cuts.top_p < 1.0) {
    kept.all = Nucleus(row, cuts.top_p).candidates();
  } else if (!cut_k) {
    const float below = float(-std::log(cuts.min_p)) + 1e-3f;  // infinite without min-p
    kept.all = row.at_least(std::max(row.max - below / row.scale, kLowest));
  }
  if (cuts.min_p > 0.0) {
    const auto rare = [&](const Candidate& c) {
      return std::exp((double(c.value) - row.max) / cuts.temperature) < cuts.min_p;
    };
    kept.all.erase(std::remove_if(kept.all.begin(), kept.all.end(), rare), kept.all.end());
  }
  kept.weigh(row.max, cuts.temperature);
  return kept;
}

// A draw under the cuts, ids ascending; -1 when the row has no softmax. summary: see Row; its sums are of use where
// top-k doesn't cut.
inline int32_t sample(const float* x, size_t n, const Cuts& cuts, double u, const float* summary = nullptr,
                      float summary_scale = 1.0f) {
  const bool cut_p = cuts.top_p < 1.0 && (cuts.top_k == 0 || cuts.top_k >= n);
  const Row row(x, n, cuts.none(n) || cut_p, cuts.scale(), summary, summary_scale);
  if (!row.normal()) return -1;
  if (cut_p && cuts.min_p <= 0.0) {
    const Nucleus nucleus(row, cuts.top_p);
    if (nucleus.collected() > kFew) return nucleus.at(cuts.temperature, u);
    Choices few;
    few.all = nucleus.candidates();
    few.weigh(row.max, cuts.temperature);
    return few.at(u);
  }
  return cuts.none(n) ? draw(row, cuts.temperature, u) : choices(row, cuts).at(u);
}

// A distribution to draw from, or to be compared with another one: what speculative sampling needs of p and q.
struct Weights {
  Choices choices;

  // False when the row has no softmax.
  bool set(const float* x, size_t n, const Cuts& cuts) {
    const Row row(x, n, true, cuts.scale());
    if (!row.normal()) return false;
    choices = search::choices(row, cuts);
    return true;
  }
  double probability(int32_t id) const {
    const auto before = [](const Candidate& c, int32_t wanted) { return c.id < wanted; };
    const auto at = std::lower_bound(choices.all.begin(), choices.all.end(), id, before);
    if (at == choices.all.end() || at->id != id) return 0.0;
    return choices.weights[size_t(at - choices.all.begin())] / choices.total;
  }
  // The id at u of max(p - q, 0), normalised; of p itself where rounding leaves nothing.
  int32_t beyond(const Weights& q, double u) const {
    Choices rest;
    size_t j = 0;
    for (size_t i = 0; i < choices.all.size(); ++i) {
      const int32_t id = choices.all[i].id;
      while (j < q.choices.all.size() && q.choices.all[j].id < id) ++j;
      const bool shared = j < q.choices.all.size() && q.choices.all[j].id == id;
      const double other = shared ? q.choices.weights[j] / q.choices.total : 0.0;
      const double more = choices.weights[i] / choices.total - other;
      if (!(more > 0.0)) continue;
      rest.all.push_back(choices.all[i]);
      rest.weights.push_back(more);
      rest.total += more;
    }
    return rest.total > 0.0 ? rest.at(u) : choices.at(u);
  }
};

// Rules out what top-k does. A row with NaN stays as it is, for the draw to find.
inline void cut_top_k(float* x, size_t n, size_t k) {
  const Row row(x, n);
  if (row.has_nan || k >= n) return;
  const std::vector<Candidate> kept = keep_top_k(row, k);
  std::fill(x, x + n, -INFINITY);
  for (const Candidate& c : kept) x[c.id] = c.value;
}

// Draws k distinct ids one after another, each from the softmax of what is left, with uniforms u[0..k); where nothing
// of any probability is left, the best remaining ones follow.
inline std::vector<int32_t> draw_distinct(const Row& row, size_t k, const double* u) {
  std::vector<int32_t> drawn;
  double total;
  const std::vector<float> weights = row.weights(&total);
  std::vector<double> sums(weights.begin(), weights.begin() + row.count);
  const auto taken = [&](size_t id) { return std::find(drawn.begin(), drawn.end(), int32_t(id)) != drawn.end(); };
  for (size_t step = 0; step < k; ++step) {
    double left = 0.0;
    for (double sum : sums) left += u[step] * sum;
    size_t block = 0;
    while (block + 1 < sums.size() && left >= sums[block]) left -= sums[block++];
    int32_t last = -1;
    double rest = 0.0;  // of the block without what is drawn now
    for (size_t i = block * kBlock; i < block * kBlock + row.size_of(block); ++i) {
      const double one = std::exp(double(row.x[i]) - row.max);
      if (one < 1e-37 || taken(i)) continue;  // float32 has no smaller probability than that
      const bool found = left < 0.0;
      if (!found) last = int32_t(i);
      left -= one;
      rest += one;
    }
    if (last < 0) break;
    drawn.push_back(last);
    sums[block] = std::max(0.0, rest - std::exp(double(row.x[last]) - row.max));
    if (sums[block] < 1e-15 * rest) sums[block] = 0.0;  // rounding, nothing that could be drawn
  }
  for (const Candidate& c : row.top_k(k + drawn.size())) {
    if (drawn.size() < k && !taken(size_t(c.id))) drawn.push_back(c.id);
  }
  return drawn;
}

}  // namespace
}  // namespace search
}  // namespace pyllm
