// Two routines over one set of weights: an encoder that stores its sources, a decoder that attends to them. The same
// bits whatever ran beside a text; wrong batches refused; captures that change nothing.
#include <gtest/gtest.h>

#include <cmath>

#include "errors.h"
#include "kernel_test.h"
#include "toy_program.h"

namespace pyllm {
namespace test {
namespace {

using Rows2 = std::vector<std::vector<float>>;
constexpr int kEncode = 0, kStep = 1;

// A batch that owns its arrays.
struct OwnBatch {
  std::vector<int32_t> ids, positions, starts{0}, context, table, rows, types, cross_table, cross_context;
  int64_t width = 4;
  void add(const std::vector<int32_t>& text, int first, const std::vector<int32_t>& blocks) {
    for (size_t i = 0; i < text.size(); i++) {
      rows.push_back(int32_t(ids.size()));
      types.push_back(int32_t(i % 3));
      ids.push_back(text[i]);
      positions.push_back(first + int(i));
    }
    starts.push_back(int32_t(ids.size()));
    context.push_back(first + int(text.size()));
    fill(table, blocks);
  }
  void add_source(const std::vector<int32_t>& blocks, int tokens) {
    fill(cross_table, blocks);
    cross_context.push_back(tokens);
  }
  void fill(std::vector<int32_t>& to, const std::vector<int32_t>& blocks) const {
    for (int64_t i = 0; i < width; i++) to.push_back(size_t(i) < blocks.size() ? blocks[size_t(i)] : -7);
  }
  Batch view() const {
    const auto or_null = [](const std::vector<int32_t>& v) { return v.empty() ? nullptr : v.data(); };
    return {ids.data(),
            positions.data(),
            starts.data(),
            context.data(),
            table.data(),
            rows.data(),
            int64_t(context.size()),
            int64_t(ids.size()),
            int64_t(rows.size()),
            width,
            or_null(types),
            or_null(cross_table),
            or_null(cross_context),
            width};
  }
};

class Translator {
 public:
  explicit Translator(Executor& executor)
      : executor_(executor),
        own_(executor.routine(kEncode).kv, 0),
        cache_(executor.routine(kStep).kv, 0),
        cross_(executor.program().cross, 0) {}

