// Matmul of the int8 and int4 formats: every table bitwise against the contract's arithmetic written down plainly.
#include <cfloat>
#include <tuple>

#include "kernel_test.h"
#include "linear_test.h"

namespace pyllm {
namespace test {
namespace {

const Format kIntFormats[] = {Format::i8,      Format::i8_fast, Format::i4_g32,
                              Format::i4_g128, Format::i4z_g32, Format::i4z_g128};
const char* int_name(Format f) {
  const char* names[] = {"i8", "i8_fast", "i4_g32", "i4_g128", "i4z_g32", "i4z_g128"};
  return names[int(f) - int(Format::i8)];
}
const int kIntRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33, 97};
constexpr int kMost = 97;

float from_half(uint16_t h) {  // normal numbers and zero
  const float magnitude = h & 0x7fff ? std::ldexp(1024.0f + float(h & 1023), int(h >> 10 & 31) - 25) : 0.0f;
  return h & 0x8000 ? -magnitude : magnitude;
}

// Weights as integers: codes [n][k] (int8: -127..127, int4: 0..15), scales and zeros [n][groups].
struct Weights {
  Format format;
  int64_t n, k, groups;
  std::vector<int> codes, zeros;
  std::vector<uint16_t> halves;
  std::vector<float> scales;

  Weights(Format f, int64_t n, int64_t k, unsigned seed) : format(f), n(n), k(k) {
    const int64_t group = group_of(f) ? group_of(f) : k;
    groups = (k + group - 1) / group;
    std::mt19937 random(seed);
    for (int64_t i = 0; i < n * k; ++i) codes.push_back(is_i8(f) ? int(random() % 255) - 127 : int(random() % 16));
    for (int64_t i = 0; i < n * groups; ++i) {
      halves.push_back(uint16_t(random() % 2 << 15 | (8 + random() % 6) << 10 | random() % 1024));
      scales.push_back(is_i8(f) ? 1e-3f * float(random() % 1000 + 1) : from_half(halves.back()));
      zeros.push_back(has_zeros(f) ? int(random() % 16) : 8);
    }
  }

