#include "pack.h"

#include <cmath>
#include <numeric>

#include "convert.h"

namespace pyllm {

int64_t MatrixShape::outputs() const {
  return gated ? parts[0] : std::accumulate(parts.begin(), parts.end(), int64_t(0));
}

int64_t MatrixShape::n() const { return gated ? 2 * round_up(parts[0], 16) : outputs(); }

size_t MatrixShape::bytes() const {
  if (packed) return matrix_bytes(format, n(), k);
  return size_t(n()) * size_t(k) * (is_f32(format) ? 4 : 2);
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

bool all_finite(const uint16_t* halves, int64_t n) {
  uint16_t bad = 0;
  for (int64_t i = 0; i < n; i++) bad |= uint16_t((halves[i] & 0x7c00u) == 0x7c00u);
  return bad == 0;
}

// The first of a panel's outputs that does not fit its format, or -1: by its scales, or float16 weights.
int unfit_output(const MatrixShape& shape, const uint8_t* panel) {
  const Format f = shape.format;
  if (is_i8(f)) {
    const float* scales = reinterpret_cast<const float*>(panel + packed_k(f, shape.k) * kPanel);
    for (int j = 0; j < kPanel; j++)
      if (!std::isfinite(scales[j])) return j;
  }
  if (f != Format::f16 && !is_i4(f)) return -1;
  const size_t step = is_i4(f) ? group_bytes(f) : kPanel * 2;
  for (const uint8_t* end = panel + panel_bytes(f, shape.k); panel < end; panel += step) {
    const uint16_t* line = reinterpret_cast<const uint16_t*>(panel);
    if (all_finite(line, kPanel)) continue;
    for (int j = 0; j < kPanel; j++)
      if (!all_finite(line + j, 1)) return j;
  }
  return -1;
}

// make(panel, out) for one worker's panels; whether all of them fit.
template <class Make>
bool for_panels(const MatrixShape& shape, const Team& team, uint8_t* out, const Make& make) {
  const size_t bytes = panel_bytes(shape.format, shape.k);
  const Team::Range mine = team.part(shape.panels());
  bool fits = true;
  for (int64_t p = mine.begin; p < mine.end; p++) {
    make(p, out + size_t(p) * bytes);
    fits = fits && unfit_output(shape, out + size_t(p) * bytes) < 0;
  }
  return fits;
}

void pack_panel(const MatrixShape& shape, const Kernels& kernels, const std::vector<Source>& parts, int64_t panel,
                uint8_t* out) {
  const void* rows[kPanel];
  int64_t strides[kPanel];
  for (int j = 0; j < kPanel; j++) {
    const MatrixShape::Place at = shape.place(panel * kPanel + j);
    rows[j] = at.part < 0 ? nullptr : element(parts[size_t(at.part)], at.row, 0);
    strides[j] = at.part < 0 ? 0 : parts[size_t(at.part)].col_stride;
  }
  kernels.pack_panel(shape.format, parts[0].type, rows, strides, shape.k, out);
}

void pack_panel(const MatrixShape& shape, const Kernels& kernels, const std::vector<CodeSource>& parts, int64_t panel,
                uint8_t* out) {
  CodeRow rows[kPanel] = {};
  for (int j = 0; j < kPanel; j++) {
    const MatrixShape::Place at = shape.place(panel * kPanel + j);
    if (at.part < 0) continue;
    const CodeSource& source = parts[size_t(at.part)];
    rows[j].codes = source.codes + at.row * source.row_stride;
    rows[j].scales = source.scales + at.row * source.groups;
    rows[j].zeros = source.zeros ? source.zeros + at.row * source.groups : nullptr;
    rows[j].source_group = source.group_size;
  }
  kernels.pack_codes(shape.format, rows, shape.k, out);
}

void store_rows(const MatrixShape& shape, const std::vector<Source>& parts, int64_t begin, int64_t end, uint8_t* out) {
  for (int64_t j = begin; j < end; j++) {
    const MatrixShape::Place at = shape.place(j);
    const Source& source = parts[size_t(at.part)];
    const void* from = element(source, at.row, 0);
    for (int64_t i = 0; i < shape.k; i++) {
      const float value = load_element(source.type, from, i * source.col_stride);
      uint16_t* half = reinterpret_cast<uint16_t*>(out) + j * shape.k + i;
      if (shape.format == Format::bf16) *half = bf16_of_float(value);
      else if (shape.format == Format::f16) *half = f16_of_float(value);
      else reinterpret_cast<float*>(out)[j * shape.k + i] = value;
    }
  }
}

}  // namespace

bool pack_part(const MatrixShape& shape, const Kernels& kernels, const std::vector<Source>& parts, const Team& team,
               uint8_t* out) {
  if (shape.packed)
    return for_panels(shape, team, out,
                      [&](int64_t p, uint8_t* panel) { pack_panel(shape, kernels, parts, p, panel); });
  const Team::Range mine = team.part(shape.n());
  store_rows(shape, parts, mine.begin, mine.end, out);
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(out);
  return shape.format != Format::f16 || all_finite(halves + mine.begin * shape.k, (mine.end - mine.begin) * shape.k);
}

bool pack_part(const MatrixShape& shape, const Kernels& kernels, const std::vector<CodeSource>& parts, const Team& team,
               uint8_t* out) {
  return for_panels(shape, team, out, [&](int64_t p, uint8_t* panel) { pack_panel(shape, kernels, parts, p, panel); });
}

int64_t unfit_row(const MatrixShape& shape, const uint8_t* stored) {
  if (!shape.packed) {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(stored);
    for (int64_t j = 0; j < shape.n() && shape.format == Format::f16; j++)
      if (!all_finite(halves + j * shape.k, shape.k)) return j;
    return -1;
  }
  for (int64_t p = 0; p < shape.panels(); p++) {
    const int j = unfit_output(shape, stored + size_t(p) * panel_bytes(shape.format, shape.k));
    if (j >= 0) return p * kPanel + j;
  }
  return -1;
}

Error unfit(const MatrixShape& shape, const uint8_t* stored, const std::string& name) {
  const MatrixShape::Place at = shape.place(unfit_row(shape, stored));
  return Error(ErrorKind::array,
               text("[load] weights must be finite and in the range of their format, got others in row ", at.row,
                    " of part ", at.part, " of ", name, "; check the checkpoint or choose float32 or bfloat16"));
}

void pack_bias(const MatrixShape& shape, const std::vector<const float*>& parts, float* out) {
  for (size_t j = 0; j < shape.bias_floats(); j++) {
    const MatrixShape::Place at = shape.place(int64_t(j));
    out[j] = at.part < 0 ? 0.0f : parts[size_t(at.part)][at.row];
  }
}

}  // namespace pyllm
