// Program::check: what a lowered program must hold, op by op.
#include <algorithm>

#include "errors.h"
#include "overloaded.h"
#include "program.h"

namespace pyllm {
namespace {

constexpr int64_t kMost = int64_t(1) << 24;  // layers, heads, widths: far more than any network has
constexpr double kMostWeights = 1e15;        // elements of all matrices and vectors: their bytes fit 64 bits

// Collects everything wrong with one program.
class Checker {
 public:
  explicit Checker(const Program& p) : p_(p) {}

  void run() {
    for (const Matrix& m : p_.matrices) check_matrix(m);
    for (int64_t n : p_.vectors) {
      require(n > 0, "a vector has no elements");
      weights_ += double(n);
    }
    where_ = "program";
    require(weights_ < kMostWeights, "its matrices and vectors are larger than any memory");
    finish();  // ops are compared with the shapes of matrices
    require(!p_.routines.empty(), "there must be a routine");
    require(p_.cross.layers == 0 || fits(p_.cross), "the cross cache needs layers, heads and columns");
    for (const Routine& routine : p_.routines) check_routine(routine);
    finish();
  }

 private:
  void finish() const {
    if (!problems_.empty()) throw Error(ErrorKind::program, "[program] " + problems_ + "; record the program again");
  }
  void require(bool ok, const std::string& rule) {
    if (!ok) problems_ += text(problems_.empty() ? "" : "; ", where_, ": ", rule);
  }
  template <class List>
  static bool in(const List& list, int id) {
    return id >= 0 && size_t(id) < list.size();
  }
  bool fits(const KvShape& kv) const {
    return kv.format == p_.kv_format && kv.layers > 0 && kv.layers < kMost && kv.heads > 0 && kv.heads < kMost &&
           kv.head_dim > 0 && kv.head_dim < kMost;
  }
  bool is_buffer(int id) const { return in(r_->buffers, id); }
  bool is_matrix(int id) const { return in(p_.matrices, id); }
  const Buffer& buffer(int id) const { return r_->buffers[size_t(id)]; }
  const MatrixShape& matrix(int id) const { return p_.matrices[size_t(id)].shape; }
  bool same_shape(int a, int b) const { return buffer(a).cols == buffer(b).cols && buffer(a).rows == buffer(b).rows; }
  bool is_tokens(int id, int64_t cols) const { return buffer(id).rows == Rows::T && buffer(id).cols == cols; }

  void check_matrix(const Matrix& m) {
    where_ = m.name;
    const bool parts = !m.shape.parts.empty() &&
                       std::all_of(m.shape.parts.begin(), m.shape.parts.end(), [](int64_t n) { return n > 0; });
    require(parts && m.shape.k > 0, "a matrix needs rows and columns");
    require(!m.shape.gated || (m.shape.parts.size() == 2 && m.shape.parts[0] == m.shape.parts[1]),
            "a gated matrix has two parts of equal size");
    for (int64_t n : m.shape.parts) weights_ += double(n) * double(m.shape.k);
    require(!m.shape.gated || m.shape.packed, "a gated matrix cannot be a table");
    require(m.shape.packed || m.shape.format <= Format::f16, "a table of plain rows holds floats");
  }

  void check_routine(const Routine& routine) {
    r_ = &routine;
    written_.assign(routine.buffers.size(), false);
    spent_ = taken_ = written_;
    num_heads_ = cross_heads_ = 0;
    where_ = routine.name;
    for (const Buffer& b : routine.buffers)
      require(b.cols > 0 && b.cols < kMost * 1024, "a buffer has no columns, or too many");
    require(fits(routine.kv), "its cache needs layers, heads and columns");
    require(routine.vocab_size > 0 && routine.max_positions > 0 && routine.max_positions <= INT32_MAX,
            "it needs a vocabulary and positions");
    int index = 0;
    for (const Op& op : routine.ops) {
      where_ = text(routine.name, " op ", index++);
      if (known_ids(op)) std::visit([&](const auto& o) { check(o); }, op);
      const int out = writes(op);
      if (!is_buffer(out)) continue;
      require(!written_[size_t(out)] && !taken_[size_t(out)], "its output was written before");
      written_[size_t(out)] = true;
    }
    where_ = text(routine.name, " output");
    const bool last = !routine.ops.empty() && writes(routine.ops.back()) == routine.output;
    require(is_buffer(routine.output) && last, "the last op must be the one that writes it");
    require(!is_buffer(routine.output) || buffer(routine.output).rows == Rows::R, "it must be [R, n]");
  }

