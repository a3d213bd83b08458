// What a plan rests on: which norms workers repeat, which matmuls they divide by heads, and where buffers lie.
#pragma once
#include <vector>

#include "plan.h"

namespace pyllm {

// The buffer that an op takes as the input of its matmuls, -1: none.
int multiplied(const Op& op);

// Norms that workers may repeat as part of the matmul that reads them first.
struct RepeatedNorms {
  std::vector<int> norm;               // per buffer: the index of the norm op that writes it, or -1
  std::vector<int> first;              // per buffer: the first op that reads it
  std::vector<bool> store;             // per buffer: something else reads it too, so it must be written
  bool at(int buffer, int op) const {  // whether op repeats the norm rather than reads its buffer
    return norm[size_t(buffer)] >= 0 && (!store[size_t(buffer)] || first[size_t(buffer)] == op);
  }
};
RepeatedNorms repeated_norms(const Routine& routine);

// By op: the attention whose heads a linear makes, where every worker can make those that it attends with; or -1.
std::vector<int> attentions(const Program& program, const Routine& routine, int threads);

// Fills the plan's columns and width.
void lay_out(const Routine& routine, const RepeatedNorms& norms, const std::vector<int>& attentions, Plan& plan);

}  // namespace pyllm
