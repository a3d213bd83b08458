// Mixtures of experts: route() chooses experts by their logits and sorts rows by expert; combine() adds what the
// experts made of a row. All orders are fixed: experts ascending, rows ascending within one.
#include "code_pairs.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
// Until offsets are known, an entry of `place` holds expert and number among the expert's rows.
constexpr int kNumberBits = 22;
constexpr int kMostExperts = 1 << (31 - kNumberBits), kMostRows = 1 << kNumberBits;
constexpr int kFewRows = 64;  // one block does it all: three launches would take longer

__device__ __forceinline__ int entries(const RouteArgs& a) { return a.top_k + int(a.shared); }
__device__ __forceinline__ const float* logits_of(const RouteArgs& a, int row) {
  return static_cast<const float*>(a.router.data) + int64_t(row) * a.router.ld;
}

// The best (value, index) that any lane has; the lower index of equals.
__device__ __forceinline__ int warp_best(float value, int index) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) {
    const float other = __shfl_xor_sync(kWarp, value, d);
    const int at = __shfl_xor_sync(kWarp, index, d);
    const bool better = at >= 0 && (index < 0 || other > value || (!(other < value) && at < index));
    value = better ? other : value;
    index = better ? at : index;
  }
  return index;
}

// A warp chooses for one row. Lane l looks at experts l, l + 32, ..; bit i of `taken`: expert l + 32 i is chosen.
__device__ void choose_experts(const RouteArgs& a, int row, int lane) {
  const float* logits = logits_of(a, row);
  float top = -INFINITY, sum = 0.0f;
  for (int e = lane; e < a.num_experts; e += 32) top = fmaxf(top, logits[e]);
  top = warp_max(top);
  for (int e = lane; e < a.num_experts; e += 32) sum += expf(logits[e] - top);
  sum = warp_sum(sum);
  u32 taken = 0;
  float chosen_sum = 0.0f;
  for (int i = 0; i < a.top_k; i++) {
    float value = 0.0f;
    int index = -1;
    for (int e = lane; e < a.num_experts; e += 32)
      if (!(taken >> e / 32 & 1u) && (index < 0 || logits[e] > value)) value = logits[e], index = e;
    const int best = warp_best(value, index);
    if (best % 32 == lane) taken |= 1u << best / 32;
    chosen_sum += expf(logits[best] - top) / sum;
  }
  int before = 0;
  const int64_t first = int64_t(row) * entries(a);
  for (int i = 0; i * 32 < a.num_experts; i++) {
    const bool mine = taken >> i & 1u;
    const u32 mask = __ballot_sync(kWarp, mine);
    const int e = 32 * i + lane, place = before + __popc(mask & ((1u << lane) - 1u));
    if (mine) {
      const float p = expf(logits[e] - top) / sum;
      a.weights[first + place] = a.normalize ? p / chosen_sum : p;
      a.place[first + place] = e << kNumberBits;
    }
    before += __popc(mask);
  }
  if (a.shared && lane == 0) a.weights[first + a.top_k] = 1.0f / (1.0f + expf(-logits[a.num_experts]));
}

// The entry of `place` by which a row takes an expert, or -1.
__device__ __forceinline__ int64_t entry_of(const RouteArgs& a, int row, int last, int expert) {
  int64_t entry = -1;
  for (int i = 0; row < last && i < a.top_k; i++) {
    const int64_t at = int64_t(row) * entries(a) + i;
    if (a.place[at] >> kNumberBits == expert) entry = at;
  }
  return entry;
}

// A warp counts the rows from first to last (not included) of one expert.
__device__ int count_rows(const RouteArgs& a, int expert, int first, int last, int lane) {
  int count = 0;
  for (int row = first; row < last; row += 32)
    count += __popc(__ballot_sync(kWarp, entry_of(a, row + lane, last, expert) >= 0));
  return count;
}

// A warp lists them and numbers their entries, from `count` on; returns the next number.
__device__ int list_rows(const RouteArgs& a, int expert, int first, int last, int count, int lane) {
  int32_t* list = a.list + int64_t(expert) * a.rows;
  for (int row = first; row < last; row += 32) {
    const int64_t entry = entry_of(a, row + lane, last, expert);
    const u32 mask = __ballot_sync(kWarp, entry >= 0);
    const int number = count + __popc(mask & ((1u << lane) - 1u));
    if (entry >= 0) {
      list[number] = row + lane;
      a.place[entry] = expert << kNumberBits | number;
    }
    count += __popc(mask);
  }
  return count;
}

// Of the experts' counts, what lies before each; the shared one comes last. All threads of a block.
__device__ void sum_counts(const RouteArgs& a, int32_t* offsets) {
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int e = 0; e < a.num_experts; e++) {
      offsets[e] = sum;
      sum += a.counts[e];
    }
  }
  __syncthreads();
}

__device__ void place_row(const RouteArgs& a, const int32_t* offsets, int row) {
  const int64_t first = int64_t(row) * entries(a);
  for (int i = 0; i < a.top_k; i++) {
    const int32_t entry = a.place[first + i];
    a.place[first + i] = offsets[entry >> kNumberBits] + (entry & (kMostRows - 1));
  }
  if (!a.shared) return;
  a.place[first + a.top_k] = a.rows * a.top_k + row;
  a.list[int64_t(a.num_experts) * a.rows + row] = row;
}

