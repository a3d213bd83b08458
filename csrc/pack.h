// Brings checkpoint matrices into the form a step reads: packed panels (kernels.h) for matmuls, plain rows for tables
// that are only looked up. Also looks rows up in either form.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "threads.h"

namespace pyllm {

// Elements anywhere in memory; strides in elements.
struct Source {
  const void* data;
  SourceType type;
  int64_t rows, cols, row_stride, col_stride;
};

// What is stored: sources joined along N, in the order given; gated: two equal parts in alternating blocks of 16 rows.
struct MatrixShape {
  Format format;
  std::vector<int64_t> parts;  // rows of each source
  int64_t k;
  bool gated = false;
  bool packed = true;  // false: plain rows [n][k] in `format`

  int64_t outputs() const;  // columns of y: the sum of the parts, or one part when gated
  int64_t n() const;        // rows stored, without the last panel's padding; gated: each part padded to 16
  int panels() const { return int(round_up(n(), kPanel) / kPanel); }
  size_t bytes() const;
  size_t bias_floats() const { return size_t(round_up(n(), kPanel)); }

  // Part and row of stored row j; part -1 where it is padding.
  struct Place {
    int part;
    int64_t row;
  };
  Place place(int64_t j) const;
};

// One worker's share: contiguous panels (or rows), as the workers of a step will read them, so that each touches first
// what it will read. All parts have one element type.
void pack_part(const MatrixShape& shape, const Kernels& kernels, const std::vector<Source>& parts, const Team& team,
               uint8_t* out);

// parts[i]: as many floats as part i has rows.
void pack_bias(const MatrixShape& shape, const std::vector<const float*>& parts, float* out);

// out[0 .. k) = scale * row, or added to what is there.
void look_up(const MatrixShape& shape, const uint8_t* stored, int64_t row, float scale, bool add, float* out);

}  // namespace pyllm
