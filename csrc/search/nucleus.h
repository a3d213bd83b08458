// What top-p leaves of a row: the best values, as long as those before have less than the share p of all, the lower id
// first among equals. Nothing is sorted but the few values around the cut. One block in kSampled is read to guess a
// bound somewhat below it; then one pass collects what reaches the bound, and the rest is done there. The guess changes
// what a row costs; what it leaves, only within the rounding of float32 sums.
#pragma once
#include <memory>

#include "row.h"

namespace pyllm {
namespace search {
namespace {

constexpr float kLowest = -3.4028235e38f;  // what is left of a row after filters reaches it

class Nucleus {
 public:
  // The row has a softmax, sums of its own scale, and outlives this; 0 <= p < 1.
  Nucleus(const Row& row, double p) : row_(row), space_(space(row)) {
    for (size_t b = kSampled / 2; b + 1 < row.count; b += kSampled) prefetch(row.x + b * kBlock, kBlock);
    double total;
    row.weights(&total);
    const double wanted = p * total;
    bound_ = guess(wanted, total);
    for (float step = 1.0f; gather() < wanted && bound_ > kLowest; step *= 4) {
      bound_ = step < 256.0f ? bound_ - step / row.scale : kLowest;
    }
    cut(wanted);
    sums_.resize(padded_ / kBlock);
    kRow.sums_at_least(space_.values, space_.weights, padded_, least_, sums_.data());
  }

  size_t collected() const { return collected_; }  // no less than what is left

  // What is left, ids ascending.
  std::vector<Candidate> candidates() const {
    std::vector<Candidate> kept;
    for (size_t at = 0, i = 0; at < blocks_; ++at) {
      for (uint64_t bits = collected_of(at); bits; bits &= bits - 1, ++i) {
        if (space_.values[i] < least_) continue;
        kept.push_back({space_.values[i], space_.blocks[at] * int32_t(kBlock) + lowest_bit(bits)});
      }
    }
    return kept;
  }

  // The id at u of the cumulative distribution, ids ascending: by sums of 64, then in double precision one by one.
  int32_t at(double temperature, double u) const {
    double left = 0.0;
    for (float sum : sums_) left += sum;
    left *= u;
    size_t chunk = 0, last_chunk = sums_.size() - 1;
    while (last_chunk > 0 && !(sums_[last_chunk] > 0.0f)) --last_chunk;
    while (chunk < last_chunk && left >= sums_[chunk]) left -= sums_[chunk++];
    size_t last = collected_;
    for (size_t i = chunk * kBlock; i < std::min(collected_, (chunk + 1) * kBlock); ++i) {
      if (!(space_.values[i] >= least_)) continue;
      const double weight = std::exp((double(space_.values[i]) - row_.max) / temperature);
      if (weight > 0.0 || last == collected_) last = i;
      left -= weight;
      if (left < 0.0) break;
    }
    return id_of(last);
  }

 private:
  static constexpr size_t kSampled = 32;
  static constexpr double kSpare = 0.25;  // of what top-p takes away, about so much is collected nevertheless
  static constexpr int kHalvings = 4;
  static constexpr size_t kSorted = 32;

  // One thread's own, used by one row at a time: values with their weights, and a part of them.
  struct Space {
    std::unique_ptr<float[]> memory;
    std::unique_ptr<int32_t[]> blocks;  // those with a value that reaches the bound
    std::unique_ptr<uint32_t[]> starts;
    float *values, *weights, *part, *part_weights;
    size_t size = 0;
  };
  static Space& space(const Row& row) {
    static thread_local Space own;
    const size_t size = (row.n + kBlock - 1) / kBlock * kBlock + kBlock;
    if (own.size < size) {
      own.memory.reset(new float[4 * size]);
      own.blocks.reset(new int32_t[size / kBlock]);
      own.starts.reset(new uint32_t[size / kBlock]);
      own.values = own.memory.get();
      own.weights = own.values + size;
      own.part = own.weights + size;
      own.part_weights = own.part + size;
      own.size = size;
    }
    return own;
  }

  // Fills up to a multiple of 64 with what reaches no bound.
  static size_t pad(float* values, float* weights, size_t size) {
    const size_t padded = (size + 63) / 64 * 64;
    std::fill(values + size, values + padded, -INFINITY);
    std::fill(weights + size, weights + padded, 0.0f);
    return padded;
  }

