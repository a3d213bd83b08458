// What the binding files share: reading NumPy arrays with our own errors instead of pybind11's, and names of formats.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <string>
#include <tuple>
#include <vector>

#include "errors.h"
#include "kernels.h"
#include "ops.h"
#include "pack.h"

namespace pyllm {

namespace py = pybind11;

// The array's data when it is C-contiguous, of type T and of this shape (-1: any). Throws Error(array).
template <class T>
const T* data_of(const py::array& array, const char* name, std::initializer_list<int64_t> shape);
extern template const float* data_of(const py::array&, const char*, std::initializer_list<int64_t>);
extern template const int32_t* data_of(const py::array&, const char*, std::initializer_list<int64_t>);
extern template const uint8_t* data_of(const py::array&, const char*, std::initializer_list<int64_t>);

// A matrix of float32, float16, or bfloat16 held as uint16; any strides.
Source source_of(const py::array& array, const char* name);
std::vector<Source> sources_of(const std::vector<py::array>& arrays);
// Weights quantised already: codes [n, k] of int8 (is_signed) or uint8, scales float32 [n, groups], zero points uint8
// [n, groups] or None. group_size 0: k / groups.
using CodeArrays = std::tuple<py::array, py::array, py::object>;
std::vector<CodeSource> codes_of(const std::vector<CodeArrays>& arrays, bool is_signed, int64_t group_size);
// Vectors of float32, one for each of `parts`.
template <class Parts>
std::vector<const float*> biases_of(const std::vector<py::array>& arrays, const Parts& parts) {
  if (!arrays.empty() && arrays.size() != parts.size())
    throw Error(ErrorKind::array, text("[bias] there must be one for each joined matrix, got ", arrays.size(), " for ",
                                       parts.size(), "; pass all or none"));
  std::vector<const float*> biases;
  for (size_t i = 0; i < arrays.size(); i++) biases.push_back(data_of<float>(arrays[i], "bias", {parts[i].rows}));
  return biases;
}

Format format_of(const std::string& name);  // of weights: kFormatNames
std::string name_of(Format format);
KvFormat kv_format_of(const std::string& name);     // of keys and values: kKvFormatNames
Activation activation_of(const std::string& name);  // pyllm.program.ActivationName
const Kernels& kernels_of(const py::object& isa);   // None: the default
int threads_of(const py::object& threads);          // None: the default

void bind_program(py::module_& m);
void bind_model(py::module_& m);
void bind_ops(py::module_& m);

}  // namespace pyllm
