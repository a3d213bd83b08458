// Matmul of float32 weights by three products of bf16: its order, its error, and float32 where there are no tiles.
#include "kernel_test.h"
#include "linear_test.h"

namespace pyllm {
namespace test {
namespace {

bool has_tiles(const Kernels& t) { return std::string(t.name).rfind("amx", 0) == 0; }

struct Problem {
  int64_t n, k;
  int most;
  std::vector<float> w, x;  // [n][k], [most][k]
  Problem(int64_t outputs, int64_t inputs, int rows)
      : n(outputs), k(inputs), most(rows), w(random_row(n * k, 1)), x(random_row(rows * k, 2)) {}

  std::vector<float> run(const Kernels& t, Format f, int m) const {
    const int64_t ld = round_up(n, kPanel);
    const int panels = int(ld / kPanel), middle = m > 16 ? panels / 2 : 0;
    Bytes packed(matrix_bytes(f, n, k)), prepared(t.prepared_bytes(f, m, k));
    for (int64_t p = 0; p < panels; ++p) {
      const void* rows[kPanel];
      int64_t stride[kPanel];
      for (int64_t j = 0; j < kPanel; ++j) {
        rows[j] = p * kPanel + j < n ? &w[size_t((p * kPanel + j) * k)] : nullptr;
        stride[j] = 1;
      }
      t.pack_panel(f, SourceType::f32, rows, stride, k, packed.data + size_t(p) * panel_bytes(f, k));
    }
    const std::vector<float> rows(x.begin(), x.begin() + m * k);
    const bool prepares = t.prepared_bytes(f, m, k) != 0;
    if (prepares && m > 16) t.prepare(f, rows.data(), k, m, k, 0, 16, prepared.data);
    if (prepares) t.prepare(f, rows.data(), k, m, k, m > 16 ? 16 : 0, m, prepared.data);
    std::vector<float> y(size_t(m * ld));
    LinearArgs a = {};
    a.format = f;
    a.m = m;
    a.n = n;
    a.k = k;
    a.weights = packed.data;
    a.x = prepares ? static_cast<const void*>(prepared.data) : rows.data();
    a.x_ld = k;
    a.y = y.data();
    a.y_ld = ld;
    Bytes scratch(t.linear_scratch(a, panels));
    if (middle) t.linear(a, 0, middle, scratch.data);
    t.linear(a, middle, panels, scratch.data);
    return y;
  }
};

// Sums of one output in the order of the tiles: per 32 k high by low, high by high, low by high.
float in_order(const float* x, const float* w, int64_t k) {
  float sum = 0;
  for (int64_t begin = 0; begin < k; begin += 32)
    for (int product = 0; product < 3; ++product) {
      float chain[2] = {};
      for (int64_t i = begin; i < k && i < begin + 32; ++i) {
        const float xh = to_bf16(x[i]), wh = to_bf16(w[i]);
        const float u = product == 2 ? to_bf16(x[i] - xh) : xh, v = product == 0 ? to_bf16(w[i] - wh) : wh;
        chain[i % 2] = std::fma(u, v, chain[i % 2]);
      }
      sum += chain[0] + chain[1];
    }
  return sum;
}

TEST(LinearBf16x3, FollowsItsOrderForAnyNumberOfRows) {
  const FlushDenormals flush;
  for (int64_t k : {1, 31, 70, 300, 1300}) {
    const Problem p(100, k, 37);
    for (const Kernels* t : tables()) {
      SCOPED_TRACE(std::string(t->name) + ", k " + std::to_string(k));
      const std::vector<float> all = p.run(*t, Format::f32_bf16x3, p.most);
      if (!has_tiles(*t)) {
        EXPECT_TRUE(same_bits(all, p.run(*t, Format::f32, p.most))) << "not float32";
        continue;
      }
      int wrong = 0;
      for (int64_t r = 0; r < p.most; ++r)
        for (int64_t j = 0; j < p.n; ++j)
          wrong += all[size_t(r * 128 + j)] != in_order(&p.x[size_t(r * k)], &p.w[size_t(j * k)], k);
      EXPECT_EQ(wrong, 0);
      for (int m : {1, 2, 15, 16, 17, 33}) {
        const std::vector<float> few = p.run(*t, Format::f32_bf16x3, m);
        EXPECT_EQ(std::memcmp(few.data(), all.data(), few.size() * sizeof(float)), 0) << m << " rows";
      }
    }
  }
}

// Several chunks of rows and slices of inputs; the error stays near that of float32, relative to the sum of magnitudes.
TEST(LinearBf16x3, ErrorIsNearThatOfFloat32) {
  const FlushDenormals flush;
  const Problem p(130, 3100, 300);
  std::vector<double> sum, size;
  for (int64_t r = 0; r < p.most; ++r)
    for (int64_t j = 0; j < p.n; ++j) {
      double s = 0, z = 0;
      for (int64_t c = 0; c < p.k; ++c) {
        const double product = double(p.x[size_t(r * p.k + c)]) * p.w[size_t(j * p.k + c)];
        s += product;
        z += std::fabs(product);
      }
      sum.push_back(s);
      size.push_back(z);
    }
  for (const Kernels* t : tables()) {
    if (!has_tiles(*t)) continue;
    for (int m : {3, 300}) {
      const std::vector<float> y = p.run(*t, Format::f32_bf16x3, m);
      Worst worst;
      double squares = 0, outputs = 0;
      for (int64_t r = 0; r < m; ++r)
        for (int64_t j = 0; j < p.n; ++j) {
          const size_t i = size_t(r * p.n + j);
          const double got = y[size_t(r * 192 + j)];
          worst.see(got, sum[i], 1e-6 * size[i], int64_t(i));
          squares += (got - sum[i]) * (got - sum[i]);
          outputs += sum[i] * sum[i];
        }
      EXPECT_TRUE(worst.good()) << worst.text();
      EXPECT_LT(std::sqrt(squares / outputs), 5e-6) << m << " rows";
    }
  }
}

}  // namespace
}  // namespace test
}  // namespace pyllm