  // A bound that values of about the wanted weight, or somewhat more, reach. The maxima of the blocks and the sum of
  // everything are known; what is not a maximum is estimated from the blocks that are read.
  float guess(double wanted, double total) {
    const size_t tops = row_.tops.size();
    if (row_.count < 4 * kSampled) return kLowest;
    float *values = space_.values, *weights = space_.weights;
    std::copy(row_.tops.begin(), row_.tops.end(), values);
    kRow.powers(values, tops, INFINITY, row_.max, row_.scale, weights);
    size_t size = pad(values, weights, tops);
    const double known = kRow.sum_at_least(values, weights, size, kLowest);
    double aim = wanted;
    if (known < wanted) {
      const size_t first = size;
      for (size_t b = kSampled / 2; b + 1 < row_.count; b += kSampled, size += kBlock) {
        std::copy(row_.x + b * kBlock, row_.x + (b + 1) * kBlock, values + size);
        kRow.powers(values + size, kBlock, row_.tops[b], row_.max, row_.scale, weights + size);
      }
      const double read = kRow.sum_at_least(values + first, weights + first, size - first, kLowest);
      const double factor = read / (total - known);
      if (!(factor > 0.0)) return kLowest;
      for (size_t i = 0; i < tops; ++i) weights[i] *= float(factor);
      aim = (wanted + kSpare * (total - wanted)) * factor;
    }
    Bracket found{row_.max, INFINITY, 0.0};
    for (float below = 1.0f; below < 256.0f; below *= 2) {
      found.low = row_.max - below / row_.scale;
      if (kRow.sum_at_least(values, weights, size, found.low) >= aim) {
        halve(found, values, weights, size, aim);
        return found.low;
      }
      found.high = found.low;
    }
    return kLowest;
  }

  // Collects what reaches the bound; returns its weight.
  double gather() {
    blocks_ = 0;
    for (size_t b = 0; b < row_.count; ++b) {
      space_.blocks[blocks_] = int32_t(b);
      blocks_ += row_.tops[b] >= bound_;
    }
    collected_ = kRow.collect(row_.x, row_.n, space_.blocks.get(), blocks_, bound_, space_.values, space_.starts.get());
    padded_ = pad(space_.values, space_.weights, collected_);
    kRow.powers(space_.values, padded_, INFINITY, row_.max, row_.scale, space_.weights);
    return kRow.sum_at_least(space_.values, space_.weights, padded_, bound_);
  }

  // What reaches `low` has the wanted weight; what reaches `high`, not yet: it has `above`.
  struct Bracket {
    float low, high;
    double above;
  };
  // Halves the bracket a few times, which is cheaper than to copy what lies between. `above` is that of values which
  // are not among these.
  void halve(Bracket& found, const float* values, const float* weights, size_t size, double wanted) const {
    const double before = found.above;
    for (int halving = 0; halving < kHalvings; ++halving) {
      const float middle = found.low + (std::min(found.high, row_.max) - found.low) / 2;
      const double sum = before + kRow.sum_at_least(values, weights, size, middle);
      if (sum < wanted) {
        found.high = middle;
        found.above = sum;
      } else {
        found.low = middle;
      }
    }
  }

  // Finds the least value that is left, and rules out those of its equals that are not.
  void cut(double wanted) {
    Bracket bracket{bound_, INFINITY, 0.0};
    float *part = space_.part, *part_weights = space_.part_weights;
    const float *values = space_.values, *weights = space_.weights;
    size_t left = collected_, size = padded_;
    for (int round = 0; round < 8 && (round == 0 || left > kSorted); ++round) {
      halve(bracket, values, weights, size, wanted);
      left = kRow.between(values, weights, size, bracket.low, bracket.high, part, part_weights);
      size = pad(part, part_weights, left);
      values = part;
      weights = part_weights;
    }
    std::vector<Candidate> order(left);
    for (size_t i = 0; i < left; ++i) order[i] = {part[i], int32_t(i)};
    std::sort(order.begin(), order.end(), better);
    double before = bracket.above;
    size_t taken = 0;
    while (taken < order.size() && ((taken == 0 && bracket.high == INFINITY) || before < wanted)) {
      before += part_weights[order[taken++].id];
    }
    least_ = taken > 0 ? order[taken - 1].value : bracket.high;
    size_t over = 0;
    while (taken + over < order.size() && order[taken + over].value == least_) ++over;
    for (size_t i = collected_; over > 0 && i-- > 0;) {
      if (space_.values[i] != least_) continue;
      space_.values[i] = -INFINITY;
      --over;
    }
  }

  // Bit i: whether value i of a listed block was collected.
  uint64_t collected_of(size_t at) const {
    const size_t block = size_t(space_.blocks[at]);
    return kRow.which_at_least(row_.x + block * kBlock, row_.size_of(block), bound_);
  }
  int32_t id_of(size_t index) const {
    const uint32_t* starts = space_.starts.get();
    const size_t at = size_t(std::upper_bound(starts, starts + blocks_, uint32_t(index)) - starts) - 1;
    uint64_t bits = collected_of(at);
    for (size_t skip = index - starts[at]; skip > 0; --skip) bits &= bits - 1;
    return space_.blocks[at] * int32_t(kBlock) + lowest_bit(bits);
  }

  const Row& row_;
  Space& space_;
  float bound_;
  float least_ = 0.0f;
  size_t blocks_ = 0, collected_ = 0, padded_ = 0;
  std::vector<float> sums_;  // of each 64 collected values, what is left of them
};

}  // namespace
}  // namespace search
}  // namespace pyllm
