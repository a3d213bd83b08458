// Reading and writing rows of any element type by 4 and by 8 columns: what the kernels over rows share. Rows of views
// begin on 16 bytes and have room for a multiple of 64 columns, so whole pieces may be read and written past the last
// column; vectors of weights have no such room.
#pragma once
#include "device.cuh"
#include "launch.h"

namespace pyllm {
namespace cuda {
namespace {

__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
__device__ __forceinline__ float f16_low(uint32_t pair) { return __half2float(__ushort_as_half(uint16_t(pair))); }
__device__ __forceinline__ float f16_high(uint32_t pair) { return f16_low(pair >> 16); }
__device__ __forceinline__ uint16_t to_bf16(float v) { return __bfloat16_as_ushort(__float2bfloat16(v)); }
__device__ __forceinline__ uint16_t to_f16(float v) { return __half_as_ushort(__float2half(v)); }
template <Type T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  if (T == Type::bf16) return to_bf16(low) | uint32_t(to_bf16(high)) << 16;
  return to_f16(low) | uint32_t(to_f16(high)) << 16;
}

// Elements at .. at + 3, `at` a multiple of 4.
template <Type T>
__device__ __forceinline__ void load4(const void* data, int64_t at, float (&v)[4]) {
  if (T == Type::f32) {
    const float4 q = *reinterpret_cast<const float4*>(static_cast<const float*>(data) + at);
    v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
  } else {
    const uint2 q = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(data) + at);
    v[0] = T == Type::bf16 ? bf16_low(q.x) : f16_low(q.x), v[1] = T == Type::bf16 ? bf16_high(q.x) : f16_high(q.x);
    v[2] = T == Type::bf16 ? bf16_low(q.y) : f16_low(q.y), v[3] = T == Type::bf16 ? bf16_high(q.y) : f16_high(q.y);
  }
}
template <Type T>
__device__ __forceinline__ void store4(void* data, int64_t at, const float (&v)[4]) {
  if (T == Type::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(data) + at) = make_float4(v[0], v[1], v[2], v[3]);
  } else {
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(data) + at) =
        make_uint2(pack_pair<T>(v[0], v[1]), pack_pair<T>(v[2], v[3]));
  }
}
// The same with the type looked up: one branch that all threads take alike.
__device__ __forceinline__ void load4(const View& x, int64_t at, float (&v)[4]) {
  if (x.type == Type::f32) load4<Type::f32>(x.data, at, v);
  else if (x.type == Type::bf16) load4<Type::bf16>(x.data, at, v);
  else load4<Type::f16>(x.data, at, v);
}
__device__ __forceinline__ void store4(const View& y, int64_t at, const float (&v)[4]) {
  if (y.type == Type::f32) store4<Type::f32>(y.data, at, v);
  else if (y.type == Type::bf16) store4<Type::bf16>(y.data, at, v);
  else store4<Type::f16>(y.data, at, v);
}
__device__ __forceinline__ float load1(const View& x, int64_t at) {
  if (x.type == Type::f32) return static_cast<const float*>(x.data)[at];
  const uint32_t bits = static_cast<const uint16_t*>(x.data)[at];
  return x.type == Type::bf16 ? bf16_low(bits) : f16_low(bits);
}
__device__ __forceinline__ void store1(const View& y, int64_t at, float v) {
  if (y.type == Type::f32) static_cast<float*>(y.data)[at] = v;
  else if (y.type == Type::bf16) static_cast<uint16_t*>(y.data)[at] = to_bf16(v);
  else static_cast<uint16_t*>(y.data)[at] = to_f16(v);
}
// Columns at .. at + 3 of a dense vector of n floats on 16 bytes; what lies past it is 0.
__device__ __forceinline__ void load4_of(const float* x, int64_t at, int64_t n, float (&v)[4]) {
  if (at + 4 <= n) return load4<Type::f32>(x, at, v);
  for (int i = 0; i < 4; ++i) v[i] = at + i < n ? x[at + i] : 0.0f;
}

}  // namespace
}  // namespace cuda
}  // namespace pyllm
