// The skinny matmul over int4 weights.
#include "linear_skinny.cuh"

namespace pyllm {
namespace cuda {
namespace skinny {

void run_i4(const LinearArgs& a, int multiprocessors, Stream stream) {
  if (a.type == Type::bf16) run<Int4<Half<bf16>>, 1, 1>(a, multiprocessors, stream);
  else if (a.type == Type::f16) run<Int4<Half<f16>>, 1, 1>(a, multiprocessors, stream);
  else run<Int4<Split>, 1, 1>(a, multiprocessors, stream);
}

}  // namespace skinny
}  // namespace cuda
}  // namespace pyllm
