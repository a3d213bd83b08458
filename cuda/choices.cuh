// What choosing tokens and ranking continuations share: a row's maxima by tile, candidates as a bit mask, selection by
// weight. One row of V logits passes through
//
//   scan     blocks of 2048 columns    maximum (and sum of exponentials) of each 128 columns
//   levels   blocks of 2048 columns    how much lies how far below the maximum (where scan's maxima can't bound a cut)
//   gather   blocks of 2048 columns    a bit for each column that may be chosen
//   finish   one block                 the choice
//
// so that the passes over all logits use the whole GPU and the last one sees few candidates. Weights are integers,
// units of 2^-42 of the largest one's: their sums are exact, so the same in any order, and atomics may make them.
#pragma once
#include <cfloat>

#include "rows.cuh"

namespace pyllm {
namespace cuda {

using u64 = unsigned long long;

// Of all rows of a launch, in its workspace.
struct Tables {
  float *tops, *sums;  // [rows][tiles]; a top is NaN where the tile holds one
  uint32_t* mask;      // [rows][words]: bit i % 32 of word i / 32 is that of column i
  u64* mass;           // [rows][kLevels]
  uint32_t* counts;    // [rows][kLevels]
  int tiles, words;
};

namespace {

constexpr int kTile = 128;  // four columns a lane
constexpr int kChunk = 2048;
constexpr int kLevels = 32;  // half a nat each; the last has all the rest
constexpr int kScanThreads = 256;
constexpr float kUnit = 4398046511104.0f;  // 2^42

inline int chunks_of(int64_t n) { return int((n + kChunk - 1) / kChunk); }

inline Tables tables_in(void* workspace, int rows, int64_t n) {
  Tables t;
  t.tiles = int((n + kTile - 1) / kTile);
  t.words = chunks_of(n) * (kChunk / 32);
  t.mass = static_cast<u64*>(workspace);
  t.counts = reinterpret_cast<uint32_t*>(t.mass + int64_t(rows) * kLevels);
  t.mask = t.counts + int64_t(rows) * kLevels;
  t.tops = reinterpret_cast<float*>(t.mask + int64_t(rows) * t.words);
  t.sums = t.tops + int64_t(rows) * t.tiles;
  return t;
}
inline size_t table_bytes(int rows, int64_t n) {
  const Tables t = tables_in(nullptr, rows, n);
  return reinterpret_cast<uintptr_t>(t.sums + int64_t(rows) * t.tiles);
}

// What a row's choice needs.
__device__ __forceinline__ bool is_drawn(const Choice& c) { return c.temperature > 0.0; }
__device__ __forceinline__ bool cuts_k(const Choice& c, int64_t n) { return c.top_k > 0 && c.top_k < n; }
__device__ __forceinline__ bool is_cut(const Choice& c, int64_t n) {
  return is_drawn(c) && (cuts_k(c, n) || c.top_p < 1.0 || c.min_p > 0.0);
}
__device__ __forceinline__ bool needs_levels(const Choice& c, int64_t n, int tiles) {
  return is_cut(c, n) && (cuts_k(c, n) ? c.top_k > tiles : c.top_p < 1.0);
}
__device__ __forceinline__ float scale_of(const Choice& c) { return float(1.0 / c.temperature); }
// The least sum of weights, at least 1, that is not below the share p of the total.
__device__ __forceinline__ u64 share_of(double p, u64 total) {
  const double share = ceil(p * double(total));
  return share < 1.0 ? 1 : u64(share);
}

// Keys of floats: of two numbers the larger has the larger key; both zeros have one. Distances are from the row's
// maximum down.
__device__ __forceinline__ uint32_t key_of(float v) {
  const uint32_t bits = __float_as_uint(v + 0.0f);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_key(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}
__device__ __forceinline__ u64 units_of(float weight) { return u64(llrintf(weight * kUnit)); }
__device__ __forceinline__ u64 weight_of(float v, float max, float scale) { return units_of(expf((v - max) * scale)); }
__device__ __forceinline__ int level_of(float v, float max, float scale) {
  const float below = (max - v) * scale;
  return below < 0.5f * (kLevels - 1) ? int(2.0f * below) : kLevels - 1;
}

struct Top {
  float max;
  bool has_nan;
  // Whether a softmax of the row exists.
  __device__ bool normal() const { return !has_nan && fabsf(max) <= FLT_MAX; }
};
// By all threads of a block, for all of them; so are the functions that follow.
__device__ __forceinline__ Top top_of(const float* tops, int tiles) {
  float max = -INFINITY, nan = 0.0f;
  for (int t = int(threadIdx.x); t < tiles; t += int(blockDim.x)) {
    nan = tops[t] != tops[t] ? 1.0f : nan;
    max = fmaxf(max, tops[t]);
  }
  max = block_max(max);
  return {max, block_max(nan) > 0.0f};
}

// The sum of v over the threads before this one, and over all of them.
__device__ __forceinline__ u64 block_before(u64 v, u64* total) {
  __shared__ u64 parts[32];
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  u64 sum = v;
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const u64 other = __shfl_up_sync(kWarp, sum, d);
    if (lane >= d) sum += other;
  }
  __syncthreads();  // parts may still be read from the call before
  if (lane == 31) parts[warp] = sum;
  __syncthreads();
  u64 before = 0, all = 0;
  for (int w = 0; w < int(blockDim.x) / 32; ++w) {
    before += w < warp ? parts[w] : 0;
    all += parts[w];
  }
  *total = all;
  return before + sum - v;
}
__device__ __forceinline__ uint32_t block_farthest(uint32_t distance) {
  __shared__ uint32_t farthest;
  __syncthreads();
  if (threadIdx.x == 0) farthest = 0;
  __syncthreads();
  const uint32_t of_warp = __reduce_max_sync(kWarp, distance);
  if (threadIdx.x % 32 == 0) atomicMax(&farthest, of_warp);
  __syncthreads();
  return farthest;
}

struct Selected {
  bool reached;       // false: all items weigh less than what was wanted
  uint32_t distance;  // of the item with which the sum, nearest first, reaches it
  u64 before;         // sum over the items that are nearer
};
// items(add) calls add(distance, weight) for each of a thread's items; none is farther than `farthest`. wanted >= 1.
// Radix selection from the highest bit that differs, 8 bits a pass.
template <class Items>
__device__ __forceinline__ Selected select_by_weight(u64 wanted, uint32_t farthest, Items items) {
  __shared__ u64 bins[256];
  __shared__ Selected found;
  const int lane = int(threadIdx.x);
  const int bits = 32 - __clz(int(farthest));
  u64 prefix = 0, before = 0;
  for (int above = 32, shift = bits > 8 ? bits - 8 : 0;; above = shift, shift = shift > 8 ? shift - 8 : 0) {
    for (int b = int(threadIdx.x); b < 256; b += int(blockDim.x)) bins[b] = 0;
    __syncthreads();
    items([&](uint32_t distance, u64 weight) {
      if (u64(distance) >> above == prefix)
        atomicAdd(&bins[(u64(distance) >> shift) - (prefix << (above - shift))], weight);
    });
    __syncthreads();
    if (threadIdx.x < 32) {
      u64 own = 0;
      for (int b = 8 * lane; b < 8 * lane + 8; ++b) own += bins[b];
      u64 sum = own;
#pragma unroll
      for (int d = 1; d < 32; d *= 2) {
        const u64 other = __shfl_up_sync(kWarp, sum, d);
        if (lane >= d) sum += other;
      }
      u64 reach = before + sum - own;
      if (lane == 31 && before + sum < wanted) found.reached = false;
      if (reach < wanted && wanted <= before + sum) {
        int b = 8 * lane;
        while (reach + bins[b] < wanted) reach += bins[b++];
        found = {true, uint32_t(prefix << (above - shift)) + uint32_t(b), reach};
      }
    }
    __syncthreads();
    const Selected now = found;
    if (!now.reached || shift == 0) return now;
    prefix = now.distance;
    before = now.before;
  }
}

// The distance of the count-th largest maximum of a tile: that many columns at least are as near. ~0: there are fewer.
__device__ __forceinline__ Selected select_top(const float* tops, int tiles, u64 count, float max) {
  const uint32_t highest = key_of(max);
  uint32_t far = 0;
  for (int t = int(threadIdx.x); t < tiles; t += int(blockDim.x)) {
    const uint32_t distance = highest - key_of(tops[t]);
    far = distance > far ? distance : far;
  }
  return select_by_weight(count, block_farthest(far), [&](auto add) {
    for (int t = int(threadIdx.x); t < tiles; t += int(blockDim.x)) add(highest - key_of(tops[t]), 1);
  });
}

// Columns that may be chosen, ids ascending, divided among the threads of a block in order: a list in shared memory
// where they are few, else the bits of the mask.
constexpr int kListed = 4096;
struct Candidates {
  View x;
  int64_t row;  // offset of the row's first element
  const uint32_t* mask;
  int words;
  bool listed = false;
  int count = 0;
  const float* values = nullptr;
  const int32_t* ids = nullptr;

