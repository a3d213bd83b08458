// Programs and their plans: what is refused, memory without overlaps, barriers where they are needed and only there.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <stdexcept>

#include "errors.h"
#include "executor.h"
#include "kernel_test.h"
#include "plan.h"
#include "toy_program.h"

namespace pyllm {
namespace test {
namespace {

TEST(Program, ProblemsAreListedTogether) {
  Program program = llama(Format::f32);
  program.routines[0].buffers[0].cols = 11;  // the rotary table
  std::get<Linear>(program.routines[0].ops[3]).weight = 99;
  try {
    program.check();
    ADD_FAILURE() << "taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::program);
    for (const char* part : {"rotary", "op 3", "; "})
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

// What a wrong lowering could give: each is an error, never a crash.
TEST(Program, EveryFieldIsChecked) {
  const auto refused = [](const char* what, Program (*make)(Format), const std::function<void(Program&)>& spoil) {
    SCOPED_TRACE(what);
    Program program = make(Format::bf16);
    program.check();
    spoil(program);
    EXPECT_THROW(program.check(), Error);
  };
  const auto op = [](Program& p, size_t routine, auto kind) -> decltype(kind)& {
    for (Op& one : p.routines[routine].ops)
      if (auto* found = std::get_if<decltype(kind)>(&one)) return *found;
    throw std::runtime_error("no such op");
  };
  refused("a matrix of no parts", mixture, [&](Program& p) { p.matrices[1].shape.parts.clear(); });
  refused("a gated matrix of no parts", mixture,
          [&](Program& p) { p.matrices[size_t(op(p, 0, Experts{}).gate_up[0])].shape.parts.clear(); });
  refused("a matrix beyond every memory", mixture, [&](Program& p) { p.matrices[0].shape.k = int64_t(1) << 62; });
  refused("a span that overflows", mixture, [&](Program& p) {
    ScoreBias& bias = op(p, 0, Attention{}).bias;
    bias = {-1, 0, INT64_MIN, {}};
    bias.c2p = 0;
  });
  refused("a vector beyond every memory", mixture, [&](Program& p) { p.vectors[0] = int64_t(1) << 62; });
  refused("a slice outside", mixture, [&](Program& p) { op(p, 0, HeadNorm{}).slices[1].begin = 73; });
  refused("a slice that overflows", mixture,
          [&](Program& p) { op(p, 0, HeadNorm{}).slices[1].count = int64_t(1) << 62; });
  refused("weights of a slice", mixture, [&](Program& p) { op(p, 0, HeadNorm{}).slices[0].weight = 0; });
  refused("slopes", mixture, [&](Program& p) { op(p, 0, Attention{}).bias.slopes.pop_back(); });
  refused("a table of biases", mixture, [&](Program& p) { op(p, 0, Attention{}).bias = {0, 0, 12, {}}; });
  refused("a vector that is none", mixture, [&](Program& p) { op(p, 0, Attention{}).bias.table = 99; });
  refused("causal and not", mixture, [&](Program& p) { op(p, 0, Attention{}).causal = false; });
  refused("no heads", mixture, [&](Program& p) { op(p, 0, HeadLinear{}).weights.clear(); });
  refused("a head that is none", mixture, [&](Program& p) { op(p, 0, HeadLinear{}).weights[1] = 99; });
  refused("a head of another shape", mixture,
          [&](Program& p) { p.matrices[size_t(op(p, 0, HeadLinear{}).weights[1])].shape.parts[0]--; });
  refused("a head that is not packed", mixture,
          [&](Program& p) { p.matrices[size_t(op(p, 0, HeadLinear{}).weights[0])].shape.packed = false; });
  refused("heads outside", mixture, [&](Program& p) { op(p, 0, HeadLinear{}).begin = 13; });
  refused("heads before the row", mixture, [&](Program& p) { op(p, 0, HeadLinear{}).begin = -1; });
  refused("heads that overflow", mixture, [&](Program& p) {
    for (int id : op(p, 0, HeadLinear{}).weights) p.matrices[size_t(id)].shape.k = int64_t(1) << 40;
  });
  refused("a head too few", mixture, [&](Program& p) { op(p, 0, HeadLinear{}).weights.pop_back(); });
  refused("an expert", mixture, [&](Program& p) { op(p, 0, Experts{}).down[1] = 0; });
  refused("an expert that is none", mixture, [&](Program& p) { op(p, 0, Experts{}).gate_up[1] = -1; });
  refused("experts that do not pair", mixture, [&](Program& p) { op(p, 0, Experts{}).down.pop_back(); });
  refused("half a shared expert", mixture, [&](Program& p) { op(p, 0, Experts{}).shared_down = -1; });
  refused("top_k", mixture, [&](Program& p) { op(p, 0, Experts{}).top_k = 6; });
  refused("a small hidden buffer", mixture,
          [&](Program& p) { p.routines[0].buffers[size_t(op(p, 0, Experts{}).hidden)].cols--; });
  refused("a shared hidden buffer", mixture, [&](Program& p) { op(p, 0, Experts{}).hidden = op(p, 0, Experts{}).out; });
  refused("a residual", mixture, [&](Program& p) { op(p, 0, Norm{}).residual = op(p, 0, HeadNorm{}).out; });
  refused("types", translator, [&](Program& p) { p.matrices[size_t(op(p, 0, Embed{}).types)].shape.k = 39; });
  refused("positions", translator, [&](Program& p) { op(p, 0, Embed{}).by_position = true; });
  refused("a cross layer", translator, [&](Program& p) { op(p, 0, StoreCross{}).layer = 2; });
  refused("no cross cache", translator, [&](Program& p) { p.cross = {}; });
  refused("cross heads", translator, [&](Program& p) { op(p, 1, CrossAttention{}).num_heads = 3; });
  refused("cross queries", translator, [&](Program& p) { p.cross.head_dim = 4; });
  refused("the output", translator, [&](Program& p) { p.routines[0].output = 0; });
  refused("no routine", translator, [&](Program& p) { p.routines.clear(); });
}

// Every number of an op, to be changed.
struct Numbers {
  std::vector<int*> ids;
  std::vector<int64_t*> sizes;
};
Numbers numbers(Op& op) {
  Numbers n;
  const auto bias = [&](ScoreBias& b) {
    n.ids.insert(n.ids.end(), {&b.table, &b.c2p, &b.p2c});
    n.sizes.insert(n.sizes.end(), {&b.first, &b.span});
  };
  if (auto* o = std::get_if<Embed>(&op)) n = {{&o->out, &o->table, &o->positions, &o->types}, {&o->position_offset}};
  if (auto* o = std::get_if<Norm>(&op)) n.ids = {&o->out, &o->x, &o->weight, &o->bias, &o->residual};
  if (auto* o = std::get_if<HeadNorm>(&op)) {
    n.ids = {&o->out, &o->x, &o->slices[0].weight, &o->slices[0].bias};
    for (NormSlice& s : o->slices) n.sizes.insert(n.sizes.end(), {&s.begin, &s.width, &s.count});
  }
  if (auto* o = std::get_if<Linear>(&op)) n.ids = {&o->out, &o->x, &o->weight, &o->residual};
  if (auto* o = std::get_if<HeadLinear>(&op)) n = {{&o->out, &o->x, &o->weights[0], &o->weights[1]}, {&o->begin}};
  if (auto* o = std::get_if<Experts>(&op)) {
    n.ids = {&o->out,         &o->x,     &o->router,   &o->gate_up[0], &o->down[1], &o->shared_gate_up,
             &o->shared_down, &o->top_k, &o->residual, &o->hidden};
  }
  if (auto* o = std::get_if<Attention>(&op)) {
    n = {{&o->out, &o->qkv, &o->layer, &o->num_heads, &o->rope}, {&o->window}};
    bias(o->bias);
  }
  if (auto* o = std::get_if<StoreCross>(&op)) n.ids = {&o->kv, &o->layer};
  if (auto* o = std::get_if<CrossAttention>(&op)) n.ids = {&o->out, &o->q, &o->layer, &o->num_heads};
  if (auto* o = std::get_if<Select>(&op)) n.ids = {&o->out, &o->x};
  return n;
}

// A program with one or two numbers changed at random is refused, or it runs: under the sanitizers, without a fault.
TEST(Program, ChangedNumbersAreRefusedOrHarmless) {
  std::mt19937 random(7);
  const auto below = [&](size_t n) { return size_t(random() % n); };
  const int64_t values[] = {-1, 0, 1, 2, 3, 4, 6, 12, 24, 36, 48, 1000, INT32_MAX, -1000, INT32_MIN};
  int taken = 0;
  for (int i = 0; i < 3000; i++) {
    Program (*const makes[])(Format) = {llama, mixture, parallel, translator};
    Program program = makes[i % 4](Format::bf16);
    Routine& r = program.routines[below(program.routines.size())];
    for (size_t changes = 1 + below(2); changes > 0; changes--) {
      const Numbers n = numbers(r.ops[below(r.ops.size())]);
      if (!n.sizes.empty() && below(2)) {
        *n.sizes[below(n.sizes.size())] = below(8) ? values[below(15)] : INT64_MAX - int64_t(below(3));
      } else if (!n.ids.empty()) {
        *n.ids[below(n.ids.size())] = below(2) ? int(below(r.buffers.size())) : int(values[below(15)]);
      }
    }
    try {
      program.check();
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::program) << error.what();
      continue;
    }
    taken++;
    const auto executor = load(std::move(program), 2, kernels());
    if (i % 4 == 3) continue;  // it takes more than texts
    Feeder feeder(*executor);
    feeder.feed({{"a", some_ids(40, 1)}, {"b", some_ids(3, 2)}});
    feeder.feed({{"a", {5}}});
  }
  EXPECT_GT(taken, 100);
  EXPECT_LT(taken, 2000);
}

TEST(Program, MustBeLoadedBeforeItRuns) {
  Executor executor(llama(Format::f32), 1, kernels());
  Feeder feeder(executor);
  EXPECT_THROW(feeder.feed({{"a", {1}}}), Error);
}

TEST(Plan, BuffersThatLiveTogetherLieApart) {
  const std::vector<Program> wholes = {llama(Format::f32),     llama(Format::bf16),   parallel(Format::f32),
                                       parallel(Format::bf16), mixture(Format::bf16), translator(Format::f32)};
  for (const Program& whole : wholes)
    for (const Routine& program : whole.routines) {
      const Plan plan = make_plan(whole, program, 2, [](Format f) { return f == Format::bf16; });
      for (size_t i = 0; i < program.ops.size(); i++) {
        std::vector<int> at_once = reads(program.ops[i]);
        at_once.push_back(writes(program.ops[i]));
        if (at_once.back() < 0) at_once.pop_back();
        if (const Experts* experts = std::get_if<Experts>(&program.ops[i])) at_once.push_back(experts->hidden);
        for (int a : at_once)
          for (int b : at_once) {
            if (a == b || a == program.output || b == program.output) continue;
            const int64_t begin = plan.columns[size_t(a)], other = plan.columns[size_t(b)];
            EXPECT_TRUE(begin + program.buffers[size_t(a)].ld() <= other ||
                        other + program.buffers[size_t(b)].ld() <= begin);
          }
      }
      int64_t sum = 0;
      for (const Buffer& buffer : program.buffers) sum += buffer.ld();
      EXPECT_LT(plan.width, sum * 3 / 5);  // memory is used again, in the second of two layers
    }
}

// An encoder's layers share one cache: the next may not write while a worker still reads for the last.
TEST(Plan, LayersThatShareACacheAreKeptApart) {
  for (int layer : {0, 1}) {
    ProgramBuilder b(Format::f32);
    const int x = b.buffer(40);
    b.op(Embed{x, b.matrix({71}, 40), -1, 0, 1.0f});
    const int one = b.linear(x, b.matrix({96}, 40)), two = b.linear(x, b.matrix({96}, 40));
    const int first = b.attention(one, 0, -1), second = b.attention(two, layer, -1);
    const size_t attention = b.r().ops.size() - 1;
    const int out = b.linear(first, b.matrix({48}, 48), Activation::none, second);
    b.linear(one, b.matrix({48}, 96), Activation::none, out);  // nobody's memory is used again
    for (bool prepares : {false, true}) {
      const Plan plan = make_plan(b.p, b.r(), 3, [&](Format) { return prepares; });
      for (const std::vector<Phase>& phases : plan.phases)
        for (const Phase& phase : phases)
          if (size_t(phase.op) == attention) {
            EXPECT_EQ(phase.barrier, layer == 0);
          }
    }
  }
}

// Networks as they are wired, of 8 query heads of 64 over 4 kv heads.
struct Wiring {
  explicit Wiring(int layers) : b(Format::bf16) {
    b.r().kv = {KvFormat::bf16, layers, 4, 64};
    x = b.buffer(kWidth);
    b.op(Embed{x, b.matrix({71}, kWidth), -1, 0, 1.0f});
  }
  int attend(int from, int layer) {
    const int out = b.buffer(kWidth);
    b.op(Attention{out, linear(from, 2 * kWidth), layer, 8, -1, 0.3f, false, 0, 0.0f});
    return out;
  }
  int attend_source(int from, int layer) {
    const int out = b.buffer(kWidth);
    b.op(CrossAttention{out, linear(from, kWidth), layer, 8, 0.3f});
    return out;
  }
  int linear(int from, int64_t outputs, int residual = -1) {
    return b.linear(from, b.matrix({outputs}, b.cols(from), true), Activation::none, residual);
  }
  Program finish() { return b.finish(x, b.matrix({71}, kWidth)); }
  static constexpr int64_t kWidth = 512;
  ProgramBuilder b;
  int x;
};
Program norms_before(int layers) {  // GPT-2, Llama
  Wiring w(layers);
  for (int layer = 0; layer < layers; layer++) {
    w.x = w.linear(w.attend(w.b.norm(w.x, true), layer), 512, w.x);
    w.x = w.linear(w.linear(w.b.norm(w.x, true), 1000), 512, w.x);
  }
  return w.finish();
}
Program norms_after(int layers) {  // BERT
  Wiring w(layers);
  for (int layer = 0; layer < layers; layer++) {
    w.x = w.b.norm(w.linear(w.attend(w.x, layer), 512, w.x), false);
    w.x = w.b.norm(w.linear(w.linear(w.x, 1000), 512, w.x), false);
  }
  return w.finish();
}
Program decoder_of_sources(int layers) {  // Marian
  Wiring w(layers);
  w.b.p.cross = {KvFormat::bf16, layers, 4, 64};
  for (int layer = 0; layer < layers; layer++) {
    w.x = w.b.norm(w.linear(w.attend(w.x, layer), 512, w.x), false);
    w.x = w.b.norm(w.linear(w.attend_source(w.x, layer), 512, w.x), false);
    w.x = w.b.norm(w.linear(w.linear(w.x, 1000), 512, w.x), false);
  }
  return w.finish();
}

int barriers(const Program& program, int threads, Sharing sharing) {
  const Plan plan = make_plan(program, program.routines[0], threads, [](Format) { return true; });
  int count = 0;
  for (const Phase& phase : plan.of(sharing)) {
    const Op& op = program.routines[0].ops[size_t(phase.op)];
    count += phase.barrier + (std::holds_alternative<Attention>(op) && !phase.by_heads);  // it has one inside
  }
  return count;
}

// What one more layer costs, by who prepares what matmuls read.
TEST(Plan, BarriersALayer) {
  struct Case {
    const char* name;
    Program (*make)(int layers);
    int threads, repeat, share, rows;
  };
  const Case cases[] = {
      {"norms before, heads divide", norms_before, 2, 4, 8, 2},
      {"norms before, heads don't", norms_before, 3, 6, 10, 3},
      {"norms after, heads divide", norms_after, 2, 4, 8, 2},
      {"norms after, heads don't", norms_after, 3, 6, 10, 3},
      {"sources, heads divide", decoder_of_sources, 2, 6, 12, 4},
  };
  for (const Case& c : cases) {
    const auto each = [&](Sharing sharing) {
      return barriers(c.make(3), c.threads, sharing) - barriers(c.make(2), c.threads, sharing);
    };
    EXPECT_EQ(each(Sharing::repeat), c.repeat) << c.name;
    EXPECT_EQ(each(Sharing::share), c.share) << c.name;
    EXPECT_EQ(each(Sharing::rows), c.rows) << c.name;
  }
}

// Workers own whole heads only where those are whole panels.
TEST(Plan, HeadsOfTheWorkers) {
  const KvShape kv = {KvFormat::f32, 1, 4, 32};
  EXPECT_TRUE(panels_by_heads(kv, 4, 1));
  EXPECT_TRUE(panels_by_heads(kv, 4, 2));
  EXPECT_FALSE(panels_by_heads(kv, 8, 4));  // 32 columns of keys each
  EXPECT_FALSE(panels_by_heads(kv, 4, 3));
  EXPECT_TRUE(divides_by_heads(kv, 4));
  EXPECT_FALSE(divides_by_heads(kv, 8));
}

}  // namespace
}  // namespace test
}  // namespace pyllm
