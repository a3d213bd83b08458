// Norms, softmax, activations and rotary embedding of every kernel table against double references.
#include <algorithm>

#include "kernel_test.h"

namespace pyllm {
namespace test {
namespace {

std::vector<int64_t> sizes() {
  std::vector<int64_t> n;
  for (int64_t i = 1; i <= 70; ++i) n.push_back(i);
  for (int64_t i : {768, 1000, 1001, 1007, 1023}) n.push_back(i);
  return n;
}

// Calls check(kernels, n) for every table and size, and returns the rows of all tables for comparison.
template <class Check>
void for_each_table(Check check) {
  const FlushDenormals flush;
  for (int64_t n : sizes()) {
    std::vector<float> fused;
    for (const Kernels* k : tables()) {
      SCOPED_TRACE(std::string(k->name) + ", n = " + std::to_string(n));
      const std::vector<float> y = check(*k, n);
      if (is_scalar(k)) continue;
      if (fused.empty()) fused = y;
      EXPECT_TRUE(same_bits(y, fused)) << "differs from another table with fused multiply-add";
    }
  }
}

struct Moments {
  double mean = 0, variance = 0, square = 0, largest = 0;
};
Moments moments(const std::vector<float>& x) {
  Moments m;
  for (float v : x) m.mean += v / double(x.size());
  for (float v : x) {
    m.variance += (v - m.mean) * (v - m.mean) / double(x.size());
    m.square += double(v) * v / double(x.size());
    m.largest = std::max(m.largest, std::fabs(double(v)));
  }
  return m;
}

TEST(Rows, LayerNorm) {
  for (bool with_bias : {true, false})
    for_each_table([&](const Kernels& k, int64_t n) {
      const auto x = random_row(n, 1, 2.0f, 0.7f), weight = random_row(n, 2), bias = random_row(n, 3);
      const int64_t padded = round_up(n, 64);
      const float eps = 1e-5f;
      std::vector<float> y(size_t(padded), 7.0f);
      k.layer_norm(x.data(), weight.data(), with_bias ? bias.data() : nullptr, eps, n, padded, y.data());
      const Moments m = moments(x);
      Worst worst;
      for (int64_t i = 0; i < n; ++i) {
        const double inverse = 1 / std::sqrt(m.variance + eps), b = with_bias ? bias[i] : 0;
        // The rounded mean shifts every element by the error of a sum of n / 16 + 4 terms.
        const double tolerance =
            kEpsilon * (double(n) / 16 + 12) * (m.largest * inverse * std::fabs(weight[i]) + std::fabs(b));
        worst.see(y[i], (x[i] - m.mean) * inverse * weight[i] + b, tolerance, i);
      }
      for (int64_t i = n; i < padded; ++i) worst.see(y[i], 0, 1e-30, i);
      EXPECT_TRUE(worst.good()) << worst.text();
      return y;
    });
}

TEST(Rows, RmsNorm) {
  for_each_table([&](const Kernels& k, int64_t n) {
    const auto x = random_row(n, 4, 3.0f), weight = random_row(n, 5);
    const int64_t padded = n + n % 3;
    std::vector<float> y(size_t(padded), 7.0f);
    k.rms_norm(x.data(), weight.data(), 1e-6f, n, padded, y.data());
    const double inverse = 1 / std::sqrt(moments(x).square + 1e-6);
    Worst worst;
    for (int64_t i = 0; i < n; ++i) {
      const double want = x[i] * inverse * weight[i];
      worst.see(y[i], want, kEpsilon * (double(n) / 32 + 8) * std::fabs(want), i);
    }
    for (int64_t i = n; i < padded; ++i) worst.see(y[i], 0, 1e-30, i);
    EXPECT_TRUE(worst.good()) << worst.text();
    return y;
  });
}

TEST(Rows, Softmax) {
  for_each_table([&](const Kernels& k, int64_t n) {
    const auto x = random_row(n, 6, 8.0f, 300.0f);
    std::vector<float> y = x;
    k.softmax(n, y.data());
    double top = -INFINITY, sum = 0;
    for (float v : x) top = std::max(top, double(v));
    for (float v : x) sum += std::exp(v - top);
    Worst worst;
    for (int64_t i = 0; i < n; ++i) {
      const double want = std::exp(x[i] - top) / sum;
      worst.see(y[i], want, kEpsilon * (double(n) / 16 + 16) * want + 1e-37, i);
    }
    EXPECT_TRUE(worst.good()) << worst.text();
    return y;
  });
}

TEST(Rows, Summary) {
  for_each_table([&](const Kernels& k, int64_t n) {
    const auto x = random_row(n, 8, 8.0f, -300.0f);
    std::vector<float> y(2);
    const float scale = n % 3 == 0 ? 0.0f : n % 3 == 1 ? 1.0f : 0.8f;
    k.summarise(x.data(), n, scale, y.data());
    double sum = 0;
    const float top = *std::max_element(x.begin(), x.end());
    for (float v : x) sum += std::exp((double(v) - top) * double(scale));
    EXPECT_EQ(y[0], top);
    EXPECT_NEAR(y[1], sum, kEpsilon * (double(n) / 16 + 16) * sum);
    return y;
  });
}

TEST(Rows, SoftmaxOfInfinities) {
  const FlushDenormals flush;
  for (const Kernels* k : tables()) {
    std::vector<float> x = {-INFINITY, 1.0f, -INFINITY, 1.0f, -1e30f};
    k->softmax(5, x.data());
    EXPECT_EQ(x, (std::vector<float>{0, 0.5f, 0, 0.5f, 0})) << k->name;
    std::vector<float> bad = {0.0f, NAN, 1.0f};
    k->softmax(3, bad.data());
    for (float v : bad) EXPECT_TRUE(std::isnan(v)) << k->name;
  }
}

double activation(Activation a, double x) {
  const double tanh_argument = std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  switch (a) {
    case Activation::none:
      return x;
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::gelu:
      return x * 0.5 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return x / (1 + std::exp(-2 * tanh_argument));
    case Activation::quick_gelu:
      return x / (1 + std::exp(-1.702 * x));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::tanh:
      return std::tanh(x);
  }
  return 0;
}

constexpr Activation kActivations[] = {Activation::none,      Activation::relu,       Activation::gelu,
                                       Activation::gelu_tanh, Activation::quick_gelu, Activation::silu,
                                       Activation::tanh};

// Relative error of e^-y is that of rounding y: it grows with the exponent, which is far into the tail.
double activation_tolerance(Activation a, double x, double want) {
  if (a == Activation::none || a == Activation::relu) return 1e-45;
  const double exponent = x >= 0                       ? 0
                          : a == Activation::gelu      ? x * x / 2
                          : a == Activation::gelu_tanh ? 1.6 * -x + 0.08 * -x * x * x
                                                       : -2 * x;
  return (6 + 3 * std::fabs(exponent)) * kEpsilon * std::fabs(want) + 1e-35;
}

TEST(Rows, ActivationsOverTheirRange) {
  const FlushDenormals flush;
  std::vector<float> x;
  for (double v = -130; v <= 130; v += 0.0173) x.push_back(float(v));
  for (double v = -6; v <= 6; v += 0.00071) x.push_back(float(v));
  for (double v = 1e-30; v < 1e30; v *= 7.3) x.push_back(float(v)), x.push_back(float(-v));
  for (Activation a : kActivations)
    for (const Kernels* k : tables()) {
      SCOPED_TRACE(std::string(k->name) + ", activation " + std::to_string(int(a)));
      std::vector<float> y = x;
      k->activate(a, int64_t(x.size()), y.data());
      Worst worst;
      for (size_t i = 0; i < x.size(); ++i) {
        const double want = activation(a, x[i]);
        worst.see(y[i], want, activation_tolerance(a, x[i], want), int64_t(i));
      }
      EXPECT_TRUE(worst.good()) << worst.text();
    }
}

TEST(Rows, ActivationsOfSpecialValues) {
  const FlushDenormals flush;
  for (Activation a : kActivations)
    for (const Kernels* k : tables()) {
      SCOPED_TRACE(std::string(k->name) + ", activation " + std::to_string(int(a)));
      std::vector<float> x = {INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 0.0f, -0.0f};
      k->activate(a, int64_t(x.size()), x.data());
      const bool linear = a == Activation::none, bounded = a == Activation::tanh;
      EXPECT_EQ(x[0], bounded ? 1.0f : INFINITY);
      EXPECT_EQ(x[1], linear ? -INFINITY : bounded ? -1.0f : 0.0f);
      EXPECT_TRUE(std::isnan(x[2]));
      EXPECT_EQ(x[3], bounded ? 1.0f : 3e38f);
      EXPECT_EQ(x[4], linear ? -3e38f : bounded ? -1.0f : 0.0f);
      EXPECT_EQ(x[5], 0.0f);
      EXPECT_EQ(x[6], 0.0f);
    }
}

TEST(Rows, ActivateAndGateTails) {
  for (Activation a : kActivations)
    for_each_table([&](const Kernels& k, int64_t n) {
      const auto g = random_row(n, 7, 3.0f), u = random_row(n, 8);
      std::vector<float> activated = g, gated(static_cast<size_t>(n));
      k.activate(a, n, activated.data());
      k.gate(a, n, g.data(), u.data(), gated.data());
      Worst worst;
      for (int64_t i = 0; i < n; ++i) {
        const double want = activation(a, g[i]), tolerance = activation_tolerance(a, g[i], want);
        worst.see(activated[i], want, tolerance, i);
        EXPECT_EQ(gated[i], activated[i] * u[i]);
      }
      EXPECT_TRUE(worst.good()) << worst.text();
      return gated;
    });
}

TEST(Rows, Rope) {
  for (bool interleaved : {false, true})
    for_each_table([&](const Kernels& k, int64_t half) {
      const auto x = random_row(2 * half, 9);
      std::vector<float> cos_sin(static_cast<size_t>(2 * half)), y = x;
      for (int64_t i = 0; i < half; ++i) {
        cos_sin[size_t(i)] = float(std::cos(0.37 * double(i + 1)));
        cos_sin[size_t(half + i)] = float(std::sin(0.37 * double(i + 1)));
      }
      k.rope(cos_sin.data(), 2 * half, interleaved, y.data());
      for (int64_t i = 0; i < half; ++i) {
        const size_t first = size_t(interleaved ? 2 * i : i), second = size_t(interleaved ? 2 * i + 1 : half + i);
        const float c = cos_sin[size_t(i)], s = cos_sin[size_t(half + i)];
        EXPECT_NEAR(y[first], double(x[first]) * c - double(x[second]) * s, 4e-7);
        EXPECT_NEAR(y[second], double(x[second]) * c + double(x[first]) * s, 4e-7);
      }
      return y;
    });
}

}  // namespace
}  // namespace test
}  // namespace pyllm
