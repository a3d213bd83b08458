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
#include "runtime.h"
#include "skinny_rows.cuh"

namespace pyllm {
namespace cuda {
namespace skinny {

constexpr int kUnitBytes = 64;
constexpr int kColumn = 20;  // floats between two rows of x in a block's sums: 16 outputs, and no bank conflicts

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
  // Staged: the first word of this lane's x. Lanes past the rows read the last one again, for columns that nobody
  // reads.
  const int word = (g < a.m ? g : a.m - 1) * stage.stride + Op::x_at(t, 0) / 2;
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
    if constexpr (Staged) {
      stage.load(word + unit * (kUnit / 2) + Op::x_at(0, step) / 2, x);
    } else {
      const int k = unit * kUnit + Op::x_at(t, step), row = min(8 * column + g, a.m - 1);
      if ((unit + 1) * kUnit <= int(a.w.k)) load_eight<X>(a.x, row, k, x);
      else load_rest<X>(a.x, row, k, int(a.w.k), x);
    }
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
constexpr int kRoom = Staged                                                 ? Op::kBlocks
                      : Op::X::kPlanes == 1 && R* C <= (Op::kGroups ? 4 : 8) ? 2
                                                                             : 1;

template <class Op, int R, int C, bool Staged>
__global__ void __launch_bounds__(kThreads, (kRoom<Op, R, C, Staged>)) skinny_kernel(LinearArgs a) {
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
