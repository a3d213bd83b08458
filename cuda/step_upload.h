// A step's integers and block addresses on their way to the device: one block of memory, of which what is there already
// stays there.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
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
  int chooses = -1;      // the Cuts of a step that chooses its rows' next tokens; -1: one that does not

  std::array<int64_t, 11> all() const {
    return {rows, sequences, logits, most_rows, width, cross_width, longest, longest_cross, types, pointers, chooses};
  }
  bool operator<(const StepSizes& o) const { return all() < o.all(); }
  bool operator==(const StepSizes& o) const { return all() == o.all(); }
};
StepSizes sizes_of(const Step& step);

// What a step has besides its batch.
struct StepExtras {
  std::vector<float*> pointers;
  const Choice* choices = nullptr;  // [R], of a step that chooses
};

// The tokens that a step chose, on their way to the host.
class Flight {
 public:
  explicit Flight(int rows) : rows_(rows), tokens_(size_t(rows) * sizeof(int32_t)) {}
  ~Flight();  // waits for the copy, whose memory goes
  Flight(const Flight&) = delete;
  Flight& operator=(const Flight&) = delete;
  int rows() const { return rows_; }
  // Enqueues the copy. Throws Error(device).
  void take(const int32_t* device, Stream stream);
  // Waits for it: int32 [rows], -1 where there was nothing to choose. Throws Error(device). Thread-safe.
  const int32_t* wait();

 private:
  const int rows_;
  PinnedMemory tokens_;
  Event done_;
};

// Where each array lies in the block, in bytes from its beginning.
class StepLayout {
 public:
  StepLayout() = default;
  explicit StepLayout(const StepSizes& sizes);
  size_t bytes() const { return bytes_; }
  size_t ids() const { return positions_; }  // bytes of the ids, which lie first
  size_t tables() const { return blocks_; }  // where the addresses of blocks begin, which seldom change
  const StepSizes& sizes() const { return sizes_; }
  // The step as kernels see it, with the block at this device address.
  StepView view(uint8_t* device) const;
  float* const* pointers(uint8_t* device) const { return reinterpret_cast<float* const*>(device + pointers_); }
  Choice* choices(uint8_t* base) const { return reinterpret_cast<Choice*>(base + choices_); }
  // Writes a step that is no larger. Rows, sequences and outputs past the step's own are idle: sequence -1, no keys.
  void write(const Step& step, const StepExtras& extras, uint8_t* host) const;
  // What advance() (launch.h) makes of a block, but for the ids, which the host does not know.
  void advance(uint8_t* host) const;

 private:
  StepSizes sizes_;
  size_t ids_ = 0, positions_ = 0, types_ = 0, sequence_ = 0, starts_ = 0, context_ = 0, logit_rows_ = 0,
         cross_context_ = 0, pointers_ = 0, choices_ = 0, blocks_ = 0, cross_blocks_ = 0, bytes_ = 0;
};

// Sends steps through pinned memory, which is written again only once its copy is done. Knows what the device's block
// holds, so that of a step only what differs is sent: of one that follows from the step before it, nothing.
class StepUpload {
 public:
  // Enqueues the copy of a step to `device`. after: whose tokens the step's ids are, instead of its own; they are
  // waited for unless the device has them already.
  void send(const StepLayout& layout, const Step& step, const StepExtras& extras, uint8_t* device, Stream stream,
            const std::shared_ptr<Flight>& after = nullptr);
  // The block has been advanced on the device, by the tokens of this flight.
  void advanced(const StepLayout& layout, std::shared_ptr<Flight> by);
  void forget() { there_ = nullptr; }  // what was sent is gone
  size_t pinned_bytes() const;
  size_t sent_bytes() const { return sent_bytes_; }  // in all

 private:
  struct Stage {
    PinnedMemory memory;
    Event done;
    bool used = false;
  };
  struct Piece {
    size_t begin, end;
  };
  void copy(const std::vector<Piece>& pieces, uint8_t* device, Stream stream);

  std::array<Stage, 2> stages_;
  size_t next_ = 0, sent_bytes_ = 0;
  uint8_t* there_ = nullptr;        // where the last step lies
  StepSizes sizes_;                 // and what it was
  std::vector<uint8_t> held_;       // what the block holds there
  std::shared_ptr<Flight> ids_of_;  // but for the ids, if they are a flight's tokens
  std::vector<uint8_t> wanted_;     // of the step at hand
};

}  // namespace cuda
}  // namespace pyllm
