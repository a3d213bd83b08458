// What one worker does in a step: its part of every phase. No allocation, no exceptions.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "capture.h"
#include "plan.h"
#include "profile.h"
#include "program.h"
#include "rotary.h"
#include "step.h"
#include "threads.h"
#include "weights.h"

namespace pyllm {

struct alignas(64) Counter {
  std::atomic<int64_t> next{0};
};

// What the workers of one step share.
struct StepShared {
  const Program& program;
  const Routine& routine;
  const Plan& plan;
  const Weights& weights;
  const Kernels& kernels;
  const Step& step;
  const RotaryTables& rotary;
  Counter* counters;
  float* activations;  // buffers of the plan, for `capacity` rows
  int64_t capacity;
  uint8_t* prepared;  // prepared input of the current matmul, all rows
  uint8_t* scratch;   // scratch_bytes for each worker
  size_t scratch_bytes;
  float* output;
  int64_t output_ld;
  Sharing sharing;
  const CaptureTargets* capture;  // nullptr: nothing
  float* summary;                 // of the output [R, panels, 2] (Kernels::summarise), nullptr: not wanted
  const float* scales;            // of the summary's rows [R], nullptr: 1
  RoutineTimes* times;            // where worker 0 adds its times, nullptr: nowhere
};

// Scratch of one worker: consecutive parts, in bytes.
struct ScratchSizes {
  size_t norm, prepared, bias, local, work;  // local: of experts and head linears
  size_t total() const { return norm + prepared + bias + local + work; }
};

// Floats between rows of biases of attention scores, of which there are kAttendRows.
static constexpr int64_t bias_stride(int64_t keys) { return round_up(keys, 16) + kAttendRows; }

class Worker {
 public:
  Worker(const StepShared& shared, const ScratchSizes& sizes, Team& team);
  // Walks the whole op list.
  void run();

  // Scratch of one op in steps of `rows` rows, and the most rows of one of its matmuls.
  static size_t expert_scratch(const Program& program, const Experts& op, const Kernels& kernels, int64_t rows);
  static size_t head_scratch(const Program& program, const HeadLinear& op, const Kernels& kernels, int64_t rows);
  static int chunk_rows(int64_t rows);
  // Bytes of the prepared form of up to `rows` rows.
  static size_t most_prepared(const Kernels& kernels, Format format, int rows, int64_t inputs);

 private:
  void run(const Phase& phase);
  void run_timed(const std::vector<Phase>& phases);
  void barrier();
  const Buffer& buffer(int id) const { return r_.buffers[size_t(id)]; }
  const MatrixShape& matrix(int id) const { return p_.matrices[size_t(id)].shape; }
  int64_t count(int id) const { return buffer(id).rows == Rows::T ? b_.rows : b_.logits; }
  int64_t ld(int id) const { return id == r_.output ? s_.output_ld : buffer(id).ld(); }
  float* row(int id, int64_t r) const {
    float* base = id == r_.output ? s_.output : s_.activations + s_.capacity * s_.plan.columns[size_t(id)];
    return base + r * ld(id);
  }
  void clear_padding(int id, float* y) const;
  // This worker's rows of a phase that divides rows: blocks of 16, as prepare() wants them (plan.cpp relies on it).
  Team::Range my_rows(int64_t rows) const;

  void prepare(const Linear& o);
  void apply(const Embed& o, const Phase&);
  void apply(const Rotary& o, const Phase& phase);
  void apply(const Norm& o, const Phase&);
  void apply(const HeadNorm& o, const Phase&);
  void apply(const Linear& o, const Phase& phase);
  void apply(const HeadLinear& o, const Phase& phase);
  void apply(const Experts& o, const Phase& phase);
  void apply(const Attention& o, const Phase& phase);
  void apply(const StoreCross& o, const Phase&);
  void apply(const CrossAttention& o, const Phase& phase);
  void apply(const Select& o, const Phase&);
  void capture(const Phase& phase);

  void normalise(bool rms, const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t padded,
                 float* y) const;
  void norm_row(const Norm& o, int64_t r, float* y) const;
  void fill_normed(const Phase& phase, int64_t rows);
  LinearArgs linear_args(int matrix, int m) const;
  void linear_panels(const Linear& o, const LinearArgs& a, Team::Range panels);
  void linear_of_heads(const Linear& o, const LinearArgs& a, const Phase& phase);
  void linear_of_rows(const Linear& o, LinearArgs a);

  // worker_attention.cpp
  Team::Range own_heads(const KvShape& kv) const { return team_.part(kv.heads); }
  void attend_own(const Attention& o, int op);
  void store_rows(const StoreCross& o, int head, const Piece& piece);
  void attend_cross(const CrossAttention& o, int op, int head, const AttendTask& task);
  void append(const Attention& o, int head, int sequence, int row0, int row1);
  void attend(const Attention& o, int op, int head, const AttendTask& task, int next_head = -1);
  const float* content_bias(const ScoreBias& bias, const AttendArgs& a, int vector, int query_head, int r) const;
  const float* distance_bias(const ScoreBias& bias, const AttendArgs& a, int vector, int query_head) const;
  void attend_vectors(AttendArgs& a, int num_heads, int q, int out, int op, int head, const AttendTask& task,
                      const ScoreBias* bias, const int32_t* keys);

  // worker_heads.cpp
  void head_panels(const HeadLinear& o, int head, int p0, int p1);
  Team::Range wanted_panels(const HeadLinear& o, int reader) const;

  // worker_experts.cpp
  struct ExpertWork;
  void route(const Experts& o, int64_t row0, int64_t row1, ExpertWork& work) const;
  void sort_rows(const Experts& o, int64_t rows, ExpertWork& work) const;
  void expert_hidden(const Experts& o, const Phase& phase, ExpertWork& work);
  void expert_outputs(const Experts& o, ExpertWork& work);
  const void* expert_input(const float* x, int64_t x_ld, const LinearArgs& a, ExpertWork& work) const;

  const StepShared& s_;
  const Batch& b_;
  const Program& p_;
  const Routine& r_;
  const Kernels& k_;
  Team& team_;
  float* normed_;
  uint8_t* prepared_;
  float* bias_;
  uint8_t* local_;
  uint8_t* work_;
  Stopwatch watch_;
  OpTime* now_ = nullptr;  // of the op at hand, nullptr: not timed
};

}  // namespace pyllm
