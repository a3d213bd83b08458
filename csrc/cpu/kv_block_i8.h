// int8 KV blocks: the write of one token and the two products of attention. Include a vec_*.h first.
//
// Queries and weights are 16-bit integers (kv_ints.h). Codes are stored as c + 128: of sum(q (c + 128)) the sum starts
// at -128 sum(q). All sums are exact modulo 2^32, and the true ones fit 32 bits over kSumDims values: 512 * 127 *
// 32639.
#pragma once
#include "cpu/kv_ints.h"

namespace pyllm {
namespace {

constexpr int64_t kSumDims = 512;  // head dims that one integer sum covers; wider heads add such sums as floats

// How numbers whose largest magnitude is `most` become integers up to `top`: rint(x * inverse), times `scale` again.
struct Quantiser {
  float inverse, scale;
};
// Below 1e-33 the numbers count as zeros: top / most, or most / top, would leave the range of floats. Infinities and
// NaN make the scale NaN.
inline Quantiser quantiser(float most, float top) {
  if (most < 1e-33f) return {0.0f, 0.0f};
  if (!(most < __builtin_inff())) return {0.0f, __builtin_nanf("")};
  return {top / most, most / top};
}
inline Quantiser row_quantiser(const float* x, int64_t n, float top) {
  F16 most = f_zero();
  for_pieces(n, [&](int64_t i, int lanes) { most = f_larger(most, f_abs(load_piece(x + i, lanes))); });
  return quantiser(f_reduce_larger(most), top);
}

constexpr float kTopCode = 127.0f, kTopNumber = 32639.0f;  // 32639 = 127 * 256 + 127

inline void append_i8(int64_t head_dim, int token, const float* k, const float* v, uint8_t* block) {
  const int64_t elements = padded_head(head_dim) * kBlockTokens;
  uint8_t* values = block + kv_half_bytes(KvFormat::i8, head_dim);
  const Quantiser key = row_quantiser(k, head_dim, kTopCode), value = row_quantiser(v, head_dim, kTopCode);
  std::memcpy(block + elements + token * 4, &key.scale, 4);
  std::memcpy(values + elements + token * 4, &value.scale, 4);
  block += token / 16 * (elements / 2) + token % 16 * 4;
  values += token / 4 * 64 + token % 4;
  for_pieces(head_dim, [&](int64_t d, int lanes) {
    uint8_t codes[16];
    store_codes(codes, f_to_ints(f_mul(load_piece(k + d, lanes), f_set(key.inverse))));
    for (int i = 0; i < 16; i += 4) std::memcpy(block + (d + i) / 4 * 64, codes + i, 4);
    store_codes(codes, f_to_ints(f_mul(load_piece(v + d, lanes), f_set(value.inverse))));
    for (int i = 0; i < 16; ++i) values[d / 16 * 512 + i * 4] = codes[i];
  });
}

// -128 * the sum. Of numbers that are not finite it wraps: their scale is NaN.
inline int32_t start_of(const I16& numbers) { return int32_t(-128u * uint32_t(i_reduce_add(numbers))); }

// A query in the place of its Ep floats: Ep / 4 quads, the scale, -128 sum(q) of each kSumDims dims.
inline void start_query_i8(const float* x, int64_t head_dim, float* row) {
  const int64_t ep = padded_head(head_dim);
  uint8_t* quads = reinterpret_cast<uint8_t*>(row);
  float* scale = row + ep / 2;
  int32_t* starts = reinterpret_cast<int32_t*>(scale + 1);
  const Quantiser q = row_quantiser(x, head_dim, kTopNumber);
  *scale = q.scale;
  for (int64_t first = 0; first < ep; first += kSumDims) {
    I16 sum = i_set(0);
    for (int64_t d = first; d < ep && d < first + kSumDims; d += 16) {
      const int64_t left = head_dim - d;
      const F16 piece = left <= 0 ? f_zero() : load_piece(x + d, left < 16 ? int(left) : 16);
      const I16 numbers = f_to_ints(f_mul(piece, f_set(q.inverse)));
      sum = i_add(sum, numbers);
      store_quads(quads + d / 4 * kQuadBytes, numbers);
    }
    starts[first / kSumDims] = start_of(sum);
  }
}

PYLLM_INLINE void prefetch_scales(const uint8_t* scales) {
  f_prefetch_l2(scales);
  f_prefetch_l2(scales + 64);
}

// scores[g][0..32) = q[g] . K: K [2 token halves][Ep/4][16 tokens][4 d], then [32] scales.
template <int C>
__attribute__((noinline)) void score_block_i8(const uint8_t* keys, const uint8_t* next, const float* q, int64_t ep,
                                              float* scores, int64_t row) {
  const float* scales = reinterpret_cast<const float*>(keys + ep * kBlockTokens);
  const uint8_t* quads = reinterpret_cast<const uint8_t*>(q);
  prefetch_scales(next + ep * kBlockTokens);
  for (int half = 0; half < 2; ++half) {
    F16 dot[C];
    for (int64_t first = 0; first < ep; first += kSumDims) {
      QuadSum sum[C];
#pragma GCC unroll 8
      for (int g = 0; g < C; ++g) {
        int32_t start;
        std::memcpy(&start, q + g * ep + ep / 2 + 1 + first / kSumDims, 4);
        sum[g] = quad_start(start);
      }
      const int64_t end = ep < first + kSumDims ? ep : first + kSumDims;
      for (int64_t d = first; d < end; d += 4, keys += 64, next += 64) {
        const CodeLine codes = load_codes(keys);
        f_prefetch_l2(next);
#pragma GCC unroll 8
        for (int g = 0; g < C; ++g) add_quad(sum[g], codes, quads + g * ep * 4 + d / 4 * kQuadBytes);
      }
#pragma GCC unroll 8
      for (int g = 0; g < C; ++g) dot[g] = first == 0 ? quad_float(sum[g]) : f_add(dot[g], quad_float(sum[g]));
    }
    const F16 scale = f_load(scales + 16 * half);
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) {
      const F16 both = f_mul(f_set(q[g * ep + ep / 2]), scale);
      f_store(scores + g * row + 16 * half, f_mul(dot[g], both));
    }
  }
}

// Weights of one vector and block, times the scales of their values, as integers.
struct BlockWeights {
  uint8_t quads[kBlockTokens / 4 * kQuadBytes];
  float scale;
  int32_t start;  // -128 sum
};
inline void quantise_weights(const float* p, const F16& scale0, const F16& scale1, BlockWeights& w) {
  // A token that is not seen has a weight of 0 and may hold anything.
  const auto weigh = [](const F16& x, const F16& scale) { return f_choose_less(f_zero(), x, f_mul(x, scale), x); };
  const F16 w0 = weigh(f_load(p), scale0), w1 = weigh(f_load(p + 16), scale1);
  const Quantiser q = quantiser(f_reduce_larger(f_larger(f_abs(w0), f_abs(w1))), kTopNumber);
  const I16 n0 = f_to_ints(f_mul(w0, f_set(q.inverse))), n1 = f_to_ints(f_mul(w1, f_set(q.inverse)));
  store_quads(w.quads, n0);
  store_quads(w.quads + 4 * kQuadBytes, n1);
  w.scale = q.scale;
  w.start = start_of(i_add(n0, n1));
}

// outputs[g] += p[g] . V: V [Ep/16][8 token quads][16 dims][4 tokens], then [32] scales.
template <int C>
__attribute__((noinline)) void value_block_i8(const uint8_t* values, const uint8_t* next, const float* p, int64_t row,
                                              int64_t ep, float* outputs) {
  const float* scales = reinterpret_cast<const float*>(values + ep * kBlockTokens);
  prefetch_scales(next + ep * kBlockTokens);
  const F16 scale0 = f_load(scales), scale1 = f_load(scales + 16);
  BlockWeights weights[C];
  for (int g = 0; g < C; ++g) quantise_weights(p + g * row, scale0, scale1, weights[g]);
  for (int64_t d = 0; d < ep; d += 16) {
    QuadSum sum[C];
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) sum[g] = quad_start(weights[g].start);
#pragma GCC unroll 8
    for (int r = 0; r < kBlockTokens / 4; ++r, values += 64, next += 64) {
      const CodeLine codes = load_codes(values);
      f_prefetch_l2(next);
#pragma GCC unroll 8
      for (int g = 0; g < C; ++g) add_quad(sum[g], codes, weights[g].quads + r * kQuadBytes);
    }
#pragma GCC unroll 8
    for (int g = 0; g < C; ++g) {
      float* to = outputs + g * ep + d;
      f_store(to, f_fma(quad_float(sum[g]), f_set(weights[g].scale), f_load(to)));
    }
  }
}

}  // namespace
}  // namespace pyllm
