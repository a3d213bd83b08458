// What knows the layout of a KV block: the write of one token and the two products of attention, for up to kTogether
// query vectors at a time. Include a vec_*.h first. int8 is in kv_block_i8.h; amx_attention.h has the bf16 products by
// tiles.
#pragma once
#include <cstring>

#include "cpu/kv_block_i8.h"

namespace pyllm {
namespace {

// Writes token `token` (0..31) of a block; padding stays as it is: zero since the block was cleared.
inline void append_f32(int64_t head_dim, int token, const float* k, const float* v, uint8_t* block) {
  float* keys = reinterpret_cast<float*>(block) + token;
  float* values = reinterpret_cast<float*>(block + kv_half_bytes(KvFormat::f32, head_dim));
  for (int64_t d = 0; d < head_dim; ++d) keys[d * kBlockTokens] = k[d];
  std::memcpy(values + token * padded_head(head_dim), v, size_t(head_dim) * sizeof(float));
}
inline void append_f16(int64_t head_dim, int token, const float* k, const float* v, uint8_t* block) {
  uint8_t* keys = block + token * 2;
  uint8_t* values = block + kv_half_bytes(KvFormat::f16, head_dim) + token * padded_head(head_dim) * 2;
  for_pieces(head_dim, [&](int64_t d, int lanes) {
    uint16_t key[16];
    f_f16_store(key, load_piece(k + d, lanes));
    f_f16_store(values + d * 2, load_piece(v + d, lanes));
    for (int i = 0; i < 16; ++i) std::memcpy(keys + (d + i) * kBlockTokens * 2, key + i, 2);
  });
}
inline void append_bf16(int64_t head_dim, int token, const float* k, const float* v, uint8_t* block) {
  uint8_t* keys = block + token / 16 * (padded_head(head_dim) / 32) * 1024 + token % 16 * 4;
  uint8_t* values = block + kv_half_bytes(KvFormat::bf16, head_dim) + token / 2 * 64 + token % 2 * 2;
  for_pieces(head_dim, [&](int64_t d, int lanes) {
    uint16_t key[16], value[16];
    f_bf16_store(key, load_piece(k + d, lanes));
    f_bf16_store(value, load_piece(v + d, lanes));
    for (int i = 0; i < 16; i += 2) std::memcpy(keys + (d + i) / 2 * 64, key + i, 4);
    for (int i = 0; i < 16; ++i) std::memcpy(values + d / 16 * 1024 + i * 4, value + i, 2);
  });
}
inline void kv_append(KvFormat f, int64_t head_dim, int token, const float* k, const float* v, uint8_t* block) {
  switch (f) {
    case KvFormat::f32:
      return append_f32(head_dim, token, k, v, block);
    case KvFormat::bf16:
      return append_bf16(head_dim, token, k, v, block);
    case KvFormat::f16:
      return append_f16(head_dim, token, k, v, block);
    case KvFormat::i8:
      return append_i8(head_dim, token, k, v, block);
  }
}

// How softmax weights, and queries of bf16, are left for the products: as floats, rounded to bf16, or stored as bf16.
enum class Weights { as_they_are, rounded, packed };
#if defined(PYLLM_BF16_DOT)
constexpr Weights kBf16Weights = Weights::packed;
#else
constexpr Weights kBf16Weights = Weights::rounded;
#endif

// Query vectors that share one reading of K or V from L1: what fits the registers with all accumulators in use.
#if defined(__AVX512F__)
constexpr int kTogether = 8;
#elif defined(__AVX2__)
constexpr int kTogether = 2;
#else
constexpr int kTogether = 1;
#endif
constexpr int together(KvFormat f) {
  const bool even_and_odd = f == KvFormat::bf16 && kBf16Weights == Weights::rounded;  // two sums more for each vector
  // f32: eight gain nothing where memory decides, and their longer way through a block holds up its fetches.
  return (even_and_odd || f == KvFormat::f32) && kTogether > 4 ? 4 : kTogether;
}

// --- products for C vectors and one block, functions of their own: inlined into the loops around them they spill.
// `next` runs along: the same place of a block that is read soon after.

// 32 floats of a row of a block, stored as floats or halves.
template <KvFormat F>
PYLLM_INLINE void load_32(const uint8_t* line, F16& low, F16& high) {
  if (F == KvFormat::f16) {
    low = f_f16_load(line);
    high = f_f16_load(line + 32);
  } else {
    low = f_load(reinterpret_cast<const float*>(line));
    high = f_load(reinterpret_cast<const float*>(line) + 16);
  }
}
template <KvFormat F>
PYLLM_INLINE void prefetch_32(const uint8_t* line) {
  f_prefetch_l2(line);
  if (F == KvFormat::f32) f_prefetch_l2(line + 64);
}

// scores[g][0..32) = q[g] . K, f32 and f16: K [Ep][32 tokens].
template <KvFormat F, int C>
__attribute__((noinline)) void score_block_float(const uint8_t* keys, const uint8_t* next, const float* q, int64_t ep,
                                                 float* scores, int64_t row) {
  constexpr int64_t kRow = kBlockTokens * (F == KvFormat::f16 ? 2 : 4);
  F16 low[C], high[C];
#pragma GCC unroll 8
  for (int g = 0; g < C; ++g) low[g] = high[g] = f_zero();
  for (int64_t d = 0; d < ep; ++d) {
    F16 k0, k1;
    load_32<F>(keys + d * kRow, k0, k1);
    prefetch_32<F>(next + d * kRow);
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) {
      const F16 value = f_set(q[g * ep + d]);
      low[g] = f_fma(k0, value, low[g]);
      high[g] = f_fma(k1, value, high[g]);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < C; ++g) {
    f_store(scores + g * row, low[g]);
    f_store(scores + g * row + 16, high[g]);
  }
}

// outputs[g] of 16 * Columns dims += p[g] . V.
template <KvFormat F, int C, int Columns>
PYLLM_INLINE void add_values(const uint8_t* values, const uint8_t* next, const float* p, int64_t row, int64_t ep,
                             float* outputs) {
  constexpr int64_t kSize = F == KvFormat::f16 ? 2 : 4;
  F16 sum[C][Columns];
#pragma GCC unroll 8
  for (int g = 0; g < C; ++g)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sum[g][j] = f_load(outputs + g * ep + 16 * j);
  for (int64_t t = 0; t < kBlockTokens; ++t, values += ep * kSize, next += ep * kSize) {
    F16 v[Columns];
#pragma GCC unroll 2
    for (int j = 0; j < Columns; j += 2) {
      load_32<F>(values + 16 * j * kSize, v[j], v[j + 1]);
      prefetch_32<F>(next + 16 * j * kSize);
    }
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) {
      const F16 weight = f_set(p[g * row + t]);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) sum[g][j] = f_fma(v[j], weight, sum[g][j]);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < C; ++g)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) f_store(outputs + g * ep + 16 * j, sum[g][j]);
}
// outputs[g] += p[g] . V, f32 and f16: V [32 tokens][Ep]. Few vectors take 64 dims at a time, for as many sums as the
// latency of the multiply-add wants.
template <KvFormat F, int C>
__attribute__((noinline)) void value_block_float(const uint8_t* values, const uint8_t* next, const float* p,
                                                 int64_t row, int64_t ep, float* outputs) {
  constexpr int64_t kSize = F == KvFormat::f16 ? 2 : 4;
  int64_t d = 0;
  if (C <= kTogether / 4)
    for (; d + 64 <= ep; d += 64) add_values<F, C, 4>(values + d * kSize, next + d * kSize, p, row, ep, outputs + d);
  for (; d < ep; d += 32) add_values<F, C, 2>(values + d * kSize, next + d * kSize, p, row, ep, outputs + d);
}

