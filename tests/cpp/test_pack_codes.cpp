// Packing of weights that are quantised already: every table, every format, against the layouts of kernels.h; and what
// codes must hold before they are packed.
#include "errors.h"
#include "kernel_test.h"
#include "linear_test.h"
#include "pack.h"
#include "packed_weights.h"
#include "threads.h"

namespace pyllm {
namespace test {
namespace {

const Format kCoded[] = {Format::i8,      Format::i8_fast, Format::i4_g32,
                         Format::i4_g128, Format::i4z_g32, Format::i4z_g128};

// Codes, scales and zero points of a matrix, drawn at random; scales are float16 values.
struct Codes {
  Codes(Format f, int64_t n, int64_t k, int64_t group_size, unsigned seed = 5) : n(n), k(k), group(group_size) {
    std::mt19937 random(seed);
    groups = (k + group - 1) / group;
    for (int64_t i = 0; i < n * k; ++i) codes.push_back(uint8_t(is_i8(f) ? random() : random() % 16));
    for (int64_t i = 0; i < n * groups; ++i) {
      scales.push_back(std::ldexp(float(random() % 2048) - 1000.0f, -14));
      zeros.push_back(uint8_t(random() % 17));
    }
  }
  CodeSource source(Format f) const {
    return {codes.data(), n, k, k, scales.data(), has_zeros(f) ? zeros.data() : nullptr, groups, group};
  }
  double value(Format f, int64_t row, int64_t col) const {
    const uint8_t code = codes[size_t(row * k + col)];
    const int64_t at = row * groups + col / group;
    const int raised = is_i8(f) ? int(int8_t(code)) : int(code) - (has_zeros(f) ? zeros[size_t(at)] : 8);
    return double(scales[size_t(at)]) * raised;
  }
  int64_t n, k, group, groups;
  std::vector<uint8_t> codes, zeros;
  std::vector<float> scales;
};

bool pack(const MatrixShape& shape, const Kernels& table, const std::vector<CodeSource>& parts, uint8_t* out) {
  Barrier barrier;
  bool fits = true;
  for (int worker = 0; worker < 3; ++worker) fits &= pack_part(shape, table, parts, Team(worker, 3, barrier), out);
  return fits;
}

void check(const Kernels& table, Format f, int64_t k, int64_t group, std::vector<int64_t> rows, bool gated) {
  MatrixShape shape{f, rows, k, gated};
  std::vector<Codes> codes;
  std::vector<CodeSource> parts;
  for (size_t i = 0; i < rows.size(); ++i) codes.emplace_back(f, rows[i], k, group, unsigned(i + 3));
  for (const Codes& part : codes) parts.push_back(part.source(f));
  ASSERT_EQ(shape_problems(shape, parts), "");
  ASSERT_EQ(value_problem(shape, parts, 0, 1), "");
  Bytes out(shape.bytes());
  std::memset(out.data, 0x77, shape.bytes());
  ASSERT_TRUE(pack(shape, table, parts, out.data));
  for (int64_t j = 0; j < round_up(shape.n(), kPanel); ++j) {
    const MatrixShape::Place at = shape.place(j);
    for (int64_t c = 0; c < packed_k(f, k); ++c) {
      const bool there = at.part >= 0 && c < k;
      const Quantised got = quantised(f, out.data, k, j, c);
      const double want = there ? codes[size_t(at.part)].value(f, at.row, c) : 0;
      if (there || got.zero < 16) {
        ASSERT_EQ(got.value(), want) << "output " << j << ", k " << c;
      }
    }
  }
  std::vector<float> row(static_cast<size_t>(k));
  for (int64_t j : {int64_t(0), shape.n() / 2, shape.n() - 1}) {
    const MatrixShape::Place at = shape.place(j);
    look_up(shape, out.data, j, 2.0f, false, row.data());
    look_up(shape, out.data, j, -1.0f, true, row.data());
    for (int64_t c = 0; c < k; ++c)
      ASSERT_EQ(row[size_t(c)], at.part < 0 ? 0 : float(codes[size_t(at.part)].value(f, at.row, c))) << j << ' ' << c;
  }
}

TEST(PackCodes, EveryFormatAndShape) {
  for (const Kernels* table : tables())
    for (Format f : kCoded)
      for (int64_t k : {1, 7, 31, 33, 64, 100, 127, 129, 300}) {
        const int64_t unit = group_of(f);
        std::vector<int64_t> groups = {k};
        if (is_i4(f)) groups.insert(groups.end(), {unit, 2 * unit});
        for (int64_t group : groups) {
          SCOPED_TRACE(std::string(table->name) + ", format " + std::to_string(int(f)) + ", k " + std::to_string(k) +
                       ", group " + std::to_string(group));
          check(*table, f, k, group, {65}, false);
          check(*table, f, k, group, {1, 70, 3}, false);
          check(*table, f, k, group, {37, 37}, true);
        }
      }
}

TEST(PackCodes, WhatFilesMayHoldWrong) {
  const Codes good(Format::i4_g32, 5, 100, 64);
  const MatrixShape shape{Format::i4_g32, {5}, 100};
  const auto problem = [&](const Codes& codes, const MatrixShape& s) {
    const std::vector<CodeSource> parts = {codes.source(s.format)};
    const std::string wrong = shape_problems(s, parts);
    return wrong.empty() ? value_problem(s, parts, 0, 1) : wrong;
  };
  const auto expect = [](const std::string& text, const char* part) {
    EXPECT_TRUE(text.find(part) != std::string::npos) << text;
  };
  EXPECT_EQ(problem(good, shape), "");
  expect(problem(good, {Format::i4_g32, {6}, 100}), "part 0 must be [6, 100], got [5, 100]");
  expect(problem(good, {Format::i4_g128, {5}, 100}), "groups of 64, not a multiple of the format's 128");
  expect(problem(good, {Format::i8, {5}, 100}), "one scale a row, got 2");
  expect(problem(good, {Format::bf16, {5}, 100}), "not recorded in a format of codes");
  expect(shape_problems({Format::i4_g32, {5, 5}, 100}, {good.source(shape.format)}), "2 parts, got 1");
  Codes bad = good;
  bad.codes[3 * 100 + 99] = 16;
  expect(problem(bad, shape), "0 to 15, got a larger one in row 3");
  bad = good;
  for (float scale : {NAN, INFINITY, -65520.0f}) {
    bad.scales[2 * 2 + 1] = scale;
    expect(problem(bad, shape), "in row 2");
  }
  bad.scales[5] = 65519.0f;
  EXPECT_EQ(problem(bad, shape), "");
  bad.zeros[9] = 17;
  expect(problem(bad, {Format::i4z_g32, {5}, 100}), "a zero point must be 0 to 16, got 17 in row 4");
  bad.groups = 3;
  expect(problem(bad, shape), "3 scales a row, which groups of 64 over 100 columns do not give");
}

}  // namespace
}  // namespace test
}  // namespace pyllm
