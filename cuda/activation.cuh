// Elementwise activations on the device: accurate forms, float32.
#pragma once
#include "device.cuh"
#include "kernels.h"

namespace pyllm {
namespace cuda {

__device__ __forceinline__ float activate(Activation a, float x) {
  switch (a) {
    case Activation::relu:
      return x > 0.0f || x != x ? x : 0.0f;
    case Activation::gelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case Activation::gelu_tanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    case Activation::quick_gelu:
      return x / (1.0f + expf(-1.702f * x));
    case Activation::silu:
      return x / (1.0f + expf(-x));
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
