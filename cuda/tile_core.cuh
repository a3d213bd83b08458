// Tensor-core tiles of y = x W^T. Weights are the 16-row operand of mma.m16n8k16 and rows of x the 8 columns, as in the
// kernel for few rows: gate and up, and a weight row's scale, belong to one lane.
//
// A dot product does not care about the order of k, so no operand is rearranged: over a chunk of 32 k, lane
// (g = lane / 4, t = lane % 4) takes 16 bytes, k0 + 8 t .. + 7, of a row of x and of weight rows g and g + 8; elements
// 0 .. 3 are one mma's fragments, 4 .. 7 a second's. int8 takes k0 + 16 t .. + 15 of a chunk of 64. Sums run over k
// ascending in chunks whatever the tile, so a row's bits depend on its data only.
//
// Integer weights are exact as bf16 or f16. int4: every group has sums of its own, added with its scale by FMA.
#pragma once
#include "tile_copy.cuh"

namespace pyllm {
namespace cuda {

template <class E, int NT>
__device__ __forceinline__ void multiply(float (&c)[NT][4], int n, const uint4& x, const u32 (&first)[4],
                                         const u32 (&second)[4]) {
  Number<E>::mma(c[n], first, x.x, x.y);
  Number<E>::mma(c[n], second, x.z, x.w);
}

// One step of the products of a warp: its sums += its weights times its rows of x.
template <class T, class E, Codes C, Rows R, int MT, int NT>
struct Step {
  using Sums = float[MT][NT][4];

  // Products of chunk c of 16 bytes of each row of x with fragments a.
  static __device__ __forceinline__ void products(Sums& sums, const u32* stage, int x_row, int c,
                                                  const u32 (&a)[MT][2][4]) {
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int p = 0; p < T::planes; p++) {
        const uint4 x = *reinterpret_cast<const uint4*>(stage + p * T::x_words + T::place(x_row + 8 * n, c));
#pragma unroll
        for (int m = 0; m < MT; m++) multiply<E, NT>(sums[m], n, x, a[m][0], a[m][1]);
      }
  }

  static __device__ __forceinline__ void half(Sums& sums, const u32* stage, int x_row, int w_row, int t) {
    const u32* weights = stage + T::planes * T::x_words;
#pragma unroll
    for (int c = 0; c < T::chunks; c += 4) {
      u32 a[MT][2][4];
#pragma unroll
      for (int m = 0; m < MT; m++) {
        const uint4 top = *reinterpret_cast<const uint4*>(weights + T::place(w_row + 16 * m, c + t));
        const uint4 low = *reinterpret_cast<const uint4*>(weights + T::place(w_row + 16 * m + 8, c + t));
        a[m][0][0] = top.x, a[m][0][1] = low.x, a[m][0][2] = top.y, a[m][0][3] = low.y;
        a[m][1][0] = top.z, a[m][1][1] = low.z, a[m][1][2] = top.w, a[m][1][3] = low.w;
      }
      products(sums, stage, x_row, c + t, a);
    }
  }

