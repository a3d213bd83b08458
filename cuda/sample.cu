// Choosing one token a row on the device: greedy, or drawn as csrc/search/draw.h draws.
#include "choices.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kFinishThreads = 512;

// csrc/search/draw.h: 53 random bits in [0, 1) that depend on a choice's counters only.
__device__ double uniform_of(const Choice& c) {
  uint32_t k0 = uint32_t(c.seed), k1 = uint32_t(c.seed >> 32), c0 = c.step, c1 = c.sequence, c2 = c.seed_index, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint32_t low0 = 0xD2511F53u * c0, high0 = __umulhi(0xD2511F53u, c0);
    const uint32_t low1 = 0xCD9E8D57u * c2, high1 = __umulhi(0xCD9E8D57u, c2);
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return double((u64(c1) << 32 | c0) >> 11) * 0x1p-53;
}
// Where in [0, total) the number lies.
__device__ __forceinline__ u64 place_of(double u, u64 total) {
  const u64 place = u64(u * double(total));
  return place < total ? place : total - 1;
}

// The lowest id of the largest value: the first tile whose maximum it is, then the first column there.
__device__ void finish_greedy(const View& x, int64_t row, int64_t n, const Top& top, const Tables& w, int32_t* token) {
  const float* tops = w.tops + row * w.tiles;
  int first = w.tiles;
  for (int t = int(threadIdx.x); t < w.tiles && first == w.tiles; t += int(blockDim.x))
    if (tops[t] == top.max) first = t;
  first = -int(block_max(float(-first)));  // tiles are fewer than 2^24
  if (threadIdx.x >= 32) return;
  int best = INT32_MAX;
  for (int i = 3; i >= 0; --i) {
    const int64_t id = int64_t(first) * kTile + 4 * int(threadIdx.x) + i;
    if (id < n && load1(x, row * x.ld + id) == top.max) best = int(id);
  }
  best = __reduce_min_sync(kWarp, best);
  if (threadIdx.x == 0) *token = best;
}

// Without cuts the tiles' sums say where to look; in a tile its columns' own weights do.
__device__ void finish_uncut(const View& x, int64_t row, int64_t n, const Choice& c, const Top& top, const Tables& w,
                             int32_t* token) {
  __shared__ int tile;
  __shared__ u64 rest;
  const float scale = scale_of(c), *tops = w.tops + row * w.tiles, *sums = w.sums + row * w.tiles;
  const int share = (w.tiles + int(blockDim.x) - 1) / int(blockDim.x), begin = int(threadIdx.x) * share;
  const int end = min(begin + share, w.tiles);
  auto weight = [&](int t) { return units_of(sums[t] * expf((tops[t] - top.max) * scale)); };
  u64 own = 0, total;
  for (int t = begin; t < end; ++t) own += weight(t);
  u64 before = block_before(own, &total);
  const u64 place = place_of(uniform_of(c), total);
  if (before <= place && place < before + own) {
    int t = begin;
    for (u64 next; before + (next = weight(t)) <= place; ++t) before += next;
    tile = t;
    rest = place - before;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int lane = int(threadIdx.x);
  const int64_t first = int64_t(tile) * kTile + 4 * lane;
  u64 weights[4], sum = 0;
  int last = -1;  // that has any weight
  for (int i = 0; i < 4; ++i) {
    weights[i] = first + i < n ? weight_of(load1(x, row * x.ld + first + i), top.max, scale) : 0;
    sum += weights[i];
    if (weights[i] > 0) last = int(first) + i;
  }
  const u64 mine = sum;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const u64 other = __shfl_up_sync(kWarp, sum, d);
    if (lane >= d) sum += other;
  }
  u64 reach = sum - mine;
  if (reach <= rest && rest < sum) {
    int passed = 0;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      reach += weights[i];
      passed += reach <= rest;
    }
    *token = int(first) + passed;
  }
  // The tile's sum is rounded elsewhere than its columns' are: where it is the larger, the last one takes what is left.
  const u64 all = __shfl_sync(kWarp, sum, 31);
  last = __reduce_max_sync(kWarp, last);
  if (lane == 0 && rest >= all) *token = last;
}

// What is left after the cuts: candidates nearer than `distance`, and of those as near the ids up to `id`.
struct Kept {
  uint32_t highest, distance = ~0u;
  int32_t id = INT32_MAX;
  float max, scale;
  double min_p, temperature;

  __device__ bool holds(float value, int32_t at) const {
    const uint32_t d = highest - key_of(value);
    if (d > distance || (d == distance && at > id)) return false;
    return !(min_p > 0.0) || exp((double(value) - double(max)) / temperature) >= min_p;
  }
};

