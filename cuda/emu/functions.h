// CUDA's device functions for g++: bits, arithmetic, memory, atomics.
#pragma once
#include <math.h>

#include <atomic>

#include "fibers.h"
#include "types.h"

inline float __int_as_float(int v) { return pyllm::emu::bits<float>(v); }
inline float __uint_as_float(unsigned v) { return pyllm::emu::bits<float>(v); }
inline int __float_as_int(float v) { return pyllm::emu::bits<int>(v); }
inline unsigned __float_as_uint(float v) { return pyllm::emu::bits<unsigned>(v); }
inline double __longlong_as_double(long long v) { return pyllm::emu::bits<double>(v); }
inline long long __double_as_longlong(double v) { return pyllm::emu::bits<long long>(v); }

inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __clz(int v) { return v ? __builtin_clz(unsigned(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return int((long long)a * b >> 32); }
inline unsigned __brev(unsigned v) {
  unsigned out = 0;
  for (int i = 0; i < 32; i++) out |= (v >> i & 1u) << (31 - i);
  return out;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long bytes = (unsigned long long)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned s = selector >> (4 * i);
    unsigned byte = unsigned(bytes >> (8 * (s & 7u))) & 0xffu;
    if (s & 8u) byte = byte & 0x80u ? 0xffu : 0u;
    out |= byte << (8 * i);
  }
  return out;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned(((unsigned long long)high << 32 | low) >> (shift & 31u));
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += int(int8_t(a >> 8 * i)) * int(int8_t(b >> 8 * i));
  return c;
}

inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline float __frsqrt_rn(float v) { return float(1.0 / std::sqrt(double(v))); }
inline float __expf(float v) { return expf(v); }
inline float __exp10f(float v) { return powf(10.0f, v); }
inline float __logf(float v) { return logf(v); }
inline float __log2f(float v) { return log2f(v); }
inline float __powf(float a, float b) { return powf(a, b); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fsqrt_rn(float v) { return sqrtf(v); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float v) { return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f; }
inline int __float2int_rn(float v) { return int(rintf(v)); }
inline int __float2int_rz(float v) { return int(v); }
inline int __float2int_rd(float v) { return int(floorf(v)); }
inline unsigned __float2uint_rn(float v) { return unsigned(rintf(v)); }
inline float __int2float_rn(int v) { return float(v); }
inline float __uint2float_rn(unsigned v) { return float(v); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}

template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline T __ldcg(const T* p) {
  return *p;
}
template <class T>
inline T __ldca(const T* p) {
  return *p;
}
template <class T>
inline void __stcs(T* p, T v) {
  *p = v;
}
template <class T>
inline void __stcg(T* p, T v) {
  *p = v;
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}
[[noreturn]] inline void __trap() { pyllm::emu::fail("__trap()"); }

namespace pyllm {
namespace emu {
template <class T>
struct Same {  // no deduction from it: atomicAdd(&counter, 1)
  using type = T;
};
template <class T, class F>
inline T replace(T* p, F f) {
  const T old = *p;
  *p = f(old);
  return old;
}
}  // namespace emu
}  // namespace pyllm
#define PYLLM_EMU_ATOMIC(name, expression)                    \
  template <class T>                                          \
  inline T name(T* p, typename pyllm::emu::Same<T>::type v) { \
    return pyllm::emu::replace(p, [v](T old) {                \
      (void)old;                                              \
      return T(expression);                                   \
    });                                                       \
  }
PYLLM_EMU_ATOMIC(atomicAdd, old + v)
PYLLM_EMU_ATOMIC(atomicSub, old - v)
PYLLM_EMU_ATOMIC(atomicMax, old < v ? v : old)
PYLLM_EMU_ATOMIC(atomicMin, v < old ? v : old)
PYLLM_EMU_ATOMIC(atomicAnd, old& v)
PYLLM_EMU_ATOMIC(atomicOr, old | v)
PYLLM_EMU_ATOMIC(atomicXor, old ^ v)
PYLLM_EMU_ATOMIC(atomicExch, v)
PYLLM_EMU_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
#undef PYLLM_EMU_ATOMIC
template <class T>
inline T atomicCAS(T* p, typename pyllm::emu::Same<T>::type expected, typename pyllm::emu::Same<T>::type v) {
  return pyllm::emu::replace(p, [=](T old) { return old == expected ? v : old; });
}
