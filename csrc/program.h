// The lowered network: numbered matrices and vectors, and the routines (op lists over buffers of their own) that share
// them. The C++ twin of pyllm/program/program.py; data and its checks only.
#pragma once
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "kernels.h"
#include "kv_cache.h"
#include "pack.h"

namespace pyllm {

enum class Rows { T, R };  // tokens of the step, or rows that want an output

struct Buffer {
  Rows rows;
  int64_t cols;
  // Floats between rows: room for whole panels, and 64 bytes more so that rows don't fall into one cache set.
  int64_t ld() const { return round_up(cols, kPanel) + 16; }
};

struct Matrix {
  std::string name;
  MatrixShape shape;
  bool bias;
};

// Ids are indices into the lists of Program and Routine; -1: none. Meanings are those of the Python dataclasses.
struct Embed {
  int out, table, positions;
  int64_t position_offset;
  float scale;
  int types = -1;
  bool by_position = false;  // `table` is looked up by position, not by id
};
struct Rotary {
  int out;
  std::vector<float> inv_freq;
  float scaling;
};
struct Norm {
  int out, x;
  bool rms;
  int weight, bias;
  float eps;
  int residual = -1;
};
struct NormSlice {
  int64_t begin, width, count;
  int weight, bias;  // [width] or [count * width]
};
struct HeadNorm {
  int out, x;
  bool rms;
  std::vector<NormSlice> slices;
  float eps;
};
struct Linear {
  int out, x, weight;
  Activation activation;
  int residual;
  float scale = 1.0f, softcap = 0.0f;
};
struct HeadLinear {
  int out, x;
  int64_t begin;             // column of x that the first head starts at
  std::vector<int> weights;  // one a head, all of one shape
};
struct Experts {
  int out, x, router;
  std::vector<int> gate_up, down;
  int shared_gate_up, shared_down;  // -1: there is no shared expert
  int top_k;
  Activation activation;
  bool normalize;
  int residual;
  int hidden;  // a buffer that nothing else uses: expert_columns() wide
};
// What is added to attention scores, by the distance d = key - query: one of three.
struct ScoreBias {
  int table = -1;  // vector [num_heads, span]: table[head][clamp(d - first, 0, span - 1)]
  int64_t first = 0, span = 0;
  std::vector<float> slopes = {};  // slopes[head] * d
  // Buffers [T, num_heads * span] or -1: c2p[query][head][c2p_index[i]] + p2c[key][head][p2c_index[i]] with
  // i = clamp(d - first, 0, indices - 1).
  int c2p = -1, p2c = -1;
  std::vector<int> c2p_index = {}, p2c_index = {};

  bool by_content() const { return c2p >= 0 || p2c >= 0; }
  bool any() const { return table >= 0 || !slopes.empty() || by_content(); }
};
struct Attention {
  int out, qkv, layer, num_heads, rope;
  float scale;
  bool interleaved;
  int64_t window;
  float softcap;
  bool causal = true;
  ScoreBias bias = {};
};
struct StoreCross {
  int kv, layer;
};
struct CrossAttention {
  int out, q, layer, num_heads;
  float scale;
};
struct Select {
  int out, x;
};
using Op = std::variant<Embed, Rotary, Norm, HeadNorm, Linear, HeadLinear, Experts, Attention, StoreCross,
                        CrossAttention, Select>;

// Buffers an op reads, and the one it writes (-1: none).
std::vector<int> reads(const Op& op);
int writes(const Op& op);

struct Program;

// One op list that runs by itself: a decoder's step, or an encoder.
struct Routine {
  std::string name;
  KvShape kv;  // of its own keys and values
  int64_t vocab_size, max_positions;
  std::vector<Buffer> buffers = {};
  std::vector<Op> ops = {};
  int output = -1;  // what the last op writes

  bool causal() const;                           // no row sees a later one
  bool stores_cross() const;                     // it fills the cross cache
  bool reads_cross() const;                      // it attends to the cross cache
  int heads() const;                             // query heads of its attention
  int cross_heads() const;                       // query heads of its cross-attention
  int64_t table_rows(const Program& p) const;    // ids must lie below
  int64_t segment_rows(const Program& p) const;  // token types must lie below; 0: there are none
};

struct Program {
  KvFormat kv_format;
  std::vector<Matrix> matrices;
  std::vector<int64_t> vectors;  // lengths
  KvShape cross;                 // keys and values of sources; no layers: there are none
  std::vector<Routine> routines;

  // Every id in range, every shape right, every buffer written once and before it is read. Throws Error(program) that
  // lists everything wrong. Run it before anything else is made from a program.
  void check() const;
};

// Where Experts keeps things for a step of some rows, one after the other in its `hidden` buffer.
struct ExpertShape {
  ExpertShape(const Program& p, const Experts& o);
  int64_t routed_ld, shared_ld;  // floats between hidden rows
  int64_t inputs;                // columns of the widest matmul input: the model's or hidden
  int64_t columns(int top_k) const { return top_k * (routed_ld + 2) + shared_ld + 1; }  // floats for each row
};

}  // namespace pyllm
