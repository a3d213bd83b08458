// The module pyllm._C: translation of errors, facts about this machine. Classes are in program.cpp and
// model.cpp, operations in ops.cpp.
#include <pybind11/stl.h>

#include <memory>

#include "bandwidth.h"
#include "checksum.h"
#include "common.h"
#include "cpu/dispatch.h"
#include "errors.h"
#include "machine.h"
#include "translate.h"

namespace pyllm {
namespace {

py::dict processors_dict() {
  const Processors found = processors();
  py::dict out;
  out["online"] = found.online;
  out["affinity"] = found.affinity;
  out["cores"] = found.cores;
  out["quota"] = found.quota;
  return out;
}

void bind_checksum(py::module_& m) {
  const auto bytes_of = [](const py::array& array) { return data_of<uint8_t>(array, "bytes", {-1}); };
  py::class_<Checksum>(m, "Checksum", "64 bits of runs of bytes: an accident is seen, forgery is not.")
      .def(py::init([](const py::object& threads) { return std::make_unique<Checksum>(threads_of(threads)); }),
           py::arg("num_threads") = py::none())
      .def(
          "add",
          [bytes_of](Checksum& self, const py::array& run) {
            const uint8_t* data = bytes_of(run);
            const size_t size = size_t(run.size());
            py::gil_scoped_release nogil;
            self.add(data, size);
          },
          py::arg("run"), "More bytes, uint8 [n]; n of all runs but the last is a multiple of 2^20.")
      .def(
          "read",
          [bytes_of](Checksum& self, const std::string& file, int64_t offset, py::array run) {
            bytes_of(run);
            uint8_t* data = static_cast<uint8_t*>(run.mutable_data());
            const size_t size = size_t(run.size());
            py::gil_scoped_release nogil;
            self.read(file, offset, data, size);
          },
          py::arg("file"), py::arg("offset"), py::arg("run"),
          "add() of bytes of a file from an offset on, which are read to `run`, by all threads. What can't be read is "
          "left as it was.")
      .def_property_readonly("value", &Checksum::value, "Of all bytes so far, whatever the number of threads.");
}

}  // namespace
}  // namespace pyllm

PYBIND11_MODULE(_C, m, pybind11::mod_gil_not_used()) {
  using namespace pyllm;
  m.doc() = "The C++ core: kernels, thread pool, key/value cache, executor. Private; use pyllm and pyllm.ops.";
  py::register_exception_translator(&translate);
  m.def(
      "isa", [] { return kernels().name; },
      "The instruction set used by default: the best one here, or the one PYLLM_ISA names. Raises DeviceError.");
  m.def("isas", &available_kernels, "Instruction sets that were built and run on this machine, best first.");
  m.def("compiled_isas", &compiled_kernels, "Instruction sets in this build, best first.");
  m.def(
      "default_threads", &default_threads,
      "Threads used when none are asked for: PYLLM_NUM_THREADS, OMP_NUM_THREADS, else cores within affinity and cgroup "
      "quota. Raises InvalidOptionError when a variable is malformed.");
  m.def("processors", &processors_dict,
        "Processors: online, affinity (logical ones this process may use), cores (physical ones among those), quota "
        "(the cgroup's, in processors; 0: none).");
  m.def("available_memory", &available_memory, "Bytes this process can still allocate without swapping.");
  m.def("read_bandwidth", &read_bandwidth, py::arg("bytes"), py::arg("num_threads"),
        py::call_guard<py::gil_scoped_release>(),
        "Bytes a second at which so many threads read so many bytes of memory: the median of nine passes.");
  bind_checksum(m);
  bind_program(m);
  bind_model(m);
  bind_ops(m);
}
