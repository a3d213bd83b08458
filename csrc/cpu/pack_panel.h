// Packing of one panel of weights from float32, bfloat16 or float16 elements with any stride. Include a vec_*.h first.
//
// Works on tiles of 16 outputs. Where the 16 elements of one k lie side by side (a matrix stored [k][n]), whole lines
// are copied; otherwise runs of k are read output by output and their elements written out one by one.
#pragma once
#include <cstring>

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
void pack_floats_by_row(const void* const* rows, const int64_t* stride, int64_t k, float* out) {
  for (int64_t c = 0; c < k; c += 16) {
    for (int j = 0; j < 16; ++j) {
      const int64_t n = k - c < 16 ? k - c : 16;
      float run[16] = {};
      if (rows[j]) {
        const uint8_t* p = static_cast<const uint8_t*>(rows[j]) + c * stride[j] * element_size(T);
        f_store(run, load_run<T>(p, stride[j], n));
      }
      float* line = out + c * kPanel + j;
      for (int i = 0; i < n; ++i) line[i * kPanel] = run[i];
    }
  }
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
void pack_floats_by_line(const uint8_t* p, int64_t step, int64_t k, float* out) {
  for (int64_t c = 0; c < k; ++c, p += step) {
    f_prefetch_l2(p + 16 * step);
    f_store(out + c * kPanel, load_elements<T>(p));
  }
}

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

template <SourceType T>
void pack_tiles(Format f, const void* const* rows, const int64_t* stride, int64_t k, uint8_t* out) {
  constexpr int size = element_size(T);
  for (int t = 0; t < kPanel; t += 16) {
    const uint8_t* first = static_cast<const uint8_t*>(rows[t]);
    float* floats = reinterpret_cast<float*>(out) + t;
    uint8_t* pairs = out + t * 64;
    const bool by_line = side_by_side(rows + t, stride + t, size);
    if (f == Format::f32)
      by_line ? pack_floats_by_line<T>(first, stride[t] * size, k, floats)
              : pack_floats_by_row<T>(rows + t, stride + t, k, floats);
    else
      by_line ? pack_pairs_by_line<T>(first, stride[t] * size, k, pairs)
              : pack_pairs_by_row<T>(rows + t, stride + t, k, pairs);
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
