#include "device_plan.h"

#include <algorithm>
#include <climits>

namespace pyllm {
namespace cuda {
namespace {

// The buffer that an op takes as the input of its matmuls, -1: none.
int multiplied(const Op& op) {
  if (const Linear* o = std::get_if<Linear>(&op)) return o->x;
  if (const HeadLinear* o = std::get_if<HeadLinear>(&op)) return o->x;
  if (const Experts* o = std::get_if<Experts>(&op)) return o->x;
  return -1;
}

// Whether the kernel behind an op rounds what it writes. (The others write the residual stream, and what is rotated.)
bool writes_narrow(const Op& op) {
  return std::holds_alternative<Norm>(op) || std::holds_alternative<Linear>(op) ||
         std::holds_alternative<HeadLinear>(op) || std::holds_alternative<Attention>(op) ||
         std::holds_alternative<CrossAttention>(op);
}

// How often each buffer is read, and how often as the input of matmuls.
struct Reads {
  explicit Reads(const Routine& r) : all(r.buffers.size()), multiplied_by(r.buffers.size()) {
    for (const Op& op : r.ops) {
      for (int id : reads(op)) all[size_t(id)]++;
      const int x = multiplied(op);
      if (x >= 0) multiplied_by[size_t(x)]++;
    }
  }
  std::vector<int> all, multiplied_by;
};

void choose_types(const Routine& r, const Reads& reads, Type type, Plan& plan) {
  plan.types.assign(r.buffers.size(), Type::f32);
  plan.lds.resize(r.buffers.size());
  for (const Op& op : r.ops) {
    const int out = writes(op);
    if (out < 0 || out == r.output || !writes_narrow(op)) continue;
    const size_t b = size_t(out);
    if (reads.all[b] > 0 && reads.all[b] == reads.multiplied_by[b]) plan.types[b] = type;
  }
  for (size_t b = 0; b < r.buffers.size(); b++) plan.lds[b] = round_up(r.buffers[b].cols, 64);
}

void find_norms(const Routine& r, const Reads& reads, Plan& plan) {
  plan.norm.assign(r.ops.size(), -1);
  plan.linear.assign(r.ops.size(), -1);
  for (int i = 0; i < int(r.ops.size()); i++) {
    const Linear* linear = std::get_if<Linear>(&r.ops[size_t(i)]);
    if (linear == nullptr || reads.all[size_t(linear->x)] != 1) continue;
    for (int j = 0; j < i; j++) {
      const Norm* norm = std::get_if<Norm>(&r.ops[size_t(j)]);
      if (norm == nullptr || norm->out != linear->x || norm->residual >= 0) continue;
      if (plan.types[size_t(norm->x)] != Type::f32) continue;
      plan.norm[size_t(i)] = j;
      plan.linear[size_t(j)] = i;
    }
  }
}

// First and last op at which each buffer's content matters.
struct Life {
  int first = INT_MAX, last = -1;
  void extend(int op) {
    first = std::min(first, op);
    last = std::max(last, op);
  }
  bool meets(const Life& o) const { return first <= o.last && o.first <= last; }
};

std::vector<Life> lifetimes(const Routine& r, const Plan& plan) {
  std::vector<Life> lives(r.buffers.size());
  for (int i = 0; i < int(r.ops.size()); i++) {
    const Op& op = r.ops[size_t(i)];
    if (writes(op) >= 0) lives[size_t(writes(op))].extend(i);
    for (int id : reads(op)) lives[size_t(id)].extend(i);
    const int norm = plan.norm[size_t(i)];
    if (norm >= 0) lives[size_t(std::get<Norm>(r.ops[size_t(norm)]).x)].extend(i);
  }
  return lives;
}

// Widest buffers first, each at the lowest place that is free for its whole life.
void place(const Routine& r, Plan& plan) {
  const std::vector<Life> lives = lifetimes(r, plan);
  std::vector<int> order;
  for (int b = 0; b < int(r.buffers.size()); b++)
    if (b != r.output && lives[size_t(b)].last >= 0) order.push_back(b);
  const auto wide = [&](int b) { return round_up(plan.lds[size_t(b)] * size_of(plan.types[size_t(b)]), kAlign); };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return wide(a) > wide(b); });
  plan.bytes.assign(r.buffers.size(), -1);
  std::vector<int> placed;
  for (int b : order) {
    std::vector<int> neighbours;
    for (int other : placed)
      if (lives[size_t(other)].meets(lives[size_t(b)])) neighbours.push_back(other);
    std::sort(neighbours.begin(), neighbours.end(),
              [&](int x, int y) { return plan.bytes[size_t(x)] < plan.bytes[size_t(y)]; });
    int64_t at = 0;
    for (int other : neighbours)
      if (plan.bytes[size_t(other)] < at + wide(b)) at = std::max(at, plan.bytes[size_t(other)] + wide(other));
    plan.bytes[size_t(b)] = at;
    plan.row_bytes = std::max(plan.row_bytes, at + wide(b));
    placed.push_back(b);
  }
}

}  // namespace

Plan make_plan(const Routine& routine, Type type) {
  Plan plan;
  const Reads reads(routine);
  choose_types(routine, reads, type, plan);
  find_norms(routine, reads, plan);
  place(routine, plan);
  return plan;
}

}  // namespace cuda
}  // namespace pyllm
