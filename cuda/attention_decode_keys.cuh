// The warps of attention_decode.cuh: 32 keys each, against up to 16 query vectors. Keys and values go from memory to
// registers in pieces of 16 bytes a lane: the order of a dot product's terms and of the dims of an output is free, so a
// lane's piece is its part of several mma's.
//
// Keys: lane (g = lane / 4, t = lane % 4) loads kKey dims of key g; numbers 4 m .. 4 m + 3 are b of mma m, whose a has
// the same dims of the queries. Values: the lane loads kValue dims, from kValue g on, of keys 2 t, 2 t + 1, 2 t + 8 and
// 2 t + 9 of 16; number j of each make b of mma j, whose column n is dim kValue n + j.
#pragma once
#include "attention_mma.cuh"

namespace pyllm {
namespace cuda {
namespace {

constexpr int kWarps = kChunkKeys / kBlockTokens, kThreads = kWarps * 32, kVectors = 16;
constexpr int kOutPad = 4;  // floats between two vectors' outputs

template <KvFormat F, int EP>
struct Shape {
  static constexpr int kSize = F == KvFormat::i8 ? 1 : 2;
  static constexpr int kKey = F == KvFormat::i8 && EP % 64 == 0 ? 16 : 8;
  static constexpr int kWidest = 16 / kSize;  // numbers in 16 bytes
  static constexpr int kValue = EP % (8 * kWidest) == 0 ? kWidest : EP % 64 == 0 ? 8 : 4;
  static constexpr int kKeyLoads = EP / (4 * kKey), kRanges = EP / (8 * kValue);
  static constexpr int kKeyBytes = kKey * kSize, kValueBytes = kValue * kSize;
  static constexpr int kAhead = EP > 128        ? 2
                                : kKeyLoads < 4 ? kKeyLoads
                                                : 4;  // loads of each key before the first product
  static constexpr int kRangesAhead = EP > 128 ? 1 : kRanges < 2 || kRanges % 2 ? kRanges : 2;
  static constexpr int kQueryLd = EP + (EP % 64 ? 0 : 32);  // elements: rows g and g + 1 in different banks
  static constexpr int kOutLd = EP + kOutPad;
};

// A warp's 32 keys of a chunk, and what is made of them. The registers of keys are free once they met the queries,
// those of values once they were weighed: the next chunk's loads are issued there and then.
template <class T, KvFormat F, int EP>
struct Keys {
  using S = Shape<F, EP>;
  const uint8_t *half, *next_half;  // of the block, for the warp's kv head
  int first, next_first, end;       // position of the first key; keys from `end` on are not there
  bool busy, next_busy;             // whether any is there that a vector may see
  int g, t;
  float s[4][4];
  u32 keys[S::kAhead][4][S::kKeyBytes / 4];
  u32 values[2][S::kRangesAhead][4][S::kValueBytes / 4];

