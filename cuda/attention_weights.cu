// The attention weights of captured ops: p / sum(p) of every query vector and key, float32, not rounded. Plain: one
// block a (row, query head).
#include "attention.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kThreads = 128;

template <KvFormat F>
__device__ float score_of(const AttendArgs& a, const Sequence& seq, int row, int head, int position, int key) {
  const int e = int(a.kv.head_dim), ep = padded(e), kv_head = head / (a.num_heads / a.kv.heads);
  const uint8_t* half = seq.blocks[key / kBlockTokens] + a.kv.layer_offset + kv_head * a.kv.head_stride;
  const auto* k = kv_row<F>(half, key, ep);
  const float* q = floats(a.q, row) + int64_t(head) * e;
  float dot = 0.0f;
  for (int d = 0; d < e; d++) dot = fmaf(rounded(a.type, q[d]), to_float(k[d]), dot);
  if (F == KvFormat::i8) dot *= kv_scale(half, key, ep);
  return finish_score(a, dot, score_bias(a.bias, head, row, seq.row0, position, key));
}

template <KvFormat F>
__global__ void __launch_bounds__(kThreads)
    weights_kernel(const __grid_constant__ AttendArgs a, const __grid_constant__ StepView step) {
  const int s = blockIdx.z, head = blockIdx.y;
  const Sequence seq = sequence_of(step, s);
  if (int(blockIdx.x) >= seq.rows || seq.keys <= 0 || !a.weights[s]) return;
  const int row = seq.row0 + blockIdx.x, position = step.positions[row];
  const Seen seen = seen_by(a, position, seq.keys);
  float* to = a.weights[s] + (int64_t(head) * seq.rows + blockIdx.x) * seq.keys;
  float top = -INFINITY, sum = 0.0f;
  for (int key = threadIdx.x; key < seq.keys; key += kThreads) {
    const bool sees = key >= seen.begin && key < seen.end;
    const float score = sees ? score_of<F>(a, seq, row, head, position, key) : -INFINITY;
    to[key] = score;
    top = fmaxf(top, score);
  }
  top = base_of(block_reduce<true>(top));
  for (int key = threadIdx.x; key < seq.keys; key += kThreads) sum += to[key] = expf(to[key] - top);
  const float inverse = inverse_of(block_reduce<false>(sum));
  for (int key = threadIdx.x; key < seq.keys; key += kThreads) to[key] *= inverse;
}

template <KvFormat F>
void launch(const AttendArgs& a, const StepView& step, Stream stream) {
  PYLLM_LAUNCH((weights_kernel<F>), dim3(step.most_rows, a.num_heads, step.sequences), dim3(kThreads), 0,
               static_cast<cudaStream_t>(stream), a, step);
}

}  // namespace

void attend_weights(const AttendArgs& a, const StepView& step, Stream stream) {
  with_format(a.kv.format, [&](auto format) { launch<decltype(format)::value>(a, step, stream); });
}

}  // namespace cuda
}  // namespace pyllm
