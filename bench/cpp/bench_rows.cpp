// Speed of attention and of the kernels over rows (norms, softmax), by shape and threads. Each case is checked against
// double first; beside GB/s of what it reads (keys and values, rows) and GFLOP/s stands what this machine reads at that
// footprint, measured just before. PYLLM_ISA chooses the table.
//
//   bench_rows --benchmark_filter=attend/bf16
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "arena.h"
#include "ceilings.h"
#include "convert.h"
#include "errors.h"
#include "kv_cache.h"
#include "threads.h"

namespace pyllm {
namespace bench {
namespace {

std::vector<float> random_floats(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> values(n);
  for (float& value : values) value = uniform(random);
  return values;
}

// Runs `work` until Google Benchmark is content; the counters are of the median.
void measure(benchmark::State& state, double bytes, double flops, double read_ceiling,
             const std::function<void()>& work) {
  std::vector<double> times;
  work();
  for (auto _ : state) {
    const double start = now();
    work();
    times.push_back(now() - start);
    state.SetIterationTime(times.back());
  }
  std::nth_element(times.begin(), times.begin() + std::ptrdiff_t(times.size() / 2), times.end());
  const double seconds = times[times.size() / 2];
  state.counters["GB/s"] = bytes / seconds * 1e-9;
  state.counters["GFLOP/s"] = flops / seconds * 1e-9;
  state.counters["read"] = read_ceiling;
  state.counters["%read"] = 100 * bytes / seconds * 1e-9 / read_ceiling;
}

// `queries` rows at the end of a text of `keys` tokens, all heads, in `copies` layers so that a decode step's
// keys and values do not stay in a cache that a model's weights would have emptied.
struct Attend {
  KvFormat format;
  int heads, kv_heads;
  int64_t head_dim, queries, keys;
};

class AttendCase {
 public:
  AttendCase(const Attend& shape, int threads)
      : s_(shape),
        group_(shape.heads / shape.kv_heads),
        copies_(std::max<int>(1, int((size_t(64) << 20) / layer_bytes()))),
        cache_({shape.format, copies_, shape.kv_heads, shape.head_dim}, 0),
        q_(random_floats(size_t(shape.queries * shape.heads * shape.head_dim), 1)),
        k_(random_floats(size_t(shape.keys * shape.kv_heads * shape.head_dim), 2)),
        v_(random_floats(k_.size(), 3)),
        out_(q_.size()),
        each_(size_t(round_up(int64_t(table_.attend_scratch(shape.format, shape.head_dim, shape.keys)), 4096))),
        scratch_(each_ * size_t(threads), "scratch"),
        threads_(threads) {
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < s_.keys; t += kBlockTokens) ids.push_back(cache_.allocate());
    std::vector<KvCache::View> views(ids.size());
    cache_.views(ids.data(), int64_t(ids.size()), views.data());
    for (const KvCache::View& view : views) blocks_.push_back(view.base);
    for (int layer = 0; layer < copies_; layer++)
      for (int head = 0; head < s_.kv_heads; head++)
        for (int64_t t = 0; t < s_.keys; t++) {
          const int64_t at = (t * s_.kv_heads + head) * s_.head_dim;
          table_.kv_append(s_.format, s_.head_dim, int(t % kBlockTokens), &k_[size_t(at)], &v_[size_t(at)],
                           views[size_t(t / kBlockTokens)].base + cache_.shape().offset(layer, head));
        }
  }

  void run() {
    layer_ = (layer_ + 1) % copies_;
    std::atomic<int64_t> next{0};
    const int64_t vectors = s_.queries * group_, chunks = (vectors + kAttendRows - 1) / kAttendRows;
    Pool::instance().run(threads_, [&](Team& team) {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < chunks * s_.kv_heads;)
        attend(int(i % s_.kv_heads), (chunks - 1 - i / s_.kv_heads) * kAttendRows,
               scratch_.data() + each_ * size_t(team.index));
    });
  }

  // The largest error of some outputs; values and weights are below 1. bf16: p is rounded to 8 bits. int8 is compared
  // with keys and values that are not rounded.
  bool right() {
    run();
    const double tolerance = s_.format == KvFormat::bf16 ? 1.0 / 200 : s_.format == KvFormat::i8 ? 1e-2 : 1e-5;
    for (int64_t i = 0; i < 20; i++) {
      const int64_t query = i * 7919 % s_.queries, head = i % s_.heads;
      const std::vector<double> want = expected(query, head);
      for (int64_t d = 0; d < s_.head_dim; d++)
        if (!(std::fabs(out_[size_t((query * s_.heads + head) * s_.head_dim + d)] - want[size_t(d)]) < tolerance))
          return false;
    }
    return true;
  }

