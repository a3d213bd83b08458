// Packing of weight panels by every kernel table, bit for bit, from every source type and layout.
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

}  // namespace
}  // namespace test
}  // namespace pyllm
