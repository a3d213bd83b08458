// What changes logits before a choice (penalties for tokens that occurred, tokens ruled out or biased), and the step
// from one token to the next of a steady decode.
#include "rows.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kSlice = 4096;  // ids whose occurrences one block counts
constexpr int kPenaltyThreads = 512;

// Grid: slices of the vocabulary x rows. Each block reads the whole history and counts the ids of its slice: no id is
// penalised twice however often it occurred, and the order of the counting makes no difference.
__global__ void __launch_bounds__(kPenaltyThreads) penalise_kernel(View logits, int64_t n, Penalties p) {
  __shared__ int32_t counts[kSlice];
  const int64_t row = blockIdx.y, first = int64_t(blockIdx.x) * kSlice;
  const float repetition = p.repetition ? p.repetition[row] : 1.0f;
  const float frequency = p.frequency ? p.frequency[row] : 0.0f, presence = p.presence ? p.presence[row] : 0.0f;
  if (repetition == 1.0f && frequency == 0.0f && presence == 0.0f) return;
  for (int i = int(threadIdx.x); i < kSlice; i += kPenaltyThreads) counts[i] = 0;
  __syncthreads();
  const int32_t* ids = p.ids + p.offsets[row];
  for (int i = int(threadIdx.x); i < p.lengths[row]; i += kPenaltyThreads) {
    const int64_t at = ids[i] - first;
    if (at >= 0 && at < kSlice) atomicAdd(&counts[at], 1);
  }
  __syncthreads();
  float* x = static_cast<float*>(logits.data) + row * logits.ld;
  for (int64_t i = threadIdx.x; i < kSlice && first + i < n; i += kPenaltyThreads) {
    if (counts[i] == 0) continue;
    float v = x[first + i];
    if (repetition != 1.0f) v = v < 0.0f ? v * repetition : v / repetition;
    x[first + i] = v - float(counts[i]) * frequency - presence;
  }
}

// Grid: slices of the vocabulary (`width` columns each) x rows.
__global__ void __launch_bounds__(kPenaltyThreads) edit_kernel(View logits, int64_t n, int64_t width, Edits e) {
  const int64_t row = blockIdx.y, first = int64_t(blockIdx.x) * width, end = first + width < n ? first + width : n;
  const bool fills = e.any_fills && e.fills[row] != 0;
  const int length = e.lengths[row];
  if (!fills && length == 0) return;
  float* x = static_cast<float*>(logits.data) + row * logits.ld;
  if (fills)
    for (int64_t i = first + int64_t(threadIdx.x); i < end; i += kPenaltyThreads)
      x[i] = x[i] == x[i] ? -INFINITY : x[i];
  __syncthreads();
  const int32_t* ids = e.ids + e.offsets[row];
  const float* values = e.values + e.offsets[row];
  for (int i = int(threadIdx.x); i < length; i += kPenaltyThreads)
    if (ids[i] >= first && ids[i] < end) x[ids[i]] += values[i];
  __syncthreads();
  for (int i = int(threadIdx.x); i < length; i += kPenaltyThreads)
    if (ids[i] < 0 && ~ids[i] >= first && ~ids[i] < end) x[~ids[i]] = values[i];
}

__global__ void advance_kernel(const int32_t* tokens, int rows, const int32_t* sequence, int32_t* ids,
                               int32_t* positions, int32_t* context, Choice* choices) {
  const int t = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (t >= rows || sequence[t] < 0) return;
  ids[t] = tokens[t] < 0 ? 0 : tokens[t];  // -1 is an error, but one that is seen a step later
  ++positions[t];
  ++context[t];
  ++choices[t].step;
}

}  // namespace

void penalise(const View& logits, int rows, int64_t n, const Penalties& p, Stream stream) {
  if (rows == 0) return;
  const dim3 grid(unsigned((n + kSlice - 1) / kSlice), unsigned(rows));
  PYLLM_LAUNCH(penalise_kernel, grid, dim3(kPenaltyThreads), 0, stream, logits, n, p);
}

void edit(const View& logits, int rows, int64_t n, const Edits& e, Stream stream) {
  if (rows == 0) return;
  const int64_t width = e.any_fills ? kSlice : n;  // few entries are one block's
  const dim3 grid(unsigned((n + width - 1) / width), unsigned(rows));
  PYLLM_LAUNCH(edit_kernel, grid, dim3(kPenaltyThreads), 0, stream, logits, n, width, e);
}

void advance(const int32_t* tokens, int rows, const int32_t* sequence, int32_t* ids, int32_t* positions,
             int32_t* context, Choice* choices, Stream stream) {
  if (rows == 0) return;
  PYLLM_LAUNCH(advance_kernel, dim3(unsigned((rows + 127) / 128)), dim3(128), 0, stream, tokens, rows, sequence, ids,
               positions, context, choices);
}

}  // namespace cuda
}  // namespace pyllm
