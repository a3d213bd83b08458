// How a routine is run: where each buffer lies, and the op list as phases with a barrier only where one is needed.
// Made once for a number of threads; holds for any number of rows.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "program.h"

namespace pyllm {

// Who makes what a matmul reads: a norm, and the form that kernels want their inputs in. None of it changes a result.
enum class Sharing {
  repeat,  // every worker all of it, for itself: with few rows cheaper than a barrier and the cache misses of sharing
  share,   // each worker some rows, for all
  rows,    // each worker some rows, for itself: with many rows it also does the whole matmul for them
};
// Rows that repeat at most. Shared, they go out in blocks of 16: up to 16 rows sharing would leave all to one worker;
// of 24 it spares each other worker 8, at 0.4 to 0.7 us a layer of width 768 and row what 4 to 6 barriers cost.
static constexpr int64_t kRepeatRows = 24;
static constexpr int64_t kOwnRows = 128;     // rows of each worker from which on it takes whole rows
static constexpr int64_t kMatmulRows = 256;  // of those, what one call of the kernel takes at most

// One thing every worker does its part of.
struct Phase {
  enum class Kind { prepare, whole };  // the shared preparation of a linear's input, or all the rest of an op
  Kind kind;
  int op;                 // index into Routine::ops
  bool barrier;           // all must have finished what came before
  int norm = -1;          // linear or experts, repeat: the norm op repeated first, -1: none
  bool fill = false;      // linear or experts, repeat: (re)makes this worker's copy of its input
  bool store = false;     // with norm and fill: the norm's own buffer is written besides, for later readers
  bool by_rows = false;   // linear: each worker its rows
  bool by_heads = false;  // linear, attention, store: each worker what belongs to its kv heads
  int attention = -1;     // linear by heads: the attention (or store) whose heads they are
  int counter = -1;       // attention not by heads: which counter hands out its tasks
  int reader = -1;        // linear by heads of its own: the one op that reads its output, if as biases by content
};

struct Plan {
  // Buffer b of a plan for `rows` rows starts at float rows * columns[b] of the arena. Not for the output: -1.
  std::vector<int64_t> columns;
  int64_t width = 0;                            // floats of arena for one row
  int64_t norm_width = 0;                       // floats of the widest norm that is repeated
  int64_t input_width = 0;                      // inputs of the widest linear
  int attentions = 0;                           // counters
  bool divides = false, divides_cross = false;  // attention is handed out in tasks (Step::divide)
  std::array<std::vector<Phase>, 3> phases;     // by Sharing

  const std::vector<Phase>& of(Sharing sharing) const { return phases[size_t(sharing)]; }
};

// Whether each of `threads` workers can own as many kv heads, and their columns be whole panels of the matmul that
// makes them.
bool divides_by_heads(const KvShape& kv, int threads);
bool panels_by_heads(const KvShape& kv, int num_heads, int threads);

// prepares: of a matrix, whether the kernels want its matmul's inputs in a form of their own (Kernels::prepare).
Plan make_plan(const Program& program, const Routine& routine, int threads,
               const std::function<bool(Format)>& prepares);

}  // namespace pyllm