#if defined(PYLLM_BF16_DOT)
// Pair r of each vector: 16 bits twice, in rows of `ld` floats.
PYLLM_INLINE P16 p_pair(const float* rows, int64_t ld, int g, int64_t r) {
  uint32_t pair;
  std::memcpy(&pair, reinterpret_cast<const uint8_t*>(rows + g * ld) + 4 * r, 4);
  return p_set(pair);
}

// bf16 by VDPBF16PS; q: rows of bf16. Both token halves at a time: the instruction's latency wants a dozen sums.
template <int C>
__attribute__((noinline)) void score_block_bf16(const uint8_t* keys, const uint8_t* next, const float* q, int64_t ep,
                                                float* scores, int64_t row) {
  const int64_t half = ep * 32;
  F16 low[C], high[C];
#pragma GCC unroll 8
  for (int g = 0; g < C; ++g) low[g] = high[g] = f_zero();
  for (int64_t r = 0; r < ep / 2; ++r, keys += 64, next += 64) {
    const P16 k0 = p_load(keys), k1 = p_load(keys + half);
    f_prefetch_l2(next);
    f_prefetch_l2(next + half);
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) {
      const P16 pair = p_pair(q, ep, g, r);
      low[g] = f_dpbf16(low[g], k0, pair);
      high[g] = f_dpbf16(high[g], k1, pair);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < C; ++g) {
    f_store(scores + g * row, low[g]);
    f_store(scores + g * row + 16, high[g]);
  }
}

