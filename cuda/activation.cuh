// Elementwise activations on the device: accurate forms, float32.
#pragma once
#include "device.cuh"
#include "kernels.h"

namespace pyllm {
namespace cuda {

// x / (1 + e^-y): the product with sigmoid(y).
__device__ __forceinline__ float times_sigmoid(float x, float y) { return x / (1.0f + expf(-y)); }

__device__ __forceinline__ float activate(Activation a, float x) {
  const float b = x < -1e30f ? -1e30f : x;  // so that minus infinity gives -0 where the other factor vanishes
  switch (a) {
    case Activation::relu:
      return x > 0.0f || x != x ? x : 0.0f;
    case Activation::gelu:
      return 0.5f * b * erfcf(b * -0.70710678118654752f);  // 1 + erf, exact in its left tail
    case Activation::gelu_tanh:  // 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
      return times_sigmoid(b, b * fmaf(b * b, 0.0713548163f, 1.59576912f));
    case Activation::quick_gelu:
      return times_sigmoid(b, 1.702f * b);
    case Activation::silu:
      return times_sigmoid(b, b);
    case Activation::tanh:
      return tanhf(x);
    default:
      return x;
  }
}

// scale * softcap * tanh(x / softcap); softcap 0: scale * x.
__device__ __forceinline__ float capped(float x, float scale, float softcap) {
  return scale * (softcap > 0.0f ? softcap * tanhf(x / softcap) : x);
}

}  // namespace cuda
}  // namespace pyllm
