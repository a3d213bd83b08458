// Small random networks, and sequences that are fed through an executor by hand.
#pragma once
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "executor.h"

namespace pyllm {
namespace test {

// Builds programs op by op. Widths divide by nothing on purpose.
struct ProgramBuilder {
  explicit ProgramBuilder(Format format) : format(format) {
    p.kv_format = format == Format::bf16 ? KvFormat::bf16 : KvFormat::f32;
    begin("step", 2);
  }
  void begin(const std::string& name, int layers) {
    p.routines.push_back({name, {p.kv_format, layers, 2, 12}, 71, 200});
  }
  Routine& r() { return p.routines.back(); }
  void op(Op one) { r().ops.push_back(std::move(one)); }
  int buffer(int64_t cols, Rows rows = Rows::T) {
    r().buffers.push_back({rows, cols});
    return int(r().buffers.size()) - 1;
  }
  int matrix(std::vector<int64_t> parts, int64_t k, bool bias = false, bool gated = false, bool packed = true) {
    p.matrices.push_back({"matrix " + std::to_string(p.matrices.size()),
                          {packed || format <= Format::f16 ? format : Format::f32, std::move(parts), k, gated, packed},
                          bias});
    return int(p.matrices.size()) - 1;
  }
  int vector(int64_t n) {
    p.vectors.push_back(n);
    return int(p.vectors.size()) - 1;
  }
  const Buffer& at(int b) const { return p.routines.back().buffers[size_t(b)]; }
  int cols(int b) const { return int(at(b).cols); }
  int norm(int x, bool rms, int residual = -1) {
    const int out = buffer(cols(x), at(x).rows);
    op(Norm{out, x, rms, vector(cols(x)), rms ? -1 : vector(cols(x)), 1e-5f, residual});
    return out;
  }
  int linear(int x, int weight, Activation activation = Activation::none, int residual = -1) {
    const int out = buffer(p.matrices[size_t(weight)].shape.outputs(), at(x).rows);
    op(Linear{out, x, weight, activation, residual});
    return out;
  }
  int head_linear(int x, int64_t begin, int heads, int64_t outputs, int64_t inputs, bool bias) {
    const int out = buffer(heads * outputs, at(x).rows);
    HeadLinear o{out, x, begin, {}};
    for (int h = 0; h < heads; h++) o.weights.push_back(matrix({outputs}, inputs, bias));
    op(std::move(o));
    return out;
  }
  int experts(int x, int count, int top_k, int64_t width, int64_t shared_width, int residual) {
    const int64_t d = cols(x);
    const int router = linear(x, matrix({count + (shared_width > 0)}, d)), out = buffer(d);
    Experts o{out, x, router, {}, {}, -1, -1, top_k, Activation::silu, shared_width == 0, residual, -1};
    for (int e = 0; e < count; e++) {
      o.gate_up.push_back(matrix({width, width}, d, e % 2, true));
      o.down.push_back(matrix({d}, width, e % 2));
    }
    if (shared_width > 0) {
      o.shared_gate_up = matrix({shared_width, shared_width}, d, false, true);
      o.shared_down = matrix({d}, shared_width);
    }
    o.hidden = buffer(ExpertShape(p, o).columns(top_k));
    op(std::move(o));
    return out;
  }
  int attention(int qkv, int layer, int rope, int64_t window = 0) {
    const int out = buffer(4 * r().kv.head_dim);
    op(Attention{out, qkv, layer, 4, rope, 0.3f, false, window, 0.0f});
    return out;
  }
  Program finish(int x, int head) {
    const int last = buffer(cols(x), Rows::R);
    op(Select{last, x});
    r().output = linear(norm(last, true), head);
    return p;
  }
  Program p;
  Format format;  // of packed matrices
};

// Rotary positions, RMS norms, gated feed-forward, tied head.
inline Program llama(Format format) {
  ProgramBuilder b(format);
  const int64_t d = 40, f = 52;
  const int table = b.matrix({71}, d), rope = b.buffer(12);
  int x = b.buffer(d);
  b.op(Embed{x, table, -1, 0, 1.5f});
  b.op(Rotary{rope, {1.0f, 0.3f, 0.1f, 0.03f, 0.01f, 0.003f}, 1.0f});
  for (int layer = 0; layer < 2; layer++) {
    const int qkv = b.linear(b.norm(x, true), b.matrix({48, 24, 24}, d, layer == 1));
    x = b.linear(b.attention(qkv, layer, rope), b.matrix({d}, 48), Activation::none, x);
    const int h = b.linear(b.norm(x, true), b.matrix({f, f}, d, false, true), Activation::silu);
    x = b.linear(h, b.matrix({d}, f), Activation::none, x);
  }
  return b.finish(x, table);
}

// Learned positions, layer norms with bias, attention beside the feed-forward on one norm, a window, an own head.
inline Program parallel(Format format) {
  ProgramBuilder b(format);
  const int64_t d = 36, f = 100;
  int x = b.buffer(d);
  const int table = b.matrix({71}, d, false, false, false);
  const int positions = b.matrix({202}, d, false, false, false);
  b.op(Embed{x, table, positions, 2, 1.0f});
  for (int layer = 0; layer < 2; layer++) {
    const int h = b.norm(x, false);
    const int qkv = b.linear(h, b.matrix({96}, d, true));
    const int up = b.linear(h, b.matrix({f}, d, true), Activation::gelu_tanh);
    const int attended = b.linear(b.attention(qkv, layer, -1, 9), b.matrix({d}, 48, true), Activation::none, x);
    x = b.linear(up, b.matrix({d}, f, true), Activation::none, attended);
  }
  return b.finish(x, b.matrix({71}, d));
}

// Heads that are whole panels, so that two workers own one kv head each; norms after, read as residuals too.
inline Program whole_heads(Format format) {
  ProgramBuilder b(format);
  b.r().kv.head_dim = 64;
  const int64_t d = 72;
  const int table = b.matrix({71}, d), rope = b.buffer(12);
  int x = b.buffer(d);
  b.op(Embed{x, table, -1, 0, 1.0f});
  b.op(Rotary{rope, {1.0f, 0.3f, 0.1f, 0.03f, 0.01f, 0.003f}, 1.0f});
  for (int layer = 0; layer < 2; layer++) {
    const int qkv = b.linear(x, b.matrix({256, 128, 128}, d, true));
    const int attended = b.linear(b.attention(qkv, layer, rope), b.matrix({d}, 256));
    x = b.norm(attended, false, x);
    const int h = b.linear(x, b.matrix({100}, d, true), Activation::gelu);
    x = b.norm(b.linear(h, b.matrix({d}, 100), Activation::none, x), false);
  }
  return b.finish(x, table);
}

// What the other two lack: norms of heads, biases of scores by distance, a matrix a head, a norm with a residual, scale
// and cap, two mixtures of experts, one with a shared expert.
inline Program mixture(Format format) {
  ProgramBuilder b(format);
  const int64_t d = 40;
  const int table = b.matrix({71}, d);
  int x = b.buffer(d);
  b.op(Embed{x, table, -1, 0, 1.0f});
  for (int layer = 0; layer < 2; layer++) {
    const int qkv = b.linear(b.norm(x, true), b.matrix({96}, d)), normed = b.buffer(96);
    b.op(HeadNorm{normed, qkv, true, {{0, 12, 4, b.vector(12), -1}, {48, 12, 2, b.vector(24), -1}}, 1e-5f});
    const int attended = b.attention(normed, layer, -1);
    ScoreBias& bias = std::get<Attention>(b.r().ops.back()).bias;
    if (layer == 0) bias.slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
    else bias = {b.vector(4 * 30), -29, 30, {}};
    const int headed = b.head_linear(attended, 7, 3 - layer, layer == 0 ? 70 : 64, 12, layer == 0);
    const int out = b.linear(headed, b.matrix({d}, b.cols(headed)));
    std::get<Linear>(b.r().ops.back()).scale = 0.7f;
    x = b.norm(out, false, x);
    x = b.experts(b.norm(x, true), 5 - layer, 2 + layer, 36, layer == 0 ? 100 : 0, x);
  }
  b.finish(x, table);
  std::get<Linear>(b.r().ops.back()).softcap = 3.0f;
  return b.p;
}

// An encoder whose rows see each other, with its sources kept for a decoder that shares its table.
inline Program translator(Format format) {
  ProgramBuilder b(format);
  b.p.cross = {b.p.kv_format, 2, 3, 8};
  b.r().name = "encode";
  b.r().kv.layers = 1;
  const int64_t d = 40;
  const int table = b.matrix({71}, d), types = b.matrix({3}, d, false, false, false);
  int x = b.buffer(d);
  b.op(Embed{x, table, -1, 0, 1.0f, types});
  for (int layer = 0; layer < 2; layer++) {
    const int qkv = b.linear(x, b.matrix({96}, d, true));
    const int attended = b.attention(qkv, 0, -1, layer == 0 ? 0 : 20);
    Attention& op = std::get<Attention>(b.r().ops.back());
    op.causal = false;
    if (layer == 0) op.bias = {b.vector(4 * 81), -40, 81, {}};
    x = b.norm(b.linear(attended, b.matrix({d}, 48), Activation::none, x), false);
  }
  for (int layer = 0; layer < 2; layer++) b.op(StoreCross{b.linear(x, b.matrix({48}, d)), layer});
  b.r().output = b.buffer(d, Rows::R);
  b.op(Select{b.r().output, x});

  b.begin("step", 2);
  x = b.buffer(d);
  b.op(Embed{x, table, -1, 0, 1.0f});
  for (int layer = 0; layer < 2; layer++) {
    const int qkv = b.linear(b.norm(x, true), b.matrix({96}, d));
    x = b.linear(b.attention(qkv, layer, -1), b.matrix({d}, 48), Activation::none, x);
    const int q = b.linear(b.norm(x, true), b.matrix({48}, d)), found = b.buffer(48);
    b.op(CrossAttention{found, q, layer, 6, 0.5f});
    x = b.linear(found, b.matrix({d}, 48), Activation::none, x);
  }
  return b.finish(x, table);
}

// Another format for every matmul of a program but those of experts and heads, which have one each.
inline Program mixed(Program program) {
  const Format formats[] = {Format::i8,      Format::bf16,    Format::i4_g32,  Format::f32,     Format::f16,
                            Format::i8_fast, Format::i4_g128, Format::i4z_g32, Format::i4z_g128};
  for (const Op& op : program.routines[0].ops)
    if (const Linear* linear = std::get_if<Linear>(&op))
      program.matrices[size_t(linear->weight)].shape.format = formats[size_t(linear->weight) % 9];
  return program;
}

// Weights of formats with zero points come as codes.
inline void pack_random_codes(Executor& executor, int matrix, const std::vector<const float*>& biases,
                              std::mt19937& random) {
  const MatrixShape& shape = executor.program().matrices[size_t(matrix)].shape;
  const int64_t group = group_of(shape.format), groups = (shape.k + group - 1) / group;
  std::vector<std::vector<uint8_t>> codes, zeros;
  std::vector<std::vector<float>> scales;
  std::vector<CodeSource> parts;
  const auto bytes = [&](int64_t n) {
    std::vector<uint8_t> values(static_cast<size_t>(n));
    for (uint8_t& value : values) value = uint8_t(random() % 16);
    return values;
  };
  for (int64_t rows : shape.parts) {
    codes.push_back(bytes(rows * shape.k));
    zeros.push_back(bytes(rows * groups));
    scales.emplace_back(size_t(rows * groups), 0.05f);
  }
  for (size_t i = 0; i < codes.size(); i++)
    parts.push_back(
        {codes[i].data(), shape.parts[i], shape.k, shape.k, scales[i].data(), zeros[i].data(), groups, group});
  executor.pack_codes(matrix, parts, biases);
}

// An executor with random weights; the same seed gives the same weights.
inline std::unique_ptr<Executor> load(Program program, int threads, const Kernels& kernels, unsigned seed = 1) {
  auto executor = std::make_unique<Executor>(std::move(program), threads, kernels);
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(-0.4f, 0.4f);
  const auto floats = [&](int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = uniform(random);
    return values;
  };
  const Program& p = executor->program();
  for (size_t i = 0; i < p.matrices.size(); i++) {
    const MatrixShape& shape = p.matrices[i].shape;
    std::vector<std::vector<float>> held;
    std::vector<Source> parts;
    std::vector<const float*> biases;
    for (int64_t rows : shape.parts) held.push_back(floats(rows * shape.k));
    for (size_t j = 0; j < shape.parts.size(); j++)
      parts.push_back({held[j].data(), SourceType::f32, shape.parts[j], shape.k, shape.k, 1});
    std::vector<std::vector<float>> bias;
    for (int64_t rows : shape.parts) bias.push_back(floats(rows));
    if (p.matrices[i].bias)
      for (const std::vector<float>& part : bias) biases.push_back(part.data());
    if (has_zeros(shape.format)) pack_random_codes(*executor, int(i), biases, random);
    else executor->pack(int(i), parts, biases);
  }
  for (size_t i = 0; i < p.vectors.size(); i++) executor->set_vector(int(i), floats(p.vectors[i]).data(), p.vectors[i]);
  return executor;
}

// Sequences by name over one cache.
class Feeder {
 public:
  explicit Feeder(Executor& executor) : executor_(executor), cache_(executor.routine(0).kv, 0) {}

