// How the AMX matmuls lay out activations as A tiles, from how many rows on they are used, and what becomes of sums.
// Included by isa_amx.cpp only.
//
// Activations of bf16 and i8_fast are one plane of bytes, those of i8 and i4 two (high and low, kernels.h). A block is
// 16 rows of one plane: [steps][16 rows][64 bytes], for groups of 32 [steps][16 rows][32 bytes], a step being what one
// product of tiles covers; the two planes of the same rows come one after the other. Up to 8 rows both planes share a
// block: rows [0, m) are high, [m, 2 m) low. A block of f32_bf16x3 is [steps][high, low][16 rows][64 bytes]. Rows that
// do not exist are zeros. Of integers, one TileRow a row comes last.
#pragma once
#include "cpu/linear.h"
#include "cpu/quantise_rows.h"
#include "cpu/tiles.h"

namespace pyllm {
namespace {

constexpr int kStackedRows = 8;
constexpr size_t kTile = 1024;  // bytes

struct TileRow {
  float scale;        // s_x
  int32_t high, low;  // i8: -128 * (sum of the plane), since codes are stored + 128
};

// Fewer rows: the kernels of linear.h read the weights as fast.
constexpr int tile_rows_from(Format f) {
  return f == Format::f32_bf16x3 ? 1 : f == Format::bf16 || f == Format::i8_fast ? 5 : 4;
}
constexpr bool is_tiled(Format f) { return f != Format::f32 && f != Format::f16; }
constexpr bool in_tiles(Format f, int m) { return is_tiled(f) && m >= tile_rows_from(f); }
constexpr bool is_stacked(Format f, int m) { return planes_of(f) == 2 && m <= kStackedRows; }
constexpr int block_count(Format f, int m) { return is_stacked(f, m) ? 1 : (m + 15) / 16 * planes_of(f); }

// Bytes of a row in a tile of A, the k that they hold, and the tiles of a step.
constexpr int tile_row_bytes(Format f) { return is_i4(f) && group_of(f) == 32 ? 32 : 64; }
constexpr int tile_k(Format f) { return f == Format::bf16 || f == Format::f32_bf16x3 ? 32 : tile_row_bytes(f); }
constexpr size_t a_step_bytes(Format f) { return 16 * size_t(tile_row_bytes(f)) * (f == Format::f32_bf16x3 ? 2 : 1); }
constexpr int step_count(Format f, int64_t k) { return int((packed_k(f, k) + tile_k(f) - 1) / tile_k(f)); }
constexpr size_t block_bytes(Format f, int64_t k) { return size_t(step_count(f, k)) * a_step_bytes(f); }

inline uint8_t* tile_rows_at(Format f, int m, int64_t k, const void* x) {
  return static_cast<uint8_t*>(const_cast<void*>(x)) + size_t(block_count(f, m)) * block_bytes(f, k);
}
inline const TileRow* tile_rows(const LinearArgs& a) {
  return reinterpret_cast<const TileRow*>(tile_rows_at(a.format, a.m, a.k, a.x));
}

constexpr int kChunkPairs = 8;           // pairs of blocks in a chunk
constexpr int kSumFloats = 4 * 16 * 16;  // of one pair of blocks and one strip: 2 x 2 tiles

// Blocks of A, planes counted, from `block0` on.
struct Chunk {
  int block0, blocks;
  int pairs() const { return (blocks + 1) / 2; }
};
inline Chunk next_chunk(Format f, int m, int block) {
  const int left = block_count(f, m) - block, most = 2 * next_part((left + 1) / 2, kChunkPairs);
  return {block, left < most ? left : most};
}
// Rows of one or two strips whose sums are complete and wait to be finished. A strip is 32 outputs: half of the tiles
// of a panel.
struct Waiting {
  // Sums of the first row: [strips][blocks of 16 rows][2 tiles][16][16] of float32 or, of int8, int32.
  const float* c = nullptr;
  int64_t column = 0;       // of the first strip, in packed order
  int row0 = 0, rows = 0;   // of each strip
  int count = 0, done = 0;  // rows of all strips
  int rate = 0;             // rows a step, so that they are done when the next product is
};

// Floats between the sums of 16 rows and those of the next 16, of strips and of planes.
constexpr int kStripSums = 2 * 16 * 16;
constexpr int row_block_sums(Format f) { return is_i8(f) ? planes_of(f) * kStripSums : kStripSums; }
constexpr int low_sums(Format f, int m) { return is_stacked(f, m) ? 16 * m : kStripSums; }

// Sums of 16 outputs of a row as the values that bias and activation meet.
template <Format F>
PYLLM_INLINE F16 value_of(const LinearArgs& a, const TileRow& row, const float* c, const float* scales) {
  if constexpr (F == Format::bf16 || F == Format::f32_bf16x3) {
    return f_load(c);
  } else if constexpr (is_i4(F)) {
    return f_mul(f_load(c), f_set(row.scale));
  } else {
    F16 sum = i_to_float(i_add(i_load(c), i_set(row.high)));
    if constexpr (planes_of(F) == 2) {
      const F16 low = i_to_float(i_add(i_load(c + low_sums(F, a.m)), i_set(row.low)));
      sum = f_fma(sum, f_set(256.0f), low);
    }
    return f_mul(sum, f_mul(f_set(row.scale), f_load(scales)));
  }
}

inline const float* i8_scales(const LinearArgs& a, int64_t column) {
  const size_t panel = panel_bytes(a.format, a.k), codes = size_t(packed_k(a.format, a.k)) * kPanel;
  return reinterpret_cast<const float*>(a.weights + size_t(column / kPanel) * panel + codes) + column % kPanel;
}

template <Format F>
PYLLM_APART void finish_some(const LinearArgs& a, Waiting& w, int most) {
  for (const int end = w.count - w.done < most ? w.count : w.done + most; w.done < end; ++w.done) {
    const int strip = w.done / w.rows, row = w.done % w.rows;
    const int64_t column = w.column + 32 * strip;
    const float* c = w.c + strip * kStripSums + row / 16 * row_block_sums(F) + row % 16 * 16;
    const TileRow none = {}, &scale = is_i8(F) || is_i4(F) ? tile_rows(a)[w.row0 + row] : none;
    const float* scales = is_i8(F) ? i8_scales(a, column) : nullptr;
    finish_columns(a, w.row0 + row, column, value_of<F>(a, scale, c, scales),
                   value_of<F>(a, scale, c + 256, scales + 16));
    const float* y = a.y + int64_t(w.row0 + row + 8) * a.y_ld + (a.gated ? column / 2 : column);
    __asm__ volatile("prefetchw %0" : : "m"(*y));
    if (!a.gated) __asm__ volatile("prefetchw %0" : : "m"(y[16]));
  }
}

}  // namespace
}  // namespace pyllm
