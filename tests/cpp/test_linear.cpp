// Matmul of every kernel table and format: against double references, and bitwise where the arithmetic is one.
#include "kernel_test.h"
#include "linear_test.h"

namespace pyllm {
namespace test {
namespace {

const int64_t kOutputs[] = {1, 5, 63, 64, 65, 130, 200}, kInputs[] = {1, 7, 31, 32, 33, 64, 100, 300};
const int kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 17, 31, 33, 100};
constexpr int kMostRows = 100;

// One matmul: weights w[n][k] packed by the table, x[m][k] with a gap between rows, epilogue as asked.
struct Problem {
  Format format;
  int64_t n, k;
  std::vector<float> w, x, bias, residual;  // bias and residual may be empty
  Activation activation = Activation::none;
  bool gated = false, in_place = false;
  float scale = 1.0f, softcap = 0.0f;

  int64_t columns() const { return round_up(n, kPanel) / (gated ? 2 : 1); }
  int64_t x_ld() const { return k + 3; }
  int64_t y_ld() const { return columns() + 16; }

  // y[m][y_ld]. split: panels in two calls, rows prepared in two calls.
  std::vector<float> run(const Kernels& table, int m, bool split = false) const {
    const int panels = int(round_up(n, kPanel) / kPanel);
    Bytes weights(matrix_bytes(format, n, k)), prepared(table.prepared_bytes(format, m, k));
    pack(table, weights.data);
    std::vector<float> bias_padded = bias, rows(x.begin(), x.begin() + (m - 1) * x_ld() + k);
    bias_padded.resize(size_t(round_up(n, kPanel)));
    const int cut = split && m > 16 ? 16 : 0;
    if (cut) table.prepare(format, rows.data(), x_ld(), m, k, 0, cut, prepared.data);
    table.prepare(format, rows.data(), x_ld(), m, k, cut, m, prepared.data);

    std::vector<float> y(size_t(m * y_ld()), 99.0f);
    if (in_place) y.assign(residual.begin(), residual.begin() + m * y_ld());
    LinearArgs a = {};
    a.format = format;
    a.activation = activation;
    a.gated = gated;
    a.m = m;
    a.n = n;
    a.k = k;
    a.weights = weights.data;
    a.x = format == Format::bf16 ? static_cast<const void*>(prepared.data) : rows.data();
    a.x_ld = x_ld();
    a.bias = bias.empty() ? nullptr : bias_padded.data();
    a.residual = residual.empty() ? nullptr : in_place ? y.data() : residual.data();
    a.residual_ld = a.y_ld = y_ld();
    a.y = y.data();
    a.scale = scale;
    a.softcap = softcap;
    Bytes scratch(table.linear_scratch(a, panels));
    const int middle = split ? panels / 2 : panels;
    if (middle) table.linear(a, 0, middle, scratch.data);
    if (middle < panels) table.linear(a, middle, panels, scratch.data);
    return y;
  }