  // The next ids of some sequences; logits of every fed row, [row][vocab].
  std::vector<std::vector<float>> feed(const std::vector<std::pair<std::string, std::vector<int32_t>>>& chunks) {
    std::vector<int32_t> ids, positions, starts{0}, context, table, rows;
    const int64_t width = 8;
    for (const auto& [name, chunk] : chunks) {
      std::vector<int32_t>& blocks = blocks_[name];
      for (int32_t id : chunk) {
        const int position = lengths_[name]++;
        if (position % kBlockTokens == 0) blocks.push_back(cache_.allocate());
        rows.push_back(int32_t(ids.size()));
        ids.push_back(id);
        positions.push_back(position);
      }
      starts.push_back(int32_t(ids.size()));
      context.push_back(lengths_[name]);
      for (int64_t i = 0; i < width; i++) table.push_back(size_t(i) < blocks.size() ? blocks[size_t(i)] : -7);
    }
    Batch batch{ids.data(),  positions.data(),       starts.data(),       context.data(),       table.data(),
                rows.data(), int64_t(chunks.size()), int64_t(ids.size()), int64_t(rows.size()), width};
    const int64_t ld = executor_.output_ld(0);
    std::vector<float> logits(size_t(ld) * rows.size());
    executor_.run(0, batch, cache_, nullptr, logits.data());
    std::vector<std::vector<float>> out;
    for (size_t r = 0; r < rows.size(); r++)
      out.emplace_back(logits.begin() + int64_t(r) * ld, logits.begin() + int64_t(r) * ld + executor_.output_cols(0));
    return out;
  }
  KvCache& cache() { return cache_; }

 private:
  Executor& executor_;
  KvCache cache_;
  std::map<std::string, std::vector<int32_t>> blocks_;
  std::map<std::string, int> lengths_;
};

inline std::vector<int32_t> some_ids(int count, int seed) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; i++) ids.push_back((i * 31 + seed * 17 + i * i % 13) % 71);
  return ids;
}

}  // namespace test
}  // namespace pyllm
