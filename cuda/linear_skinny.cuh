// The skinny matmul: up to 64 rows of x, weights as the 16-row operand of mma.m16n8k16. Included by one source for each
// format, which instantiates it.
//
// A dot product does not care about the order of its k, so weights go from memory to registers as they lie, and x is
// fetched to match: of 64 bytes of a weight row, a unit, lane (g, t) = (lane / 4, lane % 4) takes 16 bytes at 16 t of
// row g and of row g + 8. A unit is 1, 2 or 4 steps of 32 k: in a step a lane has 8 k, of which elements 0..3 are its
// part of one mma and 4..7 of a second.
//
// A block's 8 warps share K: chunk c (kPieces units) is that of warp c % 8, ascending; the warps' sums are added in
// order. So an output's sum has one order, whatever the rows, tiles and blocks.
#pragma once
#include "linear_finish.cuh"
#include "linear_parts.h"
#include "norm_rows.cuh"
#include "runtime.h"

namespace pyllm {
namespace cuda {
namespace skinny {

constexpr int kWarps = 8, kThreads = 32 * kWarps;
constexpr int kUnitBytes = 64;
constexpr int kColumn = 20;  // floats between two rows of x in a block's sums: 16 outputs, and no bank conflicts

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
  static __device__ __forceinline__ void load_row(const Matrix& w, int64_t row, int64_t unit, uint2& scales,
                                                  u32& zeros) {
    zeros = 0x08080808u;
    if (group_of(w.format) == 32) {
      const int64_t at = row * (w.ld / 32) + 4 * unit;
      scales = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(w.scales) + at);
      if (w.zeros) zeros = *reinterpret_cast<const u32*>(w.zeros + at);
    } else {
      const int64_t at = row * (w.ld / 128) + unit;
      const u32 scale = static_cast<const uint16_t*>(w.scales)[at];
      scales.x = scales.y = scale | scale << 16;
      if (w.zeros) zeros = w.zeros[at] * 0x01010101u;
    }
  }
  static __device__ __forceinline__ void load_more(Unit& unit, const Matrix& w, int64_t row, int64_t number) {
    load_row(w, row, number, unit.low_scales, unit.low_zeros);
    load_row(w, row + 8, number, unit.high_scales, unit.high_zeros);
  }
  static __device__ __forceinline__ void decode(const Unit& unit, int step, u32 (&a)[2][4]) {
    const u32 low = word_of(unit.low, step), high = word_of(unit.high, step);
    const u32 low_zero = Codes::minus_zero(unit.low_zeros >> 8 * step & 0xffu);
    const u32 high_zero = Codes::minus_zero(unit.high_zeros >> 8 * step & 0xffu);
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

// Elements from k on, of the 8 beginning at `at`, become 0: what lies past a row's columns is undefined.
__device__ __forceinline__ void cut(u32 (&pairs)[4], int64_t left) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    if (left < 2 * i + 2) pairs[i] = left > 2 * i ? pairs[i] & 0xffffu : 0u;
}

template <class X>
__device__ __forceinline__ void load_eight(const View& x, int64_t row, int64_t at, int64_t k, Eight<X>& out) {
  if (x.type == Type::f32) {
    const float4* from = reinterpret_cast<const float4*>(static_cast<const float*>(x.data) + row * x.ld + at);
    const float4 a = from[0], b = from[1];
    const float v[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      u32 planes[X::kPlanes];
      X::pack(v[2 * i], v[2 * i + 1], planes);
#pragma unroll
      for (int p = 0; p < X::kPlanes; ++p) out.pairs[p][i] = planes[p];
    }
  } else {
    const uint4 v = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(x.data) + row * x.ld + at);
    out.pairs[0][0] = v.x, out.pairs[0][1] = v.y, out.pairs[0][2] = v.z, out.pairs[0][3] = v.w;
  }
  if (at + 8 > k) {
#pragma unroll
    for (int p = 0; p < X::kPlanes; ++p) cut(out.pairs[p], k - at);
  }
}

// x of up to 8 rows in shared memory: [plane][row][words of a row], zeros from k on to ld.
template <class Op>
struct Stage {
  using X = typename Op::X;
  u32* words;
  int rows, stride;

