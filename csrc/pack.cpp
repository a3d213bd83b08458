#include "pack.h"

#include <numeric>

#include "convert.h"

namespace pyllm {

int64_t MatrixShape::outputs() const {
  return gated ? parts[0] : std::accumulate(parts.begin(), parts.end(), int64_t(0));
}

int64_t MatrixShape::n() const { return gated ? 2 * round_up(parts[0], 16) : outputs(); }

size_t MatrixShape::bytes() const {
  if (packed) return matrix_bytes(format, n(), k);
  return size_t(n()) * size_t(k) * (format == Format::bf16 ? 2 : 4);
}

MatrixShape::Place MatrixShape::place(int64_t j) const {
  if (gated) {
    const int64_t row = j / 32 * 16 + j % 16;
    return row < parts[0] ? Place{int(j / 16 % 2), row} : Place{-1, 0};
  }
  for (size_t i = 0; i < parts.size(); i++) {
    if (j < parts[i]) return {int(i), j};
    j -= parts[i];
  }
  return {-1, 0};
}

namespace {

// The address of an element; the element type is known at run time only.
const void* element(const Source& source, int64_t row, int64_t col) {
  const int64_t index = row * source.row_stride + col * source.col_stride;
  return static_cast<const uint8_t*>(source.data) + index * (source.type == SourceType::f32 ? 4 : 2);
}

void pack_panels(const MatrixShape& shape, const Kernels& kernels, const std::vector<Source>& parts, int p0, int p1,
                 uint8_t* out) {
  const size_t bytes = panel_bytes(shape.format, shape.k);
  for (int p = p0; p < p1; p++) {
    const void* rows[kPanel];
    int64_t strides[kPanel];
    for (int j = 0; j < kPanel; j++) {
      const MatrixShape::Place at = shape.place(int64_t(p) * kPanel + j);
      rows[j] = at.part < 0 ? nullptr : element(parts[size_t(at.part)], at.row, 0);
      strides[j] = at.part < 0 ? 0 : parts[size_t(at.part)].col_stride;
    }
    kernels.pack_panel(shape.format, parts[0].type, rows, strides, shape.k, out + size_t(p) * bytes);
  }
}

void store_rows(const MatrixShape& shape, const std::vector<Source>& parts, int64_t begin, int64_t end, uint8_t* out) {
  for (int64_t j = begin; j < end; j++) {
    const MatrixShape::Place at = shape.place(j);
    const Source& source = parts[size_t(at.part)];
    const void* from = element(source, at.row, 0);
    for (int64_t i = 0; i < shape.k; i++) {
      const float value = load_element(source.type, from, i * source.col_stride);
      if (shape.format == Format::bf16) reinterpret_cast<uint16_t*>(out)[j * shape.k + i] = bf16_of_float(value);
      else reinterpret_cast<float*>(out)[j * shape.k + i] = value;
    }
  }
}

// use(k, element k of stored row `row`) for k ascending.
template <class Use>
void for_row(const MatrixShape& shape, const uint8_t* stored, int64_t row, const Use& use) {
  if (!shape.packed) {
    for (int64_t k = 0; k < shape.k; k++) {
      const int64_t index = row * shape.k + k;
      use(k, shape.format == Format::f32 ? reinterpret_cast<const float*>(stored)[index]
                                         : float_of_bf16(reinterpret_cast<const uint16_t*>(stored)[index]));
    }
    return;
  }
  const uint8_t* panel = stored + size_t(row / kPanel) * panel_bytes(shape.format, shape.k);
  const int64_t j = row % kPanel;
  if (shape.format == Format::f32) {
    const float* at = reinterpret_cast<const float*>(panel) + j;
    for (int64_t k = 0; k < shape.k; k++) use(k, at[k * kPanel]);
    return;
  }
  // A tile of 16 outputs and 32 k is 16 lines of 64 bytes; a line holds a pair of k for each output.
  const uint16_t* at = reinterpret_cast<const uint16_t*>(panel) + j / 16 * 512 + j % 16 * 2;
  for (int64_t k = 0; k < shape.k; k++) use(k, float_of_bf16(at[k / 32 * 2048 + k % 32 / 2 * 32 + k % 2]));
}

}  // namespace

void pack_part(const MatrixShape& shape, const Kernels& kernels, const std::vector<Source>& parts, const Team& team,
               uint8_t* out) {
  const Team::Range range = team.part(shape.packed ? shape.panels() : shape.n());
  if (shape.packed) pack_panels(shape, kernels, parts, int(range.begin), int(range.end), out);
  else store_rows(shape, parts, range.begin, range.end, out);
}

void pack_bias(const MatrixShape& shape, const std::vector<const float*>& parts, float* out) {
  for (size_t j = 0; j < shape.bias_floats(); j++) {
    const MatrixShape::Place at = shape.place(int64_t(j));
    out[j] = at.part < 0 ? 0.0f : parts[size_t(at.part)][at.row];
  }
}

void look_up(const MatrixShape& shape, const uint8_t* stored, int64_t row, float scale, bool add, float* out) {
  if (add) for_row(shape, stored, row, [&](int64_t k, float value) { out[k] += scale * value; });
  else for_row(shape, stored, row, [&](int64_t k, float value) { out[k] = scale * value; });
}

}  // namespace pyllm
