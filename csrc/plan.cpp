#include "plan.h"

#include <algorithm>

#include "plan_memory.h"

namespace pyllm {
namespace {

// Appends phases and decides on barriers: one is needed before a phase that touches memory which another worker may
// still be writing, or that writes what another may still be reading.
class Sequencer {
 public:
  Sequencer(const Routine& r, const Plan& plan) : r_(r), plan_(plan) {}

  // How the workers split what they touch: phases that split one buffer in the same way need no barrier.
  enum class Split { none, rows, heads };  // blocks of 16 rows; what belongs to the kv heads of each
  struct Touch {
    int buffer;  // or kPrepared: the shared prepared input; cache(), cross(): keys and values of one layer
    bool write;
    Split split;
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
      if (now.buffer == then.buffer) return now.split == Split::none || now.split != then.split;
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

// The phases for one way of sharing.
class Lowering {
 public:
  Lowering(const Program& p, const Routine& r, int threads, const Plan& plan, const RepeatedNorms& norms,
           const std::vector<int>& attentions, const std::function<bool(Format)>& prepares, Sharing sharing)
      : p_(p),
        r_(r),
        threads_(threads),
        norms_(norms),
        attentions_(attentions),
        prepares_(prepares),
        sharing_(sharing),
        sequencer_(r, plan) {}

  // Adds to the plan's counters, too.
  std::vector<Phase> run(Plan& plan) {
    for (op_ = 0; op_ < int(r_.ops.size()); op_++) std::visit([&](const auto& o) { lower(o); }, r_.ops[size_t(op_)]);
    plan.attentions = std::max(plan.attentions, counter_);
    plan.divides = plan.divides || divides_;
    plan.divides_cross = plan.divides_cross || divides_cross_;
    return std::move(phases_);
  }

 private:
  using Split = Sequencer::Split;
  using Touches = std::vector<Sequencer::Touch>;
  // What the copy at hand was made of and for: a buffer, and a format that prepares its inputs (f32: normed only).
  struct Held {
    int buffer;
    Format form;
    bool operator==(const Held& o) const { return buffer == o.buffer && form == o.form; }
  };
  Phase phase(Phase::Kind kind = Phase::Kind::whole) const { return {kind, op_, false}; }
  void add(const Phase& phase, const Touches& touches) { sequencer_.add(phase, touches, phases_); }
  static void read_whole(Touches& touches, int buffer) {
    if (buffer >= 0) touches.push_back({buffer, false, Split::none});
  }
  bool repeats() const { return sharing_ == Sharing::repeat; }

  void lower(const Embed& o) { add(phase(), {{o.out, true, Split::rows}}); }
  void lower(const Rotary& o) { add(phase(), {{o.out, true, Split::rows}}); }
  void lower(const Select& o) { add(phase(), {{o.x, false, Split::none}, {o.out, true, Split::rows}}); }
  void lower(const Norm& o) {
    if (repeats() && norms_.norm[size_t(o.out)] >= 0) return;  // its readers do it
    Touches touches = {{o.x, false, Split::rows}, {o.out, true, Split::rows}};
    if (o.residual >= 0) touches.push_back({o.residual, false, Split::rows});
    add(phase(), touches);
  }
  void lower(const HeadNorm& o) { add(phase(), {{o.x, false, Split::rows}, {o.out, true, Split::rows}}); }

  void lower(const Attention& o) {
    Phase attend = phase();
    attend.by_heads = divides_by_heads(r_.kv, threads_);
    const Split split = attend.by_heads ? Split::heads : Split::none;
    if (!attend.by_heads) {
      attend.counter = counter_++;
      divides_ = true;
    }
    Touches touches = {{o.qkv, true, split}, {o.out, true, split}, {Sequencer::cache(o.layer), true, split}};
    for (int id : {o.rope, o.bias.c2p, o.bias.p2c}) read_whole(touches, id);
    add(attend, touches);
  }
  void lower(const StoreCross& o) {
    Phase store = phase();
    store.by_heads = divides_by_heads(p_.cross, threads_);
    const Split split = store.by_heads ? Split::heads : Split::none;
    add(store, {{o.kv, false, split}, {Sequencer::cross(o.layer), true, split}});
  }
  void lower(const CrossAttention& o) {
    Phase attend = phase();
    attend.by_heads = divides_by_heads(p_.cross, threads_);
    const Split split = attend.by_heads ? Split::heads : Split::none;
    if (!attend.by_heads) attend.counter = counter_++;
    divides_cross_ = true;
    add(attend, {{o.q, false, split}, {o.out, true, split}, {Sequencer::cross(o.layer), false, split}});
  }

