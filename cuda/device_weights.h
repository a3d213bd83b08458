// The weights of a program on a device, by address (memory is the caller's), and what kernels want besides of each op:
// tables of matrices, slices of norms, frequencies, slopes, indices.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "launch.h"
#include "program.h"

namespace pyllm {
namespace cuda {

// Device addresses, by what the op is; nullptr where it has none.
struct OpTables {
  const Matrix *matrices = nullptr, *down = nullptr;  // HeadLinear's, or Experts' gate_up; Experts' down
  const HeadSlice* slices = nullptr;
  const float *inv_freq = nullptr, *slopes = nullptr;
  const int32_t *c2p_index = nullptr, *p2c_index = nullptr;
};

class DeviceWeights {
 public:
  explicit DeviceWeights(const Program& program);

  // Addresses of a packed matrix as launch.h lays it out, ld elements between rows; scales, zeros and bias 0: none.
  // Throws Error(array) for a wrong id, layout or set of addresses.
  void set_matrix(int id, uintptr_t codes, uintptr_t scales, uintptr_t zeros, uintptr_t bias, int64_t ld);
  void set_vector(int id, uintptr_t address);
  int missing() const { return missing_; }  // matrices and vectors without an address

  // The tables as bytes, for memory at `address` (on 256 bytes); afterwards they count as being there. All weights must
  // be set. Throws Error(program) for experts of one op that are not packed alike.
  std::vector<uint8_t> tables(uintptr_t address);
  size_t table_bytes();  // without placing them anywhere
  bool placed() const { return placed_; }

  const Matrix& matrix(int id) const { return matrices_[size_t(id)]; }
  const float* vector(int id) const { return id < 0 ? nullptr : vectors_[size_t(id)]; }
  const OpTables& of(size_t routine, size_t op) const { return tables_[routine][op]; }

 private:
  class Writer;
  void add(const Op& op, OpTables& tables, Writer& to) const;
  const Matrix* add_matrices(const std::vector<int>& ids, Writer& to) const;

  const Program& program_;
  std::vector<Matrix> matrices_;
  std::vector<const float*> vectors_;
  std::vector<std::vector<OpTables>> tables_;  // by routine and op
  int missing_;
  bool placed_ = false;
};

}  // namespace cuda
}  // namespace pyllm