  // The keys of a chunk; last: there is no such chunk.
  __device__ __forceinline__ void look_ahead(const AttendArgs& a, const Sequence& seq, int kv_head, int chunk,
                                             int begin, bool last) {
    next_first = chunk * kChunkKeys + int(threadIdx.x) / 32 * kBlockTokens, end = seq.keys;
    next_busy = !last && next_first < end && next_first + kBlockTokens > begin;
    if (!next_busy) return;
    next_half = seq.blocks[next_first / kBlockTokens] + a.kv.layer_offset + kv_head * a.kv.head_stride;
    load_keys(0, next_half, next_first);
  }
  __device__ __forceinline__ void go_on() {
    half = next_half, first = next_first, busy = next_busy;
    if (busy) load_values(0);
  }
  __device__ __forceinline__ void load_keys(int c0, const uint8_t* from, int at) {
#pragma unroll
    for (int c = 0; c < S::kAhead; c++)
#pragma unroll
      for (int n = 0; n < 4; n++)
        if (c0 + c < S::kKeyLoads)
          load_words<S::kKeyBytes>(from + (8 * n + g) * EP * S::kSize + ((c0 + c) * 4 + t) * S::kKeyBytes,
                                   at + 8 * n + g < end, keys[c][n]);
  }
  template <int QueryLd>
  __device__ __forceinline__ void scores(const T (&q)[kVectors][QueryLd]) {
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) s[n][i] = 0.0f;
#pragma unroll
    for (int c0 = 0; c0 < S::kKeyLoads; c0 += S::kAhead) {
      if (c0) load_keys(c0, half, first);
#pragma unroll
      for (int c = 0; c < S::kAhead; c++)
        if (c0 + c < S::kKeyLoads) products(q, c0 + c, keys[c]);
    }
  }
  template <int QueryLd>
  __device__ __forceinline__ void products(const T (&q)[kVectors][QueryLd], int c,
                                           const u32 (&raw)[4][S::kKeyBytes / 4]) {
    u32 low[S::kKey / 2], high[S::kKey / 2];  // of vectors g and g + 8
#pragma unroll
    for (int i = 0; i < S::kKey / 8; i++) {
      const int column = (c * 4 + t) * S::kKey + 8 * i;
      u32 v[4];
      load_words<16>(&q[g][column], true, v);
#pragma unroll
      for (int j = 0; j < 4; j++) low[4 * i + j] = v[j];
      load_words<16>(&q[g + 8][column], true, v);
#pragma unroll
      for (int j = 0; j < 4; j++) high[4 * i + j] = v[j];
    }
#pragma unroll
    for (int n = 0; n < 4; n++) {
      u32 k[S::kKey / 2];
      to_pairs<T, F>(raw[n], k);
#pragma unroll
      for (int m = 0; m < S::kKey / 4; m++) {
        const u32 a[4] = {low[2 * m], high[2 * m], low[2 * m + 1], high[2 * m + 1]};
        Number<T>::mma(s[n], a, k[2 * m], k[2 * m + 1]);
      }
    }
  }
  __device__ __forceinline__ void load_values(int range) {
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int r = 0; r < S::kRangesAhead; r++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int key = 16 * j + 2 * t + i % 2 + i / 2 * 8;
          load_words<S::kValueBytes>(
              half + half_bytes<F>(EP) + key * EP * S::kSize + ((range + r) * 8 + g) * S::kValueBytes,
              first + key < end, values[j][r][i]);
        }
  }
  // Scores become those of the vectors, -inf where one does not see the key; the largest of each goes to tops.
  __device__ __forceinline__ void finish(const AttendArgs& a, const Vector (&vectors)[2], float (&tops)[kVectors]) {
    const bool biased = a.bias.table || a.bias.slopes;
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Vector& v = vectors[i / 2];
        const int key = 8 * n + 2 * t + i % 2, at = first + key;
        if (F == KvFormat::i8) s[n][i] *= kv_scale(half, key, EP);
        s[n][i] = at >= v.seen.begin && at < v.seen.end ? log2_score(a, biased, v, s[n][i], at) : -INFINITY;
        top[i / 2] = fmaxf(top[i / 2], s[n][i]);
      }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      top[i] = fmaxf(top[i], __shfl_xor_sync(kWarp, top[i], 1));
      top[i] = fmaxf(top[i], __shfl_xor_sync(kWarp, top[i], 2));
      if (t == 0) tops[g + 8 * i] = top[i];
    }
  }
  // p = 2^(score - base); the sum of each vector's goes to sums.
  __device__ __forceinline__ void soften(const float (&base)[2], float (&sums)[kVectors]) {
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < 4; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float& p = s[n][i];
        p = fast_exp2(p - base[i / 2]);
        sum[i / 2] += p;
        if (F == KvFormat::i8 && p != 0.0f) p *= kv_scale(half + half_bytes<F>(EP), 8 * n + 2 * t + i % 2, EP);
      }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      sum[i] += __shfl_xor_sync(kWarp, sum[i], 1);
      sum[i] += __shfl_xor_sync(kWarp, sum[i], 2);
      if (t == 0) sums[g + 8 * i] = sum[i];
    }
  }
  // p times the values, to out[vector][dim].
  __device__ __forceinline__ void weigh(float* out, int count) {
    u32 p[2][4];
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        p[j][i] = Number<T>::pack(s[2 * j + i / 2][i % 2 * 2], s[2 * j + i / 2][i % 2 * 2 + 1]);
#pragma unroll
    for (int range = 0; range < S::kRanges; range += S::kRangesAhead) {
      if (range) load_values(range);
#pragma unroll
      for (int r = 0; r < S::kRangesAhead; r++) {
        float sums[S::kValue][4] = {};
#pragma unroll
        for (int j = 0; j < 2; j++) add_values(p[j], values[j][r], sums);
        store_sums(out, count, range + r, sums);
      }
    }
  }
  __device__ __forceinline__ void add_values(const u32 (&p)[4], const u32 (&raw)[4][S::kValueBytes / 4],
                                             float (&sums)[S::kValue][4]) {
    u32 v[4][S::kValue / 2];
#pragma unroll
    for (int i = 0; i < 4; i++) to_pairs<T, F>(raw[i], v[i]);
#pragma unroll
    for (int d = 0; d < S::kValue; d++) {
      const unsigned take = d % 2 ? 0x7632 : 0x5410;
      Number<T>::mma(sums[d], p, __byte_perm(v[0][d / 2], v[1][d / 2], take),
                     __byte_perm(v[2][d / 2], v[3][d / 2], take));
    }
  }
  __device__ __forceinline__ void store_sums(float* out, int count, int range,
                                             const float (&sums)[S::kValue][4]) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int vector = g + i / 2 * 8;
      if (vector >= count) continue;
      float* to = out + vector * S::kOutLd + (range * 8 + 2 * t + i % 2) * S::kValue;
#pragma unroll
      for (int d = 0; d < S::kValue; d += 4)
        *reinterpret_cast<float4*>(to + d) = make_float4(sums[d][i], sums[d + 1][i], sums[d + 2][i], sums[d + 3][i]);
    }
  }
};

}  // namespace
}  // namespace cuda
}  // namespace pyllm
