// Packing of one panel of weights, element by element. Include a vec_*.h first.
#pragma once
#include <cstring>

#include "cpu/math.h"

namespace pyllm {
namespace {

inline F16 load_source(SourceType type, const void* p) {
  return type == SourceType::f32    ? f_load(static_cast<const float*>(p))
         : type == SourceType::bf16 ? f_bf16_load(p)
                                    : f_f16_load(p);
}

inline void pack_panel_rows(Format f, SourceType type, const void* const* rows, const int64_t* col_stride, int64_t k,
                            uint8_t* out) {
  const size_t size = type == SourceType::f32 ? 4 : 2;
  for (int64_t c = 0; c < packed_k(f, k); ++c)
    for (int j = 0; j < kPanel; ++j) {
      uint8_t element[64] = {};
      if (rows[j] && c < k)
        std::memcpy(element, static_cast<const uint8_t*>(rows[j]) + size_t(c * col_stride[j]) * size, size);
      const F16 value = load_source(type, element);
      float floats[16];
      uint16_t halves[16];
      f_store(floats, value);
      f_bf16_store(halves, value);
      if (f == Format::f32) {
        std::memcpy(out + (c * kPanel + j) * 4, floats, 4);
      } else {
        std::memcpy(out + c / 32 * 4096 + j / 16 * 1024 + c % 32 / 2 * 64 + j % 16 * 4 + c % 2 * 2, halves, 2);
      }
    }
}

}  // namespace
}  // namespace pyllm
