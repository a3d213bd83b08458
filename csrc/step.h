// One step's batch: its checks, and what the workers need of it (block addresses, pieces of rows, attention tasks).
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "kv_cache.h"

namespace pyllm {

// pyllm/program/batch.py, as pointers. S sequences, T rows, R rows with logits, B columns of the block table.
struct Batch {
  const int32_t *ids, *positions;  // [T]
  const int32_t* starts;           // [S + 1]
  const int32_t* context;          // [S]
  const int32_t* block_table;      // [S, B]
  const int32_t* logit_rows;       // [R]
  int64_t sequences, rows, logits, table_width;
};

struct Limits {
  int64_t table_rows;     // ids lie below
  int64_t max_positions;  // positions lie below
};

// Query vectors [first, first + count) of a sequence, counted over its rows and the query heads of one kv head.
struct AttendTask {
  int sequence;
  int first, count;
};

// Rows of one sequence in one block.
struct Piece {
  int sequence;
  int row0, row1;
};

// Everything about a batch that is the same for all layers. Reused from step to step without allocating.
class Step {
 public:
  // Checks the batch against the cache and the limits. Everything wrong is reported at once, as the most telling
  // error: context_length, prompt, or array. Changes nothing but this object.
  void load(const Batch& batch, const KvCache& cache, const Limits& limits);

  // Divides attention into tasks of up to kAttendRows vectors, smaller ones where threads would idle; the longest
  // come first.
  void divide(int group, int kv_heads, int threads);

  const Batch& batch() const { return batch_; }
  int64_t longest() const { return longest_; }  // keys
  const uint8_t* const* blocks(int sequence) const { return &blocks_[first_block_[size_t(sequence)]]; }
  uint8_t* block_of(int sequence, int position) const {
    return const_cast<uint8_t*>(blocks(sequence)[position / kBlockTokens]);
  }
  const std::vector<Piece>& pieces() const { return pieces_; }
  const std::vector<AttendTask>& tasks() const { return tasks_; }

 private:
  Batch batch_{};
  int64_t longest_ = 0;
  std::vector<const uint8_t*> blocks_;
  std::vector<size_t> first_block_;
  std::vector<Piece> pieces_;
  std::vector<AttendTask> tasks_;
  std::vector<KvCache::View> views_;
};

}  // namespace pyllm
