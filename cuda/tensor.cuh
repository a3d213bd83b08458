// Thin wrappers over sm_80's instructions for tensor cores and asynchronous copies, and over 16-bit pairs. Kernels use
// these and never inline PTX, so that the emulation runs them too.
#pragma once
#include "device.cuh"

namespace pyllm {
namespace cuda {

using u32 = unsigned int;
using bf16 = __nv_bfloat16;
using f16 = __half;

// cp.async of 16 bytes (past L1), or 4 or 8; both addresses are multiples of that. Of `valid` bytes the rest is zeros;
// with 0 the source is not read.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, int valid = 16) {
#if defined(PYLLM_CUDA_EMU)
  emu::copy_async(shared, global, 16, unsigned(valid));
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(u32(__cvta_generic_to_shared(shared))),
               "l"(global), "r"(valid)
               : "memory");
#endif
}
template <int Bytes>
__device__ __forceinline__ void cp_async(void* shared, const void* global, int valid = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8, "16: cp_async16");
#if defined(PYLLM_CUDA_EMU)
  emu::copy_async(shared, global, Bytes, unsigned(valid));
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(u32(__cvta_generic_to_shared(shared))),
               "l"(global), "n"(Bytes), "r"(valid)
               : "memory");
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#if defined(PYLLM_CUDA_EMU)
  emu::copy_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until at most `Left` of this thread's groups are under way. Other threads see the bytes after a barrier.
template <int Left>
__device__ __forceinline__ void cp_async_wait() {
#if defined(PYLLM_CUDA_EMU)
  emu::copy_wait(Left);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
#endif
}

// Matrices of 8 x 8 elements of 16 bits from shared memory; lanes 8 i .. 8 i + 7 pass the rows (16 bytes each) of
// matrix i. Lane l gets of each matrix elements (l / 4, 2 (l % 4)) and the next; transposed: (2 (l % 4), l / 4) and the
// one below.
__device__ __forceinline__ void ldmatrix4(u32 (&r)[4], const void* row) {
#if defined(PYLLM_CUDA_EMU)
  emu::load_matrix<4, false>(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(u32(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}
__device__ __forceinline__ void ldmatrix4_trans(u32 (&r)[4], const void* row) {
#if defined(PYLLM_CUDA_EMU)
  emu::load_matrix<4, true>(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(u32(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}
// Two matrices: lanes 0 .. 15 pass rows; the others any valid row.
__device__ __forceinline__ void ldmatrix2(u32 (&r)[2], const void* row) {
#if defined(PYLLM_CUDA_EMU)
  emu::load_matrix<2, false>(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(u32(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}
__device__ __forceinline__ void ldmatrix2_trans(u32 (&r)[2], const void* row) {
#if defined(PYLLM_CUDA_EMU)
  emu::load_matrix<2, true>(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(u32(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

// c[16 x 8] += a[16 x 16] b[16 x 8], float sums. Lane l = 4 g + t holds of a rows g (a[0], a[2]) and g + 8 (a[1],
// a[3]), columns 2 t, 2 t + 1 (a[0], a[1]) and those plus 8; of b column g, rows 2 t, 2 t + 1 (b0) and those plus 8
// (b1); of c rows g (c[0], c[1]) and g + 8 (c[2], c[3]), columns 2 t and 2 t + 1.
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(PYLLM_CUDA_EMU)
  emu::multiply<bf16>(c, a, b0, b1);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
__device__ __forceinline__ void mma_f16(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
#if defined(PYLLM_CUDA_EMU)
  emu::multiply<f16>(c, a, b0, b1);
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Two 16-bit numbers in a register: the first in the low half.
template <class To, class From>
__device__ __forceinline__ To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  return *reinterpret_cast<const To*>(&from);
}
// For templates over the type: T = bf16, f16, float.
template <class T>
struct Number;
template <>
struct Number<float> {
  static __device__ __forceinline__ float to(float v) { return v; }
  static __device__ __forceinline__ float from(float v) { return v; }
};
template <>
struct Number<bf16> {
  using Pair = __nv_bfloat162;
  static __device__ __forceinline__ float to(bf16 v) { return __bfloat162float(v); }
  static __device__ __forceinline__ bf16 from(float v) { return __float2bfloat16_rn(v); }
  static __device__ __forceinline__ u32 pack(float low, float high) {
    return as<u32>(__floats2bfloat162_rn(low, high));
  }
  static __device__ __forceinline__ float2 unpack(u32 v) {
    return make_float2(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
  }
  static __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_bf16(c, a, b0, b1);
  }
};
template <>
struct Number<f16> {
  using Pair = __half2;
  static __device__ __forceinline__ float to(f16 v) { return __half2float(v); }
  static __device__ __forceinline__ f16 from(float v) { return __float2half_rn(v); }
  static __device__ __forceinline__ u32 pack(float low, float high) { return as<u32>(__floats2half2_rn(low, high)); }
  static __device__ __forceinline__ float2 unpack(u32 v) { return __half22float2(as<__half2>(v)); }
  static __device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_f16(c, a, b0, b1);
  }
};
template <class T>
__device__ __forceinline__ float to_float(T v) {
  return Number<T>::to(v);
}
template <class T>
__device__ __forceinline__ T from_float(float v) {
  return Number<T>::from(v);
}
// Elementwise on pairs in registers, each result rounded once.
template <class T>
__device__ __forceinline__ u32 add2(u32 a, u32 b) {
  using P = typename Number<T>::Pair;
  return as<u32>(__hadd2(as<P>(a), as<P>(b)));
}
template <class T>
__device__ __forceinline__ u32 sub2(u32 a, u32 b) {
  using P = typename Number<T>::Pair;
  return as<u32>(__hsub2(as<P>(a), as<P>(b)));
}
template <class T>
__device__ __forceinline__ u32 mul2(u32 a, u32 b) {
  using P = typename Number<T>::Pair;
  return as<u32>(__hmul2(as<P>(a), as<P>(b)));
}
template <class T>
__device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
  using P = typename Number<T>::Pair;
  return as<u32>(__hfma2(as<P>(a), as<P>(b), as<P>(c)));
}

// (a & b) | c and (a ^ b) | c as one instruction: of two constants the compiler makes two.
__device__ __forceinline__ u32 and_or(u32 a, u32 b, u32 c) {
#if defined(PYLLM_CUDA_EMU)
  return (a & b) | c;
#else
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#endif
}
__device__ __forceinline__ u32 xor_or(u32 a, u32 b, u32 c) {
#if defined(PYLLM_CUDA_EMU)
  return (a ^ b) | c;
#else
  u32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xbe;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
#endif
}

// 2^x, within 2 units in the last place; results below 2^-126 are 0.
__device__ __forceinline__ float fast_exp2(float x) {
#if defined(PYLLM_CUDA_EMU)
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// 16 bytes of weights: read once, so not kept in L1; on 16 bytes.
__device__ __forceinline__ uint4 load_once16(const void* p) {
#if defined(PYLLM_CUDA_EMU)
  return *static_cast<const uint4*>(p);
#else
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
#endif
}

}  // namespace cuda
}  // namespace pyllm