// Top-p of what top-k left: the best, as long as those before have less than the share p.
__device__ void cut_p(const Candidates& all, const Choice& c, bool after_k, uint32_t farthest, const u64* mass,
                      Kept& kept) {
  const uint32_t within = min(farthest, kept.distance);
  u64 total = 0, own = 0;
  if (after_k) {
    all.every([&](float value, int32_t) {
      if (kept.highest - key_of(value) <= within) own += weight_of(value, kept.max, kept.scale);
    });
    block_before(own, &total);
  } else {
    for (int l = 0; l < kLevels; ++l) total += mass[l];
  }
  const u64 wanted = share_of(c.top_p, total);
  const Selected last = select_by_weight(wanted, within, [&](auto add) {
    all.every([&](float value, int32_t) {
      const uint32_t d = kept.highest - key_of(value);
      if (d <= within) add(d, weight_of(value, kept.max, kept.scale));
    });
  });
  if (!last.reached) return;
  const u64 each = weight_of(of_key(kept.highest - last.distance), kept.max, kept.scale);
  kept.distance = last.distance;
  kept.id = tied_id(all, kept.highest, last.distance, (wanted - last.before + each - 1) / each);
}

__device__ void finish_cut(const View& x, int64_t row, int64_t n, const Choice& c, const Top& top, const Tables& w,
                           int32_t* token) {
  __shared__ float values[kListed];
  __shared__ int32_t ids[kListed];
  const Candidates all = candidates_of(x, row, w.mask + row * w.words, w.words, values, ids);
  Kept kept;
  kept.highest = key_of(top.max);
  kept.max = top.max;
  kept.scale = scale_of(c);
  kept.min_p = 0.0;
  kept.temperature = c.temperature;
  uint32_t own_farthest = 0;
  all.every([&](float value, int32_t) {
    const uint32_t d = kept.highest - key_of(value);
    own_farthest = d > own_farthest ? d : own_farthest;
  });
  const uint32_t farthest = block_farthest(own_farthest);
  if (cuts_k(c, n)) {
    const Selected kth = select_by_weight(u64(c.top_k), farthest, [&](auto add) {
      all.every([&](float value, int32_t) { add(kept.highest - key_of(value), 1); });
    });
    if (kth.reached) kept.distance = kth.distance;  // and all that equal the k-th
  }
  if (c.top_p < 1.0) cut_p(all, c, cuts_k(c, n), farthest, w.mass + row * kLevels, kept);
  kept.min_p = c.min_p;
  u64 own = 0, total;
  all.every([&](float value, int32_t id) {
    if (kept.holds(value, id)) own += weight_of(value, kept.max, kept.scale);
  });
  u64 reach = block_before(own, &total);
  if (total == 0) {
    if (threadIdx.x == 0) *token = -1;
    return;
  }
  const u64 place = place_of(uniform_of(c), total);
  if (place < reach || place >= reach + own) return;
  all.each([&](float value, int32_t id) {
    if (kept.holds(value, id)) reach += weight_of(value, kept.max, kept.scale);
    if (reach <= place) return true;
    *token = id;
    return false;
  });
}

// One block a row.
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(View x, int64_t n, const Choice* choices, int32_t* tokens, Tables w) {
  const int64_t row = blockIdx.x;
  const Choice c = choices[row];
  const Top top = top_of(w.tops + row * w.tiles, w.tiles);
  if (is_drawn(c) ? !top.normal() : top.has_nan) {
    if (threadIdx.x == 0) tokens[row] = -1;
  } else if (!is_drawn(c)) {
    finish_greedy(x, row, n, top, w, tokens + row);
  } else if (is_cut(c, n)) {
    finish_cut(x, row, n, c, top, w, tokens + row);
  } else {
    finish_uncut(x, row, n, c, top, w, tokens + row);
  }
}

}  // namespace

size_t choose_workspace(int rows, int64_t n) { return table_bytes(rows, n); }

void choose(const View& logits, int rows, int64_t n, const Choice* choices, int32_t* tokens, void* workspace,
            Stream stream, Cuts cuts) {
  if (n < 1 || n > kMostChoices)
    throw Error(ErrorKind::array,
                text("[choose] rows must have 1 to ", kMostChoices, " columns, got ", n, "; choose on the host"));
  if (rows == 0) return;
  const Tables t = tables_in(workspace, rows, n);
  scan(logits, rows, n, choices, t, stream);
  if (cuts == Cuts::any) levels(logits, rows, n, choices, t, stream);
  if (cuts != Cuts::none) gather(logits, rows, n, choices, 0, t, stream);
  PYLLM_LAUNCH(finish_kernel, dim3(unsigned(rows)), dim3(kFinishThreads), 0, stream, logits, n, choices, tokens, t);
}

}  // namespace cuda
}  // namespace pyllm