// Outputs of 16 * Tiles dims.
template <int C, int Tiles>
PYLLM_INLINE void value_pairs(const uint8_t* values, const uint8_t* next, const float* p, int64_t row, int64_t ep,
                              float* outputs) {
  F16 sum[Tiles][C];
#pragma GCC unroll 2
  for (int j = 0; j < Tiles; ++j)
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) sum[j][g] = f_load(outputs + g * ep + 16 * j);
#pragma GCC unroll 4
  for (int r = 0; r < kBlockTokens / 2; ++r) {
    P16 line[Tiles];
#pragma GCC unroll 2
    for (int j = 0; j < Tiles; ++j) {
      line[j] = p_load(values + 1024 * j + 64 * r);
      f_prefetch_l2(next + 1024 * j + 64 * r);
    }
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) {
      const P16 pair = p_pair(p, row, g, r);
#pragma GCC unroll 2
      for (int j = 0; j < Tiles; ++j) sum[j][g] = f_dpbf16(sum[j][g], line[j], pair);
    }
  }
#pragma GCC unroll 2
  for (int j = 0; j < Tiles; ++j)
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) f_store(outputs + g * ep + 16 * j, sum[j][g]);
}
// bf16 by VDPBF16PS; p: rows of bf16. Few vectors read tile after tile: memory likes one stream.
template <int C>
__attribute__((noinline)) void value_block_bf16(const uint8_t* values, const uint8_t* next, const float* p, int64_t row,
                                                int64_t ep, float* outputs) {
  constexpr int kTiles = C > 3 ? 2 : 1;
  for (int64_t d = 0; d < ep; d += 16 * kTiles, values += 1024 * kTiles, next += 1024 * kTiles)
    value_pairs<C, kTiles>(values, next, p, row, ep, outputs + d);
}
#else
// One TDPBF16PS: sum[g] += (chain of the even products) + (chain of the odd products) over 32 values a[g][0..32),
// against a tile [16 pairs][16 columns][2].
template <int C>
PYLLM_INLINE void add_tile_product(const uint8_t* tile, const uint8_t* next, const float* a, int64_t a_ld,
                                   F16 (&sum)[C]) {
  F16 even[C], odd[C];
#pragma GCC unroll 8
  for (int g = 0; g < C; ++g) even[g] = odd[g] = f_zero();
#pragma GCC unroll 16
  for (int r = 0; r < 16; ++r) {
    const F16 e = f_bf16_even(tile + 64 * r), o = f_bf16_odd(tile + 64 * r);
    f_prefetch_l2(next + 64 * r);
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) {
      even[g] = f_fma(e, f_set(a[g * a_ld + 2 * r]), even[g]);
      odd[g] = f_fma(o, f_set(a[g * a_ld + 2 * r + 1]), odd[g]);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < C; ++g) sum[g] = f_add(sum[g], f_add(even[g], odd[g]));
}

// bf16: K [2 token halves][Ep/32] tiles.
template <int C>
__attribute__((noinline)) void score_block_bf16(const uint8_t* keys, const uint8_t* next, const float* q, int64_t ep,
                                                float* scores, int64_t row) {
  for (int half = 0; half < 2; ++half) {
    F16 sum[C];
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) sum[g] = f_zero();
    for (int64_t d = 0; d < ep; d += 32, keys += 1024, next += 1024) add_tile_product<C>(keys, next, q + d, ep, sum);
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) f_store(scores + g * row + 16 * half, sum[g]);
  }
}

// bf16: V [Ep/16] tiles.
template <int C>
__attribute__((noinline)) void value_block_bf16(const uint8_t* values, const uint8_t* next, const float* p, int64_t row,
                                                int64_t ep, float* outputs) {
  for (int64_t d = 0; d < ep; d += 16, values += 1024, next += 1024) {
    F16 sum[C];
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) sum[g] = f_load(outputs + g * ep + d);
    add_tile_product<C>(values, next, p, row, sum);
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) f_store(outputs + g * ep + d, sum[g]);
  }
}
#endif

template <KvFormat F, int C>
PYLLM_INLINE void score_block(const uint8_t* keys, const uint8_t* next, const float* q, int64_t ep, float* scores,
                              int64_t row) {
  if constexpr (F == KvFormat::i8) {
    score_block_i8<C>(keys, next, q, ep, scores, row);
  } else if constexpr (F == KvFormat::bf16) {
    score_block_bf16<C>(keys, next, q, ep, scores, row);
  } else {
    score_block_float<F, C>(keys, next, q, ep, scores, row);
  }
}
template <KvFormat F, int C>
PYLLM_INLINE void add_value_block(const uint8_t* values, const uint8_t* next, const float* p, int64_t row, int64_t ep,
                                  float* outputs) {
  if constexpr (F == KvFormat::i8) {
    value_block_i8<C>(values, next, p, row, ep, outputs);
  } else if constexpr (F == KvFormat::bf16) {
    value_block_bf16<C>(values, next, p, row, ep, outputs);
  } else {
    value_block_float<F, C>(values, next, p, row, ep, outputs);
  }
}

}  // namespace
}  // namespace pyllm
