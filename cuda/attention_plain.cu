// Attention of any shape with any option, by float32 FMA. A block takes up to N query vectors of one sequence and kv
// head (vector i is query head i % group of row i / group) and chunks of 256 keys, one after the other or one only
// (Pieces). What it reads of a key it uses for all its vectors; none of them sees the others' numbers.
#include "attention.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kColumns = 4;  // dims of a value that one thread adds up

// N numbers of this thread become those of the block.
template <bool Max, int N>
__device__ void reduce_all(float (&v)[N], float* part) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < N; i++) v[i] = Max ? warp_max(v[i]) : warp_sum(v[i]);
  __syncthreads();  // part may still be read from the call before
  if (lane == 0)
    for (int i = 0; i < N; i++) part[warp * N + i] = v[i];
  __syncthreads();
  for (int i = 0; i < N; i++) {
    v[i] = part[i];
    for (int w = 1; w < kThreads / 32; w++) v[i] = Max ? fmaxf(v[i], part[w * N + i]) : v[i] + part[w * N + i];
  }
}

template <KvFormat F>
__device__ __forceinline__ void load_four(const typename KvElement<F>::type* at, float (&v)[4]) {
  struct alignas(4 * sizeof(typename KvElement<F>::type)) Four {
    typename KvElement<F>::type v[4];
  };
  const Four four = *reinterpret_cast<const Four*>(at);
  for (int i = 0; i < 4; i++) v[i] = to_float(four.v[i]);
}

struct Shared {
  float *q, *p, *out, *sums, *part;  // [N][ep], [N][kChunkKeys], [N][ep], [key groups][N][columns at once], [4 N]
};
// Values are added up by key groups of threads, each of which takes one key of as many as there are groups; a group has
// a thread for four columns, up to as many as a block has.
__host__ __device__ inline int columns_at_once(int ep) { return ep < kThreads * kColumns ? ep : kThreads * kColumns; }
__host__ __device__ inline int key_groups(int ep) { return kThreads / (columns_at_once(ep) / kColumns); }
template <int N>
int shared_floats(int ep) {
  return N * (2 * ep + kChunkKeys + key_groups(ep) * columns_at_once(ep) + kThreads / 32);
}

template <KvFormat F, int N>
struct Tile {
  const AttendArgs& a;
  const StepView& step;
  Sequence seq;
  int s, ep, group, kv_head, first, count;  // first vector, vectors
  Shared sh;

  __device__ int row(int i) const { return seq.row0 + (first + i) / group; }
  __device__ int head(int i) const { return kv_head * group + (first + i) % group; }
  __device__ const uint8_t* half(int key) const {
    return seq.blocks[key / kBlockTokens] + a.kv.layer_offset + kv_head * a.kv.head_stride;
  }