  double read_ceiling() const {
    const size_t footprint = bytes() * size_t(copies_);
    const Arena like_it(footprint, "ceiling");
    std::memset(like_it.data(), 1, footprint);
    return read_gbs(table_.name, threads_, like_it.data(), footprint);
  }
  size_t bytes() const { return layer_bytes(); }
  double flops() const {  // two products of every query with the keys it sees
    const double seen = double(s_.queries) * (double(s_.keys - s_.queries) + double(s_.queries + 1) / 2);
    return 4.0 * seen * double(s_.heads) * double(s_.head_dim);
  }

 private:
  size_t layer_bytes() const {
    return size_t((s_.keys + kBlockTokens - 1) / kBlockTokens) * size_t(s_.kv_heads) *
           kv_block_bytes(s_.format, s_.head_dim);
  }
  void attend(int head, int64_t first, uint8_t* work) {
    const float* from[kAttendRows];
    float* to[kAttendRows];
    AttendArgs a{};
    a.vectors = int(std::min<int64_t>(kAttendRows, s_.queries * group_ - first));
    for (int i = 0; i < a.vectors; i++) {
      const int64_t at = ((first + i) / group_ * s_.heads + head * group_ + (first + i) % group_) * s_.head_dim;
      from[i] = &q_[size_t(at)];
      to[i] = &out_[size_t(at)];
    }
    a.format = s_.format;
    a.causal = true;
    a.group = group_;
    a.first_head = int(first % group_);
    a.head_dim = s_.head_dim;
    a.first_position = s_.keys - s_.queries + first / group_;
    a.num_keys = s_.keys - s_.queries + (first + a.vectors - 1) / group_ + 1;
    a.next_offset = s_.queries == 1 && head + 1 < s_.kv_heads ? cache_.shape().offset(layer_, head + 1) : 0;
    a.window = 0;
    a.scale = 1 / std::sqrt(float(s_.head_dim));
    a.softcap = 0;
    a.q = from;
    a.out = to;
    a.blocks = blocks_.data();
    a.block_offset = cache_.shape().offset(layer_, head);
    table_.attend(a, work);
  }
  float rounded(float x) const { return s_.format == KvFormat::bf16 ? float_of_bf16(bf16_of_float(x)) : x; }
  float rounded_key(float x) const {
    if (s_.format != KvFormat::f16) return rounded(x);
    const float unit = std::ldexp(1.0f, std::max(x == 0 ? -14 : std::ilogb(x), -14) - 10);
    return std::nearbyint(x / unit) * unit;
  }
  std::vector<double> expected(int64_t query, int64_t head) const {
    const int64_t seen = s_.keys - s_.queries + query + 1, e = s_.head_dim, kv = head / group_;
    std::vector<double> p(static_cast<size_t>(seen)), out(static_cast<size_t>(e), 0.0);
    double most = -1e300, sum = 0;
    for (int64_t t = 0; t < seen; t++) {
      double score = 0;
      for (int64_t d = 0; d < e; d++)
        score += double(rounded(q_[size_t((query * s_.heads + head) * e + d)])) *
                 rounded_key(k_[size_t((t * s_.kv_heads + kv) * e + d)]);
      p[size_t(t)] = score / std::sqrt(double(e));
      most = std::max(most, p[size_t(t)]);
    }
    for (double& value : p) sum += value = std::exp(value - most);
    for (int64_t t = 0; t < seen; t++)
      for (int64_t d = 0; d < e; d++)
        out[size_t(d)] += p[size_t(t)] / sum * rounded_key(v_[size_t((t * s_.kv_heads + kv) * e + d)]);
    return out;
  }

