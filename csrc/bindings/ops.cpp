// Single operations on NumPy arrays (pyllm.ops). float32, C-contiguous; pyllm/ops converts and documents.
#include "ops.h"

#include <pybind11/stl.h>

#include <memory>

#include "common.h"
#include "errors.h"
#include "threads.h"

namespace pyllm {
namespace {

using Floats = py::array_t<float>;

Runtime runtime_of(const py::object& isa, const py::object& threads) { return {kernels_of(isa), threads_of(threads)}; }

std::unique_ptr<PackedMatrix> pack(const std::vector<py::array>& weights, const std::vector<py::array>& bias,
                                   bool gated, const std::string& dtype, bool packed, const py::object& isa,
                                   const py::object& threads) {
  const std::vector<Source> sources = sources_of(weights);
  const std::vector<const float*> biases = biases_of(bias, sources);
  if (sources.empty() || (gated && (sources.size() != 2 || sources[0].rows != sources[1].rows)))
    throw Error(ErrorKind::array,
                "[pack] a matrix has one part or more, a gated one two of equal size; pass [gate, up]");
  MatrixShape shape{format_of(dtype), {}, sources[0].cols, gated, packed};
  for (const Source& source : sources) shape.parts.push_back(source.rows);
  const Runtime runtime = runtime_of(isa, threads);
  py::gil_scoped_release nogil;
  return std::make_unique<PackedMatrix>(shape, sources, biases, runtime);
}

MatrixShape codes_shape(const std::vector<CodeSource>& sources, const std::string& dtype, bool gated) {
  if (sources.empty() || (gated && (sources.size() != 2 || sources[0].rows != sources[1].rows)))
    throw Error(ErrorKind::array,
                "[pack] a matrix has one part or more, a gated one two of equal size; pass [gate, up]");
  MatrixShape shape{format_of(dtype), {}, sources[0].cols, gated, true};
  for (const CodeSource& source : sources) shape.parts.push_back(source.rows);
  return shape;
}

std::unique_ptr<PackedMatrix> pack_codes(const std::vector<CodeArrays>& parts, const std::vector<py::array>& bias,
                                         bool gated, const std::string& dtype, int64_t group_size,
                                         const py::object& isa, const py::object& threads) {
  const std::vector<CodeSource> sources = codes_of(parts, is_i8(format_of(dtype)), group_size);
  const std::vector<const float*> biases = biases_of(bias, sources);
  const MatrixShape shape = codes_shape(sources, dtype, gated);
  const Runtime runtime = runtime_of(isa, threads);
  py::gil_scoped_release nogil;
  return std::make_unique<PackedMatrix>(shape, sources, biases, runtime);
}

// (codes, scales): what pack() makes of a matrix, as arrays.
py::tuple quantize(const py::array& w, const std::string& dtype, const py::object& isa, const py::object& threads) {
  const Source source = source_of(w, "weight");
  const Format format = format_of(dtype);
  if (!(is_i8(format) || is_i4(format)) || has_zeros(format))
    throw Error(ErrorKind::option, text("[dtype] must be 'int8', 'int4' or 'int4-g128' to quantize, got '", dtype,
                                        "'; choose one of these"));
  const MatrixShape shape{format, {source.rows}, source.cols, false, true};
  const Runtime runtime = runtime_of(isa, threads);
  const int64_t groups = is_i8(format) ? 1 : packed_k(format, source.cols) / group_of(format);
  py::array codes(is_i8(format) ? py::dtype::of<int8_t>() : py::dtype::of<uint8_t>(),
                  std::vector<int64_t>{source.rows, source.cols});
  Floats scales({source.rows, groups});
  uint8_t* to = static_cast<uint8_t*>(codes.mutable_data());
  float* scale = scales.mutable_data();
  {
    py::gil_scoped_release nogil;
    const PackedMatrix packed(shape, std::vector<Source>{source}, {}, runtime);
    Pool::instance().run(runtime.threads, [&](Team& team) {
      const Team::Range mine = team.part(source.rows);
      read_codes(shape, packed.data(), mine.begin, mine.end, to, scale);
    });
  }
  return py::make_tuple(codes, scales);
}

Floats matmul_array(const py::array& x, const PackedMatrix& w, const std::string& activation,
                    const py::object& residual, float scale, float softcap, const py::object& isa,
                    const py::object& threads) {
  const MatrixShape& shape = w.shape();
  if (!shape.packed)
    throw Error(ErrorKind::array, "[matmul] the matrix is stored as a table; pack it with packed=True");
  const float* from = data_of<float>(x, "x", {-1, shape.k});
  const int64_t m = x.shape(0);
  const float* added =
      residual.is_none() ? nullptr : data_of<float>(residual.cast<py::array>(), "residual", {m, shape.outputs()});
  if (!(softcap >= 0) || (softcap > 0 && shape.gated))
    throw Error(ErrorKind::option, text("[matmul] softcap must not be negative, and a gated matrix has none, got ",
                                        softcap, "; leave it out"));
  const Epilogue epilogue = {activation_of(activation), added, scale, softcap};
  const Runtime runtime = runtime_of(isa, threads);
  Floats y({m, shape.outputs()});
  float* to = y.mutable_data();
  py::gil_scoped_release nogil;
  if (m > 0) matmul(w, from, m, epilogue, to, runtime);
  return y;
}

Floats attention_array(const py::array& q, const py::array& k, const py::array& v, bool causal, float scale,
                       int64_t window, float softcap, const py::object& bias, const std::string& dtype,
                       const py::object& isa, const py::object& threads) {
  const float* query = data_of<float>(q, "q", {-1, -1, -1});
  const float* key = data_of<float>(k, "k", {-1, -1, q.shape(2)});
  const float* value = data_of<float>(v, "v", {k.shape(0), k.shape(1), q.shape(2)});
  const AttentionShape shape{kv_format_of(dtype), q.shape(0), k.shape(0), int(q.shape(1)), int(k.shape(1)),
                             q.shape(2),          causal,     scale,      softcap,         window};
  if (shape.head_dim < 1 || shape.kv_heads < 1 || shape.heads % shape.kv_heads != 0 || shape.queries > shape.keys)
    throw Error(ErrorKind::array,
                text("[attention] query heads must be a multiple of key heads, and queries at most keys, got ",
                     shape.heads, " and ", shape.kv_heads, " heads, ", shape.queries, " queries and ", shape.keys,
                     " keys; reshape q, k, v"));
  if (window < 0 || !(softcap >= 0))
    throw Error(ErrorKind::option, "[attention] window and softcap must not be negative; 0 means none");
  const float* added = bias.is_none() ? nullptr
                                      : data_of<float>(bias.cast<py::array>(), "bias",
                                                       {int64_t(shape.heads), shape.queries, shape.keys});
  const Runtime runtime = runtime_of(isa, threads);
  Floats out({shape.queries, int64_t(shape.heads), shape.head_dim});
  float* to = out.mutable_data();
  py::gil_scoped_release nogil;
  if (shape.queries > 0 && shape.heads > 0) attention(shape, query, key, value, added, to, runtime);
  return out;
}

Floats norm_array(const py::array& x, const py::array& weight, const py::object& bias, float eps, bool rms,
                  const py::object& isa, const py::object& threads) {
  const float* from = data_of<float>(x, "x", {-1, -1});
  const int64_t rows = x.shape(0), n = x.shape(1);
  const float* w = data_of<float>(weight, "weight", {n});
  const float* b = bias.is_none() ? nullptr : data_of<float>(bias.cast<py::array>(), "bias", {n});
  const Runtime runtime = runtime_of(isa, threads);
  Floats y({rows, n});
  float* to = y.mutable_data();
  py::gil_scoped_release nogil;
  if (rms) rms_norm(from, w, eps, rows, n, to, runtime);
  else layer_norm(from, w, b, eps, rows, n, to, runtime);
  return y;
}

// A fresh copy of x [rows, n] for the operations that work in place.
Floats copy_of(const py::array& x, const char* name) {
  const float* from = data_of<float>(x, name, {-1, -1});
  Floats y({x.shape(0), x.shape(1)});
  std::copy(from, from + x.size(), y.mutable_data());
  return y;
}

Floats activate_array(const py::array& x, const std::string& activation, const py::object& isa,
                      const py::object& threads) {
  Floats y = copy_of(x, "x");
  const Activation act = activation_of(activation);
  const Runtime runtime = runtime_of(isa, threads);
  float* to = y.mutable_data();
  py::gil_scoped_release nogil;
  activate(act, x.shape(0), x.shape(1), to, runtime);
  return y;
}

Floats gate_array(const py::array& g, const py::array& u, const std::string& activation, const py::object& isa,
                  const py::object& threads) {
  const float* from = data_of<float>(g, "gate", {-1, -1});
  const float* up = data_of<float>(u, "up", {g.shape(0), g.shape(1)});
  const Activation act = activation_of(activation);
  const Runtime runtime = runtime_of(isa, threads);
  Floats y({g.shape(0), g.shape(1)});
  float* to = y.mutable_data();
  py::gil_scoped_release nogil;
  gate(act, from, up, g.shape(0), g.shape(1), to, runtime);
  return y;
}

Floats softmax_array(const py::array& x, const py::object& isa, const py::object& threads) {
  Floats y = copy_of(x, "x");
  if (x.shape(1) == 0) throw Error(ErrorKind::array, "[softmax] a row must have elements, got none; reshape x");
  const Runtime runtime = runtime_of(isa, threads);
  float* to = y.mutable_data();
  py::gil_scoped_release nogil;
  softmax(x.shape(0), x.shape(1), to, runtime);
  return y;
}

Floats rope_array(const py::array& x, const py::array& cos_sin, bool interleaved, const py::object& isa,
                  const py::object& threads) {
  const float* from = data_of<float>(x, "x", {-1, -1, -1});
  const float* table = data_of<float>(cos_sin, "cos_sin", {x.shape(0), -1});
  const int64_t rotary_dim = cos_sin.shape(1);
  if (rotary_dim > x.shape(2) || rotary_dim % 2 != 0)
    throw Error(ErrorKind::array, text("[rope] the rotated width must be even and at most head_dim, got ", rotary_dim,
                                       " of ", x.shape(2), "; pass fewer frequencies"));
  Floats y({x.shape(0), x.shape(1), x.shape(2)});
  float* to = y.mutable_data();
  std::copy(from, from + x.size(), to);
  const Runtime runtime = runtime_of(isa, threads);
  py::gil_scoped_release nogil;
  rope(table, rotary_dim, interleaved, x.shape(0), x.shape(1), x.shape(2), to, runtime);
  return y;
}

Floats embedding_array(const py::array& ids, const PackedMatrix& table, float scale, const py::object& threads) {
  const int32_t* rows = data_of<int32_t>(ids, "ids", {-1});
  const int64_t count = ids.shape(0), outputs = table.shape().outputs();
  if (table.shape().gated)
    throw Error(ErrorKind::array, "[embedding] a gated matrix is no table; pack it without gated");
  for (int64_t i = 0; i < count; i++)
    if (rows[i] < 0 || rows[i] >= outputs)
      throw Error(ErrorKind::array,
                  text("[embedding] ids must lie in [0, ", outputs, "), got ", rows[i], " at ", i, "; check them"));
  const Runtime runtime = runtime_of(py::none(), threads);
  Floats y({count, table.shape().k});
  float* to = y.mutable_data();
  py::gil_scoped_release nogil;
  embedding(table, rows, count, scale, to, runtime);
  return y;
}

}  // namespace

void bind_ops(py::module_& m) {
  py::class_<PackedMatrix>(m, "PackedMatrix", "A weight matrix in the form the kernels read (pyllm.ops.pack).")
      .def_property_readonly(
          "shape", [](const PackedMatrix& w) { return py::make_tuple(w.shape().outputs(), w.shape().k); },
          "(N, K): columns of the result, columns of x.")
      .def_property_readonly("dtype", [](const PackedMatrix& w) { return name_of(w.shape().format); })
      .def_property_readonly("gated", [](const PackedMatrix& w) { return w.shape().gated; })
      .def_property_readonly("nbytes", [](const PackedMatrix& w) { return w.shape().bytes(); });
  const py::arg_v isa("isa", py::none()), threads("num_threads", py::none());
  m.def("pack", &pack, py::arg("weights"), py::arg("bias"), py::arg("gated"), py::arg("dtype"), py::arg("packed"), isa,
        threads);
  m.def("pack_codes", &pack_codes, py::arg("parts"), py::arg("bias"), py::arg("gated"), py::arg("dtype"),
        py::arg("group_size"), isa, threads);
  m.def("quantize", &quantize, py::arg("w"), py::arg("dtype"), isa, threads);
  m.def("matmul", &matmul_array, py::arg("x"), py::arg("w"), py::arg("activation"), py::arg("residual"),
        py::arg("scale"), py::arg("softcap"), isa, threads);
  m.def("attention", &attention_array, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("causal"), py::arg("scale"),
        py::arg("window"), py::arg("softcap"), py::arg("bias"), py::arg("dtype"), isa, threads);
  m.def("norm", &norm_array, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps"), py::arg("rms"), isa,
        threads);
  m.def("activate", &activate_array, py::arg("x"), py::arg("activation"), isa, threads);
  m.def("gate", &gate_array, py::arg("gate"), py::arg("up"), py::arg("activation"), isa, threads);
  m.def("softmax", &softmax_array, py::arg("x"), isa, threads);
  m.def("rope", &rope_array, py::arg("x"), py::arg("cos_sin"), py::arg("interleaved"), isa, threads);
  m.def("embedding", &embedding_array, py::arg("ids"), py::arg("table"), py::arg("scale"), threads);
}

}  // namespace pyllm
