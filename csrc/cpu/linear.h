// Matmul over packed panels for float32, float16 and bfloat16 and any number of rows, and the tables' entries for all
// formats (linear_int.h has the integer ones). The arithmetic of an output never depends on how many rows there are.
// AMX has amx_linear.h.
#pragma once
#include "cpu/linear_blocks.h"
#include "cpu/linear_finish.h"
#include "cpu/linear_int.h"
#include "kernels.h"

namespace pyllm {
namespace {

// Inputs in a 32-bit word of a prepared row of bfloat16.
#ifdef PYLLM_BF16_DOT
constexpr int kWordInputs = 2;
#else
constexpr int kWordInputs = 1;
#endif

// Whether one register block takes all rows and all outputs of a panel at once, whatever k.
bool in_one_block(Format f, int rows) {
  if (f == Format::bf16 && kWordInputs == 1) return rows < kUnpackFrom && rows <= kStreamRows;
  if (f == Format::f16 && rows >= kUnpackFrom) return false;
  return rows <= kBlockRows && block_vectors(rows) * 16 == kPanel;
}

// Sums of rows [row0, row0 + rows) of panel p into c[rows][64].
void sum_panel(const LinearArgs& a, int p, int row0, int rows, float* c, float* unpacked) {
  const bool halves = a.format == Format::f16, floats = is_f32(a.format) || halves;
  const int step = floats ? 1 : kWordInputs;
  const int64_t depth = packed_k(a.format, a.k) / step, x_ld = floats ? a.x_ld : depth, unit = floats ? 1 : 32 / step;
  const float* x = static_cast<const float*>(a.x) + row0 * x_ld;
  const float* y = a.y + row0 * a.y_ld + int64_t(p) * (a.gated ? kPanel / 2 : kPanel);
  const uint8_t* w = a.weights + size_t(p) * panel_bytes(a.format, a.k);
  const bool streams = in_one_block(a.format, rows);
  for (int64_t k = 0, steps; k < depth; k += steps) {
    steps = streams ? depth : unit * next_part(int((depth - k) / unit), int(kPiece / unit));
    const int64_t bytes = steps * kPanel * (floats && !halves ? 4 : 2 * step);
    Piece piece = {w, bytes, unpacked, x + k, x_ld, steps, k == 0, c, y, a.y_ld, streams};
    if (halves && rows < kUnpackFrom) {
      all_rows<Blocks::halves, kUnpackFrom - 1>(piece, rows);
    } else if (halves) {
      widen_piece(w, steps, unpacked);
      all_rows<Blocks::floats, kBlockRows>(piece, rows);
    } else if (floats) {
      piece.weights = reinterpret_cast<const float*>(w);
      all_rows<Blocks::floats, kBlockRows>(piece, rows);
    } else if (kWordInputs == 2) {
      all_rows<Blocks::dots, kBlockRows>(piece, rows);
    } else if (rows < kUnpackFrom) {
      all_rows<Blocks::stream, kStreamRows>(piece, rows);
    } else {
      unpack_piece(w, steps, unpacked);
      all_rows<Blocks::pairs, kBlockRows>(piece, rows);
    }
    w += bytes;
  }
}

// Prepared form: bfloat16 rows, contiguous, padded with zeros to packed_k columns; as floats that are already rounded
// where there is no instruction for pairs of them.
size_t prepared_bytes(Format f, int m, int64_t k) {
  if (is_i8(f) || is_i4(f)) return quantised_bytes(f, m, k);
  return f == Format::bf16 ? size_t(m) * size_t(packed_k(f, k) / kWordInputs) * sizeof(float) : 0;
}

void prepare_rows(Format f, const float* x, int64_t x_ld, int m, int64_t k, int row0, int row1, void* out) {
  if (is_i8(f) || is_i4(f)) return quantise_rows(f, x, x_ld, m, k, row0, row1, out);
  if (f != Format::bf16) return;
  const int64_t depth = packed_k(f, k);
  for (int r = row0; r < row1; ++r) {
    const float* from = x + r * x_ld;
    float* to = static_cast<float*>(out) + r * (depth / kWordInputs);
    for (int64_t i = 0; i < depth; i += 16) {
      const int64_t n = k - i;
      const F16 v = n >= 16 ? f_load(from + i) : n > 0 ? f_load_n(from + i, int(n)) : f_zero();
      if (kWordInputs == 2) f_bf16_store(to + i / 2, v);
      else f_store(to + i, f_round_bf16(v));
    }
  }
}

size_t linear_scratch(const LinearArgs& a, int panels) {
  (void)panels;
  if (is_i8(a.format) || is_i4(a.format)) return int_scratch(a);
  const size_t sums = size_t(a.m < kRowBlock ? a.m : kRowBlock) * kPanel * sizeof(float);
  return sums + (is_f32(a.format) ? 0 : size_t(kPiece) * kPanel * sizeof(float));
}

void linear_panels(const LinearArgs& a, int p0, int p1, void* scratch) {
  if (is_i8(a.format) || is_i4(a.format)) return int_panels(a, p0, p1, scratch);
  float* c = static_cast<float*>(scratch);
  for (int row = 0, rows; row < a.m; row += rows) {
    rows = next_part(a.m - row, kRowBlock);
    for (int p = p0; p < p1; ++p) {
      sum_panel(a, p, row, rows, c, c + rows * kPanel);
      finish_rows(a, p, row, rows, c);
    }
  }
}

}  // namespace
}  // namespace pyllm
