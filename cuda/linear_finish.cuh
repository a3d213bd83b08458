// What a matmul does to its sums before they are stored.
#pragma once
#include "activation.cuh"
#include "code_pairs.cuh"
#include "launch.h"

namespace pyllm {
namespace cuda {

// One output of one row, its activation taken already.
__device__ __forceinline__ void finish(const LinearArgs& a, int64_t output, int row, float v) {
  v = capped(v, a.scale, a.softcap);
  if (a.residual.data) v = static_cast<const float*>(a.residual.data)[row * a.residual.ld + output] + v;
  store_float(a.y.data, a.y.type, row * a.y.ld + output, v);
}

// Packed rows g and g + 8 of a tile of 16, whose sums are low and high. Scaled: the weights have a scale a row.
template <bool Scaled>
__device__ __forceinline__ void finish_two(const LinearArgs& a, int64_t tile, int g, int row, float low, float high) {
  const int64_t n = 16 * tile + g;
  if (Scaled) {
    low *= static_cast<const float*>(a.w.scales)[n];
    high *= static_cast<const float*>(a.w.scales)[n + 8];
  }
  if (a.w.bias) low += a.w.bias[n], high += a.w.bias[n + 8];
  if (a.w.gated) {
    if (8 * tile + g < a.w.n / 2) finish(a, 8 * tile + g, row, activate(a.activation, low) * high);
  } else {
    if (n < a.w.n) finish(a, n, row, activate(a.activation, low));
    if (n + 8 < a.w.n) finish(a, n + 8, row, activate(a.activation, high));
  }
}

}  // namespace cuda
}  // namespace pyllm
