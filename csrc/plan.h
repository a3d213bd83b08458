// How a routine is run: where each buffer lies, and the op list as phases with a barrier only where one is needed.
// Made once; holds for any number of rows.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "program.h"

namespace pyllm {

// Up to so many rows a norm, and the preparation of a matmul's input, are repeated by every worker: cheaper than the
// barrier and the cache misses that sharing them costs. Changes no result.
static constexpr int kFewRows = 4;

// One thing every worker does its part of.
struct Phase {
  enum class Kind { prepare, whole };  // the shared preparation of a linear's input, or all the rest of an op
  Kind kind;
  int op;             // index into Routine::ops
  bool barrier;       // all must have finished what came before
  int norm = -1;      // linear or experts, few rows: the norm op repeated first, -1: none
  bool fill = false;  // linear or experts, few rows: (re)makes this worker's copy of its input
  int counter = -1;   // attention: which counter hands out its tasks
  int reader = -1;    // linear by heads: the one op that reads its output, if that is as biases by content
};

struct Plan {
  // Buffer b of a plan for `rows` rows starts at float rows * columns[b] of the arena. Not for the output: -1.
  std::vector<int64_t> columns;
  int64_t width = 0;        // floats of arena for one row
  int64_t norm_width = 0;   // floats of the widest norm that is repeated
  int64_t input_width = 0;  // inputs of the widest linear
  int attentions = 0;       // counters
  std::vector<Phase> few, many;
};

// prepares: of a matrix, whether the kernels want its matmul's inputs in a form of their own (Kernels::prepare).
Plan make_plan(const Routine& routine, const std::vector<Matrix>& matrices,
               const std::function<bool(Format)>& prepares);

}  // namespace pyllm
