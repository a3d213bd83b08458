// Bindings of linear() and linear_skinny(), for tests and benchmarks. A matrix is a dict (matrix.h); rows are (address,
// ld, type name); streams and addresses are integers.
#include <pybind11/stl.h>

#include <tuple>

#include "matrix.h"

namespace pyllm {
namespace cuda {
namespace {

using Rows = std::tuple<uintptr_t, int64_t, std::string>;

View view_of(const Rows& v) { return view_at(std::get<0>(v), std::get<1>(v), std::get<2>(v)); }

// norm: (kind: NormKind, address of the weight, of the bias or 0, eps).
LinearArgs args_of(const py::dict& w, const std::string& type, const Rows& x, int m, const Rows& y, int activation,
                   float scale, float softcap, const Rows& residual,
                   const std::tuple<int, uintptr_t, uintptr_t, float>& norm) {
  LinearArgs a;
  a.w = matrix_of(w);
  a.type = type_of(type);
  a.x = view_of(x), a.residual = view_of(residual), a.y = view_of(y);
  a.m = m;
  a.norm = {NormKind(std::get<0>(norm)), at<const float>(std::get<1>(norm)), at<const float>(std::get<2>(norm)),
            std::get<3>(norm)};
  a.activation = Activation(activation);
  a.scale = scale, a.softcap = softcap;
  return a;
}

template <class Call>
void define(py::module_& m, const char* name, const char* doc, Call call) {
  m.def(
      name,
      [call](const py::dict& w, const std::string& type, const Rows& x, int rows, const Rows& y, int activation,
             float scale, float softcap, const Rows& residual, const std::tuple<int, uintptr_t, uintptr_t, float>& norm,
             uintptr_t workspace, uintptr_t stream) {
        return call(args_of(w, type, x, rows, y, activation, scale, softcap, residual, norm), at<void>(workspace),
                    stream_at(stream));
      },
      py::arg("w"), py::arg("type"), py::arg("x"), py::arg("rows"), py::arg("y"), py::arg("activation") = 0,
      py::arg("scale") = 1.0f, py::arg("softcap") = 0.0f, py::arg("residual") = Rows(0, 0, "float32"),
      py::arg("norm") = std::make_tuple(0, 0, 0, 0.0f), py::arg("workspace") = 0, py::arg("stream") = 0, doc);
}

}  // namespace

void bind_linear(py::module_& m) {
  define(m, "linear", "y = residual + scale * cap(activation(norm(x) @ w.T + bias)) by whichever matmul suits.",
         &linear);
  define(m, "linear_skinny", "The same for up to 64 rows by the kernels for few rows.",
         [](const LinearArgs& a, void*, Stream stream) { linear_skinny(a, stream); });
  define(m, "linear_workspace", "Bytes of workspace that linear() needs.",
         [](const LinearArgs& a, void*, Stream) { return linear_workspace(a); });
  define(m, "takes_norm", "Whether linear() may be given this one with its norm.",
         [](const LinearArgs& a, void*, Stream) { return takes_norm(a); });
}

}  // namespace cuda
}  // namespace pyllm
