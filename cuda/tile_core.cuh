// Tensor-core tiles of y = x W^T. Weights are the 16-row operand of mma.m16n8k16 and rows of x the 8 columns, as in the
// kernel for few rows: gate and up, and a weight row's scale, belong to one lane.
//
// A dot product does not care about the order of k, so no operand is rearranged: over a chunk of 32 k, lane
// (g = lane / 4, t = lane % 4) takes 16 bytes, k0 + 8 t .. + 7, of a row of x and of weight rows g and g + 8; elements
// 0 .. 3 are one mma's fragments, 4 .. 7 a second's. int8 takes k0 + 16 t .. + 15 of a chunk of 64. Sums run over k
// ascending in chunks whatever the tile, so a row's bits depend on its data only.
//
// 16-bit weights and x go through a ring in shared memory; integer weights from global memory to registers, one step
// ahead, and are exact as bf16 or f16. int4: every group has sums of its own, added with its scale by FMA.
#pragma once
#include "tile_rows.cuh"

namespace pyllm {
namespace cuda {

enum class Codes { half, i8, i4 };
enum class Rows { narrow, wide, split };  // x: as the products take it; float32; float32 as two bf16 halves

// W_WARPS x X_WARPS warps, each MT tiles of 16 weight rows by NT tiles of 8 rows of x.
template <class E, Codes C, Rows R, int W_WARPS, int X_WARPS, int MT, int NT>
struct Tile {
  static constexpr int threads = 32 * W_WARPS * X_WARPS;
  static constexpr int w_rows = 16 * MT * W_WARPS, x_rows = 8 * NT * X_WARPS;
  // Blocks that one multiprocessor should hold: bounds registers, without spills (nvcc 13, sm_80 and sm_90).
  static constexpr int blocks = MT == 1 ? 4 : C == Codes::half && NT == 4 ? 3 : 1;
  static constexpr int step = C == Codes::i4 ? 128 : 64;  // k of one stage
  static constexpr int chunks = step / 8;                 // of 16 bytes, in a row of a stage
  static constexpr int planes = R == Rows::split ? 2 : 1;
  static constexpr int stages = 3;
  static constexpr int x_words = x_rows * step / 2;  // 32-bit words of one plane
  static constexpr int w_words = C == Codes::half ? w_rows * step / 2 : 0;
  static constexpr int stage_words = planes * x_words + w_words;
  static constexpr int sums_ld = w_rows + 4;  // lanes (g, t) then store to 32 banks
  static constexpr size_t shared_bytes =
      4 * size_t(stages * stage_words > x_rows * sums_ld ? stages * stage_words : x_rows * sums_ld);
  static constexpr int x_pieces = x_rows * chunks / threads;  // of 16 bytes, a thread and stage
  static constexpr int row_step = threads / chunks;
  static_assert(x_rows * chunks % threads == 0 && threads % chunks == 0, "every thread copies as much");

  // Where chunk c of a row lies, so that the 8 lanes of one phase of a 16-byte load (two rows) touch all banks.
  static __device__ __forceinline__ int place(int row, int c) {
    const int swizzled = C == Codes::i8 ? c ^ (row & 1) : c ^ ((row & 1) << 2);
    return (row * chunks + swizzled) * 4;
  }
};

// The rows of x that a thread copies, for all of k.
template <class T, Rows R>
struct RowCopier {
  const TileArgs& a;
  int row[T::x_pieces];  // of a.x; -1: none. 32 bits: registers are short
  int64_t begin;         // first column
  int chunk, first_row;
  float held[R == Rows::narrow ? 1 : T::x_pieces][8];

  __device__ RowCopier(const TileArgs& args, const TileRows& rows, int z, int x0)
      : a(args),
        begin(args.x_begin + z * args.x_step),
        chunk(threadIdx.x % T::chunks),
        first_row(threadIdx.x / T::chunks) {
#pragma unroll
    for (int i = 0; i < T::x_pieces; i++) {
      const int r = x0 + first_row + i * T::row_step;
      row[i] = r < rows.count ? int(rows.x(r)) : -1;
    }
  }

  // Narrow rows: to shared memory, not there before the next wait. Columns past K and rows past the last are zeros.
  template <class E>
  __device__ __forceinline__ void copy(u32* stage, int64_t k0) const {
    const int64_t k = k0 + chunk * 8, left = a.w.k - k;
    const uint16_t* x = static_cast<const uint16_t*>(a.x.data);
#pragma unroll
    for (int i = 0; i < T::x_pieces; i++) {
      u32* to = stage + T::place(first_row + i * T::row_step, chunk);
      const int many = row[i] < 0 || left <= 0 ? 0 : left < 8 ? int(left) : 8;
      if (a.aligned_x) {
        cp_async16(to, many ? x + row[i] * a.x.ld + begin + k : x, 2 * many);
      } else {
        u32 v[4] = {};
#pragma unroll
        for (int j = 0; j < 8; j++)
          if (j < many) v[j / 2] |= u32(x[row[i] * a.x.ld + begin + k + j]) << 16 * (j % 2);
        *reinterpret_cast<uint4*>(to) = make_uint4(v[0], v[1], v[2], v[3]);
      }
    }
  }

