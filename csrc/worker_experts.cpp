// A worker's part of a mixture of experts, in two halves with a barrier between: hidden rows of all experts that were
// chosen, panels of their gated projections divided evenly; then their outputs, where each worker owns columns and adds
// expert after expert in ascending order. So a row's result depends on no other row.
//
// Rows of one expert are gathered by each worker that works on it: cheap beside a panel of weights, and no barrier.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "worker.h"

namespace pyllm {
namespace {

// Consecutive parts of memory, 64-byte aligned; with base nullptr their sizes are summed up only.
class Carver {
 public:
  explicit Carver(uint8_t* base) : base_(base) {}
  template <class T>
  T* take(int64_t count) {
    uint8_t* at = base_ ? base_ + size_ : nullptr;
    size_ += size_t(round_up(count * int64_t(sizeof(T)), 64));
    return reinterpret_cast<T*>(at);
  }
  size_t size() const { return size_; }

 private:
  uint8_t* base_;
  size_t size_ = 0;
};

// Up to so many rows every worker chooses their experts for itself.
constexpr int kFewRows = 4;

// The rows that one expert works on, and where their hidden rows begin.
struct Expert {
  int gate_up, down;
  int64_t first, count;  // entries of Worker::ExpertWork::sorted; the shared expert: all rows
  bool shared;
};

}  // namespace

// Memory of one mixture: shared by all workers (hidden, and the routing of many rows), and this worker's own.
struct Worker::ExpertWork {
  ExpertWork(const Program& p, const Experts& o, const Kernels& kernels, int64_t rows, bool few, float* shared,
             uint8_t* own)
      : shape(p, o), experts(int(o.gate_up.size())), top_k(o.top_k) {
    const int64_t width = p.matrices[size_t(o.gate_up[0])].shape.k;
    Carver mine(own);
    first = mine.take<int32_t>(experts + 1);
    sorted = mine.take<int32_t>(rows * top_k);
    odds = mine.take<float>(experts + 16);
    gathered = mine.take<float>(chunk_rows(rows) * hidden_width(width));
    result = mine.take<float>(chunk_rows(rows) * round_up(width, kPanel));
    size_t most = 0;
    for (int id : {o.gate_up[0], o.down[0], o.shared_gate_up, o.shared_down})
      if (id >= 0)
        most =
            std::max(most, most_prepared(kernels, p.matrices[size_t(id)].shape.format, chunk_rows(rows), shape.inputs));
    prepared = mine.take<uint8_t>(int64_t(most));
    chosen = mine.take<int32_t>(few ? rows * top_k : 0);
    weights = mine.take<float>(few ? rows * (top_k + 1) : 0);
    bytes = mine.size();
    if (!shared) return;
    hidden = shared;
    shared_hidden = hidden + rows * top_k * shape.routed_ld;
    if (few) return;
    weights = shared_hidden + rows * shape.shared_ld;
    chosen = reinterpret_cast<int32_t*>(weights + rows * (top_k + 1));
  }
  static int64_t hidden_width(int64_t columns) { return round_up(columns, kPanel) + 16; }
  float* hidden_of(const Expert& e) const { return e.shared ? shared_hidden : hidden + e.first * shape.routed_ld; }
  int64_t hidden_ld(const Expert& e) const { return e.shared ? shape.shared_ld : shape.routed_ld; }
  int64_t row_of(const Expert& e, int64_t i) const { return e.shared ? i : sorted[e.first + i] / top_k; }
  float weight_of(const Expert& e, int64_t i) const {
    if (e.shared) return weights[i * (top_k + 1) + top_k];
    const int64_t entry = sorted[e.first + i];
    return weights[entry / top_k * (top_k + 1) + entry % top_k];
  }
  // Calls use(expert) for those that rows chose, in ascending order, the shared one last.
  template <class Use>
  void for_chosen(const Experts& o, int64_t rows, const Use& use) const {
    for (int e = 0; e < experts; e++)
      if (first[e + 1] > first[e])
        use(Expert{o.gate_up[size_t(e)], o.down[size_t(e)], first[e], first[e + 1] - first[e], false});
    if (o.shared_gate_up >= 0) use(Expert{o.shared_gate_up, o.shared_down, 0, rows, true});
  }

