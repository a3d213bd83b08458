// Rotates queries and keys in place and stores keys and values in paged blocks: one warp for each row and head.
#include <cfloat>

#include "attention.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kWarps = 4;

__device__ void rotate(const AppendArgs& a, const float* cos_sin, float* x, int lane) {
  const int half = int(a.rotary_dim / 2), step = a.interleaved ? 2 : 1, other = a.interleaved ? 1 : half;
  for (int i = lane; i < half; i += 32) {
    const float c = cos_sin[i], s = cos_sin[half + i], x0 = x[i * step], x1 = x[i * step + other];
    x[i * step] = fmaf(x0, c, -(x1 * s));
    x[i * step + other] = fmaf(x1, c, x0 * s);
  }
  __syncwarp();  // the lanes' stores are seen by the others
}

// One scale a token. A magnitude below 1e-33 (127 / it would overflow) is taken for zero; an infinite one or NaN makes
// the scale NaN, and so all that sees the token.
__device__ void store_codes(const float* x, int e, int ep, uint8_t* half, int token, int lane) {
  float amax = 0.0f;
  for (int d = lane; d < e; d += 32) amax = fmaxf(amax, fabsf(x[d]) <= FLT_MAX ? fabsf(x[d]) : INFINITY);
  amax = warp_max(amax);
  const bool finite = amax <= FLT_MAX;
  const float factor = finite && amax >= 1e-33f ? 127.0f / amax : 0.0f;
  int8_t* to = reinterpret_cast<int8_t*>(half) + token % kBlockTokens * ep;
  for (int d = lane; d < ep; d += 32) to[d] = d < e && factor > 0 ? int8_t(rintf(x[d] * factor)) : int8_t(0);
  if (lane == 0)
    reinterpret_cast<float*>(half + kBlockTokens * ep)[token % kBlockTokens] = factor > 0 ? amax / 127.0f
                                                                               : finite   ? 0.0f
                                                                                          : NAN;
}
template <KvFormat F>
__device__ void store_head(const float* x, int e, int ep, uint8_t* half, int token, int lane) {
  if constexpr (F == KvFormat::i8) {
    store_codes(x, e, ep, half, token, lane);
  } else {
    using T = typename KvElement<F>::type;
    T* to = const_cast<T*>(kv_row<F>(half, token, ep));
    for (int d = lane; d < ep; d += 32) to[d] = from_float<T>(d < e ? x[d] : 0.0f);
  }
}

// Where key (or value) head `head` of the row's token goes.
template <KvFormat F>
__device__ uint8_t* place(const KvView& kv, uint8_t* const* blocks, int64_t width, int s, int token, int head,
                          bool value) {
  uint8_t* block = blocks[s * width + token / kBlockTokens] + kv.layer_offset + head * kv.head_stride;
  return value ? block + half_bytes<F>(padded(int(kv.head_dim))) : block;
}

template <KvFormat F>
__global__ void __launch_bounds__(kWarps * 32)
    append_kernel(const __grid_constant__ AppendArgs a, const __grid_constant__ StepView step) {
  const int row = blockIdx.x, lane = threadIdx.x % 32, head = blockIdx.y * kWarps + threadIdx.x / 32;
  const int s = step.sequence[row], e = int(a.kv.head_dim), ep = padded(e);
  if (s < 0 || head >= a.num_heads + 2 * a.kv.heads) return;
  float* x = static_cast<float*>(a.qkv.data) + row * a.qkv.ld + int64_t(head) * e;
  if (a.rope.data && head < a.num_heads + a.kv.heads) rotate(a, floats(a.rope, row), x, lane);
  if (head < a.num_heads) return;
  const bool value = head >= a.num_heads + a.kv.heads;
  const int kv_head = head - a.num_heads - (value ? a.kv.heads : 0), token = step.positions[row];
  store_head<F>(x, e, ep, place<F>(a.kv, step.blocks, step.table_width, s, token, kv_head, value), token, lane);
}

template <KvFormat F>
__global__ void __launch_bounds__(kWarps * 32) store_cross_kernel(View kv, KvView cache, StepView step) {
  const int row = blockIdx.x, lane = threadIdx.x % 32, head = blockIdx.y * kWarps + threadIdx.x / 32;
  const int s = step.sequence[row], e = int(cache.head_dim), ep = padded(e);
  if (s < 0 || head >= 2 * cache.heads) return;
  const bool value = head >= cache.heads;
  const int kv_head = head - (value ? cache.heads : 0), token = step.positions[row];
  uint8_t* half = place<F>(cache, step.cross_blocks, step.cross_width, s, token, kv_head, value);
  store_head<F>(floats(kv, row) + int64_t(head) * e, e, ep, half, token, lane);
}

dim3 grid_of(int rows, int heads) { return dim3(rows, (heads + kWarps - 1) / kWarps); }

template <KvFormat F>
void launch_append(const AppendArgs& a, const StepView& step, Stream stream) {
  PYLLM_LAUNCH((append_kernel<F>), grid_of(step.rows, a.num_heads + 2 * a.kv.heads), dim3(kWarps * 32), 0,
               static_cast<cudaStream_t>(stream), a, step);
}
template <KvFormat F>
void launch_store(const View& kv, const KvView& cache, const StepView& step, Stream stream) {
  PYLLM_LAUNCH((store_cross_kernel<F>), grid_of(step.rows, 2 * cache.heads), dim3(kWarps * 32), 0,
               static_cast<cudaStream_t>(stream), kv, cache, step);
}

}  // namespace

void append(const AppendArgs& a, const StepView& step, Stream stream) {
  if (step.rows <= 0) return;
  with_format(a.kv.format, [&](auto format) { launch_append<decltype(format)::value>(a, step, stream); });
}

void store_cross(const View& kv, const KvView& cache, const StepView& step, Stream stream) {
  if (step.rows <= 0 || !step.cross_blocks) return;
  with_format(cache.format, [&](auto format) { launch_store<decltype(format)::value>(kv, cache, step, stream); });
}

}  // namespace cuda
}  // namespace pyllm