  const Kernels& table_ = kernels();
  const Attend s_;
  const int group_, copies_;
  KvCache cache_;
  std::vector<float> q_, k_, v_, out_;
  std::vector<const uint8_t*> blocks_;
  size_t each_;
  Arena scratch_;
  int threads_, layer_ = 0;
};

void attend(benchmark::State& state, const Attend& shape, int threads) {
  AttendCase c(shape, threads);
  if (!c.right()) return state.SkipWithError("wrong result");
  const double read = c.read_ceiling();
  measure(state, double(c.bytes()), c.flops(), read, [&] { c.run(); });
}

// Rows of `n` floats; kind 0: layer norm, 1: RMS norm, 2: softmax (in place on a copy that is made again each time).
void rows(benchmark::State& state, int kind, int64_t count, int64_t n, int threads) {
  const Kernels& table = kernels();
  const std::vector<float> x = random_floats(size_t(count * n), 1), w = random_floats(size_t(n), 2),
                           b = random_floats(size_t(n), 3);
  std::vector<float> y(x.size());
  const auto work = [&] {
    Pool::instance().run(threads, [&](Team& team) {
      const Team::Range mine = team.part(count);
      for (int64_t r = mine.begin; r < mine.end; r++) {
        float* to = &y[size_t(r * n)];
        if (kind == 0) table.layer_norm(&x[size_t(r * n)], w.data(), b.data(), 1e-5f, n, n, to);
        if (kind == 1) table.rms_norm(&x[size_t(r * n)], w.data(), 1e-5f, n, n, to);
        if (kind == 2) {
          std::memcpy(to, &x[size_t(r * n)], size_t(n) * sizeof(float));
          table.softmax(n, to);
        }
      }
    });
  };
  work();
  for (int64_t r : {int64_t(0), count - 1}) {
    double mean = 0, squares = 0, sum = 0;
    for (int64_t i = 0; i < n; i++)
      mean += x[size_t(r * n + i)] / double(n), sum += std::exp(double(x[size_t(r * n + i)]));
    if (kind == 1) mean = 0;
    for (int64_t i = 0; i < n; i++) squares += std::pow(x[size_t(r * n + i)] - mean, 2) / double(n);
    for (int64_t i = 0; i < n; i++) {
      const double normed = (x[size_t(r * n + i)] - mean) / std::sqrt(squares + 1e-5) * w[size_t(i)];
      const double want = kind == 0   ? normed + b[size_t(i)]
                          : kind == 1 ? normed
                                      : std::exp(double(x[size_t(r * n + i)])) / sum;
      if (!(std::fabs(y[size_t(r * n + i)] - want) < 1e-5 * std::max(1e-3, std::fabs(want)) + 1e-6))
        return state.SkipWithError("wrong result");
    }
  }
  const size_t bytes = x.size() * sizeof(float), footprint = std::max(bytes, size_t(threads) << 16);
  const Arena like_it(footprint, "ceiling");
  std::memset(like_it.data(), 1, footprint);
  const double operations[] = {8, 4, 4};  // an element, an exponential counted as one
  measure(state, double(bytes), operations[kind] * double(x.size()),
          read_gbs(table.name, threads, like_it.data(), footprint), work);
}

void register_all(int threads) {
  const std::string end = "/threads:" + std::to_string(threads);
  const auto add = [&](const std::string& name, const std::function<void(benchmark::State&)>& function) {
    benchmark::RegisterBenchmark((name + end).c_str(), [function](benchmark::State& state) { function(state); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  };
  const char* formats[] = {"f32", "bf16", "f16", "i8"};
  for (KvFormat format : {KvFormat::f32, KvFormat::bf16, KvFormat::f16, KvFormat::i8}) {
    const std::string type = formats[int(format)];
    for (const auto& [heads, kv_heads] : {std::pair{12, 12}, {14, 2}, {32, 4}})
      for (const auto& [queries, keys] : std::vector<std::pair<int64_t, int64_t>>{
               {1, 32}, {1, 128}, {1, 512}, {1, 1024}, {4, 1024}, {128, 128}, {512, 512}}) {
        const Attend shape{format, heads, kv_heads, 64, queries, keys};
        add(text("attend/", type, "/heads:", heads, ":", kv_heads, "/queries:", queries, "/keys:", keys),
            [shape, threads = threads](benchmark::State& state) { attend(state, shape, threads); });
      }
  }
  const char* kinds[] = {"layer_norm", "rms_norm", "softmax"};
  for (int kind = 0; kind < 3; kind++)
    for (const auto& [count, n] :
         std::vector<std::pair<int64_t, int64_t>>{{1, 768}, {512, 768}, {512, 2048}, {1, 50257}}) {
      if (kind < 2 && n > 4096) continue;
      add(text(kinds[kind], "/rows:", count, "/n:", n),
          [kind = kind, count = count, n = n, threads = threads](benchmark::State& state) {
            rows(state, kind, count, n, threads);
          });
    }
}

}  // namespace
}  // namespace bench
}  // namespace pyllm

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  for (int threads : {1, 2}) pyllm::bench::register_all(threads);
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