  // Float rows: fetched one stage before they are stored, so that a stage's products hide the way from memory.
  __device__ __forceinline__ void fetch(int64_t k0) {
    const int64_t k = k0 + chunk * 8, left = a.w.k - k;
    const float* x = static_cast<const float*>(a.x.data);
#pragma unroll
    for (int i = 0; i < T::x_pieces; i++) {
      const int many = row[i] < 0 || left <= 0 ? 0 : left < 8 ? int(left) : 8;
      if (a.aligned_x && many == 8) {
        const float4* at = reinterpret_cast<const float4*>(x + row[i] * a.x.ld + begin + k);
        const float4 low = at[0], high = at[1];
        held[i][0] = low.x, held[i][1] = low.y, held[i][2] = low.z, held[i][3] = low.w;
        held[i][4] = high.x, held[i][5] = high.y, held[i][6] = high.z, held[i][7] = high.w;
      } else {
#pragma unroll
        for (int j = 0; j < 8; j++) held[i][j] = j < many ? x[row[i] * a.x.ld + begin + k + j] : 0.0f;
      }
    }
  }
  template <class E>
  __device__ __forceinline__ void store(u32* stage) const {
#pragma unroll
    for (int i = 0; i < T::x_pieces; i++) {
      u32 high[4], low[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float e = held[i][2 * j], o = held[i][2 * j + 1];
        high[j] = Number<E>::pack(e, o);
        const float2 rounded = Number<E>::unpack(high[j]);
        low[j] = Number<E>::pack(e - rounded.x, o - rounded.y);
      }
      u32* to = stage + T::place(first_row + i * T::row_step, chunk);
      *reinterpret_cast<uint4*>(to) = make_uint4(high[0], high[1], high[2], high[3]);
      if (R == Rows::split) *reinterpret_cast<uint4*>(to + T::x_words) = make_uint4(low[0], low[1], low[2], low[3]);
    }
  }
};

// 16-bit weights: copied to shared memory beside x.
template <class T>
__device__ __forceinline__ void copy_weights(const Matrix& w, u32* stage, int64_t w0, int64_t k0) {
  const int chunk = threadIdx.x % T::chunks;
  const int64_t rows = packed_rows(w);
#pragma unroll
  for (int r = threadIdx.x / T::chunks; r < T::w_rows; r += T::row_step) {
    const int64_t row = min(w0 + r, rows - 1);
    cp_async16(stage + T::place(r, chunk), static_cast<const uint16_t*>(w.codes) + row * w.ld + k0 + chunk * 8);
  }
}

__device__ __forceinline__ bool by_32(Format f) { return f == Format::i4_g32 || f == Format::i4z_g32; }

// A lane's integer weights of one step: rows g and g + 8 of MT tiles.
template <int MT>
struct LaneCodes {
  uint4 codes[MT][2];
  uint2 scales[MT][2];  // int4: four halves, of groups of 32, or one in the low 16 bits
  u32 zeros[MT][2];     // their zero points, a byte each
};

template <Codes C, int MT>
__device__ __forceinline__ void load_codes(LaneCodes<MT>& to, const Matrix& w, const int64_t (&row)[MT][2], int64_t k0,
                                           int t) {
  const uint8_t* codes = static_cast<const uint8_t*>(w.codes);
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int64_t at = C == Codes::i8 ? row[m][h] * w.ld + k0 : (row[m][h] * w.ld + k0) / 2;
      to.codes[m][h] = *reinterpret_cast<const uint4*>(codes + at + 16 * t);
      if (C != Codes::i4) continue;
      const uint16_t* scales = static_cast<const uint16_t*>(w.scales);
      if (by_32(w.format)) {
        const int64_t group = (row[m][h] * w.ld + k0) / 32;
        to.scales[m][h] = *reinterpret_cast<const uint2*>(scales + group);
        to.zeros[m][h] = w.zeros ? *reinterpret_cast<const u32*>(w.zeros + group) : 0x08080808u;
      } else {
        const int64_t group = (row[m][h] * w.ld + k0) / 128;
        to.scales[m][h].x = scales[group];
        to.zeros[m][h] = w.zeros ? w.zeros[group] : 8u;
      }
    }
}

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
          const u32 minus = CodePair<E>::minus_zero(w.zeros[m][r] >> 8 * g & 0xffu);
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
  LaneCodes<MT> now, next;
  int64_t row[MT][2];
#pragma unroll
  for (int m = 0; m < MT; m++)
#pragma unroll
    for (int h = 0; h < 2; h++) row[m][h] = min(w0 + w_row + 16 * m + 8 * h, packed_rows(w) - 1);
  if constexpr (C != Codes::half) load_codes<C, MT>(next, w, row, 0, t);
  if constexpr (R != Rows::narrow) copier.fetch(0);
#pragma unroll
  for (int s = 0; s < T::stages - 1; s++) {
    copy(s);
    store(s);
  }

#pragma unroll 1
  for (int s = 0; s < steps; s++) {
    cp_async_wait<T::stages - 2>();
    __syncthreads();  // stage s is there for all, and all are done with the one that is filled now
    copy(s + T::stages - 1);
    if constexpr (C != Codes::half) {
      now = next;
      if (s + 1 < steps) load_codes<C, MT>(next, w, row, int64_t(s + 1) * T::step, t);
    }
    if constexpr (C == Codes::half) S::half(sums, stage(s), x_row, w_row, t);
    if constexpr (C == Codes::i8) S::i8(sums, stage(s), x_row, now, t);
    if constexpr (C == Codes::i4) S::i4(sums, group, stage(s), x_row, now, t, by32);
    store(s + T::stages - 1);
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
  if (a.m <= kThinRows) return launch_tile<E, C, R, 4, 1, 1, 2>(a, stream);
  if constexpr (C != Codes::i4 && R == Rows::narrow) {
    const int64_t blocks = (a.m + 127) / 128 * ((a.w.n + 127) / 128) * a.count;
    if (blocks >= kManyBlocks) return launch_tile<E, C, R, 4, 2, 2, 8>(a, stream);
  }
  launch_tile<E, C, R, 2, 2, 2, 4>(a, stream);
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
