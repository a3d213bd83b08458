// Attention of sequences with many rows, as FlashAttention-2 has it (Dao 2023): a block of 4 warps takes 64 query
// vectors, 16 a warp, and goes over 64 keys at a time; keys come by cp.async while values are multiplied, and the other
// way round. Tiles of keys begin at multiples of 64 positions, so a row has the same bits wherever its sequence's step
// begins.
#pragma once
#include "attention_mma.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kRows = 64, kKeys = 64, kThreads = 128;

template <class T, KvFormat F, int EP>
struct Shared {
  static constexpr int kLd = EP + 8;  // elements: the 8 rows of a matrix in different banks
  static constexpr int kScales = F == KvFormat::i8 ? kKeys : 1;
  T q[kRows][kLd], k[kKeys][kLd], v[kKeys][kLd];
  float k_scales[kScales], v_scales[kScales];
};

// The keys (or values, `skip` bytes later) of positions [first, first + 64), zeros from `end` on, to shared memory: by
// cp.async, or, int8, at once and as T, with their scales beside them.
template <class T, KvFormat F, int EP, int Ld>
__device__ __forceinline__ void load_tile(const AttendArgs& a, const Sequence& seq, int64_t offset, int first, int end,
                                          T (&to)[kKeys][Ld], float* scales) {
  constexpr int kSize = F == KvFormat::i8 ? 1 : 2, kPieces = EP * kSize / 16;
#pragma unroll
  for (int i = threadIdx.x; i < kKeys * kPieces; i += kThreads) {
    const int key = i / kPieces, piece = i % kPieces, token = first + key;
    const bool there = token < end;
    const uint8_t* half = there ? seq.blocks[token / kBlockTokens] + offset : static_cast<const uint8_t*>(a.q.data);
    const uint8_t* from = half + (there ? (token % kBlockTokens * kPieces + piece) * 16 : 0);
    if constexpr (F == KvFormat::i8) {
      u32 raw[4], pairs[8];
      load_words<16>(from, there, raw);
      to_pairs<T, F>(raw, pairs);
      uint4* at = reinterpret_cast<uint4*>(&to[key][piece * 16]);
      at[0] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      at[1] = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
      if (piece == 0) scales[key] = there ? kv_scale(half, token, EP) : 0.0f;
    } else {
      cp_async16(&to[key][piece * 8], from, there ? 16 : 0);
    }
  }
  cp_async_commit();
}

// What a warp keeps of its 16 vectors.
template <class T, KvFormat F, int EP>
struct State {
  static constexpr bool kKeepQueries = EP <= 128;
  u32 q[kKeepQueries ? EP / 16 : 1][4];
  float s[kKeys / 8][4];
  float out[EP / 8][4];
  float top[2], sum[2];  // of vectors g and g + 8; sums of this lane's keys

  template <int Ld>
  __device__ __forceinline__ void load_queries(const T (&queries)[kRows][Ld], int k, u32 (&a)[4]) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    ldmatrix4(a, &queries[warp * 16 + lane % 16][k * 16 + lane / 16 * 8]);
  }
  template <int Ld>
  __device__ __forceinline__ void begin(const T (&queries)[kRows][Ld]) {
    if constexpr (kKeepQueries) {
#pragma unroll
      for (int k = 0; k < EP / 16; k++) load_queries(queries, k, q[k]);
    }
#pragma unroll
    for (int n = 0; n < EP / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) out[n][i] = 0.0f;
    top[0] = top[1] = -INFINITY;
    sum[0] = sum[1] = 0.0f;
  }
  template <int Ld>
  __device__ __forceinline__ void scores(const T (&queries)[kRows][Ld], const T (&keys)[kKeys][Ld]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
#pragma unroll
    for (int k = 0; k < EP / 16; k++) {
      u32 fresh[4];
      if constexpr (!kKeepQueries) load_queries(queries, k, fresh);
      const u32(&a)[4] = kKeepQueries ? q[kKeepQueries ? k : 0] : fresh;
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        u32 b[4];
        ldmatrix4(b, &keys[n * 8 + lane / 16 * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
        Number<T>::mma(s[n], a, b[0], b[1]);
        Number<T>::mma(s[n + 1], a, b[2], b[3]);
      }
    }
  }
  // masked: some vector may not see some key of the tile, which begins at position `first`.
  __device__ __forceinline__ void finish(const AttendArgs& a, const Vector (&vectors)[2], int first, bool masked,
                                         const float* k_scales) {
    const int t = threadIdx.x % 4;
    const bool biased = a.bias.table || a.bias.slopes;
#pragma unroll
    for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Vector& v = vectors[i / 2];
        const int key = 8 * n + 2 * t + i % 2, at = first + key;
        if constexpr (F == KvFormat::i8) s[n][i] *= k_scales[key];
        s[n][i] = log2_score(a, biased, v, s[n][i], at);
        if (masked && (at < v.seen.begin || at >= v.seen.end)) s[n][i] = -INFINITY;
      }
  }
  // Scores become p; what was summed before is brought to the new maximum.
  __device__ __forceinline__ void soften(const float* v_scales) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      float most = top[j];
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * j], s[n][2 * j + 1]));
      most = fmaxf(most, __shfl_xor_sync(kWarp, most, 1));
      most = fmaxf(most, __shfl_xor_sync(kWarp, most, 2));
      const float base = base_of(most), keep = fast_exp2(top[j] - base);
      top[j] = most;
      sum[j] *= keep;