// One block's share of what is written once.
__device__ void write_offsets(const RouteArgs& a, const int32_t* offsets) {
  for (int e = threadIdx.x; e < a.num_experts; e += blockDim.x) a.offsets[e] = offsets[e];
  if (a.shared && threadIdx.x == 0) {
    a.offsets[a.num_experts] = a.rows * a.top_k;
    a.counts[a.num_experts] = a.rows;
  }
}

__global__ void __launch_bounds__(kThreads) choose_kernel(const RouteArgs a) {
  const int row = blockIdx.x * kWarps + threadIdx.x / 32;
  if (row < a.rows) choose_experts(a, row, threadIdx.x % 32);
}
// A block an expert; each warp takes an equal part of the rows: counts, then lists from where those before it end.
__global__ void __launch_bounds__(kThreads) list_kernel(const RouteArgs a) {
  __shared__ int counts[kWarps];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, expert = blockIdx.x;
  const int part = (a.rows + kWarps - 1) / kWarps, first = min(warp * part, a.rows), last = min(first + part, a.rows);
  const int mine = count_rows(a, expert, first, last, lane);
  if (lane == 0) counts[warp] = mine;
  __syncthreads();
  int before = 0;
  for (int i = 0; i < warp; i++) before += counts[i];
  const int after = list_rows(a, expert, first, last, before, lane);
  if (warp == kWarps - 1 && lane == 0) a.counts[expert] = after;
}
__global__ void __launch_bounds__(kThreads) place_kernel(const RouteArgs a) {
  __shared__ int32_t offsets[kMostExperts];
  sum_counts(a, offsets);
  const int row = blockIdx.x * kThreads + threadIdx.x;
  if (row < a.rows) place_row(a, offsets, row);
  if (blockIdx.x == 0) write_offsets(a, offsets);
}
__global__ void __launch_bounds__(kThreads) route_few_kernel(const RouteArgs a) {
  __shared__ int32_t offsets[kMostExperts];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int row = warp; row < a.rows; row += kWarps) choose_experts(a, row, lane);
  __syncthreads();
  for (int e = warp; e < a.num_experts; e += kWarps) {
    const int count = list_rows(a, e, 0, a.rows, 0, lane);
    if (lane == 0) a.counts[e] = count;
  }
  __syncthreads();
  sum_counts(a, offsets);
  for (int row = threadIdx.x; row < a.rows; row += kThreads) place_row(a, offsets, row);
  write_offsets(a, offsets);
}

// Four columns of a row.
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const RouteArgs a, const View y, const View residual, const View out, int64_t cols) {
  const int64_t column = (int64_t(blockIdx.y) * kThreads + threadIdx.x) * 4, row = blockIdx.x;
  if (column >= cols) return;
  const int many = int(min(int64_t(4), cols - column));
  float v[4] = {};
  if (residual.data) {
    const float* from = static_cast<const float*>(residual.data) + row * residual.ld + column;
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < many) v[i] = from[i];
  }
  const int each = entries(a);
  for (int e = 0; e < each; e++) {
    const float weight = a.weights[row * each + e];
    float add[4];
    load_four(y, a.place[row * each + e] * y.ld + column, add);
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = fmaf(weight, add[i], v[i]);
  }
  store_four(out, row * out.ld + column, true, many, v);
}

}  // namespace

void route(const RouteArgs& a, Stream stream) {
  if (a.rows <= 0) return;
  if (a.num_experts > kMostExperts || a.rows > kMostRows || a.top_k < 1 || a.top_k > a.num_experts)
    throw Error(ErrorKind::program, text("[experts] at most ", kMostExperts, " experts, ", kMostRows,
                                         " rows and of the experts some or all", " can be chosen, got ", a.num_experts,
                                         ", ", a.rows, " and ", a.top_k, "; use device='cpu'"));
  if (a.rows <= kFewRows) {
    PYLLM_LAUNCH(route_few_kernel, dim3(1), dim3(kThreads), 0, stream, a);
    return;
  }
  PYLLM_LAUNCH(choose_kernel, dim3(unsigned((a.rows + kWarps - 1) / kWarps)), dim3(kThreads), 0, stream, a);
  PYLLM_LAUNCH(list_kernel, dim3(unsigned(a.num_experts)), dim3(kThreads), 0, stream, a);
  PYLLM_LAUNCH(place_kernel, dim3(unsigned((a.rows + kThreads - 1) / kThreads)), dim3(kThreads), 0, stream, a);
}

void combine(const RouteArgs& a, const View& y, const View& residual, const View& out, int64_t cols, Stream stream) {
  if (a.rows <= 0 || cols <= 0) return;
  const dim3 grid(unsigned(a.rows), unsigned((cols + 4 * kThreads - 1) / (4 * kThreads)));
  PYLLM_LAUNCH(combine_kernel, grid, dim3(kThreads), 0, stream, a, y, residual, out, cols);
}

}  // namespace cuda
}  // namespace pyllm
