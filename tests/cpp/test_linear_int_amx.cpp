// Matmul of int8 and int4 by the AMX table (on emulated tiles where there are none), bit for bit against the definition
// in kernels.h, at every way its loops divide rows, outputs and inputs.
#include "kernel_test.h"
#include "linear_test.h"

namespace pyllm {
namespace test {
namespace {

const Format kIntegers[] = {Format::i8,      Format::i8_fast, Format::i4_g32,
                            Format::i4_g128, Format::i4z_g32, Format::i4z_g128};
const char* const kNames[] = {"int8", "int8_fast", "int4", "int4_g128", "int4z", "int4z_g128"};

// One table, or none where there are neither tiles nor what emulates them.
std::vector<const Kernels*> amx_tables() {
  std::vector<const Kernels*> found;
  for (const Kernels* t : tables())
    if (std::string(t->name).rfind("amx", 0) == 0) found.push_back(t);
  return found;
}

// Weights as codes, packed as kernels.h says. int8: one group.
struct Weights {
  Format format;
  int64_t n, k, group, groups;
  std::vector<int> codes, zeros;  // [n][k], [n][groups]
  std::vector<float> scales;      // [n][groups], exact in float16 for int4

  Weights(Format f, int64_t outputs, int64_t inputs) : format(f), n(outputs), k(inputs) {
    group = is_i4(f) ? group_of(f) : packed_k(f, k);
    groups = packed_k(f, k) / group;
    std::mt19937 random(unsigned(n * 7919 + k));
    for (int64_t i = 0; i < n * k; ++i) codes.push_back(is_i4(f) ? int(random() % 16) : int(random() % 256) - 128);
    for (int64_t i = 0; i < n * groups; ++i) {
      scales.push_back(float(1 + random() % 2047) * 0x1p-14f);
      zeros.push_back(has_zeros(f) ? int(random() % 17) : is_i4(f) ? 8 : 0);
    }
  }

  void pack(uint8_t* out) const {
    std::memset(out, 0, matrix_bytes(format, n, k));
    for (int64_t j = 0; j < round_up(n, kPanel); ++j) {
      uint8_t* panel = out + size_t(j / kPanel) * panel_bytes(format, k);
      for (int64_t c = 0; c < packed_k(format, k); ++c) pack_code(panel, j, c);
      if (is_i8(format) && j < n)
        std::memcpy(panel + packed_k(format, k) * kPanel + j % kPanel * 4, &scales[size_t(j)], 4);
    }
  }
  void pack_code(uint8_t* panel, int64_t j, int64_t c) const {
    const int64_t lane = j % kPanel, at = lane / 16 * 16;
    const bool inside = j < n && c < k;
    if (is_i8(format)) {
      uint8_t* tile = panel + c / 64 * 4096 + lane / 16 * 1024;
      tile[c % 64 / 4 * 64 + (lane - at) * 4 + c % 4] = uint8_t(128 + (inside ? codes[size_t(j * k + c)] : 0));
      return;
    }
    const size_t g = size_t(j * groups + c / group);
    uint8_t* base = panel + size_t(c / group) * group_bytes(format);
    const uint16_t half = j < n ? half_of(scales[g]) : uint16_t(0);
    std::memcpy(base + 2 * lane, &half, 2);
    if (has_zeros(format)) base[128 + lane] = uint8_t(j < n ? zeros[g] : 8);
    uint8_t* line = base + 128 + (has_zeros(format) ? 64 : 0) + c % group / 8 * 256 + at * 4;
    const int code = inside ? codes[size_t(j * k + c)] : 8;
    line[(lane - at) * 4 + c % 8 / 2] |= uint8_t(code << (c % 2 * 4));
  }
  static uint16_t half_of(float x) {  // of 11 significant bits, normal
    int exponent;
    const float mantissa = std::frexp(x, &exponent);
    return uint16_t((exponent + 14) << 10 | (int(mantissa * 2048) & 1023));
  }
};

// Rows of activations as the definition sees them.
struct Row {
  std::vector<int> q;
  float scale;
};
Row quantise(Format f, const float* x, int64_t k) {
  const float top = f == Format::i8_fast ? 127.0f : 32639.0f;
  Row row = {std::vector<int>(size_t(k)), 0};
  float amax = 0;
  for (int64_t i = 0; i < k; ++i) {
    if (!std::isfinite(x[i])) row.scale = NAN;
    amax = std::fmax(amax, std::fabs(x[i]));
  }
  if (std::isnan(row.scale) || amax == 0) return row;
  row.scale = amax / top;
  for (int64_t i = 0; i < k; ++i) row.q[size_t(i)] = int(std::nearbyint(x[i] * (top / amax)));
  return row;
}

float product(const Weights& w, const Row& x, int64_t j) {
  float acc = 0;
  for (int64_t g = 0; g < w.groups; ++g) {
    int64_t all = 0, high = 0;
    for (int64_t c = g * w.group; c < w.k && c < (g + 1) * w.group; ++c) {
      const int64_t q = x.q[size_t(c)], code = w.codes[size_t(j * w.k + c)] - w.zeros[size_t(j * w.groups + g)];
      all += q * code;
      high += ((q + 128) >> 8) * code;
    }
    const float scale = w.scales[size_t(j * w.groups + g)];
    if (w.format == Format::i8) return std::fma(float(high), 256.0f, float(all - 256 * high)) * (x.scale * scale);
    if (w.format == Format::i8_fast) return float(all) * (x.scale * scale);
    acc = std::fma(float(all), scale, acc);
  }
  return acc * x.scale;
}

class LinearIntAmx : public ::testing::TestWithParam<Format> {
  const FlushDenormals flush_;
};
INSTANTIATE_TEST_SUITE_P(Formats, LinearIntAmx, ::testing::ValuesIn(kIntegers),
                         [](const auto& info) { return std::string(kNames[int(info.param) - int(Format::i8)]); });

struct Problem {
  Weights w;
  Bytes packed;
  std::vector<float> x, want;  // [most][k + 3], [most][n]
  int most;

