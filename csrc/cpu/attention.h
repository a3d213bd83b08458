// Attention of a few query vectors against the paged KV cache of one kv head. Include a vec_*.h first. The AMX form is
// in amx_attention.h and gives the same bits.
//
// Two passes over the visible blocks: all scores into scratch, then their exact softmax, then the product with V. A
// query vector's result depends on its own scores only; blocks that only its neighbours see add zeros to it.
#pragma once
#include "cpu/kv_block.h"

namespace pyllm {
namespace {

// Scratch of one attend(): a row of scores per vector, the queries as the products take them, the running outputs.
struct AttendScratch {
  float* scores;   // [kAttendRows][row], first entry: the first token of the first visible block
  int64_t row;     // an odd number of lines, so that 16 rows do not fall into one set of the L1 cache
  float* queries;  // [kAttendRows][Ep], zero padded
  float* outputs;  // [kAttendRows][Ep]
};
inline int64_t score_row(int64_t num_keys) { return round_up(num_keys, kBlockTokens) + 16; }
inline AttendScratch split_scratch(void* scratch, int64_t head_dim, int64_t num_keys) {
  AttendScratch s;
  s.row = score_row(num_keys);
  s.scores = static_cast<float*>(scratch);
  s.queries = s.scores + kAttendRows * s.row;
  s.outputs = s.queries + kAttendRows * padded_head(head_dim);
  return s;
}
inline size_t attend_scratch(KvFormat, int64_t head_dim, int64_t num_keys) {
  return size_t(kAttendRows) * (score_row(num_keys) + 2 * padded_head(head_dim)) * sizeof(float);
}

// The keys that vector i sees are [begin, end).
struct Visible {
  int64_t begin, end;
};
inline Visible visible_keys(const AttendArgs& a, int i) {
  if (!a.causal && a.window == 0) return {0, a.num_keys};
  const int64_t position = a.first_position + (a.first_head + i) / a.group;
  const int64_t first = a.window > 0 && position + 1 > a.window ? position + 1 - a.window : 0;
  if (a.causal) return {first, position + 1};
  return {first, position + a.window < a.num_keys ? position + a.window : a.num_keys};
}
// The blocks that any vector sees: later vectors belong to the same or later tokens.
struct BlockRange {
  int64_t begin, end;
};
inline BlockRange visible_blocks(const AttendArgs& a) {
  const int64_t last = visible_keys(a, a.vectors - 1).end;
  return {visible_keys(a, 0).begin / kBlockTokens, round_up(last, kBlockTokens) / kBlockTokens};
}

inline const uint8_t* key_block(const AttendArgs& a, int64_t b) { return a.blocks[b] + a.block_offset; }
inline const uint8_t* value_block(const AttendArgs& a, int64_t b) {
  return key_block(a, b) + kv_half_bytes(a.format, a.head_dim);
}

// --- one vector at a time

template <Weights W>
PYLLM_INLINE void store_weights(float* scores, int64_t t, const F16& p) {
  if (W == Weights::packed) {
    f_bf16_store(reinterpret_cast<uint16_t*>(scores) + t, p);  // never past the scores that are still to be read
  } else {
    f_store(scores + t, W == Weights::rounded ? f_round_bf16(p) : p);
  }
}

// Queries as the products take them (bf16: rounded; i8: integers), padded with zeros; outputs zero.
inline void start_vectors(const AttendArgs& a, const AttendScratch& s) {
  const int64_t ep = padded_head(a.head_dim);
  for (int i = 0; i < a.vectors; ++i) {
    float* q = s.queries + i * ep;
    zero_columns(s.outputs + i * ep, 0, ep);
    if (a.format == KvFormat::i8) {
      start_query_i8(a.q[i], a.head_dim, q);
      continue;
    }
    for_pieces(a.head_dim, [&](int64_t d, int lanes) {
      const F16 value = load_piece(a.q[i] + d, lanes);
      if (a.format == KvFormat::bf16) {
        store_weights<kBf16Weights>(q, d, value);
      } else {
        f_store(q + d, value);
      }
    });
    if (round_up(a.head_dim, 16) == ep) continue;
    if (a.format == KvFormat::bf16) {
      store_weights<kBf16Weights>(q, ep - 16, f_zero());
    } else {
      f_store(q + ep - 16, f_zero());
    }
  }
}

// The scores of one vector, tokens [0, tokens) of the visible blocks, become exp(s - max); tokens outside `seen`
// (relative to the first block, as bias and weights are) become 0. Returns 1 / their sum.
template <Weights W>
inline float soften(const AttendArgs& a, float* scores, int64_t tokens, Visible seen, const float* bias,
                    float* weights) {
  const F16 lowest = f_set(-__builtin_inff()), scale = f_set(a.scale), cap = f_set(a.softcap);
  const int64_t begin = seen.begin / 16 * 16, end = round_up(seen.end, 16);
  F16 highest = lowest, sum = f_zero();
  for (int64_t t = begin; t < end; t += 16) {
    F16 s = f_mul(f_load(scores + t), scale);
    if (a.softcap > 0) s = f_mul(cap, f_tanh(f_div(s, cap)));
    if (bias) s = f_add(s, load_piece(bias + t, t + 16 > seen.end ? int(seen.end - t) : 16));
    if (t < seen.begin) s = f_choose_less(f_lane_index(), f_set(float(seen.begin - t)), lowest, s);
    if (t + 16 > seen.end) s = f_choose_less(f_lane_index(), f_set(float(seen.end - t)), s, lowest);
    highest = f_max(highest, s);
    f_store(scores + t, s);
  }
  const F16 top = f_set(f_reduce_max(highest));
  for (int64_t t = 0; t < begin; t += 16) store_weights<W>(scores, t, f_zero());
  for (int64_t t = begin; t < end; t += 16) {
    const F16 p = f_exp(f_sub(f_load(scores + t), top));
    sum = f_add(sum, p);
    if (weights) store_piece(weights + t, p, t + 16 > seen.end ? int(seen.end - t) : 16);
    store_weights<W>(scores, t, p);
  }
  for (int64_t t = end; t < tokens; t += 16) store_weights<W>(scores, t, f_zero());
  const float inverse = 1.0f / f_reduce_add(sum);
  if (weights) {
    for_pieces(seen.end - begin, [&](int64_t t, int lanes) {
      float* at = weights + begin + t;
      store_piece(at, f_mul(load_piece(at, lanes), f_set(inverse)), lanes);
    });
  }
  return inverse;
}
template <Weights W>
inline void soften_vectors(const AttendArgs& a, const AttendScratch& s, BlockRange blocks, float* inverse) {
  const int64_t origin = blocks.begin * kBlockTokens, tokens = (blocks.end - blocks.begin) * kBlockTokens;
  for (int i = 0; i < a.vectors; ++i) {
    const Visible seen = visible_keys(a, i);
    inverse[i] = soften<W>(a, s.scores + i * s.row, tokens, {seen.begin - origin, seen.end - origin},
                           a.bias ? a.bias[i] + origin : nullptr, a.weights ? a.weights[i] + origin : nullptr);
  }
}

// Adding +0 turns -0 into +0: whether the last product flushed to -0 may depend on blocks that only neighbours see.
inline void finish_vectors(const AttendArgs& a, const AttendScratch& s, const float* inverse) {
  const int64_t ep = padded_head(a.head_dim);
  for (int i = 0; i < a.vectors; ++i)
    for_pieces(a.head_dim, [&](int64_t d, int lanes) {
      const F16 sum = f_load(s.outputs + i * ep + d);
      store_piece(a.out[i] + d, f_add(f_mul(sum, f_set(inverse[i])), f_zero()), lanes);
    });
}

// --- the passes

template <int N>
struct Count {
  static constexpr int value = N;
};
template <int C, class Each>
PYLLM_INLINE void for_set(int size, int first, Each each) {
  if constexpr (C > 1) {
    if (size < C) return for_set<C - 1>(size, first, each);
  }
  each(Count<C>(), first);
}
// Calls each(Count<C>(), first) for sets of C <= together(F) vectors, C known to the compiler.
template <KvFormat F, class Each>
PYLLM_INLINE void for_sets(int vectors, Each each) {
  constexpr int kMost = together(F);
  for (int first = 0; first < vectors; first += kMost) for_set<kMost>(vectors - first, first, each);
}

// Vectors of one token alone: nobody reads the same blocks again soon, so they come from memory and must be fetched
// well ahead. Otherwise the neighbouring tokens' calls find them in L2.
inline bool reads_from_memory(const AttendArgs& a) { return a.first_head + a.vectors <= a.group; }

// The order in which halves of blocks are read: K of the visible blocks, V of them, then K of the next head if it is
// known. ahead(i): the half to fetch while the i-th one is worked on: what comes 8 KB later or more if it must come
// from memory, else the next one; the i-th itself where nothing is left.
class Stream {
 public:
  Stream(const AttendArgs& a, BlockRange blocks)
      : a_(a),
        first_(blocks.begin),
        count_(blocks.end - blocks.begin),
        distance_(reads_from_memory(a) ? int64_t(kAhead / kv_half_bytes(a.format, a.head_dim)) + 1 : 1) {
    for (int64_t i = 1; i < distance_ && i < 2 * count_; ++i)  // the first is read at once
      for (size_t line = 0; line < kv_half_bytes(a.format, a.head_dim); line += 64) f_prefetch_l2(half(i) + line);
  }
  const uint8_t* half(int64_t i) const {
    return i < count_ ? key_block(a_, first_ + i) : value_block(a_, first_ + i - count_);
  }
  const uint8_t* ahead(int64_t i) const {
    const int64_t later = i + distance_, beyond = later - 2 * count_;
    if (beyond < 0) return half(later);
    return a_.next_offset && beyond < count_ ? a_.blocks[first_ + beyond] + a_.next_offset : half(i);
  }
  int64_t count() const { return count_; }

