// What the tensor-core kernels of attention share. Query vectors of one sequence and kv head are the 16 rows of
// mma.m16n8k16: vector i is query head i % group of row i / group. Scores are kept times log2(e), so that p = 2^(score
// - maximum).
#pragma once
#include "attention.cuh"

namespace pyllm {
namespace cuda {

static constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;
static constexpr int kDecodeRows = 8;  // of a sequence, at most: attention_decode.cuh; more: attention_prefill.cuh

struct Vector {
  int row, head, position;
  Seen seen;
};
// One that is not there sees nothing.
__device__ __forceinline__ Vector vector_of(const AttendArgs& a, const StepView& step, const Sequence& seq, int kv_head,
                                            int i) {
  const int group = a.num_heads / a.kv.heads;
  if (i >= seq.rows * group) return {0, 0, 0, {0, 0}};
  const int row = seq.row0 + i / group, position = step.positions[row];
  return {row, kv_head * group + i % group, position, seen_by(a, position, seq.keys)};
}

// The score of a key times log2(e).
__device__ __forceinline__ float log2_score(const AttendArgs& a, bool biased, const Vector& v, float dot, int key) {
  const float bias = biased ? distance_bias(a.bias, v.head, key - v.position) * kLog2e : 0.0f;
  if (a.softcap > 0) return fmaf(a.softcap * kLog2e, tanhf(dot * a.scale / a.softcap), bias);
  return fmaf(dot, a.scale * kLog2e, bias);
}

template <int Bytes>
__device__ __forceinline__ void load_words(const void* from, bool there, u32 (&to)[Bytes / 4]) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "one load");
  if constexpr (Bytes == 16) {
    const uint4 v = there ? *static_cast<const uint4*>(from) : make_uint4(0, 0, 0, 0);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
  } else if constexpr (Bytes == 8) {
    const uint2 v = there ? *static_cast<const uint2*>(from) : make_uint2(0, 0);
    to[0] = v.x, to[1] = v.y;
  } else {
    to[0] = there ? *static_cast<const u32*>(from) : 0u;
  }
}

// Four int8 as two pairs of T, exactly: 8388608 + (byte + 128) is a float whose low byte is that sum.
template <class T>
__device__ __forceinline__ void widen_codes(u32 codes, u32& low, u32& high) {
  const u32 bytes = codes ^ 0x80808080u;
  float v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440u + i)) - 8388736.0f;
  low = Number<T>::pack(v[0], v[1]);
  high = Number<T>::pack(v[2], v[3]);
}
// Count numbers of a cache as pairs of T.
template <class T, KvFormat F, int Words>
__device__ __forceinline__ void to_pairs(const u32 (&raw)[Words], u32* pairs) {
#pragma unroll
  for (int i = 0; i < Words; i++) {
    if constexpr (F == KvFormat::i8) widen_codes<T>(raw[i], pairs[2 * i], pairs[2 * i + 1]);
    else pairs[i] = raw[i];
  }
}

// Host: whether these kernels take it, and their launches.
inline bool mma_takes(const AttendArgs& a) {
  const int64_t ep = padded_head(a.kv.head_dim);
  const bool width = ep == 32 || ep == 64 || ep == 96 || ep == 128 || ep == 256;
  const bool bf = a.type == Type::bf16 && (a.kv.format == KvFormat::bf16 || a.kv.format == KvFormat::i8);
  const bool half = a.type == Type::f16 && (a.kv.format == KvFormat::f16 || a.kv.format == KvFormat::i8);
  return width && (bf || half) && !a.bias.c2p.data && !a.bias.p2c.data;
}
void decode_bf16(const AttendArgs& a, const StepView& step, Stream stream);
void decode_f16(const AttendArgs& a, const StepView& step, Stream stream);
void prefill_bf16(const AttendArgs& a, const StepView& step, Stream stream);
void prefill_f16(const AttendArgs& a, const StepView& step, Stream stream);

}  // namespace cuda
}  // namespace pyllm
