// Intermediates that a step hands out besides its output.
#pragma once
#include <cstdint>
#include <vector>

#include "arena.h"
#include "program.h"
#include "step.h"

namespace pyllm {

// A fresh float32 array.
struct Array {
  explicit Array(std::vector<int64_t> shape);  // zeros; throws Error(out_of_memory)
  float* floats() const { return reinterpret_cast<float*>(data.data()); }
  std::vector<int64_t> shape;
  Arena data;
};

// Intermediates that a step hands out: buffers by number, and the weights of the attention ops that write a buffer.
struct Capture {
  std::vector<int> buffers, attentions;     // asked for
  std::vector<Array> values;                // [rows, cols]
  std::vector<std::vector<Array>> weights;  // for each sequence [heads, rows, keys]
};

// Where they go: memory of a Capture's arrays.
struct CaptureTargets {
  std::vector<float*> rows;                  // by op: its output [rows, cols], nullptr: not wanted
  std::vector<std::vector<float*>> weights;  // by op: for each sequence [heads, rows, keys], zeros; none: not wanted
};

// Arrays for what is wanted of a step whose batch is known to be right. Throws Error(array) for what can't be captured,
// Error(out_of_memory).
CaptureTargets prepare_capture(const Routine& routine, const Batch& batch, Capture& capture);

}  // namespace pyllm
