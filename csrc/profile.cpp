#include "profile.h"

#include <algorithm>

#include "overloaded.h"

namespace pyllm {
namespace {

double row_bytes(const MatrixShape& shape) { return double(shape.bytes()) / double(shape.outputs()); }

// Keys and values of one layer that the rows of all sequences see, each block once.
double own_keys(const Routine& r, const Attention& o, const Batch& b) {
  double blocks = 0;
  for (int64_t s = 0; s < b.sequences; s++) {
    const int64_t first = b.positions[b.starts[s]], unseen = o.window > 0 ? first - o.window + 1 : 0;
    blocks += double((b.context[s] - 1) / kBlockTokens + 1 - std::max<int64_t>(unseen, 0) / kBlockTokens);
  }
  return blocks * double(r.kv.heads) * double(kv_block_bytes(r.kv.format, r.kv.head_dim));
}

double cross_keys(const KvShape& kv, const Step& step) {
  double blocks = 0;
  for (const AttendTask& task : step.cross_tasks())
    if (task.first == 0)  // the others of these sequences find the keys in the cache
      blocks += double((step.batch().cross_context[task.sequence] - 1) / kBlockTokens + 1);
  return blocks * double(kv.heads) * double(kv_block_bytes(kv.format, kv.head_dim));
}

}  // namespace

double bytes_read(const Program& p, const Routine& r, const Op& op, const Step& step) {
  const Batch& b = step.batch();
  const auto shape = [&](int id) -> const MatrixShape& { return p.matrices[size_t(id)].shape; };
  const auto rows = [&](int id) { return r.buffers[size_t(id)].rows == Rows::T ? b.rows : b.logits; };
  return std::visit(
      Overloaded{[&](const Embed& o) {
                   double each = 0;
                   for (int id : {o.table, o.positions, o.types})
                     if (id >= 0) each += row_bytes(shape(id));
                   return each * double(b.rows);
                 },
                 [&](const Linear& o) { return rows(o.x) ? double(shape(o.weight).bytes()) : 0.0; },
                 [&](const HeadLinear& o) { return double(o.weights.size()) * double(shape(o.weights[0]).bytes()); },
                 [&](const Attention& o) { return own_keys(r, o, b); },
                 [&](const CrossAttention&) { return cross_keys(p.cross, step); }, [](const auto&) { return 0.0; }},
      op);
}

}  // namespace pyllm
