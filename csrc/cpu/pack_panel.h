// Packing of one panel of weights from float32, bfloat16 or float16 elements with any stride. Include a vec_*.h first.
//
// Works on tiles of 16 outputs. Where the 16 elements of one k lie side by side (a matrix stored [k][n]), whole lines
// are read; otherwise runs of 16 k are read output by output and transposed.
#pragma once
#include <cstring>

#include "cpu/pack_codes.h"
#include "cpu/quantise.h"
#include "kernels.h"

namespace pyllm {
namespace {

constexpr int element_size(SourceType type) { return type == SourceType::f32 ? 4 : 2; }

// 16 elements side by side as floats.
template <SourceType T>
PYLLM_INLINE F16 load_elements(const void* p) {
  if constexpr (T == SourceType::f32) return f_load(static_cast<const float*>(p));
  if constexpr (T == SourceType::bf16) return f_bf16_load(p);
  return f_f16_load(p);
}

// Elements [0, n) of a row as floats, n <= 16; zeros from n on.
template <SourceType T>
PYLLM_INLINE F16 load_run(const uint8_t* p, int64_t stride, int64_t n) {
  constexpr int size = element_size(T);
  if (stride == 1 && n >= 16) return load_elements<T>(p);
  uint8_t elements[16 * size] = {};
  for (int64_t i = 0; i < (n < 16 ? n : 16); ++i) std::memcpy(elements + i * size, p + i * stride * size, size);
  return load_elements<T>(elements);
}

template <SourceType T>
void pack_pairs_by_row(const void* const* rows, const int64_t* stride, int64_t k, uint8_t* out) {
  for (int64_t c = 0; c < k; c += 32, out += 32 * kPanel * 2) {
    for (int j = 0; j < 16; ++j) {
      uint32_t pairs[16] = {};
      for (int half = 0; half < 2 && rows[j]; ++half) {
        const int64_t at = c + 16 * half;
        const uint8_t* p = static_cast<const uint8_t*>(rows[j]) + at * stride[j] * element_size(T);
        if (at < k) f_bf16_store(pairs + 8 * half, load_run<T>(p, stride[j], k - at));
      }
      for (int i = 0; i < 16; ++i) std::memcpy(out + i * 64 + j * 4, pairs + i, 4);
    }
  }
}

// The 16 outputs side by side, k a fixed number of bytes apart: too far for the hardware to prefetch.
template <SourceType T>
void pack_pairs_by_line(const uint8_t* p, int64_t step, int64_t k, uint8_t* out) {
  for (int64_t c = 0; c < round_up(k, 32); c += 2, p += 2 * step) {
    f_prefetch_l2(p + 16 * step);
    f_prefetch_l2(p + 17 * step);
    const F16 even = c < k ? load_elements<T>(p) : f_zero(), odd = c + 1 < k ? load_elements<T>(p + step) : f_zero();
    f_bf16_interleave_store(out + c / 32 * 32 * kPanel * 2 + c % 32 * 32, even, odd);
  }
}

inline bool side_by_side(const void* const* rows, const int64_t* stride, int size) {
  for (int j = 0; j < 16; ++j) {
    if (!rows[j] || stride[j] != stride[0]) return false;
    if (static_cast<const uint8_t*>(rows[j]) != static_cast<const uint8_t*>(rows[0]) + j * size) return false;
  }
  return true;
}

// 16 outputs of a source.
template <SourceType T>
struct Tile {
  const void* const* rows;
  const int64_t* stride;
  int64_t k;
  bool by_line;

  Tile(const void* const* rows, const int64_t* stride, int64_t k)
      : rows(rows), stride(stride), k(k), by_line(side_by_side(rows, stride, element_size(T))) {}