  // The layout of kernels.h, element by element.
  void pack(uint8_t* out) const {
    for (int64_t p = 0; p * kPanel < n; ++p, out += panel_bytes(format, k))
      is_i8(format) ? pack_bytes(p * kPanel, out) : pack_nibbles(p * kPanel, out);
  }
  void pack_bytes(int64_t first, uint8_t* out) const {
    const int64_t depth = packed_k(format, k);
    float* tail = reinterpret_cast<float*>(out + depth * kPanel);
    for (int64_t j = 0; j < kPanel; ++j) {
      const int64_t row = first + j;
      tail[j] = row < n ? scales[size_t(row)] : 0.0f;
      for (int64_t c = 0; c < depth; ++c)
        out[c / 64 * 4096 + j / 16 * 1024 + c % 64 / 4 * 64 + j % 16 * 4 + c % 4] =
            uint8_t((row < n && c < k ? codes[size_t(row * k + c)] : 0) + 128);
    }
  }
  void pack_nibbles(int64_t first, uint8_t* out) const {
    const int group = group_of(format);
    const size_t header = has_zeros(format) ? 192 : 128;
    for (int64_t g = 0; g < groups; ++g, out += group_bytes(format)) {
      std::memset(out, 0, group_bytes(format));
      for (int64_t j = 0; j < kPanel; ++j) {
        const int64_t row = first + j;
        const int zero = row < n ? zeros[size_t(row * groups + g)] : 8;
        if (row < n) std::memcpy(out + 2 * j, &halves[size_t(row * groups + g)], 2);
        if (has_zeros(format)) out[128 + j] = uint8_t(zero);
        for (int64_t i = 0; i < group; ++i) {
          const int64_t c = g * group + i;
          const int code = row < n && c < k ? codes[size_t(row * k + c)] : zero;
          out[header + size_t(i / 8 * 256 + j / 16 * 64 + j % 16 * 4 + i % 8 / 2)] |= uint8_t(code << (i % 2 * 4));
        }
      }
    }
  }
};

// x[m][x_ld] . W^T by the rules of LinearArgs: y[m][n], and of int4 the sums of the groups' magnitudes.
struct Plain {
  std::vector<float> y, size;
};
Plain plain(const Weights& w, const std::vector<float>& x, int64_t x_ld, int m) {
  const float top = w.format == Format::i8_fast ? 127.0f : 32639.0f;
  Plain want = {std::vector<float>(size_t(m * w.n)), std::vector<float>(size_t(m * w.n))};
  std::vector<int64_t> q(size_t(w.k));
  for (int64_t r = 0; r < m; ++r) {
    float amax = 0;
    bool finite = true;
    for (int64_t c = 0; c < w.k; ++c) {
      const float v = x[size_t(r * x_ld + c)];
      finite = finite && std::isfinite(v);
      if (std::fabs(v) > amax) amax = std::fabs(v);
    }
    float scale = finite ? amax / top : NAN;
    for (int64_t c = 0; c < w.k; ++c) {
      const float v = x[size_t(r * x_ld + c)];
      q[size_t(c)] = finite && scale >= FLT_MIN ? int64_t(std::nearbyint(v * (top / amax))) : 0;
    }
    for (int64_t j = 0; j < w.n; ++j) {
      const int* code = &w.codes[size_t(j * w.k)];
      float acc = 0, size = 0;
      if (is_i8(w.format)) {
        int64_t high = 0, low = 0;
        for (int64_t c = 0; c < w.k; ++c) {
          const int64_t h = w.format == Format::i8 ? (q[size_t(c)] + 128) >> 8 : 0;
          high += h * code[c];
          low += (q[size_t(c)] - 256 * h) * code[c];
        }
        acc = std::fma(float(high), 256.0f, float(low)) * (scale * w.scales[size_t(j)]);
      } else {
        for (int64_t g = 0, c = 0; g < w.groups; ++g) {
          int64_t sum = 0;
          for (; c < w.k && c < (g + 1) * group_of(w.format); ++c)
            sum += q[size_t(c)] * (code[c] - w.zeros[size_t(j * w.groups + g)]);
          acc = std::fma(float(sum), w.scales[size_t(j * w.groups + g)], acc);
          size += std::fabs(float(sum) * w.scales[size_t(j * w.groups + g)]) * scale;
        }
        acc *= scale;
      }
      want.y[size_t(r * w.n + j)] = acc;
      want.size[size_t(r * w.n + j)] = size;
    }
  }
  return want;
}

// One matmul by one table; `a` carries the epilogue. Rows of y are y_ld apart and filled with 99 first.
struct Run {
  const Weights& w;
  std::vector<float> x;
  int64_t x_ld;
  LinearArgs a = {};
  Bytes weights;

  Run(const Weights& weights_, std::vector<float> rows, int64_t ld)
      : w(weights_), x(std::move(rows)), x_ld(ld), weights(matrix_bytes(weights_.format, weights_.n, weights_.k)) {
    w.pack(weights.data);
  }
  int64_t columns() const { return round_up(w.n, kPanel) / (a.gated ? 2 : 1); }
  int64_t y_ld() const { return columns() + 16; }

  std::vector<float> operator()(const Kernels& t, int m, bool split = false) {
    std::vector<float> rows(x.begin(), x.begin() + (m - 1) * x_ld + w.k), y(size_t(m * y_ld()), 99.0f);
    Bytes prepared(t.prepared_bytes(w.format, m, w.k));
    const int cut = split && m > 16 ? 16 : 0, panels = int(round_up(w.n, kPanel) / kPanel);
    if (cut) t.prepare(w.format, rows.data(), x_ld, m, w.k, 0, cut, prepared.data);
    t.prepare(w.format, rows.data(), x_ld, m, w.k, cut, m, prepared.data);
    a.format = w.format;
    a.m = m;
    a.n = w.n;
    a.k = w.k;
    a.weights = weights.data;
    a.x = prepared.data;
    a.y = y.data();
    a.y_ld = y_ld();
    Bytes scratch(t.linear_scratch(a, panels));
    const int middle = split ? panels / 2 : panels;
    if (middle) t.linear(a, 0, middle, scratch.data);
    if (middle < panels) t.linear(a, middle, panels, scratch.data);
    return y;
  }
};

std::string title(const Kernels& t, const Weights& w, int m) {
  return std::string(t.name) + " " + int_name(w.format) + ", m " + std::to_string(m) + ", n " + std::to_string(w.n) +
         ", k " + std::to_string(w.k);
}

// Bitwise; int4 of the scalar table, which has no fused multiply-add, to two roundings a group.
void check(const Kernels& t, const Weights& w, const Plain& want, const std::vector<float>& y, int m, int64_t ld) {
  const bool exact = !is_scalar(&t) || is_i8(w.format);
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t j = 0; j < w.n; ++j) {
      const float got = y[size_t(r * ld + j)], right = want.y[size_t(r * w.n + j)];
      if (got == right || (std::isnan(got) && std::isnan(right))) continue;
      const double tolerance = exact ? 0 : 2 * kEpsilon * double(w.groups + 1) * want.size[size_t(r * w.n + j)];
      ASSERT_LE(std::fabs(double(got) - right), tolerance) << "row " << r << ", output " << j << ": " << got;
    }
    for (int64_t j = w.n; j < ld; ++j)
      ASSERT_EQ(y[size_t(r * ld + j)], j < round_up(w.n, kPanel) ? 0.0f : 99.0f) << "row " << r << ", column " << j;
  }
}

