// Weights of the skinny matmul, format by format: what a lane loads of them, and how that becomes fragments of an mma.
#pragma once
#include "code_pairs.cuh"
#include "launch.h"

namespace pyllm {
namespace cuda {
namespace skinny {

// What x is multiplied as: one 16-bit number, or (float32) the sum of two.
template <class T>
struct Half {
  using Element = T;
  static constexpr int kPlanes = 1;
  static __device__ __forceinline__ void pack(float a, float b, u32 (&out)[1]) { out[0] = Number<T>::pack(a, b); }
};
struct Split {
  using Element = bf16;
  static constexpr int kPlanes = 2;
  static __device__ __forceinline__ void pack(float a, float b, u32 (&out)[2]) {
    out[0] = Number<bf16>::pack(a, b);
    const float2 high = Number<bf16>::unpack(out[0]);
    out[1] = Number<bf16>::pack(a - high.x, b - high.y);
  }
};

// 8 consecutive elements of a row of x: pairs [plane][4].
template <class X>
struct Eight {
  u32 pairs[X::kPlanes][4];
};

// Weights of bf16 or f16. kDepth: units a warp has on their way where registers allow; kBlocks: blocks of a
// multiprocessor where x is staged, which share the tiles.
template <class T>
struct Floats {
  using X = Half<T>;
  static constexpr int kSteps = 1, kPieces = 2, kDepth = 4, kBlocks = 3;
  static constexpr int kPad = 16;  // words between rows of x in shared memory beside its own: no bank conflicts
  struct Unit {
    uint4 low, high;  // rows g, g + 8
  };
  static __device__ __forceinline__ int x_at(int t, int) { return 8 * t; }
  static __device__ __forceinline__ void load_more(Unit&, const Matrix&, int64_t, int64_t) {}
  static __device__ __forceinline__ void decode(const Unit& unit, int, u32 (&a)[2][4]) {
    a[0][0] = unit.low.x, a[0][1] = unit.high.x, a[0][2] = unit.low.y, a[0][3] = unit.high.y;
    a[1][0] = unit.low.z, a[1][1] = unit.high.z, a[1][2] = unit.low.w, a[1][3] = unit.high.w;
  }
  static constexpr bool kGroups = false, kRowScales = false;
};

__device__ __forceinline__ u32 word_of(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

template <class T>
struct Int8 {
  using X = T;
  using Codes = CodePair<typename T::Element>;
  static constexpr int kSteps = 2, kPieces = 1, kDepth = 4, kBlocks = T::kPlanes == 1 ? 3 : 2;
  static constexpr int kPad = 4;
  struct Unit {
    uint4 low, high;
  };
  static __device__ __forceinline__ int x_at(int t, int step) { return 16 * t + 8 * step; }
  static __device__ __forceinline__ void load_more(Unit&, const Matrix&, int64_t, int64_t) {}
  static __device__ __forceinline__ void decode(const Unit& unit, int step, u32 (&a)[2][4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 low = word_of(unit.low, 2 * step + i), high = word_of(unit.high, 2 * step + i);
      a[i][0] = Codes::of_bytes(spread_bytes<0>(low)), a[i][1] = Codes::of_bytes(spread_bytes<0>(high));
      a[i][2] = Codes::of_bytes(spread_bytes<2>(low)), a[i][3] = Codes::of_bytes(spread_bytes<2>(high));
    }
  }
  static constexpr bool kGroups = false, kRowScales = true;
};

// A step lies within one group. Groups of 128 are taken as four of 32 with one scale.
template <class T>
struct Int4 {
  using X = T;
  using Codes = CodePair<typename T::Element>;
  static constexpr int kSteps = 4, kPieces = 1, kDepth = 3, kBlocks = 2;
  static constexpr int kPad = 16;
  struct Unit {
    uint4 low, high;
    uint2 low_scales, high_scales;  // four of half
    u32 low_zeros, high_zeros;      // four bytes
  };
  static __device__ __forceinline__ int x_at(int t, int step) { return 32 * step + 8 * t; }
  // Of rows `row` and `row` + 8. 32 bits count groups: there are fewer than 2^31, and addresses then take one
  // instruction each.
  static __device__ __forceinline__ void load_more(Unit& unit, const Matrix& w, int64_t row, int64_t number) {
    const uint16_t* scales = static_cast<const uint16_t*>(w.scales);
    unit.low_zeros = unit.high_zeros = 0x08080808u;
    if (group_of(w.format) == 32) {
      const u32 groups = u32(w.ld) / 32, low = u32(row) * groups + 4 * u32(number), high = low + 8 * groups;
      unit.low_scales = *reinterpret_cast<const uint2*>(scales + low);
      unit.high_scales = *reinterpret_cast<const uint2*>(scales + high);
      if (w.zeros) {
        unit.low_zeros = *reinterpret_cast<const u32*>(w.zeros + low);
        unit.high_zeros = *reinterpret_cast<const u32*>(w.zeros + high);
      }
    } else {
      const u32 groups = u32(w.ld) / 128, low = u32(row) * groups + u32(number), high = low + 8 * groups;
      unit.low_scales.x = unit.low_scales.y = 0x10001u * scales[low];
      unit.high_scales.x = unit.high_scales.y = 0x10001u * scales[high];
      if (w.zeros) {
        unit.low_zeros = 0x01010101u * w.zeros[low];
        unit.high_zeros = 0x01010101u * w.zeros[high];
      }
    }
  }
  static __device__ __forceinline__ void decode(const Unit& unit, int step, u32 (&a)[2][4]) {
    const u32 low = word_of(unit.low, step), high = word_of(unit.high, step);
    const u32 low_zero = Codes::minus_zero(unit.low_zeros, step);
    const u32 high_zero = Codes::minus_zero(unit.high_zeros, step);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      a[i][0] = Codes::of_nibbles(low >> 8 * i, low_zero), a[i][1] = Codes::of_nibbles(high >> 8 * i, high_zero);
      a[i][2] = Codes::of_nibbles(low >> (8 * i + 4), low_zero),
      a[i][3] = Codes::of_nibbles(high >> (8 * i + 4), high_zero);
    }
  }
  static __device__ __forceinline__ float scale_of(const uint2& scales, int step) {
    const float2 both = Number<f16>::unpack(step < 2 ? scales.x : scales.y);
    return step % 2 ? both.y : both.x;
  }
  static __device__ __forceinline__ void add(float (&acc)[4], const float (&sum)[4], const Unit& unit, int step) {
    const float low = scale_of(unit.low_scales, step), high = scale_of(unit.high_scales, step);
    acc[0] = fmaf(low, sum[0], acc[0]), acc[1] = fmaf(low, sum[1], acc[1]);
    acc[2] = fmaf(high, sum[2], acc[2]), acc[3] = fmaf(high, sum[3], acc[3]);
  }
  static constexpr bool kGroups = true, kRowScales = false;
};

}  // namespace skinny
}  // namespace cuda
}  // namespace pyllm
