// Runs a program: one call per step, one job for the pool. Owns weights, plans and activations; caches are the
// caller's.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "capture.h"
#include "kv_cache.h"
#include "plan.h"
#include "profile.h"
#include "program.h"
#include "step.h"
#include "threads.h"
#include "weights.h"
#include "worker.h"

namespace pyllm {

class Executor {
 public:
  // Throws Error(program) for a wrong program, Error(out_of_memory).
  Executor(Program program, int threads, const Kernels& kernels);

  // Loading. `parts` are the matrix's sources in order; bias[i] has as many floats as part i has rows (empty: none).
  // Weights of float formats and floats that are quantised on the way: pack(); codes as they are: pack_codes(). Throws
  // Error(array) for wrong shapes, and for values that the matrix's format cannot hold: it then counts as not loaded.
  void pack(int matrix, const std::vector<Source>& parts, const std::vector<const float*>& bias);
  void pack_codes(int matrix, const std::vector<CodeSource>& parts, const std::vector<const float*>& bias);
  void set_vector(int id, const float* values, int64_t n);

  // All packed weights, as equal programs lay them out, and reading them back from a file instead of packing: false,
  // and nothing is loaded, where the bytes there are not those that had this checksum. Independent of threads.
  uint64_t checksum() const;
  bool restore(const std::string& file, int64_t offset, uint64_t checksum);

  // One step of one routine: appends keys and values to the cache and writes its output [R, output_ld()]. The same bits
  // whatever the threads, the other sequences of the batch and the division of a text into steps. cross: where the
  // routine uses sources, the cache they are in. Thread-safe; callers take turns. Throws Error(array, prompt,
  // context_length) for a wrong batch or capture, before anything is changed.
  // summary: for each output row and 64 columns their maximum and sum(exp((x - maximum) * scale)), scales being those
  // of the rows [R] or 1, [R, output_ld() / 64, 2]; only where a linear that is not gated writes the output.
  void run(int routine, const Batch& batch, KvCache& cache, KvCache* cross, float* output, Capture* capture = nullptr,
           float* summary = nullptr, const float* scales = nullptr);

  // Times every op from now on, from zero; or no longer. times: by routine.
  void profile(bool enable);
  std::vector<RoutineTimes> times() const;

  // From how many rows on workers share what matmuls read (at most kRepeatRows), and from how many each on they take
  // whole rows. Changes no result. Throws Error(option).
  void set_sharing(int64_t repeat_rows, int64_t own_rows);

  const Program& program() const { return program_; }
  Format format(int matrix) const { return checked_matrix(matrix).shape.format; }  // throws Error(array): no such
  const Routine& routine(int index) const;  // throws Error(array) when there is no such
  const Kernels& kernels() const { return kernels_; }
  int threads() const { return threads_; }
  int64_t output_cols(int index) const;
  int64_t output_ld(int index) const { return round_up(output_cols(index), kPanel); }
  const Arena& weights() const { return weights_.arena(); }
  const Arena& activations() const { return activations_; }
  const Arena& scratch() const { return scratch_; }

 private:
  const Matrix& checked_matrix(int matrix) const;
  template <class Parts>
  void pack_parts(int matrix, const Parts& parts, const std::vector<const float*>& bias, Pool::Turn& turn);
  void reserve(int64_t rows, int64_t keys);
  ScratchSizes scratch_sizes(int64_t rows, int64_t keys) const;
  size_t most_prepared(int rows) const;  // bytes of the prepared input of any linear
  size_t linear_work(int matrix, int64_t rows) const;
  Sharing sharing_for(int64_t rows, bool captures) const;
  void check_summary(const Routine& routine) const;

  const Program program_;
  const Kernels& kernels_;
  const int threads_;
  // What is known of a routine before it runs.
  struct Prepared {
    Plan plan;
    Limits limits;
    int group, cross_group;  // query heads that share a kv head
    RotaryTables rotary;
  };
  std::vector<Prepared> routines_;
  std::vector<Format> formats_;                                                // of the matrices, each once
  int64_t width_ = 0, input_width_ = 0, norm_width_ = 0, most_positions_ = 0;  // the largest of all
  Weights weights_;
  std::vector<bool> loaded_;  // matrices, then vectors
  int missing_;               // of those, not loaded yet

  int64_t repeat_rows_ = kRepeatRows, own_rows_ = kOwnRows;
  int64_t rows_ = 0, keys_ = 0;  // what memory is there for
  Arena activations_, scratch_;
  size_t prepared_offset_ = 0;
  ScratchSizes sizes_{};
  std::unique_ptr<Counter[]> counters_;
  Step step_;
  bool profiled_ = false;
  std::vector<RoutineTimes> times_;  // by routine
};

}  // namespace pyllm