  __device__ void load_queries() {
    const int e = int(a.kv.head_dim);
    for (int i = threadIdx.x; i < N * ep; i += kThreads) {
      const int n = i / ep, d = i % ep;
      sh.q[i] = n < count && d < e ? rounded(a.type, floats(a.q, row(n))[head(n) * e + d]) : 0.0f;
      sh.out[i] = 0.0f;
    }
  }
  // Scores of keys [begin, end) against the vectors, -inf where a vector does not see the key; then p, and their state.
  __device__ void scores(int begin, int end, int chunk, Softmax (&state)[N]) {
    float top[N], sum[N];
    for (int n = 0; n < N; n++) top[n] = -INFINITY, sum[n] = 0.0f;
    for (int key = chunk + threadIdx.x; key < chunk + kChunkKeys; key += kThreads) {
      float dot[N];
      for (int n = 0; n < N; n++) dot[n] = 0.0f;
      const bool there = key >= begin && key < end;
      if (there) products(key, dot);
      for (int n = 0; n < N; n++) {
        float score = -INFINITY;
        if (there && n < count) {
          const int position = step.positions[row(n)];
          const Seen seen = seen_by(a, position, seq.keys);
          if (key >= seen.begin && key < seen.end)
            score = finish_score(a, dot[n], score_bias(a.bias, head(n), row(n), seq.row0, position, key));
        }
        sh.p[n * kChunkKeys + key - chunk] = score;
        top[n] = score > top[n] || score != score ? score : top[n];
      }
    }
    reduce_all<true>(top, sh.part);
    const bool exact = a.type == Type::f32;
    for (int key = chunk + threadIdx.x; key < chunk + kChunkKeys; key += kThreads) {
      // int8: p takes the value's scale along
      const float scale =
          F == KvFormat::i8 && key >= begin && key < end ? kv_scale(half(key) + half_bytes<F>(ep), key, ep) : 1.0f;
      for (int n = 0; n < N; n++) {
        float& at = sh.p[n * kChunkKeys + key - chunk];
        const float p = exp_of(exact, at - base_of(top[n]));
        sum[n] += p;
        at = p == 0.0f ? 0.0f : F == KvFormat::i8 ? p * scale : rounded(a.type, p);
      }
    }
    reduce_all<false>(sum, sh.part);  // its barriers also publish p
    for (int n = 0; n < N; n++) state[n] = {top[n], sum[n]};
  }
  __device__ void products(int key, float (&dot)[N]) {
    const uint8_t* keys = half(key);
    const auto* k = kv_row<F>(keys, key, ep);
    for (int d = 0; d < ep; d += 4) {
      float v[4];
      load_four<F>(k + d, v);
      for (int n = 0; n < N; n++)
        for (int i = 0; i < 4; i++) dot[n] = fmaf(sh.q[n * ep + d + i], v[i], dot[n]);
    }
    if (F == KvFormat::i8)
      for (int n = 0; n < N; n++) dot[n] *= kv_scale(keys, key, ep);
  }
  // out = out * keep + take * sum(p * value) over keys [begin, end) of the chunk.
  __device__ void values(int begin, int end, int chunk, const Fold (&fold)[N]) {
    const int columns = columns_at_once(ep), lanes = columns / kColumns, groups = key_groups(ep);
    const int mine = threadIdx.x / lanes, column = threadIdx.x % lanes * kColumns;
    for (int from = 0; from < ep; from += columns) {
      const int width = from + columns < ep ? columns : ep - from;
      if (mine < groups && column < width) {
        float sum[N][4] = {};
        for (int key = chunk + mine; key < end; key += groups) {
          if (key < begin) continue;
          float v[4];
          load_four<F>(kv_row<F>(half(key) + half_bytes<F>(ep), key, ep) + from + column, v);
          for (int n = 0; n < N; n++)
            for (int i = 0; i < 4; i++) sum[n][i] = fmaf(sh.p[n * kChunkKeys + key - chunk], v[i], sum[n][i]);
        }
        for (int n = 0; n < N; n++)
          for (int i = 0; i < 4; i++) sh.sums[(mine * N + n) * columns + column + i] = sum[n][i];
      }
      __syncthreads();
      for (int n = 0; n < N; n++)
        for (int d = threadIdx.x; d < width; d += kThreads) {
          float sum = 0.0f;
          for (int g = 0; g < groups; g++) sum += sh.sums[(g * N + n) * columns + d];
          float& out = sh.out[n * ep + from + d];
          out = fold[n].keep == 0.0f ? sum * fold[n].take : fmaf(sum, fold[n].take, out * fold[n].keep);
        }
      __syncthreads();
    }
  }
};

