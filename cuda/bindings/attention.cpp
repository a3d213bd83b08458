// append(), store_cross(), attend() for tests: arguments are dicts named as the fields of cuda/launch.h; every address
// is an integer (device memory of the caller's). What a dict does not name keeps its default; a name that is no field
// is an error.
#include <pybind11/stl.h>

#include <set>
#include <tuple>

#include "common.h"

namespace pyllm {
namespace cuda {
namespace {

class Fields {
 public:
  explicit Fields(const py::dict& values) : values_(values) {}
  void done() const {  // after the last one
    for (const auto& item : values_)
      if (!known_.count(py::str(item.first)))
        throw Error(ErrorKind::array, "[attention] arguments are fields of launch.h, got " +
                                          std::string(py::str(item.first)) + "; name one of them");
  }
  template <class T>
  void read(const char* name, T& to) {
    known_.insert(name);
    if (values_.contains(name)) to = values_[name].cast<T>();
  }
  template <class T>
  void address(const char* name, T*& to) {
    known_.insert(name);
    if (values_.contains(name)) to = at<T>(values_[name].cast<uintptr_t>());
  }
  template <class E>
  void choice(const char* name, E& to) {
    int value = int(to);
    read(name, value);
    to = E(value);
  }
  // (address, ld, name of the type)
  void view(const char* name, View& to) {
    known_.insert(name);
    if (!values_.contains(name)) return;
    const auto [data, ld, type] = values_[name].cast<std::tuple<uintptr_t, int64_t, std::string>>();
    to = view_at(data, ld, type);
  }
  py::dict dict(const char* name) {
    known_.insert(name);
    return values_.contains(name) ? values_[name].cast<py::dict>() : py::dict();
  }

 private:
  const py::dict values_;
  std::set<std::string> known_;
};

KvView kv_of(const py::dict& values) {
  Fields f(values);
  KvView kv;
  f.choice("format", kv.format);
  f.read("heads", kv.heads);
  f.read("head_dim", kv.head_dim);
  f.read("layer_offset", kv.layer_offset);
  f.done();
  kv.head_stride = int64_t(kv_block_bytes(kv.format, kv.head_dim));
  return kv;
}

StepView step_of(const py::dict& values) {
  Fields f(values);
  StepView step;
  f.address("positions", step.positions);
  f.address("sequence", step.sequence);
  f.address("starts", step.starts);
  f.address("context", step.context);
  f.address("blocks", step.blocks);
  f.read("table_width", step.table_width);
  f.address("cross_blocks", step.cross_blocks);
  f.read("cross_width", step.cross_width);
  f.address("cross_context", step.cross_context);
  f.read("rows", step.rows);
  f.read("sequences", step.sequences);
  f.read("most_rows", step.most_rows);
  f.read("longest", step.longest);
  f.read("longest_cross", step.longest_cross);
  f.done();
  return step;
}

AttendBias bias_of(const py::dict& values) {
  Fields f(values);
  AttendBias bias;
  f.address("table", bias.table);
  f.read("first", bias.first);
  f.read("span", bias.span);
  f.address("slopes", bias.slopes);
  f.view("c2p", bias.c2p);
  f.view("p2c", bias.p2c);
  f.address("c2p_index", bias.c2p_index);
  f.address("p2c_index", bias.p2c_index);
  f.read("indices", bias.indices);
  f.done();
  return bias;
}

AttendArgs attend_of(const py::dict& values) {
  Fields f(values);
  AttendArgs a;
  f.view("q", a.q);
  f.view("out", a.out);
  f.read("num_heads", a.num_heads);
  f.read("scale", a.scale);
  f.read("softcap", a.softcap);
  f.read("causal", a.causal);
  f.read("cross", a.cross);
  f.read("window", a.window);
  std::string type = "float32";
  f.read("type", type);
  a.type = type_of(type);
  f.address("workspace", a.workspace);
  f.address("weights", a.weights);
  a.bias = bias_of(f.dict("bias"));
  a.kv = kv_of(f.dict("kv"));
  f.done();
  return a;
}

void bound_append(const py::dict& values, const py::dict& step, uintptr_t stream) {
  Fields f(values);
  AppendArgs a;
  f.view("qkv", a.qkv);
  f.read("num_heads", a.num_heads);
  f.view("rope", a.rope);
  f.read("rotary_dim", a.rotary_dim);
  f.read("interleaved", a.interleaved);
  a.kv = kv_of(f.dict("kv"));
  f.done();
  append(a, step_of(step), stream_at(stream));
}

void bound_store_cross(const py::dict& values, const py::dict& step, uintptr_t stream) {
  Fields f(values);
  View kv;
  f.view("kv", kv);
  const KvView cache = kv_of(f.dict("cache"));
  f.done();
  store_cross(kv, cache, step_of(step), stream_at(stream));
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("append", &bound_append, py::arg("args"), py::arg("step"), py::arg("stream") = 0);
  m.def("store_cross", &bound_store_cross, py::arg("args"), py::arg("step"), py::arg("stream") = 0);
  m.def("attend_workspace",
        [](const py::dict& args, const py::dict& step) { return attend_workspace(attend_of(args), step_of(step)); });
  m.def(
      "attend",
      [](const py::dict& args, const py::dict& step, uintptr_t stream) {
        attend(attend_of(args), step_of(step), stream_at(stream));
      },
      py::arg("args"), py::arg("step"), py::arg("stream") = 0);
}

}  // namespace cuda
}  // namespace pyllm
