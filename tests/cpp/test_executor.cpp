// The executor: the same bits however a text is fed, wrong batches refused.
// That the numbers are the right ones is tested from Python, against the float64 interpreter.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <thread>

#include "errors.h"
#include "executor.h"
#include "kernel_test.h"
#include "toy_program.h"

namespace pyllm {
namespace test {
namespace {

using Rows2 = std::vector<std::vector<float>>;

struct Setting {
  const char* name;
  Program (*recorded)(Format);
  Format format;
  KvFormat kv;
  Program program() const {
    Program p = recorded(format);
    p.kv_format = kv;
    for (Routine& routine : p.routines) routine.kv.format = kv;
    return p;
  }
};
// Several formats at once.
Program mixed_llama(Format format) { return mixed(llama(format)); }
Program mixed_mixture(Format format) { return mixed(mixture(format)); }
Program mixed_heads(Format format) { return mixed(whole_heads(format)); }

const Setting kSettings[] = {
    {"llama f32", llama, Format::f32, KvFormat::f32},
    {"llama bf16", llama, Format::bf16, KvFormat::bf16},
    {"llama f32, int8 keys", llama, Format::f32, KvFormat::i8},
    {"parallel f32", parallel, Format::f32, KvFormat::f32},
    {"parallel bf16", parallel, Format::bf16, KvFormat::bf16},
    {"parallel bf16, int8 keys", parallel, Format::bf16, KvFormat::i8},
    {"mixture f32", mixture, Format::f32, KvFormat::f32},
    {"mixture bf16", mixture, Format::bf16, KvFormat::bf16},
    {"mixture bf16, float16 keys", mixture, Format::bf16, KvFormat::f16},
    {"whole heads f32", whole_heads, Format::f32, KvFormat::f32},
    {"whole heads bf16, int8 keys", whole_heads, Format::bf16, KvFormat::i8},
    {"llama f16", llama, Format::f16, KvFormat::f16},
    {"mixture i8", mixture, Format::i8, KvFormat::i8},
    {"parallel i8 fast", parallel, Format::i8_fast, KvFormat::bf16},
    {"mixture i4 by 32", mixture, Format::i4_g32, KvFormat::bf16},
    {"whole heads i4 by 128", whole_heads, Format::i4_g128, KvFormat::f16},
    {"llama i4 with zeros by 32", llama, Format::i4z_g32, KvFormat::f32},
    {"parallel i4 with zeros by 128", parallel, Format::i4z_g128, KvFormat::i8},
    {"llama bf16x3", llama, Format::f32_bf16x3, KvFormat::f32},
    {"mixed llama", mixed_llama, Format::i8, KvFormat::i8},
    {"mixed mixture", mixed_mixture, Format::i4_g32, KvFormat::bf16},
    {"mixed whole heads", mixed_heads, Format::bf16, KvFormat::f16},
};

void for_each(const std::function<void(const Setting&, const Kernels&)>& body) {
  for (const Kernels* kernels : tables())
    for (const Setting& setting : kSettings) {
      SCOPED_TRACE(std::string(kernels->name) + ", " + setting.name);
      body(setting, *kernels);
    }
}

// Logits of a text fed in chunks of these sizes, the last one repeated.
Rows2 in_chunks(Executor& executor, const std::vector<int32_t>& ids, const std::vector<int>& sizes) {
  Feeder feeder(executor);
  Rows2 all;
  for (size_t at = 0, i = 0; at < ids.size(); i++) {
    const size_t size = std::min(ids.size() - at, size_t(sizes[std::min(i, sizes.size() - 1)]));
    const auto first = ids.begin() + std::ptrdiff_t(at);
    for (auto& row : feeder.feed({{"text", {first, first + std::ptrdiff_t(size)}}})) all.push_back(row);
    at += size;
  }
  return all;
}

TEST(Executor, ChunksAndThreadsDoNotMatter) {
  for_each([](const Setting& setting, const Kernels& kernels) {
    const std::vector<int32_t> ids = some_ids(75, 1);
    const auto one = load(setting.program(), 1, kernels);
    const Rows2 whole = in_chunks(*one, ids, {75});
    for (float logit : whole[74]) ASSERT_TRUE(std::isfinite(logit));
    const std::pair<int, std::vector<std::vector<int>>> ways[] = {
        {1, {{1}, {4}}}, {2, {{75}, {33, 1}}}, {3, {{75}, {2, 5, 40, 3}}}, {5, {{60, 15}}}};
    for (const auto& [threads, divisions] : ways) {
      SCOPED_TRACE(std::to_string(threads) + " threads");
      const auto executor = load(setting.program(), threads, kernels);
      for (const std::vector<int>& sizes : divisions) ASSERT_TRUE(in_chunks(*executor, ids, sizes) == whole);
    }
  });
}

TEST(Executor, NeighboursDoNotMatter) {
  for_each([](const Setting& setting, const Kernels& kernels) {
    for (int threads : {1, 3}) {
      const auto executor = load(setting.program(), threads, kernels);
      const std::vector<int32_t> a = some_ids(50, 2), b = some_ids(7, 3), c = some_ids(40, 4);
      const Rows2 alone[] = {in_chunks(*executor, a, {50}), in_chunks(*executor, b, {7}),
                             in_chunks(*executor, c, {40})};
      Feeder feeder(*executor);
      const Rows2 first =
          feeder.feed({{"a", {a.begin(), a.begin() + 30}}, {"b", {b.begin(), b.begin() + 5}}, {"c", c}});
      const Rows2 second = feeder.feed({{"b", {b.begin() + 5, b.end()}}, {"a", {a.begin() + 30, a.begin() + 31}}});
      const Rows2 third = feeder.feed({{"a", {a.begin() + 31, a.end()}}});
      for (int i = 0; i < 30; i++) ASSERT_TRUE(first[size_t(i)] == alone[0][size_t(i)]);
      for (int i = 0; i < 5; i++) ASSERT_TRUE(first[size_t(30 + i)] == alone[1][size_t(i)]);
      for (int i = 0; i < 40; i++) ASSERT_TRUE(first[size_t(35 + i)] == alone[2][size_t(i)]);
      for (int i = 0; i < 2; i++) ASSERT_TRUE(second[size_t(i)] == alone[1][size_t(5 + i)]);
      ASSERT_TRUE(second[2] == alone[0][30]);
      for (int i = 0; i < 19; i++) ASSERT_TRUE(third[size_t(i)] == alone[0][size_t(31 + i)]);
    }
  });
}

// Few rows, many, and so many that each worker takes whole rows.
TEST(Executor, WaysOfSharingDoNotMatter) {
  for_each([](const Setting& setting, const Kernels& kernels) {
    const auto alone = load(setting.program(), 1, kernels);
    std::vector<std::pair<std::string, std::vector<int32_t>>> texts;
    std::vector<Rows2> expected;
    for (int s = 0; s < 10; s++) {
      texts.push_back({std::to_string(s), some_ids(3 + 9 * s, s)});
      expected.push_back(in_chunks(*alone, texts.back().second, {31}));
    }
    for (int threads : {2, 3}) {
      SCOPED_TRACE(std::to_string(threads) + " threads");
      const auto executor = load(setting.program(), threads, kernels);
      const Rows2 together = Feeder(*executor).feed(texts);
      ASSERT_GE(int64_t(together.size()), threads * kOwnRows);
      size_t at = 0;
      for (const Rows2& rows : expected)
        for (const std::vector<float>& row : rows) ASSERT_TRUE(together[at++] == row) << at;
    }
  });
}

TEST(Executor, Bfloat16IsTheSameOnEveryTableWithFma) {
  for (const Setting& setting : kSettings) {
    if (setting.format != Format::bf16) continue;
    Rows2 expected;
    for (const Kernels* kernels : tables()) {
      if (is_scalar(kernels) || sums_pairs(kernels)) continue;
      const auto executor = load(setting.program(), 2, *kernels);
      const Rows2 found = in_chunks(*executor, some_ids(60, 5), {37, 1});
      if (expected.empty()) expected = found;
      EXPECT_TRUE(found == expected) << kernels->name;
    }
  }
}

TEST(Executor, StepsLargerThanPlannedWork) {
  Program program = parallel(Format::f32);
  program.routines[0].max_positions = 900;
  program.matrices[1].shape.parts[0] = 902;
  const auto executor = load(std::move(program), 2, kernels());
  std::vector<std::pair<std::string, std::vector<int32_t>>> chunks;
  for (int s = 0; s < 9; s++) chunks.push_back({std::to_string(s), some_ids(100, s)});
  const Rows2 large = Feeder(*executor).feed(chunks);
  EXPECT_TRUE(large[250] == in_chunks(*executor, some_ids(100, 2), {100})[50]);
}

// Kernels divide rows into even parts, so a smaller step may need more scratch than a larger one.
TEST(Executor, SmallerStepsFitTheMemoryOfLargerOnes) {
  for (const Kernels* kernels : tables()) {
    SCOPED_TRACE(kernels->name);
    Program program = mixture(Format::bf16);
    program.routines[0].max_positions = 144;
    const auto executor = load(std::move(program), 2, *kernels);
    const Rows2 alone = in_chunks(*executor, some_ids(128, 2), {128});
    for (int texts : {3, 2, 4}) {
      std::vector<std::pair<std::string, std::vector<int32_t>>> chunks;
      for (int s = 0; s < texts; s++) chunks.push_back({std::to_string(s), some_ids(texts == 2 ? 128 : 144, s)});
      const Rows2 all = Feeder(*executor).feed(chunks);
      const bool same = texts != 2 || all[1] == in_chunks(*executor, some_ids(128, 0), {2})[1];
      EXPECT_TRUE(same);
      for (const std::vector<float>& row : all) ASSERT_TRUE(std::isfinite(row[0]));
    }
    EXPECT_TRUE(in_chunks(*executor, some_ids(128, 2), {128}) == alone);
  }
}

TEST(Executor, ThreadsShareOneModel) {
  const auto executor = load(llama(Format::f32), 2, kernels());
  const std::vector<int32_t> ids = some_ids(40, 6);
  const Rows2 expected = in_chunks(*executor, ids, {40});
  std::vector<Rows2> found(3);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < found.size(); t++)
    threads.emplace_back([&, t] { found[t] = in_chunks(*executor, ids, {int(t) * 2 + 1}); });
  for (std::thread& thread : threads) thread.join();
  for (const Rows2& rows : found) EXPECT_TRUE(rows == expected);
}

// A batch of two sequences that is right until a test changes it.
class WrongBatch : public testing::Test {
 public:
  void SetUp() override {
    executor_ = load(llama(Format::f32), 2, kernels());
    cache_ = std::make_unique<KvCache>(executor_->routine(0).kv, 0);
    table_ = {cache_->allocate(), -1, cache_->allocate(), cache_->allocate()};
  }
  // What comes of running it: nothing, or the kind of error.
  void expect(ErrorKind kind, const char* part) {
    try {
      run();
      ADD_FAILURE() << "taken: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
  void run() {
    const Batch batch{
        ids_.data(),  positions_.data(),        starts_.data(),       context_.data(),       table_.data(),
        rows_.data(), int64_t(context_.size()), int64_t(ids_.size()), int64_t(rows_.size()), 2};
    std::vector<float> logits(size_t(executor_->output_ld(0)) * (rows_.size() + 1));
    executor_->run(0, batch, *cache_, nullptr, logits.data());
  }
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<KvCache> cache_;
  std::vector<int32_t> ids_ = {1, 2, 3, 4, 5}, positions_ = {0, 1, 2, 40, 41}, starts_ = {0, 3, 5}, context_ = {3, 42},
                       table_, rows_ = {2, 4};
};

TEST_F(WrongBatch, IsRightBeforeItIsChanged) { run(); }
TEST_F(WrongBatch, WithoutLogits) {
  rows_.clear();
  run();
}
TEST_F(WrongBatch, Ids) {
  ids_[3] = 71;
  expect(ErrorKind::prompt, "got 71 in row 3");
  ids_[3] = -1;
  expect(ErrorKind::prompt, "got -1 in row 3");
}
TEST_F(WrongBatch, Positions) {
  positions_[1] = 5;
  expect(ErrorKind::array, "position 5 after 0");
  positions_ = {-1, 0, 1, 40, 41};
  expect(ErrorKind::array, "position -1");
}
TEST_F(WrongBatch, Context) {
  context_[0] = 4;
  expect(ErrorKind::array, "context 4");
}
TEST_F(WrongBatch, ContextLength) {
  positions_ = {0, 1, 2, 199, 200};
  context_[1] = 201;
  ids_[0] = 99;  // the most telling kind, and both reported
  expect(ErrorKind::context_length, "may have 200 tokens, got 201");
  expect(ErrorKind::context_length, "got 99 in row 0");
}
TEST_F(WrongBatch, TableTooNarrow) {
  positions_ = {0, 1, 2, 70, 71};
  context_[1] = 72;
  expect(ErrorKind::array, "2 blocks for 72 tokens");
}
TEST_F(WrongBatch, Blocks) {
  table_[3] = 1000;
  expect(ErrorKind::array, "block 1000");
  table_[3] = -1;
  expect(ErrorKind::array, "block -1");
}
TEST_F(WrongBatch, SharedBlocksAreNotWritten) {
  cache_->share(table_[2]);  // read only: fine
  run();
  cache_->share(table_[3]);
  expect(ErrorKind::array, "2 references");
}
TEST_F(WrongBatch, Starts) {
  for (const std::vector<int32_t>& starts :
       std::vector<std::vector<int32_t>>{{1, 3, 5}, {0, 3, 4}, {0, 5, 5}, {0, 7, 5}, {0, -1, 5}}) {
    starts_ = starts;
    expect(ErrorKind::array, "starts must");
  }
}
TEST_F(WrongBatch, LogitRows) {
  for (const std::vector<int32_t>& rows : std::vector<std::vector<int32_t>>{{4, 2}, {2, 2}, {5}, {-1}}) {
    rows_ = rows;
    expect(ErrorKind::array, "logit_rows must");
  }
}
TEST_F(WrongBatch, ForeignCache) {
  cache_ = std::make_unique<KvCache>(KvShape{KvFormat::bf16, 2, 2, 12}, 0);
  expect(ErrorKind::array, "another model");
}

}  // namespace
}  // namespace test
}  // namespace pyllm
