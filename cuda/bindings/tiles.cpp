// Bindings of linear_tiles(), linear_lt(), linear_batch(), route() and combine(): one function a launcher, for tests
// and benchmarks. Views are (address, ld, type name); streams and addresses are integers.
#include <pybind11/stl.h>

#include <cstring>
#include <tuple>

#include "matrix.h"

namespace pyllm {
namespace cuda {
namespace {

using Rows = std::tuple<uintptr_t, int64_t, std::string>;

View view_of(const Rows& v) { return view_at(std::get<0>(v), std::get<1>(v), std::get<2>(v)); }

LinearArgs linear_of(const py::dict& w, const std::string& type, const Rows& x, int m, int activation, float scale,
                     float softcap, const Rows& residual, const Rows& y) {
  LinearArgs a;
  a.w = matrix_of(w);
  a.type = type_of(type);
  a.x = view_of(x), a.residual = view_of(residual), a.y = view_of(y);
  a.m = m;
  a.activation = Activation(activation);
  a.scale = scale, a.softcap = softcap;
  return a;
}

void bind_linear_batch(py::module_& m) {
  m.def(
      "linear_batch",
      [](uintptr_t w, const py::dict& shape, int count, const std::string& type, const Rows& x, const Rows& y, int rows,
         int64_t x_begin, int64_t x_step, int64_t y_step, int activation, uintptr_t list, int64_t list_stride,
         uintptr_t counts, uintptr_t offsets, bool compact_x, bool compact_y, uintptr_t stream) {
        LinearBatch a;
        a.w = at<const Matrix>(w);
        a.shape = matrix_of(shape);
        a.count = count;
        a.type = type_of(type);
        a.x = view_of(x), a.y = view_of(y);
        a.m = rows;
        a.x_begin = x_begin, a.x_step = x_step, a.y_step = y_step;
        a.activation = Activation(activation);
        a.list = at<const int32_t>(list);
        a.list_stride = list_stride;
        a.counts = at<const int32_t>(counts), a.offsets = at<const int32_t>(offsets);
        a.compact_x = compact_x, a.compact_y = compact_y;
        linear_batch(a, stream_at(stream));
      },
      py::arg("w"), py::arg("shape"), py::arg("count"), py::arg("type"), py::arg("x"), py::arg("y"), py::arg("rows"),
      py::arg("x_begin") = 0, py::arg("x_step") = 0, py::arg("y_step") = 0, py::arg("activation") = 0,
      py::arg("list") = 0, py::arg("list_stride") = 0, py::arg("counts") = 0, py::arg("offsets") = 0,
      py::arg("compact_x") = false, py::arg("compact_y") = false, py::arg("stream") = 0);
  m.def(
      "matrix_bytes",
      [](const py::dict& w) {
        const Matrix matrix = matrix_of(w);
        return py::bytes(reinterpret_cast<const char*>(&matrix), sizeof matrix);
      },
      py::arg("w"), "What an array of matrices in device memory, as linear_batch() takes it, holds of one.");
}

}  // namespace

void bind_tiles(py::module_& m) {
  m.def(
      "linear_tiles",
      [](const py::dict& w, const std::string& type, const Rows& x, int rows, int activation, float scale,
         float softcap, const Rows& residual, const Rows& y, uintptr_t stream) {
        linear_tiles(linear_of(w, type, x, rows, activation, scale, softcap, residual, y), stream_at(stream));
      },
      py::arg("w"), py::arg("type"), py::arg("x"), py::arg("rows"), py::arg("activation"), py::arg("scale"),
      py::arg("softcap"), py::arg("residual"), py::arg("y"), py::arg("stream") = 0);
  bind_linear_batch(m);
}

}  // namespace cuda
}  // namespace pyllm
