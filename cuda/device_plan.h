// How a routine runs on a device: the type of every buffer, where it lies, and which norms a matmul may take on. Made
// once; holds for any number of rows.
#pragma once
#include <cstdint>
#include <vector>

#include "launch.h"
#include "program.h"

namespace pyllm {
namespace cuda {

static constexpr int64_t kAlign = 256;  // bytes: what buffers begin on

struct Plan {
  std::vector<Type> types;   // by buffer: `type` where only matmuls read it, else f32
  std::vector<int64_t> lds;  // by buffer: elements between rows
  std::vector<int64_t>
      bytes;                // by buffer: in a plan for `rows` rows it starts at rows * bytes; -1: the output, or unused
  int64_t row_bytes = 0;    // of all buffers for one row
  std::vector<int> norm;    // by op: of a linear, the norm op that it may do first (nothing else reads that); or -1
  std::vector<int> linear;  // by op: of such a norm, that linear; or -1
};
Plan make_plan(const Routine& routine, Type type);

}  // namespace cuda
}  // namespace pyllm
