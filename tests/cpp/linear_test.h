// What the tests of matmul and packing share: aligned buffers, and bf16 rounding written down apart from the kernels.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>

#include "kernels.h"

namespace pyllm {
namespace test {

const Format kFormats[] = {Format::f32, Format::bf16, Format::f16};
inline const char* name(Format f) { return f == Format::f32 ? "float32" : f == Format::f16 ? "float16" : "bfloat16"; }

// 64-byte aligned bytes of exactly the size asked for (a multiple of 64).
struct Bytes {
  explicit Bytes(size_t n) : data(static_cast<uint8_t*>(std::aligned_alloc(64, size_t(round_up(int64_t(n), 64))))) {}
  ~Bytes() { std::free(data); }
  Bytes(const Bytes&) = delete;
  uint8_t* data;
};

// To the nearest bf16, ties to even, denormals to zero: written down apart from the kernels.
inline float to_bf16(float x) {
  if (std::isnan(x)) return x;
  if (std::fabs(x) < 0x1p-126f) return std::copysign(0.0f, x);
  int exponent;
  const double mantissa = std::frexp(double(x), &exponent);  // in [0.5, 1): 8 bits are kept
  if (std::isinf(x)) return x;
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
  return std::fabs(rounded) >= 0x1p128 ? std::copysign(INFINITY, x) : float(rounded);
}

// To the nearest float16, ties to even; infinity where too large.
inline float to_f16(float x) {
  if (!std::isfinite(x)) return x;
  if (x == 0) return std::copysign(0.0f, x);  // denormals, where they are flushed
  int exponent;
  std::frexp(double(x), &exponent);
  const int unit = std::max(exponent - 11, -24);  // 11 bits are kept, or multiples of the smallest denormal
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(double(x), -unit)), unit);
  return std::fabs(rounded) >= 65536 ? std::copysign(INFINITY, x) : float(rounded);
}

}  // namespace test
}  // namespace pyllm