  // Output rows of all texts, one after the other; keeps their sources.
  Rows2 encode(const std::vector<std::vector<int32_t>>& texts, Capture* capture = nullptr) {
    OwnBatch batch;
    for (const std::vector<int32_t>& text : texts) {
      batch.add(text, 0, allocate(own_, text.size()));
      sources_.push_back({allocate(cross_, text.size()), int(text.size())});
      batch.add_source(sources_.back().first, sources_.back().second);
    }
    return run(kEncode, batch, own_, capture);
  }
  // Texts from position 0 on, each with one of the sources.
  Rows2 step(const std::vector<std::vector<int32_t>>& texts, const std::vector<size_t>& sources,
             Capture* capture = nullptr) {
    OwnBatch batch;
    for (size_t i = 0; i < texts.size(); i++) {
      batch.add(texts[i], 0, allocate(cache_, texts[i].size()));
      batch.add_source(sources_[sources[i]].first, sources_[sources[i]].second);
    }
    return run(kStep, batch, cache_, capture);
  }
  Rows2 run(int routine, const OwnBatch& batch, KvCache& cache, Capture* capture) {
    const int64_t ld = executor_.output_ld(routine);
    std::vector<float> out(size_t(ld) * batch.rows.size());
    executor_.run(routine, batch.view(), cache, &cross_, out.data(), capture);
    Rows2 rows;
    for (size_t r = 0; r < batch.rows.size(); r++)
      rows.emplace_back(out.begin() + int64_t(r) * ld, out.begin() + int64_t(r) * ld + executor_.output_cols(routine));
    return rows;
  }
  static std::vector<int32_t> allocate(KvCache& cache, size_t tokens) {
    std::vector<int32_t> blocks;
    for (size_t t = 0; t < tokens; t += kBlockTokens) blocks.push_back(cache.allocate());
    return blocks;
  }
  Executor& executor_;
  KvCache own_, cache_, cross_;
  std::vector<std::pair<std::vector<int32_t>, int>> sources_;
};

Rows2 joined(const std::vector<Rows2>& parts) {
  Rows2 all;
  for (const Rows2& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST(Sources, NeighboursAndThreadsDoNotMatter) {
  const std::vector<std::vector<int32_t>> texts = {some_ids(70, 1), some_ids(3, 2), some_ids(33, 3), some_ids(100, 4)};
  const std::vector<std::vector<int32_t>> outputs = {some_ids(5, 5), some_ids(1, 6), some_ids(40, 7), some_ids(1, 8),
                                                     some_ids(2, 9)};
  const std::vector<size_t> sources = {0, 0, 0, 1, 3};  // the first three share one, as beams do
  for (Format format : {Format::f32, Format::bf16})
    for (const Kernels* kernels : tables()) {
      SCOPED_TRACE(std::string(kernels->name) + (format == Format::f32 ? ", f32" : ", bf16"));
      Rows2 encoded, stepped;
      for (int threads : {1, 2, 3}) {
        const auto executor = load(translator(format), threads, *kernels);
        Translator together(*executor), alone(*executor);
        const Rows2 all = together.encode(texts), out = together.step(outputs, sources);
        for (float value : out.back()) ASSERT_TRUE(std::isfinite(value));
        std::vector<Rows2> each, each_out;
        for (const auto& text : texts) each.push_back(alone.encode({text}));
        for (size_t i = 0; i < outputs.size(); i++) each_out.push_back(alone.step({outputs[i]}, {sources[i]}));
        ASSERT_TRUE(joined(each) == all);
        ASSERT_TRUE(joined(each_out) == out);
        if (encoded.empty()) encoded = all, stepped = out;
        ASSERT_TRUE(encoded == all && stepped == out) << threads;
      }
    }
}

TEST(Sources, AnEncodersRowsSeeTheWholeText) {
  const auto executor = load(translator(Format::f32), 2, kernels());
  Translator translator(*executor);
  std::vector<int32_t> text = some_ids(10, 1), other = text;
  other.back() = (other.back() + 1) % 71;
  EXPECT_FALSE(translator.encode({text})[0] == translator.encode({other})[0]);
}

TEST(Sources, CapturesChangeNothing) {
  for (Format format : {Format::f32, Format::bf16})
    for (const Kernels* kernels : tables()) {
      SCOPED_TRACE(kernels->name);
      const auto executor = load(translator(format), 2, *kernels);
      Translator translator(*executor);
      const Rows2 encoded = translator.encode({some_ids(50, 1), some_ids(2, 2)});
      const Rows2 stepped = translator.step({some_ids(3, 3), {5}}, {0, 1});
      for (int routine : {kEncode, kStep}) {
        const Routine& r = executor->routine(routine);
        Capture capture;
        for (const Op& op : r.ops) {
          if (writes(op) >= 0) capture.buffers.push_back(writes(op));
          if (std::holds_alternative<Attention>(op) || std::holds_alternative<CrossAttention>(op))
            capture.attentions.push_back(writes(op));
        }
        if (routine == kEncode) {
          EXPECT_TRUE(translator.encode({some_ids(50, 1), some_ids(2, 2)}, &capture) == encoded);
        } else {
          EXPECT_TRUE(translator.step({some_ids(3, 3), {5}}, {0, 1}, &capture) == stepped);
        }
        const Rows2& expected = routine == kEncode ? encoded : stepped;
        const Array& last = capture.values.back();
        ASSERT_EQ(last.shape[0], int64_t(expected.size()));
        for (size_t i = 0; i < expected.size(); i++)
          EXPECT_TRUE(std::equal(expected[i].begin(), expected[i].end(), last.floats() + int64_t(i) * last.shape[1]));
        ASSERT_EQ(capture.weights.size(), capture.attentions.size());
        for (const std::vector<Array>& op : capture.weights)
          for (const Array& weights : op)
            for (int64_t row = 0; row < weights.shape[0] * weights.shape[1]; row++) {
              double sum = 0;
              for (int64_t key = 0; key < weights.shape[2]; key++)
                sum += weights.floats()[row * weights.shape[2] + key];
              EXPECT_NEAR(sum, 1.0, 1e-5);
            }
      }
      Capture wrong;
      wrong.attentions = {executor->routine(kStep).output};
      EXPECT_THROW(translator.step({{5}}, {0}, &wrong), Error);
      for (const Op& op : executor->routine(kStep).ops)
        if (std::holds_alternative<CrossAttention>(op)) wrong.attentions = {writes(op), writes(op)};
      EXPECT_THROW(translator.step({{5}}, {0}, &wrong), Error);
    }
}

class WrongSources : public testing::Test {
 public:
  void SetUp() override {
    executor_ = load(translator(Format::f32), 2, kernels());
    translator_ = std::make_unique<Translator>(*executor_);
    translator_->encode({some_ids(40, 1)});
    source_ = translator_->sources_[0].first;
    encode_.add(some_ids(40, 2), 0, Translator::allocate(translator_->own_, 40));
    encode_.add_source(Translator::allocate(translator_->cross_, 40), 40);
    step_.add({1, 2}, 0, Translator::allocate(translator_->cache_, 2));
    step_.add_source(source_, 40);
  }
  void expect(int routine, const OwnBatch& batch, ErrorKind kind, const char* part) {
    KvCache& cache = routine == kEncode ? translator_->own_ : translator_->cache_;
    try {
      translator_->run(routine, batch, cache, nullptr);
      ADD_FAILURE() << "taken: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<Translator> translator_;
  std::vector<int32_t> source_;
  OwnBatch encode_, step_;
};

TEST_F(WrongSources, AreRightBeforeTheyAreChanged) {
  translator_->run(kEncode, encode_, translator_->own_, nullptr);
  translator_->run(kStep, step_, translator_->cache_, nullptr);
}
TEST_F(WrongSources, Missing) {
  OwnBatch batch = step_;
  batch.cross_context.clear();
  expect(kStep, batch, ErrorKind::array, "cross_context");
  batch.cross_table.clear();
  expect(kStep, batch, ErrorKind::array, "cross_table");
  std::vector<float> out(1000);
  EXPECT_THROW(executor_->run(kStep, step_.view(), translator_->cache_, nullptr, out.data()), Error);
}
TEST_F(WrongSources, Lengths) {
  step_.cross_context[0] = 0;
  expect(kStep, step_, ErrorKind::array, "one token or more");
  step_.cross_context[0] = 129;
  expect(kStep, step_, ErrorKind::array, "4 blocks for 129");
  step_.cross_context[0] = 65;  // one block more than it has
  expect(kStep, step_, ErrorKind::array, "got block -7");
  encode_.cross_context[0] = 39;
  expect(kEncode, encode_, ErrorKind::array, "got 39 for 40");
}
TEST_F(WrongSources, Blocks) {
  step_.cross_table[1] = 1000;
  expect(kStep, step_, ErrorKind::array, "cross block");
  translator_->cross_.share(encode_.cross_table[0]);
  expect(kEncode, encode_, ErrorKind::array, "2 references");
}
TEST_F(WrongSources, PartsOfATextForAnEncoder) {
  OwnBatch batch;
  batch.add({1, 2}, 3, Translator::allocate(translator_->own_, 5));
  batch.add_source(Translator::allocate(translator_->cross_, 5), 5);
  expect(kEncode, batch, ErrorKind::array, "must be whole");
}
TEST_F(WrongSources, TokenTypes) {
  encode_.types[7] = 3;
  expect(kEncode, encode_, ErrorKind::prompt, "got 3 in row 7");
}
TEST_F(WrongSources, Caches) {
  const auto shape = [](Executor& e) { return e.routine(kStep).kv; };
  KvCache foreign(shape(*executor_), 0);
  std::vector<float> out(100 * 100);
  EXPECT_THROW(executor_->run(kEncode, encode_.view(), foreign, &translator_->cross_, out.data()), Error);
  EXPECT_THROW(executor_->run(kStep, step_.view(), translator_->cache_, &foreign, out.data()), Error);
  EXPECT_THROW(executor_->run(2, step_.view(), translator_->cache_, &foreign, out.data()), Error);
}
TEST_F(WrongSources, AnEncoderByItselfNeedsNoSources) {
  encode_.cross_table.clear();
  encode_.cross_context.clear();
  std::vector<float> out(size_t(executor_->output_ld(kEncode)) * 40);
  executor_->run(kEncode, encode_.view(), translator_->own_, nullptr, out.data());
  EXPECT_TRUE(std::isfinite(out[0]) && out[0] != 0.0f);
}

}  // namespace
}  // namespace test
}  // namespace pyllm
