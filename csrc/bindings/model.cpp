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

// Ops and buffers go to the routine that was begun last.
Routine& current(Program& p) {
  if (p.routines.empty()) throw Error(ErrorKind::program, "[program] begin_routine() comes before buffers and ops");
  return p.routines.back();
}
void append(Program& p, Op op) { current(p).ops.push_back(std::move(op)); }

KvShape kv_shape(const Program& p, int layers, int heads, int64_t head_dim) {
  return {p.format, layers, heads, head_dim};
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

void bind_program(py::module_& m) {
  py::class_<Program> program(m, "Program",
                              "A lowered network under construction: matrices and vectors, then routines over them. "
                              "add_* return ids; buffers and ops go to the routine begun last.");
  program
      .def(py::init([](const std::string& dtype, int cross_layers, int cross_kv_heads, int64_t cross_head_dim) {
             Program p;
             p.format = format_of(dtype);
             p.cross = kv_shape(p, cross_layers, cross_kv_heads, cross_head_dim);
             return p;
           }),
           py::kw_only(), py::arg("dtype"), py::arg("cross_layers"), py::arg("cross_kv_heads"),
           py::arg("cross_head_dim"))
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

Batch batch_of(const py::array& ids, const py::array& positions, const py::array& starts, const py::array& context,
               const py::array& block_table, const py::array& logit_rows) {
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
  return b;
}

// What only some programs ask for; None: nothing.
void add_optional(Batch& b, const py::object& token_types, const py::object& cross_table,
                  const py::object& cross_context) {
  if (!token_types.is_none())
    b.token_types = data_of<int32_t>(token_types.cast<py::array>(), "batch.token_types", {b.rows});
  if (!cross_table.is_none()) {
    const py::array table = cross_table.cast<py::array>();
    b.cross_table = data_of<int32_t>(table, "batch.cross_table", {b.sequences, -1});
    b.cross_width = table.shape(1);
  }
  if (!cross_context.is_none())
    b.cross_context = data_of<int32_t>(cross_context.cast<py::array>(), "batch.cross_context", {b.sequences});
}

py::array_t<float> array_of(Array array) {
  auto held = std::make_unique<Array>(std::move(array));
  float* data = held->floats();
  const std::vector<int64_t> shape = held->shape;
  if (data == nullptr) return py::array_t<float>(shape);
  const py::capsule owner(held.release(), [](void* p) { delete static_cast<Array*>(p); });
  return py::array_t<float>(shape, data, owner);
}

// (output, values, weights): the last two are lists in the order asked for.
py::tuple run(Executor& executor, int routine, const py::array& ids, const py::array& positions,
              const py::array& starts, const py::array& context, const py::array& block_table,
              const py::array& logit_rows, KvCache& cache, const py::object& token_types, KvCache* cross,
              const py::object& cross_table, const py::object& cross_context, std::vector<int> buffers,
              std::vector<int> attentions) {
  Batch b = batch_of(ids, positions, starts, context, block_table, logit_rows);
  add_optional(b, token_types, cross_table, cross_context);
  const int64_t cols = executor.output_cols(routine), ld = executor.output_ld(routine);
  auto holder = std::make_unique<std::shared_ptr<Arena>>(cache.output(size_t(b.logits * ld) * sizeof(float)));
  float* output = reinterpret_cast<float*>((*holder)->data());
  Capture capture{std::move(buffers), std::move(attentions), {}, {}};
  const bool captures = !capture.buffers.empty() || !capture.attentions.empty();
  {
    py::gil_scoped_release nogil;
    executor.run(routine, b, cache, cross, output, captures ? &capture : nullptr);
  }
  const py::capsule owner(holder.release(), [](void* p) { delete static_cast<std::shared_ptr<Arena>*>(p); });
  const py::array_t<float> out({b.logits, cols}, {ld * int64_t(sizeof(float)), int64_t(sizeof(float))}, output, owner);
  py::list values, weights;
  for (Array& value : capture.values) values.append(array_of(std::move(value)));
  for (std::vector<Array>& op : capture.weights) {
    py::list sequences;
    for (Array& sequence : op) sequences.append(array_of(std::move(sequence)));
    weights.append(sequences);
  }
  return py::make_tuple(out, values, weights);
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
          [](const Executor& executor, int routine, size_t max_bytes) {
            return std::make_shared<KvCache>(executor.routine(routine).kv, max_bytes);
          },
          py::arg("routine"), py::arg("max_bytes") = 0,
          "An empty cache of one routine's own keys and values; max_bytes 0: as much as the system gives.")
      .def(
          "new_cross_cache",
          [](const Executor& executor, size_t max_bytes) {
            if (executor.program().cross.layers == 0)
              throw Error(ErrorKind::array, "[cache] this model has no cross-attention; use new_cache()");
            return std::make_shared<KvCache>(executor.program().cross, max_bytes);
          },
          py::arg("max_bytes") = 0, "An empty cache of the keys and values of sources.")
      .def(
          "run", &run, py::arg("routine"), py::arg("ids"), py::arg("positions"), py::arg("starts"), py::arg("context"),
          py::arg("block_table"), py::arg("logit_rows"), py::arg("cache"), py::arg("token_types") = py::none(),
          py::arg("cross") = py::none(), py::arg("cross_table") = py::none(), py::arg("cross_context") = py::none(),
          py::arg("buffers") = std::vector<int>{}, py::arg("attentions") = std::vector<int>{},
          "One step (pyllm.program.batch.Batch): its output float32 [R, n], a view of the cache's buffer that its next "
          "step overwrites; copies of the buffers asked for; for each attention asked for (by its output) its weights "
          "[heads, rows, keys] of every sequence. Raises ArrayError, PromptError, ContextLengthError, "
          "OutOfMemoryError; the caches are then unchanged.")
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
