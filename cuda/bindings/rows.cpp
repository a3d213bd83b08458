// The kernels over rows one by one: embedding, rotary tables, norms, choosing tokens. Views are (address, elements
// between rows, dtype name) or None; matrices and steps are dicts of addresses and sizes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <optional>
#include <string>
#include <tuple>

#include "common.h"

namespace pyllm {
namespace cuda {
namespace {

using ViewArgument = std::optional<std::tuple<uintptr_t, int64_t, std::string>>;

View view_of(const ViewArgument& v) {
  return v ? view_at(std::get<0>(*v), std::get<1>(*v), std::get<2>(*v)) : View{};
}

uintptr_t address_in(const py::dict& d, const char* name) {
  return d.contains(name) ? d[name].cast<uintptr_t>() : uintptr_t(0);
}
int64_t size_in(const py::dict& d, const char* name) { return d.contains(name) ? d[name].cast<int64_t>() : 0; }

// Keys: format (Format), codes, scales, zeros, n, k, ld. None: there is no such table.
Matrix table_of(const std::optional<py::dict>& d) {
  Matrix m;
  if (!d) return m;
  m.format = Format(size_in(*d, "format"));
  m.codes = at<const void>(address_in(*d, "codes"));
  m.scales = at<const void>(address_in(*d, "scales"));
  m.zeros = at<const uint8_t>(address_in(*d, "zeros"));
  m.n = size_in(*d, "n");
  m.k = size_in(*d, "k");
  m.ld = size_in(*d, "ld");
  return m;
}

// Keys: ids, positions, types, sequence, logit_rows (addresses), rows, logits.
StepView step_of(const py::dict& d) {
  StepView s;
  s.ids = at<const int32_t>(address_in(d, "ids"));
  s.positions = at<const int32_t>(address_in(d, "positions"));
  s.types = at<const int32_t>(address_in(d, "types"));
  s.sequence = at<const int32_t>(address_in(d, "sequence"));
  s.logit_rows = at<const int32_t>(address_in(d, "logit_rows"));
  s.rows = int(size_in(d, "rows"));
  s.logits = int(size_in(d, "logits"));
  return s;
}

void bind_embedding(py::module_& m) {
  m.def(
      "embed",
      [](const ViewArgument& out, int64_t cols, const py::dict& step, const std::optional<py::dict>& table,
         const std::optional<py::dict>& positions, const std::optional<py::dict>& types, int64_t position_offset,
         float scale, bool by_position, uintptr_t stream) {
        EmbedArgs a;
        a.out = view_of(out);
        a.cols = cols;
        a.table = table_of(table);
        a.positions = table_of(positions);
        a.types = table_of(types);
        a.position_offset = position_offset;
        a.scale = scale;
        a.by_position = by_position;
        embed(a, step_of(step), stream_at(stream));
      },
      py::arg("out"), py::arg("cols"), py::arg("step"), py::arg("table"), py::arg("positions") = py::none(),
      py::arg("types") = py::none(), py::arg("position_offset") = 0, py::arg("scale") = 1.0f,
      py::arg("by_position") = false, py::arg("stream") = 0);
  m.def(
      "rotary",
      [](const ViewArgument& out, uintptr_t inv_freq, int n, float scaling, const py::dict& step, uintptr_t stream) {
        rotary(view_of(out), at<const float>(inv_freq), n, scaling, step_of(step), stream_at(stream));
      },
      py::arg("out"), py::arg("inv_freq"), py::arg("n"), py::arg("scaling"), py::arg("step"), py::arg("stream") = 0);
  m.def(
      "select",
      [](const ViewArgument& x, const ViewArgument& out, int64_t cols, const py::dict& step, uintptr_t stream) {
        select(view_of(x), view_of(out), cols, step_of(step), stream_at(stream));
      },
      py::arg("x"), py::arg("out"), py::arg("cols"), py::arg("step"), py::arg("stream") = 0);
  m.def(
      "widen",
      [](const ViewArgument& x, int rows, int64_t cols, uintptr_t out, uintptr_t stream) {
        widen(view_of(x), rows, cols, at<float>(out), stream_at(stream));
      },
      py::arg("x"), py::arg("rows"), py::arg("cols"), py::arg("out"), py::arg("stream") = 0);
}

void bind_norms(py::module_& m) {
  m.def(
      "norm",
      [](const ViewArgument& x, const ViewArgument& out, int rows, int64_t n, bool rms, uintptr_t weight,
         uintptr_t bias, float eps, const ViewArgument& residual, uintptr_t stream) {
        NormArgs a;
        a.x = view_of(x);
        a.out = view_of(out);
        a.residual = view_of(residual);
        a.norm = {rms ? NormKind::rms : NormKind::layer, at<const float>(weight), at<const float>(bias), eps};
        a.rows = rows;
        a.n = n;
        norm(a, stream_at(stream));
      },
      py::arg("x"), py::arg("out"), py::arg("rows"), py::arg("n"), py::arg("rms"), py::arg("weight"),
      py::arg("bias") = 0, py::arg("eps") = 0.0f, py::arg("residual") = py::none(), py::arg("stream") = 0);
  m.def(
      "head_norm",
      [](const ViewArgument& x, const ViewArgument& out, int rows, int64_t cols, bool rms, uintptr_t slices,
         int num_slices, float eps, uintptr_t stream) {
        HeadNormArgs a;
        a.x = view_of(x);
        a.out = view_of(out);
        a.rms = rms;
        a.slices = at<const void>(slices);
        a.num_slices = num_slices;
        a.rows = rows;
        a.cols = cols;
        a.eps = eps;
        head_norm(a, stream_at(stream));
      },
      py::arg("x"), py::arg("out"), py::arg("rows"), py::arg("cols"), py::arg("rms"), py::arg("slices"),
      py::arg("num_slices"), py::arg("eps"), py::arg("stream") = 0);
}

}  // namespace

void bind_rows(py::module_& m) {
  bind_embedding(m);
  bind_norms(m);
}

}  // namespace cuda
}  // namespace pyllm