  void lower(const Linear& o) {
    Phase linear = phase();
    linear.attention = attentions_[size_t(op_)];
    linear.by_heads = linear.attention >= 0;
    const Buffer& input = r_.buffers[size_t(o.x)];
    linear.by_rows = sharing_ == Sharing::rows && input.rows == Rows::T && !linear.by_heads;
    if (linear.by_rows) {
      Touches touches = {{o.x, false, Split::rows}, {o.out, true, Split::rows}};
      if (o.residual >= 0) touches.push_back({o.residual, false, Split::rows});
      return add(linear, touches);
    }
    Touches touches = {{o.out, true, linear.by_heads ? Split::heads : Split::none}};
    read_whole(touches, o.residual);
    const Format format = p_.matrices[size_t(o.weight)].shape.format;
    const Held wanted = {o.x, prepares_(format) ? format : Format::f32};
    if (repeats()) {
      fill_own(linear, wanted, touches);
    } else if (prepares_(format)) {
      if (!(held_ == wanted))
        add(phase(Phase::Kind::prepare), {{o.x, false, Split::rows}, {Sequencer::kPrepared, true, Split::rows}});
      held_ = wanted;
      touches.push_back({Sequencer::kPrepared, false, Split::none});
    } else {
      read_whole(touches, o.x);
    }
    add(linear, touches);
  }
  // Heads are prepared by each worker in memory of its own.
  void lower(const HeadLinear& o) {
    Phase linear = phase();
    linear.reader = reader_of_biases(o);
    add(linear, {{o.x, false, Split::none}, {o.out, true, Split::none}});
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
    Touches touches = {{o.out, true, Split::none}, {o.hidden, true, Split::none}, {o.router, false, Split::none}};
    read_whole(touches, o.residual);
    if (repeats() && norms_.at(o.x, op_)) fill_own(experts, {o.x, Format::f32}, touches);
    else read_whole(touches, o.x);
    add(experts, touches);
  }
  // The worker's own copy of x: normed where x is a repeated norm, prepared where kernels want that.
  void fill_own(Phase& user, const Held& wanted, Touches& touches) {
    const size_t x = size_t(wanted.buffer);
    const bool held = held_ == wanted;
    user.norm = (norms_.at(wanted.buffer, op_) || held) ? norms_.norm[x] : -1;
    user.fill = (user.norm >= 0 || wanted.form != Format::f32) && !held;
    user.store = user.fill && user.norm >= 0 && norms_.store[x];
    if (user.fill) held_ = wanted;
    if (user.store) touches.push_back({wanted.buffer, true, Split::none});
    if (held) return;
    if (user.norm < 0) return read_whole(touches, wanted.buffer);
    for (int id : reads(r_.ops[size_t(user.norm)])) read_whole(touches, id);
  }

  const Program& p_;
  const Routine& r_;
  const int threads_;
  const RepeatedNorms& norms_;
  const std::vector<int>& attentions_;
  const std::function<bool(Format)>& prepares_;
  const Sharing sharing_;
  Sequencer sequencer_;
  std::vector<Phase> phases_;
  int op_ = 0, counter_ = 0;
  bool divides_ = false, divides_cross_ = false;
  Held held_ = {-1, Format::f32};
};

}  // namespace

Plan make_plan(const Program& program, const Routine& routine, int threads,
               const std::function<bool(Format)>& prepares) {
  Plan plan;
  const RepeatedNorms norms = repeated_norms(routine);
  const std::vector<int> by_heads = attentions(program, routine, threads);
  lay_out(routine, norms, by_heads, plan);
  for (const Op& op : routine.ops) {
    const int x = multiplied(op);
    if (x < 0) continue;
    const Buffer& input = routine.buffers[size_t(x)];
    if (std::holds_alternative<Linear>(op)) plan.input_width = std::max(plan.input_width, input.cols);
    if (norms.norm[size_t(x)] >= 0) plan.norm_width = std::max(plan.norm_width, input.ld());
  }
  for (Sharing sharing : {Sharing::repeat, Sharing::share, Sharing::rows})
    plan.phases[size_t(sharing)] =
        Lowering(program, routine, threads, plan, norms, by_heads, prepares, sharing).run(plan);
  return plan;
}

}  // namespace pyllm
