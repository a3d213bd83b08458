// One weight of a packed matrix, read as the layouts in kernels.h are written down: the tests' own reader.
#pragma once
#include <cmath>
#include <cstring>

#include "kernels.h"

namespace pyllm {
namespace test {

inline double half_value(const uint8_t* at) {
  uint16_t h;
  std::memcpy(&h, at, 2);
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double size = exponent == 0    ? std::ldexp(mantissa, -24)
                      : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                       : std::ldexp(1024 + mantissa, exponent - 25);
  return h & 0x8000 ? -size : size;
}

// What weight (n, k) of an int8 or int4 matrix with `inputs` columns is made of.
struct Quantised {
  int code;
  double scale;
  int zero;
  double value() const { return scale * (code - zero); }
};
inline Quantised quantised(Format f, const uint8_t* packed, int64_t inputs, int64_t n, int64_t k) {
  const uint8_t* panel = packed + size_t(n / 64) * panel_bytes(f, inputs);
  const int64_t j = n % 64, tile = j / 16, column = j % 16;
  if (is_i8(f)) {
    const int64_t depth = (inputs + 63) / 64 * 64;
    const uint8_t code = panel[((k / 64 * 4 + tile) * 16 + k % 64 / 4) * 64 + column * 4 + k % 4];
    float scale;
    std::memcpy(&scale, panel + depth * 64 + j * 4, 4);
    return {int(code) - 128, scale, 0};
  }
  const int64_t group = f == Format::i4_g32 || f == Format::i4z_g32 ? 32 : 128;
  const bool zeros = f == Format::i4z_g32 || f == Format::i4z_g128;
  const int64_t header = zeros ? 192 : 128;
  const uint8_t* at = panel + k / group * (header + group * 32);
  uint32_t word;
  std::memcpy(&word, at + header + ((k % group / 8 * 4 + tile) * 16 + column) * 4, 4);
  return {int(word >> k % 8 * 4 & 15), half_value(at + 2 * j), zeros ? at[128 + j] : 8};
}

}  // namespace test
}  // namespace pyllm
