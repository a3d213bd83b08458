// The passes over all logits before a choice (choices.cuh): maxima by tile, levels, and who may be chosen.
#include "choices.cuh"

namespace pyllm {
namespace cuda {
namespace {

// Grid: chunks x rows. Each warp takes a tile of 128 columns, then another.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(View x, int64_t n, const Choice* choices, Tables w) {
  constexpr int kWarps = kScanThreads / 32, kEach = kChunk / kTile / kWarps;
  const int64_t row = blockIdx.y;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  bool summed = true;
  float scale = 1.0f;
  if (choices) {
    const Choice c = choices[row];
    summed = is_drawn(c) && !is_cut(c, n);
    scale = scale_of(c);
    if (blockIdx.x == 0 && threadIdx.x < kLevels) {
      w.mass[row * kLevels + threadIdx.x] = 0;
      w.counts[row * kLevels + threadIdx.x] = 0;
    }
  }
  float v[kEach][4];
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int64_t at = int64_t(blockIdx.x) * kChunk + (j * kWarps + warp) * kTile + 4 * lane;
    if (at < n) load4(x, row * x.ld + at, v[j]);
#pragma unroll
    for (int i = 0; i < 4; ++i) v[j][i] = at + i < n ? v[j][i] : -INFINITY;
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int tile = int(blockIdx.x) * (kChunk / kTile) + j * kWarps + warp;
    if (tile >= w.tiles) break;
    float max = -INFINITY, sum = 0.0f;
    bool nan = false;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      nan = nan || v[j][i] != v[j][i];
      max = fmaxf(max, v[j][i]);
    }
    max = warp_max(max);
    nan = __any_sync(kWarp, nan);
    if (summed) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum += expf((v[j][i] - max) * scale);
      sum = warp_sum(sum);
    }
    if (lane != 0) continue;
    w.tops[row * w.tiles + tile] = nan ? NAN : max;
    w.sums[row * w.tiles + tile] = fabsf(max) <= FLT_MAX ? sum : 0.0f;
  }
}

// Grid: chunks x rows. How many columns lie on each level below the maximum, and what they weigh.
__global__ void __launch_bounds__(kScanThreads) levels_kernel(View x, int64_t n, const Choice* choices, Tables w) {
  __shared__ u64 mass[kLevels];
  __shared__ uint32_t counts[kLevels];
  constexpr int kEach = kChunk / kScanThreads / 4;
  const int64_t row = blockIdx.y;
  const Choice c = choices[row];
  if (!needs_levels(c, n, w.tiles)) return;
  const Top top = top_of(w.tops + row * w.tiles, w.tiles);
  if (!top.normal()) return;
  const float scale = scale_of(c);
  if (threadIdx.x < kLevels) {
    mass[threadIdx.x] = 0;
    counts[threadIdx.x] = 0;
  }
  __syncthreads();
  u64 far = 0;  // the last level is where most columns are: each thread sums it up by itself
  uint32_t far_count = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int64_t at = int64_t(blockIdx.x) * kChunk + (j * kScanThreads + int64_t(threadIdx.x)) * 4;
    if (at >= n) continue;
    float v[4];
    load4(x, row * x.ld + at, v);
    for (int i = 0; i < 4 && at + i < n; ++i) {
      const int level = level_of(v[i], top.max, scale);
      const u64 weight = weight_of(v[i], top.max, scale);
      if (level == kLevels - 1) {
        far += weight;
        ++far_count;
      } else {
        atomicAdd(&mass[level], weight);
        atomicAdd(&counts[level], 1u);
      }
    }
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    far += __shfl_xor_sync(kWarp, far, d);
    far_count += __shfl_xor_sync(kWarp, far_count, d);
  }
  if (threadIdx.x % 32 == 0) {
    atomicAdd(&mass[kLevels - 1], far);
    atomicAdd(&counts[kLevels - 1], far_count);
  }
  __syncthreads();
  if (threadIdx.x < kLevels && counts[threadIdx.x] > 0) {
    atomicAdd(&w.mass[row * kLevels + threadIdx.x], mass[threadIdx.x]);
    atomicAdd(&w.counts[row * kLevels + threadIdx.x], counts[threadIdx.x]);
  }
}

