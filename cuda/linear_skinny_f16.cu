// The skinny matmul over float16 weights.
#include "linear_skinny.cuh"

namespace pyllm {
namespace cuda {
namespace skinny {

void run_f16(const LinearArgs& a, int multiprocessors, Stream stream) {
  run<Floats<f16>, 2, 4>(a, multiprocessors, stream);
}

}  // namespace skinny
}  // namespace cuda
}  // namespace pyllm