  static __host__ __device__ __forceinline__ int stride_of(int64_t ld) { return int(ld / 2) + Op::kPad; }
  static size_t bytes(int rows, int64_t ld) { return size_t(X::kPlanes) * rows * stride_of(ld) * 4; }

  __device__ __forceinline__ u32* at(int plane, int row, int64_t k) const {
    return words + (int64_t(plane) * rows + row) * stride + k / 2;
  }
  __device__ __forceinline__ void fill(const LinearArgs& a, float* parts) const {
    if (a.norm.kind != NormKind::none) {
      normalised_rows(a.x, a.m, a.w.k, a.w.ld, a.norm, parts, [this](int row, int64_t k, const float(&y)[4]) {
        u32 first[X::kPlanes], second[X::kPlanes];
        X::pack(y[0], y[1], first);
        X::pack(y[2], y[3], second);
#pragma unroll
        for (int p = 0; p < X::kPlanes; ++p) *reinterpret_cast<uint2*>(at(p, row, k)) = make_uint2(first[p], second[p]);
      });
      return;
    }
    const int eights = int(a.w.ld / 8);
    for (int i = int(threadIdx.x); i < eights * a.m; i += kThreads) {
      const int row = i / eights;
      const int64_t k = int64_t(i % eights) * 8;
      Eight<X> v = {};
      if (k < a.w.k) load_eight<X>(a.x, row, k, a.w.k, v);
#pragma unroll
      for (int p = 0; p < X::kPlanes; ++p)
        *reinterpret_cast<uint4*>(at(p, row, k)) =
            make_uint4(v.pairs[p][0], v.pairs[p][1], v.pairs[p][2], v.pairs[p][3]);
    }
  }
  __device__ __forceinline__ void load(int row, int64_t k, Eight<X>& out) const {
#pragma unroll
    for (int p = 0; p < X::kPlanes; ++p) {
      const uint4 v = *reinterpret_cast<const uint4*>(at(p, row, k));
      out.pairs[p][0] = v.x, out.pairs[p][1] = v.y, out.pairs[p][2] = v.z, out.pairs[p][3] = v.w;
    }
  }
};

// Adds the warps' sums of a tile in warp order and finishes them. sums: [warp][8 C rows of x][kColumn].
template <class Op, int C>
__device__ __forceinline__ void reduce(const LinearArgs& a, int64_t tile, const float (&acc)[C][4], float* sums) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, g = lane / 4, t = lane % 4;
  constexpr int kWarp = 8 * C * kColumn;
  __syncthreads();  // the sums of the tile before may still be read
#pragma unroll
  for (int c = 0; c < C; ++c)
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[warp * kWarp + (8 * c + 2 * t + i % 2) * kColumn + g + i / 2 * 8] = acc[c][i];
  __syncthreads();
  for (int i = int(threadIdx.x); i < 64 * C && i / 8 < a.m; i += kThreads) {
    const float* from = sums + i / 8 * kColumn + i % 8;
    float low = from[0], high = from[8];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) low += from[w * kWarp], high += from[w * kWarp + 8];
    finish_two<Op::kRowScales>(a, tile, i % 8, i / 8, low, high);
  }
}

// R tiles of 16 outputs times up to 8 C rows. Staged: x lies in shared memory, and a block takes several groups of
// tiles.
template <class Op, int R, int C, bool Staged>
struct Multiply {
  using X = typename Op::X;
  using Unit = typename Op::Unit;
  static constexpr int kDepth = R == 1 && (C == 1 || !Op::kGroups) ? Op::kDepth : 2;  // units on their way
  static constexpr int kUnit = 32 * Op::kSteps;
  static constexpr int kTogether = R == 4 ? C / 2 : C;  // columns whose x is fetched before they are multiplied
  const LinearArgs& a;
  const Stage<Op>& stage;
  const int g = int(threadIdx.x) % 32 / 4, t = int(threadIdx.x) % 4, warp = int(threadIdx.x) / 32;
  const int units = int(a.w.ld / kUnit);
  const int64_t tiles = (a.w.n + 15) / 16;
  const int64_t eight = int64_t(units) * (8 * kUnitBytes);  // bytes from row g to row g + 8
  Unit w[kDepth][R];
  int64_t first;        // this lane's row g of the first tile
  const uint8_t* from;  // its first bytes there

