// What one worker does in a step: its part of every phase. No allocation, no exceptions.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "executor.h"

namespace pyllm {
namespace {

class Worker {
 public:
  Worker(const StepShared& shared, const ScratchSizes& sizes, Team& team)
      : s_(shared), b_(shared.step.batch()), p_(shared.program), k_(shared.kernels), team_(team) {
    uint8_t* mine = shared.scratch + size_t(team.index) * shared.scratch_bytes;
    normed_ = reinterpret_cast<float*>(mine);
    prepared_ = mine + sizes.norm;
    work_ = prepared_ + sizes.prepared;
  }

  void run() {
    for (const Phase& phase : s_.few ? s_.plan.few : s_.plan.many) {
      if (phase.barrier) team_.barrier();
      const Op& op = p_.ops[size_t(phase.op)];
      switch (phase.kind) {
        case Phase::Kind::embed:
          embed(std::get<Embed>(op));
          break;
        case Phase::Kind::rotary:
          rotary(std::get<Rotary>(op));
          break;
        case Phase::Kind::norm:
          norm(std::get<Norm>(op));
          break;
        case Phase::Kind::prepare:
          prepare(std::get<Linear>(op));
          break;
        case Phase::Kind::linear:
          linear(std::get<Linear>(op), phase);
          break;
        case Phase::Kind::attention:
          attention(std::get<Attention>(op), s_.counters[phase.counter]);
          break;
        case Phase::Kind::select:
          select(std::get<Select>(op));
          break;
      }
    }
  }

 private:
  const Buffer& buffer(int id) const { return p_.buffers[size_t(id)]; }
  int64_t count(int id) const { return buffer(id).rows == Rows::T ? b_.rows : b_.logits; }
  int64_t ld(int id) const { return id == p_.logits ? s_.logits_ld : buffer(id).ld(); }
  float* row(int id, int64_t r) const {
    float* base = id == p_.logits ? s_.logits : s_.activations + s_.capacity * s_.plan.columns[size_t(id)];
    return base + r * ld(id);
  }
  void clear_padding(int id, float* y) const {
    const int64_t n = buffer(id).cols;
    std::memset(y + n, 0, size_t(round_up(n, kPanel) - n) * sizeof(float));
  }

  // This worker's rows of a phase that divides rows: blocks of 16, as prepare() wants them (plan.cpp relies on it).
  Team::Range my_rows(int64_t rows) const {
    const Team::Range blocks = team_.part((rows + 15) / 16);
    return {16 * blocks.begin, std::min(rows, 16 * blocks.end)};
  }

  void embed(const Embed& o) {
    const Team::Range mine = my_rows(b_.rows);
    for (int64_t r = mine.begin; r < mine.end; r++) {
      float* y = row(o.out, r);
      look_up(p_.matrices[size_t(o.table)].shape, s_.weights.matrix(o.table), b_.ids[r], o.scale, false, y);
      if (o.positions >= 0)
        look_up(p_.matrices[size_t(o.positions)].shape, s_.weights.matrix(o.positions),
                b_.positions[r] + o.position_offset, 1.0f, true, y);
      clear_padding(o.out, y);
    }
  }

  void rotary(const Rotary& o) {
    const Team::Range mine = my_rows(b_.rows);
    const int64_t half = int64_t(o.inv_freq.size());
    for (int64_t r = mine.begin; r < mine.end; r++) {
      float* y = row(o.out, r);
      for (int64_t i = 0; i < half; i++) {
        const float angle = float(b_.positions[r]) * o.inv_freq[size_t(i)];
        y[i] = float(std::cos(double(angle))) * o.scaling;
        y[half + i] = float(std::sin(double(angle))) * o.scaling;
      }
      clear_padding(o.out, y);
    }
  }

  void norm_row(const Norm& o, int64_t r, float* y) const {
    const int64_t n = buffer(o.x).cols, padded = round_up(n, kPanel);
    const float* weight = s_.weights.vector(o.weight);
    if (o.rms) k_.rms_norm(row(o.x, r), weight, o.eps, n, padded, y);
    else k_.layer_norm(row(o.x, r), weight, o.bias < 0 ? nullptr : s_.weights.vector(o.bias), o.eps, n, padded, y);
  }

  void norm(const Norm& o) {
    const Team::Range mine = my_rows(count(o.x));
    for (int64_t r = mine.begin; r < mine.end; r++) norm_row(o, r, row(o.out, r));
  }

  void prepare(const Linear& o) {
    const int64_t m = count(o.x);
    const Team::Range mine = my_rows(m);
    if (mine.begin < mine.end)
      k_.prepare(p_.format, row(o.x, 0), ld(o.x), int(m), buffer(o.x).cols, int(mine.begin), int(mine.end),
                 s_.prepared);
  }

