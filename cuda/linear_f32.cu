// The matmul over float32 weights for few rows: float32 FMA. A warp sums packed rows g and g + 8 of a tile over all of
// K: lane l takes k = 4 l .. 4 l + 3 of every 128, ascending, then the lanes' sums are added in a fixed tree. So an
// output's sum has one order, whatever the rows and tiles.
#include "linear_finish.cuh"
#include "linear_parts.h"
#include "norm_rows.cuh"
#include "runtime.h"

namespace pyllm {
namespace cuda {
namespace skinny {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kDepth = 4;  // loads of a weight row on their way

__device__ __forceinline__ float4 as_floats(const uint4& v) {
  return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
}

// x at columns k .. k + 3, zero from column K on.
__device__ __forceinline__ float4 load_four(const View& x, int row, int64_t k, int64_t columns) {
  float v[4] = {};
  if (k < columns) {
    const float4 q = *reinterpret_cast<const float4*>(static_cast<const float*>(x.data) + row * x.ld + k);
    v[0] = q.x;
    if (k + 1 < columns) v[1] = q.y;
    if (k + 2 < columns) v[2] = q.z;
    if (k + 3 < columns) v[3] = q.w;
  }
  return make_float4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ float dot(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Rows R of tiles a block and warp, C rows of x from blockIdx.x * C on. Normed: x, normalised, lies in shared memory,
// and a block takes several groups of tiles; all rows are its.
template <int R, int C, bool Normed>
__global__ void __launch_bounds__(kThreads, R* C > 8 ? 1 : 2) f32_kernel(LinearArgs a) {
  PYLLM_DYN_SHARED(float, staged);
  __shared__ float parts[32];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, first = int(blockIdx.x) * C;
  const int64_t tiles = (a.w.n + 15) / 16, ld = a.w.ld;
  let_next_begin();
  for (int64_t group = blockIdx.y; group * R < tiles; group += gridDim.y) {
    const float* rows[R][2];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const int64_t tile = group * R + r < tiles ? group * R + r : tiles - 1;  // past the end: read in vain
      rows[r][0] = static_cast<const float*>(a.w.codes) + (16 * tile + warp) * ld;
      rows[r][1] = rows[r][0] + 8 * ld;
    }
    float4 w[kDepth][R][2];
    auto load = [&](float4(&into)[R][2], int64_t k) {
      if (k >= ld) return;
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int h = 0; h < 2; ++h) into[r][h] = as_floats(load_once16(rows[r][h] + k));
    };
#pragma unroll
    for (int s = 0; s < kDepth; ++s) load(w[s], 4 * lane + 128 * s);
    if (group == blockIdx.y) wait_for_previous();  // weights were there before
    if (Normed && group == blockIdx.y) {
      normalised_rows(a.x, a.m, a.w.k, ld, a.norm, parts, [&](int row, int64_t k, const float(&y)[4]) {
        *reinterpret_cast<float4*>(staged + row * ld + k) = make_float4(y[0], y[1], y[2], y[3]);
      });
      __syncthreads();
    }
    float acc[R][C][2] = {};
    for (int64_t begin = 4 * lane; begin < ld; begin += 128 * kDepth) {
#pragma unroll
      for (int s = 0; s < kDepth; ++s) {
        const int64_t k = begin + 128 * s;
        if (k < ld) {
#pragma unroll
          for (int c = 0; c < C; ++c) {
            if (first + c >= a.m) continue;
            const float4 x =
                Normed ? *reinterpret_cast<const float4*>(staged + c * ld + k) : load_four(a.x, first + c, k, a.w.k);
#pragma unroll
            for (int r = 0; r < R; ++r)
#pragma unroll
              for (int h = 0; h < 2; ++h) acc[r][c][h] = dot(w[s][r][h], x, acc[r][c][h]);
          }
        }
        load(w[s], k + 128 * kDepth);
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const float low = warp_sum(acc[r][c][0]), high = warp_sum(acc[r][c][1]);
        if (lane == c && first + c < a.m && group * R + r < tiles)
          finish_two<false>(a, group * R + r, warp, first + c, low, high);
      }
  }
}

template <int R, int C, bool Normed>
void launch_kernel(const LinearArgs& a, dim3 grid, size_t bytes, Stream stream) {
  const auto kernel = f32_kernel<R, C, Normed>;
  if (has_compute(9, 0)) {
    PYLLM_LAUNCH_OVERLAPPED(kernel, grid, dim3(kThreads), bytes, stream, a);
  } else {
    PYLLM_LAUNCH(kernel, grid, dim3(kThreads), bytes, stream, a);
  }
}

template <int R, int C>
void launch(const LinearArgs& a, int multiprocessors, Stream stream) {
  const int64_t groups = ((a.w.n + 15) / 16 + R - 1) / R;
  if constexpr (C <= kNormRows) {
    if (a.norm.kind != NormKind::none) {
      const int64_t blocks = groups < 2 * multiprocessors ? groups : 2 * multiprocessors;
      const size_t bytes = size_t(a.m) * size_t(a.w.ld) * sizeof(float);
      return launch_kernel<R, C, true>(a, dim3(1, unsigned(blocks)), bytes, stream);
    }
  }
  // Blocks over the same weights, for other rows of x, come one after the other: the second finds them in L2.
  const int64_t blocks = groups < 65535 ? groups : 65535;  // a grid's most
  launch_kernel<R, C, false>(a, dim3(unsigned((a.m + C - 1) / C), unsigned(blocks)), 0, stream);
}

}  // namespace

void run_f32(const LinearArgs& a, int multiprocessors, Stream stream) {
  if (a.m == 1) launch<1, 1>(a, multiprocessors, stream);
  else if (a.m == 2) launch<1, 2>(a, multiprocessors, stream);
  else if (a.m <= kNormRows) launch<1, kNormRows>(a, multiprocessors, stream);
  else launch<2, 8>(a, multiprocessors, stream);
}

}  // namespace skinny
}  // namespace cuda
}  // namespace pyllm
