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

View view_of(const ViewArgument& v) { return v ? view_at(std::get<0>(*v), std::get<1>(*v), std::get<2>(*v)) : View{}; }

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

// numpy's dtype of a Choice: its fields as they lie in memory.
py::object choice_dtype() {
  py::list names, formats, offsets;
  const auto field = [&](const char* name, const char* format, size_t offset) {
    names.append(name), formats.append(format), offsets.append(offset);
  };
  field("temperature", "f8", offsetof(Choice, temperature));
  field("top_p", "f8", offsetof(Choice, top_p));
  field("min_p", "f8", offsetof(Choice, min_p));
  field("seed", "u8", offsetof(Choice, seed));
  field("top_k", "i4", offsetof(Choice, top_k));
  field("seed_index", "u4", offsetof(Choice, seed_index));
  field("sequence", "u4", offsetof(Choice, sequence));
  field("step", "u4", offsetof(Choice, step));
  py::dict fields;
  fields["names"] = names;
  fields["formats"] = formats;
  fields["offsets"] = offsets;
  fields["itemsize"] = sizeof(Choice);
  return py::module_::import("numpy").attr("dtype")(fields);
}

void bind_choices(py::module_& m) {
  m.def("choice_dtype", &choice_dtype, "What choose() takes: an array of these, one a row.");
  m.def("choose_workspace", &choose_workspace, py::arg("rows"), py::arg("n"), "Bytes.");
  m.def("top_workspace", &top_workspace, py::arg("rows"), py::arg("n"), py::arg("count"), "Bytes.");
  m.def("log_softmax_workspace", &log_softmax_workspace, py::arg("rows"), py::arg("n"), "Bytes.");
  m.attr("MOST_CHOICES") = kMostChoices;
  m.attr("MOST_BEST") = kMostBest;
  m.def(
      "choose",
      [](const ViewArgument& logits, int rows, int64_t n, uintptr_t choices, uintptr_t tokens, uintptr_t workspace,
         int cuts, uintptr_t stream) {
        choose(view_of(logits), rows, n, at<const Choice>(choices), at<int32_t>(tokens), at<void>(workspace),
               stream_at(stream), Cuts(cuts));
      },
      py::arg("logits"), py::arg("rows"), py::arg("n"), py::arg("choices"), py::arg("tokens"), py::arg("workspace"),
      py::arg("cuts") = int(Cuts::any), py::arg("stream") = 0);
  m.def(
      "top",
      [](const ViewArgument& logits, int rows, int64_t n, int count, bool normalise, uintptr_t values, uintptr_t ids,
         uintptr_t lse, uintptr_t workspace, uintptr_t stream) {
        top(view_of(logits), rows, n, count, normalise, at<float>(values), at<int32_t>(ids), at<float>(lse),
            at<void>(workspace), stream_at(stream));
      },
      py::arg("logits"), py::arg("rows"), py::arg("n"), py::arg("count"), py::arg("normalise"), py::arg("values"),
      py::arg("ids"), py::arg("lse"), py::arg("workspace"), py::arg("stream") = 0);
}

void bind_changes(py::module_& m) {
  m.def(
      "log_softmax",
      [](const ViewArgument& logits, int rows, int64_t n, uintptr_t wanted, uintptr_t workspace, uintptr_t stream) {
        log_softmax(view_of(logits), rows, n, at<const int32_t>(wanted), at<void>(workspace), stream_at(stream));
      },
      py::arg("logits"), py::arg("rows"), py::arg("n"), py::arg("wanted"), py::arg("workspace"), py::arg("stream") = 0);
  m.def(
      "edit",
      [](const ViewArgument& logits, int rows, int64_t n, uintptr_t ids, uintptr_t values, uintptr_t offsets,
         uintptr_t lengths, uintptr_t fills, bool any_fills, uintptr_t stream) {
        Edits e;
        e.ids = at<const int32_t>(ids);
        e.values = at<const float>(values);
        e.offsets = at<const int32_t>(offsets);
        e.lengths = at<const int32_t>(lengths);
        e.fills = at<const int32_t>(fills);
        e.any_fills = any_fills;
        edit(view_of(logits), rows, n, e, stream_at(stream));
      },
      py::arg("logits"), py::arg("rows"), py::arg("n"), py::arg("ids"), py::arg("values"), py::arg("offsets"),
      py::arg("lengths"), py::arg("fills"), py::arg("any_fills") = true, py::arg("stream") = 0);
}

void bind_steps(py::module_& m) {
  m.def(
      "penalise",
      [](const ViewArgument& logits, int rows, int64_t n, uintptr_t ids, uintptr_t offsets, uintptr_t lengths,
         uintptr_t repetition, uintptr_t frequency, uintptr_t presence, uintptr_t stream) {
        Penalties p;
        p.ids = at<const int32_t>(ids);
        p.offsets = at<const int32_t>(offsets);
        p.lengths = at<const int32_t>(lengths);
        p.repetition = at<const float>(repetition);
        p.frequency = at<const float>(frequency);
        p.presence = at<const float>(presence);
        penalise(view_of(logits), rows, n, p, stream_at(stream));
      },
      py::arg("logits"), py::arg("rows"), py::arg("n"), py::arg("ids"), py::arg("offsets"), py::arg("lengths"),
      py::arg("repetition") = 0, py::arg("frequency") = 0, py::arg("presence") = 0, py::arg("stream") = 0);
  m.def(
      "advance",
      [](uintptr_t tokens, int rows, uintptr_t sequence, uintptr_t ids, uintptr_t positions, uintptr_t context,
         uintptr_t choices, uintptr_t stream) {
        advance(at<const int32_t>(tokens), rows, at<const int32_t>(sequence), at<int32_t>(ids), at<int32_t>(positions),
                at<int32_t>(context), at<Choice>(choices), stream_at(stream));
      },
      py::arg("tokens"), py::arg("rows"), py::arg("sequence"), py::arg("ids"), py::arg("positions"), py::arg("context"),
      py::arg("choices"), py::arg("stream") = 0);
}

}  // namespace

void bind_rows(py::module_& m) {
  bind_embedding(m);
  bind_norms(m);
  bind_choices(m);
  bind_changes(m);
  bind_steps(m);
}

}  // namespace cuda
}  // namespace pyllm
