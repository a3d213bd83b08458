// Quantised weights in the packed layouts of kernels.h: whole panels of codes that are given, and the lines that the
// quantiser (quantise.h) fills 16 outputs at a time. Plain code: the same bytes from every kernel table.
#pragma once
#include <cstring>

#include "convert.h"
#include "kernels.h"

namespace pyllm {
namespace {

// Where things lie in a packed panel; k0 a multiple of 4 (i8) or 8 (i4), j the output.
PYLLM_INLINE uint8_t* i8_codes_at(uint8_t* panel, int64_t k0, int j) {
  return panel + k0 / 64 * 4096 + j / 16 * 1024 + k0 % 64 * 16 + j % 16 * 4;
}
PYLLM_INLINE float* i8_scales_at(uint8_t* panel, int64_t depth) {
  return reinterpret_cast<float*>(panel + depth * kPanel);
}
PYLLM_INLINE uint8_t* i4_codes_at(Format f, uint8_t* group, int64_t k0, int j) {
  return group + 128 + (has_zeros(f) ? 64 : 0) + k0 / 8 * 256 + j * 4;
}

// 8 codes below 16, lowest address first, as nibbles of one word, lowest bits first.
PYLLM_INLINE uint32_t nibbles_of(const uint8_t* codes) {
  uint64_t x;
  std::memcpy(&x, codes, 8);
  x = (x | x >> 4) & 0x00ff00ff00ff00ffu;
  x = (x | x >> 8) & 0x0000ffff0000ffffu;
  return uint32_t(x | x >> 16);
}

void pack_i8_row(const CodeRow& row, int64_t k, int j, uint8_t* panel) {
  const int64_t depth = round_up(k, 64);
  for (int64_t k0 = 0; k0 < depth; k0 += 4) {
    uint32_t codes = 0;
    if (row.codes && k0 < k) std::memcpy(&codes, row.codes + k0, size_t(k - k0 < 4 ? k - k0 : 4));
    codes ^= 0x80808080u;  // + 128 as u8
    std::memcpy(i8_codes_at(panel, k0, j), &codes, 4);
  }
  i8_scales_at(panel, depth)[j] = row.codes ? row.scales[0] : 0.0f;
}

void pack_i4_row(Format f, const CodeRow& row, int64_t k, int j, uint8_t* panel) {
  const int64_t group = group_of(f);
  for (int64_t begin = 0; begin < k; begin += group, panel += group_bytes(f)) {
    const int64_t from = row.codes ? begin / row.source_group : 0;
    const uint16_t scale = row.codes ? f16_of_float(row.scales[from]) : uint16_t(0);
    const uint8_t zero = row.codes && row.zeros ? row.zeros[from] : uint8_t(8);
    std::memcpy(panel + 2 * j, &scale, 2);
    if (has_zeros(f)) panel[128 + j] = zero;
    for (int64_t k0 = 0; k0 < group; k0 += 8) {
      const int64_t left = row.codes ? k - begin - k0 : 0;
      uint8_t codes[8];
      std::memset(codes, zero < 16 ? zero : 15, 8);  // k that are not there meet activations of zero
      if (left > 0) std::memcpy(codes, row.codes + begin + k0, size_t(left < 8 ? left : 8));
      const uint32_t word = nibbles_of(codes);
      std::memcpy(i4_codes_at(f, panel, k0, j), &word, 4);
    }
  }
}

void pack_codes_rows(Format f, const CodeRow* rows, int64_t k, uint8_t* out) {
  for (int j = 0; j < kPanel; ++j) is_i8(f) ? pack_i8_row(rows[j], k, j, out) : pack_i4_row(f, rows[j], k, j, out);
}

}  // namespace
}  // namespace pyllm