  bool known_ids(const Op& op) {
    bool ok = std::holds_alternative<StoreCross>(op) || is_buffer(writes(op));
    for (int id : reads(op)) {
      ok = ok && is_buffer(id);
      require(is_buffer(id) && written_[size_t(id)], "an input was not written before");
      require(!is_buffer(id) || !spent_[size_t(id)], "an input was rotated in place by an attention before");
    }
    const auto matrix_or_none = [&](int id) { return id == -1 || is_matrix(id); };
    const auto vectors = [&](int weight, int bias) {
      return in(p_.vectors, weight) && (bias == -1 || in(p_.vectors, bias));
    };
    const auto all_matrices = [&](const std::vector<int>& ids) {
      return std::all_of(ids.begin(), ids.end(), [&](int id) { return is_matrix(id); });
    };
    ok = ok &&
         std::visit(Overloaded{[&](const Embed& o) {
                                 return is_matrix(o.table) && matrix_or_none(o.positions) && matrix_or_none(o.types);
                               },
                               [&](const Norm& o) { return vectors(o.weight, o.bias); },
                               [&](const HeadNorm& o) {
                                 return std::all_of(o.slices.begin(), o.slices.end(),
                                                    [&](const NormSlice& s) { return vectors(s.weight, s.bias); });
                               },
                               [&](const Linear& o) { return is_matrix(o.weight); },
                               [&](const HeadLinear& o) { return all_matrices(o.weights); },
                               [&](const Experts& o) {
                                 return all_matrices(o.gate_up) && all_matrices(o.down) &&
                                        matrix_or_none(o.shared_gate_up) && matrix_or_none(o.shared_down) &&
                                        is_buffer(o.hidden);
                               },
                               [&](const Attention& o) { return o.bias.table == -1 || in(p_.vectors, o.bias.table); },
                               [](const auto&) { return true; }},
                    op);
    require(ok, "it names a buffer, matrix or vector that does not exist");
    return ok;
  }

