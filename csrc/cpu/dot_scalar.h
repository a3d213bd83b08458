// I16, a vector of 16 int32, as four of the compiler's own vectors of 4, and products of 8-bit codes with integer
// activations, for any architecture. Same functions as dot_avx512.h; after vec_scalar.h.
#pragma once
#include <cstring>

#include "cpu/vec_scalar.h"

namespace pyllm {
namespace {

struct I16 {
  I4 a, b, c, d;
};

template <class Op>
PYLLM_INLINE I16 i_map(const I16& x, Op op) {
  return {op(x.a), op(x.b), op(x.c), op(x.d)};
}
template <class Op>
PYLLM_INLINE I16 i_map(const I16& x, const I16& y, Op op) {
  return {op(x.a, y.a), op(x.b, y.b), op(x.c, y.c), op(x.d, y.d)};
}
PYLLM_INLINE I4 i4(int32_t x) { return I4{x, x, x, x}; }
PYLLM_INLINE I16 i_set(int32_t x) { return {i4(x), i4(x), i4(x), i4(x)}; }
PYLLM_INLINE I16 i_zero() { return i_set(0); }
PYLLM_INLINE I16 i_load(const void* p) {
  I16 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
PYLLM_INLINE void i_store(void* p, const I16& x) { std::memcpy(p, &x, sizeof x); }
PYLLM_INLINE I16 i_add(const I16& x, const I16& y) {  // wraps
  return i_map(x, y, [](I4 p, I4 q) { return bits_as<I4>(bits_as<U4>(p) + bits_as<U4>(q)); });
}
PYLLM_INLINE I16 i_sub(const I16& x, const I16& y) {
  return i_map(x, y, [](I4 p, I4 q) { return p - q; });
}
PYLLM_INLINE I16 i_max(const I16& x, const I16& y) {
  return i_map(x, y, [](I4 p, I4 q) {
    const I4 larger = p > q;
    return (larger & p) | (~larger & q);
  });
}
template <int N>
PYLLM_INLINE I16 i_left(const I16& x) {
  return i_map(x, [](I4 p) { return p * (1 << N); });
}
template <int N>
PYLLM_INLINE I16 i_right(const I16& x) {
  return i_map(x, [](I4 p) { return p >> N; });
}
PYLLM_INLINE I4 low_word(const I4& x) { return bits_as<I4>(bits_as<U4>(x) << 16) >> 16; }
PYLLM_INLINE I16 i_pairs(const I16& x, const I16& y) {
  return i_map(x, y, [](I4 p, I4 q) { return low_word(p) * low_word(q) + (p >> 16) * (q >> 16); });
}
PYLLM_INLINE F16 i_to_float(const I16& x) {
  return {__builtin_convertvector(x.a, V4), __builtin_convertvector(x.b, V4), __builtin_convertvector(x.c, V4),
          __builtin_convertvector(x.d, V4)};
}
PYLLM_INLINE I16 f_to_ints(const F16& x) {
  const F16 r = f_round(x);
  return {__builtin_convertvector(r.a, I4), __builtin_convertvector(r.b, I4), __builtin_convertvector(r.c, I4),
          __builtin_convertvector(r.d, I4)};
}
PYLLM_INLINE I16 i_magnitude(const F16& x) {
  return i_map(bits_as<I16>(x), [](I4 p) { return p & i4(0x7fffffff); });
}
PYLLM_INLINE I16 i_from_u8(const void* p) {
  const uint8_t* bytes = static_cast<const uint8_t*>(p);
  int32_t lanes[16];
  for (int i = 0; i < 16; ++i) lanes[i] = bytes[i];
  return i_load(lanes);
}
PYLLM_INLINE int32_t i_reduce_add(const I16& x) {
  const I4 s = (x.a + x.c) + (x.b + x.d);
  return int32_t((uint32_t(s[0]) + uint32_t(s[2])) + (uint32_t(s[1]) + uint32_t(s[3])));
}
PYLLM_INLINE int32_t i_reduce_max(const I16& x) {
  int32_t lanes[16], most;
  i_store(lanes, x);
  most = lanes[0];
  for (int i = 1; i < 16; ++i) most = lanes[i] > most ? lanes[i] : most;
  return most;
}

using Act = int16_t;
struct Codes {
  I16 v;
};
struct Quad {
  I4 x0, x1, x2, x3;
};
PYLLM_INLINE Codes codes_bytes(const void* p) { return {i_load(p)}; }
PYLLM_INLINE Codes codes_low(const void* p) {
  return {i_map(i_load(p), [](I4 v) { return v & i4(0x0f0f0f0f); })};
}
PYLLM_INLINE Codes codes_high(const void* p) {
  return {i_map(i_load(p), [](I4 v) { return (v >> 4) & i4(0x0f0f0f0f); })};
}
PYLLM_INLINE Quad quad_load(const Act* x) { return {i4(x[0]), i4(x[1]), i4(x[2]), i4(x[3])}; }
PYLLM_INLINE I16 i_dot(const I16& sum, const Codes& w, const Quad& x) {
  return i_map(sum, w.v, [&](I4 s, I4 v) {
    const I4 byte = i4(0xff);
    return s + (v & byte) * x.x0 + ((v >> 8) & byte) * x.x1 + ((v >> 16) & byte) * x.x2 + ((v >> 24) & byte) * x.x3;
  });
}
template <bool Nibbles>
PYLLM_INLINE void store_acts(Act* to, const I16& x) {
  int32_t lanes[16];
  i_store(lanes, x);
  for (int i = 0; i < 16; ++i) to[i] = Act(lanes[Nibbles ? i / 8 * 8 + i % 4 * 2 + i % 8 / 4 : i]);
}
PYLLM_INLINE void widen_nibbles(const void* p, uint8_t* even, uint8_t* odd) {
  i_store(even, codes_low(p).v);
  i_store(odd, codes_high(p).v);
}

}  // namespace
}  // namespace pyllm