  ExpertShape shape;
  const int experts, top_k;
  int32_t *first, *sorted;  // entries of expert e: sorted[first[e] .. first[e + 1]); an entry is row * top_k + i
  float *odds, *gathered, *result;
  uint8_t* prepared;
  int32_t* chosen;                                    // [rows][top_k]
  float* weights;                                     // [rows][top_k + 1], the last: of the shared expert
  float *hidden = nullptr, *shared_hidden = nullptr;  // [rows * top_k][routed_ld], [rows][shared_ld]
  size_t bytes;
};

size_t Worker::expert_scratch(const Program& program, const Experts& op, const Kernels& kernels, int64_t rows) {
  const auto bytes = [&](int64_t m, bool few) {
    return ExpertWork(program, op, kernels, m, few, nullptr, nullptr).bytes;
  };
  return std::max(bytes(std::max<int64_t>(rows, kFewRows), false), bytes(kFewRows, true));
}

// Chooses by the logits (softmax keeps their order), the lower index of equals.
void Worker::route(const Experts& o, int64_t row0, int64_t row1, ExpertWork& work) const {
  for (int64_t r = row0; r < row1; r++) {
    const float* logits = row(o.router, r);
    int32_t* chosen = work.chosen + r * work.top_k;
    float* weights = work.weights + r * (work.top_k + 1);
    float* left = work.odds;
    std::copy(logits, logits + work.experts, left);
    float sum = 0;
    for (int i = 0; i < work.top_k; i++) {
      int best = -1;
      for (int e = 0; e < work.experts; e++) {
        const bool taken = std::find(chosen, chosen + i, e) != chosen + i;
        if (!taken && (best < 0 || left[e] > left[best])) best = e;
      }
      chosen[i] = best;
    }
    k_.softmax(work.experts, left);
    for (int i = 0; i < work.top_k; i++) sum += weights[i] = left[chosen[i]];
    for (int i = 0; o.normalize && i < work.top_k; i++) weights[i] /= sum;
    weights[work.top_k] = o.shared_gate_up < 0 ? 0.0f : float(1 / (1 + std::exp(-double(logits[work.experts]))));
  }
}

// Counting sort of the choices by expert; rows stay ascending.
void Worker::sort_rows(const Experts&, int64_t rows, ExpertWork& work) const {
  const int64_t entries = rows * work.top_k;
  std::fill(work.first, work.first + work.experts + 1, 0);
  for (int64_t i = 0; i < entries; i++) work.first[work.chosen[i] + 1]++;
  for (int e = 0; e < work.experts; e++) work.first[e + 1] += work.first[e];
  for (int64_t i = 0; i < entries; i++) work.sorted[work.first[work.chosen[i]]++] = int32_t(i);
  for (int e = work.experts; e > 0; e--) work.first[e] = work.first[e - 1];
  work.first[0] = 0;
}

// x as a matmul takes it.
const void* Worker::expert_input(const float* x, int64_t x_ld, const LinearArgs& a, ExpertWork& work) const {
  if (k_.prepared_bytes(a.format, a.m, a.k) == 0) return x;
  k_.prepare(a.format, x, x_ld, a.m, a.k, 0, a.m, work.prepared);
  return work.prepared;
}

void Worker::expert_hidden(const Experts& o, const Phase& phase, ExpertWork& work) {
  const int64_t rows = count(o.x), x_ld = ld(o.x);
  const float* x = phase.norm >= 0 ? normed_ : row(o.x, 0);
  const auto cost = [](const Expert& e) { return 16 + e.count; };  // of a panel: reading it, and its rows
  int64_t total = 0, at = 0;
  work.for_chosen(o, rows, [&](const Expert& e) { total += matrix(e.gate_up).panels() * cost(e); });
  const Team::Range mine = team_.part(total);
  work.for_chosen(o, rows, [&](const Expert& e) {
    const int64_t panels = matrix(e.gate_up).panels(), each = cost(e);
    const auto panel_at = [&](int64_t place) {
      return int(std::clamp((place - at + each - 1) / each, int64_t(0), panels));
    };
    const int p0 = mine.begin <= at ? 0 : panel_at(mine.begin), p1 = mine.end <= at ? 0 : panel_at(mine.end);
    at += panels * each;
    for (int64_t i = 0, m; p0 < p1 && i < e.count; i += m) {
      m = chunk_rows(e.count - i);
      const int64_t row0 = work.row_of(e, i);
      const float* from = x + row0 * x_ld;
      if (work.row_of(e, i + m - 1) - row0 != m - 1) {
        for (int64_t j = 0; j < m; j++)
          std::memcpy(work.gathered + j * x_ld, x + work.row_of(e, i + j) * x_ld, size_t(x_ld) * sizeof(float));
        from = work.gathered;
      }
      LinearArgs a = linear_args(e.gate_up, int(m));
      a.activation = o.activation;
      a.x = expert_input(from, x_ld, a, work);
      a.x_ld = x_ld;
      a.y_ld = work.hidden_ld(e);
      a.y = work.hidden_of(e) + i * a.y_ld;
      k_.linear(a, p0, p1, work_);
    }
  });
}

void Worker::expert_outputs(const Experts& o, ExpertWork& work) {
  const int64_t rows = count(o.x), width = buffer(o.out).cols;
  const Team::Range mine = team_.part(matrix(o.down[0]).panels());
  if (mine.begin == mine.end) return;
  const int64_t first = mine.begin * kPanel, columns = std::min(width, mine.end * kPanel) - first;
  for (int64_t r = 0; r < rows; r++) {
    if (first + columns == width) clear_padding(o.out, row(o.out, r));
    if (o.residual >= 0)
      std::memcpy(row(o.out, r) + first, row(o.residual, r) + first, size_t(columns) * sizeof(float));
    else std::memset(row(o.out, r) + first, 0, size_t(columns) * sizeof(float));
  }
  work.for_chosen(o, rows, [&](const Expert& e) {
    for (int64_t i = 0, m; i < e.count; i += m) {
      m = chunk_rows(e.count - i);
      LinearArgs a = linear_args(e.down, int(m));
      const int64_t hidden_ld = work.hidden_ld(e);
      a.activation = Activation::none;
      a.x = expert_input(work.hidden_of(e) + i * hidden_ld, hidden_ld, a, work);
      a.x_ld = hidden_ld;
      a.weights += size_t(mine.begin) * panel_bytes(a.format, a.k);  // y holds this worker's columns only
      if (a.bias) a.bias += first;
      a.n -= first;
      a.y = work.result;
      a.y_ld = (mine.end - mine.begin) * kPanel;
      k_.linear(a, 0, int(mine.end - mine.begin), work_);
      for (int64_t j = 0; j < m; j++) {
        const float weight = work.weight_of(e, i + j);
        const float* y = work.result + j * a.y_ld;
        float* out = row(o.out, work.row_of(e, i + j)) + first;
        for (int64_t c = 0; c < columns; c++) out[c] += weight * y[c];
      }
    }
  });
}

void Worker::apply(const Experts& o, const Phase& phase) {
  const int64_t rows = count(o.x);
  if (rows == 0) return;
  if (phase.fill) fill_normed(phase, rows);
  const bool few = s_.sharing == Sharing::repeat && rows <= kFewRows;
  ExpertWork work(p_, o, k_, rows, few, row(o.hidden, 0), local_);
  if (few) {
    route(o, 0, rows, work);
  } else {
    const Team::Range mine = my_rows(rows);
    route(o, mine.begin, mine.end, work);
    barrier();
  }
  sort_rows(o, rows, work);
  expert_hidden(o, phase, work);
  if (now_)
    work.for_chosen(
        o, rows, [&](const Expert& e) { now_->bytes += double(matrix(e.gate_up).bytes() + matrix(e.down).bytes()); });
  barrier();
  expert_outputs(o, work);
}

}  // namespace pyllm
