// attention_decode.cuh for f16 queries.
#include "attention_decode.cuh"

namespace pyllm {
namespace cuda {

void decode_f16(const AttendArgs& a, const StepView& step, Stream stream) {
  if (a.kv.format == KvFormat::i8) return launch_decode<f16, KvFormat::i8>(a, step, stream);
  launch_decode<f16, KvFormat::f16>(a, step, stream);
}

}  // namespace cuda
}  // namespace pyllm