  __device__ __forceinline__ Multiply(const LinearArgs& args, const Stage<Op>& staged) : a(args), stage(staged) {}

  // The first tile of a group; the last group shares tiles with the one before, so that it has R too.
  __device__ __forceinline__ int64_t tile_of(int64_t group) const {
    return group * R + R <= tiles ? group * R : tiles - R;
  }
  // Takes a group of tiles: its first loads are on their way.
  __device__ __forceinline__ void begin(int64_t group) {
    first = 16 * tile_of(group) + g;
    from = static_cast<const uint8_t*>(a.w.codes) + first * units * kUnitBytes + 16 * t;
#pragma unroll
    for (int i = 0; i < kDepth; ++i) load(w[i], unit_of(i));
  }
  // Number s of this warp's units.
  __device__ __forceinline__ int unit_of(int s) const {
    return (s / Op::kPieces * kWarps + warp) * Op::kPieces + s % Op::kPieces;
  }
  __device__ __forceinline__ void load(Unit (&into)[R], int unit) const {
    if (unit >= units) return;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      into[r].low = load_once16(from + unit * kUnitBytes + 2 * r * eight);
      into[r].high = load_once16(from + unit * kUnitBytes + (2 * r + 1) * eight);
      Op::load_more(into[r], a.w, first + 16 * r, unit);
    }
  }
  __device__ __forceinline__ void load_x(int unit, int step, int column, Eight<X>& x) const {
    const int64_t k = int64_t(unit) * kUnit + Op::x_at(t, step);
    const int row = 8 * column + g;
    x = {};
    if (row >= a.m) return;
    if (Staged) stage.load(row, k, x);
    else if (k < a.w.k) load_eight<X>(a.x, row, k, a.w.k, x);
  }
  __device__ __forceinline__ void run(float (&acc)[R][C][4]) {
    for (int s = 0; unit_of(s) < units; s += kDepth) {
#pragma unroll
      for (int i = 0; i < kDepth; ++i) {
        const int unit = unit_of(s + i);
        if (unit < units) multiply(w[i], unit, acc);
        load(w[i], unit_of(s + i + kDepth));
      }
    }
  }
  __device__ __forceinline__ void multiply(const Unit (&w)[R], int unit, float (&acc)[R][C][4]) const {
    // With many columns or planes one step after the other, or the compiler fetches x of all of them first: too many
    // registers.
#pragma unroll(R* C < 4 && X::kPlanes == 1 ? Op::kSteps : 1)
    for (int step = 0; step < Op::kSteps; ++step) {
#pragma unroll
      for (int begin = 0; begin < C; begin += kTogether) {
        Eight<X> x[kTogether];
#pragma unroll
        for (int c = 0; c < kTogether; ++c) load_x(unit, step, begin + c, x[c]);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          u32 fragments[2][4];
          Op::decode(w[r], step, fragments);
#pragma unroll
          for (int c = 0; c < kTogether; ++c) {
            float own[4] = {};
            float(&sum)[4] = Op::kGroups ? own : acc[r][begin + c];
#pragma unroll
            for (int p = 0; p < X::kPlanes; ++p) {
              Number<typename X::Element>::mma(sum, fragments[0], x[c].pairs[p][0], x[c].pairs[p][1]);
              Number<typename X::Element>::mma(sum, fragments[1], x[c].pairs[p][2], x[c].pairs[p][3]);
            }
            if constexpr (Op::kGroups) Op::add(acc[r][begin + c], own, w[r], step);
          }
        }
      }
    }
  }
};