  void linear(const Linear& o, const Phase& phase) {
    const int64_t m = count(o.x);
    if (m == 0) return;
    const MatrixShape& shape = p_.matrices[size_t(o.weight)].shape;
    const bool prepares = k_.prepared_bytes(p_.format, int(m), shape.k) != 0;
    const float* x = phase.norm >= 0 ? normed_ : row(o.x, 0);
    if (phase.fill) {
      if (phase.norm >= 0)
        for (int64_t r = 0; r < m; r++) norm_row(std::get<Norm>(p_.ops[size_t(phase.norm)]), r, normed_ + r * ld(o.x));
      if (prepares) k_.prepare(p_.format, x, ld(o.x), int(m), shape.k, 0, int(m), prepared_);
    }
    LinearArgs a;
    a.format = p_.format;
    a.activation = o.activation;
    a.gated = shape.gated;
    a.m = int(m);
    a.n = shape.n();
    a.k = shape.k;
    a.weights = s_.weights.matrix(o.weight);
    a.x = !prepares ? static_cast<const void*>(x) : s_.few ? prepared_ : s_.prepared;
    a.x_ld = ld(o.x);
    a.bias = s_.weights.bias(o.weight);
    a.residual = o.residual < 0 ? nullptr : row(o.residual, 0);
    a.residual_ld = o.residual < 0 ? 0 : ld(o.residual);
    a.y = row(o.out, 0);
    a.y_ld = ld(o.out);
    const Team::Range panels = team_.part(shape.panels());
    if (panels.begin < panels.end) k_.linear(a, int(panels.begin), int(panels.end), work_);
  }

  void select(const Select& o) {
    const Team::Range mine = my_rows(b_.logits);
    for (int64_t r = mine.begin; r < mine.end; r++) {
      float* y = row(o.out, r);
      std::memcpy(y, row(o.x, b_.logit_rows[r]), size_t(buffer(o.x).cols) * sizeof(float));
      clear_padding(o.out, y);
    }
  }

  void attention(const Attention& o, Counter& counter) {
    const int heads = p_.num_kv_heads, group = o.num_heads / heads;
    if (s_.own_heads) {
      const Team::Range mine = team_.part(b_.sequences * heads);
      for (int64_t i = mine.begin; i < mine.end; i++) {
        const int sequence = int(i / heads), head = int(i % heads);
        const int row0 = b_.starts[sequence], row1 = b_.starts[sequence + 1];
        append(o, head, sequence, row0, row1);
        for (int first = 0, all = (row1 - row0) * group; first < all; first += kAttendRows)
          attend(o, head, {sequence, first, std::min(kAttendRows, all - first)});
      }
      return;
    }
    // A block of one head is one worker's: kernels may rewrite neighbouring tokens' bytes when they append.
    const std::vector<Piece>& pieces = s_.step.pieces();
    const Team::Range mine = team_.part(int64_t(pieces.size()) * heads);
    for (int64_t i = mine.begin; i < mine.end; i++) {
      const Piece& piece = pieces[size_t(i) % pieces.size()];
      append(o, int(i / int64_t(pieces.size())), piece.sequence, piece.row0, piece.row1);
    }
    team_.barrier();
    const std::vector<AttendTask>& tasks = s_.step.tasks();
    const int64_t all = int64_t(tasks.size()) * heads;
    for (int64_t i; (i = counter.next.fetch_add(1, std::memory_order_relaxed)) < all;)
      attend(o, int(i % heads), tasks[size_t(i / heads)]);
  }

  // Rotates the query heads and the key of one kv head, and stores its keys and values.
  void append(const Attention& o, int head, int sequence, int row0, int row1) {
    const int64_t e = p_.head_dim;
    const int group = o.num_heads / p_.num_kv_heads;
    for (int r = row0; r < row1; r++) {
      float* qkv = row(o.qkv, r);
      float* key = qkv + (o.num_heads + head) * e;
      const float* value = key + p_.num_kv_heads * e;
      if (o.rope >= 0) {
        const float* cos_sin = row(o.rope, r);
        const int64_t rotary_dim = buffer(o.rope).cols;
        for (int i = 0; i < group; i++) k_.rope(cos_sin, rotary_dim, o.interleaved, qkv + (head * group + i) * e);
        k_.rope(cos_sin, rotary_dim, o.interleaved, key);
      }
      uint8_t* block = s_.step.block_of(sequence, b_.positions[r]) + s_.kv.offset(o.layer, head);
      k_.kv_append(p_.format, e, b_.positions[r] % kBlockTokens, key, value, block);
    }
  }

  void attend(const Attention& o, int head, const AttendTask& task) {
    const int64_t e = p_.head_dim;
    const int group = o.num_heads / p_.num_kv_heads;
    const int row0 = b_.starts[task.sequence];
    const float* q[kAttendRows];
    float* out[kAttendRows];
    for (int i = 0; i < task.count; i++) {
      const int v = task.first + i, r = row0 + v / group, query_head = head * group + v % group;
      q[i] = row(o.qkv, r) + query_head * e;
      out[i] = row(o.out, r) + query_head * e;
      if (query_head == o.num_heads - 1) clear_padding(o.out, row(o.out, r));
    }
    AttendArgs a;
    a.format = p_.format;
    a.causal = true;
    a.vectors = task.count;
    a.group = group;
    a.first_head = task.first % group;
    a.head_dim = e;
    a.first_position = b_.positions[row0] + task.first / group;
    a.num_keys = b_.positions[row0] + (task.first + task.count - 1) / group + 1;
    a.window = o.window;
    a.scale = o.scale;
    a.softcap = o.softcap;
    a.q = q;
    a.out = out;
    a.blocks = s_.step.blocks(task.sequence);
    a.block_offset = s_.kv.offset(o.layer, head);
    k_.attend(a, work_);
  }

  const StepShared& s_;
  const Batch& b_;
  const Program& p_;
  const Kernels& k_;
  Team& team_;
  float* normed_;
  uint8_t* prepared_;
  uint8_t* work_;
};

}  // namespace

void run_worker(const StepShared& shared, const ScratchSizes& sizes, Team& team) { Worker(shared, sizes, team).run(); }

}  // namespace pyllm
