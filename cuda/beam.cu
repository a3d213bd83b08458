// The best continuations of each row: log-sum-exp and the `count` largest logits, best first; and log-probabilities.
#include "choices.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kTopThreads = 512;

struct TopOut {
  float* values;
  int32_t* ids;
  float* lse;
};

// max + log(sum of exp(x - max)), from the tiles' sums; -inf for a row of -inf.
__device__ double log_sum_exp(const Top& top, const Tables& w, int64_t row) {
  const float *tops = w.tops + row * w.tiles, *sums = w.sums + row * w.tiles;
  u64 own = 0, total;
  if (top.max == -INFINITY) return -INFINITY;
  for (int t = int(threadIdx.x); t < w.tiles; t += int(blockDim.x)) own += units_of(sums[t] * expf(tops[t] - top.max));
  block_before(own, &total);
  return double(top.max) + log(double(total) * 0x1p-42);
}

// csrc/search/row.h, Shift: a double is taken away without losing its low part.
struct Shift {
  float high, low;
  __device__ explicit Shift(double by) : high(float(by)), low(float(by - double(high))) {}
  __device__ float of(float x) const { return (x - high) - low; }
};

// Grid: chunks x rows.
__global__ void __launch_bounds__(kScanThreads) log_softmax_kernel(View x, int64_t n, const int32_t* wanted, Tables w) {
  const int64_t row = blockIdx.y, first = int64_t(blockIdx.x) * kChunk;
  if (wanted[row] == 0) return;
  const Top top = top_of(w.tops + row * w.tiles, w.tiles);
  const bool odd = top.has_nan || top.max == INFINITY;
  if (odd && wanted[row] == 2) return;
  const double lse = log_sum_exp(top, w, row);
  const Shift shift(odd || lse == -INFINITY ? 0.0 : lse);
  float* values = static_cast<float*>(x.data) + row * x.ld;
  const int64_t end = first + kChunk < n ? first + kChunk : n;
  for (int64_t i = first + int64_t(threadIdx.x); i < end; i += kScanThreads)
    values[i] = odd ? NAN : shift.of(values[i]);
}

// One block a row.
__global__ void __launch_bounds__(kTopThreads, 1)
    top_kernel(View x, int64_t n, int count, bool normalise, TopOut out, Tables w) {
  __shared__ float values[kListed], best[kMostBest];
  __shared__ int32_t ids[kListed], best_ids[kMostBest];
  const int64_t row = blockIdx.x;
  const Top top = top_of(w.tops + row * w.tiles, w.tiles);
  const int taken = n < count ? int(n) : count;
  if (top.has_nan || top.max == INFINITY) {
    for (int i = int(threadIdx.x); i < count; i += kTopThreads) {
      out.values[row * count + i] = -INFINITY;
      out.ids[row * count + i] = -1;
    }
    if (threadIdx.x == 0) out.lse[row] = NAN;
    return;
  }
  const double lse = log_sum_exp(top, w, row);
  if (threadIdx.x == 0) out.lse[row] = float(lse);
  const Shift shift(normalise && lse != -INFINITY ? lse : 0.0);

  const Candidates all = candidates_of(x, row, w.mask + row * w.words, w.words, values, ids);
  const uint32_t highest = key_of(top.max);
  uint32_t own_farthest = 0;
  all.every([&](float value, int32_t) {
    const uint32_t d = highest - key_of(value);
    own_farthest = d > own_farthest ? d : own_farthest;
  });
  const Selected last = select_by_weight(u64(taken), block_farthest(own_farthest), [&](auto add) {
    all.every([&](float value, int32_t) { add(highest - key_of(value), 1); });
  });
  const int32_t last_id = tied_id(all, highest, last.distance, u64(taken) - last.before);
  auto is_taken = [&](float value, int32_t id) {
    const uint32_t d = highest - key_of(value);
    return d < last.distance || (d == last.distance && id <= last_id);
  };
  u64 own = 0, found;
  all.every([&](float value, int32_t id) { own += is_taken(value, id); });
  int at = int(block_before(own, &found));
  all.every([&](float value, int32_t id) {
    if (!is_taken(value, id)) return;
    best[at] = value;
    best_ids[at++] = id;
  });
  __syncthreads();
  for (int i = int(threadIdx.x); i < count; i += kTopThreads) {
    int rank = i;
    float value = -INFINITY;
    int32_t id = -1;
    if (i < taken) {
      rank = 0;
      value = best[i], id = best_ids[i];
      for (int j = 0; j < taken; ++j) rank += best[j] > value || (best[j] == value && j < i);  // ids ascend
      value = shift.of(value);
    }
    out.values[row * count + rank] = value;
    out.ids[row * count + rank] = id;
  }
}

}  // namespace

size_t top_workspace(int rows, int64_t n, int) { return table_bytes(rows, n); }

void top(const View& logits, int rows, int64_t n, int count, bool normalise, float* out_values, int32_t* out_ids,
         float* out_lse, void* workspace, Stream stream) {
  if (n < 1 || n > kMostChoices || count < 1 || count > kMostBest)
    throw Error(ErrorKind::array, text("[top] rows must have 1 to ", kMostChoices, " columns and the best 1 to ",
                                       kMostBest, " be asked for, got ", n, " and ", count, "; rank on the host"));
  if (rows == 0) return;
  const Tables t = tables_in(workspace, rows, n);
  scan(logits, rows, n, nullptr, t, stream);
  gather(logits, rows, n, nullptr, count, t, stream);
  const TopOut out{out_values, out_ids, out_lse};
  PYLLM_LAUNCH(top_kernel, dim3(unsigned(rows)), dim3(kTopThreads), 0, stream, logits, n, count, normalise, out, t);
}

size_t log_softmax_workspace(int rows, int64_t n) { return table_bytes(rows, n); }

void log_softmax(const View& logits, int rows, int64_t n, const int32_t* wanted, void* workspace, Stream stream) {
  if (n < 1 || n > kMostChoices)
    throw Error(ErrorKind::array, text("[log_softmax] rows must have 1 to ", kMostChoices, " columns, got ", n,
                                       "; take the logits to the host"));
  if (rows == 0) return;
  const Tables t = tables_in(workspace, rows, n);
  scan(logits, rows, n, nullptr, t, stream);
  const dim3 grid(unsigned(chunks_of(n)), unsigned(rows));
  PYLLM_LAUNCH(log_softmax_kernel, grid, dim3(kScanThreads), 0, stream, logits, n, wanted, t);
}

}  // namespace cuda
}  // namespace pyllm
