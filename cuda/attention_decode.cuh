// Attention of sequences with few rows: a block takes up to 16 query vectors and chunks of 256 keys, a warp the 32 keys
// of one block of the cache.
#pragma once
#include "attention_decode_keys.cuh"

namespace pyllm {
namespace cuda {
namespace {

template <class T, int EP, int QueryLd>
struct Shared {
  T q[kVectors][QueryLd];
  float top[kWarps][kVectors], sum[kWarps][kVectors];
  Fold fold[kVectors];
  Softmax state[kVectors];
  // then float out[warps][vectors][EP + 4], joined[vectors][EP]
};

// The query vectors of a block.
struct Tile {
  Sequence seq;
  int s, kv_head, group, first, count;
  __device__ __forceinline__ int row(int v) const { return (first + v) / group; }  // of the sequence
  __device__ __forceinline__ int head(int v) const { return kv_head * group + (first + v) % group; }
};
// Rounds the queries into shared memory; zeros where there is none.
template <class T, int EP, int QueryLd>
__device__ __forceinline__ void load_queries(const AttendArgs& a, const Tile& tile, T (&q)[kVectors][QueryLd]) {
  const int e = int(a.kv.head_dim);
  for (int i = threadIdx.x; i < kVectors * EP; i += kThreads) {
    const int v = i / EP, d = i % EP;
    const bool there = v < tile.count && d < e;
    q[v][d] = from_float<T>(there ? floats(a.q, tile.seq.row0 + tile.row(v))[tile.head(v) * e + d] : 0.0f);
  }
}

// Warps [begin, end) whose keys of a chunk any vector may see.
struct Warps {
  int begin, end;
};
__device__ __forceinline__ Warps busy_warps(int chunk, int begin, int keys) {
  const int from = chunk * kChunkKeys, blocks = (keys - from + kBlockTokens - 1) / kBlockTokens;
  return {begin > from ? (begin - from) / kBlockTokens : 0, blocks < kWarps ? blocks : kWarps};
}
// What the chunk gave for vector v.
template <class Memory>
__device__ __forceinline__ Softmax found_by(const Memory& shared, Warps warps, int v) {
  Softmax found{-INFINITY, 0.0f};
  for (int w = warps.begin; w < warps.end; w++) {
    found.maximum = fmaxf(found.maximum, shared.top[w][v]);
    found.sum += shared.sum[w][v];
  }
  found.maximum *= kLn2;
  return found;
}

// What a chunk's maxima are taken relative to, of two vectors.
template <class Memory>
__device__ __forceinline__ void bases_of(const Memory& shared, Warps warps, int g, float (&base)[2]) {
  for (int i = 0; i < 2; i++) {
    base[i] = -INFINITY;
    for (int w = warps.begin; w < warps.end; w++) base[i] = fmaxf(base[i], shared.top[w][g + 8 * i]);
    base[i] = base_of(base[i]);
  }
}
// Adds up what the warps found, and joins it to what came before, or leaves it to others.
template <int EP, class Memory>
__device__ __forceinline__ void join_chunk(const AttendArgs& a, const Pieces& pieces, const Tile& tile, Memory& shared,
                                           Warps warps, int chunk, const float* outs, float* joined) {
  if (!pieces.split && int(threadIdx.x) < tile.count)
    shared.fold[threadIdx.x] = join(false, shared.state[threadIdx.x], found_by(shared, warps, threadIdx.x));
  __syncthreads();
  for (int i = threadIdx.x; i < tile.count * EP; i += kThreads) {
    const int v = i / EP, d = i % EP;
    float total = 0.0f;
    for (int w = warps.begin; w < warps.end; w++) total += outs[(w * tile.count + v) * (EP + kOutPad) + d];
    if (pieces.split) {
      float* piece = partial_of(pieces, a.num_heads, EP, tile.s, tile.row(v), tile.head(v), chunk);
      piece[kPartialHead + d] = total;
      if (d == 0) *reinterpret_cast<Softmax*>(piece) = found_by(shared, warps, v);
    } else {
      joined[i] = fmaf(total, shared.fold[v].take, joined[i] * shared.fold[v].keep);
    }
  }
  if (pieces.split) __syncthreads();  // found_by() reads what the next chunk writes
}

template <class T, KvFormat F, int EP>
__global__ void __launch_bounds__(kThreads, 1)
    decode_kernel(const __grid_constant__ AttendArgs a, const __grid_constant__ StepView step, Pieces pieces,
                  int tiles) {
  using S = Shape<F, EP>;
  using Memory = Shared<T, EP, S::kQueryLd>;
  PYLLM_DYN_SHARED(unsigned char, bytes);
  Memory& shared = *reinterpret_cast<Memory*>(bytes);
  const int s = blockIdx.z, kv_head = blockIdx.y / tiles, first = blockIdx.y % tiles * kVectors;
  const int group = a.num_heads / a.kv.heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  let_next_begin();
  if (blockIdx.x == 0 && first == 0) clear_idle(a, step, s, kv_head * group, group);
  const Sequence seq = sequence_of(step, s);
  const int vectors = seq.rows * group;
  if (seq.keys <= 0 || seq.rows > kDecodeRows || first >= vectors) return;
  const Tile tile{seq, s, kv_head, group, first, vectors - first < kVectors ? vectors - first : kVectors};
  // Keys of positions [begin, keys) are looked at, whatever part of them a vector sees.
  const int begin = a.window > 0 ? vector_of(a, step, seq, kv_head, first).seen.begin : 0;
  const int from = blockIdx.x * pieces.each, to = from + pieces.each - 1;
  int chunk = begin / kChunkKeys, last = (seq.keys - 1) / kChunkKeys;
  chunk = chunk < from ? from : chunk, last = last > to ? to : last;
  if (chunk > last) return;

  Keys<T, F, EP> keys;
  keys.g = lane / 4, keys.t = lane % 4;
  keys.look_ahead(a, seq, kv_head, chunk, begin, false);
  keys.go_on();
  const Vector mine[2] = {vector_of(a, step, seq, kv_head, first + keys.g),
                          vector_of(a, step, seq, kv_head, first + keys.g + 8)};
  load_queries<T, EP>(a, tile, shared.q);
  float* outs = reinterpret_cast<float*>(bytes + sizeof(Memory));
  float* joined = outs + kWarps * tile.count * S::kOutLd;  // of all chunks so far; each number is one thread's
  for (int i = threadIdx.x; i < tile.count * EP; i += kThreads) joined[i] = 0.0f;
  if (threadIdx.x < kVectors) shared.state[threadIdx.x] = {-INFINITY, 0.0f};
  __syncthreads();
  for (; chunk <= last; chunk++) {
    const Warps warps = busy_warps(chunk, begin, seq.keys);
    const bool busy = keys.busy;
    if (busy) keys.scores(shared.q);
    keys.look_ahead(a, seq, kv_head, chunk + 1, begin, chunk == last);
    if (busy) keys.finish(a, mine, shared.top[warp]);
    __syncthreads();
    if (busy) {
      float base[2];
      bases_of(shared, warps, keys.g, base);
      keys.soften(base, shared.sum[warp]);
      keys.weigh(outs + warp * tile.count * S::kOutLd, tile.count);
    }
    keys.go_on();
    __syncthreads();
    join_chunk<EP>(a, pieces, tile, shared, warps, chunk, outs, joined);
  }
  if (pieces.split) return;
  const int e = int(a.kv.head_dim);
  for (int i = threadIdx.x; i < tile.count * EP; i += kThreads) {
    const int v = i / EP, d = i % EP;
    const float inverse = inverse_of(shared.state[v].sum);
    if (d < e) store(a.out, seq.row0 + tile.row(v), int64_t(tile.head(v)) * e + d, joined[i] * inverse);
  }
}

template <class T, KvFormat F, int EP>
void launch_decode(const AttendArgs& a, const StepView& step, Stream stream) {
  using S = Shape<F, EP>;
  const int group = a.num_heads / a.kv.heads, rows = step.most_rows < kDecodeRows ? step.most_rows : kDecodeRows;
  const int tiles = (rows * group + kVectors - 1) / kVectors;
  const int vectors = rows * group < kVectors ? rows * group : kVectors;
  const Pieces pieces = cut(a, step, rows, int64_t(tiles) * a.kv.heads * step.sequences);
  const dim3 grid(pieces.blocks(), a.kv.heads * tiles, step.sequences);
  const size_t bytes = sizeof(Shared<T, EP, S::kQueryLd>) + size_t(vectors) * (kWarps * S::kOutLd + EP) * sizeof(float);
  PYLLM_LAUNCH((decode_kernel<T, F, EP>), grid, dim3(kThreads), bytes, stream, a, step, pieces, tiles);
  if (pieces.split) join_pieces(a, step, pieces, rows, stream);
}
template <class T, KvFormat F>
void launch_decode(const AttendArgs& a, const StepView& step, Stream stream) {
  switch (padded_head(a.kv.head_dim)) {
    case 32:
      return launch_decode<T, F, 32>(a, step, stream);
    case 64:
      return launch_decode<T, F, 64>(a, step, stream);
    case 96:
      return launch_decode<T, F, 96>(a, step, stream);
    case 128:
      return launch_decode<T, F, 128>(a, step, stream);
    case 256:
      return launch_decode<T, F, 256>(a, step, stream);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace pyllm