 private:
  static constexpr size_t kAhead = 8191;  // less than 4 KB is too late, more than 8 KB brought nothing
  const AttendArgs& a_;
  const int64_t first_, count_, distance_;
};

// Scores of all vectors for the visible blocks. Each K block is read from memory once: sets of vectors after the first
// find it in L1.
template <KvFormat F>
inline void score_blocks(const AttendArgs& a, const AttendScratch& s, const Stream& stream) {
  const int64_t ep = padded_head(a.head_dim);
  for (int64_t b = 0; b < stream.count(); ++b) {
    const uint8_t* keys = stream.half(b);
    const uint8_t* next = stream.ahead(b);
    float* scores = s.scores + b * kBlockTokens;
    for_sets<F>(a.vectors, [&](auto count, int first) {
      constexpr int kCount = decltype(count)::value;
      score_block<F, kCount>(keys, next, s.queries + first * ep, ep, scores + first * s.row, s.row);
    });
  }
}
template <KvFormat F>
inline void add_value_blocks(const AttendArgs& a, const AttendScratch& s, const Stream& stream) {
  constexpr bool kHalves = F == KvFormat::bf16 && kBf16Weights == Weights::packed;
  constexpr int kWeights = kHalves ? kBlockTokens / 2 : kBlockTokens;  // of one block, in floats
  const int64_t ep = padded_head(a.head_dim);
  for (int64_t b = 0; b < stream.count(); ++b) {
    const uint8_t* values = stream.half(stream.count() + b);
    const uint8_t* next = stream.ahead(stream.count() + b);
    const float* p = s.scores + b * kWeights;
    for_sets<F>(a.vectors, [&](auto count, int first) {
      constexpr int kCount = decltype(count)::value;
      add_value_block<F, kCount>(values, next, p + first * s.row, s.row, ep, s.outputs + first * ep);
    });
  }
}

template <KvFormat F>
inline void attend_as(const AttendArgs& a, void* scratch) {
  const AttendScratch s = split_scratch(scratch, a.head_dim, a.num_keys);
  const BlockRange blocks = visible_blocks(a);
  float inverse[kAttendRows];
  Stream stream(a, blocks);
  start_vectors(a, s);
  score_blocks<F>(a, s, stream);
  soften_vectors<F == KvFormat::bf16 ? kBf16Weights : Weights::as_they_are>(a, s, blocks, inverse);
  add_value_blocks<F>(a, s, stream);
  finish_vectors(a, s, inverse);
}
inline void attend(const AttendArgs& a, void* scratch) {
  switch (a.format) {
    case KvFormat::f32:
      return attend_as<KvFormat::f32>(a, scratch);
    case KvFormat::bf16:
      return attend_as<KvFormat::bf16>(a, scratch);
    case KvFormat::f16:
      return attend_as<KvFormat::f16>(a, scratch);
    case KvFormat::i8:
      return attend_as<KvFormat::i8>(a, scratch);
  }
}

}  // namespace
}  // namespace pyllm
