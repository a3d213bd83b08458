// Rows of matrices as they are stored: packed in any format, or plain.
#include <algorithm>

#include "convert.h"
#include "pack.h"

namespace pyllm {
namespace {

// use(k, element k of stored row `row`) for k ascending.
template <class Use>
void for_plain_row(const MatrixShape& shape, const uint8_t* stored, int64_t row, const Use& use) {
  const SourceType type = SourceType(int(shape.format));  // the float formats have the numbers of the float types
  for (int64_t k = 0; k < shape.k; k++) use(k, load_element(type, stored, row * shape.k + k));
}

// use(k0, four codes + 128) of output j for k0 = 0, 4, ..
template <class Use>
void for_quads(int64_t k, const uint8_t* panel, int64_t j, const Use& use) {
  const uint8_t* at = panel + j / 16 * 1024 + j % 16 * 4;
  for (int64_t k0 = 0; k0 < k; k0 += 4) use(k0, at + k0 / 64 * 4096 + k0 % 64 * 16);
}

// use(k0, n, eight codes in a word, n of them within k, scale, zero) of output j for k0 = 0, 8, ..
template <class Use>
void for_words(Format f, int64_t k, const uint8_t* panel, int64_t j, const Use& use) {
  const int64_t group = group_of(f);
  for (int64_t begin = 0; begin < k; begin += group, panel += group_bytes(f)) {
    const float scale = float_of_f16(reinterpret_cast<const uint16_t*>(panel)[j]);
    const int zero = has_zeros(f) ? panel[128 + j] : 8;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(panel + (has_zeros(f) ? 192 : 128)) + j;
    const int64_t end = std::min(begin + group, k);
    for (int64_t k0 = begin; k0 < end; k0 += 8, words += kPanel)
      use(k0, int(std::min<int64_t>(8, end - k0)), *words, scale, zero);
  }
}

template <class Use>
void for_row(const MatrixShape& shape, const uint8_t* stored, int64_t row, const Use& use) {
  if (!shape.packed) return for_plain_row(shape, stored, row, use);
  const Format f = shape.format;
  const uint8_t* panel = stored + size_t(row / kPanel) * panel_bytes(f, shape.k);
  const int64_t j = row % kPanel;
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(panel);
  if (is_f32(f)) {
    const float* at = reinterpret_cast<const float*>(panel) + j;
    for (int64_t k = 0; k < shape.k; k++) use(k, at[k * kPanel]);
  } else if (f == Format::f16) {
    for (int64_t k = 0; k < shape.k; k++) use(k, float_of_f16(halves[k * kPanel + j]));
  } else if (f == Format::bf16) {
    // A tile of 16 outputs and 32 k is 16 lines of 64 bytes; a line holds a pair of k for each output.
    const uint16_t* at = halves + j / 16 * 512 + j % 16 * 2;
    for (int64_t k = 0; k < shape.k; k++) use(k, float_of_bf16(at[k / 32 * 2048 + k % 32 / 2 * 32 + k % 2]));
  } else if (is_i8(f)) {
    const float scale = reinterpret_cast<const float*>(panel + packed_k(f, shape.k) * kPanel)[j];
    for_quads(shape.k, panel, j, [&](int64_t k0, const uint8_t* codes) {
      for (int64_t i = 0; i < std::min<int64_t>(4, shape.k - k0); i++) use(k0 + i, scale * float(int(codes[i]) - 128));
    });
  } else {
    for_words(f, shape.k, panel, j, [&](int64_t k0, int n, uint32_t word, float scale, int zero) {
      for (int i = 0; i < n; i++) use(k0 + i, scale * float(int(word >> 4 * i & 15) - zero));
    });
  }
}

}  // namespace

void look_up(const MatrixShape& shape, const uint8_t* stored, int64_t row, float scale, bool add, float* out) {
  if (add) for_row(shape, stored, row, [&](int64_t k, float value) { out[k] += scale * value; });
  else for_row(shape, stored, row, [&](int64_t k, float value) { out[k] = scale * value; });
}

void read_codes(const MatrixShape& shape, const uint8_t* packed, int64_t begin, int64_t end, uint8_t* codes,
                float* scales) {
  const Format f = shape.format;
  const int64_t k = shape.k, groups = is_i8(f) ? 1 : packed_k(f, k) / group_of(f);
  codes += begin * k;
  scales += begin * groups;
  for (int64_t row = begin; row < end; row++, codes += k, scales += groups) {
    const uint8_t* panel = packed + size_t(row / kPanel) * panel_bytes(f, k);
    const int64_t j = row % kPanel;
    if (is_i8(f)) {
      scales[0] = reinterpret_cast<const float*>(panel + packed_k(f, k) * kPanel)[j];
      for_quads(k, panel, j, [&](int64_t k0, const uint8_t* from) {
        for (int64_t i = 0; i < std::min<int64_t>(4, k - k0); i++) codes[k0 + i] = from[i] ^ 0x80;
      });
    } else {
      for_words(f, k, panel, j, [&](int64_t k0, int n, uint32_t word, float scale, int) {
        scales[k0 / group_of(f)] = scale;
        for (int i = 0; i < n; i++) codes[k0 + i] = uint8_t(word >> 4 * i & 15);
      });
    }
  }
}

}  // namespace pyllm