#pragma unroll
      for (int n = 0; n < EP / 8; n++) out[n][2 * j] *= keep, out[n][2 * j + 1] *= keep;
#pragma unroll
      for (int n = 0; n < kKeys / 8; n++)
#pragma unroll
        for (int i = 2 * j; i < 2 * j + 2; i++) {
          float& p = s[n][i];
          p = fast_exp2(p - base);
          sum[j] += p;
          if constexpr (F == KvFormat::i8) p = p == 0.0f ? 0.0f : p * v_scales[8 * n + 2 * t + i % 2];
        }
    }
  }
  template <int Ld>
  __device__ __forceinline__ void weigh(const T (&values)[kKeys][Ld]) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < kKeys / 16; k++) {
      const u32 p[4] = {Number<T>::pack(s[2 * k][0], s[2 * k][1]), Number<T>::pack(s[2 * k][2], s[2 * k][3]),
                        Number<T>::pack(s[2 * k + 1][0], s[2 * k + 1][1]),
                        Number<T>::pack(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < EP / 8; n += 2) {
        u32 b[4];
        ldmatrix4_trans(b, &values[k * 16 + lane % 16][n * 8 + lane / 16 * 8]);
        Number<T>::mma(out[n], p, b[0], b[1]);
        Number<T>::mma(out[n + 1], p, b[2], b[3]);
      }
    }
  }
};

// Two neighbouring numbers of a row.
__device__ __forceinline__ void store_pair(const View& view, int64_t row, int64_t column, float x, float y) {
  char* at = static_cast<char*>(view.data) + (row * view.ld + column) * (view.type == Type::f32 ? 4 : 2);
  if (view.type == Type::f32) {
    *reinterpret_cast<float2*>(at) = make_float2(x, y);
  } else {
    *reinterpret_cast<u32*>(at) = view.type == Type::bf16 ? Number<bf16>::pack(x, y) : Number<f16>::pack(x, y);
  }
}