  // x[i] = the 16 outputs at k = c + i; zeros from k on.
  PYLLM_INLINE void load(int64_t c, F16 (&x)[16]) const {
    const int64_t n = k - c;
    if (by_line) {
      const int64_t step = stride[0] * element_size(T);
      const uint8_t* p = static_cast<const uint8_t*>(rows[0]) + c * step;
      for (int i = 0; i < 16; ++i, p += step) {
        if (i < n) f_prefetch_l2(p + 16 * step);
        x[i] = i < n ? load_elements<T>(p) : f_zero();
      }
      return;
    }
    for (int j = 0; j < 16; ++j) {
      const uint8_t* row = n > 0 ? static_cast<const uint8_t*>(rows[j]) : nullptr;
      x[j] = row ? load_run<T>(row + c * stride[j] * element_size(T), stride[j], n) : f_zero();
    }
    f_transpose(x);
  }
};

// Two int8 or four int4 codes, raised to 0 and more, as 16 bits.
PYLLM_INLINE F16 join(const F16& first, const F16& second, float base) { return f_fma(second, f_set(base), first); }

template <SourceType T>
void pack_i8_tile(const Tile<T>& tile, int t, uint8_t* panel) {
  const int64_t depth = round_up(tile.k, 64);
  Int8Search search;
  search.top = search.bad = f_zero();
  F16 x[16];
  for (int64_t c = 0; c < tile.k; c += 16) {
    tile.load(c, x);
    for (int i = 0; i < 16; ++i) int8_see(search, x[i]);
  }
  int8_begin(search);
  for (int64_t c = 0; c < tile.k; c += 16) {
    tile.load(c, x);
    int8_try(search, x);
  }
  const F16 scale = int8_scale(search), inv = inverse(scale);
  for (int64_t c = 0; c < depth; c += 16) {
    tile.load(c, x);
    for (int i = 0; i < 16; ++i) x[i] = f_add(code_of(x[i], inv, -127.0f, 127.0f), f_set(128.0f));
    for (int i = 0; i < 16; i += 4)
      f_words_store(i8_codes_at(panel, c + i, t), join(x[i], x[i + 1], 256.0f), join(x[i + 2], x[i + 3], 256.0f));
  }
  f_store(i8_scales_at(panel, depth) + t, scale);
}

template <SourceType T>
void pack_i4_tile(Format f, const Tile<T>& tile, int t, uint8_t* panel) {
  const int64_t group = group_of(f);
  alignas(64) float w[128][16];
  for (int64_t begin = 0; begin < tile.k; begin += group, panel += group_bytes(f)) {
    for (int64_t c = 0; c < group; c += 16) {
      F16 x[16];
      tile.load(begin + c, x);
      for (int i = 0; i < 16; ++i) f_store(w[c + i], x[i]);
    }
    F16 scale;
    int4_scale(w[0], group, scale);
    const F16 inv = inverse(scale);
    f_f16_store(panel + 2 * t, scale);
    if (has_zeros(f)) std::memset(panel + 128 + t, 8, 16);
    for (int64_t c = 0; c < group; c += 8) {
      F16 code[8], half[2];
      for (int i = 0; i < 8; ++i) code[i] = f_add(code_of(f_load(w[c + i]), inv, -8.0f, 7.0f), f_set(8.0f));
      for (int i = 0; i < 2; ++i)
        half[i] =
            join(join(code[4 * i], code[4 * i + 1], 16.0f), join(code[4 * i + 2], code[4 * i + 3], 16.0f), 256.0f);
      f_words_store(i4_codes_at(f, panel, c, t), half[0], half[1]);
    }
  }
}

template <SourceType T>
void pack_floats_tile(Format f, const Tile<T>& tile, int t, uint8_t* panel) {
  for (int64_t c = 0; c < tile.k; c += 16) {
    F16 x[16];
    tile.load(c, x);
    for (int i = 0; i < 16 && c + i < tile.k; ++i) {
      const int64_t at = (c + i) * kPanel + t;
      is_f32(f) ? f_store(reinterpret_cast<float*>(panel) + at, x[i]) : f_f16_store(panel + 2 * at, x[i]);
    }
  }
}

template <SourceType T>
void pack_tiles(Format f, const void* const* rows, const int64_t* stride, int64_t k, uint8_t* out) {
  for (int t = 0; t < kPanel; t += 16) {
    const Tile<T> tile(rows + t, stride + t, k);
    uint8_t* pairs = out + t * 64;
    if (is_i8(f)) pack_i8_tile(tile, t, out);
    else if (is_i4(f)) pack_i4_tile(f, tile, t, out);
    else if (f != Format::bf16) pack_floats_tile(f, tile, t, out);
    else if (!tile.by_line) pack_pairs_by_row<T>(rows + t, stride + t, k, pairs);
    else pack_pairs_by_line<T>(static_cast<const uint8_t*>(rows[t]), stride[t] * element_size(T), k, pairs);
  }
}

void pack_panel_rows(Format f, SourceType type, const void* const* rows, const int64_t* col_stride, int64_t k,
                     uint8_t* out) {
  if (type == SourceType::f32) return pack_tiles<SourceType::f32>(f, rows, col_stride, k, out);
  if (type == SourceType::bf16) return pack_tiles<SourceType::bf16>(f, rows, col_stride, k, out);
  pack_tiles<SourceType::f16>(f, rows, col_stride, k, out);
}

}  // namespace
}  // namespace pyllm
