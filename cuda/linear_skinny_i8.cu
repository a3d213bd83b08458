// The skinny matmul over int8 weights.
#include "linear_skinny.cuh"

namespace pyllm {
namespace cuda {
namespace skinny {

void run_i8(const LinearArgs& a, int multiprocessors, Stream stream) {
  if (a.type == Type::bf16) run<Int8<Half<bf16>>, 2, 2>(a, multiprocessors, stream);
  else if (a.type == Type::f16) run<Int8<Half<f16>>, 2, 2>(a, multiprocessors, stream);
  else run<Int8<Split>, 1, 1>(a, multiprocessors, stream);
}

}  // namespace skinny
}  // namespace cuda
}  // namespace pyllm
