// The rows of x of the skinny matmul: 8 elements at a time from memory, or from shared memory where a block keeps them.
#pragma once
#include "linear_parts.h"
#include "norm_rows.cuh"
#include "skinny_weights.cuh"

namespace pyllm {
namespace cuda {
namespace skinny {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

// Elements from `left` on, of 8, become 0: what lies past a row's columns is undefined.
__device__ __forceinline__ void cut(u32 (&pairs)[4], int left) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (left < 2 * i + 2) pairs[i] = left > 2 * i ? pairs[i] & 0xffffu : 0u;
}

// 8 elements from `at` on, all of which are there. 32 bits count the elements of the 64 rows that there may be.
template <class X>
__device__ __forceinline__ void load_eight(const View& x, int row, int at, Eight<X>& out) {
  const u32 begin = u32(row) * u32(x.ld) + u32(at);
  if (x.type == Type::f32) {
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(x.data) + begin);
    const float4 a = from[0], b = from[1];
    const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      u32 planes[X::kPlanes];
      X::pack(v[2 * i], v[2 * i + 1], planes);
#pragma unroll
      for (int p = 0; p < X::kPlanes; ++p) out.pairs[p][i] = planes[p];
    }
  } else {
    const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(x.data) + begin);
    out.pairs[0][0] = v.x, out.pairs[0][1] = v.y, out.pairs[0][2] = v.z, out.pairs[0][3] = v.w;
  }
}
// The same where a row's columns may end, zeros from there on.
template <class X>
__device__ __forceinline__ void load_rest(const View& x, int row, int at, int columns, Eight<X>& out) {
  out = {};
  if (at >= columns) return;
  load_eight<X>(x, row, at, out);
#pragma unroll
  for (int p = 0; p < X::kPlanes; ++p) cut(out.pairs[p], columns - at);
}

// x of up to 8 rows in shared memory: [plane][row][words of a row], zeros from k on to ld.
template <class Op>
struct Stage {
  using X = typename Op::X;
  u32* words;
  int rows, stride;

  static __host__ __device__ __forceinline__ int stride_of(int64_t ld) { return int(ld / 2) + Op::kPad; }
  static size_t bytes(int rows, int64_t ld) { return size_t(X::kPlanes) * rows * stride_of(ld) * 4; }

  __device__ __forceinline__ u32* at(int plane, int row, int64_t k) const {
    return words + (int64_t(plane) * rows + row) * stride + k / 2;
  }
  __device__ __forceinline__ void fill(const LinearArgs& a, float* parts) const {
    if (a.norm.kind != NormKind::none) {
      normalised_rows(a.x, a.m, a.w.k, a.w.ld, a.norm, parts, [this](int row, int64_t k, const float(&y)[4]) {
        u32 first[X::kPlanes], second[X::kPlanes];
        X::pack(y[0], y[1], first);
        X::pack(y[2], y[3], second);
#pragma unroll
        for (int p = 0; p < X::kPlanes; ++p) *reinterpret_cast<uint2*>(at(p, row, k)) = make_uint2(first[p], second[p]);
      });
      return;
    }
    const int eights = int(a.w.ld / 8);
    for (int i = int(threadIdx.x); i < eights * a.m; i += kThreads) {
      const int row = i / eights;
      const int k = i % eights * 8;
      Eight<X> v;
      load_rest<X>(a.x, row, k, int(a.w.k), v);
#pragma unroll
      for (int p = 0; p < X::kPlanes; ++p)
        *reinterpret_cast<uint4*>(at(p, row, k)) =
            make_uint4(v.pairs[p][0], v.pairs[p][1], v.pairs[p][2], v.pairs[p][3]);
    }
  }
  // 8 elements from a word of a row's first plane on.
  __device__ __forceinline__ void load(int word, Eight<X>& out) const {
#pragma unroll
    for (int p = 0; p < X::kPlanes; ++p) {
      const uint4 v = *reinterpret_cast<const uint4*>(words + p * (rows * stride) + word);
      out.pairs[p][0] = v.x, out.pairs[p][1] = v.y, out.pairs[p][2] = v.z, out.pairs[p][3] = v.w;
    }
  }
};

}  // namespace skinny
}  // namespace cuda
}  // namespace pyllm
