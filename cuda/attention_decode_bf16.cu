// attention_decode.cuh for bf16 queries.
#include "attention_decode.cuh"

namespace pyllm {
namespace cuda {

void decode_bf16(const AttendArgs& a, const StepView& step, Stream stream) {
  if (a.kv.format == KvFormat::i8) return launch_decode<bf16, KvFormat::i8>(a, step, stream);
  launch_decode<bf16, KvFormat::bf16>(a, step, stream);
}

}  // namespace cuda
}  // namespace pyllm
