// KvCache and Executor as Python classes.
#include <pybind11/stl.h>

#include <memory>
#include <tuple>

#include "batch.h"
#include "common.h"
#include "errors.h"
#include "executor.h"

namespace pyllm {
namespace {

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

const float* scales_of(const py::object& scales, int64_t rows) {
  if (!py::isinstance<py::array_t<float, py::array::c_style>>(scales) || py::array(scales).size() != rows)
    throw Error(ErrorKind::array, text("[summary] scales must be a float32 array of the output's ", rows, " rows"));
  const float* values = static_cast<const float*>(py::array(scales).data());
  for (int64_t r = 0; r < rows; r++)
    if (!(values[r] >= 0.0f && values[r] < 3.4e38f))
      throw Error(ErrorKind::array, text("[summary] scales must be numbers >= 0, got ", values[r], " for row ", r));
  return values;
}

// (output, values, weights, summary): values and weights are lists in the order asked for; summary None: not wanted.
py::tuple run(Executor& executor, int routine, const py::array& ids, const py::array& positions,
              const py::array& starts, const py::array& context, const py::array& block_table,
              const py::array& logit_rows, KvCache& cache, const py::object& token_types, KvCache* cross,
              const py::object& cross_table, const py::object& cross_context, std::vector<int> buffers,
              std::vector<int> attentions, bool summarise, const py::object& scales) {
  Batch b = batch_of(ids, positions, starts, context, block_table, logit_rows);
  add_optional(b, token_types, cross_table, cross_context);
  const int64_t cols = executor.output_cols(routine), ld = executor.output_ld(routine);
  const int64_t outputs = b.logits * ld, panels = ld / kPanel, sums = summarise ? b.logits * panels * 2 : 0;
  const std::shared_ptr<Arena> held = cache.output(size_t(outputs + sums) * sizeof(float));
  float* output = reinterpret_cast<float*>(held->data());
  float* summary = summarise ? output + outputs : nullptr;
  const float* rows_scales = scales.is_none() ? nullptr : scales_of(scales, b.logits);
  Capture capture{std::move(buffers), std::move(attentions), {}, {}};
  const bool captures = !capture.buffers.empty() || !capture.attentions.empty();
  {
    py::gil_scoped_release nogil;
    executor.run(routine, b, cache, cross, output, captures ? &capture : nullptr, summary, rows_scales);
  }
  const py::capsule owner(new std::shared_ptr<Arena>(held),
                          [](void* p) { delete static_cast<std::shared_ptr<Arena>*>(p); });
  const py::array_t<float> out({b.logits, cols}, {ld * int64_t(sizeof(float)), int64_t(sizeof(float))}, output, owner);
  const auto [values, weights] = lists_of(std::move(capture));
  py::object blocks = py::none();
  if (summarise) blocks = py::array_t<float>({b.logits, panels, int64_t(2)}, summary, owner);
  return py::make_tuple(out, values, weights, blocks);
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
          "pack_codes",
          [](Executor& executor, int matrix, const std::vector<CodeArrays>& parts, const std::vector<py::array>& bias,
             int64_t group_size) {
            const std::vector<CodeSource> sources = codes_of(parts, is_i8(executor.format(matrix)), group_size);
            const std::vector<const float*> biases = biases_of(bias, sources);
            py::gil_scoped_release nogil;
            executor.pack_codes(matrix, sources, biases);
          },
          py::arg("matrix"), py::arg("parts"), py::arg("bias") = std::vector<py::array>{}, py::arg("group_size") = 0,
          "Packs one int8 or int4 matrix from codes (pyllm/_C.pyi). Raises ArrayError for wrong shapes, dtypes, codes, "
          "scales and zero points; the matrix then counts as not loaded.")
      .def(
          "set_vector",
          [](Executor& executor, int id, const py::array& values) {
            const float* data = data_of<float>(values, "vector", {-1});
            executor.set_vector(id, data, values.shape(0));
          },
          py::arg("id"), py::arg("values"))
      .def(
          "packed",
          [](const Executor& executor) {
            const Arena& weights = executor.weights();
            return py::memoryview::from_memory(static_cast<const void*>(weights.data()), py::ssize_t(weights.size()));
          },
          py::keep_alive<0, 1>(), "All packed weights, read-only: what restore() takes.")
      .def("checksum", &Executor::checksum, py::call_guard<py::gil_scoped_release>(), "64 bits of the packed weights.")
      .def("restore", &Executor::restore, py::arg("file"), py::arg("offset"), py::arg("checksum"),
           py::call_guard<py::gil_scoped_release>(),
           "Reads what packed() gave of an executor of an equal program, instead of packing; False, with nothing "
           "loaded, "
           "where the bytes are not there or have another checksum.")
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
          py::arg("summary") = false, py::arg("scales") = py::none(),
          "One step (pyllm.program.batch.Batch): its output float32 [R, n], a view of the cache's buffer that its next "
          "step overwrites; copies of the buffers asked for; for each attention asked for (by its output) its weights "
          "[heads, rows, keys] of every sequence; the summary of the output [R, ceil(n / 64), 2] or None. Raises "
          "ArrayError, PromptError, ContextLengthError, "
          "OutOfMemoryError; the caches are then unchanged.")
      .def("profile", &Executor::profile, py::arg("enable"), "Times every op from now on, from zero; or no longer.")
      .def(
          "timings", [](const Executor& executor) { return timings_of(executor.times()); },
          "For each routine, for each op, then before and after them: (calls, s, s waited, bytes).")
      .def("set_sharing", &Executor::set_sharing, py::arg("repeat_rows"), py::arg("own_rows"),
           py::call_guard<py::gil_scoped_release>(),
           "Up to how many rows of a step every worker makes all inputs of matmuls for itself, and from how many rows "
           "of "
           "each worker on it takes whole rows. Changes no result. Raises InvalidOptionError.")
      .def("memory", &memory, "(bytes, bytes of those on huge pages now) of weights, activations and scratch.")
      .def_property_readonly("num_threads", &Executor::threads)
      .def_property_readonly("isa", [](const Executor& executor) { return executor.kernels().name; });
}

}  // namespace

void bind_model(py::module_& m) {
  bind_cache(m);
  bind_executor(m);
}

}  // namespace pyllm
