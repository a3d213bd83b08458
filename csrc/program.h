// The lowered network: numbered buffers, matrices and vectors, and the op list over them. The C++ twin of
// pyllm/program/program.py; data and its checks only.
#pragma once
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "kernels.h"
#include "pack.h"

namespace pyllm {

enum class Rows { T, R };  // tokens of the step, or rows that want logits

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

// Ids are indices into Program's lists; -1: none. Meanings are those of the Python dataclasses.
struct Embed {
  int out, table, positions;
  int64_t position_offset;
  float scale;
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
};
struct Linear {
  int out, x, weight;
  Activation activation;
  int residual;
};
struct Attention {
  int out, qkv, layer, num_heads, rope;
  float scale;
  bool interleaved;
  int64_t window;
  float softcap;
};
struct Select {
  int out, x;
};
using Op = std::variant<Embed, Rotary, Norm, Linear, Attention, Select>;

// Buffers an op reads, and the one it writes.
std::vector<int> reads(const Op& op);
int writes(const Op& op);

struct Program {
  Format format;
  int num_layers, num_kv_heads;
  int64_t head_dim, vocab_size, max_positions;
  std::vector<Buffer> buffers;
  std::vector<Matrix> matrices;
  std::vector<int64_t> vectors;  // lengths
  std::vector<Op> ops;
  int logits = -1;

  int64_t table_rows() const;  // ids must lie below

  // Every id in range, every shape right, every buffer written once and before it is read. Throws Error(program) that
  // lists everything wrong. Run it before anything else is made from a program.
  void check() const;
};

}  // namespace pyllm
