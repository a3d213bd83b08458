#include "program.h"

#include <algorithm>

#include "errors.h"

namespace pyllm {
namespace {

template <class... Fs>
struct Overloaded : Fs... {
  using Fs::operator()...;
};
template <class... Fs>
Overloaded(Fs...) -> Overloaded<Fs...>;

// Collects everything wrong with one program.
class Checker {
 public:
  explicit Checker(const Program& p) : p_(p), written_(p.buffers.size(), false), spent_(p.buffers.size(), false) {}

  void run() {
    for (const Buffer& b : p_.buffers) require(b.cols > 0, "a buffer has no columns");
    for (const Matrix& m : p_.matrices) check_matrix(m);
    for (const Op& op : p_.ops) {
      where_ = text("op ", index_++);
      if (known_ids(op)) std::visit([&](const auto& o) { check(o); }, op);
      const int out = writes(op);
      if (!is_buffer(out)) continue;
      require(!written_[size_t(out)], "its output was written before");
      written_[size_t(out)] = true;
    }
    where_ = "logits";
    const bool last =
        !p_.ops.empty() && std::holds_alternative<Linear>(p_.ops.back()) && writes(p_.ops.back()) == p_.logits;
    require(is_buffer(p_.logits) && last, "the last op must be the linear that writes them");
    if (is_buffer(p_.logits)) {
      const Buffer& b = p_.buffers[size_t(p_.logits)];
      require(b.rows == Rows::R && b.cols == p_.vocab_size, "they must be [R, vocab_size]");
    }
    if (!problems_.empty()) throw Error(ErrorKind::program, "[program] " + problems_ + "; record the program again");
  }

 private:
  void require(bool ok, const std::string& rule) {
    if (!ok) problems_ += text(problems_.empty() ? "" : "; ", where_, ": ", rule);
  }
  template <class List>
  static bool in(const List& list, int id) {
    return id >= 0 && size_t(id) < list.size();
  }
  bool is_buffer(int id) const { return in(p_.buffers, id); }
  const Buffer& buffer(int id) const { return p_.buffers[size_t(id)]; }
  const MatrixShape& matrix(int id) const { return p_.matrices[size_t(id)].shape; }

  void check_matrix(const Matrix& m) {
    where_ = m.name;
    const bool parts = !m.shape.parts.empty() &&
                       std::all_of(m.shape.parts.begin(), m.shape.parts.end(), [](int64_t n) { return n > 0; });
    require(parts && m.shape.k > 0, "a matrix needs rows and columns");
    require(m.shape.format == p_.format, "its format must be the program's");
    require(!m.shape.gated || (m.shape.parts.size() == 2 && m.shape.parts[0] == m.shape.parts[1]),
            "a gated matrix has two parts of equal size");
    require(!m.shape.gated || m.shape.packed, "a gated matrix cannot be a table");
  }

  bool known_ids(const Op& op) {
    bool ok = is_buffer(writes(op));
    for (int id : reads(op)) {
      ok = ok && is_buffer(id);
      require(is_buffer(id) && written_[size_t(id)], "an input was not written before");
      require(!is_buffer(id) || !spent_[size_t(id)], "an input was rotated in place by an attention before");
    }
    const auto vectors = [&](const Norm& o) {
      return in(p_.vectors, o.weight) && (o.bias == -1 || in(p_.vectors, o.bias));
    };
    ok = ok &&
         std::visit(
             Overloaded{[&](const Embed& o) {
                          return in(p_.matrices, o.table) && (o.positions == -1 || in(p_.matrices, o.positions));
                        },
                        [&](const Norm& o) { return vectors(o); },
                        [&](const Linear& o) { return in(p_.matrices, o.weight); }, [](const auto&) { return true; }},
             op);
    require(ok, "it names a buffer, matrix or vector that does not exist");
    return ok;
  }