  static __device__ __forceinline__ void i8(Sums& sums, const u32* stage, int x_row, const LaneCodes<MT>& w, int t) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      u32 a[MT][2][4];
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const u32 even = h ? w.codes[m][r].z : w.codes[m][r].x, odd = h ? w.codes[m][r].w : w.codes[m][r].y;
          a[m][0][r] = CodePair<E>::of_bytes(spread_bytes<0>(even));
          a[m][0][2 + r] = CodePair<E>::of_bytes(spread_bytes<2>(even));
          a[m][1][r] = CodePair<E>::of_bytes(spread_bytes<0>(odd));
          a[m][1][2 + r] = CodePair<E>::of_bytes(spread_bytes<2>(odd));
        }
      products(sums, stage, x_row, 2 * t + h, a);
    }
  }

  static __device__ __forceinline__ void i4(Sums& sums, Sums& group, const u32* stage, int x_row,
                                            const LaneCodes<MT>& w, int t, bool by32) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      u32 a[MT][2][4];
      float scale[MT][2];
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
          const uint4& codes = w.codes[m][r];
          const u32 word = j == 0 ? codes.x : j == 1 ? codes.y : j == 2 ? codes.z : codes.w;
          const int g = by32 ? j : 0;
          const u32 minus = CodePair<E>::minus_zero(w.zeros[m][r], g);
          const u32 halves = g < 2 ? w.scales[m][r].x : w.scales[m][r].y;
          scale[m][r] = to_float(as<f16>(uint16_t(halves >> 16 * (g % 2))));
          a[m][0][r] = CodePair<E>::of_nibbles(word, minus);
          a[m][0][2 + r] = CodePair<E>::of_nibbles(word >> 4, minus);
          a[m][1][r] = CodePair<E>::of_nibbles(word >> 8, minus);
          a[m][1][2 + r] = CodePair<E>::of_nibbles(word >> 12, minus);
        }
      products(group, stage, x_row, 4 * j + t, a);
      if (!by32 && j < 3) continue;
#pragma unroll
      for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < NT; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) {
            sums[m][n][i] = fmaf(group[m][n][i], scale[m][i / 2], sums[m][n][i]);
            group[m][n][i] = 0.0f;
          }
    }
  }
};

template <class E, Codes C, Rows R, int W_WARPS, int X_WARPS, int MT, int NT>
__global__ void __launch_bounds__(32 * W_WARPS * X_WARPS, Tile<E, C, R, W_WARPS, X_WARPS, MT, NT>::blocks)
    tile_kernel(const __grid_constant__ TileArgs a) {
  using T = Tile<E, C, R, W_WARPS, X_WARPS, MT, NT>;
  using S = Step<T, E, C, R, MT, NT>;
  PYLLM_DYN_SHARED(u32, shared);
  const int z = blockIdx.z, x0 = blockIdx.x * T::x_rows;
  const int64_t w0 = int64_t(blockIdx.y) * T::w_rows;
  const TileRows rows(a, z);
  if (x0 >= rows.count) return;
  const Matrix w = a.batch ? a.batch[z] : a.w;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int w_row = warp % W_WARPS * 16 * MT + g, x_row = warp / W_WARPS * 8 * NT + g;
  const bool by32 = C == Codes::i4 && by_32(w.format);
  const int steps = int(w.ld / T::step);

  RowCopier<T, R> copier(a, rows, z, x0);
  const auto stage = [&](int s) { return shared + s % T::stages * T::stage_words; };
  const auto copy = [&](int s) {  // what of stage s comes by asynchronous copies
    if (s < steps) {
      if constexpr (R == Rows::narrow) copier.template copy<E>(stage(s), int64_t(s) * T::step);
      if constexpr (C == Codes::half) copy_weights<T>(w, stage(s) + T::planes * T::x_words, w0, int64_t(s) * T::step);
    }
    cp_async_commit();
  };
  const auto store = [&](int s) {  // float rows: stage s is stored, s + 1 fetched
    if constexpr (R != Rows::narrow) {
      if (s < steps) copier.template store<E>(stage(s));
      if (s + 1 < steps) copier.fetch(int64_t(s + 1) * T::step);
    }
  };

  float sums[MT][NT][4] = {};
  float group[C == Codes::i4 ? MT : 1][C == Codes::i4 ? NT : 1][4] = {};
  int64_t row[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) row[m][h] = min(w0 + w_row + 16 * m + 8 * h, packed_rows(w) - 1);
  LaneCodes<MT> codes[T::ring];  // of this step and of those after it
  const auto load = [&](int s, LaneCodes<MT>& to) {
    if constexpr (C != Codes::half)
      if (s < steps) load_codes<C, MT>(to, w, row, int64_t(s) * T::step, t);
  };
#pragma unroll
  for (int s = 0; s < T::ring - 1; s++) load(s, codes[s]);
  if constexpr (R != Rows::narrow) copier.fetch(0);
#pragma unroll
  for (int s = 0; s < T::stages - 1; s++) {
    copy(s);
    store(s);
  }

#pragma unroll 1
  for (int first = 0; first < steps; first += T::ring) {
#pragma unroll
    for (int i = 0; i < T::ring; i++) {  // so that `codes` is indexed by constants: registers
      const int s = first + i;
      if (s >= steps) break;
      cp_async_wait<T::stages - 2>();
      __syncthreads();  // stage s is there for all, and all are done with the one that is filled now
      copy(s + T::stages - 1);
      load(s + T::ring - 1, codes[(i + T::ring - 1) % T::ring]);
      if constexpr (C == Codes::half) S::half(sums, stage(s), x_row, w_row, t);
      if constexpr (C == Codes::i8) S::i8(sums, stage(s), x_row, codes[i], t);
      if constexpr (C == Codes::i4) S::i4(sums, group, stage(s), x_row, codes[i], t, by32);
      store(s + T::stages - 1);
    }
  }

  cp_async_wait<0>();
  __syncthreads();
  float* out = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        out[(x_row - g + 8 * n + 2 * t + i % 2) * T::sums_ld + w_row + 16 * m + 8 * (i / 2)] = sums[m][n][i];
  __syncthreads();
  write_tile(a, w, z, rows, out, T::sums_ld, x0, T::x_rows, w0, T::w_rows);
}

