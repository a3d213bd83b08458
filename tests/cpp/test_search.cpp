// The row functions of the search on awkward sizes and values: what the Python tests ask for, here under sanitizers.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "search/draw.h"

namespace pyllm {
namespace search {
namespace {

std::vector<float> random_row(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> row(n);
  for (float& x : row) x = normal(random);
  return row;
}

Cuts cuts_of(size_t top_k, double top_p, double min_p) {
  Cuts cuts;
  cuts.top_k = top_k;
  cuts.top_p = top_p;
  cuts.min_p = min_p;
  return cuts;
}

// (maximum, sum) of every block, exactly as long as that.
std::vector<float> summary_of(const std::vector<float>& x) {
  std::vector<float> pairs;
  bool has_nan = false;
  for (size_t at = 0; at < x.size(); at += kBlock) {
    const size_t size = std::min(kBlock, x.size() - at);
    pairs.push_back(kRow.block_max(&x[at], size, &has_nan));
    pairs.push_back(std::isfinite(pairs.back()) ? kRow.block_sum(&x[at], size, pairs.back(), 1.0f) : NAN);
  }
  return pairs;
}

class Search : public ::testing::TestWithParam<RowKernels> {
 public:
  void SetUp() override { kRow = GetParam(); }
  void TearDown() override { kRow = available_row_kernels().back(); }
};

TEST_P(Search, LogSumExpAndBest) {
  for (size_t n : {1, 3, 15, 16, 17, 511, 512, 513, 1025, 5000}) {
    std::vector<float> x = random_row(n, unsigned(n));
    const Row row(x.data(), n);
    double sum = 0.0;
    for (float value : x) sum += std::exp(double(value));
    EXPECT_NEAR(row.log_sum_exp(), std::log(sum), 1e-6) << n;
    const std::vector<float> summary = summary_of(x);
    EXPECT_EQ(Row(x.data(), n, false, 1.0f, summary.data()).log_sum_exp(), row.log_sum_exp()) << n;
    EXPECT_EQ(row.argmax(), size_t(std::max_element(x.begin(), x.end()) - x.begin())) << n;
    for (size_t k : {size_t(1), n / 2 + 1, n, n + 7}) {
      const std::vector<Candidate> best = row.top_k(k);
      ASSERT_EQ(best.size(), std::min(k, n));
      EXPECT_TRUE(std::is_sorted(best.begin(), best.end(), better));
    }
  }
}

TEST_P(Search, OddValuesAreSeenWhereverTheyAre) {
  for (float odd : {float(NAN), float(INFINITY)}) {
    for (size_t at : {0, 15, 511, 512, 1099}) {
      std::vector<float> x = random_row(1100, 5);
      x[at] = odd;
      EXPECT_FALSE(Row(x.data(), x.size()).normal());
      EXPECT_TRUE(std::isnan(Row(x.data(), x.size()).log_sum_exp()));
      EXPECT_LE(Row(x.data(), x.size()).top_k(2000).size(), x.size());
      cut_top_k(x.data(), x.size(), 1000);
      EXPECT_EQ(sample(x.data(), x.size(), cuts_of(3, 0.5, 0.1), 0.5), -1);
    }
  }
}

TEST_P(Search, EveryDrawIsAToken) {
  for (size_t n : {1, 5, 600, 4000}) {
    for (double u : {0.0, 0.3, 1.0 - 0x1p-53}) {
      for (size_t k : {0, 1, 40, 3000}) {
        for (double p : {0.0, 0.4, 1.0}) {
          for (double ratio : {0.0, 0.2, 1.0}) {
            std::vector<float> x = random_row(n, 7);
            for (size_t i = 0; i + 1 < n; i += 2) x[i] = -INFINITY;
            const Cuts cuts = cuts_of(k, p, ratio);
            const int32_t token = sample(x.data(), n, cuts, u);
            ASSERT_TRUE(token >= 0 && size_t(token) < n);
            EXPECT_TRUE(std::isfinite(x[size_t(token)]));
            const std::vector<float> summary = summary_of(x);
            EXPECT_EQ(sample(x.data(), n, cuts, u, summary.data()), token);
            Weights own, other;
            ASSERT_TRUE(own.set(x.data(), n, cuts) && other.set(random_row(n, 8).data(), n, Cuts()));
            EXPECT_EQ(own.choices.at(u), token);
            EXPECT_GT(own.probability(token), 0.0);
            EXPECT_GT(own.probability(own.beyond(other, u)), other.probability(own.beyond(other, u)) - 1e-12);
            EXPECT_EQ(own.beyond(own, u), token);  // nothing beyond itself
          }
        }
      }
    }
  }
}

// Rows of many shapes: flat, peaked, few distinct values, partly ruled out, all equal.
std::vector<float> shaped_row(size_t n, int shape) {
  std::vector<float> x = random_row(n, unsigned(n) + unsigned(shape));
  for (size_t i = 0; i < n; ++i) {
    if (shape == 1) x[i] *= 0.2f;
    if (shape == 2) x[i] = std::floor(x[i]) / 2;
    if (shape == 3 && i % 3 != 1 && n > 1) x[i] = -INFINITY;
    if (shape == 4) x[i] = -2.5f;
  }
  if (shape == 5) x[n / 2] += 30.0f;
  return x;
}

TEST_P(Search, NucleusIsThatOfAStableSort) {
  for (size_t n : {1, 63, 64, 65, 1000, 8191, 8256, 30011}) {
    for (int shape = 0; shape < 6; ++shape) {
      for (double p : {0.0, 0.3, 0.9, 0.9995}) {
        const std::vector<float> x = shaped_row(n, shape);
        const float scale = shape == 0 ? 0.7f : 1.0f;
        const Row row(x.data(), n, true, scale);
        std::vector<Candidate> order;
        for (size_t i = 0; i < n; ++i) order.push_back({x[i], int32_t(i)});
        std::stable_sort(order.begin(), order.end(), better);
        double total = 0.0, before = 0.0;
        for (const Candidate& c : order) total += std::exp((double(c.value) - row.max) * scale);
        size_t least = 0, most = 0;  // how many are left, give or take the rounding of float32 sums
        for (const Candidate& c : order) {
          least += least == 0 || before < (p - 1e-6) * total;
          most += most == 0 || (before < (p + 1e-6) * total && c.value > -INFINITY);
          before += std::exp((double(c.value) - row.max) * scale);
        }
        const Nucleus nucleus(row, p);
        std::vector<Candidate> kept = nucleus.candidates();
        EXPECT_TRUE(std::is_sorted(kept.begin(), kept.end(), [](auto& a, auto& b) { return a.id < b.id; }));
        std::sort(kept.begin(), kept.end(), better);
        ASSERT_TRUE(kept.size() >= least && kept.size() <= most) << n << ' ' << shape << ' ' << p;
        for (size_t i = 0; i < kept.size(); ++i) ASSERT_EQ(kept[i].id, order[i].id) << n << ' ' << shape << ' ' << p;
        Choices all;
        all.all = nucleus.candidates();
        all.weigh(row.max, 1.0 / scale);
        for (double u : {0.0, 0.2, 0.7, 1.0 - 0x1p-53}) EXPECT_EQ(nucleus.at(1.0 / scale, u), all.at(u));
      }
    }
  }
}

TEST_P(Search, DrawsWithoutReplacementAreDistinct) {
  for (size_t n : {3, 700}) {
    const std::vector<float> x = random_row(n, 9);
    std::vector<double> uniforms;
    for (uint32_t i = 0; i < 20; ++i) uniforms.push_back(philox_uniform(1, i, 0, 0, 0));
    const std::vector<int32_t> drawn = draw_distinct(Row(x.data(), n), uniforms.size(), uniforms.data());
    EXPECT_EQ(drawn.size(), std::min(n, uniforms.size()));
    EXPECT_EQ(std::set<int32_t>(drawn.begin(), drawn.end()).size(), drawn.size());
  }
}

INSTANTIATE_TEST_SUITE_P(EveryKernel, Search, ::testing::ValuesIn(available_row_kernels()));

}  // namespace
}  // namespace search
}  // namespace pyllm