// Candidates reach `low` and lie on no level after `level`.
struct Bound {
  float low;
  int level;
};

// The first level with which the counts, or the weights, of this level and those above reach what the cut keeps.
__device__ int last_level(const Choice& c, bool by_count, const u64* mass, const uint32_t* counts) {
  u64 total = 0, sum = 0;
  for (int l = 0; l < kLevels; ++l) total += by_count ? u64(counts[l]) : mass[l];
  const u64 wanted = by_count ? u64(c.top_k) : share_of(c.top_p, total);
  for (int l = 0; l < kLevels; ++l) {
    sum += by_count ? u64(counts[l]) : mass[l];
    if (sum >= wanted) return l;
  }
  return kLevels - 1;
}

__device__ Bound bound_of(const Choice& c, int64_t n, const Top& top, const Tables& w, int64_t row) {
  const float* tops = w.tops + row * w.tiles;
  if (needs_levels(c, n, w.tiles))
    return {-FLT_MAX, last_level(c, cuts_k(c, n), w.mass + row * kLevels, w.counts + row * kLevels)};
  if (cuts_k(c, n)) {
    const Selected kth = select_top(tops, w.tiles, u64(c.top_k), top.max);
    return {kth.reached ? fmaxf(of_key(key_of(top.max) - kth.distance), -FLT_MAX) : -FLT_MAX, kLevels};
  }
  // min-p alone: the bound that it is, and a little for rounding.
  const float below = (float(-log(c.min_p)) + 1e-3f) / scale_of(c);
  return {fmaxf(top.max - below, -FLT_MAX), kLevels};
}

// Grid: chunks x rows. A bit for each column that a cut may leave.
__global__ void __launch_bounds__(kScanThreads)
    gather_kernel(View x, int64_t n, const Choice* choices, int count, Tables w) {
  const int64_t row = blockIdx.y;
  Choice c;
  if (choices) {
    c = choices[row];
    if (!is_cut(c, n)) return;
  }
  const Top top = top_of(w.tops + row * w.tiles, w.tiles);
  if (choices ? !top.normal() : top.has_nan) return;
  Bound bound{-INFINITY, kLevels};
  if (choices) {
    bound = bound_of(c, n, top, w, row);
  } else if (count <= w.tiles) {
    const Selected last = select_top(w.tops + row * w.tiles, w.tiles, u64(count), top.max);
    bound.low = of_key(key_of(top.max) - last.distance);
  }
  const float scale = choices ? scale_of(c) : 1.0f;
  const int lane = int(threadIdx.x) % 32, first = int(threadIdx.x) / 32 * 8;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int64_t word = int64_t(blockIdx.x) * (kChunk / 32) + first + j, i = word * 32 + lane;
    const float v = i < n ? load1(x, row * x.ld + i) : NAN;
    const bool kept = v >= bound.low && (bound.level >= kLevels - 1 || level_of(v, top.max, scale) <= bound.level);
    const uint32_t bits = __ballot_sync(kWarp, kept);
    if (lane == 0) w.mask[row * w.words + word] = bits;
  }
}

dim3 grid_of(int rows, int64_t n) { return dim3(unsigned(chunks_of(n)), unsigned(rows)); }

}  // namespace

void scan(const View& x, int rows, int64_t n, const Choice* choices, const Tables& t, Stream stream) {
  PYLLM_LAUNCH(scan_kernel, grid_of(rows, n), dim3(kScanThreads), 0, stream, x, n, choices, t);
}
void levels(const View& x, int rows, int64_t n, const Choice* choices, const Tables& t, Stream stream) {
  PYLLM_LAUNCH(levels_kernel, grid_of(rows, n), dim3(kScanThreads), 0, stream, x, n, choices, t);
}
void gather(const View& x, int rows, int64_t n, const Choice* choices, int count, const Tables& t, Stream stream) {
  PYLLM_LAUNCH(gather_kernel, grid_of(rows, n), dim3(kScanThreads), 0, stream, x, n, choices, count, t);
}

}  // namespace cuda
}  // namespace pyllm
