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

void check_token_types(const Batch& b, const Limits& limits, Problems& problems) {
  for (int64_t t = 0; b.token_types && limits.segments > 0 && t < b.rows; t++)
    if (b.token_types[t] < 0 || b.token_types[t] >= limits.segments)
      return problems.add(ErrorKind::prompt, text("token types must lie in [0, ", limits.segments, "), got ",
                                                  b.token_types[t], " in row ", t));
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
    if (limits.whole && b.positions[begin] != 0)
      return problems.array("an encoder's sequences must be whole, from position 0 on, got position ",
                            b.positions[begin], " first in sequence ", s);
    if (b.context[s] > b.table_width * kBlockTokens)
      return problems.array("the block table must cover the context, got ", b.table_width, " blocks for ", b.context[s],
                            " tokens of sequence ", s);
  }
}

// Where sources are used: a table of their blocks and their lengths, both or (an encoder by itself) none.
void check_cross(const Batch& b, bool has_cache, const Limits& limits, Problems& problems) {
  const bool reads = limits.cross == CrossUse::reads, has_table = b.cross_table != nullptr;
  if (limits.cross == CrossUse::none || (!reads && !has_cache && !has_table)) return;
  if (!has_cache) problems.array("a step that uses sources needs their cache, got none");
  if (!has_table) problems.array("a step that uses sources needs cross_table, got none");
  if (reads && !b.cross_context) problems.array("a step that reads sources needs cross_context, got none");
  for (int64_t s = 0; s < b.sequences && has_table; s++) {
    const int64_t tokens = b.cross_context ? b.cross_context[s] : b.context[s];
    if (!reads && tokens != b.context[s])
      return problems.array("an encoder's cross_context must be its context, got ", tokens, " for ", b.context[s],
                            " tokens of sequence ", s);
    if (tokens < 1) return problems.array("a source has one token or more, got ", tokens, " for sequence ", s);
    if (tokens > b.cross_width * kBlockTokens)
      return problems.array("cross_table must cover the source, got ", b.cross_width, " blocks for ", tokens,
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

Limits limits_of(const Program& program, const Routine& routine) {
  const CrossUse use = routine.reads_cross()    ? CrossUse::reads
                       : routine.stores_cross() ? CrossUse::stores
                                                : CrossUse::none;
  return {routine.table_rows(program), routine.max_positions, routine.segment_rows(program), !routine.causal(), use};
}

void check_caches(const Program& program, const Routine& r, const KvCache& cache, const KvCache* cross) {
  if (!(cache.shape() == r.kv))
    throw Error(ErrorKind::array,
                text("[run] the cache belongs to another model or program; use this model's new_cache() for ", r.name));
  if (cross && (r.stores_cross() || r.reads_cross()) && !(cross->shape() == program.cross))
    throw Error(ErrorKind::array, "[run] the cross cache belongs to another model; use this model's new_cross_cache()");
}

void Step::load(const Batch& b, const KvCache& cache, const KvCache* cross, const Limits& limits) {
  Problems problems;
  check_starts(b, problems);
  problems.raise();  // the other checks walk by starts
  check_ids(b, limits, problems);
  check_token_types(b, limits, problems);
  check_positions(b, limits, problems);
  check_logit_rows(b, problems);
  problems.raise();
  check_cross(b, cross != nullptr, limits, problems);
  problems.raise();

  batch_ = b;
  whole_ = limits.whole;
  has_cross_ = limits.cross != CrossUse::none && cross != nullptr;
  longest_ = 0;
  find_blocks(cache, b.block_table, b.table_width, b.context, true, "", own_);
  cross_.clear();
  if (has_cross_)
    find_blocks(*cross, b.cross_table, b.cross_width, limits.cross == CrossUse::reads ? b.cross_context : b.context,
                limits.cross == CrossUse::stores, "cross ", cross_);
  pieces_.clear();
  for (int s = 0; s < int(b.sequences); s++)
    for (int row = b.starts[s]; row < b.starts[s + 1];) {
      const int room = kBlockTokens - b.positions[row] % kBlockTokens, end = std::min(b.starts[s + 1], row + room);
      pieces_.push_back({s, row, end});
      row = end;
    }
}

// Throws Error(array) for a block that is not in use, or, where this step writes, shared.
void Step::find_blocks(const KvCache& cache, const int32_t* table, int64_t width, const int32_t* context, bool written,
                       const char* what, Blocks& found) {
  const Batch& b = batch_;
  found.clear();
  for (int64_t s = 0; s < b.sequences; s++) {
    const int32_t* row = table + s * width;
    const int64_t count = blocks_for(context[s]), first_written = b.positions[b.starts[s]] / kBlockTokens;
    views_.resize(size_t(count));
    cache.views(row, count, views_.data());
    found.first.push_back(found.all.size());
    for (int64_t i = 0; i < count; i++) {
      Problems problems;
      const KvCache::View& view = views_[size_t(i)];
      found.all.push_back(view.base);
      if (view.base == nullptr)
        problems.array("every ", what, "block a context needs must be in use, got block ", row[i], " for sequence ", s);
      else if (written && i >= first_written && view.references != 1)
        problems.array("a ", what, "block that is written must belong to one sequence, got ", view.references,
                       " references to block ", row[i], " of sequence ", s);
      problems.raise();
    }
    longest_ = std::max<int64_t>(longest_, context[s]);
  }
}

void Step::divide(int group, int kv_heads, int threads) {
  runs_.clear();
  for (int s = 0; s < int(batch_.sequences); s++) {
    const int64_t seen = whole_ ? batch_.context[s] : batch_.positions[batch_.starts[s]] + 1;
    runs_.push_back({s, batch_.starts[s + 1] - batch_.starts[s], seen, whole_ ? 0 : 1});
  }
  divide_runs(group, kv_heads, threads, tasks_);
}

// Neighbouring sequences with one source (the beams of a search) make one run: its keys are read once for all of them.
void Step::divide_cross(int group, int kv_heads, int threads) {
  runs_.clear();
  const auto same_source = [&](int s, int other) {
    const int32_t *a = batch_.cross_table + s * batch_.cross_width,
                  *b = batch_.cross_table + other * batch_.cross_width;
    return batch_.cross_context[s] == batch_.cross_context[other] &&
           std::equal(a, a + blocks_for(batch_.cross_context[s]), b);
  };
  for (int s = 0; s < int(batch_.sequences); s++) {
    const int rows = batch_.starts[s + 1] - batch_.starts[s];
    if (s > 0 && same_source(s, runs_.back().sequence)) runs_.back().rows += rows;
    else runs_.push_back({s, rows, batch_.cross_context[s], 0});
  }
  divide_runs(group, kv_heads, threads, cross_tasks_);
}

void Step::divide_runs(int group, int kv_heads, int threads, std::vector<AttendTask>& tasks) const {
  int most = kAttendRows;
  do {
    tasks.clear();
    for (int r = 0; r < int(runs_.size()); r++) {
      const int vectors = runs_[size_t(r)].rows * group;
      for (int first = 0; first < vectors; first += most) tasks.push_back({r, first, std::min(most, vectors - first)});
    }
    most /= 2;
  } while (most >= 1 && int64_t(tasks.size()) * kv_heads < 2 * threads);
  // A task's work is its vectors times the keys the last of them sees.
  const auto work = [&](const AttendTask& t) {
    const Run& run = runs_[size_t(t.sequence)];
    return t.count * (run.seen + run.grows * ((t.first + t.count - 1) / group));
  };
  std::sort(tasks.begin(), tasks.end(), [&](const AttendTask& a, const AttendTask& b) { return work(a) > work(b); });
  for (AttendTask& task : tasks) task.sequence = runs_[size_t(task.sequence)].sequence;
}

}  // namespace pyllm