  void check(const Embed& o) {
    const MatrixShape& table = matrix(o.table);
    require(buffer(o.out).rows == Rows::T && buffer(o.out).cols == table.k && !table.gated,
            "embed: out must be [T, table's columns]");
    require(table.outputs() >= p_.vocab_size, "embed: the table has fewer rows than the vocabulary");
    if (o.positions < 0) return;
    const MatrixShape& positions = matrix(o.positions);
    require(positions.k == table.k && !positions.gated && o.position_offset >= 0 &&
                positions.outputs() >= p_.max_positions + o.position_offset,
            "embed: the position table is too small");
  }
  void check(const Rotary& o) {
    require(buffer(o.out).rows == Rows::T && buffer(o.out).cols == int64_t(2 * o.inv_freq.size()),
            "rotary: out must be [T, 2 * len(inv_freq)]");
  }
  void check(const Norm& o) {
    const int64_t n = buffer(o.x).cols;
    require(buffer(o.out).cols == n && buffer(o.out).rows == buffer(o.x).rows, "norm: out must have the shape of x");
    require(p_.vectors[size_t(o.weight)] == n && (o.bias < 0 || p_.vectors[size_t(o.bias)] == n),
            "norm: weight and bias must be as long as a row");
    require(!o.rms || o.bias < 0, "norm: an RMS norm has no bias");
  }
  void check(const Linear& o) {
    const MatrixShape& w = matrix(o.weight);
    require(w.packed, "linear: its matrix is not packed");
    require(buffer(o.x).cols == w.k && buffer(o.out).cols == w.outputs() && buffer(o.out).rows == buffer(o.x).rows,
            "linear: x, weight and out do not fit");
    if (o.residual < 0) return;
    require(buffer(o.residual).cols == w.outputs() && buffer(o.residual).rows == buffer(o.out).rows,
            "linear: the residual must have the shape of out");
  }
  void check(const Attention& o) {
    if (num_heads_ == 0) num_heads_ = o.num_heads;
    require(o.num_heads == num_heads_, "attention: every layer must have the same number of heads");
    const bool heads = o.num_heads > 0 && p_.num_kv_heads > 0 && o.num_heads % p_.num_kv_heads == 0;
    require(heads && o.layer >= 0 && o.layer < p_.num_layers && p_.head_dim > 0,
            "attention: heads or layer do not fit the program");
    require(buffer(o.qkv).rows == Rows::T && buffer(o.qkv).cols == (o.num_heads + 2 * p_.num_kv_heads) * p_.head_dim &&
                buffer(o.out).rows == Rows::T && buffer(o.out).cols == o.num_heads * p_.head_dim,
            "attention: qkv or out do not fit the heads");
    require(o.window >= 0 && o.softcap >= 0, "attention: window and softcap must not be negative");
    spent_[size_t(o.qkv)] = o.rope >= 0;
    if (o.rope >= 0)
      require(buffer(o.rope).rows == Rows::T && buffer(o.rope).cols <= p_.head_dim && buffer(o.rope).cols % 2 == 0,
              "attention: the rotary table is wider than a head");
  }
  void check(const Select& o) {
    require(buffer(o.x).rows == Rows::T && buffer(o.out).rows == Rows::R && buffer(o.x).cols == buffer(o.out).cols,
            "select: x must be [T, n] and out [R, n]");
  }

  const Program& p_;
  std::vector<bool> written_, spent_;  // spent: rotated in place, no longer what was written
  std::string where_ = "buffers", problems_;
  int index_ = 0, num_heads_ = 0;
};

}  // namespace

std::vector<int> reads(const Op& op) {
  std::vector<int> ids = std::visit(
      Overloaded{[](const Embed&) { return std::vector<int>{}; }, [](const Rotary&) { return std::vector<int>{}; },
                 [](const Norm& o) { return std::vector<int>{o.x}; },
                 [](const Linear& o) {
                   return std::vector<int>{o.x, o.residual};
                 },
                 [](const Attention& o) {
                   return std::vector<int>{o.qkv, o.rope};
                 },
                 [](const Select& o) { return std::vector<int>{o.x}; }},
      op);
  ids.erase(std::remove(ids.begin(), ids.end(), -1), ids.end());
  return ids;
}

int writes(const Op& op) {
  return std::visit([](const auto& o) { return o.out; }, op);
}

int64_t Program::table_rows() const {
  int64_t rows = vocab_size;
  for (const Op& op : ops)
    if (const Embed* embed = std::get_if<Embed>(&op))
      rows = std::min(rows, matrices[size_t(embed->table)].shape.outputs());
  return rows;
}

void Program::check() const { Checker(*this).run(); }

}  // namespace pyllm
