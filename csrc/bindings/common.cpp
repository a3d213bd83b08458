#include "common.h"

#include "errors.h"
#include "machine.h"

namespace pyllm {
namespace {

std::string shape_text(const py::array& array) {
  std::string out = "[";
  for (py::ssize_t i = 0; i < array.ndim(); i++) out += (i ? ", " : "") + std::to_string(array.shape(i));
  return out + "]";
}

std::string dtype_text(const py::array& array) { return py::str(array.dtype()).cast<std::string>(); }

}  // namespace

template <class T>
const T* data_of(const py::array& array, const char* name, std::initializer_list<int64_t> shape) {
  bool fits = array.ndim() == py::ssize_t(shape.size()) && array.dtype().equal(py::dtype::of<T>()) &&
              (array.flags() & py::array::c_style);
  py::ssize_t axis = 0;
  for (int64_t extent : shape) {
    fits = fits && (extent < 0 || array.shape(axis) == extent);
    axis++;
  }
  if (!fits) {
    std::string wanted;
    for (int64_t extent : shape) wanted += (wanted.empty() ? "" : ", ") + (extent < 0 ? "any" : std::to_string(extent));
    throw Error(ErrorKind::array,
                text("[", name, "] must be ", py::str(py::dtype::of<T>()).cast<std::string>(), " [", wanted,
                     "], C-contiguous, got ", dtype_text(array), " ", shape_text(array), "; convert or reshape it"));
  }
  return static_cast<const T*>(array.data());
}
template const float* data_of(const py::array&, const char*, std::initializer_list<int64_t>);
template const int32_t* data_of(const py::array&, const char*, std::initializer_list<int64_t>);
template const uint8_t* data_of(const py::array&, const char*, std::initializer_list<int64_t>);

Source source_of(const py::array& array, const char* name) {
  const py::ssize_t size = array.itemsize();
  const char kind = array.dtype().kind();
  const bool known =
      array.dtype().byteorder() == '=' && ((kind == 'f' && (size == 4 || size == 2)) || (kind == 'u' && size == 2));
  if (!known || array.ndim() != 2 || array.size() == 0 || array.strides(0) % size != 0 || array.strides(1) % size != 0)
    throw Error(ErrorKind::array,
                text("[", name, "] must be a matrix of float32, float16 or bfloat16 (as uint16), got ",
                     dtype_text(array), " ", shape_text(array), "; convert or reshape it"));
  const SourceType type = kind == 'u' ? SourceType::bf16 : size == 4 ? SourceType::f32 : SourceType::f16;
  return {array.data(), type, array.shape(0), array.shape(1), array.strides(0) / size, array.strides(1) / size};
}

std::vector<Source> sources_of(const std::vector<py::array>& arrays) {
  std::vector<Source> sources;
  for (const py::array& array : arrays) sources.push_back(source_of(array, "weight"));
  for (const Source& source : sources)
    if (source.type != sources[0].type || source.cols != sources[0].cols)
      throw Error(ErrorKind::array,
                  "[weight] joined matrices must have one dtype and one number of columns; convert them");
  return sources;
}

std::vector<CodeSource> codes_of(const std::vector<CodeArrays>& arrays, bool is_signed, int64_t group_size) {
  std::vector<CodeSource> sources;
  for (const auto& [codes, scales, zeros] : arrays) {
    const bool known = codes.dtype().kind() == (is_signed ? 'i' : 'u') && codes.itemsize() == 1 && codes.ndim() == 2;
    if (!known || codes.size() == 0 || codes.strides(1) != 1)
      throw Error(ErrorKind::array,
                  text("[codes] must be a matrix of ", is_signed ? "int8" : "uint8", " with dense rows, got ",
                       dtype_text(codes), " ", shape_text(codes), "; convert or copy it"));
    CodeSource source{static_cast<const uint8_t*>(codes.data()),
                      codes.shape(0),
                      codes.shape(1),
                      codes.strides(0),
                      data_of<float>(scales, "scales", {codes.shape(0), -1}),
                      nullptr,
                      0,
                      group_size};
    source.groups = scales.shape(1);
    if (!zeros.is_none())
      source.zeros = data_of<uint8_t>(zeros.cast<py::array>(), "zeros", {source.rows, source.groups});
    if (group_size == 0 && source.groups != 0 && source.cols % source.groups == 0)
      source.group_size = source.cols / source.groups;
    sources.push_back(source);
  }
  return sources;
}

namespace {

// Names of Format and KvFormat, in their order.
const char* const kFormatNames[] = {"float32", "bfloat16",  "float16", "int8",       "int8-fast",
                                    "int4",    "int4-g128", "int4z",   "int4z-g128", "float32-bf16x3"};
const char* const kKvFormatNames[] = {"float32", "bfloat16", "float16", "int8"};

template <class F, size_t N>
F named(const char* const (&names)[N], const std::string& name, const char* what) {
  std::string list;
  for (size_t i = 0; i < N; i++) {
    if (name == names[i]) return F(i);
    list += (i == 0 ? "'" : i + 1 < N ? ", '" : " or '") + std::string(names[i]) + "'";
  }
  throw Error(ErrorKind::option, text("[", what, "] must be ", list, ", got '", name, "'; choose one of these"));
}

}  // namespace

Format format_of(const std::string& name) { return named<Format>(kFormatNames, name, "dtype"); }
std::string name_of(Format format) { return kFormatNames[size_t(format)]; }
KvFormat kv_format_of(const std::string& name) { return named<KvFormat>(kKvFormatNames, name, "kv_cache"); }

Activation activation_of(const std::string& name) {
  static const char* const names[] = {"none", "relu", "gelu", "gelu_tanh", "quick_gelu", "silu", "tanh"};
  for (int i = 0; i < 7; i++)
    if (name == names[i]) return Activation(i);
  throw Error(ErrorKind::option,
              text("[activation] must be none, relu, gelu, gelu_tanh, quick_gelu, silu or tanh, got '", name,
                   "'; choose one of these"));
}

const Kernels& kernels_of(const py::object& isa) {
  if (isa.is_none()) return kernels();
  const std::string name = py::str(isa).cast<std::string>();
  if (const Kernels* table = kernels_by_name(name.c_str())) return *table;
  throw Error(ErrorKind::device, text("[isa] must be an instruction set that this build has and this CPU runs, got '",
                                      name, "'; pyllm._C.isas() lists them"));
}

int threads_of(const py::object& threads) {
  if (threads.is_none()) return default_threads();
  int overflow = 0;
  const long long count =
      py::isinstance<py::int_>(threads) ? PyLong_AsLongLongAndOverflow(threads.ptr(), &overflow) : 0;
  if (count < 1 || count > kMaxThreads)  // an overflow gives -1
    throw Error(ErrorKind::option, text("[num_threads] must be a number from 1 to ", kMaxThreads, ", got ",
                                        py::repr(threads).cast<std::string>(), "; leave it out for the default"));
  return int(count);
}

}  // namespace pyllm
