#include "plan.h"

#include <algorithm>
#include <climits>

namespace pyllm {
namespace {

using Kind = Phase::Kind;

// The buffer that an op takes as the input of its matmuls, -1: none.
int multiplied(const Op& op) {
  if (const Linear* linear = std::get_if<Linear>(&op)) return linear->x;
  if (const Experts* experts = std::get_if<Experts>(&op)) return experts->x;
  return -1;
}
int scratch_of(const Op& op) {
  const Experts* experts = std::get_if<Experts>(&op);
  return experts ? experts->hidden : -1;
}

// Norms whose every reader takes them as the input of matmuls: those are repeated by the workers when rows are few.
// Returned per buffer: the index of the norm op that writes it, or -1.
std::vector<int> repeated_norms(const Routine& r) {
  std::vector<int> norm(r.buffers.size(), -1);
  for (size_t i = 0; i < r.ops.size(); i++) {
    const Norm* own = std::get_if<Norm>(&r.ops[i]);
    if (own && own->residual < 0 && own->out != r.output) norm[size_t(own->out)] = int(i);
    bool as_input = false;  // one read of x is that of the matmul; a second is not
    for (int id : reads(r.ops[i])) {
      if (id != multiplied(r.ops[i]) || as_input) norm[size_t(id)] = -1;
      else as_input = true;
    }
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

std::vector<Life> lifetimes(const Routine& r, const std::vector<int>& norm) {
  std::vector<Life> lives(r.buffers.size());
  for (size_t i = 0; i < r.ops.size(); i++) {
    for (int id : {writes(r.ops[i]), scratch_of(r.ops[i])})
      if (id >= 0) lives[size_t(id)].extend(int(i));
    for (int id : reads(r.ops[i])) {
      lives[size_t(id)].extend(int(i));
      const int repeated = norm[size_t(id)];  // its input is read again here
      if (repeated >= 0) lives[size_t(std::get<Norm>(r.ops[size_t(repeated)]).x)].extend(int(i));
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

// Appends phases and decides on barriers: one is needed before a phase that touches memory which another worker may
// still be writing, or that writes what another may still be reading.
class Sequencer {
 public:
  Sequencer(const Routine& r, const Plan& plan) : r_(r), plan_(plan) {}

  struct Touch {
    int buffer;  // or kPrepared: the shared prepared input; cache(), cross(): keys and values of one layer
    bool write;
    bool by_rows;  // workers split it in blocks of 16 rows: phases that all do so on one buffer need no barrier
  };
  static constexpr int kPrepared = -2;
  static constexpr int cache(int layer) { return -3 - 2 * layer; }
  static constexpr int cross(int layer) { return -4 - 2 * layer; }

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
    if (a < 0 || b < 0 || a == r_.output || b == r_.output) return false;
    const int64_t at = plan_.columns[size_t(a)], bt = plan_.columns[size_t(b)];
    return at < bt + r_.buffers[size_t(b)].ld() && bt < at + r_.buffers[size_t(a)].ld();
  }

  const Routine& r_;
  const Plan& plan_;
  std::vector<Touch> since_barrier_;
};

// The phases for few rows (every worker prepares its own inputs) or for many (prepared together).
class Lowering {
 public:
  Lowering(const Routine& r, const std::vector<Matrix>& matrices, const Plan& plan, const std::vector<int>& norm,
           const std::function<bool(Format)>& prepares, bool few)
      : r_(r), matrices_(matrices), norm_(norm), prepares_(prepares), few_(few), sequencer_(r, plan) {}

  std::vector<Phase> run() {
    for (op_ = 0; op_ < int(r_.ops.size()); op_++) std::visit([&](const auto& o) { lower(o); }, r_.ops[size_t(op_)]);
    return std::move(phases_);
  }
  int counters() const { return counter_; }

 private:
  using Touches = std::vector<Sequencer::Touch>;
  // What the copy at hand was made of and for: a buffer, and a format that prepares its inputs (f32: normed only).
  struct Held {
    int buffer;
    Format form;
    bool operator==(const Held& o) const { return buffer == o.buffer && form == o.form; }
  };
  Phase phase(Kind kind = Kind::whole) const { return {kind, op_, false}; }
  void add(const Phase& phase, const Touches& touches) { sequencer_.add(phase, touches, phases_); }
  static void read_whole(Touches& touches, int buffer) {
    if (buffer >= 0) touches.push_back({buffer, false, false});
  }

  void lower(const Embed& o) { add(phase(), {{o.out, true, true}}); }
  void lower(const Rotary& o) { add(phase(), {{o.out, true, true}}); }
  void lower(const Select& o) { add(phase(), {{o.x, false, false}, {o.out, true, true}}); }
  void lower(const Norm& o) {
    if (few_ && norm_[size_t(o.out)] >= 0) return;  // its readers do it
    Touches touches = {{o.x, false, true}, {o.out, true, true}};
    if (o.residual >= 0) touches.push_back({o.residual, false, true});
    add(phase(), touches);
  }
  void lower(const HeadNorm& o) { add(phase(), {{o.x, false, true}, {o.out, true, true}}); }
  void lower(const Attention& o) {
    Touches touches = {{o.qkv, true, false}, {o.out, true, false}, {Sequencer::cache(o.layer), true, false}};
    for (int id : {o.rope, o.bias.c2p, o.bias.p2c}) read_whole(touches, id);
    add(counted(), touches);
  }
  void lower(const StoreCross& o) { add(phase(), {{o.kv, false, false}, {Sequencer::cross(o.layer), true, false}}); }
  void lower(const CrossAttention& o) {
    add(counted(), {{o.q, false, false}, {o.out, true, false}, {Sequencer::cross(o.layer), false, false}});
  }
  Phase counted() {
    Phase attend = phase();
    attend.counter = counter_++;
    return attend;
  }
  void lower(const Linear& o) {
    Phase linear = phase();
    Touches touches = {{o.out, true, false}};
    read_whole(touches, o.residual);
    const Format format = matrices_[size_t(o.weight)].shape.format;
    const Held wanted = {o.x, prepares_(format) ? format : Format::f32};
    if (few_) {
      fill_own(linear, wanted, touches);
    } else if (prepares_(format)) {
      if (!(held_ == wanted)) add(phase(Kind::prepare), {{o.x, false, true}, {Sequencer::kPrepared, true, true}});
      held_ = wanted;
      touches.push_back({Sequencer::kPrepared, false, false});
    } else {
      read_whole(touches, o.x);
    }
    add(linear, touches);
  }
  // Heads are prepared by each worker in memory of its own.
  void lower(const HeadLinear& o) {
    Phase linear = phase();
    linear.reader = reader_of_biases(o);
    add(linear, {{o.x, false, false}, {o.out, true, false}});
  }
  // The attention that takes o's output as biases by content, head for head; -1 where anything else reads it too.
  int reader_of_biases(const HeadLinear& o) const {
    int found = -1, reads_of_it = 0;
    for (int i = 0; i < int(r_.ops.size()); i++) {
      const std::vector<int> ids = reads(r_.ops[size_t(i)]);
      reads_of_it += int(std::count(ids.begin(), ids.end(), o.out));
      const Attention* attention = std::get_if<Attention>(&r_.ops[size_t(i)]);
      if (attention == nullptr || attention->num_heads != int(o.weights.size())) continue;
      if (attention->bias.c2p == o.out || attention->bias.p2c == o.out) found = i;
    }
    return reads_of_it == 1 ? found : -1;
  }
  // Experts gather and prepare their rows in memory of their own; what a worker holds of its copies is only read.
  void lower(const Experts& o) {
    Phase experts = phase();
    Touches touches = {{o.out, true, false}, {o.hidden, true, false}, {o.router, false, false}};
    read_whole(touches, o.residual);
    if (few_ && norm_[size_t(o.x)] >= 0) fill_own(experts, {o.x, Format::f32}, touches);
    else read_whole(touches, o.x);
    add(experts, touches);
  }
  // With few rows the worker's own copy of x: normed where x is a repeated norm, prepared where kernels want that.
  void fill_own(Phase& user, const Held& wanted, Touches& touches) {
    const int norm = norm_[size_t(wanted.buffer)];
    user.norm = norm;
    user.fill = (norm >= 0 || wanted.form != Format::f32) && !(held_ == wanted);
    if (user.fill) held_ = wanted;
    read_whole(touches, norm >= 0 ? std::get<Norm>(r_.ops[size_t(norm)]).x : wanted.buffer);
  }

  const Routine& r_;
  const std::vector<Matrix>& matrices_;
  const std::vector<int>& norm_;
  const std::function<bool(Format)>& prepares_;
  const bool few_;
  Sequencer sequencer_;
  std::vector<Phase> phases_;
  int op_ = 0, counter_ = 0;
  Held held_ = {-1, Format::f32};
};

}  // namespace

Plan make_plan(const Routine& routine, const std::vector<Matrix>& matrices,
               const std::function<bool(Format)>& prepares) {
  Plan plan;
  const std::vector<int> norm = repeated_norms(routine);
  place_buffers(routine, lifetimes(routine, norm), plan);
  for (const Op& op : routine.ops) {
    const int x = multiplied(op);
    if (x < 0) continue;
    const Buffer& input = routine.buffers[size_t(x)];
    if (std::holds_alternative<Linear>(op)) plan.input_width = std::max(plan.input_width, input.cols);
    if (norm[size_t(x)] >= 0) plan.norm_width = std::max(plan.norm_width, input.ld());
  }
  plan.few = Lowering(routine, matrices, plan, norm, prepares, true).run();
  Lowering many(routine, matrices, plan, norm, prepares, false);
  plan.many = many.run();
  plan.attentions = many.counters();
  return plan;
}

}  // namespace pyllm