  // use(value, id) for each of this thread's, until it returns false.
  template <class Use>
  __device__ void each(Use use) const {
    const int threads = int(blockDim.x), me = int(threadIdx.x);
    if (listed) {
      const int share = (count + threads - 1) / threads, end = min((me + 1) * share, count);
      for (int i = me * share; i < end; ++i)
        if (!use(values[i], ids[i])) return;
      return;
    }
    const int share = (words + threads - 1) / threads, end = min((me + 1) * share, words);
    for (int w = me * share; w < end; ++w)
      for (uint32_t bits = mask[w]; bits; bits &= bits - 1) {
        const int32_t id = 32 * w + __ffs(int(bits)) - 1;
        if (!use(load1(x, row + id), id)) return;
      }
  }
  template <class Use>
  __device__ void every(Use use) const {
    each([&](float value, int32_t id) {
      use(value, id);
      return true;
    });
  }
};
// values and ids: shared memory for kListed.
__device__ __forceinline__ Candidates candidates_of(const View& x, int64_t row, const uint32_t* mask, int words,
                                                    float* values, int32_t* ids) {
  Candidates c{x, row * x.ld, mask, words};
  const int threads = int(blockDim.x), me = int(threadIdx.x);
  const int share = (words + threads - 1) / threads, end = min((me + 1) * share, words);
  int own = 0;
  for (int w = me * share; w < end; ++w) own += __popc(mask[w]);
  u64 all;
  int at = int(block_before(u64(own), &all));
  c.count = int(all);
  if (all > kListed) return c;
  c.every([&](float value, int32_t id) {
    values[at] = value;
    ids[at++] = id;
  });
  __syncthreads();
  c.listed = true;
  c.values = values;
  c.ids = ids;
  return c;
}
// The id of the count-th (from 1) of the candidates at a distance, ids ascending; the largest id where there are fewer.
__device__ __forceinline__ int32_t tied_id(const Candidates& c, uint32_t highest, uint32_t distance, u64 count) {
  __shared__ int32_t found;
  u64 own = 0, all;
  c.every([&](float value, int32_t) { own += highest - key_of(value) == distance; });
  u64 at = block_before(own, &all);
  if (threadIdx.x == 0) found = INT32_MAX;
  __syncthreads();
  if (at < count && count <= at + own)
    c.every([&](float value, int32_t id) {
      if (highest - key_of(value) == distance && ++at == count) found = id;
    });
  __syncthreads();
  return found;
}

}  // namespace

// candidates.cu. choices nullptr: for top(), with `count` as a cut and a scale of 1.
void scan(const View& x, int rows, int64_t n, const Choice* choices, const Tables& t, Stream stream);
void levels(const View& x, int rows, int64_t n, const Choice* choices, const Tables& t, Stream stream);
void gather(const View& x, int rows, int64_t n, const Choice* choices, int count, const Tables& t, Stream stream);

}  // namespace cuda
}  // namespace pyllm
