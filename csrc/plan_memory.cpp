#include "plan_memory.h"

#include <algorithm>
#include <climits>

namespace pyllm {
namespace {

int scratch_of(const Op& op) {
  const Experts* experts = std::get_if<Experts>(&op);
  return experts ? experts->hidden : -1;
}

// The op that reads a linear's output head by head, and nothing else does, where the workers' heads are whole panels of
// it; or -1.
int attention_of(const Program& p, const Routine& r, const Linear& o, int threads) {
  if (o.residual >= 0 || p.matrices[size_t(o.weight)].shape.gated) return -1;
  int found = -1, times = 0;
  for (int i = 0; i < int(r.ops.size()); i++) {
    const Op& op = r.ops[size_t(i)];
    const std::vector<int> ids = reads(op);
    times += int(std::count(ids.begin(), ids.end(), o.out));
    const auto see = [&](int x, const KvShape& kv, int heads) {
      if (x == o.out && panels_by_heads(kv, heads, threads)) found = i;
    };
    if (const Attention* a = std::get_if<Attention>(&op)) see(a->qkv, r.kv, a->num_heads);
    if (const CrossAttention* a = std::get_if<CrossAttention>(&op)) see(a->q, p.cross, a->num_heads);
    if (const StoreCross* a = std::get_if<StoreCross>(&op)) see(a->kv, p.cross, p.cross.heads);
  }
  return times == 1 ? found : -1;
}
// For each op the last one that may run without a barrier between: memory must not be used again before that.
std::vector<int> ends_without_barrier(const Routine& r, const std::vector<int>& attentions) {
  std::vector<int> ends;
  const int count = int(r.ops.size());
  for (int i = 0, open = -1; i < count; i++) {  // open: the attention that a linear by heads has begun
    open = std::max(open, attentions[size_t(i)]);
    const Op& op = r.ops[size_t(i)];
    const bool apart = !std::holds_alternative<Embed>(op) && !std::holds_alternative<Rotary>(op) &&
                       !std::holds_alternative<Norm>(op) && !std::holds_alternative<HeadNorm>(op) &&
                       !std::holds_alternative<Linear>(op);
    const bool next_opens = i + 1 < count && attentions[size_t(i) + 1] >= 0;
    if (i + 1 == count || (open <= i && (apart || next_opens))) ends.resize(size_t(i) + 1, i);
  }
  return ends;
}

// First and last op at which each buffer's content matters.
struct Life {
  int first = INT_MAX, last = -1;
  void extend(int begin, int end) {
    first = std::min(first, begin);
    last = std::max(last, end);
  }
};

std::vector<Life> lifetimes(const Routine& r, const RepeatedNorms& norms, const std::vector<int>& ends) {
  std::vector<Life> lives(r.buffers.size());
  for (int i = 0; i < int(r.ops.size()); i++) {
    const Op& op = r.ops[size_t(i)];
    const auto extend = [&](int id) { lives[size_t(id)].extend(i, ends[size_t(i)]); };
    for (int id : {writes(op), scratch_of(op)})
      if (id >= 0) extend(id);
    for (int id : reads(op)) {
      extend(id);
      if (!norms.at(id, i)) continue;  // else what the norm reads is read again here
      for (int input : reads(r.ops[size_t(norms.norm[size_t(id)])])) extend(input);
    }
  }
  return lives;
}

// Widest buffers first, each at the lowest place that is free for its whole life.
void place_buffers(const Routine& r, const std::vector<Life>& lives, Plan& plan) {
  plan.columns.assign(r.buffers.size(), -1);
  std::vector<int> order;
  for (int b = 0; b < int(r.buffers.size()); b++)
    if (b != r.output && lives[size_t(b)].last >= 0) order.push_back(b);
  const auto wide = [&](int b) { return r.buffers[size_t(b)].ld(); };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return wide(a) > wide(b); });
  std::vector<int> placed;
  for (int b : order) {
    std::vector<int> neighbours;
    for (int other : placed)
      if (lives[size_t(other)].first <= lives[size_t(b)].last && lives[size_t(b)].first <= lives[size_t(other)].last)
        neighbours.push_back(other);
    std::sort(neighbours.begin(), neighbours.end(),
              [&](int x, int y) { return plan.columns[size_t(x)] < plan.columns[size_t(y)]; });
    int64_t at = 0;
    for (int other : neighbours)
      if (plan.columns[size_t(other)] < at + wide(b)) at = std::max(at, plan.columns[size_t(other)] + wide(other));
    plan.columns[size_t(b)] = at;
    plan.width = std::max(plan.width, at + wide(b));
    placed.push_back(b);
  }
}

}  // namespace

bool divides_by_heads(const KvShape& kv, int threads) { return kv.heads % threads == 0; }

bool panels_by_heads(const KvShape& kv, int num_heads, int threads) {
  const int64_t own = kv.heads / threads * kv.head_dim, queries = num_heads / threads * kv.head_dim;
  return divides_by_heads(kv, threads) && (threads == 1 || (own % kPanel == 0 && queries % kPanel == 0));
}

int multiplied(const Op& op) {
  if (const Linear* linear = std::get_if<Linear>(&op)) return linear->x;
  if (const Experts* experts = std::get_if<Experts>(&op)) return experts->x;
  return -1;
}

RepeatedNorms repeated_norms(const Routine& r) {
  struct Read {
    int op;
    bool as_input;  // the one read of x as the input of matmuls; a second of the same op is not
  };
  std::vector<std::vector<Read>> all(r.buffers.size());
  for (int i = 0; i < int(r.ops.size()); i++)
    for (int id : reads(r.ops[size_t(i)])) {
      std::vector<Read>& of = all[size_t(id)];
      of.push_back({i, id == multiplied(r.ops[size_t(i)]) && (of.empty() || of.back().op != i)});
    }
  RepeatedNorms found;
  found.norm.assign(r.buffers.size(), -1);
  found.first.assign(r.buffers.size(), -1);
  found.store.assign(r.buffers.size(), false);
  for (int i = 0; i < int(r.ops.size()); i++) {
    const Norm* norm = std::get_if<Norm>(&r.ops[size_t(i)]);
    if (norm == nullptr || norm->out == r.output) continue;
    const std::vector<Read>& of = all[size_t(norm->out)];
    const bool only = std::all_of(of.begin(), of.end(), [](const Read& read) { return read.as_input; });
    // Its first reader can write it for the others: they come a barrier later.
    const bool first = !of.empty() && of[0].as_input && std::holds_alternative<Linear>(r.ops[size_t(of[0].op)]) &&
                       (of.size() < 2 || of[1].op != of[0].op);
    if (of.empty() || !(only || first)) continue;
    found.norm[size_t(norm->out)] = i;
    found.first[size_t(norm->out)] = of[0].op;
    found.store[size_t(norm->out)] = !only;
  }
  return found;
}

std::vector<int> attentions(const Program& p, const Routine& r, int threads) {
  std::vector<int> found;
  for (const Op& op : r.ops) {
    const Linear* linear = std::get_if<Linear>(&op);
    found.push_back(linear ? attention_of(p, r, *linear, threads) : -1);
  }
  return found;
}

void lay_out(const Routine& routine, const RepeatedNorms& norms, const std::vector<int>& attentions, Plan& plan) {
  place_buffers(routine, lifetimes(routine, norms, ends_without_barrier(routine, attentions)), plan);
}

}  // namespace pyllm
