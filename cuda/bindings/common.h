// What the binding files of pyllm._cuda and pyllm._cuda_emu share. Device memory comes as integers: addresses of arrays
// that Python owns (CuPy's, or NumPy's in the emulated module). Classes bound here are py::module_local(): both modules
// may be loaded at once.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "errors.h"
#include "launch.h"
#include "runtime.h"

namespace pyllm {
namespace cuda {

namespace py = pybind11;

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}
inline Stream stream_at(uintptr_t address) { return at<void>(address); }

// "float32", "bfloat16", "float16".
Type type_of(const std::string& name);
// address 0: no rows.
inline View view_at(uintptr_t address, int64_t ld, const std::string& type) {
  return {at<void>(address), ld, type_of(type)};
}

void bind_attention(py::module_& m);

}  // namespace cuda
}  // namespace pyllm
