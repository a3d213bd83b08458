// Program, KvCache and Executor as Python classes.
#include <pybind11/stl.h>

#include <memory>

#include "common.h"
#include "errors.h"
#include "executor.h"

namespace pyllm {
namespace {

template <class List, class Item>
int add(List& list, Item item) {
  list.push_back(std::move(item));
  return int(list.size()) - 1;
}

void bind_program(py::module_& m) {
  py::class_<Program>(m, "Program",
                      "A lowered network under construction: add_* return ids, the other methods append ops.")
      .def(py::init([](const std::string& dtype, int num_layers, int num_kv_heads, int64_t head_dim, int64_t vocab_size,
                       int64_t max_positions) {
             Program p;
             p.format = format_of(dtype);
             p.num_layers = num_layers;
             p.num_kv_heads = num_kv_heads;
             p.head_dim = head_dim;
             p.vocab_size = vocab_size;
             p.max_positions = max_positions;
             return p;
           }),
           py::kw_only(), py::arg("dtype"), py::arg("num_layers"), py::arg("num_kv_heads"), py::arg("head_dim"),
           py::arg("vocab_size"), py::arg("max_positions"))
      .def(
          "add_buffer",
          [](Program& p, bool selected, int64_t cols) {
            return add(p.buffers, Buffer{selected ? Rows::R : Rows::T, cols});
          },
          py::arg("selected"), py::arg("cols"))
      .def(
          "add_matrix",
          [](Program& p, std::string name, std::vector<int64_t> parts, int64_t k, bool gated, bool packed, bool bias) {
            return add(p.matrices, Matrix{std::move(name), {p.format, std::move(parts), k, gated, packed}, bias});
          },
          py::arg("name"), py::arg("parts"), py::arg("k"), py::kw_only(), py::arg("gated"), py::arg("packed"),
          py::arg("bias"))
      .def(
          "add_vector", [](Program& p, int64_t n) { return add(p.vectors, n); }, py::arg("n"))
      .def(
          "embed",
          [](Program& p, int out, int table, int positions, int64_t position_offset, float scale) {
            p.ops.push_back(Embed{out, table, positions, position_offset, scale});
          },
          py::arg("out"), py::arg("table"), py::arg("positions"), py::arg("position_offset"), py::arg("scale"))
      .def(
          "rotary",
          [](Program& p, int out, std::vector<float> inv_freq, float scaling) {
            p.ops.push_back(Rotary{out, std::move(inv_freq), scaling});
          },
          py::arg("out"), py::arg("inv_freq"), py::arg("scaling"))
      .def(
          "norm",
          [](Program& p, int out, int x, bool rms, int weight, int bias, float eps) {
            p.ops.push_back(Norm{out, x, rms, weight, bias, eps});
          },
          py::arg("out"), py::arg("x"), py::arg("rms"), py::arg("weight"), py::arg("bias"), py::arg("eps"))
      .def(
          "linear",
          [](Program& p, int out, int x, int weight, const std::string& activation, int residual) {
            p.ops.push_back(Linear{out, x, weight, activation_of(activation), residual});
          },
          py::arg("out"), py::arg("x"), py::arg("weight"), py::arg("activation"), py::arg("residual"))
      .def(
          "attention",
          [](Program& p, int out, int qkv, int layer, int num_heads, int rope, float scale, bool interleaved,
             int64_t window, float softcap) {
            p.ops.push_back(Attention{out, qkv, layer, num_heads, rope, scale, interleaved, window, softcap});
          },
          py::arg("out"), py::arg("qkv"), py::arg("layer"), py::arg("num_heads"), py::arg("rope"), py::arg("scale"),
          py::arg("interleaved"), py::arg("window"), py::arg("softcap"))
      .def(
          "select",
          [](Program& p, int out, int x) {
            p.ops.push_back(Select{out, x});
          },
          py::arg("out"), py::arg("x"))
      .def(
          "set_logits", [](Program& p, int buffer) { p.logits = buffer; }, py::arg("buffer"));
}

void bind_cache(py::module_& m) {
  py::class_<KvCache, std::shared_ptr<KvCache>>(
      m, "KvCache", "Paged keys and values: reference-counted blocks of 32 tokens (pyllm.program.batch.KvCache).")
      .def("allocate", &KvCache::allocate, "A fresh block, all zero, with one reference. Raises OutOfMemoryError.")
      .def("copy", &KvCache::copy, py::arg("block"), "A fresh block with the same content. Raises OutOfMemoryError.")
      .def("share", &KvCache::share, py::arg("block"), "One more reference. Raises ArrayError for a block not in use.")
      .def("release", &KvCache::release, py::arg("block"), "One reference less; the block is free at zero.")
      .def("references", &KvCache::references, py::arg("block"), "References held on a block; 0: it is free.")
      .def_property_readonly("blocks_in_use", &KvCache::blocks_in_use, "Blocks with at least one reference.")
      .def_property_readonly(
          "block_bytes", [](const KvCache& c) { return c.shape().block_bytes(); },
          "Bytes of one block, all layers together.")
      .def_property_readonly("bytes", &KvCache::bytes, "Bytes reserved from the system.")
      .def_property_readonly("huge_bytes", &KvCache::huge_bytes, "Bytes of those that huge pages back now.");
}

py::array_t<float> run(Executor& executor, const py::array& ids, const py::array& positions, const py::array& starts,
                       const py::array& context, const py::array& block_table, const py::array& logit_rows,
                       KvCache& cache) {
  Batch b{};
  b.ids = data_of<int32_t>(ids, "batch.ids", {-1});
  b.rows = ids.shape(0);
  b.positions = data_of<int32_t>(positions, "batch.positions", {b.rows});
  b.context = data_of<int32_t>(context, "batch.context", {-1});
  b.sequences = context.shape(0);
  b.starts = data_of<int32_t>(starts, "batch.starts", {b.sequences + 1});
  b.block_table = data_of<int32_t>(block_table, "batch.block_table", {b.sequences, -1});
  b.table_width = block_table.shape(1);
  b.logit_rows = data_of<int32_t>(logit_rows, "batch.logit_rows", {-1});
  b.logits = logit_rows.shape(0);
  if (b.rows > INT32_MAX / 2) throw Error(ErrorKind::array, "[batch] a step can have 2^30 rows; divide it");
  const int64_t ld = executor.logits_ld(), vocabulary = executor.program().vocab_size;
  auto holder = std::make_unique<std::shared_ptr<Arena>>(cache.logits(size_t(b.logits * ld) * sizeof(float)));
  float* logits = reinterpret_cast<float*>((*holder)->data());
  {
    py::gil_scoped_release nogil;
    executor.run(b, cache, logits);
  }
  const py::capsule owner(holder.release(), [](void* p) { delete static_cast<std::shared_ptr<Arena>*>(p); });
  return py::array_t<float>({b.logits, vocabulary}, {ld * int64_t(sizeof(float)), int64_t(sizeof(float))}, logits,
                            owner);
}

py::dict memory(const Executor& executor) {
  const auto entry = [](const Arena& arena) { return py::make_tuple(arena.size(), arena.huge_bytes()); };
  py::dict out;
  out["weights"] = entry(executor.weights());
  out["activations"] = entry(executor.activations());
  out["scratch"] = entry(executor.scratch());
  return out;
}

void bind_executor(py::module_& m) {
  py::class_<Executor>(m, "Executor", "A loaded program: weights, plan, activations. Thread-safe; callers take turns.")
      .def(py::init([](const Program& program, const py::object& num_threads, const py::object& isa) {
             return std::make_unique<Executor>(program, threads_of(num_threads), kernels_of(isa));
           }),
           py::arg("program"), py::arg("num_threads") = py::none(), py::arg("isa") = py::none(),
           "Reserves memory for the weights. Raises ProgramError, InvalidOptionError, DeviceError, OutOfMemoryError.")
      .def(
          "pack",
          [](Executor& executor, int matrix, const std::vector<py::array>& parts, const std::vector<py::array>& bias) {
            const std::vector<Source> sources = sources_of(parts);
            const std::vector<const float*> biases = biases_of(bias, sources);
            py::gil_scoped_release nogil;
            executor.pack(matrix, sources, biases);
          },
          py::arg("matrix"), py::arg("parts"), py::arg("bias") = std::vector<py::array>{},
          "Packs one matrix from its sources: [rows, k] of float32, float16 or uint16 (bfloat16), any strides; biases "
          "float32.")
      .def(
          "set_vector",
          [](Executor& executor, int id, const py::array& values) {
            const float* data = data_of<float>(values, "vector", {-1});
            executor.set_vector(id, data, values.shape(0));
          },
          py::arg("id"), py::arg("values"))
      .def(
          "new_cache",
          [](const Executor& executor, size_t max_bytes) {
            return std::make_shared<KvCache>(executor.kv_shape(), max_bytes);
          },
          py::arg("max_bytes") = 0, "An empty cache; max_bytes 0: as much as the system gives.")
      .def("run", &run, py::arg("ids"), py::arg("positions"), py::arg("starts"), py::arg("context"),
           py::arg("block_table"), py::arg("logit_rows"), py::arg("cache"),
           "One step (pyllm.program.batch.Batch): float32 logits [R, V], a view of the cache's buffer that its next "
           "step "
           "overwrites. Raises ArrayError, PromptError, ContextLengthError, OutOfMemoryError; the cache is then "
           "unchanged.")
      .def("memory", &memory, "(bytes, bytes of those on huge pages now) of weights, activations and scratch.")
      .def_property_readonly("num_threads", &Executor::threads)
      .def_property_readonly("isa", [](const Executor& executor) { return executor.kernels().name; });
}

}  // namespace

void bind_model(py::module_& m) {
  bind_program(m);
  bind_cache(m);
  bind_executor(m);
}

}  // namespace pyllm