bool starts_with(const std::vector<float>& all, const std::vector<float>& few) {
  return std::memcmp(all.data(), few.data(), few.size() * sizeof(float)) == 0;
}

class LinearInt : public ::testing::TestWithParam<Format> {
  const FlushDenormals flush_;
};
INSTANTIATE_TEST_SUITE_P(Formats, LinearInt, ::testing::ValuesIn(kIntFormats),
                         [](const auto& info) { return std::string(int_name(info.param)); });

TEST_P(LinearInt, IsTheContractsArithmeticForAnyNumberOfRows) {
  for (int64_t n : {1, 63, 130})
    for (int64_t k : {1, 31, 65, 200, 600}) {
      const Weights w(GetParam(), n, k, unsigned(n * k));
      Run run(w, random_row(kMost * (k + 3), 2), k + 3);
      const Plain want = plain(w, run.x, run.x_ld, kMost);
      for (const Kernels* t : tables()) {
        SCOPED_TRACE(title(*t, w, kMost));
        const std::vector<float> all = run(*t, kMost);
        check(*t, w, want, all, kMost, run.y_ld());
        for (int m : kIntRows) EXPECT_TRUE(starts_with(all, run(*t, m))) << m << " rows differ from the first of 97";
        EXPECT_TRUE(starts_with(all, run(*t, kMost, true))) << "differs when split";
      }
    }
}

TEST_P(LinearInt, BlocksOfManyRows) {
  const Weights w(GetParam(), 192, 1100, 5);
  const int m = 230;
  Run run(w, random_row(m * w.k, 3), w.k);
  const Plain want = plain(w, run.x, run.x_ld, m);
  for (const Kernels* t : tables()) {
    SCOPED_TRACE(title(*t, w, m));
    const std::vector<float> all = run(*t, m);
    check(*t, w, want, all, m, run.y_ld());
    for (int few : {1, 4, 12, 100}) EXPECT_TRUE(starts_with(all, run(*t, few))) << few << " rows";
  }
}

// k long enough for every level of blocking, also the slices of tiles; rows for several chunks.
TEST_P(LinearInt, BlocksOfLongK) {
  for (const auto& [n, k, m] : {std::tuple<int64_t, int64_t, int>{130, 9000, 70}, {70, 5000, 300}}) {
    const Weights w(GetParam(), n, k, 10);
    Run run(w, random_row(m * w.k, 11), w.k);
    const Plain want = plain(w, run.x, w.k, m);
    for (const Kernels* t : tables()) {
      if (is_scalar(t)) continue;
      SCOPED_TRACE(title(*t, w, m));
      const std::vector<float> all = run(*t, m, true);
      check(*t, w, want, all, m, run.y_ld());
      for (int few : {4, 5, 8, 15, 64}) EXPECT_TRUE(starts_with(all, run(*t, few))) << few << " rows";
    }
  }
}

