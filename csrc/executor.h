// Runs a program: one call per step, one job for the pool. Owns weights, plan and activations; caches are the caller's.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "arena.h"
#include "kv_cache.h"
#include "plan.h"
#include "program.h"
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
  const Plan& plan;
  const Weights& weights;
  const Kernels& kernels;
  const KvShape& kv;
  const Step& step;
  Counter* counters;
  float* activations;  // buffers of the plan, for `capacity` rows
  int64_t capacity;
  uint8_t* prepared;  // prepared input of the current matmul, all rows
  uint8_t* scratch;   // scratch_bytes for each worker
  size_t scratch_bytes;
  float* logits;
  int64_t logits_ld;
  bool few;        // at most kFewRows rows
  bool own_heads;  // each worker rotates, appends and attends the heads it owns, without a barrier between
};

// Scratch of one worker: consecutive parts, in bytes.
struct ScratchSizes {
  size_t norm, prepared, work;
  size_t total() const { return norm + prepared + work; }
};

// One worker walks the whole op list (worker.cpp).
void run_worker(const StepShared& shared, const ScratchSizes& sizes, Team& team);

class Executor {
 public:
  // Throws Error(program) for a wrong program, Error(out_of_memory).
  Executor(Program program, int threads, const Kernels& kernels);

  // Loading. `parts` are the matrix's sources in order; bias[i] has as many floats as part i has rows (empty: none).
  void pack(int matrix, const std::vector<Source>& parts, const std::vector<const float*>& bias);
  void set_vector(int id, const float* values, int64_t n);

  // One step: appends keys and values to the cache and writes logits [R, logits_ld()]. The same bits whatever the
  // threads, the other sequences of the batch and the division of a text into steps. Thread-safe; callers take turns.
  // Throws Error(array, prompt, context_length) for a wrong batch, before anything is changed.
  void run(const Batch& batch, KvCache& cache, float* logits);

  const Program& program() const { return program_; }
  const KvShape& kv_shape() const { return kv_; }
  const Kernels& kernels() const { return kernels_; }
  int threads() const { return threads_; }
  int64_t logits_ld() const { return round_up(program_.vocab_size, kPanel); }
  const Arena& weights() const { return weights_.arena(); }
  const Arena& activations() const { return activations_; }
  const Arena& scratch() const { return scratch_; }

 private:
  void reserve(int64_t rows, int64_t keys);
  ScratchSizes scratch_sizes(int64_t rows, int64_t keys) const;

  const Program program_;
  const Kernels& kernels_;
  const int threads_;
  const KvShape kv_;
  const Plan plan_;
  Weights weights_;
  std::vector<bool> loaded_;  // matrices, then vectors
  int missing_;               // of those, not loaded yet
  int group_ = 1;             // query heads per kv head

  int64_t rows_ = 0, keys_ = 0;  // what memory is there for
  Arena activations_, scratch_;
  size_t prepared_offset_ = 0;
  ScratchSizes sizes_{};
  std::unique_ptr<Counter[]> counters_;
  Step step_;
};

}  // namespace pyllm