template <KvFormat F, int N>
__global__ void __launch_bounds__(kThreads, 3)
    plain_kernel(const __grid_constant__ AttendArgs a, const __grid_constant__ StepView step, Pieces pieces,
                 int tiles) {
  PYLLM_DYN_SHARED(float, memory);
  const int s = blockIdx.z, kv_head = blockIdx.y, piece = blockIdx.x / tiles, tile = blockIdx.x % tiles;
  const int group = a.num_heads / a.kv.heads, ep = padded(int(a.kv.head_dim));
  const Sequence seq = sequence_of(step, s);
  if (blockIdx.x == 0) clear_idle(a, step, s, kv_head * group, group);
  const int first = tile * N, vectors = seq.rows * group;
  if (seq.keys <= 0 || first >= vectors) return;
  const int count = vectors - first < N ? vectors - first : N;
  Shared sh;
  sh.q = memory, sh.p = sh.q + N * ep, sh.out = sh.p + N * kChunkKeys, sh.part = sh.out + N * ep;
  sh.sums = sh.part + N * (kThreads / 32);
  Tile<F, N> t{a, step, seq, s, ep, group, kv_head, first, count, sh};

  const int begin = seen_by(a, step.positions[t.row(0)], seq.keys).begin;
  const int end = seen_by(a, step.positions[t.row(count - 1)], seq.keys).end;
  const int from = piece * pieces.each, to = from + pieces.each - 1;
  int chunk = begin / kChunkKeys, last = (end - 1) / kChunkKeys;
  chunk = chunk < from ? from : chunk, last = last > to ? to : last;
  if (chunk > last) return;
  t.load_queries();
  __syncthreads();
  const int e = int(a.kv.head_dim);
  Softmax state[N];
  for (int n = 0; n < N; n++) state[n] = {-INFINITY, 0.0f};
  for (; chunk <= last; chunk++) {
    const int key0 = chunk * kChunkKeys, key1 = key0 + kChunkKeys < end ? key0 + kChunkKeys : end;
    Softmax found[N];
    Fold fold[N];
    t.scores(begin, key1, key0, found);
    for (int n = 0; n < N; n++)
      fold[n] = pieces.split ? Fold{0.0f, 1.0f} : join(a.type == Type::f32, state[n], found[n]);
    t.values(begin, key1, key0, fold);
    if (!pieces.split) continue;
    for (int n = 0; n < count; n++) {
      float* at = partial_of(pieces, a.num_heads, ep, s, t.row(n) - seq.row0, t.head(n), chunk);
      if (threadIdx.x == 0) *reinterpret_cast<Softmax*>(at) = found[n];
      for (int d = threadIdx.x; d < e; d += kThreads) at[kPartialHead + d] = sh.out[n * ep + d];
    }
    __syncthreads();  // the next chunk's values go where these were
  }
  if (pieces.split) return;
  for (int n = 0; n < count; n++)
    for (int d = threadIdx.x; d < e; d += kThreads)
      store(a.out, t.row(n), int64_t(t.head(n)) * e + d, sh.out[n * ep + d] * inverse_of(state[n].sum));
}

template <KvFormat F, int N>
void launch(const AttendArgs& a, const StepView& step, Stream stream) {
  const int tiles = (step.most_rows * (a.num_heads / a.kv.heads) + N - 1) / N, ep = int(padded_head(a.kv.head_dim));
  const Pieces pieces = cut(a, step, step.most_rows, int64_t(tiles) * a.kv.heads * step.sequences);
  const dim3 grid(tiles * pieces.blocks(), a.kv.heads, step.sequences);
  PYLLM_LAUNCH((plain_kernel<F, N>), grid, dim3(kThreads), shared_floats<N>(ep) * sizeof(float),
               static_cast<cudaStream_t>(stream), a, step, pieces, tiles);
  if (pieces.split) join_pieces(a, step, pieces, step.most_rows, stream);
}
// One vector a block where there is but one, and for heads so wide that more would not fit into 48 KB.
template <KvFormat F>
void launch(const AttendArgs& a, const StepView& step, Stream stream) {
  const bool one = (step.most_rows == 1 && a.num_heads == a.kv.heads) || a.kv.head_dim > 768;
  return one ? launch<F, 1>(a, step, stream) : launch<F, 4>(a, step, stream);
}

}  // namespace

void attend_plain(const AttendArgs& a, const StepView& step, Stream stream) {
  with_format(a.kv.format, [&](auto format) { launch<decltype(format)::value>(a, step, stream); });
}

}  // namespace cuda
}  // namespace pyllm
