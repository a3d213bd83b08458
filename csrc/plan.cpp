#include "plan.h"

#include <algorithm>
#include <climits>

namespace pyllm {

bool divides_by_heads(const KvShape& kv, int threads) { return kv.heads % threads == 0; }

bool panels_by_heads(const KvShape& kv, int num_heads, int threads) {
  const int64_t own = kv.heads / threads * kv.head_dim, queries = num_heads / threads * kv.head_dim;
  return divides_by_heads(kv, threads) && (threads == 1 || (own % kPanel == 0 && queries % kPanel == 0));
}

namespace {

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

// Norms that workers may repeat as part of the matmul that reads them first.
struct RepeatedNorms {
  std::vector<int> norm;               // per buffer: the index of the norm op that writes it, or -1
  std::vector<int> first;              // per buffer: the first op that reads it
  std::vector<bool> store;             // per buffer: something else reads it too, so it must be written
  bool at(int buffer, int op) const {  // whether op repeats the norm rather than reads its buffer
    return norm[size_t(buffer)] >= 0 && (!store[size_t(buffer)] || first[size_t(buffer)] == op);
  }
};

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
std::vector<int> attentions(const Program& p, const Routine& r, int threads) {
  std::vector<int> found;
  for (const Op& op : r.ops) {
    const Linear* linear = std::get_if<Linear>(&op);
    found.push_back(linear ? attention_of(p, r, *linear, threads) : -1);
  }
  return found;
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
  place_buffers(routine, lifetimes(routine, norms, ends_without_barrier(routine, by_heads)), plan);
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
