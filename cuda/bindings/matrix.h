// A packed matrix as Python describes it: a dict of addresses and sizes (pyllm/devices/cuda_packing.py).
#pragma once
#include <pybind11/pybind11.h>

#include "common.h"

namespace pyllm {
namespace cuda {

// Keys: format (Format), codes, scales, zeros, bias (addresses; 0: none), n, k, ld, gated.
inline Matrix matrix_of(const py::dict& d) {
  Matrix m;
  m.format = Format(d["format"].cast<int>());
  m.codes = at<const void>(d["codes"].cast<uintptr_t>());
  m.scales = at<const void>(d["scales"].cast<uintptr_t>());
  m.zeros = at<const uint8_t>(d["zeros"].cast<uintptr_t>());
  m.bias = at<const float>(d["bias"].cast<uintptr_t>());
  m.n = d["n"].cast<int64_t>();
  m.k = d["k"].cast<int64_t>();
  m.ld = d["ld"].cast<int64_t>();
  m.gated = d["gated"].cast<bool>();
  return m;
}

}  // namespace cuda
}  // namespace pyllm
