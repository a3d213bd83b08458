// Cosines and sines of the positions that were seen so far, for every rotary op of a routine: in double they cost more
// than the rotation they serve.
#pragma once
#include <cstdint>
#include <vector>

#include "program.h"
#include "threads.h"

namespace pyllm {

class RotaryTables {
 public:
  RotaryTables() = default;
  explicit RotaryTables(const Routine& routine);

  // Makes rows of positions below `positions`, and of some more: contexts grow a token a step.
  void reserve(int64_t positions, int threads, Pool::Turn& turn);

  // Of one op, by its index: cosines of all its frequencies, then their sines.
  const float* row(int op, int64_t position) const {
    const Table& table = tables_[size_t(of_op_[size_t(op)])];
    return table.values.data() + position * table.columns;
  }

 private:
  struct Table {
    const Rotary* op;
    int64_t columns;
    std::vector<float> values;  // [rows_][columns]
  };
  std::vector<Table> tables_;
  std::vector<int> of_op_;  // by op: its table
  int64_t rows_ = 0, most_ = 0;
};

}  // namespace pyllm
