// One step's batch: its checks, and what the workers need of it (block addresses, pieces of rows, attention tasks).
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "kv_cache.h"
#include "program.h"

namespace pyllm {

// pyllm/program/batch.py, as pointers. S sequences, T rows, R rows with outputs, B and X columns of the block tables.
struct Batch {
  const int32_t *ids, *positions;  // [T]
  const int32_t* starts;           // [S + 1]
  const int32_t* context;          // [S]
  const int32_t* block_table;      // [S, B]
  const int32_t* logit_rows;       // [R]
  int64_t sequences, rows, logits, table_width;
  const int32_t* token_types = nullptr;    // [T], or nullptr: all 0
  const int32_t* cross_table = nullptr;    // [S, X], or nullptr
  const int32_t* cross_context = nullptr;  // [S], or nullptr
  int64_t cross_width = 0;
};

// How a routine uses the cross cache.
enum class CrossUse { none, stores, reads };

struct Limits {
  int64_t table_rows;     // ids lie below
  int64_t max_positions;  // positions lie below
  int64_t segments = 0;   // token types lie below; 0: they are not looked at
  bool whole = false;     // every sequence must be there from its first token on
  CrossUse cross = CrossUse::none;
};

Limits limits_of(const Program& program, const Routine& routine);
// The caches must be this program's. Throws Error(array).
void check_caches(const Program& program, const Routine& routine, const KvCache& cache, const KvCache* cross);

// Query vectors [first, first + count), counted over rows and the query heads of one kv head, from the first row of a
// sequence on. In cross-attention they may go on into the following sequences, which then have the same source.
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
  // Checks the batch against the caches and the limits. Everything wrong is reported at once, as the most telling
  // error: context_length, prompt, or array. Changes nothing but this object. cross may be nullptr where none is used.
  void load(const Batch& batch, const KvCache& cache, const KvCache* cross, const Limits& limits);

  // Divides attention into tasks of up to kAttendRows vectors, smaller ones where threads would idle; the longest
  // come first. group: query heads that share a kv head.
  void divide(int group, int kv_heads, int threads);
  void divide_cross(int group, int kv_heads, int threads);

  const Batch& batch() const { return batch_; }
  int64_t longest() const { return longest_; }  // keys, of sources too
  const uint8_t* const* blocks(int sequence) const { return own_.blocks(sequence); }
  uint8_t* block_of(int sequence, int position) const { return own_.block_of(sequence, position); }
  const uint8_t* const* cross_blocks(int sequence) const { return cross_.blocks(sequence); }
  uint8_t* cross_block_of(int sequence, int position) const { return cross_.block_of(sequence, position); }
  bool has_cross() const { return has_cross_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  const std::vector<AttendTask>& tasks() const { return tasks_; }
  const std::vector<AttendTask>& cross_tasks() const { return cross_tasks_; }

 private:
  // Addresses of the blocks of every sequence.
  struct Blocks {
    std::vector<const uint8_t*> all;
    std::vector<size_t> first;
    void clear() {
      all.clear();
      first.clear();
    }
    const uint8_t* const* blocks(int sequence) const { return &all[first[size_t(sequence)]]; }
    uint8_t* block_of(int sequence, int position) const {
      return const_cast<uint8_t*>(blocks(sequence)[position / kBlockTokens]);
    }
  };
  // Rows that attend to the same keys.
  struct Run {
    int sequence, rows;
    int64_t seen;   // keys that the first row sees
    int64_t grows;  // more keys for each further row
  };
  void find_blocks(const KvCache& cache, const int32_t* table, int64_t width, const int32_t* context, bool written,
                   const char* what, Blocks& found);
  void divide_runs(int group, int kv_heads, int threads, std::vector<AttendTask>& tasks) const;

  Batch batch_{};
  bool whole_ = false, has_cross_ = false;
  int64_t longest_ = 0;
  Blocks own_, cross_;
  std::vector<Piece> pieces_;
  std::vector<Run> runs_;
  std::vector<AttendTask> tasks_, cross_tasks_;
  std::vector<KvCache::View> views_;
};

}  // namespace pyllm