  Problem(Format f, int64_t n, int64_t k, int rows)
      : w(f, n, k), packed(matrix_bytes(f, n, k)), x(random_row(rows * (k + 3), unsigned(n + k))), most(rows) {
    w.pack(packed.data);
    special_rows();
    for (int r = 0; r < most; ++r) {
      const Row row = quantise(f, &x[size_t(r * (k + 3))], k);
      for (int64_t j = 0; j < n; ++j) want.push_back(product(w, row, j));
    }
  }
  // Of 10 rows one is zero, one tiny, one has an outlier, two hold what is not finite.
  void special_rows() {
    for (int r = 2; r < most; r += 10) {
      float* row = &x[size_t(r * (w.k + 3))];
      const int64_t ld = w.k + 3;
      for (int64_t c = 0; c < w.k; ++c) row[c] = 0;
      if (r + 1 < most) row[ld + w.k / 2] = 1000;
      for (int64_t c = 0; r + 2 < most && c < w.k; ++c) row[2 * ld + c] *= 1e-30f;
      if (r + 3 < most) row[3 * ld + w.k - 1] = NAN;
      if (r + 4 < most) row[4 * ld] = -INFINITY;
    }
  }

  // Rows [0, m), in two calls when split.
  void check(const Kernels& table, int m, bool split) const {
    const int64_t ld = round_up(w.n, kPanel);
    const int panels = int(ld / kPanel), cut = split && m > 16 ? 16 : 0, middle = split ? panels / 2 : panels;
    const std::vector<float> rows(x.begin(), x.begin() + (m - 1) * (w.k + 3) + w.k);
    Bytes prepared(table.prepared_bytes(w.format, m, w.k));
    if (cut) table.prepare(w.format, rows.data(), w.k + 3, m, w.k, 0, cut, prepared.data);
    table.prepare(w.format, rows.data(), w.k + 3, m, w.k, cut, m, prepared.data);
    std::vector<float> y(size_t(m * ld));
    LinearArgs a = {};
    a.format = w.format;
    a.m = m;
    a.n = w.n;
    a.k = w.k;
    a.weights = packed.data;
    a.x = prepared.data;
    a.y = y.data();
    a.y_ld = ld;
    Bytes scratch(table.linear_scratch(a, panels));
    if (middle) table.linear(a, 0, middle, scratch.data);
    if (middle < panels) table.linear(a, middle, panels, scratch.data);
    for (int r = 0; r < m; ++r)
      for (int64_t j = 0; j < w.n; ++j) {
        const float got = y[size_t(r * ld + j)], expected = want[size_t(r * w.n + j)];
        ASSERT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected)))
            << m << " rows, n " << w.n << ", k " << w.k << ", row " << r << ", output " << j << ": got " << got
            << ", want " << expected;
      }
  }
};

TEST_P(LinearIntAmx, FollowsTheDefinition) {
  for (int64_t n : {1, 64, 130})
    for (int64_t k : {1, 31, 64, 129, 300}) {
      const Problem p(GetParam(), n, k, 40);
      for (const Kernels* t : amx_tables())
        for (int m : {4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40}) p.check(*t, m, m % 2);
    }
}

// Several chunks of rows, pieces and slices of inputs.
TEST_P(LinearIntAmx, LongInputsAndManyRows) {
  const Problem deep(GetParam(), 130, 9000, 70), tall(GetParam(), 70, 5000, 300);
  for (const Kernels* t : amx_tables()) {
    for (int m : {4, 8, 12, 70}) deep.check(*t, m, false);
    for (int m : {128, 300}) tall.check(*t, m, true);
  }
}

}  // namespace
}  // namespace test
}  // namespace pyllm
