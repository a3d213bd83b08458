#include "device_weights.h"

#include <algorithm>
#include <cstring>

#include "errors.h"
#include "overloaded.h"

namespace pyllm {
namespace cuda {
namespace {

// How a matrix is kept here: f32_bf16x3 needs tiles of its own and is plain float32; int8-fast is int8.
Format kept_as(Format f) { return is_f32(f) ? Format::f32 : is_i8(f) ? Format::i8 : f; }

int64_t ld_of(Format f, int64_t k) { return round_up(k, is_i4(f) ? 128 : 64); }

Matrix described(const MatrixShape& shape) {
  Matrix m;
  m.format = kept_as(shape.format);
  m.gated = shape.gated;
  m.n = shape.gated ? 2 * shape.parts[0] : shape.outputs();
  m.k = shape.k;
  m.ld = ld_of(m.format, m.k);
  return m;
}

}  // namespace

// Bytes in the making, and where they will lie.
class DeviceWeights::Writer {
 public:
  explicit Writer(uintptr_t address) : address_(address) {}
  template <class T>
  const T* add(const std::vector<T>& items) {
    if (items.empty()) return nullptr;
    const size_t at = size_t(round_up(int64_t(bytes_.size()), 64));
    bytes_.resize(at + items.size() * sizeof(T));
    std::memcpy(bytes_.data() + at, items.data(), items.size() * sizeof(T));
    return reinterpret_cast<const T*>(address_ + at);
  }
  std::vector<uint8_t> take() { return std::move(bytes_); }

 private:
  const uintptr_t address_;
  std::vector<uint8_t> bytes_;
};

DeviceWeights::DeviceWeights(const Program& program)
    : program_(program),
      vectors_(program.vectors.size(), nullptr),
      missing_(int(program.matrices.size() + program.vectors.size())) {
  for (const pyllm::Matrix& m : program.matrices) matrices_.push_back(described(m.shape));
  for (const Routine& r : program.routines) tables_.emplace_back(r.ops.size());
}

void DeviceWeights::set_matrix(int id, uintptr_t codes, uintptr_t scales, uintptr_t zeros, uintptr_t bias, int64_t ld) {
  if (id < 0 || size_t(id) >= matrices_.size())
    throw Error(ErrorKind::array, text("[load] there is no matrix ", id, "; use the ids the program gave"));
  Matrix& m = matrices_[size_t(id)];
  const pyllm::Matrix& recorded = program_.matrices[size_t(id)];
  const bool scaled = is_i8(m.format) || is_i4(m.format);
  if (codes == 0 || ld != m.ld || (scales != 0) != scaled || (zeros != 0) != has_zeros(m.format) ||
      (bias != 0) != recorded.bias)
    throw Error(ErrorKind::array, text("[load] ", recorded.name, " must be packed as recorded, ", m.ld,
                                       " elements a row, got ", ld, "; pack it with pyllm.devices.cuda_packing"));
  missing_ -= m.codes == nullptr;
  m.codes = reinterpret_cast<const void*>(codes);
  m.scales = reinterpret_cast<const void*>(scales);
  m.zeros = reinterpret_cast<const uint8_t*>(zeros);
  m.bias = reinterpret_cast<const float*>(bias);
  placed_ = false;
}

void DeviceWeights::set_vector(int id, uintptr_t address) {
  if (id < 0 || size_t(id) >= vectors_.size() || address == 0)
    throw Error(ErrorKind::array, text("[load] there is no vector ", id, "; use the ids the program gave"));
  missing_ -= vectors_[size_t(id)] == nullptr;
  vectors_[size_t(id)] = reinterpret_cast<const float*>(address);
  placed_ = false;
}

const Matrix* DeviceWeights::add_matrices(const std::vector<int>& ids, Writer& to) const {
  std::vector<Matrix> found;
  for (int id : ids) {
    found.push_back(matrix(id));
    const Matrix &one = found.front(), &m = found.back();
    if (m.format != one.format || m.n != one.n || m.k != one.k || (m.bias == nullptr) != (one.bias == nullptr))
      throw Error(ErrorKind::program, text("[load] matrices that run in one launch must be packed alike, ",
                                           program_.matrices[size_t(id)].name,
                                           " is not; pass quantization= to pack all of them in one format"));
  }
  return to.add(found);
}

void DeviceWeights::add(const Op& op, OpTables& tables, Writer& to) const {
  std::visit(
      Overloaded{[&](const HeadLinear& o) { tables.matrices = add_matrices(o.weights, to); },
                 [&](const Experts& o) {
                   tables.matrices = add_matrices(o.gate_up, to);
                   tables.down = add_matrices(o.down, to);
                 },
                 [&](const HeadNorm& o) {
                   std::vector<HeadSlice> slices;
                   for (const NormSlice& s : o.slices) {
                     // One vector for all groups, or one as long as all of them.
                     const bool own = program_.vectors[size_t(s.weight)] != s.width;
                     slices.push_back({s.begin, s.width, s.count, vector(s.weight), vector(s.bias), own ? s.width : 0});
                   }
                   tables.slices = to.add(slices);
                 },
                 [&](const Rotary& o) { tables.inv_freq = to.add(o.inv_freq); },
                 [&](const Attention& o) {
                   const auto indices = [](const std::vector<int>& v) {
                     return std::vector<int32_t>(v.begin(), v.end());
                   };
                   tables.slopes = to.add(o.bias.slopes);
                   tables.c2p_index = to.add(indices(o.bias.c2p_index));
                   tables.p2c_index = to.add(indices(o.bias.p2c_index));
                 },
                 [](const auto&) {}},
      op);
}

std::vector<uint8_t> DeviceWeights::tables(uintptr_t address) {
  if (missing_ != 0)
    throw Error(ErrorKind::array,
                text("[load] ", missing_, " weights are not loaded; load every matrix and vector first"));
  Writer to(address);
  for (size_t r = 0; r < tables_.size(); r++)
    for (size_t i = 0; i < tables_[r].size(); i++) add(program_.routines[r].ops[i], tables_[r][i], to);
  placed_ = true;
  return to.take();
}

size_t DeviceWeights::table_bytes() {
  const size_t bytes = tables(0).size();
  placed_ = false;
  return bytes;
}

}  // namespace cuda
}  // namespace pyllm
