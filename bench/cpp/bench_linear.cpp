// Matmul speed by shape, type, rows and threads, from float rows to float rows with the epilogue that a model uses.
// Every case is checked against double first; beside GB/s (of weights) and GFLOP/s stand the shares of what this
// machine reads at that footprint and multiplies at best, measured just before. PYLLM_ISA chooses the table.
//
//   bench_linear --benchmark_filter=bf16/2304x768
#include <benchmark/benchmark.h>

#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "ceilings.h"
#include "kernels.h"

namespace pyllm {
namespace bench {
namespace {

constexpr size_t kFootprint = size_t(128) << 20;  // of weights, taken in turn: more than any L2, as in a model

struct Shape {
  const char* what;
  int64_t n, k;
  Activation activation;
  bool gated, residual;
};
const Shape kShapes[] = {
    {"qkv", 2304, 768, Activation::none, false, false},
    {"attention-out", 768, 768, Activation::none, false, true},
    {"up-gelu", 3072, 768, Activation::gelu_tanh, false, false},
    {"down", 768, 3072, Activation::none, false, true},
    {"gate-up", 11264, 2048, Activation::silu, true, false},
    {"down-long", 2048, 5632, Activation::none, false, true},
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<uint8_t, Free>;
Buffer buffer(size_t bytes) {  // 2 MB aligned, in huge pages where the system gives them, as the engine's own memory
  const size_t huge = size_t(2) << 20, size = (bytes + huge) / huge * huge;
  Buffer b(static_cast<uint8_t*>(std::aligned_alloc(huge, size)));
#if defined(MADV_HUGEPAGE)
  madvise(b.get(), size, MADV_HUGEPAGE);
#endif
  return b;
}
float* floats(const Buffer& b) { return reinterpret_cast<float*>(b.get()); }

float as_bf16(float x) {  // nearest, ties to even
  uint32_t u;
  std::memcpy(&u, &x, 4);
  u = (u + 0x7fff + (u >> 16 & 1)) & 0xffff0000u;
  std::memcpy(&x, &u, 4);
  return x;
}

class Case {
 public:
  Case(const Shape& shape, Format format, int m, int threads) : shape_(shape), format_(format), m_(m) {
    panels_ = int(round_up(shape.n, kPanel) / kPanel);
    bytes_ = matrix_bytes(format, shape.n, shape.k);
    copies_ = std::max<size_t>(1, kFootprint / bytes_);
    const int64_t k_ld = round_up(shape.k, 64) + 16, columns = shape.gated ? shape.n / 2 : shape.n;
    weights_ = buffer(bytes_ * copies_);
    x_ = buffer(size_t(m * k_ld) * 4);
    y_ = buffer(size_t(m * (columns + 16)) * 4);
    bias_ = buffer(size_t(shape.n) * 4);
    prepared_ = buffer(table_.prepared_bytes(format, m, shape.k));
    source_.resize(size_t(shape.n * shape.k));
    std::mt19937 random(1);
    std::uniform_real_distribution<float> uniform(-1, 1);
    for (float& v : source_) v = as_bf16(uniform(random) * 0.05f);
    for (int64_t i = 0; i < m * k_ld; ++i) floats(x_)[i] = as_bf16(uniform(random));
    for (int64_t i = 0; i < shape.n; ++i) floats(bias_)[i] = uniform(random);
    for (int64_t i = 0; i < m * (columns + 16); ++i) floats(y_)[i] = 0;
    pack();
    args_ = {format, shape.activation, shape.gated, m, shape.n,    shape.k,     weights_.get(), nullptr,
             k_ld,   floats(bias_),    nullptr,     0, floats(y_), columns + 16};
    args_.x = format == Format::f32 ? x_.get() : prepared_.get();
    if (shape.residual) args_.residual = floats(y_), args_.residual_ld = args_.y_ld;
    for (int i = 0; i < threads; ++i) scratch_.push_back(buffer(table_.linear_scratch(args_, panels_)));
  }

  void run() {
    args_.weights = weights_.get() + bytes_ * next_;
    next_ = (next_ + 1) % copies_;
    Pool::instance().run(int(scratch_.size()), [this](Team& team) {
      const FlushDenormals flush;
      if (format_ == Format::bf16) {
        const auto blocks = team.part((m_ + 15) / 16);
        const int row0 = int(blocks.begin) * 16, row1 = std::min(m_, int(blocks.end) * 16);
        if (row0 < row1) table_.prepare(format_, floats(x_), args_.x_ld, m_, args_.k, row0, row1, prepared_.get());
        team.barrier();
      }
      const auto mine = team.part(panels_);
      if (mine.begin < mine.end)
        table_.linear(args_, int(mine.begin), int(mine.end), scratch_[size_t(team.index)].get());
    });
  }

  // The largest error of some outputs, in units of the sum of magnitudes.
  double error() {
    std::fill(floats(y_), floats(y_) + m_ * args_.y_ld, 0.0f);
    run();
    double worst = 0;
    for (int i = 0; i < 200; ++i) {
      const int64_t r = i * 7919 % m_, j = i * 104729LL % (args_.y_ld - 16);
      double magnitude = 1e-30, want;
      if (shape_.gated) {
        const int64_t gate = j / 16 * 32 + j % 16;
        const double g = sum(r, gate, magnitude);
        want = act(g) * sum(r, gate + 16, magnitude);
      } else {
        want = act(sum(r, j, magnitude));
      }
      worst = std::max(worst, std::fabs(args_.y[r * args_.y_ld + j] - want) / magnitude);
    }
    return worst;
  }

  double read_ceiling() const { return read_gbs(table_.name, int(scratch_.size()), weights_.get(), bytes_ * copies_); }
  double peak() const {
    const int threads = int(scratch_.size());
    if (format_ == Format::bf16 && m_ > 4 && !std::strcmp(table_.name, "amx")) return tile_peak_gflops(threads);
#if defined(__x86_64__)
    if (format_ == Format::bf16 && !std::strcmp(table_.name, "avx512_bf16")) return bench::peak(threads, pairs_avx512);
#endif
    return peak_gflops(table_.name, threads);
  }
  double bytes() const { return double(bytes_); }
  double flops() const { return 2.0 * m_ * double(shape_.n) * double(shape_.k); }

 private:
  void pack() {
    for (int p = 0; p < panels_; ++p) {
      const void* rows[kPanel];
      int64_t stride[kPanel];
      for (int64_t j = 0; j < kPanel; ++j) rows[j] = &source_[size_t((p * kPanel + j) * shape_.k)], stride[j] = 1;
      table_.pack_panel(format_, SourceType::f32, rows, stride, shape_.k,
                        weights_.get() + size_t(p) * panel_bytes(format_, shape_.k));
    }
    for (size_t c = 1; c < copies_; ++c) std::memcpy(weights_.get() + bytes_ * c, weights_.get(), bytes_);
  }
  double sum(int64_t r, int64_t j, double& magnitude) const {
    double s = floats(bias_)[j];
    magnitude += std::fabs(s);
    for (int64_t c = 0; c < shape_.k; ++c) {
      const double product = double(floats(x_)[r * args_.x_ld + c]) * source_[size_t(j * shape_.k + c)];
      s += product;
      magnitude += std::fabs(product);
    }
    return s;
  }
  double act(double x) const {
    if (shape_.activation == Activation::none) return x;
    const double u = shape_.activation == Activation::silu ? x : 1.5957691216057308 * (x + 0.044715 * x * x * x);
    return x / (1 + std::exp(-u));
  }

  const Kernels& table_ = kernels();
  const Shape& shape_;
  Format format_;
  int m_, panels_;
  size_t bytes_, copies_, next_ = 0;
  Buffer weights_, x_, y_, bias_, prepared_;
  std::vector<float> source_;
  LinearArgs args_;
  std::vector<Buffer> scratch_;
};

void run(benchmark::State& state, const Shape& shape, Format format, int m, int threads) {
  Case c(shape, format, m, threads);
  if (const double e = c.error(); !(e < 1e-6)) {
    state.SkipWithError(("wrong result: error " + std::to_string(e) + " of the sum of magnitudes").c_str());
    return;
  }
  const double read = c.read_ceiling(), peak = c.peak();
  c.run();
  double seconds = 0;
  std::vector<double> times;
  for (auto _ : state) {
    const double start = now();
    c.run();
    times.push_back(now() - start);
    state.SetIterationTime(times.back());
  }
  std::sort(times.begin(), times.end());
  seconds = times[times.size() / 2];  // the median: other programs disturb the mean
  state.counters["GB/s"] = c.bytes() / seconds * 1e-9;
  state.counters["GFLOP/s"] = c.flops() / seconds * 1e-9;
  state.counters["read"] = read;
  state.counters["%read"] = 100 * c.bytes() / seconds * 1e-9 / read;
  state.counters["peak"] = peak;
  state.counters["%peak"] = 100 * c.flops() / seconds * 1e-9 / peak;
}

void register_all() {
  for (int threads : {1, 2})
    for (Format format : {Format::f32, Format::bf16})
      for (const Shape& shape : kShapes)
        for (int m : {1, 2, 4, 8, 16, 32, 64, 512}) {
          const std::string name = std::string("linear/") + kernels().name +
                                   (format == Format::f32 ? "/f32/" : "/bf16/") + std::to_string(shape.n) + "x" +
                                   std::to_string(shape.k) + "/" + shape.what + "/rows:" + std::to_string(m) +
                                   "/threads:" + std::to_string(threads);
          benchmark::RegisterBenchmark(
              name.c_str(), [&shape, format, m, threads](benchmark::State& s) { run(s, shape, format, m, threads); })
              ->UseManualTime()
              ->Unit(benchmark::kMicrosecond)
              ->MinTime(0.2);
        }
}

}  // namespace
}  // namespace bench
}  // namespace pyllm

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  pyllm::bench::register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
