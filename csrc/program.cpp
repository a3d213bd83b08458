#include "program.h"

#include <algorithm>
#include <iterator>

#include "overloaded.h"

namespace pyllm {
namespace {

template <class Wanted>
const Wanted* first_of(const std::vector<Op>& ops) {
  for (const Op& op : ops)
    if (const Wanted* wanted = std::get_if<Wanted>(&op)) return wanted;
  return nullptr;
}

int64_t hidden_ld(int64_t columns) { return round_up(columns, kPanel) + 16; }

}  // namespace

std::vector<int> reads(const Op& op) {
  // What an op cannot do without, then what may be -1.
  using Ids = std::vector<int>;
  const auto list = [](Ids needed, const Ids& optional = {}) {
    std::copy_if(optional.begin(), optional.end(), std::back_inserter(needed), [](int id) { return id != -1; });
    return needed;
  };
  return std::visit(
      Overloaded{
          [](const Embed&) { return Ids{}; }, [](const Rotary&) { return Ids{}; },
          [&](const Norm& o) { return list({o.x}, {o.residual}); }, [&](const HeadNorm& o) { return list({o.x}); },
          [&](const Linear& o) { return list({o.x}, {o.residual}); }, [&](const HeadLinear& o) { return list({o.x}); },
          [&](const Experts& o) {
            return list({o.x, o.router}, {o.residual});
          },
          [&](const Attention& o) {
            return list({o.qkv}, {o.rope, o.bias.c2p, o.bias.p2c});
          },
          [&](const StoreCross& o) { return list({o.kv}); }, [&](const CrossAttention& o) { return list({o.q}); },
          [&](const Select& o) { return list({o.x}); }},
      op);
}

int writes(const Op& op) {
  return std::visit(Overloaded{[](const StoreCross&) { return -1; }, [](const auto& o) { return o.out; }}, op);
}

bool Routine::causal() const {
  const Attention* attention = first_of<Attention>(ops);
  return attention == nullptr || attention->causal;
}
bool Routine::stores_cross() const { return first_of<StoreCross>(ops) != nullptr; }
bool Routine::reads_cross() const { return first_of<CrossAttention>(ops) != nullptr; }

int Routine::heads() const {
  const Attention* attention = first_of<Attention>(ops);
  return attention ? attention->num_heads : 0;
}
int Routine::cross_heads() const {
  const CrossAttention* attention = first_of<CrossAttention>(ops);
  return attention ? attention->num_heads : 0;
}

int64_t Routine::table_rows(const Program& p) const {
  int64_t rows = vocab_size;
  for (const Op& op : ops)
    if (const Embed* embed = std::get_if<Embed>(&op))
      if (!embed->by_position) rows = std::min(rows, p.matrices[size_t(embed->table)].shape.outputs());
  return rows;
}

int64_t Routine::segment_rows(const Program& p) const {
  int64_t rows = 0;
  for (const Op& op : ops)
    if (const Embed* embed = std::get_if<Embed>(&op))
      if (embed->types >= 0) {
        const int64_t own = p.matrices[size_t(embed->types)].shape.outputs();
        rows = rows == 0 ? own : std::min(rows, own);
      }
  return rows;
}

ExpertShape::ExpertShape(const Program& p, const Experts& o) : routed_ld(0), shared_ld(0), inputs(0) {
  const auto see = [&](int gate_up, int64_t& ld) {
    const MatrixShape& shape = p.matrices[size_t(gate_up)].shape;
    ld = std::max(ld, hidden_ld(shape.outputs()));
    inputs = std::max({inputs, shape.k, shape.outputs()});
  };
  for (int gate_up : o.gate_up) see(gate_up, routed_ld);
  if (o.shared_gate_up >= 0) see(o.shared_gate_up, shared_ld);
}

}  // namespace pyllm
