// The modules pyllm._cuda and, compiled for the CPU, pyllm._cuda_emu: errors, facts about devices. Kernels and the
// executor are bound in the other files.
#include <pybind11/stl.h>

#include "../../csrc/bindings/translate.h"
#include "common.h"
#include "program.h"
#if defined(PYLLM_CUDA_EMU)
#include "emu/fibers.h"
#endif

namespace pyllm {
namespace cuda {

Type type_of(const std::string& name) {
  if (name == "float32") return Type::f32;
  if (name == "bfloat16") return Type::bf16;
  if (name == "float16") return Type::f16;
  throw Error(ErrorKind::option, text("[type] it must be one of float32, bfloat16, float16, got '", name, "'"));
}

void bind_linear(py::module_& m);  // linear.cpp
void bind_tiles(py::module_& m);   // tiles.cpp
void bind_model(py::module_& m);   // model.cpp

namespace {

py::dict info_dict(int device) {
  const DeviceInfo info = device_info(device);
  py::dict out;
  out["name"] = info.name;
  out["index"] = info.index;
  out["compute_capability"] = py::make_tuple(info.major, info.minor);
  out["multiprocessors"] = info.multiprocessors;
  out["shared_memory"] = info.shared_memory;
  out["l2_cache"] = info.l2_cache;
  out["free_memory"] = info.free_memory;
  out["total_memory"] = info.total_memory;
  return out;
}

void bind_devices(py::module_& m) {
  m.attr("emulated") =
#if defined(PYLLM_CUDA_EMU)
      true;
  m.def("set_seed", &emu::set_seed, py::arg("seed"),
        "0: the threads of a block run in order; else in an order drawn from it, another at each pass.");
  m.def("switches", &emu::switches, "Changes from thread to thread in all launches so far.");
#else
      false;
#endif
  m.def(
      "available", [] { return device_count() > 0; }, "Whether there is a driver and a device.");
  m.def("unavailable", &unavailable, "Why there is no device to use, as CUDA says it; empty when there is one.");
  m.def("device_count", &device_count);
  m.def("device_info", &info_dict, py::arg("device") = 0,
        "name, index, compute_capability, multiprocessors; shared_memory (most of a block), l2_cache, free_memory and "
        "total_memory in bytes. Raises DeviceError.");
  m.def("graphs_available", &graphs_available);
  m.def(
      "count_ops",
      [](const Program& program) {
        size_t count = 0;
        for (const Routine& routine : program.routines) count += routine.ops.size();
        return count;
      },
      py::arg("program"), "Operations in all routines of a pyllm._C.Program.");
}

}  // namespace

void bind_rows(py::module_& m);

}  // namespace cuda
}  // namespace pyllm

#if defined(PYLLM_CUDA_EMU)
PYBIND11_MODULE(_cuda_emu, m, pybind11::mod_gil_not_used()) {
#else
PYBIND11_MODULE(_cuda, m, pybind11::mod_gil_not_used()) {
#endif
  using namespace pyllm::cuda;
  m.doc() = "The CUDA kernels and their executor. Private; use pyllm.load(device='cuda').";
  py::register_local_exception_translator(&pyllm::translate);
  bind_devices(m);
  bind_model(m);
  bind_attention(m);
  bind_linear(m);
  bind_tiles(m);
  bind_rows(m);
}
