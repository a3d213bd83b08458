// Parts that all tile kernels share: which rows a block works on, and the epilogue from sums in shared memory.
#pragma once
#include "activation.cuh"
#include "code_pairs.cuh"
#include "tile_args.h"

namespace pyllm {
namespace cuda {

// Rows of matrix z: how many there are, and where row i lies in x and in y.
struct TileRows {
  const int32_t* list;
  int count;
  int64_t offset;
  bool compact_x, compact_y;
  __device__ TileRows(const TileArgs& a, int z)
      : list(a.list ? a.list + z * a.list_stride : nullptr),
        count(a.list ? a.counts[z] : a.m),
        offset(a.offsets ? a.offsets[z] : 0),
        compact_x(a.compact_x),
        compact_y(a.compact_y) {}
  __device__ int64_t at(int i, bool compact) const { return !list ? i : compact ? offset + i : int64_t(list[i]); }
  __device__ int64_t x(int i) const { return at(i, compact_x); }
  __device__ int64_t y(int i) const { return at(i, compact_y); }
};

// Rows of a packed matrix, those of zeros too.
__device__ __forceinline__ int64_t packed_rows(const Matrix& w) { return (w.n + 15) / 16 * 16; }

// Four outputs from column on, from sums[w0 ..] of four weight rows (gated: and of the four rows 8 further).
__device__ __forceinline__ void finish_outputs(const TileArgs& a, const Matrix& w, const float* sums, int64_t row,
                                               float (&v)[4]) {
  const bool scaled = w.format == Format::i8 || w.format == Format::i8_fast;
  const float* scales = static_cast<const float*>(w.scales);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    v[i] = scaled ? sums[i] * scales[row + i] : sums[i];
    if (w.bias) v[i] += w.bias[row + i];
    v[i] = activate(a.activation, v[i]);
    if (w.gated) {
      float up = scaled ? sums[8 + i] * scales[row + 8 + i] : sums[8 + i];
      if (w.bias) up += w.bias[row + 8 + i];
      v[i] *= up;
    }
    v[i] = capped(v[i], a.scale, a.softcap);
  }
}

// Writes y of rows x0 .. x0 + x_rows and weight rows w0 .. w0 + w_rows from sums[x row][ld]. All threads of the block.
__device__ __forceinline__ void write_tile(const TileArgs& a, const Matrix& w, int z, const TileRows& rows,
                                           const float* sums, int ld, int x0, int x_rows, int64_t w0, int w_rows) {
  const int quads = w_rows / (w.gated ? 8 : 4);
  const int64_t outputs = w.gated ? w.n / 2 : w.n;
#pragma unroll 1
  for (int i = threadIdx.x; i < x_rows * quads; i += blockDim.x) {
    const int r = i / quads, q = i % quads;
    if (x0 + r >= rows.count) return;
    const int row = w.gated ? q / 2 * 16 + q % 2 * 4 : q * 4;
    const int64_t column = (w.gated ? w0 / 2 : w0) + q * 4;
    const int many = int(min(int64_t(4), outputs - column));
    if (many <= 0) continue;
    float v[4];
    finish_outputs(a, w, sums + r * ld + row, w0 + row, v);
    const int64_t to = rows.y(x0 + r);
    if (a.residual.data) {
      const float* residual = static_cast<const float*>(a.residual.data) + to * a.residual.ld + column;
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < many) v[j] += residual[j];
    }
    store_four(a.y, to * a.y.ld + z * a.y_step + column, a.aligned_y, many, v);
  }
}

}  // namespace cuda
}  // namespace pyllm
