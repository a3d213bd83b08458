// Bindings of linear_tiles(), linear_lt(), linear_batch(), route() and combine(), and of the parts of linear_lt(): one
// function a launcher, for tests and benchmarks. Views are (address, ld, type name); streams and addresses are
// integers.
#include <pybind11/stl.h>

#include <cstring>
#include <tuple>

#include "lt_parts.h"
#include "matrix.h"
#include "tile_args.h"

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

RouteArgs route_of(const Rows& router, int rows, int num_experts, int top_k, bool normalize, bool shared,
                   uintptr_t list, uintptr_t counts, uintptr_t offsets, uintptr_t place, uintptr_t weights) {
  RouteArgs a;
  a.router = view_of(router);
  a.rows = rows;
  a.num_experts = num_experts, a.top_k = top_k;
  a.normalize = normalize, a.shared = shared;
  a.list = at<int32_t>(list), a.counts = at<int32_t>(counts), a.offsets = at<int32_t>(offsets);
  a.place = at<int32_t>(place);
  a.weights = at<float>(weights);
  return a;
}

void bind_experts(py::module_& m) {
  m.def(
      "route",
      [](const Rows& router, int rows, int num_experts, int top_k, bool normalize, bool shared, uintptr_t list,
         uintptr_t counts, uintptr_t offsets, uintptr_t place, uintptr_t weights, uintptr_t stream) {
        route(route_of(router, rows, num_experts, top_k, normalize, shared, list, counts, offsets, place, weights),
              stream_at(stream));
      },
      py::arg("router"), py::arg("rows"), py::arg("num_experts"), py::arg("top_k"), py::arg("normalize"),
      py::arg("shared"), py::arg("list"), py::arg("counts"), py::arg("offsets"), py::arg("place"), py::arg("weights"),
      py::arg("stream") = 0);
  m.def(
      "combine",
      [](int rows, int top_k, bool shared, uintptr_t place, uintptr_t weights, const Rows& y, const Rows& residual,
         const Rows& out, int64_t cols, uintptr_t stream) {
        const RouteArgs a = route_of({0, 0, "float32"}, rows, 0, top_k, false, shared, 0, 0, 0, place, weights);
        combine(a, view_of(y), view_of(residual), view_of(out), cols, stream_at(stream));
      },
      py::arg("rows"), py::arg("top_k"), py::arg("shared"), py::arg("place"), py::arg("weights"), py::arg("y"),
      py::arg("residual"), py::arg("out"), py::arg("cols"), py::arg("stream") = 0);
}

void bind_lt(py::module_& m) {
  m.def(
      "load_cublaslt", [](const std::string& path) { return load_cublaslt(path.c_str()); }, py::arg("path"),
      "Looks for libcublasLt there, before the first matmul. Returns whether it can be used.");
  m.def(
      "linear_lt",
      [](const py::dict& w, const std::string& type, const Rows& x, int rows, int activation, float scale,
         float softcap, const Rows& residual, const Rows& y, uintptr_t workspace, uintptr_t stream) {
        const LinearArgs a = linear_of(w, type, x, rows, activation, scale, softcap, residual, y);
        const bool takes = lt_takes(a);
        if (takes && workspace) linear_lt(a, at<void>(workspace), stream_at(stream));
        return takes ? lt_workspace(a) : 0;
      },
      py::arg("w"), py::arg("type"), py::arg("x"), py::arg("rows"), py::arg("activation"), py::arg("scale"),
      py::arg("softcap"), py::arg("residual"), py::arg("y"), py::arg("workspace") = 0, py::arg("stream") = 0,
      "Bytes of workspace that it needs; 0: cuBLASLt does not take it. workspace 0: nothing is done.");
  m.def(
      "widen_weights",
      [](const py::dict& w, const std::string& type, uintptr_t out, uintptr_t stream) {
        widen_weights(matrix_of(w), type_of(type), at<void>(out), stream_at(stream));
      },
      py::arg("w"), py::arg("type"), py::arg("out"), py::arg("stream") = 0);
  m.def(
      "narrow_rows",
      [](const Rows& x, int rows, int64_t cols, const Rows& out, uintptr_t stream) {
        narrow_rows(view_of(x), rows, cols, view_of(out), stream_at(stream));
      },
      py::arg("x"), py::arg("rows"), py::arg("cols"), py::arg("out"), py::arg("stream") = 0);
  m.def(
      "finish_rows",
      [](const py::dict& w, int activation, float scale, float softcap, const Rows& residual, const Rows& y,
         uintptr_t sums, int64_t sums_ld, int row0, int rows, uintptr_t stream) {
        const LinearArgs a = linear_of(w, "float32", {0, 64, "float32"}, rows, activation, scale, softcap, residual, y);
        finish_rows(a, at<const float>(sums), sums_ld, row0, rows, stream_at(stream));
      },
      py::arg("w"), py::arg("activation"), py::arg("scale"), py::arg("softcap"), py::arg("residual"), py::arg("y"),
      py::arg("sums"), py::arg("sums_ld"), py::arg("row0"), py::arg("rows"), py::arg("stream") = 0);
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
#if defined(PYLLM_HAVE_HOPPER)
  m.def(
      "linear_hopper",
      [](const py::dict& w, const std::string& type, const Rows& x, int rows, int activation, float scale,
         float softcap, const Rows& residual, const Rows& y, uintptr_t stream) {
        const LinearArgs a = linear_of(w, type, x, rows, activation, scale, softcap, residual, y);
        tiles_hopper(tile_args(a), a.type, stream_at(stream));
      },
      py::arg("w"), py::arg("type"), py::arg("x"), py::arg("rows"), py::arg("activation"), py::arg("scale"),
      py::arg("softcap"), py::arg("residual"), py::arg("y"), py::arg("stream") = 0,
      "As linear_tiles(), by wgmma: float16 or bfloat16 weights and x, on devices of compute capability 9.0 only.");
#endif
  bind_linear_batch(m);
  bind_experts(m);
  bind_lt(m);
}

}  // namespace cuda
}  // namespace pyllm