template <class T, KvFormat F, int EP>
__global__ void __launch_bounds__(kThreads)
    prefill_kernel(const __grid_constant__ AttendArgs a, const __grid_constant__ StepView step) {
  using Memory = Shared<T, F, EP>;
  PYLLM_DYN_SHARED(unsigned char, bytes);
  Memory& shared = *reinterpret_cast<Memory*>(bytes);
  // Later rows see more keys: they go first.
  const int s = blockIdx.z, kv_head = blockIdx.y, first = int(gridDim.x - 1 - blockIdx.x) * kRows;
  const int group = a.num_heads / a.kv.heads, warp = threadIdx.x / 32, lane = threadIdx.x % 32, e = int(a.kv.head_dim);
  const Sequence seq = sequence_of(step, s);
  const int vectors = seq.rows * group;
  if (seq.keys <= 0 || seq.rows <= kDecodeRows || first >= vectors) return;
  const int count = vectors - first < kRows ? vectors - first : kRows;

  const Vector mine[2] = {vector_of(a, step, seq, kv_head, first + warp * 16 + lane / 4),
                          vector_of(a, step, seq, kv_head, first + warp * 16 + lane / 4 + 8)};
  const Seen front = vector_of(a, step, seq, kv_head, first).seen;
  const Seen back = vector_of(a, step, seq, kv_head, first + count - 1).seen;
  const int64_t key_offset = a.kv.layer_offset + kv_head * a.kv.head_stride,
                value_offset = key_offset + half_bytes<F>(EP);
  int at = front.begin / kKeys * kKeys;
  load_tile<T, F, EP>(a, seq, key_offset, at, back.end, shared.k, shared.k_scales);
  load_tile<T, F, EP>(a, seq, value_offset, at, back.end, shared.v, shared.v_scales);
  for (int i = threadIdx.x; i < kRows * EP; i += kThreads) {
    const int v = i / EP, d = i % EP;
    float x = 0.0f;
    if (v < count && d < e)
      x = floats(a.q, seq.row0 + (first + v) / group)[(kv_head * group + (first + v) % group) * e + d];
    shared.q[v][d] = from_float<T>(x);
  }
  __syncthreads();
  State<T, F, EP> state;
  state.begin(shared.q);

  for (; at < back.end; at += kKeys) {
    const int next = at + kKeys;
    cp_async_wait<1>();  // the keys; the values may still be on their way
    __syncthreads();
    state.scores(shared.q, shared.k);
    state.finish(a, mine, at, at < back.begin || next > front.end, shared.k_scales);
    __syncthreads();
    if (next < back.end) {
      load_tile<T, F, EP>(a, seq, key_offset, next, back.end, shared.k, shared.k_scales);
    } else {
      cp_async_commit();
    }
    cp_async_wait<1>();
    __syncthreads();
    state.soften(shared.v_scales);
    state.weigh(shared.v);
    __syncthreads();
    if (next < back.end) {
      load_tile<T, F, EP>(a, seq, value_offset, next, back.end, shared.v, shared.v_scales);
    } else {
      cp_async_commit();
    }
  }

#pragma unroll
  for (int j = 0; j < 2; j++) {
    float sum = state.sum[j];
    sum += __shfl_xor_sync(kWarp, sum, 1);
    sum += __shfl_xor_sync(kWarp, sum, 2);
    if (mine[j].seen.end == 0) continue;  // no such vector
    const float inverse = inverse_of(sum);
#pragma unroll
    for (int n = 0; n < EP / 8; n++) {
      const int d = 8 * n + 2 * (lane % 4);
      const int64_t column = int64_t(mine[j].head) * e + d;
      const float x = state.out[n][2 * j] * inverse, y = state.out[n][2 * j + 1] * inverse;
      if (e % 2 == 0) {
        if (d < e) store_pair(a.out, mine[j].row, column, x, y);
      } else {
        if (d < e) store(a.out, mine[j].row, column, x);
        if (d + 1 < e) store(a.out, mine[j].row, column + 1, y);
      }
    }
  }
}

template <class T, KvFormat F, int EP>
void launch_prefill(const AttendArgs& a, const StepView& step, Stream stream) {
  const int vectors = step.most_rows * (a.num_heads / a.kv.heads);
  PYLLM_LAUNCH((prefill_kernel<T, F, EP>), dim3((vectors + kRows - 1) / kRows, a.kv.heads, step.sequences),
               dim3(kThreads), sizeof(Shared<T, F, EP>), stream, a, step);
}
template <class T, KvFormat F>
void launch_prefill(const AttendArgs& a, const StepView& step, Stream stream) {
  switch (padded_head(a.kv.head_dim)) {
    case 32:
      return launch_prefill<T, F, 32>(a, step, stream);
    case 64:
      return launch_prefill<T, F, 64>(a, step, stream);
    case 96:
      return launch_prefill<T, F, 96>(a, step, stream);
    case 128:
      return launch_prefill<T, F, 128>(a, step, stream);
    case 256:
      return launch_prefill<T, F, 256>(a, step, stream);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace pyllm
