#include "launches.h"

#include <algorithm>

#include "overloaded.h"

namespace pyllm {
namespace cuda {
namespace {

// Consecutive parts of scratch memory.
class Carver {
 public:
  explicit Carver(uint8_t* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    uint8_t* at = base_ + bytes_;
    bytes_ += size_t(round_up(count * int64_t(sizeof(T)), kAlign));
    return reinterpret_cast<T*>(at);
  }
  View rows(int64_t rows, int64_t cols, Type type) {
    const int64_t ld = round_up(cols, 64);
    return {take<uint8_t>(rows * ld * size_of(type)), ld, type};
  }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* base_;
  size_t bytes_ = 0;
};

View moved(View v, int64_t rows) {
  v.data = static_cast<uint8_t*>(v.data) + rows * v.ld * size_of(v.type);
  return v;
}

}  // namespace

Launches::Launches(const Program& program, size_t routine, const Plan& plan, const DeviceWeights& weights, Type type,
                   const Frame& frame, Stream stream)
    : p_(program),
      routine_(routine),
      r_(program.routines[routine]),
      plan_(plan),
      w_(weights),
      type_(type),
      f_(frame),
      stream_(stream) {}

View Launches::view(int id) const {
  if (id < 0) return {};
  if (id == r_.output) return {f_.output, f_.output_ld, Type::f32};
  const size_t b = size_t(id);
  return {f_.buffers + f_.capacity * plan_.bytes[b], plan_.lds[b], plan_.types[b]};
}

NormWeights Launches::norm_weights(const Norm& o) const {
  return {o.rms ? NormKind::rms : NormKind::layer, w_.vector(o.weight), w_.vector(o.bias), o.eps};
}

LinearArgs Launches::linear_args(const Linear& o, int norm) const {
  LinearArgs a;
  a.w = w_.matrix(o.weight);
  a.type = type_;
  a.x = view(o.x);
  a.m = count(o.x);
  if (norm >= 0) {
    const Norm& first = std::get<Norm>(r_.ops[size_t(norm)]);
    a.x = view(first.x);
    a.norm = norm_weights(first);
  }
  a.activation = o.activation;
  a.scale = o.scale;
  a.softcap = o.softcap;
  a.residual = view(o.residual);
  a.y = view(o.out);
  return a;
}

// Captures want the norm's own output.
bool Launches::takes_on(size_t linear) const {
  const int norm = plan_.norm[linear];
  return norm >= 0 && f_.capture == nullptr && takes_norm(linear_args(std::get<Linear>(r_.ops[linear]), norm));
}

KvView Launches::kv_view(const KvShape& kv, int layer) const {
  return {kv.format, kv.heads, kv.head_dim, int64_t(kv.offset(layer, 0)),
          int64_t(kv_block_bytes(kv.format, kv.head_dim))};
}

AttendArgs Launches::attend_args(const Attention& o, size_t op) const {
  const OpTables& tables = w_.of(routine_, op);
  AttendArgs a;
  a.q = view(o.qkv);
  a.out = view(o.out);
  a.num_heads = o.num_heads;
  a.scale = o.scale;
  a.softcap = o.softcap;
  a.causal = o.causal;
  a.window = o.window;
  a.bias.table = w_.vector(o.bias.table);
  a.bias.first = o.bias.first;
  a.bias.span = o.bias.span;
  a.bias.slopes = tables.slopes;
  a.bias.c2p = view(o.bias.c2p);
  a.bias.p2c = view(o.bias.p2c);
  a.bias.c2p_index = tables.c2p_index;
  a.bias.p2c_index = tables.p2c_index;
  a.bias.indices = int64_t(o.bias.c2p_index.size());
  a.kv = kv_view(r_.kv, o.layer);
  a.type = type_;
  a.workspace = f_.workspace;
  if (f_.capture) a.weights = f_.capture->weights[op];
  return a;
}

AttendArgs Launches::attend_args(const CrossAttention& o, size_t op) const {
  AttendArgs a;
  a.q = view(o.q);
  a.out = view(o.out);
  a.num_heads = o.num_heads;
  a.scale = o.scale;
  a.causal = false;
  a.cross = true;
  a.kv = kv_view(p_.cross, o.layer);
  a.type = type_;
  a.workspace = f_.workspace;
  if (f_.capture) a.weights = f_.capture->weights[op];
  return a;
}

Launches::Mixture Launches::mixture(const Experts& o) const {
  Mixture m;
  RouteArgs& r = m.route;
  r.router = view(o.router);
  r.rows = count(o.x);
  r.num_experts = int(o.gate_up.size());
  r.top_k = o.top_k;
  r.normalize = o.normalize;
  r.shared = o.shared_gate_up >= 0;
  const int64_t all = r.num_experts + r.shared, each = o.top_k + r.shared, rows = r.rows;
  Carver carver(f_.workspace);
  r.list = carver.take<int32_t>(all * rows);
  r.counts = carver.take<int32_t>(all);
  r.offsets = carver.take<int32_t>(all);
  r.place = carver.take<int32_t>(rows * each);
  r.weights = carver.take<float>(rows * each);
  int64_t width = w_.matrix(o.gate_up[0]).outputs();
  if (r.shared) width = std::max(width, w_.matrix(o.shared_gate_up).outputs());
  m.hidden = carver.rows(rows * each, width, type_);
  m.y = carver.rows(rows * each, buffer(o.x).cols, Type::f32);
  m.linear = carver.bytes();
  if (r.shared)
    carver.take<uint8_t>(
        int64_t(std::max(linear_workspace(shared_args(o, m, false)), linear_workspace(shared_args(o, m, true)))));
  m.bytes = carver.bytes();
  return m;
}

// The shared expert takes all rows, whose compact rows come after those of the others: rows * top_k.
LinearArgs Launches::shared_args(const Experts& o, const Mixture& m, bool down) const {
  const int64_t first = int64_t(m.route.rows) * o.top_k;
  LinearArgs a;
  a.w = w_.matrix(down ? o.shared_down : o.shared_gate_up);
  a.type = type_;
  a.m = m.route.rows;
  a.x = down ? moved(m.hidden, first) : view(o.x);
  a.y = moved(down ? m.y : m.hidden, first);
  if (!down) a.activation = o.activation;
  return a;
}

size_t Launches::needs(const Op& op, size_t index) const {
  return std::visit(
      Overloaded{[&](const Linear& o) -> size_t {
                   if (count(o.x) == 0) return 0;
                   const int norm = takes_on(index) ? plan_.norm[index] : -1;
                   return linear_workspace(linear_args(o, norm));
                 },
                 [&](const Experts& o) { return count(o.x) == 0 ? 0 : mixture(o).bytes; },
                 [&](const Attention& o) { return attend_workspace(attend_args(o, index), f_.step); },
                 [&](const CrossAttention& o) { return attend_workspace(attend_args(o, index), f_.step); },
                 [](const auto&) { return size_t(0); }},
      op);
}

size_t Launches::workspace() {
  size_t most = 0;
  for (size_t i = 0; i < r_.ops.size(); i++) most = std::max(most, needs(r_.ops[i], i));
  return most;
}

void Launches::run(DeviceProfile* profile) {
  if (profile) profile->mark(stream_);
  for (size_t i = 0; i < r_.ops.size(); i++) {
    std::visit([&](const auto& o) { apply(o, i); }, r_.ops[i]);
    if (f_.capture) capture(i);
    if (profile) profile->mark(stream_);
  }
}

void Launches::apply(const Embed& o, size_t) {
  EmbedArgs a;
  a.out = view(o.out);
  a.cols = buffer(o.out).cols;
  a.table = w_.matrix(o.table);
  if (o.positions >= 0) a.positions = w_.matrix(o.positions);
  if (o.types >= 0) a.types = w_.matrix(o.types);
  a.position_offset = o.position_offset;
  a.scale = o.scale;
  a.by_position = o.by_position;
  embed(a, f_.step, stream_);
}

void Launches::apply(const Rotary& o, size_t op) {
  rotary(view(o.out), w_.of(routine_, op).inv_freq, int(o.inv_freq.size()), o.scaling, f_.step, stream_);
}

void Launches::apply(const Norm& o, size_t op) {
  if (count(o.x) == 0) return;
  if (plan_.linear[op] >= 0 && takes_on(size_t(plan_.linear[op]))) return;
  NormArgs a;
  a.x = view(o.x);
  a.out = view(o.out);
  a.residual = view(o.residual);
  a.norm = norm_weights(o);
  a.rows = count(o.x);
  a.n = buffer(o.x).cols;
  norm(a, stream_);
}

void Launches::apply(const HeadNorm& o, size_t op) {
  if (count(o.x) == 0) return;
  HeadNormArgs a;
  a.x = view(o.x);
  a.out = view(o.out);
  a.rms = o.rms;
  a.slices = w_.of(routine_, op).slices;
  a.num_slices = int(o.slices.size());
  a.rows = count(o.x);
  a.cols = buffer(o.x).cols;
  a.eps = o.eps;
  head_norm(a, stream_);
}

void Launches::apply(const Linear& o, size_t op) {
  if (count(o.x) == 0) return;
  linear(linear_args(o, takes_on(op) ? plan_.norm[op] : -1), f_.workspace, stream_);
}

void Launches::apply(const HeadLinear& o, size_t op) {
  if (count(o.x) == 0) return;
  LinearBatch a;
  a.w = w_.of(routine_, op).matrices;
  a.shape = w_.matrix(o.weights[0]);
  a.count = int(o.weights.size());
  a.type = type_;
  a.x = view(o.x);
  a.y = view(o.out);
  a.m = count(o.x);
  a.x_begin = o.begin;
  a.x_step = a.shape.k;
  a.y_step = a.shape.n;
  linear_batch(a, stream_);
}

void Launches::apply(const Experts& o, size_t op) {
  if (count(o.x) == 0) return;
  const Mixture m = mixture(o);
  route(m.route, stream_);
  LinearBatch a;
  a.w = w_.of(routine_, op).matrices;
  a.shape = w_.matrix(o.gate_up[0]);
  a.count = m.route.num_experts;
  a.type = type_;
  a.x = view(o.x);
  a.y = m.hidden;
  a.m = m.route.rows;
  a.activation = o.activation;
  a.list = m.route.list;
  a.list_stride = m.route.rows;
  a.counts = m.route.counts;
  a.offsets = m.route.offsets;
  a.compact_y = true;
  linear_batch(a, stream_);
  a.w = w_.of(routine_, op).down;
  a.shape = w_.matrix(o.down[0]);
  a.x = m.hidden;
  a.y = m.y;
  a.activation = Activation::none;
  a.compact_x = true;
  linear_batch(a, stream_);
  if (m.route.shared)
    for (bool down : {false, true}) linear(shared_args(o, m, down), f_.workspace + m.linear, stream_);
  combine(m.route, m.y, view(o.residual), view(o.out), buffer(o.out).cols, stream_);
}

void Launches::apply(const Attention& o, size_t op) {
  AppendArgs a;
  a.qkv = view(o.qkv);
  a.num_heads = o.num_heads;
  a.rope = view(o.rope);
  a.rotary_dim = o.rope < 0 ? 0 : buffer(o.rope).cols;
  a.interleaved = o.interleaved;
  a.kv = kv_view(r_.kv, o.layer);
  append(a, f_.step, stream_);
  attend(attend_args(o, op), f_.step, stream_);
}

void Launches::apply(const StoreCross& o, size_t) {
  if (f_.has_cross) store_cross(view(o.kv), kv_view(p_.cross, o.layer), f_.step, stream_);
}

void Launches::apply(const CrossAttention& o, size_t op) { attend(attend_args(o, op), f_.step, stream_); }

void Launches::apply(const Select& o, size_t) {
  if (count(o.out) == 0) return;
  select(view(o.x), view(o.out), buffer(o.x).cols, f_.step, stream_);
}

// Copies what the op wrote, before anything may overwrite it (attention turns its input, memory is used again).
void Launches::capture(size_t op) {
  float* to = f_.capture->rows[op];
  const int out = writes(r_.ops[op]);
  if (to == nullptr || out < 0 || count(out) == 0) return;
  widen(view(out), count(out), buffer(out).cols, to, stream_);
}

}  // namespace cuda
}  // namespace pyllm
