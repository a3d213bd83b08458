// Program as a Python class: what pyllm/devices/lowering.py builds, op by op.
#include "program.h"

#include <pybind11/stl.h>

#include <tuple>

#include "common.h"
#include "errors.h"

namespace pyllm {
namespace {

template <class List, class Item>
int add(List& list, Item item) {
  list.push_back(std::move(item));
  return int(list.size()) - 1;
}

// Ops and buffers go to the routine that was begun last.
Routine& current(Program& p) {
  if (p.routines.empty()) throw Error(ErrorKind::program, "[program] begin_routine() comes before buffers and ops");
  return p.routines.back();
}
void append(Program& p, Op op) { current(p).ops.push_back(std::move(op)); }

KvShape kv_shape(const Program& p, int layers, int heads, int64_t head_dim) {
  return {p.kv_format, layers, heads, head_dim};
}

// The op with a buffer for its hidden rows. Wrong ids are Program::check's matter: nothing is made for those.
void append_experts(Program& p, Experts op) {
  Routine& r = current(p);
  const auto known = [&](int id) { return id >= 0 && size_t(id) < p.matrices.size(); };
  bool all = op.x >= 0 && size_t(op.x) < r.buffers.size() && (op.shared_gate_up == -1 || known(op.shared_gate_up));
  for (int id : op.gate_up) all = all && known(id) && !p.matrices[size_t(id)].shape.parts.empty();
  op.hidden = all ? add(r.buffers, Buffer{r.buffers[size_t(op.x)].rows, ExpertShape(p, op).columns(op.top_k)}) : -1;
  r.ops.push_back(std::move(op));
}

void bind_ops_of(py::class_<Program>& program) {
  program
      .def(
          "embed",
          [](Program& p, int out, int table, int positions, int64_t position_offset, float scale, int types,
             bool by_position) {
            append(p, Embed{out, table, positions, position_offset, scale, types, by_position});
          },
          py::arg("out"), py::arg("table"), py::arg("positions"), py::arg("position_offset"), py::arg("scale"),
          py::arg("types"), py::arg("by_position"))
      .def(
          "rotary",
          [](Program& p, int out, std::vector<float> inv_freq, float scaling) {
            append(p, Rotary{out, std::move(inv_freq), scaling});
          },
          py::arg("out"), py::arg("inv_freq"), py::arg("scaling"))
      .def(
          "norm",
          [](Program& p, int out, int x, bool rms, int weight, int bias, float eps, int residual) {
            append(p, Norm{out, x, rms, weight, bias, eps, residual});
          },
          py::arg("out"), py::arg("x"), py::arg("rms"), py::arg("weight"), py::arg("bias"), py::arg("eps"),
          py::arg("residual"))
      .def(
          "head_norm",
          [](Program& p, int out, int x, bool rms,
             const std::vector<std::tuple<int64_t, int64_t, int64_t, int, int>>& slices, float eps) {
            HeadNorm op{out, x, rms, {}, eps};
            for (const auto& [begin, width, count, weight, bias] : slices)
              op.slices.push_back({begin, width, count, weight, bias});
            append(p, std::move(op));
          },
          py::arg("out"), py::arg("x"), py::arg("rms"), py::arg("slices"), py::arg("eps"))
      .def(
          "linear",
          [](Program& p, int out, int x, int weight, const std::string& activation, int residual, float scale,
             float softcap) {
            append(p, Linear{out, x, weight, activation_of(activation), residual, scale, softcap});
          },
          py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("activation"), py::arg("residual"), py::arg("scale"),
          py::arg("softcap"))
      .def(
          "head_linear",
          [](Program& p, int out, int x, int64_t begin, std::vector<int> weights) {
            append(p, HeadLinear{out, x, begin, std::move(weights)});
          },
          py::arg("out"), py::arg("x"), py::arg("begin"), py::arg("weights"))
      .def(
          "experts",
          [](Program& p, int out, int x, int router, std::vector<int> gate_up, std::vector<int> down,
             int shared_gate_up, int shared_down, int top_k, const std::string& activation, bool normalize,
             int residual) {
            append_experts(p, {out, x, router, std::move(gate_up), std::move(down), shared_gate_up, shared_down, top_k,
                               activation_of(activation), normalize, residual, -1});
          },
          py::arg("out"), py::arg("x"), py::arg("router"), py::arg("gate_up"), py::arg("down"),
          py::arg("shared_gate_up"), py::arg("shared_down"), py::arg("top_k"), py::arg("activation"),
          py::arg("normalize"), py::arg("residual"))
      .def(
          "attention",
          [](Program& p, int out, int qkv, int layer, int num_heads, int rope, float scale, bool interleaved,
             int64_t window, float softcap, bool causal, int bias, int64_t bias_first, int64_t bias_span,
             std::vector<float> slopes, int c2p, int p2c, std::vector<int> c2p_index, std::vector<int> p2c_index) {
            append(p, Attention{out,
                                qkv,
                                layer,
                                num_heads,
                                rope,
                                scale,
                                interleaved,
                                window,
                                softcap,
                                causal,
                                {bias, bias_first, bias_span, std::move(slopes), c2p, p2c, std::move(c2p_index),
                                 std::move(p2c_index)}});
          },
          py::arg("out"), py::arg("qkv"), py::arg("layer"), py::arg("num_heads"), py::arg("rope"), py::arg("scale"),
          py::arg("interleaved"), py::arg("window"), py::arg("softcap"), py::arg("causal"), py::arg("bias"),
          py::arg("bias_first"), py::arg("bias_span"), py::arg("slopes"), py::arg("c2p") = -1, py::arg("p2c") = -1,
          py::arg("c2p_index") = std::vector<int>{}, py::arg("p2c_index") = std::vector<int>{})
      .def(
          "store_cross",
          [](Program& p, int kv, int layer) {
            append(p, StoreCross{kv, layer});
          },
          py::arg("kv"), py::arg("layer"))
      .def(
          "cross_attention",
          [](Program& p, int out, int q, int layer, int num_heads, float scale) {
            append(p, CrossAttention{out, q, layer, num_heads, scale});
          },
          py::arg("out"), py::arg("q"), py::arg("layer"), py::arg("num_heads"), py::arg("scale"))
      .def(
          "select",
          [](Program& p, int out, int x) {
            append(p, Select{out, x});
          },
          py::arg("out"), py::arg("x"))
      .def(
          "set_output", [](Program& p, int buffer) { current(p).output = buffer; }, py::arg("buffer"));
}

}  // namespace

void bind_program(py::module_& m) {
  py::class_<Program> program(m, "Program",
                              "A lowered network under construction: matrices and vectors, then routines over them. "
                              "add_* return ids; buffers and ops go to the routine begun last.");
  program
      .def(py::init([](const std::string& kv_cache, int cross_layers, int cross_kv_heads, int64_t cross_head_dim) {
             Program p;
             p.kv_format = kv_format_of(kv_cache);
             p.cross = kv_shape(p, cross_layers, cross_kv_heads, cross_head_dim);
             return p;
           }),
           py::kw_only(), py::arg("kv_cache"), py::arg("cross_layers"), py::arg("cross_kv_heads"),
           py::arg("cross_head_dim"))
      .def(
          "add_matrix",
          [](Program& p, std::string name, std::vector<int64_t> parts, int64_t k, const std::string& dtype, bool gated,
             bool packed, bool bias) {
            const Format format = format_of(dtype);
            return add(p.matrices, Matrix{std::move(name), {format, std::move(parts), k, gated, packed}, bias});
          },
          py::arg("name"), py::arg("parts"), py::arg("k"), py::kw_only(), py::arg("dtype"), py::arg("gated"),
          py::arg("packed"), py::arg("bias"))
      .def(
          "add_vector", [](Program& p, int64_t n) { return add(p.vectors, n); }, py::arg("n"))
      .def(
          "begin_routine",
          [](Program& p, std::string name, int num_layers, int num_kv_heads, int64_t head_dim, int64_t vocab_size,
             int64_t max_positions) {
            const KvShape kv = kv_shape(p, num_layers, num_kv_heads, head_dim);
            return add(p.routines, Routine{std::move(name), kv, vocab_size, max_positions});
          },
          py::arg("name"), py::kw_only(), py::arg("num_layers"), py::arg("num_kv_heads"), py::arg("head_dim"),
          py::arg("vocab_size"), py::arg("max_positions"))
      .def(
          "add_buffer",
          [](Program& p, bool selected, int64_t cols) {
            return add(current(p).buffers, Buffer{selected ? Rows::R : Rows::T, cols});
          },
          py::arg("selected"), py::arg("cols"));
  bind_ops_of(program);
}

}  // namespace pyllm
