#include "capture.h"

#include <functional>
#include <numeric>
#include <utility>

#include "errors.h"

namespace pyllm {
namespace {

size_t bytes_of(const std::vector<int64_t>& shape) {
  return size_t(std::accumulate(shape.begin(), shape.end(), int64_t(1), std::multiplies<int64_t>())) * sizeof(float);
}

size_t op_writing(const Routine& r, int buffer) {
  for (size_t i = 0; i < r.ops.size(); i++)
    if (buffer >= 0 && writes(r.ops[i]) == buffer) return i;
  throw Error(ErrorKind::array,
              text("[capture] no operation of ", r.name, " writes buffer ", buffer, "; use the ids the program gave"));
}
Error named_twice(int buffer) {
  return Error(ErrorKind::array, text("[capture] buffer ", buffer, " was named twice; name it once"));
}

}  // namespace

Array::Array(std::vector<int64_t> dims) : shape(std::move(dims)), data(bytes_of(shape), "captured values") {}

CaptureTargets prepare_capture(const Routine& r, const Batch& b, Capture& capture) {
  CaptureTargets targets;
  targets.rows.assign(r.ops.size(), nullptr);
  targets.weights.resize(r.ops.size());
  for (int wanted : capture.buffers) {
    const size_t op = op_writing(r, wanted);
    const Buffer& buffer = r.buffers[size_t(wanted)];
    if (targets.rows[op]) throw named_twice(wanted);
    capture.values.emplace_back(std::vector<int64_t>{buffer.rows == Rows::T ? b.rows : b.logits, buffer.cols});
    targets.rows[op] = capture.values.back().floats();
  }
  for (int wanted : capture.attentions) {
    const size_t op = op_writing(r, wanted);
    const bool own = std::holds_alternative<Attention>(r.ops[op]);
    if (!own && !std::holds_alternative<CrossAttention>(r.ops[op]))
      throw Error(ErrorKind::array, "[capture] weights are those of attention; name the output of one");
    if (!targets.weights[op].empty()) throw named_twice(wanted);
    capture.weights.emplace_back();
    for (int64_t s = 0; s < b.sequences; s++) {
      const int64_t rows = b.starts[s + 1] - b.starts[s], keys = (own ? b.context : b.cross_context)[s];
      capture.weights.back().emplace_back(std::vector<int64_t>{own ? r.heads() : r.cross_heads(), rows, keys});
      targets.weights[op].push_back(capture.weights.back().back().floats());
    }
  }
  return targets;
}

}  // namespace pyllm
