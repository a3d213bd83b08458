// How tiles get their operands: rows of x and 16-bit weights by way of a ring in shared memory, integer weights from
// global memory to registers, some steps ahead.
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
  static constexpr int blocks = NT == 2 ? (R == Rows::split ? 3 : 4) : C == Codes::half && NT == 4 ? 3 : 1;
  // Steps of which a lane holds integer weights: this one, and those that are on their way.
  static constexpr int ring = C == Codes::half ? 1 : NT == 2 ? 3 : 2;
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

}  // namespace cuda
}  // namespace pyllm