  void check(const Embed& o) {
    const MatrixShape& table = matrix(o.table);
    require(is_tokens(o.out, table.k) && !table.gated, "embed: out must be [T, table's columns]");
    require(o.position_offset >= 0 && o.position_offset < kMost, "embed: the offset of positions is out of range");
    const auto covers = [&](const MatrixShape& positions) {
      return positions.k == table.k && !positions.gated && o.position_offset >= 0 &&
             positions.outputs() - o.position_offset >= r_->max_positions;
    };
    if (o.by_position) require(covers(table), "embed: the position table is too small");
    else require(table.outputs() >= r_->vocab_size, "embed: the table has fewer rows than the vocabulary");
    if (o.positions >= 0) require(covers(matrix(o.positions)), "embed: the position table is too small");
    if (o.types >= 0)
      require(matrix(o.types).k == table.k && !matrix(o.types).gated, "embed: the table of types has another width");
  }
  void check(const Rotary& o) {
    require(is_tokens(o.out, int64_t(2 * o.inv_freq.size())), "rotary: out must be [T, 2 * len(inv_freq)]");
  }
  void check(const Norm& o) {
    const int64_t n = buffer(o.x).cols;
    require(same_shape(o.out, o.x), "norm: out must have the shape of x");
    require(p_.vectors[size_t(o.weight)] == n && (o.bias < 0 || p_.vectors[size_t(o.bias)] == n),
            "norm: weight and bias must be as long as a row");
    require(!o.rms || o.bias < 0, "norm: an RMS norm has no bias");
    require(o.residual < 0 || same_shape(o.residual, o.out), "norm: the residual must have the shape of out");
  }
  void check(const HeadNorm& o) {
    const int64_t n = buffer(o.x).cols;
    require(same_shape(o.out, o.x), "head norm: out must have the shape of x");
    for (const NormSlice& s : o.slices) {
      const bool inside = s.begin >= 0 && s.width > 0 && s.count > 0 && s.width <= n && s.count <= n && s.begin <= n &&
                          s.width * s.count <= n - s.begin;
      require(inside, "head norm: a slice lies outside of the row");
      for (int vector : {s.weight, s.bias})
        if (inside && vector >= 0) {
          const int64_t have = p_.vectors[size_t(vector)];
          require(have == s.width || have == s.width * s.count, "head norm: weight and bias must fit the slice");
        }
      require(!o.rms || s.bias < 0, "head norm: an RMS norm has no bias");
    }
  }
  void check(const Linear& o) {
    const MatrixShape& w = matrix(o.weight);
    require(w.packed, "linear: its matrix is not packed");
    require(buffer(o.x).cols == w.k && buffer(o.out).cols == w.outputs() && buffer(o.out).rows == buffer(o.x).rows,
            "linear: x, weight and out do not fit");
    require(o.softcap >= 0 && !(w.gated && o.softcap > 0), "linear: softcap must not be negative, nor gated");
    if (o.residual >= 0) require(same_shape(o.residual, o.out), "linear: the residual must have the shape of out");
  }
  void check(const HeadLinear& o) {
    require(!o.weights.empty() && o.weights.size() < size_t(kMost), "head linear: there must be a matrix a head");
    if (o.weights.empty()) return;
    const MatrixShape& first = matrix(o.weights[0]);
    const int64_t heads = int64_t(o.weights.size()), n = buffer(o.x).cols;
    for (int id : o.weights) {
      const MatrixShape& w = matrix(id);
      require(w.packed && !w.gated && w.k == first.k && w.outputs() == first.outputs() && w.format == first.format,
              "head linear: its matrices must be packed, not gated, and of one shape and format");
    }
    require(o.begin >= 0 && o.begin <= n && first.k <= n && heads <= n && heads * first.k <= n - o.begin,
            "head linear: a head lies outside of the row");
    const Buffer& out = buffer(o.out);
    require(out.rows == buffer(o.x).rows && out.cols % heads == 0 && out.cols / heads == first.outputs(),
            "head linear: weights and out do not fit");
  }
  void check(const Experts& o) {
    const int64_t width = buffer(o.x).cols;
    const auto expert = [&](int gate_up, int down) {
      const MatrixShape &g = matrix(gate_up), &d = matrix(down);
      return g.packed && g.gated && g.k == width && d.packed && !d.gated && d.k == g.outputs() && d.outputs() == width;
    };
    bool all = !o.gate_up.empty() && o.gate_up.size() == o.down.size() && o.gate_up.size() < size_t(kMost);
    for (size_t i = 0; all && i < o.gate_up.size(); i++)
      all = expert(o.gate_up[i], o.down[i]) && matrix(o.gate_up[i]).format == matrix(o.gate_up[0]).format &&
            matrix(o.down[i]).format == matrix(o.down[0]).format;
    const bool shared = o.shared_gate_up >= 0;
    all = all && shared == (o.shared_down >= 0) && (!shared || expert(o.shared_gate_up, o.shared_down));
    require(all, "experts: there must be some, gated, from and to rows of x, in one format");
    const int64_t logits = int64_t(o.gate_up.size()) + shared;
    require(same_shape(o.out, o.x) && buffer(o.router).rows == buffer(o.x).rows && buffer(o.router).cols == logits,
            "experts: x, router and out do not fit");
    require(o.residual < 0 || same_shape(o.residual, o.out), "experts: the residual must have the shape of out");
    require(o.top_k >= 1 && size_t(o.top_k) <= o.gate_up.size(), "experts: top_k must be 1 to their number");
    require(!written_[size_t(o.hidden)] && !taken_[size_t(o.hidden)] && o.hidden != o.out && o.hidden != r_->output,
            "experts: the hidden buffer is used elsewhere");
    require(!all || (buffer(o.hidden).rows == buffer(o.x).rows &&
                     buffer(o.hidden).cols >= ExpertShape(p_, o).columns(o.top_k)),
            "experts: the hidden buffer is too small");
    taken_[size_t(o.hidden)] = true;
  }
  void check(const Attention& o) {
    const KvShape& kv = r_->kv;
    if (num_heads_ == 0) num_heads_ = o.num_heads;
    require(o.num_heads == num_heads_, "attention: every layer must have the same number of heads");
    require(o.causal == r_->causal(), "attention: all of a routine's must be causal, or none");
    const bool heads = fits(kv) && o.num_heads > 0 && o.num_heads < kMost && o.num_heads % kv.heads == 0;
    require(heads && o.layer >= 0 && o.layer < kv.layers, "attention: heads or layer do not fit the routine");
    if (heads)
      require(is_tokens(o.qkv, (o.num_heads + 2 * int64_t(kv.heads)) * kv.head_dim) &&
                  is_tokens(o.out, o.num_heads * kv.head_dim),
              "attention: qkv or out do not fit the heads");
    require(o.window >= 0 && o.window <= INT32_MAX && o.softcap >= 0, "attention: window or softcap is out of range");
    const ScoreBias& bias = o.bias;
    require(bias.slopes.empty() || int64_t(bias.slopes.size()) == o.num_heads, "attention: slopes must be one a head");
    if (bias.table >= 0)
      require(bias.slopes.empty() && bias.span > 0 && bias.span < kMost && bias.first > -kMost && bias.first < kMost &&
                  p_.vectors[size_t(bias.table)] == o.num_heads * bias.span,
              "attention: the table of biases must be [num_heads, span]");
    if (bias.by_content()) {
      const auto inside = [&](const std::vector<int>& index) {
        return !index.empty() &&
               std::all_of(index.begin(), index.end(), [&](int i) { return 0 <= i && i < bias.span; });
      };
      require(bias.table < 0 && bias.slopes.empty() && !o.causal && bias.span > 0 && bias.span < kMost &&
                  bias.first > -kMost && bias.first < kMost && inside(bias.c2p_index) && inside(bias.p2c_index) &&
                  bias.c2p_index.size() == bias.p2c_index.size(),
              "attention: a bias by content needs two lists of as many indices below its span");
      const bool spans = bias.span > 0 && bias.span < kMost;  // otherwise the product may overflow
      for (int id : {bias.c2p, bias.p2c})
        require(id < 0 || (spans && is_tokens(id, o.num_heads * bias.span)),
                "attention: a bias by content is [T, heads * span]");
    }
    spent_[size_t(o.qkv)] = o.rope >= 0;
    if (o.rope >= 0)
      require(buffer(o.rope).rows == Rows::T && buffer(o.rope).cols <= kv.head_dim && buffer(o.rope).cols % 2 == 0,
              "attention: the rotary table is wider than a head");
  }
  void check(const StoreCross& o) {
    const KvShape& kv = p_.cross;
    require(kv.layers > 0 && o.layer >= 0 && o.layer < kv.layers, "store cross: there is no such layer");
    require(fits(kv) && is_tokens(o.kv, 2 * int64_t(kv.heads) * kv.head_dim), "store cross: kv does not fit the heads");
  }
  void check(const CrossAttention& o) {
    const KvShape& kv = p_.cross;
    if (cross_heads_ == 0) cross_heads_ = o.num_heads;
    require(o.num_heads == cross_heads_, "cross-attention: every layer must have the same number of heads");
    const bool heads =
        kv.layers > 0 && fits(kv) && o.num_heads > 0 && o.num_heads < kMost && o.num_heads % kv.heads == 0;
    require(heads && o.layer >= 0 && o.layer < kv.layers, "cross-attention: heads or layer do not fit the program");
    if (heads)
      require(is_tokens(o.q, o.num_heads * kv.head_dim) && is_tokens(o.out, o.num_heads * kv.head_dim),
              "cross-attention: q or out do not fit the heads");
  }
  void check(const Select& o) {
    require(buffer(o.x).rows == Rows::T && buffer(o.out).rows == Rows::R && buffer(o.x).cols == buffer(o.out).cols,
            "select: x must be [T, n] and out [R, n]");
  }

  const Program& p_;
  const Routine* r_ = nullptr;
  // spent: rotated in place, no longer what was written. taken: the hidden buffer of experts.
  std::vector<bool> written_, spent_, taken_;
  std::string where_ = "program", problems_;
  double weights_ = 0;  // elements
  int num_heads_ = 0, cross_heads_ = 0;
};

}  // namespace

void Program::check() const { Checker(*this).run(); }

}  // namespace pyllm
