// A worker's part of attention: to the sequence's own keys, and to those of its source.
#include <algorithm>
#include <cstring>

#include "worker.h"

namespace pyllm {

void Worker::apply(const Attention& o, const Phase& phase) {
  if (phase.by_heads) return attend_own(o, phase.op);
  // A block of one head is one worker's: kernels may rewrite neighbouring tokens' bytes when they append.
  const int heads = r_.kv.heads;
  const std::vector<Piece>& pieces = s_.step.pieces();
  const Team::Range mine = team_.part(int64_t(pieces.size()) * heads);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const Piece& piece = pieces[size_t(i) % pieces.size()];
    append(o, int(i / int64_t(pieces.size())), piece.sequence, piece.row0, piece.row1);
  }
  barrier();
  const std::vector<AttendTask>& tasks = s_.step.tasks();
  const int64_t all = int64_t(tasks.size()) * heads;
  std::atomic<int64_t>& next = s_.counters[phase.counter].next;
  for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < all;)
    attend(o, phase.op, int(i % heads), tasks[size_t(i / heads)]);
}

// Each worker has as many heads, of all sequences: the same work, and no barrier between storing keys and reading them.
void Worker::attend_own(const Attention& o, int op) {
  const int group = o.num_heads / r_.kv.heads;
  const Team::Range mine = own_heads(r_.kv);
  for (int sequence = 0; sequence < int(b_.sequences); sequence++) {
    const int row0 = b_.starts[sequence], row1 = b_.starts[sequence + 1], all = (row1 - row0) * group;
    for (int head = int(mine.begin); head < int(mine.end); head++) {
      append(o, head, sequence, row0, row1);
      const int next = head + 1 < int(mine.end) ? head + 1 : -1;
      for (int first = 0; first < all; first += kAttendRows)
        attend(o, op, head, {sequence, first, std::min(kAttendRows, all - first)}, next);
    }
  }
}

// Rotates the query heads and the key of one kv head, and stores its keys and values.
void Worker::append(const Attention& o, int head, int sequence, int row0, int row1) {
  const int64_t e = r_.kv.head_dim;
  const int group = o.num_heads / r_.kv.heads;
  for (int r = row0; r < row1; r++) {
    float* qkv = row(o.qkv, r);
    float* key = qkv + (o.num_heads + head) * e;
    const float* value = key + r_.kv.heads * e;
    if (o.rope >= 0) {
      const float* cos_sin = row(o.rope, r);
      const int64_t rotary_dim = buffer(o.rope).cols;
      for (int i = 0; i < group; i++) k_.rope(cos_sin, rotary_dim, o.interleaved, qkv + (head * group + i) * e);
      k_.rope(cos_sin, rotary_dim, o.interleaved, key);
    }
    uint8_t* block = s_.step.block_of(sequence, b_.positions[r]) + r_.kv.offset(o.layer, head);
    k_.kv_append(p_.kv_format, e, b_.positions[r] % kBlockTokens, key, value, block);
  }
}

void Worker::apply(const StoreCross& o, const Phase& phase) {
  if (!s_.step.has_cross()) return;
  const std::vector<Piece>& pieces = s_.step.pieces();
  const int64_t count = int64_t(pieces.size()), all = count * p_.cross.heads;
  const Team::Range heads = own_heads(p_.cross);
  const Team::Range mine = phase.by_heads ? Team::Range{heads.begin * count, heads.end * count} : team_.part(all);
  for (int64_t i = mine.begin; i < mine.end; i++) store_rows(o, int(i / count), pieces[size_t(i % count)]);
}

void Worker::store_rows(const StoreCross& o, int head, const Piece& piece) {
  const KvShape& kv = p_.cross;
  for (int r = piece.row0; r < piece.row1; r++) {
    const float* key = row(o.kv, r) + head * kv.head_dim;
    uint8_t* block = s_.step.cross_block_of(piece.sequence, b_.positions[r]) + kv.offset(o.layer, head);
    k_.kv_append(p_.kv_format, kv.head_dim, b_.positions[r] % kBlockTokens, key, key + kv.heads * kv.head_dim, block);
  }
}

void Worker::attend(const Attention& o, int op, int head, const AttendTask& task, int next_head) {
  const int group = o.num_heads / r_.kv.heads;
  const int row0 = b_.starts[task.sequence];
  AttendArgs a{};
  a.format = p_.kv_format;
  a.causal = o.causal;
  a.vectors = task.count;
  a.group = group;
  a.first_head = task.first % group;
  a.head_dim = r_.kv.head_dim;
  a.first_position = b_.positions[row0] + task.first / group;
  a.num_keys = o.causal ? b_.positions[row0] + (task.first + task.count - 1) / group + 1 : b_.context[task.sequence];
  a.window = o.window;
  a.scale = o.scale;
  a.softcap = o.softcap;
  a.blocks = s_.step.blocks(task.sequence);
  a.block_offset = r_.kv.offset(o.layer, head);
  a.next_offset = next_head < 0 ? 0 : r_.kv.offset(o.layer, next_head);
  attend_vectors(a, o.num_heads, o.qkv, o.out, op, head, task, o.bias.any() ? &o.bias : nullptr, b_.context);
}

void Worker::apply(const CrossAttention& o, const Phase& phase) {
  const std::vector<AttendTask>& tasks = s_.step.cross_tasks();
  const int64_t heads = p_.cross.heads, all = int64_t(tasks.size()) * heads;
  if (phase.by_heads) {
    const Team::Range mine = own_heads(p_.cross);
    for (const AttendTask& task : tasks)
      for (int64_t head = mine.begin; head < mine.end; head++) attend_cross(o, phase.op, int(head), task);
    return;
  }
  std::atomic<int64_t>& next = s_.counters[phase.counter].next;
  for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < all;)
    attend_cross(o, phase.op, int(i % heads), tasks[size_t(i / heads)]);
}

