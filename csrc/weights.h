// All weights of a program in one arena, sized before the first is packed.
#pragma once
#include <cstdint>
#include <vector>

#include "arena.h"
#include "program.h"

namespace pyllm {

class Weights {
 public:
  explicit Weights(const Program& program);  // throws Error(out_of_memory)

  uint8_t* matrix(int id) const { return arena_.data() + matrices_[size_t(id)]; }
  float* bias(int id) const {  // in packed order, nullptr: none
    return biases_[size_t(id)] == kNone ? nullptr : reinterpret_cast<float*>(arena_.data() + biases_[size_t(id)]);
  }
  float* vector(int id) const { return reinterpret_cast<float*>(arena_.data() + vectors_[size_t(id)]); }
  const Arena& arena() const { return arena_; }

 private:
  static constexpr size_t kNone = SIZE_MAX;
  std::vector<size_t> matrices_, biases_, vectors_;  // offsets in bytes
  Arena arena_;
};

}  // namespace pyllm
