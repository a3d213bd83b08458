// Scalar conversions between float32, bfloat16 and float16. The vector forms are in cpu/vec_*.h and give the same bits.
#pragma once
#include <cstdint>
#include <cstring>

#include "kernels.h"

namespace pyllm {

static inline float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

static inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

static inline float float_of_bf16(uint16_t half) { return float_of_bits(uint32_t(half) << 16); }

// Nearest, ties to even; denormals become zero; NaN stays NaN.
static inline uint16_t bf16_of_float(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7f800000u) == 0) return uint16_t((bits >> 16) & 0x8000u);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40u);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float float_of_f16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, mantissa = half & 0x3ffu;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000u | mantissa << 13);
  if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = float(mantissa) * 5.9604644775390625e-8f;  // 2^-24, exact
  return sign ? -magnitude : magnitude;
}

// Nearest, ties to even; too large gives infinity, NaN stays NaN.
static inline uint16_t f16_of_float(float value) {
  const uint32_t bits = bits_of_float(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00u | (magnitude >> 13 & 0x1ffu));
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00u);  // 65520 and more
  if (magnitude < 0x33000000u) return uint16_t(sign);             // below 2^-25
  const int exponent = int(magnitude >> 23);
  // Bits that are dropped: 13, and more where the result is a denormal half.
  const int dropped = exponent > 112 ? 13 : 126 - exponent;
  const uint32_t whole = exponent > 112 ? magnitude - (112u << 23) : (magnitude & 0x7fffffu) | 0x800000u;
  const uint32_t half = whole >> dropped, rest = whole & ((1u << dropped) - 1), middle = 1u << (dropped - 1);
  return uint16_t(sign | (half + (rest > middle || (rest == middle && (half & 1u)))));
}

static inline float load_element(SourceType type, const void* data, int64_t index) {
  if (type == SourceType::f32) return static_cast<const float*>(data)[index];
  const uint16_t half = static_cast<const uint16_t*>(data)[index];
  return type == SourceType::bf16 ? float_of_bf16(half) : float_of_f16(half);
}

}  // namespace pyllm
