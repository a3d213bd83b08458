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
  const int m = chunk_rows(std::max<int64_t>(rows, kFewRows));
  const int64_t width = program.matrices[size_t(op.weights[0])].shape.k;
  const size_t prepared = most_prepared(kernels, program.format, m, width);
  return result_offset(prepared) + size_t(m) * kPanel * sizeof(float);
}

void Worker::apply(const HeadLinear& o, const Phase&) {
  const int64_t rows = count(o.x), panels = matrix(o.weights[0]).panels(), heads = int64_t(o.weights.size());
  if (rows == 0) return;
  const Team::Range mine = team_.part(heads * panels);
  for (int64_t at = mine.begin, next; at < mine.end; at = next) {
    const int64_t head = at / panels;
    next = std::min((head + 1) * panels, mine.end);
    head_panels(o, int(head), int(at - head * panels), int(next - head * panels));
  }
  if (mine.begin < mine.end && mine.end == heads * panels)
    for (int64_t r = 0; r < rows; r++) clear_padding(o.out, row(o.out, r));
}

// Panels [p0, p1) of one head, all rows.
void Worker::head_panels(const HeadLinear& o, int head, int p0, int p1) {
  const int64_t rows = count(o.x), n = matrix(o.weights[size_t(head)]).outputs();
  const int whole = std::min(p1, int(n / kPanel));  // panels that are full
  for (int64_t r = 0, m; r < rows; r += m) {
    m = chunk_rows(rows - r);
    LinearArgs a = linear_args(o.weights[size_t(head)], int(m));
    const float* x = row(o.x, r) + o.begin + head * a.k;
    const size_t prepared = k_.prepared_bytes(p_.format, int(m), a.k);
    if (prepared != 0) k_.prepare(p_.format, x, ld(o.x), int(m), a.k, 0, int(m), local_);
    a.activation = Activation::none;
    a.x = prepared != 0 ? static_cast<const void*>(local_) : x;
    a.x_ld = ld(o.x);
    a.y = row(o.out, r) + head * n;
    a.y_ld = ld(o.out);
    if (p0 < whole) k_.linear(a, p0, whole, work_);
    if (whole == p1) continue;
    const int64_t first = int64_t(whole) * kPanel;
    float *out = a.y + first, *result = reinterpret_cast<float*>(local_ + result_offset(prepared));
    a.weights += size_t(whole) * panel_bytes(p_.format, a.k);
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
