// attend() and kv_append() of every kernel table: against a double reference, and bit for bit across tables, groupings
// of the query vectors and what else lies in the cache.
#include <new>
#include <numeric>

#include "kernel_test.h"

namespace pyllm {
namespace test {
namespace {

struct Shape {
  int64_t head_dim;
  int group;
  int64_t num_keys;  // tokens in the cache
  int64_t window = 0;
  float softcap = 0;
  bool causal = true;
  bool biased = false;
};
std::ostream& operator<<(std::ostream& out, const Shape& s) {
  return out << "head_dim " << s.head_dim << ", group " << s.group << ", keys " << s.num_keys << ", window " << s.window
             << ", softcap " << s.softcap << (s.causal ? "" : ", not causal") << (s.biased ? ", biased" : "");
}

// To the nearest number with `bits` significant bits, ties to even, in steps of 2^lowest at least.
double rounded(double x, int bits, int lowest) {
  if (x == 0) return x;
  const double unit = std::ldexp(1.0, std::max(std::ilogb(x) + 1 - bits, lowest));
  return std::nearbyint(x / unit) * unit;
}

constexpr float kTopCode = 127, kTopNumber = 32639;

// Rows of `width` numbers as a cache (top: kTopCode) or a product (queries: kTopNumber) of the format takes them.
std::vector<double> stored(KvFormat format, const std::vector<float>& x, int64_t width, float top) {
  std::vector<double> y(x.begin(), x.end());
  for (double& value : y) {
    if (format == KvFormat::bf16) value = rounded(value, 8, -140);
    if (format == KvFormat::f16 && top == kTopCode) value = rounded(value, 11, -24);
  }
  for (size_t row = 0; format == KvFormat::i8 && row < x.size(); row += size_t(width)) {
    float most = 0;
    for (int64_t i = 0; i < width; ++i) most = std::max(most, std::fabs(x[row + size_t(i)]));
    for (int64_t i = 0; i < width; ++i)
      y[row + size_t(i)] = double(std::nearbyint(x[row + size_t(i)] * (top / most))) * double(most / top);
  }
  return y;
}

// The cache of one kv head, in blocks that also hold another head in front and lie in memory in reverse order.
class Cache {
 public:
  Cache(const Kernels& kernels, KvFormat format, const Shape& s)
      : offset(kv_block_bytes(format, s.head_dim)), kernels_(kernels), format_(format), shape_(s) {
    const int64_t count = round_up(s.num_keys, kBlockTokens) / kBlockTokens;
    bytes_ = 2 * offset * size_t(count);
    memory_ = static_cast<uint8_t*>(::operator new(bytes_, std::align_val_t(64)));
    std::memset(memory_, 0, bytes_);
    for (int64_t b = 0; b < count; ++b) blocks.push_back(memory_ + 2 * offset * size_t(count - 1 - b));
    keys = random_row(s.num_keys * s.head_dim, 11, 2.0f);
    values = random_row(s.num_keys * s.head_dim, 12, 1.0f, 0.5f);
  }
  Cache(const Cache&) = delete;
  ~Cache() { ::operator delete(memory_, std::align_val_t(64)); }

  void append(int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      kernels_.kv_append(format_, shape_.head_dim, int(t % kBlockTokens), &keys[size_t(t * shape_.head_dim)],
                         &values[size_t(t * shape_.head_dim)], blocks[size_t(t / kBlockTokens)] + offset);
  }
  std::vector<uint8_t> bytes() const { return std::vector<uint8_t>(memory_, memory_ + bytes_); }

  size_t offset;
  std::vector<const uint8_t*> const_blocks() const { return {blocks.begin(), blocks.end()}; }
  std::vector<uint8_t*> blocks;
  std::vector<float> keys, values;

