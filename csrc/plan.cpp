#include "plan.h"

#include <algorithm>
#include <climits>

namespace pyllm {
namespace {

using Kind = Phase::Kind;

// Norms whose every reader is a linear that takes them as x: those are repeated by the workers when rows are few.
// Returned per buffer: the index of the norm op that writes it, or -1.
std::vector<int> repeated_norms(const Program& p) {
  std::vector<int> norm(p.buffers.size(), -1);
  for (size_t i = 0; i < p.ops.size(); i++) {
    if (std::holds_alternative<Norm>(p.ops[i])) norm[size_t(writes(p.ops[i]))] = int(i);
    const Linear* linear = std::get_if<Linear>(&p.ops[i]);
    for (int id : reads(p.ops[i]))
      if (linear == nullptr || id == linear->residual) norm[size_t(id)] = -1;
  }
  return norm;
}

// First and last op at which each buffer's content matters.
struct Life {
  int first = INT_MAX, last = -1;
  void extend(int op) {
    first = std::min(first, op);
    last = std::max(last, op);
  }
};

std::vector<Life> lifetimes(const Program& p, const std::vector<int>& norm) {
  std::vector<Life> lives(p.buffers.size());
  for (size_t i = 0; i < p.ops.size(); i++) {
    lives[size_t(writes(p.ops[i]))].extend(int(i));
    for (int id : reads(p.ops[i])) {
      lives[size_t(id)].extend(int(i));
      const int repeated = norm[size_t(id)];  // its input is read again here
      if (repeated >= 0) lives[size_t(std::get<Norm>(p.ops[size_t(repeated)]).x)].extend(int(i));
    }
  }
  return lives;
}

// Widest buffers first, each at the lowest place that is free for its whole life.
void place_buffers(const Program& p, const std::vector<Life>& lives, Plan& plan) {
  plan.columns.assign(p.buffers.size(), -1);
  std::vector<int> order;
  for (int b = 0; b < int(p.buffers.size()); b++)
    if (b != p.logits && lives[size_t(b)].last >= 0) order.push_back(b);
  const auto wide = [&](int b) { return p.buffers[size_t(b)].ld(); };
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

// Appends phases and decides on barriers: one is needed before a phase that touches memory which another worker may
// still be writing, or that writes what another may still be reading.
class Sequencer {
 public:
  Sequencer(const Program& p, const Plan& plan) : p_(p), plan_(plan) {}

  struct Touch {
    int buffer;  // kPrepared: the shared prepared input
    bool write;
    bool by_rows;  // workers split it in blocks of 16 rows: phases that all do so on one buffer need no barrier
  };
  static constexpr int kPrepared = -2;

  void add(Phase phase, const std::vector<Touch>& touches, std::vector<Phase>& out) {
    phase.barrier = std::any_of(touches.begin(), touches.end(), [&](const Touch& t) { return conflicts(t); });
    if (phase.barrier) since_barrier_.clear();
    since_barrier_.insert(since_barrier_.end(), touches.begin(), touches.end());
    out.push_back(phase);
  }

 private:
  bool conflicts(const Touch& now) const {
    return std::any_of(since_barrier_.begin(), since_barrier_.end(), [&](const Touch& then) {
      if (!now.write && !then.write) return false;
      if (now.buffer == then.buffer) return !(now.by_rows && then.by_rows);
      return overlap(now.buffer, then.buffer);
    });
  }
  bool overlap(int a, int b) const {
    if (a == kPrepared || b == kPrepared || a == p_.logits || b == p_.logits) return false;
    const int64_t at = plan_.columns[size_t(a)], bt = plan_.columns[size_t(b)];
    return at < bt + p_.buffers[size_t(b)].ld() && bt < at + p_.buffers[size_t(a)].ld();
  }

  const Program& p_;
  const Plan& plan_;
  std::vector<Touch> since_barrier_;
};

// The phases for few rows (every worker prepares its own inputs) or for many (prepared together).
class Lowering {
 public:
  Lowering(const Program& p, const Plan& plan, const std::vector<int>& norm, bool few, bool prepares)
      : p_(p), norm_(norm), few_(few), prepares_(prepares), sequencer_(p, plan) {}

  std::vector<Phase> run() {
    for (op_ = 0; op_ < int(p_.ops.size()); op_++) std::visit([&](const auto& o) { lower(o); }, p_.ops[size_t(op_)]);
    return std::move(phases_);
  }

 private:
  using Touches = std::vector<Sequencer::Touch>;
  Phase phase(Kind kind) const { return {kind, op_, false}; }
  void add(const Phase& phase, const Touches& touches) { sequencer_.add(phase, touches, phases_); }

  void lower(const Embed& o) { add(phase(Kind::embed), {{o.out, true, true}}); }
  void lower(const Rotary& o) { add(phase(Kind::rotary), {{o.out, true, true}}); }
  void lower(const Select& o) { add(phase(Kind::select), {{o.x, false, false}, {o.out, true, true}}); }
  void lower(const Norm& o) {
    if (few_ && norm_[size_t(o.out)] >= 0) return;  // its linears do it
    add(phase(Kind::norm), {{o.x, false, true}, {o.out, true, true}});
  }
  void lower(const Attention& o) {
    Phase attend = phase(Kind::attention);
    attend.counter = counter_++;
    Touches touches = {{o.qkv, true, false}, {o.out, true, false}};
    if (o.rope >= 0) touches.push_back({o.rope, false, false});
    add(attend, touches);
  }
  void lower(const Linear& o) {
    Phase linear = phase(Kind::linear);
    Touches touches = {{o.out, true, false}};
    if (o.residual >= 0) touches.push_back({o.residual, false, false});
    if (few_) {
      const int norm = norm_[size_t(o.x)];
      linear.norm = norm;
      linear.fill = (norm >= 0 || prepares_) && held_ != o.x;
      if (linear.fill) held_ = o.x;
      touches.push_back({norm >= 0 ? std::get<Norm>(p_.ops[size_t(norm)]).x : o.x, false, false});
    } else if (prepares_) {
      if (held_ != o.x) add(phase(Kind::prepare), {{o.x, false, true}, {Sequencer::kPrepared, true, true}});
      held_ = o.x;
      touches.push_back({Sequencer::kPrepared, false, false});
    } else {
      touches.push_back({o.x, false, false});
    }
    add(linear, touches);
  }

  const Program& p_;
  const std::vector<int>& norm_;
  const bool few_, prepares_;
  Sequencer sequencer_;
  std::vector<Phase> phases_;
  int op_ = 0, counter_ = 0;
  int held_ = -1;  // the buffer whose prepared (or normed) copy is at hand
};

}  // namespace

Plan make_plan(const Program& program, bool prepares) {
  Plan plan;
  const std::vector<int> norm = repeated_norms(program);
  place_buffers(program, lifetimes(program, norm), plan);
  for (const Op& op : program.ops) {
    if (const Linear* linear = std::get_if<Linear>(&op)) {
      const Buffer& x = program.buffers[size_t(linear->x)];
      plan.input_width = std::max(plan.input_width, x.cols);
      if (norm[size_t(linear->x)] >= 0) plan.norm_width = std::max(plan.norm_width, x.ld());
    }
    plan.attentions += std::holds_alternative<Attention>(op);
  }
  plan.few = Lowering(program, plan, norm, true, prepares).run();
  plan.many = Lowering(program, plan, norm, false, prepares).run();
  return plan;
}

}  // namespace pyllm
