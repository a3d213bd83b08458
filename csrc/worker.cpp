#include "worker.h"

#include <algorithm>
#include <cstring>

namespace pyllm {
namespace {

constexpr int kChunkRows = 192;  // rows of a matmul of part of a row: what is gathered or prepared stays in the caches
constexpr int64_t kSummaryFloats = 1 << 16;  // 256 KB of outputs: within the second-level cache

}  // namespace

int Worker::chunk_rows(int64_t rows) { return int(std::min<int64_t>(rows, kChunkRows)); }

size_t Worker::most_prepared(const Kernels& kernels, Format format, int rows, int64_t inputs) {
  size_t bytes = 0;
  for (int m = 1; m <= std::min(rows, 16); m++) bytes = std::max(bytes, kernels.prepared_bytes(format, m, inputs));
  return std::max(bytes, kernels.prepared_bytes(format, rows, inputs));
}

Worker::Worker(const StepShared& shared, const ScratchSizes& sizes, Team& team)
    : s_(shared), b_(shared.step.batch()), p_(shared.program), r_(shared.routine), k_(shared.kernels), team_(team) {
  uint8_t* mine = shared.scratch + size_t(team.index) * shared.scratch_bytes;
  normed_ = reinterpret_cast<float*>(mine);
  prepared_ = mine + sizes.norm;
  bias_ = reinterpret_cast<float*>(prepared_ + sizes.prepared);
  local_ = prepared_ + sizes.prepared + sizes.bias;
  work_ = local_ + sizes.local;
}

void Worker::run() {
  const std::vector<Phase>& phases = s_.plan.of(s_.sharing);
  if (s_.times && team_.index == 0) return run_timed(phases);
  for (const Phase& phase : phases) {
    if (phase.barrier) team_.barrier();
    run(phase);
  }
}

void Worker::run(const Phase& phase) {
  const Op& op = r_.ops[size_t(phase.op)];
  if (phase.kind == Phase::Kind::prepare) {
    prepare(std::get<Linear>(op));
  } else {
    std::visit([&](const auto& o) { apply(o, phase); }, op);
    if (s_.capture) capture(phase);
  }
}

void Worker::run_timed(const std::vector<Phase>& phases) {
  for (const Phase& phase : phases) {
    if (phase.barrier) barrier();  // waiting is the fault of what came before
    now_ = &s_.times->ops[size_t(phase.op)];
    run(phase);
    now_->seconds += watch_.lap();
    if (phase.kind != Phase::Kind::whole) continue;
    now_->calls++;
    now_->bytes += bytes_read(p_, r_, r_.ops[size_t(phase.op)], s_.step);
    watch_.lap();
  }
}

void Worker::barrier() {
  if (now_) now_->seconds += watch_.lap();
  team_.barrier();
  if (now_) now_->waited += watch_.lap();
}

void Worker::clear_padding(int id, float* y) const {
  const int64_t n = buffer(id).cols;
  std::memset(y + n, 0, size_t(round_up(n, kPanel) - n) * sizeof(float));
}

Team::Range Worker::my_rows(int64_t rows) const {
  const Team::Range blocks = team_.part((rows + 15) / 16);
  return {16 * blocks.begin, std::min(rows, 16 * blocks.end)};
}

void Worker::apply(const Embed& o, const Phase&) {
  const Team::Range mine = my_rows(b_.rows);
  for (int64_t r = mine.begin; r < mine.end; r++) {
    float* y = row(o.out, r);
    const int64_t position = b_.positions[r] + o.position_offset;
    look_up(matrix(o.table), s_.weights.matrix(o.table), o.by_position ? position : b_.ids[r], o.scale, false, y);
    if (o.positions >= 0) look_up(matrix(o.positions), s_.weights.matrix(o.positions), position, 1.0f, true, y);
    if (o.types >= 0)
      look_up(matrix(o.types), s_.weights.matrix(o.types), b_.token_types ? b_.token_types[r] : 0, 1.0f, true, y);
    clear_padding(o.out, y);
  }
}

void Worker::apply(const Rotary& o, const Phase& phase) {
  const Team::Range mine = my_rows(b_.rows);
  for (int64_t r = mine.begin; r < mine.end; r++) {
    float* y = row(o.out, r);
    std::memcpy(y, s_.rotary.row(phase.op, b_.positions[r]), size_t(buffer(o.out).cols) * sizeof(float));
    clear_padding(o.out, y);
  }
}

void Worker::normalise(bool rms, const float* x, const float* weight, const float* bias, float eps, int64_t n,
                       int64_t padded, float* y) const {
  if (rms) k_.rms_norm(x, weight, eps, n, padded, y);
  else k_.layer_norm(x, weight, bias, eps, n, padded, y);
}

void Worker::norm_row(const Norm& o, int64_t r, float* y) const {
  const int64_t n = buffer(o.x).cols;
  const float* bias = o.bias < 0 ? nullptr : s_.weights.vector(o.bias);
  normalise(o.rms, row(o.x, r), s_.weights.vector(o.weight), bias, o.eps, n, round_up(n, kPanel), y);
  if (o.residual < 0) return;
  const float* residual = row(o.residual, r);
  for (int64_t i = 0; i < n; i++) y[i] = residual[i] + y[i];
}

void Worker::apply(const Norm& o, const Phase&) {
  const Team::Range mine = my_rows(count(o.x));
  for (int64_t r = mine.begin; r < mine.end; r++) norm_row(o, r, row(o.out, r));
}

void Worker::apply(const HeadNorm& o, const Phase&) {
  const Team::Range mine = my_rows(count(o.x));
  for (int64_t r = mine.begin; r < mine.end; r++) {
    const float* x = row(o.x, r);
    float* y = row(o.out, r);
    std::memcpy(y, x, size_t(buffer(o.x).cols) * sizeof(float));
    clear_padding(o.out, y);
    for (const NormSlice& slice : o.slices) {
      // One vector for all groups, or one as long as all of them.
      const auto part = [&](int vector, int64_t group) -> const float* {
        if (vector < 0) return nullptr;
        return s_.weights.vector(vector) + (p_.vectors[size_t(vector)] == slice.width ? 0 : group * slice.width);
      };
      for (int64_t g = 0; g < slice.count; g++) {
        const int64_t at = slice.begin + g * slice.width;
        normalise(o.rms, x + at, part(slice.weight, g), part(slice.bias, g), o.eps, slice.width, slice.width, y + at);
      }
    }
  }
}

void Worker::prepare(const Linear& o) {
  const int64_t m = count(o.x);
  const Team::Range mine = my_rows(m);
  if (mine.begin < mine.end)
    k_.prepare(matrix(o.weight).format, row(o.x, 0), ld(o.x), int(m), buffer(o.x).cols, int(mine.begin), int(mine.end),
               s_.prepared);
}

void Worker::fill_normed(const Phase& phase, int64_t rows) {
  const Norm& norm = std::get<Norm>(r_.ops[size_t(phase.norm)]);
  const int64_t width = ld(norm.out);
  for (int64_t r = 0; r < rows; r++) norm_row(norm, r, normed_ + r * width);
  if (!phase.store) return;
  const Team::Range mine = team_.part(rows);
  for (int64_t r = mine.begin; r < mine.end; r++)
    std::memcpy(row(norm.out, r), normed_ + r * width, size_t(round_up(buffer(norm.out).cols, kPanel)) * sizeof(float));
}

// All but activation, x, residual and y.
LinearArgs Worker::linear_args(int id, int m) const {
  const MatrixShape& shape = matrix(id);
  LinearArgs a{};
  a.format = shape.format;
  a.gated = shape.gated;
  a.m = m;
  a.n = shape.n();
  a.k = shape.k;
  a.weights = s_.weights.matrix(id);
  a.bias = s_.weights.bias(id);
  return a;
}

void Worker::apply(const Linear& o, const Phase& phase) {
  const int64_t m = count(o.x);
  if (m == 0) return;
  LinearArgs a = linear_args(o.weight, int(m));
  a.activation = o.activation;
  a.x_ld = ld(o.x);
  a.residual = o.residual < 0 ? nullptr : row(o.residual, 0);
  a.residual_ld = o.residual < 0 ? 0 : ld(o.residual);
  a.y = row(o.out, 0);
  a.y_ld = ld(o.out);
  a.scale = o.scale;
  a.softcap = o.softcap;
  if (phase.by_rows) return linear_of_rows(o, a);
  const bool prepares = k_.prepared_bytes(a.format, int(m), a.k) != 0, own = s_.sharing == Sharing::repeat;
  const float* x = phase.norm >= 0 ? normed_ : row(o.x, 0);
  if (phase.fill) {
    if (phase.norm >= 0) fill_normed(phase, m);
    if (prepares) k_.prepare(a.format, x, a.x_ld, int(m), a.k, 0, int(m), prepared_);
  }
  a.x = !prepares ? static_cast<const void*>(x) : own ? prepared_ : s_.prepared;
  if (phase.by_heads) return linear_of_heads(o, a, phase);
  linear_panels(o, a, team_.part(matrix(o.weight).panels()));
}

// Where they are to be summarised, so many panels at a time that their outputs are still in the cache.
void Worker::linear_panels(const Linear& o, const LinearArgs& a, Team::Range panels) {
  if (panels.begin >= panels.end) return;
  if (s_.summary == nullptr || o.out != r_.output) return k_.linear(a, int(panels.begin), int(panels.end), work_);
  const int64_t width = buffer(o.out).cols, all = round_up(width, kPanel) / kPanel;
  const int64_t each = std::max<int64_t>(kSummaryFloats / kPanel / std::max(a.m, 1), 4);
  for (int64_t p = panels.begin, end; p < panels.end; p = end) {
    end = std::min(p + each, panels.end);
    k_.linear(a, int(p), int(end), work_);
    for (int64_t r = 0; r < a.m; r++)
      for (int64_t i = p; i < end; i++)
        k_.summarise(a.y + r * a.y_ld + i * kPanel, std::min<int64_t>(kPanel, width - i * kPanel),
                     s_.scales ? s_.scales[r] : 1.0f, s_.summary + (r * all + i) * 2);
  }
}

// The columns of the heads that this worker will attend with: so many queries, then keys and values, as there are.
void Worker::linear_of_heads(const Linear& o, const LinearArgs& a, const Phase& phase) {
  const Op& op = r_.ops[size_t(phase.attention)];
  const KvShape& kv = std::holds_alternative<Attention>(op) ? r_.kv : p_.cross;
  const Team::Range heads = own_heads(kv);
  if (team_.size == 1) return linear_panels(o, a, {0, matrix(o.weight).panels()});
  const int64_t columns = buffer(o.out).cols / kv.head_dim;  // in heads
  const int64_t keys = std::holds_alternative<CrossAttention>(op) ? 0 : 2;
  const int64_t queries = columns - keys * kv.heads, group = queries / kv.heads;
  const auto part = [&](int64_t first, int64_t each) {  // heads from `first` on, `each` for each kv head
    const int64_t e = kv.head_dim;
    linear_panels(o, a, {(first + heads.begin * each) * e / kPanel, (first + heads.end * each) * e / kPanel});
  };
  if (group > 0) part(0, group);
  for (int64_t i = 0; i < keys; i++) part(queries + i * kv.heads, 1);
}

// All outputs of this worker's rows, whose inputs it prepares itself.
void Worker::linear_of_rows(const Linear& o, LinearArgs a) {
  const Team::Range mine = my_rows(a.m);
  const LinearArgs whole = a;
  for (int64_t r = mine.begin; r < mine.end; r += a.m) {
    a.m = int(std::min(mine.end - r, kMatmulRows));
    a.x = row(o.x, r);
    if (k_.prepared_bytes(a.format, a.m, a.k) != 0) {
      k_.prepare(a.format, row(o.x, r), a.x_ld, a.m, a.k, 0, a.m, prepared_);
      a.x = prepared_;
    }
    if (whole.residual) a.residual = whole.residual + r * a.residual_ld;
    a.y = whole.y + r * a.y_ld;
    k_.linear(a, 0, matrix(o.weight).panels(), work_);
  }
}

void Worker::apply(const Select& o, const Phase&) {
  const Team::Range mine = my_rows(b_.logits);
  for (int64_t r = mine.begin; r < mine.end; r++) {
    float* y = row(o.out, r);
    std::memcpy(y, row(o.x, b_.logit_rows[r]), size_t(buffer(o.x).cols) * sizeof(float));
    clear_padding(o.out, y);
  }
}

// Copies what the op wrote, before anything may overwrite it (attention turns its input, memory is used again).
void Worker::capture(const Phase& phase) {
  float* to = s_.capture->rows[size_t(phase.op)];
  if (to == nullptr) return;
  const int out = writes(r_.ops[size_t(phase.op)]);
  const int64_t cols = buffer(out).cols;
  barrier();
  const Team::Range mine = my_rows(count(out));
  for (int64_t r = mine.begin; r < mine.end; r++) std::memcpy(to + r * cols, row(out, r), size_t(cols) * sizeof(float));
  barrier();
}

}  // namespace pyllm
