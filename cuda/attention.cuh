// What the attention kernels share: where keys and values lie, which keys a query sees, what is added to scores, and
// how the results of pieces meet. All arithmetic whose rounding a compiler could choose is spelled out (fmaf), so that
// a row has the same bits from every instance of a kernel.
#pragma once
#include "launch.h"
#include "tensor.cuh"

namespace pyllm {
namespace cuda {

template <KvFormat F>
struct KvFormatConstant {
  static constexpr KvFormat value = F;
};
// Host: calls with the KvFormatConstant of a format that is known at run time.
template <class Call>
void with_format(KvFormat format, const Call& call) {
  switch (format) {
    case KvFormat::f32:
      return call(KvFormatConstant<KvFormat::f32>());
    case KvFormat::bf16:
      return call(KvFormatConstant<KvFormat::bf16>());
    case KvFormat::f16:
      return call(KvFormatConstant<KvFormat::f16>());
    case KvFormat::i8:
      return call(KvFormatConstant<KvFormat::i8>());
  }
}

template <KvFormat F>
struct KvElement;
template <>
struct KvElement<KvFormat::f32> {
  using type = float;
};
template <>
struct KvElement<KvFormat::bf16> {
  using type = bf16;
};
template <>
struct KvElement<KvFormat::f16> {
  using type = f16;
};
template <>
struct KvElement<KvFormat::i8> {
  using type = int8_t;
};

__device__ __forceinline__ float to_float(int8_t v) { return float(v); }
__device__ __forceinline__ float rounded(Type type, float v) {
  if (type == Type::bf16) return to_float(from_float<bf16>(v));
  return type == Type::f16 ? to_float(from_float<f16>(v)) : v;
}
__device__ __forceinline__ void store(const View& view, int64_t row, int64_t column, float v) {
  const int64_t at = row * view.ld + column;
  if (view.type == Type::f32) {
    static_cast<float*>(view.data)[at] = v;
  } else if (view.type == Type::bf16) {
    static_cast<bf16*>(view.data)[at] = from_float<bf16>(v);
  } else {
    static_cast<f16*>(view.data)[at] = from_float<f16>(v);
  }
}
__device__ __forceinline__ const float* floats(const View& view, int64_t row) {
  return static_cast<const float*>(view.data) + row * view.ld;
}

__device__ __forceinline__ int padded(int e) { return (e + 31) / 32 * 32; }  // padded_head()
// The part of a block that belongs to one layer and kv head: keys, and half_bytes later values; each [32][ep], then,
// int8 only, [32] scales.
template <KvFormat F>
__device__ __forceinline__ const typename KvElement<F>::type* kv_row(const uint8_t* half, int token, int ep) {
  return reinterpret_cast<const typename KvElement<F>::type*>(half) + token % kBlockTokens * ep;
}
__device__ __forceinline__ float kv_scale(const uint8_t* half, int token, int ep) {
  return reinterpret_cast<const float*>(half + kBlockTokens * ep)[token % kBlockTokens];
}

template <KvFormat F>
__device__ __forceinline__ int half_bytes(int ep) {  // kv_half_bytes()
  constexpr int kSize = int(sizeof(typename KvElement<F>::type));
  return kBlockTokens * (ep * kSize + (F == KvFormat::i8 ? int(sizeof(float)) : 0));
}

// One sequence's part of a step.
struct Sequence {
  int row0, rows, keys;
  uint8_t* const* blocks;  // of the step's table
};
__device__ __forceinline__ Sequence sequence_of(const StepView& step, int s) {
  return {step.starts[s], step.starts[s + 1] - step.starts[s], step.context[s], step.blocks + s * step.table_width};
}

// Keys [begin, end) that a query at `position` sees among `keys`.
struct Seen {
  int begin, end;
};
__device__ __forceinline__ Seen seen_by(const AttendArgs& a, int position, int keys) {
  Seen seen{0, keys};
  if (a.window > 0 && position + 1 > a.window) seen.begin = int(position + 1 - a.window);
  if (a.causal) {
    if (position + 1 < keys) seen.end = position + 1;
  } else if (a.window > 0 && position + a.window < keys) {
    seen.end = int(position + a.window);
  }
  return seen;
}

__device__ __forceinline__ float distance_bias(const AttendBias& b, int head, int distance) {
  if (b.table) {
    int64_t i = distance - b.first;
    i = i < 0 ? 0 : i < b.span ? i : b.span - 1;
    return b.table[head * b.span + i];
  }
  return b.slopes ? b.slopes[head] * float(distance) : 0.0f;
}
// first_row: of the sequence, whose first token is at position 0 where biases are by content.
__device__ __forceinline__ float score_bias(const AttendBias& b, int head, int row, int first_row, int position,
                                            int key) {
  const float by_distance = distance_bias(b, head, key - position);
  if (!b.c2p.data && !b.p2c.data) return by_distance;
  int64_t i = key - position - b.first;
  i = i < 0 ? 0 : i < b.indices ? i : b.indices - 1;
  const float c2p = b.c2p.data ? floats(b.c2p, row)[head * b.span + b.c2p_index[i]] : 0.0f;
  const float p2c = b.p2c.data ? floats(b.p2c, first_row + key)[head * b.span + b.p2c_index[i]] : 0.0f;
  return by_distance + (c2p + p2c);
}
__device__ __forceinline__ float finish_score(const AttendArgs& a, float dot, float bias) {
  if (a.softcap > 0) return fmaf(a.softcap, tanhf(dot * a.scale / a.softcap), bias);
  return fmaf(dot, a.scale, bias);
}

// The softmax state of some keys: the largest score, sum(exp(score - maximum)), and beside them sum(exp(..) * value).
struct Softmax {
  float maximum, sum;
};
// exp(x); exact: within 1 ulp, else within a few: p is rounded to 8 or 11 bits there.
__device__ __forceinline__ float exp_of(bool exact, float x) { return exact ? expf(x) : __expf(x); }
// What exponents are taken relative to: no score seen yet must not give -inf - -inf.
__device__ __forceinline__ float base_of(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }

// Joins the next piece's state; values: fmaf(piece, take, before * keep).
struct Fold {
  float keep, take;
};
__device__ __forceinline__ Fold join(bool exact, Softmax& before, const Softmax& piece) {
  const float maximum = fmaxf(before.maximum, piece.maximum), base = base_of(maximum);
  const Fold fold{exp_of(exact, before.maximum - base), exp_of(exact, piece.maximum - base)};
  before = {maximum, fmaf(piece.sum, fold.take, before.sum * fold.keep)};
  return fold;
}
__device__ __forceinline__ float inverse_of(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

// How a launch is cut along the keys: a block takes `each` chunks of kChunkKeys in order. Where these are not all
// (split), it leaves what it found of each in `partial`; otherwise it joins them itself: the same numbers in the same
// order.
struct Pieces {
  bool split = false;
  int chunks = 1, each = 1;  // of the longest context; of a block
  int rows = 1;              // of one sequence, at most
  float* partial = nullptr;
  int blocks() const { return split ? (chunks + each - 1) / each : 1; }
};
// Of (sequence, row in it, query head, chunk): maximum, sum, two unused, then [ep] values.
static constexpr int kPartialHead = 4;
__device__ __forceinline__ float* partial_of(const Pieces& p, int heads, int ep, int s, int row, int head, int chunk) {
  const int64_t i = ((int64_t(s) * p.rows + row) * heads + head) * p.chunks + chunk;
  return p.partial + i * (ep + kPartialHead);
}

// Outputs of rows that attend to nothing are zero: those of a sequence without keys, and, by the last sequence's block,
// rows that belong to none.
__device__ __forceinline__ void clear_rows(const AttendArgs& a, int row0, int row1, int head0, int heads) {
  const int e = int(a.kv.head_dim), columns = heads * e;
  for (int row = row0; row < row1; row++)
    for (int i = threadIdx.x; i < columns; i += blockDim.x) store(a.out, row, head0 * e + i, 0.0f);
}
__device__ __forceinline__ void clear_idle(const AttendArgs& a, const StepView& step, int s, int head0, int heads) {
  if (step.context[s] <= 0) clear_rows(a, step.starts[s], step.starts[s + 1], head0, heads);
  if (s == step.sequences - 1) clear_rows(a, step.starts[s + 1], step.rows, head0, heads);
}

// Host side. attention_plain.cu: any shape and option, SIMT. attention_weights.cu: the weights themselves.
static constexpr int64_t kPartialBytes = int64_t(32) << 20;  // of workspace, at most; more pieces run in one block
static constexpr int kFewBlocks = 512;  // below this a launch is split: about 4 blocks for each of 132 SMs
Pieces cut(const AttendArgs& a, const StepView& step, int rows, int64_t blocks);
void attend_plain(const AttendArgs& a, const StepView& step, Stream stream);
void attend_weights(const AttendArgs& a, const StepView& step, Stream stream);
void join_pieces(const AttendArgs& a, const StepView& step, const Pieces& pieces, int most_rows, Stream stream);

}  // namespace cuda
}  // namespace pyllm