  void pack(const Kernels& table, uint8_t* out) const {
    for (int64_t p = 0; p * kPanel < n; ++p) {
      const void* rows[kPanel];
      int64_t stride[kPanel];
      for (int64_t j = 0; j < kPanel; ++j) {
        rows[j] = p * kPanel + j < n ? &w[size_t((p * kPanel + j) * k)] : nullptr;
        stride[j] = 1;
      }
      table.pack_panel(format, SourceType::f32, rows, stride, k, out + size_t(p) * panel_bytes(format, k));
    }
  }
};

Problem random_problem(Format f, int64_t n, int64_t k, float scale = 1.0f) {
  Problem p = {f, n, k, random_row(n * k, 1, scale), random_row(kMostRows * (k + 3), 2, scale), {}, {}};
  return p;
}

std::string title(const Kernels& t, const Problem& p, int m) {
  return std::string(t.name) + " " + name(p.format) + ", m " + std::to_string(m) + ", n " + std::to_string(p.n) +
         ", k " + std::to_string(p.k);
}

bool same_rows(const std::vector<float>& few, const std::vector<float>& many) {
  return std::memcmp(few.data(), many.data(), few.size() * sizeof(float)) == 0;
}

// Sums of |x w| and x w in double, as the format sees x and w.
struct Reference {
  std::vector<double> sum, size;
  explicit Reference(const Problem& p) : sum(size_t(kMostRows * p.n)), size(sum.size()) {
    auto seen = [&](float v) { return double(p.format == Format::bf16 ? to_bf16(v) : v); };
    std::vector<double> w;
    for (float v : p.w) w.push_back(p.format == Format::f16 ? double(to_f16(v)) : seen(v));
    for (int64_t r = 0; r < kMostRows; ++r) {
      std::vector<double> x;
      for (int64_t c = 0; c < p.k; ++c) x.push_back(seen(p.x[size_t(r * p.x_ld() + c)]));
      for (int64_t j = 0; j < p.n; ++j)
        for (int64_t c = 0; c < p.k; ++c) {
          const double product = x[size_t(c)] * w[size_t(j * p.k + c)];
          sum[size_t(r * p.n + j)] += product;
          size[size_t(r * p.n + j)] += std::fabs(product);
        }
    }
  }
};

// Any order of k fp32 additions is within k units of the sum of magnitudes; padding is zero and the gap is untouched.
void check_sums(const Problem& p, const Reference& want, const std::vector<float>& y) {
  Worst worst;
  for (int64_t r = 0; r < kMostRows; ++r) {
    for (int64_t j = 0; j < p.n; ++j) {
      const size_t i = size_t(r * p.n + j);
      worst.see(y[size_t(r * p.y_ld() + j)], want.sum[i], kEpsilon * double(p.k + 2) * want.size[i], int64_t(i));
    }
    for (int64_t j = p.n; j < p.y_ld(); ++j)
      ASSERT_EQ(y[size_t(r * p.y_ld() + j)], j < p.columns() ? 0.0f : 99.0f) << "row " << r << ", column " << j;
  }
  EXPECT_TRUE(worst.good()) << worst.text();
}

class Linear : public ::testing::TestWithParam<Format> {
  const FlushDenormals flush_;
};
INSTANTIATE_TEST_SUITE_P(Formats, Linear, ::testing::ValuesIn(kFormats),
                         [](const auto& info) { return std::string(name(info.param)); });

TEST_P(Linear, AgreesWithDoubleAndDependsOnTheRowOnly) {
  for (int64_t n : kOutputs)
    for (int64_t k : kInputs) {
      const Problem p = random_problem(GetParam(), n, k);
      const Reference want(p);
      std::vector<float> other;
      for (const Kernels* t : tables()) {
        SCOPED_TRACE(title(*t, p, kMostRows));
        const std::vector<float> all = p.run(*t, kMostRows);
        check_sums(p, want, all);
        for (int m : kRows) EXPECT_TRUE(same_rows(p.run(*t, m), all)) << m << " rows differ from the first of 100";
        EXPECT_TRUE(same_rows(p.run(*t, kMostRows, true), all)) << "differs when split";
        if (GetParam() == Format::bf16 ? sums_pairs(t) : is_scalar(t)) continue;
        if (other.empty()) other = all;
        EXPECT_TRUE(same_rows(all, other)) << "differs from another table";
      }
    }
}

// k long enough for every level of blocking, also AMX's slices of 2048; m for chunks of rows.
TEST_P(Linear, BlocksOfLongKAndManyRows) {
  const int64_t n = 192, k = 4200;
  Problem p = random_problem(GetParam(), n, k);
  const int m = 600;
  p.x = random_row(m * p.x_ld(), 3);
  std::vector<float> other;
  for (const Kernels* t : tables()) {
    if (is_scalar(t)) continue;
    SCOPED_TRACE(title(*t, p, m));
    const std::vector<float> all = p.run(*t, m);
    for (int few : {1, 4, 17, 270}) EXPECT_TRUE(same_rows(p.run(*t, few), all)) << few << " rows";
    EXPECT_TRUE(same_rows(p.run(*t, m, true), all)) << "differs when split";
    if (GetParam() == Format::bf16 && sums_pairs(t)) continue;
    if (other.empty()) other = all;
    EXPECT_TRUE(same_rows(all, other)) << "differs from another table";
  }
}

double activation(Activation a, double x) {
  switch (a) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::gelu:
      return x * std::erfc(-x / std::sqrt(2.0)) / 2;
    case Activation::gelu_tanh:
      return x / (1 + std::exp(-2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::quick_gelu:
      return x / (1 + std::exp(-1.702 * x));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::tanh:
      return std::tanh(x);
  }
  return NAN;
}

// The epilogue in double on the sums the kernel itself gives, within a few units of every intermediate value.
void check_epilogue(const Problem& p, const std::vector<float>& sums, const std::vector<float>& y, int m) {
  Worst worst;
  const int64_t ld = round_up(p.n, kPanel) + 16;
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = 0; j < p.columns(); ++j) {
      auto sum = [&](int64_t c) {
        return sums[size_t(r * ld + c)] + double(c < p.n && !p.bias.empty() ? p.bias[size_t(c)] : 0);
      };
      const int64_t gate = p.gated ? j / 16 * 32 + j % 16 : j;
      const double up = p.gated ? sum(gate + 16) : 1, act = activation(p.activation, sum(gate)) * up;
      const double value = p.scale * (p.softcap > 0 ? p.softcap * std::tanh(act / p.softcap) : act);
      const double before = p.residual.empty() ? 0 : p.residual[size_t(r * p.y_ld() + j)];
      const double tolerance = 16 * kEpsilon * (std::fabs(sum(gate) * up) + std::fabs(before)) + 1e-30;
      worst.see(y[size_t(r * p.y_ld() + j)], before + value, tolerance, r * p.columns() + j);
    }
  EXPECT_TRUE(worst.good()) << worst.text();
}

TEST_P(Linear, BiasActivationGateAndResidual) {
  for (int64_t n : {64, 130})
    for (int a = int(Activation::none); a <= int(Activation::tanh); ++a)
      for (bool gated : {false, true})
        for (int extras = 0; extras < 5; ++extras) {  // nothing; bias; bias and residual; the same in place; and scaled
          Problem p = random_problem(GetParam(), n, 70), plain = p;
          p.activation = Activation(a);
          p.gated = gated;
          if (extras) p.bias = random_row(n, 3);
          if (extras > 1) p.residual = random_row(kMostRows * p.y_ld(), 4);
          p.in_place = extras > 2;
          p.scale = extras > 3 ? 0.7f : 1.0f;
          p.softcap = extras > 3 && !gated ? 2.5f : 0.0f;
          for (const Kernels* t : tables()) {
            SCOPED_TRACE(title(*t, p, kMostRows) + ", activation " + std::to_string(a) + ", gated " +
                         std::to_string(gated) + ", extras " + std::to_string(extras));
            const std::vector<float> all = p.run(*t, kMostRows);
            check_epilogue(p, plain.run(*t, kMostRows), all, kMostRows);
            for (int m : {1, 3, 5, 16, 33}) EXPECT_TRUE(same_rows(p.run(*t, m), all)) << m << " rows";
          }
        }
}

TEST_P(Linear, InfinityAndNanStayInTheirRow) {
  Problem p = random_problem(GetParam(), 65, 100);
  const Problem clean = p;
  p.x[size_t(2 * p.x_ld() + 50)] = NAN;
  p.x[size_t(7 * p.x_ld() + 99)] = INFINITY;
  for (const Kernels* t : tables())
    for (int m : {4, 9, 40}) {
      SCOPED_TRACE(title(*t, p, m));
      std::vector<float> y = p.run(*t, m);
      const std::vector<float> want = clean.run(*t, m);
      for (int64_t r = 0; r < m; ++r) {
        float* row = &y[size_t(r * p.y_ld())];
        for (int64_t j = 0; j < p.n && r == 2; ++j) EXPECT_TRUE(std::isnan(row[j]));
        for (int64_t j = 0; j < p.n && r == 7; ++j) EXPECT_TRUE(std::isinf(row[j]));
        const bool same = !std::memcmp(row, &want[size_t(r * p.y_ld())], size_t(p.n) * 4);
        EXPECT_TRUE(same || r == 2 || r == 7) << r;
      }
    }
}

// Products at the edge of the denormals: the tables with fused multiply-add flush the same ones.
TEST(LinearBits, DenormalEdge) {
  const FlushDenormals flush;
  Problem p = random_problem(Format::bf16, 64, 64, 1e-19f);
  std::vector<float> other;
  for (const Kernels* t : tables()) {
    if (is_scalar(t)) continue;
    SCOPED_TRACE(t->name);
    for (int m : {2, 7, 40}) {
      const std::vector<float> y = p.run(*t, m);
      if (sums_pairs(t)) continue;
      if (other.size() < y.size()) other = p.run(*t, kMostRows);
      EXPECT_TRUE(same_rows(y, other)) << m << " rows";
    }
  }
}

#if defined(__x86_64__)
// VDPBF16PS order written down with scalar instructions: one chain, of each pair the odd k first, padding included (it
// makes +0 of -0).
__attribute__((target("fma"))) float pair_chain(const float* x, const float* w, int64_t k) {
  float sum = 0;
  auto at = [k](const float* p, int64_t i) { return i < k ? to_bf16(p[i]) : 0.0f; };
  for (int64_t i = 0; i < packed_k(Format::bf16, k); i += 2) {
    sum = __builtin_fmaf(at(x, i + 1), at(w, i + 1), sum);
    sum = __builtin_fmaf(at(x, i), at(w, i), sum);
  }
  return sum;
}

// On ordinary numbers, sums that cancel, products at the edge of the denormals and of infinity.
TEST(LinearBits, PairOrder) {
  const FlushDenormals flush;
  for (const Kernels* t : tables()) {
    if (!sums_pairs(t)) continue;
    for (int64_t k : {1, 2, 31, 64, 130, 777})
      for (float scale : {1.0f, 1e-19f, 3e-20f, 1e-36f, 1e19f}) {
        Problem p = random_problem(Format::bf16, 80, k, scale);
        for (size_t i = 0; i < p.w.size(); i += 7) p.w[i] *= 1e-3f;
        for (size_t i = 1; i < p.x.size(); i += 5) p.x[i] = -p.x[i - 1];
        SCOPED_TRACE(title(*t, p, 23) + ", scale " + std::to_string(scale));
        const std::vector<float> y = p.run(*t, 23);
        int wrong = 0;
        for (int64_t r = 0; r < 23; ++r)
          for (int64_t j = 0; j < p.n; ++j) {
            const float want = pair_chain(&p.x[size_t(r * p.x_ld())], &p.w[size_t(j * k)], k);
            const float got = y[size_t(r * p.y_ld() + j)];
            wrong += std::memcmp(&got, &want, sizeof got) != 0 && !(std::isnan(got) && std::isnan(want));
          }
        EXPECT_EQ(wrong, 0);
      }
  }
}
#endif

}  // namespace
}  // namespace test
}  // namespace pyllm
