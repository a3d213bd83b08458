// Matmul entries of the AMX table: from a few rows on in tiles, below as in linear.h. The results are the same bits:
// TDPBF16PS is the arithmetic that linear.h follows, and sums of integers are exact.
#pragma once
#include "cpu/amx_groups.h"
#include "cpu/amx_strips.h"

namespace pyllm {
namespace {

size_t amx_prepared_bytes(Format f, int m, int64_t k) {
  if (!in_tiles(f, m)) return prepared_bytes(f, m, k);
  const size_t rows = is_i8(f) || is_i4(f) ? size_t(m) * sizeof(TileRow) : 0;
  return size_t(block_count(f, m)) * block_bytes(f, k) + rows;
}

// 32 columns of bf16, with Rest also what rounding leaves; n of the floats exist.
template <bool Rest>
PYLLM_INLINE void prepare_bf16(const float* from, int64_t n, uint8_t* to) {
  for (int i = 0; i < 32; i += 16, from += 16, to += 32, n -= 16) {
    const F16 x = load_padded(from, n);
    f_bf16_store(to, x);
    if (Rest) f_bf16_store(to + kTile, rest_of_bf16(x));
  }
}

// Columns of one row of a tile as integers; n of the floats exist. Adds up the planes.
template <Format F>
PYLLM_INLINE void prepare_bytes(const float* from, int64_t n, const F16& factor, uint8_t* high, uint8_t* low,
                                I16& sum_high, I16& sum_low) {
  for (int i = 0; i < tile_row_bytes(F); i += 16) {
    const Integers v = integers(load_padded(from + i, n - i), factor);
    const I16 first = planes_of(F) == 2 ? v.high : v.q;
    sum_high = i_add(sum_high, first);
    store_acts<is_i4(F)>(reinterpret_cast<int8_t*>(high + i), first);
    if (planes_of(F) == 1) continue;
    sum_low = i_add(sum_low, low_plane(v));
    store_acts<is_i4(F)>(reinterpret_cast<int8_t*>(low + i), low_plane(v));
  }
}

// Row r of all blocks, from k floats at x, or zeros where it does not exist.
template <Format F>
void prepare_tile_row(const float* x, int m, int64_t k, int r, uint8_t* out) {
  const size_t block = block_bytes(F, k);
  const bool stacked = is_stacked(F, m);
  uint8_t* to = out + size_t(stacked ? 0 : r / 16 * planes_of(F)) * block + r % 16 * tile_row_bytes(F);
  uint8_t* low = to + (stacked ? size_t(m) * tile_row_bytes(F) : block);
  constexpr bool kSplit = F == Format::f32_bf16x3, kFloats = F == Format::bf16 || kSplit;
  const RowScale s = kFloats || r >= m ? RowScale{0, 0} : row_scale(x, k, top_of(F));
  I16 sum_high = i_zero(), sum_low = i_zero();
  for (int64_t i = 0; i < packed_k(F, k); i += tile_k(F), to += a_step_bytes(F), low += a_step_bytes(F)) {
    if constexpr (kFloats) {
      prepare_bf16<kSplit>(x + i, r < m ? k - i : 0, to);
    } else {
      prepare_bytes<F>(x + i, s.factor != 0 ? k - i : 0, f_set(s.factor), to, low, sum_high, sum_low);
    }
  }
  if (kFloats || r >= m) return;
  const TileRow row = {s.scale, -128 * i_reduce_add(sum_high), -128 * i_reduce_add(sum_low)};
  std::memcpy(tile_rows_at(F, m, k, out) + size_t(r) * sizeof row, &row, sizeof row);
}

template <Format F>
void prepare_tile_rows(const float* x, int64_t x_ld, int m, int64_t k, int row0, int row1, void* out) {
  const int end = row1 == m && !is_stacked(F, m) ? int(round_up(m, 16)) : row1;
  for (int r = row0; r < end; ++r) prepare_tile_row<F>(x + (r < m ? r : 0) * x_ld, m, k, r, static_cast<uint8_t*>(out));
}

void amx_prepare_rows(Format f, const float* x, int64_t x_ld, int m, int64_t k, int row0, int row1, void* out) {
  if (!in_tiles(f, m)) return prepare_rows(f, x, x_ld, m, k, row0, row1, out);
  switch (f) {
    case Format::bf16:
      return prepare_tile_rows<Format::bf16>(x, x_ld, m, k, row0, row1, out);
    case Format::f32_bf16x3:
      return prepare_tile_rows<Format::f32_bf16x3>(x, x_ld, m, k, row0, row1, out);
    case Format::i8:
      return prepare_tile_rows<Format::i8>(x, x_ld, m, k, row0, row1, out);
    case Format::i8_fast:
      return prepare_tile_rows<Format::i8_fast>(x, x_ld, m, k, row0, row1, out);
    default:
      break;
  }
  if (group_of(f) == 32) return prepare_tile_rows<Format::i4_g32>(x, x_ld, m, k, row0, row1, out);
  prepare_tile_rows<Format::i4_g128>(x, x_ld, m, k, row0, row1, out);
}

size_t amx_linear_scratch(const LinearArgs& a, int panels) {
  if (!in_tiles(a.format, a.m)) return linear_scratch(a, panels);
  return is_i4(a.format) ? groups_scratch(a, panels) : strips_scratch(a, panels);
}

void tiled_linear(const LinearArgs& a, int p0, int p1, void* scratch) {
  switch (a.format) {
    case Format::bf16:
      return strips_linear<Format::bf16>(a, p0, p1, scratch);
    case Format::f32_bf16x3:
      return strips_linear<Format::f32_bf16x3>(a, p0, p1, scratch);
    case Format::i8:
      return strips_linear<Format::i8>(a, p0, p1, scratch);
    case Format::i8_fast:
      return strips_linear<Format::i8_fast>(a, p0, p1, scratch);
    case Format::i4_g32:
      return groups_linear<Format::i4_g32>(a, p0, p1, scratch);
    case Format::i4_g128:
      return groups_linear<Format::i4_g128>(a, p0, p1, scratch);
    case Format::i4z_g32:
      return groups_linear<Format::i4z_g32>(a, p0, p1, scratch);
    case Format::i4z_g128:
      return groups_linear<Format::i4z_g128>(a, p0, p1, scratch);
    default:
      return;
  }
}

void amx_linear_panels(const LinearArgs& a, int p0, int p1, void* scratch) {
  if (!in_tiles(a.format, a.m)) return linear_panels(a, p0, p1, scratch);
  finish_stores();
  tiled_linear(a, p0, p1, scratch);
  _tile_release();
}

}  // namespace
}  // namespace pyllm
