// attention_prefill.cuh for bf16 queries.
#include "attention_prefill.cuh"

namespace pyllm {
namespace cuda {

void prefill_bf16(const AttendArgs& a, const StepView& step, Stream stream) {
  if (a.kv.format == KvFormat::i8) return launch_prefill<bf16, KvFormat::i8>(a, step, stream);
  launch_prefill<bf16, KvFormat::bf16>(a, step, stream);
}

}  // namespace cuda
}  // namespace pyllm
