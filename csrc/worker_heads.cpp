// A worker's part of a linear with a matrix a head: the panels of all heads are divided evenly. Each worker prepares
// the columns of its heads by itself: cheap beside a panel, and no barrier.
#include <algorithm>
#include <cstring>

#include "worker.h"

namespace pyllm {
namespace {

// Kernels write whole panels: a last one that is not full would run into the next head, so it goes through memory of
// its own, one chunk of rows at a time, after the prepared rows.
size_t result_offset(size_t prepared) { return size_t(round_up(int64_t(prepared), 64)); }

}  // namespace

size_t Worker::head_scratch(const Program& program, const HeadLinear& op, const Kernels& kernels, int64_t rows) {
  const int m = chunk_rows(rows);
  const int64_t width = program.matrices[size_t(op.weights[0])].shape.k;
  const size_t prepared = most_prepared(kernels, program.matrices[size_t(op.weights[0])].shape.format, m, width);
  return result_offset(prepared) + size_t(m) * kPanel * sizeof(float);
}

void Worker::apply(const HeadLinear& o, const Phase& phase) {
  const int64_t rows = count(o.x), heads = int64_t(o.weights.size());
  if (rows == 0) return;
  const Team::Range wanted = wanted_panels(o, s_.capture ? -1 : phase.reader);
  const int64_t panels = wanted.end - wanted.begin;
  const Team::Range mine = team_.part(heads * panels);
  for (int64_t at = mine.begin, next; at < mine.end; at = next) {
    const int64_t head = at / panels, skipped = wanted.begin - head * panels;
    next = std::min((head + 1) * panels, mine.end);
    head_panels(o, int(head), int(at + skipped), int(next + skipped));
  }
  if (mine.begin < mine.end && mine.end == heads * panels)
    for (int64_t r = 0; r < rows; r++) clear_padding(o.out, row(o.out, r));
}

// Panels of every head that hold what the reader, an attention, will look up: short texts have no large distances.
Team::Range Worker::wanted_panels(const HeadLinear& o, int reader) const {
  if (reader < 0) return {0, matrix(o.weights[0]).panels()};
  const ScoreBias& bias = std::get<Attention>(r_.ops[size_t(reader)]).bias;
  const std::vector<int>& index = bias.c2p == o.out ? bias.c2p_index : bias.p2c_index;
  const int64_t last = int64_t(index.size()) - 1, longest = s_.step.longest();
  const int64_t begin = std::clamp(1 - longest - bias.first, int64_t(0), last);
  const int64_t end = std::clamp(longest - 1 - bias.first, int64_t(0), last);
  const auto range = std::minmax_element(index.begin() + begin, index.begin() + end + 1);
  return {*range.first / kPanel, *range.second / kPanel + 1};
}

// Panels [p0, p1) of one head, all rows.
void Worker::head_panels(const HeadLinear& o, int head, int p0, int p1) {
  const int64_t rows = count(o.x), n = matrix(o.weights[size_t(head)]).outputs();
  const int whole = std::min(p1, int(n / kPanel));  // panels that are full
  for (int64_t r = 0, m; r < rows; r += m) {
    m = chunk_rows(rows - r);
    LinearArgs a = linear_args(o.weights[size_t(head)], int(m));
    const float* x = row(o.x, r) + o.begin + head * a.k;
    const size_t prepared = k_.prepared_bytes(a.format, int(m), a.k);
    if (prepared != 0) k_.prepare(a.format, x, ld(o.x), int(m), a.k, 0, int(m), local_);
    a.activation = Activation::none;
    a.x = prepared != 0 ? static_cast<const void*>(local_) : x;
    a.x_ld = ld(o.x);
    a.y = row(o.out, r) + head * n;
    a.y_ld = ld(o.out);
    if (p0 < whole) k_.linear(a, p0, whole, work_);
    if (whole == p1) continue;
    const int64_t first = int64_t(whole) * kPanel;
    float *out = a.y + first, *result = reinterpret_cast<float*>(local_ + result_offset(prepared));
    a.weights += size_t(whole) * panel_bytes(a.format, a.k);
    if (a.bias) a.bias += first;
    a.n -= first;
    a.y = result;
    a.y_ld = kPanel;
    k_.linear(a, 0, 1, work_);
    for (int64_t i = 0; i < m; i++)
      std::memcpy(out + i * ld(o.out), result + i * kPanel, size_t(n - first) * sizeof(float));
  }
}

}  // namespace pyllm
