// The skinny matmul over bfloat16 weights.
#include "linear_skinny.cuh"

namespace pyllm {
namespace cuda {
namespace skinny {

void run_bf16(const LinearArgs& a, int multiprocessors, Stream stream) {
  run<Floats<bf16>, 2, 4>(a, multiprocessors, stream);
}

}  // namespace skinny
}  // namespace cuda
}  // namespace pyllm