template <class E, Codes C, Rows R, int W_WARPS, int X_WARPS, int MT, int NT>
void launch_tile(const TileArgs& a, Stream stream) {
  using T = Tile<E, C, R, W_WARPS, X_WARPS, MT, NT>;
  const auto kernel = tile_kernel<E, C, R, W_WARPS, X_WARPS, MT, NT>;
  const dim3 grid(unsigned((a.m + T::x_rows - 1) / T::x_rows), unsigned((a.w.n + T::w_rows - 1) / T::w_rows),
                  unsigned(a.count));
  PYLLM_LAUNCH(kernel, grid, dim3(T::threads), T::shared_bytes, stream, a);
}

// Rows up to which a block takes 16 of x: then weights are what has to be read.
static constexpr int kThinRows = 16;
// Blocks from which on the big tile keeps a GPU of about 132 multiprocessors busy.
static constexpr int64_t kManyBlocks = 128;

template <class E, Codes C, Rows R>
void launch_tiles(const TileArgs& a, Stream stream) {
  if (a.typical <= kThinRows) return launch_tile<E, C, R, 4, 1, 1, 2>(a, stream);
  if constexpr (C != Codes::i4 && R == Rows::narrow) {
    const int64_t blocks = int64_t(a.typical + 127) / 128 * ((a.w.n + 127) / 128) * a.count;
    if (blocks >= kManyBlocks) return launch_tile<E, C, R, 4, 2, 2, 8>(a, stream);
  }
  // int4 takes so many instructions to unfold that no two warps should unfold the same.
  if constexpr (C == Codes::i4) return launch_tile<E, C, R, 4, 1, 1, 8>(a, stream);
  else launch_tile<E, C, R, 2, 2, 2, 4>(a, stream);
}

// type: of the products; f32 stands for x in two bf16 halves.
template <Codes C>
void launch_type(const TileArgs& a, Type type, Stream stream) {
  const bool wide = a.x.type == Type::f32;
  if (type == Type::f16) {
    wide ? launch_tiles<f16, C, Rows::wide>(a, stream) : launch_tiles<f16, C, Rows::narrow>(a, stream);
  } else if (type == Type::bf16) {
    wide ? launch_tiles<bf16, C, Rows::wide>(a, stream) : launch_tiles<bf16, C, Rows::narrow>(a, stream);
  } else if constexpr (C != Codes::half) {
    launch_tiles<bf16, C, Rows::split>(a, stream);
  }
}

}  // namespace cuda
}  // namespace pyllm
