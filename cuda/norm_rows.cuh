// Norm of a few rows by a block that then multiplies by them: bit for bit what norm() (rows.cu) would have stored.
#pragma once
#include "device.cuh"
#include "launch.h"

namespace pyllm {
namespace cuda {

// Calls store(row, at, values) for columns at .. at + 3 of every row of x (f32), `at` a multiple of 4 below `end`; the
// columns from k on are 0. By all threads of a block, a multiple of 32. parts: 32 floats of shared memory.
//
// norm() adds with as many threads as fours of columns make, up to 1024, each over columns 4 * (threads) apart, then in
// warps, then over warps; here the same threads are imagined, and each warp takes its share of their warps.
template <class Store>
__device__ __forceinline__ void normalised_rows(const View& x, int rows, int64_t k, int64_t end,
                                                const NormWeights& norm, float* parts, Store store) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, count = int(blockDim.x) / 32;
  const int64_t quads = (k + 3) / 4, threads = quads > 1024 ? 1024 : round_up(quads, 32);
  const int warps = int(threads / 32);
  for (int row = 0; row < rows; ++row) {
    const float* from = static_cast<const float*>(x.data) + row * x.ld;
    auto total = [&](auto add) {
      for (int w = warp; w < warps; w += count) {
        float sum = 0.0f;
        for (int64_t at = 4 * (w * 32 + lane); at < k; at += 4 * threads) {
          const float4 q = *reinterpret_cast<const float4*>(from + at);
          sum = add(sum, q.x);
          if (at + 1 < k) sum = add(sum, q.y);
          if (at + 2 < k) sum = add(sum, q.z);
          if (at + 3 < k) sum = add(sum, q.w);
        }
        sum = warp_sum(sum);
        if (lane == 0) parts[w] = sum;
      }
      __syncthreads();
      const float sum = warp_sum(lane < warps ? parts[lane] : 0.0f);
      __syncthreads();
      return sum;
    };
    float mean = 0.0f;
    if (norm.kind == NormKind::layer) mean = total([](float sum, float v) { return sum + v; }) / float(k);
    const float squares = total([mean](float sum, float v) { return fmaf(v - mean, v - mean, sum); });
    const float inverse = 1.0f / sqrtf(squares / float(k) + norm.eps);
    for (int64_t at = 4 * int64_t(threadIdx.x); at < end; at += 4 * int64_t(blockDim.x)) {
      float y[4] = {};
      if (at < k) {
        const float4 q = *reinterpret_cast<const float4*>(from + at);
        const float v[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (at + i >= k) continue;
          const float scaled = (v[i] - mean) * inverse, weight = norm.weight[at + i];
          y[i] =
              norm.kind == NormKind::rms ? scaled * weight : fmaf(scaled, weight, norm.bias ? norm.bias[at + i] : 0.0f);
        }
      }
      store(row, at, y);
    }
  }
}

}  // namespace cuda
}  // namespace pyllm
