// What the kernel tests share: the tables to test, random rows, ulp-free comparison with a double reference.
#pragma once
#include <gtest/gtest.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "kernels.h"

namespace pyllm {
#if PYLLM_HAVE_AMX_EMULATED
extern const Kernels kernels_amx_emulated;
#endif

namespace test {

// Every table that runs here, and the AMX kernels on emulated tiles where only the tiles are missing.
inline std::vector<const Kernels*> tables() {
  std::vector<const Kernels*> all;
  for (const std::string& name : available_kernels()) all.push_back(kernels_by_name(name.c_str()));
#if PYLLM_HAVE_AMX_EMULATED
  if (kernels_by_name("avx512_vnni") && !kernels_by_name("amx")) all.push_back(&kernels_amx_emulated);
#endif
  return all;
}
inline bool is_scalar(const Kernels* k) { return std::string(k->name) == "scalar"; }
// Whether its bfloat16 products are summed in VDPBF16PS order, not in that of all other tables.
inline bool sums_pairs(const Kernels* k) { return std::string(k->name) == "avx512_bf16"; }

// Denormals are flushed while it lives, as in every worker of the engine.
class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#endif
};

// Rows are vectors of exactly the size asked for, so that the address sanitizer sees any access past the end.
inline std::vector<float> random_row(int64_t n, unsigned seed, float scale = 1.0f, float shift = 0.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> row(static_cast<size_t>(n));
  for (float& x : row) x = shift + scale * normal(generator);
  return row;
}

inline bool same_bits(const std::vector<float>& x, const std::vector<float>& y) {
  return x.size() == y.size() && std::memcmp(x.data(), y.data(), x.size() * sizeof(float)) == 0;
}

// Reports the worst element: the one whose error exceeds its own tolerance by the largest factor.
class Worst {
 public:
  void see(double got, double want, double tolerance, int64_t index) {
    const bool same_special = (std::isnan(got) && std::isnan(want)) || got == want;
    const double error = same_special ? 0 : std::fabs(got - want);
    const double excess = std::isfinite(error) ? error / tolerance : INFINITY;
    if (excess < excess_) return;
    excess_ = excess;
    text_ = "element " + std::to_string(index) + ": got " + std::to_string(got) + ", want " + std::to_string(want) +
            ", error " + std::to_string(excess) + " of the tolerance";
  }
  bool good() const { return excess_ <= 1; }
  double excess() const { return excess_; }
  const std::string& text() const { return text_; }

 private:
  double excess_ = 0;
  std::string text_ = "nothing compared";
};

constexpr double kEpsilon = 1.0 / (1 << 24);  // half a unit in the last place of fp32, relative

}  // namespace test
}  // namespace pyllm
