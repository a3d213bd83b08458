// CUDA's vector and 16-bit types for g++, with the names, sizes and alignments that nvcc's headers give them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "convert.h"

namespace pyllm {
namespace emu {
template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
// Nearest, ties to even, denormals kept, as on a GPU.
inline uint16_t to_bf16(float value) {
  const uint32_t u = bits<uint32_t>(value);
  if (value != value) return 0x7fff;
  return uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
}  // namespace emu
}  // namespace pyllm

#define PYLLM_EMU_VECTORS(T, name, a1, a2, a4)                       \
  struct alignas(a1) name##1 {                                       \
    T x;                                                             \
  };                                                                 \
  struct alignas(a2) name##2 {                                       \
    T x, y;                                                          \
  };                                                                 \
  struct name##3 {                                                   \
    T x, y, z;                                                       \
  };                                                                 \
  struct alignas(a4) name##4 {                                       \
    T x, y, z, w;                                                    \
  };                                                                 \
  inline name##1 make_##name##1(T x) { return {x}; }                 \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }         \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
PYLLM_EMU_VECTORS(signed char, char, 1, 2, 4)
PYLLM_EMU_VECTORS(unsigned char, uchar, 1, 2, 4)
PYLLM_EMU_VECTORS(short, short, 2, 4, 8)
PYLLM_EMU_VECTORS(unsigned short, ushort, 2, 4, 8)
PYLLM_EMU_VECTORS(int, int, 4, 8, 16)
PYLLM_EMU_VECTORS(unsigned, uint, 4, 8, 16)
PYLLM_EMU_VECTORS(float, float, 4, 8, 16)
PYLLM_EMU_VECTORS(long long, longlong, 8, 16, 16)
PYLLM_EMU_VECTORS(unsigned long long, ulonglong, 8, 16, 16)
PYLLM_EMU_VECTORS(double, double, 8, 16, 16)
#undef PYLLM_EMU_VECTORS

// A 16-bit number H, and the pair P of it, with the operations that kernels use. Sums and products are computed in
// float and rounded once; so is fma.
#define PYLLM_EMU_HALVES(H, P, to_bits, of_bits)                                             \
  struct H {                                                                                 \
    uint16_t raw;                                                                            \
    H() = default;                                                                           \
    H(float v) : raw(to_bits(v)) {}                                                          \
    operator float() const { return of_bits(raw); }                                          \
  };                                                                                         \
  struct alignas(4) P {                                                                      \
    H x, y;                                                                                  \
    P() = default;                                                                           \
    P(H a, H b) : x(a), y(b) {}                                                              \
  };                                                                                         \
  inline H __hadd(H a, H b) { return H(float(a) + float(b)); }                               \
  inline H __hsub(H a, H b) { return H(float(a) - float(b)); }                               \
  inline H __hmul(H a, H b) { return H(float(a) * float(b)); }                               \
  inline H __hfma(H a, H b, H c) { return H(std::fma(float(a), float(b), float(c))); }       \
  inline H __hmax(H a, H b) { return H(std::fmax(float(a), float(b))); }                     \
  inline H __hmin(H a, H b) { return H(std::fmin(float(a), float(b))); }                     \
  inline H __hneg(H a) { return H(-float(a)); }                                              \
  inline P __hadd2(P a, P b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }                \
  inline P __hsub2(P a, P b) { return {__hsub(a.x, b.x), __hsub(a.y, b.y)}; }                \
  inline P __hmul2(P a, P b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }                \
  inline P __hfma2(P a, P b, P c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
  inline P __hmax2(P a, P b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }                \
  inline float __low2float(P a) { return float(a.x); }                                       \
  inline float __high2float(P a) { return float(a.y); }
PYLLM_EMU_HALVES(__half, __half2, ::pyllm::f16_of_float, ::pyllm::float_of_f16)
PYLLM_EMU_HALVES(__nv_bfloat16, __nv_bfloat162, ::pyllm::emu::to_bf16, ::pyllm::float_of_bf16)
#undef PYLLM_EMU_HALVES
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __half2float(__half h) { return float(h); }
inline __half __float2half(float f) { return __half(f); }
inline __half __float2half_rn(float f) { return __half(f); }
inline __half2 __floats2half2_rn(float a, float b) { return {__half(a), __half(b)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline __half2 __float2half2_rn(float v) { return {__half(v), __half(v)}; }
inline __half2 __half2half2(__half v) { return {v, v}; }
inline __half2 __halves2half2(__half a, __half b) { return {a, b}; }
inline float2 __half22float2(__half2 v) { return {float(v.x), float(v.y)}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline unsigned short __half_as_ushort(__half h) { return h.raw; }
inline __half __ushort_as_half(unsigned short u) { return pyllm::emu::bits<__half>(uint16_t(u)); }
inline __half __int2half_rn(int v) { return __half(float(v)); }

inline float __bfloat162float(__nv_bfloat16 h) { return float(h); }
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__nv_bfloat16(a), __nv_bfloat16(b)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)}; }
inline __nv_bfloat162 __float2bfloat162_rn(float v) { return {__nv_bfloat16(v), __nv_bfloat16(v)}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 v) { return {v, v}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 a, __nv_bfloat16 b) { return {a, b}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {float(v.x), float(v.y)}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h) { return h.raw; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return pyllm::emu::bits<__nv_bfloat16>(uint16_t(u)); }
