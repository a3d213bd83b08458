// Packing of weight panels by every kernel table, bit for bit, from every source type and layout.
#include "convert.h"
#include "kernel_test.h"
#include "linear_test.h"
#include "packed_weights.h"

namespace pyllm {
namespace test {
namespace {

// A source element: its bytes, and its value from the definition of the type.
struct Element {
  uint8_t bytes[4];
  float value;
};
Element element(SourceType type, uint32_t random) {
  Element e = {};
  uint32_t u = type == SourceType::bf16 ? random & 0xffff0000u : random;
  std::memcpy(&e.value, &u, 4);
  std::memcpy(e.bytes, &u, 4);
  if (type == SourceType::bf16) std::memcpy(e.bytes, reinterpret_cast<uint8_t*>(&u) + 2, 2);
  if (type == SourceType::f16) {
    const uint16_t h = uint16_t(random);
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    const double size = exponent == 0    ? std::ldexp(mantissa, -24)
                        : exponent == 31 ? (mantissa ? NAN : INFINITY)
                                         : std::ldexp(1024 + mantissa, exponent - 25);
    e.value = float(h & 0x8000 ? -size : size);
    std::memcpy(e.bytes, &h, 2);
  }
  return e;
}

// How the source lies: rows of k side by side; stored [k][n]; every third element; each output its own way.
enum Layout { by_row, by_column, spread, mixed };

void check_packing(const Kernels& table, Format f, SourceType type, Layout layout, int64_t k, int64_t n) {
  const int64_t size = type == SourceType::f32 ? 4 : 2, depth = packed_k(f, k);
  std::vector<uint8_t> source(size_t((layout == spread || layout == mixed ? 3 : 1) * n * k * size));
  std::vector<float> value(size_t(n * k));
  const void* rows[kPanel] = {};
  int64_t stride[kPanel] = {};
  std::mt19937 random(7);
  for (int64_t j = 0; j < n; ++j) {
    stride[j] = layout == by_row ? 1 : layout == by_column ? n : layout == spread ? 3 : j % 3 + 1;
    uint8_t* row = &source[size_t((layout == by_column ? j : j * k * (layout == by_row ? 1 : 3)) * size)];
    rows[j] = row;
    for (int64_t c = 0; c < k; ++c) {
      const Element e = element(type, random());
      std::memcpy(row + c * stride[j] * size, e.bytes, size_t(size));
      value[size_t(j * k + c)] = e.value;
    }
  }
  Bytes out(panel_bytes(f, k));
  table.pack_panel(f, type, rows, stride, k, out.data);
  for (int64_t c = 0; c < depth; ++c)
    for (int64_t j = 0; j < kPanel; ++j) {
      const float want = c < k && j < n ? value[size_t(j * k + c)] : 0.0f;
      const int64_t at = f == Format::bf16 ? c / 32 * 4096 + j / 16 * 1024 + c % 32 / 2 * 64 + j % 16 * 4 + c % 2 * 2
                                           : (c * kPanel + j) * (f == Format::f32 ? 4 : 2);
      uint32_t got = 0, expected;
      const float rounded = f == Format::f32 ? want : f == Format::f16 ? to_f16(want) : to_bf16(want);
      std::memcpy(&expected, &rounded, 4);
      if (f == Format::f16) {
        const float half = float(half_value(out.data + at));
        std::memcpy(&got, &half, 4);
      } else {
        const int size = f == Format::f32 ? 4 : 2;
        std::memcpy(reinterpret_cast<uint8_t*>(&got) + 4 - size, out.data + at, size_t(size));
      }
      float number;
      std::memcpy(&number, &got, 4);
      if (std::isnan(want) && std::isnan(number)) continue;
      ASSERT_EQ(got, expected) << "k " << c << ", output " << j << ", value " << want;
    }
}

TEST(PackPanel, EveryTypeAndLayout) {
  const FlushDenormals flush;
  for (const Kernels* t : tables())
    for (Format f : kFormats)
      for (SourceType type : {SourceType::f32, SourceType::bf16, SourceType::f16})
        for (Layout layout : {by_row, by_column, spread, mixed})
          for (int64_t k : {1, 15, 16, 31, 32, 33, 100})
            for (int64_t n : {64, 63, 17, 1}) {
              SCOPED_TRACE(std::string(t->name) + " " + name(f) + ", type " + std::to_string(int(type)) + ", layout " +
                           std::to_string(layout) + ", k " + std::to_string(k) + ", n " + std::to_string(n));
              check_packing(*t, f, type, layout, k, n);
            }
}

// --- floats that are quantised on the way

// Weights as three sources of one value: rows of float32 and bfloat16, columns of float16.
struct Weights {
  Weights(int64_t n, int64_t k, bool heavy, unsigned seed) : n(n), k(k) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::student_t_distribution<float> tails(3);
    const int64_t columns = 64;
    floats.resize(size_t(n * k));
    pairs.resize(floats.size());
    halves.resize(size_t(columns * k));
    for (int64_t j = 0; j < n; ++j)
      for (int64_t c = 0; c < k; ++c) {
        const float drawn = 0.02f * (heavy ? tails(random) : normal(random));
        const float value = std::fabs(drawn) < 1e-4f ? 0.0f : to_f16(to_bf16(drawn));
        const uint32_t bits = bits_of_float(value);
        floats[size_t(j * k + c)] = value;
        pairs[size_t(j * k + c)] = uint16_t(bits >> 16);
        halves[size_t(c * columns + j)] = f16_of_float(value);
      }
  }
  void pack(const Kernels& table, Format f, SourceType type, uint8_t* out) const {
    const void* rows[kPanel] = {};
    int64_t stride[kPanel] = {};
    for (int64_t j = 0; j < n; ++j) {
      stride[j] = type == SourceType::f16 ? 64 : 1;
      rows[j] = type == SourceType::f32    ? static_cast<const void*>(&floats[size_t(j * k)])
                : type == SourceType::bf16 ? &pairs[size_t(j * k)]
                                           : &halves[size_t(j)];
    }
    table.pack_panel(f, type, rows, stride, k, out);
  }
  int64_t n, k;
  std::vector<float> floats;
  std::vector<uint16_t> pairs, halves;
};

// The squared error that rounding to the group's largest magnitude / (127 or 7) leaves, scales of int4 in float16.
double plain_error(Format f, const float* w, int64_t group) {
  float top = 0;
  for (int64_t i = 0; i < group; ++i) top = std::max(top, std::fabs(w[i]));
  const double scale = is_i8(f) ? double(top / 127) : double(to_f16(top / 7));
  double error = 0;
  for (int64_t i = 0; i < group; ++i) {
    const double off = w[i] - (scale > 0 ? scale * std::nearbyint(w[i] / scale) : 0.0);
    error += off * off;
  }
  return error;
}

void check_quantised(Format f, const Weights& w, const uint8_t* packed, double& least, double& plain) {
  const int64_t group = group_of(f) ? group_of(f) : w.k;
  for (int64_t j = 0; j < w.n; ++j)
    for (int64_t begin = 0; begin < w.k; begin += group) {
      const int64_t end = std::min(begin + group, w.k);
      double error = 0;
      for (int64_t c = begin; c < end; ++c) {
        const double off = w.floats[size_t(j * w.k + c)] - quantised(f, packed, w.k, j, c).value();
        error += off * off;
      }
      const double bound = plain_error(f, &w.floats[size_t(j * w.k + begin)], end - begin);
      ASSERT_LE(error, bound * (1 + 1e-4) + 1e-15) << "output " << j << ", k " << begin;
      least += error;
      plain += bound;
    }
  for (int64_t j = 0; j < kPanel; ++j)
    for (int64_t c = j < w.n ? w.k : 0; c < packed_k(f, w.k); ++c)
      ASSERT_EQ(quantised(f, packed, w.k, j, c).value(), 0) << "padding: output " << j << ", k " << c;
}

// No group is worse than by its largest magnitude, and every table gives the same bytes from every kind of source.
TEST(PackPanel, QuantisesByTheErrorLeft) {
  const FlushDenormals flush;
  for (Format f : {Format::i8, Format::i4_g32, Format::i4_g128, Format::i4z_g32})
    for (bool heavy : {false, true}) {
      double least = 0, plain = 0;
      for (int64_t k : {1, 31, 32, 65, 300})
        for (int64_t n : {64, 17}) {
          SCOPED_TRACE("format " + std::to_string(int(f)) + ", k " + std::to_string(k) + ", n " + std::to_string(n));
          const Weights w(n, k, heavy, unsigned(k + n));
          Bytes first(panel_bytes(f, k)), other(panel_bytes(f, k));
          w.pack(*tables()[0], f, SourceType::f32, first.data);
          check_quantised(f, w, first.data, least, plain);
          for (const Kernels* t : tables())
            for (SourceType type : {SourceType::f32, SourceType::bf16, SourceType::f16}) {
              if (type == SourceType::f16 && n < 64) continue;
              w.pack(*t, f, type, other.data);
              EXPECT_EQ(std::memcmp(first.data, other.data, panel_bytes(f, k)), 0) << t->name << int(type);
            }
        }
      // Measured on Gaussian weights: 0.70 of the squared error by groups of 32.
      if (is_i4(f)) {
        EXPECT_LT(least, 0.8 * plain);
      }
    }
}

// What no scale can hold shows as a scale that is infinite or NaN; zeros and denormals are zeros.
TEST(PackPanel, OddGroups) {
  const FlushDenormals flush;
  const int64_t k = 64;
  for (const Kernels* t : tables())
    for (Format f : {Format::i8, Format::i4_g32}) {
      Weights w(64, k, false, 3);
      w.floats[5 * k + 1] = NAN;
      w.floats[6 * k + 2] = -INFINITY;
      w.floats[7 * k + 3] = 1e7f;
      for (int64_t c = 0; c < k; ++c) w.floats[size_t(8 * k + c)] = c % 2 ? 1e-39f : 0.0f;
      Bytes out(panel_bytes(f, k));
      w.pack(*t, f, SourceType::f32, out.data);
      for (int64_t j = 0; j < 64; ++j) {
        SCOPED_TRACE(std::string(t->name) + ", format " + std::to_string(int(f)) + ", output " + std::to_string(j));
        const double scale = quantised(f, out.data, k, j, 0).scale;
        EXPECT_EQ(std::isfinite(scale), j != 5 && j != 6 && (j != 7 || is_i8(f)));
        if (j == 8) {
          EXPECT_EQ(quantised(f, out.data, k, j, 1).value(), 0);
        }
      }
    }
}

}  // namespace
}  // namespace test
}  // namespace pyllm
