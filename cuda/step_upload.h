// A step's integers and block addresses on their way to the device: one block of memory, one copy.
#pragma once
#include <array>
#include <cstdint>
#include <tuple>
#include <vector>

#include "launch.h"
#include "runtime.h"
#include "step.h"

namespace pyllm {
namespace cuda {

// What a step's memory depends on. The sizes of a bucket are those of many steps, whose rows, sequences and keys are
// fewer.
struct StepSizes {
  int rows = 0, sequences = 0, logits = 0, most_rows = 0;
  int64_t width = 0, cross_width = 0;      // columns of the tables of blocks
  int64_t longest = 0, longest_cross = 0;  // keys
  bool types = false;
  int64_t pointers = 0;  // of captured attention weights

  std::array<int64_t, 10> all() const {
    return {rows, sequences, logits, most_rows, width, cross_width, longest, longest_cross, types, pointers};
  }
  bool operator<(const StepSizes& o) const { return all() < o.all(); }
  bool operator==(const StepSizes& o) const { return all() == o.all(); }
};
StepSizes sizes_of(const Step& step);

// Where each array lies in the block, in bytes from its beginning.
class StepLayout {
 public:
  StepLayout() = default;
  explicit StepLayout(const StepSizes& sizes);
  size_t bytes() const { return bytes_; }
  size_t tables() const { return blocks_; }  // where the addresses of blocks begin, which seldom change
  const StepSizes& sizes() const { return sizes_; }
  // The step as kernels see it, with the block at this device address.
  StepView view(uint8_t* device) const;
  float* const* pointers(uint8_t* device) const { return reinterpret_cast<float* const*>(device + pointers_); }
  // Writes a step that is no larger. Rows, sequences and outputs past the step's own are idle: sequence -1, no keys.
  void write(const Step& step, const std::vector<float*>& pointers, uint8_t* host) const;

 private:
  StepSizes sizes_;
  size_t ids_ = 0, positions_ = 0, types_ = 0, sequence_ = 0, starts_ = 0, context_ = 0, logit_rows_ = 0,
         cross_context_ = 0, pointers_ = 0, blocks_ = 0, cross_blocks_ = 0, bytes_ = 0;
};

// Sends steps through pinned memory, which is written again only once its copy is done.
class StepUpload {
 public:
  // Enqueues the copy of a step to `device`, of its tables only where they are not there already.
  void send(const StepLayout& layout, const Step& step, const std::vector<float*>& pointers, uint8_t* device,
            Stream stream);
  void forget() { sent_to_ = nullptr; }  // what was sent is gone
  size_t pinned_bytes() const;

 private:
  struct Stage {
    PinnedMemory memory;
    Event done;
    bool used = false;
  };
  std::array<Stage, 2> stages_;
  size_t next_ = 0;
  uint8_t* sent_to_ = nullptr;   // where the last step lies
  StepSizes sent_;               // and what it was
  std::vector<uint8_t> tables_;  // its tables
};

}  // namespace cuda
}  // namespace pyllm