void Worker::attend_cross(const CrossAttention& o, int op, int head, const AttendTask& task) {
  const KvShape& kv = p_.cross;
  AttendArgs a{};
  a.format = p_.kv_format;
  a.vectors = task.count;
  a.group = o.num_heads / kv.heads;
  a.first_head = task.first % a.group;
  a.head_dim = kv.head_dim;
  a.num_keys = b_.cross_context[task.sequence];
  a.scale = o.scale;
  a.blocks = s_.step.cross_blocks(task.sequence);
  a.block_offset = kv.offset(o.layer, head);
  attend_vectors(a, o.num_heads, o.q, o.out, op, head, task, nullptr, b_.cross_context);
}

// The rest of the arguments, from the rows of a task, and the call. keys: of each sequence, where weights are captured.
void Worker::attend_vectors(AttendArgs& a, int num_heads, int q, int out, int op, int head, const AttendTask& task,
                            const ScoreBias* bias, const int32_t* keys) {
  const float *queries[kAttendRows], *biases[kAttendRows];
  float *outputs[kAttendRows], *weights[kAttendRows];
  const std::vector<float*>* wanted = s_.capture ? &s_.capture->weights[size_t(op)] : nullptr;
  if (wanted && wanted->empty()) wanted = nullptr;
  int sequence = task.sequence;
  for (int i = 0; i < task.count; i++) {
    const int v = task.first + i, r = b_.starts[task.sequence] + v / a.group;
    const int query_head = head * a.group + v % a.group;
    queries[i] = row(q, r) + query_head * a.head_dim;
    outputs[i] = row(out, r) + query_head * a.head_dim;
    if (query_head == num_heads - 1) clear_padding(out, row(out, r));
    if (bias && bias->by_content()) biases[i] = content_bias(*bias, a, i, query_head, r);
    // The same head's row of the token before, one place on: a bias by distance is the same for all of a task's tokens.
    else if (bias) biases[i] = i < a.group ? distance_bias(*bias, a, i, query_head) : biases[i - a.group] - 1;
    if (!wanted) continue;
    while (b_.starts[sequence + 1] <= r) sequence++;  // a task of cross-attention may span sequences
    const int64_t rows = b_.starts[sequence + 1] - b_.starts[sequence];
    weights[i] = (*wanted)[size_t(sequence)] + (query_head * rows + r - b_.starts[sequence]) * keys[sequence];
  }
  a.q = queries;
  a.out = outputs;
  a.bias = bias ? biases : nullptr;
  a.weights = wanted ? weights : nullptr;
  k_.attend(a, work_);
}

// The row of biases by content of one query vector, in row r of the step, which holds its whole sequence.
const float* Worker::content_bias(const ScoreBias& bias, const AttendArgs& a, int vector, int query_head, int r) const {
  float* filled = bias_ + vector * bias_stride(a.num_keys);
  const int64_t position = b_.positions[r], last = int64_t(bias.c2p_index.size()) - 1;
  const int64_t column = query_head * bias.span;
  const float* c2p = bias.c2p >= 0 ? row(bias.c2p, r) + column : nullptr;
  const float* p2c = bias.p2c >= 0 ? row(bias.p2c, r - position) + column : nullptr;  // of the sequence's first token
  const int64_t p2c_ld = p2c ? ld(bias.p2c) : 0, shift = position + bias.first;
  const int *by_query = bias.c2p_index.data(), *by_key = bias.p2c_index.data();
  for (int64_t key = 0; key < a.num_keys; key++) {
    const int64_t i = std::clamp(key - shift, int64_t(0), last);
    const float sum = c2p ? c2p[by_query[i]] : 0.0f;
    filled[key] = p2c ? sum + p2c[key * p2c_ld + by_key[i]] : sum;
  }
  return filled;
}

// The row of biases by distance of a query vector: num_keys floats, and in front of them one for each later token of
// the task. In the table itself where it covers all their distances.
const float* Worker::distance_bias(const ScoreBias& bias, const AttendArgs& a, int vector, int query_head) const {
  const int64_t position = a.first_position + (a.first_head + vector) / a.group;
  const int64_t later = (a.first_head + a.vectors - 1) / a.group - (a.first_head + vector) / a.group;
  const int64_t first = -position - later, count = a.num_keys + later;  // distances first, first + 1, ...
  float* filled = bias_ + vector * bias_stride(a.num_keys);
  if (bias.table < 0) {
    const float slope = bias.slopes[size_t(query_head)];
    for (int32_t i = 0, from = int32_t(first), n = int32_t(count); i < n; i++) filled[i] = slope * float(from + i);
    return filled + later;
  }
  const float* table = s_.weights.vector(bias.table) + query_head * bias.span;
  const int64_t shift = first - bias.first;  // i + shift: index in the table
  if (shift >= 0 && count + shift <= bias.span) return table + shift + later;
  const int64_t begin = std::clamp(-shift, int64_t(0), count), end = std::clamp(bias.span - shift, begin, count);
  std::fill(filled, filled + begin, table[0]);
  std::copy(table + begin + shift, table + end + shift, filled + begin);
  std::fill(filled + end, filled + count, table[bias.span - 1]);
  return filled + later;
}

}  // namespace pyllm
