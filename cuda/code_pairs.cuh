// Integer weights as pairs of bf16 or f16, exactly, and elements of views whose type is known at run time.
#pragma once
#include "launch.h"
#include "tensor.cuh"

namespace pyllm {
namespace cuda {

// Bytes `Byte` and `Byte` + 1 of a word, each in the low byte of 16 bits.
template <int Byte>
__device__ __forceinline__ u32 spread_bytes(u32 word) {
#if defined(PYLLM_CUDA_EMU)
  return (word >> (8 * Byte) & 0xffu) | (word >> (8 * Byte + 8) & 0xffu) << 16;
#else
  return __byte_perm(word, 0u, Byte == 0 ? 0x4140 : 0x4342);
#endif
}

// Byte `at` of a word in the low byte of both halves, `high` in the high ones.
__device__ __forceinline__ u32 both_halves(u32 word, int at, u32 high) {
#if defined(PYLLM_CUDA_EMU)
  const u32 byte = word >> 8 * at & 0xffu;
  return byte | byte << 16 | high << 8 | high << 24;
#else
  return __byte_perm(word, high, 0x4040u + 0x0101u * u32(at));
#endif
}

template <class T>
struct CodePair;
template <>
struct CodePair<bf16> {
  // Two int8: 128 + the low seven bits, less 128, or less 256 where the sign bit is set: all of them are bf16 numbers.
  static __device__ __forceinline__ u32 of_bytes(u32 spread) {
    return fma2<bf16>(and_or(spread, 0x007f007fu, 0x43004300u), 0x3f803f80u, and_or(spread, 0x00800080u, 0xc300c300u));
  }
  // Nibbles in bits 0 .. 3 of each half, less a zero point, byte `at` of a word: (128 + code) - (128 + zero).
  static __device__ __forceinline__ u32 minus_zero(u32 zeros, int at) { return both_halves(zeros, at, 0xc3u); }
  static __device__ __forceinline__ u32 of_nibbles(u32 word, u32 minus) {
    return fma2<bf16>(and_or(word, 0x000f000fu, 0x43004300u), 0x3f803f80u, minus);
  }
};
template <>
struct CodePair<f16> {
  static __device__ __forceinline__ u32 of_bytes(u32 spread) {  // 1024 + (code + 128), less 1152
    return add2<f16>(xor_or(spread, 0x00800080u, 0x64006400u), 0xe480e480u);
  }
  static __device__ __forceinline__ u32 minus_zero(u32 zeros, int at) { return both_halves(zeros, at, 0xe4u); }
  static __device__ __forceinline__ u32 of_nibbles(u32 word, u32 minus) {  // (1024 + code) - (1024 + zero)
    return add2<f16>(and_or(word, 0x000f000fu, 0x64006400u), minus);
  }
};

// Element `index` of memory of a type.
__device__ __forceinline__ float load_float(const void* data, Type type, int64_t index) {
  if (type == Type::f32) return static_cast<const float*>(data)[index];
  if (type == Type::bf16) return to_float(static_cast<const bf16*>(data)[index]);
  return to_float(static_cast<const f16*>(data)[index]);
}
__device__ __forceinline__ void store_float(void* data, Type type, int64_t index, float v) {
  if (type == Type::f32) static_cast<float*>(data)[index] = v;
  else if (type == Type::bf16) static_cast<bf16*>(data)[index] = from_float<bf16>(v);
  else static_cast<f16*>(data)[index] = from_float<f16>(v);
}

// Elements at .. at + 3 of a view, `at` a multiple of 4: rows have room for whole pieces.
__device__ __forceinline__ void load_four(const View& from, int64_t at, float (&v)[4]) {
  if (from.type == Type::f32) {
    const float4 q = *reinterpret_cast<const float4*>(static_cast<const float*>(from.data) + at);
    v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
  } else {
    const uint2 q = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(from.data) + at);
    const bool brain = from.type == Type::bf16;
    const float2 low = brain ? Number<bf16>::unpack(q.x) : Number<f16>::unpack(q.x);
    const float2 high = brain ? Number<bf16>::unpack(q.y) : Number<f16>::unpack(q.y);
    v[0] = low.x, v[1] = low.y, v[2] = high.x, v[3] = high.y;
  }
}
// The first `many`; together: `at` is a multiple of 4.
__device__ __forceinline__ void store_four(const View& y, int64_t at, bool together, int many, const float (&v)[4]) {
  if (!together || many < 4) {
    for (int i = 0; i < 4; i++)
      if (i < many) store_float(y.data, y.type, at + i, v[i]);
  } else if (y.type == Type::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(y.data) + at) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
    const bool brain = y.type == Type::bf16;
    const u32 low = brain ? Number<bf16>::pack(v[0], v[1]) : Number<f16>::pack(v[0], v[1]);
    const u32 high = brain ? Number<bf16>::pack(v[2], v[3]) : Number<f16>::pack(v[2], v[3]);
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(y.data) + at) = make_uint2(low, high);
  }
}

}  // namespace cuda
}  // namespace pyllm
