#include "rotary.h"

#include <algorithm>
#include <cmath>

namespace pyllm {
namespace {

constexpr int64_t kMoreRows = 128;  // a few tens of microseconds, every so many tokens

}  // namespace

RotaryTables::RotaryTables(const Routine& routine) : of_op_(routine.ops.size(), -1), most_(routine.max_positions) {
  for (size_t i = 0; i < routine.ops.size(); i++)
    if (const Rotary* op = std::get_if<Rotary>(&routine.ops[i])) {
      of_op_[i] = int(tables_.size());
      tables_.push_back({op, int64_t(2 * op->inv_freq.size()), {}});
    }
}

void RotaryTables::reserve(int64_t positions, int threads, Pool::Turn& turn) {
  positions = std::min(positions, most_);
  if (tables_.empty() || positions <= rows_) return;
  const int64_t begin = rows_, end = std::min(most_, round_up(positions, kMoreRows));
  for (Table& table : tables_) table.values.resize(size_t(end * table.columns));
  turn.run(threads, [&](Team& team) {
    const Team::Range mine = team.part(end - begin);
    for (Table& table : tables_)
      for (int64_t p = begin + mine.begin; p < begin + mine.end; p++) {
        float* y = table.values.data() + p * table.columns;
        const int64_t half = table.columns / 2;
        for (int64_t i = 0; i < half; i++) {
          const float angle = float(p) * table.op->inv_freq[size_t(i)];
          y[i] = float(std::cos(double(angle))) * table.op->scaling;
          y[half + i] = float(std::sin(double(angle))) * table.op->scaling;
        }
      }
  });
  rows_ = end;
}

}  // namespace pyllm