// The largest integers with the largest codes: sums of 16 thousand of them fit.
TEST_P(LinearInt, ExtremeValues) {
  Weights w(GetParam(), 64, 16384, 6);
  for (int64_t j = 0; j < w.n; ++j)
    for (int64_t c = 0; c < w.k; ++c)
      w.codes[size_t(j * w.k + c)] = is_i8(GetParam()) ? (j % 2 ? -127 : 127) : (j % 2 ? 0 : 15);
  for (int& zero : w.zeros) zero = has_zeros(GetParam()) ? 15 : 8;
  const float values[] = {1.0f, -1.0f, 32384.0f / 32639, -32512.0f / 32639, 32256.0f / 32639, FLT_MAX, 1e-37f};
  std::vector<float> x;  // high 127 low 127; -127 -127; 126 or 127 with low -128; low at both ends
  for (float v : values) {
    x.insert(x.end(), size_t(w.k), v);
    if (std::fabs(v) < 1 && v != 1e-37f) x.back() = 1;
  }
  const int m = int(sizeof values / sizeof *values);
  Run run(w, x, w.k);
  const Plain want = plain(w, x, w.k, m);
  for (const Kernels* t : tables()) {
    SCOPED_TRACE(title(*t, w, m));
    check(*t, w, want, run(*t, m), m, run.y_ld());
    check(*t, w, want, run(*t, 2), 2, run.y_ld());
  }
}

TEST_P(LinearInt, InfinityNanAndZeroRows) {
  const Weights w(GetParam(), 65, 300, 7);
  Run run(w, random_row(9 * w.k, 4), w.k);
  run.x[size_t(1 * w.k + 299)] = INFINITY;
  run.x[size_t(2 * w.k + 17)] = NAN;
  run.x[size_t(3 * w.k + 63)] = -INFINITY;
  for (int64_t c = 0; c < w.k; ++c) run.x[size_t(5 * w.k + c)] = c % 2 ? -0.0f : 0.0f;
  const Plain want = plain(w, run.x, w.k, 9);
  for (const Kernels* t : tables())
    for (int m : {4, 9}) {
      SCOPED_TRACE(title(*t, w, m));
      const std::vector<float> y = run(*t, m);
      for (int64_t r = 0; r < m; ++r)
        for (int64_t j = 0; j < w.n; ++j) {
          const float got = y[size_t(r * run.y_ld() + j)];
          ASSERT_EQ(std::isnan(got), r >= 1 && r <= 3) << "row " << r << ", output " << j;
          if (r == 5) {
            ASSERT_EQ(got, 0.0f);
          } else if (!std::isnan(got) && (!is_scalar(t) || is_i8(GetParam()))) {
            ASSERT_EQ(got, want.y[size_t(r * w.n + j)]);
          }
        }
    }
}

double silu(double x) { return x / (1 + std::exp(-x)); }

// y = residual + 0.7 * 2.5 tanh((silu(gate + bias) * (up + bias)) / 2.5), or without a gate silu(sum + bias) in its
// place.
TEST_P(LinearInt, Epilogue) {
  for (bool gated : {false, true})
    for (int m : {1, 3, 7, 97}) {
      const Weights w(GetParam(), 128, 96, 8);
      Run run(w, random_row(m * w.k, 5, 0.1f), w.k);
      const std::vector<float> sums = plain(w, run.x, w.k, m).y, bias = random_row(w.n, 6);
      run.a.gated = gated;
      const std::vector<float> residual = random_row(m * run.y_ld(), 9);
      run.a.activation = Activation::silu;
      run.a.bias = bias.data();
      run.a.residual = residual.data();
      run.a.residual_ld = run.y_ld();
      run.a.scale = 0.7f;
      run.a.softcap = 2.5f;
      for (const Kernels* t : tables()) {
        SCOPED_TRACE(title(*t, w, m));
        const std::vector<float> y = run(*t, m);
        Worst worst;
        for (int64_t r = 0; r < m; ++r)
          for (int64_t j = 0; j < run.columns(); ++j) {
            auto sum = [&](int64_t c) { return double(sums[size_t(r * w.n + c)]) + bias[size_t(c)]; };
            const int64_t c = gated ? j / 16 * 32 + j % 16 : j;
            const double value = silu(sum(c)) * (gated ? sum(c + 16) : 1);
            const double before = residual[size_t(r * run.y_ld() + j)];
            worst.see(y[size_t(r * run.y_ld() + j)], before + 0.7 * 2.5 * std::tanh(value / 2.5),
                      64 * kEpsilon * (1 + std::fabs(value) + std::fabs(before)), r * run.columns() + j);
          }
        EXPECT_TRUE(worst.good()) << worst.text();
      }
    }
}

}  // namespace
}  // namespace test
}  // namespace pyllm