 private:
  const Kernels& kernels_;
  KvFormat format_;
  Shape shape_;
  uint8_t* memory_;
  size_t bytes_;
};

// What is added to the scores of one query vector: of exactly the size asked for, as every row here.
std::vector<float> bias_row(const Shape& s, int64_t vector, int64_t num_keys) {
  std::vector<float> row = random_row(s.num_keys, 100 + unsigned(vector), 2.0f);
  row.resize(size_t(num_keys));
  return row;
}

// Query vectors [first, first + count) of the sequence, vector i being head i % group of token i / group, in calls of
// at most `together`; num_keys as the cache stands at that time. weights: [count][num_keys], where they are wanted.
std::vector<float> attend(const Kernels& kernels, KvFormat format, const Shape& s, const Cache& cache,
                          const std::vector<float>& queries, int64_t first, int64_t count, int together,
                          int64_t num_keys, std::vector<std::vector<float>>* weights = nullptr) {
  if (weights) weights->assign(size_t(count), std::vector<float>(size_t(num_keys)));
  std::vector<float> out(size_t(count * s.head_dim), 7.0f);
  std::vector<uint8_t> scratch(kernels.attend_scratch(format, s.head_dim, num_keys) + 64, 0xff);  // NaN
  const auto blocks = cache.const_blocks();
  for (int64_t i = 0; i < count; i += together) {
    AttendArgs a = {};
    a.format = format;
    a.causal = s.causal;
    a.vectors = int(std::min<int64_t>(together, count - i));
    a.group = s.group;
    a.first_head = int((first + i) % s.group);
    a.head_dim = s.head_dim;
    a.first_position = (first + i) / s.group;
    a.num_keys = num_keys;
    a.window = s.window;
    a.scale = 1 / std::sqrt(float(s.head_dim));
    a.softcap = s.softcap;
    const float* q[kAttendRows];
    float *y[kAttendRows], *w[kAttendRows];
    std::vector<std::vector<float>> biases;
    const float* bias[kAttendRows];
    for (int v = 0; v < a.vectors; ++v) {
      biases.push_back(bias_row(s, first + i + v, num_keys));
      bias[v] = biases.back().data();
      if (weights) w[v] = (*weights)[size_t(i + v)].data();
      q[v] = &queries[size_t((first + i + v) * s.head_dim)];
      y[v] = &out[size_t((i + v) * s.head_dim)];
    }
    a.q = q;
    a.out = y;
    a.bias = s.biased ? bias : nullptr;
    a.weights = weights ? w : nullptr;
    a.blocks = blocks.data();
    a.block_offset = cache.offset;
    kernels.attend(a, scratch.data() + (64 - reinterpret_cast<uintptr_t>(scratch.data()) % 64) % 64);
  }
  return out;
}

// Half a step of the integers that stand for the weights of one block, times what they multiply: int8 only. shares: of
// the tokens [begin, ...).
double weight_steps(const Shape& s, const Cache& cache, const std::vector<double>& shares, int64_t begin) {
  double steps = 0, most = 0;
  for (size_t i = 0; i < shares.size(); ++i) {
    const int64_t t = begin + int64_t(i);
    float largest = 0;
    for (int64_t d = 0; d < s.head_dim; ++d)
      largest = std::max(largest, std::fabs(cache.values[size_t(t * s.head_dim + d)]));
    most = std::max(most, shares[i] * double(largest / kTopCode));
    if ((t + 1) % kBlockTokens && i + 1 < shares.size()) continue;
    steps += most * (0.51 / kTopNumber) * double(kTopCode) * double(kBlockTokens);
    most = 0;
  }
  return steps;
}

// Compares vectors [first, first + count) with the definition in double, over queries, keys and values as they are
// stored. The bf16 and i8 bounds are those of rounding p.
void compare(KvFormat format, const Shape& s, const Cache& cache, const std::vector<float>& queries, int64_t first,
             int64_t count, const std::vector<float>& out, const std::vector<std::vector<float>>& weights) {
  const auto q = stored(format, queries, s.head_dim, kTopNumber), k = stored(format, cache.keys, s.head_dim, kTopCode),
             v = stored(format, cache.values, s.head_dim, kTopCode);
  Worst worst;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = (first + i) / s.group;
    const int64_t last = s.window && !s.causal ? position + s.window : s.num_keys;
    const int64_t end = s.causal ? position + 1 : std::min(last, s.num_keys);
    const int64_t begin = s.window ? std::max<int64_t>(0, position + 1 - s.window) : 0;
    const std::vector<float> bias = bias_row(s, first + i, s.num_keys);
    std::vector<double> p;
    double top = -INFINITY, size = 0;
    for (int64_t t = begin; t < end; ++t) {
      double dot = 0, magnitude = 0;
      for (int64_t d = 0; d < s.head_dim; ++d) {
        const double product = q[size_t((first + i) * s.head_dim + d)] * k[size_t(t * s.head_dim + d)];
        dot += product;
        magnitude += std::fabs(product);
      }
      dot /= std::sqrt(double(s.head_dim));
      p.push_back(s.softcap > 0 ? s.softcap * std::tanh(dot / s.softcap) : dot);
      if (s.biased) p.back() += double(bias[size_t(t)]);
      top = std::max(top, p.back());
      size = std::max(size, magnitude / std::sqrt(double(s.head_dim)));
    }
    double sum = 0;
    for (double& x : p) sum += x = std::exp(x - top);
    for (double& x : p) x /= sum;
    const double steps = format == KvFormat::i8 ? weight_steps(s, cache, p, begin) : 0;
    const double score_error = kEpsilon * (size * (4 + std::sqrt(double(s.head_dim))) + (s.biased ? 16 : 0));
    const double relative =
        2 * score_error + kEpsilon * (8 + double(end - begin) / 4) + (format == KvFormat::bf16 ? 1.0 / 256 : 0);
    for (int64_t t = 0; t < s.num_keys; ++t) {
      const double want = t >= begin && t < end ? p[size_t(t - begin)] : 0;
      worst.see(weights[size_t(i)][size_t(t)], want, relative * want + 1e-30, t);
    }
    for (int64_t d = 0; d < s.head_dim; ++d) {
      double want = 0, magnitude = 0;
      for (int64_t t = begin; t < end; ++t) {
        const double term = p[size_t(t - begin)] * v[size_t(t * s.head_dim + d)];
        want += term;
        magnitude += std::fabs(term);
      }
      worst.see(out[size_t(i * s.head_dim + d)], want, relative * magnitude + steps, i * s.head_dim + d);
    }
  }
  EXPECT_TRUE(worst.good()) << worst.text();
}

std::vector<Shape> shapes() {
  std::vector<Shape> all;
  for (int64_t head_dim : {8, 20, 64, 80, 96, 128})
    for (int group : {1, 3, 7})
      for (int64_t keys : {1, 15, 16, 17, 31, 32, 33, 77, 130}) all.push_back({head_dim, group, keys});
  for (int64_t keys : {1, 33}) all.push_back({530, 2, keys});  // int8: more than one integer sum covers
  for (int64_t head_dim : {12, 20, 64, 128})
    for (int64_t keys : {1, 31, 32, 33, 100}) {
      all.push_back({head_dim, 3, keys, 0, 0.0f, true, true});
      all.push_back({head_dim, 2, keys, 24, 8.0f, true, true});
      all.push_back({head_dim, 1, keys, 0, 0.0f, false, true});
      for (int64_t window : {1, 20, 70}) all.push_back({head_dim, 2, keys, window, 0.0f, false, window == 20});
    }
  for (int64_t head_dim : {20, 64, 96})
    for (int64_t keys : {1, 16, 33, 130}) {
      all.push_back({head_dim, 3, keys, 1});
      all.push_back({head_dim, 3, keys, 24});
      all.push_back({head_dim, 1, keys, 40, 5.0f});
      all.push_back({head_dim, 7, keys, 0, 30.0f});
      all.push_back({head_dim, 1, keys, 0, 0.0f, false});
    }
  return all;
}

// The last 40 query vectors of the sequence, at most 16 to a call.
int64_t tested_vectors(const Shape& s) { return std::min<int64_t>(40, s.num_keys * s.group); }

// Tables whose bits nobody else has: without fused multiply-add, or with the order of VDPBF16PS.
bool own_order(const Kernels* k, KvFormat format) {
  return is_scalar(k) || (format == KvFormat::bf16 && sums_pairs(k));
}

class Attention : public testing::TestWithParam<KvFormat> {};

TEST_P(Attention, MatchesReferenceOnEveryTable) {
  const FlushDenormals flush;
  const KvFormat format = GetParam();
  for (const Shape& s : shapes()) {
    const int64_t count = tested_vectors(s), first = s.num_keys * s.group - count;
    const auto queries = random_row(s.num_keys * s.group * s.head_dim, 13, 1.0f);
    std::vector<float> fused;
    std::vector<uint8_t> stored;
    for (const Kernels* k : tables()) {
      SCOPED_TRACE(testing::Message() << k->name << ", " << s);
      Cache cache(*k, format, s);
      cache.append(0, s.num_keys);
      if (stored.empty()) stored = cache.bytes();
      EXPECT_TRUE(cache.bytes() == stored) << "the cache differs from another table's";
      const auto out = attend(*k, format, s, cache, queries, first, count, kAttendRows, s.num_keys);
      std::vector<std::vector<float>> weights;
      EXPECT_TRUE(
          same_bits(out, attend(*k, format, s, cache, queries, first, count, kAttendRows, s.num_keys, &weights)));
      compare(format, s, cache, queries, first, count, out, weights);
      if (own_order(k, format)) continue;
      if (fused.empty()) fused = out;
      EXPECT_TRUE(same_bits(out, fused)) << "differs from another table with fused multiply-add";
    }
    if (HasFailure()) return;
  }
}

TEST_P(Attention, SameBitsInAnyGroupingAndChunking) {
  const FlushDenormals flush;
  const KvFormat format = GetParam();
  for (const Shape& s : shapes()) {
    const auto queries = random_row(s.num_keys * s.group * s.head_dim, 14, 1.0f);
    const int64_t vectors = s.num_keys * s.group, count = tested_vectors(s), first = vectors - count;
    for (const Kernels* k : tables()) {
      SCOPED_TRACE(testing::Message() << k->name << ", " << s);
      Cache cache(*k, format, s);
      cache.append(0, s.num_keys);
      const auto alone = attend(*k, format, s, cache, queries, first, count, 1, s.num_keys);
      for (int together : {2, 3, 4, 5, 11, 16})
        EXPECT_TRUE(same_bits(alone, attend(*k, format, s, cache, queries, first, count, together, s.num_keys)))
            << together << " vectors together";
      if (!s.causal) continue;
      Cache growing(*k, format, s);  // one token at a time: later ones are not in the cache yet
      std::vector<float> grown;
      for (int64_t t = 0; t < s.num_keys; ++t) {
        growing.append(t, t + 1);
        if ((t + 1) * s.group <= first) continue;
        const auto out = attend(*k, format, s, growing, queries, t * s.group, s.group, kAttendRows, t + 1);
        grown.insert(grown.end(), out.begin(), out.end());
      }
      grown.erase(grown.begin(), grown.end() - count * s.head_dim);
      EXPECT_TRUE(same_bits(alone, grown)) << "decoded token by token";
    }
    if (HasFailure()) return;
  }
}

// Values of every size, denormals, equal scores and huge ones: where a sloppy order or a missing flush would show.
TEST_P(Attention, SameBitsAtTheEdges) {
  const FlushDenormals flush;
  const KvFormat format = GetParam();
  for (float scale : {1e-20f, 3e-19f, 1e-38f, 1e-40f, 0.0f, 1e4f, 1e15f}) {
    const Shape s = {64, 5, 75};
    auto queries = random_row(s.num_keys * s.group * s.head_dim, 15, scale);
    std::vector<float> fused;
    for (const Kernels* k : tables()) {
      if (is_scalar(k)) continue;
      SCOPED_TRACE(testing::Message() << k->name << ", scale " << scale);
      Cache cache(*k, format, s);
      for (size_t i = 0; i < cache.values.size(); ++i) cache.values[i] *= i % 3 ? scale : 1e-30f * scale;
      for (float& x : cache.keys) x *= scale;
      cache.append(0, s.num_keys);
      const int64_t count = s.num_keys * s.group;
      const auto out = attend(*k, format, s, cache, queries, 0, count, kAttendRows, s.num_keys);
      if (fused.empty() && !own_order(k, format)) fused = out;
      EXPECT_TRUE(own_order(k, format) || same_bits(out, fused));
      EXPECT_TRUE(same_bits(out, attend(*k, format, s, cache, queries, 0, count, 1, s.num_keys)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(KvFormats, Attention,
                         testing::Values(KvFormat::f32, KvFormat::bf16, KvFormat::f16, KvFormat::i8),
                         [](const auto& info) {
                           const char* names[] = {"f32", "bf16", "f16", "i8"};
                           return names[int(info.param)];
                         });

// What the formats cost against keys and values that are not rounded at all, over many outputs: root mean squares.
TEST(AttentionError, OfTheFormats) {
  const FlushDenormals flush;
  const Shape s = {64, 2, 200};
  const auto queries = random_row(s.num_keys * s.group * s.head_dim, 16, 1.0f);
  const int64_t count = s.num_keys * s.group;
  const std::pair<KvFormat, double> bounds[] = {
      {KvFormat::f32, 1e-6}, {KvFormat::f16, 1e-3}, {KvFormat::bf16, 8e-3}, {KvFormat::i8, 2e-2}};
  for (const Kernels* k : tables()) {
    std::vector<float> exact;
    for (const auto& [format, bound] : bounds) {
      Cache cache(*k, format, s);
      cache.append(0, s.num_keys);
      const auto out = attend(*k, format, s, cache, queries, 0, count, kAttendRows, s.num_keys);
      if (exact.empty()) exact = out;
      double error = 0, size = 0;
      for (size_t i = 0; i < out.size(); ++i) {
        error += std::pow(double(out[i]) - double(exact[i]), 2);
        size += std::pow(double(exact[i]), 2);
      }
      EXPECT_LT(std::sqrt(error / size), bound) << k->name << ", format " << int(format);
    }
  }
}

// A key or value that is not a number shows in what sees it, and nowhere else.
TEST(AttentionError, NotANumberStaysInSight) {
  const FlushDenormals flush;
  const Shape s = {20, 1, 40};
  const auto queries = random_row(s.num_keys * s.head_dim, 17, 1.0f);
  for (const Kernels* k : tables())
    for (float bad : {NAN, INFINITY, -INFINITY})
      for (bool in_keys : {false, true}) {
        SCOPED_TRACE(testing::Message() << k->name << ", " << bad << (in_keys ? " in keys" : " in values"));
        Cache cache(*k, KvFormat::i8, s), good(*k, KvFormat::i8, s);
        (in_keys ? cache.keys : cache.values)[size_t(36 * s.head_dim + 3)] = bad;
        cache.append(0, s.num_keys);
        good.append(0, s.num_keys);
        auto out = attend(*k, KvFormat::i8, s, cache, queries, 0, s.num_keys, kAttendRows, s.num_keys);
        auto want = attend(*k, KvFormat::i8, s, good, queries, 0, s.num_keys, kAttendRows, s.num_keys);
        for (size_t i = size_t(36 * s.head_dim); i < out.size(); ++i) EXPECT_TRUE(std::isnan(out[i])) << i;
        out.resize(size_t(36 * s.head_dim));
        want.resize(out.size());
        EXPECT_TRUE(same_bits(out, want));
      }
}

TEST(Dispatch, NamesAndTables) {
  const auto compiled = compiled_kernels(), available = available_kernels();
  ASSERT_EQ(compiled.back(), "scalar");
  ASSERT_EQ(available.back(), "scalar");
  for (const std::string& name : compiled) {
    const Kernels* k = kernels_by_name(name.c_str());
    const bool runs = std::find(available.begin(), available.end(), name) != available.end();
    EXPECT_EQ(k != nullptr, runs) << name;
    if (k) {
      EXPECT_EQ(k->name, name);
    }
  }
  EXPECT_EQ(kernels_by_name("sse9"), nullptr);
}

}  // namespace
}  // namespace test
}  // namespace pyllm
