// KvCache and Executor of a device as Python classes.
#include <pybind11/stl.h>

#include <memory>
#include <tuple>

#include "../../csrc/bindings/batch.h"
#include "common.h"
#include "device_executor.h"
#include "errors.h"

namespace pyllm {
namespace cuda {
namespace {

// A type of its own: the other module's caches lie in memory that a device can't read.
class DeviceCache : public KvCache {
 public:
  using KvCache::KvCache;
};

// A Python callable that is asked for memory: callable(*before, bytes) -> address. Its OutOfMemoryError becomes ours.
template <class... Before>
Allocate asker(const py::object& callable, Before... before) {
  const std::shared_ptr<py::object> held(new py::object(callable), [](py::object* p) {
    py::gil_scoped_acquire gil;
    delete p;
  });
  return [held, before...](size_t bytes) {
    py::gil_scoped_acquire gil;
    try {
      return at<uint8_t>((*held)(before..., bytes).template cast<uintptr_t>());
    } catch (py::error_already_set& error) {
      if (!error.matches(py::module_::import("pyllm.errors").attr("OutOfMemoryError"))) throw;
      throw Error(ErrorKind::out_of_memory, py::str(error.value()).cast<std::string>());
    }
  };
}

void bind_cache(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> nogil;  // whoever waits for a turn may wait for who needs the GIL
  py::class_<DeviceCache, std::shared_ptr<DeviceCache>>(
      m, "KvCache", py::module_local(),
      "Paged keys and values on a device: reference-counted blocks of 32 tokens (pyllm.program.batch.KvCache).")
      .def("allocate", &DeviceCache::allocate, nogil,
           "A fresh block, all zero, with one reference. Raises OutOfMemoryError.")
      .def("copy", &DeviceCache::copy, py::arg("block"), nogil,
           "A fresh block with the same content. Raises OutOfMemoryError.")
      .def("share", &DeviceCache::share, py::arg("block"), nogil,
           "One more reference. Raises ArrayError for a block not in use.")
      .def("release", &DeviceCache::release, py::arg("block"), nogil, "One reference less; the block is free at zero.")
      .def("references", &DeviceCache::references, py::arg("block"), nogil,
           "References held on a block; 0: it is free.")
      .def_property_readonly("blocks_in_use",
                             py::cpp_function([](const DeviceCache& c) { return c.blocks_in_use(); }, nogil),
                             "Blocks with at least one reference.")
      .def_property_readonly(
          "block_bytes", [](const DeviceCache& c) { return c.shape().block_bytes(); },
          "Bytes of one block, all layers together.")
      .def_property_readonly("bytes", py::cpp_function([](const DeviceCache& c) { return c.bytes(); }, nogil),
                             "Bytes of device memory.");
}

// (values, weights): lists of NumPy arrays in the order asked for.
std::pair<py::list, py::list> run(Executor& executor, int routine, const py::array& ids, const py::array& positions,
                                  const py::array& starts, const py::array& context, const py::array& block_table,
                                  const py::array& logit_rows, DeviceCache& cache, uintptr_t output, uintptr_t consumer,
                                  const py::object& token_types, DeviceCache* cross, const py::object& cross_table,
                                  const py::object& cross_context, std::vector<int> buffers,
                                  std::vector<int> attentions) {
  Batch b = batch_of(ids, positions, starts, context, block_table, logit_rows);
  add_optional(b, token_types, cross_table, cross_context);
  pyllm::Capture capture{std::move(buffers), std::move(attentions), {}, {}};
  const bool captures = !capture.buffers.empty() || !capture.attentions.empty();
  {
    py::gil_scoped_release nogil;
    executor.run(routine, b, cache, cross, at<float>(output), stream_at(consumer), captures ? &capture : nullptr);
  }
  return lists_of(std::move(capture));
}

std::shared_ptr<Flight> run_ahead(Executor& executor, int routine, const py::array& ids, const py::array& positions,
                                  const py::array& starts, const py::array& context, const py::array& block_table,
                                  const py::array& logit_rows, DeviceCache& cache, const py::array& choices, int cuts,
                                  const std::shared_ptr<Flight>& after, DeviceCache* cross,
                                  const py::object& cross_table, const py::object& cross_context) {
  Batch b = batch_of(ids, positions, starts, context, block_table, logit_rows);
  add_optional(b, py::none(), cross_table, cross_context);
  if (choices.itemsize() != ssize_t(sizeof(Choice)) || choices.ndim() != 1 || choices.shape(0) != b.logits ||
      !(choices.flags() & py::array::c_style) || cuts < int(Cuts::none) || cuts > int(Cuts::any))
    throw Error(ErrorKind::array, text("[run_ahead] choices must be a contiguous array of CHOICE, one for each of the ",
                                       b.logits, " outputs, and cuts 0, 1 or 2, got ", choices.size(), " entries of ",
                                       choices.itemsize(), " bytes and ", cuts, "; see pyllm.program.batch"));
  py::gil_scoped_release nogil;
  return executor.run_ahead(routine, b, cache, cross, static_cast<const Choice*>(choices.data()), Cuts(cuts), after);
}

void bind_flight(py::module_& m) {
  py::class_<Flight, std::shared_ptr<Flight>>(m, "Flight", py::module_local(),
                                              "Tokens that a step chose (pyllm.program.batch.Tokens).")
      .def(
          "wait",
          [](Flight& flight) {
            const int32_t* tokens = nullptr;
            {
              py::gil_scoped_release nogil;
              tokens = flight.wait();
            }
            return py::array_t<int32_t>(flight.rows(), tokens);
          },
          "int32 [R], when they are here; -1: there was none to choose. Raises DeviceError.");
}

// Bytes of activations (with scratch) and of pinned host memory.
std::pair<size_t, size_t> memory(const Executor& executor) { return {executor.arena_bytes(), executor.pinned_bytes()}; }

void bind_executor(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> nogil;
  py::class_<Executor>(m, "Executor", py::module_local(),
                       "A program on a device. Memory is the caller's, by address. Thread-safe; callers take turns.")
      .def(py::init([](const Program& program, const std::string& type, int device, uintptr_t stream,
                       const py::object& allocate) {
             auto lane = std::make_shared<Lane>();
             lane->device = device;
             lane->stream = stream_at(stream);
             DeviceGuard guard(device);
             return std::make_unique<Executor>(program, type_of(type), std::move(lane), asker(allocate, "activations"),
                                               asker(allocate, "captures"));
           }),
           py::arg("program"), py::arg("type"), py::arg("device"), py::arg("stream"), py::arg("allocate"),
           "allocate(what, bytes) -> address: memory for 'activations' or 'captures' that replaces what was given for "
           "the same before. Raises ProgramError.")
      .def(
          "set_matrix",
          [](Executor& e, int id, uintptr_t codes, uintptr_t scales, uintptr_t zeros, uintptr_t bias, int64_t ld) {
            e.weights().set_matrix(id, codes, scales, zeros, bias, ld);
          },
          py::arg("id"), py::arg("codes"), py::arg("scales"), py::arg("zeros"), py::arg("bias"), py::arg("ld"),
          "Addresses (0: none) of a matrix as pyllm.devices.cuda_packing packs it.")
      .def(
          "set_vector", [](Executor& e, int id, uintptr_t address) { e.weights().set_vector(id, address); },
          py::arg("id"), py::arg("address"))
      .def(
          "table_bytes", [](Executor& e) { return e.weights().table_bytes(); }, "Of what place_tables() takes.")
      .def(
          "place_tables", [](Executor& e, uintptr_t address) { e.place_tables(at<uint8_t>(address)); },
          py::arg("address"), nogil, "The last step of loading: the tables that operations need.")
      .def("reserve", &Executor::reserve, py::arg("rows"), nogil,
           "Room for prompts of so many rows a step and for decoding. Raises OutOfMemoryError.")
      .def("set_buckets", &Executor::set_buckets, py::arg("enable"), nogil,
           "Whether decode steps are padded to buckets, which graphs serve. Changes no result.")
      .def("profile", &Executor::profile, py::arg("enable"), nogil,
           "Times every op from now on, from zero, or no longer. Meanwhile no graphs are used, and run() waits.")
      .def(
          "timings", [](const Executor& e) { return timings_of(e.times()); },
          "For each routine, for each op, then before and after them: (calls, s, s waited, bytes).")
      .def(
          "new_cache",
          [](const Executor& e, int routine, size_t max_bytes, const py::object& allocate) {
            return std::make_shared<DeviceCache>(e.routine(routine).kv, max_bytes,
                                                 std::make_unique<DeviceBlocks>(e.lane(), asker(allocate)));
          },
          py::arg("routine"), py::arg("max_bytes"), py::arg("allocate"),
          "An empty cache of one routine's own keys and values, in memory that allocate(bytes) -> address keeps.")
      .def(
          "new_cross_cache",
          [](const Executor& e, size_t max_bytes, const py::object& allocate) {
            if (e.program().cross.layers == 0)
              throw Error(ErrorKind::array, "[cache] this model has no cross-attention; use new_cache()");
            return std::make_shared<DeviceCache>(e.program().cross, max_bytes,
                                                 std::make_unique<DeviceBlocks>(e.lane(), asker(allocate)));
          },
          py::arg("max_bytes"), py::arg("allocate"), "An empty cache of the keys and values of sources.")
      .def(
          "run", &run, py::arg("routine"), py::arg("ids"), py::arg("positions"), py::arg("starts"), py::arg("context"),
          py::arg("block_table"), py::arg("logit_rows"), py::arg("cache"), py::arg("output"), py::arg("consumer"),
          py::arg("token_types") = py::none(), py::arg("cross") = py::none(), py::arg("cross_table") = py::none(),
          py::arg("cross_context") = py::none(), py::arg("buffers") = std::vector<int>{},
          py::arg("attentions") = std::vector<int>{},
          "One step (pyllm.program.batch.Batch); its output goes to float32 [R, output_ld] at an address, in the order "
          "of a consumer's stream. Returns the buffers asked for, and for each attention asked for its weights "
          "[heads, rows, keys] of every sequence. Raises ArrayError, PromptError, ContextLengthError, "
          "OutOfMemoryError, the caches being unchanged, and DeviceError.")
      .def("run_ahead", &run_ahead, py::arg("routine"), py::arg("ids"), py::arg("positions"), py::arg("starts"),
           py::arg("context"), py::arg("block_table"), py::arg("logit_rows"), py::arg("cache"), py::arg("choices"),
           py::arg("cuts"), py::arg("after") = py::none(), py::arg("cross") = py::none(),
           py::arg("cross_table") = py::none(), py::arg("cross_context") = py::none(),
           "One step of a steady decode whose next tokens are chosen on the device: a Flight. after: the Flight of the "
           "step before, which gives the ids. Raises as run().")
      .def("rows_ahead", &Executor::rows_ahead, py::arg("routine"), nogil, "Most rows that run_ahead() takes; 0: none.")
      .def("output_cols", &Executor::output_cols, py::arg("routine"))
      .def("output_ld", &Executor::output_ld, py::arg("routine"), "Floats between rows of the output.")
      .def("memory", &memory, nogil, "Bytes of activations (with scratch), and of pinned host memory.")
      .def_property_readonly("graphs", py::cpp_function([](const Executor& e) { return e.graphs(); }, nogil),
                             "Sizes of decode steps that run as graphs by now.")
      .def_property_readonly("sent_bytes", py::cpp_function([](const Executor& e) { return e.sent_bytes(); }, nogil),
                             "Of steps' integers and block addresses, since the executor was made.");
}

}  // namespace

void bind_model(py::module_& m) {
  bind_cache(m);
  bind_flight(m);
  bind_executor(m);
}

}  // namespace cuda
}  // namespace pyllm