// Blocks that registers must leave room for: one has too few bytes on their way.
template <class Op, int R, int C, bool Staged>
constexpr int blocks_of() {
  if (Staged) return Op::kBlocks;
  return Op::X::kPlanes == 1 && R * C <= (Op::kGroups ? 4 : 8) ? 2 : 1;
}

template <class Op, int R, int C, bool Staged>
__global__ void __launch_bounds__(kThreads, (blocks_of<Op, R, C, Staged>())) skinny_kernel(LinearArgs a) {
  PYLLM_DYN_SHARED(float, shared);
  float* sums = shared;
  using Work = Multiply<Op, R, C, Staged>;
  const Stage<Op> stage = {reinterpret_cast<u32*>(shared + kWarps * 8 * C * kColumn), a.m,
                           Stage<Op>::stride_of(a.w.ld)};
  Work work(a, stage);
  int64_t group = blockIdx.x;
  let_next_begin();
  work.begin(group);
  wait_for_previous();  // weights were there before
  if (Staged) {
    stage.fill(a, sums);
    __syncthreads();
  }
  for (;;) {
    float acc[R][C][4] = {};
    work.run(acc);
    const int64_t done = group;
    group += gridDim.x;
    const bool more = Staged && group * R < work.tiles;
    if (more) work.begin(group);
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (work.tile_of(done) + r >= done * R) reduce<Op, C>(a, work.tile_of(done) + r, acc[r], sums);
    if (!more) return;
  }
}

// Most shared memory that x may take: with their sums, two blocks fit an A100.
constexpr size_t kStageBytes = 72 * 1024;

template <class Op, int R, int C, bool Staged>
void launch(const LinearArgs& a, int multiprocessors, Stream stream) {
  const int64_t groups = ((a.w.n + 15) / 16 + R - 1) / R;
  size_t bytes = kWarps * 8 * C * kColumn * sizeof(float);
  int64_t grid = groups;
  if (Staged) {
    bytes += Stage<Op>::bytes(a.m, a.w.ld);
    const int64_t fit = int64_t(shared_memory_limit() / bytes), most = Op::kBlocks,
                  blocks = fit < 1      ? 1
                           : fit < most ? fit
                                        : most;
    if (grid > blocks * multiprocessors) grid = blocks * multiprocessors;
  }
  const auto kernel = skinny_kernel<Op, R, C, Staged>;
  if (has_compute(9, 0)) {
    PYLLM_LAUNCH_OVERLAPPED(kernel, dim3(unsigned(grid)), dim3(kThreads), bytes, stream, a);
  } else {
    PYLLM_LAUNCH(kernel, dim3(unsigned(grid)), dim3(kThreads), bytes, stream, a);
  }
}

// As many tiles a block as leave every multiprocessor one.
template <class Op, int C, int Most>
void launch_columns(const LinearArgs& a, int multiprocessors, Stream stream) {
  const int64_t tiles = (a.w.n + 15) / 16;
  if (Most >= 4 && tiles >= 4 * multiprocessors) launch<Op, Most >= 4 ? 4 : 1, C, false>(a, multiprocessors, stream);
  else if (Most >= 2 && tiles >= 2 * multiprocessors)
    launch<Op, Most >= 2 ? 2 : 1, C, false>(a, multiprocessors, stream);
  else launch<Op, 1, C, false>(a, multiprocessors, stream);
}

// Few, Most: tiles of a block at 9 to 32 and at more rows, as registers allow.
template <class Op, int Few, int Most>
void run(const LinearArgs& a, int multiprocessors, Stream stream) {
  if (a.m <= 8 && (a.norm.kind != NormKind::none || Stage<Op>::bytes(a.m, a.w.ld) <= kStageBytes))
    launch<Op, 1, 1, true>(a, multiprocessors, stream);
  else if (a.m <= 16) launch_columns<Op, 2, Few>(a, multiprocessors, stream);
  else if (a.m <= 32) launch_columns<Op, 4, Few>(a, multiprocessors, stream);
  else launch_columns<Op, 8, Most>(a, multiprocessors, stream);
}

}  // namespace skinny
}  // namespace cuda
}  // namespace pyllm
