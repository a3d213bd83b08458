// What codes of a checkpoint must hold before they are packed.
#include <cmath>

#include "pack.h"

namespace pyllm {
namespace {

constexpr float kHalfLimit = 65520.0f;  // rounds to infinity in float16
constexpr int kMostZero = 16;           // GPTQ stores zero points less one: 0 .. 15

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::string shape_problem(const MatrixShape& shape, size_t i, const CodeSource& part) {
  const int64_t k = shape.k, unit = group_of(shape.format);
  if (part.rows != shape.parts[i] || part.cols != k)
    return text("part ", i, " must be [", shape.parts[i], ", ", k, "], got [", part.rows, ", ", part.cols, "]");
  if (is_i8(shape.format) && part.groups != 1)
    return text("part ", i, " of int8 has one scale a row, got ", part.groups);
  if (part.group_size < 1 || part.groups != ceil_div(k, part.group_size))
    return text("part ", i, " has ", part.groups, " scales a row, which groups of ", part.group_size, " over ", k,
                " columns do not give");
  if (is_i4(shape.format) && part.groups > 1 && part.group_size % unit != 0)
    return text("part ", i, " has groups of ", part.group_size, ", not a multiple of the format's ", unit);
  if (part.zeros && !has_zeros(shape.format)) return text("part ", i, " has zero points, which the format has not");
  return "";
}

}  // namespace

std::string shape_problems(const MatrixShape& shape, const std::vector<CodeSource>& parts) {
  if (!shape.packed || !(is_i8(shape.format) || is_i4(shape.format)))
    return "the matrix was not recorded in a format of codes";
  if (parts.size() != shape.parts.size())
    return text("there must be ", shape.parts.size(), " parts, got ", parts.size());
  std::string all;
  for (size_t i = 0; i < parts.size(); i++) {
    const std::string problem = shape_problem(shape, i, parts[i]);
    if (!problem.empty()) all += (all.empty() ? "" : "; ") + problem;
  }
  return all;
}

std::string value_problem(const MatrixShape& shape, const std::vector<CodeSource>& parts, int index, int size) {
  const bool int4 = is_i4(shape.format);
  for (size_t i = 0; i < parts.size(); i++) {
    const CodeSource& part = parts[i];
    const int64_t end = part.rows * (index + 1) / size;
    for (int64_t row = part.rows * index / size; row < end; row++) {
      const uint8_t* codes = part.codes + row * part.row_stride;
      uint8_t bits = 0;
      for (int64_t k = 0; k < part.cols; k++) bits |= codes[k];
      const auto where = [&] { return text(" in row ", row, " of part ", i); };
      if (int4 && bits > 15) return "a code must be 0 to 15, got a larger one" + where();
      for (int64_t g = row * part.groups; g < (row + 1) * part.groups; g++) {
        if (!(std::fabs(part.scales[g]) < (int4 ? kHalfLimit : INFINITY)))
          return text("a scale must be finite", int4 ? " in float16" : "", ", got ", part.scales[g], where());
        if (part.zeros && part.zeros[g] > kMostZero)
          return text("a zero point must be 0 to ", kMostZero, ", got ", int(part.zeros[g]), where());
      }
    }
  }
  return "";
}

}  // namespace pyllm
