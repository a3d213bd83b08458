// Brings checkpoint matrices into the form a step reads: packed panels (kernels.h) for matmuls, plain rows for tables
// that are only looked up. Also looks rows up in either form.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "errors.h"
#include "kernels.h"
#include "threads.h"

namespace pyllm {

// Elements anywhere in memory; strides in elements.
struct Source {
  const void* data;
  SourceType type;
  int64_t rows, cols, row_stride, col_stride;
};

// Weights that are quantised already, dense: codes int8, or 0 to 15; scales and zero points one for each group of
// group_size columns, the last one perhaps smaller.
struct CodeSource {
  const uint8_t* codes;  // [rows][cols], row_stride bytes between rows
  int64_t rows, cols, row_stride;
  const float* scales;   // [rows][groups]
  const uint8_t* zeros;  // [rows][groups]; nullptr: 8 (int4)
  int64_t groups, group_size;
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
// what it will read. All parts have one element type. False: unfit_row() tells where.
bool pack_part(const MatrixShape& shape, const Kernels& kernels, const std::vector<Source>& parts, const Team& team,
               uint8_t* out);
bool pack_part(const MatrixShape& shape, const Kernels& kernels, const std::vector<CodeSource>& parts, const Team& team,
               uint8_t* out);

// The first stored row that holds what its format cannot: a weight that is infinite or NaN (float16, int8, int4), too
// large for float16, or so large that the scale of its group is; -1: there is none.
int64_t unfit_row(const MatrixShape& shape, const uint8_t* packed);
// An [array] error about such a row of the matrix called `name`.
Error unfit(const MatrixShape& shape, const uint8_t* packed, const std::string& name);

// Everything wrong with the shapes of codes for a matrix, or "".
std::string shape_problems(const MatrixShape& shape, const std::vector<CodeSource>& parts);
// What is wrong with a value of codes whose shapes are right, or "". Reads the rows of worker `index` of `size`.
std::string value_problem(const MatrixShape& shape, const std::vector<CodeSource>& parts, int index, int size);

// parts[i]: as many floats as part i has rows.
void pack_bias(const MatrixShape& shape, const std::vector<const float*>& parts, float* out);

// out[0 .. k) = scale * row, or added to what is there.
void look_up(const MatrixShape& shape, const uint8_t* stored, int64_t row, float scale, bool add, float* out);

// The codes [n][k] (int8, or 0 to 15) and scales [n][groups] of a packed int8 or int4 matrix without zero points: those
// of rows [begin, end).
void read_codes(const MatrixShape& shape, const uint8_t* packed, int64_t begin, int64_t end, uint8_t* codes,
                float* scales);

}  // namespace pyllm
