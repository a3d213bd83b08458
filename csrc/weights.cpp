#include "weights.h"

namespace pyllm {

Weights::Weights(const Program& program) {
  size_t total = 0;
  const auto take = [&](size_t bytes) {
    const size_t at = total;
    total += size_t(round_up(int64_t(bytes), 64));
    return at;
  };
  for (const Matrix& m : program.matrices) {
    matrices_.push_back(take(m.shape.bytes()));
    biases_.push_back(m.bias ? take(m.shape.bias_floats() * sizeof(float)) : kNone);
  }
  // Vector loads may read a whole line past the end of a row.
  for (int64_t n : program.vectors) vectors_.push_back(take(size_t(round_up(n, kPanel)) * sizeof(float)));
  arena_ = Arena(total, "weights");
}

}  // namespace pyllm
