#include "step.h"

#include <algorithm>
#include <string>

#include "errors.h"

namespace pyllm {
namespace {

// What is wrong with a batch: the first case of each rule, and the kind of error they make together.
class Problems {
 public:
  void add(ErrorKind kind, const std::string& sentence) {
    const auto rank = [](ErrorKind k) { return k == ErrorKind::context_length ? 2 : k == ErrorKind::prompt ? 1 : 0; };
    kind_ = text_.empty() || rank(kind) > rank(kind_) ? kind : kind_;
    text_ += (text_.empty() ? "" : "; ") + sentence;
  }
  template <class... Parts>
  void array(const Parts&... parts) {
    add(ErrorKind::array, text(parts...));
  }
  bool any() const { return !text_.empty(); }
  void raise() const {
    if (any()) throw Error(kind_, "[batch] " + text_ + "; build the batch as pyllm.program.batch describes");
  }

 private:
  ErrorKind kind_ = ErrorKind::array;
  std::string text_;
};

void check_starts(const Batch& b, Problems& problems) {
  if (b.rows < 1) problems.array("a step needs at least one row, got none");
  if (b.sequences < 1 || b.starts[0] != 0 || b.starts[b.sequences] != b.rows)
    return problems.array("starts must run from 0 to the number of rows, ", b.rows);
  for (int64_t s = 0; s < b.sequences; s++)
    if (b.starts[s + 1] <= b.starts[s])
      return problems.array("starts must ascend (each sequence has rows), got ", b.starts[s], " then ", b.starts[s + 1],
                            " at sequence ", s);
}

void check_ids(const Batch& b, const Limits& limits, Problems& problems) {
  for (int64_t t = 0; t < b.rows; t++)
    if (b.ids[t] < 0 || b.ids[t] >= limits.table_rows)
      return problems.add(ErrorKind::prompt,
                          text("token ids must lie in [0, ", limits.table_rows, "), got ", b.ids[t], " in row ", t));
}

void check_positions(const Batch& b, const Limits& limits, Problems& problems) {
  const char* rule =
      "a sequence's positions must follow each other from 0 on or after, and its context be the last + 1, got ";
  for (int64_t s = 0; s < b.sequences; s++) {
    const int64_t begin = b.starts[s], end = b.starts[s + 1];
    if (b.positions[begin] < 0) return problems.array(rule, "position ", b.positions[begin], " in row ", begin);
    for (int64_t t = begin + 1; t < end; t++)
      if (int64_t(b.positions[t]) != int64_t(b.positions[t - 1]) + 1)
        return problems.array(rule, "position ", b.positions[t], " after ", b.positions[t - 1], " in row ", t);
    if (int64_t(b.context[s]) != int64_t(b.positions[end - 1]) + 1)
      return problems.array(rule, "context ", b.context[s], " after position ", b.positions[end - 1], " of sequence ",
                            s);
    if (b.context[s] > limits.max_positions)
      return problems.add(ErrorKind::context_length, text("a sequence may have ", limits.max_positions, " tokens, got ",
                                                          b.context[s], " in sequence ", s));
    if (b.context[s] > b.table_width * kBlockTokens)
      return problems.array("the block table must cover the context, got ", b.table_width, " blocks for ", b.context[s],
                            " tokens of sequence ", s);
  }
}

void check_logit_rows(const Batch& b, Problems& problems) {
  for (int64_t r = 0; r < b.logits; r++)
    if (b.logit_rows[r] < (r ? b.logit_rows[r - 1] + 1 : 0) || b.logit_rows[r] >= b.rows)
      return problems.array("logit_rows must ascend and lie in [0, ", b.rows, "), got ", b.logit_rows[r], " at ", r);
}

int64_t blocks_for(int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

}  // namespace

void Step::load(const Batch& b, const KvCache& cache, const Limits& limits) {
  Problems problems;
  check_starts(b, problems);
  problems.raise();  // the other checks walk by starts
  check_ids(b, limits, problems);
  check_positions(b, limits, problems);
  check_logit_rows(b, problems);
  problems.raise();

  batch_ = b;
  longest_ = 0;
  blocks_.clear();
  first_block_.clear();
  pieces_.clear();
  for (int s = 0; s < int(b.sequences); s++) {
    const int64_t count = blocks_for(b.context[s]), first_written = b.positions[b.starts[s]] / kBlockTokens;
    views_.resize(size_t(count));
    cache.views(b.block_table + s * b.table_width, count, views_.data());
    first_block_.push_back(blocks_.size());
    for (int64_t i = 0; i < count; i++) {
      const KvCache::View& view = views_[size_t(i)];
      blocks_.push_back(view.base);
      if (view.base == nullptr)
        problems.array("every block a context needs must be in use, got block ", b.block_table[s * b.table_width + i],
                       " for sequence ", s);
      else if (i >= first_written && view.references != 1)
        problems.array("a block that is written must belong to one sequence, got ", view.references,
                       " references to block ", b.block_table[s * b.table_width + i], " of sequence ", s);
      if (problems.any()) problems.raise();
    }
    for (int row = b.starts[s]; row < b.starts[s + 1];) {
      const int room = kBlockTokens - b.positions[row] % kBlockTokens, end = std::min(b.starts[s + 1], row + room);
      pieces_.push_back({s, row, end});
      row = end;
    }
    longest_ = std::max<int64_t>(longest_, b.context[s]);
  }
}

void Step::divide(int group, int kv_heads, int threads) {
  int most = kAttendRows;
  do {
    tasks_.clear();
    for (int s = 0; s < int(batch_.sequences); s++) {
      const int vectors = (batch_.starts[s + 1] - batch_.starts[s]) * group;
      for (int first = 0; first < vectors; first += most) tasks_.push_back({s, first, std::min(most, vectors - first)});
    }
    most /= 2;
  } while (most >= 1 && int64_t(tasks_.size()) * kv_heads < 2 * threads);
  // A task's work is its vectors times the keys the last of them sees.
  const auto work = [&](const AttendTask& t) {
    const int64_t token = (t.first + t.count - 1) / group;
    return t.count * (batch_.positions[batch_.starts[t.sequence]] + token + 1);
  };
  std::sort(tasks_.begin(), tasks_.end(), [&](const AttendTask& a, const AttendTask& b) { return work(a) > work(b); });
}

}  // namespace pyllm
